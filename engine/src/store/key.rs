//! The map of the disk: every kind of key, in one place.
//!
//! ```text
//! meta     [01] name                                                    format, cursor, source, counters
//! table    [02] table u32                                               the schema its row images were written under
//! aggregate[03] aggregate u32                                           definition and state
//! row      [10] table u32, primary key                                  row image
//! row index[11] aggregate u32, group tuple, time i64, part u32, primary key   which rows are behind a total
//! cell     [20] aggregate u32, level u8, bucket i64, group tuple        accumulators
//! control  [21] aggregate u32, level u8, bucket i64                     the cells of a Partition, added up once more
//! ```
//!
//! Integers are big-endian, signed ones with the sign flipped: byte order is logical order. A kind is never reused.
//! Bucket before group, so that a time range is one contiguous scan and a Partition one prefix.

use crate::change::TableId;
use crate::materialization::group_key::{flip_i64, unflip_i64};
use crate::materialization::{AggregateId, Bucket};

/// What a key is of: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum KeyKind {
    /// Singletons.
    Meta = 0x01,
    /// Table schemas.
    Table = 0x02,
    /// Registered aggregates.
    Aggregate = 0x03,
    /// Row images.
    Row = 0x10,
    /// Row images by group and time, for drilling through.
    RowIndex = 0x11,
    /// Cells.
    Cell = 0x20,
    /// Control totals.
    Control = 0x21,
}

/// All kinds; a store with a key of another kind is of a newer format.
pub const KINDS: [KeyKind; 7] = [
    KeyKind::Meta,
    KeyKind::Table,
    KeyKind::Aggregate,
    KeyKind::Row,
    KeyKind::RowIndex,
    KeyKind::Cell,
    KeyKind::Control,
];

/// Length of the part of a cell's key before the group.
pub const CELL_PREFIX: usize = 1 + 4 + 1 + 8;

/// A singleton.
#[must_use]
pub fn meta(name: &str) -> Vec<u8> {
    let mut key = vec![KeyKind::Meta as u8];
    key.extend_from_slice(name.as_bytes());
    key
}

/// A table's schema.
#[must_use]
pub fn table(table: TableId) -> Vec<u8> {
    let mut key = vec![KeyKind::Table as u8];
    key.extend_from_slice(&table.0.to_be_bytes());
    key
}

/// A registered aggregate.
#[must_use]
pub fn aggregate(id: AggregateId) -> Vec<u8> {
    let mut key = vec![KeyKind::Aggregate as u8];
    key.extend_from_slice(&id.0.to_be_bytes());
    key
}

/// Begins the key of a row image; the primary key follows.
pub fn push_row_prefix(key: &mut Vec<u8>, table: TableId) {
    key.push(KeyKind::Row as u8);
    key.extend_from_slice(&table.0.to_be_bytes());
}

/// All row images of a table.
#[must_use]
pub fn rows(table: TableId) -> Range {
    let mut from = Vec::with_capacity(5);
    push_row_prefix(&mut from, table);
    Range::prefix(from)
}

/// Begins the key of a cell; the group follows.
pub fn push_cell_prefix(key: &mut Vec<u8>, aggregate: AggregateId, level: u8, bucket: Bucket) {
    push_partition(key, KeyKind::Cell, aggregate, level, bucket);
}

fn push_partition(key: &mut Vec<u8>, kind: KeyKind, aggregate: AggregateId, level: u8, bucket: Bucket) {
    push_of_aggregate(key, kind, aggregate);
    key.push(level);
    key.extend_from_slice(&flip_i64(bucket.0));
}

/// The control total of a Partition.
#[must_use]
pub fn control(aggregate: AggregateId, level: u8, bucket: Bucket) -> Vec<u8> {
    let mut key = Vec::with_capacity(CELL_PREFIX);
    push_partition(&mut key, KeyKind::Control, aggregate, level, bucket);
    key
}

