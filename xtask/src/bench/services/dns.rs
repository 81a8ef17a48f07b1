// SPDX-License-Identifier: Apache-2.0
//! `dns_answers_per_s`, `dns_latency_us`: names of services, answered by the switch, beside dnsmasq.
//!
//! Both know the same 1,000 names, each with an address of its own, and both have a processor to themselves while the
//! load has the other. What is compared is what there is instead: a guest that asks the switch, through its ring, and a
//! program that asks a server of the host over the loopback interface. That is dnsmasq at its best: a guest would have
//! the way through a switch and the host's stack before it, and its server would not know who asks.
//!
//! - *Answers per second*: a guest of DPDK's `testpmd` asks as fast as it can, and what it receives counts; `dnsperf` has
//!   100 questions under way, and counts itself.
//! - *Latency*: one question after the other, from its being sent to its answer being seen, by a client that spins. The
//!   daemon spins for 50 us after work, too; dnsmasq sleeps after each answer and has to be woken, as it is made.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::soak::{Asker, End};
use testkit::names::{is_answered, question};
use testkit::process::Process;
use testkit::scratch::Scratch;

use super::Figure;
use crate::bench::cases::{Load, Program};
use crate::bench::rounds::{Contender, measure, median};
use crate::bench::testpmd::mac;
use crate::bench::{ours, pcap};
use crate::{progress, shell};

pub const ANSWERS: &str = "dns_answers_per_s";
pub const LATENCY: &str = "dns_latency_us";
const NAMES: usize = 1000;
const ROUNDS: usize = 5;
/// How long `dnsperf` asks, in seconds.
const ASK_SECONDS: &str = "3";
/// Questions that it has under way.
const UNDER_WAY: &str = "100";
/// Questions that are timed in each round.
const QUESTIONS: usize = 10_000;
/// The peer's port at the loopback address.
const PORT: u16 = 5300;
/// Time for the peer to answer its first question.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Processors of the load and of the peer; the daemon's poll core has the same as the peer.
const CPUS: [&str; 2] = ["0", "1"];

pub fn answers() -> Result<Figure> {
    let (mut switch, mut dnsmasq) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        progress::note(&format!("round {round} of {ROUNDS}"));
        let ours = Contender::Ours(Program::Names { services: NAMES });
        switch.push(measure(ours, Load::Questions { names: NAMES })?.value);
        dnsmasq.push(dnsperf()?);
    }
    let mut ratios: Vec<f64> = switch.iter().zip(&dnsmasq).map(|(ours, peer)| ours / peer).collect();
    let figures =
        [("switch", median(&mut switch)), ("dnsmasq", median(&mut dnsmasq)), ("ratio", median(&mut ratios))];
    Ok(Figure::new(ANSWERS, "1/s", ROUNDS, figures))
}

pub fn latency() -> Result<Figure> {
    let mut took = [const { Vec::new() }; 4];
    for round in 1..=ROUNDS {
        progress::note(&format!("round {round} of {ROUNDS}"));
        let (switch, dnsmasq) = (ask_switch()?, ask_dnsmasq()?);
        for (took, figure) in took.iter_mut().zip([switch, dnsmasq].concat()) {
            took.push(figure);
        }
    }
    let [switch_p50, switch_p99, dnsmasq_p50, dnsmasq_p99] = took.map(|mut took| median(&mut took));
    let figures = [
        ("switch_p50", switch_p50),
        ("switch_p99", switch_p99),
        ("dnsmasq_p50", dnsmasq_p50),
        ("dnsmasq_p99", dnsmasq_p99),
    ];
    Ok(Figure::new(LATENCY, "us", ROUNDS, figures))
}

/// What half and 99 of 100 answers of the switch take at most.
fn ask_switch() -> Result<[f64; 2]> {
    let dir = Scratch::new("bench")?;
    let sockets = [dir.join("0.sock"), dir.join("1.sock")];
    let _daemon = ours::start(dir.path(), &sockets, Program::Names { services: NAMES }, 0)?;
    let from = End { mac: mac(0).parse()?, address: "10.0.0.1".parse()? };
    let (gateway, resolver) = (pcap::GATEWAY_MAC.parse()?, pcap::RESOLVER.into());
    let mut asker = Asker::connect(&sockets[0], from, gateway, resolver)?;
    let names = names();
    let times = asker.run(names.iter().map(String::as_str), QUESTIONS);
    ensure!(times.lost == 0, "the switch left {} of {QUESTIONS} questions without an answer", times.lost);
    Ok([times.p50_us, times.p99_us])
}

