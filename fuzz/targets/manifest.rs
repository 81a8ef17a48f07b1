// SPDX-License-Identifier: Apache-2.0
//! Any text as a file of resources, and as a line on the admin socket.
#![no_main]

use std::io::Cursor;

use api::admin::{Request, wire};
use api::manifest::{Source, load_sources};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = wire::read::<Request>(&mut Cursor::new(bytes), wire::LINE_BYTES_MAX);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let source = Source { file: "fuzz.yaml".into(), text: text.to_owned() };
    if let Err(diagnostics) = load_sources(&[source]) {
        assert!(!diagnostics.is_empty(), "refused without a reason");
    }
});
