// SPDX-License-Identifier: Apache-2.0
//! What one daemon leaves to the next, however it ended: the flow table and the numbers of its ports.
//!
//! The flow table is a shared mapping of a file in the runtime directory, so it outlives even SIGKILL.
//! Its slots name ports by number and are placed by a keyed hash, so the numbers and the key are left
//! beside it, in a small JSON file replaced atomically before a number is first used.
//! A file of another shape is discarded: flows then start anew. Where packed rings stand is in one file a ring, which the
//! ports write themselves.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use model::NicRef;
use platform::{SharedTable, TableError};
use serde::{Deserialize, Serialize};
use vswitch::{FlowSlot, PortId};

/// Ports a host may have: what the flow table's slots can name.
pub const PORTS_MAX: usize = 4096;

/// The flow table's memory.
#[derive(Debug)]
pub struct FlowMemory(SharedTable<FlowSlot>);

impl AsRef<[FlowSlot]> for FlowMemory {
    fn as_ref(&self) -> &[FlowSlot] {
        &self.0
    }
}

impl AsMut<[FlowSlot]> for FlowMemory {
    fn as_mut(&mut self) -> &mut [FlowSlot] {
        &mut self.0
    }
}

/// The files.
#[derive(Debug)]
pub struct HandOver {
    notes_path: PathBuf,
    notes: Notes,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Notes {
    /// Key of the flow table's hash.
    hash_seed: u64,
    /// Entries of the flow table.
    flow_capacity: usize,
    /// Port numbers by network card, `tenant/vm/nic`, and by interface of the host, `interface/name`. Numbers of cards that went away are used again
    /// only when all others are taken.
    ports: BTreeMap<String, u16>,
}

/// Why nothing can be taken over or left.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The table cannot be used.
    #[error("flow table cannot be used; is another meshvisor-hostd running on this runtime directory?")]
    Table(#[source] TableError),
    /// The notes cannot be written.
    #[error("cannot write {path:?}")]
    Notes {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Every port number is taken.
    #[error("a host has at most {PORTS_MAX} network cards")]
    TooManyPorts,
}

impl HandOver {
    /// Takes over what a predecessor left in `dir`, or starts anew with `seed` as the key.
    ///
    /// # Errors
    /// When another daemon is using it, or files cannot be made.
    pub fn take(dir: &Path, flow_capacity: usize, seed: u64) -> Result<(Self, FlowMemory), HandOverError> {
        let (notes_path, rings) = (dir.join("ports.json"), dir.join("rings"));
        make_runtime_dir(&rings).map_err(|source| HandOverError::Notes { path: rings.clone(), source })?;
        let table_path = dir.join("flows.table");
        let (this, table) = Self::take_table(notes_path, &table_path, flow_capacity, seed)?;
        if !table.is_in_memory() {
            tracing::warn!(path = %table_path.display(), "the flow table lies on a disk, for which frames will wait: \
                give a runtime directory on a tmpfs, like /run/meshvisor");
        }
        // Not within the macro: what it does not log it does not do.
        let all = platform::in_huge_pages(&table);
        tracing::debug!(all, "flow table in huge pages");
        Ok((this, FlowMemory(table)))
    }

    fn take_table(
        notes_path: PathBuf,
        table_path: &Path,
        flow_capacity: usize,
        seed: u64,
    ) -> Result<(Self, SharedTable<FlowSlot>), HandOverError> {
        if let Some(notes) = read_notes(&notes_path)
            && notes.flow_capacity == flow_capacity
        {
            match SharedTable::open(table_path, flow_capacity) {
                Ok(table) => return Ok((Self { notes_path, notes }, table)),
                Err(error @ TableError::InUse { .. }) => return Err(HandOverError::Table(error)),
                Err(error) => {
                    tracing::warn!(error = %telemetry::Chain(&error), "no flow table to take over, starting anew");
                }
            }
        }
        let table = SharedTable::create(table_path, flow_capacity).map_err(HandOverError::Table)?;
        let this =
            Self { notes_path, notes: Notes { hash_seed: seed, flow_capacity, ports: BTreeMap::new() } };
        this.write()?;
        Ok((this, table))
    }

    /// Key of the flow table's hash.
    pub fn hash_seed(&self) -> u64 {
        self.notes.hash_seed
    }

    /// Stem of the files of a port's packed rings.
    pub fn journal(&self, port: PortId) -> PathBuf {
        self.notes_path.with_file_name("rings").join(port.0.to_string())
    }

    /// The number of a card's port: the one it had before, else a free one.
    ///
    /// # Errors
    /// When all numbers are taken, or the new one cannot be written down.
    pub fn port(&mut self, nic: &NicRef, in_use: &[PortId]) -> Result<PortId, HandOverError> {
        self.number(nic.to_string(), in_use)
    }

    /// The number of the port that an interface of the host is; see [`HandOver::port`].
    ///
    /// # Errors
    /// As there.
    pub fn uplink(&mut self, interface: &str, in_use: &[PortId]) -> Result<PortId, HandOverError> {
        // No card is called so: its name has two slashes.
        self.number(format!("interface/{interface}"), in_use)
    }

    fn number(&mut self, key: String, in_use: &[PortId]) -> Result<PortId, HandOverError> {
        if let Some(number) = self.notes.ports.get(&key) {
            return Ok(PortId(*number));
        }
        let taken: Vec<u16> = self.notes.ports.values().copied().collect();
        let range = || 0..u16::try_from(PORTS_MAX).expect("fits");
        let number = range()
            .find(|number| !taken.contains(number))
            .or_else(|| range().find(|number| !in_use.contains(&PortId(*number))))
            .ok_or(HandOverError::TooManyPorts)?;
        self.notes.ports.retain(|_, other| *other != number);
        self.notes.ports.insert(key, number);
        self.write()?;
        Ok(PortId(number))
    }

    fn write(&self) -> Result<(), HandOverError> {
        let failed = |source| HandOverError::Notes { path: self.notes_path.clone(), source };
        let text = serde_json::to_string_pretty(&self.notes).map_err(io::Error::other).map_err(failed)?;
        replace(&self.notes_path, text.as_bytes()).map_err(failed)
    }
}

/// Replaces a JSON file, or makes it: whoever reads it sees all of the old or all of the new.
///
/// # Errors
/// When it cannot be written.
pub fn replace(path: &Path, json: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("json.new");
    std::fs::write(&fresh, json)?;
    std::fs::rename(&fresh, path)
}

/// Makes the runtime directory, or one in it, if it is missing, for owner and group only.
///
/// # Errors
/// When it cannot be made, or something that is no directory is there.
pub fn make_runtime_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().mode(0o750).recursive(true).create(dir)
}

/// The predecessor's notes, if they are there, whole and sensible.
fn read_notes(path: &Path) -> Option<Notes> {
    let notes: Notes = serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
    let mut numbers: Vec<_> = notes.ports.values().collect();
    numbers.sort_unstable();
    numbers.dedup();
    let distinct = numbers.len() == notes.ports.len();
    let small = numbers.iter().all(|number| usize::from(**number) < PORTS_MAX);
    (distinct && small).then_some(notes)
}

#[cfg(test)]
mod tests {
    use testkit::scratch::Scratch;

