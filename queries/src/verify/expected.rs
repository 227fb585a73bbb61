//! What a cell should be, as somebody else added it up: read from a row of Postgres, or recounted from the row images.

use engine::aggregate::{Cell, Function, MeasureValue};
use engine::change::{ColumnType, Numeric, Value};
use engine::materialization::filter::{constant_of, parse_numeric};
use engine::materialization::plan::DimensionPlan;
use engine::materialization::{Bucket, Granularity, Plan, group_key};

use super::upstream::TextRow;

/// A cell as somebody else added it up.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// Its bucket.
    pub bucket: Bucket,
    /// Its group.
    pub group: Vec<u8>,
    /// Its rows.
    pub rows: i64,
    /// Its measures.
    pub measures: Vec<ExpectedMeasure>,
}

/// A measure as somebody else added it up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpectedMeasure {
    /// Its value.
    pub value: MeasureValue,
    /// By how much it may be off: Postgres rounds a sum of doubles with every row.
    pub tolerance: f64,
}

/// A row that is no cell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what came back is no cell of the aggregate: column {column}, {text:?}")]
pub struct NotACell {
    /// Position in the row.
    pub column: usize,
    /// What stands there.
    pub text: String,
}

impl Expected {
    /// Reads a row of [`super::statement::level_statement`].
    pub fn of_row(row: &TextRow, plan: &Plan, granularity: Granularity) -> Result<Expected, NotACell> {
        let mut fields = Fields { row, column: 0 };
        let label = fields.take(|text| text?.parse().ok().map(Bucket))?;
        let mut group = Vec::new();
        for dimension in &plan.dimensions {
            let value = fields.take(|text| dimension_value(text, dimension))?;
            fields.check(group_key::push(&mut group, value.as_ref()).is_ok())?;
        }
        let rows = fields.take(|text| text?.parse().ok())?;
        let mut measures = Vec::with_capacity(plan.measures.len());
        for measure in &plan.measures {
            measures.push(fields.measure(measure.function)?);
        }
        // Where the clock shows midnight twice Postgres may name a day by an instant within it.
        let bucket = match granularity {
            Granularity::All | Granularity::Hour | Granularity::Step(_) => label,
            _ if label.is_special() => label,
            civil => Bucket(plan.calendar.interval(civil, label.0).start),
        };
        Ok(Expected { bucket, group, rows, measures })
    }

    /// A cell that was added up here.
    #[must_use]
    pub fn of_cell(bucket: Bucket, group: Vec<u8>, cell: &Cell, plan: &Plan) -> Expected {
        let measures = finished(plan, cell).map(|value| ExpectedMeasure { value, tolerance: 0.0 }).collect();
        Expected { bucket, group, rows: cell.rows, measures }
    }

    /// Whether a stored cell is this one.
    #[must_use]
    pub fn is(&self, cell: &Cell, plan: &Plan) -> bool {
        self.rows == cell.rows
            && self.measures.len() == cell.accumulators.len()
            && self.measures.iter().zip(finished(plan, cell)).all(|(expected, stored)| expected.is(stored))
    }
}

/// The measures of a cell.
pub(super) fn finished<'c>(plan: &'c Plan, cell: &'c Cell) -> impl Iterator<Item = MeasureValue> + 'c {
    plan.measures.iter().zip(&cell.accumulators).map(|(measure, accumulator)| measure.function.finish(accumulator))
}

impl ExpectedMeasure {
    fn is(&self, stored: MeasureValue) -> bool {
        match (self.value, stored) {
            (MeasureValue::Float(a), MeasureValue::Float(b)) => {
                a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= self.tolerance
            }
            (expected, stored) => expected == stored,
        }
    }
}

/// The fields of a row, one after the other.
struct Fields<'r> {
    row: &'r TextRow,
    column: usize,
}

impl Fields<'_> {
    fn take<R>(&mut self, read: impl FnOnce(Option<&str>) -> Option<R>) -> Result<R, NotACell> {
        let text = self.row.get(self.column).and_then(Option::as_deref);
        let value = read(text);
        self.column += 1;
        value.ok_or_else(|| self.wrong())
    }

    fn check(&self, holds: bool) -> Result<(), NotACell> {
        if holds { Ok(()) } else { Err(self.wrong()) }
    }

    /// The field that was taken last.
    fn wrong(&self) -> NotACell {
        let column = self.column.saturating_sub(1);
        let text = self.row.get(column).and_then(Option::as_deref).unwrap_or("NULL");
        NotACell { column, text: text.chars().take(100).collect() }
    }

    fn measure(&mut self, function: Function) -> Result<ExpectedMeasure, NotACell> {
        let exact = |value| ExpectedMeasure { value, tolerance: 0.0 };
        match function {
            Function::CountRows | Function::CountValues | Function::SumInteger => {
                self.take(|text| or_null(text, |text| text.parse().ok().map(MeasureValue::Integer))).map(exact)
            }
            Function::SumNumeric { scale } => {
                self.take(|text| or_null(text, |text| decimal(parse_numeric(text)?, scale))).map(exact)
            }
            Function::SumFloat => {
                let value = self.take(|text| or_null(text, |text| text.parse().ok().map(MeasureValue::Float)))?;
                let magnitude = self.take(|text| text.map_or(Some(0.0), |text| text.parse::<f64>().ok()))?;
                let values = self.take(|text| text?.parse::<f64>().ok())?;
                // Each of n additions is off by half a unit of the last place at most; twice that, to be safe.
                let tolerance = values * f64::EPSILON * magnitude;
                Ok(ExpectedMeasure { value, tolerance: if tolerance.is_finite() { tolerance } else { 0.0 } })
            }
        }
    }
}

fn or_null(text: Option<&str>, read: impl FnOnce(&str) -> Option<MeasureValue>) -> Option<MeasureValue> {
    text.map_or(Some(MeasureValue::Null), read)
}

/// A sum at a measure's scale; at its own where it has more digits, which is then not equal.
fn decimal(sum: Numeric, to: u16) -> Option<MeasureValue> {
    use engine::aggregate::sum::Special;
    Some(match sum {
        Numeric::Finite { mantissa, scale } => match Numeric::rescale(mantissa, scale, to) {
            Some(mantissa) => MeasureValue::Decimal { mantissa, scale: to },
            None => MeasureValue::Decimal { mantissa, scale },
        },
        Numeric::NaN => MeasureValue::Special(Special::NaN),
        Numeric::PositiveInfinity => MeasureValue::Special(Special::Positive),
        Numeric::NegativeInfinity => MeasureValue::Special(Special::Negative),
    })
}

fn dimension_value(text: Option<&str>, dimension: &DimensionPlan) -> Option<Value> {
    let Some(text) = text else { return Some(Value::Null) };
    match &dimension.column_type {
        ColumnType::Date => text.parse().ok().map(Value::Date),
        ColumnType::Timestamp | ColumnType::TimestampTz => text.parse().ok().map(Value::Timestamp),
        ColumnType::Float4 | ColumnType::Float8 => text.parse().ok().map(Value::Float),
        other => constant_of(text, true, other),
    }
}
