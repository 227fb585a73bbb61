//! Made-up payments, for trying things out and for load: the same seed makes the same snapshot, the same transactions at
//! the same positions, on every machine.
//!
//! The surprise: nothing is stored to resume. The generator makes everything again from the start and sends only what
//! lies after the resume point; a million transactions take less than a second.

use std::time::Duration;

use engine::change::event::{OldRow, TooLarge};
use engine::change::{
    Changes, Column, ColumnType, Lsn, Numeric, RowWriter, TableId, TableSchema, Transaction, ValueRef,
};
use engine::source::{ResumePoint, SourceContext, SourceEvent, SourceIdentity, SourceState, SourceStatus};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::acknowledge::note_durable;

const SNAPSHOT_BATCH: u64 = 5_000;

/// Position of the snapshot; transaction `n` (from 1) ends at `SNAPSHOT_LSN + n * LSN_STEP`.
const SNAPSHOT_LSN: u64 = 0x100_0000;
const LSN_STEP: u64 = 0x100;

/// 2025-01-01 in microseconds since 2000: the first payment.
const FIRST_PAYMENT_US: i64 = 9_132 * DAY_US;
const DAY_US: i64 = 86_400_000_000;

/// Time between two payments: about three years for a million.
const PAYMENT_GAP_US: i64 = 95_000_000;

/// Settings of the generator.
#[derive(Clone, Debug)]
pub struct GeneratorConfig {
    /// Makes the payments; the identity of this source.
    pub seed: u64,
    /// Payments that exist before the first transaction.
    pub snapshot_rows: u64,
    /// Transactions per second; 0 for as fast as they are taken.
    pub transactions_per_second: u32,
    /// Transactions to make; `None` for no end. After the last one the source stays connected and silent.
    pub transactions: Option<u64>,
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        GeneratorConfig { seed: 1, snapshot_rows: 10_000, transactions_per_second: 100, transactions: None }
    }
}

/// Runs until the channel closes.
pub async fn run(config: GeneratorConfig, context: SourceContext) {
    let SourceContext { resume, events, mut durable, status, commands } = context;
    // Nothing listens: who asks is told so at once.
    drop(commands);
    let identity = SourceIdentity {
        connector: "generator".to_owned(),
        // The snapshot is part of what the seed makes: another size is another history.
        system: format!("{}/{}", config.seed, config.snapshot_rows),
        ..SourceIdentity::default()
    };
    let tables = vec![schema()];
    let resume_at = match resume {
        ResumePoint::Fresh => None,
        ResumePoint::Resume { lsn, identity: stored, tables: stored_tables, .. } => {
            if stored != identity || !stored_tables.iter().map(|table| &table.schema).eq(&tables) {
                return halt(&status, &stored, &identity);
            }
            Some(lsn)
        }
    };
    let watched = events.clone();
    let produce = async {
        events.send(SourceEvent::Tables { identity, tables }).await.ok()?;
        let mut payments = Payments::new(config.seed);
        snapshot(&config, &mut payments, resume_at.is_none(), &events, &status).await?;
        let last = config.transactions.map(|count| SNAPSHOT_LSN + count.saturating_mul(LSN_STEP));
        status.send_modify(|status| {
            status.state = SourceState::Live;
            status.upstream_lsn_at_start = Some(resume_at.unwrap_or(Lsn(SNAPSHOT_LSN)));
            status.upstream_lsn = last.map_or(status.upstream_lsn, Lsn);
        });
        stream(&config, payments, resume_at.unwrap_or_default(), &events, &status).await
    };
    tokio::select! {
        () = watched.closed() => {}
        Some(()) = produce => {}
        () = note_durable(&mut durable, &status) => {}
    }
}

fn halt(status: &watch::Sender<SourceStatus>, stored: &SourceIdentity, configured: &SourceIdentity) {
    status.send_modify(|status| {
        status.state = SourceState::Halted {
            code: "source_changed".to_owned(),
            message: format!(
                "the data directory belongs to the {} source {}, the configuration makes seed/rows {}",
                stored.connector, stored.system, configured.system
            ),
            remedy:
                "restore the configuration, or start over with an empty data directory: tidemark serve --data NEWDIR"
                    .to_owned(),
        };
    });
}

