//! Rows in memory and their changes, and what aggregates over them should hold, recomputed from scratch: the naive model that
//! histories in one process are compared with. Nothing in it is shared with the engine but the encoding of group keys.
//!
//! Every row says which history it belongs to, in a column of its own: many can share one table and one stream, and stay apart
//! in aggregates that have that column as a dimension.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use engine::change::event::{OldRow, TooLarge, WrittenRow};
use engine::change::{Changes, Column, ColumnType, Numeric, RowWriter, TableId, TableSchema, ValueRef};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use expected::micros;

#[path = "expected.rs"]
pub mod expected;

pub const TABLE: TableId = TableId(4242);
pub const DAY_US: i64 = 86_400_000_000;

/// Amounts are in cents.
const SCALE: u16 = 2;
/// Where clocks are changed, and where months and years begin in Madrid and in Newfoundland, whose clocks were changed at a
/// minute past midnight: the last day of summer time has two midnights, and ends an hour after the first of them.
static EDGES: LazyLock<Vec<i64>> = LazyLock::new(|| {
    [
        "2024-03-31T01:00:00Z",
        "2024-10-27T01:00:00Z",
        "2024-10-26T22:00:00Z",
        "2024-10-27T23:00:00Z",
        "2023-12-31T23:00:00Z",
        "2024-03-31T22:00:00Z",
        "2006-04-02T03:31:00Z",
        "2006-10-29T02:31:00Z",
        "2006-10-29T02:30:00Z",
        "2006-10-29T03:30:00Z",
        "2024-01-01T03:30:00Z",
    ]
    .map(|text| micros(&text.parse::<DateTime<Utc>>().unwrap()))
    .to_vec()
});
/// The first and the last of the years BC that Postgres has.
const BEFORE_CHRIST: std::ops::Range<i64> = -211_813_488_000_000_000..-63_145_526_400_000_000;

#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub id: i64,
    history: i64,
    account: Option<String>,
    currency: String,
    amount: Option<Numeric>,
    weight: f64,
    at: Option<i64>,
    settled: Option<bool>,
    note: String,
}

