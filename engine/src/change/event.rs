//! Change events, grouped by the upstream transaction that made them.
//!
//! All rows of a batch live in one byte arena; an event is a few offsets. So a transaction of a million rows is two
//! allocations, and handing it from thread to thread copies nothing.

use super::lsn::Lsn;
use super::row::RowRef;
use super::schema::TableId;

/// What an update or delete says about the row it replaces. Under Postgres' default replica identity it says nothing
/// unless the key changed; the row image then completes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldImage<'a> {
    /// Nothing: the key is that of the new row.
    Absent,
    /// Only the primary key's columns hold values, all others are NULL. The row has every column of the schema.
    Key(RowRef<'a>),
    /// The whole old row (`REPLICA IDENTITY FULL`).
    Full(RowRef<'a>),
}

/// One event of one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// A row appeared, and by its source's word no other of its key was there.
    Insert {
        /// The table.
        table: TableId,
        /// The whole new row.
        new: RowRef<'a>,
    },
    /// A row appeared, said by one who may have left out that another of its key went away before: an event that was dropped
    /// on its way, a TRUNCATE that is not told. Whether it was there is looked up, which an insert is spared.
    InsertChecked {
        /// The table.
        table: TableId,
        /// The whole new row.
        new: RowRef<'a>,
    },
    /// A row changed, perhaps in its primary key (then `old` is not `Absent`).
    Update {
        /// The table.
        table: TableId,
        /// What is known of the row before.
        old: OldImage<'a>,
        /// The row after; large values that did not change may be `ValueRef::Unchanged`.
        new: RowRef<'a>,
    },
    /// A row is there with these values, whether it was before or not: said by those who read rows again and again (a
    /// repeated batch, an incremental snapshot), never by a log.
    Upsert {
        /// The table.
        table: TableId,
        /// The whole row.
        new: RowRef<'a>,
    },
    /// A row went away. `old` is never `Absent`.
    Delete {
        /// The table.
        table: TableId,
        /// What is known of the row.
        old: OldImage<'a>,
    },
    /// All rows went away.
    Truncate {
        /// The table.
        table: TableId,
    },
}

impl Change<'_> {
    /// The table it is of, or the partition.
    #[must_use]
    pub fn table(&self) -> TableId {
        match self {
            Change::Insert { table, .. }
            | Change::InsertChecked { table, .. }
            | Change::Update { table, .. }
            | Change::Upsert { table, .. }
            | Change::Delete { table, .. }
            | Change::Truncate { table } => *table,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    length: u32,
}

#[derive(Clone, Copy, Debug)]
enum Old {
    Absent,
    Key(Span),
    Full(Span),
}

#[derive(Clone, Copy, Debug)]
enum Item {
    Insert(TableId, Span),
    InsertChecked(TableId, Span),
    Update(TableId, Old, Span),
    Upsert(TableId, Span),
    Delete(TableId, Old),
    Truncate(TableId),
}

/// A row that was written into a [`Changes`] and belongs to no event yet.
#[derive(Clone, Copy, Debug)]
pub struct WrittenRow(Span);

/// The arena of one transaction would pass 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the transaction holds more than 4 GiB of row data")]
pub struct TooLarge;

/// Change events in commit order, with the bytes of their rows.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    bytes: Vec<u8>,
    items: Vec<Item>,
}

impl Changes {
    /// Number of events.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// True where there is no event.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Memory held by rows and events, in bytes.
    #[must_use]
    pub fn byte_size(&self) -> usize {
        self.bytes.len() + self.items.len() * size_of::<Item>()
    }

    /// An empty one with room for about as much as this one holds.
    #[must_use]
    pub fn room_for_another(&self) -> Self {
        let (bytes, items) = (self.bytes.len(), self.items.len());
        Changes { bytes: Vec::with_capacity(bytes + bytes / 8), items: Vec::with_capacity(items) }
    }

