// SPDX-License-Identifier: Apache-2.0
//! What decorates processes and sockets: wide tables and the process tree.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use api::admin::{ProcessDetail, SocketDetail};

use super::vm::user;
use super::{Grid, Style, maybe, plain, size};
use crate::text::visible;

/// Digits of a container id that tables show, as other tools do.
const CONTAINER_CHARS: usize = 12;
/// Deepest level that is drawn with its place; what is deeper stands there too.
const DEPTH_MAX: usize = 64;

/// A machine's processes with what decorates them.
pub(crate) fn process_details(processes: &[ProcessDetail], style: Style) -> String {
    const HEADER: [&str; 14] = [
        "PID",
        "PPID",
        "USER",
        "STATE",
        "THREADS",
        "RSS",
        "PIDNS",
        "NETNS",
        "MNTNS",
        "USERNS",
        "CONTAINER",
        "UNIT",
        "NAME",
        "COMMAND",
    ];
    let mut grid = Grid::new(style, &HEADER, &[0, 1, 4, 5]);
    for detail in processes {
        let process = &detail.process;
        let container = detail.container.as_ref();
        let spaces = detail.namespaces;
        grid.row(vec![
            plain(process.pid),
            plain(process.parent_pid),
            maybe(user(process)),
            maybe(detail.state),
            maybe(detail.threads),
            maybe(detail.resident_bytes.map(size)),
            maybe(spaces.pid),
            maybe(spaces.net),
            maybe(spaces.mnt),
            maybe(spaces.user),
            maybe(container.map(|id| id.chars().take(CONTAINER_CHARS).collect::<String>())),
            maybe(process.unit.as_ref()),
            plain(&process.name),
            maybe(command(detail).or(process.exe.clone())),
        ]);
    }
    grid.finish("no processes were found")
}

/// The command line as one text.
fn command(detail: &ProcessDetail) -> Option<String> {
    detail.command.as_ref().map(|words| words.join(" "))
}

/// A machine's processes as a tree, children below their parents, in the order given.
pub(crate) fn process_tree(processes: &[ProcessDetail], _style: Style) -> String {
    let pids: HashSet<u32> = processes.iter().map(|detail| detail.process.pid).collect();
    let mut children: HashMap<u32, Vec<&ProcessDetail>> = HashMap::new();
    let mut roots = Vec::new();
    for detail in processes {
        let parent = detail.process.parent_pid;
        if parent != detail.process.pid && pids.contains(&parent) {
            children.entry(parent).or_default().push(detail);
        } else {
            roots.push(detail);
        }
    }
    let mut drawn = String::new();
    let mut told = HashSet::new();
    // A guest may claim that processes are each other's parents: those that no root leads to come last.
    for root in roots.into_iter().chain(processes) {
        let mut pending = vec![(root, String::new(), String::new())];
        while let Some((detail, mark, indent)) = pending.pop() {
            if !told.insert(detail.process.pid) {
                continue;
            }
            let said = command(detail).unwrap_or_else(|| format!("[{}]", detail.process.name));
            writeln!(drawn, "{mark}{} {}", detail.process.pid, visible(&said))
                .expect("a string takes all that is written");
            let below = children.get(&detail.process.pid).map_or(&[][..], Vec::as_slice);
            let is_deep = indent.chars().count() >= DEPTH_MAX * 3;
            for (index, child) in below.iter().enumerate().rev() {
                let is_last = index + 1 == below.len();
                let (mark, next) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
                let next = if is_deep { indent.clone() } else { format!("{indent}{next}") };
                pending.push((child, format!("{indent}{mark}"), next));
            }
        }
    }
    if drawn.is_empty() { "no processes were found\n".into() } else { drawn }
}

/// A machine's sockets with what they count.
pub(crate) fn socket_details(sockets: &[SocketDetail], style: Style) -> String {
    const HEADER: [&str; 13] = [
        "PROTO", "STATE", "LOCAL", "REMOTE", "QUEUE", "RTT", "RETRANS", "SENT", "ACKED", "RECEIVED", "UID",
        "NETNS", "OWNERS",
    ];
    let mut grid = Grid::new(style, &HEADER, &[4, 5, 6, 7, 8, 9, 10]);
    for detail in sockets {
        let (socket, tcp) = (&detail.socket, detail.tcp);
        let owners =
            socket.owners.iter().map(|owner| format!("{}[{}] fd {}", owner.name, owner.pid, owner.fd));
        let owners: Vec<String> = owners.collect();
        grid.row(vec![
            plain(&socket.protocol),
            plain(&socket.state),
            plain(&socket.local),
            plain(&socket.remote),
            maybe(detail.accept_queue.map(|queue| format!("{}/{}", queue.len, queue.max))),
            maybe(tcp.filter(|tcp| tcp.rtt_us > 0).map(|tcp| micros(tcp.rtt_us))),
            maybe(tcp.map(|tcp| tcp.retransmits)),
            maybe(tcp.map(|tcp| size(tcp.sent_bytes))),
            maybe(tcp.map(|tcp| size(tcp.acked_bytes))),
            maybe(tcp.map(|tcp| size(tcp.received_bytes))),
            maybe(socket.uid),
            maybe(socket.netns),
            maybe((!owners.is_empty()).then(|| owners.join(", "))),
        ]);
    }
    grid.finish("no sockets were found")
}

