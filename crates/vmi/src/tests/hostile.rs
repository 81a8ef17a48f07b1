// SPDX-License-Identifier: Apache-2.0
//! What is survived: memory that lies, loops and counts without end, kernels that come and go.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use model::{Protocol, UnknownReason};
use proptest::prelude::*;

use super::kernel::{Kernel, Virtio};
use super::symbols::SymbolOrder;
use super::{ask_everything, attach, connection, end, kernel};
use crate::memory::Gva;
use crate::memory::fixture::Ram;
use crate::{AttachError, Guest, Heartbeats, PhysicalMemory, Unmapped, ViewError};

/// Memory that changes under the reader.
pub(super) struct Changing(Mutex<Ram>);

impl Changing {
    pub(super) fn new(ram: &Ram) -> Arc<Self> {
        Arc::new(Self(Mutex::new(ram.clone())))
    }

    pub(super) fn become_like(&self, ram: &Ram) {
        *self.0.lock().unwrap() = ram.clone();
    }
}

impl PhysicalMemory for Changing {
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), Unmapped> {
        self.0.lock().unwrap().read(gpa, out)
    }

    fn extents(&self) -> Vec<Range<u64>> {
        self.0.lock().unwrap().extents()
    }
}

#[test]
fn memory_without_a_kernel_is_refused() {
    assert_eq!(Guest::attach(Arc::new(Ram(Vec::new()))).err(), Some(AttachError::NoSymbols));
    assert_eq!(Guest::attach(Arc::new(Ram(vec![0; 1 << 20]))).err(), Some(AttachError::NoSymbols));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let random = (0..1 << 18).flat_map(|_| noise()).collect();
    assert_eq!(Guest::attach(Arc::new(Ram(random))).err(), Some(AttachError::NoSymbols));
}

#[test]
fn kernel_that_lacks_a_part_is_refused() {
    let mut kernel = kernel();
    let at = usize::try_from(kernel.at.symbols_gpa).unwrap();
    // The count of symbols is a lie.
    for count in [0_u32, 1, 2000, 1 << 20, u32::MAX] {
        kernel.ram.0[at..at + 4].copy_from_slice(&count.to_le_bytes());
        // Then its first task leads to everything.
        assert_eq!(attach(&kernel.ram).kernel().symbols, 0, "{count}");
    }
    for (symbol, error) in [
        ("__start_BTF", AttachError::NoProfile("0.0-made-up".into())),
        ("linux_banner", AttachError::NoKernel),
        ("init_top_pgt", AttachError::NoKernel),
        ("init_task", AttachError::Unexpected("idle task")),
    ] {
        let mut kernel = super::kernel();
        kernel.clear(symbol, 0x1e0);
        if symbol == "init_top_pgt" {
            kernel.clear(symbol, 0x6000);
        }
        assert_eq!(Guest::attach(Arc::new(kernel.ram)).err(), Some(error), "{symbol}");
    }
}

#[test]
fn imitated_symbols_are_believed_only_if_they_say_the_same() {
    for order in SymbolOrder::ALL {
        let mut kernel = Kernel::new(4, order);
        kernel.imitate_symbols("filler_0000", order);
        assert!(Guest::attach(Arc::new(kernel.ram)).is_ok(), "{order:?}");
        let mut kernel = Kernel::new(4, order);
        kernel.imitate_symbols("init_task", order);
        let result = Guest::attach(Arc::new(kernel.ram));
        assert_eq!(result.err(), Some(AttachError::Ambiguous), "{order:?}");
    }
}

#[test]
fn of_two_kernels_the_one_whose_clock_moves_is_believed() {
    for (original, other, living) in [(1, 0, true), (0, 1, true), (0, 0, false), (1, 1, false)] {
        let mut kernel = kernel();
        let clock = kernel.find("jiffies_64");
        kernel.imitate_symbols("jiffies_64", SymbolOrder::ALL[0]);
        let mut heartbeats = Heartbeats::default();
        let first = Guest::attach_again(Arc::new(kernel.ram.clone()), &mut heartbeats);
        assert_eq!(first.err(), Some(AttachError::Ambiguous), "nothing is known of either clock yet");

        kernel.write(clock, &u64::to_le_bytes(original));
        kernel.write(clock.at(64), &u64::to_le_bytes(other));
        let second = Guest::attach_again(Arc::new(kernel.ram.clone()), &mut heartbeats);
        assert_eq!(second.is_ok(), living, "{original} {other}");
    }
}

