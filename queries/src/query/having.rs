//! `having` of a question: a SQL condition over the columns of the answer, applied to finished rows.
//!
//! It is the same condition language as a definition's `where`; measures are exact decimals there, so `amount > 0.1` has no
//! rounding in it.

use engine::aggregate::MeasureValue;
use engine::aggregate::sum::Special;
use engine::change::{Column, ColumnType, Numeric, TableId, TableSchema, Value, ValueRef};
use engine::materialization::Plan;
use engine::materialization::filter::{Filter, FilterError};

use super::output::{Output, OutputType};
use super::refusal::QueryError;

/// A condition over the dimensions and measures of an answer's rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Having(Filter);

impl Having {
    /// Reads a condition over these columns.
    pub fn parse(text: &str, plan: &Plan, group_by: &[usize], outputs: &[Output]) -> Result<Having, QueryError> {
        let dimensions = group_by.iter().filter_map(|at| plan.dimensions.get(*at));
        let mut columns: Vec<Column> = dimensions
            .map(|dimension| Column { name: dimension.name.clone(), column_type: dimension.column_type.clone() })
            .collect();
        columns.extend(outputs.iter().map(|output| Column {
            name: output.name.clone(),
            column_type: match output.output_type(plan) {
                OutputType::Count | OutputType::Decimal(_) => ColumnType::Numeric { scale: None },
                OutputType::Float => ColumnType::Float8,
            },
        }));
        Filter::parse(text, &answer_schema(columns)).map(Having).map_err(|error| {
            QueryError::refused("having", "bad_condition", as_told(&error, "the answer"))
                .hint("a condition over the answer's columns, for example having=n > 10")
        })
    }

    /// Whether a row stays in the answer.
    #[must_use]
    pub fn accepts(&self, group: &[Value], values: &[MeasureValue]) -> bool {
        let row: Vec<ValueRef<'_>> =
            group.iter().map(Value::as_ref).chain(values.iter().map(|value| value_of(*value))).collect();
        self.0.accepts(&row)
    }
}

/// The columns of an answer as a table, so that conditions on them are read as those of tables are.
pub(super) fn answer_schema(columns: Vec<Column>) -> TableSchema {
    TableSchema {
        id: TableId(0),
        namespace: "this".to_owned(),
        name: "answer".to_owned(),
        columns,
        primary_key: Vec::new(),
        keeps_row_image: false,
    }
}

/// What is wrong with a condition, where the table that it is over is none that anybody knows.
pub(super) fn as_told(error: &FilterError, over: &str) -> String {
    error.to_string().replace(&answer_schema(Vec::new()).qualified_name(), over)
}

fn value_of(value: MeasureValue) -> ValueRef<'static> {
    let numeric = |mantissa, scale| ValueRef::Numeric(Numeric::Finite { mantissa, scale });
    match value {
        MeasureValue::Null => ValueRef::Null,
        MeasureValue::Integer(mantissa) => numeric(mantissa, 0),
        MeasureValue::Decimal { mantissa, scale } => numeric(mantissa, scale),
        MeasureValue::Float(v) => ValueRef::Float(v),
        MeasureValue::Special(Special::NaN) => ValueRef::Numeric(Numeric::NaN),
        MeasureValue::Special(Special::Positive) => ValueRef::Numeric(Numeric::PositiveInfinity),
        MeasureValue::Special(Special::Negative) => ValueRef::Numeric(Numeric::NegativeInfinity),
    }
}
