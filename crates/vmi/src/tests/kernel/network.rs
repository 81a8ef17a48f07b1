// SPDX-License-Identifier: Apache-2.0
//! Network namespaces with their devices and rings, and the tables of sockets.

use super::*;

impl Kernel {
    pub(super) fn network(&mut self) {
        let net_layout = self.layout.net.clone();
        let net = self.alloc(512);
        let head = self.symbol("net_namespace_list", 16);
        self.circle(&[head, net.at(net_layout.list)]);
        self.put(net, net_layout.hash_mix, MIX.into());
        self.put(net, net_layout.inode, 4_026_531_840);
        let info = self.alloc(128);
        self.put(net, net_layout.hashinfo, info.0);
        let buckets = self.alloc(u64::from(BUCKETS) * 8);
        for bucket in 0..BUCKETS {
            self.put(buckets, bucket * 8, u64::from(bucket) << 1 | 1);
        }
        let listeners = self.alloc(u64::from(BUCKETS) * 16);
        for bucket in 0..BUCKETS {
            self.put(listeners, bucket * 16 + 8, 1);
        }
        let layout = self.layout.hashinfo.clone();
        for (offset, value) in [
            (layout.ehash, buckets.0),
            (layout.ehash_mask, u64::from(BUCKETS - 1)),
            (layout.lhash2, listeners.0),
            (layout.lhash2_mask, u64::from(BUCKETS - 1)),
        ] {
            self.put(info, offset, value);
        }
        let udp = self.alloc(64);
        let slots = self.alloc(u64::from(BUCKETS) * 16);
        self.put(udp, self.layout.udp_table.hash, slots.0);
        self.put(udp, self.layout.udp_table.mask, u64::from(BUCKETS - 1));
        self.put(net, self.layout.net_udp_table.unwrap(), udp.0);
        (self.at.net, self.at.hashinfo) = (net, info);
        self.device(net);
    }

    /// A virtio network device with a transmit ring of four descriptors; the first has a frame.
    fn device(&mut self, net: Gva) {
        self.circle(&[net.at(self.layout.net.devices)]);
        let (device, rings) = self.add_device(net, &[false]);
        (self.at.device, self.at.ring_gpa, self.at.skb) = (device, rings[0].0, rings[0].1);
    }

    /// Gives a namespace a virtio network device with a ring for each of `forms`, which say whether it is packed;
    /// returns the device, and for each ring where it lies and its only frame, whose number is that of the ring.
    pub(crate) fn add_device(&mut self, net: Gva, forms: &[bool]) -> (Gva, Vec<(u64, Gva)>) {
        let devices = self.layout.devices.clone().unwrap();
        let vring = self.vring.clone();
        let (device, virtio) = (self.alloc(128), self.alloc(128));
        self.append(net.at(self.layout.net.devices), device.at(devices.net_device.list));
        self.put(device, devices.net_device.parent, virtio.at(vring.device.dev).0);
        let queues = virtio.at(vring.device.queues);
        self.circle(&[queues]);
        let mut rings = Vec::new();
        for (head, &is_packed) in (0..).zip(forms) {
            let form = if is_packed { &vring.packed } else { &vring.split };
            let (queue, ring, notes, skb) =
                (self.alloc(256), self.alloc(64), self.alloc(128), self.alloc(64));
            self.append(queues, queue.at(vring.vring.vq).at(vring.virtqueue.list));
            self.put(queue, vring.vring.form, is_packed.into());
            self.at.ring_form = queue.at(vring.vring.form);
            self.put(queue, form.count, 4);
            self.put(queue, form.desc, ring.0);
            self.put(queue, form.notes, notes.0);
            self.put(notes.element(head, form.note_bytes), form.note_data, skb.0 | 1);
            self.put(skb, devices.skb.dev, device.0);
            rings.push((ring.0 - DIRECT_GVA, skb));
        }
        (device, rings)
    }

    /// Appends a node to a circular list.
    pub(crate) fn append(&mut self, head: Gva, node: Gva) {
        let last = Gva(self.read(head.at(8)));
        for (from, to) in [(last, node), (node, head)] {
            self.put(from, 0, to.0);
            self.put(to, 8, from.0);
        }
    }

    /// Enters a socket into the table of listeners.
    pub(super) fn listen(&mut self, sock: Gva) {
        let listeners = Gva(self.read(self.at.hashinfo.at(self.layout.hashinfo.lhash2)));
        self.enter(sock, listeners.at(8));
    }

    /// Enters a socket into the table of connections.
    pub(super) fn connect(&mut self, sock: Gva) {
        let hash = self.read(sock.at(self.layout.sock.hash)) as u32;
        let ehash = Gva(self.read(self.at.hashinfo.at(self.layout.hashinfo.ehash)));
        self.enter(sock, ehash.at((hash & (BUCKETS - 1)) * 8));
    }

    /// Enters a socket into the table of UDP sockets.
    pub(super) fn bind(&mut self, sock: Gva, port: u16, mix: u32) {
        let table = Gva(self.read(self.at.net.at(self.layout.net_udp_table.unwrap())));
        let slots = Gva(self.read(table.at(self.layout.udp_table.hash)));
        self.enter(sock, slots.at((u32::from(port).wrapping_add(mix) & (BUCKETS - 1)) * 16));
    }

    /// Enters a socket at the head of a chain.
    fn enter(&mut self, sock: Gva, head: Gva) {
        let node = self.layout.sock.node;
        let first = self.read(head);
        self.put(sock, node, first);
        self.put(head, 0, sock.at(node).0);
    }
}
