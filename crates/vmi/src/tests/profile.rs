// SPDX-License-Identifier: Apache-2.0
//! A kernel without type information of its own, and its profile.

use std::sync::Arc;

use super::kernel::Kernel;
use super::symbols::SymbolOrder;
use super::{attach, connection};
use crate::{AttachError, Guest, Heartbeats, TypesError};

/// A kernel with its types taken out of RAM, and these.
fn without_types(order: SymbolOrder) -> (Kernel, Vec<u8>) {
    let mut kernel = Kernel::new(5, order);
    let (start, end) = (kernel.find("__start_BTF"), kernel.find("__stop_BTF"));
    let len = usize::try_from(end.0 - start.0).unwrap();
    let at = usize::try_from(kernel.at.types_gpa).unwrap();
    let types = kernel.ram.0[at..at + len].to_vec();
    kernel.clear("__start_BTF", len);
    (kernel, types)
}

fn attach_with(kernel: &Kernel, profile: Option<Vec<u8>>) -> Result<Guest, AttachError> {
    let profiles = |release: &str| {
        assert_eq!(release, "0.0-made-up");
        profile.clone()
    };
    Guest::attach_with(Arc::new(kernel.ram.clone()), &mut Heartbeats::default(), &profiles)
}

#[test]
fn kernel_with_a_profile_tells_the_same_as_with_types_of_its_own() {
    for order in SymbolOrder::ALL {
        let (kernel, types) = without_types(order);
        let (mut with, mut own) =
            (attach_with(&kernel, Some(types)).unwrap(), attach(&Kernel::new(5, order).ram));
        assert_eq!(with.kernel(), own.kernel());
        assert_eq!(with.process_details(), own.process_details());
        assert_eq!(with.socket_details(), own.socket_details());
        assert_eq!(connection(&mut with), connection(&mut own));
    }
}

#[test]
fn profile_that_is_missing_or_damaged_is_named_with_its_kernel() {
    let (kernel, types) = without_types(SymbolOrder::OffsetsFirst);
    let release = || "0.0-made-up".to_owned();
    for (profile, error) in [
        (None, AttachError::NoProfile(release())),
        (Some(Vec::new()), AttachError::Profile { release: release(), source: TypesError::Malformed(0) }),
        (
            Some(types[..types.len() - 1].to_vec()),
            AttachError::Profile { release: release(), source: TypesError::Malformed(0) },
        ),
    ] {
        assert_eq!(attach_with(&kernel, profile).err(), Some(error));
    }
}

#[test]
fn profile_is_not_asked_for_when_the_kernel_has_types() {
    let kernel = Kernel::new(4, SymbolOrder::OffsetsLast);
    let profiles = |_: &str| panic!("asked");
    assert!(Guest::attach_with(Arc::new(kernel.ram), &mut Heartbeats::default(), &profiles).is_ok());
}
