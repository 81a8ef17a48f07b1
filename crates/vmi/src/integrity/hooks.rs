// SPDX-License-Identifier: Apache-2.0
//! Pointers that the kernel follows to code: system calls, interrupts, tracers, probes and packet filters.

use crate::core::Core;
use crate::error::Fault;
use crate::memory::Gva;

use super::finding::{Certainty, FindingKind};
use super::known::{Code, KnownCode};
use super::layout::{IntegrityLayout, Probes};
use super::suspects::Suspect;

/// System calls checked: those up to `rseq`, which every kernel from 4.18 has without a gap.
const SYSCALLS: u64 = 335;
/// Gates of the interrupt table.
const GATES: u64 = 256;
const GATE_BYTES: usize = 16;
/// In byte 5 of a gate.
const GATE_PRESENT: u8 = 1 << 7;
/// Length of the early handlers: 32, of 9 or 13 bytes each.
const EARLY_HANDLERS_BYTES: u64 = 32 * 13;
/// A tracer that may redirect the function (`FTRACE_OPS_FL_IPMODIFY`).
const REDIRECTS: u64 = 1 << 12;
/// Buckets of the table of probes (`KPROBE_TABLE_SIZE`).
const PROBE_BUCKETS: u64 = 64;
/// Most probes walked.
pub(super) const PROBES_MAX: usize = 1 << 14;
/// Most packet filters at one hook (`MAX_HOOK_COUNT`).
const PACKET_HOOKS_MAX: u16 = 1024;
/// Hooks of a protocol (`NF_INET_NUMHOOKS`).
const PACKET_HOOK_POINTS: u32 = 5;
const PACKET_HOOK_BYTES: u32 = 16;

impl Core {
    /// System calls and interrupts that lead out of the kernel's text.
    pub(super) fn entry_suspects(&self, known: &KnownCode) -> Result<Vec<Suspect>, Fault> {
        let mut suspects = Vec::new();
        if known.kernel.is_empty() {
            return Ok(suspects);
        }
        if let Some(table) = self.anchors.symbols.find("sys_call_table") {
            let entries: [u8; SYSCALLS as usize * 8] = self.reader.array(table)?;
            for (number, entry) in (0..).zip(entries.as_chunks().0) {
                let target = u64::from_le_bytes(*entry);
                if !known.kernel.contains(&target) {
                    let evidence = format!("system call {number} leads to {}", known.describe(target));
                    let at = table.element(number, 8);
                    suspects.push(suspect(FindingKind::SyscallEntry, Certainty::Certain, at, evidence));
                }
            }
        }
        if let Some(table) = self.anchors.symbols.find("idt_table") {
            // Gates that nobody sets later still lead to the code of early boot, which is gone.
            let early = self.anchors.symbols.find("early_idt_handler_array").unwrap_or_default().0;
            let gates: [u8; GATES as usize * GATE_BYTES] = self.reader.array(table)?;
            for (vector, gate) in (0..).zip(gates.as_chunks::<GATE_BYTES>().0) {
                let target = gate_target(gate);
                let is_early = target.wrapping_sub(early) < EARLY_HANDLERS_BYTES;
                if gate[5] & GATE_PRESENT != 0 && !known.kernel.contains(&target) && !is_early {
                    let evidence = format!("interrupt {vector} leads to {}", known.describe(target));
                    let at = table.element(vector, GATE_BYTES as u32);
                    suspects.push(suspect(FindingKind::InterruptEntry, Certainty::Certain, at, evidence));
                }
            }
        }
        Ok(suspects)
    }

    /// Tracers that lead to code of nobody, or let a module redirect functions.
    pub(super) fn tracer_suspects(
        &self,
        layout: &IntegrityLayout,
        known: &KnownCode,
    ) -> Result<Vec<Suspect>, Fault> {
        let Some(layout) = &layout.tracers else { return Ok(Vec::new()) };
        let mut suspects = Vec::new();
        for tracer in self.tracers(layout)? {
            let func = self.reader.u64(tracer.at(layout.func))?;
            let redirects = self.reader.u64(tracer.at(layout.flags))? & REDIRECTS != 0;
            let certainty = match known.at(func) {
                None if known.is_complete => Certainty::Certain,
                Some(Code::Module(_)) if redirects => Certainty::Likely,
                _ => continue,
            };
            let does = if redirects { "may redirect functions, and leads" } else { "leads" };
            let evidence = format!("a tracer {does} to {}", known.describe(func));
            suspects.push(suspect(FindingKind::FunctionHook, certainty, tracer, evidence));
        }
        Ok(suspects)
    }

