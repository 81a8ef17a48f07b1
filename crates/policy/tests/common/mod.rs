// SPDX-License-Identifier: Apache-2.0
//! What several tests ask about.

use model::{Attribution, FiveTuple, FlowQuery, Party, Protocol, VmIndex};

/// A TCP flow from `web` to `api`, the first two machines.
pub fn query<'a>(
    port: u16,
    caller: Option<&'a Attribution>,
    listener: Option<&'a Attribution>,
) -> FlowQuery<'a> {
    let tuple = FiveTuple {
        source: [10, 0, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        source_port: 40_000,
        destination_port: port,
        protocol: Protocol::Tcp,
    };
    FlowQuery {
        tuple,
        source: Party { vm: Some(VmIndex(0)), attribution: caller },
        destination: Party { vm: Some(VmIndex(1)), attribution: listener },
        names: &[],
    }
}
