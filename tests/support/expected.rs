//! What aggregates over the model's rows should hold, recomputed from scratch, and what the engine's do hold, in the same form.
//! Zones are asked of chrono, whose tables are the engine's too; everything else is another way of computing it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, TimeZone, Utc};
use engine::Snapshot;
use engine::aggregate::Cell;
use engine::change::{Numeric, ValueRef};
use engine::materialization::{Bucket, Definition, group_key};
use engine::snapshot::ReadError;

use super::{DAY_US, Row, SCALE};

/// Rows and measures by level, bucket and group.
pub type Expected = BTreeMap<(usize, i64, Vec<u8>), (i64, String)>;

/// Of a table, with the history as first dimension or without it.
pub fn definitions(table: &str, by_history: bool) -> Vec<Definition> {
    let parse = |json: &str| {
        let mut definition: Definition = serde_json::from_str(json).unwrap();
        definition.table = table.to_owned();
        if by_history {
            definition.dimensions.insert(0, "history".to_owned());
        }
        definition
    };
    vec![
        parse(
            r#"{"table":"","measures":[{"name":"amount","sum":"amount"},{"name":"n","count":"*"},{"name":"v","count":"amount"}],
               "dimensions":["currency"],"time":{"column":"at","granularity":"day","time_zone":"Europe/Madrid"},
               "rollups":["month","year","all"]}"#,
        ),
        parse(
            r#"{"table":"","measures":[{"name":"amount","sum":"amount"},{"name":"w","sum":"weight"},{"name":"ids","sum":"id"}],
               "dimensions":["account","currency","settled"],"time":{"column":"at","granularity":"month"},
               "where":"settled = true and (amount > 0 or currency in ('USD'))"}"#,
        ),
        parse(r#"{"table":"","measures":[{"name":"w","sum":"weight"}],"dimensions":["amount"]}"#),
        parse(
            r#"{"table":"","measures":[{"name":"n","count":"*"}],
               "time":{"column":"at","granularity":"PT6H","origin":"2024-01-01T03:00:00Z"}}"#,
        ),
        parse(
            r#"{"table":"","measures":[{"name":"amount","sum":"amount"},{"name":"n","count":"*"},{"name":"v","count":"amount"}],
               "dimensions":["settled"],"time":{"column":"at","granularity":"day","time_zone":"America/St_Johns"},
               "rollups":["month"]}"#,
        ),
    ]
}

pub fn instant(us: i64) -> Option<DateTime<Utc>> {
    Utc.timestamp_micros(us.checked_add(946_684_800_000_000)?).single()
}

pub fn micros(time: &DateTime<impl TimeZone>) -> i64 {
    time.timestamp_micros() - 946_684_800_000_000
}

/// The start of a civil period, by chrono: the period that began last, also where the clock was then set back before its
/// beginning.
pub fn civil_start(us: i64, zone: chrono_tz::Tz, unit: &str) -> i64 {
    let local = instant(us).unwrap().with_timezone(&zone).date_naive();
    let (first, next) = match unit {
        "day" => (local, local + Days::new(1)),
        "month" => {
            let first = local.with_day(1).unwrap();
            (first, first + Months::new(1))
        }
        _ => {
            let first = local.with_ordinal(1).unwrap();
            (first, first + Months::new(12))
        }
    };
    let next = first_instant(next, zone);
    if us >= next { next } else { first_instant(first, zone) }
}

/// The first midnight of a date, or where it has none what comes next.
fn first_instant(date: NaiveDate, zone: chrono_tz::Tz) -> i64 {
    let mut time = date.and_hms_opt(0, 0, 0).unwrap();
    loop {
        if let Some(first) = zone.from_local_datetime(&time).earliest() {
            return micros(&first);
        }
        time += chrono::TimeDelta::minutes(1);
    }
}

