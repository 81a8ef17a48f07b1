// SPDX-License-Identifier: Apache-2.0
//! DPDK's `testpmd` as guests (virtio-user) that send as fast as they can, and as the bare vhost back end that
//! shows how fast the machine is at the moment.
//!
//! Each sending guest is paired with a capture file that is looped from memory; what it receives is counted and
//! dropped.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testkit::capture;
use testkit::process::Process;

use super::cases::Load;
use super::pcap::{self, Way};

/// Time for an answer, and for reading large capture files.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks at the answer.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Huge pages of 2 MiB that must be free to be used.
const HUGE_PAGES_MIN: u64 = 2048;

/// A running `testpmd`; killed on drop.
pub struct Testpmd {
    process: Process,
    stdin: ChildStdin,
    log: PathBuf,
    /// The ports whose received frames count.
    guests: Vec<usize>,
    ports: usize,
}

/// Who listens on the sockets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    Switch,
    Guests,
}

impl Testpmd {
    /// Guests at `sockets` that are ready to carry out `load`; if `calls_service`, the first calls the second by its
    /// service's address. Files go to `dir`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn guests(
        dir: &Path,
        sockets: &[PathBuf],
        listener: Listener,
        load: Load,
        calls_service: bool,
    ) -> Result<Self> {
        let (frame_bytes, flows, ways) = match load {
            Load::Stream { frame_bytes, flows, .. } => (frame_bytes, flows, 2),
            Load::NewFlows { flows } | Load::Questions { names: flows } => (64, flows, 1),
            Load::Hop | Load::Idle { .. } => (64, 0, 0),
        };
        let mut devices = Vec::new();
        for (number, socket) in sockets.iter().enumerate() {
            let mut card = String::from(if listener == Listener::Guests { ",server=1" } else { "" });
            if let Load::Stream { card: properties, .. } = load
                && !properties.is_empty()
            {
                card.push(',');
                card.push_str(properties);
            }
            devices.push(format!(
                "--vdev=net_virtio_user{number},mac={},path={},queues=1,queue_size=256{card}",
                mac(number),
                socket.display()
            ));
            if flows > 0 {
                let file = dir.join(format!("{number}.pcap"));
                // A guest that only listens still needs a partner; it loops one frame that goes nowhere.
                let flows = if number < ways { flows } else { 1 };
                match (load, number) {
                    (Load::Questions { .. }, 0) => capture::write(&file, pcap::questions(flows))?,
                    _ => {
                        let there = if calls_service { Way::ToService } else { Way::There };
                        let way = if number == 0 { there } else { Way::Back };
                        capture::write(&file, pcap::flows(flows, frame_bytes, way))?;
                    }
                }
                devices.push(format!("--vdev=net_pcap{number},rx_pcap={},infinite_rx=1", file.display()));
            }
        }
        // The files stay in memory whole, each frame in one piece; the rings need some more.
        let room = frame_bytes.max(2048) + 128;
        let buffers = ways * flows + if frame_bytes > 2048 { 4096 } else { 65_536 };
        // Each has a header, and without huge pages none lies across two pages.
        let memory_mib = 256 + buffers * (room + 256).next_multiple_of(4096) / (1 << 20);
        let mut words = devices;
        words.extend(
            ["--", "-i", "--nb-cores=1", "--no-lsc-interrupt", "--rxd=256", "--txd=256"].map(String::from),
        );
        words.push(format!("--total-num-mbufs={buffers}"));
        words.push(format!("--mbuf-size={room}"));
        words.push("--forward-mode=io".to_owned());
        if load == Load::Hop {
            words.push("--burst=1".to_owned());
            words.push("--tx-ip=10.0.0.1,10.0.0.2".to_owned());
            words.push(format!("--eth-peer=0,{}", mac(1)));
            words.push(format!("--eth-peer=1,{}", mac(0)));
        }
        let step = if flows > 0 { 2 } else { 1 };
        let guests: Vec<usize> = (0..sockets.len()).map(|guest| guest * step).collect();
        Self::start(dir, "guests", (0, memory_mib), guests, sockets.len() * step, &words)
    }

    /// Bare back ends at `sockets`, which pass everything on from one to the other.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn back_ends(dir: &Path, sockets: &[PathBuf]) -> Result<Self> {
        let mut words: Vec<String> = Vec::new();
        for (number, socket) in sockets.iter().enumerate() {
            words.push(format!("--vdev=net_vhost{number},iface={},queues=1", socket.display()));
        }
        words.extend(
            ["--", "-i", "--nb-cores=1", "--no-lsc-interrupt", "--forward-mode=io"].map(String::from),
        );
        words.push("--total-num-mbufs=16384".to_owned());
        let ports: Vec<usize> = (0..sockets.len()).collect();
        Self::start(dir, "backends", (1, 256), ports, sockets.len(), &words)
    }

    fn start(
        dir: &Path,
        name: &str,
        (cpu, memory_mib): (usize, usize),
        guests: Vec<usize>,
        ports: usize,
        words: &[String],
    ) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let _ = fs::remove_file(&log);
        let mut process = Process::start(Path::new("stdbuf"), log.clone(), |command| {
            // Line by line, or its answers come late.
            command.args(["-oL", "dpdk-testpmd", "--lcores"]).arg(format!("0@(0-1),1@{cpu}"));
            command.args(memory(memory_mib)).arg("-m").arg(memory_mib.to_string());
            command.args(["--no-pci", "--no-telemetry"]);
            command.arg(format!("--file-prefix=meshvisor-{name}-{}", std::process::id()));
            command.args(words).stdin(Stdio::piped());
        })?;
        let stdin = process.take_stdin().context("its input is a pipe")?;
        let mut testpmd = Self { process, stdin, log, guests, ports };
        testpmd.await_words(0, "testpmd> ")?;
        Ok(testpmd)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// For a failure report: the beginning of what it said, where it complains, and the end.
    pub fn report(&self) -> String {
        let words = fs::read_to_string(&self.log).unwrap_or_default();
        let start: Vec<&str> = words.lines().take_while(|line| !line.starts_with("testpmd>")).collect();
        format!("{}\n...\n{}", start.join("\n"), self.process.log_tail())
    }

    /// Starts sending, or passing on; with `first` after that many bursts of its own.
    ///
    /// # Errors
    /// When it has ended.
    pub fn go(&mut self, first: Option<u32>) -> Result<()> {
        match first {
            None => self.say("start"),
            Some(bursts) => self.say(&format!("start tx_first {bursts}")),
        }
    }

    /// Stops sending.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pause(&mut self) -> Result<()> {
        self.say("stop")
    }

    /// Lets only so many of the guests take part from the next start on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn take_part(&mut self, guests: usize) -> Result<()> {
        let ports = guests * self.ports / self.guests.len();
        let list: Vec<String> = (0..ports).map(|port| port.to_string()).collect();
        self.say(&format!("set portlist {}", list.join(",")))
    }

    /// Frames that the guests have received so far.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn received(&mut self) -> Result<u64> {
        let before = fs::metadata(&self.log)?.len() as usize;
        self.say("show port stats all")?;
        let last = format!("NIC statistics for port {} ", self.ports - 1);
        let words = self.await_words(before, &last)?;
        let count = |port: usize| {
            let section = words.split(&format!("NIC statistics for port {port} ")).nth(1)?;
            section.split("RX-packets:").nth(1)?.split_whitespace().next()?.parse::<u64>().ok()
        };
        let counts: Option<Vec<u64>> = self.guests.iter().map(|port| count(*port)).collect();
        Ok(counts.with_context(|| format!("no counts among:\n{words}"))?.iter().sum())
    }

    fn say(&mut self, command: &str) -> Result<()> {
        writeln!(self.stdin, "{command}")
            .with_context(|| format!("tell testpmd `{command}`\n{}", self.process.log_tail()))
    }

    /// Waits for words, and the line behind them, in what it has said after `from`.
    fn await_words(&mut self, from: usize, awaited: &str) -> Result<String> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let bytes = fs::read(&self.log)?;
            let words = String::from_utf8_lossy(bytes.get(from..).unwrap_or_default());
            let complete = words.split_once(awaited).is_some_and(|(_, rest)| {
                !awaited.starts_with("NIC") || rest.contains("Tx-bps") || rest.contains("Tx-pps")
            });
            if complete {
                return Ok(words.into_owned());
            }
            if self.process.ended()?.is_some() || Instant::now() > deadline {
                bail!("dpdk-testpmd does not say `{awaited}`:\n{}", self.process.log_tail());
            }
            std::thread::park_timeout(LOOK_AGAIN);
        }
    }
}

/// The Ethernet address of a guest's card.
pub fn mac(guest: usize) -> String {
    format!("02:00:00:00:00:{:02x}", guest + 1)
}

/// Where so much memory comes from for DPDK: huge pages if there are enough, else a memfd.
pub fn memory(mib: usize) -> &'static [&'static str] {
    let free = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free = free.ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
    if free >= HUGE_PAGES_MIN.max(mib as u64 / 2) {
        &["--in-memory", "--single-file-segments"]
    } else {
        // Said twice, or Open vSwitch adds `--in-memory`, which does not go with the former.
        &["--no-huge", "--legacy-mem"]
    }
}