/// Makes the first payments; sends them unless they are stored already. `None` once the channel is closed.
async fn snapshot(
    config: &GeneratorConfig,
    payments: &mut Payments,
    send: bool,
    events: &tokio::sync::mpsc::Sender<SourceEvent>,
    status: &watch::Sender<SourceStatus>,
) -> Option<()> {
    let mut done = 0;
    while done < config.snapshot_rows {
        let batch = SNAPSHOT_BATCH.min(config.snapshot_rows - done);
        let mut changes = Changes::default();
        for _ in 0..batch {
            payments.pay(&mut changes).ok()?;
        }
        done += batch;
        if send {
            events.send(SourceEvent::SnapshotRows(changes)).await.ok()?;
            let rows_estimated = config.snapshot_rows;
            status.send_modify(|s| s.state = SourceState::Snapshotting { rows_done: done, rows_estimated });
        }
    }
    if send {
        let done = SourceEvent::SnapshotDone { lsn: Lsn(SNAPSHOT_LSN), time_us: payments.clock_us };
        events.send(done).await.ok()?;
    }
    Some(())
}

async fn stream(
    config: &GeneratorConfig,
    mut payments: Payments,
    resume_at: Lsn,
    events: &tokio::sync::mpsc::Sender<SourceEvent>,
    status: &watch::Sender<SourceStatus>,
) -> Option<()> {
    let began = Instant::now();
    let mut sent = 0u32;
    let mut number = 0u64;
    while config.transactions.is_none_or(|count| number < count) {
        number += 1;
        let end_lsn = Lsn(SNAPSHOT_LSN + number * LSN_STEP);
        let mut changes = Changes::default();
        payments.transact(&mut changes).ok()?;
        if end_lsn <= resume_at {
            if number.is_multiple_of(1_000) {
                tokio::task::yield_now().await;
            }
            continue;
        }
        if config.transactions_per_second > 0 {
            let due = Duration::from_secs_f64(f64::from(sent) / f64::from(config.transactions_per_second));
            tokio::time::sleep_until(began + due).await;
        }
        sent = sent.wrapping_add(1);
        let transaction = Transaction { end_lsn, commit_time_us: payments.clock_us, changes };
        events.send(SourceEvent::Transaction(transaction)).await.ok()?;
        status.send_if_modified(|status| {
            status.received_lsn = end_lsn;
            status.upstream_lsn = status.upstream_lsn.max(end_lsn);
            false
        });
    }
    std::future::pending().await
}

fn schema() -> TableSchema {
    let column = |name: &str, column_type| Column { name: name.to_owned(), column_type };
    TableSchema {
        id: TableId(1),
        namespace: "public".to_owned(),
        name: "payments".to_owned(),
        columns: vec![
            column("id", ColumnType::Int8),
            column("dst_acct", ColumnType::Text),
            column("currency", ColumnType::Text),
            column("status", ColumnType::Text),
            column("amount", ColumnType::Numeric { scale: Some(2) }),
            column("created_at", ColumnType::TimestampTz),
        ],
        primary_key: vec![0],
        keeps_row_image: true,
    }
}

const CURRENCIES: [&str; 4] = ["USD", "EUR", "GBP", "JPY"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Pending,
    Settled,
    Refunded,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Settled => "settled",
            Status::Refunded => "refunded",
        }
    }
}

/// A payment as it stands; 24 bytes, so that tens of millions may be alive.
#[derive(Clone, Copy, Debug)]
struct Payment {
    cents: i64,
    created_us: i64,
    account: u16,
    currency: u8,
    status: Status,
    alive: bool,
}

/// Everything made so far; the id of a payment is its position plus one.
struct Payments {
    random: ChaCha8Rng,
    made: Vec<Payment>,
    clock_us: i64,
}

