// SPDX-License-Identifier: Apache-2.0
//! Neighbours that make noise: machines that start over and over, policies that change every second, and a guest that
//! sends and writes into its rings whatever it likes. Nobody else may notice.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use model::MacAddr;
use packet::emit::{self, Link};
use packet::{Addresses, VnetHeader};
use testkit::daemon::private_kib;
use vhost_port::testing::ConnectedGuest;

use super::probe::{End, Probe, Times};
use crate::Shop;
use crate::conversation::{STOREFRONT, Stream};
use crate::shop::API;

/// Who starts over.
const RESTLESS: &str = "globex/web";
/// Time between two policies, and between two looks at the daemon's memory.
const SECOND: Duration = Duration::from_secs(1);
/// Frames that the hostile guest sends at a time, and the time it takes before the next.
const BURST: usize = 32;
const BREATH: Duration = Duration::from_micros(200);
/// Bursts of frames, and then writes into its rings, of one connection.
const BURSTS: usize = 2_000;
const SCRIBBLES: usize = 200;
/// What does the noise gives way to what is measured: this is about the switch, not about the host's scheduler.
const NICE: i32 = 19;

/// Guests that are driven from here, in a tenant of their own.
const MACHINES: &str = "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: Tenant
metadata: {name: soak}
---
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: sender, tenant: soak}
spec:
  nics: [{name: net0, socket: soak-sender.sock, mac: '02:6d:76:00:09:01', addresses: [10.9.0.1/24]}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: receiver, tenant: soak}
spec:
  nics: [{name: net0, socket: soak-receiver.sock, mac: '02:6d:76:00:09:02', addresses: [10.9.0.2/24]}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: hostile, tenant: soak}
spec:
  nics: [{name: net0, socket: soak-hostile.sock, mac: '02:6d:76:00:09:03', addresses: [10.9.0.3/24]}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: probe, tenant: soak}
spec:
  action: Allow
  from: [{vm: {name: sender}}]
  to: [{vm: {name: receiver}, ports: [{port: 7, protocol: UDP}]}]
";
const SENDER: End =
    End { mac: MacAddr([2, 0x6d, 0x76, 0, 9, 1]), address: std::net::Ipv4Addr::new(10, 9, 0, 1) };
const RECEIVER: End =
    End { mac: MacAddr([2, 0x6d, 0x76, 0, 9, 2]), address: std::net::Ipv4Addr::new(10, 9, 0, 2) };
const HOSTILE: End =
    End { mac: MacAddr([2, 0x6d, 0x76, 0, 9, 3]), address: std::net::Ipv4Addr::new(10, 9, 0, 3) };

/// How long to watch.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    /// Without noise, to know what is usual.
    pub quiet: Duration,
    /// With it.
    pub loud: Duration,
}

/// What the others noticed.
#[derive(Clone, Debug)]
pub struct Peace {
    /// What frames took before.
    pub quiet: Times,
    /// What they took meanwhile.
    pub loud: Times,
    /// A real machine's conversation meanwhile, in its own words: lines and longest pause.
    pub conversation: String,
    /// Times that a machine started over.
    pub restarts: u32,
    /// Policies put in force.
    pub policies: u64,
    /// Frames that the hostile guest got rid of.
    pub hostile_frames: u64,
    /// Times that it wrote into its rings.
    pub scribbles: u64,
    /// The daemon's own memory, in KiB, each second of the noise.
    pub memory_kib: Vec<u64>,
}

/// Makes noise and watches the others.
///
/// # Errors
/// When a machine or the daemon does not do its part, or the conversation loses a line.
pub fn disturb(shop: &mut Shop, noise: Noise, mut progress: impl FnMut(Duration)) -> Result<Peace> {
    shop.put_in_force("70-soak.yaml", MACHINES)?;
    let socket = |name: &str| shop.runtime().join(format!("soak-{name}.sock"));
    let [sender, receiver, hostile] = ["sender", "receiver", "hostile"].map(socket);
    let mut probe = Probe::connect([&sender, &receiver], [SENDER, RECEIVER])?;
    let quiet = probe.run_for(noise.quiet);
    let conversation = Stream::start(shop, "acme/web", "neighbour", STOREFRONT, API)?;

    let stop = AtomicBool::new(false);
    let done = Done::default();
    let (daemon, manifest) = (shop.daemon.pid(), shop.manifests().join("71-soak-policy.yaml"));
    give_way(shop.vm(RESTLESS).pid())?;
    let (loud, memory_kib, restarts) = std::thread::scope(|scope| {
        let loud = scope.spawn(|| probe.run(&stop));
        let memory_kib = scope.spawn(|| change_policies(&manifest, daemon, &stop, &done));
        scope.spawn(|| annoy(&hostile, &stop, &done));
        let restarts = start_over(shop, noise.loud, &mut progress);
        stop.store(true, Ordering::Release);
        (loud.join().expect("a probe does not panic"), memory_kib.join().expect("nor does this"), restarts)
    });
    Ok(Peace {
        quiet,
        loud,
        conversation: conversation.finish(shop)?,
        restarts: restarts?,
        policies: done.policies.into_inner(),
        hostile_frames: done.frames.into_inner(),
        scribbles: done.scribbles.into_inner(),
        memory_kib: memory_kib?,
    })
}

