//! The rows that exist before: `psql \copy` throws them away, Tidemark stores them and can be asked.

use std::process::Command;

use anyhow::ensure;
use connectors::postgres::throwaway::ThrowawayPostgres;

use crate::Scale;
use crate::figures::{Table, median, rate};
use crate::process::{cpu_seconds, peak_memory, threads, timed};
use crate::tidemark::Tidemark;
use crate::{payments, sql};

/// What is registered once the source is live.
const LATE: [&str; 2] = ["month_currency", "day_merchant"];

/// Runs it.
pub async fn measure(postgres: &ThrowawayPostgres, scale: Scale) -> anyhow::Result<Table> {
    let admin = sql::connect(&postgres.url()).await?;
    sql::run(&admin, "CREATE DATABASE snapshot").await?;
    let url = postgres.url_of("snapshot");
    let client = sql::connect(&url).await?;
    println!("snapshot: writing {} rows", scale.snapshot_rows);
    payments::create(&client, scale.snapshot_rows).await?;
    payments::insert(&client, 1, scale.snapshot_rows).await?;
    // Both readers find the pages as they will stay.
    sql::run(&client, "VACUUM ANALYZE payments").await?;

    let expected = payments::yearly_totals(&client).await?;
    let directory = tempfile::tempdir()?;
    let (mut copies, mut snapshots, mut cpus, mut late) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut peak, mut bytes, mut by_thread) = (0, 0, String::new());
    for round in 1..=scale.rounds {
        let mut psql = Command::new(postgres.program("psql"));
        psql.args(["-X", "-U", "postgres", "-d", "snapshot", "-h"]).arg(postgres.socket_directory());
        psql.args(["-c", "\\copy (select * from payments) to '/dev/null' (format binary)"]);
        let (copy, _, said) = timed(&mut psql).await?;
        ensure!(said.trim() == format!("COPY {}", scale.snapshot_rows), "psql said {said:?}");
        copies.push(copy);

        let data = directory.path().join(format!("round-{round}"));
        let tidemark = Tidemark::start(&data, &url)?;
        let ready = tidemark.ready().await?.as_secs_f64();
        snapshots.push(ready);
        cpus.push(cpu_seconds(tidemark.pid()));
        by_thread = threads(tidemark.pid());
        let mut took = Vec::new();
        for name in LATE {
            took.push(tidemark.register(name).await?.as_secs_f64());
        }
        payments::check(&tidemark, &expected).await?;
        println!("snapshot {round}: copy {copy:.2} s, tidemark {ready:.2} s, late {took:.2?} s");
        late.push(took);
        peak = peak.max(peak_memory(tidemark.pid()));
        tidemark.terminate().await?;
        bytes = directory_bytes(&data)?;
        let slot =
            sql::value(&client, "SELECT slot_name FROM pg_replication_slots WHERE database = 'snapshot'").await?;
        sql::drop_slot(&client, &slot).await?;
        sql::run(&client, &format!("DROP PUBLICATION {slot}")).await?;
        std::fs::remove_dir_all(&data)?;
    }
    drop(client);
    sql::run(&admin, "DROP DATABASE snapshot WITH (FORCE)").await?;

    let mut table = Table::new(
        &format!("snapshot of {} rows", scale.snapshot_rows),
        &["", "wall s", "rows", "ratio to copy", "wall s of the rounds"],
    );
    let mut rows = vec![
        ("psql \\copy binary to /dev/null".to_owned(), copies.clone()),
        ("tidemark, process start to ready".to_owned(), snapshots),
    ];
    for (index, name) in LATE.iter().enumerate() {
        let took = late.iter().filter_map(|round| round.get(index).copied()).collect();
        rows.push((format!("late registration, {name}"), took));
    }
    for (name, walls) in rows {
        let ratios: Vec<f64> = walls.iter().zip(&copies).map(|(wall, copy)| wall / copy).collect();
        let all: Vec<String> = walls.iter().map(|wall| format!("{wall:.2}")).collect();
        let wall = median(&walls);
        table.row(&[
            &name,
            &format!("{wall:.2}"),
            &rate(scale.snapshot_rows, wall),
            &format!("{:.2}", median(&ratios)),
            &all.join(" "),
        ]);
    }
    table.remark(format!(
        "tidemark's cpu until ready: {:.2} s; peak memory, late registrations included: {peak} MiB; data directory: {} MiB",
        median(&cpus),
        bytes >> 20
    ));
    table.remark(format!("cpu until ready by thread, last round: {by_thread}"));
    Ok(table)
}

fn directory_bytes(directory: &std::path::Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { directory_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}
