// SPDX-License-Identifier: Apache-2.0
//! The tenants' switch: it forwards between virtual machines, tracks connections and enforces policy.
//!
//! Every tenant has an address space of its own. A frame that belongs to a known flow costs one lookup in
//! the flow table; the first frame of a flow is checked against its sender's addresses, resolved to an
//! endpoint and put to the published policy ([`model::Judge`]), and the answer is kept with the flow.
//!
//! The switch holds no frame. One that exceeds a limit is given the time at which it is to be offered again
//! ([`Verdict::Hold`]). When policy must know the process behind a flow, [`Switch::process`] answers
//! [`Verdict::Ask`] and has changed nothing; the caller finds the answer out and offers the same frame
//! again. Frames that the switch makes itself are drained through [`Switch::emissions`].
//!
//! Invariants:
//! - A frame leaves only towards a port of its sender's tenant, one that leads outside and that its tenant has a
//!   network at, one that offers its sender a service, or as a copy to the collector that a rule names, from its sender's own addresses, and only as part of a flow that the current generation of
//!   policy has allowed.
//! - A flow is two slots of the [`FlowSlots`], one per direction, each pointing at the other. Slots outlive
//!   the process when the caller's memory does; what was known *about* a flow (identities, judgement) does
//!   not, so an adopted flow is judged again before its next frame passes.
//! - What else is done with a flow than forwarding it is done by stages whose flags policy has set; see [`stage`].
//! - All tables, queues and loops are bounded; what did not fit is counted.
//!
//! Deliberately absent: clocks and sockets (time is an argument), threads, reassembly of fragments (each is
//! forwarded for itself), router advertisements, and traffic between link-local addresses.
#![forbid(unsafe_code)]

mod arrival;
mod balance;
mod case;
mod checking;
mod checks;
mod config;
mod counters;
mod course;
mod dhcp;
mod dns;
mod express;
mod flow;
mod fragment;
mod frame;
mod judgements;
mod judging;
mod key;
mod layer7;
mod local;
mod outbox;
mod outside;
mod passing;
mod port;
mod ports;
mod preview;
mod qos;
mod rate;
mod recent;
mod services;
mod serving;
mod slot;
mod stage;
mod state;
mod sweep;
mod switch;
mod table;
mod talk;
mod tcp;
mod verdict;

pub use balance::{Among, Balancer, Candidate, Choice};
pub use config::{SwitchConfig, Timeouts};
pub use counters::Counters;
pub use dns::{DnsConfig, DnsQuestion, DnsReply, DnsTicket, Found};
pub use flow::{FlowChange, FlowEnd, FlowEvent, FlowRecord, FlowTrace, Told};
pub use frame::{FRAME_LEN_BYTES_MAX, Frame, HEAD_LEN_BYTES_MAX, PortId};
pub use layer7::{Detection, PREFIX_LEN_BYTES_MAX, detect};
pub use outbox::{EMISSIONS_MAX, EVENTS_MAX, Emission};
pub use outside::Uplink;
pub use preview::{Preview, Previewer};
pub use qos::{ClassRecord, Credit, FRAME_COST_BYTES, MeterRecord, QUANTUM_BYTES, Turn};
pub use services::EndpointRecord;
pub use slot::{FlowSlot, FlowSlots, SLOTS_MAX};
pub use stage::reviewed;
pub use state::FlowState;
pub use switch::Switch;
pub use table::SLOTS_MIN;
pub use verdict::{Answers, Ask, DropReason, How, Question, Verdict};
