// SPDX-License-Identifier: Apache-2.0
//! Guest RAM that lies: attached to and asked everything there is to ask.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmi::fuzzing::run(bytes));
