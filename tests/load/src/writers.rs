//! Small transactions at a steady rate, over several connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_postgres::{Client, Statement};

use crate::sql;

const CONNECTIONS: u64 = 8;
/// One transaction in so many is told about.
const SAMPLED: i64 = 10;

/// A transaction that was committed.
#[derive(Debug)]
pub struct Committed {
    /// When the client heard of it.
    pub at: Instant,
    /// At or behind its end.
    pub lsn: String,
    /// A merchant that has this payment only.
    pub merchant: String,
    /// Its amount.
    pub amount: String,
}

/// Writers that go on.
#[derive(Debug)]
pub struct Writers {
    started: Instant,
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<anyhow::Result<()>>>,
}

/// Over all writers of this process, so that no id comes twice.
static NEXT_ID: AtomicI64 = AtomicI64::new(1_000_000_000);

impl Writers {
    /// So many transactions per second; a sample of them is told to `samples`.
    pub async fn start(url: &str, rate: u64, samples: Option<UnboundedSender<Committed>>) -> anyhow::Result<Self> {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut sessions = Vec::new();
        for _ in 0..CONNECTIONS {
            let client = sql::connect(url).await?;
            let insert = "INSERT INTO payments VALUES ($1::int8, $2::text, 'EUR', $3::text::numeric, 'settled',
                              timestamptz '2026-03-01 12:00:00+00')";
            let insert = client.prepare(insert).await?;
            let position = client.prepare("SELECT pg_current_wal_lsn()::text").await?;
            sessions.push((client, insert, position));
        }
        let started = Instant::now();
        let period = Duration::from_secs(1) * CONNECTIONS as u32 / rate as u32;
        let mut tasks = Vec::new();
        for (index, session) in sessions.into_iter().enumerate() {
            let (stop, committed, samples) = (Arc::clone(&stop), Arc::clone(&committed), samples.clone());
            let first = tokio::time::Instant::from_std(started) + period * index as u32 / CONNECTIONS as u32;
            let mut ticks = tokio::time::interval_at(first, period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    transaction(&session, samples.as_ref()).await?;
                    committed.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        Ok(Writers { started, stop, committed, tasks })
    }

    /// Ends them; transactions per second that there were.
    pub async fn end(self) -> anyhow::Result<f64> {
        let rate = self.committed.load(Ordering::Relaxed) as f64 / self.started.elapsed().as_secs_f64();
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        Ok(rate)
    }
}

async fn transaction(
    (client, insert, position): &(Client, Statement, Statement),
    samples: Option<&UnboundedSender<Committed>>,
) -> anyhow::Result<()> {
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let sampled = samples.filter(|_| id % SAMPLED == 0);
    let merchant = if sampled.is_some() { format!("sample-{id}") } else { format!("merchant-{}", id % 10_000) };
    let amount = format!("{}.{:02}", id % 100_000, id % 100);
    client.execute(insert, &[&id, &merchant, &amount]).await.context("insert")?;
    let at = Instant::now();
    if samples.is_some() {
        let lsn: String = client.query_one(position, &[]).await?.try_get(0)?;
        if let Some(samples) = sampled {
            let _ = samples.send(Committed { at, lsn, merchant, amount });
        }
    }
    Ok(())
}
