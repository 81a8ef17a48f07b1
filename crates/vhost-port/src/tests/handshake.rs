// SPDX-License-Identifier: Apache-2.0
//! Connections: made, broken at any point, made again.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Instant;

use model::SocketMode;
use platform::{EventFd, Poller, Trigger};

use super::driver::{Guest, MEMORY_BYTES, frame, linux, without};
use super::frontend::{
    Frontend, GET_FEATURES, PollThread, RESET_OWNER, SET_FEATURES, SET_LOG_BASE, SET_MEM_TABLE, SET_OWNER,
    SET_PROTOCOL_FEATURES, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ENABLE, SET_VRING_ERR,
    SET_VRING_KICK, SET_VRING_NUM, SOON, Scratch, mem_table, open_at, ring_address, state, steps,
};
use crate::control::PortControl;
use crate::endpoint::OpenError;
use crate::failure::SessionError;
use crate::features::Features;
use crate::memory::MapError;
use crate::port::PortEvent;

/// A listening port with a poll thread.
fn listen(name: &str) -> (Scratch, PortControl, PollThread) {
    let scratch = Scratch::new(name);
    let waker = Arc::new(EventFd::new().unwrap());
    let (port, control) = open_at(&scratch.socket(), SocketMode::Listen, &waker).unwrap();
    let poll = PollThread::spawn(waker, vec![port]);
    (scratch, control, poll)
}

/// Waits until the guest is called.
fn await_call(called: &EventFd) {
    let mut poller = Poller::new().unwrap();
    poller.add(called, 0, Trigger::Level).unwrap();
    assert_eq!(poller.wait(Some(SOON)).unwrap().count(), 1, "a call comes soon");
    called.drain();
}

fn await_frames(guest: &mut Guest, count: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    loop {
        guest.want_call(false);
        frames.extend(guest.received());
        if frames.len() >= count {
            return frames;
        }
        await_call(&guest.receive.called);
    }
}

#[test]
fn handshake_in_qemus_order_starts_the_port() {
    let (scratch, control, poll) = listen("order");
    let guest = Guest::new(64, linux());
    let vmm = Frontend::connect(&scratch.socket());
    vmm.handshake(&guest);
    let (_, event) = poll.next();
    let PortEvent::Started { pair: 0, memory, transmit, receive, features } = event else {
        panic!("{event:?}")
    };
    assert_eq!(memory.size_bytes(), MEMORY_BYTES);
    assert_eq!((transmit, receive), (guest.transmit.addresses, guest.receive.addresses));
    assert_eq!(features, guest.features);
    let status = control.status();
    assert!(status.connected && status.running && status.memory_sealed);
    assert_eq!((status.sessions, status.memory_bytes), (1, MEMORY_BYTES));
    drop(vmm);
    poll.disconnected();
}

#[test]
fn disconnecting_after_any_message_leaves_the_port_ready() {
    let (scratch, control, poll) = listen("after-any");
    let guest = Guest::new(64, linux());
    for count in 0..=steps().len() {
        let vmm = Frontend::connect(&scratch.socket());
        for step in steps().iter().take(count) {
            step(&vmm, &guest);
        }
        drop(vmm);
        poll.disconnected();
    }
    let vmm = Frontend::connect(&scratch.socket());
    vmm.handshake(&guest);
    poll.started();
    assert!(control.status().last_error.is_none(), "leaving is no error");
}

#[test]
fn disconnecting_in_the_middle_of_a_message_leaves_the_port_ready() {
    let (scratch, _control, poll) = listen("middle");
    let guest = Guest::new(64, linux());
    let message: Vec<u8> = [18_u32, 1, 8, 0, 1].iter().flat_map(|word| word.to_ne_bytes()).collect();
    for len in 1..message.len() {
        let mut stream = UnixStream::connect(scratch.socket()).unwrap();
        stream.write_all(&message[..len]).unwrap();
        drop(stream);
        poll.disconnected();
        if len % 5 == 0 {
            let vmm = Frontend::connect(&scratch.socket());
            vmm.handshake(&guest);
            poll.started();
            drop(vmm);
            poll.disconnected();
        }
    }
}

