// SPDX-License-Identifier: Apache-2.0
//! Much data at once, so that frames are as large as the card allows, checked byte by byte.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Instant;

use crate::{client, outcome};

const MIB: usize = 1 << 20;
/// Prime, so that the pattern never falls into step with frames or buffers.
const PERIOD: usize = 251;

/// Sends `mib` MiB and takes as much back; prints how fast, in both directions together.
pub fn run(to: &str, mib: usize) -> bool {
    let started = Instant::now();
    outcome::tell(client::open(to).and_then(|stream| exchange(stream, mib * MIB)), || {
        let mib_per_s = 2.0 * mib as f64 / started.elapsed().as_secs_f64();
        format!("mib_per_s={mib_per_s:.0}")
    })
}

fn exchange(mut stream: TcpStream, bytes: usize) -> Result<()> {
    let mut writer = stream.try_clone()?;
    let sender = thread::spawn(move || {
        let pattern: Vec<u8> = (0..MIB + PERIOD).map(|at| (at % PERIOD) as u8).collect();
        let mut sent = 0;
        while sent < bytes {
            let phase = sent % PERIOD;
            let length = (bytes - sent).min(MIB);
            writer.write_all(&pattern[phase..phase + length])?;
            sent += length;
        }
        Ok(())
    });
    let mut buffer = vec![0; MIB];
    let mut received = 0;
    while received < bytes {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let whole =
            buffer[..length].iter().enumerate().all(|(at, byte)| *byte == ((received + at) % PERIOD) as u8);
        if !whole {
            return Err(ErrorKind::InvalidData.into());
        }
        received += length;
    }
    sender.join().expect("the sender does not panic")
}
