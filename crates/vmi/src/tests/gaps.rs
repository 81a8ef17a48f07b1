// SPDX-License-Identifier: Apache-2.0
//! A kernel that does not describe one member of one structure: what needs it is missing, with the reason, and
//! everything else is told as before.

use std::sync::Arc;

use model::Process;

use super::kernel::Kernel;
use super::symbols::SymbolOrder;
use super::{attach, connection};
use crate::{AttachError, Guest, Socket};

/// Without these there are no processes, and so nothing.
const ESSENTIAL: [(&str, &str); 3] =
    [("task_struct", "tasks"), ("task_struct", "tgid"), ("task_struct", "comm")];

#[test]
fn every_member_that_is_missing_leaves_the_rest() {
    let whole = Kernel::new(4, SymbolOrder::OffsetsLast);
    let mut known = attach(&whole.ram);
    assert_eq!(known.gaps(), []);
    let (processes, sockets) = (known.processes().unwrap(), known.sockets().unwrap());
    let owner = connection(&mut known);
    let mut with_gaps = 0;
    for (structure, member) in Kernel::members() {
        let what = format!("{structure}.{member}");
        let mut kernel = whole.clone();
        kernel.forget(structure, member);
        let guest = Guest::attach(Arc::new(kernel.ram.clone()));
        if ESSENTIAL.contains(&(structure, member)) {
            assert!(matches!(guest.err(), Some(AttachError::Types(_))), "{what}");
            continue;
        }
        let mut guest = guest.unwrap_or_else(|error| panic!("{what}: {error}"));
        with_gaps += usize::from(!guest.gaps().is_empty());
        let told = guest.processes().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(told.len(), processes.len(), "{what}");
        for (told, known) in told.iter().zip(&processes) {
            check_process(&guest, told, known, &what);
        }
        check_sockets(&guest, &sockets, &what);
        let found = connection(&mut guest);
        if guest.gaps().is_empty() {
            assert_eq!(found, owner, "{what}");
        } else {
            // Never another one.
            let pid = found.process.map(|process| process.pid);
            assert!(pid.is_none_or(|pid| pid == 7), "{what}");
        }
        for seconds in 0..6 {
            // May not be possible; but what is not described is no threat.
            let _ = guest.inspect(std::time::Duration::from_secs(seconds));
        }
        assert_eq!(guest.threats(), [], "{what}");
    }
    assert!(with_gaps > 80, "{with_gaps}");
}

fn lacks(guest: &Guest, views: &[&str]) -> bool {
    guest.gaps().iter().any(|gap| views.contains(&gap.view))
}

/// What differs must be what the gaps say.
fn check_process(guest: &Guest, told: &Process, known: &Process, what: &str) {
    let relations = lacks(guest, &["process relations"]);
    assert_eq!((told.pid, &told.name), (known.pid, &known.name), "{what}");
    assert!(told.parent_pid == known.parent_pid || relations && told.parent_pid == 0, "{what}");
    assert!(told.start_time_ns == known.start_time_ns || relations, "{what}");
    let paths = ["executable paths", "open files", "process relations"];
    assert!(told.exe == known.exe || told.exe.is_none() && lacks(guest, &paths), "{what}");
    let users = ["users", "process relations"];
    assert!(told.uid == known.uid || told.uid.is_none() && lacks(guest, &users), "{what}");
    let groups = ["control groups", "process relations"];
    assert!(told.cgroup == known.cgroup || told.cgroup.is_none() && lacks(guest, &groups), "{what}");
}

/// Sockets may be missing or told in part, but only with a reason, and never with other owners.
fn check_sockets(guest: &Guest, known: &[Socket], what: &str) {
    let told = guest.sockets();
    let views = [
        "sockets",
        "owners of sockets",
        "inodes of sockets",
        "connections",
        "listeners",
        "UDP sockets",
        "open files",
        "process relations",
    ];
    if !lacks(guest, &views) {
        assert_eq!(told.as_deref(), Ok(known), "{what}");
    }
    if lacks(guest, &["sockets"]) {
        return;
    }
    for socket in told.unwrap_or_else(|error| panic!("{what}: {error}")) {
        let same = known.iter().find(|other| (other.local, other.remote) == (socket.local, socket.remote));
        let same = same.unwrap_or_else(|| panic!("{what}: {socket:?}"));
        assert!(socket.owners.is_empty() || socket.owners == same.owners, "{what}");
    }
}
