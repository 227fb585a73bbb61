//! What the fuzz targets do with any bytes: decode them, and insist on what must hold of whatever decodes.
//!
//! Only for tests. `tests/fuzz` is a workspace of its own that takes this file and the decoders in by their paths, so
//! that they can be instrumented without the store; here an ordinary test feeds the same corpus to the same functions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::print_stdout))]

use engine::change::{Change, Column, ColumnType, Numeric, RowRef, RowWriter, TableId, TableSchema, ValueRef};

use crate::postgres::copy::{CopyError, CopyRows};
use crate::postgres::pgoutput::{Cell, CellKind, Message, OldTuple, Tuple, decode, value};

/// What a target does with an input.
pub type Target = fn(&[u8]);

/// All targets by name; a folder of the corpus is named after each.
pub const TARGETS: [(&str, Target); 5] = [
    ("pgoutput", pgoutput),
    ("copy_binary", copy_binary),
    ("numeric", numeric),
    ("value", value_of_any_type),
    ("row_image", row_image),
];

fn types() -> Vec<ColumnType> {
    vec![
        ColumnType::Int8,
        ColumnType::Text,
        ColumnType::Numeric { scale: Some(2) },
        ColumnType::TimestampTz,
        ColumnType::Char,
        ColumnType::Bool,
        ColumnType::Uuid,
        ColumnType::Float8,
        ColumnType::Date,
        ColumnType::Unsupported("jsonb".to_owned()),
        ColumnType::Int2,
        ColumnType::Int4,
        ColumnType::Float4,
        ColumnType::Timestamp,
        ColumnType::Numeric { scale: None },
    ]
}

/// One message of the stream. Its cells are read as every type in turn, and a row of them must read back.
pub fn pgoutput(bytes: &[u8]) {
    let types = types();
    let mut cells: Vec<Cell> = Vec::new();
    let mut row = Vec::new();
    let mut visit = |tuple: Tuple<'_>| {
        tuple.cells_into(&mut cells).expect("a decoded tuple was walked before");
        row.clear();
        let mut writer = RowWriter::new(&mut row);
        for (index, cell) in cells.iter().enumerate() {
            let column_type = &types[index % types.len()];
            let bytes = tuple.bytes(*cell);
            let value = match cell.kind {
                CellKind::Null => Some(ValueRef::Null),
                CellKind::Unchanged => Some(ValueRef::Unchanged),
                CellKind::Binary => value::binary(column_type, bytes),
                CellKind::Text => value::text(column_type, bytes),
            };
            writer.push(value.unwrap_or(ValueRef::Null));
        }
        assert_eq!(RowRef(&row).columns().filter(Result::is_ok).count(), cells.len());
    };
    match decode(bytes) {
        Ok(Message::Insert { new, .. }) => visit(new),
        Ok(Message::Update { old, new, .. }) => {
            if let Some(OldTuple::Key(old) | OldTuple::Full(old)) = old {
                visit(old);
            }
            visit(new);
        }
        Ok(Message::Delete { old: OldTuple::Key(old) | OldTuple::Full(old), .. }) => visit(old),
        Ok(Message::Relation(relation)) => assert!(!relation.namespace.is_empty()),
        Ok(Message::Truncate { relations }) => assert!(relations.len() * 4 < bytes.len()),
        Ok(Message::Ignored) | Err(_) => {}
    }
}

/// Two bytes that choose the number of columns and the size of the chunks, then a binary COPY. However it is cut, it must
/// read the same.
pub fn copy_binary(bytes: &[u8]) {
    let Some((&[columns, chunk], copy)) = bytes.split_first_chunk::<2>() else { return };
    let types = types();
    let columns = usize::from(columns) % types.len() + 1;
    let columns =
        types.into_iter().take(columns).map(|column_type| Column { name: String::new(), column_type }).collect();
    let schema = TableSchema {
        id: TableId(1),
        namespace: String::new(),
        name: String::new(),
        columns,
        primary_key: vec![0],
        keeps_row_image: true,
    };
    let whole = read_copy(&schema, std::iter::once(copy));
    let cut = read_copy(&schema, copy.chunks(usize::from(chunk).max(1)));
    assert_eq!(whole, cut);
}

type Copied = (Vec<Vec<u8>>, Result<bool, CopyError>);

/// The rows, and whether the end was seen.
fn read_copy<'a>(schema: &TableSchema, chunks: impl Iterator<Item = &'a [u8]>) -> Copied {
    let mut rows = CopyRows::new(schema, TableId(2));
    let fed = chunks.map(|chunk| rows.feed(chunk)).find(Result::is_err).unwrap_or(Ok(()));
    let read = rows.batch.iter().map(|change| match change {
        Change::Insert { table: TableId(2), new } => {
            assert_eq!(new.columns().filter(Result::is_ok).count(), schema.columns.len());
            new.0.to_vec()
        }
        other => panic!("{other:?}"),
    });
    (read.collect(), fed.map(|()| rows.complete()))
}