#[test]
fn reconnecting_resumes_at_the_guests_used_index_whatever_the_vmm_says() {
    let scratch = Scratch::new("resume");
    let waker = Arc::new(EventFd::new().unwrap());
    let (a, _control_a) = open_at(&scratch.0.join("a"), SocketMode::Listen, &waker).unwrap();
    let (b, _control_b) = open_at(&scratch.0.join("b"), SocketMode::Listen, &waker).unwrap();
    let poll = PollThread::spawn(waker, vec![a, b]);
    let (mut one, mut two) = (Guest::new(8, linux()), Guest::new(8, linux()));
    one.begin_at(65_530);
    two.begin_at(9);
    let vmm_two = Frontend::connect(&scratch.0.join("b"));
    vmm_two.handshake(&two);
    poll.started();
    for round in 0..4 {
        let vmm_one = Frontend::connect(&scratch.0.join("a"));
        vmm_one.handshake(&one);
        poll.started();
        for slot in 0..8 {
            two.post(slot, 2048);
        }
        for slot in 0..8 {
            one.transmit(slot, &[&frame(300, round + usize::from(slot))]);
        }
        let frames = await_frames(&mut two, 8);
        for (slot, received) in frames.iter().enumerate() {
            assert_eq!(received[12..], frame(300, round + slot)[12..]);
        }
        one.want_call(true);
        while one.transmit.seen != one.transmit.available {
            one.collect(true);
        }
        drop(vmm_one);
        poll.disconnected();
    }
}

#[test]
fn super_frames_cross_two_sockets_in_both_modes() {
    let scratch = Scratch::new("modes");
    let waker = Arc::new(EventFd::new().unwrap());
    let vmm_listens = UnixListener::bind(scratch.0.join("b")).unwrap();
    let (a, _control_a) = open_at(&scratch.0.join("a"), SocketMode::Listen, &waker).unwrap();
    let (b, _control_b) = open_at(&scratch.0.join("b"), SocketMode::Connect, &waker).unwrap();
    let poll = PollThread::spawn(waker, vec![a, b]);
    let (mut one, mut two) = (Guest::new(256, linux()), Guest::new(64, linux()));
    let vmm_one = Frontend::connect(&scratch.0.join("a"));
    vmm_one.handshake(&one);
    poll.started();
    let vmm_two = Frontend::new(vmm_listens.accept().unwrap().0);
    vmm_two.handshake(&two);
    poll.started();

    let mut whole = frame(65_549, 4);
    whole[..6].copy_from_slice(&[1, 1, 66, 0, 0xa8, 5]);
    let parts: Vec<&[u8]> = whole.chunks(5000).collect();
    for slot in 0..64 {
        two.post(slot, 1526);
    }
    one.transmit(0, &parts);
    assert_eq!(await_frames(&mut two, 1)[0][12..], whole[12..]);
    for slot in 0..64 {
        one.post(slot, 1526);
    }
    two.transmit(16, &parts);
    assert_eq!(await_frames(&mut one, 1)[0][12..], whole[12..]);
}

#[test]
fn a_port_connects_as_soon_as_its_vmm_listens_and_again_when_it_is_back() {
    let scratch = Scratch::new("retry");
    let waker = Arc::new(EventFd::new().unwrap());
    let (port, control) = open_at(&scratch.socket(), SocketMode::Connect, &waker).unwrap();
    let poll = PollThread::spawn(waker, vec![port]);
    let guest = Guest::new(64, linux());
    for _ in 0..2 {
        let listener = UnixListener::bind(scratch.socket()).unwrap();
        let vmm = Frontend::new(listener.accept().unwrap().0);
        vmm.handshake(&guest);
        poll.started();
        assert!(control.status().last_error.is_none(), "waiting is over");
        drop((listener, vmm));
        std::fs::remove_file(scratch.socket()).unwrap();
        poll.disconnected();
    }
    assert_eq!(control.status().sessions, 2);
}

