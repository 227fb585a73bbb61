//! Finds out where the middle of a store is missing.
//!
//! A store that has lost its newest part is an older one, and upstream still has what it lacks. But where a manifest loses its
//! end, RocksDB takes it for a whole one: table files that were added last are forgotten and removed, the log that goes on after
//! them is replayed, and the store is one that never was, at the newest position. No checksum tells, and no control total where a
//! Partition was changed in the lost part only.
//!
//! ```text
//! links  .. 7  8 | 9 10 |  11  12      each memtable holds one at least, written right after it was begun
//!        table    lost     log
//! ```
//!
//! So links with consecutive numbers are written, and of those that are there none may be missing between others. When exactly a
//! memtable begins cannot be seen; the number of RocksDB's state changes then, and also at other times, which costs a key.

use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use rocksdb::{DB, WriteBatch, properties};

use super::view::View;
use super::{Range, StoreError, key};

/// Many times those that are written between two memtables.
const KEPT: u64 = 1_000;

/// Where the chain is.
#[derive(Default)]
pub struct Chain(Mutex<End>);

#[derive(Default)]
struct End {
    /// The newest link.
    newest: u64,
    /// RocksDB's state when it was written.
    state: Option<u64>,
}

impl Chain {
    /// Of a store that was opened; fails where links are missing.
    pub fn read(view: &View) -> Result<Chain, StoreError> {
        let mut numbers: Vec<u64> = Vec::new();
        view.scan(&Range::prefix(key::meta(LINK)), |stored, _| {
            numbers.extend(stored.last_chunk().map(|bytes| u64::from_be_bytes(*bytes)));
            ControlFlow::Continue(())
        })?;
        let (first, newest) = (numbers.first().copied().unwrap_or(1), numbers.last().copied().unwrap_or(0));
        let whole = numbers.iter().copied().eq(first..=newest) && (first == 1 || newest - first + 1 == KEPT);
        let end = End { newest, state: None };
        if whole { Ok(Chain(Mutex::new(end))) } else { Err(StoreError::Damaged("chain: its middle is missing")) }
    }

    /// After a write: adds a link where a memtable may have begun.
    pub fn go_on(&self, db: &DB) {
        let mut end = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = db.property_int_value(properties::CURRENT_SUPER_VERSION_NUMBER).ok().flatten();
        if state.is_none() || state != end.state {
            end.add(db, state);
        }
    }

    /// Before a memtable is written to a table file. One of an initial snapshot may have none: its rows are not logged.
    pub fn end_memtable(&self, db: &DB) {
        let mut end = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = end.state;
        end.add(db, state);
    }
}

impl End {
    fn add(&mut self, db: &DB, state: Option<u64>) {
        let number = self.newest + 1;
        let mut batch = WriteBatch::default();
        batch.put(link(number), []);
        if let Some(old) = number.checked_sub(KEPT) {
            batch.delete(link(old));
        }
        // What was to be written is written. A store that does not take a link takes nothing else, and the next write says so.
        if db.write(batch).is_ok() {
            *self = End { newest: number, state };
        }
    }
}

const LINK: &str = "link/";

fn link(number: u64) -> Vec<u8> {
    let mut stored = key::meta(LINK);
    stored.extend_from_slice(&number.to_be_bytes());
    stored
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::store::{Batch, Store, StoreMemory};

    const MEMORY: StoreMemory = StoreMemory { block_cache: 1 << 20, write_buffer: 64 << 10 };
    const VALUE_BYTES: usize = 1_000;

    fn write(store: &Store, number: u32) {
        let mut batch = Batch::default();
        batch.put(&number.to_be_bytes(), &[7; VALUE_BYTES]);
        store.write(batch).unwrap();
    }

    /// Whether there are no others than the first ones.
    fn is_older(store: &Store, written: u32) -> bool {
        let there: Vec<bool> = (0..written).map(|number| store.get(&number.to_be_bytes()).unwrap().is_some()).collect();
        there.is_sorted_by(|before, after| before >= after)
    }

    fn manifest(store: &Path) -> PathBuf {
        store.join(fs::read_to_string(store.join("CURRENT")).unwrap().trim())
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to.join("store")).unwrap();
        for name in ["", "store"] {
            let files = fs::read_dir(from.join(name)).unwrap().map(|entry| entry.unwrap().path());
            files.filter(|file| file.is_file()).for_each(|file| {
                fs::copy(&file, to.join(name).join(file.file_name().unwrap())).unwrap();
            });
        }
    }

    #[test]
    fn a_manifest_without_its_end_is_refused_or_is_an_older_one() {
        let parent = tempfile::tempdir().unwrap();
        let whole = parent.path().join("whole");
        let store = Store::open(&whole, MEMORY).unwrap();
        const WRITTEN: u32 = 400;
        (0..WRITTEN).for_each(|number| write(&store, number));
        drop(store);
        let bytes = fs::read(manifest(&whole.join("store"))).unwrap();
        let (mut refused, mut older) = (0, 0);
        for length in (0..bytes.len()).step_by(7).chain([bytes.len()]) {
            let cut = parent.path().join(length.to_string());
            copy(&whole, &cut);
            fs::write(manifest(&cut.join("store")), &bytes[..length]).unwrap();
            match Store::open(&cut, MEMORY) {
                Ok(store) if is_older(&store, WRITTEN) => older += 1,
                Ok(_) => panic!("cut at {length} of {} bytes, its middle is missing", bytes.len()),
                Err(error) => {
                    assert_eq!(error.code, "data_damaged");
                    refused += u32::from(error.message.contains("chain"));
                }
            }
            fs::remove_dir_all(cut).unwrap();
        }
        assert!(refused > 0 && older > 0, "{refused} refused by the chain, {older} older");
    }

    #[test]
    fn whatever_is_written_and_whenever_it_is_opened_nothing_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        let mut newest = 0;
        for life in 0..12u32 {
            let store = Store::open(directory.path(), MEMORY).unwrap();
            for number in 0..life * 17 {
                write(&store, number);
                store.flush().unwrap();
            }
            let end = Chain::read(&store.view()).unwrap().0.into_inner().unwrap().newest;
            assert!(end >= newest && (life == 0 || end > newest));
            newest = end;
        }
        assert!(newest > KEPT, "links are removed, too: {newest}");
    }
}
