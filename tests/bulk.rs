//! Sizes: one transaction of very many rows, very many transactions of one row, one very large value. Each is exact, or
//! refused with a code; never a crash, and the memory of the real binary stays bounded.
//!
//! `TIDEMARK_BULK=full` takes a million rows, 300,000 transactions and 700 MB; ordinarily it is a tenth or less.

use std::time::Instant;

use connectors::postgres::throwaway::ThrowawayPostgres;
use serde_json::{Value, json};

use crate::support::server::Server;
use crate::support::sql;

const MIB: u64 = 1 << 20;

fn full() -> bool {
    std::env::var("TIDEMARK_BULK").is_ok_and(|size| size == "full")
}

fn postgres() -> ThrowawayPostgres {
    sql::postgres(&["autovacuum=off", "synchronous_commit=off", "max_wal_size=8GB"])
}

fn serve(data: &std::path::Path, postgres: &ThrowawayPostgres, table: &str, definition: &Value) -> Server {
    let server = Server::start(data, &postgres.url(), &[table], &[]);
    server.get_ok("/readyz");
    let (status, body) = server.put("/v1/aggregates/totals", definition);
    assert_eq!(status, 202, "{body}");
    server
}

/// Rows and sum as Tidemark has them at the end of the log, or the code it halted with.
async fn totals(server: &Server, postgres: &ThrowawayPostgres) -> Result<(String, String), String> {
    let client = sql::connect(&postgres.url()).await;
    // The rows were committed without waiting for the disk: one that waits has them all written.
    sql::run(&client, "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'end', '')").await;
    let lsn = sql::current_lsn(&client).await;
    let deadline = Instant::now() + std::time::Duration::from_secs(300);
    let path = format!("/v1/aggregates/totals/data?granularity=all&min_lsn={lsn}&wait=20s");
    loop {
        let (status, body) = server.get(&path);
        if status == 200 {
            let row = body["data"].get(0).cloned().unwrap_or(json!({"n": 0, "amount": ""}));
            return Ok((row["n"].to_string(), row["amount"].as_str().unwrap_or_default().to_owned()));
        }
        let (_, source) = server.get("/v1/sources/postgres");
        if source["state"] == "halted" {
            return Err(source["code"].as_str().unwrap().to_owned());
        }
        assert!(Instant::now() < deadline, "{status} {body} {source}");
    }
}

async fn expected(postgres: &ThrowawayPostgres, table: &str) -> Result<(String, String), String> {
    let client = sql::connect(&postgres.url()).await;
    let row =
        sql::rows(&client, &format!("SELECT count(*), coalesce(sum(amount)::text, '') FROM {table}")).await.remove(0);
    let [n, amount] = row.try_into().unwrap();
    Ok((n.unwrap(), amount.unwrap()))
}

fn definition(table: &str) -> Value {
    json!({
        "table": table, "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
        "time": {"column": "at", "granularity": "day"}, "rollups": ["all"],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_transaction_of_very_many_rows() {
    let rows: u64 = if full() { 1_000_000 } else { 100_000 };
    let postgres = postgres();
    let client = sql::connect(&postgres.url()).await;
    sql::run(
        &client,
        "CREATE TABLE big (id bigint PRIMARY KEY, account text, amount numeric(14,2), status text, at timestamptz)",
    )
    .await;
    let data = tempfile::tempdir().unwrap();
    let server = serve(data.path(), &postgres, "big", &definition("big"));
    let before = server.peak_memory();
    let steps = [
        format!(
            "INSERT INTO big SELECT i, 'account ' || i % 1000, i * 0.01, 'new', timestamptz '2024-01-01 UTC' + interval '1 minute' * (i % 500000)
               FROM generate_series(1, {rows}) AS i"
        ),
        "UPDATE big SET amount = amount + 1, status = 'settled'".to_owned(),
        "DELETE FROM big WHERE id % 10 <> 0".to_owned(),
    ];
    for step in steps {
        let began = Instant::now();
        sql::run(&client, &step).await;
        let written = began.elapsed();
        assert_eq!(totals(&server, &postgres).await, expected(&postgres, "big").await, "{step}");
        let verb = step.split(' ').next().unwrap_or_default();
        println!(
            "{verb} of {rows} rows in one transaction: Postgres {written:?}, then Tidemark {:?}",
            began.elapsed() - written
        );
    }
    let peak = server.peak_memory();
    println!("peak memory {} MiB, {} MiB before", peak / MIB, before / MIB);
    let bound = before + rows * 2_000 + 256 * MIB;
    assert!(peak < bound, "{} MiB", peak / MIB);
    assert_eq!(server.terminate().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_transactions_of_one_row() {
    let transactions: u64 = if full() { 300_000 } else { 30_000 };
    let postgres = postgres();
    let client = sql::connect(&postgres.url()).await;
    sql::run(&client, "CREATE TABLE small (id bigint PRIMARY KEY, amount numeric(14,2), at timestamptz)").await;
    let data = tempfile::tempdir().unwrap();
    let server = serve(data.path(), &postgres, "small", &definition("small"));
    let began = Instant::now();
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (url, each) = (postgres.url(), transactions / 3);
            tokio::spawn(async move {
                let client = sql::connect(&url).await;
                let block = format!(
                    "DO $$ BEGIN FOR i IN 1..{each} LOOP
                       INSERT INTO small VALUES ({writer} * 1000000 + i, i * 0.01, timestamptz '2024-01-01 UTC' + interval '1 minute' * i);
                       COMMIT; END LOOP; END $$"
                );
                sql::run(&client, &block).await;
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let written = began.elapsed();
    assert_eq!(totals(&server, &postgres).await, expected(&postgres, "small").await);
    println!(
        "{transactions} transactions of one row: Postgres {written:?}, then Tidemark {:?}; peak memory {} MiB",
        began.elapsed() - written,
        server.peak_memory() / MIB
    );
    assert_eq!(server.terminate().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_very_large_value() {
    let sizes: &[u64] = if full() { &[20, 250, 700, 1_000] } else { &[20, 80] };
    let postgres = postgres();
    let client = sql::connect(&postgres.url()).await;
    sql::run(
        &client,
        "CREATE TABLE documents (id bigint PRIMARY KEY, amount numeric(14,2), at timestamptz, body text);
         ALTER TABLE documents ALTER body SET STORAGE EXTERNAL",
    )
    .await;
    let data = tempfile::tempdir().unwrap();
    let server = serve(data.path(), &postgres, "documents", &definition("documents"));
    for (id, megabytes) in sizes.iter().enumerate() {
        let bytes = megabytes * 1_000_000;
        sql::run(
            &client,
            &format!("INSERT INTO documents VALUES ({id}, 1.25, '2024-01-01 UTC', repeat('x', {bytes}))"),
        )
        .await;
        let found = totals(&server, &postgres).await;
        println!("a value of {megabytes} MB: {found:?}; peak memory {} MiB", server.peak_memory() / MIB);
        if let Err(code) = found {
            assert!(["row_too_large", "transaction_too_large"].contains(&code.as_str()), "{code}");
            assert!(*megabytes > 200, "{megabytes} MB are refused: {code}");
            assert_eq!(server.get("/healthz").0, 200, "it lives, and says why it does not go on");
            break;
        }
        assert_eq!(found, expected(&postgres, "documents").await);
        // The large value is out of line and unchanged: the new row comes without it.
        sql::run(&client, &format!("UPDATE documents SET amount = amount + 1 WHERE id = {id}")).await;
        assert_eq!(totals(&server, &postgres).await, expected(&postgres, "documents").await);
    }
    assert_eq!(server.terminate().code(), Some(0));
}