#[test]
fn get_vring_base_stops_the_device_and_a_kick_starts_it_again() {
    let (scratch, control, poll) = listen("base");
    let mut guest = Guest::new(64, linux());
    guest.begin_at(500);
    let vmm = Frontend::connect(&scratch.socket());
    vmm.handshake(&guest);
    poll.started();
    assert_eq!(vmm.get_vring_base(0), 500);
    assert!(matches!(poll.next().1, PortEvent::Stopped { .. }));
    assert!(!control.status().running);
    assert_eq!(vmm.get_vring_base(1), 500);
    let kick = EventFd::new().unwrap();
    assert_eq!(vmm.ask(SET_VRING_KICK, &0_u64.to_ne_bytes(), &[kick.as_fd()]), 0);
    assert_eq!(vmm.ask(SET_VRING_KICK, &(1_u64 | 0x100).to_ne_bytes(), &[]), 0);
    poll.started();

    // Disabling stops as well, and so does everything that changes a ring or memory.
    assert_eq!(vmm.ask(SET_VRING_ENABLE, &state(0, 0), &[]), 0);
    assert!(matches!(poll.next().1, PortEvent::Stopped { .. }));
    assert_eq!(vmm.ask(SET_VRING_ENABLE, &state(0, 1), &[]), 0);
    poll.started();
    assert_eq!(vmm.ask(SET_VRING_NUM, &state(1, 32), &[]), 0);
    assert!(matches!(poll.next().1, PortEvent::Stopped { .. }));
    poll.started();
    assert_eq!(vmm.ask(SET_VRING_ADDR, &ring_address(1, &guest.transmit), &[]), 0);
    assert!(matches!(poll.next().1, PortEvent::Stopped { .. }));
    poll.started();
    assert_eq!(vmm.ask(SET_MEM_TABLE, &mem_table(MEMORY_BYTES), &[guest.file.as_fd()]), 0);
    assert!(matches!(poll.next().1, PortEvent::Stopped { .. }));
    poll.started();
    assert_eq!(vmm.ask(RESET_OWNER, &[], &[]), 0);
    assert!(matches!(poll.next().1, PortEvent::Stopped { .. }));
    assert_eq!(vmm.ask(SET_VRING_ERR, &0x100_u64.to_ne_bytes(), &[]), 0);
}

#[test]
fn a_call_descriptor_that_changes_is_used_without_a_stop() {
    let (scratch, _control, poll) = listen("call");
    let guest = Guest::new(64, linux());
    let vmm = Frontend::connect(&scratch.socket());
    vmm.handshake(&guest);
    poll.started();
    let fresh = EventFd::new().unwrap();
    assert_eq!(vmm.ask(SET_VRING_CALL, &1_u64.to_ne_bytes(), &[fresh.as_fd()]), 0);
    await_call(&fresh);
    assert!(poll.events.try_recv().is_err());
}

#[test]
fn messages_against_the_rules_end_the_connection_and_nothing_else() {
    type Break = fn(&Frontend, &Guest);
    let breaks: [Break; 12] = [
        |vmm, _| vmm.send(SET_FEATURES, &(1_u64 << 27).to_ne_bytes(), &[]),
        |vmm, _| vmm.send(SET_VRING_NUM, &state(16, 64), &[]),
        |vmm, _| vmm.send(SET_VRING_NUM, &state(0, 63), &[]),
        |vmm, _| vmm.send(SET_VRING_NUM, &state(0, 65_536), &[]),
        |vmm, _| vmm.send(SET_VRING_ENABLE, &state(17, 1), &[]),
        |vmm, _| vmm.send(SET_VRING_ENABLE, &state(0, 2), &[]),
        |vmm, _| vmm.send(SET_VRING_BASE, &state(19, 0), &[]),
        |vmm, _| vmm.send(SET_LOG_BASE, &[0; 16], &[]),
        |vmm, _| vmm.send(4711, &[], &[]),
        |vmm, _| vmm.send(SET_OWNER, &[0; 8], &[]),
        |vmm, guest| vmm.set_mem_table(guest, MEMORY_BYTES + 4096),
        |vmm, _| vmm.send(SET_VRING_CALL, &0_u64.to_ne_bytes(), &[]),
    ];
    let (scratch, control, poll) = listen("breaks");
    let guest = Guest::new(64, linux());
    for (index, break_rules) in breaks.into_iter().enumerate() {
        let vmm = Frontend::connect(&scratch.socket());
        break_rules(&vmm, &guest);
        assert!(vmm.is_hung_up(), "message {index}");
        poll.disconnected();
        assert!(control.status().last_error.is_some());
    }
    Frontend::connect(&scratch.socket()).handshake(&guest);
    poll.started();
}

