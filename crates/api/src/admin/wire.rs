// SPDX-License-Identifier: Apache-2.0
//! Framing: one JSON value per line, bounded.

use std::io::{self, BufRead, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest line either side sends or takes, in bytes, line feed included.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// Longest request the daemon takes, in bytes, line feed included.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;

/// Why a line could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection failed or timed out.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The line is too long; the connection is of no more use.
    #[error("a line is longer than {max_bytes} bytes")]
    TooLong {
        /// The bound that applied.
        max_bytes: usize,
    },
    /// The connection ended in the middle of a line.
    #[error("the connection ended within a message")]
    Truncated,
    /// The line is not the JSON that was expected.
    #[error("a message is not understood")]
    Malformed(#[source] serde_json::Error),
}

/// Reads the next line of at most `max_bytes`; `None` when the peer has closed between lines.
///
/// # Errors
/// See [`WireError`]. After [`WireError::Malformed`] the next line can be read; after any other
/// the connection is of no more use.
pub fn read<T: DeserializeOwned>(
    reader: &mut impl BufRead,
    max_bytes: usize,
) -> Result<Option<T>, WireError> {
    let mut line = Vec::new();
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX);
    reader.by_ref().take(limit).read_until(b'\n', &mut line)?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => serde_json::from_slice(&line).map(Some).map_err(WireError::Malformed),
        Some(_) if line.len() >= max_bytes => Err(WireError::TooLong { max_bytes }),
        Some(_) => Err(WireError::Truncated),
    }
}

/// Writes one value as one line and flushes.
///
/// # Errors
/// [`WireError::TooLong`] before anything was written, or [`WireError::Io`].
pub fn write<T: Serialize>(writer: &mut impl Write, value: &T) -> Result<(), WireError> {
    let mut line = serde_json::to_vec(value).map_err(WireError::Malformed)?;
    line.push(b'\n');
    if line.len() > LINE_BYTES_MAX {
        return Err(WireError::TooLong { max_bytes: LINE_BYTES_MAX });
    }
    writer.write_all(&line)?;
    writer.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Refusal, Request, Response};
    use super::*;

    #[test]
    fn requests_read_as_documented() {
        for (line, request) in [
            (r#"{"request":"vm-list"}"#, Request::VmList),
            (r#"{"request":"flow-list"}"#, Request::FlowList { vm: None }),
            (
                r#"{"request":"why","from":"acme/web","to":"10.0.0.12:8080","protocol":"tcp"}"#,
                Request::Why {
                    from: "acme/web".into(),
                    to: "10.0.0.12:8080".into(),
                    protocol: "tcp".into(),
                    exe: None,
                },
            ),
        ] {
            let read: Option<Request> = read(&mut format!("{line}\n").as_bytes(), REQUEST_BYTES_MAX).unwrap();
            assert_eq!(read, Some(request));
        }
    }

    #[test]
    fn values_written_read_back_in_order_and_end_cleanly() {
        let first = Response::Error(Refusal { reason: "line\nfeed \u{1b}".into(), help: String::new() });
        let second = Response::Vms(vec![]);
        let mut bytes = Vec::new();
        write(&mut bytes, &first).unwrap();
        write(&mut bytes, &second).unwrap();
        let mut reader = bytes.as_slice();
        assert_eq!(read::<Response>(&mut reader, LINE_BYTES_MAX).unwrap(), Some(first));
        assert_eq!(read::<Response>(&mut reader, LINE_BYTES_MAX).unwrap(), Some(second));
        assert_eq!(read::<Response>(&mut reader, LINE_BYTES_MAX).unwrap(), None);
    }

    #[test]
    fn bad_lines_are_refused_each_with_its_own_reason() {
        let of = |bytes: &[u8]| read::<Request>(&mut &bytes[..], 64).unwrap_err();
        assert!(matches!(of(b"{\"request\":\"vm-list\"}"), WireError::Truncated));
        assert!(matches!(of(&[b'x'; 65]), WireError::TooLong { max_bytes: 64 }));
        assert!(matches!(of(&[b'x'; 64]), WireError::TooLong { .. }));
        for malformed in ["\n", "{}\n", "[]\n", "{\"request\":\"reboot\"}\n", "\u{0}\n"] {
            assert!(matches!(of(malformed.as_bytes()), WireError::Malformed(_)), "{malformed:?}");
        }
        assert!(matches!(of(b"{\"request\":\"flow-list\",\"vn\":\"a/b\"}\n"), WireError::Malformed(_)));
        assert!(matches!(of(b"\"\xff\"\n"), WireError::Malformed(_)));
    }

    #[test]
    fn malformed_line_leaves_the_next_one_readable() {
        let mut reader = &b"nonsense\n{\"request\":\"status\"}\n"[..];
        assert!(read::<Request>(&mut reader, 64).is_err());
        assert_eq!(read::<Request>(&mut reader, 64).unwrap(), Some(Request::Status));
    }
}
