// SPDX-License-Identifier: Apache-2.0
//! DPDK's virtio driver as the guests': whatever shape of ring it asks for, every frame that it is given is one that was sent, whole,
//! once and in order.
//!
//! One `testpmd` has the cards of two guests. What it sends from each is read from a capture file, and what it receives at
//! each is written into another.

use std::fmt::Debug;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use api::admin::{Nic, NicState, Request, Response};
use model::MacAddr;
use packet::Addresses;
use packet::emit::{self, Link};
use testkit::capture;
use testkit::claim::skip;
use testkit::daemon::Daemon;
use testkit::guests::shipped;
use testkit::process::Process;
use testkit::scratch::Scratch;

const TEST: &str = "every_driver_of_dpdk_gets_every_frame_once_whole_and_in_order";
/// Properties of a card, and names of the features that its rings then have and lack.
const CARDS: [(&str, &[&str], &[&str]); 10] = [
    ("mrg_rxbuf=0,in_order=0", &[], &["F_RING_PACKED", "NET_F_MRG_RXBUF", "F_IN_ORDER"]),
    ("mrg_rxbuf=1,in_order=0", &["NET_F_MRG_RXBUF"], &["F_RING_PACKED", "F_IN_ORDER"]),
    ("mrg_rxbuf=0,in_order=1", &["F_IN_ORDER"], &["F_RING_PACKED", "NET_F_MRG_RXBUF"]),
    ("mrg_rxbuf=1,in_order=1", &["NET_F_MRG_RXBUF", "F_IN_ORDER"], &["F_RING_PACKED"]),
    ("mrg_rxbuf=0,in_order=1,vectorized=1", &["F_IN_ORDER"], &["F_RING_PACKED", "NET_F_MRG_RXBUF"]),
    ("packed_vq=1,mrg_rxbuf=0,in_order=0", &["F_RING_PACKED"], &["NET_F_MRG_RXBUF", "F_IN_ORDER"]),
    ("packed_vq=1,mrg_rxbuf=1,in_order=0", &["F_RING_PACKED", "NET_F_MRG_RXBUF"], &["F_IN_ORDER"]),
    ("packed_vq=1,mrg_rxbuf=0,in_order=1", &["F_RING_PACKED", "F_IN_ORDER"], &["NET_F_MRG_RXBUF"]),
    ("packed_vq=1,mrg_rxbuf=1,in_order=1", &["F_RING_PACKED", "NET_F_MRG_RXBUF", "F_IN_ORDER"], &[]),
    (
        "packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1",
        &["F_RING_PACKED", "F_IN_ORDER"],
        &["NET_F_MRG_RXBUF"],
    ),
];
/// Frames each way: the rings go round twenty times.
const FRAMES: u64 = 5000;
/// Frames that a ring holds.
const RING_FRAMES: u64 = 256;
/// Lengths of payloads: the smallest frame, the largest of the usual MTU, and the largest that takes several buffers.
const PAYLOAD_BYTES: (usize, usize, usize) = (18, 1472, 7000);
/// Time for anything, with much to spare.
const PATIENCE: Duration = Duration::from_secs(60);
/// A pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

const MESH: &str = "\
apiVersion: meshvisor.dev/v1alpha1
kind: Tenant
metadata: {name: acme}
---
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: vm0, tenant: acme}
spec:
  nics: [{name: net0, socket: 0.sock, mac: '02:00:00:00:00:01', addresses: [10.0.0.1/24]}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: vm1, tenant: acme}
spec:
  nics: [{name: net0, socket: 1.sock, mac: '02:00:00:00:00:02', addresses: [10.0.0.2/24]}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: all, tenant: acme}
spec: {action: Allow}
";

