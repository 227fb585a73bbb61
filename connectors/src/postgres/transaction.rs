//! Rows of the wire -> one [`Transaction`] per commit, each row written once, straight into the arena.
//!
//! The surprise: an unchanged large value is missing from the new row even under `REPLICA IDENTITY FULL`, where the old
//! row of the same message has it. It is taken from there; without one it stays `Unchanged` and the engine's row image
//! completes it.

use engine::change::event::{OldRow, TooLarge, WrittenRow};
use engine::change::{Changes, Lsn, RowWriter, TableId, Transaction, ValueRef};
use engine::source::{FollowedTable, SourceError};

use super::config::PostgresConfig;
use super::error::{START_OVER, source_error};
use super::pgoutput::{Cell, CellKind, Malformed, Message, OldTuple, Tuple, decode, value};
use super::relation::BoundTable;

/// Collects the transaction that is being received.
#[derive(Debug)]
pub(super) struct Assembler {
    max_bytes: usize,
    /// The relations whose rows are taken, by their id.
    slots: Vec<Slot>,
    open: bool,
    /// Since the open transaction began, rows of a relation are not taken any more: what there is of them is not told either.
    fewer: bool,
    changes: Changes,
    cells: Vec<Cell>,
    old_cells: Vec<Cell>,
}

/// A relation whose rows are taken: a table, or a partition of one.
#[derive(Debug)]
struct Slot {
    id: TableId,
    /// For messages to people.
    table: String,
    columns: Vec<String>,
    /// `None` before its first RELATION of this session.
    bound: Option<BoundTable>,
}

/// What the caller has to do after a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    Done,
    /// A relation has (again) a shape: where it is one of ours, look up its types and call [`Assembler::bind`].
    Relation,
    /// A row of a relation that is not bound, and nothing of it was taken: see what was said of it last.
    Unbound(TableId),
}

/// Why a row could not be written; plain, because it is made per row.
#[derive(Clone, Copy, Debug)]
enum RowError {
    TooLarge,
    Malformed(&'static str),
    Value(usize),
}

impl From<TooLarge> for RowError {
    fn from(_: TooLarge) -> Self {
        RowError::TooLarge
    }
}

impl From<Malformed> for RowError {
    fn from(Malformed(what): Malformed) -> Self {
        RowError::Malformed(what)
    }
}

/// Which cells of a tuple make the row.
#[derive(Clone, Copy)]
enum Image<'t> {
    /// Every column; unchanged ones from the old row, where it has them.
    New(Option<(OldTuple<'t>, &'t [Cell])>),
    OldFull,
    OldKey,
}

