// SPDX-License-Identifier: Apache-2.0
//! What a guest's kernel must not get away with: modules of our own (`guests/threats`) hide and hook in two
//! machines of different kernels, while two others are busy and clean.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use api::admin::{Threat, Threats};

use crate::shop::START_LIMIT;
use crate::story::meshctl;
use crate::{Report, Shop};

/// Where the modules are loaded.
const VICTIMS: [&str; 2] = ["acme/web", "acme/api"];
/// Machines whose kernels rewrite themselves in peace.
const CLEAN: [&str; 2] = ["acme/db", "globex/web"];
/// Time in which each threat is found.
const FIND_LIMIT: Duration = Duration::from_secs(5);
/// Time for two looks at everything, and for what is put back to be seen no more.
const REST_LIMIT: Duration = Duration::from_secs(30);
/// A finding that was not seen for so long is at rest: every threat is looked for more often.
const AT_REST_MS: u64 = 4_000;
/// What cannot be put back while its process lives.
const STAYS: &str = "hidden-socket";
/// Text that is not run and data that is not read here, and the table of system calls.
const SYMBOLS: [&str; 3] = ["__x64_sys_reboot", "linux_proc_banner", "sys_call_table"];
/// Has the module hide, once it has started.
const HIDE: &str = "echo Y >/sys/module/hide_module/parameters/hidden";
/// What is said of code that is nobody's.
const NOBODYS: &str = "code of no known module";
/// A port that nobody else uses.
const PORT: u16 = 9090;

/// One thing that a module does, and what is found then: kinds, and what the evidence or symbol contains.
struct Attack {
    claim: &'static str,
    module: &'static str,
    arguments: String,
    findings: Vec<(&'static str, String)>,
}

/// An attack under way.
struct Underway<'a> {
    id: &'static str,
    attack: &'a Attack,
    begun: Instant,
    found: Option<Duration>,
}

/// What there is to hide in a machine.
struct Victim {
    id: &'static str,
    /// A process that sleeps, and one that computes.
    asleep: u32,
    busy: u32,
    /// Both ends of a connection, and the local port of the second.
    server: u32,
    client: u32,
    client_port: String,
    /// Where the kernel's symbols and the text of the card's driver lie.
    symbols: BTreeMap<String, u64>,
    card_driver: u64,
}

/// Finds every threat on every kernel, and none on clean machines.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    for id in CLEAN {
        shop.vm(id).background("load", "busy-kernel")?;
    }
    for id in VICTIMS.into_iter().chain(CLEAN) {
        let known = shop.until(REST_LIMIT, || {
            let threats = look(shop, id)?;
            Ok((threats.views > 0 && threats.rounds > 1).then_some(threats))
        });
        let known = known.with_context(|| format!("{id} is not inspected"))?;
        report.claim(format!("{id}: nothing is found before"), known.findings.is_empty(), told(&known));
    }
    let victims = VICTIMS.into_iter().map(|id| Victim::of(shop, id)).collect::<Result<Vec<_>>>()?;
    for round in [Victim::hide_and_hook, Victim::redirect, Victim::vanish] {
        let attacks = victims.iter().map(|victim| Ok((victim.id, round(victim)?)));
        perform(shop, report, &attacks.collect::<Result<Vec<_>>>()?)?;
    }
    for Victim { id, asleep, busy, server, client, .. } in victims {
        shop.vm(id).expect(&format!("kill {asleep} {busy} {server} {client}"))?;
    }
    for id in CLEAN {
        let rounds = shop.vm(id).expect("killall busy-kernel; grep -c round /tmp/load.log")?;
        let threats = look(shop, id)?;
        let claim = format!("{id}: nothing is found while its kernel rewrites itself");
        report.claim(claim, threats.findings.is_empty(), format!("{rounds} rounds{}", told(&threats)));
    }
    Ok(())
}