    /// Forgets all events and keeps the capacity.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.items.clear();
    }

    /// Forgets the events of all tables and partitions but these.
    pub fn retain(&mut self, keeps: impl Fn(TableId) -> bool) {
        self.items.retain(|item| {
            let (Item::Insert(table, _)
            | Item::InsertChecked(table, _)
            | Item::Update(table, _, _)
            | Item::Upsert(table, _)
            | Item::Delete(table, _)
            | Item::Truncate(table)) = item;
            keeps(*table)
        });
    }

    /// Writes one row into the arena. `write` appends the encoded columns (see [`super::RowWriter`]); where it fails,
    /// nothing stays behind.
    pub fn write_row<E: From<TooLarge>>(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<WrittenRow, E> {
        let start = self.bytes.len();
        let written = write(&mut self.bytes);
        let span = u32::try_from(start)
            .ok()
            .zip(u32::try_from(self.bytes.len().saturating_sub(start)).ok())
            .filter(|_| u32::try_from(self.bytes.len()).is_ok())
            .map(|(start, length)| Span { start, length });
        match (written, span) {
            (Ok(()), Some(span)) => Ok(WrittenRow(span)),
            (Ok(()), None) => {
                self.bytes.truncate(start);
                Err(TooLarge.into())
            }
            (Err(error), _) => {
                self.bytes.truncate(start);
                Err(error)
            }
        }
    }

    /// Appends an insert.
    pub fn insert(&mut self, table: TableId, new: WrittenRow) {
        self.items.push(Item::Insert(table, new.0));
    }

    /// Appends an insert of a row whose key may be there though it must not.
    pub fn insert_checked(&mut self, table: TableId, new: WrittenRow) {
        self.items.push(Item::InsertChecked(table, new.0));
    }

    /// Appends an update; `old` is the key row or the full row where Postgres sent one.
    pub fn update(&mut self, table: TableId, old: OldRow, new: WrittenRow) {
        self.items.push(Item::Update(table, old.into_old(), new.0));
    }

    /// Appends a row that is there now, whether it was before or not.
    pub fn upsert(&mut self, table: TableId, new: WrittenRow) {
        self.items.push(Item::Upsert(table, new.0));
    }

    /// Appends a delete.
    pub fn delete(&mut self, table: TableId, old: OldRow) {
        self.items.push(Item::Delete(table, old.into_old()));
    }

    /// Appends a truncate.
    pub fn truncate(&mut self, table: TableId) {
        self.items.push(Item::Truncate(table));
    }

    /// The events in order.
    pub fn iter(&self) -> impl Iterator<Item = Change<'_>> + '_ {
        self.items.iter().map(move |item| match *item {
            Item::Insert(table, new) => Change::Insert { table, new: self.row(new) },
            Item::InsertChecked(table, new) => Change::InsertChecked { table, new: self.row(new) },
            Item::Update(table, old, new) => Change::Update { table, old: self.old(old), new: self.row(new) },
            Item::Upsert(table, new) => Change::Upsert { table, new: self.row(new) },
            Item::Delete(table, old) => Change::Delete { table, old: self.old(old) },
            Item::Truncate(table) => Change::Truncate { table },
        })
    }

    fn old(&self, old: Old) -> OldImage<'_> {
        match old {
            Old::Absent => OldImage::Absent,
            Old::Key(span) => OldImage::Key(self.row(span)),
            Old::Full(span) => OldImage::Full(self.row(span)),
        }
    }

    fn row(&self, span: Span) -> RowRef<'_> {
        let start = span.start as usize;
        RowRef(self.bytes.get(start..start + span.length as usize).unwrap_or_default())
    }
}

/// The old image of an update or delete while it is being recorded.
#[derive(Clone, Copy, Debug)]
pub enum OldRow {
    /// None was sent.
    Absent,
    /// Only the key.
    Key(WrittenRow),
    /// The whole row.
    Full(WrittenRow),
}

impl OldRow {
    fn into_old(self) -> Old {
        match self {
            OldRow::Absent => Old::Absent,
            OldRow::Key(row) => Old::Key(row.0),
            OldRow::Full(row) => Old::Full(row.0),
        }
    }
}

/// The change events of one upstream commit; the unit of progress.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// End of the commit record: the position to resume from once this transaction is stored.
    pub end_lsn: Lsn,
    /// When it committed upstream, in microseconds since 2000-01-01 UTC.
    pub commit_time_us: i64,
    /// What it changed.
    pub changes: Changes,
}
