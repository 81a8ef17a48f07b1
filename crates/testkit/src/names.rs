// SPDX-License-Identifier: Apache-2.0
//! A name server outside the mesh, and questions, in a few lines.

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

/// A question for a name's IPv4 address, with a number of one's own (RFC 1035 section 4.1).
///
/// # Panics
/// When a label of the name has more than 255 bytes.
#[must_use]
pub fn question(number: u16, name: &str) -> Vec<u8> {
    let [high, low] = number.to_be_bytes();
    // Recursion desired, one question.
    let mut question = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).expect("a label is short"));
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    question
}

/// Whether a message answers the question of that number with a record at least.
#[must_use]
pub fn is_answered(message: &[u8], number: u16) -> bool {
    let [high, low] = number.to_be_bytes();
    matches!(message, [a, b, flags, code, _, _, more, count, ..]
        if [*a, *b] == [high, low] && flags & 0x80 != 0 && code & 0xf == 0 && (*more, *count) != (0, 0))
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
