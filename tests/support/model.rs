//! A table in memory with its log, and what aggregates over it should hold, recomputed from scratch: the naive model that histories
//! in one process are compared with. Nothing in it is shared with the engine but the encoding of group keys.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use chrono::{DateTime, Datelike, TimeZone, Utc};
use engine::Snapshot;
use engine::aggregate::Cell;
use engine::change::event::{OldRow, TooLarge};
use engine::change::{
    Changes, Column, ColumnType, Lsn, Numeric, RowWriter, TableId, TableSchema, Transaction, ValueRef,
};
use engine::materialization::{Bucket, Definition, group_key};
use engine::snapshot::ReadError;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

pub const TABLE: TableId = TableId(4242);
pub const DAY_US: i64 = 86_400_000_000;

#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub id: i64,
    account: Option<String>,
    currency: String,
    /// Cents; `None` is NULL, `Some(None)` is NaN.
    amount: Option<Option<i64>>,
    weight: f64,
    at: Option<i64>,
    settled: Option<bool>,
    note: String,
}

pub fn schema() -> TableSchema {
    let column = |name: &str, column_type| Column { name: name.to_owned(), column_type };
    TableSchema {
        id: TABLE,
        namespace: "public".to_owned(),
        name: "payments".to_owned(),
        columns: vec![
            column("id", ColumnType::Int8),
            column("account", ColumnType::Text),
            column("currency", ColumnType::Char),
            column("amount", ColumnType::Numeric { scale: Some(2) }),
            column("weight", ColumnType::Float8),
            column("at", ColumnType::TimestampTz),
            column("settled", ColumnType::Bool),
            column("note", ColumnType::Text),
        ],
        primary_key: vec![0],
        keeps_row_image: true,
    }
}

impl Row {
    pub fn random(rng: &mut ChaCha8Rng, id: i64) -> Row {
        let at = match rng.random_range(0..20) {
            0 => None,
            1 => Some(i64::MAX),
            2 => Some(i64::MIN),
            3 => Some(-150_000 * DAY_US),
            // A winter's day: chrono knows no summer time that far ahead.
            4 => Some(engine::materialization::bucket::days_from_civil(200_000, 1, 15) * DAY_US),
            _ => Some(rng.random_range(9_000..9_500) * DAY_US + rng.random_range(0..DAY_US)),
        };
        Row {
            id,
            account: ["a", "b", "", "\0x", "ES91"]
                .choose(rng)
                .map(|v| (*v).to_owned())
                .filter(|_| rng.random_ratio(9, 10)),
            currency: ["EUR", "USD", "JPY"].choose(rng).unwrap().to_string(),
            amount: match rng.random_range(0..12) {
                0 => None,
                1 => Some(None),
                _ => Some(Some(rng.random_range(-100_000..100_000))),
            },
            weight: f64::from(rng.random_range(-1_000i32..1_000)) * 0.1,
            at,
            settled: [None, Some(true), Some(true), Some(false)].choose(rng).copied().unwrap(),
            note: "n".repeat(rng.random_range(0..40)),
        }
    }

    pub fn write(&self, buffer: &mut Vec<u8>, note_unchanged: bool) -> Result<(), TooLarge> {
        let mut row = RowWriter::new(buffer);
        row.push(ValueRef::Int(self.id));
        row.push(self.account.as_deref().map_or(ValueRef::Null, ValueRef::Text));
        row.push(ValueRef::Text(&self.currency));
        row.push(match self.amount {
            None => ValueRef::Null,
            Some(None) => ValueRef::Numeric(Numeric::NaN),
            Some(Some(cents)) => ValueRef::Numeric(Numeric::Finite { mantissa: i128::from(cents), scale: 2 }),
        });
        row.push(ValueRef::Float(self.weight));
        row.push(self.at.map_or(ValueRef::Null, ValueRef::Timestamp));
        row.push(self.settled.map_or(ValueRef::Null, ValueRef::Bool));
        row.push(if note_unchanged { ValueRef::Unchanged } else { ValueRef::Text(&self.note) });
        Ok(())
    }

    pub fn write_key(id: i64, buffer: &mut Vec<u8>) -> Result<(), TooLarge> {
        let mut row = RowWriter::new(buffer);
        row.push(ValueRef::Int(id));
        (0..7).for_each(|_| row.push(ValueRef::Null));
        Ok(())
    }
}

/// Upstream: the table, and the log.
pub struct Upstream {
    /// As of the end of the log.
    pub rows: BTreeMap<i64, Row>,
    /// Where the log ends.
    pub lsn: u64,
    pub next_id: i64,
    pub log: Vec<Transaction>,
}

