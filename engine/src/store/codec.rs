//! Values on disk. Absolute, never deltas: writing one twice changes nothing.
//!
//! A cell is `[format 1][sequence of the commit that last changed it][rows]` and its accumulators, each with a tag. The
//! sequence catches a delta applied twice at the cell itself. Tags are never reused.

use crate::aggregate::count::Count;
use crate::aggregate::float_sum::FloatSum;
use crate::aggregate::sum::{Specials, Sum};
use crate::aggregate::{Accumulator, Cell};
use crate::change::row::{
    put_varint, put_varint_128, take_varint, take_varint_128, unzigzag, unzigzag_128, zigzag, zigzag_128,
};

const CELL_FORMAT: u8 = 1;

const COUNT: u8 = 1;
const SUM: u8 = 2;
const SUM_WITH_SPECIALS: u8 = 3;
const FLOAT_SUM: u8 = 4;
const FLOAT_SUM_WITH_SPECIALS: u8 = 5;

/// Appends a cell.
pub fn put_cell(buffer: &mut Vec<u8>, sequence: u64, cell: &Cell) {
    buffer.push(CELL_FORMAT);
    put_varint(buffer, sequence);
    put_varint(buffer, zigzag(cell.rows));
    for accumulator in &cell.accumulators {
        put_accumulator(buffer, accumulator);
    }
}

/// Reads a cell into `cell`, whose accumulators are replaced; returns its sequence. `None` where the bytes are damaged.
#[must_use]
pub fn take_cell(mut bytes: &[u8], cell: &mut Cell) -> Option<u64> {
    let (&format, rest) = bytes.split_first()?;
    if format != CELL_FORMAT {
        return None;
    }
    bytes = rest;
    let sequence = take_varint(&mut bytes)?;
    cell.rows = unzigzag(take_varint(&mut bytes)?);
    cell.accumulators.clear();
    while !bytes.is_empty() {
        cell.accumulators.push(take_accumulator(&mut bytes)?);
    }
    Some(sequence)
}

fn put_accumulator(buffer: &mut Vec<u8>, accumulator: &Accumulator) {
    match accumulator {
        Accumulator::Count(count) => {
            buffer.push(COUNT);
            put_varint(buffer, zigzag(count.0));
        }
        Accumulator::Sum(sum) => {
            buffer.push(if sum.specials.is_some() { SUM_WITH_SPECIALS } else { SUM });
            put_varint_128(buffer, zigzag_128(sum.finite));
            put_varint(buffer, zigzag(sum.values));
            put_specials(buffer, sum.specials.as_deref());
        }
        Accumulator::FloatSum(sum) => {
            buffer.push(if sum.specials.is_some() { FLOAT_SUM_WITH_SPECIALS } else { FLOAT_SUM });
            put_varint(buffer, zigzag(sum.values));
            put_varint(buffer, zigzag(i64::from(sum.base)));
            put_varint(buffer, sum.words.len() as u64);
            sum.words.iter().for_each(|word| put_varint(buffer, zigzag(*word)));
            put_specials(buffer, sum.specials.as_deref());
        }
        // Never stored: the aggregate is halted instead. A tag that nothing reads makes sure of it.
        Accumulator::Overflowed => buffer.push(0),
    }
}

fn put_specials(buffer: &mut Vec<u8>, specials: Option<&Specials>) {
    if let Some(specials) = specials {
        for count in [specials.nan, specials.positive, specials.negative] {
            put_varint(buffer, zigzag(count));
        }
    }
}