    /// Probes that lead to code of nobody.
    pub(super) fn probe_suspects(
        &self,
        layout: &IntegrityLayout,
        known: &KnownCode,
    ) -> Result<Vec<Suspect>, Fault> {
        let Some(probes) = &layout.probes else { return Ok(Vec::new()) };
        let returns = layout.return_probes.as_ref().zip(self.anchors.symbols.find("pre_handler_kretprobe"));
        let mut suspects = Vec::new();
        for probe in self.probes(probes)? {
            let before = self.reader.pointer(probe.at(probes.before))?;
            let mut handlers = vec![before, self.reader.pointer(probe.at(probes.after))?];
            if let Some((layout, _)) = returns.filter(|(_, handler)| *handler == before) {
                handlers.push(self.reader.pointer(probe.container(layout.probe).at(layout.handler))?);
            }
            let address = self.reader.u64(probe.at(probes.address))?;
            for handler in handlers.into_iter().filter(|handler| !handler.is_null()) {
                if known.is_unknown(handler.0) {
                    let leads = known.describe(handler.0);
                    let evidence = format!("the probe at {address:#x} leads to {leads}");
                    let kind = FindingKind::Probe;
                    suspects.push(suspect(kind, Certainty::Certain, Gva(address), evidence));
                }
            }
        }
        Ok(suspects)
    }

    /// Registered probes, those that share an address included.
    pub(super) fn probes(&self, layout: &Probes) -> Result<Vec<Gva>, Fault> {
        let Some(table) = self.anchors.symbols.find("kprobe_table") else { return Ok(Vec::new()) };
        let mut probes = Vec::new();
        for bucket in 0..PROBE_BUCKETS {
            let mut node = self.reader.pointer(table.element(bucket, 8))?;
            while !node.is_null() {
                if probes.len() >= PROBES_MAX {
                    return Err(Fault::Inconsistent);
                }
                let probe = node.container(layout.node);
                probes.push(probe);
                // A list of its own where several share the address; elsewhere null or empty.
                let head = probe.at(layout.list);
                if let Ok(sharing) = self.list(head, PROBES_MAX - probes.len()) {
                    probes.extend(sharing.into_iter().map(|entry| entry.container(layout.list)));
                }
                node = self.reader.pointer(node)?;
            }
        }
        Ok(probes)
    }

    /// Packet filters that lead to code of nobody.
    pub(super) fn packet_hook_suspects(
        &self,
        layout: &IntegrityLayout,
        known: &KnownCode,
    ) -> Result<Vec<Suspect>, Fault> {
        let Some(layout) = &layout.packet_hooks else { return Ok(Vec::new()) };
        let mut suspects = Vec::new();
        for net in self.namespaces()? {
            for point in 0..2 * PACKET_HOOK_POINTS {
                let family = if point < PACKET_HOOK_POINTS { layout.v4 } else { layout.v6 };
                let entries = self.reader.pointer(net.at(family + point % PACKET_HOOK_POINTS * 8))?;
                if entries.is_null() {
                    continue;
                }
                let count = u16::from_le_bytes(self.reader.array(entries.at(layout.count))?);
                if count > PACKET_HOOKS_MAX {
                    return Err(Fault::Inconsistent);
                }
                for index in 0..count {
                    let at = entries.at(layout.hooks).element(index.into(), PACKET_HOOK_BYTES);
                    let hook = self.reader.u64(at)?;
                    if known.is_unknown(hook) {
                        let evidence = format!("a packet filter leads to {}", known.describe(hook));
                        suspects.push(suspect(
                            FindingKind::PacketHook,
                            Certainty::Certain,
                            Gva(hook),
                            evidence,
                        ));
                    }
                }
            }
        }
        Ok(suspects)
    }
}

/// Where a gate leads (Intel SDM volume 3, "64-bit mode IDT").
fn gate_target(gate: &[u8; GATE_BYTES]) -> u64 {
    let [low0, low1, _, _, _, _, middle0, middle1, h0, h1, h2, h3, ..] = *gate;
    u64::from_le_bytes([low0, low1, middle0, middle1, h0, h1, h2, h3])
}

fn suspect(kind: FindingKind, certainty: Certainty, at: Gva, evidence: String) -> Suspect {
    Suspect { kind, certainty, address: at.0, evidence }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_is_put_together_from_its_three_parts() {
        let gate = [0x34, 0x12, 0x10, 0, 0, 0x8e, 0x78, 0x56, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        assert_eq!(gate_target(&gate), 0xffff_ffff_5678_1234);
    }
}
