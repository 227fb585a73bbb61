//! How long nobody is answered after `kill -9`: from the start of the next process to its first answer that holds everything
//! committed before the kill, while payments go on. Every answer is checked: payments are made one after the other by a rule,
//! so how many there are says what they sum up to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use connectors::postgres::throwaway::ThrowawayPostgres;
use serde_json::json;

use crate::figures::{Latencies, Table};
use crate::http::Http;
use crate::tidemark::Tidemark;
use crate::{Scale, sql};

const MONTHS: u64 = 24;
/// Between two payments.
const PAUSE: Duration = Duration::from_millis(1);
/// From an answer to the next kill.
const LIFE: Duration = Duration::from_millis(700);

/// Of each payment, by its number.
const CENTS: &str = "(i::bigint * 7919 % 1000000)";

fn cents(payment: u64) -> u64 {
    payment * 7_919 % 1_000_000
}

/// Runs it.
pub async fn measure(postgres: &ThrowawayPostgres, scale: Scale) -> anyhow::Result<Table> {
    let payments = scale.accounts * MONTHS;
    println!("restart: writing {payments} payments");
    let admin = sql::connect(&postgres.url()).await?;
    sql::run(&admin, "CREATE DATABASE restart").await?;
    let url = postgres.url_of("restart");
    let client = sql::connect(&url).await?;
    sql::run(
        &client,
        "CREATE TABLE payments (id bigint PRIMARY KEY, dst_acct int, amount numeric(12,2), created_at timestamptz)",
    )
    .await?;
    sql::run(&client, &insert(scale, &format!("generate_series(0, {payments} - 1)"))).await?;
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");
    let mut tidemark = Tidemark::start(&data, &url)?;
    tidemark.ready().await?;
    let definition = json!({"table": "payments", "dimensions": ["dst_acct"], "rollups": ["year"],
        "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
        "time": {"column": "created_at", "granularity": "month"}});
    tidemark.register_as("by_account", &definition).await?;

    let written = Arc::new(AtomicU64::new(payments));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write(sql::connect(&url).await?, scale, Arc::clone(&written), Arc::clone(&stop)));
    let mut latencies = Vec::new();
    for round in 0..scale.restarts {
        tokio::time::sleep(LIFE).await;
        drop(tidemark);
        let committed = written.load(Ordering::Acquire);
        let lsn = sql::end_of_log(&client).await?;
        tidemark = Tidemark::start(&data, &url)?;
        let (n, amount) = first_answer(&tidemark, &lsn).await?;
        latencies.push(tidemark.started.elapsed());
        ensure!(n >= committed, "restart {round}: {n} payments of {committed} at {lsn}");
        let expected: u64 = (0..n).map(cents).sum();
        let expected = format!("{}.{:02}", expected / 100, expected % 100);
        ensure!(amount == expected, "restart {round}: {n} payments sum up to {expected}, not {amount}");
    }
    stop.store(true, Ordering::Release);
    writer.await??;
    tidemark.terminate().await?;

    let latencies = Latencies::new(latencies);
    let mut table = Table::new("kill -9 to the first answer, and a right one", &["cells", "kills", "p50", "p99"]);
    let cells = scale.accounts * (MONTHS + MONTHS / 12);
    let kills = latencies.count().to_string();
    table.row(&[&format!("{cells}"), &kills, &latencies.quantile(0.5), &latencies.quantile(0.99)]);
    table.remark(
        "a payment each millisecond meanwhile; the answer has to hold all that was committed before the kill"
            .to_owned(),
    );
    Ok(table)
}

fn insert(scale: Scale, numbers: &str) -> String {
    format!(
        "INSERT INTO payments SELECT i, i / {MONTHS} % {}, {CENTS} / 100.0, timestamptz '2024-01-10Z' + i % {MONTHS} * interval '1 month'
         FROM {numbers} AS i",
        scale.accounts
    )
}

async fn write(
    client: tokio_postgres::Client,
    scale: Scale,
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let insert = client.prepare(&insert(scale, "(VALUES ($1::bigint))").replace("AS i", "AS of(i)")).await?;
    while !stop.load(Ordering::Acquire) {
        let number = i64::try_from(written.load(Ordering::Acquire))?;
        client.execute(&insert, &[&number]).await?;
        written.fetch_add(1, Ordering::Release);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Number of payments and their sum.
async fn first_answer(tidemark: &Tidemark, lsn: &str) -> anyhow::Result<(u64, String)> {
    let path = format!("/v1/aggregates/by_account/data?granularity=all&group_by=&min_lsn={lsn}&wait=10s");
    let mut http = tidemark.http().await?;
    for _ in 0..10_000 {
        let (status, body) = http.exchange(&Http::request(&path)).await?;
        match status {
            200 => {
                let answer: serde_json::Value = serde_json::from_slice(body)?;
                let row = answer.pointer("/data/0").with_context(|| answer.to_string())?;
                let n = row.get("n").and_then(serde_json::Value::as_u64).context("no n")?;
                let amount = row.get("amount").and_then(serde_json::Value::as_str).context("no amount")?;
                return Ok((n, amount.to_owned()));
            }
            503 => tokio::time::sleep(Duration::from_millis(5)).await,
            other => bail!("{path}: {other} {}", String::from_utf8_lossy(body)),
        }
    }
    bail!("no answer at {lsn}")
}