#[test]
fn every_driver_of_dpdk_gets_every_frame_once_whole_and_in_order() -> Result<()> {
    if Command::new("dpdk-testpmd").arg("--version").output().is_err() {
        skip(TEST, "dpdk-testpmd is not installed");
        return Ok(());
    }
    let scratch = Scratch::new("drivers")?;
    let mesh = scratch.join("mesh");
    fs::create_dir(&mesh)?;
    fs::write(mesh.join("all.yaml"), MESH)?;
    let settings = scratch.join("hostd.toml");
    fs::write(&settings, "[introspection]\nenabled = false\n")?;
    let daemon = Daemon::start_with(&shipped("meshvisor-hostd"), &mesh, scratch.path(), Some(&settings))?;
    for (card, has, lacks) in CARDS {
        exchange(&daemon, &scratch, card, (has, lacks))
            .with_context(|| format!("a card with {card}\n{}", daemon.report()))?;
    }
    Ok(())
}

/// Has two guests with such cards send each other frames; both get what the other has sent.
fn exchange(daemon: &Daemon, scratch: &Scratch, card: &str, (has, lacks): (&[&str], &[&str])) -> Result<()> {
    await_cards(daemon, NicState::Waiting)?;
    let merges = has.contains(&"NET_F_MRG_RXBUF");
    let sent = [0, 1].map(|from| frames(from, merges));
    for (from, frames) in sent.iter().enumerate() {
        capture::write(&scratch.join(format!("{from}.in.pcap")), frames)?;
    }
    let (_guests, mut words) = start(scratch, card)?;
    let features = await_cards(daemon, NicState::Running)?;
    let agreed = |name: &&str| features.iter().any(|feature| feature == name);
    ensure!(has.iter().all(agreed) && !lacks.iter().any(agreed), "the rings have {features:?}");
    let before = counted(daemon)?;
    words.write_all(b"start\n")?;
    // Each is given to the other guest, or dropped and counted because that has no buffer at that moment.
    let all = |now: &Counts| {
        let since = |count: fn(&Counts) -> u64| count(now) - count(&before);
        [since(|c| c.from[0]), since(|c| c.from[1])] == [FRAMES; 2]
            && since(|c| c.to[0] + c.to[1] + c.dropped) == 2 * FRAMES
    };
    let after = await_that(|| counted(daemon), all)?;
    for (to, frames) in sent.iter().rev().enumerate() {
        let given = after.to[to] - before.to[to];
        ensure!(given > 4 * RING_FRAMES, "only {given} frames of {FRAMES} were given to guest {to}");
        let path = scratch.join(format!("{to}.out.pcap"));
        await_that(|| Ok(capture::frames(&fs::read(&path)?).len() as u64), |written| *written >= given)?;
        let file = fs::read(&path)?;
        let received = capture::frames(&file);
        let got = received.len() as u64;
        ensure!(got == given, "guest {to} was given {given} frames and got {got}");
        let mut expected = frames.iter();
        let wrong = received.iter().position(|frame| !expected.any(|sent| sent == frame));
        ensure!(wrong.is_none(), "frame {wrong:?} to guest {to} is none that was sent after the one before");
    }
    Ok(())
}

/// Waits until both cards are in that state; returns the features of the first.
fn await_cards(daemon: &Daemon, state: NicState) -> Result<Vec<String>> {
    let cards = || match daemon.ask(&Request::VmList)? {
        Response::Vms(vms) => Ok(vms.into_iter().flat_map(|vm| vm.nics).collect()),
        other => bail!("the daemon answers {other:?}"),
    };
    let are_so = |cards: &Vec<Nic>| cards.len() == 2 && cards.iter().all(|card| card.state == state);
    let mut cards = await_that(cards, are_so)?;
    Ok(cards.swap_remove(0).features)
}

/// Frames that the daemon has counted.
#[derive(Debug)]
struct Counts {
    /// From each guest.
    from: [u64; 2],
    /// To each guest.
    to: [u64; 2],
    dropped: u64,
}

