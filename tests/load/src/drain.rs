//! A backlog that was written while nobody read: `pg_recvlogical` throws it away, Tidemark turns it into totals.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use connectors::postgres::throwaway::ThrowawayPostgres;
use serde_json::Value;
use tokio_postgres::Client;

use crate::Scale;
use crate::figures::{Table, median, rate};
use crate::process::{Walsender, cpu_seconds, peak_memory, threads, timed};
use crate::tidemark::Tidemark;
use crate::{payments, sql};

const BLOCK: i64 = 50_000;
const ROWS_PER_TRANSACTION: i64 = 1_000;
const UPDATES_PER_BLOCK: i64 = 5_000;
const DELETES_PER_BLOCK: i64 = 1_000;

/// One way through the backlog.
#[derive(Clone, Debug, Default)]
struct Round {
    wall: f64,
    cpu: f64,
    walsender_cpu: f64,
    /// Only the product's.
    since_first: f64,
    serving: f64,
    peak_mib: u64,
    by_thread: String,
}

/// A figure of a round.
type Part = fn(&Round) -> f64;

/// Runs it.
pub async fn measure(postgres: &ThrowawayPostgres, scale: Scale) -> anyhow::Result<Table> {
    let admin = sql::connect(&postgres.url()).await?;
    sql::run(&admin, "CREATE DATABASE drain").await?;
    let url = postgres.url_of("drain");
    let client = sql::connect(&url).await?;
    let inserts = scale.drain_blocks * BLOCK;
    payments::create(&client, scale.preloaded_rows + inserts).await?;
    payments::insert(&client, 1, scale.preloaded_rows).await?;

    let directory = tempfile::tempdir()?;
    let kept = directory.path().join("kept");
    let tidemark = Tidemark::start(&kept, &url)?;
    tidemark.ready().await?;
    for (name, _) in payments::aggregates() {
        tidemark.register(name).await?;
    }
    tidemark.terminate().await?;
    let slot = sql::value(&client, "SELECT slot_name FROM pg_replication_slots WHERE database = 'drain'").await?;
    sql::copy_slot(&client, &slot, "load_kept").await?;

    println!("drain: writing the backlog");
    let begin = sql::position(&sql::end_of_log(&client).await?)?;
    let transactions = write_backlog(&client, scale).await?;
    let end = sql::end_of_log(&client).await?;
    let log_bytes = sql::position(&end)? - begin;
    // Something beyond the end, so that both readers see that they have reached it.
    payments::insert(&client, scale.preloaded_rows + inserts + 1, scale.preloaded_rows + inserts + 1).await?;
    let expected = payments::yearly_totals(&client).await?;
    let changes = scale.drain_blocks * (BLOCK + UPDATES_PER_BLOCK + DELETES_PER_BLOCK);

    let (mut reference, mut product) = (Vec::new(), Vec::new());
    for round in 1..=scale.rounds {
        sql::copy_slot(&client, "load_kept", "load_reference").await?;
        let a = reference_round(postgres, &url, &slot, &end).await?;
        let decoded = "SELECT total_txns FROM pg_stat_replication_slots WHERE slot_name = 'load_reference'";
        let decoded: i64 = sql::value(&client, decoded).await?.parse()?;
        ensure!(decoded >= transactions, "pg_recvlogical saw {decoded} of {transactions} transactions");
        sql::drop_slot(&client, "load_reference").await?;
        println!(
            "drain {round}: pg_recvlogical {:.2} s, cpu {:.2} s, walsender {:.2} s",
            a.wall, a.cpu, a.walsender_cpu
        );
        reference.push(a);

        sql::drop_slot(&client, &slot).await?;
        sql::copy_slot(&client, "load_kept", &slot).await?;
        let data = directory.path().join(format!("round-{round}"));
        timed(Command::new("cp").arg("-a").arg(&kept).arg(&data)).await?;
        let b = product_round(&data, &url, &slot, &end, changes + 1, &expected).await?;
        std::fs::remove_dir_all(&data)?;
        println!(
            "drain {round}: tidemark {:.2} s (serving after {:.2} s, {:.2} s from the first transaction), cpu {:.2} s, \
             walsender {:.2} s",
            b.wall, b.serving, b.since_first, b.cpu, b.walsender_cpu
        );
        product.push(b);
    }
    for slot in [slot.as_str(), "load_kept"] {
        sql::drop_slot(&client, slot).await?;
    }
    drop(client);
    sql::run(&admin, "DROP DATABASE drain WITH (FORCE)").await?;

    let mut table = Table::new(
        "drain of a backlog",
        &["", "wall s", "rows", "client cpu s", "walsender cpu s", "cpu us/row", "wall s of the rounds"],
    );
    let of = |rounds: &[Round], part: Part| median(&rounds.iter().map(part).collect::<Vec<_>>());
    let all = |rounds: &[Round], part: Part| {
        rounds.iter().map(|round| format!("{:.2}", part(round))).collect::<Vec<_>>().join(" ")
    };
    let rows: [(&str, &[Round], Part); 3] = [
        ("pg_recvlogical to /dev/null", &reference, |round| round.wall),
        ("tidemark, from process start", &product, |round| round.wall),
        ("tidemark, from first transaction", &product, |round| round.since_first),
    ];
    for (name, rounds, wall) in rows {
        let (seconds, cpu) = (of(rounds, wall), of(rounds, |round| round.cpu));
        table.row(&[
            name,
            &format!("{seconds:.2}"),
            &rate(changes, seconds),
            &format!("{cpu:.2}"),
            &format!("{:.2}", of(rounds, |round| round.walsender_cpu)),
            &format!("{:.2}", cpu * 1e6 / changes as f64),
            &all(rounds, wall),
        ]);
    }
    let ratio = |wall: Part| {
        let ratios: Vec<f64> = product.iter().zip(&reference).map(|(b, a)| wall(b) / a.wall).collect();
        median(&ratios)
    };
    table.remark(format!(
        "ratio tidemark / pg_recvlogical, wall, median of rounds: {:.2} from process start, {:.2} from first transaction",
        ratio(|round| round.wall),
        ratio(|round| round.since_first)
    ));
    table.remark(format!(
        "{inserts} inserts, {} updates, {} deletes in {transactions} transactions, {} MiB of log; {} rows before; 3 aggregates",
        scale.drain_blocks * UPDATES_PER_BLOCK,
        scale.drain_blocks * DELETES_PER_BLOCK,
        log_bytes >> 20,
        scale.preloaded_rows
    ));
    let peak = product.iter().map(|round| round.peak_mib).max().unwrap_or_default();
    table.remark(format!(
        "tidemark's start until it serves: {:.2} s; its peak memory: {peak} MiB; totals equal Postgres' in every round",
        of(&product, |round| round.serving)
    ));
    if let Some(last) = product.last() {
        table.remark(format!("tidemark's cpu by thread, last round: {}", last.by_thread));
    }
    Ok(table)
}

