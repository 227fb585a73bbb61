//! From a total to the rows behind it: an index of the row images by group and time, for the aggregates that ask for it.
//!
//! ```text
//! row index  [11] aggregate u32, group tuple, time i64, part u32, primary key   ->   nothing
//! row        [10] part u32, primary key                                        ->   row image
//! ```
//!
//! The surprise: an entry is a hint. Every row that counts has one, written in the same batch as its row image; but an entry
//! may outlive its row (a late registration fills the index from a view while the stream goes on). So whoever reads computes
//! the entry of the row image again, and passes over those that differ. Nothing is missing and nothing is shown wrongly.

use std::ops::ControlFlow;

use crate::change::{RowRef, TableId, ValueRef};
use crate::materialization::group_key::{self, flip_i64};
use crate::materialization::{Aggregate, AggregateId, Bucket, Plan};
use crate::row_image::push_row_key;
use crate::snapshot::{ReadError, Snapshot};
use crate::store::{KeyKind, Range, StoreError, key};

/// Length of the part of an entry before the group.
const PREFIX: usize = 1 + 4;
const TIME: usize = 8;
/// Length of the part that names the relation which holds the row; its primary key follows.
const PART: usize = 4;

/// Writes the entry of a row into `into`. False where the row does not count, or cannot name a group (the aggregate halts
/// for that elsewhere).
pub fn encode(into: &mut Vec<u8>, id: AggregateId, plan: &Plan, row: &[ValueRef<'_>], row_key: &[u8]) -> bool {
    into.clear();
    if plan.filter.as_ref().is_some_and(|filter| !filter.accepts(row)) {
        return false;
    }
    key::push_of_aggregate(into, KeyKind::RowIndex, id);
    for dimension in &plan.dimensions {
        let Some(value) = row.get(dimension.column) else { return false };
        if group_key::push(into, *value).is_err() {
            return false;
        }
    }
    let time = match &plan.time {
        None => Some(Bucket::ALL.0),
        Some(time) => row.get(time.column).and_then(|value| time.instant(*value)),
    };
    let Some(time) = time else { return false };
    into.extend_from_slice(&flip_i64(time));
    // The row's own key, without its kind.
    into.extend_from_slice(row_key.get(1..).unwrap_or_default());
    true
}

/// An entry, cut into its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry<'k> {
    group: &'k [u8],
    time: Bucket,
    /// Of the row image, without its kind.
    row: &'k [u8],
}

fn split(stored: &[u8], dimensions: usize) -> Option<Entry<'_>> {
    let rest = stored.get(PREFIX..)?;
    let end = group_key::length_of(rest, dimensions)?;
    let (group, rest) = rest.split_at_checked(end)?;
    let (time, row) = rest.split_first_chunk::<TIME>()?;
    Some(Entry { group, time: Bucket(group_key::unflip_i64(*time)), row })
}

/// The time of an entry; `None` where it is not one.
#[must_use]
pub fn time_of(entry: &[u8], dimensions: usize) -> Option<Bucket> {
    Some(split(entry, dimensions)?.time)
}

/// The group of an entry; `None` where the bytes are not an entry of this aggregate. Callers send entries back to go on after
/// them, and what they send may be anything.
#[must_use]
pub fn group_of<'e>(entry: &'e [u8], aggregate: &Aggregate) -> Option<&'e [u8]> {
    let mut own = Vec::with_capacity(PREFIX);
    key::push_of_aggregate(&mut own, KeyKind::RowIndex, aggregate.id);
    let parts = split(entry, aggregate.plan.dimensions.len()).filter(|_| entry.starts_with(&own))?;
    let (_part, primary_key) = parts.row.split_first_chunk::<PART>()?;
    group_key::is_primary(primary_key).then_some(parts.group)
}

/// Which rows are wanted: of groups that begin with these bytes, with a time in `from..=to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowsWanted {
    /// The first dimensions of the group, encoded; all of them, or as many as are known.
    pub group_prefix: Vec<u8>,
    /// The prefix is a whole group: rows come newest first, and only as many as are taken are read.
    pub whole_group: bool,
    /// First time inside.
    pub from: Bucket,
    /// Last time inside.
    pub to: Bucket,
    /// The last entry of the page before. It comes from outside: it can make the range smaller, never larger.
    pub after: Option<Vec<u8>>,
    /// So many entries are looked at, at most: one that outlived its row costs a look and shows nothing.
    pub most: u64,
}

