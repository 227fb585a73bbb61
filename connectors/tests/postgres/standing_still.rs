//! Nobody upstream waits for us, and one table's trouble does not keep the others waiting.

use std::time::Duration;

use engine::change::Lsn;
use engine::source::{ResumePoint, SourceCommand, SourceState};
use tokio_postgres::Client;

use crate::engine::{FakeEngine, config};
use crate::payments::{free, now, wait_for};
use crate::server::Server;

const TABLES: &str = "CREATE TABLE t (id int8 PRIMARY KEY, v int8); CREATE TABLE late (id int8 PRIMARY KEY, v int8);
                      INSERT INTO late VALUES (1, 1)";

async fn begin(server: &Server, client: &Client) -> FakeEngine {
    client.batch_execute(TABLES).await.unwrap();
    let mut engine = FakeEngine::start(config(&server.url(), &["t"], "tidemark_still"), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    engine.until(now(client).await).await;
    engine
}

/// `*` names our walsender as well. The first row of a table is sent before its commit is visible to others, which it would never
/// be: we wait for it, and it would wait for us. Here there is no standby at all, so it waits for nobody once we are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_commit_waits_for_us() {
    let server = Server::start(&[]);
    let client = server.client().await;
    let mut engine = begin(&server, &client).await;
    let name_standbys = async |names: &str| {
        client.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).await.unwrap();
        client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    };
    name_standbys("*").await;
    // Commits wait once the checkpointer has read the setting; it does so before a checkpoint, once the postmaster has told everyone.
    wait_for("the setting is read", async || {
        client.query_one("SHOW synchronous_standby_names", &[]).await.unwrap().get::<_, String>(0) == "*"
    })
    .await;
    client.batch_execute("CHECKPOINT").await.unwrap();
    client.batch_execute("CHECKPOINT").await.unwrap();
    let writer = server.client().await;
    let writing = tokio::spawn(async move { writer.batch_execute("INSERT INTO t VALUES (1, 1)").await });
    let refused = |engine: &FakeEngine| matches!(&engine.status.borrow().state, SourceState::Reconnecting { reason, .. } if reason.contains("synchronous_standby_names"));
    engine.until_seen("it says why it does not follow", refused).await;
    wait_for("our session is gone", async || {
        let ours =
            "SELECT count(*) FROM pg_stat_replication WHERE application_name LIKE 'tidemark/%' AND state = 'streaming'";
        client.query_one(ours, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
    assert!(!writing.is_finished(), "the commit waits for a standby");
    name_standbys("").await;
    tokio::time::timeout(Duration::from_secs(20), writing).await.expect("the commit ends").unwrap().unwrap();
    engine.until(now(&client).await).await;
    assert_eq!(engine.table("t").len(), 1);
}

/// VACUUM has such a lock, and CREATE INDEX CONCURRENTLY for hours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_table_that_is_to_join_keeps_no_other_waiting() {
    let server = Server::start(&[]);
    let client = server.client().await;
    let mut engine = begin(&server, &client).await;
    let holder = server.client().await;
    holder.batch_execute("BEGIN; LOCK TABLE late IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
    let (reply, answer) = tokio::sync::oneshot::channel();
    engine.commands.send(SourceCommand::ReadTable { table: "late".to_owned(), row_image: None, reply }).await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (1, 1)").await.unwrap();
    engine.until(now(&client).await).await;
    assert_eq!(answer.await.unwrap().unwrap_err().code, "source_busy");
    // One that the configuration names waits for its turn, again and again, and the others go on.
    let resume = engine.stop().await;
    free(&client).await;
    let both = config(&server.url(), &["t", "late"], "tidemark_still");
    let mut engine = FakeEngine::start(both, resume);
    client.batch_execute("INSERT INTO t VALUES (2, 2)").await.unwrap();
    engine.until(now(&client).await).await;
    assert_eq!(engine.joined, 0);
    holder.batch_execute("COMMIT").await.unwrap();
    engine.until_seen("it joins", |engine| engine.joined == 1).await;
    engine.until(now(&client).await).await;
    assert_eq!(engine.table("late").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_cannot_be_published_keeps_no_other_waiting() {
    let server = Server::start(&[]);
    let client = server.client().await;
    let engine = begin(&server, &client).await;
    let resume = engine.stop().await;
    let guard = "CREATE FUNCTION guard() RETURNS event_trigger LANGUAGE plpgsql AS
                     $$ BEGIN RAISE EXCEPTION 'ask the guild first'; END $$;
                 CREATE EVENT TRIGGER guard ON ddl_command_start WHEN TAG IN ('ALTER PUBLICATION') EXECUTE FUNCTION guard();
                 ALTER DATABASE postgres SET default_transaction_read_only = on";
    client.batch_execute(guard).await.unwrap();
    let mut engine = FakeEngine::start(config(&server.url(), &["t", "late"], "tidemark_still"), resume);
    client.batch_execute("INSERT INTO t VALUES (1, 1)").await.unwrap();
    engine.until(now(&client).await).await;
    let refused = |engine: &FakeEngine| {
        let status = engine.status.borrow();
        let refusal = status.refused_tables.get("public.late");
        refusal.is_some_and(|error| error.code == "publication_not_permitted" && error.message.contains("guild"))
    };
    engine.until_seen("it says why late is not read", refused).await;
    engine.until_seen("it is live", |engine| engine.status.borrow().state == SourceState::Live).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_may_be_renamed() {
    let server = Server::start(&[]);
    server.client().await.batch_execute("CREATE DATABASE shop").await.unwrap();
    let client = server.client_of("shop").await;
    client.batch_execute(TABLES).await.unwrap();
    let of = |database: &str| config(&server.url_as("postgres", database), &["t"], "tidemark_still");
    let mut engine = FakeEngine::start(of("shop"), ResumePoint::Fresh);
    engine.until(now(&client).await).await;
    let resume = engine.stop().await;
    drop(client);
    let admin = server.client().await;
    wait_for("the database is renamed", async || {
        admin.batch_execute("ALTER DATABASE shop RENAME TO market").await.is_ok()
    })
    .await;
    let client = server.client_of("market").await;
    client.batch_execute("INSERT INTO t VALUES (1, 1)").await.unwrap();
    let mut engine = FakeEngine::start(of("market"), resume);
    engine.until(now(&client).await).await;
    assert_eq!(engine.table("t").len(), 1);
    assert!(engine.identity.database.starts_with("market/"), "{}", engine.identity.database);
}
