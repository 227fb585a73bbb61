//! Everything breaks, under load: the network between Tidemark and Postgres in each way a network can, the server
//! restarted fast and as by a crash, its walsender killed, Tidemark stopped and started, tables read anew meanwhile. Afterwards every cell equals
//! Postgres' `GROUP BY` at the same Lsn; meanwhile the position of answers never goes back and no transaction is half
//! visible.
//!
//! A failure prints its seed; `TIDEMARK_SEED=123 cargo test --release faults` repeats the choices, though not the timing.
//! `TIDEMARK_FAULT_CYCLES=200` breaks more.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use connectors::postgres::throwaway::{Stop, ThrowawayPostgres};
use engine::source::SourceState;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::support::embedded::Embedded;
use crate::support::proxy::{NetworkFault, Proxy};
use crate::support::shop::{RESTS, Reader, Shop, TABLES};
use crate::support::sql;

const CYCLES: u64 = 40;
const SLOT: &str = "faults";

/// Longer than the walsender's patience, so that some stalls end sessions on one side only.
const LONGEST: Duration = Duration::from_millis(2_500);

#[derive(Clone, Copy, Debug)]
enum Fault {
    Network(NetworkFault),
    Restart(Stop),
    /// `kill -9`: Postgres takes it for a crash and ends every session.
    KillWalsender,
    TerminateWalsender,
    RestartTidemark,
    /// No fault, but one more thing that the others meet in the middle: one table is read anew.
    ReadTable(&'static str),
}

impl Fault {
    fn random(rng: &mut ChaCha8Rng) -> Fault {
        match rng.random_range(0..18) {
            0 => Fault::Restart(Stop::Fast),
            1 => Fault::Restart(Stop::Immediate),
            2 => Fault::KillWalsender,
            3 => Fault::TerminateWalsender,
            4 => Fault::RestartTidemark,
            5 | 6 => Fault::ReadTable(TABLES[rng.random_range(0..TABLES.len())]),
            _ => Fault::Network(NetworkFault::random(rng, LONGEST)),
        }
    }

