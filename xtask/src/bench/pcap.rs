// SPDX-License-Identifier: Apache-2.0
//! The frames that the generator loops: UDP datagrams, one per flow or question.

/// An Ethernet and an IP address.
type End = ([u8; 6], [u8; 4]);

const A: End = ([2, 0, 0, 0, 0, 1], [10, 0, 0, 1]);
const B: End = ([2, 0, 0, 0, 0, 2], [10, 0, 0, 2]);
/// The virtual gateway and what is behind it: a service's address, and whom machines ask for names.
const GATEWAY: [u8; 6] = [2, 0, 0x5e, 0, 1, 1];
pub const GATEWAY_MAC: &str = "02:00:5e:00:01:01";
pub const SERVICE: [u8; 4] = [10, 96, 0, 10];
pub const RESOLVER: [u8; 4] = [169, 254, 1, 53];
/// The port of the service, and of the first flows.
pub const SERVER_PORT: u16 = 5000;
/// Flows to one port of the server.
const FLOWS_PER_PORT: usize = 30_000;

/// Which way frames go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    There,
    /// The same, to a service's virtual address.
    ToService,
    Back,
}

/// One frame of `frame_bytes` for each of `flows` flows.
pub fn flows(flows: usize, frame_bytes: usize, way: Way) -> impl Iterator<Item = Vec<u8>> {
    (0..flows).map(move |flow| {
        // Even ones all, which the rules of the cases are not about.
        let client_port = u16::try_from(1024 + 2 * (flow % FLOWS_PER_PORT)).expect("below 65,536");
        let server_port = SERVER_PORT + u16::try_from(2 * (flow / FLOWS_PER_PORT)).expect("few");
        let (from, to, ports) = match way {
            Way::There => (A, B, [client_port, server_port]),
            Way::ToService => (A, (GATEWAY, SERVICE), [client_port, server_port]),
            Way::Back => (B, A, [server_port, client_port]),
        };
        frame(from, to, ports, &vec![0; frame_bytes - 42])
    })
}

/// A question for the address of each of so many services.
pub fn questions(names: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..names).map(|number| {
        let port = u16::try_from(1024 + number % 60_000).expect("below 65,536");
        frame(A, (GATEWAY, RESOLVER), [port, 53], &testkit::names::question(number as u16, &name(number)))
    })
}

/// The name of a service.
pub fn name(number: usize) -> String {
    format!("s{number}.tenant.mesh.internal")
}

fn frame(from: End, to: End, ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let ip_len = u16::try_from(28 + payload.len()).expect("a frame fits an IP packet");
    let mut ip = [0_u8; 20];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
    ip[8] = 64;
    ip[9] = 17;
    ip[12..16].copy_from_slice(&from.1);
    ip[16..20].copy_from_slice(&to.1);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes());

    let mut frame = Vec::with_capacity(usize::from(ip_len) + 14);
    frame.extend_from_slice(&to.0);
    frame.extend_from_slice(&from.0);
    frame.extend_from_slice(&[0x08, 0x00]);
    frame.extend_from_slice(&ip);
    ports.iter().for_each(|port| frame.extend_from_slice(&port.to_be_bytes()));
    frame.extend_from_slice(&(ip_len - 20).to_be_bytes());
    // Without a checksum, as IPv4 allows.
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(payload);
    frame
}
