// SPDX-License-Identifier: Apache-2.0
//! An attached guest: its anchors, and the rules that every question to it follows.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use model::{AcceptQueue, Attribution, Confidence, Process, Protocol, UnknownReason};

use crate::attach;
use crate::btf::{Btf, Structures};
use crate::core::{Anchors, Core};
use crate::ends::Ends;
use crate::error::{AttachError, Fault, ViewError};
use crate::found::Kernel;
use crate::heartbeats::Heartbeats;
use crate::integrity::{Integrity, IntegrityLayout};
use crate::layout::{Gap, Layout, Vring};
use crate::memory::{Gva, PhysicalMemory};
use crate::owner::Memo;
use crate::reader::{OWNER_READS_MAX, VIEW_READS_MAX};
use crate::search::Lookups;
use crate::socket::{Owner, Socket};
use crate::users::Users;
use crate::vring::{RING_MODULE, Rings};

/// A guest whose kernel has been understood.
///
/// It reads the running guest's memory anew for every question; only what cannot change after boot is kept.
/// What it remembers beyond that (who owned a socket) is verified before it is told.
pub struct Guest {
    pub(crate) core: Core,
    kernel: Kernel,
    virtqueues: Virtqueues,
    memo: Memo,
    lookups: Lookups,
    rings: Rings,
    pub(crate) integrity: Integrity,
}

/// Whether it is known how virtqueues look.
enum Virtqueues {
    Known(Vring),
    /// Not by the kernel's own types; they are kept, for a module's refer to them.
    Unknown(Btf),
}

impl Virtqueues {
    /// How virtqueues look, asking the modules if the kernel itself does not tell.
    fn learn(&mut self, core: &Core) -> Result<Option<&Vring>, Fault> {
        if let Self::Unknown(btf) = self
            && let Some(whole) = core.with_module_types(btf, RING_MODULE)?
            && let Ok(vring) = Vring::resolve(&Structures::of(&whole))
        {
            *self = Self::Known(vring);
        }
        Ok(match self {
            Self::Known(vring) => Some(vring),
            Self::Unknown(_) => None,
        })
    }
}

impl Guest {
    /// Finds the kernel that runs in `memory` and what is needed to read it.
    ///
    /// Reads all resident memory once. A guest that is still booting gives an error; try again later.
    ///
    /// # Errors
    /// When no kernel is found, or one that lacks what is needed.
    pub fn attach(memory: Arc<dyn PhysicalMemory>) -> Result<Self, AttachError> {
        Self::attach_again(memory, &mut Heartbeats::default())
    }

    /// As [`Guest::attach`], by what earlier tries at the same guest have seen.
    ///
    /// # Errors
    /// As [`Guest::attach`].
    pub fn attach_again(
        memory: Arc<dyn PhysicalMemory>,
        heartbeats: &mut Heartbeats,
    ) -> Result<Self, AttachError> {
        Self::attach_with(memory, heartbeats, &|_| None)
    }

    /// As [`Guest::attach_again`]; a kernel that carries no types itself is looked up in `profiles`.
    ///
    /// # Errors
    /// As [`Guest::attach`].
    pub fn attach_with(
        memory: Arc<dyn PhysicalMemory>,
        heartbeats: &mut Heartbeats,
        profiles: attach::Profiles<'_>,
    ) -> Result<Self, AttachError> {
        let found = attach::find(memory, heartbeats, profiles)?;
        let types = Structures::of(&found.btf);
        let mut layout = Layout::resolve(&types)?;
        if found.symbols.find("udp_table").is_none() {
            layout.note_no_udp_table();
        }
        let integrity = Integrity::new(IntegrityLayout::resolve(&types), found.names);
        let mut vring = Vring::resolve(&types).ok();
        if vring.is_none() && found.symbols.find("btf_modules").is_none() {
            vring = Vring::without_module_types(&types).ok();
        }
        let anchors = Anchors {
            init_task: found.symbols.require("init_task")?,
            net_namespaces: found.symbols.require("net_namespace_list")?,
            socket_file_ops: found.symbols.find("socket_file_ops"),
            symbols: found.symbols,
        };
        let mut core = Core { reader: found.reader, layout, anchors, users: Users::default() };
        if !core.idle_task_is_there() {
            return Err(AttachError::Unexpected("idle task"));
        }
        core.find_direct_map(found.ram_end).map_err(|_| AttachError::Unexpected("task list"))?;
        let mut virtqueues = vring.map_or(Virtqueues::Unknown(found.btf), Virtqueues::Known);
        // A module that is not there yet is looked for again when a frame is asked about.
        let _ = virtqueues.learn(&core);
        Ok(Self {
            core,
            kernel: found.kernel,
            virtqueues,
            memo: Memo::default(),
            lookups: Lookups::default(),
            rings: Rings::default(),
            integrity,
        })
    }

