// SPDX-License-Identifier: Apache-2.0
//! The switch as its callers see it: frames in, verdicts, emissions and events out.

mod checks;
mod demands;
mod dns;
mod dns_learned;
mod dns_tcp;
mod dns_upstream;
mod express;
mod external;
mod forwarding;
mod fragments;
mod hostile;
mod judging;
mod layer7;
mod limits;
mod local;
mod model_based;
mod names;
mod restart;
mod services;
mod table;
mod tcp;
mod tracing;
mod treatment;
mod windows;
mod world;
