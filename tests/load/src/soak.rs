//! An hour of everything at once, for what grows: memory, descriptors, threads, the store. The table has a steady size while a year of
//! event time passes, so whatever still goes up once it is warm is kept by mistake: after the first quarter of the run, and once
//! RocksDB's cache of blocks has the room that it was given, which takes an hour where little is read.
//!
//! A slope is a figure and no assertion: its interval says how well so short a run can know it. A wrong total is an error, and so are
//! memory above the budget and descriptors or threads that become more.

mod clients;
mod samples;
mod totals;
mod trend;
mod turnover;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use connectors::postgres::throwaway::ThrowawayPostgres;

use crate::figures::Table;
use crate::process::cpu_seconds;
use crate::tidemark::Tidemark;
use crate::{machine, sql};
use clients::Tally;
use samples::{Column, Samples};
use totals::TOTALS;
use turnover::{Turnover, Writers};

/// The argument that makes this program a soak.
pub const COMMAND: &str = "soak";

/// Postgres as it is run for long: it cleans up behind deletions, and throws its log away.
const SETTINGS: [&str; 5] = [
    "shared_buffers=256MB",
    "max_wal_size=1GB",
    "max_connections=40",
    "autovacuum_naptime=10s",
    "log_min_messages=fatal",
];

/// What is not looked at of a run, at least.
const WARM_UP: f64 = 0.25;
/// A cache of blocks that holds so much of the most that it ever held is full, where that was not in the last quarter.
const FULL: f64 = 0.95;
const NOT_FULL: f64 = 0.75;
/// What it may take beside its budget.
const ABOVE_BUDGET: f64 = 1.2;
/// So many descriptors or threads more at the end are files that the store has come to hold; what leaks with each answer is thousands.
const MORE: f64 = 16.0;

/// What is run.
#[derive(Debug)]
struct Options {
    minutes: u64,
    /// Payments inserted per second; as many are deleted, half as many move.
    rate: u64,
    seed: u64,
    /// The budget. The less, the sooner caches are full; 128 is too little to be kept to.
    memory_mib: u64,
    /// Between two questions of a reader.
    pause: Duration,
    csv: Option<PathBuf>,
}

impl Options {
    fn parse(arguments: &[String]) -> anyhow::Result<Self> {
        let pause = Duration::from_millis(100);
        let mut options = Options { minutes: 45, rate: 1_500, seed: 20_261_129, memory_mib: 256, pause, csv: None };
        let mut arguments = arguments.iter();
        while let Some(name) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--minutes" => options.minutes = value.parse()?,
                "--rate" => options.rate = value.parse()?,
                "--seed" => options.seed = value.parse()?,
                "--memory-mib" => options.memory_mib = value.parse()?,
                "--pause-ms" => options.pause = Duration::from_millis(value.parse()?),
                "--csv" => options.csv = Some(value.into()),
                _ => bail!("there is no {name}: use --minutes --rate --seed --memory-mib --pause-ms --csv"),
            }
        }
        ensure!(
            options.minutes > 0 && options.rate > 0 && !options.pause.is_zero(),
            "a soak needs time, payments and pauses"
        );
        Ok(options)
    }
}

/// Runs it; an error where a total was wrong. To be called on the main thread: the kernel ends the servers with that.
pub fn run(runtime: &tokio::runtime::Runtime, arguments: &[String]) -> anyhow::Result<()> {
    let options = Options::parse(arguments)?;
    let postgres = ThrowawayPostgres::start(&SETTINGS).map_err(|error| anyhow::anyhow!("{error}"))?;
    println!("{}", runtime.block_on(machine(&postgres, &SETTINGS))?);
    runtime.block_on(soak(&postgres, &options))
}