#[test]
fn memory_full_of_imitations_is_refused() {
    let (tokens, index) = super::symbols::tokens();
    for (imitation, hides_kernel) in [
        (crate::btf::SIGNATURE.to_vec(), false),
        (b"swapper/0\0".to_vec(), false),
        (crate::kallsyms::SIGNATURE.to_vec(), true),
        ([tokens, index].concat(), true),
    ] {
        let ram = imitation.repeat((4 << 20) / imitation.len());
        assert_eq!(Guest::attach(Arc::new(Ram(ram.clone()))).err(), Some(AttachError::Crowded));
        // The kernel lies behind them.
        let mut kernel = kernel();
        let room = 1 << 20;
        kernel.ram.0[room..2 * room].copy_from_slice(&ram[..room]);
        let result = Guest::attach(Arc::new(kernel.ram)).err();
        assert_eq!(result, hides_kernel.then_some(AttachError::Crowded));
    }
}

#[test]
fn copies_of_a_header_do_not_displace_the_kernels_types() {
    let mut kernel = kernel();
    let at = usize::try_from(kernel.at.types_gpa).unwrap();
    let header = kernel.ram.0[at..at + 24].to_vec();
    for copy in [0x1000, 0x2008, 0x3004] {
        kernel.ram.0[copy..copy + 24].copy_from_slice(&header);
    }
    assert_eq!(attach(&kernel.ram).processes().unwrap().len(), 2);
}

#[test]
fn looping_task_list_is_inconsistent() {
    let mut kernel = kernel();
    let tasks = kernel.layout.task.tasks;
    let (init, shop) = (kernel.at.init.at(tasks), kernel.at.shop.at(tasks));
    for (from, to) in [(shop, shop), (shop, init), (init, init), (shop, Gva(0)), (shop, Gva(u64::MAX - 3))] {
        let mut kernel = kernel.clone();
        kernel.put(from, 0, to.0);
        assert_eq!(attach(&kernel.ram).processes(), Err(ViewError::Inconsistent));
    }
    kernel.put(shop, 0, shop.0);
    // Nor the other way round, in which the youngest are looked at first.
    kernel.put(kernel.at.init_task.at(tasks), 8, init.0);
    kernel.put(init, 8, init.0);
    let mut guest = attach(&kernel.ram);
    // Found without the list: the process is remembered nowhere yet, so the list is needed.
    assert_eq!(connection(&mut guest).unknown, Some(UnknownReason::Inconsistent));
}

#[test]
fn looping_chains_of_sockets_are_inconsistent() {
    let mut kernel = kernel();
    let node = kernel.at.connection.at(kernel.layout.sock.node);
    kernel.put(node, 0, node.0);
    let mut guest = attach(&kernel.ram);
    assert_eq!(guest.sockets(), Err(ViewError::Inconsistent));
    let absent = guest.connection_owner(end("10.0.0.1:9"), end("10.0.0.2:9"), Protocol::Tcp);
    assert_eq!(absent.unknown, Some(UnknownReason::Inconsistent));
}

#[test]
fn chain_that_ends_in_another_bucket_is_not_believed() {
    let mut kernel = kernel();
    let node = kernel.at.connection.at(kernel.layout.sock.node);
    let end = kernel.read(node);
    kernel.put(node, 0, (end ^ 2) | 1);
    assert_eq!(attach(&kernel.ram).sockets(), Err(ViewError::Inconsistent));
}

#[test]
fn looping_paths_leave_the_process_without_path() {
    let mut kernel = kernel();
    let (dentry, node) = (kernel.at.shop_dentry, kernel.at.shop_kernfs);
    let bin = Gva(kernel.read(dentry.at(kernel.layout.dentry.parent)));
    kernel.put(bin, kernel.layout.dentry.parent, dentry.0);
    kernel.put(node, kernel.layout.kernfs_node.parent, node.0);
    let shop = attach(&kernel.ram).processes().unwrap().remove(1);
    assert_eq!((shop.pid, shop.exe, shop.cgroup), (7, None, None));
    // A glance that was cut short tells nothing, for the path may merely not have been read to its end.
    let mut guest = attach(&kernel.ram);
    assert_eq!(guest.glance(connection), None);
    assert_eq!(connection(&mut guest).process.unwrap().exe, None);
}

