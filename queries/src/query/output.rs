//! The measures of an answer: as they are stored, or an average put together from a sum and a count.
//!
//! `avg(amount)` needs `sum(amount)` and `count(amount)`: divided by `count(*)` it would be wrong as soon as one amount is
//! NULL. Averages of decimals have [`AVERAGE_DIGITS`] more digits than the sum, rounded half away from zero, as Postgres
//! rounds `numeric`.

use engine::aggregate::accumulator::Accumulator;
use engine::aggregate::{Cell, Function, MeasureValue};
use engine::materialization::{Aggregate, MeasureDefinition, Plan};

use super::refusal::QueryError;
use super::suggestion::did_you_mean;

/// Digits after the point that an average has beyond those of its sum.
pub const AVERAGE_DIGITS: u16 = 6;

/// One measure of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Name in the answer.
    pub name: String,
    /// Where its value comes from.
    pub source: OutputSource,
}

/// Where an output's value comes from: positions in the plan's measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputSource {
    /// A measure as it is stored.
    Stored(usize),
    /// One divided by the other.
    Average {
        /// A sum over a column.
        sum: usize,
        /// The values in it.
        count: usize,
    },
}

/// How an output's values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputType {
    /// A number of rows or values.
    Count,
    /// A decimal with so many digits after the point.
    Decimal(u16),
    /// A double.
    Float,
}

/// Why an output has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoValue {
    /// It leaves 128 bits.
    Overflow,
    /// The cell has not the measures it should have.
    Damaged,
}

impl Output {
    /// The value over a cell's rows.
    pub fn finish(&self, plan: &Plan, cell: &Cell) -> Result<MeasureValue, NoValue> {
        match self.source {
            OutputSource::Stored(at) => finish(plan, cell, at),
            OutputSource::Average { sum, count } => {
                let MeasureValue::Integer(values) = finish(plan, cell, count)? else { return Err(NoValue::Damaged) };
                average(finish(plan, cell, sum)?, values)
            }
        }
    }

    /// How its values are written.
    #[must_use]
    pub fn output_type(&self, plan: &Plan) -> OutputType {
        let (at, digits) = match self.source {
            OutputSource::Stored(at) => (at, 0),
            OutputSource::Average { sum, .. } => (sum, AVERAGE_DIGITS),
        };
        match plan.measures.get(at).map(|measure| measure.function) {
            Some(Function::CountRows | Function::CountValues) | None => OutputType::Count,
            Some(Function::SumInteger) => OutputType::Decimal(digits),
            Some(Function::SumNumeric { scale }) => OutputType::Decimal(scale + digits),
            Some(Function::SumFloat) => OutputType::Float,
        }
    }

    /// The stored measures it is made of.
    pub fn measures(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, second) = match self.source {
            OutputSource::Stored(at) => (at, None),
            OutputSource::Average { sum, count } => (sum, Some(count)),
        };
        std::iter::once(first).chain(second)
    }
}

fn finish(plan: &Plan, cell: &Cell, at: usize) -> Result<MeasureValue, NoValue> {
    match (plan.measures.get(at), cell.accumulators.get(at)) {
        (_, Some(Accumulator::Overflowed)) => Err(NoValue::Overflow),
        (Some(measure), Some(accumulator)) => Ok(measure.function.finish(accumulator)),
        _ => Err(NoValue::Damaged),
    }
}

fn average(sum: MeasureValue, values: i128) -> Result<MeasureValue, NoValue> {
    if values == 0 {
        return Ok(MeasureValue::Null);
    }
    let decimal = |mantissa, scale| {
        let mantissa = divide(mantissa, values, AVERAGE_DIGITS).ok_or(NoValue::Overflow)?;
        Ok(MeasureValue::Decimal { mantissa, scale: scale + AVERAGE_DIGITS })
    };
    match sum {
        MeasureValue::Integer(mantissa) => decimal(mantissa, 0),
        MeasureValue::Decimal { mantissa, scale } => decimal(mantissa, scale),
        MeasureValue::Float(sum) => Ok(MeasureValue::Float(sum / values as f64)),
        other => Ok(other),
    }
}