fn names() -> Vec<String> {
    (0..NAMES).map(pcap::name).collect()
}

/// A running dnsmasq, which has its processor to itself.
struct Dnsmasq {
    _process: Process,
    socket: UdpSocket,
}

impl Dnsmasq {
    fn start(dir: &Path) -> Result<Self> {
        let records = dir.join("records.conf");
        let record = |number: usize| {
            format!("host-record={},10.97.{}.{}\n", pcap::name(number), number / 250, number % 250 + 1)
        };
        fs::write(&records, (0..NAMES).map(record).collect::<String>())?;
        let process = Process::start(Path::new("taskset"), dir.join("dnsmasq.log"), |command| {
            command.args(["-c", CPUS[1], "dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts"]);
            command.args(["--listen-address=127.0.0.1", "--bind-interfaces", "--pid-file", "--user="]);
            command.arg(format!("--port={PORT}")).arg(format!("--conf-file={}", records.display()));
        })?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(("127.0.0.1", PORT))?;
        socket.set_nonblocking(true)?;
        let mut dnsmasq = Self { _process: process, socket };
        let deadline = Instant::now() + START_LIMIT;
        while dnsmasq.ask(0, &pcap::name(0)).is_none() {
            if Instant::now() > deadline {
                bail!("dnsmasq does not answer: {}", dnsmasq._process.log_tail());
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(dnsmasq)
    }

    /// How long an answer took; `None` if there was none in half a second.
    fn ask(&mut self, number: u16, name: &str) -> Option<Duration> {
        let asked = Instant::now();
        self.socket.send(&question(number, name)).ok()?;
        let mut bytes = [0; 512];
        while asked.elapsed() < Duration::from_millis(500) {
            match self.socket.recv(&mut bytes) {
                Ok(len) if is_answered(&bytes[..len], number) => return Some(asked.elapsed()),
                // Nobody listens yet.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return None,
                _ => std::hint::spin_loop(),
            }
        }
        None
    }
}

fn ask_dnsmasq() -> Result<[f64; 2]> {
    let dir = Scratch::new("bench")?;
    let mut dnsmasq = Dnsmasq::start(dir.path())?;
    let names = names();
    let mut took = Vec::with_capacity(QUESTIONS);
    for (number, name) in names.iter().cycle().take(QUESTIONS).enumerate() {
        let time =
            dnsmasq.ask(number as u16, name).with_context(|| format!("dnsmasq does not know {name}"))?;
        took.push(time.as_secs_f64() * 1e6);
    }
    took.sort_by(f64::total_cmp);
    Ok([50, 99].map(|percent| took[(QUESTIONS - 1) * percent / 100]))
}

/// Answers of dnsmasq per second, as `dnsperf` counts them.
fn dnsperf() -> Result<f64> {
    let dir = Scratch::new("bench")?;
    let _dnsmasq = Dnsmasq::start(dir.path())?;
    let questions = dir.join("questions");
    fs::write(&questions, names().iter().map(|name| format!("{name} A\n")).collect::<String>())?;
    let mut dnsperf = Command::new("taskset");
    dnsperf.args(["-c", CPUS[0], "dnsperf", "-s", "127.0.0.1", "-p", &PORT.to_string()]);
    dnsperf.args(["-l", ASK_SECONDS, "-c", "1", "-T", "1", "-q", UNDER_WAY, "-d"]).arg(&questions);
    let lines = shell::lines(&mut dnsperf)?;
    let rate =
        lines.iter().find_map(|line| line.trim().strip_prefix("Queries per second:")?.trim().parse().ok());
    rate.with_context(|| format!("dnsperf does not say how many it got: {}", lines.join("\n")))
}