impl RowsWanted {
    /// The entries that may be read.
    fn range(&self, id: AggregateId) -> Range {
        let mut from = Vec::with_capacity(PREFIX + self.group_prefix.len() + TIME);
        key::push_of_aggregate(&mut from, KeyKind::RowIndex, id);
        from.extend_from_slice(&self.group_prefix);
        if !self.whole_group {
            let mut range = Range::prefix(from);
            if let Some(after) = &self.after {
                range.from = range.from.max([after.as_slice(), &[0]].concat());
            }
            return range;
        }
        let mut to = Range::prefix([from.as_slice(), &flip_i64(self.to.0)].concat()).to;
        if let Some(after) = &self.after {
            to = to.min(after.clone());
        }
        from.extend_from_slice(&flip_i64(self.from.0));
        Range { from, to }
    }

    /// Whether rows of a group are wanted.
    fn is_of(&self, group: &[u8]) -> bool {
        if self.whole_group { group == self.group_prefix } else { group.starts_with(&self.group_prefix) }
    }
}

/// How a look at rows ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Looked {
    /// All were shown, or as many as were taken.
    Enough,
    /// There may be more, but as many entries were looked at as may be.
    TooMany,
}

/// A row behind a total.
#[derive(Clone, Copy, Debug)]
pub struct RowBehind<'r> {
    /// Its entry, which says where to go on.
    pub entry: &'r [u8],
    /// Its group.
    pub group: &'r [u8],
    /// Its time.
    pub time: Bucket,
    /// Its columns.
    pub row: RowRef<'r>,
}

