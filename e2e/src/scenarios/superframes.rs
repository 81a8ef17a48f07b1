// SPDX-License-Identifier: Apache-2.0
//! UDP super-frames (USO): a program's datagrams of one call are one frame to the card that sends them, and stay one for
//! a receiver that takes them so; for any other they are cut on the way.
//!
//! QEMU's own network card keeps these features from its guest whenever its backend is another process (seen up to
//! QEMU 11.1). Its generic card keeps nothing back, so the guests' drivers and the daemon agree on them by themselves.
//! The receiver that super-frames are cut for has QEMU's own card, of the newer release too.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use api::admin::Flow;
use testkit::claim::skip;
use testkit::guests::GuestKernel;
use testkit::relay::Relay;
use testkit::vm::{GENERIC_CARD, NicModel, NicSpec, Vm, VmSpec};
use testkit::vmm::Vmm;
use vhost_port::Features;

use super::clients::{REPORT, with_clients};
use super::traffic::{exchange, take_ipv6};
use crate::conversation::{ORDERS, STOREFRONT};
use crate::shop::START_LIMIT;
use crate::{Report, Shop};

/// Name of the scenario.
pub(super) const NAME: &str = "udp_super_frames_cross_whole_or_are_cut";

/// Who sends and who receives.
const FROM: &str = "acme/batch";
const TO: &str = "acme/report";
const MANIFESTS: &str = "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: batch, tenant: acme, labels: {app: shop, tier: web}}
spec:
  nics:
  - name: net0
    socket: acme-batch.sock
    mac: \"02:6d:76:00:01:0e\"
    addresses: [10.0.0.14/24, \"fd00:6d76::14/64\"]
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: batch-to-report, tenant: acme}
spec:
  action: Allow
  from: [{process: {exe: /usr/bin/storefront}}]
  to: [{vm: {name: report}}]
";
/// Their addresses in the second family, and the receiver in both.
const V6: [(&str, &str); 2] = [(FROM, "fd00:6d76::14"), (TO, "fd00:6d76::15")];
const SERVER: [&str; 2] = ["10.0.0.15:8080", "[fd00:6d76::15]:8080"];

/// What QEMU's own card has, and its generic card has not: a configuration space to tell the MTU, and a queue to say
/// how many pairs are in use.
const HIDDEN: Features = Features::MTU.with(Features::MQ);
/// Both directions' feature.
const USO: Features = Features::HOST_USO.with(Features::GUEST_USO4).with(Features::GUEST_USO6);

/// QEMU's own card, whatever later releases of it can do.
const WITHOUT_USO: &str = "guest_uso4=off,guest_uso6=off,host_uso=off";

/// Bytes of a datagram, and calls that send `DATAGRAMS` of them each.
const DATAGRAM_BYTES: u32 = 1200;
const CALLS: u64 = 20;
const DATAGRAMS: u64 = 32;
/// Frames that machines may have to say beside: for addresses, and whether a neighbour is still there.
const ASIDE: u64 = 16;
/// Datagrams whose checksums are looked at.
const CAPTURED: u64 = 3 * DATAGRAMS;
/// Time for a capture to end, with much to spare on a busy host.
const CAPTURE_LIMIT: Duration = Duration::from_secs(30);

/// From one machine to another with the same card, then to that machine with another card.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    if !Vmm::Newer.has_device(GENERIC_CARD) {
        skip(
            NAME,
            "no newer QEMU with a generic card: `cargo xtask guests` gets it from Debian's next release",
        );
        return Ok(());
    }
    shop.put_in_force("60-superframes.yaml", &format!("{MANIFESTS}---\n{REPORT}"))?;
    // They must be there for as long as the machines are.
    let _relays = [FROM, TO].map(|id| start_generic(shop, id)).into_iter().collect::<Result<Vec<Relay>>>()?;
    for (id, v6) in V6 {
        shop.await_machine(id)?;
        let agreed = features(shop.vm(id))?;
        report.claim(
            format!("the driver of {id} and the daemon agree on USO"),
            agreed.has(USO),
            shown(agreed),
        );
        take_ipv6(shop.vm(id), v6)?;
    }
    // Linux has this off until it is asked for.
    shop.vm(FROM).expect("ethtool -K eth0 tx-udp-segmentation on")?;
    serve(shop.vm(TO))?;
    for to in SERVER {
        // What is sent back, the server sends one by one.
        crossing(shop, to, CALLS..=CALLS + ASIDE, report)?;
    }

    shop.cut_power(TO)?;
    shop.start_as(TO, |spec| VmSpec {
        vmm: Vmm::Newer,
        nic: spec.nic.clone().map(|nic| NicSpec { properties: WITHOUT_USO, ..nic }),
        ..with_clients(spec)
    })?;
    shop.await_machine(TO)?;
    take_ipv6(shop.vm(TO), V6[1].1)?;
    let agreed = features(shop.vm(TO))?;
    let lacks_only_uso = agreed.0 & USO.0 == 0 && agreed.has(Features::GUEST_TSO4.with(Features::GUEST_CSUM));
    report.claim(format!("QEMU's own card gives {TO} all but USO"), lacks_only_uso, shown(agreed));
    serve(shop.vm(TO))?;
    for to in SERVER {
        let all = CALLS * DATAGRAMS;
        crossing(shop, to, all..=all + ASIDE, report)?;
        checksums(shop, to, report)?;
        exchange(shop, FROM, to, report)?;
    }
    [FROM, TO].into_iter().try_for_each(|id| shop.cut_power(id))?;
    shop.remove("60-superframes.yaml")
}

