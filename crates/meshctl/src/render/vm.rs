// SPDX-License-Identifier: Apache-2.0
//! Machines, and what was read from their memory.

use api::admin::{Introspection, IntrospectionState, NicState, Process, Socket, Vm};

use super::{Grid, Style, Tone, maybe, plain};

/// All machines, one row per network card; a machine without cards, which is only looked into, has one too.
pub(crate) fn vms(vms: &[Vm], style: Style) -> String {
    let mut grid =
        Grid::new(style, &["VM", "NIC", "STATE", "ADDRESSES", "MAC", "INTROSPECTION", "KERNEL"], &[]);
    for vm in vms {
        let name = format!("{}/{}", vm.tenant, vm.name);
        let (inside, kernel) = introspection(&vm.introspection);
        if vm.nics.is_empty() {
            let none = maybe(None::<&str>);
            let row = [plain(&name), none.clone(), none.clone(), none.clone(), none, inside, kernel];
            grid.row(row.into());
            continue;
        }
        for (index, nic) in vm.nics.iter().enumerate() {
            let state = match nic.state {
                NicState::Waiting => ("waiting".to_owned(), Tone::Notice),
                NicState::Connected => ("connected".to_owned(), Tone::Notice),
                NicState::Running => ("running".to_owned(), Tone::Good),
            };
            let first = |cell: &(String, Tone)| if index == 0 { cell.clone() } else { plain("") };
            grid.row(vec![
                first(&plain(&name)),
                plain(&nic.name),
                state,
                plain(nic.addresses.join(" ")),
                plain(&nic.mac),
                first(&inside),
                first(&kernel),
            ]);
        }
    }
    grid.finish("no virtual machines are defined")
}

/// How far introspection is, and the kernel or what stands in its way.
fn introspection(introspection: &Introspection) -> ((String, Tone), (String, Tone)) {
    let took = introspection.attach_ms.map(|ms| format!(" in {ms:.0}ms")).unwrap_or_default();
    let state = match introspection.state {
        IntrospectionState::Waiting => ("waiting".to_owned(), Tone::Notice),
        IntrospectionState::Attaching => ("attaching".to_owned(), Tone::Notice),
        IntrospectionState::Attached => (format!("attached{took}"), Tone::Good),
        IntrospectionState::Failed => ("failed".to_owned(), Tone::Bad),
    };
    let told = match (&introspection.kernel, &introspection.reason) {
        (Some(kernel), Some(reason)) => Some(format!("{kernel}, {reason}")),
        (kernel, reason) => kernel.clone().or_else(|| reason.clone()),
    };
    (state, maybe(told.as_ref()))
}

/// A machine's processes.
pub(crate) fn processes(processes: &[Process], style: Style) -> String {
    let mut grid = Grid::new(style, &["PID", "PPID", "USER", "NAME", "UNIT", "EXE"], &[0, 1]);
    for process in processes {
        grid.row(vec![
            plain(process.pid),
            plain(process.parent_pid),
            maybe(user(process)),
            plain(&process.name),
            maybe(process.unit.as_ref()),
            maybe(process.exe.as_ref()),
        ]);
    }
    grid.finish("no processes were found")
}

/// The user of a process: by name if the machine has one, else by number.
pub(super) fn user(process: &Process) -> Option<String> {
    process.user.clone().or_else(|| process.uid.map(|uid| uid.to_string()))
}

/// A machine's sockets.
pub(crate) fn sockets(sockets: &[Socket], style: Style) -> String {
    let mut grid = Grid::new(style, &["PROTO", "STATE", "LOCAL", "REMOTE", "UID", "OWNERS"], &[4]);
    for socket in sockets {
        let owners: Vec<String> = socket
            .owners
            .iter()
            .map(|owner| format!("{}[{}] fd {}", owner.name, owner.pid, owner.fd))
            .collect();
        grid.row(vec![
            plain(&socket.protocol),
            plain(&socket.state),
            plain(&socket.local),
            plain(&socket.remote),
            maybe(socket.uid),
            maybe((!owners.is_empty()).then(|| owners.join(", "))),
        ]);
    }
    grid.finish("no sockets were found")
}