/// What was done so far.
#[derive(Debug, Default)]
struct Done {
    policies: AtomicU64,
    frames: AtomicU64,
    scribbles: AtomicU64,
}

/// A machine starts over and over; tells how often.
fn start_over(shop: &mut Shop, how_long: Duration, mut progress: impl FnMut(Duration)) -> Result<u32> {
    let (started, mut restarts) = (Instant::now(), 0);
    while started.elapsed() < how_long {
        shop.reset(RESTLESS)?;
        restarts += 1;
        progress(started.elapsed());
    }
    Ok(restarts)
}

/// Every second there is another policy. Tells the daemon's own memory at those times, in KiB.
fn change_policies(manifest: &Path, daemon: u32, stop: &AtomicBool, done: &Done) -> Result<Vec<u64>> {
    let mut memory_kib = Vec::new();
    while !stop.load(Ordering::Acquire) {
        let number = done.policies.fetch_add(1, Ordering::Relaxed);
        fs::write(manifest, policy(number)).context("write a policy")?;
        std::thread::sleep(SECOND);
        memory_kib.push(private_kib(daemon)?);
    }
    fs::remove_file(manifest).context("remove the policy")?;
    Ok(memory_kib)
}

/// The policy of a number: many rules, none of which is about those who are measured.
fn policy(number: u64) -> String {
    let mut text = "# SPDX-License-Identifier: Apache-2.0\n".to_owned();
    for rule in 0..100 {
        let port = 1024 + (number * 7 + rule) % 50_000;
        text.push_str(&format!(
            "---\napiVersion: meshvisor.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: r{rule}, tenant: soak}}\n\
             spec:\n  action: Allow\n  from: [{{vm: {{name: hostile}}}}]\n  to: [{{vm: {{name: receiver}}, ports: [{{port: {port}}}]}}]\n"
        ));
    }
    text
}

/// A guest that sends anything, then writes anything into its rings, then connects again.
fn annoy(socket: &Path, stop: &AtomicBool, done: &Done) {
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    while !stop.load(Ordering::Acquire) {
        // The port may still be taking leave of the last one.
        let Ok(mut guest) = ConnectedGuest::connect(socket) else {
            std::thread::sleep(BREATH);
            continue;
        };
        let mut underway = 0;
        for _ in 0..BURSTS {
            if stop.load(Ordering::Acquire) {
                return;
            }
            (0..BURST - underway).for_each(|_| guest.send(&hostile_frame(&mut random)));
            std::thread::sleep(BREATH);
            let gone = guest.completed();
            underway = BURST.saturating_sub(gone);
            done.frames.fetch_add(gone as u64, Ordering::Relaxed);
            guest.received();
        }
        for _ in 0..SCRIBBLES {
            guest.scribble(|| random.next());
            done.scribbles.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(BREATH);
        }
    }
}

/// A frame that is nearly right, or nothing of the kind.
fn hostile_frame(random: &mut Random) -> Vec<u8> {
    let kind = random.next();
    let source = if kind & 0x30 == 0 { SENDER.address } else { HOSTILE.address };
    let link = Link { source: HOSTILE.mac, destination: RECEIVER.mac };
    let addresses = Addresses::V4 { source, destination: RECEIVER.address };
    let ports = (random.next() as u16, random.next() as u16);
    let payload = vec![random.next() as u8; random.next() as usize % 1400];
    let mut frame = VnetHeader::default().to_bytes().to_vec();
    match kind % 4 {
        0 => frame.extend(emit::udp(link, addresses, ports, &payload)),
        1 => {
            let segment = emit::Segment {
                source_port: ports.0,
                destination_port: ports.1,
                sequence: random.next() as u32,
                acknowledgment: 0,
                flags: packet::TcpFlags(random.next() as u8),
            };
            frame.extend(emit::tcp(link, addresses, segment));
        }
        2 => {
            frame.extend(emit::udp(link, addresses, ports, &payload));
            for _ in 0..4 {
                let at = random.next() as usize % frame.len().min(64);
                frame[at] = random.next() as u8;
            }
        }
        _ => frame.extend((0..1 + payload.len()).map(|_| random.next() as u8)),
    }
    let whole = frame.len();
    frame.truncate(if kind & 0x100 == 0 { whole } else { 1 + random.next() as usize % whole });
    frame
}

/// Numbers that look random (Marsaglia, Xorshift RNGs, 2003), the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Has all threads of a process wait for everybody else's: they run when nobody else would, and stop as soon as somebody
/// does. The lowest priority alone would let them finish their turn first, which is milliseconds.
///
/// # Errors
/// When there is no such process.
pub fn give_way(pid: u32) -> Result<()> {
    let pid = pid.to_string();
    let output = Command::new("chrt").args(["--all-tasks", "--idle", "--pid", "0", &pid]).output();
    let output = output.context("start chrt, of package util-linux")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
