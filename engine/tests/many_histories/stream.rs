//! One stream of transactions over very many histories, a few of which are awake at a time. A history rests and wakes again,
//! so that its cells have left the engine's memory meanwhile.

use std::collections::BTreeMap;

use engine::change::{Changes, Lsn, TableId, TableSchema, Transaction};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::model::{Extremes, Row, Rows, TABLE, schema};

/// Where every stream begins.
pub const BEGINNING: Lsn = Lsn(1_000);
/// In one stream, and one engine.
pub const HISTORIES_A_STREAM: usize = 10_000;
/// That change at the same time; the others have not begun, are over, or rest.
const AWAKE: usize = 300;
/// Tables that are truncated now and then, besides the one that never is.
const TRUNCATED_TABLES: usize = 6;
/// Changes of one history: some have the least, few have the most.
const LEAST_CHANGES: usize = 5;
const MOST_CHANGES: usize = 30;
/// Keys of a history are from its number times this, so that a key tells the history.
pub const KEYS: i64 = 64;
/// Twice what a history can add and take away in all, so that no difference leaves 128 bits either.
const LARGEST_GROUP: i128 = 2 * MOST_CHANGES as i128;

pub fn tables() -> Vec<TableSchema> {
    let truncated = (1..=TRUNCATED_TABLES as u32).map(|n| schema(TableId(TABLE.0 + n), &format!("truncated_{n}")));
    std::iter::once(schema(TABLE, "payments")).chain(truncated).collect()
}

pub struct History {
    pub rows: Rows,
    pub changes_left: usize,
}

/// All histories of one stream, and its log.
pub struct Stream {
    rng: ChaCha8Rng,
    pub histories: Vec<History>,
    awake: Vec<usize>,
    /// Not begun or resting, and not over.
    asleep: Vec<usize>,
    pub lsn: u64,
    pub log: Vec<Transaction>,
    pub truncates: usize,
}

impl Stream {
    pub fn new(seed: u64) -> Stream {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let histories = (0..HISTORIES_A_STREAM).map(|number| History::new(&mut rng, number)).collect();
        let asleep = (0..HISTORIES_A_STREAM).collect();
        Stream { rng, histories, awake: Vec::new(), asleep, lsn: BEGINNING.0, log: Vec::new(), truncates: 0 }
    }

    /// Commits a transaction over some histories; `None` where all are over.
    pub fn transaction(&mut self) -> Option<Transaction> {
        let mut changes = Changes::default();
        let most = if self.rng.random_ratio(1, 100) { 300 } else { 12 };
        for _ in 0..self.rng.random_range(1..=most) {
            if self.rng.random_ratio(1, 4_000) {
                self.truncate(&mut changes);
            }
            let Some(place) = self.pick() else { break };
            let history = &mut self.histories[self.awake[place]];
            history.rows.change(&mut self.rng, &mut changes);
            history.changes_left -= 1;
            if history.changes_left == 0 {
                self.awake.swap_remove(place);
            }
        }
        if changes.is_empty() {
            return None;
        }
        self.lsn += self.rng.random_range(1..100);
        let transaction = Transaction { end_lsn: Lsn(self.lsn), commit_time_us: self.lsn as i64, changes };
        self.log.push(transaction.clone());
        Some(transaction)
    }

    /// A place among those that are awake; now and then another history takes it.
    fn pick(&mut self) -> Option<usize> {
        while self.awake.len() < AWAKE && !self.asleep.is_empty() {
            let next = self.rng.random_range(0..self.asleep.len());
            self.awake.push(self.asleep.swap_remove(next));
        }
        let place = self.rng.random_range(0..self.awake.len().max(1));
        if self.rng.random_ratio(1, 60) && !self.asleep.is_empty() {
            let next = self.rng.random_range(0..self.asleep.len());
            std::mem::swap(&mut self.awake[place], &mut self.asleep[next]);
        }
        (!self.awake.is_empty()).then_some(place)
    }

    fn truncate(&mut self, changes: &mut Changes) {
        let table = TableId(TABLE.0 + self.rng.random_range(1..=TRUNCATED_TABLES as u32));
        changes.truncate(table);
        self.truncates += 1;
        self.histories.iter_mut().filter(|history| history.rows.table == table).for_each(|h| h.rows.rows.clear());
    }

    pub fn rows_of(&self, table: TableId) -> impl Iterator<Item = &Row> {
        let histories = self.histories.iter().filter(move |history| history.rows.table == table);
        histories.flat_map(|history| history.rows.rows.values())
    }
}

impl History {
    fn new(rng: &mut ChaCha8Rng, number: usize) -> History {
        let history = number as i64;
        let truncated = rng.random_ratio(1, 5);
        let table = if truncated { TABLE.0 + rng.random_range(1..=TRUNCATED_TABLES as u32) } else { TABLE.0 };
        let rows = Rows {
            table: TableId(table),
            history,
            extremes: Extremes::of_groups_of(LARGEST_GROUP),
            rows: BTreeMap::new(),
            next_id: history * KEYS,
            full_identity: false,
        };
        let more = (0..MOST_CHANGES - LEAST_CHANGES).take_while(|_| rng.random_ratio(6, 7)).count();
        History { rows, changes_left: LEAST_CHANGES + more }
    }
}
