//! The table of most tests, and its rows upstream and with the stand-in for the engine; positions of the log.

use std::time::{Duration, Instant};

use ::engine::change::Lsn;
use tokio_postgres::Client;

use crate::engine::FakeEngine;

pub const PAYMENTS: &str =
    "CREATE TABLE payments (id int8 PRIMARY KEY, merchant text, amount numeric(18,2), status text)";

pub async fn lsn(client: &Client, expression: &str) -> Lsn {
    let text: String = client.query_one(&format!("SELECT ({expression})::text"), &[]).await.unwrap().get(0);
    text.parse().unwrap()
}

/// The end of the log, after everything committed so far.
pub async fn now(client: &Client) -> Lsn {
    lsn(client, "pg_current_wal_flush_lsn()").await
}

pub async fn version(client: &Client) -> i32 {
    client.query_one("SELECT current_setting('server_version_num')::int4 / 10000", &[]).await.unwrap().get(0)
}

/// The ids as the engine stand-in prints them.
pub async fn ids(client: &Client) -> Vec<String> {
    let rows = client.query("SELECT id FROM payments ORDER BY id", &[]).await.unwrap();
    let mut ids: Vec<String> = rows.iter().map(|row| format!("Int({})", row.get::<_, i64>(0))).collect();
    ids.sort();
    ids
}

pub async fn assert_same_payments(client: &Client, engine: &FakeEngine) {
    let rows = client.query("SELECT id, merchant, (amount * 100)::int8, status FROM payments", &[]).await.unwrap();
    let mut expected: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let text = |i| row.get::<_, Option<String>>(i).map_or("Null".into(), |t: String| format!("Text({t:?})"));
            let amount = row
                .get::<_, Option<i64>>(2)
                .map_or("Null".into(), |mantissa| format!("Numeric(Finite {{ mantissa: {mantissa}, scale: 2 }})"));
            vec![format!("Int({})", row.get::<_, i64>(0)), text(1), amount, text(3)]
        })
        .collect();
    expected.sort();
    let mut got = engine.table("payments");
    got.sort();
    assert_eq!(got.len(), expected.len());
    assert_eq!(got, expected);
}

pub async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub async fn confirmed_flush(client: &Client, slot: &str) -> Lsn {
    lsn(client, &format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'")).await
}

/// Waits until nobody reads from a slot any more.
pub async fn free(client: &Client) {
    wait_for("the slot is free", async || {
        let row = client.query_one("SELECT count(*) FROM pg_replication_slots WHERE active", &[]).await.unwrap();
        row.get::<_, i64>(0) == 0
    })
    .await;
}
