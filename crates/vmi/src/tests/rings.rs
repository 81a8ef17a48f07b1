// SPDX-License-Identifier: Apache-2.0
//! Rings of either form, several of a device, several devices.

use model::{Confidence, UnknownReason};

use super::attach;
use super::kernel::{Kernel, Virtio};
use super::symbols::SymbolOrder;

#[test]
fn frames_are_found_in_every_ring_of_every_device() {
    for virtio in Virtio::ALL {
        let mut kernel = Kernel::with_virtio(4, SymbolOrder::OffsetsLast, virtio);
        let (sk, connection) = (kernel.layout.devices.as_ref().unwrap().skb.sk, kernel.at.connection);
        let mut rings = Vec::new();
        for forms in [&[true, false, true][..], &[false, true, false, true]] {
            let net = kernel.at.net;
            rings.extend(kernel.add_device(net, forms).1.into_iter().zip(0..));
        }
        for ((_, skb), _) in &rings {
            kernel.put(*skb, sk, connection.0);
        }
        let mut guest = attach(&kernel.ram);
        for _ in 0..2 {
            for ((ring, _), head) in &rings {
                let owner = guest.frame_owner(*ring, *head);
                assert_eq!(owner.confidence, Confidence::Descriptor, "{virtio:?} {ring:#x} {head}");
                assert_eq!(owner.process.map(|process| process.pid), Some(7));
                for other in (0..6).filter(|other| other != head) {
                    let owner = guest.frame_owner(*ring, other);
                    assert_eq!(owner.unknown, Some(UnknownReason::NoSocket), "{virtio:?} {ring:#x} {other}");
                }
            }
        }
        assert_eq!(guest.frame_owner(kernel.at.ring_gpa, 0).process.map(|process| process.pid), Some(7));
    }
}

#[test]
fn ring_is_found_only_by_the_place_that_its_form_has() {
    let mut kernel = super::kernel();
    let net = kernel.at.net;
    let (_, rings) = kernel.add_device(net, &[true]);
    let (ring, skb) = rings[0];
    let sk = kernel.layout.devices.as_ref().unwrap().skb.sk;
    kernel.put(skb, sk, kernel.at.connection.0);
    assert_eq!(attach(&kernel.ram).frame_owner(ring, 0).confidence, Confidence::Descriptor);
    kernel.put(kernel.at.ring_form, 0, 0);
    assert_eq!(attach(&kernel.ram).frame_owner(ring, 0).unknown, Some(UnknownReason::NoSocket));
}
