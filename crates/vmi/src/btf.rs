// SPDX-License-Identifier: Apache-2.0
//! The kernel's own type information: BTF (Linux, Documentation/bpf/btf.rst), as far as it tells where a
//! member lies in a structure.
//!
//! A [`Btf`] owns a private copy; [`Structures`] answers questions by name. Types may be lies: every walk
//! through them is bounded, and a record that runs past the end is an error, not a panic.

use std::collections::HashMap;

use crate::error::TypesError;

/// First bytes of a kernel's BTF: magic, version 1, no flags, header of 24 bytes.
pub(crate) const SIGNATURE: &[u8] = &[0x9f, 0xeb, 1, 0, HEADER_BYTES as u8, 0, 0, 0];
/// Length of the header.
pub(crate) const HEADER_BYTES: usize = 24;
/// Longest BTF taken: kernels have 3 to 6 MB, large ones 20.
pub(crate) const LEN_BYTES_MAX: usize = 64 << 20;
/// Most types taken: kernels have some 120,000.
const TYPES_MAX: usize = 1 << 20;
/// Qualifiers and typedefs followed from one member to its structure.
const MODIFIERS_MAX: usize = 32;
/// Members looked at for one name, those of anonymous members included.
const MEMBERS_MAX: usize = 1 << 14;

const KIND_INT: u8 = 1;
const KIND_ARRAY: u8 = 3;
const KIND_STRUCT: u8 = 4;
const KIND_UNION: u8 = 5;
const KIND_ENUM: u8 = 6;
const KIND_TYPEDEF: u8 = 8;
const KIND_RESTRICT: u8 = 11;
const KIND_FUNC_PROTO: u8 = 13;
const KIND_VAR: u8 = 14;
const KIND_DATASEC: u8 = 15;
const KIND_DECL_TAG: u8 = 17;
const KIND_TYPE_TAG: u8 = 18;
const KIND_ENUM64: u8 = 19;

const RECORD_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;

/// The lengths that a header declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    types_bytes: usize,
    strings_bytes: usize,
}

impl Header {
    /// Reads a header of a kernel's own BTF: strings follow types without a gap.
    pub(crate) fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let field = |at: usize| word(bytes, at).map(|value| value as usize);
        let (type_off, types_bytes) = (field(8)?, field(12)?);
        let (str_off, strings_bytes) = (field(16)?, field(20)?);
        let sane = bytes.starts_with(SIGNATURE)
            && type_off == 0
            && str_off == types_bytes
            && types_bytes % 4 == 0
            && types_bytes <= LEN_BYTES_MAX
            && strings_bytes <= LEN_BYTES_MAX
            && strings_bytes > 1;
        let header = Self { types_bytes, strings_bytes };
        (sane && header.len_bytes() <= LEN_BYTES_MAX).then_some(header)
    }

    /// Whether strings are those of a kernel and not of a module: they begin with an empty one. `read` copies what lies
    /// at a distance from the header.
    pub(crate) fn is_kernels(&self, read: impl Fn(usize, &mut [u8]) -> bool) -> bool {
        let (mut first, mut last) = ([1; 2], [1]);
        read(HEADER_BYTES + self.types_bytes, &mut first)
            && read(self.len_bytes() - 1, &mut last)
            && first[0] == 0
            && first[1] != 0
            && last == [0]
    }

    /// Length of everything, header included.
    pub(crate) fn len_bytes(&self) -> usize {
        HEADER_BYTES + self.types_bytes + self.strings_bytes
    }
}

/// A parsed BTF.
#[derive(Clone)]
pub(crate) struct Btf {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Where the record of each type begins; type 0 is `void` and has none.
    records: Vec<u32>,
}

/// A type by its number.
type TypeId = u32;

/// The fixed part of a type record.
#[derive(Clone, Copy)]
struct Record {
    name: u32,
    kind: u8,
    /// Member offsets hold a bit-field size in their upper byte.
    has_bit_fields: bool,
    count: usize,
    /// Size in bytes or a type, by kind.
    size_or_type: u32,
    /// Where what follows the fixed part begins.
    rest: usize,
}

