//! A standby is promoted while the shop writes: Tidemark goes on exactly, or halts and says why; never anything else.
//!
//! Postgres 17 and newer copy the slot to the standby themselves. Before that a cluster manager copies its files, and so
//! does this test.

use std::time::{Duration, Instant};

use connectors::PostgresConfig;
use connectors::postgres::throwaway::{Stop, ThrowawayPostgres};
use engine::engine::EngineConfig;
use engine::source::SourceState;
use tokio::runtime::Runtime;

use crate::support::embedded::Embedded;
use crate::support::proxy::Proxy;
use crate::support::shop::{Reader, Shop, TABLES};
use crate::support::sql;

const SLOT: &str = "failover";

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

struct Pair {
    primary: ThrowawayPostgres,
    standby: ThrowawayPostgres,
    /// Postgres copies slots to the standby itself.
    copies_slots: bool,
}

impl Pair {
    fn start(runtime: &Runtime) -> Pair {
        let settings = ["wal_sender_timeout=2s", "deadlock_timeout=20ms", "autovacuum=off", "wal_keep_size=256MB"];
        let mut primary = sql::postgres(&settings);
        let version: u32 = runtime.block_on(async {
            let client = sql::connect(&primary.url()).await;
            sql::run(&client, "SELECT pg_create_physical_replication_slot('standby', true)").await;
            sql::value(&client, "SELECT current_setting('server_version_num')").await.parse().unwrap()
        });
        let copies_slots = version >= 170_000;
        primary.stop(Stop::Fast);
        let mut standby = primary.standby(if copies_slots { &["sync_replication_slots=on"] } else { &[] }).unwrap();
        primary.launch().unwrap();
        standby.launch().unwrap();
        let pair = Pair { primary, standby, copies_slots };
        runtime.block_on(async {
            let client = sql::connect(&pair.primary.url()).await;
            let up =
                "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'standby' AND state = 'streaming'";
            until("the standby streams", async || sql::value(&client, up).await == "1").await;
            if copies_slots {
                sql::run(&client, "ALTER SYSTEM SET synchronized_standby_slots = 'standby'").await;
                sql::run(&client, "SELECT pg_reload_conf()").await;
            }
        });
        pair
    }

    /// As a cluster manager of Postgres 16 or older does: stops the standby, copies the slot's files, starts it again.
    fn copy_slot(&mut self) {
        self.standby.stop(Stop::Fast);
        self.primary.copy_slot_to(&self.standby, SLOT).unwrap();
        self.standby.launch().unwrap();
    }

