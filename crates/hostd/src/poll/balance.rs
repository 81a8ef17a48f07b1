// SPDX-License-Identifier: Apache-2.0
//! Which port should be at another core.
//!
//! Once in a [`WINDOW`] a thread compares how busy cores and ports were ([`super::load`]). When one core is busy and another
//! is much less so, the port moves between them whose share is closest to half of the difference: at most one in a window,
//! never one whose move would only turn the difference around, and none again before [`SETTLED`]. Ports that were moved by
//! hand stay where they were put, and those on the side core are not considered.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vswitch::PortId;

use super::handle::{Command, PollHandle};
use super::load::Loads;
use super::owners::CoreId;

/// Time over which shares are taken.
const WINDOW: Duration = Duration::from_secs(1);
/// How long a port stays where it was moved to, at least.
const SETTLED: Duration = Duration::from_secs(10);
/// A core that works less than this part of the time has no reason to give a port away.
const BUSY: f64 = 0.5;
/// Cores whose shares differ by less are even.
const UNEVEN: f64 = 0.25;

/// Starts the thread that keeps the cores even.
///
/// # Errors
/// When there is no thread left.
pub fn start(poll: PollHandle) -> std::io::Result<()> {
    std::thread::Builder::new().name("balance".into()).spawn(move || {
        let mut balance = Balance::new(poll);
        loop {
            std::thread::sleep(WINDOW);
            balance.look(Instant::now());
        }
    })?;
    Ok(())
}

/// What the thread knows of the window before.
struct Balance {
    poll: PollHandle,
    loads: Arc<Loads>,
    looked: Instant,
    cores_ns: Vec<u64>,
    ports_ns: Vec<u64>,
    /// When ports were moved.
    moved: HashMap<PortId, Instant>,
}

impl Balance {
    fn new(poll: PollHandle) -> Self {
        let loads = Arc::clone(&poll.cores.loads);
        let (cores_ns, ports_ns) = (read(&loads.cores_ns), read(&loads.ports_ns));
        Self { poll, loads, looked: Instant::now(), cores_ns, ports_ns, moved: HashMap::new() }
    }

    fn look(&mut self, now: Instant) {
        let (cores_ns, ports_ns) = (read(&self.loads.cores_ns), read(&self.loads.ports_ns));
        let window_ns = now.duration_since(self.looked).as_nanos().max(1) as f64;
        let share = |now: u64, before: u64| (now.wrapping_sub(before) as f64 / window_ns).min(1.0);
        let shares: Vec<f64> =
            cores_ns.iter().zip(&self.cores_ns).map(|(now, before)| share(*now, *before)).collect();
        for (shown, share) in self.loads.shares.iter().zip(&shares) {
            shown.store((share * 1000.0) as u32, Ordering::Relaxed);
        }
        self.moved.retain(|_, moved| now.duration_since(*moved) < SETTLED);
        let owners = &self.poll.cores.owners;
        let movable =
            owners.all().filter(|(port, _)| !self.loads.is_pinned(*port) && !self.moved.contains_key(port));
        let ports: Vec<_> = movable
            .map(|(port, core)| {
                let index = usize::from(port.0);
                (port, core, share(ports_ns[index], self.ports_ns[index]))
            })
            .collect();
        let regular = owners.side().index();
        if let Some((port, to)) = plan(&shares[..regular], &ports) {
            self.moved.insert(port, now);
            self.poll.send(Command::MovePort(port, to));
        }
        (self.looked, self.cores_ns, self.ports_ns) = (now, cores_ns, ports_ns);
    }
}

fn read(totals: &[AtomicU64]) -> Vec<u64> {
    totals.iter().map(|total| total.load(Ordering::Relaxed)).collect()
}

/// Which port should move where, given each core's share of the time and what of it is each port's.
fn plan(cores: &[f64], ports: &[(PortId, CoreId, f64)]) -> Option<(PortId, CoreId)> {
    let by_share = |(_, a): &(usize, &f64), (_, b): &(usize, &f64)| a.total_cmp(b);
    let (busiest, most) = cores.iter().enumerate().max_by(by_share)?;
    let (idlest, least) = cores.iter().enumerate().min_by(by_share)?;
    let difference = most - least;
    if *most < BUSY || difference < UNEVEN {
        return None;
    }
    let distance = |share: f64| (share - difference / 2.0).abs();
    let helps = |share: f64| share > 0.0 && share < difference;
    let candidates = ports.iter().filter(|(_, core, share)| core.index() == busiest && helps(*share));
    let (port, _, _) = candidates.min_by(|a, b| distance(a.2).total_cmp(&distance(b.2)))?;
    Some((*port, CoreId(u8::try_from(idlest).ok()?)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ports(shares: &[(u8, f64)]) -> Vec<(PortId, CoreId, f64)> {
        (0..).zip(shares).map(|(port, (core, share))| (PortId(port), CoreId(*core), *share)).collect()
    }

    #[test]
    fn the_port_moves_that_evens_out_most() {
        let spread = ports(&[(0, 0.5), (0, 0.35), (0, 0.05), (1, 0.1)]);
        assert_eq!(plan(&[0.9, 0.1], &spread), Some((PortId(1), CoreId(1))));
    }

    #[test]
    fn nothing_moves_without_a_reason() {
        let spread = ports(&[(0, 0.5), (0, 0.3), (1, 0.7)]);
        assert_eq!(plan(&[0.8, 0.7], &spread), None, "even enough");
        assert_eq!(plan(&[0.4, 0.0], &ports(&[(0, 0.4)])), None, "not busy enough");
        assert_eq!(
            plan(&[0.9, 0.1], &ports(&[(0, 0.9), (1, 0.1)])),
            None,
            "one port makes all the difference"
        );
        assert_eq!(plan(&[1.0], &ports(&[(0, 0.5)])), None, "nowhere to go");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whoever moves as planned until nothing is planned comes to an end, each time with a smaller difference.
        #[test]
        fn moves_always_come_to_an_end(
            shares in prop::collection::vec((0..4_u8, 0.0..0.4_f64), 1..40),
        ) {
            let mut ports = ports(&shares);
            let loads = |ports: &[(PortId, CoreId, f64)]| {
                let of = |core| ports.iter().filter(|(_, of, _)| *of == CoreId(core)).map(|(_, _, share)| share).sum();
                (0..4).map(of).collect::<Vec<f64>>()
            };
            let spread = |cores: &[f64]| cores.iter().map(|share| share * share).sum::<f64>();
            for _ in 0..1000 {
                let before = loads(&ports);
                let Some((port, to)) = plan(&before, &ports) else { return Ok(()) };
                ports[usize::from(port.0)].1 = to;
                prop_assert!(spread(&loads(&ports)) < spread(&before));
            }
            prop_assert!(false, "it goes on and on");
        }
    }
}
