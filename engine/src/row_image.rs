//! Row images: the last known row per primary key. They complete the old image of an update or delete, which Postgres
//! does not send under the default replica identity.
//!
//! This stage is one thread in front of the dataflow, not an operator in it. A change of primary key touches two keys,
//! and its new row may lack large values that only the old one has; with rows spread over workers by key the two would
//! have to meet. One thread also keeps the order within a transaction for free, and it is not what limits throughput.
//!
//! A row is looked up in the open group, then in the groups that are minted and not yet committed (newest first), then
//! in the store. What is in none of them though it must be there stops the engine: nothing is guessed.
//!
//! For a table that keeps no row images (`REPLICA IDENTITY FULL`) the old row is the one that comes with the change. Nothing
//! is looked up and nothing but signed rows goes into the group, so nothing can be checked either: a change that comes
//! without its whole old row halts the table.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::change::{Change, OldImage, RowRef, RowWriter, TableId, TableSchema, ValueRef};
use crate::commit_group::{GroupRows, GroupTooLarge, Span, Written};
use crate::materialization::group_key;
use crate::source::{FollowedTable, TableState};
use crate::store::{Store, StoreError, key};
use crate::torture::{self, Bug};

/// Why a change cannot be applied exactly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowImageError {
    /// An update or delete of a row that we do not have.
    #[error("there is no row image for a change of {0}")]
    Missing(String),
    /// An insert of a row whose key is there already.
    #[error("a row of {0} appeared whose key is there already")]
    Twice(String),
    /// An update or delete without the whole old row, of a table that keeps no row images.
    #[error("a change of {0}, which keeps no row images, came without the whole old row")]
    NotWhole(String),
    /// A row that is not of the table's shape.
    #[error("a row of {0} is malformed")]
    Malformed(String),
    /// A table that was not announced.
    #[error("a change of a table that was not announced (OID {})", .0.0)]
    UnknownTable(TableId),
    /// More than 4 GiB in one group.
    #[error(transparent)]
    TooLarge(#[from] GroupTooLarge),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How many events of each kind were applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Inserts.
    pub inserts: u64,
    /// Updates.
    pub updates: u64,
    /// Deletes.
    pub deletes: u64,
    /// Truncates.
    pub truncates: u64,
}

/// A relation that holds rows.
struct Part {
    id: TableId,
    schema: Arc<TableSchema>,
    /// Of a partitioned table told under its own id: where its rows really are.
    partitions: Arc<[TableId]>,
    /// The table halted: whatever still comes of it is not looked at.
    halted: bool,
}

impl Part {
    /// The table whose aggregates the rows count for, and the relation that holds them.
    fn ids(&self) -> (TableId, TableId) {
        (self.schema.id, self.id)
    }
}

/// Looks rows up and turns changes into signed rows and new row images.
pub struct RowImages {
    store: Store,
    /// By the relation that rows are told under: the table, or one of its partitions.
    parts: HashMap<TableId, Arc<Part>, FixedState>,
    pending: VecDeque<(u64, Arc<GroupRows>)>,
    key: Vec<u8>,
    old_key: Vec<u8>,
}