impl Upstream {
    /// With some rows, which no transaction wrote.
    pub fn new(rng: &mut ChaCha8Rng, rows: usize) -> Upstream {
        let mut upstream = Upstream { rows: BTreeMap::new(), lsn: 1_000, next_id: 1, log: Vec::new() };
        for _ in 0..rows {
            let row = Row::random(rng, upstream.next_id);
            upstream.next_id += 1;
            upstream.rows.insert(row.id, row);
        }
        upstream
    }

    /// Its rows, as a snapshot of it brings them.
    pub fn snapshot<'r>(rows: impl Iterator<Item = &'r Row>) -> Changes {
        let mut changes = Changes::default();
        for row in rows {
            let written = changes.write_row::<TooLarge>(|b| row.write(b, false)).unwrap();
            changes.insert(TABLE, written);
        }
        changes
    }

    /// Commits a random transaction.
    pub fn transaction(&mut self, rng: &mut ChaCha8Rng) -> Transaction {
        let mut changes = Changes::default();
        if rng.random_ratio(1, 60) {
            self.rows.clear();
            changes.truncate(TABLE);
        }
        for _ in 0..rng.random_range(0..8) {
            self.change(rng, &mut changes);
        }
        if rng.random_ratio(1, 80) {
            self.rows.clear();
            changes.truncate(TABLE);
        }
        self.lsn += rng.random_range(1..100);
        let transaction = Transaction { end_lsn: Lsn(self.lsn), commit_time_us: self.lsn as i64, changes };
        self.log.push(transaction.clone());
        transaction
    }

    fn change(&mut self, rng: &mut ChaCha8Rng, changes: &mut Changes) {
        let ids: Vec<i64> = self.rows.keys().copied().collect();
        let existing = ids.choose(rng).copied();
        match (rng.random_range(0..10), existing) {
            (0..=4, _) | (_, None) => {
                let row = Row::random(rng, self.next_id);
                self.next_id += 1;
                let new = changes.write_row::<TooLarge>(|b| row.write(b, false)).unwrap();
                changes.insert(TABLE, new);
                self.rows.insert(row.id, row);
            }
            (5..=6, Some(id)) => {
                let keep = rng.random_bool(0.5);
                let mut row = Row::random(rng, id);
                if keep {
                    row.note = self.rows[&id].note.clone();
                }
                let full = rng.random_ratio(1, 3).then(|| self.rows[&id].clone());
                let old = full.map_or(OldRow::Absent, |old| {
                    OldRow::Full(changes.write_row::<TooLarge>(|b| old.write(b, false)).unwrap())
                });
                let new = changes.write_row::<TooLarge>(|b| row.write(b, keep)).unwrap();
                changes.update(TABLE, old, new);
                self.rows.insert(id, row);
            }
            (7, Some(id)) => {
                let keep = rng.random_bool(0.5);
                let mut row = Row::random(rng, self.next_id);
                self.next_id += 1;
                if keep {
                    row.note = self.rows[&id].note.clone();
                }
                let old = changes.write_row::<TooLarge>(|b| Row::write_key(id, b)).unwrap();
                let new = changes.write_row::<TooLarge>(|b| row.write(b, keep)).unwrap();
                changes.update(TABLE, OldRow::Key(old), new);
                self.rows.remove(&id);
                self.rows.insert(row.id, row);
            }
            (_, Some(id)) => {
                let old = changes.write_row::<TooLarge>(|b| Row::write_key(id, b)).unwrap();
                changes.delete(TABLE, OldRow::Key(old));
                self.rows.remove(&id);
            }
        }
    }
}

/// What an aggregate should hold, from scratch.
pub type Expected = BTreeMap<(usize, i64, Vec<u8>), (i64, String)>;

pub fn definitions() -> Vec<Definition> {
    let parse = |json: &str| serde_json::from_str(json).unwrap();
    vec![
        parse(
            r#"{"table":"payments","measures":[{"name":"amount","sum":"amount"},{"name":"n","count":"*"},{"name":"v","count":"amount"}],
               "dimensions":["currency"],"time":{"column":"at","granularity":"day","time_zone":"Europe/Madrid"},
               "rollups":["month","year","all"]}"#,
        ),
        parse(
            r#"{"table":"payments","measures":[{"name":"amount","sum":"amount"},{"name":"w","sum":"weight"},{"name":"ids","sum":"id"}],
               "dimensions":["account","currency","settled"],"time":{"column":"at","granularity":"month"},
               "where":"settled = true and (amount > 0 or currency in ('USD'))"}"#,
        ),
        parse(r#"{"table":"payments","measures":[{"name":"w","sum":"weight"}],"dimensions":["amount"]}"#),
        parse(
            r#"{"table":"payments","measures":[{"name":"n","count":"*"}],
               "time":{"column":"at","granularity":"PT6H","origin":"2024-01-01T03:00:00Z"}}"#,
        ),
    ]
}

