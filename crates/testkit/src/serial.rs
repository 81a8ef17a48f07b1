// SPDX-License-Identifier: Apache-2.0
//! Driving the root shell that listens on a guest's second serial line.
//!
//! A command goes out as one line; the guest runs it in a shell of its own, with its output and errors mixed as
//! they come, and ends it with a marker: an ASCII record separator, the command's number, and its exit status.
//! The marker's separator never appears in the line we send, so an echo could not be mistaken for it.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use thiserror::Error;

/// Precedes a marker; no test prints it.
const SEPARATOR: u8 = 0x1e;
/// A guest that prints more than this in one command is out of hand.
const OUTPUT_BYTES_MAX: usize = 4 << 20;

/// What a command did in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Standard output and error as they came, without the last line end.
    pub stdout: String,
    /// Exit status.
    pub status: i32,
}

impl Output {
    /// Whether the command succeeded.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status == 0
    }
}

/// Why nothing came back from the guest.
#[derive(Debug, Error)]
pub enum SerialError {
    /// The deadline passed; holds what had come until then.
    #[error("no answer within {limit:?}; so far: {partial:?}")]
    Deadline {
        /// The time given.
        limit: Duration,
        /// What had come.
        partial: String,
    },
    /// The other end closed the line: the VMM ended.
    #[error("the serial line was closed")]
    Closed,
    /// The guest printed more than a command may.
    #[error("the guest printed more than {OUTPUT_BYTES_MAX} bytes")]
    Flood,
    /// The line itself failed.
    #[error("the serial line failed")]
    Io(#[from] std::io::Error),
}

/// The harness's end of the line.
#[derive(Debug)]
pub(crate) struct Shell {
    line: UnixStream,
    /// Bytes read beyond the last marker.
    ahead: Vec<u8>,
    next_number: u64,
}

impl Shell {
    pub(crate) fn new(line: UnixStream) -> Self {
        Self { line, ahead: Vec::new(), next_number: 0 }
    }

    /// Waits until the guest's shell listens.
    pub(crate) fn ready(&mut self, limit: Duration) -> Result<(), SerialError> {
        self.marker("ready", limit).map(drop)
    }

    /// Runs a command line of the shell and waits for its end.
    pub(crate) fn run(&mut self, command: &str, limit: Duration) -> Result<Output, SerialError> {
        let number = self.next_number;
        self.next_number += 1;
        let quoted = command.replace('\'', r"'\''");
        let sent = format!("sh -c '{quoted}' </dev/null 2>&1; printf '\\036{number} %d\\n' $?\n");
        self.line.set_write_timeout(Some(limit))?;
        self.line.write_all(sent.as_bytes())?;
        let (before, status) = self.marker(&format!("{number} "), limit)?;
        let text = String::from_utf8_lossy(&before);
        let stdout = text.strip_suffix('\n').unwrap_or(&text).to_owned();
        Ok(Output { stdout, status: status.trim().parse().unwrap_or(-1) })
    }

    /// Has the guest's shell read a line, and does not wait for what comes of it.
    pub(crate) fn say(&mut self, line: &str) -> Result<(), SerialError> {
        Ok(self.line.write_all(format!("{line}\n").as_bytes())?)
    }

    /// Reads up to a marker that begins with `word`: what came before it, and the rest of its line.
    fn marker(&mut self, word: &str, limit: Duration) -> Result<(Vec<u8>, String), SerialError> {
        let deadline = Instant::now() + limit;
        let mut wanted = vec![SEPARATOR];
        wanted.extend_from_slice(word.as_bytes());
        let mut seen = std::mem::take(&mut self.ahead);
        loop {
            if let Some(start) = seen.windows(wanted.len()).position(|window| window == wanted) {
                let after = start + wanted.len();
                if let Some(length) = seen[after..].iter().position(|byte| *byte == b'\n') {
                    self.ahead = seen.split_off(after + length + 1);
                    let rest = String::from_utf8_lossy(&seen[after..after + length]).into_owned();
                    seen.truncate(start);
                    return Ok((seen, rest));
                }
            }
            if seen.len() > OUTPUT_BYTES_MAX {
                return Err(SerialError::Flood);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.read_more(&mut seen, left)? {
                let partial = String::from_utf8_lossy(&seen).into_owned();
                self.ahead = seen;
                return Err(SerialError::Deadline { limit, partial });
            }
        }
    }

    /// Takes in what comes within `left`; false when nothing did.
    fn read_more(&mut self, seen: &mut Vec<u8>, left: Duration) -> Result<bool, SerialError> {
        if left.is_zero() {
            return Ok(false);
        }
        self.line.set_read_timeout(Some(left))?;
        let mut chunk = [0; 4096];
        match self.line.read(&mut chunk) {
            Ok(0) => Err(SerialError::Closed),
            Ok(length) => {
                seen.extend_from_slice(&chunk[..length]);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// A shell whose far end answers each line with `answer(number)`.
    fn shell_answering(answer: impl Fn(usize) -> Vec<u8> + Send + 'static) -> Shell {
        let (near, far) = UnixStream::pair().expect("a pair of sockets");
        std::thread::spawn(move || {
            let mut writer = far.try_clone().expect("a second handle");
            for (number, line) in BufReader::new(far).lines().enumerate() {
                let (Ok(_), answer) = (line, answer(number)) else { return };
                if writer.write_all(&answer).is_err() {
                    return;
                }
            }
        });
        Shell::new(near)
    }

    #[test]
    fn output_and_status_come_back_even_when_split_and_followed_by_noise() {
        let mut shell = shell_answering(|number| format!("one\ntwo\n\x1e{number} 7\nnoise").into_bytes());
        for expected in ["one\ntwo", "noiseone\ntwo"] {
            let output = shell.run("anything", LIMIT).expect("an answer");
            assert_eq!(output, Output { stdout: expected.into(), status: 7 });
        }
    }

    #[test]
    fn a_silent_guest_is_given_up_at_the_deadline_with_what_it_said() {
        let mut shell = shell_answering(|_| b"half".to_vec());
        let error = shell.run("anything", Duration::from_millis(200)).expect_err("no marker ever comes");
        assert!(matches!(&error, SerialError::Deadline { partial, .. } if partial == "half"), "{error}");
    }

    #[test]
    fn a_dead_machine_is_noticed_at_once() {
        let (near, far) = UnixStream::pair().expect("a pair of sockets");
        drop(far);
        let error = Shell::new(near).ready(LIMIT).expect_err("nobody is there");
        assert!(matches!(error, SerialError::Closed), "{error}");
    }

    #[test]
    fn quotes_in_a_command_reach_the_guest_whole() {
        let (near, far) = UnixStream::pair().expect("a pair of sockets");
        let mut shell = Shell::new(near);
        let reader = std::thread::spawn(move || {
            let mut line = String::new();
            let mut far = BufReader::new(far);
            far.read_line(&mut line).expect("a line");
            far.get_mut().write_all(b"\x1e0 0\n").expect("an answer is taken");
            line
        });
        shell.run("echo 'it''s'", LIMIT).expect("an answer");
        let sent = reader.join().expect("the reader ends");
        assert!(sent.starts_with(r"sh -c 'echo '\''it'\'''\''s'\''' </dev/null"), "{sent}");
    }
}
