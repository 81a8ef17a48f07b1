// SPDX-License-Identifier: Apache-2.0
//! A VMM's end of the protocol, written from the specification, and a poll thread to serve it.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use model::SocketMode;
use platform::{EventFd, Poller, Trigger};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::driver::{DriverRing, Guest, MEMORY_BYTES, VMM_BASE};
use crate::batch::Batch;
use crate::control::{PortConfig, PortControl, open};
use crate::endpoint::OpenError;
use crate::port::{Port, PortEvent};

/// Longer than anything here takes on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) const GET_FEATURES: u32 = 1;
pub(crate) const SET_FEATURES: u32 = 2;
pub(crate) const SET_OWNER: u32 = 3;
pub(crate) const RESET_OWNER: u32 = 4;
pub(crate) const SET_MEM_TABLE: u32 = 5;
pub(crate) const SET_LOG_BASE: u32 = 6;
pub(crate) const SET_VRING_NUM: u32 = 8;
pub(crate) const SET_VRING_ADDR: u32 = 9;
pub(crate) const SET_VRING_BASE: u32 = 10;
pub(crate) const GET_VRING_BASE: u32 = 11;
pub(crate) const SET_VRING_KICK: u32 = 12;
pub(crate) const SET_VRING_CALL: u32 = 13;
pub(crate) const SET_VRING_ERR: u32 = 14;
pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
pub(crate) const SET_VRING_ENABLE: u32 = 18;

/// Protocol feature: every message may ask for an answer.
pub(crate) const REPLY_ACK: u64 = 1 << 3;
/// Protocol feature: more than one queue pair.
pub(crate) const MQ: u64 = 1;
/// Protocol feature: the dirty log is shared memory.
pub(crate) const LOG_SHMFD: u64 = 1 << 1;
const NEED_REPLY: u32 = 1 << 3;

pub(crate) struct Frontend {
    pub(crate) stream: UnixStream,
}

impl Frontend {
    pub(crate) fn connect(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).unwrap())
    }

    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self { stream }
    }

    fn send_flagged(&self, request: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut message = Vec::new();
        for word in [request, 1 | flags, body.len() as u32] {
            message.extend(word.to_ne_bytes());
        }
        message.extend(body);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        }
        // A backend that has hung up is what some tests are about.
        let _ = sendmsg(&self.stream, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL);
    }

    pub(crate) fn send(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.send_flagged(request, 0, body, fds);
    }

    /// Sends, and returns the acknowledgement's value.
    pub(crate) fn ask(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> u64 {
        self.send_flagged(request, NEED_REPLY, body, fds);
        self.reply_u64(request)
    }

    pub(crate) fn reply(&self, request: u32) -> Vec<u8> {
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4)), (request, 1 | 1 << 2));
        let mut body = vec![0; word(8) as usize];
        (&self.stream).read_exact(&mut body).unwrap();
        body
    }

    pub(crate) fn reply_u64(&self, request: u32) -> u64 {
        u64::from_ne_bytes(self.reply(request).try_into().unwrap())
    }

    pub(crate) fn get_u64(&self, request: u32) -> u64 {
        self.send(request, &[], &[]);
        self.reply_u64(request)
    }

    /// Whether the backend has hung up, or does so soon.
    pub(crate) fn is_hung_up(&self) -> bool {
        let mut byte = [0];
        match (&self.stream).read(&mut byte) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    pub(crate) fn set_mem_table(&self, guest: &Guest, size_bytes: u64) {
        self.send(SET_MEM_TABLE, &mem_table(size_bytes), &[guest.file.as_fd()]);
    }

    /// Stops a ring; returns its index.
    pub(crate) fn get_vring_base(&self, ring: u32) -> u32 {
        self.send(GET_VRING_BASE, &state(ring, 0), &[]);
        let reply = self.reply(GET_VRING_BASE);
        u32::from_ne_bytes(reply[4..8].try_into().unwrap())
    }

    pub(crate) fn handshake(&self, guest: &Guest) {
        for step in steps() {
            step(self, guest);
        }
    }
}

pub(crate) fn mem_table(size_bytes: u64) -> Vec<u8> {
    let mut body = vec![1, 0, 0, 0, 0, 0, 0, 0];
    for word in [0, size_bytes, VMM_BASE, 0] {
        body.extend(word.to_ne_bytes());
    }
    body
}

pub(crate) fn state(ring: u32, value: u32) -> Vec<u8> {
    [ring.to_ne_bytes(), value.to_ne_bytes()].concat()
}

pub(crate) fn ring_address(ring: u32, driver: &DriverRing) -> Vec<u8> {
    let place = driver.addresses;
    let mut body = state(ring, 0);
    for gpa in [place.descriptors, place.used, place.available] {
        body.extend((VMM_BASE + gpa).to_ne_bytes());
    }
    body.extend([0; 8]);
    body
}

type Step = Box<dyn Fn(&Frontend, &Guest)>;

