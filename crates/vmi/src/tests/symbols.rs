// SPDX-License-Identifier: Apache-2.0
//! Encodes symbol tables in every order that kernels have had. Each character is a token of its own.

use crate::kallsyms::START_KERNEL_MAP;

/// The order of the arrays of a symbol table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SymbolOrder {
    /// Before 6.4; absolute per-CPU symbols.
    OffsetsFirst,
    /// 6.1 with `seqs_of_names` in between.
    OffsetsFirstWithSequence,
    /// 6.4 to 6.14; absolute per-CPU symbols.
    OffsetsLast,
    /// 6.15 to 6.19: base and unsigned offset.
    OffsetsLastUnsigned,
    /// From 7.0: relative to their own place, aligned to 4.
    PlaceRelative,
}

impl SymbolOrder {
    pub(crate) const ALL: [Self; 5] = [
        Self::OffsetsFirst,
        Self::OffsetsFirstWithSequence,
        Self::OffsetsLast,
        Self::OffsetsLastUnsigned,
        Self::PlaceRelative,
    ];
}

/// The table of `symbols` as it lies at `gva`, and where in it the count of symbols is.
pub(crate) fn encode(order: SymbolOrder, symbols: &[(String, u64)], gva: u64) -> (Vec<u8>, u64) {
    let (names, markers) = names(symbols);
    let (tokens, index) = tokens();
    let count = (symbols.len() as u32).to_le_bytes().to_vec();
    let base = symbols.iter().map(|(_, address)| *address).min().unwrap();
    let base = if order == SymbolOrder::OffsetsLastUnsigned { START_KERNEL_MAP } else { base };
    let base_bytes = base.to_le_bytes().to_vec();
    let sequence: Vec<u8> =
        (0..symbols.len()).flat_map(|at| [(at >> 16) as u8, (at >> 8) as u8, at as u8]).collect();
    let is_base_and_offsets_first =
        matches!(order, SymbolOrder::OffsetsFirst | SymbolOrder::OffsetsFirstWithSequence);
    let mut pieces = Vec::new();
    if is_base_and_offsets_first {
        pieces.extend([Piece::Offsets, Piece::Bytes(base_bytes.clone())]);
    }
    pieces.extend([Piece::Count(count), Piece::Bytes(names), Piece::Bytes(markers)]);
    if order == SymbolOrder::OffsetsFirstWithSequence {
        pieces.push(Piece::Bytes(sequence.clone()));
    }
    pieces.extend([Piece::Bytes(tokens), Piece::Bytes(index)]);
    if !is_base_and_offsets_first {
        pieces.push(Piece::Offsets);
        if order != SymbolOrder::PlaceRelative {
            pieces.push(Piece::Bytes(base_bytes));
        }
        pieces.push(Piece::Bytes(sequence));
    }
    let alignment = if order == SymbolOrder::PlaceRelative { 4 } else { 8 };
    // What lies before is not zero, as in a kernel.
    let mut out = vec![0x11; 2 * alignment];
    let mut count_at = 0;
    for piece in pieces {
        out.resize(out.len().next_multiple_of(alignment), 0);
        match piece {
            Piece::Offsets => out.extend(offsets(order, symbols, base, gva + out.len() as u64)),
            Piece::Count(bytes) => {
                count_at = out.len() as u64;
                out.extend(bytes);
            }
            Piece::Bytes(bytes) => out.extend(bytes),
        }
    }
    (out, count_at)
}

enum Piece {
    Offsets,
    Count(Vec<u8>),
    Bytes(Vec<u8>),
}

/// Names, each a length, a type and as many characters, and where every 256th begins.
fn names(symbols: &[(String, u64)]) -> (Vec<u8>, Vec<u8>) {
    let (mut names, mut markers) = (Vec::new(), Vec::new());
    for (index, (name, _)) in symbols.iter().enumerate() {
        if index % 256 == 0 {
            markers.extend((names.len() as u32).to_le_bytes());
        }
        names.push(u8::try_from(name.len() + 1).unwrap());
        names.extend([b"D", name.as_bytes()].concat());
    }
    (names, markers)
}

/// Token table and index.
pub(super) fn tokens() -> (Vec<u8>, Vec<u8>) {
    let (mut tokens, mut index) = (Vec::new(), Vec::new());
    for token in 0..=255_u8 {
        index.extend((tokens.len() as u16).to_le_bytes());
        tokens.extend([if token.is_ascii_graphic() { token } else { b'?' }, 0]);
    }
    (tokens, index)
}

fn offsets(order: SymbolOrder, symbols: &[(String, u64)], base: u64, own: u64) -> Vec<u8> {
    let offset = |index: usize, address: u64| match order {
        SymbolOrder::OffsetsLastUnsigned => address - base,
        SymbolOrder::PlaceRelative => address.wrapping_sub(own + index as u64 * 4),
        _ => (base - 1).wrapping_sub(address),
    };
    let addresses = symbols.iter().map(|(_, address)| *address).enumerate();
    addresses.flat_map(|(index, address)| (offset(index, address) as u32).to_le_bytes()).collect()
}
