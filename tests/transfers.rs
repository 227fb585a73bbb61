//! The money-transfer workload: accounts and transactions, concurrent writers doing two updates and an insert in one
//! transaction. A transaction is never half visible: in every Snapshot the balances add up to what there was at the
//! start, and what was paid equals what was received; at the end every account reconciles to the cent.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::Snapshot;
use engine::aggregate::MeasureValue;
use engine::change::Value;
use engine::materialization::{Bucket, group_key};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::support::embedded::Embedded;
use crate::support::sql;

const ACCOUNTS: i32 = 100_000;
const OPENING_BALANCE: i128 = 1_000;
const WRITERS: u64 = 6;

/// The first measure of each group, summed over the buckets of a level.
fn sums(snapshot: &Snapshot, name: &str, granularity: &str) -> HashMap<i64, i128> {
    let aggregate = &snapshot.catalog().aggregates[name];
    let level = aggregate.plan.levels.iter().position(|level| level.to_string() == granularity).unwrap();
    let mut sums = HashMap::new();
    snapshot
        .scan(aggregate, level, Bucket(i64::MIN), Bucket(i64::MAX), |_, group, cell| {
            let key = match group_key::decode(group).unwrap().first() {
                Some(Value::Int(key)) => *key,
                _ => 0,
            };
            let MeasureValue::Integer(sum) = aggregate.plan.measures[0].function.finish(&cell.accumulators[0]) else {
                panic!("{name}: not an integer")
            };
            *sums.entry(key).or_default() += sum;
            ControlFlow::Continue(())
        })
        .unwrap();
    sums
}

fn total(snapshot: &Snapshot, name: &str, granularity: &str) -> i128 {
    sums(snapshot, name, granularity).values().sum()
}

async fn write(url: String, seed: u64, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    let mut client = sql::connect(&url).await;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let pay = "UPDATE accounts SET balance = balance - $1 WHERE id = $2";
    let receive = "UPDATE accounts SET balance = balance + $1 WHERE id = $2";
    let record =
        "INSERT INTO transactions (payer_id, payee_id, amount, created_at) VALUES ($1, $2, $3, $4::text::timestamp)";
    let statements = [
        client.prepare(pay).await.unwrap(),
        client.prepare(receive).await.unwrap(),
        client.prepare(record).await.unwrap(),
    ];
    while !stop.load(Ordering::Relaxed) {
        let (payer, payee) = (rng.random_range(1..=ACCOUNTS), rng.random_range(1..=ACCOUNTS));
        let amount = rng.random_range(1..100i32);
        let at = format!("2024-05-{:02} {:02}:00:01", rng.random_range(1..29), rng.random_range(0..24));
        let transaction = client.transaction().await.unwrap();
        // Always in the order of the keys, so that writers do not deadlock.
        let mut updates = [(payer, 0), (payee, 1)];
        updates.sort_unstable();
        for (account, which) in updates {
            transaction.execute(&statements[which], &[&amount, &account]).await.unwrap();
        }
        transaction.execute(&statements[2], &[&payer, &payee, &amount, &at]).await.unwrap();
        if rng.random_ratio(1, 50) {
            transaction.rollback().await.unwrap();
        } else {
            transaction.commit().await.unwrap();
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_transfer_is_never_half_visible() {
    let seconds = std::env::var("TIDEMARK_TRANSFER_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(15);
    let server = sql::postgres(&[]);
    let data = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let client = sql::connect(&server.url()).await;
        sql::run(
            &client,
            &format!(
                "CREATE TABLE accounts (id int PRIMARY KEY, balance int);
                 CREATE TABLE transactions (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), payer_id int, payee_id int,
                   amount int, created_at timestamp);
                 INSERT INTO accounts SELECT id, {OPENING_BALANCE} FROM generate_series(1, {ACCOUNTS}) AS id"
            ),
        )
        .await;
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        // The writers run before, during and after the initial snapshot and the registrations.
        let writers: Vec<_> = (0..WRITERS)
            .map(|seed| tokio::spawn(write(server.url(), seed, Arc::clone(&stop), Arc::clone(&done))))
            .collect();
        let tables = ["accounts", "transactions"];
        let tidemark = Embedded::start(data.path(), &server.url(), &tables, "transfers", 2).await;
        let by = |who: &str| {
            serde_json::from_value(json!({
                "table": "transactions", "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
                "dimensions": [who], "time": {"column": "created_at", "granularity": "hour"}, "rollups": ["all"],
            }))
            .unwrap()
        };
        tidemark.register("paid", by("payer_id")).await;
        tidemark.register("received", by("payee_id")).await;
        let balances = json!({
            "table": "accounts", "measures": [{"name": "balance", "sum": "balance"}], "dimensions": ["id"],
        });
        tidemark.register("balances", serde_json::from_value(balances).unwrap()).await;
        let begun = sql::current_lsn(&client).await;
        for name in ["paid", "received", "balances"] {
            tidemark.live(name, begun).await;
        }
        let opening = OPENING_BALANCE * i128::from(ACCOUNTS);
        let (started, mut answers, mut last) = (Instant::now(), 0u64, 0);
        while started.elapsed() < Duration::from_secs(seconds) {
            let snapshot = tidemark.engine.snapshot().unwrap();
            let as_of = snapshot.as_of();
            assert!(as_of.sequence >= last, "time went back");
            if as_of.sequence == last {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            last = as_of.sequence;
            assert_eq!(total(&snapshot, "balances", "all"), opening, "at {}", as_of.lsn);
            assert_eq!(total(&snapshot, "paid", "all"), total(&snapshot, "received", "all"), "at {}", as_of.lsn);
            answers += 1;
        }
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.unwrap();
        }
        let snapshot = tidemark.at(sql::current_lsn(&client).await).await;
        let (paid, received) = (sums(&snapshot, "paid", "all"), sums(&snapshot, "received", "all"));
        let (paid_by_hour, received_by_hour) = (sums(&snapshot, "paid", "hour"), sums(&snapshot, "received", "hour"));
        assert_eq!((&paid, &received), (&paid_by_hour, &received_by_hour));
        let mut accounts = 0;
        for row in sql::rows(&client, "SELECT id, balance FROM accounts").await {
            let (id, balance): (i64, i128) =
                (row[0].as_ref().unwrap().parse().unwrap(), row[1].as_ref().unwrap().parse().unwrap());
            let change = received.get(&id).copied().unwrap_or_default() - paid.get(&id).copied().unwrap_or_default();
            assert_eq!(OPENING_BALANCE + change, balance, "account {id}");
            accounts += 1;
        }
        assert_eq!(accounts, ACCOUNTS);
        let count: u64 = sql::value(&client, "SELECT count(*) FROM transactions").await.parse().unwrap();
        assert_eq!(count, done.load(Ordering::Relaxed));
        assert!(answers > 20, "hardly any answers were looked at: {answers}");
        snapshot.scrub().unwrap();
        println!("{count} transfers, {answers} answers consistent, {accounts} accounts reconciled");
        drop(snapshot);
        tidemark.stop().await;
    });
}