    /// The kernel as a whole.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// What cannot be told of this guest, because its kernel does not describe it.
    #[must_use]
    pub fn gaps(&self) -> &[Gap] {
        &self.core.layout.gaps
    }

    /// What reads the guest; for the views of other modules.
    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// Looks with very few reads, which takes some 10 us at most; `None` when they did not suffice.
    ///
    /// What was read is no answer then, not even in part: an absent path may be one that was not read to its end.
    pub fn glance<R>(&mut self, look: impl FnOnce(&mut Self) -> R) -> Option<R> {
        self.core.reader.start_glance();
        let seen = look(self);
        self.core.reader.end_glance().then_some(seen)
    }

    /// Every process, in order of age. Kernel threads are processes too.
    ///
    /// # Errors
    /// [`ViewError`] when the guest was reset, or its task list contradicts itself on every try.
    pub fn processes(&self) -> Result<Vec<Process>, ViewError> {
        self.core
            .query(VIEW_READS_MAX, |core| core.tasks()?.into_iter().map(|task| core.process(task)).collect())
    }

    /// Every TCP and UDP socket of all network namespaces, with the descriptors that refer to it.
    ///
    /// # Errors
    /// [`ViewError`] when the guest was reset, or its tables contradict themselves on every try.
    pub fn sockets(&self) -> Result<Vec<Socket>, ViewError> {
        self.core.query(VIEW_READS_MAX, Core::sockets)
    }

    /// Who sent a frame that the guest has put into a transmit ring and that has not been returned to it.
    ///
    /// `tx_desc_ring` is the guest-physical address of the ring's descriptors, `head` the number under which the
    /// frame's chain is returned: its first descriptor in a split ring, its buffer id in a packed one.
    /// [`Confidence::Descriptor`] when a process holds the socket; one that is already closed still tells its user
    /// and control group ([`Confidence::Socket`]). A frame that the guest routed, as it does for containers, leads
    /// through the guest's own account of the connection to the socket inside; when that is gone,
    /// [`Attribution::inner`] is what is left. A frame without either (sent past the socket layer, or by a driver
    /// that lets go of both early) gives [`UnknownReason::NoSocket`]: then ask [`Guest::connection_owner`]. That
    /// the frame is what its socket would send is not checked.
    pub fn frame_owner(&mut self, tx_desc_ring: u64, head: u16) -> Attribution {
        let Self { core, virtqueues, memo, lookups, rings, .. } = self;
        core.attribute(|core| {
            let Some(vring) = virtqueues.learn(core)? else { return Ok(None) };
            let Some(frame) = core.frame_of_descriptor(vring, rings, tx_desc_ring, head)? else {
                return Ok(None);
            };
            if let Some(sock) = core.sock_of_frame(frame)? {
                return core.owner(memo, sock, Confidence::Descriptor).map(Some);
            }
            let Some(ends) = core.tracked_ends(frame)? else { return Ok(None) };
            let found = core.find_tracked(lookups, ends)?;
            found.owner(core, memo, Confidence::Descriptor)
        })
    }

