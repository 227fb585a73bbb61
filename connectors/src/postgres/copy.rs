//! The rows of a binary COPY: bytes in, inserts out.
//!
//! Pure: no socket, no clock. The surprise: Postgres sends a row per chunk, but nothing promises it, so rows may be cut
//! anywhere. Any bytes are rows or are refused; nothing panics.

use engine::change::event::TooLarge;
use engine::change::{Changes, ColumnType, RowWriter, TableId, TableSchema, ValueRef};

use super::pgoutput::value;

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xFF\r\n\0";

/// Parses one COPY; what is cut off at the end of a chunk is kept for the next one.
pub(crate) struct CopyRows<'t> {
    schema: &'t TableSchema,
    /// What the rows are told under.
    id: TableId,
    carry: Vec<u8>,
    /// The rows so far; the caller takes them when there are enough.
    pub(crate) batch: Changes,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Header,
    Rows,
    End,
}

/// Why a row could not be read; plain, because it is made per row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyError {
    /// Not all bytes are there yet. Never leaves this module.
    Incomplete,
    /// The batch would pass 4 GiB.
    TooLarge,
    /// Not the format.
    Malformed,
    /// The bytes of the column at this position are none of its type.
    Value(usize),
}

impl From<TooLarge> for CopyError {
    fn from(_: TooLarge) -> Self {
        CopyError::TooLarge
    }
}

impl<'t> CopyRows<'t> {
    /// Rows in the shape of `schema`, told under `id`.
    pub(crate) fn new(schema: &'t TableSchema, id: TableId) -> Self {
        CopyRows { schema, id, carry: Vec::new(), batch: Changes::default(), place: Place::Header }
    }

    /// The end was seen, and nothing after it.
    pub(crate) fn complete(&self) -> bool {
        self.place == Place::End && self.carry.is_empty()
    }

    /// Takes in the next bytes. After an error nothing more may be fed.
    pub(crate) fn feed(&mut self, chunk: &[u8]) -> Result<(), CopyError> {
        if self.carry.is_empty() {
            let used = self.parse(chunk)?;
            if let Some(rest) = chunk.get(used..).filter(|rest| !rest.is_empty()) {
                self.carry.extend_from_slice(rest);
            }
        } else {
            let mut carried = std::mem::take(&mut self.carry);
            carried.extend_from_slice(chunk);
            let used = self.parse(&carried)?;
            carried.drain(..used);
            self.carry = carried;
        }
        Ok(())
    }

    /// Reads all whole rows; returns how many bytes they took.
    fn parse(&mut self, bytes: &[u8]) -> Result<usize, CopyError> {
        let mut rest = bytes;
        loop {
            let mut ahead = rest;
            let step = match self.place {
                Place::Header => header(&mut ahead).map(|()| Place::Rows),
                Place::Rows if rest.is_empty() => Err(CopyError::Incomplete),
                Place::Rows => self.row(&mut ahead),
                Place::End if rest.is_empty() => Err(CopyError::Incomplete),
                Place::End => Err(CopyError::Malformed),
            };
            match step {
                Ok(place) => {
                    self.place = place;
                    rest = ahead;
                }
                Err(CopyError::Incomplete) => return Ok(bytes.len() - rest.len()),
                Err(error) => return Err(error),
            }
        }
    }

    fn row(&mut self, bytes: &mut &[u8]) -> Result<Place, CopyError> {
        let count = i16::from_be_bytes(take(bytes)?);
        if count == -1 {
            return Ok(Place::End);
        }
        let columns = self.schema.columns.as_slice();
        if usize::try_from(count) != Ok(columns.len()) {
            return Err(CopyError::Malformed);
        }
        let row = self.batch.write_row(|buffer| {
            let mut writer = RowWriter::new(buffer);
            for (index, column) in columns.iter().enumerate() {
                writer.push(field(bytes, &column.column_type, index)?);
            }
            Ok::<(), CopyError>(())
        })?;
        self.batch.insert(self.id, row);
        Ok(Place::Rows)
    }
}

fn header(bytes: &mut &[u8]) -> Result<(), CopyError> {
    if take::<11>(bytes)? != *SIGNATURE {
        return Err(CopyError::Malformed);
    }
    let _flags = take::<4>(bytes)?;
    let extension = u32::from_be_bytes(take(bytes)?) as usize;
    *bytes = bytes.get(extension..).ok_or(CopyError::Incomplete)?;
    Ok(())
}

fn field<'a>(bytes: &mut &'a [u8], column_type: &ColumnType, index: usize) -> Result<ValueRef<'a>, CopyError> {
    let length = i32::from_be_bytes(take(bytes)?);
    if length == -1 {
        return Ok(ValueRef::Null);
    }
    let length = usize::try_from(length).map_err(|_| CopyError::Malformed)?;
    let (head, tail) = bytes.split_at_checked(length).ok_or(CopyError::Incomplete)?;
    *bytes = tail;
    value::binary(column_type, head).ok_or(CopyError::Value(index))
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], CopyError> {
    let (head, tail) = bytes.split_first_chunk::<N>().ok_or(CopyError::Incomplete)?;
    *bytes = tail;
    Ok(*head)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use engine::change::{Change, Column};
    use proptest::prelude::*;

    use super::*;

    fn table() -> TableSchema {
        let column = |name: &str, column_type| Column { name: name.into(), column_type };
        TableSchema {
            id: TableId(1),
            namespace: "public".into(),
            name: "t".into(),
            columns: vec![column("id", ColumnType::Int4), column("note", ColumnType::Text)],
            primary_key: vec![0],
            keeps_row_image: true,
        }
    }

    fn copy(rows: &[(i32, Option<String>)]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0u8; 8]);
        for (id, note) in rows {
            bytes.extend([0, 2, 0, 0, 0, 4]);
            bytes.extend(id.to_be_bytes());
            match note {
                None => bytes.extend((-1i32).to_be_bytes()),
                Some(note) => {
                    bytes.extend((note.len() as i32).to_be_bytes());
                    bytes.extend(note.as_bytes());
                }
            }
        }
        bytes.extend((-1i16).to_be_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn rows_survive_any_cutting(
            rows in prop::collection::vec((any::<i32>(), proptest::option::of(".{0,20}")), 0..20),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let bytes = copy(&rows);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let table = table();
            let mut parser = CopyRows::new(&table, TableId(7));
            for window in at.windows(2) {
                parser.feed(&bytes[window[0]..window[1]]).unwrap();
            }
            prop_assert!(parser.complete());
            let mut read = Vec::new();
            for change in parser.batch.iter() {
                let Change::Insert { table: TableId(7), new } = change else { panic!() };
                let mut values = Vec::new();
                new.decode_into(&mut values).unwrap();
                let (ValueRef::Int(id), note) = (values[0], values[1]) else { panic!() };
                read.push((id as i32, if let ValueRef::Text(note) = note { Some(note.to_owned()) } else { None }));
            }
            prop_assert_eq!(read, rows);
        }

        #[test]
        fn any_bytes_are_rows_or_refused(bytes in any::<Vec<u8>>(), with_header in any::<bool>()) {
            let table = table();
            let mut parser = CopyRows::new(&table, TableId(7));
            if with_header {
                parser.place = Place::Rows;
            }
            let _ = parser.feed(&bytes);
        }
    }
}
