//! Row images: the last known row per primary key. They complete the old image of an update or delete, which Postgres
//! does not send under the default replica identity.
//!
//! This stage is one thread in front of the dataflow, not an operator in it. A change of primary key touches two keys,
//! and its new row may lack large values that only the old one has; with rows spread over workers by key the two would
//! have to meet. One thread also keeps the order within a transaction for free, and it is not what limits throughput.
//!
//! A row is looked up in the open group, then in the groups that are minted and not yet committed (newest first), then
//! in the store. What is in none of them though it must be there stops the engine: nothing is guessed.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::change::{Change, OldImage, RowRef, RowWriter, TableId, TableSchema, ValueRef};
use crate::commit_group::{GroupRows, GroupTooLarge, Span, Written};
use crate::materialization::group_key;
use crate::source::{FollowedTable, TableState};
use crate::store::{Store, StoreError, key};

/// Why a change cannot be applied exactly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowImageError {
    /// An update or delete of a row that we do not have.
    #[error("there is no row image for a change of {0}")]
    Missing(String),
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
#[derive(Clone)]
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
    parts: HashMap<TableId, Part>,
    pending: VecDeque<(u64, Arc<GroupRows>)>,
    key: Vec<u8>,
    old_key: Vec<u8>,
}

impl RowImages {
    /// Over a store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        RowImages { store, parts: HashMap::new(), pending: VecDeque::new(), key: Vec::new(), old_key: Vec::new() }
    }

    /// Announces a table as it is from here on.
    pub fn add_table(&mut self, table: &FollowedTable) {
        let schema = Arc::new(table.schema.clone());
        let halted = matches!(table.standing, TableState::Halted { .. });
        let part =
            |id: TableId, partitions: Arc<[TableId]>| Part { id, schema: Arc::clone(&schema), partitions, halted };
        self.parts.insert(schema.id, part(schema.id, table.partitions.clone().into()));
        for id in &table.partitions {
            self.parts.insert(*id, part(*id, Arc::default()));
        }
    }

    /// A table that is not followed any more, with its partitions.
    pub fn forget_table(&mut self, table: &FollowedTable) {
        self.parts.remove(&table.schema.id);
        table.partitions.iter().for_each(|partition| {
            self.parts.remove(partition);
        });
    }

    /// The table that rows told under this id belong to.
    #[must_use]
    pub fn table_id(&self, part: TableId) -> TableId {
        self.parts.get(&part).map_or(part, |part| part.schema.id)
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
        encode_key(&mut self.key, &part, new)?;
        let key = group.store(&self.key)?;
        let row = group.store(new.0)?;
        group.write_once(key, row);
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
        if self.parts.get(&change.table()).is_some_and(|part| part.halted) {
            return Ok(());
        }
        match change {
            Change::Insert { table, new } => {
                applied.inserts += 1;
                let part = self.part(table)?;
                encode_key(&mut self.key, &part, new)?;
                let key = group.store(&self.key)?;
                let row = group.store(new.0)?;
                group.write(key, Some(row));
                group.sign(part.ids(), 1, row);
            }
            Change::Update { table, old, new } => {
                applied.updates += 1;
                self.update(group, table, old, new)?;
            }
            Change::Upsert { table, new } => {
                let part = self.part(table)?;
                encode_key(&mut self.key, &part, new)?;
                match self.old_row(group, &part, false) {
                    Ok(_) => self.add_change(group, Change::Update { table, old: OldImage::Absent, new }, applied)?,
                    Err(RowImageError::Missing(_)) => self.add_change(group, Change::Insert { table, new }, applied)?,
                    Err(error) => return Err(error),
                }
            }
            Change::Delete { table, old } => {
                applied.deletes += 1;
                let part = self.part(table)?;
                let (OldImage::Key(old_row) | OldImage::Full(old_row)) = old else {
                    return Err(RowImageError::Malformed(part.schema.qualified_name()));
                };
                encode_key(&mut self.key, &part, old_row)?;
                let row = self.old_row(group, &part, false)?;
                let key = group.store(&self.key)?;
                group.write(key, None);
                group.sign(part.ids(), -1, row);
            }
            Change::Truncate { table } => {
                applied.truncates += 1;
                let part = self.part(table)?;
                group.truncate(part.id);
                part.partitions.iter().for_each(|partition| group.truncate(*partition));
            }
        }
        Ok(())
    }

    fn update(
        &mut self,
        group: &mut GroupRows,
        table: TableId,
        old: OldImage<'_>,
        new: RowRef<'_>,
    ) -> Result<(), RowImageError> {
        let part = self.part(table)?;
        encode_key(&mut self.key, &part, new)?;
        self.old_key.clear();
        let moved = match old {
            OldImage::Absent => false,
            OldImage::Key(row) | OldImage::Full(row) => {
                let mut old_key = std::mem::take(&mut self.old_key);
                let encoded = encode_key(&mut old_key, &part, row);
                self.old_key = old_key;
                encoded?;
                self.old_key != self.key
            }
        };
        // The stored image is used even where Postgres sent the old row: they are the same, and one path is tested.
        let old_row = self.old_row(group, &part, moved)?;
        let new_row = complete(group, &part.schema, old_row, new)?;
        if moved {
            let old_key = group.store(&self.old_key)?;
            group.write(old_key, None);
        } else if group.get(old_row) == group.get(new_row) {
            return Ok(());
        }
        let key = group.store(&self.key)?;
        group.write(key, Some(new_row));
        group.sign(part.ids(), -1, old_row);
        group.sign(part.ids(), 1, new_row);
        Ok(())
    }

    /// The stored row of the current key (or of the old key), copied into the open group.
    fn old_row(&self, group: &mut GroupRows, part: &Part, by_old_key: bool) -> Result<Span, RowImageError> {
        let key = if by_old_key { &self.old_key } else { &self.key };
        let missing = || RowImageError::Missing(part.schema.qualified_name());
        let written = match group.look_up(part.id, key) {
            Written::Row(row) => Some(row.0.to_vec()),
            Written::Gone => return Err(missing()),
            Written::Untouched => None,
        };
        if let Some(row) = written {
            return Ok(group.store(&row)?);
        }
        for (_, rows) in self.pending.iter().rev() {
            match rows.look_up(part.id, key) {
                Written::Row(row) => return Ok(group.store(row.0)?),
                Written::Gone => return Err(missing()),
                Written::Untouched => {}
            }
        }
        self.store.get_with(key, |row| group.store(row))?.ok_or_else(missing)?.map_err(RowImageError::from)
    }

    fn part(&self, id: TableId) -> Result<Part, RowImageError> {
        self.parts.get(&id).cloned().ok_or(RowImageError::UnknownTable(id))
    }
}

/// The key under which a row's image is stored.
fn encode_key(into: &mut Vec<u8>, part: &Part, row: RowRef<'_>) -> Result<(), RowImageError> {
    let schema = &part.schema;
    let malformed = || RowImageError::Malformed(schema.qualified_name());
    into.clear();
    key::push_row_prefix(into, part.id);
    let last = schema.primary_key.iter().copied().max().unwrap_or_default();
    // Most keys are one column, and near the front.
    if let [only] = schema.primary_key.as_slice() {
        let value = row.columns().nth(*only).ok_or_else(malformed)?.map_err(|_| malformed())?;
        return group_key::push_primary(into, value).map_err(|_| malformed());
    }
    let values: Vec<ValueRef<'_>> = row.columns().take(last + 1).collect::<Result<_, _>>().map_err(|_| malformed())?;
    for column in &schema.primary_key {
        let value = values.get(*column).ok_or_else(malformed)?;
        group_key::push_primary(into, *value).map_err(|_| malformed())?;
    }
    Ok(())
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
