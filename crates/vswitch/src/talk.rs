// SPDX-License-Identifier: Apache-2.0
//! What has been said in a connection so far.

use packet::Tcp;

use crate::layer7::PREFIX_LEN_BYTES_MAX;
use crate::tcp::Progress;

/// What has been said in a connection by the end that spoke first.
#[derive(Debug)]
pub(crate) struct Talk {
    /// Whether that is the end that opened it; none has spoken yet otherwise.
    pub by_initiator: Option<bool>,
    /// The number of its first byte; before it has spoken, of the next byte of whoever has sent a segment last.
    pub start: u32,
    pub bytes: [u8; PREFIX_LEN_BYTES_MAX],
    pub len_bytes: usize,
}

/// Where a segment begins among the bytes of its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Before the first: none of it is one of them, as in a probe of whether the other end is there.
    Before,
    /// So many bytes behind the first, among those that are known or right behind them.
    Next(usize),
    /// Elsewhere.
    Apart,
}

impl Talk {
    pub(crate) const NEW: Self =
        Self { by_initiator: None, start: 0, bytes: [0; PREFIX_LEN_BYTES_MAX], len_bytes: 0 };

    pub(crate) fn known(&self) -> &[u8] {
        &self.bytes[..self.len_bytes]
    }

    pub(crate) fn place(&self, tcp: &Tcp) -> Place {
        let offset = tcp.sequence.wrapping_sub(self.start) as i32;
        match usize::try_from(offset) {
            Ok(offset) if offset <= self.len_bytes => Place::Next(offset),
            Ok(_) => Place::Apart,
            Err(_) if tcp.payload_len_bytes <= offset.unsigned_abs() as usize => Place::Before,
            Err(_) => Place::Apart,
        }
    }

    /// Whether bytes at this place are the ones that are known already.
    pub(crate) fn repeats(&self, offset: usize, bytes: &[u8]) -> bool {
        self.known()[offset..].iter().zip(bytes).all(|(known, byte)| known == byte)
    }

    /// Takes in the bytes at this place that are not known yet.
    pub(crate) fn take(&mut self, offset: usize, bytes: &[u8]) {
        let new = bytes.get(self.len_bytes - offset..).unwrap_or_default();
        let room = &mut self.bytes[self.len_bytes..];
        let len = new.len().min(room.len());
        room[..len].copy_from_slice(&new[..len]);
        self.len_bytes += len;
    }

    /// Whether the other end has acknowledged all that is known.
    pub(crate) fn is_heard(&self, listener: Progress) -> bool {
        let end = self.start.wrapping_add(self.len_bytes as u32);
        listener.acknowledged().is_some_and(|acknowledged| acknowledged.wrapping_sub(end) as i32 >= 0)
    }
}
