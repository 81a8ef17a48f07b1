// SPDX-License-Identifier: Apache-2.0
//! A name server outside the mesh, of a few lines.

use std::net::{Ipv4Addr, UdpSocket};

/// Where the question begins in a message (RFC 1035 section 4.1).
const HEADER_LEN_BYTES: usize = 12;

/// Finds this address for every question that comes to the socket, until the process ends.
pub fn serve(socket: UdpSocket, found: Ipv4Addr) {
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut bytes) {
            // Whoever gets no answer sees for himself.
            drop(answer(&bytes[..len], found).map(|answer| socket.send_to(&answer, from)));
        }
    });
}

/// The question with one record to it, whose name is the question's.
fn answer(question: &[u8], found: Ipv4Addr) -> Option<Vec<u8>> {
    let name_len = question.get(HEADER_LEN_BYTES..)?.iter().position(|byte| *byte == 0)?;
    // The zero that ends the name, type and class.
    let mut answer = question.get(..HEADER_LEN_BYTES + name_len + 5)?.to_vec();
    answer[2..HEADER_LEN_BYTES].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend_from_slice(&[0xc0, HEADER_LEN_BYTES as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend_from_slice(&found.octets());
    Some(answer)
}
