//! Those who ask while it runs: readers at a steady rate, one live answer that is read, one that never is, and one who registers
//! an aggregate each minute, looks whether it adds up to what another one of the same moment does, and drops it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chrono::{Datelike, NaiveDate, TimeDelta};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::figures::Latencies;
use crate::http::Http;
use crate::soak::totals::{LATE, TOTALS};
use crate::soak::turnover::{ACCOUNTS, KINDS, Turnover};

const READERS: u64 = 4;
/// Of a walk through pages; their moment is then kept for a minute more.
const PAGES: usize = 3;
/// How often an aggregate is registered, and a new answer asked for that is not read.
const EVERY: Duration = Duration::from_secs(60);
/// How long filling it may take.
const FILLING: Duration = Duration::from_secs(120);

/// What became of all of it.
#[derive(Debug, Default)]
pub struct Tally {
    /// By status.
    answers: Mutex<BTreeMap<u16, u64>>,
    latencies: Mutex<Vec<Duration>>,
    /// Events of the live answer that is read.
    pub events: AtomicU64,
    /// Times that it had to be asked for again.
    pub events_cut: AtomicU64,
    /// Live answers that were not read.
    pub unread: AtomicU64,
    /// Aggregates registered late, and dropped.
    pub registered: AtomicU64,
    /// Totals of those that were wrong.
    pub wrong: AtomicU64,
}

impl Tally {
    fn count(&self, status: u16, took: Duration) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() += 1;
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner).push(took);
    }

    /// `107932 x 200`.
    pub fn answers(&self) -> String {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.iter().map(|(status, count)| format!("{count} x {status}")).collect::<Vec<_>>().join(", ")
    }

    /// Of readers' questions.
    pub fn latencies(&self) -> Latencies {
        Latencies::new(self.latencies.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Starts all of them; each reader has a pause between two questions. They go on until the set is dropped; one that ends has failed.
pub fn start(
    address: SocketAddr,
    turnover: &Arc<Turnover>,
    tally: &Arc<Tally>,
    seed: u64,
    pause: Duration,
) -> JoinSet<anyhow::Result<()>> {
    let mut clients = JoinSet::new();
    for number in 0..READERS {
        let rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5EED ^ (number << 32));
        clients.spawn(read(address, Arc::clone(turnover), Arc::clone(tally), rng, pause));
    }
    clients.spawn(listen(address, Arc::clone(tally)));
    clients.spawn(never_read(address, Arc::clone(tally)));
    clients.spawn(come_and_go(address, Arc::clone(tally)));
    clients
}

async fn read(
    address: SocketAddr,
    turnover: Arc<Turnover>,
    tally: Arc<Tally>,
    mut rng: ChaCha8Rng,
    pause: Duration,
) -> anyhow::Result<()> {
    let mut http = Http::connect(address).await?;
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (path, pages) = question(&turnover, &mut rng);
        let mut page = path.clone();
        for _ in 0..pages {
            let asked = Instant::now();
            let (status, answer) = http.get(&page).await?;
            tally.count(status, asked.elapsed());
            if status != 200 {
                println!("    {status}: {page}: {answer}");
            }
            match answer.pointer("/page/next").and_then(Value::as_str) {
                Some(next) => page = format!("{path}&cursor={next}"),
                None => break,
            }
        }
    }
}

/// A path, and of how many pages the answer is read.
fn question(turnover: &Turnover, rng: &mut ChaCha8Rng) -> (String, usize) {
    let day = turnover.some_day(rng);
    let next_day = day.checked_add_signed(TimeDelta::days(1)).unwrap_or(NaiveDate::MAX);
    let month = format!("{}-{:02}", day.year(), day.month());
    let account = rng.random_range(0..ACCOUNTS);
    let kind = KINDS.get(rng.random_range(0..KINDS.len())).copied().unwrap_or_default();
    let of_account = "/v1/aggregates/by_account/data?granularity";
    match rng.random_range(0..32) {
        0..16 => (format!("{of_account}=day&from={day}&to={next_day}&where=account:{account}"), 1),
        16..20 => (format!("{of_account}=year&from={}&where=account:{account}", day.year()), 1),
        20..24 => (format!("/v1/aggregates/by_hour/data?granularity=day&from={month}&where=kind:{kind}"), 1),
        24..28 => (format!("{of_account}=month&from={month}&order=-summed&limit=10"), 1),
        28..30 => (format!("{of_account}=day&from={day}&limit=1000"), PAGES),
        30 => (format!("/v1/aggregates/by_weight/data?granularity=day&from={month}"), 1),
        _ => (format!("/v1/aggregates/by_hour/rows?from={day}&to={next_day}&where=kind:{kind}&limit=50"), 1),
    }
}

const LIVE: &str =
    "GET /v1/aggregates/by_account/live?granularity=month&limit=10000 HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Reads a live answer for ever.
async fn listen(address: SocketAddr, tally: Arc<Tally>) -> anyhow::Result<()> {
    loop {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(LIVE.as_bytes()).await?;
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).await? > 0 {
            if line.starts_with(b"event: ") {
                tally.events.fetch_add(1, Ordering::Relaxed);
            }
            line.clear();
        }
        tally.events_cut.fetch_add(1, Ordering::Relaxed);
    }
}

/// Asks for a live answer and never reads it. The server is to cut it off; here that cannot be seen, so there is a new one each minute.
async fn never_read(address: SocketAddr, tally: Arc<Tally>) -> anyhow::Result<()> {
    loop {
        let socket = TcpSocket::new_v4()?;
        // What the kernel takes for us is not the server's to hold.
        socket.set_recv_buffer_size(4 << 10)?;
        let mut stream = socket.connect(address).await?;
        stream.write_all(LIVE.as_bytes()).await?;
        tally.unread.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(EVERY).await;
        drop(stream);
    }
}

async fn come_and_go(address: SocketAddr, tally: Arc<Tally>) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        // The server closes what is idle.
        let mut http = Http::connect(address).await?;
        let path = format!("/v1/aggregates/{}", LATE.name);
        let (status, answer) = http.put(&path, &LATE.definition()).await?;
        ensure!(status < 300, "{path}: {status} {answer}");
        let began = Instant::now();
        while http.ok(&path).await?.get("state").and_then(Value::as_str) != Some("live") {
            ensure!(began.elapsed() < FILLING, "{path} is not filled");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if !adds_up(&mut http).await? {
            tally.wrong.fetch_add(1, Ordering::Relaxed);
        }
        let (status, answer) = http.delete(&path).await?;
        ensure!(status < 300, "{path}: {status} {answer}");
        tally.registered.fetch_add(1, Ordering::Relaxed);
    }
}

/// The late aggregate and the first one, by account, at one moment.
async fn adds_up(http: &mut Http) -> anyhow::Result<bool> {
    let names = [LATE.name, TOTALS.first().context("no aggregates")?.name];
    let queries = names.map(|name| {
        json!({"aggregate": name, "measures": ["summed", "n"], "group_by": ["account"], "granularity": "all", "limit": ACCOUNTS})
    });
    let (status, answer) = http.post("/v1/query", &json!({"queries": queries})).await?;
    ensure!(status == 200, "late: {status} {answer}");
    let data = |at: usize| answer.pointer(&format!("/answers/{at}/data")).filter(|data| data.is_array());
    let (late, first) = (data(0).with_context(|| answer.to_string())?, data(1).with_context(|| answer.to_string())?);
    if late != first {
        println!("  !! registered late: {late}\n     from the beginning: {first}");
    }
    Ok(late == first && late.as_array().is_some_and(|rows| !rows.is_empty()))
}