fn counted(daemon: &Daemon) -> Result<Counts> {
    let Response::Status(status) = daemon.ask(&Request::Status)? else { bail!("the daemon has no status") };
    let mut counts = Counts { from: [0; 2], to: [0; 2], dropped: status.drops.values().sum() };
    for guest in [0, 1] {
        let port = status.ports.iter().find(|port| port.nic == format!("acme/vm{guest}/net0"));
        let port = port.context("a card has no port")?;
        (counts.from[guest], counts.to[guest]) = (port.outbound_frames, port.inbound_frames);
    }
    Ok(counts)
}

/// Looks until what is seen is so.
fn await_that<T: Debug>(mut look: impl FnMut() -> Result<T>, is_so: impl Fn(&T) -> bool) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look()?;
        if is_so(&seen) {
            return Ok(seen);
        }
        ensure!(Instant::now() < deadline, "after {PATIENCE:?} there is still {seen:?}");
        std::thread::park_timeout(LOOK_AGAIN);
    }
}

/// Guests that are ready to begin, and what takes commands for them.
fn start(scratch: &Scratch, card: &str) -> Result<(Process, ChildStdin)> {
    let mut devices = Vec::new();
    for guest in [0, 1] {
        let file = |what| scratch.join(format!("{guest}.{what}.pcap")).display().to_string();
        let _ = fs::remove_file(file("out"));
        let socket = scratch.join(format!("{guest}.sock")).display().to_string();
        devices.push(format!(
            "--vdev=net_virtio_user{guest},mac=02:00:00:00:00:0{},path={socket},queue_size={RING_FRAMES},{card}",
            guest + 1
        ));
        devices.push(format!("--vdev=net_pcap{guest},rx_pcap={},tx_pcap={}", file("in"), file("out")));
    }
    // What a ring has no room for is tried again.
    let commands = scratch.join("commands");
    fs::write(&commands, "set fwd io retry\nset burst tx delay 10 retry 100000\n")?;
    let log = scratch.join("guests.log");
    let mut process = Process::start(Path::new("dpdk-testpmd"), log, |command| {
        command.args([
            "--lcores",
            "0@(0-1),1@(0-1)",
            "--no-huge",
            "--legacy-mem",
            "-m",
            "256",
            "--no-pci",
            "--no-telemetry",
        ]);
        // Vectorized ring code is used by none but those who ask for it.
        command.arg("--force-max-simd-bitwidth=512");
        command.arg(format!("--file-prefix=meshvisor-drivers-{}", std::process::id())).args(devices);
        command.args([
            "--",
            "-i",
            "--nb-cores=1",
            "--no-lsc-interrupt",
            "--no-flush-rx",
            "--rxd=256",
            "--txd=256",
        ]);
        command.arg("--total-num-mbufs=16384").arg("--cmdline-file").arg(&commands).stdin(Stdio::piped());
    })?;
    let words = process.take_stdin().context("its input is a pipe")?;
    Ok((process, words))
}

/// What a guest sends: datagrams of many flows and lengths, each with its number and bytes that follow from it.
fn frames(from: u8, merges: bool) -> Vec<Vec<u8>> {
    let mac = |guest: u8| MacAddr([2, 0, 0, 0, 0, guest + 1]);
    let address = |guest: u8| [10, 0, 0, guest + 1].into();
    let to = 1 - from;
    let (least, most, most_merged) = PAYLOAD_BYTES;
    (0..FRAMES as usize)
        .map(|number| {
            let longest = if merges && number % 50 == 0 { most_merged } else { most };
            let payload: Vec<u8> = (0..least + number * 7919 % (longest - least + 1))
                .map(|at| (number >> (at % 2 * 8)) as u8 ^ (at / 2) as u8)
                .collect();
            let flow = 2000 + (number % 500) as u16;
            let ports = if from == 0 { (flow, 5000) } else { (5000, flow) };
            let link = Link { source: mac(from), destination: mac(to) };
            emit::udp(
                link,
                Addresses::V4 { source: address(from), destination: address(to) },
                ports,
                &payload,
            )
        })
        .collect()
}