pub fn instant(us: i64) -> Option<DateTime<Utc>> {
    Utc.timestamp_micros(us.checked_add(946_684_800_000_000)?).single()
}

pub fn micros(time: &DateTime<impl TimeZone>) -> i64 {
    time.timestamp_micros() - 946_684_800_000_000
}

/// The start of a civil period, by chrono.
pub fn civil_start(us: i64, zone: chrono_tz::Tz, unit: &str) -> i64 {
    let local = instant(us).unwrap().with_timezone(&zone).date_naive();
    let first = match unit {
        "day" => local,
        "month" => local.with_day(1).unwrap(),
        _ => local.with_ordinal(1).unwrap(),
    };
    micros(&zone.from_local_datetime(&first.and_hms_opt(0, 0, 0).unwrap()).earliest().unwrap())
}

pub fn expected(which: usize, rows: &BTreeMap<i64, Row>) -> Expected {
    let mut groups: BTreeMap<(usize, i64, Vec<u8>), Vec<&Row>> = BTreeMap::new();
    for row in rows.values() {
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
        let amount = match row.amount {
            None => ValueRef::Null,
            Some(None) => ValueRef::Numeric(Numeric::NaN),
            Some(Some(cents)) => ValueRef::Numeric(Numeric::Finite { mantissa: i128::from(cents), scale: 2 }),
        };
        let buckets: Vec<i64> = match which {
            0 => {
                push(ValueRef::Text(&row.currency));
                let madrid = chrono_tz::Europe::Madrid;
                vec![civil(madrid, "day"), civil(madrid, "month"), civil(madrid, "year"), 0]
            }
            1 => {
                let positive = row.amount.is_some_and(|amount| amount.is_none_or(|cents| cents > 0));
                if row.settled != Some(true) || !(positive || row.currency == "USD") {
                    continue;
                }
                push(row.account.as_deref().map_or(ValueRef::Null, ValueRef::Text));
                push(ValueRef::Text(&row.currency));
                push(ValueRef::Bool(true));
                vec![civil(chrono_tz::UTC, "month")]
            }
            2 => {
                push(amount);
                vec![0]
            }
            _ => {
                let origin = micros(&Utc.with_ymd_and_hms(2024, 1, 1, 3, 0, 0).unwrap());
                vec![special.unwrap_or_else(|| at - (at - origin).rem_euclid(DAY_US / 4))]
            }
        };
        for (level, bucket) in buckets.into_iter().enumerate() {
            groups.entry((level, bucket, key.clone())).or_default().push(row);
        }
    }
    groups.into_iter().map(|(key, rows)| (key, (rows.len() as i64, measures(which, &rows)))).collect()
}

pub fn measures(which: usize, rows: &[&Row]) -> String {
    let amounts: Vec<Option<i64>> = rows.iter().filter_map(|row| row.amount).collect();
    let amount = if amounts.is_empty() {
        String::new()
    } else if amounts.contains(&None) {
        "NaN".to_owned()
    } else {
        let cents: i64 = amounts.iter().flatten().sum();
        format!("{}{}.{:02}", if cents < 0 { "-" } else { "" }, cents.abs() / 100, cents.abs() % 100)
    };
    // Weights are tenths as doubles: their exact sum, rounded once, by another way of adding.
    let weight = || {
        let (mut sum, mut error) = (0f64, 0f64);
        let mut weights: Vec<f64> = rows.iter().map(|row| row.weight).collect();
        weights.sort_by(|a, b| b.abs().total_cmp(&a.abs()));
        for weight in weights {
            let total = sum + weight;
            error += if sum.abs() >= weight.abs() { (sum - total) + weight } else { (weight - total) + sum };
            sum = total;
        }
        sum + error
    };
    match which {
        0 => format!("{amount}|{}|{}", rows.len(), amounts.len()),
        1 => format!("{amount}|{}|{}", weight(), rows.iter().map(|row| row.id).sum::<i64>()),
        2 => format!("{}", weight()),
        _ => format!("{}", rows.len()),
    }
}

/// What an aggregate does hold.
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
