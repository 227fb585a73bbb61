//! The Postgres source against real servers, with a stand-in for the engine that knows every row.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod checks;
mod engine;
mod server;
mod tables;
mod tls;
mod transport;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ::engine::change::{ColumnType, Lsn};
use ::engine::source::{ResumePoint, SourceState};
use connectors::postgres::throwaway::Stop;
use connectors::{ConnectorConfig, PostgresConfig};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio_postgres::Client;

use engine::{FakeEngine, config};
use server::Server;

const PAYMENTS: &str = "CREATE TABLE payments (id int8 PRIMARY KEY, merchant text, amount numeric(18,2), status text)";

async fn lsn(client: &Client, expression: &str) -> Lsn {
    let text: String = client.query_one(&format!("SELECT ({expression})::text"), &[]).await.unwrap().get(0);
    text.parse().unwrap()
}

/// The end of the log, after everything committed so far.
async fn now(client: &Client) -> Lsn {
    lsn(client, "pg_current_wal_flush_lsn()").await
}

async fn version(client: &Client) -> i32 {
    client.query_one("SELECT current_setting('server_version_num')::int4 / 10000", &[]).await.unwrap().get(0)
}

/// The ids as the engine stand-in prints them.
async fn ids(client: &Client) -> Vec<String> {
    let rows = client.query("SELECT id FROM payments ORDER BY id", &[]).await.unwrap();
    let mut ids: Vec<String> = rows.iter().map(|row| format!("Int({})", row.get::<_, i64>(0))).collect();
    ids.sort();
    ids
}

async fn assert_same_payments(client: &Client, engine: &FakeEngine) {
    let rows = client.query("SELECT id, merchant, (amount * 100)::int8, status FROM payments", &[]).await.unwrap();
    let mut expected: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let text = |i| row.get::<_, Option<String>>(i).map_or("Null".into(), |t: String| format!("Text({t:?})"));
            let amount = row
                .get::<_, Option<i64>>(2)
                .map_or("Null".into(), |mantissa| format!("Numeric(Finite {{ mantissa: {mantissa}, scale: 2 }})"));
            vec![format!("Int({})", row.get::<_, i64>(0)), text(1), amount, text(3)]
        })
        .collect();
    expected.sort();
    let mut got = engine.table("payments");
    got.sort();
    assert_eq!(got.len(), expected.len());
    assert_eq!(got, expected);
}