impl Payments {
    fn new(seed: u64) -> Self {
        Payments { random: ChaCha8Rng::seed_from_u64(seed), made: Vec::new(), clock_us: FIRST_PAYMENT_US }
    }

    /// One to eight changes: mostly payments, often a settlement, sometimes history.
    fn transact(&mut self, changes: &mut Changes) -> Result<(), TooLarge> {
        for _ in 0..self.random.random_range(1..=8) {
            match self.random.random_range(0..100) {
                0..60 => self.pay(changes)?,
                60..85 => self.change_one(changes, true, |payment, _| payment.status = Status::Settled)?,
                85..92 => self.change_one(changes, false, |payment, _| payment.status = Status::Refunded)?,
                92..98 => self.change_one(changes, false, |payment, cents| payment.cents += cents)?,
                _ => self.delete_one(changes)?,
            }
        }
        if changes.is_empty() { self.pay(changes) } else { Ok(()) }
    }

    fn pay(&mut self, changes: &mut Changes) -> Result<(), TooLarge> {
        self.clock_us += self.random.random_range(1..=2 * PAYMENT_GAP_US);
        let payment = Payment {
            cents: self.random.random_range(1..=500_000),
            created_us: self.clock_us,
            account: self.random.random_range(0..1_000),
            currency: self.random.random_range(0..4),
            status: Status::Pending,
            alive: true,
        };
        self.made.push(payment);
        let id = self.made.len();
        let new = changes.write_row(|buffer| write(buffer, id, payment))?;
        changes.insert(schema_id(), new);
        Ok(())
    }

    /// A payment that still exists: a recent one, or any.
    fn pick(&mut self, recent: bool) -> Option<usize> {
        let count = self.made.len();
        if count == 0 {
            return None;
        }
        let from = if recent { count.saturating_sub(500) } else { 0 };
        let at = self.random.random_range(from..count);
        self.made.get(at).is_some_and(|payment| payment.alive).then_some(at)
    }

    fn change_one(
        &mut self,
        changes: &mut Changes,
        recent: bool,
        change: impl FnOnce(&mut Payment, i64),
    ) -> Result<(), TooLarge> {
        let Some(at) = self.pick(recent) else { return Ok(()) };
        let cents = self.random.random_range(-1_000..=1_000);
        let Some(payment) = self.made.get_mut(at) else { return Ok(()) };
        change(payment, cents);
        let payment = *payment;
        let new = changes.write_row(|buffer| write(buffer, at + 1, payment))?;
        changes.update(schema_id(), OldRow::Absent, new);
        Ok(())
    }

    fn delete_one(&mut self, changes: &mut Changes) -> Result<(), TooLarge> {
        let Some(at) = self.pick(false) else { return Ok(()) };
        if let Some(payment) = self.made.get_mut(at) {
            payment.alive = false;
        }
        let key = changes.write_row(|buffer| {
            let mut row = RowWriter::new(buffer);
            row.push(ValueRef::Int(id_of(at + 1)));
            for _ in 0..5 {
                row.push(ValueRef::Null);
            }
            Ok::<(), TooLarge>(())
        })?;
        changes.delete(schema_id(), OldRow::Key(key));
        Ok(())
    }
}

fn schema_id() -> TableId {
    TableId(1)
}

fn id_of(position: usize) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

