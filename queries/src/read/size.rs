//! How many bytes the rows of an answer take, before they are there: as they are held, and as the widest format writes them.
//! An estimate, and no less than it will be: texts are taken as JSON escapes them, numbers with all their digits.

use engine::aggregate::{Accumulator, MeasureValue};
use engine::materialization::Plan;

use super::reader::{Row, RowRef};
use crate::query::{AggregateQuery, Layout};

/// What the allocator adds to a row.
const ALLOCATED: usize = 40;
/// A row without dimensions and measures: its time, its flags, its share.
const WRITTEN: usize = 128;
/// Quotes, colon and comma.
const PUNCTUATION: usize = 4;
/// What a value may be longer than its bytes in a key: a UUID, a time.
const UNFOLDED: usize = 32;

/// How many bytes a text takes in JSON.
pub(super) fn escaped(text: &[u8]) -> usize {
    let of = |byte: &u8| match *byte {
        ..0x20 => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    };
    text.iter().map(of).sum()
}

/// What is the same for all rows of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowSize {
    held: usize,
    written: usize,
    /// Columns that a measure makes.
    columns: usize,
}

impl RowSize {
    pub(super) fn of(plan: &Plan, query: &AggregateQuery) -> RowSize {
        // In columns no name is repeated; values are held once more, to be turned around.
        let named = |name: &str| match query.layout {
            Layout::Rows => escaped(name.as_bytes()) + PUNCTUATION,
            Layout::Columns => size_of::<MeasureValue>(),
        };
        // What it was and what changed stand beside a measure that is compared.
        let (columns, suffixes) = if query.comparison.is_some() { (3, "_previous_change".len()) } else { (1, 0) };
        let dimensions = query.group_by.iter().filter_map(|at| plan.dimensions.get(*at));
        let dimensions: usize = dimensions.map(|dimension| named(&dimension.name) + UNFOLDED).sum();
        let measures: usize = query.outputs.iter().map(|output| named(&output.name) * columns + suffixes).sum();
        // Rows of an ordered list are held with their cells, where the others are asked for.
        let cell = if query.others { plan.measures.len() * size_of::<Accumulator>() } else { 0 };
        RowSize { held: size_of::<Row>() + ALLOCATED + cell, written: WRITTEN + dimensions + measures, columns }
    }

    /// While it is a row.
    pub(super) fn held(self, row: RowRef<'_>) -> usize {
        self.held + row.key.len() + size_of_val(row.values)
    }

    /// Once it is text.
    pub(super) fn written(self, row: RowRef<'_>) -> usize {
        let values: usize = row.values.iter().map(|value| digits(*value) + PUNCTUATION).sum();
        self.written + escaped(row.key) + values * self.columns
    }
}

/// At least as many characters as a number has; a third of its bits is a little more than its digits.
fn digits(value: MeasureValue) -> usize {
    let of = |mantissa: i128| (u128::BITS - mantissa.unsigned_abs().leading_zeros()) as usize / 3 + 2;
    match value {
        MeasureValue::Integer(v) => of(v),
        MeasureValue::Decimal { mantissa, scale } => of(mantissa).max(usize::from(scale) + 2),
        MeasureValue::Null | MeasureValue::Float(_) | MeasureValue::Special(_) => 24,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use engine::change::ValueRef;
    use engine::materialization::{Bucket, group_key};
    use engine::snapshot::AsOf;

    use super::*;
    use crate::api::AnswerView;
    use crate::query::ReadPlan;
    use crate::query::fixture::{daily, parse};
    use crate::read::{Answer, Before};

    /// Whatever an answer holds, its text is not longer than was said before.
    #[test]
    fn a_row_is_not_longer_than_it_was_taken_for() {
        let aggregate = daily();
        let mut key = Vec::new();
        group_key::push(&mut key, ValueRef::Text("\"\u{1}\\ plain")).unwrap();
        group_key::push(&mut key, ValueRef::Int(i64::MIN)).unwrap();
        for value in [
            MeasureValue::Integer(i128::MIN),
            MeasureValue::Decimal { mantissa: -1, scale: 36 },
            MeasureValue::Decimal { mantissa: i128::MAX, scale: 2 },
            MeasureValue::Float(-f64::MIN_POSITIVE),
            MeasureValue::Null,
        ] {
            for more in ["", "&layout=columns", "&compare=P1Y", "&order=-n&share=true"] {
                let names = "measures=amount as \"\u{1}\",units,n";
                let query = parse(&format!("from=2026&to=2027&{names}{more}"), &aggregate).unwrap();
                let row = Row { bucket: Bucket(0), key: key.clone(), values: vec![value; 3] };
                let size = RowSize::of(&aggregate.plan, &query).written(row.as_ref());
                let written = |rows: usize| {
                    let before = Before(vec![Some(vec![value; 3]); rows]);
                    let view = AnswerView {
                        aggregate: &aggregate,
                        query: &query,
                        reads: &ReadPlan::choose(&query, &aggregate.plan).unwrap(),
                        answer: &Answer { rows: vec![row.clone(); rows], ..Answer::default() },
                        before: query.comparison.is_some().then_some(&before),
                        behind: None,
                        as_of: AsOf::default(),
                        lag_ms: 0,
                        state: "live",
                        warnings: Vec::new(),
                    };
                    view.to_json().unwrap().len()
                };
                let longer = written(101) - written(1);
                assert!(longer <= 100 * size, "{value:?} {more}: {longer} bytes in 100 rows of {size}");
            }
        }
    }
}