async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn confirmed_flush(client: &Client, slot: &str) -> Lsn {
    lsn(client, &format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_during_the_snapshot_leave_no_gap_and_no_duplicate() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    client
        .batch_execute("INSERT INTO payments SELECT i, 'm' || i % 7, i * 0.01, 'new' FROM generate_series(1, 40000) i; ANALYZE payments")
        .await
        .unwrap();
    // A setting of the database that would kill or change sessions which do not pin their own.
    client
        .batch_execute("ALTER DATABASE postgres SET idle_in_transaction_session_timeout = 1; ALTER DATABASE postgres SET DateStyle = 'German'")
        .await
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..4i64 {
        let (client, stop) = (server.client().await, Arc::clone(&stop));
        writers.push(tokio::spawn(async move {
            client.batch_execute("SET idle_in_transaction_session_timeout = 0").await.unwrap();
            let mut n = 0i64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let id = 1_000_000 * (writer + 1) + n;
                let old = 1 + (n * 4 + writer) % 40_000;
                client
                    .batch_execute(&format!(
                        "BEGIN; INSERT INTO payments VALUES ({id}, 'w{writer}', {n}.25, 'new');
                         UPDATE payments SET amount = amount + 1, status = 'x' WHERE id = {old};
                         SAVEPOINT s; INSERT INTO payments VALUES (-{id}, 'never', 1, 'x'); ROLLBACK TO s;
                         DELETE FROM payments WHERE id = {} ; COMMIT;",
                        id - 5
                    ))
                    .await
                    .unwrap();
            }
        }));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut engine = FakeEngine::start(config(&server.url(), &["payments"], "tidemark_snap"), ResumePoint::Fresh);
    let target = loop {
        let at = now(&client).await;
        engine.until(Lsn(1)).await;
        if engine.transactions.len() > 50 {
            stop.store(true, Ordering::Relaxed);
            for writer in writers.drain(..) {
                writer.await.unwrap();
            }
            break now(&client).await;
        }
        engine.until(Lsn(at.0 + 1)).await;
    };
    client.batch_execute("INSERT INTO payments VALUES (0, 'last', 0, 'x')").await.unwrap();
    engine.until(now(&client).await.max(target)).await;
    assert!(engine.snapshot_rows >= 39_000);
    assert_same_payments(&client, &engine).await;
    let status = engine.status.borrow().clone();
    assert_eq!(status.state, SourceState::Live);
    assert!(status.upstream_lsn_at_start.is_some());
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_changes_of_every_kind() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    client
        .batch_execute(
            "CREATE TABLE big (a int4, b text, body text, extra text, gen int4 GENERATED ALWAYS AS (a * 2) STORED, PRIMARY KEY (b, a));
             ALTER TABLE big ALTER body SET STORAGE EXTERNAL;
             CREATE TABLE whole (id int4 PRIMARY KEY, body text, n int4); ALTER TABLE whole REPLICA IDENTITY FULL;
             ALTER TABLE whole ALTER body SET STORAGE EXTERNAL;
             CREATE TABLE elsewhere (id int4 PRIMARY KEY);
             CREATE TABLE by_index (id int4 NOT NULL, code text NOT NULL, n int4); CREATE UNIQUE INDEX by_index_key ON by_index (code);
             ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_key;",
        )
        .await
        .unwrap();
    let big = "repeat('x', 9000)";
    client
        .batch_execute(&format!(
            "INSERT INTO big VALUES (1, 'one', {big}, 'e'); INSERT INTO whole VALUES (1, {big}, 1)"
        ))
        .await
        .unwrap();
    let tables = ["payments", "big", "whole", "by_index"];
    let mut engine = FakeEngine::start(config(&server.url(), &tables, "tidemark_rows"), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    assert_eq!(engine.tables[1].primary_key, [1, 0]);
    assert_eq!(engine.tables[1].columns.len(), 4, "the generated column is left out");
    assert_eq!(engine.tables[3].primary_key, [1], "the replica identity index is the key");

    let body = |engine: &FakeEngine, table: &str, column: usize| engine.table(table)[0][column].len();
    // An unchanged large value: absent under DEFAULT, completed from the old row under FULL (the stand-in insists).
    client.batch_execute("UPDATE big SET extra = 'f'; UPDATE whole SET n = 2").await.unwrap();
    engine.until(now(&client).await).await;
    assert_eq!(engine.last_changes, ["update", "update with row"]);
    assert!(body(&engine, "big", 2) > 9000 && body(&engine, "whole", 1) > 9000);
    assert_eq!(engine.table("big")[0][3], "Text(\"f\")");

    client.batch_execute("UPDATE big SET b = 'two'").await.unwrap();
    engine.until(now(&client).await).await;
    assert_eq!(engine.last_changes, ["update with key"]);
    assert_eq!(engine.table("big")[0][1], "Text(\"two\")");
    assert!(body(&engine, "big", 2) > 9000);

    client
        .batch_execute(
            "BEGIN; INSERT INTO by_index VALUES (1, 'k', 1); UPDATE by_index SET id = 2; UPDATE by_index SET code = 'l';
             DELETE FROM by_index; INSERT INTO by_index VALUES (3, 'k', 3); COMMIT",
        )
        .await
        .unwrap();
    engine.until(now(&client).await).await;
    assert_eq!(engine.last_changes, ["insert", "update", "update with key", "delete", "insert"]);
    assert_eq!(engine.table("by_index"), [["Int(3)", "Text(\"k\")", "Int(3)"]]);

    // Rolled back: nothing. Another table: only progress.
    let before = engine.transactions.len();
    client
        .batch_execute(
            "BEGIN; INSERT INTO payments VALUES (1, 'x', 1, 'x'); ROLLBACK; INSERT INTO elsewhere VALUES (1);
             BEGIN; SAVEPOINT a; INSERT INTO payments VALUES (2, 'x', 1, 'x'); ROLLBACK TO a; COMMIT",
        )
        .await
        .unwrap();
    engine.until(now(&client).await).await;
    assert_eq!(engine.transactions.len(), before);
    assert!(engine.table("payments").is_empty());

    client.batch_execute("INSERT INTO payments SELECT i, NULL, NULL, 'x' FROM generate_series(1, 10) i").await.unwrap();
    client.batch_execute("TRUNCATE payments, elsewhere, whole").await.unwrap();
    engine.until(now(&client).await).await;
    assert_eq!(engine.last_changes, ["truncate", "truncate"]);
    assert!(engine.table("payments").is_empty() && engine.table("whole").is_empty());

    // Columns that are not ours come and go; the old image still has its place.
    client.batch_execute("ALTER TABLE payments ADD COLUMN note text DEFAULT 'n'; INSERT INTO payments VALUES (5, 'm', 5, 's', 'note')").await.unwrap();
    client
        .batch_execute("ALTER TABLE payments DROP COLUMN note; INSERT INTO payments VALUES (6, 'm', 6, 's')")
        .await
        .unwrap();
    engine.until(now(&client).await).await;
    assert_same_payments(&client, &engine).await;

    // One that is ours may not.
    client
        .batch_execute(
            "ALTER TABLE payments ALTER amount TYPE numeric(18,3); INSERT INTO payments VALUES (7, 'm', 7, 's')",
        )
        .await
        .unwrap();
    let (column, what) = engine.until_unusable().await;
    assert_eq!(column, "amount");
    assert!(what.contains("2 digits") && what.contains("3 digits"), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_reads_as_sql_says() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client
        .batch_execute(
            &"CREATE TYPE mood AS ENUM ('ok', 'sad'); CREATE DOMAIN money2 AS numeric(10,2) CHECK (value > -1000); CREATE DOMAIN cents AS money2;
             CREATE COLLATION nd (provider = icu, locale = 'und', deterministic = false);
             CREATE TABLE types (id int4 PRIMARY KEY, i2 int2, i8 int8, n numeric, n4 numeric(20,4), neg numeric(5,NEG), f4 float4, f8 float8,
                                 t text, v varchar(9), c char(5), b bool, u uuid, d date, ts timestamp, tz timestamptz,
                                 e mood, dom cents, j jsonb, ci text COLLATE nd, arr int4[])".replace("NEG", if version(&client).await >= 15 { "-2" } else { "0" }),
        )
        .await
        .unwrap();
    let rows = [
        "(1, -32768, 9223372036854775807, 123.4500, 1.5, 1200, 1.5, -2.25, 'ä€😀', 'v', 'c', true,
          '00112233-4455-6677-8899-aabbccddeeff', '2000-01-02', '2000-01-01 00:00:01', '2000-01-01 00:00:01+00', 'sad', 12.34, '{\"a\": 1}', 'X', '{1,2}')",
        "(2, 0, -9223372036854775808, 'NaN', -0.0001, -1200, 'NaN', 'Infinity', '', NULL, NULL, false,
          NULL, 'infinity', '-infinity', 'infinity', 'ok', -0.01, NULL, NULL, NULL)",
        "(3, NULL, NULL, 'Infinity', 9999999999999999.9999, NULL, NULL, '-0', NULL, NULL, NULL, NULL,
          NULL, '4713-01-01 BC', '294276-12-31 23:59:59.999999', '4713-01-01 BC', NULL, NULL, NULL, NULL, NULL)",
        "(4, NULL, NULL, '-Infinity', 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
          NULL, '-infinity', NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
        "(5, NULL, NULL, -12345678901234567890123456789.123456789, 0.1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
        "(6, NULL, NULL, 0.00000000000000000000000000000000000001, 100000000, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
        "(7, NULL, NULL, 1e60, 10000.0001, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    ];
    for row in rows {
        client.batch_execute(&format!("INSERT INTO types VALUES {row}")).await.unwrap();
    }
    let mut engine = FakeEngine::start(config(&server.url(), &["types"], "tidemark_types"), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    let snapshot = engine.table("types");
    // The same rows again through the stream read the same.
    client
        .batch_execute("CREATE TEMP TABLE kept AS TABLE types; DELETE FROM types; INSERT INTO types TABLE kept")
        .await
        .unwrap();
    engine.until(now(&client).await).await;
    assert_eq!(engine.table("types"), snapshot);
    assert_eq!(snapshot.len(), 7);

    let types: Vec<ColumnType> = engine.column_types("types").into_iter().map(|(_, t)| t).collect();
    assert_eq!(types[3], ColumnType::Numeric { scale: None });
    assert_eq!(types[4], ColumnType::Numeric { scale: Some(4) });
    let negative_scales = version(&client).await >= 15;
    assert_eq!(types[5], ColumnType::Numeric { scale: if negative_scales { None } else { Some(0) } });
    assert_eq!((&types[16], &types[17]), (&ColumnType::Text, &ColumnType::Numeric { scale: Some(2) }));
    assert_eq!(types[18].name(), "jsonb");
    assert_eq!(types[19].name(), "text with nondeterministic collation");
    assert_eq!(types[20].name(), "integer[]");

    // What SQL says, in the units of the port. Text columns make the expected side, so the two paths share nothing.
    let finite = |mantissa: i128, scale| format!("Numeric(Finite {{ mantissa: {mantissa}, scale: {scale} }})");
    let first = &snapshot[0];
    let expected = [
        "Int(1)".into(),
        "Int(-32768)".into(),
        format!("Int({})", i64::MAX),
        finite(1_234_500, 4),
        finite(15_000, 4),
        finite(1200, 0),
        "Float(1.5)".into(),
        "Float(-2.25)".into(),
        "Text(\"ä€😀\")".into(),
        "Text(\"v\")".into(),
        "Text(\"c\")".into(),
        "Bool(true)".into(),
        format!(
            "{:?}",
            ::engine::change::ValueRef::Uuid([
                0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff
            ])
        ),
        "Date(1)".into(),
        "Timestamp(1000000)".into(),
        "Timestamp(1000000)".into(),
        "Text(\"sad\")".into(),
        finite(1234, 2),
    ];
    assert_eq!(first[..18], expected);
    assert_eq!(snapshot[1][3], "Numeric(NaN)");
    assert_eq!(snapshot[1][6..8], ["Float(NaN)", "Float(inf)"]);
    assert_eq!(
        snapshot[1][13..16],
        [format!("Date({})", i32::MAX), format!("Timestamp({})", i64::MIN), format!("Timestamp({})", i64::MAX)]
    );
    assert_eq!((snapshot[2][3].as_str(), snapshot[2][7].as_str()), ("Numeric(PositiveInfinity)", "Float(-0.0)"));
    assert_eq!(
        (snapshot[3][3].as_str(), snapshot[3][13].clone()),
        ("Numeric(NegativeInfinity)", format!("Date({})", i32::MIN))
    );
    assert_eq!(snapshot[4][3], finite(-12_345_678_901_234_567_890_123_456_789_123_456_789, 9));
    assert_eq!(snapshot[5][3], finite(1, 38));
    assert!(snapshot[6][3].starts_with("Opaque("), "wider than 128 bits");
    for row in client.query("SELECT id, (d - '2000-01-01'::date)::int8, (extract(epoch FROM ts - '2000-01-01'::timestamp) * 1000000)::int8 FROM types WHERE isfinite(d) AND isfinite(ts)", &[]).await.unwrap() {
        let at = row.get::<_, i32>(0) as usize - 1;
        assert_eq!(snapshot[at][13..15], [format!("Date({})", row.get::<_, i64>(1)), format!("Timestamp({})", row.get::<_, i64>(2))]);
    }
    for row in client.query("SELECT id, (n4 * 10000)::text FROM types", &[]).await.unwrap() {
        let mantissa = row.get::<_, String>(1);
        let mantissa = mantissa.split('.').next().unwrap();
        assert_eq!(snapshot[row.get::<_, i32>(0) as usize - 1][4], finite(mantissa.parse().unwrap(), 4));
    }
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_restarts_and_resumes_lose_and_repeat_nothing() {
    let mut server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    let settings = config(&server.url(), &["payments"], "tidemark_cut");
    let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    let cut = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'tidemark_cut'";
    for round in 0..3i64 {
        let insert = format!(
            "INSERT INTO payments SELECT i, 'm', 1, 's' FROM generate_series({}, {}) i",
            round * 100,
            round * 100 + 99
        );
        client.batch_execute(&insert).await.unwrap();
        if round > 0 {
            client.batch_execute(cut).await.unwrap();
        }
        client
            .batch_execute(&format!("UPDATE payments SET amount = amount + 1 WHERE id < {}", round * 100 + 50))
            .await
            .unwrap();
        engine.until(now(&client).await).await;
        assert_same_payments(&client, &engine).await;
    }
    assert_eq!(engine.status.borrow().reconnects, 2);

    // The server crashes and comes back.
    server.stop(Stop::Immediate);
    wait_for("the connector notices", async || {
        matches!(engine.status.borrow().state, SourceState::Reconnecting { .. })
    })
    .await;
    server.launch();
    let client = server.client().await;
    client.batch_execute("DELETE FROM payments WHERE id % 3 = 0").await.unwrap();
    engine.until(now(&client).await).await;
    assert_same_payments(&client, &engine).await;

    // This process ends, rows are written, the next process resumes at the stored position.
    let rows = engine.rows.clone();
    let resume = engine.stop().await;
    client.batch_execute("INSERT INTO payments VALUES (5000, 'while away', 1, 's')").await.unwrap();
    let before = now(&client).await;
    let mut engine = FakeEngine::start(settings, resume);
    engine.rows = rows;
    engine.until(now(&client).await).await;
    assert_same_payments(&client, &engine).await;
    assert_eq!(engine.transactions.len(), 1, "nothing came twice");
    assert!(engine.status.borrow().upstream_lsn_at_start.unwrap() >= before);

    // A fast shutdown must not wait for us.
    let stopping = Instant::now();
    server.stop(Stop::Fast);
    assert!(stopping.elapsed() < Duration::from_secs(8), "the server waited for us: {:?}", stopping.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_durable_is_acknowledged_and_a_slow_engine_keeps_the_connection() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    let mut engine = FakeEngine::start(config(&server.url(), &["payments"], "tidemark_ack"), ResumePoint::Fresh);
    engine.auto_durable = false;
    engine.until(Lsn(1)).await;
    let at_start = confirmed_flush(&client, "tidemark_ack").await;
    client.batch_execute("INSERT INTO payments VALUES (1, 'm', 1, 's')").await.unwrap();
    engine.until(now(&client).await).await;
    let stored = engine.applied;
    client.batch_execute("INSERT INTO payments VALUES (2, 'm', 1, 's')").await.unwrap();
    engine.until(now(&client).await).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(confirmed_flush(&client, "tidemark_ack").await, at_start, "nothing was durable yet");
    engine.durable.send_replace(stored);
    wait_for("the durable position arrives", async || confirmed_flush(&client, "tidemark_ack").await == stored).await;
    assert_eq!(engine.status.borrow().acknowledged_lsn, stored);

    // The engine takes nothing for longer than the walsender's patience (2 s); durable positions still go out.
    let pid = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'tidemark_ack'";
    let before: i32 = client.query_one(pid, &[]).await.unwrap().get(0);
    for batch in 0..40 {
        client
            .batch_execute(&format!(
                "INSERT INTO payments SELECT i, repeat('m', 300), 1, 's' FROM generate_series({}, {}) i",
                1000 + batch * 500,
                1499 + batch * 500
            ))
            .await
            .unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    engine.durable.send_replace(engine.applied);
    let applied = engine.applied;
    wait_for("a durable position goes out while the engine is busy", async || {
        confirmed_flush(&client, "tidemark_ack").await == applied
    })
    .await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let after: i32 = client.query_one(pid, &[]).await.unwrap().get(0);
    assert_eq!(before, after, "the session was kept");
    engine.auto_durable = true;
    engine.until(now(&client).await).await;
    assert_eq!(ids(&client).await.len(), engine.table("payments").len());
    assert_same_payments(&client, &engine).await;
    // Asking for more than was received is not passed on.
    engine.durable.send_replace(Lsn(u64::MAX));
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(confirmed_flush(&client, "tidemark_ack").await <= now(&client).await);
    wait_for("the monitor looks", async || engine.status.borrow().retained_wal_bytes.is_some()).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_continued_exactly_halts() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    let settings = config(&server.url(), &["payments"], "tidemark_halt");
    let begin = async |settings: &PostgresConfig| {
        let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
        engine.until(Lsn(1)).await;
        client
            .batch_execute("INSERT INTO payments VALUES ((SELECT coalesce(max(id), 0) + 1 FROM payments), 'm', 1, 's')")
            .await
            .unwrap();
        engine.until(now(&client).await).await;
        engine
    };
    let resume_code = async |resume: ResumePoint| FakeEngine::start(settings.clone(), resume).until_halted().await;
    let free = async || {
        wait_for("the slot is free", async || {
            let row = client.query_one("SELECT count(*) FROM pg_replication_slots WHERE active", &[]).await.unwrap();
            row.get::<_, i64>(0) == 0
        })
        .await;
    };

    let resume = begin(&settings).await.stop().await;
    free().await;
    let ResumePoint::Resume { lsn, identity, tables, notes } = resume.clone() else { panic!() };
    let with = |change: &dyn Fn(&mut ::engine::source::SourceIdentity)| {
        let mut identity = identity.clone();
        change(&mut identity);
        ResumePoint::Resume { lsn, identity, tables: tables.clone(), notes: notes.clone() }
    };
    assert_eq!(resume_code(with(&|i| i.system = "1".into())).await, "different_server");
    assert_eq!(resume_code(with(&|i| i.timeline = 9)).await, "timeline_diverged");
    assert_eq!(resume_code(with(&|i| i.database = "postgres/1".into())).await, "different_database");
    assert_eq!(resume_code(with(&|i| i.slot = "other".into())).await, "source_changed");
    let ahead =
        ResumePoint::Resume { lsn: Lsn(lsn.0 + (1 << 40)), identity: identity.clone(), tables: tables.clone(), notes };
    assert_eq!(resume_code(ahead).await, "ahead_of_server");
    client.batch_execute("INSERT INTO payments VALUES (100, 'm', 1, 's')").await.unwrap();
    client.batch_execute("SELECT pg_replication_slot_advance('tidemark_halt', pg_current_wal_lsn())").await.unwrap();
    assert_eq!(resume_code(resume.clone()).await, "slot_overtaken");
    client.batch_execute("SELECT pg_drop_replication_slot('tidemark_halt')").await.unwrap();
    assert_eq!(resume_code(resume).await, "slot_missing");

    // A table taken out of the publication and added again has lost changes without a message.
    let mut engine = begin(&settings).await;
    client
        .batch_execute("ALTER PUBLICATION tidemark_halt DROP TABLE payments; INSERT INTO payments VALUES (200, 'm', 1, 's'); ALTER PUBLICATION tidemark_halt ADD TABLE payments")
        .await
        .unwrap();
    assert_eq!(engine.until_table_halted().await, ("payments".to_owned(), "publication_changed"));
    drop(engine);
    free().await;

    // A column renamed away and another put under its name.
    let mut engine = begin(&settings).await;
    client
        .batch_execute("ALTER TABLE payments RENAME merchant TO merchant_old; ALTER TABLE payments ADD merchant text")
        .await
        .unwrap();
    let (column, what) = engine.until_unusable().await;
    assert!(column == "merchant" && what.contains("renamed to merchant_old"), "{column}: {what}");
    drop(engine);
    free().await;

    // A transaction beyond the limits.
    let mut engine = begin(&settings.clone().with_transaction_limits(1 << 30, 100)).await;
    client
        .batch_execute("INSERT INTO payments SELECT i, 's', 1, 'm' FROM generate_series(1000, 1100) i")
        .await
        .unwrap();
    assert_eq!(engine.until_halted().await, "transaction_too_large");
    drop(engine);
    free().await;

    // The slot of another running tidemark is not taken from it.
    let engine = begin(&settings).await;
    let mut second = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
    assert_eq!(second.until_halted().await, "slot_in_use");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_removed_under_the_slot_halts() {
    let server = Server::start(&["max_slot_wal_keep_size=1MB", "max_wal_size=32MB", "min_wal_size=32MB"]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    let settings = config(&server.url(), &["payments"], "tidemark_lost");
    let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    let resume = engine.stop().await;
    for _ in 0..4 {
        client
            .batch_execute(
                "SELECT pg_logical_emit_message(false, 'x', repeat('y', 1000000)); SELECT pg_switch_wal(); CHECKPOINT",
            )
            .await
            .unwrap();
    }
    assert_eq!(FakeEngine::start(settings, resume).until_halted().await, "slot_lost");
}

/// Damaged files of Postgres' own bookkeeping: the log is there, and nobody can decode it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_that_postgres_cannot_decode_halts() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    let settings = config(&server.url(), &["payments"], "tidemark_stuck");
    let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    // Decoding starts at a checkpoint before the oldest transaction that is open, and with what was written down there, where
    // another one was open then.
    let (first, second) = (server.client().await, server.client().await);
    let restart_lsn = "SELECT restart_lsn FROM pg_replication_slots";
    first.batch_execute("BEGIN; INSERT INTO payments VALUES (-1, 'm', 1, 's')").await.unwrap();
    let began_at = lsn(&client, "pg_current_wal_insert_lsn()").await;
    client.batch_execute("CHECKPOINT").await.unwrap();
    second.batch_execute("BEGIN; INSERT INTO payments VALUES (-2, 'm', 1, 's')").await.unwrap();
    first.batch_execute("COMMIT").await.unwrap();
    let mut id = 0;
    wait_for("decoding would start at the checkpoint", async || {
        id += 1;
        let insert = format!("CHECKPOINT; INSERT INTO payments VALUES ({id}, 'm', 1, 's')");
        client.batch_execute(&insert).await.unwrap();
        engine.until(now(&client).await).await;
        lsn(&client, restart_lsn).await >= began_at
    })
    .await;
    engine.until(now(&client).await).await;
    let resume = engine.stop().await;
    client.batch_execute("INSERT INTO payments VALUES (-3, 'm', 1, 's')").await.unwrap();
    for file in std::fs::read_dir(server.socket_directory().join("data/pg_logical/snapshots")).unwrap() {
        std::fs::write(file.unwrap().path(), "not what was written").unwrap();
    }
    let mut engine = FakeEngine::start(settings, resume);
    assert_eq!(engine.until_halted().await, "log_undecodable");
}

/// Postgres cannot decode what was written to a table that was truncated while the slot was made, where the writer began
/// before the slot was consistent and ended after it. Such a slot is made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn table_truncated_while_the_slot_is_made() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    let (first, second, writer) = (server.client().await, server.client().await, server.client().await);
    let begin = async |session: &Client, statement: &str| -> String {
        session.batch_execute(&format!("BEGIN; {statement}")).await.unwrap();
        session.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap().get(0)
    };
    let made_or_waits_for = async |xid: &str| -> bool {
        let asked = format!(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE transactionid = '{xid}' AND NOT granted)
                 OR EXISTS (SELECT FROM pg_replication_slots WHERE confirmed_flush_lsn IS NOT NULL)"
        );
        client.query_one(&asked, &[]).await.unwrap().get(0)
    };
    let xid = begin(&first, "").await;
    let mut engine = FakeEngine::start(config(&server.url(), &["payments"], "tidemark_made"), ResumePoint::Fresh);
    wait_for("the slot waits for the first", async || made_or_waits_for(&xid).await).await;
    let xid = begin(&second, "").await;
    client.batch_execute("TRUNCATE payments").await.unwrap();
    first.batch_execute("COMMIT").await.unwrap();
    wait_for("the slot waits for the second", async || made_or_waits_for(&xid).await).await;
    let xid = begin(&writer, "INSERT INTO payments VALUES (1, 'm', 1, 's')").await;
    second.batch_execute("COMMIT").await.unwrap();
    wait_for("the slot is made, or waits for the writer", async || made_or_waits_for(&xid).await).await;
    writer.batch_execute("COMMIT").await.unwrap();
    engine.until(now(&client).await).await;
    let rows: Vec<usize> = engine.rows.values().map(BTreeMap::len).collect();
    assert_eq!(rows, [1]);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preflight_names_every_mistake() {
    let server = Server::start(&["max_replication_slots=2"]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    client
        .batch_execute(
            "CREATE TABLE no_key (a int4); CREATE TABLE nothing (a int4 PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
             CREATE TABLE later (a int4 PRIMARY KEY DEFERRABLE); CREATE TABLE full_no_key (a int4); ALTER TABLE full_no_key REPLICA IDENTITY FULL;
             CREATE VIEW seen AS TABLE payments;
             CREATE UNLOGGED TABLE volatile (a int4 PRIMARY KEY);
             CREATE ROLE plain LOGIN; CREATE ROLE rep LOGIN REPLICATION; GRANT SELECT ON payments TO rep;
             CREATE TABLE secret (a int4 PRIMARY KEY); ALTER TABLE secret ENABLE ROW LEVEL SECURITY; GRANT SELECT ON secret TO rep;
             CREATE PUBLICATION partial FOR TABLE payments WITH (publish = 'insert');
             CREATE PUBLICATION wide FOR ALL TABLES; CREATE PUBLICATION two FOR TABLE payments, nothing;
             CREATE PUBLICATION good FOR TABLE payments;",
        )
        .await
        .unwrap();
    let mut wrong = vec!["partial", "wide", "two"];
    if version(&client).await >= 15 {
        client.batch_execute("CREATE PUBLICATION filtered FOR TABLE payments WHERE (id > 5)").await.unwrap();
        client.batch_execute("CREATE PUBLICATION narrow FOR TABLE payments (id, amount)").await.unwrap();
        wrong.extend(["filtered", "narrow"]);
    }
    client.batch_execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0").await.unwrap();
    let of = async |settings: PostgresConfig| connectors::preflight(&ConnectorConfig::Postgres(settings)).await;
    let code = async |url: &str, table: &str| {
        let error = of(config(url, &[table], "tidemark_pre")).await.expect_err(table);
        assert!(!error.message.is_empty() && !error.remedy.is_empty());
        error
    };
    let url = server.url();
    of(config(&url, &["payments"], "tidemark_pre")).await.unwrap();
    assert!(client.query("SELECT 1 FROM pg_replication_slots", &[]).await.unwrap().is_empty(), "nothing was created");

    let missing = code(&url, "public.paymnets").await;
    assert_eq!((missing.code, missing.remedy.as_str()), ("table_missing", "did you mean public.payments?"));
    for (table, expected) in [
        ("no_key", "missing_primary_key"),
        ("full_no_key", "missing_primary_key"),
        ("later", "missing_primary_key"),
        ("nothing", "replica_identity_nothing"),
        ("seen", "unsupported_table"),
        ("volatile", "unsupported_table"),
    ] {
        assert_eq!(code(&url, table).await.code, expected, "{table}");
    }
    assert_eq!(code(&server.url_as("plain", "postgres"), "payments").await.code, "role_cannot_replicate");
    assert_eq!(code(&server.url_as("rep", "postgres"), "nothing").await.code, "replica_identity_nothing");
    assert_eq!(code(&server.url_as("rep", "postgres"), "later").await.code, "permission_denied");
    assert_eq!(code(&server.url_as("rep", "postgres"), "secret").await.code, "row_security_active");
    assert_eq!(code(&server.url_as("rep", "postgres"), "payments").await.code, "publication_not_permitted");
    of(config(&server.url_as("rep", "postgres"), &["payments"], "tidemark_pre").with_publication("good").unwrap())
        .await
        .unwrap();
    assert_eq!(code(&server.url_as("nobody", "postgres"), "payments").await.code, "authentication_failed");
    assert_eq!(code(&server.url_as("postgres", "nowhere"), "payments").await.code, "database_missing");
    assert_eq!(code(&server.url_as("postgres", "latin"), "payments").await.code, "encoding_not_utf8");
    assert_eq!(code("postgres://postgres@/postgres?host=/nonexistent", "payments").await.code, "cannot_connect");
    for publication in wrong {
        let settings = config(&url, &["payments"], "tidemark_pre").with_publication(publication).unwrap();
        assert_eq!(of(settings).await.unwrap_err().code, "publication_mismatch", "{publication}");
    }
    client.batch_execute("SELECT pg_create_physical_replication_slot('tidemark_pre')").await.unwrap();
    assert_eq!(code(&url, "payments").await.code, "slot_not_ours");
    client
        .batch_execute("SELECT pg_create_physical_replication_slot('other'); SELECT pg_drop_replication_slot('tidemark_pre'); SELECT pg_create_physical_replication_slot('another')")
        .await
        .unwrap();
    assert_eq!(code(&url, "payments").await.code, "no_free_slot");
    drop(server);

    let server = Server::start(&["wal_level=replica"]);
    server.client().await.batch_execute(PAYMENTS).await.unwrap();
    assert_eq!(code(&server.url(), "payments").await.code, "wal_level_not_logical");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_slips_between_slot_and_snapshot() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    client.batch_execute("CREATE TABLE elsewhere (id int4)").await.unwrap();
    // An open writer holds up the creation of the slot; a TRUNCATE that comes meanwhile must not wait for us forever,
    // nor we for it.
    let truncating = server.client().await;
    client.batch_execute("BEGIN; INSERT INTO elsewhere VALUES (1)").await.unwrap();
    let settings = config(&server.url(), &["payments"], "tidemark_lock");
    let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
    let observer = server.client().await;
    wait_for("the slot's creation waits", async || {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender' AND wait_event_type = 'Lock'";
        observer.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    truncating.batch_execute("TRUNCATE payments").await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    engine.until(now(&client).await).await;
    engine.stop().await;

    // The table is emptied and filled all the time, in one transaction each: never seen empty, never seen mixed.
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let writer = tokio::spawn(async move {
        let mut round = 0;
        while !stopped.load(Ordering::Relaxed) {
            round += 1;
            let fill = format!("INSERT INTO payments SELECT i, 'r{round}', {round}, 's' FROM generate_series(1, 50) i");
            truncating.batch_execute(&format!("BEGIN; TRUNCATE payments; {fill}; COMMIT")).await.unwrap();
            // Longer as time goes on: a machine that is slow gets its chance to make a slot in between.
            tokio::time::sleep(Duration::from_millis(round * 7 % (90 + 2 * round))).await;
        }
    });
    wait_for("the first filling", async || ids(&client).await.len() == 50).await;
    for _ in 0..6 {
        let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
        engine.until(Lsn(1)).await;
        assert_eq!(engine.snapshot_rows, 50);
        engine.until(now(&client).await).await;
        assert_eq!(engine.table("payments").len(), 50);
        engine.stop().await;
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    let mut engine = FakeEngine::start(settings, ResumePoint::Fresh);
    engine.until(now(&client).await).await;
    assert_same_payments(&client, &engine).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_snapshot_halts_and_starts_over() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    client
        .batch_execute("INSERT INTO payments SELECT i, repeat('m', 500), 1, 's' FROM generate_series(1, 60000) i")
        .await
        .unwrap();
    let settings = config(&server.url(), &["payments"], "tidemark_again");
    let mut engine = FakeEngine::start_any(ConnectorConfig::Postgres(settings.clone()), ResumePoint::Fresh, 1);
    wait_for("the snapshot is being read", async || {
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND application_name LIKE 'tidemark/%'";
        client.execute(kill, &[]).await.unwrap() > 0
    })
    .await;
    assert_eq!(engine.until_halted().await, "snapshot_interrupted");
    let mut engine = FakeEngine::start(settings, ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    assert_eq!(engine.snapshot_rows, 60000);
    assert!(matches!(engine.stop().await, ResumePoint::Resume { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_and_tcp() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::start(&["listen_addresses=127.0.0.1", &format!("port={port}")]);
    server.require_passwords_over_tcp().await;
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    client.batch_execute("INSERT INTO payments VALUES (1, 'm', 1, 's')").await.unwrap();
    client
        .batch_execute(
            "SET password_encryption = 'scram-sha-256'; CREATE ROLE anna SUPERUSER LOGIN PASSWORD 'hun@ter2'",
        )
        .await
        .unwrap();
    let url = |password: &str| format!("postgres://anna{password}@127.0.0.1:{port}/postgres?sslmode=prefer");
    for password in ["", ":wr%40ng-one"] {
        let settings = ConnectorConfig::Postgres(config(&url(password), &["payments"], "tidemark_tcp"));
        let error = connectors::preflight(&settings).await.unwrap_err();
        assert_eq!(error.code, "authentication_failed");
        assert!(!format!("{error:?}").contains("wr@ng"));
    }
    let settings = config(&url(":hun%40ter2"), &["payments"], "tidemark_tcp");
    connectors::preflight(&ConnectorConfig::Postgres(settings.clone())).await.unwrap();
    let mut engine = FakeEngine::start(settings, ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    client.batch_execute("UPDATE payments SET amount = 2").await.unwrap();
    engine.until(now(&client).await).await;
    assert_same_payments(&client, &engine).await;
    engine.stop().await;
}

/// Two tables under random work, cut at random, and at the end equal to what SQL says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_work_with_random_cuts() {
    let server = Server::start(&["logical_decoding_work_mem=64kB"]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    client
        .batch_execute("CREATE TABLE other (id int4, part text, body text, PRIMARY KEY (part, id)); ALTER TABLE other ALTER body SET STORAGE EXTERNAL")
        .await
        .unwrap();
    let settings = config(&server.url(), &["payments", "other"], "tidemark_random");
    let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    let mut random = ChaCha8Rng::seed_from_u64(20_261_121);
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication";
    for round in 0..300 {
        let mut sql = String::from("BEGIN;");
        for _ in 0..random.random_range(1..6) {
            let id = random.random_range(0..40);
            let to = random.random_range(0..40);
            let statement = match random.random_range(0..12) {
                0..3 => format!(
                    "INSERT INTO payments VALUES ({id}, 'm{round}', {to}.5, NULL) ON CONFLICT (id) DO UPDATE SET amount = {to}"
                ),
                3 => format!(
                    "UPDATE payments SET id = {to} WHERE id = {id} AND NOT EXISTS (SELECT 1 FROM payments WHERE id = {to})"
                ),
                4 => format!("DELETE FROM payments WHERE id % 7 = {}", id % 7),
                5 => {
                    format!("DELETE FROM payments WHERE id = {id}; INSERT INTO payments VALUES ({id}, 'again', 7, 's')")
                }
                6 => format!(
                    "SAVEPOINT s; UPDATE payments SET merchant = 'never'; DELETE FROM other; ROLLBACK TO s; UPDATE payments SET status = 's{round}' WHERE id > {id}"
                ),
                7 | 8 => format!(
                    "INSERT INTO other VALUES ({id}, 'p{}', repeat('{}', {})) ON CONFLICT DO NOTHING",
                    to % 3,
                    to % 10,
                    to * 200
                ),
                9 => format!(
                    "UPDATE other SET part = 'q' || id WHERE id = {id} AND NOT EXISTS (SELECT 1 FROM other o WHERE o.id = {id} AND o.part = 'q' || {id})"
                ),
                10 => "UPDATE payments SET amount = amount + 0.01".to_owned(),
                _ if to == 0 => "TRUNCATE payments, other".to_owned(),
                _ => format!(
                    "INSERT INTO payments SELECT i, 'bulk', i, 'b' FROM generate_series({}, {}) i",
                    100 + round * 500,
                    100 + round * 500 + to * 10
                ),
            };
            sql.push_str(&statement);
            sql.push(';');
        }
        sql.push_str(if random.random_range(0..8) == 0 { "ROLLBACK" } else { "COMMIT" });
        if let Err(error) = client.batch_execute(&sql).await {
            // Two rows renamed to one key: the work of this round is void, which is work too.
            assert_eq!(error.code(), Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION), "{sql}: {error:?}");
            client.batch_execute("ROLLBACK").await.unwrap();
        }
        if random.random_range(0..25) == 0 {
            client.execute(cut, &[]).await.unwrap();
        }
        if random.random_range(0..40) == 0 {
            engine.until(now(&client).await).await;
            assert_same_payments(&client, &engine).await;
        }
        if random.random_range(0..100) == 0 {
            let (rows, resume) = (engine.rows.clone(), engine.stop().await);
            engine = FakeEngine::start(settings.clone(), resume);
            engine.rows = rows;
        }
    }
    engine.until(now(&client).await).await;
    assert_same_payments(&client, &engine).await;
    let others = client.query("SELECT id, part, body FROM other", &[]).await.unwrap();
    let mut expected: Vec<Vec<String>> = others
        .iter()
        .map(|row| {
            vec![
                format!("Int({})", row.get::<_, i32>(0)),
                format!("Text({:?})", row.get::<_, &str>(1)),
                format!("Text({:?})", row.get::<_, &str>(2)),
            ]
        })
        .collect();
    expected.sort();
    let mut got = engine.table("other");
    got.sort();
    assert_eq!(got, expected);
    engine.stop().await;
}
