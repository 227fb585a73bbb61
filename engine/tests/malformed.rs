//! What is read back from the store and from keys, malformed: it is refused, or it is what writing it again gives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

#[path = "../../tests/support/mutation.rs"]
mod mutation;

use engine::aggregate::{Cell, Function};
use engine::change::{Numeric, ValueRef};
use engine::materialization::{AggregateId, Bucket, group_key};
use engine::store::{codec, key};

const EXECUTIONS: u64 = 120_000;

fn values() -> [ValueRef<'static>; 12] {
    [
        ValueRef::Null,
        ValueRef::Bool(true),
        ValueRef::Int(-5),
        ValueRef::Int(i64::MAX),
        ValueRef::Numeric(Numeric::Finite { mantissa: -1_205, scale: 2 }),
        ValueRef::Numeric(Numeric::Finite { mantissa: i128::MAX, scale: 30 }),
        ValueRef::Numeric(Numeric::NaN),
        ValueRef::Float(-0.1),
        ValueRef::Text("a\0b"),
        ValueRef::Uuid([7; 16]),
        ValueRef::Date(-1),
        ValueRef::Timestamp(i64::MIN),
    ]
}

fn groups() -> Vec<Vec<u8>> {
    let key = |values: &[ValueRef<'_>]| {
        let mut key = Vec::new();
        values.iter().for_each(|value| group_key::push(&mut key, *value).unwrap());
        key
    };
    values().iter().map(|value| key(&[*value])).chain(std::iter::once(key(&values()))).collect()
}

fn cells() -> Vec<Vec<u8>> {
    let functions = [
        Function::CountRows,
        Function::CountValues,
        Function::SumInteger,
        Function::SumNumeric { scale: 30 },
        Function::SumFloat,
    ];
    let added = [
        [ValueRef::Null; 5],
        [
            ValueRef::Null,
            ValueRef::Int(1),
            ValueRef::Int(i64::MIN),
            ValueRef::Numeric(Numeric::Finite { mantissa: 1, scale: 0 }),
            ValueRef::Float(1e300),
        ],
        [
            ValueRef::Null,
            ValueRef::Int(1),
            ValueRef::Int(9),
            ValueRef::Numeric(Numeric::PositiveInfinity),
            ValueRef::Float(f64::NAN),
        ],
    ];
    let mut cell = Cell::zero(functions);
    let mut written = Vec::new();
    for row in added {
        cell.rows += 1;
        for ((function, accumulator), value) in functions.iter().zip(&mut cell.accumulators).zip(row) {
            function.accumulate(accumulator, value, 1).unwrap();
        }
        let (mut stored, mut control) = (Vec::new(), Vec::new());
        codec::put_cell(&mut stored, 1 << 40, &cell);
        codec::put_control(&mut control, 7, &codec::Control { cells: 3, total: cell.clone() });
        written.extend([stored, control]);
    }
    written
}

#[test]
fn a_group_is_refused_or_is_written_again_the_same() {
    mutation::feed("group", groups(), EXECUTIONS, |bytes| {
        let Some(decoded) = group_key::decode(bytes) else { return };
        let write = |values: &[engine::change::Value]| {
            let mut key = Vec::new();
            values.iter().for_each(|value| group_key::push(&mut key, value.as_ref()).unwrap());
            key
        };
        let once = write(&decoded);
        assert_eq!(write(&group_key::decode(&once).expect("a written group reads")), once);
        assert_eq!(group_key::boundaries(bytes).map(|starts| starts.len()), Some(decoded.len() + 1));
        assert_eq!(group_key::length_of(bytes, decoded.len()), Some(bytes.len()));
    });
}

#[test]
fn a_cell_is_refused_or_is_written_again_the_same() {
    mutation::feed("cell", cells(), EXECUTIONS, |bytes| {
        let mut cell = Cell::default();
        if let Some(sequence) = codec::take_cell(bytes, &mut cell) {
            let (mut once, mut again) = (Vec::new(), Cell::default());
            codec::put_cell(&mut once, sequence, &cell);
            assert_eq!((codec::take_cell(&once, &mut again), &again), (Some(sequence), &cell));
        }
        if let Some(control) = codec::take_control(bytes) {
            let mut once = Vec::new();
            codec::put_control(&mut once, 1, &control);
            assert_eq!(codec::take_control(&once), Some(control));
        }
        let _ = codec::take_control_head(bytes);
    });
}

#[test]
fn the_key_of_a_cell_is_refused_or_is_written_again_the_same() {
    let stored = |group: Vec<u8>| {
        let mut stored = Vec::new();
        key::push_cell_prefix(&mut stored, AggregateId(3), 1, Bucket(-86_400_000_000));
        stored.extend(group);
        stored
    };
    mutation::feed("key of a cell", groups().into_iter().map(stored).collect(), EXECUTIONS, |bytes| {
        let Some((aggregate, level, bucket, group)) = key::split_cell(bytes) else { return };
        let mut again = Vec::new();
        key::push_cell_prefix(&mut again, aggregate, level, bucket);
        again.extend_from_slice(group);
        // Cells and control totals have the same keys but for their kind.
        assert_eq!(again.get(1..), bytes.get(1..));
        let _ = key::aggregate_of(bytes);
    });
}
