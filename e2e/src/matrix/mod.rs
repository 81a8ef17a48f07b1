// SPDX-License-Identifier: Apache-2.0
//! What RAM tells against the truth, under load, on one kernel after another.
//!
//! [`Matrix`] is a daemon with one machine that stays, the server, and one that is booted anew for each [`Case`].
//! While that one forks and connects as fast as it can, its processes, threads and sockets are compared with its
//! own; then every connection that it opened is looked up among the daemon's flows, and the process found there
//! is compared with the one that says it opened it.

mod load;
mod sockets;
mod veiled;

use std::time::Instant;

use anyhow::{Context, Result};
use testkit::accel::Accel;
use testkit::guests::{GuestKernel, MATRIX_KERNELS};
use testkit::vm::{Board, Cpu, VmSpec};

pub use self::load::Score;
use crate::conversation::attempt;
use crate::scenarios::views;
use crate::shop::API;
use crate::story::processes;
use crate::{Report, Shop};

/// The machine that changes.
const SUBJECT: &str = "acme/web";
/// The machine that stays: it serves what the subject connects to.
const SERVER: &str = "acme/api";
/// Times a comparison is made. The guest's own tables of sockets skip an entry now and then while others leave.
const COMPARISONS_MAX: usize = 3;

/// Compares what RAM and a machine itself tell; returns of how much.
type Compare = fn(&Shop, &str) -> Result<String>;

/// A kernel on a machine.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name, for choosing it.
    pub name: &'static str,
    /// The kernel.
    pub kernel: GuestKernel,
    cpu: Cpu,
    board: Board,
    processors: u8,
    memory_mib: u32,
    boot_options: &'static str,
}

impl Case {
    /// A kernel on the usual machine: four-level paging, one processor, 256 MiB.
    const fn plain(name: &'static str, kernel: GuestKernel) -> Self {
        let (cpu, board) = (Cpu::Qemu64, Board::Q35);
        Self { name, kernel, cpu, board, processors: 1, memory_mib: 256, boot_options: "" }
    }

    const fn five_levels(self) -> Self {
        Self { cpu: Cpu::Max, ..self }
    }

    const fn told(self, boot_options: &'static str) -> Self {
        Self { boot_options, ..self }
    }

    const fn with_ram(self, board: Board, memory_mib: u32) -> Self {
        Self { board, memory_mib, ..self }
    }
}

const V5_10: GuestKernel = MATRIX_KERNELS[0];
const V6_1: GuestKernel = MATRIX_KERNELS[1];
const V6_12: GuestKernel = MATRIX_KERNELS[2];
const V6_12_GENERIC: GuestKernel = MATRIX_KERNELS[3];
const V6_12_RT: GuestKernel = MATRIX_KERNELS[4];
const NEWEST: GuestKernel = MATRIX_KERNELS[5];

/// Every kernel once, and what may lie differently in a kernel's memory, on one or two of them.
pub const CASES: [Case; 14] = [
    Case::plain("5.10-cloud", V5_10),
    Case::plain("6.1-cloud", V6_1).five_levels(),
    Case::plain("6.12-cloud", V6_12),
    Case::plain("6.12-generic", V6_12_GENERIC).five_levels(),
    Case::plain("6.12-rt", V6_12_RT),
    Case::plain("newest-cloud", NEWEST).five_levels(),
    Case::plain("5.10-cloud-nokaslr", V5_10).five_levels().told("nokaslr"),
    Case::plain("newest-cloud-nokaslr", NEWEST).told("nokaslr"),
    Case::plain("6.1-cloud-pti", V6_1).told("pti=on"),
    Case::plain("newest-cloud-pti", NEWEST).told("pti=on").five_levels(),
    Case::plain("6.12-cloud-q35-3g", V6_12).with_ram(Board::Q35, 3 << 10),
    Case::plain("5.10-cloud-pc-4g", V5_10).with_ram(Board::Pc, 4 << 10),
    Case { processors: 2, ..Case::plain("6.1-cloud-smp2", V6_1) },
    Case { processors: 2, ..Case::plain("newest-cloud-smp2", NEWEST) },
];

/// The kernels of some cases, each once.
#[must_use]
pub fn kernels(cases: &[&Case]) -> Vec<GuestKernel> {
    let fits = |kernel: &GuestKernel| cases.iter().any(|case| case.kernel == *kernel);
    MATRIX_KERNELS.into_iter().filter(fits).collect()
}