    /// Makes the standby the primary.
    async fn promote(&self) {
        let client = sql::connect_again(&self.standby.url()).await;
        sql::run(&client, "SELECT pg_promote()").await;
    }
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn start(data: &std::path::Path, url: &str, failover: bool) -> Embedded {
    let postgres = PostgresConfig::new(url, &TABLES.map(str::to_owned), SLOT).unwrap().with_failover(failover);
    Embedded::start_with(&EngineConfig::new(data), postgres).await
}

/// The code with which the source halted; nothing is served then.
async fn halted(tidemark: &Embedded) -> String {
    let mut halted = None;
    until("the source halts", async || {
        if let SourceState::Halted { code, .. } = &tidemark.engine.status().source.state {
            halted = Some(code.clone());
        }
        halted.is_some()
    })
    .await;
    assert_eq!(tidemark.engine.snapshot().err().map(|reason| reason.code), halted);
    halted.unwrap()
}

#[test]
fn a_promoted_standby_goes_on_exactly() {
    let runtime = runtime();
    let mut pair = Pair::start(&runtime);
    let data = tempfile::tempdir().unwrap();
    let (shop, proxy, tidemark) = runtime.block_on(async {
        let shop = Shop::open(&pair.primary.url(), 7).await;
        let proxy = Proxy::start(pair.primary.socket_directory()).await;
        let tidemark = start(data.path(), &proxy.url(), pair.copies_slots).await;
        shop.register(&tidemark).await;
        shop.compare(&tidemark, "before the promotion").await;
        (shop, proxy, tidemark)
    });
    if pair.copies_slots {
        runtime.block_on(async {
            let (primary, standby) = (sql::connect(&pair.primary.url()).await, sql::connect(&pair.standby.url()).await);
            let ready = format!(
                "SELECT count(*) FROM pg_replication_slots
                 WHERE slot_name = '{SLOT}' AND synced AND NOT temporary AND invalidation_reason IS NULL"
            );
            until("the slot is on the standby", async || {
                // What moves a slot on is a record of the transactions that run.
                sql::run(&primary, "SELECT pg_log_standby_snapshot()").await;
                sql::value(&standby, &ready).await == "1"
            })
            .await;
        });
    } else {
        pair.copy_slot();
    }
    // The primary is gone in the middle of its work. Without Postgres' own synchronization of slots nothing keeps us behind the standby but a
    // shutdown that waits for it.
    runtime.block_on(async {
        let reader = Reader::start(&tidemark.engine);
        let before = shop.committed();
        until("the shop writes", async || shop.committed() > before + 200).await;
        let lost_nothing = if pair.copies_slots { Stop::Immediate } else { Stop::Fast };
        pair.primary.stop(lost_nothing);
        pair.promote().await;
        shop.move_to(&pair.standby.url());
        proxy.lead_to(pair.standby.socket_directory());
        let before = shop.committed();
        until("the shop writes to the new primary", async || shop.committed() > before + 200).await;
        let compared = shop.compare(&tidemark, "after the promotion").await;
        assert_eq!(tidemark.engine.status().identity.timeline, 2);
        // What is stored says so too: the next process finds its server without any history.
        reader.look_at(None);
        tidemark.stop().await;
        let tidemark = start(data.path(), &proxy.url(), false).await;
        assert_eq!(tidemark.engine.status().identity.timeline, 2);
        reader.look_at(Some(&tidemark.engine));
        shop.compare(&tidemark, "after a restart on the new primary").await;
        let seen = reader.stop().await;
        shop.close().await;
        tidemark.stop().await;
        println!("{compared} cells equal after the promotion, {seen} Snapshots consistent");
    });
}

#[test]
fn a_standby_that_lacks_transactions_halts_us() {
    let runtime = runtime();
    let mut pair = Pair::start(&runtime);
    let data = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let shop = Shop::open(&pair.primary.url(), 8).await;
        let proxy = Proxy::start(pair.primary.socket_directory()).await;
        let client = sql::connect(&pair.primary.url()).await;
        // Nothing keeps us from reading ahead of the standby.
        if pair.copies_slots {
            sql::run(&client, "ALTER SYSTEM RESET synchronized_standby_slots").await;
            sql::run(&client, "SELECT pg_reload_conf()").await;
        }
        let tidemark = start(data.path(), &proxy.url(), pair.copies_slots).await;
        shop.register(&tidemark).await;
        shop.compare(&tidemark, "before the standby stops").await;
        pair.standby.stop(Stop::Fast);
        let before = shop.committed();
        until("the shop writes what the standby never gets", async || shop.committed() > before + 100).await;
        shop.compare(&tidemark, "before the promotion").await;
        pair.primary.stop(Stop::Immediate);
        pair.standby.launch().unwrap();
        pair.promote().await;
        shop.move_to(&pair.standby.url());
        proxy.lead_to(pair.standby.socket_directory());
        assert_eq!(halted(&tidemark).await, "timeline_diverged");
        tidemark.stop().await;
        // A restart does not forget it.
        let tidemark = start(data.path(), &proxy.url(), false).await;
        assert_eq!(halted(&tidemark).await, "timeline_diverged");
        tidemark.stop().await;
        shop.close().await;
    });
}

#[test]
fn a_standby_without_our_slot_halts_us() {
    let runtime = runtime();
    let mut pair = Pair::start(&runtime);
    let data = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let shop = Shop::open(&pair.primary.url(), 9).await;
        let proxy = Proxy::start(pair.primary.socket_directory()).await;
        let tidemark = start(data.path(), &proxy.url(), false).await;
        shop.register(&tidemark).await;
        shop.compare(&tidemark, "before the promotion").await;
        // It waits until the standby has everything.
        pair.primary.stop(Stop::Fast);
        pair.promote().await;
        shop.move_to(&pair.standby.url());
        proxy.lead_to(pair.standby.socket_directory());
        assert_eq!(halted(&tidemark).await, "slot_missing");
        tidemark.stop().await;
        shop.close().await;
    });
}
