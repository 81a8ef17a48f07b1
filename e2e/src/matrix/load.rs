// SPDX-License-Identifier: Apache-2.0
//! Load in a guest, and whether what happened under it was attributed to who did it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::admin::Party;
use testkit::vm::Vm;

use crate::shop::{API, START_LIMIT};
use crate::{Report, Shop};

/// Processes that open connections at once, each on two threads.
const STORM_PROCESSES: usize = 3;
/// Times they do. The daemon remembers a flow that has ended for half a minute, so it is asked after each.
const STORM_ROUNDS: usize = 5;
/// Connections of each, each time. All together must fit in one list of flows.
const STORM_CONNECTIONS: usize = 140;
/// Time for the storm to be over.
const STORM_LIMIT: Duration = Duration::from_secs(120);
/// Connections of each kind whose sockets changed hands.
const TWISTS: usize = 5;
/// Its existence ends the forks.
const STOP: &str = "/tmp/forks.stop";
/// Of so many connections one may have an unknown owner.
const UNKNOWN_ONE_IN: usize = 1000;
/// Mistakes that a failed claim shows.
const MISTAKES_TOLD: usize = 5;

/// How connections were attributed.
#[derive(Clone, Debug, Default)]
pub struct Score {
    /// To the process that opened them.
    pub right: usize,
    /// To another one.
    pub wrong: usize,
    /// To nobody.
    pub unknown: usize,
    /// Some that were not attributed right, in words.
    mistakes: Vec<String>,
}

impl Score {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> usize {
        self.right + self.wrong + self.unknown
    }

    /// Right ones of those that were attributed.
    #[must_use]
    pub fn precision(&self) -> f64 {
        ratio(self.right, self.right + self.wrong)
    }

    /// Right ones of all.
    #[must_use]
    pub fn recall(&self) -> f64 {
        ratio(self.right, self.all())
    }

    /// Looks up each connection among the daemon's flows.
    fn add(&mut self, shop: &Shop, id: &str, opened: &Opened) -> Result<()> {
        let mut found: BTreeMap<u16, Party> = BTreeMap::new();
        // The newest first: an older flow may have had the same port.
        for flow in shop.flows(id)?.into_iter().filter(|flow| flow.source.vm.as_deref() == Some(id)) {
            found.entry(flow.source.port).or_insert(flow.source);
        }
        // Newer kernels give a port again within seconds; then the flow is the last one's, and who that is nobody knows.
        let mut openers: BTreeMap<u16, Vec<&(String, u32, u16)>> = BTreeMap::new();
        for one in opened {
            openers.entry(one.2).or_default().push(one);
        }
        for (port, openers) in openers {
            let party = found.get(&port);
            let told = party.and_then(|party| party.process.as_ref()).map(|process| process.pid);
            let is_right = openers.iter().any(|(_, pid, _)| told == Some(*pid));
            match told {
                Some(_) if is_right => self.right += 1,
                Some(_) => self.wrong += 1,
                None => self.unknown += 1,
            }
            if !is_right && self.mistakes.len() < MISTAKES_TOLD {
                self.mistakes.push(format!("{openers:?}: {party:?}"));
            }
        }
        Ok(())
    }

