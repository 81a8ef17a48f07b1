// SPDX-License-Identifier: Apache-2.0
//! The ports that the daemon serves: opened and closed as network cards, and interfaces of the host, appear in and
//! leave the inventory.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{Inventory, MacAddr, Nic, NicRef, Snapshot};
use platform::{EventFd, Tap};
use vhost_port::{PortConfig, PortControl, PortStatus};
use vswitch::{PortId, Uplink};

use crate::handover::HandOver;
use crate::introspect::Introspection;
use crate::poll::{Command, PollHandle, Seat};

/// All open ports.
pub struct Ports {
    socket_dir: PathBuf,
    hand_over: Mutex<HandOver>,
    open: Mutex<HashMap<NicRef, Open>>,
    uplinks: Mutex<Vec<Uplink>>,
    opened: AtomicU64,
    introspection: Arc<Introspection>,
    poll: PollHandle,
}

#[derive(Debug)]
struct Open {
    id: PortId,
    /// How many ports were opened before it.
    serial: u64,
    /// As declared when it was opened; a card declared otherwise is another card.
    nic: Nic,
    control: PortControl,
}

impl Ports {
    /// No ports yet. Sockets with relative paths go below `socket_dir`.
    pub fn new(
        socket_dir: PathBuf,
        hand_over: HandOver,
        introspection: Arc<Introspection>,
        poll: PollHandle,
    ) -> Self {
        Self {
            socket_dir,
            hand_over: Mutex::new(hand_over),
            open: Mutex::default(),
            uplinks: Mutex::default(),
            opened: AtomicU64::new(0),
            introspection,
            poll,
        }
    }

    /// Makes the ports those of the snapshot, and the snapshot the one the switch works by.
    ///
    /// A card whose port cannot be opened is logged and left out; the others are served. It is tried
    /// again with the next snapshot.
    pub fn apply(&self, snapshot: &Arc<Snapshot>) {
        let mut open = lock(&self.open);
        let wanted = cards(&snapshot.inventory);
        let gone: Vec<NicRef> = open
            .iter()
            .filter(|(card, port)| wanted.get(card).is_none_or(|nic| **nic != port.nic))
            .map(|(card, _)| card.clone())
            .collect();
        for card in gone {
            self.close(&mut open, &card);
        }
        let mut fresh: Vec<_> = wanted.iter().filter(|(card, _)| !open.contains_key(*card)).collect();
        fresh.sort_unstable_by_key(|(card, _)| (*card).clone());
        for (card, nic) in fresh {
            if let Err(error) = self.open(&mut open, card, nic) {
                tracing::error!(nic = %card, error = %telemetry::Chain(error.as_ref()), "port not opened");
            }
        }
        let ports = open.iter().map(|(card, port)| (port.id, card.clone())).collect();
        let in_use: Vec<PortId> = open.values().map(|port| port.id).collect();
        let uplinks = self.apply_uplinks(&snapshot.inventory, in_use);
        self.poll.send(Command::Install { snapshot: Arc::clone(snapshot), ports, uplinks });
    }

    /// Makes the uplinks those that the inventory's external networks name. One that cannot be opened is logged
    /// and left out, and tried again with the next snapshot.
    fn apply_uplinks(&self, inventory: &Inventory, mut in_use: Vec<PortId>) -> Vec<Uplink> {
        let mut uplinks = lock(&self.uplinks);
        let wanted: BTreeSet<&str> = inventory.networks().iter().map(|n| n.interface.as_str()).collect();
        uplinks.retain(|uplink| {
            let stays = wanted.contains(uplink.interface.as_str());
            if !stays {
                self.poll.send(Command::RemoveUplink(uplink.id));
            }
            stays
        });
        in_use.extend(uplinks.iter().map(|uplink| uplink.id));
        for interface in wanted {
            if uplinks.iter().any(|uplink| uplink.interface == interface) {
                continue;
            }
            match self.open_uplink(interface, &in_use) {
                Ok(uplink) => {
                    in_use.push(uplink.id);
                    uplinks.push(uplink);
                }
                Err(error) => {
                    tracing::error!(interface, error = %telemetry::Chain(error.as_ref()), "uplink not opened");
                }
            }
        }
        uplinks.clone()
    }

    fn open_uplink(&self, interface: &str, in_use: &[PortId]) -> Result<Uplink, Box<dyn std::error::Error>> {
        let tap = Tap::open(interface)?;
        let id = lock(&self.hand_over).uplink(interface, in_use)?;
        let mac = MacAddr(tap.mac());
        self.poll.send(Command::AddUplink(id, tap));
        Ok(Uplink { id, interface: interface.to_owned(), mac })
    }

    /// Closes all ports: sockets are removed, VMMs see their backend go.
    pub fn close_all(&self) {
        let mut open = lock(&self.open);
        let cards: Vec<NicRef> = open.keys().cloned().collect();
        for card in cards {
            self.close(&mut open, &card);
        }
    }

    /// How far each card's VMM has come.
    pub fn status(&self) -> HashMap<NicRef, (PortId, PortStatus)> {
        let status = |(card, port): (&NicRef, &Open)| (card.clone(), (port.id, port.control.status()));
        lock(&self.open).iter().map(status).collect()
    }

    /// Path of a card's socket.
    pub fn socket_path(&self, nic: &Nic) -> PathBuf {
        self.socket_dir.join(&nic.socket)
    }

    fn open(
        &self,
        open: &mut HashMap<NicRef, Open>,
        card: &NicRef,
        nic: &Nic,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let in_use: Vec<PortId> = open.values().map(|port| port.id).collect();
        let id = lock(&self.hand_over).port(card, &in_use)?;
        let config = PortConfig {
            name: card.to_string(),
            socket: self.socket_path(nic),
            mode: nic.socket_mode,
            offloads: true,
            journal: Some(lock(&self.hand_over).journal(id)),
        };
        let waker = Arc::new(EventFd::new()?);
        let (port, control) = vhost_port::open(config, Arc::clone(&waker))?;
        self.introspection.add_port(id, &card.vm);
        let serial = self.opened.fetch_add(1, Ordering::Relaxed);
        self.poll.send(Command::AddPort(Seat {
            id,
            serial,
            card: card.clone(),
            port: Box::new(port),
            waker,
        }));
        open.insert(card.clone(), Open { id, serial, nic: nic.clone(), control });
        Ok(())
    }

    fn close(&self, open: &mut HashMap<NicRef, Open>, card: &NicRef) {
        if let Some(port) = open.remove(card) {
            drop(port.control);
            self.poll.send(Command::RemovePort(port.id, port.serial));
            self.introspection.remove_port(port.id);
        }
    }
}

fn cards(inventory: &Inventory) -> HashMap<NicRef, &Nic> {
    inventory
        .vms()
        .flat_map(|(_, vm)| {
            vm.nics.iter().map(|nic| (NicRef { vm: vm.id.clone(), nic: nic.name.clone() }, nic))
        })
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
