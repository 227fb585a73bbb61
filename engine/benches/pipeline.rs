//! Rows per second through the whole engine, from a transaction in memory to a committed cell, beside a plain loop that
//! adds the same rows into hash maps. Prints figures; asserts nothing.
//!
//!     cargo bench -p engine
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use engine::Engine;
use engine::change::event::{OldRow, TooLarge};
use engine::change::{
    Changes, Column, ColumnType, Lsn, Numeric, RowWriter, TableId, TableSchema, Transaction, ValueRef,
};
use engine::engine::EngineConfig;
use engine::source::{SourceEvent, SourceIdentity, SourceState};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const TABLE: TableId = TableId(1);
const ROWS: i64 = 1_000_000;
const ROWS_PER_TRANSACTION: i64 = 100;
const DAY_US: i64 = 86_400_000_000;

#[derive(Clone, Copy)]
struct Payment {
    id: i64,
    account: u32,
    currency: usize,
    cents: i64,
    at: i64,
}

fn payments() -> Vec<Payment> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    (0..ROWS)
        .map(|id| Payment {
            id,
            account: rng.random_range(0..10_000),
            currency: rng.random_range(0..3),
            cents: rng.random_range(1..100_000),
            at: 9_000 * DAY_US + id * 60 * DAY_US / ROWS,
        })
        .collect()
}

fn write(payment: &Payment, buffer: &mut Vec<u8>) -> Result<(), TooLarge> {
    let mut row = RowWriter::new(buffer);
    row.push(ValueRef::Int(payment.id));
    row.push(ValueRef::Text(&format!("account-{:06}", payment.account)));
    row.push(ValueRef::Text(["EUR", "USD", "JPY"].get(payment.currency).copied().unwrap_or("EUR")));
    row.push(ValueRef::Numeric(Numeric::Finite { mantissa: i128::from(payment.cents), scale: 2 }));
    row.push(ValueRef::Timestamp(payment.at));
    Ok(())
}

fn schema() -> TableSchema {
    let column = |name: &str, column_type| Column { name: name.to_owned(), column_type };
    TableSchema {
        id: TABLE,
        namespace: "public".to_owned(),
        name: "payments".to_owned(),
        columns: vec![
            column("id", ColumnType::Int8),
            column("account", ColumnType::Text),
            column("currency", ColumnType::Text),
            column("amount", ColumnType::Numeric { scale: Some(2) }),
            column("at", ColumnType::TimestampTz),
        ],
        primary_key: vec![0],
        keeps_row_image: true,
    }
}

const DEFINITIONS: [(&str, &str); 3] = [
    (
        "by_month",
        r#"{"table":"payments","measures":[{"name":"amount","sum":"amount"},{"name":"n","count":"*"}],"dimensions":["currency"],
            "time":{"column":"at","granularity":"month"},"rollups":["year"]}"#,
    ),
    (
        "by_account",
        r#"{"table":"payments","measures":[{"name":"amount","sum":"amount"},{"name":"n","count":"*"}],"dimensions":["account"],
            "time":{"column":"at","granularity":"day"}}"#,
    ),
    (
        "by_hour",
        r#"{"table":"payments","measures":[{"name":"amount","sum":"amount"},{"name":"n","count":"*"}],"dimensions":["currency"],
            "time":{"column":"at","granularity":"hour"}}"#,
    ),
];

fn transactions(payments: &[Payment], first_lsn: u64, update: bool) -> Vec<Transaction> {
    payments
        .chunks(ROWS_PER_TRANSACTION as usize)
        .enumerate()
        .map(|(index, chunk)| {
            let mut changes = Changes::default();
            for payment in chunk {
                let row = changes.write_row::<TooLarge>(|buffer| write(payment, buffer)).unwrap();
                if update {
                    changes.update(TABLE, OldRow::Absent, row);
                } else {
                    changes.insert(TABLE, row);
                }
            }
            Transaction { end_lsn: Lsn(first_lsn + index as u64), commit_time_us: 0, changes }
        })
        .collect()
}

