//! Tables and aggregates on disk, one record each.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::key::{self, KeyKind};
use super::{Batch, Store, StoreError, View};
use crate::change::TableId;
use crate::materialization::Registration;
use crate::source::FollowedTable;

/// All aggregates, by number.
pub fn read_aggregates(store: &Store) -> Result<Vec<Registration>, StoreError> {
    read_all(store, KeyKind::Aggregate, "aggregate")
}

/// Adds an aggregate to a batch.
pub fn put_aggregate(batch: &mut Batch, aggregate: &Registration) -> Result<(), StoreError> {
    put(batch, &key::aggregate(aggregate.id), aggregate, "aggregate")
}

/// All tables.
pub fn read_tables(store: &Store) -> Result<Vec<FollowedTable>, StoreError> {
    read_all(store, KeyKind::Table, "table")
}

/// Adds a table to a batch.
pub fn put_table(batch: &mut Batch, table: &FollowedTable) -> Result<(), StoreError> {
    put(batch, &key::table(table.schema.id), table, "table")
}

/// Row images of a table, as counted with every commit.
pub fn read_row_count(store: &Store, table: TableId) -> Result<i64, StoreError> {
    match store.get(&row_count_key(table))? {
        None => Ok(0),
        Some(bytes) => bytes.try_into().map(i64::from_be_bytes).map_err(|_| StoreError::Damaged("row count")),
    }
}

/// Row images of a table, as of a view.
pub fn row_count_as_of(view: &View, table: TableId) -> Result<i64, StoreError> {
    let read = view.get_with(&row_count_key(table), |bytes| bytes.try_into().map(i64::from_be_bytes))?;
    read.unwrap_or(Ok(0)).map_err(|_| StoreError::Damaged("row count"))
}

/// Adds the number of row images of a table to a batch.
pub fn put_row_count(batch: &mut Batch, table: TableId, rows: i64) {
    batch.put(&row_count_key(table), &rows.to_be_bytes());
}

fn row_count_key(table: TableId) -> Vec<u8> {
    key::meta(&format!("rows/{}", table.0))
}

fn put<T: Serialize>(batch: &mut Batch, key: &[u8], value: &T, what: &'static str) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(value).map_err(|_| StoreError::Damaged(what))?;
    batch.put(key, &bytes);
    Ok(())
}

fn read_all<T: for<'de> Deserialize<'de>>(
    store: &Store,
    kind: KeyKind,
    what: &'static str,
) -> Result<Vec<T>, StoreError> {
    let mut all = Vec::new();
    let mut damaged = false;
    store.view().scan(&key::of_kind(kind), |_, value| {
        match serde_json::from_slice(value) {
            Ok(item) => all.push(item),
            Err(_) => damaged = true,
        }
        if damaged { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if damaged { Err(StoreError::Damaged(what)) } else { Ok(all) }
}
