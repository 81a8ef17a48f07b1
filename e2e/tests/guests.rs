// SPDX-License-Identifier: Apache-2.0
//! The guests themselves, without a network: what every other scenario takes for granted.

use std::time::Duration;

use anyhow::Result;
use testkit::accel;
use testkit::guests::GUEST_KERNELS;
use testkit::scratch::Scratch;
use testkit::vm::{Cpu, Vm, VmSpec};

/// Time for a guest program to start.
const START_LIMIT: Duration = Duration::from_secs(20);

#[test]
fn every_kernel_boots_and_serves() -> Result<()> {
    let scratch = Scratch::new("guests")?;
    let choice = accel::choose()?;
    println!("{}", choice.reason);
    for (kernel, cpu) in GUEST_KERNELS.into_iter().zip([Cpu::Qemu64, Cpu::Max]) {
        let vm = Vm::boot(VmSpec { kernel, cpu, ..VmSpec::new("guest", choice.accel) }, scratch.path())?;
        let release = vm.expect("uname -r")?;
        assert!(release.starts_with(kernel.name()), "{release}");
        assert_eq!(vm.expect("hostname")?, "guest");
        assert_eq!(vm.expect("cut -d' ' -f1 /proc/modules | head -1")?, "virtio_net");
        let failed = vm.run("echo 'it'\"'s\" >&2; exit 3")?;
        assert_eq!((failed.stdout.as_str(), failed.status), ("it's", 3));

        vm.background("serve", "in-service shop shop /usr/bin/orders serve 80")?;
        vm.await_line("serve", "serving", START_LIMIT)?;
        assert_eq!(vm.expect("cat /proc/$(pidof orders)/cgroup")?, "0::/system.slice/shop.service");
        assert_eq!(vm.expect("stat -c %u /proc/$(pidof orders)")?, "1000");
        assert_eq!(vm.expect("storefront ask 127.0.0.1:80 hello")?, "answer hello");
        assert_eq!(vm.expect("storefront datagram 127.0.0.1:80 hello")?, "answer hello");
        assert!(vm.run("intruder connect 127.0.0.1:81")?.stdout.starts_with("refused "));

        vm.background("redis", "in-service redis redis /usr/bin/redis-server --port 6379 --save ''")?;
        vm.await_line("redis", ".*Ready to accept connections", START_LIMIT)?;
        assert_eq!(vm.expect("orders ask 127.0.0.1:6379 PING")?, "answer +PONG");
        assert_eq!(vm.ram()?.metadata()?.len(), 256 << 20);
    }
    Ok(())
}