    /// Who is behind the connection between these ends, `local` being the guest's as seen on the wire.
    ///
    /// TCP, and UDP sockets that send from or listen on `local`; other protocols have no table. Where the guest
    /// translates addresses, the socket inside is meant.
    pub fn connection_owner(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        protocol: Protocol,
    ) -> Attribution {
        let Self { core, memo, lookups, .. } = self;
        core.attribute(|core| {
            let found = core.find_connected(lookups, Ends { local, remote, protocol })?;
            found.owner(core, memo, Confidence::Table)
        })
    }

    /// Who listens on `local`, by address or wildcard, for what `remote` sends or, without it, anybody: a TCP
    /// listener, or a UDP socket that is not connected. Where the guest translates what `remote` sends and has begun
    /// to (the entry exists), the listener inside is meant.
    pub fn listener_owner(
        &mut self,
        local: SocketAddr,
        remote: Option<SocketAddr>,
        protocol: Protocol,
    ) -> Attribution {
        let Self { core, memo, lookups, .. } = self;
        core.attribute(|core| {
            let found = core.find_listening(lookups, local, remote, protocol)?;
            found.owner(core, memo, Confidence::Table)
        })
    }

    /// As [`Guest::listener_owner`] for anybody, with what waits to be accepted there. Of several sockets that share
    /// a port (`SO_REUSEPORT`) one stands for all.
    pub fn listener(&mut self, local: SocketAddr, protocol: Protocol) -> (Attribution, Option<AcceptQueue>) {
        let Self { core, memo, lookups, .. } = self;
        let mut queue = None;
        let owner = core.attribute(|core| {
            let found = core.find_listening(lookups, local, None, protocol)?;
            let listener = found.sock.filter(|_| protocol == Protocol::Tcp);
            queue = listener.map_or(Ok(None), |sock| core.accept_queue(sock))?;
            found.owner(core, memo, Confidence::Table)
        });
        (owner, queue)
    }
}

impl Core {
    /// Asks who is behind a socket; `None` means that there is no socket.
    fn attribute(&self, question: impl FnMut(&Self) -> Result<Option<Attribution>, Fault>) -> Attribution {
        match self.query(OWNER_READS_MAX, question) {
            Ok(Some(attribution)) => attribution,
            Ok(None) => Attribution::unknown(UnknownReason::NoSocket),
            Err(error) => Attribution::unknown(error.into()),
        }
    }

    /// Every TCP and UDP socket in the guest's tables, with its owners.
    fn sockets(&self) -> Result<Vec<Socket>, Fault> {
        let namespaces = self.namespaces()?;
        let sockets = self.sockets_at(&namespaces, &mut self.socket_owners()?)?;
        Ok(sockets.into_iter().map(|(_, socket)| socket).collect())
    }

    /// Every TCP and UDP socket with its address; takes their owners out of `owners`.
    pub(crate) fn sockets_at(
        &self,
        namespaces: &[Gva],
        owners: &mut HashMap<Gva, Vec<Owner>>,
    ) -> Result<Vec<(Gva, Socket)>, Fault> {
        let mut tables = Vec::new();
        tables.extend(self.listener_tables(namespaces)?.into_iter().map(|table| (table, Protocol::Tcp)));
        tables.extend(self.connection_tables(namespaces)?.into_iter().map(|table| (table, Protocol::Tcp)));
        tables.extend(self.udp_tables(namespaces)?.into_iter().map(|table| (table, Protocol::Udp)));
        let mut sockets = Vec::new();
        for (table, protocol) in tables {
            for sock in self.entries(&table)? {
                if let Some(common) = self.common(sock)? {
                    let owners = owners.remove(&sock).unwrap_or_default();
                    sockets.push((sock, Socket { owners, ..self.socket(sock, &common, protocol)? }));
                }
            }
        }
        Ok(sockets)
    }
}
