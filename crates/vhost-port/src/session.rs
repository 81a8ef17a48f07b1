// SPDX-License-Identifier: Apache-2.0
//! One VMM's connection: what it said so far, and whether that makes a running device.
//!
//! The rules (vhost-user specification, "Ring states"): a ring is started by its kick descriptor and stopped by
//! `GET_VRING_BASE`; it is enabled from the start unless protocol features were negotiated, then by
//! `SET_VRING_ENABLE`. A queue pair runs while both its rings are started and enabled. Every message that touches a running
//! pair stops it first, waits for the poll thread to let go, and starts it again if it still can.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error as ProtocolError, GpuBackend, Result as ProtocolResult, VhostUserBackendReqHandlerMut,
};

use crate::device::Rings;
use crate::failure::SessionError;
use crate::features::Features;
use crate::link::{Command, Link, Start};
use crate::log::{DirtyLog, Marks};
use crate::memory::{GuestMemory, RegionRequest};
use crate::pair::{Bases, PAIRS_MAX, RECEIVE, RINGS, TRANSMIT};
use crate::ring::{Call, Journal, LayoutError, Packed, RING_SIZE_MAX, RingAddresses, Split};
use crate::shared::Shared;

#[derive(Debug, Default)]
struct RingSetup {
    size: u32,
    /// The VMM's addresses of descriptor table, available and used area.
    addresses: Option<[u64; 3]>,
    kick: Option<Kick>,
    call: Option<OwnedFd>,
    enabled: bool,
    /// Where the VMM says the ring stands, or where it stood when it was last stopped.
    base: u32,
}

/// A started ring's way of telling us.
#[derive(Debug)]
enum Kick {
    Descriptor(OwnedFd),
    /// The VMM wants the ring polled.
    Polled,
}

/// What is the same for all of a port's connections.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) offered: Features,
    /// Where packed rings' positions are written down; each ring's file has its number as an extension.
    pub(crate) journal: Option<PathBuf>,
}

impl Terms {
    fn journal(&self, ring: usize) -> Option<PathBuf> {
        self.journal.as_ref().map(|path| path.with_added_extension(ring.to_string()))
    }
}

#[derive(Debug)]
pub(crate) struct Session {
    link: Arc<Link>,
    shared: Arc<Shared>,
    terms: Arc<Terms>,
    features: Option<Features>,
    memory: Option<Arc<GuestMemory>>,
    /// Where pages that we write are marked, while the guest is being moved elsewhere.
    log: Option<Arc<DirtyLog>>,
    rings: [RingSetup; PAIRS_MAX * RINGS],
    /// Pairs that run.
    running: [bool; PAIRS_MAX],
    replies: bool,
    refusal: Option<SessionError>,
}

impl Session {
    pub(crate) fn new(link: Arc<Link>, shared: Arc<Shared>, terms: Arc<Terms>) -> Self {
        Self {
            link,
            shared,
            terms,
            features: None,
            memory: None,
            log: None,
            rings: Default::default(),
            running: [false; PAIRS_MAX],
            replies: false,
            refusal: None,
        }
    }

    /// Whether messages that ask for it are to be answered (`REPLY_ACK`).
    pub(crate) fn replies(&self) -> bool {
        self.replies
    }

    /// Why the message that just failed was refused, if it was this session that did.
    pub(crate) fn take_refusal(&mut self) -> Option<SessionError> {
        self.refusal.take()
    }

    /// Fails a message; the connection ends with it.
    fn refuse(&mut self, error: impl Into<SessionError>) -> ProtocolError {
        self.refusal = Some(error.into());
        ProtocolError::InvalidParam
    }

    /// Has the poll thread do something.
    fn tell(&mut self, command: Command) -> ProtocolResult<Bases> {
        self.link.send(command).map_err(|stalled| self.refuse(stalled))
    }

