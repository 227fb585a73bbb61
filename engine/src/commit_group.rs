//! A commit group: whole upstream transactions that become visible together. It is one epoch of the dataflow and at most
//! one write of the store.
//!
//! ```text
//! bytes   | key | row | row | key | row | ...          one arena for all keys and rows of the group
//! signed  : (+ row) (- row) (+ row) ...                what the aggregates add and take away
//! writes  : key -> row, or key -> gone                 what the row images become; the last write of a key counts
//! ```
//!
//! A part is the relation that holds a row: the table itself, or one of its partitions. Rows of a part before its truncate
//! in the same group are void: `truncated` comes first, then everything else.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::change::{Lsn, RowRef, TableId};
use crate::source::Milestone;

/// A piece of a group's arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    length: u32,
}

/// A row that appears or goes away.
#[derive(Clone, Copy, Debug)]
pub struct SignedRow {
    /// The table, whose aggregates it counts for.
    pub table: TableId,
    /// The relation that holds it: the table, or one of its partitions.
    pub part: TableId,
    /// 1 where it appears, -1 where it goes away.
    pub sign: i8,
    row: Span,
}

/// The new row image of a key.
#[derive(Clone, Copy, Debug)]
pub struct RowWrite {
    key: Span,
    /// `None` where the row went away.
    row: Option<Span>,
}

/// The rows of one commit group.
#[derive(Debug, Default)]
pub struct GroupRows {
    bytes: Vec<u8>,
    signed: Vec<SignedRow>,
    writes: Vec<RowWrite>,
    index: HashTable<u32>,
    truncated: Vec<TableId>,
}

/// What a group knows of a row image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written<R> {
    /// It was written to this.
    Row(R),
    /// It went away, or its table was truncated.
    Gone,
    /// The group did not touch it.
    Untouched,
}

/// The arena of one group is full: a single transaction of more than 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the commit group holds more than 4 GiB of row data")]
pub struct GroupTooLarge;

/// Fixed, so that the same input takes the same path every time.
const HASHER: FixedState = FixedState::with_seed(0x7469_6465);

/// The bytes of a piece of an arena.
fn piece(arena: &[u8], span: Span) -> &[u8] {
    let start = span.start as usize;
    arena.get(start..start + span.length as usize).unwrap_or_default()
}

impl GroupRows {
    /// Copies bytes into the arena.
    pub fn store(&mut self, bytes: &[u8]) -> Result<Span, GroupTooLarge> {
        self.store_with(|arena| arena.extend_from_slice(bytes))
    }

    /// Writes bytes into the arena.
    pub fn store_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<Span, GroupTooLarge> {
        let start = self.bytes.len();
        write(&mut self.bytes);
        let length = self.bytes.len().saturating_sub(start);
        match (u32::try_from(start), u32::try_from(length), u32::try_from(self.bytes.len())) {
            (Ok(start), Ok(length), Ok(_)) => Ok(Span { start, length }),
            _ => {
                self.bytes.truncate(start);
                Err(GroupTooLarge)
            }
        }
    }

    /// The bytes of a piece.
    #[must_use]
    pub fn get(&self, span: Span) -> &[u8] {
        piece(&self.bytes, span)
    }

    /// A row appears or goes away, as far as the aggregates are concerned.
    pub fn sign(&mut self, (table, part): (TableId, TableId), sign: i8, row: Span) {
        self.signed.push(SignedRow { table, part, sign, row });
    }

    /// The row image of a key becomes `row`, or goes away.
    pub fn write(&mut self, key: Span, row: Option<Span>) {
        let GroupRows { bytes, writes, index, .. } = self;
        let bytes_of = |span: Span| piece(bytes, span);
        let wanted = bytes_of(key);
        let hash = HASHER.hash_one(wanted);
        let same = |at: &u32| writes.get(*at as usize).is_some_and(|write| bytes_of(write.key) == wanted);
        if let Some(at) = index.find(hash, same).copied() {
            if let Some(write) = writes.get_mut(at as usize) {
                write.row = row;
            }
            return;
        }
        let at = writes.len() as u32;
        writes.push(RowWrite { key, row });
        index.insert_unique(hash, at, |at| {
            writes.get(*at as usize).map_or(0, |write| HASHER.hash_one(bytes_of(write.key)))
        });
    }

    /// As [`GroupRows::write`], for keys of which no other write can be in the group and that nobody will look up: rows
    /// of an initial snapshot.
    pub fn write_once(&mut self, key: Span, row: Span) {
        self.writes.push(RowWrite { key, row: Some(row) });
    }