impl Assembler {
    pub(super) fn new(config: &PostgresConfig) -> Self {
        Assembler {
            max_bytes: config.max_transaction_bytes,
            slots: Vec::new(),
            open: false,
            fewer: false,
            changes: Changes::default(),
            cells: Vec::new(),
            old_cells: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self) {
        self.open = true;
        self.fewer = false;
        self.changes.clear();
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    pub(super) fn commit(&mut self, end_lsn: Lsn, commit_time_us: i64) -> Transaction {
        self.open = false;
        let mut changes = std::mem::take(&mut self.changes);
        if std::mem::take(&mut self.fewer) {
            changes.retain(|relation| self.index_of(relation.0).is_some());
        }
        Transaction { end_lsn, commit_time_us, changes }
    }

    /// Takes in one message between BEGIN and COMMIT. `position` is only for messages to people.
    pub(super) fn apply(&mut self, bytes: &[u8], position: Lsn) -> Result<Applied, SourceError> {
        let message = decode(bytes).map_err(|error| self.malformed(error.0, position))?;
        let relation = match &message {
            Message::Relation(_) => return Ok(Applied::Relation),
            Message::Truncate { relations } => {
                for oid in *relations {
                    let relation = u32::from_be_bytes(*oid);
                    if self.index_of(relation).is_some() {
                        self.changes.truncate(TableId(relation));
                    }
                }
                return Ok(Applied::Done);
            }
            Message::Ignored => return Ok(Applied::Done),
            Message::Insert { relation, .. } | Message::Update { relation, .. } | Message::Delete { relation, .. } => {
                *relation
            }
        };
        let Some(index) = self.index_of(relation) else { return Ok(Applied::Done) };
        let Some(Slot { bound: Some(bound), .. }) = self.slots.get(index) else {
            return Ok(Applied::Unbound(TableId(relation)));
        };
        let rows = Rows { bound, changes: &mut self.changes, cells: &mut self.cells, old_cells: &mut self.old_cells };
        if let Err(error) = rows.write(&message) {
            return Err(self.explain(error, index, position));
        }
        if self.changes.byte_size() > self.max_bytes {
            return Err(self.too_large(position));
        }
        Ok(Applied::Done)
    }

    /// Says how the rows of a table look from here on.
    pub(super) fn bind(&mut self, bound: BoundTable) {
        if let Some(slot) = self.index_of(bound.id.0).and_then(|index| self.slots.get_mut(index)) {
            slot.bound = Some(bound);
        }
    }

    /// Takes the rows of these tables from here on, and of no others. Those that the open transaction has brought already of a
    /// table that is to be read anew are among what its reader finds: that begins after the transaction.
    pub(super) fn take_tables<'t>(&mut self, tables: impl Iterator<Item = &'t FollowedTable>) {
        let mut before = std::mem::take(&mut self.slots);
        for table in tables {
            // A partitioned table holds no rows, but can be truncated by its own name.
            for id in table.partitions.iter().copied().chain([table.schema.id]) {
                let known = before.iter_mut().find(|slot| slot.id == id).and_then(|slot| slot.bound.take());
                self.slots.push(Slot {
                    id,
                    table: table.schema.qualified_name(),
                    columns: table.schema.columns.iter().map(|column| column.name.clone()).collect(),
                    bound: known,
                });
            }
        }
        self.slots.sort_by_key(|slot| slot.id);
        self.fewer |= self.open && before.iter().any(|slot| self.index_of(slot.id.0).is_none());
    }

    /// Relations whose rows are taken and that were not described yet.
    pub(super) fn unbound(&self) -> Vec<TableId> {
        self.slots.iter().filter(|slot| slot.bound.is_none()).map(|slot| slot.id).collect()
    }

    fn index_of(&self, relation: u32) -> Option<usize> {
        self.slots.binary_search_by_key(&relation, |slot| slot.id.0).ok()
    }

    /// A row that the transport did not take.
    pub(super) fn row_too_large(
        &self,
        position: Lsn,
        bytes: usize,
        limit: usize,
        relation: Option<u32>,
    ) -> SourceError {
        let slot = relation.and_then(|relation| self.slots.get(self.index_of(relation)?));
        let whose = match (slot, relation) {
            (Some(slot), _) => format!("a row of table {}", slot.table),
            (None, Some(relation)) => format!("a row of the table with OID {relation}"),
            (None, None) => "a message".to_owned(),
        };
        source_error(
            "row_too_large",
            format!("{whose} at log position {position} has {bytes} bytes; the limit is {limit}"),
            format!("raise max_row (--max-row) and restart, or leave the table out of the source and {START_OVER}"),
        )
    }

    fn explain(&self, error: RowError, index: usize, position: Lsn) -> SourceError {
        match error {
            RowError::TooLarge => source_error(
                "transaction_too_large",
                format!("the transaction at log position {position}: {TooLarge}, and no more can be held of one"),
                format!("change as much in several transactions from now on, and {START_OVER}"),
            ),
            RowError::Malformed(what) => self.malformed(what, position),
            RowError::Value(column) => {
                let slot = self.slots.get(index);
                let name = slot.and_then(|slot| slot.columns.get(column)).map_or("?", String::as_str);
                let table = slot.map(|slot| slot.table.as_str()).unwrap_or_default();
                source_error(
                    "unreadable_value",
                    format!(
                        "column {name} of table {table} holds a value that is none of its type (log position {position})"
                    ),
                    "report this with the column's definition; until then leave the table out of the source",
                )
            }
        }
    }

    /// A row that nobody has said how to read.
    pub(super) fn not_described(&self, position: Lsn) -> SourceError {
        self.malformed("row of a relation that was not described", position)
    }

    fn malformed(&self, what: &str, position: Lsn) -> SourceError {
        source_error(
            "malformed_stream",
            format!("Postgres sent a message that cannot be read: {what} (log position {position})"),
            "check that nothing between Postgres and tidemark changes the stream, then restart tidemark",
        )
    }

    fn too_large(&self, position: Lsn) -> SourceError {
        source_error(
            "transaction_too_large",
            format!(
                "the transaction at log position {position} has more than {} bytes ({} row changes so far), and is held in memory until it \
                 commits",
                self.max_bytes,
                self.changes.len()
            ),
            format!(
                "restart with a larger --max-transaction (it takes about four times as much memory), or: {}",
                START_OVER
            ),
        )
    }
}

/// The parts of the assembler that writing a row needs.
struct Rows<'r> {
    bound: &'r BoundTable,
    changes: &'r mut Changes,
    cells: &'r mut Vec<Cell>,
    old_cells: &'r mut Vec<Cell>,
}