    fn ring(&mut self, index: u32) -> ProtocolResult<&mut RingSetup> {
        self.rings.get_mut(index as usize).ok_or(ProtocolError::InvalidParam)
    }

    /// Stops the pair that a ring belongs to, if it runs.
    fn halt(&mut self, ring: u32) -> ProtocolResult<()> {
        let pair = ring as usize / RINGS;
        if !std::mem::take(&mut self.running[pair]) {
            return Ok(());
        }
        let running = self.running.contains(&true);
        self.shared.update(|status| status.running = running);
        let bases = self.tell(Command::Stop { pair })?;
        for (ring, base) in self.rings[pair * RINGS..].iter_mut().zip(bases) {
            ring.base = base;
        }
        Ok(())
    }

    /// Stops all pairs.
    fn halt_all(&mut self) -> ProtocolResult<()> {
        (0..PAIRS_MAX).try_for_each(|pair| self.halt((pair * RINGS) as u32))
    }

    /// Starts all pairs that can and do not run.
    fn settle(&mut self) -> ProtocolResult<()> {
        let (Some(memory), Some(features)) = (self.memory.clone(), self.features) else { return Ok(()) };
        for pair in 0..PAIRS_MAX {
            let rings = &self.rings[pair * RINGS..][..RINGS];
            if self.running[pair] || !rings.iter().all(RingSetup::is_ready) {
                continue;
            }
            if !features.has(Features::VERSION_1) {
                self.shared.note_error(SessionError::Legacy);
                return Ok(());
            }
            let start = match self.prepare(pair, &memory, features) {
                Ok(start) => start,
                Err(error) => {
                    // Not the VMM's fault as a rule: a guest can put its rings anywhere. It may do better next time.
                    self.shared.note_error(error);
                    continue;
                }
            };
            self.tell(Command::Start(Box::new(start)))?;
            self.running[pair] = true;
            self.shared.update(|status| {
                status.running = true;
                status.features = features;
            });
        }
        Ok(())
    }

    fn prepare(
        &self,
        pair: usize,
        memory: &Arc<GuestMemory>,
        features: Features,
    ) -> Result<Start, SessionError> {
        let mut addresses = [RingAddresses::default(); RINGS];
        let first = pair * RINGS;
        for (index, address) in addresses.iter_mut().enumerate() {
            let place = self.rings[first + index].place(memory);
            *address = place.map_err(|source| SessionError::Layout { ring: first + index, source })?;
        }
        let rings = if features.has(Features::RING_PACKED) {
            let open = |ring| self.open_packed(first + ring, addresses[ring], memory, features);
            Rings::Packed([open(RECEIVE)?, open(TRANSMIT)?])
        } else {
            let open = |ring: usize| {
                let event_index = features.has(Features::EVENT_IDX);
                Split::new(addresses[ring], memory, event_index, self.rings[first + ring].call())
                    .map_err(|source| SessionError::Layout { ring: first + ring, source })
            };
            Rings::Split([open(RECEIVE)?, open(TRANSMIT)?])
        };
        let kick = match &self.rings[first + TRANSMIT].kick {
            Some(Kick::Descriptor(kick)) => kick.try_clone().ok(),
            Some(Kick::Polled) | None => None,
        };
        let log = self.log.as_ref().filter(|_| features.has(Features::LOG_ALL));
        let marks = log.map(|log| Marks::new(log, memory, &addresses, features.has(Features::RING_PACKED)));
        Ok(Start { pair, rings, addresses, kick, memory: Arc::clone(memory), features, marks })
    }

    fn open_packed(
        &self,
        ring: usize,
        addresses: RingAddresses,
        memory: &Arc<GuestMemory>,
        features: Features,
    ) -> Result<Packed, SessionError> {
        let journal = Journal::open(self.terms.journal(ring).as_deref());
        let journal = journal.map_err(|source| SessionError::Journal { ring, source })?;
        let setup = &self.rings[ring];
        Packed::new(addresses, memory, features.has(Features::EVENT_IDX), setup.call(), setup.base, journal)
            .map_err(|source| SessionError::Layout { ring, source })
    }

