// SPDX-License-Identifier: Apache-2.0
//! Rings full of anything: the port may stop or drop frames, and its neighbour must not notice.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vhost_port::fuzzing::run(bytes));