pub fn expected<'r>(which: usize, by_history: bool, rows: impl Iterator<Item = &'r Row>) -> Expected {
    let mut groups: BTreeMap<(usize, i64, Vec<u8>), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let special = match row.at {
            None => Some(Bucket::NULL.0),
            Some(i64::MAX) => Some(Bucket::INFINITY.0),
            Some(i64::MIN) => Some(Bucket::NEGATIVE_INFINITY.0),
            Some(_) => None,
        };
        let at = row.at.unwrap_or_default();
        let civil = |zone, unit| special.unwrap_or_else(|| civil_start(at, zone, unit));
        let mut key = Vec::new();
        let mut push = |value: ValueRef<'_>| group_key::push(&mut key, value).unwrap();
        if by_history {
            push(ValueRef::Int(row.history));
        }
        let buckets: Vec<i64> = match which {
            0 => {
                push(ValueRef::Text(&row.currency));
                let madrid = chrono_tz::Europe::Madrid;
                vec![civil(madrid, "day"), civil(madrid, "month"), civil(madrid, "year"), 0]
            }
            1 => {
                // NaN is the largest number.
                let positive = match row.amount {
                    Some(Numeric::Finite { mantissa, .. }) => mantissa > 0,
                    Some(Numeric::NaN | Numeric::PositiveInfinity) => true,
                    Some(Numeric::NegativeInfinity) | None => false,
                };
                if row.settled != Some(true) || !(positive || row.currency == "USD") {
                    continue;
                }
                push(row.account.as_deref().map_or(ValueRef::Null, ValueRef::Text));
                push(ValueRef::Text(&row.currency));
                push(ValueRef::Bool(true));
                vec![civil(chrono_tz::UTC, "month")]
            }
            2 => {
                push(row.amount.map_or(ValueRef::Null, ValueRef::Numeric));
                vec![0]
            }
            3 => {
                let origin = micros(&Utc.with_ymd_and_hms(2024, 1, 1, 3, 0, 0).unwrap());
                vec![special.unwrap_or_else(|| at - (at - origin).rem_euclid(DAY_US / 4))]
            }
            _ => {
                push(row.settled.map_or(ValueRef::Null, ValueRef::Bool));
                let newfoundland = chrono_tz::America::St_Johns;
                vec![civil(newfoundland, "day"), civil(newfoundland, "month")]
            }
        };
        for (level, bucket) in buckets.into_iter().enumerate() {
            groups.entry((level, bucket, key.clone())).or_default().push(row);
        }
    }
    groups.into_iter().map(|(key, rows)| (key, (rows.len() as i64, measures(which, &rows)))).collect()
}

fn measures(which: usize, rows: &[&Row]) -> String {
    let amounts: Vec<Numeric> = rows.iter().filter_map(|row| row.amount).collect();
    match which {
        0 | 4 => format!("{}|{}|{}", sum_of_amounts(&amounts), rows.len(), amounts.len()),
        1 => {
            let ids: i64 = rows.iter().map(|row| row.id).sum();
            format!("{}|{}|{ids}", sum_of_amounts(&amounts), sum_of_weights(rows))
        }
        2 => sum_of_weights(rows),
        _ => format!("{}", rows.len()),
    }
}

fn sum_of_amounts(amounts: &[Numeric]) -> String {
    let mut cents = 0i128;
    let (mut nan, mut above, mut below) = (false, false, false);
    for amount in amounts {
        match *amount {
            Numeric::Finite { mantissa, scale } => cents += mantissa * 10i128.pow(u32::from(SCALE - scale)),
            Numeric::NaN => nan = true,
            Numeric::PositiveInfinity => above = true,
            Numeric::NegativeInfinity => below = true,
        }
    }
    match (amounts.is_empty(), nan || (above && below), above, below) {
        (true, ..) => String::new(),
        (_, true, ..) => "NaN".to_owned(),
        (_, _, true, _) => "Infinity".to_owned(),
        (_, _, _, true) => "-Infinity".to_owned(),
        _ => {
            let (sign, digits) = (if cents < 0 { "-" } else { "" }, cents.unsigned_abs());
            format!("{sign}{}.{:02}", digits / 100, digits % 100)
        }
    }
}

/// Weights are tenths as doubles: their exact sum, rounded once, by another way of adding.
fn sum_of_weights(rows: &[&Row]) -> String {
    let mut weights: Vec<f64> = rows.iter().map(|row| row.weight).collect();
    let special: f64 = weights.iter().filter(|weight| !weight.is_finite()).sum();
    if special != 0.0 {
        return match special {
            f64::INFINITY => "Infinity".to_owned(),
            f64::NEG_INFINITY => "-Infinity".to_owned(),
            _ => "NaN".to_owned(),
        };
    }
    let (mut sum, mut error) = (0f64, 0f64);
    weights.sort_by(|a, b| b.abs().total_cmp(&a.abs()));
    for weight in weights {
        let total = sum + weight;
        error += if sum.abs() >= weight.abs() { (sum - total) + weight } else { (weight - total) + sum };
        sum = total;
    }
    format!("{}", sum + error)
}

/// The same of what the store holds.
pub fn stored(snapshot: &Snapshot, name: &str) -> Result<Expected, ReadError> {
    let aggregate = &snapshot.catalog().aggregates[name];
    let mut cells = Expected::new();
    for level in 0..aggregate.plan.levels.len() {
        snapshot.scan(aggregate, level, Bucket(i64::MIN), Bucket(i64::MAX), |bucket, group, cell: &Cell| {
            let shown: Vec<String> = aggregate
                .plan
                .measures
                .iter()
                .zip(&cell.accumulators)
                .map(|(measure, accumulator)| measure.function.finish(accumulator).to_string())
                .collect();
            cells.insert((level, bucket.0, group.to_vec()), (cell.rows, shown.join("|")));
            ControlFlow::Continue(())
        })?;
    }
    Ok(cells)
}