    /// What the group knows of the row image of a key.
    #[must_use]
    pub fn look_up(&self, part: TableId, key: &[u8]) -> Written<RowRef<'_>> {
        match self.find(part, key) {
            Written::Row(row) => Written::Row(RowRef(self.get(row))),
            Written::Gone => Written::Gone,
            Written::Untouched => Written::Untouched,
        }
    }

    /// As [`GroupRows::look_up`]: the piece of this group's arena that holds the row.
    #[must_use]
    pub fn find(&self, part: TableId, key: &[u8]) -> Written<Span> {
        let hash = HASHER.hash_one(key);
        let same = |at: &u32| self.writes.get(*at as usize).is_some_and(|write| self.get(write.key) == key);
        match self.index.find(hash, same).and_then(|at| self.writes.get(*at as usize)) {
            Some(RowWrite { row: Some(row), .. }) => Written::Row(*row),
            Some(RowWrite { row: None, .. }) => Written::Gone,
            None if self.truncated.contains(&part) => Written::Gone,
            None => Written::Untouched,
        }
    }

    /// All rows of a part are gone, those of this group included.
    pub fn truncate(&mut self, part: TableId) {
        self.signed.retain(|row| row.part != part);
        let prefix = {
            let mut prefix = Vec::with_capacity(5);
            crate::store::key::push_row_prefix(&mut prefix, part);
            prefix
        };
        let GroupRows { bytes, writes, index, .. } = self;
        let bytes_of = |span: Span| piece(bytes, span);
        writes.retain(|write| !bytes_of(write.key).starts_with(&prefix));
        // The positions moved: the index begins anew.
        index.clear();
        let hash_at = |at: &u32| writes.get(*at as usize).map_or(0, |write| HASHER.hash_one(bytes_of(write.key)));
        for at in 0..writes.len() as u32 {
            index.insert_unique(hash_at(&at), at, hash_at);
        }
        if !self.truncated.contains(&part) {
            self.truncated.push(part);
        }
    }

    /// Parts that were truncated, before everything else in the group.
    #[must_use]
    pub fn truncated(&self) -> &[TableId] {
        &self.truncated
    }

    /// Rows that appear and go away, in order.
    #[must_use]
    pub fn signed(&self) -> &[SignedRow] {
        &self.signed
    }

    /// The bytes of a signed row.
    #[must_use]
    pub fn row(&self, row: &SignedRow) -> RowRef<'_> {
        RowRef(self.get(row.row))
    }

    /// Keys and row images to be written, each key once.
    pub fn writes(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> + '_ {
        self.writes.iter().map(|write| (self.get(write.key), write.row.map(|row| self.get(row))))
    }

    /// Memory held, in bytes.
    #[must_use]
    pub fn byte_size(&self) -> usize {
        self.bytes.len() + self.signed.len() * size_of::<SignedRow>() + self.writes.len() * size_of::<RowWrite>()
    }

    /// True where the group changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.signed.is_empty() && self.writes.is_empty() && self.truncated.is_empty()
    }
}

/// The position of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// End of the last transaction in the group, or an idle position.
    pub lsn: Lsn,
    /// When that was, microseconds since 2000-01-01 UTC.
    pub commit_time_us: i64,
    /// What upstream has there.
    pub milestone: Milestone,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(table: TableId, id: u8) -> Vec<u8> {
        let mut key = Vec::new();
        crate::store::key::push_row_prefix(&mut key, table);
        key.push(id);
        key
    }

    fn write(rows: &mut GroupRows, table: TableId, id: u8, row: Option<&[u8]>) {
        let key = rows.store(&key(table, id)).unwrap();
        let row = row.map(|row| rows.store(row).unwrap());
        rows.write(key, row);
        if let Some(row) = row {
            rows.sign((table, table), 1, row);
        }
    }

    #[test]
    fn the_last_write_of_a_key_counts() {
        let (mut rows, table) = (GroupRows::default(), TableId(1));
        write(&mut rows, table, 1, Some(b"a"));
        write(&mut rows, table, 1, Some(b"b"));
        write(&mut rows, table, 2, None);
        assert_eq!(rows.look_up(table, &key(table, 1)), Written::Row(RowRef(b"b")));
        assert_eq!(rows.look_up(table, &key(table, 2)), Written::Gone);
        assert_eq!(rows.look_up(table, &key(table, 3)), Written::Untouched);
        assert_eq!(rows.writes().count(), 2);
    }

    #[test]
    fn a_truncate_voids_what_came_before_it_in_its_table_only() {
        let (mut rows, table, other) = (GroupRows::default(), TableId(1), TableId(2));
        write(&mut rows, table, 1, Some(b"a"));
        write(&mut rows, other, 1, Some(b"o"));
        rows.truncate(table);
        write(&mut rows, table, 2, Some(b"c"));
        assert_eq!(rows.look_up(table, &key(table, 1)), Written::Gone);
        assert_eq!(rows.look_up(table, &key(table, 2)), Written::Row(RowRef(b"c")));
        assert_eq!(rows.look_up(other, &key(other, 1)), Written::Row(RowRef(b"o")));
        assert_eq!(rows.look_up(other, &key(other, 9)), Written::Untouched);
        let written: Vec<_> = rows.writes().map(|(_, row)| row.unwrap().to_vec()).collect();
        assert_eq!(written, [b"o".to_vec(), b"c".to_vec()]);
        assert_eq!(rows.signed().len(), 2);
    }
}
