//! A table that is forever written and never grows. For every payment that is inserted the one a window older is deleted, others move to
//! another time, account and kind. Event time follows the number of the payment, so that a year passes within the run and the
//! buckets of an aggregate come, fill, empty and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::{NaiveDate, TimeDelta};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_postgres::{Client, Statement, Transaction};

use crate::sql;

/// Accounts that payments are of.
pub const ACCOUNTS: i64 = 1_000;
/// What payments are.
pub const KINDS: [&str; 5] = ["card", "transfer", "debit", "cash", "fee"];

const DAY_US: i64 = 86_400_000_000;
/// Event time that passes within the run.
const YEAR_DAYS: i64 = 365;
/// Event time that the table holds.
const WINDOW_DAYS: i64 = 60;
/// When event time begins.
const BEGIN: NaiveDate = match NaiveDate::from_ymd_opt(2024, 1, 1) {
    Some(day) => day,
    None => NaiveDate::MIN,
};

const WRITERS: u64 = 4;
/// Payments inserted by one transaction, at most and on average.
const BLOCK: (i64, u64) = (19, 10);
/// Payments that move in one transaction.
const MOVED: i64 = 5;
/// They move by so many hours at most.
const MOVED_HOURS: i32 = 20 * 24;

/// The table, and how far it is.
#[derive(Debug)]
pub struct Turnover {
    /// Number of the next payment.
    next: AtomicI64,
    /// Payments that the table holds.
    window: i64,
    /// Event time between two payments.
    step_us: i64,
    /// Rows inserted, moved and deleted.
    changes: AtomicU64,
    transactions: AtomicU64,
}

impl Turnover {
    /// Creates the table with a window of payments; so many a second will come, for so long.
    pub async fn create(client: &Client, rate: u64, duration: Duration) -> anyhow::Result<Arc<Self>> {
        sql::run(
            client,
            "CREATE TABLE payments (id bigint PRIMARY KEY, account int NOT NULL, kind text NOT NULL,
                 amount numeric(14,2) NOT NULL, weight float8 NOT NULL, created_at timestamptz NOT NULL)",
        )
        .await?;
        let payments = i64::try_from(rate * duration.as_secs())?;
        let window = payments * WINDOW_DAYS / YEAR_DAYS;
        let step_us = YEAR_DAYS * DAY_US / payments;
        let turnover = Turnover {
            next: AtomicI64::new(window),
            window,
            step_us,
            changes: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
        };
        let statements = Statements::prepare(client, &turnover).await?;
        client.execute(&statements.insert, &[&0_i64, &(window - 1)]).await?;
        sql::run(client, "ANALYZE payments").await?;
        Ok(Arc::new(turnover))
    }

    /// Payments that the table holds, about.
    pub fn window(&self) -> i64 {
        self.window
    }

    /// Days of event time that passed.
    pub fn days(&self) -> i64 {
        (self.next.load(Ordering::Relaxed) - self.window) * self.step_us / DAY_US
    }

    /// The day of the newest payments.
    pub fn today(&self) -> NaiveDate {
        let days = self.next.load(Ordering::Relaxed) * self.step_us / DAY_US;
        BEGIN.checked_add_signed(TimeDelta::days(days)).unwrap_or(BEGIN)
    }

    /// A day of which the table holds payments.
    pub fn some_day(&self, rng: &mut ChaCha8Rng) -> NaiveDate {
        let back = TimeDelta::days(rng.random_range(3..WINDOW_DAYS - 3));
        self.today().checked_sub_signed(back).unwrap_or(BEGIN)
    }

    /// Rows changed so far.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }
}

struct Statements {
    insert: Statement,
    move_away: Statement,
    delete: Statement,
}

impl Statements {
    async fn prepare(client: &Client, turnover: &Turnover) -> anyhow::Result<Self> {
        let kinds = KINDS.map(|kind| format!("'{kind}'")).join(",");
        let count = KINDS.len();
        let step_us = turnover.step_us;
        // Payments come up to two days late. Weights are multiples of a power of two: Postgres adds those up exactly, in any order.
        let insert = format!(
            "INSERT INTO payments
             SELECT i, i * 7919 % {ACCOUNTS}, (ARRAY[{kinds}])[1 + i % {count}], (i * 104729 % 1000000) / 100.0,
                 (i * 31 % 65536) / 1024.0::float8,
                 timestamptz '{BEGIN} 00:00:00Z' + i * {step_us} * interval '1 microsecond' - i * 7919 % 172800 * interval '1 second'
             FROM generate_series($1::bigint, $2::bigint) AS i"
        );
        let move_away = format!(
            "UPDATE payments SET account = (account * 31 + 7) % {ACCOUNTS}, kind = (ARRAY[{kinds}])[1 + (id + abs($2::int)) % {count}],
                 amount = amount + 1.01, weight = weight + 0.25, created_at = created_at + make_interval(hours => $2::int)
             WHERE id = ANY($1::bigint[])"
        );
        let delete = "DELETE FROM payments WHERE id BETWEEN $1::bigint AND $2::bigint";
        Ok(Statements {
            insert: client.prepare(&insert).await.context(insert)?,
            move_away: client.prepare(&move_away).await.context(move_away)?,
            delete: client.prepare(delete).await?,
        })
    }
}