/// `numerator * 10^digits / denominator`, rounded half away from zero. `None` where it leaves 128 bits, or there is nothing to
/// divide by.
#[must_use]
pub fn divide(numerator: i128, denominator: i128, digits: u16) -> Option<i128> {
    let unit = 10i128.checked_pow(u32::from(digits))?;
    // In two parts: the product alone may need more bits than the quotient.
    let whole = numerator.checked_div(denominator)?.checked_mul(unit)?;
    let rest = numerator.checked_rem(denominator)?.checked_mul(unit)?;
    let (quotient, remainder) = (rest.checked_div(denominator)?, rest.checked_rem(denominator)?);
    let up = remainder.unsigned_abs().checked_mul(2)? >= denominator.unsigned_abs();
    let away = if up { numerator.signum() * denominator.signum() } else { 0 };
    whole.checked_add(quotient)?.checked_add(away)
}

/// The outputs asked for; all measures where nothing was.
pub fn outputs(asked: Option<&[String]>, aggregate: &Aggregate) -> Result<Vec<Output>, QueryError> {
    let stored = |at: usize, name: &str| Output { name: name.to_owned(), source: OutputSource::Stored(at) };
    let measures = &aggregate.definition.measures;
    let Some(asked) = asked else {
        return Ok(measures.iter().enumerate().map(|(at, measure)| stored(at, &measure.name)).collect());
    };
    let mut outputs: Vec<Output> = Vec::new();
    for text in asked {
        let (expression, alias) = split_alias(text);
        let mut output = match Call::parse(expression) {
            Some(call) => Output { name: call.name(), source: call.resolve(aggregate)? },
            None => {
                let at = measures.iter().position(|measure| measure.name == expression).ok_or_else(|| {
                    let known = measures.iter().map(|measure| measure.name.as_str());
                    QueryError::refused("measures", "unknown_measure", format!("this aggregate has no {expression:?}"))
                        .hint(did_you_mean(expression, known))
                })?;
                stored(at, expression)
            }
        };
        if let Some(alias) = alias {
            alias.clone_into(&mut output.name);
        }
        if outputs.iter().any(|other| other.name == output.name) {
            return Err(QueryError::malformed("measures", format!("{:?} is given twice", output.name)));
        }
        outputs.push(output);
    }
    Ok(outputs)
}

/// `sum(amount) as total` is an expression and a name.
fn split_alias(text: &str) -> (&str, Option<&str>) {
    let text = text.trim();
    let at = text.to_ascii_lowercase().find(" as ");
    match at.and_then(|at| Some((text.get(..at)?, text.get(at + 4..)?))) {
        Some((expression, alias)) => (expression.trim(), Some(alias.trim())),
        None => (text, None),
    }
}