/// The handshake in QEMU's order, message by message.
pub(crate) fn steps() -> Vec<Step> {
    let mut steps: Vec<Step> = vec![
        Box::new(|vmm, guest| {
            let offered = vmm.get_u64(GET_FEATURES);
            assert_eq!(offered & guest.features.0, guest.features.0);
        }),
        Box::new(|vmm, _| assert_eq!(vmm.get_u64(GET_PROTOCOL_FEATURES), REPLY_ACK | MQ | LOG_SHMFD)),
        Box::new(|vmm, _| vmm.send(SET_PROTOCOL_FEATURES, &(REPLY_ACK | MQ | LOG_SHMFD).to_ne_bytes(), &[])),
        Box::new(|vmm, _| vmm.send(SET_OWNER, &[], &[])),
        Box::new(|vmm, _| assert_eq!(vmm.ask(SET_VRING_ENABLE, &state(0, 1), &[]), 0)),
        Box::new(|vmm, _| assert_eq!(vmm.ask(SET_VRING_ENABLE, &state(1, 1), &[]), 0)),
        Box::new(|vmm, guest| vmm.send(SET_FEATURES, &guest.features.0.to_ne_bytes(), &[])),
        Box::new(|vmm, guest| vmm.set_mem_table(guest, MEMORY_BYTES)),
    ];
    for index in 0..2 {
        steps.push(Box::new(move |vmm, guest| {
            vmm.send(SET_VRING_NUM, &state(index, ring(guest, index).addresses.size.into()), &[]);
        }));
        steps.push(Box::new(move |vmm, _| vmm.send(SET_VRING_BASE, &state(index, 4711), &[])));
        steps.push(Box::new(move |vmm, guest| {
            vmm.send(SET_VRING_ADDR, &ring_address(index, ring(guest, index)), &[]);
        }));
        steps.push(Box::new(move |vmm, guest| {
            let kick = ring(guest, index).kick.as_fd();
            vmm.send(SET_VRING_KICK, &u64::from(index).to_ne_bytes(), &[kick]);
        }));
        steps.push(Box::new(move |vmm, guest| {
            let call = ring(guest, index).call.as_fd();
            assert_eq!(vmm.ask(SET_VRING_CALL, &u64::from(index).to_ne_bytes(), &[call]), 0);
        }));
    }
    steps
}

fn ring(guest: &Guest, index: u32) -> &DriverRing {
    if index == 0 { &guest.receive } else { &guest.transmit }
}

/// A directory for sockets, removed at the end.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vhost-port-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("port.sock")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn open_at(
    socket: &Path,
    mode: SocketMode,
    waker: &Arc<EventFd>,
) -> Result<(Port, PortControl), OpenError> {
    let config =
        PortConfig { name: "test".into(), socket: socket.into(), mode, offloads: true, journal: None };
    open(config, Arc::clone(waker))
}

/// A thread that serves ports and carries frames between the first two, if there are two.
pub(crate) struct PollThread {
    pub(crate) events: Receiver<(usize, PortEvent)>,
    stop: Arc<AtomicBool>,
    waker: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl PollThread {
    pub(crate) fn spawn(waker: Arc<EventFd>, ports: Vec<Port>) -> Self {
        let (sender, events) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, theirs_waker) = (Arc::clone(&stop), Arc::clone(&waker));
        let thread = std::thread::spawn(move || poll(ports, &theirs_waker, &theirs, &sender));
        Self { events, stop, waker, thread: Some(thread) }
    }

    pub(crate) fn next(&self) -> (usize, PortEvent) {
        self.events.recv_timeout(SOON).expect("an event comes soon")
    }

    pub(crate) fn started(&self) {
        assert!(matches!(self.next().1, PortEvent::Started { .. }));
    }

    /// A pair is stopped and started again.
    pub(crate) fn restarted(&self) {
        assert!(matches!(self.next().1, PortEvent::Stopped { .. }));
        self.started();
    }

    /// Passes over everything until a VMM is gone.
    pub(crate) fn disconnected(&self) {
        while !matches!(self.next().1, PortEvent::Disconnected) {}
    }
}

impl Drop for PollThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.waker.signal();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

fn poll(mut ports: Vec<Port>, waker: &EventFd, stop: &AtomicBool, events: &Sender<(usize, PortEvent)>) {
    let mut poller = Poller::new().unwrap();
    poller.add(waker, 99, Trigger::Level).unwrap();
    let mut batch = Batch::new();
    while !stop.load(Ordering::Acquire) {
        for (index, port) in ports.iter_mut().enumerate() {
            while let Some(event) = port.service() {
                // The test may have ended.
                let _ = events.send((index, event));
            }
        }
        if let [a, b] = &mut ports[..] {
            carry(a, b, &mut batch);
            carry(b, a, &mut batch);
        }
        if poller.wait(Some(Duration::from_millis(1))).unwrap().count() > 0 {
            waker.drain();
        }
    }
}

fn carry(from: &mut Port, to: &mut Port, batch: &mut Batch) {
    let count = from.receive(0, batch).unwrap_or(0);
    let mut head = [0; 128];
    for chain in batch.iter() {
        let len = chain.copy_out(0, &mut head);
        let rest = (len < chain.len_bytes()).then_some((chain, len));
        let _ = to.send(0, &head[..len], rest);
    }
    from.complete(0, count);
    from.flush();
    to.flush();
}