async fn soak(postgres: &ThrowawayPostgres, options: &Options) -> anyhow::Result<()> {
    let duration = Duration::from_secs(options.minutes * 60);
    let url = postgres.url();
    let client = sql::connect(&url).await?;
    let turnover = Turnover::create(&client, options.rate, duration).await?;
    println!("soak: {options:?}, a table of {} payments", turnover.window());
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");
    let memory = format!("{}MiB", options.memory_mib);
    let tidemark = Tidemark::start_with(&data, &url, &["--memory", &memory])?;
    tidemark.ready().await?;
    for total in &TOTALS {
        tidemark.register_as(total.name, &total.definition()).await?;
    }
    let tally = Arc::new(Tally::default());
    let writers = Writers::start(&url, &turnover, options.rate, options.seed).await?;
    let mut clients = clients::start(tidemark.address, &turnover, &tally, options.seed, options.pause);
    let cpu_before = cpu_seconds(tidemark.pid());
    let mut failure = None;
    let samples = Samples::take(&tidemark, &client, &data, duration, options.csv.as_deref(), || {
        failure = clients.try_join_next();
        failure.is_some() || writers.any_ended()
    })
    .await;
    if let Some(failed) = failure {
        failed??;
    }
    let cpu = (cpu_seconds(tidemark.pid()) - cpu_before) / duration.as_secs_f64();
    let rates = writers.end().await?;
    let samples = samples?;
    clients.shutdown().await;
    let (cells, differing) = totals::compare(&tidemark, &client).await?;
    let took = tidemark.terminate().await?;

    println!("\n{}", growth(&samples, options));
    println!("{}", memory_against_budget(&samples, options));
    let mut table = Table::new("what was done meanwhile", &["", ""]);
    let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let latencies = tally.latencies();
    let lags = samples.after(WARM_UP).lags();
    for (what, is) in [
        ("payments, changed rows, transactions a second", format!("{:.0}, {:.0}, {:.0}", rates.0, rates.1, rates.2)),
        ("days of event time", turnover.days().to_string()),
        ("cores of tidemark", format!("{cpu:.2}")),
        ("lag p50, p99, most", [0.5, 0.99, 1.0].map(|share| lags.quantile(share)).join(", ")),
        ("answers", tally.answers()),
        ("answers p50, p99, most", [0.5, 0.99, 1.0].map(|share| latencies.quantile(share)).join(", ")),
        ("live events read, times cut off", format!("{}, {}", count(&tally.events), count(&tally.events_cut))),
        ("live answers never read", count(&tally.unread).to_string()),
        (
            "registered late and dropped, of those wrong",
            format!("{}, {}", count(&tally.registered), count(&tally.wrong)),
        ),
        ("cells compared with GROUP BY, of those wrong", format!("{cells}, {differing}")),
        ("end after SIGTERM", format!("{:.2} s", took.as_secs_f64())),
    ] {
        table.row(&[what, &is]);
    }
    println!("{table}");
    ensure!(differing == 0 && count(&tally.wrong) == 0, "totals are wrong");
    bounded(&samples, options)
}

/// Nothing that any run can see to be too much.
fn bounded(samples: &Samples, options: &Options) -> anyhow::Result<()> {
    let (_, most) = samples.range(|sample| sample.resident_mib);
    ensure!(most <= options.memory_mib as f64 * ABOVE_BUDGET, "{most:.0} MiB resident of {}", options.memory_mib);
    for (what, column) in
        [("descriptors", (|sample| sample.descriptors) as Column), ("threads", |sample| sample.threads)]
    {
        let risen = samples.risen(column);
        ensure!(risen <= MORE, "{risen} {what} more than in the second quarter of the run");
    }
    Ok(())
}

fn growth(samples: &Samples, options: &Options) -> Table {
    const COLUMNS: [(&str, Column); 10] = [
        ("resident MiB", |sample| sample.resident_mib),
        ("of that anonymous MiB", |sample| sample.anonymous_mib),
        ("block cache MiB", |sample| sample.block_cache_mib),
        ("memtables MiB", |sample| sample.memtables_mib),
        ("resident but for these two MiB", |sample| {
            sample.resident_mib - sample.block_cache_mib - sample.memtables_mib
        }),
        ("descriptors", |sample| sample.descriptors),
        ("threads", |sample| sample.threads),
        ("store MiB", |sample| sample.store_mib),
        ("log kept by Postgres MiB", |sample| sample.retained_wal_mib),
        ("cells in memory", |sample| sample.cells_in_memory),
    ];
    let full = samples.share_until(|sample| sample.block_cache_mib, FULL);
    let (warm, why) = if full > NOT_FULL {
        (WARM_UP, "the cache of blocks was not full yet")
    } else {
        (full.max(WARM_UP), "the cache of blocks is full")
    };
    let samples = samples.after(warm);
    let mut table = Table::new(
        &format!("growth after {:.0} of {} minutes: {why}", warm * options.minutes as f64, options.minutes),
        &["", "median", "most", "an hour", "95 %", "batches", "worth"],
    );
    for (name, column) in COLUMNS {
        let (median, most) = samples.range(column);
        let mut row = vec![name.to_owned(), format!("{median:.1}"), format!("{most:.1}")];
        if let Some(trend) = samples.trend(column) {
            row.push(format!("{:+.2}{}", trend.per_hour, if trend.may_be_zero() { "" } else { " !" }));
            row.push(format!("{:+.2} to {:+.2}", trend.per_hour - trend.margin, trend.per_hour + trend.margin));
            row.extend([trend.batches.to_string(), format!("{:.1}", trend.effective_batches)]);
        }
        table.row(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    table.remark("!: the interval does not hold 0".to_owned());
    table
}

/// Of the whole run: a budget holds from the start.
fn memory_against_budget(samples: &Samples, options: &Options) -> Table {
    let (median, most) = samples.range(|sample| sample.resident_mib);
    let budget = options.memory_mib as f64;
    let mut table =
        Table::new("resident against the budget, whole run", &["MiB", "budget", "aim", "median", "most", ""]);
    let kept = if most <= budget * ABOVE_BUDGET { "within the aim" } else { "above the aim" };
    let figures = [budget, budget * ABOVE_BUDGET, median, most].map(|mib| format!("{mib:.0}"));
    let [budget, aim, median, most] = figures.each_ref().map(String::as_str);
    table.row(&["", budget, aim, median, most, kept]);
    table
}
