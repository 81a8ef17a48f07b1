// SPDX-License-Identifier: Apache-2.0
//! Addresses of kernel symbols.

use std::collections::HashMap;

use crate::error::AttachError;
use crate::kallsyms::{Encoding, START_KERNEL_MAP, Table};
use crate::memory::{Gva, PhysicalMemory};

/// Addresses of the symbols that the library uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Symbols {
    by_name: HashMap<&'static str, Gva>,
}

/// Every symbol that is looked for. Some kernels lack some of them.
const WANTED: [&str; 28] = [
    "_text",
    "_stext",
    "_end",
    "__bss_stop",
    "__start_BTF",
    "__stop_BTF",
    "linux_banner",
    "init_top_pgt",
    "phys_base",
    "jiffies_64",
    "init_task",
    "net_namespace_list",
    "socket_file_ops",
    "btf_modules",
    "udp_table",
    "net_hotdata",
    "inet_ehash_secret",
    "inet6_ehash_secret",
    "ipv6_hash_secret",
    "__per_cpu_offset",
    "nr_cpu_ids",
    "runqueues",
    "raw_v4_hashinfo",
    "raw_v6_hashinfo",
    "vmemmap_base",
    "nf_conntrack_hash",
    "nf_conntrack_htable_size",
    "nf_conntrack_hash_rnd",
];

/// Symbols that inspections use. A view whose symbols are absent is left out.
const INSPECTED: [&str; 36] = [
    "init_pid_ns",
    "runqueues",
    "__per_cpu_offset",
    "nr_cpu_ids",
    "modules",
    "mod_tree",
    "bpf_kallsyms",
    "ftrace_ops_list",
    "ftrace_list_end",
    "ftrace_ops_trampoline_list",
    "ftrace_pages_start",
    "ftrace_call",
    "ftrace_regs_call",
    "ftrace_graph_call",
    "kprobe_table",
    "pre_handler_kretprobe",
    "idt_table",
    "early_idt_handler_array",
    "sys_call_table",
    "_etext",
    "__start_rodata",
    "__end_rodata",
    "__start___jump_table",
    "__stop___jump_table",
    "__start_static_call_sites",
    "__stop_static_call_sites",
    "__static_call_text_start",
    "__static_call_text_end",
    "pack_list",
    "nr_node_ids",
    "kprobe_insn_slots",
    "kprobe_optinsn_slots",
    "real_mode_header",
    "execmem_cache",
    "rcu_state",
    "init_free_list",
];

impl Symbols {
    /// Takes the wanted symbols of `table`; of several with one name, the first.
    ///
    /// The compiler may have given a static variable a suffix of digits (`inet_ehash_secret.5`).
    pub(crate) fn of(memory: &dyn PhysicalMemory, table: &Table) -> Option<Self> {
        let wanted: HashMap<&[u8], &'static str> =
            WANTED.iter().chain(&INSPECTED).map(|&name| (name.as_bytes(), name)).collect();
        let mut by_name = HashMap::new();
        table.for_each(|name, address| {
            if let Some(&name) = wanted.get(without_suffix(name)) {
                by_name.entry(name).or_insert(Gva(address));
            }
        });
        if table.encoding == Encoding::PlaceRelative {
            let mut phys_base = [0; 8];
            memory.read(by_name.get("phys_base")?.0, &mut phys_base).ok()?;
            let offset = START_KERNEL_MAP.wrapping_sub(u64::from_le_bytes(phys_base));
            for address in by_name.values_mut() {
                address.0 = address.0.wrapping_add(offset);
            }
        }
        Some(Self { by_name })
    }

    /// Names what was found by other means.
    pub(crate) fn add(&mut self, name: &'static str, place: Gva) {
        self.by_name.insert(name, place);
    }

    pub(crate) fn find(&self, name: &'static str) -> Option<Gva> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn require(&self, name: &'static str) -> Result<Gva, AttachError> {
        self.find(name).ok_or(AttachError::MissingSymbol(name))
    }
}

/// `name` without a compiler-made suffix of a dot and digits.
fn without_suffix(name: &[u8]) -> &[u8] {
    match memchr::memrchr(b'.', name) {
        Some(dot) if name[dot + 1..].iter().all(u8::is_ascii_digit) => &name[..dot],
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiler_suffixes_are_cut() {
        for (name, cut) in [
            ("inet_ehash_secret.5", "inet_ehash_secret"),
            ("init_task", "init_task"),
            ("tcp_v4_rcv.cold", "tcp_v4_rcv.cold"),
            ("x.", "x"),
        ] {
            assert_eq!(without_suffix(name.as_bytes()), cut.as_bytes());
        }
    }
}
