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
use crate::writers::Writers;

const QUESTIONS: [(&str, &str); 2] = [
    ("point", "/v1/aggregates/month_currency/data?granularity=month&from=2024-03&to=2024-04&where=currency:'EUR'"),
    ("12 buckets", "/v1/aggregates/month_currency/data?granularity=month&from=2024-01&to=2025-01&where=currency:'EUR'"),
];

/// Runs it.
pub async fn measure(stage: &Stage, scale: Scale) -> anyhow::Result<Table> {
    let mut table = Table::new(
        "HTTP, keep-alive",
        &["question", "clients", "writes", "tidemark/s", "p50", "p99", "bare/s", "p50", "p99", "ratio of /s"],
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
                for _ in 0..2 {
                    product.add(ask(stage.tidemark.address, path, clients, duration / 2).await?);
                    reference.add(ask(bare.address, "/", clients, duration / 2).await?);
                }
                let (product, reference) = (product.figures(), reference.figures());
                let row = [
                    format!("{name} ({bytes} bytes)"),
                    clients.to_string(),
                    if writing { "yes".to_owned() } else { "no".to_owned() },
                    format!("{:.0}", product.0),
                    product.1.quantile(0.5),
                    product.1.quantile(0.99),
                    format!("{:.0}", reference.0),
                    reference.1.quantile(0.5),
                    reference.1.quantile(0.99),
                    format!("{:.2}", product.0 / reference.0),
                ];
                table.row(&row.each_ref().map(String::as_str));
            }
        }
        if let Some(writers) = writers {
            table.remark(format!("writes meanwhile: {:.0} transactions/s ({RATE} wanted)", writers.end().await?));
        }
    }
    Ok(table)
}

/// Answers of several stretches.
#[derive(Default)]
struct Tally {
    seconds: f64,
    latencies: Vec<Duration>,
}

impl Tally {
    fn add(&mut self, (seconds, latencies): (f64, Vec<Duration>)) {
        self.seconds += seconds;
        self.latencies.extend(latencies);
    }

    /// Answers per second, and how long they took.
    fn figures(self) -> (f64, Latencies) {
        (self.latencies.len() as f64 / self.seconds, Latencies::new(self.latencies))
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