/// User and system time of this process, all threads.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn report(what: &str, rows: usize, started: Instant, cpu_before: Duration) {
    let (wall, used) = (started.elapsed().as_secs_f64(), (cpu() - cpu_before).as_secs_f64());
    println!("{what:<34} {:>9.0} rows/s   {:>5.2} us CPU a row", rows as f64 / wall, used * 1e6 / rows as f64);
}

fn plain_loop(payments: &[Payment]) {
    let (started, before) = (Instant::now(), cpu());
    let mut months: HashMap<(i64, usize), (i128, i64)> = HashMap::new();
    let mut accounts: HashMap<(i64, u32), (i128, i64)> = HashMap::new();
    let mut hours: HashMap<(i64, usize), (i128, i64)> = HashMap::new();
    for payment in payments {
        let add = |cell: &mut (i128, i64)| {
            cell.0 += i128::from(payment.cents);
            cell.1 += 1;
        };
        add(months.entry((payment.at / (30 * DAY_US), payment.currency)).or_default());
        add(accounts.entry((payment.at / DAY_US, payment.account)).or_default());
        add(hours.entry((payment.at / (DAY_US / 24), payment.currency)).or_default());
    }
    report("plain loop into hash maps", payments.len(), started, before);
    println!("{:>66} groups", months.len() + accounts.len() + hours.len());
}

async fn whole_engine(payments: &[Payment], workers: usize) {
    let directory = tempfile::tempdir().unwrap();
    let (engine, context) = Engine::start(&EngineConfig { workers, ..EngineConfig::new(directory.path()) }).unwrap();
    context.status.send_modify(|status| {
        status.state = SourceState::Live;
        status.upstream_lsn_at_start = Some(Lsn(0));
    });
    let identity = SourceIdentity { connector: "bench".to_owned(), ..SourceIdentity::default() };
    context.events.send(SourceEvent::Tables { identity, tables: vec![schema()] }).await.unwrap();
    context.events.send(SourceEvent::SnapshotDone { lsn: Lsn(1), time_us: 0 }).await.unwrap();
    for (name, definition) in DEFINITIONS {
        engine.register(name, serde_json::from_str(definition).unwrap()).await.unwrap();
    }
    let batches = [
        ("inserts", payments.to_vec(), false),
        ("updates", payments.iter().take(200_000).map(|p| Payment { cents: p.cents + 1, ..*p }).collect(), true),
    ];
    let mut lsn = 10u64;
    for (what, rows, update) in batches {
        let prepared = transactions(&rows, lsn, update);
        lsn += prepared.len() as u64;
        let (started, before) = (Instant::now(), cpu());
        for transaction in prepared {
            context.events.send(SourceEvent::Transaction(transaction)).await.unwrap();
        }
        engine.wait_for(Lsn(lsn - 1), Duration::from_secs(600)).await;
        report(&format!("engine, {what}, {workers} worker(s)"), rows.len(), started, before);
    }
    let started = Instant::now();
    engine.register("late", serde_json::from_str(DEFINITIONS.map(|d| d.1).first().unwrap()).unwrap()).await.unwrap();
    let late = engine.aggregates().into_iter().find(|aggregate| aggregate.name == "late").unwrap();
    let mut applied = engine.applied();
    while engine.build_progress(late.id).is_some()
        || engine.aggregates().iter().any(|a| a.state != engine::materialization::AggregateState::Live)
    {
        let _ = applied.changed().await;
    }
    println!("late registration over {ROWS} rows: {:.2} s", started.elapsed().as_secs_f64());
    engine.stop().await;
}

fn main() {
    let payments = payments();
    plain_loop(&payments);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for workers in [1, 2] {
        runtime.block_on(whole_engine(&payments, workers));
    }
}