impl Snapshot {
    /// Visits the rows that an aggregate's cells are made of. Of a whole group newest first, and ties by primary key;
    /// otherwise group by group, oldest first. `go_on` is asked at every entry, also those whose time is not wanted: there may
    /// be any number of them.
    pub fn rows_behind(
        &self,
        aggregate: &Aggregate,
        wanted: &RowsWanted,
        mut go_on: impl FnMut() -> ControlFlow<()>,
        mut visit: impl FnMut(RowBehind<'_>) -> ControlFlow<()>,
    ) -> Result<Looked, ReadError> {
        let range = wanted.range(aggregate.id);
        if range.from >= range.to {
            return Ok(Looked::Enough);
        }
        let dimensions = aggregate.plan.dimensions.len();
        let (mut left, mut looked, mut failure) = (wanted.most, Looked::Enough, None);
        let mut look = |stored: &[u8]| {
            if go_on().is_break() {
                return ControlFlow::Break(());
            }
            // The range holds no other group. If it ever did, nobody would be shown it.
            let Some(entry) = split(stored, dimensions).filter(|entry| wanted.is_of(entry.group)) else {
                failure = Some(StoreError::Damaged("row index"));
                return ControlFlow::Break(());
            };
            if entry.time < wanted.from || entry.time > wanted.to {
                return ControlFlow::Continue(());
            }
            let Some(rest) = left.checked_sub(1) else {
                looked = Looked::TooMany;
                return ControlFlow::Break(());
            };
            left = rest;
            match self.row_of(aggregate, stored, entry, &mut visit) {
                Ok(flow) => flow,
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        };
        if wanted.whole_group {
            self.view().scan_back(&range, |stored, _| look(stored))?;
        } else {
            self.view().scan(&range, |stored, _| look(stored))?;
        }
        failure.map_or(Ok(looked), |error| Err(error.into()))
    }

    /// Shows the row of an entry, if the entry is still that of its row.
    fn row_of(
        &self,
        aggregate: &Aggregate,
        stored: &[u8],
        entry: Entry<'_>,
        visit: &mut impl FnMut(RowBehind<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, StoreError> {
        let mut row_key = vec![KeyKind::Row as u8];
        row_key.extend_from_slice(entry.row);
        let shown = self.view().get_with(&row_key, |image| {
            let mut values = Vec::new();
            let row = RowRef(image);
            if row.decode_into(&mut values).is_err() {
                return None;
            }
            let mut own = Vec::with_capacity(stored.len());
            let counts = encode(&mut own, aggregate.id, &aggregate.plan, &values, &row_key);
            if !counts || own != stored {
                return Some(ControlFlow::Continue(()));
            }
            Some(visit(RowBehind { entry: stored, group: entry.group, time: entry.time, row }))
        })?;
        match shown {
            None => Ok(ControlFlow::Continue(())),
            Some(None) => Err(StoreError::Damaged("row image")),
            Some(Some(flow)) => Ok(flow),
        }
    }
}

/// What rows that appear (sign 1) and go away (sign -1) change in the index of one aggregate: each entry with whether it is
/// put or removed, in the order of the rows; the last word on an entry counts.
pub fn changes<'r>(
    aggregate: &Aggregate,
    primary_key: &[usize],
    rows: impl Iterator<Item = (i8, TableId, RowRef<'r>)>,
    mut change: impl FnMut(&[u8], bool),
) {
    let mut values = Vec::new();
    let (mut row_key, mut entry) = (Vec::new(), Vec::new());
    for (sign, part, row) in rows {
        values.clear();
        let decoded =
            row.decode_into(&mut values).is_ok() && push_row_key(&mut row_key, part, primary_key, row).is_some();
        if decoded && encode(&mut entry, aggregate.id, &aggregate.plan, &values, &row_key) {
            change(&entry, sign > 0);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::change::{Column, ColumnType, RowWriter, TableSchema};
    use crate::materialization::{AggregateState, Catalog, Definition};
    use crate::snapshot::{AsOf, cell_key};
    use crate::store::{Batch, Store, StoreMemory};

    const TABLE: TableId = TableId(9);

    struct Payments {
        snapshot: Snapshot,
        aggregate: Aggregate,
        /// Of each payment, in the order of the index.
        entries: Vec<Vec<u8>>,
        _directory: tempfile::TempDir,
    }

    fn aggregate() -> Aggregate {
        let column = |(name, column_type): (&str, ColumnType)| Column { name: name.to_owned(), column_type };
        let columns =
            [("id", ColumnType::Int8), ("currency", ColumnType::Text), ("at", ColumnType::TimestampTz)].map(column);
        let schema = TableSchema {
            id: TABLE,
            namespace: "public".to_owned(),
            name: "payments".to_owned(),
            columns: columns.to_vec(),
            primary_key: vec![0],
            keeps_row_image: true,
        };
        let definition: Definition = serde_json::from_value(json!({
            "table": "payments", "dimensions": ["currency"], "measures": [{"name": "n", "count": "*"}],
            "time": {"column": "at", "granularity": "month"}, "drill_through": true,
        }))
        .unwrap();
        let plan = Arc::new(Plan::resolve(&definition, &schema).unwrap());
        let (name, state) = ("by_currency".to_owned(), AggregateState::Live);
        Aggregate { id: AggregateId(5), name, version: 1, definition, plan, state }
    }

    /// Payments of these ids and currencies, each a microsecond after the one before; those of `gone` are entries alone.
    fn payments(rows: &[(i64, &str)], gone: &[i64]) -> Payments {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), StoreMemory { block_cache: 1 << 20, write_buffer: 1 << 20 }).unwrap();
        let aggregate = aggregate();
        let mut batch = Batch::default();
        let mut entries = Vec::new();
        for (time, (id, currency)) in (0..).zip(rows) {
            let values = [ValueRef::Int(*id), ValueRef::Text(currency), ValueRef::Timestamp(time)];
            let (mut image, mut row_key, mut entry) = (Vec::new(), Vec::new(), Vec::new());
            let mut writer = RowWriter::new(&mut image);
            values.iter().for_each(|value| writer.push(*value));
            push_row_key(&mut row_key, TABLE, &[0], RowRef(&image)).unwrap();
            assert!(encode(&mut entry, aggregate.id, &aggregate.plan, &values, &row_key));
            if !gone.contains(id) {
                batch.put(&row_key, &image);
            }
            batch.put(&entry, &[]);
            entries.push(entry);
        }
        // Something that is not of the index, behind all of it.
        batch.put(&cell_key(aggregate.id, 0, Bucket(0), &[]), &[]);
        store.write(batch).unwrap();
        entries.sort();
        let snapshot = Snapshot::new(AsOf::default(), Arc::new(Catalog::default()), store.view(), Arc::default());
        Payments { snapshot, aggregate, entries, _directory: directory }
    }

    fn group(currency: &str) -> Vec<u8> {
        let mut group = Vec::new();
        group_key::push(&mut group, ValueRef::Text(currency)).unwrap();
        group
    }

    fn wanted(currency: Option<&str>, after: Option<Vec<u8>>) -> RowsWanted {
        RowsWanted {
            group_prefix: currency.map(group).unwrap_or_default(),
            whole_group: currency.is_some(),
            from: Bucket::NEGATIVE_INFINITY,
            to: Bucket::NULL,
            after,
            most: 1_000,
        }
    }

    fn ids(payments: &Payments, wanted: &RowsWanted) -> (Vec<i64>, Result<Looked, ReadError>) {
        let mut ids = Vec::new();
        let go_on = || ControlFlow::Continue(());
        let looked = payments.snapshot.rows_behind(&payments.aggregate, wanted, go_on, |found| {
            if let Some(Ok(ValueRef::Int(id))) = found.row.columns().next() {
                ids.push(id);
            }
            ControlFlow::Continue(())
        });
        (ids, looked)
    }

    const ROWS: [(i64, &str); 6] = [(1, "EUR"), (2, "CHF"), (3, "EUR"), (4, "USD"), (5, "EUR"), (6, "USD")];

    #[test]
    fn no_place_to_go_on_from_leads_out_of_the_group() {
        let payments = payments(&ROWS, &[]);
        let kind = [KeyKind::RowIndex as u8];
        let own = [&kind[..], &payments.aggregate.id.0.to_be_bytes()].concat();
        let of_usd = payments.entries.last().unwrap().clone();
        for after in [
            [own.as_slice(), &[0xFF; 8]].concat(),
            [own.as_slice(), &group("EUR"), &[0xFF; 40]].concat(),
            [own.as_slice(), &group("USD")].concat(),
            of_usd,
            vec![0xFF; 64],
            vec![KeyKind::Control as u8],
        ] {
            let (found, looked) = ids(&payments, &wanted(Some("EUR"), Some(after.clone())));
            assert_eq!((found, looked), (vec![5, 3, 1], Ok(Looked::Enough)), "{after:?}");
        }
        // Before the range there is nothing left of it.
        for after in [Vec::new(), vec![0], own, payments.entries.first().unwrap().clone()] {
            let (found, looked) = ids(&payments, &wanted(Some("EUR"), Some(after.clone())));
            assert_eq!((found, looked), (Vec::new(), Ok(Looked::Enough)), "{after:?}");
        }
    }

    #[test]
    fn no_place_to_go_on_from_leads_out_of_the_range() {
        let payments = payments(&ROWS, &[]);
        let until_third = RowsWanted { from: Bucket(1), to: Bucket(2), ..wanted(Some("EUR"), None) };
        for after in [None, payments.entries.last().cloned(), Some(vec![0xFF; 64])] {
            let (found, _) = ids(&payments, &RowsWanted { after: after.clone(), ..until_third.clone() });
            assert_eq!(found, [3], "{after:?}");
        }
        // Across groups it goes forward, and begins nowhere before the first.
        for after in [None, Some(Vec::new()), Some(vec![KeyKind::Meta as u8])] {
            assert_eq!(ids(&payments, &wanted(None, after)), (vec![2, 1, 3, 5, 4, 6], Ok(Looked::Enough)));
        }
        assert_eq!(ids(&payments, &wanted(None, Some(vec![0xFF; 64]))), (Vec::new(), Ok(Looked::Enough)));
    }

    #[test]
    fn the_next_page_begins_after_the_last_row_of_the_one_before() {
        let payments = payments(&ROWS, &[]);
        let of_eur: Vec<Vec<u8>> = payments
            .entries
            .iter()
            .filter(|entry| group_of(entry, &payments.aggregate).unwrap() == group("EUR"))
            .cloned()
            .collect();
        let rest: Vec<Vec<i64>> =
            of_eur.into_iter().rev().map(|entry| ids(&payments, &wanted(Some("EUR"), Some(entry))).0).collect();
        assert_eq!(rest, [vec![3, 1], vec![1], vec![]]);
    }

    #[test]
    fn entries_that_outlived_their_rows_are_not_looked_at_without_end() {
        let rows: Vec<(i64, &str)> = (1..=100).map(|id| (id, "EUR")).collect();
        let gone: Vec<i64> = (2..=100).collect();
        let payments = payments(&rows, &gone);
        for whole in [Some("EUR"), None] {
            let of = |most: u64| ids(&payments, &RowsWanted { most, ..wanted(whole, None) });
            assert_eq!(of(100), (vec![1], Ok(Looked::Enough)));
            assert_eq!(of(99).1, Ok(Looked::TooMany));
        }
    }

    #[test]
    fn entries_of_another_time_are_not_passed_over_without_end() {
        let payments = payments(&ROWS, &[]);
        for whole in [Some("EUR"), None] {
            let none = RowsWanted { from: Bucket(1_000), to: Bucket(2_000), ..wanted(whole, None) };
            // Of a whole group the range leaves them out.
            let rows = if whole.is_some() { wanted(whole, None) } else { none };
            let mut asked = 0;
            let go_on = || {
                asked += 1;
                if asked < 2 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            let looked =
                payments.snapshot.rows_behind(&payments.aggregate, &rows, go_on, |_| ControlFlow::Continue(()));
            assert_eq!((looked, asked), (Ok(Looked::Enough), 2), "{whole:?}");
        }
    }

    #[test]
    fn what_is_no_entry_of_the_aggregate_has_no_group() {
        let payments = payments(&ROWS, &[]);
        let aggregate = &payments.aggregate;
        for entry in &payments.entries {
            assert!(group_of(entry, aggregate).is_some(), "{entry:?}");
            // Cut short anywhere, or longer than it is.
            for end in 0..entry.len() {
                assert_eq!(group_of(entry.get(..end).unwrap(), aggregate), None, "{end} of {entry:?}");
            }
            assert_eq!(group_of(&[entry.as_slice(), &[0xFF]].concat(), aggregate), None);
            let another = Aggregate { id: AggregateId(6), ..aggregate.clone() };
            assert_eq!(group_of(entry, &another), None);
            let mut of_another_kind = entry.clone();
            *of_another_kind.first_mut().unwrap() = KeyKind::Cell as u8;
            assert_eq!(group_of(&of_another_kind, aggregate), None);
        }
    }
}