    fn name(self) -> String {
        let text = match self {
            Fault::Network(fault) => format!("{fault:?}"),
            other => format!("{other:?}"),
        };
        text.split(' ').next().unwrap_or_default().to_owned()
    }
}

/// A session, and the process on the other end of our stream.
async fn walsender(url: &str) -> (Client, Option<i32>) {
    let client = sql::connect_again(url).await;
    let pid = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
    let pid = sql::value(&client, &pid).await.parse().ok();
    (client, pid)
}

struct Bench {
    postgres: ThrowawayPostgres,
    proxy: Proxy,
    data: tempfile::TempDir,
    tidemark: Option<Embedded>,
    reader: Reader,
    starts: usize,
    read_anew: u64,
    undecodable: u64,
}

impl Bench {
    async fn inject(&mut self, fault: Fault) {
        match fault {
            Fault::Network(fault) => self.proxy.inject(fault),
            Fault::Restart(how) => {
                self.postgres.stop(how);
                self.postgres.launch().unwrap();
            }
            Fault::KillWalsender => {
                let (client, pid) = walsender(&self.postgres.url()).await;
                if let Some(pid) = pid {
                    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
                    // Every session ends; who asks sooner would meet the end.
                    while !client.is_closed() {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                }
            }
            Fault::TerminateWalsender => {
                let (client, pid) = walsender(&self.postgres.url()).await;
                if let Some(pid) = pid {
                    sql::run(&client, &format!("SELECT pg_terminate_backend({pid})")).await;
                }
            }
            Fault::ReadTable(table) => {
                // The network may be away: then nobody answers, and nothing is read.
                let engine = &self.tidemark.as_ref().unwrap().engine;
                if let Ok(Ok(_)) = tokio::time::timeout(LONGEST, engine.read_table(table, None)).await {
                    self.read_anew += 1;
                }
            }
            Fault::RestartTidemark => {
                self.reader.look_at(None);
                if let Some(tidemark) = self.tidemark.take() {
                    tidemark.stop().await;
                }
                self.starts += 1;
                let tidemark = start(self.data.path(), &self.proxy, 1 + self.starts % 2).await;
                self.reader.look_at(Some(&tidemark.engine));
                self.tidemark = Some(tidemark);
            }
        }
    }
}

impl Bench {
    /// A crash may leave Postgres unable to decode its own log, though rarely. Then Tidemark has to say so, and Postgres has to
    /// say the same to whoever else reads the slot; everything starts over, as the remedy says. The writers are at rest.
    async fn start_over_where_postgres_cannot_decode(&mut self, shop: &Shop) {
        let client = sql::connect_again(&self.postgres.url()).await;
        let lsn = sql::current_lsn(&client).await;
        let engine = self.tidemark.as_ref().unwrap().engine.clone();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if engine.wait_for(lsn, Duration::from_millis(100)).await {
                return;
            }
            match engine.status().source.state {
                SourceState::Halted { code, .. } if code == "log_undecodable" => break,
                state => assert!(Instant::now() < deadline, "{lsn} is not reached: {state:?}"),
            }
        }
        let peek = format!(
            "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('{SLOT}', NULL, NULL, 'proto_version', '1', 'publication_names', '{SLOT}')"
        );
        let refusal = loop {
            let said = client.simple_query(&peek).await.expect_err("Postgres decodes what it said it could not");
            match said.code().map(SqlState::code) {
                // Our session has not ended yet.
                Some("55006") => tokio::time::sleep(Duration::from_millis(20)).await,
                _ => break said,
            }
        };
        assert!(refusal.code().is_some_and(|code| code.code().starts_with("XX")), "{refusal:?}");
        println!("Postgres cannot decode its log: {refusal:?}; everything starts over");
        self.undecodable += 1;
        self.reader.look_at(None);
        if let Some(tidemark) = self.tidemark.take() {
            tidemark.stop().await;
        }
        sql::drop_slot(&client, SLOT).await;
        self.data = tempfile::tempdir().unwrap();
        let tidemark = start(self.data.path(), &self.proxy, 1).await;
        shop.register(&tidemark).await;
        self.reader.look_at(Some(&tidemark.engine));
        self.tidemark = Some(tidemark);
    }
}

async fn start(data: &std::path::Path, proxy: &Proxy, workers: usize) -> Embedded {
    Embedded::start(data, &proxy.url(), &TABLES, SLOT, workers).await
}

#[test]
fn exact_after_every_fault() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("TIDEMARK_SEED").unwrap_or_else(|| chrono::Utc::now().timestamp() as u64);
    let cycles = number("TIDEMARK_FAULT_CYCLES").unwrap_or(CYCLES);
    println!("seed {seed}");
    let settings = ["wal_sender_timeout=2s", "deadlock_timeout=20ms", "autovacuum=off"];
    let postgres = sql::postgres(&settings);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let shop = Shop::open(&postgres.url(), seed).await;
        let proxy = Proxy::start(postgres.socket_directory()).await;
        let data = tempfile::tempdir().unwrap();
        let tidemark = start(data.path(), &proxy, 1).await;
        shop.register(&tidemark).await;
        let mut compared = shop.compare(&tidemark, "before the first fault").await;
        let reader = Reader::start(&tidemark.engine);
        let mut bench = Bench { postgres, proxy, data, tidemark: Some(tidemark), reader, starts: 0, read_anew: 0, undecodable: 0 };
        let (mut done, mut slowest) = (BTreeMap::<String, u64>::new(), (Duration::ZERO, String::new()));
        for cycle in 0..cycles {
            shop.rest(*RESTS.choose(&mut rng).unwrap());
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..250))).await;
            let fault = Fault::random(&mut rng);
            bench.inject(fault).await;
            *done.entry(fault.name()).or_default() += 1;
            // Some faults meet one another.
            if rng.random_bool(0.3) && cycle + 1 < cycles {
                continue;
            }
            let began = Instant::now();
            shop.pause().await;
            bench.start_over_where_postgres_cannot_decode(&shop).await;
            let tidemark = bench.tidemark.as_ref().unwrap();
            compared += shop.compare(tidemark, &format!("seed {seed}, cycle {cycle}, {fault:?}")).await;
            slowest = slowest.max((began.elapsed(), format!("{fault:?}")));
        }
        shop.close().await;
        let seen = bench.reader.stop().await;
        let tidemark = bench.tidemark.take().unwrap();
        let reconnects = tidemark.engine.status().source.reconnects;
        println!("{cycles} faults {done:?}; {compared} cells compared, {seen} Snapshots consistent");
        println!("{} tables read anew, {reconnects} reconnects since the last start; exact again at the latest after {slowest:?}", bench.read_anew);
        assert!(seen > cycles / 2, "hardly any Snapshot was looked at: {seen}");
        tidemark.stop().await;
        assert!(bench.undecodable <= 1 + cycles / 100, "Postgres failed to decode {} times", bench.undecodable);
    });
}