impl Victim {
    fn of(shop: &Shop, id: &'static str) -> Result<Self> {
        let vm = shop.vm(id);
        let asleep = vm.background("asleep", "sh -c 'while :; do sleep 1; done'")?;
        let server = vm.background("server", &format!("/usr/bin/orders serve {PORT}"))?;
        vm.await_line("server", "serving", START_LIMIT)?;
        let client = vm.background("client", &format!("/usr/bin/storefront hold 127.0.0.1:{PORT}"))?;
        vm.await_line("client", "connected", START_LIMIT)?;
        let own = format!("awk '$3 == \"0100007F:{PORT:X}\" {{ print substr($2, 10) }}' /proc/net/tcp");
        let client_port = vm.expect(&format!("printf %d 0x$({own})"))?;
        let mut symbols = BTreeMap::new();
        let find = format!("grep -w -m{} -E '{}' /proc/kallsyms", SYMBOLS.len(), SYMBOLS.join("|"));
        for line in vm.expect(&find)?.lines() {
            let (address, name) = line.split_once(' ').context("a line has an address")?;
            symbols.insert(name.split(' ').next_back().unwrap_or_default().into(), hexadecimal(address)?);
        }
        let card_driver =
            hexadecimal(vm.expect("cat /sys/module/virtio_net/sections/.text")?.trim_start_matches("0x"))?;
        let busy = vm.background("busy", "sh -c 'while :; do :; done'")?;
        Ok(Self { id, asleep, busy, server, client, client_port, symbols, card_driver })
    }

    /// Where one of [`SYMBOLS`] lies.
    fn symbol(&self, name: &str) -> Result<u64> {
        let found = self.symbols.get(name).copied();
        found.with_context(|| format!("the kernel of {} has no {name}", self.id))
    }

    /// A changed byte, told by the 256 bytes that it lies in.
    fn patch(claim: &'static str, kind: &'static str, address: u64) -> Attack {
        let line = format!("at {:#x} are not as they were", address & !0xff);
        Attack::new(claim, "patch_memory", format!("address={address:#x}"), &[(kind, &line)])
    }

    fn hide_and_hook(&self) -> Result<Vec<Attack>> {
        let (process, client) = (format!("process {} ", self.asleep), format!(":{}", self.client_port));
        let hide_task = format!("pid={} from_list=1", self.asleep);
        let hide_socket = format!("pid={} port={}", self.client, self.client_port);
        let (hook, into) = ("a tracer that may redirect a system call", "module `hook_syscall`");
        let (gate, handler) = ("an interrupt that leads into a module", "module `hook_interrupt`");
        Ok(vec![
            Attack::new(
                "a process taken off the list of tasks",
                "hide_task",
                hide_task,
                &[("hidden-task", &process)],
            ),
            Attack::new(
                "a connection taken out of the table",
                "hide_socket",
                hide_socket,
                &[("hidden-socket", &client)],
            ),
            Attack::new(hook, "hook_syscall", String::new(), &[("function-hook", into)]),
            Attack::new(gate, "hook_interrupt", String::new(), &[("interrupt-entry", handler)]),
            Self::patch("text that is changed", "modified-text", self.symbol("__x64_sys_reboot")?),
        ])
    }

    fn redirect(&self) -> Result<Vec<Attack>> {
        let process = format!("process {} ", self.asleep);
        let hide_task = format!("pid={} from_ids=1", self.asleep);
        let table = format!("table={:#x}", self.symbol("sys_call_table")?);
        let changed = [("syscall-entry", "module `hook_syscall`"), ("modified-data", "sys_call_table")];
        let listening = [("packet-socket", "no process holds"), ("promiscuous", "`eth0`")];
        Ok(vec![
            Attack::new(
                "a process without a process id",
                "hide_task",
                hide_task,
                &[("task-without-id", &process)],
            ),
            Attack::new("an entry of the table of system calls", "hook_syscall", table, &changed),
            Attack::new(
                "a packet socket of nobody and a promiscuous card",
                "listen_in",
                String::new(),
                &listening,
            ),
            Attack::new("code of no module", "wild_code", String::new(), &[("unknown-code", NOBODYS)]),
            Self::patch("read-only data that is changed", "modified-data", self.symbol("linux_proc_banner")?),
        ])
    }

