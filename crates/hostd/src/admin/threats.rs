// SPDX-License-Identifier: Apache-2.0
//! Findings as clients see them, and connections on the wire that the guest has no socket for.

use std::net::SocketAddr;
use std::time::Duration;

use api::admin::{Certainty, Threat, Threats};
use model::{Confidence, Protocol, UnknownReason, VmRef};
use vswitch::{FlowEnd, FlowRecord, FlowState};

/// Most connections of a machine asked about.
pub(super) const CONNECTIONS_MAX: usize = 256;

/// Time after which a connection without a socket is looked at again.
pub(super) const SECOND_LOOK: Duration = Duration::from_secs(1);

/// What inspections have found, as of `now`.
pub(super) fn shown(findings: &[vmi::Finding], coverage: vmi::Coverage, now: Duration) -> Threats {
    let age_ms = |then| u64::try_from(now.saturating_sub(then).as_millis()).unwrap_or(u64::MAX);
    let findings = findings.iter().map(|finding| Threat {
        kind: finding.kind.as_str().into(),
        certainty: match finding.certainty {
            vmi::Certainty::Possible => Certainty::Possible,
            vmi::Certainty::Likely => Certainty::Likely,
            vmi::Certainty::Certain => Certainty::Certain,
        },
        address: Some(format!("{:#x}", finding.address)),
        symbol: finding.symbol.clone(),
        evidence: finding.evidence.clone(),
        first_seen_ms: age_ms(finding.first_seen),
        last_seen_ms: age_ms(finding.last_seen),
    });
    Threats {
        findings: findings.collect(),
        pages: coverage.pages as u64,
        pages_known: coverage.pages_known as u64,
        rounds: coverage.rounds,
        views: coverage.views,
    }
}

/// A connection that the guest sends on for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// Frames that the guest has sent.
    pub(super) frames: u64,
}

/// Open TCP connections of a machine whose frames led to a socket, or to nothing at all; forwarded ones lead to the
/// guest's account of them.
pub(super) fn connections(records: &[FlowRecord], vm: &VmRef) -> Vec<Connection> {
    let live = records
        .iter()
        .filter(|record| record.tuple.protocol == Protocol::Tcp && record.state == FlowState::Established);
    let own = live.flat_map(|record| {
        let tuple = &record.tuple;
        let source = SocketAddr::new(tuple.source, tuple.source_port);
        let destination = SocketAddr::new(tuple.destination, tuple.destination_port);
        [(&record.initiator, source, destination), (&record.responder, destination, source)]
    });
    let is_its = |end: &FlowEnd| {
        let is_own = end.nic.as_ref().is_some_and(|nic| nic.vm == *vm);
        let Some(found) = end.attribution.as_ref().filter(|_| is_own) else { return false };
        let led_nowhere = found.unknown == Some(UnknownReason::NoSocket) && found.inner.is_none();
        found.confidence == Confidence::Descriptor || led_nowhere
    };
    own.filter(|(end, ..)| is_its(end))
        .map(|(end, local, remote)| Connection { local, remote, frames: end.sent_frames })
        .take(CONNECTIONS_MAX)
        .collect()
}

/// Those of `before` that are still open in `after` and have sent more since.
pub(super) fn still_sending(before: &[Connection], after: &[Connection]) -> Vec<Connection> {
    let went_on = |old: &&Connection| {
        after.iter().any(|new| (new.local, new.remote) == (old.local, old.remote) && new.frames > old.frames)
    };
    before.iter().filter(went_on).copied().collect()
}

/// A connection that goes on without a socket.
pub(super) fn unattributed(connection: &Connection) -> Threat {
    Threat {
        kind: "unattributed".into(),
        certainty: Certainty::Likely,
        address: None,
        symbol: None,
        evidence: format!(
            "the guest sends on the connection {} to {}, but has no such socket in its tables",
            connection.local, connection.remote
        ),
        first_seen_ms: 0,
        last_seen_ms: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_that_go_on_are_told() {
        let connection = |port, frames| Connection {
            local: SocketAddr::from(([10, 0, 0, 1], port)),
            remote: SocketAddr::from(([10, 0, 0, 2], 80)),
            frames,
        };
        let before = [connection(1, 5), connection(2, 5), connection(3, 5)];
        let after = [connection(1, 6), connection(2, 5)];
        assert_eq!(still_sending(&before, &after), [connection(1, 5)]);
    }
}