#[test]
fn huge_counts_are_refused_without_allocation() {
    let kernel = kernel();
    let hashinfo = &kernel.layout.hashinfo;
    for (place, offset) in [
        (kernel.at.shop_fdt, kernel.layout.fdtable.max_fds),
        (kernel.at.hashinfo, hashinfo.ehash_mask),
        (kernel.at.hashinfo, hashinfo.lhash2_mask),
    ] {
        for value in [0x000f_ffff, 0x00ff_ffff, u64::from(u32::MAX)] {
            let mut kernel = kernel.clone();
            kernel.put(place, offset, value);
            let mut guest = attach(&kernel.ram);
            assert_eq!(guest.sockets(), Err(ViewError::Inconsistent));
            ask_everything(&mut guest, kernel.at.ring_gpa);
        }
    }
    let mut kernel = kernel.clone();
    kernel.put(kernel.at.shop_dentry, kernel.layout.dentry.name_len, u64::from(u32::MAX));
    assert_eq!(attach(&kernel.ram).processes().unwrap()[1].exe, None);
}

#[test]
fn forged_virtqueues_and_devices_have_no_socket() {
    let mut kernel = kernel();
    let devices = kernel.layout.devices.clone().unwrap();
    let link = kernel.at.device.at(devices.net_device.list);
    kernel.put(link, 0, link.0);
    let owner = attach(&kernel.ram).frame_owner(kernel.at.ring_gpa, 0);
    assert_eq!(owner.unknown, Some(UnknownReason::Inconsistent));
    kernel.put(kernel.at.device, devices.net_device.parent, 0xdead_0000_0000);
    let owner = attach(&kernel.ram).frame_owner(0x5000, 0);
    assert_eq!(owner.process, None);
}

#[test]
fn module_types_that_do_not_follow_the_kernels_are_not_used() {
    let kernel = Kernel::with_virtio(4, SymbolOrder::OffsetsFirst, Virtio::Module);
    let layout = kernel.layout.modules.clone().unwrap().btf;
    for (offset, values) in [
        (layout.start_id, [0, 1, u64::MAX]),
        (layout.start_str_off, [0, 1, u64::MAX]),
        (layout.data_size, [0, 30, u64::MAX]),
        (layout.data, [0, 0xdead, u64::MAX]),
    ] {
        for value in values {
            let mut kernel = kernel.clone();
            kernel.put(kernel.at.module_types, offset, value);
            let owner = attach(&kernel.ram).frame_owner(kernel.at.ring_gpa, 0);
            assert_eq!(owner.process, None, "{offset} {value}");
        }
    }
}

#[test]
fn file_and_socket_must_point_to_each_other() {
    let mut kernel = kernel();
    kernel.put(kernel.at.connection_file, kernel.layout.file.private_data, kernel.at.shop_dentry.0);
    let owner = connection(&mut attach(&kernel.ram));
    assert_eq!(owner.unknown, Some(UnknownReason::Inconsistent));
}

#[test]
fn guest_that_was_reset_is_gone() {
    let kernel = kernel();
    let memory = Changing::new(&kernel.ram);
    let mut guest = Guest::attach(memory.clone()).unwrap();
    assert!(connection(&mut guest).process.is_some());
    memory.become_like(&Ram(vec![0; kernel.ram.0.len()]));
    assert_eq!(guest.processes(), Err(ViewError::Gone));
    assert_eq!(connection(&mut guest).unknown, Some(UnknownReason::NotAttached));
    memory.become_like(&Ram(Vec::new()));
    assert_eq!(guest.sockets(), Err(ViewError::Gone));
}

#[test]
fn remembered_owner_that_let_go_or_changed_is_not_told() {
    let mut kernel = kernel();
    let memory = Changing::new(&kernel.ram);
    let mut guest = Guest::attach(memory.clone()).unwrap();
    assert_eq!(connection(&mut guest).process.unwrap().pid, 7);
    // Another process took the memory of the task that was remembered.
    kernel.put(kernel.at.shop, kernel.layout.task.start_time, 99);
    kernel.put(kernel.at.shop, kernel.layout.task.tgid, 8);
    memory.become_like(&kernel.ram);
    assert_eq!(connection(&mut guest).process.unwrap().pid, 8);
    // The descriptor was closed.
    let array = Gva(kernel.read(kernel.at.shop_fdt.at(kernel.layout.fdtable.fd)));
    kernel.put(array, 4 * 8, 0);
    memory.become_like(&kernel.ram);
    assert_eq!(connection(&mut guest).unknown, Some(UnknownReason::NoOwner));
}

