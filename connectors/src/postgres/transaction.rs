//! Rows of the wire -> one [`Transaction`] per commit, each row written once, straight into the arena.
//!
//! The surprise: an unchanged large value is missing from the new row even under `REPLICA IDENTITY FULL`, where the old
//! row of the same message has it. It is taken from there; without one it stays `Unchanged` and the engine's row image
//! completes it.

use engine::change::event::{OldRow, TooLarge, WrittenRow};
use engine::change::{Changes, Lsn, RowWriter, TableSchema, Transaction, ValueRef};
use engine::source::SourceError;

use super::error::{START_OVER, source_error};
use super::pgoutput::{Cell, CellKind, Malformed, Message, OldTuple, RelationMessage, Tuple, decode, value};
use super::relation::BoundTable;

/// Collects the transaction that is being received.
#[derive(Debug)]
pub(super) struct Assembler {
    limits: Limits,
    tables: Vec<TableSchema>,
    /// Parallel to `tables`; `None` before the table's first RELATION of this session.
    bound: Vec<Option<BoundTable>>,
    open: bool,
    changes: Changes,
    cells: Vec<Cell>,
    old_cells: Vec<Cell>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) bytes: usize,
    pub(super) rows: usize,
}

/// What the caller has to do after a message.
#[derive(Debug)]
pub(super) enum Applied<'a> {
    Done,
    /// One of our tables has (again) this shape: look up its types and call [`Assembler::bind`].
    Relation(usize, RelationMessage<'a>),
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
    pub(super) fn new(tables: Vec<TableSchema>, limits: Limits) -> Self {
        let bound = tables.iter().map(|_| None).collect();
        Assembler {
            limits,
            tables,
            bound,
            open: false,
            changes: Changes::default(),
            cells: Vec::new(),
            old_cells: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self) {
        self.open = true;
        self.changes.clear();
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    pub(super) fn commit(&mut self, end_lsn: Lsn, commit_time_us: i64) -> Transaction {
        self.open = false;
        Transaction { end_lsn, commit_time_us, changes: std::mem::take(&mut self.changes) }
    }

    /// Takes in one message between BEGIN and COMMIT. `position` is only for messages to people.
    pub(super) fn apply<'a>(&mut self, bytes: &'a [u8], position: Lsn) -> Result<Applied<'a>, SourceError> {
        let message = decode(bytes).map_err(|error| self.malformed(error.0, position))?;
        let relation = match &message {
            Message::Relation(relation) => {
                return Ok(match self.index_of(relation.relation) {
                    Some(index) => match message {
                        Message::Relation(relation) => Applied::Relation(index, relation),
                        _ => Applied::Done,
                    },
                    None => Applied::Done,
                });
            }
            Message::Truncate { relations } => {
                for oid in *relations {
                    if let Some(table) =
                        self.index_of(u32::from_be_bytes(*oid)).and_then(|index| self.tables.get(index))
                    {
                        self.changes.truncate(table.id);
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
        let Some(Some(bound)) = self.bound.get(index) else {
            return Err(self.malformed("row of a relation that was not described", position));
        };
        let rows = Rows { bound, changes: &mut self.changes, cells: &mut self.cells, old_cells: &mut self.old_cells };
        if let Err(error) = rows.write(&message) {
            return Err(self.explain(error, index, position));
        }
        if self.changes.byte_size() > self.limits.bytes || self.changes.len() > self.limits.rows {
            return Err(self.too_large(position));
        }
        Ok(Applied::Done)
    }

    /// Says how the rows of a table look from here on.
    pub(super) fn bind(&mut self, index: usize, bound: BoundTable) {
        if let Some(slot) = self.bound.get_mut(index) {
            *slot = Some(bound);
        }
    }

    pub(super) fn table(&self, index: usize) -> Option<&TableSchema> {
        self.tables.get(index)
    }

    /// A handful of tables: walking them beats hashing.
    fn index_of(&self, relation: u32) -> Option<usize> {
        self.tables.iter().position(|table| table.id.0 == relation)
    }

    /// A row that the transport did not take.
    pub(super) fn row_too_large(
        &self,
        position: Lsn,
        bytes: usize,
        limit: usize,
        relation: Option<u32>,
    ) -> SourceError {
        let table = relation.and_then(|relation| self.tables.get(self.index_of(relation)?));
        let whose = match (table, relation) {
            (Some(table), _) => format!("a row of table {}", table.qualified_name()),
            (None, Some(relation)) => format!("a row of the table with OID {relation}"),
            (None, None) => "a message".to_owned(),
        };
        source_error(
            "row_too_large",
            format!("{whose} at log position {position} has {bytes} bytes; the limit is {limit}"),
            format!("raise max_message_bytes and restart, or leave the table out of the source and {START_OVER}"),
        )
    }

    fn explain(&self, error: RowError, index: usize, position: Lsn) -> SourceError {
        match error {
            RowError::TooLarge => self.too_large(position),
            RowError::Malformed(what) => self.malformed(what, position),
            RowError::Value(column) => {
                let table = self.tables.get(index);
                let name = table.and_then(|t| t.columns.get(column)).map_or("?", |c| c.name.as_str());
                let table = table.map(TableSchema::qualified_name).unwrap_or_default();
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
                "the transaction at log position {position} has more than {} row changes or {} bytes, and is held in memory until \
                 it commits",
                self.limits.rows, self.limits.bytes
            ),
            format!("raise max_transaction_rows or max_transaction_bytes and restart, or: {}", START_OVER),
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
            let cell = *cells.get(column.wire).ok_or(RowError::Malformed("row with too few columns"))?;
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
                    match old_cells.get(column.wire) {
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
