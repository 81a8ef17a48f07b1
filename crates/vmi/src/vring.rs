// SPDX-License-Identifier: Apache-2.0
//! From a descriptor of a transmit ring to the socket that sent the frame.
//!
//! The guest's driver notes for every descriptor chain what it stands for: the frame's `sk_buff`, which names
//! its socket and keeps it until the descriptor is returned. The ring is found through the network devices of
//! all namespaces: device, virtio parent, virtqueues, the one whose descriptor table lies where the caller
//! says.

use crate::btf::{Btf, LEN_BYTES_MAX, Structures};
use crate::error::Fault;
use crate::guest::Core;
use crate::layout::{Devices, Vring};
use crate::memory::Gva;

/// Most network devices of a namespace looked at.
const DEVICES_MAX: usize = 4096;
/// Most virtqueues of a device looked at.
const QUEUES_MAX: usize = 2048;
/// Most modules with types looked at.
const MODULES_MAX: usize = 4096;
/// Module that describes virtqueues where the kernel itself does not.
const RING_MODULE: &str = "virtio_ring";
/// Longest module name (`MODULE_NAME_LEN`).
const MODULE_NAME_BYTES: usize = 56;
/// Rings remembered at most.
const RINGS_MAX: usize = 64;
/// The driver keeps flags in these bits of a note.
const NOTE_FLAGS: u64 = 7;

/// A transmit ring that was found. Verified before each use.
#[derive(Clone, Copy, Debug)]
struct Ring {
    desc_gpa: u64,
    queue: Gva,
    device: Gva,
}

/// Rings found so far.
#[derive(Default)]
pub(crate) struct Rings(Vec<Ring>);

impl Core {
    /// The socket that sent the frame whose chain begins at descriptor `head` of the ring with its descriptor
    /// table at `desc_gpa`; `None` if the ring is not found or the frame has no socket.
    pub(crate) fn sock_of_descriptor(
        &self,
        vring: &Vring,
        rings: &mut Rings,
        desc_gpa: u64,
        head: u16,
    ) -> Result<Option<Gva>, Fault> {
        let Some(devices) = &self.layout.devices else { return Ok(None) };
        let known = rings.0.iter().position(|ring| ring.desc_gpa == desc_gpa);
        let known = known.map(|index| rings.0.swap_remove(index));
        let ring = match known.filter(|ring| self.queue_has_ring(vring, ring.queue, desc_gpa)) {
            Some(ring) => ring,
            None => match self.find_ring(vring, devices, desc_gpa)? {
                Some(ring) => ring,
                None => return Ok(None),
            },
        };
        rings.0.truncate(RINGS_MAX - 1);
        rings.0.push(ring);
        if u32::from(head) >= self.reader.u32(ring.queue.at(vring.vring.count))? {
            return Ok(None);
        }
        let notes = self.reader.pointer(ring.queue.at(vring.vring.desc_state))?;
        let note = notes.element(u64::from(head), vring.state_bytes).at(vring.state.data);
        let skb = Gva(self.reader.u64(note)? & !NOTE_FLAGS);
        if skb.is_null() || self.reader.pointer(skb.at(devices.skb.dev))? != ring.device {
            return Ok(None);
        }
        let sock = self.reader.pointer(skb.at(devices.skb.sk))?;
        Ok((!sock.is_null()).then_some(sock))
    }

    fn find_ring(&self, vring: &Vring, devices: &Devices, desc_gpa: u64) -> Result<Option<Ring>, Fault> {
        for net in self.namespaces()? {
            for entry in self.list(net.at(self.layout.net.devices), DEVICES_MAX)? {
                let device = entry.container(devices.net_device.list);
                let parent = self.reader.pointer(device.at(devices.net_device.parent))?;
                if parent.is_null() {
                    continue;
                }
                // Whatever the parent is, only a virtqueue has the ring's address in its place.
                let virtio = parent.container(vring.device.dev);
                let Ok(queues) = self.list(virtio.at(vring.device.queues), QUEUES_MAX) else { continue };
                let queue_of = |entry: Gva| {
                    let virtqueue = entry.container(vring.virtqueue.list);
                    virtqueue.container(vring.vring.vq)
                };
                let mut queues = queues.into_iter().map(queue_of);
                if let Some(queue) = queues.find(|&queue| self.queue_has_ring(vring, queue, desc_gpa)) {
                    return Ok(Some(Ring { desc_gpa, queue, device }));
                }
            }
        }
        Ok(None)
    }

    fn queue_has_ring(&self, vring: &Vring, queue: Gva, desc_gpa: u64) -> bool {
        let desc = self.reader.pointer(queue.at(vring.vring.desc));
        desc.and_then(|desc| self.reader.translate(desc)).is_ok_and(|place| place.gpa == desc_gpa)
    }

    /// How virtqueues look, from the types of the module that has them.
    pub(crate) fn vring_of_module(&self, btf: &Btf) -> Result<Option<Vring>, Fault> {
        let (Some(layout), Some(head)) = (&self.layout.modules, self.anchors.symbols.find("btf_modules"))
        else {
            return Ok(None);
        };
        for entry in self.list(head, MODULES_MAX)? {
            let module = entry.container(layout.module.list);
            let types = self.reader.pointer(module.at(layout.module.btf))?;
            if self.reader.text(types.at(layout.btf.name), MODULE_NAME_BYTES)? != RING_MODULE {
                continue;
            }
            let number = |offset| self.reader.u32(types.at(offset)).map(|number| number as usize);
            if number(layout.btf.start_id)? != btf.type_count()
                || number(layout.btf.start_str_off)? != btf.strings_bytes()
            {
                return Ok(None);
            }
            let len = number(layout.btf.data_size)?;
            if len > LEN_BYTES_MAX {
                return Ok(None);
            }
            let mut bytes = vec![0; len];
            self.reader.bytes(self.reader.pointer(types.at(layout.btf.data))?, &mut bytes)?;
            let whole = btf.with_module(&bytes).ok();
            return Ok(whole.and_then(|whole| Vring::resolve(&Structures::of(&whole)).ok()));
        }
        Ok(None)
    }
}
