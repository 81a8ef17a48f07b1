// SPDX-License-Identifier: Apache-2.0
//! A kernel whose symbol table cannot be found tells the same as one whose can.

use std::sync::Arc;
use std::time::Duration;

use model::Protocol;

use super::kernel::{Kernel, Virtio};
use super::symbols::SymbolOrder;
use super::{attach, connection, end};
use crate::memory::Gva;
use crate::{AttachError, Guest, Heartbeats};

fn hidden(levels: u8) -> Kernel {
    let mut kernel = Kernel::new(levels, SymbolOrder::OffsetsLast);
    kernel.hide_symbols();
    kernel
}

#[test]
fn kernel_without_symbols_tells_the_same() {
    for levels in [4, 5] {
        let named = Kernel::new(levels, SymbolOrder::OffsetsLast);
        let (mut with, mut without) = (attach(&named.ram), attach(&hidden(levels).ram));
        let (known, found) = (with.kernel().clone(), without.kernel().clone());
        assert_eq!((&found.release, &found.banner), (&known.release, &known.banner));
        assert_eq!((found.paging_levels, found.image_offset), (levels, known.image_offset));
        assert_eq!((found.symbols, found.types), (0, known.types));
        assert_eq!(without.processes(), with.processes());
        assert_eq!(without.sockets(), with.sockets());
        // Counters with a part for each processor are known as far as processors are.
        assert_eq!(without.socket_details(), with.socket_details());
        let ring = named.at.ring_gpa;
        assert_eq!(without.frame_owner(ring, 0), with.frame_owner(ring, 0));
        assert_eq!(connection(&mut without), connection(&mut with));
        let local = end("10.0.0.1:53");
        let listener = |guest: &mut Guest| guest.listener_owner(local, None, Protocol::Udp);
        assert_eq!(listener(&mut without), listener(&mut with));
        assert!(connection(&mut without).process.is_some());
    }
}

#[test]
fn first_task_that_does_not_run_has_no_address_space_but_the_first_process_has() {
    let mut kernel = hidden(4);
    kernel.put(kernel.at.first_space, 0, 0);
    assert_eq!(attach(&kernel.ram).processes().unwrap().len(), 2);
}

#[test]
fn nothing_is_a_threat_because_symbols_are_missing() {
    let mut guest = attach(&hidden(4).ram);
    for seconds in 0..10 {
        guest.inspect(Duration::from_secs(seconds)).unwrap();
    }
    assert_eq!(guest.threats(), []);
}

#[test]
fn first_task_that_does_not_fit_is_not_believed() {
    let kernel = hidden(4);
    for place in
        [kernel.at.first_parent, kernel.at.first_neighbour_back, kernel.find("init_top_pgt").at(511 * 8)]
    {
        let mut kernel = kernel.clone();
        let value = kernel.read(place);
        kernel.put(place, 0, value.wrapping_add(1 << 12));
        assert_eq!(Guest::attach(Arc::new(kernel.ram)).err(), Some(AttachError::NoSymbols), "{place:?}");
    }
    for symbol in ["linux_banner", "init_uts_ns", "__start_BTF"] {
        let mut kernel = kernel.clone();
        kernel.clear(symbol, 0x80);
        assert_eq!(Guest::attach(Arc::new(kernel.ram)).err(), Some(AttachError::NoSymbols), "{symbol}");
    }
}

#[test]
fn names_and_types_elsewhere_do_not_displace_the_first_task() {
    let mut kernel = hidden(4);
    let (types, room) = (usize::try_from(kernel.at.types_gpa).unwrap(), 0x4_0000);
    for at in (room..room + 0x1000).step_by(64) {
        kernel.ram.0[at..at + 10].copy_from_slice(b"swapper/0\0");
    }
    let copy = kernel.ram.0[types..types + 0x1000].to_vec();
    kernel.ram.0[room + 0x1000..room + 0x2000].copy_from_slice(&copy);
    assert_eq!(attach(&kernel.ram).processes().unwrap().len(), 2);
}

#[test]
fn kernel_with_untyped_rings_is_understood_without_symbols_too() {
    let mut kernel = Kernel::with_virtio(5, SymbolOrder::PlaceRelative, Virtio::Untyped);
    kernel.hide_symbols();
    let owner = attach(&kernel.ram).frame_owner(kernel.at.ring_gpa, 0);
    assert_eq!(owner.process.map(|process| process.pid), Some(7));
}

#[test]
fn of_two_first_tasks_the_one_that_is_switched_to_is_believed() {
    let mut kernel = hidden(4);
    // A second image, 2 MiB further, mapped by tables that lie in it: what a reset left.
    let twin = kernel.twin();
    let mut heartbeats = Heartbeats::default();
    let first = Guest::attach_again(Arc::new(kernel.ram.clone()), &mut heartbeats);
    assert_eq!(first.err(), Some(AttachError::Ambiguous));
    let switches = kernel.at.first_switches;
    kernel.put(Gva(switches.0 + twin), 0, 1);
    let second = Guest::attach_again(Arc::new(kernel.ram.clone()), &mut heartbeats);
    assert!(second.is_ok(), "{:?}", second.err());
}
