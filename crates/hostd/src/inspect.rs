// SPDX-License-Identifier: Apache-2.0
//! The thread that looks for threats in all guests, a little at a time.
//!
//! A guest is looked at for a fraction of a millisecond every [`PERIOD`], and for some more every few seconds; a
//! question about one of its frames waits that long at most.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::introspect::Introspection;

/// Time between two looks at a guest.
const PERIOD: Duration = Duration::from_millis(50);

/// Starts the thread. It lives as long as the process.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(introspection: &Arc<Introspection>) -> io::Result<()> {
    let introspection = Arc::clone(introspection);
    std::thread::Builder::new().name("inspect".into()).spawn(move || {
        loop {
            std::thread::sleep(PERIOD);
            inspect_all(&introspection);
        }
    })?;
    Ok(())
}

fn inspect_all(introspection: &Introspection) {
    for vm in introspection.vms() {
        introspection.with(&vm, |state, _| {
            // A guest that changes too fast to be read, or was reset, is looked at again.
            if let Some(Err(error)) = state.look(|guest| guest.inspect(clock())) {
                tracing::trace!(%vm, error = %telemetry::Chain(&error), "guest not inspected");
            }
        });
    }
}

/// The clock of findings.
pub fn clock() -> Duration {
    Duration::from_nanos(clock::now().0)
}
