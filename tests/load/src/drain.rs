//! A backlog that was written while nobody read: `pg_recvlogical` throws it away, Tidemark turns it into totals, of one
//! aggregate and of three.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use connectors::postgres::throwaway::ThrowawayPostgres;
use serde_json::Value;

use crate::Scale;
use crate::backlog::{Backlog, Reading};
use crate::figures::{Table, median, rate};
use crate::process::{Walsender, cpu_seconds, peak_memory, threads, timed};
use crate::tidemark::Tidemark;
use crate::{payments, sql};

/// The product with this many of the aggregates, and what was measured of it.
struct Variant {
    aggregates: usize,
    /// Its data before the backlog.
    kept: PathBuf,
    rounds: Vec<Round>,
}

/// One way through the backlog.
#[derive(Clone, Debug, Default)]
struct Round {
    reading: Reading,
    since_first: f64,
    serving: f64,
    peak_mib: u64,
    by_thread: String,
}

/// Runs it; a table for each number of aggregates.
pub async fn measure(postgres: &ThrowawayPostgres, scale: Scale) -> anyhow::Result<Vec<Table>> {
    let admin = sql::connect(&postgres.url()).await?;
    sql::run(&admin, "CREATE DATABASE drain").await?;
    let url = postgres.url_of("drain");
    let client = sql::connect(&url).await?;
    payments::create(&client, scale.preloaded_rows + Backlog::inserts(scale)).await?;
    payments::insert(&client, 1, scale.preloaded_rows).await?;

    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");
    let mut variants = Vec::new();
    for (index, (name, _)) in payments::aggregates().into_iter().enumerate() {
        let tidemark = Tidemark::start(&data, &url)?;
        tidemark.ready().await?;
        tidemark.register(name).await?;
        tidemark.terminate().await?;
        let aggregates = index + 1;
        if aggregates == 1 || aggregates == payments::aggregates().len() {
            let kept = directory.path().join(format!("kept-{aggregates}"));
            timed(Command::new("cp").arg("-a").arg(&data).arg(&kept)).await?;
            variants.push(Variant { aggregates, kept, rounds: Vec::new() });
        }
    }
    let slot = sql::value(&client, "SELECT slot_name FROM pg_replication_slots WHERE database = 'drain'").await?;
    println!("drain: writing the backlog");
    let backlog = Backlog::write(&client, "drain", &slot, scale).await?;
    let expected = payments::yearly_totals(&client).await?;

    let mut reference = Vec::new();
    for round in 1..=scale.rounds {
        let a = backlog.reference(postgres, &client).await?;
        println!("drain {round}: pg_recvlogical {a:.2?}");
        reference.push(a);
        for variant in &mut variants {
            backlog.rewind(&client).await?;
            let data = directory.path().join(format!("round-{round}"));
            timed(Command::new("cp").arg("-a").arg(&variant.kept).arg(&data)).await?;
            let b = product_round(&data, &url, &backlog, &expected).await?;
            std::fs::remove_dir_all(&data)?;
            println!(
                "drain {round}: tidemark, {} aggregate(s) {:.2?}, serving after {:.2} s, {:.2} s from the first transaction",
                variant.aggregates, b.reading, b.serving, b.since_first
            );
            variant.rounds.push(b);
        }
    }
    backlog.end(&client).await?;
    drop(client);
    sql::run(&admin, "DROP DATABASE drain WITH (FORCE)").await?;
    Ok(variants.iter().map(|variant| table(variant, &reference, &backlog)).collect())
}

fn table(variant: &Variant, reference: &[Reading], backlog: &Backlog) -> Table {
    let mut table = Table::new(
        &format!("drain of a backlog, {} aggregate(s)", variant.aggregates),
        &["", "wall s", "rows", "client cpu s", "walsender cpu s", "cpu us/row", "wall s of the rounds"],
    );
    let rounds = &variant.rounds;
    let of_process: Vec<Reading> = rounds.iter().map(|round| round.reading.clone()).collect();
    let from_first: Vec<Reading> =
        rounds.iter().map(|round| Reading { wall: round.since_first, ..round.reading.clone() }).collect();
    for (name, readings) in [
        ("pg_recvlogical to /dev/null", reference),
        ("tidemark, from process start", &of_process),
        ("tidemark, from first transaction", &from_first),
    ] {
        let middle = |of: fn(&Reading) -> f64| median(&readings.iter().map(of).collect::<Vec<_>>());
        let (seconds, cpu) = (middle(|reading| reading.wall), middle(|reading| reading.cpu));
        let walls: Vec<String> = readings.iter().map(|reading| format!("{:.2}", reading.wall)).collect();
        table.row(&[
            name,
            &format!("{seconds:.2}"),
            &rate(backlog.changes, seconds),
            &format!("{cpu:.2}"),
            &format!("{:.2}", middle(|reading| reading.walsender_cpu)),
            &format!("{:.2}", cpu * 1e6 / backlog.changes as f64),
            &walls.join(" "),
        ]);
    }
    let ratio = |readings: &[Reading]| {
        let ratios: Vec<f64> = readings.iter().zip(reference).map(|(b, a)| a.wall / b.wall).collect();
        median(&ratios)
    };
    table.remark(format!(
        "throughput, ratio tidemark / pg_recvlogical, median of rounds: {:.2} from process start, {:.2} from first transaction",
        ratio(&of_process),
        ratio(&from_first)
    ));
    table.remark(backlog.description.clone());
    let peak = rounds.iter().map(|round| round.peak_mib).max().unwrap_or_default();
    let serving = median(&rounds.iter().map(|round| round.serving).collect::<Vec<_>>());
    table.remark(format!(
        "tidemark's start until it serves: {serving:.2} s; its peak memory: {peak} MiB; totals equal Postgres' in every round"
    ));
    if let Some(last) = rounds.last() {
        table.remark(format!("tidemark's cpu by thread, last round: {}", last.by_thread));
    }
    table
}

async fn product_round(data: &Path, url: &str, backlog: &Backlog, expected: &[Vec<String>]) -> anyhow::Result<Round> {
    let walsender = Walsender::watch(url, &backlog.slot).await?;
    let end = sql::position(&backlog.end)?;
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
    // The one row behind the end is among them.
    if seen != backlog.changes + 1 {
        println!("  !! {seen} changes were counted, {} were made", backlog.changes + 1);
    }
    payments::check(&tidemark, expected).await?;
    tidemark.terminate().await?;
    let since_first = wall - first.unwrap_or_default();
    Ok(Round { reading: Reading { wall, cpu, walsender_cpu }, since_first, serving, peak_mib, by_thread })
}
