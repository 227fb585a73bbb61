//! Questions over HTTP, against a handler that answers as many bytes without thinking.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::task::JoinSet;

use crate::Scale;
use crate::bare::Bare;
use crate::figures::{Latencies, Table};
use crate::http::Http;
use crate::live::{RATE, Stage};
use crate::process::cpu_seconds;
use crate::writers::Writers;

const QUESTIONS: [(&str, &str); 2] = [
    ("point", "/v1/aggregates/month_currency/data?granularity=month&from=2024-03&to=2024-04&where=currency:'EUR'"),
    ("12 buckets", "/v1/aggregates/month_currency/data?granularity=month&from=2024-01&to=2025-01&where=currency:'EUR'"),
];

/// The servers take turns so many times.
const STRETCHES: u32 = 4;

/// Runs it.
pub async fn measure(stage: &Stage, scale: Scale) -> anyhow::Result<Table> {
    let mut table = Table::new(
        "HTTP, keep-alive",
        &[
            "question",
            "clients",
            "writes",
            "tidemark/s",
            "p50",
            "p99",
            "cpu us",
            "bare/s",
            "p50",
            "p99",
            "cpu us",
            "/s ratio",
            "cpu ratio",
        ],
    );
    let duration = Duration::from_millis(scale.query_milliseconds);
    for writing in [false, true] {
        println!("queries: {}", if writing { "while writes go on" } else { "idle" });
        let writers = if writing { Some(Writers::start(&stage.url, RATE, None).await?) } else { None };
        for (name, path) in QUESTIONS {
            let mut http = stage.tidemark.http().await?;
            let (status, body) = http.exchange(&Http::request(path)).await?;
            ensure!(status == 200, "{path}: {status} {}", String::from_utf8_lossy(body));
            let bytes = body.len();
            let bare = Bare::start(bytes)?;
            for clients in [1, 4] {
                let (mut product, mut reference) = (Tally::default(), Tally::default());
                for _ in 0..STRETCHES {
                    let duration = duration / STRETCHES;
                    product.ask(stage.tidemark.address, stage.tidemark.pid(), path, clients, duration).await?;
                    reference.ask(bare.address, bare.pid(), "/", clients, duration).await?;
                }
                let (product, reference) = (product.figures(), reference.figures());
                let row = [
                    format!("{name} ({bytes} bytes)"),
                    clients.to_string(),
                    if writing { "yes".to_owned() } else { "no".to_owned() },
                    format!("{:.0}", product.0),
                    product.1.quantile(0.5),
                    product.1.quantile(0.99),
                    format!("{:.1}", product.2),
                    format!("{:.0}", reference.0),
                    reference.1.quantile(0.5),
                    reference.1.quantile(0.99),
                    format!("{:.1}", reference.2),
                    format!("{:.2}", product.0 / reference.0),
                    format!("{:.1}", product.2 / reference.2),
                ];
                table.row(&row.each_ref().map(String::as_str));
            }
        }
        if let Some(writers) = writers {
            table.remark(format!("writes meanwhile: {:.0} transactions/s ({RATE} wanted)", writers.end().await?));
        }
    }
    table.remark("cpu us: of the server, for one answer; with writes, what it spends on those is in it".to_owned());
    Ok(table)
}

/// Answers of several stretches.
#[derive(Default)]
struct Tally {
    seconds: f64,
    cpu: f64,
    latencies: Vec<Duration>,
}

impl Tally {
    /// One stretch more.
    async fn ask(
        &mut self,
        address: SocketAddr,
        pid: u32,
        path: &str,
        clients: usize,
        duration: Duration,
    ) -> anyhow::Result<()> {
        let before = cpu_seconds(pid);
        let (seconds, latencies) = ask(address, path, clients, duration).await?;
        self.cpu += cpu_seconds(pid) - before;
        self.seconds += seconds;
        self.latencies.extend(latencies);
        Ok(())
    }

    /// Answers per second, how long they took, and the server's CPU time for one in microseconds.
    fn figures(self) -> (f64, Latencies, f64) {
        let answers = self.latencies.len() as f64;
        (answers / self.seconds, Latencies::new(self.latencies), self.cpu * 1e6 / answers)
    }
}

/// Asks as fast as answers come.
async fn ask(
    address: SocketAddr,
    path: &str,
    clients: usize,
    duration: Duration,
) -> anyhow::Result<(f64, Vec<Duration>)> {
    let mut asking = JoinSet::new();
    let started = Instant::now();
    for _ in 0..clients {
        let request = Http::request(path);
        asking.spawn(async move {
            let mut http = Http::connect(address).await?;
            let mut latencies = Vec::with_capacity(100_000);
            let begin = Instant::now();
            while begin.elapsed() < duration {
                let asked = Instant::now();
                let (status, _) = http.exchange(&request).await?;
                latencies.push(asked.elapsed());
                ensure!(status == 200, "status {status}");
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Vec::new();
    for one in asking.join_all().await {
        latencies.extend(one?);
    }
    Ok((started.elapsed().as_secs_f64(), latencies))
}
