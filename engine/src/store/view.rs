//! A consistent view for readers: a RocksDB snapshot together with the handle it borrows from.
//!
//! An iterator of RocksDB that becomes invalid because of an I/O or checksum error looks like one that reached its end:
//! a silently short scan, that is, a wrong sum. So scanning is a function whose only way to succeed asks for the status.

use std::ops::ControlFlow;

use rocksdb::{DB, ReadOptions};
use self_cell::self_cell;

use super::{Range, Store, StoreError};

type Pinned<'a> = rocksdb::SnapshotWithThreadMode<'a, DB>;

self_cell!(
    struct Owned {
        owner: Store,
        #[covariant]
        dependent: Pinned,
    }
);

/// Everything in the store as of one moment.
pub struct View(Owned);

impl View {
    pub(super) fn new(store: Store) -> View {
        View(Owned::new(store, |store| store.db.snapshot()))
    }

    /// The store it is of.
    #[must_use]
    pub fn store(&self) -> Store {
        self.0.borrow_owner().clone()
    }

    /// Looks at the value of a key.
    pub fn get_with<R>(&self, key: &[u8], read: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, StoreError> {
        Ok(self.0.borrow_dependent().get_pinned(key)?.map(|value| read(&value)))
    }

    /// First and last key of a range; `None` where it is empty.
    pub fn edges(&self, range: &Range) -> Result<Option<[Vec<u8>; 2]>, StoreError> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(range.from.as_slice());
        options.set_iterate_upper_bound(range.to.as_slice());
        let mut cursor = self.0.borrow_dependent().raw_iterator_opt(options);
        cursor.seek_to_first();
        let first = cursor.key().map(<[u8]>::to_vec);
        cursor.seek_to_last();
        let last = cursor.key().map(<[u8]>::to_vec);
        cursor.status()?;
        Ok(first.zip(last).map(<[Vec<u8>; 2]>::from))
    }

    /// Visits keys and values of a range in order, until told to stop.
    pub fn scan(
        &self,
        range: &Range,
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut options = within(range);
        options.set_readahead_size(256 << 10);
        let mut cursor = self.0.borrow_dependent().raw_iterator_opt(options);
        cursor.seek_to_first();
        while let Some((key, value)) = cursor.item() {
            if visit(key, value).is_break() {
                return Ok(());
            }
            cursor.next();
        }
        Ok(cursor.status()?)
    }

    /// Visits keys and values of a range from its end, until told to stop.
    pub fn scan_back(
        &self,
        range: &Range,
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut cursor = self.0.borrow_dependent().raw_iterator_opt(within(range));
        cursor.seek_to_last();
        while let Some((key, value)) = cursor.item() {
            if visit(key, value).is_break() {
                return Ok(());
            }
            cursor.prev();
        }
        Ok(cursor.status()?)
    }
}

/// Reads that see no key outside of a range.
pub(super) fn within(range: &Range) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(range.from.as_slice());
    options.set_iterate_upper_bound(range.to.as_slice());
    options
}
