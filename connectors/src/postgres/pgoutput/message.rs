//! What a message says, still in the bytes it came in.

use super::decode::{Malformed, Reader};

/// One message of the stream. BEGIN and COMMIT are told apart by the transport and never arrive here.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    /// The shape of a relation, sent before its first row of a session and after each change.
    Relation(RelationMessage<'a>),
    Insert {
        relation: u32,
        new: Tuple<'a>,
    },
    Update {
        relation: u32,
        old: Option<OldTuple<'a>>,
        new: Tuple<'a>,
    },
    Delete {
        relation: u32,
        old: OldTuple<'a>,
    },
    Truncate {
        /// OIDs, four bytes each.
        relations: &'a [[u8; 4]],
    },
    /// TYPE, ORIGIN and MESSAGE: nothing that changes a row.
    Ignored,
}

#[derive(Debug)]
pub(crate) struct RelationMessage<'a> {
    pub(crate) relation: u32,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    /// `d`, `n`, `f` or `i`.
    pub(crate) replica_identity: u8,
    pub(crate) columns: Vec<RelationColumn<'a>>,
}

#[derive(Debug)]
pub(crate) struct RelationColumn<'a> {
    /// Part of the replica identity.
    pub(crate) key: bool,
    pub(crate) name: &'a str,
    pub(crate) type_oid: u32,
    pub(crate) type_modifier: i32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum OldTuple<'a> {
    /// Only the columns of the replica identity hold values.
    Key(Tuple<'a>),
    Full(Tuple<'a>),
}

/// The columns of one row; already walked once, so its cells are known to lie within it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuple<'a> {
    pub(super) columns: u16,
    pub(super) body: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CellKind {
    Null,
    Unchanged,
    Text,
    Binary,
}

/// One column's place in the body of its tuple. Offsets instead of slices, so that one buffer serves all rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) kind: CellKind,
    start: u32,
    end: u32,
}

impl<'a> Tuple<'a> {
    /// Lists the cells into `into`, which is cleared first and keeps its capacity.
    pub(crate) fn cells_into(self, into: &mut Vec<Cell>) -> Result<(), Malformed> {
        into.clear();
        let mut reader = Reader::new(self.body);
        for _ in 0..self.columns {
            let (kind, value) = reader.cell()?;
            let end = u32::try_from(self.body.len() - reader.remaining()).map_err(|_| Malformed("row above 4 GiB"))?;
            let length = u32::try_from(value.len()).map_err(|_| Malformed("value above 4 GiB"))?;
            into.push(Cell { kind, start: end - length, end });
        }
        Ok(())
    }

    /// The bytes of one of this tuple's cells.
    pub(crate) fn bytes(self, cell: Cell) -> &'a [u8] {
        self.body.get(cell.start as usize..cell.end as usize).unwrap_or_default()
    }
}
