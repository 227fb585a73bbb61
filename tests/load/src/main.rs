//! Figures of the whole product against something real, in one run on one machine: draining a backlog against
//! `pg_recvlogical`, the snapshot against `psql \copy`, HTTP against a handler that answers the same bytes.
//!
//! Two cores shared with Postgres make absolute figures those of the machine; the ratios within a run are the message.
//!
//!     cargo build --release -p tidemark && cargo run --release -p load -- [--quick] [copy] [front] [drain] [snapshot] [live] [answers] [restart]
//!     ... load restart --accounts 400000 --restarts 60
//!     ... load soak --minutes 45 [--rate PAYMENTS_PER_SECOND] [--seed N] [--memory-mib N] [--pause-ms N] [--csv FILE]
#![allow(clippy::print_stdout, reason = "printing is what this program is for")]

use std::time::Instant;

use anyhow::{Context, bail};
use connectors::postgres::throwaway::ThrowawayPostgres;

mod answers;
mod backlog;
mod bare;
mod copy;
mod drain;
mod figures;
mod front;
mod http;
mod live;
mod payments;
mod process;
mod queries;
mod restart;
mod snapshot;
mod soak;
mod sql;
mod tidemark;
mod visible;
mod writers;

/// How much is done.
#[derive(Clone, Copy, Debug)]
struct Scale {
    rounds: usize,
    preloaded_rows: i64,
    /// Blocks of 50,000 inserts, 5,000 updates and 1,000 deletes.
    drain_blocks: i64,
    snapshot_rows: i64,
    visible_seconds: u64,
    /// Accounts of which each has a payment in 24 months.
    accounts: u64,
    /// Of each combination of server, question and clients.
    query_milliseconds: u64,
    restarts: u64,
}

impl Scale {
    /// Takes `--accounts N` and `--restarts N` out of the arguments.
    fn alter(mut self, arguments: &mut Vec<String>) -> anyhow::Result<Self> {
        for (name, field) in [("--accounts", &mut self.accounts), ("--restarts", &mut self.restarts)] {
            let Some(at) = arguments.iter().position(|argument| argument == name) else { continue };
            let value = arguments.get(at + 1).with_context(|| format!("{name} needs a value"))?;
            *field = value.parse().with_context(|| format!("{name} {value}"))?;
            arguments.drain(at..=at + 1);
        }
        Ok(self)
    }
}

const FULL: Scale = Scale {
    rounds: 5,
    preloaded_rows: 100_000,
    drain_blocks: 20,
    snapshot_rows: 2_000_000,
    visible_seconds: 22,
    accounts: 100_000,
    query_milliseconds: 4_000,
    restarts: 100,
};

const QUICK: Scale = Scale {
    rounds: 1,
    preloaded_rows: 50_000,
    drain_blocks: 4,
    snapshot_rows: 300_000,
    visible_seconds: 5,
    accounts: 10_000,
    query_milliseconds: 400,
    restarts: 5,
};

/// Postgres as both sides of every comparison meet it: no pauses of its own in the middle of a round.
const SETTINGS: [&str; 6] = [
    "shared_buffers=1GB",
    "max_wal_size=16GB",
    "checkpoint_timeout=1h",
    "autovacuum=off",
    "max_connections=60",
    "log_min_messages=fatal",
];

fn main() -> anyhow::Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let [command, bytes] = arguments.as_slice()
        && command == bare::COMMAND
    {
        return runtime.block_on(bare::serve(bytes.parse()?));
    }
    if let Some((front::COMMAND, rest)) = arguments.split_first().map(|(command, rest)| (command.as_str(), rest)) {
        return runtime.block_on(front::run(rest));
    }
    if let Some((soak::COMMAND, rest)) = arguments.split_first().map(|(command, rest)| (command.as_str(), rest)) {
        return soak::run(&runtime, rest);
    }
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let scale = if quick { QUICK } else { FULL }.alter(&mut arguments)?;
    let chosen: Vec<&str> = arguments.iter().map(String::as_str).filter(|argument| *argument != "--quick").collect();
    if let Some(unknown) =
        chosen.iter().find(|part| !["copy", "front", "drain", "snapshot", "live", "answers", "restart"].contains(part))
    {
        bail!("there is no {unknown:?}: use [--quick] [copy] [front] [drain] [snapshot] [live] [answers] [restart]");
    }
    let wanted = |part: &str| chosen.is_empty() || chosen.contains(&part);
    if chosen.is_empty() || chosen.iter().any(|part| !["copy", "front"].contains(part)) {
        tidemark::binary()?;
    }
    let started = Instant::now();
    // Of this thread, which lives as long as the program: the kernel ends the server with it.
    let postgres = ThrowawayPostgres::start(&SETTINGS).map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut tables = vec![runtime.block_on(machine(&postgres, &SETTINGS))?];
    runtime.block_on(async {
        if wanted("copy") {
            tables.push(copy::measure(&postgres, scale).await.context("copy")?);
        }
        if wanted("front") {
            tables.push(front::measure(&postgres, scale).await.context("front")?);
        }
        if wanted("drain") {
            tables.extend(drain::measure(&postgres, scale).await.context("drain")?);
        }
        if wanted("snapshot") {
            tables.push(snapshot::measure(&postgres, scale).await.context("snapshot")?);
        }
        if wanted("live") {
            let stage = live::Stage::set(&postgres, scale).await.context("live")?;
            tables.push(visible::measure(&stage, scale).await.context("commit to visible")?);
            tables.push(queries::measure(&stage, scale).await.context("queries")?);
            stage.end().await?;
        }
        if wanted("answers") {
            tables.push(answers::measure(&postgres, scale).await.context("answers")?);
        }
        if wanted("restart") {
            tables.push(restart::measure(&postgres, scale).await.context("restart")?);
        }
        anyhow::Ok(())
    })?;
    println!("\n================ figures ({:.0} s) ================", started.elapsed().as_secs_f64());
    for table in &tables {
        println!("\n{table}");
    }
    Ok(())
}

/// What the figures are of.
async fn machine(postgres: &ThrowawayPostgres, settings: &[&str]) -> anyhow::Result<figures::Table> {
    let client = sql::connect(&postgres.url()).await?;
    let proc = |file: &str, key: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or(line, |(_, value)| value).trim().to_owned()
    };
    let mut table = figures::Table::new("machine", &["", ""]);
    let cores = std::thread::available_parallelism()?.to_string();
    for (what, is) in [
        ("cores", cores),
        ("processor", proc("/proc/cpuinfo", "model name")),
        ("memory", proc("/proc/meminfo", "MemTotal")),
        ("load average before", proc("/proc/loadavg", "")),
        ("Postgres", sql::value(&client, "SHOW server_version").await?),
        ("its settings", format!("fsync=off {}", settings.join(" "))),
        ("transport", "unix socket to Postgres, loopback TCP for HTTP".to_owned()),
    ] {
        table.row(&[what, &is]);
    }
    Ok(table)
}
