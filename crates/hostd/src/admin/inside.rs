// SPDX-License-Identifier: Apache-2.0
//! From the engine's views of a guest's inside to the admin protocol's.

use api::admin::{
    AcceptQueue, CpuSample, Namespaces, Process, ProcessDetail, ProcessTime, RunQueue, Socket, SocketDetail,
    SocketOwner, TcpCounters, ThreadTime,
};
use model::Moment;

/// A process as clients see it.
pub fn process(detail: vmi::ProcessDetail) -> ProcessDetail {
    let vmi::ProcessDetail { process, command, namespaces, resident_bytes, threads, state } = detail;
    ProcessDetail {
        container: process.container().map(str::to_owned),
        process: Process::from(&process),
        command,
        namespaces: Namespaces {
            pid: namespaces.pid,
            net: namespaces.net,
            mnt: namespaces.mnt,
            user: namespaces.user,
        },
        resident_bytes,
        threads,
        state: state.map(vmi::ProcessState::as_char),
    }
}

/// What the processors had done at `now`.
pub fn cpu(sample: vmi::CpuSample, now: Moment) -> CpuSample {
    let cpus = sample.cpus.into_iter().map(|queue| RunQueue {
        cpu: queue.cpu,
        pid: queue.pid,
        tid: queue.tid,
        name: queue.name,
        runnable: queue.runnable,
        switches: queue.switches,
    });
    let processes = sample.processes.into_iter().map(|process| ProcessTime {
        pid: process.pid,
        start_time_ns: process.start_time_ns,
        name: process.name,
        runtime_ns: process.runtime_ns,
        threads: process.threads.into_iter().map(thread).collect(),
    });
    CpuSample { at_ns: now.0, processes: processes.collect(), cpus: cpus.collect() }
}

fn thread(thread: vmi::ThreadTime) -> ThreadTime {
    ThreadTime {
        tid: thread.tid,
        name: thread.name,
        runtime_ns: thread.runtime_ns,
        voluntary_switches: thread.voluntary_switches,
        involuntary_switches: thread.involuntary_switches,
    }
}

/// Sockets as clients see them; `name` gives the name of a process.
pub fn sockets(details: &vmi::SocketDetails, name: impl Fn(u32) -> String) -> Vec<SocketDetail> {
    let internet = details.internet.iter().map(|detail| {
        let mut socket = super::view::socket(&detail.socket, &name);
        if detail.is_raw {
            socket.protocol = "raw".into();
        }
        SocketDetail {
            socket,
            accept_queue: detail.accept_queue.map(|queue| AcceptQueue { len: queue.len, max: queue.max }),
            tcp: detail.tcp.map(|tcp| TcpCounters {
                rtt_us: tcp.rtt_us,
                retransmits: tcp.retransmits,
                sent_bytes: tcp.sent_bytes,
                acked_bytes: tcp.acked_bytes,
                received_bytes: tcp.received_bytes,
            }),
        }
    });
    internet.chain(details.packet.iter().map(|socket| packet(socket, &name))).collect()
}

fn packet(socket: &vmi::PacketSocket, name: impl Fn(u32) -> String) -> SocketDetail {
    /// `ETH_P_ALL`.
    const ALL: u16 = 3;
    let ether_type = match socket.ether_type {
        ALL => "*".to_owned(),
        ether_type => format!("{ether_type:#06x}"),
    };
    let device = if socket.device == 0 { "*".to_owned() } else { socket.device.to_string() };
    let owners = socket.owners.iter();
    let owners = owners.map(|owner| SocketOwner { pid: owner.pid, name: name(owner.pid), fd: owner.fd });
    let socket = Socket {
        protocol: "packet".into(),
        state: vmi::SocketState::Close.as_str().into(),
        local: format!("{ether_type}%{device}"),
        remote: "*".into(),
        uid: Some(socket.uid),
        inode: socket.inode,
        netns: Some(socket.netns_inode.into()),
        owners: owners.collect(),
    };
    SocketDetail { socket, accept_queue: None, tcp: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_sockets_tell_what_they_take_and_where() {
        for (ether_type, device, local) in [(3, 0, "*%*"), (0x0806, 2, "0x0806%2"), (0, 0, "0x0000%*")] {
            let socket = vmi::PacketSocket {
                ether_type,
                device,
                uid: 0,
                inode: Some(9),
                netns_inode: 1,
                owners: vec![vmi::Owner { pid: 5, fd: 4 }],
            };
            let details = vmi::SocketDetails { internet: vec![], packet: vec![socket] };
            let told = sockets(&details, |pid| format!("name{pid}"));
            assert_eq!((told[0].socket.protocol.as_str(), told[0].socket.local.as_str()), ("packet", local));
            assert_eq!(told[0].socket.owners[0].name, "name5");
        }
    }

    #[test]
    fn raw_sockets_are_told_apart_from_the_protocol_that_they_speak() {
        let socket = vmi::Socket {
            protocol: model::Protocol::Udp,
            local: "0.0.0.0:17".parse().unwrap(),
            remote: "0.0.0.0:0".parse().unwrap(),
            state: vmi::SocketState::Close,
            uid: Some(0),
            inode: None,
            netns_inode: 1,
            owners: vec![],
        };
        let detail = vmi::SocketDetail { socket, is_raw: true, accept_queue: None, tcp: None };
        let details = vmi::SocketDetails { internet: vec![detail], packet: vec![] };
        assert_eq!(sockets(&details, |_| String::new())[0].socket.protocol, "raw");
    }

    #[test]
    fn container_is_told_by_the_control_group() {
        let id = "0123456789abcdef".repeat(4);
        let cgroup = Some(format!("/system.slice/docker-{id}.scope"));
        let told = process(vmi::ProcessDetail {
            process: model::Process { pid: 3, cgroup, ..model::Process::default() },
            command: Some(vec!["a".into()]),
            namespaces: vmi::Namespaces { net: Some(4), ..vmi::Namespaces::default() },
            resident_bytes: Some(4096),
            threads: Some(1),
            state: Some(vmi::ProcessState::Sleeping),
        });
        assert_eq!((told.container, told.state, told.namespaces.net), (Some(id), Some('S'), Some(4)));
    }
}
