//! From a commit that the client has heard of to an answer over HTTP that contains it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::Scale;
use crate::figures::{Latencies, Table};
use crate::http::Http;
use crate::live::{RATE, Stage};
use crate::process::cpu_seconds;
use crate::writers::{Committed, Writers};

/// The first moments are not counted.
const WARM_UP: Duration = Duration::from_secs(2);

/// Connections that are open and free, with when they became so. The server closes idle ones after ten seconds.
type Pool = Arc<Mutex<Vec<(Instant, Http)>>>;

/// What became of one sample.
struct Seen {
    commit: Instant,
    to_visible: Duration,
    /// Of that, the HTTP request.
    request: Duration,
    exact: bool,
}

/// Runs it.
pub async fn measure(stage: &Stage, scale: Scale) -> anyhow::Result<Table> {
    let (samples, mut committed) = mpsc::unbounded_channel();
    let address = stage.tidemark.address;
    let pool = Pool::default();
    let started = Instant::now();
    let cpu_before = cpu_seconds(stage.tidemark.pid());
    println!("visible: {RATE} transactions/s for {} s", scale.visible_seconds);
    let writers = Writers::start(&stage.url, RATE, Some(samples)).await?;
    let until = tokio::time::Instant::now() + Duration::from_secs(scale.visible_seconds);
    let mut asking = JoinSet::new();
    while let Ok(Some(sample)) = tokio::time::timeout_at(until, committed.recv()).await {
        asking.spawn(ask(address, Arc::clone(&pool), sample));
    }
    let cpu = (cpu_seconds(stage.tidemark.pid()) - cpu_before) / started.elapsed().as_secs_f64();
    let achieved = writers.end().await?;
    let (mut to_visible, mut requests, mut wrong) = (Vec::new(), Vec::new(), 0);
    for seen in asking.join_all().await {
        let seen = seen?;
        wrong += u64::from(!seen.exact);
        if seen.commit > started + WARM_UP {
            to_visible.push(seen.to_visible);
            requests.push(seen.request);
        }
    }
    let mut table = Table::new(
        &format!("commit to visible at {achieved:.0} transactions/s ({RATE} wanted)"),
        &["", "samples", "p50", "p90", "p99", "max"],
    );
    for (name, durations) in
        [("commit heard until answered", to_visible), ("of that, the HTTP request with min_lsn", requests)]
    {
        let latencies = Latencies::new(durations);
        let quantiles = [0.5, 0.9, 0.99, 1.0].map(|share| latencies.quantile(share));
        let [p50, p90, p99, max] = &quantiles;
        table.row(&[name, &latencies.count().to_string(), p50, p90, p99, max]);
    }
    table.remark(format!("answers that did not show exactly the payment: {wrong}; tidemark's cpu: {cpu:.2} cores"));
    Ok(table)
}

async fn ask(address: SocketAddr, pool: Pool, sample: Committed) -> anyhow::Result<Seen> {
    let free = || {
        let mut pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.pop().filter(|(since, _)| since.elapsed() < Duration::from_secs(5))
    };
    let mut http = match free() {
        Some((_, http)) => http,
        None => Http::connect(address).await?,
    };
    let path = format!(
        "/v1/aggregates/day_merchant/data?granularity=day&from=2026-03-01&to=2026-03-02&where=merchant:'{}'&min_lsn={}&wait=5s",
        sample.merchant, sample.lsn
    );
    let asked = Instant::now();
    let answer = http.ok(&path).await?;
    let (to_visible, request) = (sample.at.elapsed(), asked.elapsed());
    let rows = answer.get("data").and_then(Value::as_array).cloned().unwrap_or_default();
    let exact = matches!(rows.as_slice(), [row] if row.get("amount").and_then(Value::as_str) == Some(&sample.amount)
        && row.get("n").is_some_and(|n| n == 1 || n == "1"));
    if !exact {
        println!("  !! {path}: {answer}, expected {}", sample.amount);
    }
    pool.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), http));
    Ok(Seen { commit: sample.at, to_visible, request, exact })
}
