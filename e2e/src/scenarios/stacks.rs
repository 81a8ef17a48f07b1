// SPDX-License-Identifier: Apache-2.0
//! The guests' own network stacks under the tools that people try a network with: iperf3, redis-benchmark, pings that come
//! in fragments, traced routes, and a download over a link that loses and reorders. What reaches a machine whose driver
//! does everything itself is captured there, and tshark finds nothing wrong with it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::claim::skip;
use testkit::vm::Vm;

use crate::shop::START_LIMIT;
use crate::{Report, Shop};

/// Each machine with its addresses; the second one's card is without offloads.
const FROM: (&str, [&str; 2]) = ("acme/report", ["10.0.0.15", "fd00:6d76::15"]);
const TO: (&str, [&str; 2]) = ("acme/batch", ["10.0.0.14", "fd00:6d76::14"]);
/// Time for one tool, with much to spare on a busy host.
const TOOL_LIMIT: Duration = Duration::from_secs(90);
/// What is downloaded, in MiB.
const DOWNLOAD_MIB: u32 = 8;
/// What a link does to each way's frames: some are lost, a quarter overtakes the others.
const DISTURBANCE: &str = "netem loss 1% delay 3ms reorder 25%";
/// Frames that are captured.
const CAPTURED: usize = 150;
/// What is wrong with a frame, as tshark says it.
const WRONG: &str = "_ws.malformed || ip.checksum.status == \"Bad\" || tcp.checksum.status == \"Bad\" || \
    udp.checksum.status == \"Bad\" || icmp.checksum.status == \"Bad\" || icmpv6.checksum.status == \"Bad\"";
/// Has tshark look at all checksums.
const CHECKED: [&str; 3] = ["ip.check_checksum:TRUE", "tcp.check_checksum:TRUE", "udp.check_checksum:TRUE"];

/// Both machines may reach each other in all ways.
const POLICY: &str = "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: tried-out, tenant: acme}
spec:
  action: Allow
  from: [{vm: {name: batch}}, {vm: {name: report}}]
  to: [{vm: {name: batch}}, {vm: {name: report}}]
";

/// Between two machines that have the clients, a key store and a page each.
pub(super) fn check(shop: &mut Shop, report: &mut Report) -> Result<()> {
    shop.put_in_force("72-stacks.yaml", POLICY)?;
    let (from, to) = (shop.vm(FROM.0), shop.vm(TO.0));
    let server = to.background("iperf3", "iperf3 --server --forceflush")?;
    to.await_line("iperf3", "Server listening", START_LIMIT)?;
    for (family, address) in [4, 6].into_iter().zip(TO.1) {
        report.show(&format!("{} tries {} out over IPv{family}", FROM.0, TO.0));
        streams(from, address, report)?;
        paths(from, (family, address), report)?;
    }
    to.expect(&format!("kill {server}"))?;
    for (family, address) in [4, 6].into_iter().zip(TO.1) {
        disturbed(from, to, (family, address), report)?;
    }
    captured(shop, report)?;
    shop.remove("72-stacks.yaml")
}

fn streams(from: &Vm, address: &str, report: &mut Report) -> Result<()> {
    for (way, options) in [("four streams", "-P 4"), ("back", "-R")] {
        let told = tool(from, &format!("iperf3 -c {address} -t 1 -f m {options}"))?;
        let sum = told.lines().rev().find(|line| line.contains("receiver")).unwrap_or(&told);
        let moved = sum.split("Mbits/sec").next().and_then(|before| before.split_whitespace().last());
        let mbits: f64 = moved.and_then(|moved| moved.parse().ok()).unwrap_or_default();
        report.claim(format!("iperf3, {way}, comes to its end"), mbits > 0.0, sum.trim());
    }
    let told = tool(from, &format!("iperf3 -c {address} -t 1 -u -b 2M"))?;
    let sum = told.lines().find(|line| line.contains("receiver")).unwrap_or(&told);
    let lost = sum.split('(').nth(1).and_then(|part| part.split('%').next()?.parse::<f64>().ok());
    report.claim("datagrams arrive", lost.is_some_and(|percent| percent < 10.0), sum.trim());
    let told = tool(from, &format!("redis-benchmark -h {address} -n 500 -c 10 -t set,get --csv"))?;
    let done = |test: &str| told.lines().any(|line| line.starts_with(&format!("\"{test}\",")));
    report.claim("redis-benchmark comes to its end", done("SET") && done("GET"), last_line(&told));
    Ok(())
}

fn paths(from: &Vm, (family, address): (u8, &str), report: &mut Report) -> Result<()> {
    for bytes in [56, 4000] {
        let told = tool(from, &format!("ping -{family} -c 3 -i 0.2 -s {bytes} {address}"))?;
        let all = told.contains("3 packets transmitted, 3 packets received");
        report.claim(format!("pings of {bytes} bytes come back"), all, last_line(&told));
    }
    let told =
        tool(from, &format!("traceroute{} -n -q 1 -w 2 -m 3 {address}", if family == 6 { "6" } else { "" }))?;
    let hops: Vec<&str> = told.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    report.claim("a traced route has one hop", hops == [address], format!("{hops:?}"));
    Ok(())
}