fn take_accumulator(bytes: &mut &[u8]) -> Option<Accumulator> {
    let (&tag, rest) = bytes.split_first()?;
    *bytes = rest;
    let signed = |bytes: &mut &[u8]| take_varint(bytes).map(unzigzag);
    Some(match tag {
        COUNT => Accumulator::Count(Count(signed(bytes)?)),
        SUM | SUM_WITH_SPECIALS => {
            let finite = unzigzag_128(take_varint_128(bytes)?);
            let values = signed(bytes)?;
            let specials = take_specials(bytes, tag == SUM_WITH_SPECIALS)?;
            Accumulator::Sum(Sum { finite, values, specials })
        }
        FLOAT_SUM | FLOAT_SUM_WITH_SPECIALS => {
            let values = signed(bytes)?;
            let base = i32::try_from(signed(bytes)?).ok()?;
            let count = usize::try_from(take_varint(bytes)?).ok()?;
            let mut words = Vec::new();
            for _ in 0..count {
                words.push(signed(bytes)?);
            }
            let specials = take_specials(bytes, tag == FLOAT_SUM_WITH_SPECIALS)?;
            Accumulator::FloatSum(Box::new(FloatSum { values, specials, base, words }))
        }
        _ => return None,
    })
}

fn take_specials(bytes: &mut &[u8], present: bool) -> Option<Option<Box<Specials>>> {
    if !present {
        return Some(None);
    }
    let mut signed = || take_varint(bytes).map(unzigzag);
    Some(Some(Box::new(Specials { nan: signed()?, positive: signed()?, negative: signed()? })))
}

/// The control total of a Partition: how many cells it has, and all of them added up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Control {
    /// Number of cells.
    pub cells: i64,
    /// Their sum.
    pub total: Cell,
}

/// Appends a control total.
pub fn put_control(buffer: &mut Vec<u8>, sequence: u64, control: &Control) {
    put_varint(buffer, zigzag(control.cells));
    put_cell(buffer, sequence, &control.total);
}

/// Reads a control total.
#[must_use]
pub fn take_control(mut bytes: &[u8]) -> Option<Control> {
    let cells = unzigzag(take_varint(&mut bytes)?);
    let mut total = Cell::default();
    take_cell(bytes, &mut total)?;
    Some(Control { cells, total })
}

/// Reads of a control total only the number of cells and the commit that last changed it.
#[must_use]
pub fn take_control_head(mut bytes: &[u8]) -> Option<(i64, u64)> {
    let cells = unzigzag(take_varint(&mut bytes)?);
    let (&format, mut rest) = bytes.split_first()?;
    let sequence = take_varint(&mut rest)?;
    (format == CELL_FORMAT).then_some((cells, sequence))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accumulator() -> impl Strategy<Value = Accumulator> {
        let specials = prop::option::of(
            (any::<i64>(), any::<i64>(), any::<i64>())
                .prop_map(|(nan, positive, negative)| Box::new(Specials { nan, positive, negative })),
        );
        prop_oneof![
            any::<i64>().prop_map(|v| Accumulator::Count(Count(v))),
            (any::<i128>(), any::<i64>(), specials.clone())
                .prop_map(|(finite, values, specials)| Accumulator::Sum(Sum { finite, values, specials })),
            (any::<i64>(), any::<i32>(), prop::collection::vec(any::<i64>(), 0..5), specials).prop_map(
                |(values, base, words, specials)| {
                    Accumulator::FloatSum(Box::new(FloatSum { values, specials, base, words }))
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn a_cell_reads_back_as_written(
            rows in any::<i64>(), sequence in any::<u64>(), accumulators in prop::collection::vec(accumulator(), 0..5),
        ) {
            let cell = Cell { rows, accumulators };
            let mut buffer = Vec::new();
            put_cell(&mut buffer, sequence, &cell);
            let mut read = Cell::default();
            prop_assert_eq!(take_cell(&buffer, &mut read), Some(sequence));
            prop_assert_eq!(read, cell);
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in any::<Vec<u8>>()) {
            let _ = take_cell(&bytes, &mut Cell::default());
            let control = take_control(&bytes);
            prop_assert!(control.is_none() || take_control_head(&bytes).map(|head| head.0) == control.map(|c| c.cells));
        }
    }
}
