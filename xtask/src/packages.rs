// SPDX-License-Identifier: Apache-2.0
//! The Debian packages that must be installed on this machine, and installing those that are missing.
//!
//! Guest kernels and guest programs are not among them: those are downloaded and unpacked, never installed
//! (see `guests`).

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;

/// A package that has to be installed.
#[derive(Clone, Copy)]
pub struct Package {
    name: &'static str,
    /// A program, or the full path of a file, that only this package brings.
    program: &'static str,
    why: &'static str,
}

/// What making and running guests takes: the virtual machine monitor, the compiler that built the guests' kernels,
/// and what drives it.
pub const GUESTS: [Package; 4] = [
    Package { name: "qemu-system-x86", program: "qemu-system-x86_64", why: "runs the virtual machines" },
    Package { name: "gcc-12", program: "gcc-12", why: "builds modules for the guests' kernels" },
    Package { name: "make", program: "make", why: "builds modules for the guests' kernels" },
    Package {
        name: "libelf1",
        program: "/usr/lib/x86_64-linux-gnu/libelf.so.1",
        why: "is used by what builds modules",
    },
];
/// The C++ compiler.
pub const COMPILER: Package =
    Package { name: "g++", program: "g++", why: "builds libFuzzer for the fuzz targets" };

/// Counts instructions.
pub const VALGRIND: Package =
    Package { name: "valgrind", program: "valgrind", why: "counts instructions per frame" };
/// Reads IPFIX.
pub const COLLECTOR: Package =
    Package { name: "nfdump", program: "nfcapd", why: "collects the flow records that the daemon exports" };

/// Reads captures.
pub const ANALYSER: Package =
    Package { name: "tshark", program: "tshark", why: "looks at what machines have received" };

/// Downloads the collector of traces.
pub const PIP: Package =
    Package { name: "python3-pip", program: "pip3", why: "downloads a collector of traces" };

/// The frame generator and its drivers.
pub const DPDK: [Package; 3] = [
    Package { name: "dpdk-dev", program: "dpdk-testpmd", why: "generates frames" },
    Package {
        name: "librte-net-virtio23",
        program: "/usr/lib/x86_64-linux-gnu/librte_net_virtio.so.23",
        why: "lets the generator be a guest",
    },
    Package {
        name: "librte-net-pcap23",
        program: "/usr/lib/x86_64-linux-gnu/librte_net_pcap.so.23",
        why: "lets the generator loop frames from a file",
    },
];

/// The switch that ours is measured beside, and the bare back end that shows how fast the machine is right now.
pub const PEERS: [Package; 2] = [
    Package {
        name: "openvswitch-switch-dpdk",
        program: "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk",
        why: "is the peer",
    },
    Package {
        name: "librte-net-vhost23",
        program: "/usr/lib/x86_64-linux-gnu/librte_net_vhost.so.23",
        why: "probes the machine between measurements",
    },
];

/// What the switch's answers about names are measured beside, and what asks both.
pub const NAMES: [Package; 5] = {
    let [generator, virtio, pcap] = DPDK;
    [
        generator,
        virtio,
        pcap,
        Package { name: "dnsmasq-base", program: "dnsmasq", why: "is the peer" },
        Package { name: "dnsperf", program: "dnsperf", why: "asks the peer" },
    ]
};

/// Makes sure that each of `packages` is installed.
///
/// # Errors
/// When something is missing and `may_install` is false, or when apt-get cannot install it.
pub fn require(packages: &[Package], may_install: bool) -> Result<()> {
    let missing: Vec<&Package> =
        packages.iter().filter(|package| shell::find_program(package.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("Missing Debian packages:");
    for package in &missing {
        println!("  {:<18} {}", package.name, package.why);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if !may_install {
        bail!("install them with: apt-get install --no-install-recommends {}", names.join(" "));
    }
    install(&names)
}

/// Installs with the package lists at hand, and once more with fresh ones if that fails.
fn install(names: &[&str]) -> Result<()> {
    let arguments = [&["install", "--yes", "--no-install-recommends"], names].concat();
    println!("Installing them: apt-get {}", arguments.join(" "));
    if shell::output(as_root(&arguments)?.env("DEBIAN_FRONTEND", "noninteractive")).is_ok() {
        return Ok(());
    }
    println!("Refreshing the package lists first: apt-get update");
    // Its outcome says nothing: a source that nobody needs may fail, and old lists may do.
    let _ = shell::show(&mut as_root(&["update", "--quiet=2"])?);
    shell::show(as_root(&arguments)?.env("DEBIAN_FRONTEND", "noninteractive"))
        .context("install what is missing")
}

/// `apt-get` as root: directly, or through sudo.
fn as_root(arguments: &[&str]) -> Result<Command> {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("apt-get")
    } else if shell::find_program("sudo").is_some() {
        let mut sudo = Command::new("sudo");
        sudo.args(["--preserve-env=DEBIAN_FRONTEND", "apt-get"]);
        sudo
    } else {
        bail!("installing needs root, and there is no sudo: run `apt-get {}` as root", arguments.join(" "));
    };
    command.args(arguments);
    Ok(command)
}