/// A download is whole although both ways lose and reorder.
fn disturbed(from: &Vm, to: &Vm, (family, address): (u8, &str), report: &mut Report) -> Result<()> {
    to.expect(&format!("dd if=/dev/urandom of=/tmp/pages/large bs=1M count={DOWNLOAD_MIB} 2>/dev/null"))?;
    let out_of_order = || count(from, "TCPOFOQueue");
    let before = out_of_order()?;
    for vm in [from, to] {
        vm.expect("lsmod | grep -q sch_netem || insmod /lib/modules/$(uname -r)/sch_netem.ko")?;
        vm.expect(&format!("/sbin/tc qdisc add dev eth0 root {DISTURBANCE}"))?;
    }
    let url =
        if family == 6 { format!("http://[{address}]/large") } else { format!("http://{address}/large") };
    let got = tool(from, &format!("curl --silent --show-error --max-time 80 {url} | sha256sum"));
    for vm in [from, to] {
        vm.expect("/sbin/tc qdisc del dev eth0 root")?;
    }
    let sent = to.expect("sha256sum </tmp/pages/large")?;
    let reordered = out_of_order()? - before;
    report.claim(
        format!("a download over IPv{family} is whole over a link that loses and reorders"),
        got? == sent && reordered > 0,
        format!("{DOWNLOAD_MIB} MiB, {reordered} segments came out of order"),
    );
    Ok(())
}

/// What comes in is right to the last checksum.
fn captured(shop: &Shop, report: &mut Report) -> Result<()> {
    if Command::new("tshark").arg("--version").output().is_err() {
        skip("debians_clients_reach_their_servers_by_name", "tshark is not installed: nothing is captured");
        return Ok(());
    }
    let (from, to) = (shop.vm(FROM.0), shop.vm(TO.0));
    let capture = format!("tcpdump -Z root -n -U -Q in -i eth0 -c {CAPTURED} -w /tmp/seen.pcap");
    let pid = to.background("tcpdump", &capture)?;
    to.await_line("tcpdump", "tcpdump: listening", START_LIMIT)?;
    for (family, address) in [4, 6].into_iter().zip(TO.1) {
        tool(from, &format!("ping -{family} -c 2 -i 0.2 -s 4000 {address}"))?;
        tool(from, &format!("redis-benchmark -h {address} -n 30 -c 1 -t set --csv"))?;
        tool(from, &format!("traceroute{} -n -q 1 -m 1 {address}", if family == 6 { "6" } else { "" }))?;
    }
    // One segment each: of more the receiver's kernel would make one again before they are captured.
    tool(from, &format!("redis-benchmark -h {} -n 100 -c 1 -t set -d 1200 --csv", TO.1[0]))?;
    to.await_end("tcpdump", pid, TOOL_LIMIT)?;
    let encoded = to.run_within("base64 /tmp/seen.pcap", TOOL_LIMIT)?.stdout;
    let (text, file) = (shop.scratch.join("seen.base64"), shop.scratch.join("seen.pcap"));
    fs::write(&text, encoded)?;
    let decoded = Command::new("base64").arg("--decode").arg(&text).output().context("start base64")?;
    ensure!(decoded.status.success(), "{}", String::from_utf8_lossy(&decoded.stderr));
    fs::write(&file, decoded.stdout)?;
    let look = |filter: &str| -> Result<Vec<String>> {
        let mut tshark = Command::new("tshark");
        tshark.arg("-n").arg("-r").arg(&file).args(CHECKED.iter().flat_map(|option| ["-o", option]));
        let output = tshark.args(["-Y", filter]).output().context("start tshark")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    };
    let counted = ["frame", "tcp", "udp", "icmp", "icmpv6", "ip.flags.mf == 1", "ipv6.fraghdr"];
    let counted = counted.map(|kind| Ok((kind, look(kind)?.len())));
    let counted = counted.into_iter().collect::<Result<Vec<_>>>()?;
    let kinds = counted.iter().all(|(_, count)| *count > 0);
    report.claim("frames of all kinds are captured", kinds, format!("{counted:?}"));
    let wrong = look(WRONG)?;
    report.claim("tshark finds nothing wrong with them", wrong.is_empty(), format!("{wrong:?}"));
    Ok(())
}

/// What a tool prints, whatever becomes of it.
fn tool(vm: &Vm, command: &str) -> Result<String> {
    Ok(vm.run_within(&format!("{{ {command}; }} 2>&1"), TOOL_LIMIT)?.stdout)
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().last().unwrap_or_default()
}

/// One of the numbers that a guest's kernel keeps about its connections.
fn count(vm: &Vm, name: &str) -> Result<u64> {
    let lines = vm.run("grep ^TcpExt: /proc/net/netstat")?.stdout;
    let mut words = lines.lines().map(str::split_whitespace);
    let (names, numbers) = words.next().zip(words.next()).context("the guest's kernel counts nothing")?;
    let found = names.zip(numbers).find(|(known, _)| *known == name);
    let (_, number) = found.with_context(|| format!("the guest's kernel does not count {name}"))?;
    Ok(number.parse()?)
}
