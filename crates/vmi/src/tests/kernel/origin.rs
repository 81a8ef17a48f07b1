// SPDX-License-Identifier: Apache-2.0
//! What leads from the first task to everything else: its address space, its namespaces, and protocols.

use super::*;

impl Kernel {
    /// Completes the first task; what it leads to is there already.
    pub(super) fn first_task(&mut self, origin: &Origin) {
        let task = self.at.init_task;
        let (mm, namespaces, uts, pid) = (
            self.symbol("init_mm", 128),
            self.symbol("init_nsproxy", 64),
            self.symbol("init_uts_ns", 256),
            self.find("init_pid_ns"),
        );
        let (sock, protocol) = origin.protocols.clone().unwrap();
        let any = self.alloc(256);
        let udp = Gva(self.read(self.at.net.at(self.layout.net_udp_table.unwrap())));
        let (head, raw) = (self.symbol("proto_list", 16), self.find("raw_v4_hashinfo"));
        let mut nodes = vec![head];
        for (name, table) in [("NETLINK", Gva(0)), ("UDP", udp), ("RAW", raw)] {
            let place = self.alloc(128);
            self.write(place.at(protocol.name), name.as_bytes());
            self.put(place, protocol.table, table.0);
            self.put(any, sock.protocol, place.0);
            nodes.push(place.at(protocol.list));
        }
        self.circle(&nodes);
        for (place, offset, value) in [
            (task, origin.task.parent, task.0),
            (task, origin.task.real_parent, task.0),
            (task, origin.task.active_mm, mm.0),
            (task, origin.task.nsproxy, namespaces.0),
            (mm, origin.mm.pgd, self.find("init_top_pgt").0),
            (namespaces, origin.namespaces.uts, uts.0),
            (namespaces, origin.namespaces.net, self.at.net.0),
            (namespaces, origin.namespaces.pid, pid.0),
            (self.at.net, origin.net.any_sock, any.0),
        ] {
            self.put(place, offset, value);
        }
        self.write(uts.at(origin.uts.release), b"0.0-made-up");
        self.at.first_switches = task.at(origin.task.switches);
        let init_space = Gva(self.read(self.at.init.at(origin.task.mm)));
        let root = self.find("init_top_pgt");
        self.put(init_space, origin.mm.pgd, root.0);
        self.at.first_space = task.at(origin.task.active_mm);
        self.at.first_parent = task.at(origin.task.parent);
        self.at.first_neighbour_back = Gva(self.read(task.at(origin.task.tasks))).at(8);
    }

    /// Leaves nothing of the symbol table that could be found.
    pub(crate) fn hide_symbols(&mut self) {
        let signature = crate::kallsyms::SIGNATURE;
        let places: Vec<usize> = memchr::memmem::find_iter(&self.ram.0, signature).collect();
        for at in places {
            self.ram.0[at..at + signature.len()].fill(0);
        }
    }

    /// Adds a whole image behind the other, as a reset may leave one; returns how much further it lies.
    pub(crate) fn twin(&mut self) -> u64 {
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        let (start, end) = (usize::try_from(IMAGE_GPA).unwrap(), RAM_BYTES);
        let distance = (end - start) as u64;
        self.ram.0.resize(end + (end - start), 0);
        self.ram.0.copy_within(start..end, end);
        let tables = Gva(self.find("init_top_pgt").0 + distance);
        for at in (0..0x8000).step_by(8) {
            let entry = self.read(tables.at(at));
            if (IMAGE_GPA..RAM_BYTES as u64).contains(&(entry & ADDRESS)) {
                self.put(tables, at, entry + distance);
            }
        }
        distance
    }

    /// Every member of every structure that is described.
    pub(crate) fn members() -> impl Iterator<Item = (&'static str, &'static str)> {
        let plain = |member: &'static str| member.split([':', '/']).next().unwrap_or(member);
        let all = STRUCTURES.iter().chain(RING_STRUCTURES);
        all.flat_map(move |&(name, members)| members.iter().map(move |&member| (name, plain(member))))
    }

    /// Gives a member another name in the types, which are in RAM in the order in which they were declared.
    pub(crate) fn forget(&mut self, structure: &str, member: &str) {
        let types = usize::try_from(self.at.types_gpa).unwrap();
        let word = |ram: &[u8], at: usize| u32::from_le_bytes(*ram[at..].first_chunk().unwrap()) as usize;
        let mut at = types + 24 + word(&self.ram.0, types + 12) + 1 + "int".len() + 1;
        for (name, members) in STRUCTURES.iter().chain(RING_STRUCTURES) {
            // The name of a structure follows those of its members.
            for known in members.iter().map(|member| member.split([':', '/']).next().unwrap()).chain([*name])
            {
                if (*name, known) == (structure, member) {
                    assert_eq!(&self.ram.0[at..at + known.len()], known.as_bytes());
                    self.ram.0[at] = b'X';
                }
                at += known.len() + 1;
            }
        }
    }
}