/// What was found of a case.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The kernel's release, as the daemon tells it.
    pub release: String,
    /// How long attaching took, in milliseconds.
    pub attach_ms: f64,
    /// From the start of the VMM to an understood kernel, in seconds.
    pub boot_s: f64,
    /// How the storm's connections were attributed.
    pub storm: Score,
    /// Connections that the storm opened in a second.
    pub connections_per_s: f64,
    /// Processes that were started in a second beside comparisons.
    pub forks_per_s: f64,
    /// How connections were attributed whose sockets had changed hands.
    pub twists: Score,
}

/// Closed connections of a storm are looked for when all of it is over, however long a busy host takes for that.
const REMEMBERING: &str = "[flows.timeouts]\nclosed_s = 600\n";

/// A daemon and its server.
#[derive(Debug)]
pub struct Matrix {
    shop: Shop,
}

impl Matrix {
    /// Starts both.
    ///
    /// # Errors
    /// When they do not come up.
    pub fn open(accel: Accel) -> Result<Self> {
        let mut shop = Shop::bare(accel, REMEMBERING)?;
        shop.start(SERVER)?;
        shop.await_machine(SERVER)?;
        shop.serve_api()?;
        Ok(Self { shop })
    }

    /// Boots a case, checks it, and ends it.
    ///
    /// # Errors
    /// When it could not go on; the error holds the logs that say why.
    pub fn run(&mut self, case: &Case, report: &mut Report) -> Result<Outcome> {
        let outcome = self.check(case, report).with_context(|| self.shop.reports());
        if self.shop.names().any(|name| name == SUBJECT) {
            self.shop.cut_power(SUBJECT)?;
        }
        outcome
    }

    fn check(&mut self, case: &Case, report: &mut Report) -> Result<Outcome> {
        let started = Instant::now();
        self.shop.start_as(SUBJECT, |spec| VmSpec {
            kernel: case.kernel,
            cpu: case.cpu,
            board: case.board,
            processors: case.processors,
            memory_mib: case.memory_mib,
            boot_options: case.boot_options.into(),
            ..spec
        })?;
        self.shop.await_machine(SUBJECT)?;
        let boot_s = started.elapsed().as_secs_f64();
        let shop = &self.shop;
        let introspection = shop.introspection(SUBJECT)?;
        let mut outcome = Outcome {
            release: introspection.kernel.unwrap_or_default(),
            attach_ms: introspection.attach_ms.unwrap_or_default(),
            boot_s,
            ..Outcome::default()
        };
        let own = shop.vm(SUBJECT).expect("uname -r")?;
        report.claim("the kernel is understood", outcome.release.contains(&own), &outcome.release);
        load::furnish(shop.vm(SUBJECT))?;
        let forks = load::start(shop.vm(SUBJECT))?;
        let claims: [(&str, Compare); 4] = [
            ("processes: parents, names, executables, users and units are the guest's own", |shop, id| {
                processes::compare(shop.vm(id), &shop.daemon, id)
            }),
            ("processes: command lines, namespaces and thread counts are the guest's own", views::processes),
            ("threads: ids and names are the guest's own", sockets::threads),
            ("sockets: ends, states, users, namespaces and owners are the guest's own", sockets::compare),
        ];
        for (claim, compare) in claims {
            let mut found = compare(shop, SUBJECT);
            for _ in 1..COMPARISONS_MAX {
                if found.is_err() {
                    found = compare(shop, SUBJECT);
                }
            }
            report.check(claim, found);
        }
        (outcome.storm, outcome.connections_per_s) = load::storm(shop, SUBJECT)?;
        outcome.storm.check("connections of a storm", report);
        outcome.twists = load::twists(shop, SUBJECT)?;
        outcome.twists.check("connections of sockets that changed hands", report);
        outcome.forks_per_s = forks.finish(shop.vm(SUBJECT))?;
        let veiled = veiled::compare(shop.vm(SUBJECT), case.board);
        report.check(
            "without its symbols, and with a profile for its types, the kernel tells the same",
            veiled,
        );
        let denied = attempt(shop.vm(SUBJECT), "/usr/bin/intruder", API)?;
        report.check("another program is refused on its first SYN", denied.refused_at_once());
        Ok(outcome)
    }
}