pub fn schema(table: TableId, name: &str) -> TableSchema {
    let column = |name: &str, column_type| Column { name: name.to_owned(), column_type };
    TableSchema {
        id: table,
        namespace: "public".to_owned(),
        name: name.to_owned(),
        columns: vec![
            column("id", ColumnType::Int8),
            column("history", ColumnType::Int8),
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

/// How far amounts go: with so many rows in a group, no sum may leave 128 bits.
#[derive(Clone, Copy, Debug)]
pub struct Extremes {
    /// The largest amount, in cents.
    pub cents: i128,
}

impl Extremes {
    pub fn of_groups_of(rows: i128) -> Extremes {
        Extremes { cents: i128::MAX / rows }
    }

    fn amount(self, rng: &mut ChaCha8Rng) -> Option<Numeric> {
        let finite = |mantissa| Some(Numeric::Finite { mantissa, scale: SCALE });
        match rng.random_range(0..24) {
            0..=1 => None,
            2 => Some(Numeric::NaN),
            3 => [Numeric::PositiveInfinity, Numeric::NegativeInfinity].choose(rng).copied(),
            4 => finite(self.cents - i128::from(rng.random_range(0..3))),
            5 => finite(-self.cents + i128::from(rng.random_range(0..3))),
            // The same number at another scale is the same group.
            6 => Some(Numeric::Finite {
                mantissa: i128::from(rng.random_range(-9..9)),
                scale: rng.random_range(0..=SCALE),
            }),
            _ => finite(i128::from(rng.random_range(-100_000..100_000))),
        }
    }
}

fn random_instant(rng: &mut ChaCha8Rng) -> Option<i64> {
    match rng.random_range(0..24) {
        0 => None,
        1 => Some(i64::MAX),
        2 => Some(i64::MIN),
        3 => Some(-150_000 * DAY_US),
        // A winter's day: chrono knows no summer time that far ahead.
        4 => Some(engine::materialization::bucket::days_from_civil(200_000, 1, 15) * DAY_US),
        5 => Some(rng.random_range(BEFORE_CHRIST)),
        6..=10 => {
            let beside = [0, -1, 1, 60_000_000, -60_000_000, 1_800_000_000, -3_600_000_000, 3_599_999_999];
            Some(EDGES.choose(rng).unwrap() + beside.choose(rng).unwrap())
        }
        _ => Some(rng.random_range(9_000..9_500) * DAY_US + rng.random_range(0..DAY_US)),
    }
}

impl Row {
    fn random(rng: &mut ChaCha8Rng, id: i64, history: i64, extremes: Extremes) -> Row {
        Row {
            id,
            history,
            account: ["a", "b", "", "\0x", "ES91"]
                .choose(rng)
                .map(|v| (*v).to_owned())
                .filter(|_| rng.random_ratio(9, 10)),
            currency: ["EUR", "USD", "JPY"].choose(rng).unwrap().to_string(),
            amount: extremes.amount(rng),
            weight: match rng.random_range(0..50) {
                0 => *[f64::NAN, f64::INFINITY, f64::NEG_INFINITY].choose(rng).unwrap(),
                _ => f64::from(rng.random_range(-1_000i32..1_000)) * 0.1,
            },
            at: random_instant(rng),
            settled: [None, Some(true), Some(true), Some(false)].choose(rng).copied().unwrap(),
            note: "n".repeat(rng.random_range(0..40)),
        }
    }

    fn write(&self, buffer: &mut Vec<u8>, unchanged: bool) -> Result<(), TooLarge> {
        let mut row = RowWriter::new(buffer);
        row.push(ValueRef::Int(self.id));
        row.push(ValueRef::Int(self.history));
        row.push(match &self.account {
            Some(_) if unchanged => ValueRef::Unchanged,
            account => account.as_deref().map_or(ValueRef::Null, ValueRef::Text),
        });
        row.push(ValueRef::Text(&self.currency));
        row.push(self.amount.map_or(ValueRef::Null, ValueRef::Numeric));
        row.push(ValueRef::Float(self.weight));
        row.push(self.at.map_or(ValueRef::Null, ValueRef::Timestamp));
        row.push(self.settled.map_or(ValueRef::Null, ValueRef::Bool));
        row.push(if unchanged { ValueRef::Unchanged } else { ValueRef::Text(&self.note) });
        Ok(())
    }

    fn write_key(id: i64, buffer: &mut Vec<u8>) -> Result<(), TooLarge> {
        let mut row = RowWriter::new(buffer);
        row.push(ValueRef::Int(id));
        (0..8).for_each(|_| row.push(ValueRef::Null));
        Ok(())
    }

    /// The values that an update may leave as they are, where they are too large to be sent again.
    fn keep_large_values_of(&mut self, old: &Row) {
        self.account.clone_from(&old.account);
        self.note.clone_from(&old.note);
    }
}

/// The rows of one history, and where they are.
pub struct Rows {
    pub table: TableId,
    pub history: i64,
    pub extremes: Extremes,
    pub rows: BTreeMap<i64, Row>,
    pub next_id: i64,
    /// Updates and deletes bring the whole old row, as with `REPLICA IDENTITY FULL`.
    pub full_identity: bool,
}

impl Rows {
    pub fn add_random(&mut self, rng: &mut ChaCha8Rng) -> Row {
        let row = Row::random(rng, self.next_id, self.history, self.extremes);
        self.next_id += 1;
        self.rows.insert(row.id, row.clone());
        row
    }

    /// One change, done and told.
    pub fn change(&mut self, rng: &mut ChaCha8Rng, changes: &mut Changes) {
        let place = rng.random_range(0..self.rows.len().max(1));
        let existing = self.rows.values().nth(place).cloned();
        match (rng.random_range(0..20), existing) {
            (0..=8, _) | (_, None) => {
                let row = self.add_random(rng);
                let new = written(changes, &row, false);
                changes.insert(self.table, new);
            }
            (9, Some(before)) if !self.full_identity => {
                let id = if rng.random_bool(0.5) { before.id } else { self.next_id };
                let row = self.put_random(rng, id);
                let new = written(changes, &row, false);
                changes.upsert(self.table, new);
            }
            (9..=13, Some(before)) => self.update(rng, changes, &before, before.id),
            (14..=15, Some(before)) => self.update(rng, changes, &before, self.next_id),
            (_, Some(before)) => {
                let old = if self.full_identity || rng.random_ratio(1, 3) {
                    OldRow::Full(written(changes, &before, false))
                } else {
                    OldRow::Key(changes.write_row::<TooLarge>(|b| Row::write_key(before.id, b)).unwrap())
                };
                changes.delete(self.table, old);
                self.rows.remove(&before.id);
            }
        }
    }

    fn put_random(&mut self, rng: &mut ChaCha8Rng, id: i64) -> Row {
        let row = Row::random(rng, id, self.history, self.extremes);
        self.next_id = self.next_id.max(id + 1);
        self.rows.insert(id, row.clone());
        row
    }

    /// Old values are told where the key changes, else sometimes.
    fn update(&mut self, rng: &mut ChaCha8Rng, changes: &mut Changes, before: &Row, id: i64) {
        self.rows.remove(&before.id);
        let mut after = self.put_random(rng, id);
        let unchanged = rng.random_bool(0.5);
        if unchanged {
            after.keep_large_values_of(before);
            self.rows.insert(id, after.clone());
        }
        let old = if self.full_identity || rng.random_ratio(1, 3) {
            OldRow::Full(written(changes, before, false))
        } else if id == before.id {
            OldRow::Absent
        } else {
            OldRow::Key(changes.write_row::<TooLarge>(|b| Row::write_key(before.id, b)).unwrap())
        };
        let new = written(changes, &after, unchanged);
        changes.update(self.table, old, new);
    }
}

pub fn written(changes: &mut Changes, row: &Row, unchanged: bool) -> WrittenRow {
    changes.write_row::<TooLarge>(|b| row.write(b, unchanged)).unwrap()
}
