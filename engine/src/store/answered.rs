//! Finds out where the end of a store is missing and nobody upstream can tell.
//!
//! A store that has lost its newest rows is an older one, and upstream knows how far it was. What callers were answered, that an
//! aggregate is registered or gone, the store alone knows. So answers have numbers, and the newest is kept twice: in the store
//! with what it is about, and then, before anybody is answered, in a file beside the store.
//!
//! ```text
//! DATA/ANSWERED   "17 17\n": of the first 17 answers nothing is missing in DATA/store
//! ```
//!
//! Whatever RocksDB takes for the end of its log or manifest, or for a new store, is refused where it lacks one of them. A file that
//! is gone or cannot be read says nothing: then it was not the store that was damaged.

use std::fs;

use super::{Batch, Store, StoreError, format, key};

const ANSWERED: &str = "answered";
const FILE: &str = "ANSWERED";

/// How many answers were given that a crash must not undo.
pub struct Answered {
    stored: u64,
    /// As the file has it, where it can be read.
    noted: u64,
}

impl Answered {
    /// Of a store that was opened; fails where it lacks an answer that was given.
    pub fn read(store: &Store) -> Result<Answered, StoreError> {
        let stored = match store.get(&key::meta(ANSWERED))? {
            Some(bytes) => u64::from_be_bytes(bytes.try_into().map_err(|_| StoreError::Damaged(ANSWERED))?),
            None => 0,
        };
        let noted = fs::read_to_string(store.data().join(FILE)).ok().and_then(|text| parse(&text)).unwrap_or(0);
        if noted > stored {
            return Err(StoreError::Damaged("store: its end is missing, and with it what callers were answered"));
        }
        Ok(Answered { stored, noted })
    }

    /// Has the file say what the store holds, of which a backup has none and a crash may have kept it: until the next answer nobody
    /// would notice that the store loses its end.
    pub fn catch_up(&mut self, store: &Store) -> Result<(), StoreError> {
        if self.noted < self.stored {
            // What is noted the store must never lack.
            store.sync()?;
            self.note(store);
        }
        Ok(())
    }

    /// Puts the next answer into the batch that it is about.
    pub fn next(&mut self, batch: &mut Batch) {
        self.stored += 1;
        batch.put(&key::meta(ANSWERED), &self.stored.to_be_bytes());
    }

    /// The store has all of them for good: from now on it has to. Where that cannot be written the answer is as right as it was, so
    /// it is given.
    pub fn note(&mut self, store: &Store) {
        let text = format!("{0} {0}\n", self.stored);
        match format::replace(store.data(), FILE, &text) {
            Ok(()) => self.noted = self.stored,
            Err(error) => {
                tracing::warn!(%error, "cannot write how many answers were given: losing the newest would not be noticed");
            }
        }
    }
}

/// The number, which is there twice: one that has changed by itself is none.
fn parse(text: &str) -> Option<u64> {
    let (one, other) = text.strip_suffix('\n')?.split_once(' ')?;
    one.parse().ok().filter(|_| one == other)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::StoreMemory;

    #[test]
    fn an_answer_that_the_store_lacks_is_missed_and_an_unreadable_file_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), StoreMemory { block_cache: 1 << 20, write_buffer: 1 << 20 }).unwrap();
        let mut answered = Answered::read(&store).unwrap();
        for _ in 0..12 {
            let mut batch = Batch::default();
            answered.next(&mut batch);
            store.write(batch).unwrap();
            answered.note(&store);
        }
        assert_eq!(Answered::read(&store).unwrap().stored, 12);
        let reads = |text: &str| {
            fs::write(directory.path().join(FILE), text).unwrap();
            Answered::read(&store).is_ok()
        };
        assert!(reads("11 11\n") && reads("12 12\n") && !reads("13 13\n"));
        for spoilt in ["", "13", "13 13", "13 12\n", "92 12\n", "x x\n", "13 13\n\n"] {
            assert!(reads(spoilt), "{spoilt:?}");
        }
        fs::remove_file(directory.path().join(FILE)).unwrap();
        let mut restored = Answered::read(&store).unwrap();
        assert_eq!((restored.stored, restored.noted), (12, 0));
        restored.catch_up(&store).unwrap();
        assert_eq!(fs::read_to_string(directory.path().join(FILE)).unwrap(), "12 12\n");
    }
}
