// SPDX-License-Identifier: Apache-2.0
//! A long conversation that notices every pause, loss and end.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{client, outcome};

/// Time between two lines.
const PACE: Duration = Duration::from_millis(10);
/// Without an echo for this long, the peer counts as gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the stream has seen.
struct Record {
    sent: u64,
    echoed: u64,
    /// When the last whole echo arrived.
    last: Instant,
    longest_gap: Duration,
    /// Echo bytes of a line that is not whole yet.
    partial: Vec<u8>,
}

/// Streams until `stop` exists. Prints `streaming` when the first echo is back, and at the end one line: the
/// ending (`done` if it was asked for), lines sent and echoed, and the longest time between two echoes.
pub fn run(to: &str, stop: &Path) -> bool {
    let stream = match client::open(to) {
        Ok(stream) => stream,
        Err(error) => {
            println!("{} sent=0 echoed=0 longest_gap_ms=0", outcome::word(&error));
            return false;
        }
    };
    let mut record =
        Record { sent: 0, echoed: 0, last: Instant::now(), longest_gap: Duration::ZERO, partial: Vec::new() };
    let ending = match talk(stream, stop, &mut record) {
        Ok(()) => "done".into(),
        Err(error) if error.kind() == ErrorKind::InvalidData => "garbled".into(),
        Err(error) => outcome::word(&error),
    };
    println!(
        "{ending} sent={} echoed={} longest_gap_ms={}",
        record.sent,
        record.echoed,
        record.longest_gap.as_millis()
    );
    ending == "done"
}

fn talk(mut stream: TcpStream, stop: &Path, record: &mut Record) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut next = Instant::now();
    loop {
        let stopping = stop.exists();
        if stopping && record.echoed == record.sent {
            return Ok(());
        }
        if !stopping {
            stream.write_all(format!("{}\n", record.sent).as_bytes())?;
            record.sent += 1;
        }
        next += PACE;
        listen(&mut stream, next, record)?;
        if record.last.elapsed() > PATIENCE {
            return Err(ErrorKind::TimedOut.into());
        }
    }
}

/// Takes in echoes until it is time for the next line; an end or reset ends it at once.
fn listen(stream: &mut TcpStream, until: Instant, record: &mut Record) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => record.take(&buffer[..length])?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

impl Record {
    /// Checks echoed bytes line by line against the numbers that were sent.
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.partial.extend_from_slice(bytes);
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            if line != format!("{}\n", self.echoed).into_bytes() {
                return Err(ErrorKind::InvalidData.into());
            }
            if self.echoed == 0 {
                println!("streaming");
            }
            self.echoed += 1;
            self.longest_gap = self.longest_gap.max(self.last.elapsed());
            self.last = Instant::now();
        }
        Ok(())
    }
}
