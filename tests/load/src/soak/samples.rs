//! What the kernel, the disk, Postgres and the product itself say of the process, each second.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;

use crate::http::Http;
use crate::soak::trend::Trend;
use crate::tidemark::Tidemark;
use crate::{figures, process, sql};

/// One second of many goes into the file.
const KEPT_OF: usize = 10;

/// How long no answer may hold what was committed.
const PATIENCE: Duration = Duration::from_secs(120);

const MIB: f64 = 1_048_576.0;

/// One moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Since the beginning.
    pub second: f64,
    /// Resident.
    pub resident_mib: f64,
    /// Of that what no file backs.
    pub anonymous_mib: f64,
    /// Open descriptors.
    pub descriptors: f64,
    /// Threads.
    pub threads: f64,
    /// The data directory.
    pub store_mib: f64,
    /// Log that Postgres keeps for the slot.
    pub retained_wal_mib: f64,
    /// Cells that the workers hold.
    pub cells_in_memory: f64,
    /// Blocks of table files, which stay until their room is needed.
    pub block_cache_mib: f64,
    /// What is written and not yet in table files.
    pub memtables_mib: f64,
    /// From asking Postgres for the end of its log to an answer that holds it.
    pub lag: Duration,
}

/// All of them.
#[derive(Debug)]
pub struct Samples(Vec<Sample>);

/// What a column of the samples is.
pub type Column = fn(&Sample) -> f64;

impl Samples {
    /// Takes them until the time is over or `broken` says so. The file has a line as soon as it is known, so that a long run can be
    /// watched.
    pub async fn take(
        tidemark: &Tidemark,
        client: &Client,
        data: &Path,
        duration: Duration,
        file: Option<&Path>,
        mut broken: impl FnMut() -> bool,
    ) -> anyhow::Result<Self> {
        let mut file = file.map(Lines::create).transpose()?;
        let mut http = tidemark.http().await?;
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (began, mut samples) = (Instant::now(), Vec::new());
        while began.elapsed() < duration {
            ticks.tick().await;
            ensure!(!broken(), "somebody who writes or asks has ended before the time");
            let sample = Sample::take(tidemark, client, &mut http, data, began).await?;
            if let Some(file) = file.as_mut().filter(|_| samples.len() % KEPT_OF == 0) {
                file.write(&sample)?;
            }
            samples.push(sample);
        }
        Ok(Samples(samples))
    }

    /// Without the first share of them.
    pub fn after(&self, share: f64) -> Samples {
        Samples(self.0.iter().skip((self.0.len() as f64 * share) as usize).copied().collect())
    }

    /// The share of them that went by until a column first had so much of the most that it ever had.
    pub fn share_until(&self, column: Column, of_most: f64) -> f64 {
        let enough = self.range(column).1 * of_most;
        self.0.iter().take_while(|sample| column(sample) < enough).count() as f64 / self.0.len() as f64
    }

    /// The middle and the largest value.
    pub fn range(&self, column: Column) -> (f64, f64) {
        let values: Vec<f64> = self.0.iter().map(column).collect();
        (figures::median(&values), values.iter().copied().fold(0.0, f64::max))
    }

    /// By how much the middle of the last quarter is above that of the second, which the first one warmed up.
    pub fn risen(&self, column: Column) -> f64 {
        let quarter = self.0.len() / 4;
        let middle =
            |samples: &mut dyn Iterator<Item = &Sample>| figures::median(&samples.map(column).collect::<Vec<_>>());
        middle(&mut self.0.iter().rev().take(quarter)) - middle(&mut self.0.iter().skip(quarter).take(quarter))
    }

    /// How a column grows.
    pub fn trend(&self, column: Column) -> Option<Trend> {
        Trend::of(&self.0.iter().map(|sample| (sample.second, column(sample))).collect::<Vec<_>>())
    }

    /// From a commit to an answer.
    pub fn lags(&self) -> figures::Latencies {
        figures::Latencies::new(self.0.iter().map(|sample| sample.lag).collect())
    }
}

impl Sample {
    async fn take(
        tidemark: &Tidemark,
        client: &Client,
        http: &mut Http,
        data: &Path,
        began: Instant,
    ) -> anyhow::Result<Self> {
        const RETAINED: &str =
            "SELECT coalesce(max(pg_current_wal_lsn() - restart_lsn), 0)::bigint FROM pg_replication_slots";
        let pid = tidemark.pid();
        let kib = |key| process::status(pid, key) as f64 / 1024.0;
        let metrics = http.exchange(&Http::request("/metrics")).await?;
        let metrics = String::from_utf8_lossy(metrics.1).into_owned();
        Ok(Sample {
            second: began.elapsed().as_secs_f64(),
            resident_mib: kib("VmRSS:"),
            anonymous_mib: kib("RssAnon:"),
            descriptors: process::descriptors(pid) as f64,
            threads: process::status(pid, "Threads:") as f64,
            store_mib: size(data.to_owned()) as f64 / MIB,
            retained_wal_mib: sql::value(client, RETAINED).await?.parse::<f64>()? / MIB,
            cells_in_memory: metric(&metrics, "tidemark_cells_cached")?,
            block_cache_mib: metric(&metrics, r#"tidemark_store_memory_bytes{part="block_cache"}"#)? / MIB,
            memtables_mib: metric(&metrics, r#"tidemark_store_memory_bytes{part="memtables"}"#)? / MIB,
            lag: lag(client, http).await?,
        })
    }
}

/// A question that needs no turn among the large ones. Where it is refused all the same, the time until it is not counts.
async fn lag(client: &Client, http: &mut Http) -> anyhow::Result<Duration> {
    let asked = Instant::now();
    let lsn = sql::end_of_log(client).await?;
    let path = format!(
        "/v1/aggregates/by_account/data?granularity=year&from=2024&to=2025&where=account:1&min_lsn={lsn}&wait=25s"
    );
    loop {
        let (status, body) = http.get(&path).await?;
        match status {
            200 => return Ok(asked.elapsed()),
            429 | 503 if asked.elapsed() < PATIENCE => println!("    {status}: {path}: {body}"),
            _ => bail!("{path}: {status} {body}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn metric(metrics: &str, name: &str) -> anyhow::Result<f64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).with_context(|| format!("{name} is not in /metrics"))
}

/// Bytes of the files below a directory; those that go meanwhile do not count.
fn size(directory: PathBuf) -> u64 {
    let (mut bytes, mut left) = (0, vec![directory]);
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => left.push(entry.path()),
                Ok(metadata) => bytes += metadata.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}

/// A file of comma-separated values.
struct Lines(File);

impl Lines {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let mut file = File::create(path).with_context(|| path.display().to_string())?;
        writeln!(
            file,
            "second,resident_mib,anonymous_mib,descriptors,threads,store_mib,retained_wal_mib,cells_in_memory,block_cache_mib,memtables_mib,lag_ms"
        )?;
        Ok(Lines(file))
    }

    fn write(&mut self, sample: &Sample) -> anyhow::Result<()> {
        let Sample { second, resident_mib, anonymous_mib, descriptors, threads, store_mib, .. } = sample;
        let Sample { retained_wal_mib, cells_in_memory, block_cache_mib, memtables_mib, lag, .. } = sample;
        let lag_ms = lag.as_secs_f64() * 1e3;
        Ok(writeln!(
            self.0,
            "{second:.0},{resident_mib:.1},{anonymous_mib:.1},{descriptors},{threads},{store_mib:.1},{retained_wal_mib:.1},{cells_in_memory},{block_cache_mib:.1},{memtables_mib:.1},{lag_ms:.1}"
        )?)
    }
}
