// SPDX-License-Identifier: Apache-2.0
//! From the mesh's own words to those on the wire.

use std::net::IpAddr;

use super::guest::Process;
use super::message::{Confidence, Mode, Nic, NicState, Party, UnknownReason, Verdict};
use super::qos::VmQos;

impl From<model::Action> for Verdict {
    fn from(action: model::Action) -> Self {
        match action {
            model::Action::Allow => Self::Allow,
            model::Action::Deny => Self::Deny,
        }
    }
}

impl From<model::Mode> for Mode {
    fn from(mode: model::Mode) -> Self {
        match mode {
            model::Mode::Enforce => Self::Enforce,
            model::Mode::Audit => Self::Audit,
        }
    }
}

impl From<model::Confidence> for Confidence {
    fn from(confidence: model::Confidence) -> Self {
        match confidence {
            model::Confidence::Unknown => Self::Unknown,
            model::Confidence::Socket => Self::Socket,
            model::Confidence::Table => Self::Table,
            model::Confidence::Descriptor => Self::Descriptor,
        }
    }
}

impl From<model::UnknownReason> for UnknownReason {
    fn from(reason: model::UnknownReason) -> Self {
        match reason {
            model::UnknownReason::NotAttached => Self::NotAttached,
            model::UnknownReason::NoSocket => Self::NoSocket,
            model::UnknownReason::NoOwner => Self::NoOwner,
            model::UnknownReason::Inconsistent => Self::Inconsistent,
            model::UnknownReason::TimedOut => Self::TimedOut,
        }
    }
}

impl From<&model::Process> for Process {
    fn from(process: &model::Process) -> Self {
        Self {
            pid: process.pid,
            parent_pid: process.parent_pid,
            name: process.name.clone(),
            exe: process.exe.clone(),
            uid: process.uid,
            user: process.user.clone(),
            unit: process.unit().map(str::to_owned),
            cgroup: process.cgroup.clone(),
            start_time_ns: process.start_time_ns,
        }
    }
}

impl From<model::Qos> for VmQos {
    fn from(qos: model::Qos) -> Self {
        Self {
            limit_bits_per_second: qos.limit.map(|limit| limit.rate.bits_per_second()),
            reserved_bits_per_second: qos.reservation.map(model::BitRate::bits_per_second),
            shares: Some(qos.shares).filter(|shares| *shares != model::Qos::SHARES_DEFAULT),
            class: match qos.class {
                model::LatencyClass::Standard => None,
                model::LatencyClass::Interactive => Some("Interactive".to_owned()),
            },
        }
    }
}

impl Party {
    /// One end of a flow as it was judged; `attribution` is `None` when nobody asked for it.
    #[must_use]
    pub fn new(
        vm: Option<&model::VmRef>,
        address: IpAddr,
        port: u16,
        attribution: Option<&model::Attribution>,
    ) -> Self {
        Self {
            vm: vm.map(ToString::to_string),
            address,
            port,
            process: attribution.and_then(|a| a.process.as_ref()).map(Process::from),
            uid: attribution.and_then(model::Attribution::uid),
            user: attribution.and_then(model::Attribution::user).map(str::to_owned),
            confidence: attribution.map(|a| a.confidence.into()),
            unknown: attribution.and_then(|a| a.unknown).map(UnknownReason::from),
            netns: attribution.and_then(|a| a.socket_netns),
            inner: attribution.and_then(|a| a.inner),
        }
    }
}

impl Nic {
    /// A card as the inventory declares it, in the given state.
    #[must_use]
    pub fn new(nic: &model::Nic, state: NicState, features: Vec<String>) -> Self {
        Self {
            name: nic.name.to_string(),
            mac: nic.mac.to_string(),
            addresses: nic.addresses.iter().map(ToString::to_string).collect(),
            socket: nic.socket.display().to_string(),
            state,
            features,
        }
    }
}