/// A numeric. What decodes must be equal to what its canonical form decodes to; what is too wide stays as it is.
pub fn numeric(bytes: &[u8]) {
    let numeric = |bytes| value::binary(&ColumnType::Numeric { scale: None }, bytes);
    match numeric(bytes) {
        Some(ValueRef::Numeric(decoded)) => {
            let canonical = canonical_numeric(decoded);
            assert!(canonical.len() <= bytes.len() || !matches!(decoded, Numeric::Finite { .. }));
            assert_eq!(numeric(&canonical), Some(ValueRef::Numeric(decoded)));
        }
        Some(ValueRef::Opaque(raw)) => assert_eq!(raw, bytes),
        Some(other) => panic!("{other:?}"),
        None => {}
    }
}

/// Writes a numeric as Postgres does: no zero digits at either end.
pub fn canonical_numeric(numeric: Numeric) -> Vec<u8> {
    let write = |weight: i16, sign: u16, scale: u16, digits: &[u16]| {
        let mut bytes = (digits.len() as u16).to_be_bytes().to_vec();
        bytes.extend(weight.to_be_bytes());
        bytes.extend(sign.to_be_bytes());
        bytes.extend(scale.to_be_bytes());
        digits.iter().for_each(|digit| bytes.extend(digit.to_be_bytes()));
        bytes
    };
    let (mantissa, scale) = match numeric {
        Numeric::Finite { mantissa, scale } => (mantissa, scale),
        Numeric::NaN => return write(0, 0xC000, 0, &[]),
        Numeric::PositiveInfinity => return write(0, 0xD000, 0, &[]),
        Numeric::NegativeInfinity => return write(0, 0xF000, 0, &[]),
    };
    if mantissa == 0 {
        return write(0, 0, scale, &[]);
    }
    // Decimal digits, filled up so that the point lies between digits of base 10000.
    let below = usize::from(scale).div_ceil(4);
    let mut text = mantissa.unsigned_abs().to_string();
    text.push_str(&"000"[..below * 4 - usize::from(scale)]);
    let text = format!("{}{text}", &"000"[..text.len().next_multiple_of(4) - text.len()]);
    let digits: Vec<u16> = (0..text.len() / 4).map(|at| text[at * 4..at * 4 + 4].parse().unwrap()).collect();
    let leading = digits.iter().take_while(|digit| **digit == 0).count();
    let trailing = digits.iter().rev().take_while(|digit| **digit == 0).count();
    let weight = digits.len() as i64 - below as i64 - 1 - leading as i64;
    let sign = if mantissa < 0 { 0x4000 } else { 0 };
    write(i16::try_from(weight).unwrap(), sign, scale, &digits[leading..digits.len() - trailing])
}

/// One byte that chooses the type, then the value, in binary and as text. A row of what decodes must read back.
pub fn value_of_any_type(bytes: &[u8]) {
    let Some((&column_type, bytes)) = bytes.split_first() else { return };
    let types = types();
    let column_type = &types[usize::from(column_type) % types.len()];
    let mut row = Vec::new();
    let decoded = [value::binary(column_type, bytes), value::text(column_type, bytes)];
    decoded.into_iter().flatten().for_each(|value| RowWriter::new(&mut row).push(value));
    let read: Vec<ValueRef<'_>> = RowRef(&row).columns().map(|value| value.expect("a written row reads")).collect();
    let same = |(a, b): (ValueRef<'_>, &ValueRef<'_>)| match (a, b) {
        (ValueRef::Float(a), ValueRef::Float(b)) => a.to_bits() == b.to_bits(),
        (a, b) => a == *b,
    };
    assert!(decoded.into_iter().flatten().zip(&read).all(same), "{decoded:?} {read:?}");
}

/// A row image as stored. What decodes, written again, must be the shortest form: writing that once more changes nothing.
pub fn row_image(bytes: &[u8]) {
    let mut values = Vec::new();
    if RowRef(bytes).decode_into(&mut values).is_err() {
        return;
    }
    let write = |values: &[ValueRef<'_>]| {
        let mut row = Vec::new();
        values.iter().for_each(|value| RowWriter::new(&mut row).push(*value));
        row
    };
    let once = write(&values);
    assert!(once.len() <= bytes.len());
    let mut again = Vec::new();
    RowRef(&once).decode_into(&mut again).expect("a written row reads");
    assert_eq!(write(&again), once);
}

#[cfg(test)]
#[path = "../../tests/support/mutation.rs"]
mod mutation;

#[cfg(test)]
mod tests {
    use super::*;

    /// Of each target in an ordinary run.
    const EXECUTIONS: u64 = 1_000_000;

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        let mut files: Vec<_> =
            std::fs::read_dir(corpus.join(target)).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 5, "{target} has {} inputs", files.len());
        files.iter().map(|file| std::fs::read(file).unwrap()).collect()
    }

    #[test]
    fn the_corpus_decodes_or_is_refused() {
        for (name, target) in TARGETS {
            corpus(name).iter().for_each(|input| target(input));
        }
    }

    #[test]
    fn what_is_made_of_the_corpus_decodes_or_is_refused() {
        for (name, target) in TARGETS {
            mutation::feed(name, corpus(name), EXECUTIONS, target);
        }
    }
}