impl Btf {
    /// Parses a whole BTF, header included.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, TypesError> {
        let malformed = TypesError::Malformed(0);
        let header = bytes.first_chunk().and_then(Header::parse).ok_or(malformed.clone())?;
        let body = bytes.get(HEADER_BYTES..header.len_bytes()).ok_or(malformed)?;
        let (types, strings) = body.split_at(header.types_bytes);
        let mut btf = Self { types: Vec::new(), strings: Vec::new(), records: vec![0] };
        btf.append(types, strings)?;
        Ok(btf)
    }

    /// These types with those of a module, whose BTF (header included) goes on where this one ends.
    pub(crate) fn with_module(&self, bytes: &[u8]) -> Result<Self, TypesError> {
        let malformed = TypesError::Malformed(0);
        let header = bytes.first_chunk().and_then(Header::parse).ok_or(malformed.clone())?;
        let body = bytes.get(HEADER_BYTES..header.len_bytes()).ok_or(malformed)?;
        let (types, strings) = body.split_at(header.types_bytes);
        let mut whole = self.clone();
        whole.append(types, strings)?;
        Ok(whole)
    }

    /// Number of types, `void` included; the first of a module has this number.
    pub(crate) fn type_count(&self) -> usize {
        self.records.len()
    }

    /// Length of the strings; those of a module begin here.
    pub(crate) fn strings_bytes(&self) -> usize {
        self.strings.len()
    }

    fn append(&mut self, types: &[u8], strings: &[u8]) -> Result<(), TypesError> {
        let mut at = self.types.len();
        self.types.extend_from_slice(types);
        self.strings.extend_from_slice(strings);
        while at < self.types.len() {
            if self.records.len() >= TYPES_MAX {
                return Err(TypesError::TooMany(TYPES_MAX));
            }
            let record = self.record_at(at).ok_or(TypesError::Malformed(at))?;
            let rest_bytes = match record.kind {
                KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => record.count * 12,
                KIND_ENUM | KIND_FUNC_PROTO => record.count * 8,
                1..=KIND_ENUM64 => 0,
                _ => return Err(TypesError::Malformed(at)),
            };
            self.records.push(u32::try_from(at).map_err(|_| TypesError::Malformed(at))?);
            at = record.rest + rest_bytes;
        }
        if at == self.types.len() { Ok(()) } else { Err(TypesError::Malformed(at)) }
    }

    fn record_at(&self, at: usize) -> Option<Record> {
        let info = word(&self.types, at + 4)?;
        Some(Record {
            name: word(&self.types, at)?,
            kind: (info >> 24 & 0x1f) as u8,
            has_bit_fields: info >> 31 != 0,
            count: (info & 0xffff) as usize,
            size_or_type: word(&self.types, at + 8)?,
            rest: at + RECORD_BYTES,
        })
    }

    fn record(&self, id: TypeId) -> Option<Record> {
        let at = *self.records.get(id as usize).filter(|_| id != 0)?;
        self.record_at(at as usize)
    }

    fn name(&self, offset: u32) -> &[u8] {
        let text = self.strings.get(offset as usize..).unwrap_or_default();
        &text[..memchr::memchr(0, text).unwrap_or(text.len())]
    }

    /// The structure or union behind qualifiers and typedefs.
    fn structure(&self, mut id: TypeId) -> Option<Record> {
        for _ in 0..MODIFIERS_MAX {
            let record = self.record(id)?;
            match record.kind {
                KIND_STRUCT | KIND_UNION => return Some(record),
                KIND_TYPEDEF..=KIND_RESTRICT | KIND_TYPE_TAG => id = record.size_or_type,
                _ => return None,
            }
        }
        None
    }

    /// Offset in bits, and type, of the member `name`, looked for in anonymous members too.
    fn member(&self, structure: Record, name: &[u8]) -> Option<(u32, TypeId)> {
        let mut pending = vec![(structure, 0_u32)];
        let mut left = MEMBERS_MAX;
        while let Some((structure, base)) = pending.pop() {
            for index in 0..structure.count {
                left = left.checked_sub(1)?;
                let at = structure.rest + index * MEMBER_BYTES;
                let (member_name, id) = (word(&self.types, at)?, word(&self.types, at + 4)?);
                let bits = word(&self.types, at + 8)?;
                let bits = if structure.has_bit_fields { bits & 0x00ff_ffff } else { bits };
                let offset = base.checked_add(bits)?;
                let found = self.name(member_name);
                if found == name {
                    return Some((offset, id));
                }
                if found.is_empty()
                    && let Some(inner) = self.structure(id)
                {
                    pending.push((inner, offset));
                }
            }
        }
        None
    }
}

/// The named structures of a [`Btf`], ready to be asked.
pub(crate) struct Structures<'a> {
    btf: &'a Btf,
    by_name: HashMap<&'a [u8], TypeId>,
}

impl<'a> Structures<'a> {
    /// Indexes the structures of `btf` by name; of two with one name, the first counts.
    pub(crate) fn of(btf: &'a Btf) -> Self {
        let mut by_name = HashMap::new();
        for id in 1..btf.records.len() as TypeId {
            if let Some(record) = btf.record(id).filter(|record| record.kind == KIND_STRUCT) {
                by_name.entry(btf.name(record.name)).or_insert(id);
            }
        }
        Self { btf, by_name }
    }