#[test]
fn wrong_word_about_the_latest_descriptor_misleads_nobody() {
    let mut kernel = kernel();
    let next = kernel.layout.next_fd.as_ref().unwrap().next;
    let files = Gva(kernel.read(kernel.at.shop.at(kernel.layout.task.files)));
    for word in [0, 1, 4, 5, 6, 8, 9, u64::MAX] {
        kernel.put(files, next, word);
        let mut guest = Guest::attach(Changing::new(&kernel.ram)).unwrap();
        assert_eq!(connection(&mut guest).process.unwrap().pid, 7, "next descriptor {word}");
    }
}

#[test]
fn remembered_process_that_has_ended_is_not_told_although_it_seems_to_hold_the_file() {
    let mut kernel = kernel();
    let memory = Changing::new(&kernel.ram);
    let mut guest = Guest::attach(memory.clone()).unwrap();
    assert_eq!(connection(&mut guest).process.unwrap().pid, 7);
    kernel.succeed(kernel.at.shop, 8);
    memory.become_like(&kernel.ram);
    assert_eq!(connection(&mut guest).process.unwrap().pid, 8);
}

/// Memory in which every read of a list gives another random kernel pointer.
struct Restless(Ram, AtomicUsize);

impl PhysicalMemory for Restless {
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), Unmapped> {
        self.0.read(gpa, out)?;
        let count = self.1.fetch_add(1, Ordering::Relaxed);
        if out.len() == 8 && count % 7 == 3 {
            out[0] = out[0].wrapping_add(u8::try_from(count % 256).unwrap() & 0xf8);
        }
        Ok(())
    }

    fn extents(&self) -> Vec<Range<u64>> {
        self.0.extents()
    }
}

#[test]
fn memory_that_changes_with_every_read_gives_answers_or_errors() {
    let kernel = kernel();
    for start in 0..32 {
        let memory = Restless(kernel.ram.clone(), AtomicUsize::new(start));
        if let Ok(mut guest) = Guest::attach(Arc::new(memory)) {
            ask_everything(&mut guest, kernel.at.ring_gpa);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any words of the structures changed, before or after attaching.
    #[test]
    fn damaged_structures_never_stop_the_reader(
        damage in prop::collection::vec((any::<prop::sample::Index>(), damaged_word()), 1..24),
        before in any::<bool>(),
    ) {
        let kernel = kernel();
        let mut ram = kernel.ram.clone();
        for (place, value) in damage {
            // The heap, with every process, socket, path and device.
            let at = 0x1_0000 + place.index(0x4000 / 8) * 8;
            ram.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let memory = Changing::new(if before { &ram } else { &kernel.ram });
        if let Ok(mut guest) = Guest::attach(memory.clone()) {
            memory.become_like(&ram);
            ask_everything(&mut guest, kernel.at.ring_gpa);
        }
    }

    /// Any words of the image changed: page tables, types, symbols.
    #[test]
    fn damaged_image_never_stops_the_reader(
        damage in prop::collection::vec((any::<prop::sample::Index>(), damaged_word()), 1..64),
        order in prop::sample::select(SymbolOrder::ALL.to_vec()),
    ) {
        let kernel = Kernel::new(5, order);
        let mut ram = kernel.ram.clone();
        for (place, value) in damage {
            let at = (2 << 20) + place.index(0x2_0000 / 8) * 8;
            ram.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        if let Ok(mut guest) = Guest::attach(Arc::new(ram)) {
            ask_everything(&mut guest, kernel.at.ring_gpa);
        }
    }
}

/// Words that hurt: pointers into the structures, small numbers, all ones, anything.
fn damaged_word() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0_u64..0x4000).prop_map(|offset| 0xffff_8881_0001_0000 + (offset & !7)),
        0_u64..64,
        Just(u64::MAX),
        Just(0xffff_ffff_8100_0000),
        any::<u64>(),
    ]
}