/// The cells of a level whose bucket lies in `from..=to`.
#[must_use]
pub fn cells(aggregate: AggregateId, level: u8, from: Bucket, to: Bucket) -> Range {
    let mut start = Vec::with_capacity(CELL_PREFIX);
    push_cell_prefix(&mut start, aggregate, level, from);
    let mut last = Vec::with_capacity(CELL_PREFIX);
    push_cell_prefix(&mut last, aggregate, level, to);
    Range { from: start, to: Range::prefix(last).to }
}

/// The control totals of a level whose bucket lies in `from..=to`.
#[must_use]
pub fn controls(aggregate: AggregateId, level: u8, from: Bucket, to: Bucket) -> Range {
    Range { from: control(aggregate, level, from), to: Range::prefix(control(aggregate, level, to)).to }
}

/// Everything of one kind that belongs to an aggregate.
#[must_use]
pub fn of_aggregate(kind: KeyKind, id: AggregateId) -> Range {
    let mut from = Vec::with_capacity(5);
    push_of_aggregate(&mut from, kind, id);
    Range::prefix(from)
}

/// Begins a key of one kind that belongs to an aggregate.
pub fn push_of_aggregate(key: &mut Vec<u8>, kind: KeyKind, id: AggregateId) {
    key.push(kind as u8);
    key.extend_from_slice(&id.0.to_be_bytes());
}

/// The aggregate that a cell, a control total or an entry of the row index belongs to.
#[must_use]
pub fn aggregate_of(key: &[u8]) -> Option<AggregateId> {
    let (_kind, rest) = key.split_first()?;
    let (aggregate, _) = rest.split_first_chunk::<4>()?;
    Some(AggregateId(u32::from_be_bytes(*aggregate)))
}

/// Everything of one kind.
#[must_use]
pub fn of_kind(kind: KeyKind) -> Range {
    Range::prefix(vec![kind as u8])
}

/// The parts of a cell's or control total's key.
#[must_use]
pub fn split_cell(key: &[u8]) -> Option<(AggregateId, u8, Bucket, &[u8])> {
    let (_kind, rest) = key.split_first()?;
    let (aggregate, rest) = rest.split_first_chunk::<4>()?;
    let (level, rest) = rest.split_first()?;
    let (bucket, group) = rest.split_first_chunk::<8>()?;
    Some((AggregateId(u32::from_be_bytes(*aggregate)), *level, Bucket(unflip_i64(*bucket)), group))
}

/// Keys in `from..to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// First key inside.
    pub from: Vec<u8>,
    /// First key after.
    pub to: Vec<u8>,
}

impl Range {
    /// All keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: Vec<u8>) -> Range {
        let mut to = prefix.clone();
        while let Some(last) = to.pop() {
            if last < u8::MAX {
                to.push(last + 1);
                break;
            }
        }
        Range { from: prefix, to }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn cells_sort_by_bucket_then_group(
            a in (any::<i64>(), prop::collection::vec(any::<u8>(), 0..6)),
            b in (any::<i64>(), prop::collection::vec(any::<u8>(), 0..6)),
        ) {
            let key = |(bucket, group): &(i64, Vec<u8>)| {
                let mut key = Vec::new();
                push_cell_prefix(&mut key, AggregateId(7), 1, Bucket(*bucket));
                key.extend_from_slice(group);
                key
            };
            prop_assert_eq!(key(&a).cmp(&key(&b)), a.cmp(&b));
            let encoded = key(&a);
            prop_assert_eq!(split_cell(&encoded), Some((AggregateId(7), 1, Bucket(a.0), a.1.as_slice())));
            let range = cells(AggregateId(7), 1, Bucket(a.0.min(b.0)), Bucket(a.0.max(b.0)));
            for key in [key(&a), key(&b)] {
                prop_assert!(range.from <= key && key < range.to);
            }
        }
    }

    #[test]
    fn kinds_are_frozen() {
        assert_eq!(KINDS.map(|kind| kind as u8), [0x01, 0x02, 0x03, 0x10, 0x11, 0x20, 0x21]);
    }

    #[test]
    fn a_prefix_of_all_ones_still_ends() {
        assert_eq!(Range::prefix(vec![0x20, 0xFF, 0xFF]).to, vec![0x21]);
    }
}