#[cfg(test)]
mod tests {
    use api::admin::{Nic, SocketOwner};

    use super::*;

    fn nic(name: &str, state: NicState) -> Nic {
        Nic {
            name: name.into(),
            mac: "02:6d:76:00:01:0b".into(),
            addresses: vec!["10.0.0.11/24".into(), "fd00::11/64".into()],
            socket: "web.sock".into(),
            state,
            features: vec![],
        }
    }

    #[test]
    fn machine_with_two_cards_is_named_once() {
        let vm = Vm {
            tenant: "acme".into(),
            name: "web".into(),
            nics: vec![nic("net0", NicState::Running), nic("net1", NicState::Waiting)],
            introspection: Introspection {
                state: IntrospectionState::Attached,
                kernel: Some("6.1.0-42-cloud-amd64".into()),
                reason: None,
                attach_ms: Some(61.7),
                resident_bytes: None,
            },
        };
        assert_eq!(
            vms(std::slice::from_ref(&vm), Style::default()),
            "\
VM        NIC   STATE    ADDRESSES                 MAC                INTROSPECTION     KERNEL
acme/web  net0  running  10.0.0.11/24 fd00::11/64  02:6d:76:00:01:0b  attached in 62ms  6.1.0-42-cloud-amd64
          net1  waiting  10.0.0.11/24 fd00::11/64  02:6d:76:00:01:0b
"
        );
        assert_eq!(vms(&[], Style::default()), "no virtual machines are defined\n");
        let looked_into = Vm { nics: Vec::new(), ..vm };
        let shown = vms(&[looked_into], Style::default());
        assert_eq!(shown.lines().count(), 2, "{shown}");
    }

    #[test]
    fn what_cannot_be_told_of_a_machine_is_shown_with_its_kernel() {
        let reason = "no users: structure `cred` has no member `euid.val`";
        for (kernel, shown) in [(Some("5.4.0"), format!("5.4.0, {reason}")), (None, reason.to_owned())] {
            let told = Introspection {
                state: IntrospectionState::Attached,
                kernel: kernel.map(str::to_owned),
                reason: Some(reason.into()),
                attach_ms: None,
                resident_bytes: None,
            };
            assert_eq!(introspection(&told).1, maybe(Some(&shown)));
        }
    }

    #[test]
    fn hostile_process_names_stay_within_their_cell() {
        let process = Process {
            pid: 42,
            parent_pid: 1,
            name: "\u{1b}]0;x\u{7}\n99  1  root".into(),
            exe: Some("/tmp/\u{202e}gpj.exe".into()),
            uid: Some(1000),
            user: None,
            unit: None,
            cgroup: None,
            start_time_ns: 0,
        };
        let shown = processes(&[process], Style::default());
        assert_eq!(shown.lines().count(), 2, "{shown}");
        assert!(shown.contains(r"\x1b]0;x\x07\n99  1  root") && shown.contains(r"\u{202e}"), "{shown}");
    }

    #[test]
    fn socket_owners_are_listed_and_missing_ones_dashed() {
        let socket = Socket {
            protocol: "tcp".into(),
            state: "listen".into(),
            local: "0.0.0.0:8080".into(),
            remote: "0.0.0.0:0".into(),
            uid: Some(0),
            inode: None,
            netns: None,
            owners: vec![SocketOwner { pid: 7, name: "orders".into(), fd: 3 }],
        };
        let orphan = Socket { owners: vec![], uid: None, ..socket.clone() };
        assert_eq!(
            sockets(&[socket, orphan], Style::default()),
            "\
PROTO  STATE   LOCAL         REMOTE     UID  OWNERS
tcp    listen  0.0.0.0:8080  0.0.0.0:0    0  orders[7] fd 3
tcp    listen  0.0.0.0:8080  0.0.0.0:0    -  -
"
        );
    }
}
