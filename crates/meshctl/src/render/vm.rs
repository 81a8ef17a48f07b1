// SPDX-License-Identifier: Apache-2.0
//! Machines, and what was read from their memory.

use api::admin::{Introspection, IntrospectionState, Nic, NicState, Process, Socket, Vm, VmQos};

use super::{Grid, Style, Tone, maybe, plain};

/// All machines, one row per network card; a machine without cards, which is only looked into, has one too.
pub(crate) fn vms(vms: &[Vm], style: Style) -> String {
    machines(vms, style, false)
}

/// The same with what each may have of the host's capacity.
pub(crate) fn wide_vms(vms: &[Vm], style: Style) -> String {
    machines(vms, style, true)
}

fn machines(vms: &[Vm], style: Style, wide: bool) -> String {
    let mut head = vec!["VM", "NIC", "STATE", "ADDRESSES", "MAC", "INTROSPECTION", "KERNEL"];
    if wide {
        head.extend(["LIMIT BIT/S", "RESERVED BIT/S", "SHARES", "CLASS"]);
    }
    let numbers: &[usize] = if wide { &[7, 8, 9] } else { &[] };
    let mut grid = Grid::new(style, &head, numbers);
    for vm in vms {
        let (inside, kernel) = introspection(&vm.introspection);
        let name = plain(format!("{}/{}", vm.tenant, vm.name));
        let mut whole = vec![inside, kernel];
        if wide {
            whole.extend(qos(&vm.qos));
        }
        let cards: Vec<_> = if vm.nics.is_empty() {
            vec![[(); 4].map(|()| maybe(None::<&str>))]
        } else {
            vm.nics.iter().map(card).collect()
        };
        for (index, card) in cards.into_iter().enumerate() {
            // What is the machine's is said once.
            let first = |cell: &(String, Tone)| if index == 0 { cell.clone() } else { plain("") };
            grid.row([first(&name)].into_iter().chain(card).chain(whole.iter().map(first)).collect());
        }
    }
    grid.finish("no virtual machines are defined")
}

fn card(nic: &Nic) -> [(String, Tone); 4] {
    let state = match nic.state {
        NicState::Waiting => ("waiting".to_owned(), Tone::Notice),
        NicState::Connected => ("connected".to_owned(), Tone::Notice),
        NicState::Running => ("running".to_owned(), Tone::Good),
    };
    [plain(&nic.name), state, plain(nic.addresses.join(" ")), plain(&nic.mac)]
}

fn qos(qos: &VmQos) -> [(String, Tone); 4] {
    let VmQos { limit_bits_per_second, reserved_bits_per_second, shares, class } = qos;
    let class = maybe(class.as_ref());
    [maybe(*limit_bits_per_second), maybe(*reserved_bits_per_second), maybe(*shares), class]
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
    use api::admin::SocketOwner;

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
            qos: VmQos::default(),
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
        let (limited, alike) = (Some(100_000_000), Vm { name: "api".into(), ..vm.clone() });
        let qos = VmQos { limit_bits_per_second: limited, shares: Some(50), ..VmQos::default() };
        let nics = vec![nic("net0", NicState::Running)];
        assert_eq!(
            wide_vms(&[Vm { qos, nics: nics.clone(), ..vm.clone() }, Vm { nics, ..alike }], Style::default()),
            "\
VM        NIC   STATE    ADDRESSES                 MAC                INTROSPECTION     KERNEL                LIMIT BIT/S  RESERVED BIT/S  SHARES  CLASS
acme/web  net0  running  10.0.0.11/24 fd00::11/64  02:6d:76:00:01:0b  attached in 62ms  6.1.0-42-cloud-amd64    100000000               -      50  -
acme/api  net0  running  10.0.0.11/24 fd00::11/64  02:6d:76:00:01:0b  attached in 62ms  6.1.0-42-cloud-amd64            -               -       -  -
"
        );
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
