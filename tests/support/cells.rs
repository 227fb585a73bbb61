//! The cells of an aggregate as rows of text, as a `GROUP BY` of Postgres would return them.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use engine::Snapshot;
use engine::change::{Numeric, Value};
use engine::materialization::{Bucket, group_key};

/// Rows of text, in no order.
pub type Rows = BTreeSet<Vec<String>>;

fn show(value: &Value) -> String {
    const EPOCH_US: i128 = 946_684_800_000_000;
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Bool(v) => if *v { "t" } else { "f" }.to_owned(),
        Value::Int(v) => v.to_string(),
        Value::Numeric(Numeric::Finite { mantissa, scale }) => {
            let mut text = String::new();
            engine::aggregate::accumulator::write_decimal(&mut text, *mantissa, *scale).unwrap();
            text
        }
        Value::Numeric(Numeric::NaN) => "NaN".to_owned(),
        Value::Numeric(Numeric::PositiveInfinity) => "Infinity".to_owned(),
        Value::Numeric(Numeric::NegativeInfinity) => "-Infinity".to_owned(),
        Value::Float(v) => v.to_string(),
        Value::Text(v) => v.clone(),
        Value::Uuid(v) => {
            let hex = format!("{:032x}", u128::from_be_bytes(*v));
            [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
        }
        Value::Date(i32::MAX) => "infinity".to_owned(),
        Value::Date(i32::MIN) => "-infinity".to_owned(),
        Value::Date(v) => v.to_string(),
        Value::Timestamp(i64::MAX) => "Infinity".to_owned(),
        Value::Timestamp(i64::MIN) => "-Infinity".to_owned(),
        Value::Timestamp(v) => (i128::from(*v) + EPOCH_US).to_string(),
    }
}

/// The cells of one level, as the query's rows.
pub fn cells(snapshot: &Snapshot, name: &str, granularity: &str) -> Rows {
    let aggregate = &snapshot.catalog().aggregates[name];
    let level = aggregate.plan.levels.iter().position(|level| level.to_string() == granularity).unwrap();
    let mut rows = Rows::new();
    snapshot
        .scan(aggregate, level, Bucket(i64::MIN), Bucket(i64::MAX), |bucket, group, cell| {
            let time = match bucket {
                _ if granularity == "all" => Value::Int(0),
                Bucket::NULL => Value::Null,
                Bucket::INFINITY => Value::Timestamp(i64::MAX),
                Bucket::NEGATIVE_INFINITY => Value::Timestamp(i64::MIN),
                Bucket(start) => Value::Timestamp(start),
            };
            let mut row = vec![show(&time)];
            row.extend(group_key::decode(group).unwrap().iter().map(show));
            row.push(cell.rows.to_string());
            for (measure, accumulator) in aggregate.plan.measures.iter().zip(&cell.accumulators) {
                let shown = measure.function.finish(accumulator).to_string();
                row.push(if shown.is_empty() { "NULL".to_owned() } else { shown });
            }
            rows.insert(row);
            ControlFlow::Continue(())
        })
        .unwrap();
    rows
}