/// Starts a machine whose card takes and gives all that its driver and the daemon agree on.
fn start_generic(shop: &mut Shop, id: &str) -> Result<Relay> {
    let socket = format!("{}.sock", id.replace('/', "-"));
    let relay = Relay::start(&shop.scratch.join(&socket), &shop.runtime().join(&socket), HIDDEN.0)?;
    let path = relay.path().to_owned();
    shop.start_as(id, |spec| VmSpec {
        kernel: GuestKernel::V6_12,
        vmm: Vmm::Newer,
        nic: spec.nic.map(|nic| NicSpec { model: NicModel::Generic, socket: path, ..nic }),
        ..spec
    })?;
    Ok(relay)
}

fn serve(vm: &Vm) -> Result<()> {
    vm.background("serve", &format!("{ORDERS} serve 8080"))?;
    vm.await_line("serve", "serving", START_LIMIT).map(drop)
}

/// Each datagram comes back as it was sent. The sender's card gets one frame for each call, the receiver's as many as
/// are `expected`, and the daemon counts what it was given.
fn crossing(shop: &Shop, to: &str, expected: RangeInclusive<u64>, report: &mut Report) -> Result<()> {
    let (sender, receiver) = (shop.vm(FROM), shop.vm(TO));
    let before = (counted(sender, "tx_packets")?, counted(receiver, "rx_packets")?);
    let told = sender.run(&format!("{STOREFRONT} bursts {to} {DATAGRAM_BYTES} {CALLS}"))?.stdout;
    let sent = counted(sender, "tx_packets")? - before.0;
    let arrived = counted(receiver, "rx_packets")? - before.1;
    let all = format!("whole datagrams={}", CALLS * DATAGRAMS);
    report.claim(format!("all datagrams to {to} and back are as they were sent"), told == all, told);
    let is_whole = (CALLS..=CALLS + ASIDE).contains(&sent);
    report.claim("each call's are one frame to the sender", is_whole, format!("{sent} frames sent"));
    let claim = format!("they are {} to {} frames to the receiver", expected.start(), expected.end());
    report.claim(claim, expected.contains(&arrived), format!("{arrived} frames received"));
    let server: SocketAddr = to.parse()?;
    let is_it = |flow: &Flow| {
        flow.protocol == "udp" && SocketAddr::new(flow.destination.address, flow.destination.port) == server
    };
    let flow = shop.flows(FROM)?.into_iter().filter(is_it).min_by_key(|flow| flow.first_seen_ms);
    let packets = flow.context("the daemon knows no flow of them")?.packets;
    let given = CALLS + CALLS * DATAGRAMS;
    report.claim("the daemon was given one for each call, and each answer", packets == given, packets);
    Ok(())
}

/// Checksums that were completed on the way, as the receiver's tcpdump computes them: nothing is left to its card.
fn checksums(shop: &Shop, to: &str, report: &mut Report) -> Result<()> {
    let receiver = shop.vm(TO);
    let capture = format!("tcpdump -Z root -n -vv -l -Q in -i eth0 -c {CAPTURED} udp port 8080");
    let pid = receiver.background("tcpdump", &capture)?;
    receiver.await_line("tcpdump", "tcpdump: listening", START_LIMIT)?;
    let calls = CAPTURED / DATAGRAMS;
    shop.vm(FROM).expect(&format!("{STOREFRONT} bursts {to} {DATAGRAM_BYTES} {calls}"))?;
    let printed = receiver.await_end("tcpdump", pid, CAPTURE_LIMIT)?;
    let right = printed.matches("[udp sum ok]").count() as u64;
    let wrong = printed.lines().find(|line| line.contains("cksum")).unwrap_or_default();
    let seen = format!("{right} of {CAPTURED}{wrong}");
    report.claim("their checksums are complete and right", right == CAPTURED, seen);
    Ok(())
}

/// What a guest's driver has agreed on with its card: a digit for each feature.
fn features(vm: &Vm) -> Result<Features> {
    let digits = vm.expect("cat /sys/class/net/eth0/device/features")?;
    ensure!(
        digits.len() == 64 && digits.bytes().all(|digit| b"01".contains(&digit)),
        "no features: {digits}"
    );
    let bits = digits.bytes().enumerate().filter(|(_, digit)| *digit == b'1');
    Ok(Features(bits.fold(0, |all, (bit, _)| all | 1 << bit)))
}

fn shown(features: Features) -> String {
    format!("{:#x}", features.0)
}

/// One of the numbers that a guest's card keeps.
fn counted(vm: &Vm, what: &str) -> Result<u64> {
    let number = vm.expect(&format!("cat /sys/class/net/eth0/statistics/{what}"))?;
    number.parse().with_context(|| format!("the guest's card counts {number:?} {what}"))
}