impl Rows<'_> {
    fn write(self, message: &Message<'_>) -> Result<(), RowError> {
        let table = self.bound.id;
        match message {
            Message::Insert { new, .. } => {
                new.cells_into(self.cells)?;
                let new = write_row(self.changes, self.bound, *new, self.cells, Image::New(None))?;
                self.changes.insert(table, new);
            }
            Message::Update { old, new, .. } => {
                let written = match old {
                    None => OldRow::Absent,
                    Some(old) => write_old(self.changes, self.bound, *old, self.old_cells)?,
                };
                new.cells_into(self.cells)?;
                let complete_from = old.map(|old| (old, self.old_cells.as_slice()));
                let new = write_row(self.changes, self.bound, *new, self.cells, Image::New(complete_from))?;
                self.changes.update(table, written, new);
            }
            Message::Delete { old, .. } => {
                let old = write_old(self.changes, self.bound, *old, self.old_cells)?;
                self.changes.delete(table, old);
            }
            Message::Relation(_) | Message::Truncate { .. } | Message::Ignored => {}
        }
        Ok(())
    }
}

fn write_old(
    changes: &mut Changes,
    bound: &BoundTable,
    old: OldTuple<'_>,
    cells: &mut Vec<Cell>,
) -> Result<OldRow, RowError> {
    match old {
        OldTuple::Key(tuple) => {
            tuple.cells_into(cells)?;
            Ok(OldRow::Key(write_row(changes, bound, tuple, cells, Image::OldKey)?))
        }
        OldTuple::Full(tuple) => {
            tuple.cells_into(cells)?;
            Ok(OldRow::Full(write_row(changes, bound, tuple, cells, Image::OldFull)?))
        }
    }
}

fn write_row(
    changes: &mut Changes,
    bound: &BoundTable,
    tuple: Tuple<'_>,
    cells: &[Cell],
    image: Image<'_>,
) -> Result<WrittenRow, RowError> {
    changes.write_row(|buffer| {
        let mut row = RowWriter::new(buffer);
        for (index, column) in bound.columns.iter().enumerate() {
            if matches!(image, Image::OldKey) && !column.key {
                row.push(ValueRef::Null);
                continue;
            }
            let Some(wire) = column.wire else {
                row.push(ValueRef::Null);
                continue;
            };
            let cell = *cells.get(wire).ok_or(RowError::Malformed("row with too few columns"))?;
            let read = |tuple: Tuple<'_>, cell: Cell, row: &mut RowWriter<'_>| -> Result<(), RowError> {
                let bytes = tuple.bytes(cell);
                let value = match cell.kind {
                    CellKind::Null => Some(ValueRef::Null),
                    CellKind::Unchanged => Some(ValueRef::Unchanged),
                    CellKind::Binary => value::binary(&column.column_type, bytes),
                    CellKind::Text => value::text(&column.column_type, bytes),
                };
                row.push(value.ok_or(RowError::Value(index))?);
                Ok(())
            };
            match (cell.kind, image) {
                (CellKind::Unchanged, Image::OldFull | Image::OldKey) => {
                    return Err(RowError::Malformed("old row without one of its values"));
                }
                (CellKind::Unchanged, Image::New(Some((old, old_cells)))) => {
                    let (tuple_old, known) = match old {
                        OldTuple::Full(old) => (old, true),
                        OldTuple::Key(old) => (old, column.key),
                    };
                    match old_cells.get(wire) {
                        Some(old_cell) if known => read(tuple_old, *old_cell, &mut row)?,
                        _ => row.push(ValueRef::Unchanged),
                    }
                }
                _ => read(tuple, cell, &mut row)?,
            }
        }
        Ok(())
    })
}
