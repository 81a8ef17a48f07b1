// SPDX-License-Identifier: Apache-2.0
//! Capture files with the frames that the generator loops: UDP datagrams of one size, one per flow.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};

const A: ([u8; 6], [u8; 4]) = ([2, 0, 0, 0, 0, 1], [10, 0, 0, 1]);
const B: ([u8; 6], [u8; 4]) = ([2, 0, 0, 0, 0, 2], [10, 0, 0, 2]);

/// Writes one frame of `frame_bytes` for each of `flows` flows from `a` to `b`, or of their answers.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, flows: usize, frame_bytes: usize, answers: bool) -> Result<()> {
    let failed = || format!("write {}", path.display());
    let mut file = BufWriter::new(File::create(path).with_context(failed)?);
    // The classic format: magic, version 2.4, no time zone, any length, Ethernet.
    let header: [u32; 6] = [0xa1b2_c3d4, 2 | 4 << 16, 0, 0, 65_535, 1];
    header.iter().try_for_each(|word| file.write_all(&word.to_le_bytes()))?;
    for flow in 0..flows {
        let frame = frame(flow, frame_bytes, answers);
        let len = u32::try_from(frame.len())?;
        [0, 0, len, len].iter().try_for_each(|word| file.write_all(&word.to_le_bytes()))?;
        file.write_all(&frame)?;
    }
    file.flush().with_context(failed)
}

fn frame(flow: usize, frame_bytes: usize, answers: bool) -> Vec<u8> {
    // Even ones all, which the rules of the cases are not about.
    let client_port = u16::try_from(1024 + 2 * (flow % 30_000)).expect("below 65,536");
    let server_port = u16::try_from(5000 + 2 * (flow / 30_000)).expect("few");
    let (from, to, ports) =
        if answers { (B, A, [server_port, client_port]) } else { (A, B, [client_port, server_port]) };
    let ip_len = u16::try_from(frame_bytes - 14).expect("a frame fits an IP packet");
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

    let mut frame = Vec::with_capacity(frame_bytes);
    frame.extend_from_slice(&to.0);
    frame.extend_from_slice(&from.0);
    frame.extend_from_slice(&[0x08, 0x00]);
    frame.extend_from_slice(&ip);
    ports.iter().for_each(|port| frame.extend_from_slice(&port.to_be_bytes()));
    frame.extend_from_slice(&(ip_len - 20).to_be_bytes());
    // Without a checksum, as IPv4 allows.
    frame.extend_from_slice(&[0, 0]);
    frame.resize(frame_bytes, 0);
    frame
}