    /// Takes in the claims: no wrong owner, and hardly an unknown one.
    pub(super) fn check(&self, what: &str, report: &mut Report) {
        let mistakes = self.mistakes.iter().map(|mistake| format!("; {mistake}")).collect::<String>();
        let seen = format!("{} right, {} wrong, {} unknown{mistakes}", self.right, self.wrong, self.unknown);
        let holds = self.right > 0 && self.wrong == 0 && self.unknown * UNKNOWN_ONE_IN < self.all().max(1);
        report.claim(format!("{what} are attributed to who opened them"), holds, seen);
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Sockets of every kind: a server, open connections, and a network namespace with both.
pub(super) fn furnish(vm: &Vm) -> Result<()> {
    vm.background("serve", "in-service shop shop /usr/bin/orders serve 8081")?;
    vm.await_line("serve", "serving", START_LIMIT)?;
    let apart = vm.background("apart", "unshare -n sh -c 'ip link set lo up; exec orders serve 8082'")?;
    vm.await_line("apart", "serving", START_LIMIT)?;
    let inside = format!("nsenter -t {apart} -n storefront hold 127.0.0.1:8082");
    for (name, command) in [
        ("held", format!("/usr/bin/storefront hold {API}")),
        ("held-v6", "/usr/bin/storefront hold [::1]:8081".to_owned()),
        ("held-v4", "/usr/bin/storefront hold 127.0.0.1:8081".to_owned()),
        ("held-apart", inside),
    ] {
        vm.background(name, &command)?;
        vm.await_line(name, "connected", START_LIMIT)?;
    }
    Ok(())
}

/// Processes that come and go as fast as they can.
pub(super) struct Forks {
    pid: u32,
}

/// Starts them.
pub(super) fn start(vm: &Vm) -> Result<Forks> {
    Ok(Forks { pid: vm.background("forks", &format!("/usr/bin/orders forks {STOP}"))? })
}

impl Forks {
    /// Ends them; returns how many there were in a second.
    pub(super) fn finish(self, vm: &Vm) -> Result<f64> {
        vm.expect(&format!("touch {STOP}"))?;
        let printed = vm.await_end("forks", self.pid, START_LIMIT)?;
        Ok(number(&printed, "count=")? as f64 * 1000.0 / number(&printed, "took_ms=")?.max(1) as f64)
    }
}

/// Who opened what: kind, process and own port of each connection.
type Opened = Vec<(String, u32, u16)>;

/// Connections as fast as they go, of several processes at once; also returns how many there were in a second.
pub(super) fn storm(shop: &Shop, id: &str) -> Result<(Score, f64)> {
    let (mut score, mut took_ms) = (Score::default(), 0);
    for _ in 0..STORM_ROUNDS {
        took_ms += storm_once(shop, id, &mut score)?;
    }
    let opened = STORM_ROUNDS * STORM_PROCESSES * STORM_CONNECTIONS;
    Ok((score, opened as f64 * 1000.0 / took_ms.max(1) as f64))
}

/// One round; returns how long it took, in milliseconds.
fn storm_once(shop: &Shop, id: &str, score: &mut Score) -> Result<u64> {
    let vm = shop.vm(id);
    let all = (0..STORM_PROCESSES).map(|number| format!("storm{number}")).collect::<Vec<String>>();
    let mut running = Vec::new();
    for name in &all {
        let storm = format!("/usr/bin/storefront storm {API} {STORM_CONNECTIONS}");
        running.push((name, vm.background(name, &storm)?));
    }
    let (mut opened, mut took_ms) = (Opened::new(), 0);
    for (name, process) in running {
        let printed = vm.await_end(name, process, STORM_LIMIT)?;
        let pid = u32::try_from(number(&printed, "pid=")?)?;
        took_ms = took_ms.max(number(&printed, "took_ms=")?);
        for port in word(&printed, "ports=")?.split(',').filter(|port| !port.is_empty()) {
            opened.push(("connection".to_owned(), pid, port.parse()?));
        }
    }
    let expected = STORM_PROCESSES * STORM_CONNECTIONS;
    if opened.len() != expected {
        bail!("{} of {expected} connections were opened", opened.len());
    }
    score.add(shop, id, &opened)?;
    Ok(took_ms)
}

/// Connections whose sockets changed hands, or whose process changed, since they were made.
pub(super) fn twists(shop: &Shop, id: &str) -> Result<Score> {
    let printed =
        shop.vm(id).run_within(&format!("/usr/bin/storefront twists {API} {TWISTS}"), STORM_LIMIT)?.stdout;
    let mut opened = Opened::new();
    for line in printed.lines() {
        if !line.ends_with(" connected") {
            bail!("the guest says `{line}`");
        }
        let kind = line.split(' ').nth(1).unwrap_or_default().to_owned();
        opened.push((kind, u32::try_from(number(line, "pid=")?)?, u16::try_from(number(line, "port=")?)?));
    }
    let mut score = Score::default();
    score.add(shop, id, &opened)?;
    Ok(score)
}

/// The word after `key` in what a guest printed.
fn word<'a>(printed: &'a str, key: &str) -> Result<&'a str> {
    let found = printed.split_whitespace().find_map(|word| word.strip_prefix(key));
    found.with_context(|| format!("the guest says `{printed}`, without {key}"))
}

/// The number after `key` in what a guest printed.
fn number(printed: &str, key: &str) -> Result<u64> {
    Ok(word(printed, key)?.parse()?)
}
