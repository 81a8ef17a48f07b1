// SPDX-License-Identifier: Apache-2.0
//! What inspections look at: process ids, text with a static key, read-only data, entries, and a module with a
//! static key of its own.

use super::*;

/// Where the static key lies in the text, and where it leads.
pub(crate) const KEY: u32 = 0x20;
pub(crate) const KEY_TARGET: u32 = 0x60;
const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
/// Where the module's static key lies, that leads back to its text's start.
pub(crate) const MODULE_KEY: u32 = 0x40;
/// `IPPROTO_TCP`.
const TCP: u64 = 6;

impl Kernel {
    pub(super) fn what_is_inspected(&mut self) {
        self.process_ids();
        self.image = self.image.next_multiple_of(4096);
        let text = self.symbol("_stext", 2 * 4096);
        self.symbol("_etext", 4096);
        let rodata = self.symbol("__start_rodata", 4096);
        self.symbol("__end_rodata", 8);
        self.image = self.image.next_multiple_of(8);
        self.write(text, &[0x90; 2 * 4096]);
        self.write(text.at(KEY), &NOP5);
        let table = self.symbol("__start___jump_table", 16);
        self.symbol("__stop___jump_table", 8);
        for (at, target) in [(0, KEY), (4, KEY_TARGET)] {
            let distance = text.at(target).0.wrapping_sub(table.at(at).0) as u32;
            self.write(table.at(at), &distance.to_le_bytes());
        }
        let syscalls = self.symbol("sys_call_table", 335 * 8);
        for number in 0..335 {
            self.put(syscalls, number * 8, text.at(0x100).0);
        }
        self.image = self.image.next_multiple_of(4096);
        let gates = self.symbol("idt_table", 4096);
        self.module(&Structures::of(&Btf::parse(&types(Virtio::BuiltIn).0.build()).unwrap()));
        let header = self.alloc(64);
        let header_at = self.symbol("real_mode_header", 8);
        self.put(header_at, 0, header.0);
        for sock in [self.at.connection, self.at.listener] {
            let protocol = self.at.sock_protocol;
            self.put(sock, protocol, TCP);
        }
        (self.at.text, self.at.rodata) = (text, rodata);
        (self.at.syscalls, self.at.gates) = (syscalls, gates);
    }

    /// One page of text with one static key.
    fn module(&mut self, types: &Structures<'_>) {
        let member = |name| types.offset("module", name).unwrap();
        let (module, folder, table, text) = (self.alloc(512), self.alloc(64), self.alloc(16), self.page());
        self.write(text, &[0x90; 4096]);
        self.write(text.at(MODULE_KEY), &NOP5);
        for (at, target) in [(0, MODULE_KEY), (4, 0)] {
            let distance = text.at(target).0.wrapping_sub(table.at(at).0) as u32;
            self.write(table.at(at), &distance.to_le_bytes());
        }
        self.at.module_load = folder.at(types.offset("kernfs_node", "id").unwrap());
        self.put(self.at.module_load, 0, 77);
        for (name, value) in [
            ("core_layout.base", text.0),
            ("core_layout.text_size", 4096),
            ("mkobj.kobj.sd", folder.0),
            ("jump_entries", table.0),
            ("num_jump_entries", 1),
        ] {
            self.put(module, member(name), value);
        }
        self.write(module.at(member("name")), b"shop_module");
        let modules = self.symbol("modules", 16);
        self.circle(&[modules, module.at(member("list"))]);
        self.at.module_text = text;
    }

    /// Has a task wait on a processor's run queue, in the real-time class.
    pub(crate) fn enqueue(&mut self, task: Gva, cpu: usize) {
        let list = self.at.queues[cpu].at(self.at.rt_lists + 50 * 16);
        self.circle(&[list, task.at(self.at.rt_link)]);
    }

    fn process_ids(&mut self) {
        let namespace = self.symbol("init_pid_ns", 64);
        let (node, slots) = (self.alloc(8 + 512), 8);
        self.put(namespace, self.at.id_tree, node.0 | 2);
        let links = self.at.id_links;
        for (task, id) in [(self.at.init, 1), (self.at.shop, 7)] {
            let pid = self.alloc(128);
            self.put(pid, self.at.id_tasks, task.at(links).0);
            self.put(node, slots + id * 8, pid.0);
        }
        self.at.ids = node.at(slots);
    }

    /// Takes a node out of its list as the kernel does.
    pub(crate) fn unlink(&mut self, node: Gva) {
        let (next, previous) = (self.read(node), self.read(node.at(8)));
        self.put(Gva(previous), 0, next);
        self.put(Gva(next), 8, previous);
    }

    /// Takes all connections out of their table.
    pub(crate) fn empty_connections(&mut self) {
        let ehash = Gva(self.read(self.at.hashinfo.at(self.layout.hashinfo.ehash)));
        for bucket in 0..BUCKETS {
            self.put(ehash, bucket * 8, u64::from(bucket) << 1 | 1);
        }
    }
}
