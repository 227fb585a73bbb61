//! The naive model as a source has it: one table in one history, and the log of the transactions that made it.

use std::collections::BTreeMap;

use engine::change::{Changes, Lsn, Transaction};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::model::{Extremes, Row, Rows, TABLE, written};

/// Upstream with one history: the table, and the log.
pub struct Upstream {
    /// As of the end of the log.
    pub table: Rows,
    /// Where the log ends.
    pub lsn: u64,
    pub log: Vec<Transaction>,
}

impl Upstream {
    /// With some rows, which no transaction wrote.
    pub fn new(rng: &mut ChaCha8Rng, rows: usize) -> Upstream {
        let extremes = Extremes::of_groups_of(1 << 16);
        let table =
            Rows { table: TABLE, history: 0, extremes, rows: BTreeMap::new(), next_id: 1, full_identity: false };
        let mut upstream = Upstream { table, lsn: 1_000, log: Vec::new() };
        for _ in 0..rows {
            upstream.table.add_random(rng);
        }
        upstream
    }

    /// Its rows, as a snapshot of it brings them.
    pub fn snapshot<'r>(rows: impl Iterator<Item = &'r Row>) -> Changes {
        let mut changes = Changes::default();
        for row in rows {
            let new = written(&mut changes, row, false);
            changes.insert(TABLE, new);
        }
        changes
    }

    /// Commits a random transaction.
    pub fn transaction(&mut self, rng: &mut ChaCha8Rng) -> Transaction {
        let mut changes = Changes::default();
        if rng.random_ratio(1, 60) {
            self.table.rows.clear();
            changes.truncate(TABLE);
        }
        for _ in 0..rng.random_range(0..8) {
            self.table.change(rng, &mut changes);
        }
        if rng.random_ratio(1, 80) {
            self.table.rows.clear();
            changes.truncate(TABLE);
        }
        self.lsn += rng.random_range(1..100);
        let transaction = Transaction { end_lsn: Lsn(self.lsn), commit_time_us: self.lsn as i64, changes };
        self.log.push(transaction.clone());
        transaction
    }
}