    /// From now on the VMM's word is what counts.
    fn forget_position(&self, ring: usize) {
        if let Some(path) = self.terms.journal(ring) {
            Journal::discard(&path);
        }
    }

    /// Forgets everything that was said about the device.
    fn reset(&mut self) -> ProtocolResult<()> {
        self.halt_all()?;
        self.features = None;
        self.rings = Default::default();
        (0..self.rings.len()).for_each(|ring| self.forget_position(ring));
        Ok(())
    }
}

impl RingSetup {
    fn is_ready(&self) -> bool {
        self.enabled && self.size != 0 && self.addresses.is_some() && self.kick.is_some()
    }

    /// Another handle of its way to notify.
    fn call(&self) -> Call {
        Call::new(self.call.as_ref().and_then(|call| call.try_clone().ok()))
    }

    /// Guest addresses of a ring that is ready.
    fn place(&self, memory: &GuestMemory) -> Result<RingAddresses, LayoutError> {
        let size = u16::try_from(self.size).map_err(|_| LayoutError::Size(self.size))?;
        let addresses = self.addresses.unwrap_or_default();
        let gpa = |address: u64| memory.gpa_of(address).ok_or(LayoutError::Place(address));
        Ok(RingAddresses {
            size,
            descriptors: gpa(addresses[0])?,
            available: gpa(addresses[1])?,
            used: gpa(addresses[2])?,
        })
    }
}

/// Takes an event descriptor; writing to it must never block the poll thread.
fn nonblocking(file: File) -> ProtocolResult<OwnedFd> {
    let fd = OwnedFd::from(file);
    let flags = fcntl_getfl(&fd).map_err(|errno| ProtocolError::ReqHandlerError(errno.into()))?;
    let set = fcntl_setfl(&fd, flags | OFlags::NONBLOCK);
    set.map_err(|errno| ProtocolError::ReqHandlerError(errno.into()))?;
    Ok(fd)
}