    use super::*;

    const CAPACITY: usize = 1024;

    fn card(text: &str) -> NicRef {
        let (vm, nic) = text.rsplit_once('/').unwrap();
        NicRef { vm: vm.parse().unwrap(), nic: nic.parse().unwrap() }
    }

    #[test]
    fn successor_finds_numbers_key_and_table() {
        let dir = Scratch::new("handover").unwrap();
        let (mut first, _) = HandOver::take(dir.path(), CAPACITY, 7).unwrap();
        let web = first.port(&card("acme/web/net0"), &[]).unwrap();
        let api = first.port(&card("acme/api/net0"), &[web]).unwrap();
        assert_ne!(web, api);
        drop(first);

        let (mut second, memory) = HandOver::take(dir.path(), CAPACITY, 8).unwrap();
        assert_eq!(second.hash_seed(), 7);
        assert_eq!(memory.as_ref().len(), CAPACITY);
        assert_eq!(second.port(&card("acme/api/net0"), &[]).unwrap(), api);
    }

    #[test]
    fn two_daemons_cannot_share_a_table() {
        let dir = Scratch::new("handover").unwrap();
        let _first = HandOver::take(dir.path(), CAPACITY, 7).unwrap();
        let error = HandOver::take(dir.path(), CAPACITY, 8).unwrap_err();
        assert!(matches!(error, HandOverError::Table(TableError::InUse { .. })), "{error}");
    }

    #[test]
    fn damaged_or_other_notes_start_anew() {
        for notes in [
            "",
            "{",
            r#"{"hash_seed":7,"flow_capacity":1024,"ports":{"a/b/c":1,"a/b/d":1}}"#,
            r#"{"hash_seed":7,"flow_capacity":1024,"ports":{"a/b/c":5000}}"#,
            r#"{"hash_seed":7,"flow_capacity":2048,"ports":{}}"#,
        ] {
            let dir = Scratch::new("handover").unwrap();
            drop(HandOver::take(dir.path(), CAPACITY, 1).unwrap());
            std::fs::write(dir.join("ports.json"), notes).unwrap();
            let (fresh, _) = HandOver::take(dir.path(), CAPACITY, 9).unwrap();
            assert_eq!(fresh.hash_seed(), 9, "{notes}");
        }
    }

    #[test]
    fn numbers_of_cards_that_left_are_used_again_when_all_others_are_taken() {
        let dir = Scratch::new("handover").unwrap();
        let (mut hand_over, _) = HandOver::take(dir.path(), CAPACITY, 7).unwrap();
        hand_over.notes.ports = (0..PORTS_MAX).map(|n| (format!("old/vm-{n}/net0"), n as u16)).collect();
        let in_use: Vec<PortId> = (1..PORTS_MAX as u16).map(PortId).collect();
        assert_eq!(hand_over.port(&card("new/vm/net0"), &in_use).unwrap(), PortId(0));
        assert!(!hand_over.notes.ports.contains_key("old/vm-0/net0"));

        let all: Vec<PortId> = (0..PORTS_MAX as u16).map(PortId).collect();
        let error = hand_over.port(&card("new/other/net0"), &all).unwrap_err();
        assert!(matches!(error, HandOverError::TooManyPorts));
    }
}