/// The number of transactions.
async fn write_backlog(client: &Client, scale: Scale) -> anyhow::Result<i64> {
    let mut transactions = 0;
    for block in 0..scale.drain_blocks {
        let first = scale.preloaded_rows + block * BLOCK + 1;
        for start in (first..first + BLOCK).step_by(ROWS_PER_TRANSACTION as usize) {
            payments::insert(client, start, start + ROWS_PER_TRANSACTION - 1).await?;
            transactions += 1;
        }
        // One row in fifty each: of some earlier block to change, of this one to delete.
        let earlier = scale.preloaded_rows + (block * 7 % (block + 1)) * BLOCK;
        let every = BLOCK / ROWS_PER_TRANSACTION;
        let ids = |from: i64, offset: i64| {
            format!("id IN (SELECT generate_series({}, {}, {every}))", from + 1 + offset, from + BLOCK)
        };
        for offset in 0..UPDATES_PER_BLOCK / ROWS_PER_TRANSACTION {
            let which = ids(earlier, offset * 7);
            sql::run(client, &format!("UPDATE payments SET amount = amount + 0.37, status = 'changed' WHERE {which}"))
                .await?;
            transactions += 1;
        }
        for _ in 0..DELETES_PER_BLOCK / ROWS_PER_TRANSACTION {
            sql::run(client, &format!("DELETE FROM payments WHERE {}", ids(first - 1, every - 1))).await?;
            transactions += 1;
        }
    }
    Ok(transactions)
}

async fn reference_round(postgres: &ThrowawayPostgres, url: &str, slot: &str, end: &str) -> anyhow::Result<Round> {
    let walsender = Walsender::watch(url, "load_reference").await?;
    let mut command = Command::new(postgres.program("pg_recvlogical"));
    command.args(["-U", "postgres", "-d", "drain", "-S", "load_reference", "--start", "--no-loop", "-f", "/dev/null"]);
    command.arg("-h").arg(postgres.socket_directory()).arg("--endpos").arg(end);
    // The publication is the one that Tidemark made, named as its slot.
    let publication = format!("publication_names={slot}");
    command.args(["-o", "proto_version=1", "-o", "binary=true", "-o", &publication]);
    let (wall, cpu, _) = timed(&mut command).await?;
    Ok(Round { wall, cpu, walsender_cpu: walsender.end(), ..Round::default() })
}

async fn product_round(
    data: &Path,
    url: &str,
    slot: &str,
    end: &str,
    changes: i64,
    expected: &[Vec<String>],
) -> anyhow::Result<Round> {
    let walsender = Walsender::watch(url, slot).await?;
    let end = sql::position(end)?;
    let tidemark = Tidemark::start(data, url)?;
    let serving = tidemark.started.elapsed().as_secs_f64();
    let mut http = tidemark.http().await?;
    let total = |source: &Value, what: &str| source.pointer(&format!("/totals/{what}")).and_then(Value::as_i64);
    let mut first = None;
    let wall = loop {
        let source = http.ok("/v1/sources/postgres").await?;
        let now = tidemark.started.elapsed().as_secs_f64();
        let position = |what: &str| sql::position(source.get(what).and_then(Value::as_str).unwrap_or_default());
        if first.is_none() && total(&source, "transactions").is_some_and(|transactions| transactions > 0) {
            first = Some(now);
        }
        if position("applied_lsn")? >= end {
            break now;
        }
        ensure!(now < 300.0, "the end is not reached: {source}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let by_thread = threads(tidemark.pid());
    let (cpu, peak_mib, walsender_cpu) = (cpu_seconds(tidemark.pid()), peak_memory(tidemark.pid()), walsender.end());
    tidemark.ready().await?;
    let source = http.ok("/v1/sources/postgres").await?;
    let seen: i64 = ["inserts", "updates", "deletes"].iter().filter_map(|what| total(&source, what)).sum();
    if seen != changes {
        println!("  !! {seen} changes were counted, {changes} were made");
    }
    payments::check(&tidemark, expected).await?;
    tidemark.terminate().await?;
    Ok(Round { wall, cpu, walsender_cpu, since_first: wall - first.unwrap_or_default(), serving, peak_mib, by_thread })
}