    /// Size of `structure` in bytes.
    pub(crate) fn size(&self, structure: &'static str) -> Result<u32, TypesError> {
        self.record(structure).map(|record| record.size_or_type)
    }

    /// Offset in bytes of a member of `structure`, named by a path such as `se.sum_exec_runtime`.
    pub(crate) fn offset(&self, structure: &'static str, member: &'static str) -> Result<u32, TypesError> {
        let bits = self.offset_bits(structure, member)?;
        if bits % 8 == 0 { Ok(bits / 8) } else { Err(TypesError::NoMember { structure, member }) }
    }

    /// Offset in bits of a member of `structure`, as bit-fields have it.
    pub(crate) fn offset_bits(
        &self,
        structure: &'static str,
        member: &'static str,
    ) -> Result<u32, TypesError> {
        let absent = TypesError::NoMember { structure, member };
        let mut record = Some(self.record(structure)?);
        let mut offset = 0_u32;
        for name in member.split('.') {
            let within = record.ok_or(absent.clone())?;
            let (at, id) = self.btf.member(within, name.as_bytes()).ok_or(absent.clone())?;
            offset = offset.checked_add(at).ok_or(absent.clone())?;
            record = self.btf.structure(id);
        }
        Ok(offset)
    }

    /// As [`Self::offset`], with the first of several spellings that exists.
    pub(crate) fn offset_of_any(
        &self,
        structure: &'static str,
        members: &[&'static str],
    ) -> Result<u32, TypesError> {
        let mut result = Err(TypesError::NoStructure(structure));
        for member in members {
            result = self.offset(structure, member);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn record(&self, structure: &'static str) -> Result<Record, TypesError> {
        let id = self.by_name.get(structure.as_bytes());
        id.and_then(|&id| self.btf.record(id)).ok_or(TypesError::NoStructure(structure))
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fixture {
    use super::*;

    /// Builds a BTF type by type; the first type has number 1.
    pub(crate) struct BtfBuilder {
        pub(crate) types: Vec<u8>,
        pub(crate) strings: Vec<u8>,
        next: TypeId,
        /// Length of the strings of the kernel that a module's go on from.
        strings_before: u32,
    }

    impl BtfBuilder {
        pub(crate) fn new() -> Self {
            Self { types: Vec::new(), strings: vec![0], next: 1, strings_before: 0 }
        }

        /// A builder for a module: its types and strings go on where this one's end.
        pub(crate) fn module(&self) -> Self {
            let strings_before = self.strings.len() as u32;
            Self { types: Vec::new(), strings: Vec::new(), next: self.next, strings_before }
        }

        /// Number of the next type, and offset of the next string.
        pub(crate) fn next(&self) -> (u64, u64) {
            (self.next.into(), u64::from(self.strings_before) + self.strings.len() as u64)
        }

        pub(crate) fn string(&mut self, text: &str) -> u32 {
            if text.is_empty() {
                return 0;
            }
            let at = self.strings_before + self.strings.len() as u32;
            self.strings.extend_from_slice(text.as_bytes());
            self.strings.push(0);
            at
        }

        pub(crate) fn raw(&mut self, name: &str, info: u32, size_or_type: u32, rest: &[u32]) -> TypeId {
            let name = self.string(name);
            for value in [name, info, size_or_type].iter().chain(rest) {
                self.types.extend_from_slice(&value.to_le_bytes());
            }
            self.next += 1;
            self.next - 1
        }

        /// A structure with members `(name, type, offset in bytes)`.
        pub(crate) fn structure(&mut self, name: &str, size: u32, members: &[(&str, TypeId, u32)]) -> TypeId {
            let rest: Vec<u32> =
                members.iter().flat_map(|&(name, id, offset)| [self.string(name), id, offset * 8]).collect();
            self.raw(name, u32::from(KIND_STRUCT) << 24 | members.len() as u32, size, &rest)
        }

        pub(crate) fn build(&self) -> Vec<u8> {
            let mut out = SIGNATURE.to_vec();
            let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
            for value in [0, types, types, strings] {
                out.extend_from_slice(&value.to_le_bytes());
            }
            out.extend_from_slice(&self.types);
            out.extend_from_slice(&self.strings);
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::BtfBuilder;
    use super::*;

    fn info(kind: u8, count: u32) -> u32 {
        u32::from(kind) << 24 | count
    }

    fn sample() -> BtfBuilder {
        let mut b = BtfBuilder::new();
        let int = b.raw("int", info(KIND_INT, 0), 4, &[32]);
        b.raw("", info(KIND_ARRAY, 0), 0, &[int, int, 8]);
        b.raw("e", info(KIND_ENUM, 2), 4, &[0, 0, 0, 1]);
        b.raw("e64", info(KIND_ENUM64, 1), 8, &[0, 1, 0]);
        b.raw("", info(KIND_FUNC_PROTO, 2), 0, &[0, int, 0, int]);
        b.raw("v", info(KIND_VAR, 0), int, &[1]);
        b.raw("tag", info(KIND_DECL_TAG, 0), int, &[0]);
        let inner = b.structure("", 16, &[("x", int, 0), ("y", int, 8)]);
        let named = b.structure("named", 8, &[("z", int, 4)]);
        let alias = b.raw("alias_t", info(KIND_TYPEDEF, 0), named, &[]);
        let constant = b.raw("", info(10, 0), alias, &[]);
        b.structure("outer", 64, &[("a", int, 0), ("", inner, 16), ("n", constant, 40)]);
        b
    }

    #[test]
    fn members_are_found_through_anonymous_structures_and_typedefs() {
        let btf = Btf::parse(&sample().build()).unwrap();
        let structures = Structures::of(&btf);
        for (member, offset) in [("a", 0), ("x", 16), ("y", 24), ("n", 40), ("n.z", 44)] {
            assert_eq!(structures.offset("outer", member), Ok(offset), "{member}");
        }
        assert_eq!(structures.size("outer"), Ok(64));
        assert_eq!(structures.offset_of_any("outer", &["b", "y"]), Ok(24));
        for member in ["b", "a.z", "n.z.q"] {
            assert_eq!(
                structures.offset("outer", member),
                Err(TypesError::NoMember { structure: "outer", member })
            );
        }
        assert_eq!(structures.size("none"), Err(TypesError::NoStructure("none")));
    }

    #[test]
    fn bit_fields_have_no_offset_unless_they_begin_a_byte() {
        let mut b = BtfBuilder::new();
        let int = b.raw("int", info(KIND_INT, 0), 4, &[32]);
        let (odd, even) = (b.string("odd"), b.string("even"));
        let bits = 1 << 31 | info(KIND_STRUCT, 2);
        b.raw("flags", bits, 4, &[odd, int, 3 << 24 | 3, even, int, 8 << 24 | 16]);
        let btf = Btf::parse(&b.build()).unwrap();
        let structures = Structures::of(&btf);
        assert!(structures.offset("flags", "odd").is_err());
        assert_eq!(structures.offset_bits("flags", "odd"), Ok(3));
        assert_eq!(structures.offset("flags", "even"), Ok(2));
    }

    #[test]
    fn module_types_go_on_where_the_kernels_end() {
        let base = sample();
        let btf = Btf::parse(&base.build()).unwrap();
        assert_eq!((btf.type_count() as u64, btf.strings_bytes() as u64), base.next());
        let named = 9;
        let mut module = base.module();
        module.structure("m", 8, &[("dev", named, 0)]);
        let whole = btf.with_module(&module.build()).unwrap();
        assert_eq!(Structures::of(&whole).offset("m", "dev.z"), Ok(4));
        assert!(Structures::of(&btf).size("m").is_err());
    }

    #[test]
    fn every_truncation_and_every_damaged_word_is_survived() {
        let whole = sample().build();
        for len in 0..whole.len() {
            assert!(Btf::parse(&whole[..len]).is_err(), "{len}");
        }
        for at in (0..whole.len() - 4).step_by(2) {
            for value in [0, 1, 0xffff, u32::MAX, 0x0400_ffff] {
                let mut bad = whole.clone();
                bad[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
                if let Ok(btf) = Btf::parse(&bad) {
                    let structures = Structures::of(&btf);
                    let _ = structures.offset("outer", "n.z");
                    let _ = structures.offset("outer", "absent");
                }
            }
        }
    }

    #[test]
    fn types_that_contain_themselves_end() {
        let mut b = BtfBuilder::new();
        // Structure 1 holds itself twice without a name; typedef 2 names itself.
        b.structure("knot", 8, &[("", 1, 0), ("", 1, 0), ("t", 2, 0)]);
        b.raw("loop_t", info(KIND_TYPEDEF, 0), 2, &[]);
        let btf = Btf::parse(&b.build()).unwrap();
        let structures = Structures::of(&btf);
        assert!(structures.offset("knot", "absent").is_err());
        assert!(structures.offset("knot", "t.absent").is_err());
    }
}