/// Writers that go on.
#[derive(Debug)]
pub struct Writers {
    turnover: Arc<Turnover>,
    started: Instant,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Writers {
    /// So many payments inserted per second.
    pub async fn start(url: &str, turnover: &Arc<Turnover>, rate: u64, seed: u64) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let period = Duration::from_secs(WRITERS * BLOCK.1).div_f64(rate as f64);
        let mut tasks = Vec::new();
        for number in 0..WRITERS {
            let client = sql::connect(url).await?;
            let writer = Writer {
                statements: Statements::prepare(&client, turnover).await?,
                client,
                turnover: Arc::clone(turnover),
                rng: ChaCha8Rng::seed_from_u64(seed ^ (number << 32)),
                number: number as i64,
            };
            tasks.push(tokio::spawn(writer.write(period, Arc::clone(&stop))));
        }
        Ok(Writers { turnover: Arc::clone(turnover), started: Instant::now(), stop, tasks })
    }

    /// One of them has failed.
    pub fn any_ended(&self) -> bool {
        self.tasks.iter().any(JoinHandle::is_finished)
    }

    /// Ends them; payments, changed rows and transactions per second that there were.
    pub async fn end(self) -> anyhow::Result<(f64, f64, f64)> {
        let seconds = self.started.elapsed().as_secs_f64();
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        let payments = self.turnover.next.load(Ordering::Relaxed) - self.turnover.window;
        let transactions = self.turnover.transactions.load(Ordering::Relaxed);
        Ok((payments as f64 / seconds, self.turnover.changes() as f64 / seconds, transactions as f64 / seconds))
    }
}

struct Writer {
    client: Client,
    statements: Statements,
    turnover: Arc<Turnover>,
    rng: ChaCha8Rng,
    number: i64,
}

impl Writer {
    async fn write(mut self, period: Duration, stop: Arc<AtomicBool>) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        while !stop.load(Ordering::Relaxed) {
            ticks.tick().await;
            let count = self.rng.random_range(1..=BLOCK.0);
            let first = self.turnover.next.fetch_add(count, Ordering::Relaxed);
            let block = (first, first + count - 1);
            if self.rng.random_ratio(1, 10) {
                self.all_at_once(block).await?;
            } else {
                self.one_by_one(block).await?;
            }
            if self.rng.random_ratio(1, 50) {
                self.in_vain().await?;
            }
        }
        Ok(())
    }

    async fn one_by_one(&mut self, block: (i64, i64)) -> anyhow::Result<()> {
        let (ids, hours) = self.choose_moved();
        let transaction = self.client.transaction().await?;
        let inserted = insert(&transaction, &self.statements, block).await?;
        transaction.commit().await?;
        let transaction = self.client.transaction().await?;
        let moved = transaction.execute(&self.statements.move_away, &[&ids, &hours]).await?;
        transaction.commit().await?;
        let transaction = self.client.transaction().await?;
        let deleted = delete_old(&transaction, &self.statements, block, self.turnover.window).await?;
        transaction.commit().await?;
        self.done(3, inserted + moved + deleted);
        Ok(())
    }

    async fn all_at_once(&mut self, block: (i64, i64)) -> anyhow::Result<()> {
        let (ids, hours) = self.choose_moved();
        let transaction = self.client.transaction().await?;
        let mut changes = insert(&transaction, &self.statements, block).await?;
        changes += transaction.execute(&self.statements.move_away, &[&ids, &hours]).await?;
        changes += delete_old(&transaction, &self.statements, block, self.turnover.window).await?;
        transaction.commit().await?;
        self.done(1, changes);
        Ok(())
    }

    /// Rolled back.
    async fn in_vain(&mut self) -> anyhow::Result<()> {
        let (ids, hours) = self.choose_moved();
        let transaction = self.client.transaction().await?;
        transaction.execute(&self.statements.move_away, &[&ids, &hours]).await?;
        Ok(transaction.rollback().await?)
    }

    /// Payments to move, and by how many hours. Each writer has its own, neither the newest nor the oldest: nobody waits for another's
    /// locks.
    fn choose_moved(&mut self) -> (Vec<i64>, i32) {
        let next = self.turnover.next.load(Ordering::Relaxed);
        let (from, to) = (next - self.turnover.window * 9 / 10, next - self.turnover.window / 10);
        let writers = WRITERS as i64;
        let ids = (0..MOVED).map(|_| self.rng.random_range(from..to) / writers * writers + self.number).collect();
        (ids, self.rng.random_range(-MOVED_HOURS..=MOVED_HOURS))
    }

    fn done(&self, transactions: u64, changes: u64) {
        self.turnover.transactions.fetch_add(transactions, Ordering::Relaxed);
        self.turnover.changes.fetch_add(changes, Ordering::Relaxed);
    }
}

async fn insert(transaction: &Transaction<'_>, statements: &Statements, block: (i64, i64)) -> anyhow::Result<u64> {
    Ok(transaction.execute(&statements.insert, &[&block.0, &block.1]).await?)
}

async fn delete_old(
    transaction: &Transaction<'_>,
    statements: &Statements,
    block: (i64, i64),
    window: i64,
) -> anyhow::Result<u64> {
    Ok(transaction.execute(&statements.delete, &[&(block.0 - window), &(block.1 - window)]).await?)
}