/// The answer to messages of features that were not offered.
fn not_offered<T>(what: &'static str) -> ProtocolResult<T> {
    Err(ProtocolError::InvalidOperation(what))
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> ProtocolResult<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> ProtocolResult<()> {
        self.reset()
    }

    fn reset_device(&mut self) -> ProtocolResult<()> {
        self.reset()
    }

    fn get_features(&mut self) -> ProtocolResult<u64> {
        Ok(self.terms.offered.0)
    }

    fn set_features(&mut self, features: u64) -> ProtocolResult<()> {
        if !self.terms.offered.has(Features(features)) {
            return Err(self.refuse(SessionError::Features(features & !self.terms.offered.0)));
        }
        let features = Features(features);
        if self.features == Some(features) {
            return Ok(());
        }
        self.halt_all()?;
        self.features = Some(features);
        if !features.has(Features::LOG_ALL) {
            self.log = None;
        }
        if !features.has(Features::PROTOCOL_FEATURES) {
            self.rings.iter_mut().for_each(|ring| ring.enabled = true);
        }
        self.settle()
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> ProtocolResult<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.halt_all()?;
        self.memory = None;
        let requests = regions.iter().zip(files).map(|(region, file)| RegionRequest {
            gpa: region.guest_phys_addr,
            size_bytes: region.memory_size,
            vmm_address: region.user_addr,
            file_offset: region.mmap_offset,
            file,
        });
        let memory = GuestMemory::map(requests.collect());
        let memory = memory.map_err(|error| self.refuse(SessionError::Memory(error)))?;
        self.shared.update(|status| {
            status.memory_bytes = memory.size_bytes();
            status.memory_sealed = memory.sealed();
        });
        self.memory = Some(Arc::new(memory));
        self.settle()?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> ProtocolResult<()> {
        self.ring(index)?;
        // Features come first, and only packed rings may have any size.
        let packed = self.features.is_some_and(|features| features.has(Features::RING_PACKED));
        if num == 0 || num > RING_SIZE_MAX || !(packed || num.is_power_of_two()) {
            let source = LayoutError::Size(num);
            return Err(self.refuse(SessionError::Layout { ring: index as usize, source }));
        }
        self.halt(index)?;
        self.ring(index)?.size = num;
        self.settle()
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> ProtocolResult<()> {
        self.ring(index)?;
        self.halt(index)?;
        self.ring(index)?.addresses = Some([descriptor, available, used]);
        self.settle()
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> ProtocolResult<()> {
        // Of a split ring only echoed by `get_vring_base` if it never ran: see the crate's documentation.
        self.ring(index)?.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> ProtocolResult<VhostUserVringState> {
        self.ring(index)?;
        self.halt(index)?;
        let ring = self.ring(index)?;
        ring.kick = None;
        ring.call = None;
        let base = ring.base;
        self.forget_position(index as usize);
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> ProtocolResult<()> {
        self.ring(index.into())?;
        self.halt(index.into())?;
        self.ring(index.into())?.kick = Some(match fd {
            Some(file) => Kick::Descriptor(nonblocking(file)?),
            None => Kick::Polled,
        });
        self.settle()
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> ProtocolResult<()> {
        let call = fd.map(nonblocking).transpose()?;
        if self.running.get(usize::from(index) / RINGS) == Some(&true) {
            let copy = call.as_ref().and_then(|call| call.try_clone().ok());
            self.tell(Command::SetCall { ring: index.into(), call: copy })?;
        }
        self.ring(index.into())?.call = call;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> ProtocolResult<()> {
        self.ring(index.into()).map(|_| ())
    }

    fn get_protocol_features(&mut self) -> ProtocolResult<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD)
    }

    fn set_protocol_features(&mut self, features: u64) -> ProtocolResult<()> {
        self.replies = features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
        Ok(())
    }

    fn get_queue_num(&mut self) -> ProtocolResult<u64> {
        // Of a network card, pairs.
        Ok(PAIRS_MAX as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> ProtocolResult<()> {
        if self.ring(index)?.enabled == enable {
            return Ok(());
        }
        self.halt(index)?;
        self.ring(index)?.enabled = enable;
        self.settle()
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> ProtocolResult<Vec<u8>> {
        not_offered("configuration space")
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> ProtocolResult<()> {
        not_offered("configuration space")
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> ProtocolResult<()> {
        not_offered("graphics")
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> ProtocolResult<File> {
        not_offered("shared objects")
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> ProtocolResult<(VhostUserInflight, File)> {
        not_offered("in-flight tracking")
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> ProtocolResult<()> {
        not_offered("in-flight tracking")
    }

    fn get_max_mem_slots(&mut self) -> ProtocolResult<u64> {
        not_offered("memory slots")
    }

    fn add_mem_region(
        &mut self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> ProtocolResult<Option<VhostUserMemoryRegionBase>> {
        not_offered("memory slots")
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> ProtocolResult<()> {
        not_offered("memory slots")
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> ProtocolResult<Option<File>> {
        not_offered("device state")
    }

    fn check_device_state(&mut self) -> ProtocolResult<()> {
        not_offered("device state")
    }

    fn get_shmem_config(&mut self) -> ProtocolResult<VhostUserShMemConfig> {
        not_offered("shared memory")
    }

    fn set_log_base(&mut self, place: &VhostUserLog, file: File) -> ProtocolResult<()> {
        let log = DirtyLog::map(&file, place.mmap_size, place.mmap_offset);
        let log = log.map_err(|error| self.refuse(SessionError::Log(error)))?;
        self.halt_all()?;
        self.log = Some(Arc::new(log));
        self.settle()
    }
}
