// SPDX-License-Identifier: Apache-2.0
//! The one option of TCP that a connection tracker must know.

use crate::transport::TCP_LEN_BYTES;
use crate::{Head, Ip, Layer, ParseError, Transport};

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const WINDOW_SCALE: u8 = 3;

/// By how many bits the sender of the SYN `ip` offers to scale its windows (RFC 7323 section 2.2), as
/// written: receivers cut it at 14. `None` if it does not offer, or is no TCP segment.
///
/// # Errors
/// `NeedMore` when the options are not all in `head`.
pub fn window_scale(head: Head<'_>, ip: &Ip) -> Result<Option<u8>, ParseError> {
    let Transport::Tcp(tcp) = &ip.transport else { return Ok(None) };
    let (start, end) = (ip.transport_offset + TCP_LEN_BYTES, ip.end - tcp.payload_len_bytes);
    let mut options = head.slice(start, end, Layer::Tcp)?;
    // Each round takes at least one byte off at most forty.
    while let [kind, rest @ ..] = options {
        options = match (*kind, rest) {
            (END, _) => break,
            (NO_OPERATION, rest) => rest,
            (WINDOW_SCALE, [3, scale, ..]) => return Ok(Some(*scale)),
            (_, [len, ..]) if *len >= 2 => options.get(usize::from(*len)..).unwrap_or_default(),
            // What comes after a malformed option means nothing.
            _ => break,
        };
    }
    Ok(None)
}
