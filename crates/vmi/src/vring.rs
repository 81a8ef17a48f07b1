// SPDX-License-Identifier: Apache-2.0
//! From a descriptor of a transmit ring to the frame as the guest's kernel has it, which names its socket.
//!
//! The guest's driver notes for every descriptor chain what it stands for: the frame's `sk_buff`, which it keeps,
//! with its socket, until the chain is returned. Of a split ring the number of a note is that of the chain's first
//! descriptor, of a packed ring the buffer id in the chain's last one. The ring is found through the network devices
//! of all namespaces: device, virtio parent, virtqueues, the one whose descriptors lie where the caller says; so it
//! does not matter how many devices there are, and how many rings each has.

use crate::core::Core;
use crate::error::Fault;
use crate::layout::{self, Devices, Vring};
use crate::memory::Gva;

/// Most virtqueues of a device looked at.
const QUEUES_MAX: usize = 2048;
/// Module that describes virtqueues where the kernel itself does not.
pub(crate) const RING_MODULE: &str = "virtio_ring";
/// Of the byte that tells a ring's form.
const FORM_IS_PACKED: u8 = 1;
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
    /// The frame whose chain has the number `head` in the ring with its descriptors at `desc_gpa`; `None` if the
    /// ring is not found, or has no such frame.
    pub(crate) fn frame_of_descriptor(
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
        let form = self.ring_form(vring, ring.queue)?;
        if u32::from(head) >= self.reader.u32(ring.queue.at(form.count))? {
            return Ok(None);
        }
        let notes = self.reader.pointer(ring.queue.at(form.notes))?;
        let note = notes.element(u64::from(head), form.note_bytes).at(form.note_data);
        let skb = Gva(self.reader.u64(note)? & !NOTE_FLAGS);
        let is_frame = !skb.is_null() && self.reader.pointer(skb.at(devices.skb.dev))? == ring.device;
        Ok(is_frame.then_some(skb))
    }

    /// The socket that sent a frame, unless the frame was routed or let go of it.
    pub(crate) fn sock_of_frame(&self, skb: Gva) -> Result<Option<Gva>, Fault> {
        let Some(devices) = &self.layout.devices else { return Ok(None) };
        let sock = self.reader.pointer(skb.at(devices.skb.sk))?;
        Ok((!sock.is_null()).then_some(sock))
    }

    fn find_ring(&self, vring: &Vring, devices: &Devices, desc_gpa: u64) -> Result<Option<Ring>, Fault> {
        for net in self.namespaces()? {
            for device in self.devices(net)? {
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
        let Ok(form) = self.ring_form(vring, queue) else { return false };
        let desc = self.reader.pointer(queue.at(form.desc));
        desc.and_then(|desc| self.reader.translate(desc)).is_ok_and(|place| place.gpa == desc_gpa)
    }

    fn ring_form<'a>(&self, vring: &'a Vring, queue: Gva) -> Result<&'a layout::Ring, Fault> {
        let [form] = self.reader.array(queue.at(vring.vring.form))?;
        Ok(if form & FORM_IS_PACKED == 0 { &vring.split } else { &vring.packed })
    }
}