fn write(buffer: &mut Vec<u8>, id: usize, payment: Payment) -> Result<(), TooLarge> {
    let [a, b, c, d] = [1000, 100, 10, 1].map(|unit| char::from(b'0' + (payment.account / unit % 10) as u8));
    let account = [b'A', a as u8, b as u8, c as u8, d as u8];
    let mut row = RowWriter::new(buffer);
    row.push(ValueRef::Int(id_of(id)));
    row.push(ValueRef::Text(std::str::from_utf8(&account).unwrap_or_default()));
    row.push(ValueRef::Text(CURRENCIES.get(usize::from(payment.currency)).copied().unwrap_or_default()));
    row.push(ValueRef::Text(payment.status.name()));
    row.push(ValueRef::Numeric(Numeric::Finite { mantissa: payment.cents.into(), scale: 2 }));
    row.push(ValueRef::Timestamp(payment.created_us));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use std::collections::BTreeMap;

    use engine::change::{Change, OldImage};
    use tokio::sync::mpsc;

    use super::*;

    async fn collect(config: &GeneratorConfig, resume: ResumePoint, until: Lsn) -> Vec<SourceEvent> {
        let (events, mut received) = mpsc::channel(4);
        let (_durable, durable) = watch::channel(Lsn::ZERO);
        let (status, _shown) = watch::channel(SourceStatus::default());
        let task = tokio::spawn(run(config.clone(), SourceContext::new(resume, events, durable, status).0));
        let mut all = Vec::new();
        while let Some(event) = received.recv().await {
            let last = matches!(&event, SourceEvent::Transaction(t) if t.end_lsn >= until);
            all.push(event);
            if last {
                break;
            }
        }
        drop(received);
        task.await.unwrap();
        all
    }

    fn fast() -> GeneratorConfig {
        GeneratorConfig { seed: 7, snapshot_rows: 12_000, transactions_per_second: 0, transactions: Some(500) }
    }

    #[tokio::test]
    async fn resuming_makes_exactly_what_follows() {
        let until = Lsn(SNAPSHOT_LSN + 500 * LSN_STEP);
        let all = collect(&fast(), ResumePoint::Fresh, until).await;
        let again = collect(&fast(), ResumePoint::Fresh, until).await;
        assert_eq!(format!("{all:?}"), format!("{again:?}"));
        let SourceEvent::Tables { identity, tables } = &all[0] else { panic!() };
        let lsn = Lsn(SNAPSHOT_LSN + 123 * LSN_STEP);
        let resume = ResumePoint::live(lsn, identity.clone(), tables.clone());
        let rest = collect(&fast(), resume, until).await;
        let following = &all[all.len() - 377..];
        assert_eq!(format!("{:?}", &rest[1..]), format!("{following:?}"));
    }

    #[tokio::test]
    async fn changes_only_what_exists() {
        let all = collect(&fast(), ResumePoint::Fresh, Lsn(SNAPSHOT_LSN + 500 * LSN_STEP)).await;
        let mut rows: BTreeMap<i64, Vec<u8>> = BTreeMap::new();
        let id = |row: engine::change::RowRef<'_>| match row.columns().next() {
            Some(Ok(ValueRef::Int(id))) => id,
            other => panic!("{other:?}"),
        };
        let mut apply = |changes: &Changes| {
            for change in changes.iter() {
                match change {
                    Change::Insert { new, .. } => assert!(rows.insert(id(new), new.0.to_vec()).is_none()),
                    Change::Update { new, .. } => assert!(rows.insert(id(new), new.0.to_vec()).is_some()),
                    Change::Delete { old: OldImage::Key(old), .. } => assert!(rows.remove(&id(old)).is_some()),
                    other => panic!("{other:?}"),
                }
            }
        };
        for event in &all {
            match event {
                SourceEvent::SnapshotRows(changes) => apply(changes),
                SourceEvent::Transaction(transaction) => apply(&transaction.changes),
                _ => {}
            }
        }
        assert!(rows.len() > 12_500);
    }

    #[tokio::test]
    async fn another_seed_is_another_source() {
        let (events, mut received) = mpsc::channel(4);
        let (_durable, durable) = watch::channel(Lsn::ZERO);
        let (status, shown) = watch::channel(SourceStatus::default());
        let resume = ResumePoint::live(Lsn(1), SourceIdentity::default(), vec![schema()]);
        run(fast(), SourceContext::new(resume, events, durable, status).0).await;
        assert!(received.recv().await.is_none());
        assert!(matches!(&shown.borrow().state, SourceState::Halted { code, .. } if code == "source_changed"));
    }
}