impl RowImages {
    /// Over a store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        RowImages { store, parts: HashMap::default(), pending: VecDeque::new(), key: Vec::new(), old_key: Vec::new() }
    }

    /// Announces a table as it is from here on. One that halted takes no relation from one that has not.
    pub fn add_table(&mut self, table: &FollowedTable) {
        let schema = Arc::new(table.schema.clone());
        let halted = matches!(table.standing, TableState::Halted { .. });
        let part = |id: TableId, partitions: Arc<[TableId]>| {
            Arc::new(Part { id, schema: Arc::clone(&schema), partitions, halted })
        };
        let own = (schema.id, table.partitions.clone().into());
        for (id, partitions) in table.partitions.iter().map(|id| (*id, Arc::default())).chain([own]) {
            let others = self.parts.get(&id).is_some_and(|part| part.schema.id != schema.id && !part.halted);
            if !(halted && others) {
                self.parts.insert(id, part(id, partitions));
            }
        }
    }

    /// A table that is not followed any more, with its partitions, as far as they are still its own.
    pub fn forget_table(&mut self, table: &FollowedTable) {
        for id in table.partitions.iter().chain([&table.schema.id]) {
            if self.owner(*id) == Some(table.schema.id) {
                self.parts.remove(id);
            }
        }
    }

    /// The table that a relation's rows count for: they never count for two.
    #[must_use]
    pub fn owner(&self, relation: TableId) -> Option<TableId> {
        self.parts.get(&relation).map(|part| part.schema.id)
    }

    /// The table that rows told under this id belong to.
    #[must_use]
    pub fn table_id(&self, part: TableId) -> TableId {
        self.owner(part).unwrap_or(part)
    }

    /// Remembers a minted group until it is committed.
    pub fn minted(&mut self, sequence: u64, rows: Arc<GroupRows>) {
        if !rows.is_empty() {
            self.pending.push_back((sequence, rows));
        }
    }

    /// Forgets the groups that the store now holds.
    pub fn committed(&mut self, sequence: u64) {
        while self.pending.front().is_some_and(|(minted, _)| *minted <= sequence) {
            self.pending.pop_front();
        }
    }

    /// Adds a row of the initial snapshot to the open group.
    pub fn add_snapshot_row(&mut self, group: &mut GroupRows, change: Change<'_>) -> Result<(), RowImageError> {
        let Change::Insert { table, new } = change else { return Ok(()) };
        let part = self.part(table)?;
        if part.schema.keeps_row_image {
            encode_key(&mut self.key, &part, new)?;
            let key = group.store(&self.key)?;
            let row = group.store(new.0)?;
            group.write_once(key, row);
            group.sign(part.ids(), 1, row);
            return Ok(());
        }
        let row = group.store(new.0)?;
        group.sign(part.ids(), 1, row);
        Ok(())
    }

    /// Adds one change to the open group.
    pub fn add_change(
        &mut self,
        group: &mut GroupRows,
        change: Change<'_>,
        applied: &mut Applied,
    ) -> Result<(), RowImageError> {
        let part = self.part(change.table())?;
        if part.halted {
            return Ok(());
        }
        if !part.schema.keeps_row_image {
            return add_whole(group, &part, change, applied);
        }
        match change {
            Change::Insert { new, .. } | Change::InsertChecked { new, .. } => {
                encode_key(&mut self.key, &part, new)?;
                if matches!(change, Change::InsertChecked { .. }) && self.is_there(group, &part)? {
                    return Err(RowImageError::Twice(part.schema.qualified_name()));
                }
                applied.inserts += 1;
                let key = group.store(&self.key)?;
                let row = group.store(new.0)?;
                group.write(key, Some(row));
                group.sign(part.ids(), 1, row);
            }
            Change::Update { old, new, .. } => {
                applied.updates += 1;
                self.update(group, &part, old, new)?;
            }
            Change::Upsert { table, new } => {
                encode_key(&mut self.key, &part, new)?;
                let change = match self.is_there(group, &part)? {
                    true => Change::Update { table, old: OldImage::Absent, new },
                    false => Change::Insert { table, new },
                };
                self.add_change(group, change, applied)?;
            }
            Change::Delete { old, .. } => {
                applied.deletes += 1;
                let (OldImage::Key(old_row) | OldImage::Full(old_row)) = old else {
                    return Err(RowImageError::Malformed(part.schema.qualified_name()));
                };
                encode_key(&mut self.key, &part, old_row)?;
                let row = self.old_row(group, &part, false)?;
                let key = group.store(&self.key)?;
                group.write(key, None);
                group.sign(part.ids(), -1, row);
            }
            Change::Truncate { .. } => {
                applied.truncates += 1;
                truncate(group, &part);
            }
        }
        Ok(())
    }

    fn update(
        &mut self,
        group: &mut GroupRows,
        part: &Part,
        old: OldImage<'_>,
        new: RowRef<'_>,
    ) -> Result<(), RowImageError> {
        encode_key(&mut self.key, part, new)?;
        self.old_key.clear();
        let moved = match old {
            OldImage::Absent => false,
            OldImage::Key(row) | OldImage::Full(row) => {
                let mut old_key = std::mem::take(&mut self.old_key);
                let encoded = encode_key(&mut old_key, part, row);
                self.old_key = old_key;
                encoded?;
                self.old_key != self.key
            }
        };
        // The stored image is used even where Postgres sent the old row: they are the same, and one path is tested.
        let old_row = self.old_row(group, part, moved)?;
        let new_row = complete(group, &part.schema, old_row, new)?;
        if moved {
            let old_key = group.store(&self.old_key)?;
            group.write(old_key, None);
        } else if group.get(old_row) == group.get(new_row) {
            return Ok(());
        }
        let key = group.store(&self.key)?;
        group.write(key, Some(new_row));
        if torture::planted(Bug::KeepsTheOldRow) {
            group.sign(part.ids(), 1, new_row);
            return Ok(());
        }
        group.sign(part.ids(), -1, old_row);
        group.sign(part.ids(), 1, new_row);
        Ok(())
    }

    /// Whether there is a row of the current key.
    fn is_there(&self, group: &mut GroupRows, part: &Part) -> Result<bool, RowImageError> {
        match self.old_row(group, part, false) {
            Ok(_) => Ok(true),
            Err(RowImageError::Missing(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The stored row of the current key (or of the old key), in the open group's arena.
    fn old_row(&self, group: &mut GroupRows, part: &Part, by_old_key: bool) -> Result<Span, RowImageError> {
        let key = if by_old_key { &self.old_key } else { &self.key };
        let missing = || RowImageError::Missing(part.schema.qualified_name());
        match group.find(part.id, key) {
            Written::Row(row) => return Ok(row),
            Written::Gone => return Err(missing()),
            Written::Untouched => {}
        }
        for (_, rows) in self.pending.iter().rev().filter(|_| !torture::planted(Bug::ForgetsGroupsInFlight)) {
            match rows.look_up(part.id, key) {
                Written::Row(row) => return Ok(group.store(row.0)?),
                Written::Gone => return Err(missing()),
                Written::Untouched => {}
            }
        }
        self.store.get_with(key, |row| group.store(row))?.ok_or_else(missing)?.map_err(RowImageError::from)
    }

    fn part(&self, id: TableId) -> Result<Arc<Part>, RowImageError> {
        self.parts.get(&id).map(Arc::clone).ok_or(RowImageError::UnknownTable(id))
    }
}

/// One change of a table that keeps no row images: what it says itself is all there is.
fn add_whole(
    group: &mut GroupRows,
    part: &Part,
    change: Change<'_>,
    applied: &mut Applied,
) -> Result<(), RowImageError> {
    let not_whole = || RowImageError::NotWhole(part.schema.qualified_name());
    match change {
        Change::Insert { new, .. } | Change::InsertChecked { new, .. } => {
            applied.inserts += 1;
            let row = group.store(new.0)?;
            group.sign(part.ids(), 1, row);
        }
        Change::Update { old: OldImage::Full(old), new, .. } => {
            applied.updates += 1;
            let old_row = group.store(old.0)?;
            let new_row = complete(group, &part.schema, old_row, new)?;
            if group.get(old_row) != group.get(new_row) {
                group.sign(part.ids(), -1, old_row);
                group.sign(part.ids(), 1, new_row);
            }
        }
        Change::Delete { old: OldImage::Full(old), .. } => {
            applied.deletes += 1;
            let row = group.store(old.0)?;
            group.sign(part.ids(), -1, row);
        }
        Change::Update { .. } | Change::Delete { .. } | Change::Upsert { .. } => return Err(not_whole()),
        Change::Truncate { .. } => {
            applied.truncates += 1;
            truncate(group, part);
        }
    }
    Ok(())
}

fn truncate(group: &mut GroupRows, part: &Part) {
    group.truncate(part.id);
    part.partitions.iter().for_each(|partition| group.truncate(*partition));
}

/// The key under which a row's image is stored.
fn encode_key(into: &mut Vec<u8>, part: &Part, row: RowRef<'_>) -> Result<(), RowImageError> {
    let schema = &part.schema;
    push_row_key(into, part.id, &schema.primary_key, row)
        .ok_or_else(|| RowImageError::Malformed(schema.qualified_name()))
}

/// Writes the key of a row image into `into`. `None` where the row has no such columns.
pub(crate) fn push_row_key(into: &mut Vec<u8>, part: TableId, primary_key: &[usize], row: RowRef<'_>) -> Option<()> {
    into.clear();
    key::push_row_prefix(into, part);
    // Most keys are one column, and near the front.
    if let [only] = primary_key {
        return group_key::push_primary(into, row.columns().nth(*only)?.ok()?).ok();
    }
    let last = primary_key.iter().copied().max().unwrap_or_default();
    let values: Vec<ValueRef<'_>> = row.columns().take(last + 1).collect::<Result<_, _>>().ok()?;
    primary_key.iter().try_for_each(|column| group_key::push_primary(into, *values.get(*column)?).ok())
}

/// The new row with the values that the update left out taken from the old one.
fn complete(group: &mut GroupRows, schema: &TableSchema, old: Span, new: RowRef<'_>) -> Result<Span, RowImageError> {
    let malformed = || RowImageError::Malformed(schema.qualified_name());
    let mut incomplete = false;
    for value in new.columns() {
        incomplete |= value.map_err(|_| malformed())? == ValueRef::Unchanged;
    }
    if !incomplete {
        return Ok(group.store(new.0)?);
    }
    let old = group.get(old).to_vec();
    let mut row = Vec::with_capacity(old.len());
    let mut writer = RowWriter::new(&mut row);
    let mut old_values = RowRef(&old).columns();
    for value in new.columns() {
        let before = old_values.next().ok_or_else(malformed)?.map_err(|_| malformed())?;
        match value.map_err(|_| malformed())? {
            ValueRef::Unchanged => writer.push(before),
            value => writer.push(value),
        }
    }
    Ok(group.store(&row)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::change::{Column, ColumnType};
    use crate::store::StoreMemory;

    const TABLE: TableId = TableId(7);

    fn row(id: i64, note: ValueRef<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = RowWriter::new(&mut bytes);
        writer.push(ValueRef::Int(id));
        writer.push(note);
        bytes
    }

    fn images(directory: &std::path::Path, keeps_row_image: bool) -> RowImages {
        let column = |name: &str, column_type| Column { name: name.to_owned(), column_type };
        let schema = TableSchema {
            id: TABLE,
            namespace: "public".to_owned(),
            name: "t".to_owned(),
            columns: vec![column("id", ColumnType::Int8), column("note", ColumnType::Text)],
            primary_key: vec![0],
            keeps_row_image,
        };
        let mut images = RowImages::new(Store::open(directory, StoreMemory::default()).unwrap());
        images.add_table(&FollowedTable::new(schema, TableState::Live));
        images
    }

    #[test]
    fn without_row_images_a_change_is_what_it_says() {
        let directory = tempfile::tempdir().unwrap();
        let mut images = images(directory.path(), false);
        let (mut group, mut applied) = (GroupRows::default(), Applied::default());
        let (a, b) = (row(1, ValueRef::Text("a")), row(2, ValueRef::Text("b")));
        let unchanged = row(3, ValueRef::Unchanged);
        images.add_snapshot_row(&mut group, Change::Insert { table: TABLE, new: RowRef(&a) }).unwrap();
        for change in [
            Change::Insert { table: TABLE, new: RowRef(&b) },
            Change::Update { table: TABLE, old: OldImage::Full(RowRef(&b)), new: RowRef(&unchanged) },
            Change::Update { table: TABLE, old: OldImage::Full(RowRef(&a)), new: RowRef(&a) },
            Change::Delete { table: TABLE, old: OldImage::Full(RowRef(&a)) },
        ] {
            images.add_change(&mut group, change, &mut applied).unwrap();
        }
        let moved = row(3, ValueRef::Text("b"));
        let signed: Vec<(i8, &[u8])> = group.signed().iter().map(|row| (row.sign, group.row(row).0)).collect();
        assert_eq!(signed, [(1, &a[..]), (1, &b[..]), (-1, &b[..]), (1, &moved[..]), (-1, &a[..])]);
        assert_eq!(group.writes().count(), 0, "nothing is kept");
        assert_eq!((applied.inserts, applied.updates, applied.deletes), (1, 2, 1));
    }

    #[test]
    fn a_row_that_appears_where_one_is_already_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut images = images(directory.path(), true);
        let (mut group, mut applied) = (GroupRows::default(), Applied::default());
        let a = row(1, ValueRef::Text("a"));
        let appears = Change::InsertChecked { table: TABLE, new: RowRef(&a) };
        images.add_change(&mut group, appears, &mut applied).unwrap();
        let twice = Err(RowImageError::Twice("public.t".to_owned()));
        assert_eq!(images.add_change(&mut group, appears, &mut applied), twice);
        let gone = Change::Delete { table: TABLE, old: OldImage::Key(RowRef(&a)) };
        images.add_change(&mut group, gone, &mut applied).unwrap();
        images.add_change(&mut group, appears, &mut applied).unwrap();
        assert_eq!((applied.inserts, applied.deletes, group.signed().len()), (2, 1, 3));
    }

    #[test]
    fn without_row_images_less_than_the_whole_old_row_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut images = images(directory.path(), false);
        let (mut group, mut applied) = (GroupRows::default(), Applied::default());
        let a = row(1, ValueRef::Text("a"));
        for change in [
            Change::Update { table: TABLE, old: OldImage::Absent, new: RowRef(&a) },
            Change::Update { table: TABLE, old: OldImage::Key(RowRef(&a)), new: RowRef(&a) },
            Change::Delete { table: TABLE, old: OldImage::Key(RowRef(&a)) },
            Change::Upsert { table: TABLE, new: RowRef(&a) },
        ] {
            let refused = images.add_change(&mut group, change, &mut applied);
            assert_eq!(refused, Err(RowImageError::NotWhole("public.t".to_owned())));
        }
        assert!(group.is_empty());
    }
}