/// An aggregate function over a column, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call<'a> {
    CountRows,
    Count(&'a str),
    Sum(&'a str),
    Average(&'a str),
}

impl<'a> Call<'a> {
    fn parse(text: &'a str) -> Option<Call<'a>> {
        let (function, column) = text.strip_suffix(')')?.split_once('(')?;
        let column = column.trim();
        let column = column.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(column);
        Some(match (function.trim().to_ascii_lowercase().as_str(), column) {
            ("count", "*") => Call::CountRows,
            ("count", column) => Call::Count(column),
            ("sum", column) => Call::Sum(column),
            ("avg", column) => Call::Average(column),
            _ => return None,
        })
    }

    fn name(self) -> String {
        match self {
            Call::CountRows => "count".to_owned(),
            Call::Count(column) => format!("count_{column}"),
            Call::Sum(column) => format!("sum_{column}"),
            Call::Average(column) => format!("avg_{column}"),
        }
    }

    /// Whether a measure is this very call, over all rows that count.
    fn is(self, measure: &MeasureDefinition) -> bool {
        if measure.filter.is_some() {
            return false;
        }
        let (sum, count) = (measure.sum.as_deref(), measure.count.as_deref());
        match self {
            Call::CountRows => sum.is_none() && count == Some("*"),
            Call::Count(column) => sum.is_none() && count == Some(column),
            Call::Sum(column) => sum == Some(column),
            Call::Average(_) => false,
        }
    }

    fn resolve(self, aggregate: &Aggregate) -> Result<OutputSource, QueryError> {
        let find = |call: Call<'_>| {
            let found = aggregate.definition.measures.iter().position(|measure| call.is(measure));
            found.ok_or_else(|| {
                let (function, column) = match call {
                    Call::CountRows => ("count", "*"),
                    Call::Count(column) => ("count", column),
                    Call::Sum(column) | Call::Average(column) => ("sum", column),
                };
                QueryError::refused(
                    "measures",
                    "measure_not_kept",
                    format!("{} does not keep {function}({column})", aggregate.name),
                )
                .hint(format!(
                    r#"register an aggregate with the measure {{"name":"{}","{function}":"{column}"}}"#,
                    call.name()
                ))
            })
        };
        match self {
            Call::Average(column) => {
                Ok(OutputSource::Average { sum: find(Call::Sum(column))?, count: find(Call::Count(column))? })
            }
            call => find(call).map(OutputSource::Stored),
        }
    }
}

/// The measures that a definition needs to answer these texts; `None` for a text that is no function call.
#[must_use]
pub fn needed_measures(asked: &[String]) -> Option<Vec<MeasureDefinition>> {
    let mut needed: Vec<MeasureDefinition> = Vec::new();
    let measure = |call: Call<'_>| {
        let (sum, count) = match call {
            Call::Sum(column) => (Some(column.to_owned()), None),
            Call::Count(column) => (None, Some(column.to_owned())),
            Call::CountRows | Call::Average(_) => (None, Some("*".to_owned())),
        };
        MeasureDefinition { name: call.name(), sum, count, scale: None, filter: None }
    };
    for text in asked {
        let calls = match Call::parse(split_alias(text).0)? {
            Call::Average(column) => vec![Call::Sum(column), Call::Count(column)],
            call => vec![call],
        };
        for call in calls {
            if !needed.iter().any(|other| call.is(other)) {
                needed.push(measure(call));
            }
        }
    }
    Some(needed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::query::fixture::aggregate;

    fn asked(texts: &[&str]) -> Result<Vec<Output>, QueryError> {
        outputs(Some(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()), &aggregate(""))
    }

    #[test]
    fn functions_name_the_measures_they_need() {
        let source = |texts: &[&str]| asked(texts).map(|outputs| outputs.first().map(|output| output.source));
        assert_eq!(source(&["sum(amount)"]), Ok(Some(OutputSource::Stored(0))));
        assert_eq!(source(&["COUNT( * ) AS n"]), Ok(Some(OutputSource::Stored(2))));
        assert_eq!(source(&["sum(\"amount\")"]), Ok(Some(OutputSource::Stored(0))), "quoted as in SQL");
        let error = asked(&["avg(amount)"]).unwrap_err();
        assert_eq!(error.code, "measure_not_kept");
        assert_eq!(error.hint, r#"register an aggregate with the measure {"name":"count_amount","count":"amount"}"#);
        assert_eq!(asked(&["n", "sum(units) as n"]).unwrap_err().code, "bad_parameter");
        assert_eq!(asked(&["max(units)"]).unwrap_err().code, "unknown_measure");
        let names: Vec<_> = asked(&["sum(units)", "n as rows"]).unwrap().into_iter().map(|o| o.name).collect();
        assert_eq!(names, ["sum_units", "rows"]);
    }

    #[test]
    fn averages_are_rounded_half_away_from_zero() {
        for (sum, values, average) in [(1, 2, 500_000), (2, 3, 666_667), (-2, 3, -666_667), (1, 2_000_000, 1)] {
            assert_eq!(divide(sum, values, 6), Some(average), "{sum}/{values}");
        }
        assert_eq!(divide(-1, 2_000_000, 6), Some(-1));
        assert_eq!(divide(1, 2_000_001, 6), Some(0));
        assert_eq!(divide(i128::MAX, 1, 6), None);
        assert_eq!(divide(1, 0, 6), None);
        assert_eq!((divide(1, -2, 0), divide(-1, -2, 0)), (Some(-1), Some(1)));
    }

    proptest! {
        #[test]
        fn an_average_is_within_half_a_digit(sum in any::<i64>(), values in 1i128..1_000_000) {
            let average = divide(i128::from(sum), values, 6).unwrap();
            let off = (average * values - i128::from(sum) * 1_000_000).abs();
            prop_assert!(off * 2 <= values, "{} off by {}", average, off);
        }
    }
}