#[test]
fn refused_memory_and_drivers_are_named() {
    let (scratch, control, poll) = listen("named");
    let guest = Guest::new(64, linux());
    let vmm = Frontend::connect(&scratch.socket());
    vmm.set_mem_table(&guest, MEMORY_BYTES + 4096);
    assert!(vmm.is_hung_up());
    poll.disconnected();
    let error = control.status().last_error.unwrap();
    assert!(matches!(*error, SessionError::Memory(MapError::BeyondFile { .. })), "{error:?}");

    let legacy = Guest::new(64, without(linux(), Features::VERSION_1));
    let vmm = Frontend::connect(&scratch.socket());
    vmm.handshake(&legacy);
    assert!(!control.status().running);
    assert!(matches!(*control.status().last_error.unwrap(), SessionError::Legacy));

    let mut misplaced = Guest::new(64, linux());
    misplaced.transmit.addresses.used = MEMORY_BYTES - 8;
    drop(vmm);
    poll.disconnected();
    let vmm = Frontend::connect(&scratch.socket());
    vmm.handshake(&misplaced);
    assert!(matches!(*control.status().last_error.unwrap(), SessionError::Layout { ring: 1, .. }));
    assert!(poll.events.try_recv().is_err());
}

#[test]
fn without_protocol_features_rings_are_enabled_from_the_start() {
    let (scratch, _control, poll) = listen("plain");
    let guest = Guest::new(64, without(linux(), Features::PROTOCOL_FEATURES));
    let vmm = Frontend::connect(&scratch.socket());
    vmm.get_u64(GET_FEATURES);
    for (index, step) in steps().iter().enumerate() {
        // All but protocol features and enabling; their acknowledgements were not negotiated either.
        if index > 5 && ![12, 17].contains(&index) {
            step(&vmm, &guest);
        }
    }
    poll.started();
    vmm.send(SET_PROTOCOL_FEATURES, &0_u64.to_ne_bytes(), &[]);
}

#[test]
fn a_second_vmm_is_refused_at_once_and_the_first_stays() {
    let (scratch, control, poll) = listen("second");
    let guest = Guest::new(64, linux());
    let vmm = Frontend::connect(&scratch.socket());
    vmm.handshake(&guest);
    poll.started();
    assert!(Frontend::connect(&scratch.socket()).is_hung_up());
    assert!(control.status().running);
    assert_eq!(vmm.get_vring_base(0), 0);
}

#[test]
fn only_sockets_without_a_listener_are_replaced_and_ours_is_removed() {
    let scratch = Scratch::new("stale");
    let path = scratch.socket();
    let waker = Arc::new(EventFd::new().unwrap());
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let (port, control) = open_at(&path, SocketMode::Listen, &waker).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    assert!(matches!(open_at(&path, SocketMode::Listen, &waker), Err(OpenError::InUse { .. })));
    drop((port, control));
    assert!(!path.exists());

    std::fs::write(&path, "not a socket").unwrap();
    assert!(matches!(open_at(&path, SocketMode::Listen, &waker), Err(OpenError::NotASocket { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"not a socket");
    let nowhere = scratch.0.join("missing/port.sock");
    assert!(matches!(open_at(&nowhere, SocketMode::Listen, &waker), Err(OpenError::Bind { .. })));
}

#[test]
fn a_port_closes_promptly_in_the_middle_of_a_message() {
    let (scratch, control, poll) = listen("close");
    let mut stream = UnixStream::connect(scratch.socket()).unwrap();
    stream.write_all(&[1, 0, 0]).unwrap();
    let vmm = Frontend::new(stream);
    // The thread may or may not have begun to read; both must end.
    let began = Instant::now();
    drop(control);
    assert!(began.elapsed() < SOON);
    assert!(vmm.is_hung_up());
    drop(poll);
}

#[test]
fn a_vmm_is_let_go_when_nobody_polls() {
    let scratch = Scratch::new("stalled");
    let waker = Arc::new(EventFd::new().unwrap());
    let (port, control) = open_at(&scratch.socket(), SocketMode::Listen, &waker).unwrap();
    let guest = Guest::new(64, linux());
    let vmm = Frontend::connect(&scratch.socket());
    for step in steps().iter().take(17) {
        step(&vmm, &guest);
    }
    assert!(waker_fires(&waker));
    assert!(vmm.is_hung_up());
    assert!(control.status().last_error.is_some());
    drop(port);
    let vmm = Frontend::connect(&scratch.socket());
    assert!(!control.status().running);
    drop((vmm, control));
}

fn waker_fires(waker: &EventFd) -> bool {
    let mut poller = Poller::new().unwrap();
    poller.add(waker, 0, Trigger::Level).unwrap();
    poller.wait(Some(SOON)).unwrap().count() == 1
}