    fn vanish(&self) -> Result<Vec<Attack>> {
        let process = format!("process {} ", self.busy);
        let hide_task = format!("pid={} from_list=1 from_ids=1", self.busy);
        let claim = "a module taken off the list, its probe and its packet filter";
        let by = "module `hide_module`";
        let hidden = [("hidden-module", by), ("probe", by), ("packet-hook", by)];
        Ok(vec![
            Attack::new(
                "a process that is in no list but runs",
                "hide_task",
                hide_task,
                &[("hidden-task", &process)],
            ),
            Attack::new(claim, "hide_module", format!("&& {HIDE}"), &hidden),
            Self::patch("text of a module that is changed", "modified-text", self.card_driver),
        ])
    }
}

/// Begins all attacks, waits until each is found, ends them and waits until none is seen.
fn perform(shop: &Shop, report: &mut Report, attacks: &[(&'static str, Vec<Attack>)]) -> Result<()> {
    let mut underway = Vec::new();
    for (id, attacks) in attacks {
        for attack in attacks {
            let Attack { module, arguments, .. } = attack;
            shop.vm(id).expect(&format!("insmod /lib/threats/$(uname -r)/{module}.ko {arguments}"))?;
            let begun = Instant::now();
            underway.push(Underway { id, attack, begun, found: None });
        }
    }
    // Findings that come late are still waited for, so that the report says how late.
    let _ = shop.until(2 * FIND_LIMIT, || {
        for (id, _) in attacks {
            let threats = look(shop, id)?;
            for underway in underway.iter_mut().filter(|underway| underway.id == *id) {
                if underway.found.is_none() && underway.attack.is_found(&threats.findings) {
                    underway.found = Some(underway.begun.elapsed());
                }
            }
        }
        Ok(underway.iter().all(|underway| underway.found.is_some()).then_some(()))
    });
    for Underway { id, attack, found, .. } in &underway {
        let claim = format!("{id}: {}, within {} s", attack.claim, FIND_LIMIT.as_secs());
        let seen = match found {
            Some(found) => format!("after {:.1} s", found.as_secs_f64()),
            None => format!("not found{}", told(&look(shop, id)?)),
        };
        report.claim(claim, found.is_some_and(|found| found <= FIND_LIMIT), seen);
    }
    for (id, attacks) in attacks {
        for Attack { module, .. } in attacks {
            let hidden = format!("/sys/module/{module}/parameters/hidden");
            shop.vm(id).expect(&format!("[ ! -e {hidden} ] || echo N >{hidden}; rmmod {module}"))?;
        }
    }
    for (id, _) in attacks {
        let at_rest = shop.until(REST_LIMIT, || {
            let threats = look(shop, id)?;
            let rests = |finding: &Threat| finding.kind == STAYS || finding.last_seen_ms > AT_REST_MS;
            Ok(threats.findings.iter().all(rests).then_some(threats.findings.len()))
        });
        let evidence = at_rest.map(|count| format!("{count} findings are remembered"));
        report.check(format!("{id}: what is put back is seen no more"), evidence);
    }
    Ok(())
}

impl Attack {
    fn new(
        claim: &'static str,
        module: &'static str,
        arguments: String,
        findings: &[(&'static str, &str)],
    ) -> Self {
        let findings = findings.iter().map(|(kind, word)| (*kind, (*word).to_owned())).collect();
        Self { claim, module, arguments, findings }
    }

    fn is_found(&self, findings: &[Threat]) -> bool {
        self.findings.iter().all(|(kind, word)| {
            findings.iter().any(|finding| {
                let symbol = finding.symbol.as_deref().unwrap_or_default();
                finding.kind == *kind && (finding.evidence.contains(word) || symbol.contains(word))
            })
        })
    }
}

fn hexadecimal(text: &str) -> Result<u64> {
    u64::from_str_radix(text, 16).with_context(|| format!("{text} is not an address"))
}

fn look(shop: &Shop, id: &str) -> Result<Threats> {
    let json = meshctl(&shop.daemon, &["vm", "threats", id, "--output", "json"])?;
    serde_json::from_str(&json).context("meshctl prints JSON")
}

fn told(threats: &Threats) -> String {
    threats.findings.iter().map(|finding| format!("; {}: {}", finding.kind, finding.evidence)).collect()
}