/// A time in microseconds, or in milliseconds to a tenth.
pub(super) fn micros(us: u32) -> String {
    if us < 1000 { format!("{us}us") } else { format!("{}.{}ms", us / 1000, us % 1000 / 100) }
}

#[cfg(test)]
mod tests {
    use api::admin::{AcceptQueue, Namespaces, Process, Socket, TcpCounters};

    use super::*;

    fn process(pid: u32, parent_pid: u32, command: Option<&[&str]>) -> ProcessDetail {
        ProcessDetail {
            process: Process {
                pid,
                parent_pid,
                name: format!("name{pid}"),
                exe: None,
                uid: Some(0),
                user: Some("root".into()),
                unit: None,
                cgroup: None,
                start_time_ns: 0,
            },
            command: command.map(|words| words.iter().map(ToString::to_string).collect()),
            container: Some("0123456789abcdef".into()),
            namespaces: Namespaces { net: Some(4_026_531_840), ..Namespaces::default() },
            resident_bytes: Some(2 << 20),
            threads: Some(3),
            state: Some('S'),
        }
    }

    #[test]
    fn wide_processes_show_what_is_known_and_dashes() {
        assert_eq!(
            process_details(&[process(1, 0, Some(&["/sbin/init", "a\u{1b}b"]))], Style::default()),
            "\
PID  PPID  USER  STATE  THREADS      RSS  PIDNS  NETNS       MNTNS  USERNS  CONTAINER     UNIT  NAME   COMMAND
  1     0  root  S            3  2.0 MiB  -      4026531840  -      -       0123456789ab  -     name1  /sbin/init a\\x1bb
"
        );
    }

    #[test]
    fn tree_draws_children_below_their_parents() {
        let processes = [
            process(1, 0, Some(&["/sbin/init"])),
            process(2, 0, None),
            process(5, 1, Some(&["shop", "se\nrve"])),
            process(6, 5, None),
            process(7, 1, None),
        ];
        assert_eq!(
            process_tree(&processes, Style::default()),
            "\
1 /sbin/init
├─ 5 shop se\\nrve
│  └─ 6 [name6]
└─ 7 [name7]
2 [name2]
"
        );
        assert_eq!(process_tree(&[], Style::default()), "no processes were found\n");
    }

    #[test]
    fn parents_in_a_circle_and_endless_chains_are_drawn_once() {
        let circle = [process(3, 4, None), process(4, 3, None), process(5, 5, None)];
        assert_eq!(process_tree(&circle, Style::default()).lines().count(), 3);
        let chain: Vec<_> = (1..5000).map(|pid| process(pid, pid - 1, None)).collect();
        let drawn = process_tree(&chain, Style::default());
        assert_eq!(drawn.lines().count(), 4999);
        assert!(drawn.lines().all(|line| line.chars().count() < 256));
    }

    #[test]
    fn wide_sockets_show_queues_and_counters() {
        let socket = Socket {
            protocol: "tcp".into(),
            state: "listen".into(),
            local: "0.0.0.0:80".into(),
            remote: "0.0.0.0:0".into(),
            uid: Some(0),
            inode: None,
            netns: Some(1),
            owners: vec![],
        };
        let tcp = TcpCounters {
            rtt_us: 1250,
            retransmits: 2,
            sent_bytes: 10,
            acked_bytes: 5,
            received_bytes: 2048,
        };
        let queue = Some(AcceptQueue { len: 1, max: 128 });
        let listener = SocketDetail { socket: socket.clone(), accept_queue: queue, tcp: None };
        let connection = SocketDetail { socket, accept_queue: None, tcp: Some(tcp) };
        assert_eq!(
            socket_details(&[listener, connection], Style::default()),
            "\
PROTO  STATE   LOCAL       REMOTE     QUEUE    RTT  RETRANS  SENT  ACKED  RECEIVED  UID  NETNS  OWNERS
tcp    listen  0.0.0.0:80  0.0.0.0:0  1/128      -        -     -      -         -    0  1      -
tcp    listen  0.0.0.0:80  0.0.0.0:0      -  1.2ms        2  10 B    5 B   2.0 KiB    0  1      -
"
        );
    }
}
