//! What happens to tables while they are followed: columns, partitions, membership, and tables that join later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use connectors::postgres::{Stage, check};
use engine::change::Lsn;
use engine::source::{ResumePoint, SourceCommand, SourceState, TableState};
use tokio_postgres::Client;

use crate::engine::{FakeEngine, config};
use crate::payments::{free, now, wait_for};
use crate::server::Server;

/// Rows as the engine stand-in prints them, from the columns `id int8, v int8`.
async fn pairs(client: &Client, query: &str) -> Vec<Vec<String>> {
    let rows = client.query(query, &[]).await.unwrap();
    let show = |value: Option<i64>| value.map_or("Null".to_owned(), |value| format!("Int({value})"));
    let mut rows: Vec<Vec<String>> = rows.iter().map(|row| vec![show(row.get(0)), show(row.get(1))]).collect();
    rows.sort();
    rows
}

fn rows_of(engine: &FakeEngine, table: &str) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = engine.table(table).into_iter().map(|row| row[..2].to_vec()).collect();
    rows.sort();
    rows
}

/// Everything committed so far is with the engine, and the table is the one upstream has.
async fn assert_same(client: &Client, engine: &mut FakeEngine, table: &str) {
    engine.until(now(client).await).await;
    let (have, expected) = (rows_of(engine, table), pairs(client, &format!("SELECT id, v FROM {table}")).await);
    if have == expected {
        return;
    }
    // Each row is looked for among all others: minutes, where there are a hundred thousand.
    let lacks: Vec<_> = expected.iter().filter(|row| !have.contains(row)).take(5).collect();
    let surplus: Vec<_> = have.iter().filter(|row| !expected.contains(row)).take(5).collect();
    panic!("{table}: lacks {lacks:?}, has {surplus:?}, reading {:?}", engine.reading);
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

async fn begin(server: &Server, client: &Client, tables: &[&str]) -> FakeEngine {
    let mut engine = FakeEngine::start(config(&server.url(), tables, "tidemark_tables"), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    engine.until(now(client).await).await;
    engine
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_come_and_go() {
    let server = Server::start(&[]);
    let client = server.client().await;
    run(&client, "CREATE TABLE t (id int8 PRIMARY KEY, v int8, a int4, b int4, c text, d numeric(10,2)); INSERT INTO t SELECT i, i, i, i, 'c', 1 FROM generate_series(1, 100) i").await;
    let mut engine = begin(&server, &client, &["t"]).await;

    // Nothing of ours: columns come, with defaults constant and volatile, and go; the table is compacted and emptied.
    for harmless in [
        "ALTER TABLE t ADD COLUMN e int4 DEFAULT 7",
        "ALTER TABLE t ADD COLUMN f float8 DEFAULT random()",
        "BEGIN; ALTER TABLE t ADD COLUMN g int4; INSERT INTO t (id, v) VALUES (101, 1); ALTER TABLE t DROP COLUMN g; INSERT INTO t (id, v) VALUES (102, 1); COMMIT",
        "ALTER TABLE t DROP COLUMN e",
        "VACUUM FULL t",
        "CLUSTER t USING t_pkey",
        "ANALYZE t",
        "ALTER TABLE t ALTER v SET DEFAULT 5",
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "ALTER TABLE t REPLICA IDENTITY DEFAULT",
        "TRUNCATE t",
        "INSERT INTO t (id, v) SELECT i, i FROM generate_series(1, 50) i",
    ] {
        run(&client, harmless).await;
        run(&client, "UPDATE t SET v = v + 1").await;
        assert_same(&client, &mut engine, "t").await;
    }
    assert!(engine.unusable.is_empty() && engine.halted.is_empty(), "{:?}", engine.unusable);

    // Ours: dropped, renamed, retyped, all in one transaction with rows in between.
    run(&client, "BEGIN; UPDATE t SET v = 1 WHERE id = 1; ALTER TABLE t DROP COLUMN a; UPDATE t SET v = 2 WHERE id = 2; ALTER TABLE t ALTER b TYPE int8; UPDATE t SET v = 3 WHERE id = 3; ALTER TABLE t RENAME c TO cc; UPDATE t SET v = 4; COMMIT").await;
    assert_same(&client, &mut engine, "t").await;
    let mut gone: Vec<&str> = engine.unusable.iter().map(|(column, _)| column.as_str()).collect();
    gone.sort_unstable();
    gone.dedup();
    assert_eq!(gone, ["a", "b", "c"]);

    // The same type, and every value another one: no event, an identical RELATION, and nothing else is touched.
    run(&client, "ALTER TABLE t ALTER d TYPE numeric(10,2) USING d * 100").await;
    let (column, what) = engine.until_unusable().await;
    assert!(column == "d" && what.contains("rewritten"), "{what}");
    run(&client, "UPDATE t SET v = 9 WHERE id < 10").await;
    assert_same(&client, &mut engine, "t").await;
    assert!(engine.halted.is_empty());

    // Read anew, it is as it is now.
    engine.read_table("t").await.unwrap();
    assert_same(&client, &mut engine, "t").await;
    let names: Vec<String> = engine.column_types("t").into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["id", "v", "b", "cc", "d", "f"]);
    run(&client, "UPDATE t SET v = 10 WHERE id < 10; DELETE FROM t WHERE id = 50").await;
    assert_same(&client, &mut engine, "t").await;
}

/// No row is written anew, and a RELATION says nothing of collations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_of_which_texts_become_equal_is_gone() {
    let server = Server::start(&[]);
    let client = server.client().await;
    run(&client, "CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false); CREATE DOMAIN caseless AS text COLLATE folded; CREATE DOMAIN nickname AS caseless; CREATE TABLE t (id int8 PRIMARY KEY, v int8, a text, b varchar(9), c char(3), d text, e text)").await;
    let mut engine = begin(&server, &client, &["t"]).await;
    run(&client, "ALTER TABLE t ALTER e TYPE text COLLATE \"C\"").await;
    for (column, alter) in [
        ("a", "TYPE text COLLATE folded"),
        ("b", "TYPE varchar(9) COLLATE folded"),
        ("c", "TYPE char(3) COLLATE folded"),
        ("d", "TYPE nickname"),
    ] {
        run(&client, &format!("ALTER TABLE t ALTER {column} {alter}")).await;
        let (gone, what) = engine.until_unusable().await;
        assert!(gone == column && what.contains("collation"), "{gone}: {what}");
    }
    run(&client, "INSERT INTO t (id, v, a, e) VALUES (1, 1, 'A', 'A'), (2, 2, 'a', 'a')").await;
    assert_same(&client, &mut engine, "t").await;
    assert!(engine.halted.is_empty() && engine.unusable.len() == 4, "{:?}", engine.unusable);
    engine.read_table("t").await.unwrap();
    let types: Vec<String> = engine.column_types("t").iter().map(|(_, of)| of.name().to_owned()).collect();
    let folded = "text with nondeterministic collation";
    assert_eq!(types, ["bigint", "bigint", folded, folded, folded, folded, "text"]);
    assert_same(&client, &mut engine, "t").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_of_a_relation_holds_where_it_is_not_said_again() {
    let server = Server::start(&[]);
    let client = server.client().await;
    run(&client, "CREATE TYPE address AS (street text); CREATE TABLE t (id int8 PRIMARY KEY, v int8, a address); INSERT INTO t SELECT i, i FROM generate_series(1, 100) i").await;
    let mut engine = begin(&server, &client, &["t"]).await;
    run(&client, "UPDATE t SET v = v + 1").await;
    assert_same(&client, &mut engine, "t").await;
    // The table as it is read does not fit what was said of it, and Postgres sees no reason to describe it again.
    run(&client, "ALTER TYPE address RENAME TO place").await;
    engine.read_table("t").await.unwrap();
    run(&client, "UPDATE t SET v = v + 1; DELETE FROM t WHERE id = 7").await;
    assert_same(&client, &mut engine, "t").await;
    assert!(engine.halted.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_halts_alone_and_can_be_read_anew() {
    let server = Server::start(&[]);
    let client = server.client().await;
    run(&client, "CREATE TABLE t (id int8 PRIMARY KEY, v int8); CREATE TABLE other (id int8 PRIMARY KEY, v int8); INSERT INTO t SELECT i, i FROM generate_series(1, 100) i").await;
    let mut engine = begin(&server, &client, &["t", "other"]).await;
    let renamed = "ALTER TABLE t RENAME TO t2; INSERT INTO t2 VALUES (1000, 1); ALTER TABLE t2 RENAME TO t";
    for (change, code) in [
        (
            "ALTER PUBLICATION tidemark_tables DROP TABLE t; DELETE FROM t WHERE id = 5; ALTER PUBLICATION tidemark_tables ADD TABLE ONLY t",
            "publication_changed",
        ),
        ("ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (v)", "schema_changed"),
        ("ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (id)", "schema_changed"),
        ("DROP TABLE t; CREATE TABLE t (id int8 PRIMARY KEY, v int8); INSERT INTO t VALUES (1, 1)", "table_dropped"),
        (renamed, "schema_changed"),
        (
            "ALTER TABLE t REPLICA IDENTITY NOTHING; INSERT INTO t VALUES (500, 5); ALTER TABLE t REPLICA IDENTITY DEFAULT",
            "schema_changed",
        ),
    ] {
        run(&client, change).await;
        assert_eq!(engine.until_table_halted().await, ("t".to_owned(), code), "{change}");
        run(&client, "INSERT INTO t SELECT max(id) + 1, 1000000 + max(id) FROM t; INSERT INTO other SELECT coalesce(max(id), 0) + 1, 1 FROM other").await;
        assert_same(&client, &mut engine, "other").await;
        engine.read_table("public.t").await.unwrap();
        run(&client, "INSERT INTO t SELECT max(id) + 1, -max(v) - 1 FROM t; UPDATE t SET v = v + 100000 WHERE id = 1")
            .await;
        assert_same(&client, &mut engine, "t").await;
        assert_same(&client, &mut engine, "other").await;
    }
    assert_eq!(engine.read_table("public.nowhere").await.unwrap_err().code, "table_missing");
    assert_eq!(engine.read_table("a.b.c").await.unwrap_err().code, "bad_table_name");
    assert_eq!(engine.status.borrow().state, SourceState::Live);
}

/// `"x.y".z` and `x."y.z"` would both be `x.y.z`, and the later one would take the place of the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_with_a_dot_is_changed_before_the_table_is_followed() {
    let server = Server::start(&[]);
    let client = server.client().await;
    run(&client, r#"CREATE SCHEMA "x.y"; CREATE SCHEMA x; CREATE TABLE t (id int8 PRIMARY KEY, v int8); CREATE TABLE "x.y".z (id int8 PRIMARY KEY, v int8); CREATE TABLE x."y.z" (id int8 PRIMARY KEY, v int8); CREATE TABLE "a.b" (id int8 PRIMARY KEY, v int8); INSERT INTO "a.b" VALUES (1, 1)"#).await;
    let mut engine = begin(&server, &client, &["t"]).await;
    for (name, now) in [(r#""x.y".z"#, "x_y.z"), (r#"x."y.z""#, "x.y_z"), (r#""a.b""#, "public.a_b")] {
        let refused = engine.read_table(name).await.unwrap_err();
        assert_eq!(refused.code, "unsupported_table", "{name}");
        run(&client, &refused.remedy).await;
        assert!(refused.remedy.ends_with(&format!("-- it is {now} then")), "{refused:?}");
        assert_eq!(engine.read_table(now).await.unwrap(), now);
    }
    assert_same(&client, &mut engine, "a_b").await;
}

/// The rows of such children count for it in Postgres, and their changes are not among its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_from_which_others_inherit_is_not_followed() {
    let server = Server::start(&[]);
    let client = server.client().await;
    run(&client, "CREATE TABLE t (id int8 PRIMARY KEY, v int8); CREATE TABLE late (id int8 PRIMARY KEY, v int8); INSERT INTO t VALUES (1, 1); CREATE TABLE late1 (PRIMARY KEY (id)) INHERITS (late); INSERT INTO late1 VALUES (2, 10)").await;
    let mut engine = begin(&server, &client, &["t"]).await;
    assert_eq!(engine.read_table("late").await.unwrap_err().code, "unsupported_table");
    // A child has its rows for itself.
    engine.read_table("late1").await.unwrap();
    assert_same(&client, &mut engine, "late1").await;

    run(&client, "CREATE TABLE u (PRIMARY KEY (id)) INHERITS (t); INSERT INTO u VALUES (2, 10)").await;
    assert_eq!(engine.until_table_halted().await, ("t".to_owned(), "schema_changed"));
    let remedy = engine.halted.last().unwrap().1.remedy.clone();
    assert_eq!(engine.read_table("t").await.unwrap_err().code, "unsupported_table", "it cannot be read as it is");
    let (statement, _) = remedy.split_once("; -- then ").unwrap();
    assert_eq!(statement, r#"ALTER TABLE public.u NO INHERIT "public"."t""#);
    run(&client, statement).await;
    engine.read_table("t").await.unwrap();
    run(&client, "INSERT INTO t VALUES (3, 3); INSERT INTO u VALUES (4, 4)").await;
    assert_same(&client, &mut engine, "t").await;

    // While nobody looked.
    engine.until_seen("the signs are noted", |engine| engine.notes.is_some()).await;
    let (rows, resume) = (engine.rows.clone(), engine.stop().await);
    free(&client).await;
    run(&client, "ALTER TABLE u INHERIT t").await;
    let mut engine = FakeEngine::start(config(&server.url(), &["t"], "tidemark_tables"), resume);
    engine.rows = rows;
    assert_eq!(engine.until_table_halted().await, ("t".to_owned(), "schema_changed"));
    engine.until_seen("it goes on", |engine| engine.status.borrow().state == SourceState::Live).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_while_nobody_looked_is_noticed() {
    let server = Server::start(&[]);
    let client = server.client().await;
    run(&client, "CREATE TABLE t (id int8 PRIMARY KEY, v int8, d int4); CREATE TABLE u (id int8 PRIMARY KEY, v int8); INSERT INTO t SELECT i, i, i FROM generate_series(1, 10) i; INSERT INTO u SELECT id, v FROM t").await;
    let mut engine = begin(&server, &client, &["t", "u"]).await;
    engine.until_seen("the signs are noted", |engine| engine.notes.is_some()).await;
    let (rows, resume) = (engine.rows.clone(), engine.stop().await);
    free(&client).await;
    run(&client, "ALTER PUBLICATION tidemark_tables DROP TABLE u; DELETE FROM u WHERE id = 5; ALTER PUBLICATION tidemark_tables ADD TABLE ONLY u; ALTER TABLE t ALTER d TYPE int4 USING d * 2; UPDATE t SET v = 77 WHERE id = 7").await;
    let mut engine = FakeEngine::start(config(&server.url(), &["t", "u"], "tidemark_tables"), resume);
    engine.rows = rows;
    assert_eq!(engine.until_table_halted().await, ("u".to_owned(), "publication_changed"));
    engine.until_seen("the column", |engine| engine.unusable.iter().any(|(column, _)| column == "d")).await;
    assert_same(&client, &mut engine, "t").await;

    // A table that is halted stays so over a restart, and is read anew on request.
    let (rows, resume) = (engine.rows.clone(), engine.stop().await);
    free(&client).await;
    let ResumePoint::Resume { tables, .. } = &resume else { panic!() };
    assert!(
        tables
            .iter()
            .any(|table| matches!(&table.standing, TableState::Halted { code, .. } if code == "publication_changed"))
    );
    let mut engine = FakeEngine::start(config(&server.url(), &["t", "u"], "tidemark_tables"), resume);
    engine.rows = rows;
    run(&client, "INSERT INTO u VALUES (100, 1)").await;
    assert_same(&client, &mut engine, "t").await;
    engine.read_table("u").await.unwrap();
    assert_same(&client, &mut engine, "u").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions() {
    let server = Server::start(&[]);
    let client = server.client().await;
    run(
        &client,
        "CREATE TABLE p (id int8, v int8, d int4, big text, PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
         CREATE TABLE p2 (big text, d int4 NOT NULL, v int8, id int8 NOT NULL, PRIMARY KEY (id, d));
         ALTER TABLE p2 ALTER big SET STORAGE EXTERNAL;
         ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20);
         CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (20) TO (40) PARTITION BY RANGE (d);
         CREATE TABLE p31 PARTITION OF p3 FOR VALUES FROM (20) TO (30);
         INSERT INTO p SELECT i, i, i % 30, repeat('x', 5000) FROM generate_series(1, 300) i",
    )
    .await;
    let mut engine = begin(&server, &client, &["p"]).await;
    assert_eq!(engine.partitions.len(), 3);
    for change in [
        "INSERT INTO p VALUES (1001, 1, 5), (1002, 1, 15), (1003, 1, 25)",
        "UPDATE p SET v = v + 1",
        // From one partition into another.
        "UPDATE p SET d = d + 10 WHERE d < 20 AND id % 3 = 0",
        "DELETE FROM p WHERE id % 7 = 0",
        "TRUNCATE p2",
        "INSERT INTO p VALUES (2000, 1, 15)",
        // New ones, with rows in their first moment; also two levels down.
        "CREATE TABLE p5 PARTITION OF p FOR VALUES FROM (50) TO (60); INSERT INTO p VALUES (3000, 3, 55), (3001, 3, 56); UPDATE p SET v = 4 WHERE id = 3000",
        "CREATE TABLE p32 PARTITION OF p3 FOR VALUES FROM (30) TO (40); INSERT INTO p VALUES (3100, 3, 35)",
        "BEGIN; CREATE TABLE p6 PARTITION OF p FOR VALUES FROM (60) TO (70); INSERT INTO p VALUES (3200, 3, 65); COMMIT",
        // Attached empty, as partition managers do, long before its first row.
        "CREATE TABLE p7 (LIKE p INCLUDING ALL); ALTER TABLE p ATTACH PARTITION p7 FOR VALUES FROM (70) TO (80)",
        "INSERT INTO p VALUES (3300, 3, 75)",
        "BEGIN; TRUNCATE p1; INSERT INTO p VALUES (4000, 1, 1); TRUNCATE p7; INSERT INTO p VALUES (4001, 1, 71); COMMIT",
    ] {
        run(&client, change).await;
        if change.contains("ATTACH") {
            engine.until_seen("p7 is taken in", |engine| engine.partitions.len() == 7).await;
        }
        engine.until(now(&client).await).await;
        assert!(engine.reading.is_empty() && engine.joined == 0, "read anew for no reason: {change}");
        assert_same(&client, &mut engine, "p").await;
    }
    assert!(engine.halted.is_empty() && engine.unusable.is_empty() && engine.joined == 0);

    // Attached with rows: they were never sent, so the table is read anew by itself.
    run(&client, "CREATE TABLE p8 (LIKE p INCLUDING ALL); INSERT INTO p8 SELECT i, i, 85 FROM generate_series(5000, 5100) i; ALTER TABLE p ATTACH PARTITION p8 FOR VALUES FROM (80) TO (90)").await;
    engine.until_seen("read anew", |engine| engine.joined == 1).await;
    run(&client, "INSERT INTO p VALUES (5500, 3, 86)").await;
    assert_same(&client, &mut engine, "p").await;

    // Detached, and dropped: its rows go.
    run(&client, "ALTER TABLE p DETACH PARTITION p8; INSERT INTO p VALUES (6000, 1, 1)").await;
    engine.until_seen("p8 is gone", |engine| engine.partitions.len() == 7).await;
    assert_same(&client, &mut engine, "p").await;
    run(&client, "DROP TABLE p1").await;
    engine.until_seen("p1 is gone", |engine| engine.partitions.len() == 6).await;
    assert_same(&client, &mut engine, "p").await;
    // Attached again, with what happened to it meanwhile.
    run(&client, "DELETE FROM p8 WHERE id % 2 = 0; ALTER TABLE p ATTACH PARTITION p8 FOR VALUES FROM (80) TO (90)")
        .await;
    engine.until_seen("read anew", |engine| engine.joined == 2).await;
    assert_same(&client, &mut engine, "p").await;
    run(&client, "TRUNCATE p").await;
    assert_same(&client, &mut engine, "p").await;
    assert!(engine.table("p").is_empty() && engine.halted.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_table_within_another_is_followed_alone() {
    let server = Server::start(&[]);
    let client = server.client().await;
    run(
        &client,
        "CREATE TABLE top (id int8, v int8, d int4, PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
         CREATE TABLE p PARTITION OF top FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (d);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
         INSERT INTO top SELECT i, i, i % 10 FROM generate_series(1, 20) i",
    )
    .await;
    let mut engine = begin(&server, &client, &["p"]).await;
    for change in [
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20); INSERT INTO top VALUES (100, 1, 15), (101, 2, 5)",
        "INSERT INTO p VALUES (102, 3, 16); UPDATE top SET v = v + 1",
    ] {
        run(&client, change).await;
        engine.until(now(&client).await).await;
        assert_same(&client, &mut engine, "p").await;
    }
    assert!(engine.halted.is_empty() && engine.joined == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_joins_at_an_exact_position_under_load() {
    let server = Server::start(&[]);
    let client = server.client().await;
    run(&client, "CREATE TABLE t (id int8 PRIMARY KEY, v int8); CREATE TABLE late (id int8 PRIMARY KEY, v int8); CREATE TABLE later (id int8 PRIMARY KEY, v int8); INSERT INTO late SELECT i, i FROM generate_series(1, 60000) i; INSERT INTO later SELECT i, i FROM generate_series(1, 1000) i").await;
    let mut engine = begin(&server, &client, &["t"]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for writer in 0..3i64 {
        let (client, stop, written) = (server.client().await, Arc::clone(&stop), Arc::clone(&written));
        writers.push(tokio::spawn(async move {
            let mut n = 0i64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let (fresh, old) = (1_000_000 * (writer + 1) + n, (n * 3 + writer) % 60_000 + 1);
                run(&client, &format!("BEGIN; INSERT INTO t VALUES ({fresh}, {n}); UPDATE late SET v = v + 1 WHERE id = {old}; INSERT INTO late VALUES ({fresh}, {n}); DELETE FROM late WHERE id = {}; UPDATE late SET id = -id WHERE id = {}; UPDATE later SET v = v - 1 WHERE id = {}; COMMIT", fresh - 3, fresh - 1, old % 1000 + 1)).await;
                written.fetch_add(1, Ordering::Relaxed);
                // As fast as they can, they would leave whoever reads too little of the processors to catch up.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }));
    }
    wait_for("writers write", async || written.load(Ordering::Relaxed) > 50).await;
    let (before, at_start) = (engine.transactions.len(), written.load(Ordering::Relaxed));
    assert_eq!(engine.read_table("late").await.unwrap(), "public.late");
    // The other table went on meanwhile: neither is held up by the other.
    assert!(written.load(Ordering::Relaxed) > at_start && engine.transactions.len() > before);
    engine.read_table("later").await.unwrap();
    let more = engine.transactions.len() + 100;
    engine.until_seen("more transactions", |engine| engine.transactions.len() > more).await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    for table in ["t", "late", "later"] {
        assert_same(&client, &mut engine, table).await;
    }
    let slots = client.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await.unwrap();
    assert_eq!(slots.get::<_, i64>(0), 1, "the temporary slots are gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_survives_restarts_and_alterations() {
    let server = Server::start(&[]);
    let client = server.client().await;
    run(&client, "CREATE TABLE t (id int8 PRIMARY KEY, v int8); CREATE TABLE late (id int8 PRIMARY KEY, v int8, x int4); INSERT INTO late SELECT i, i FROM generate_series(1, 20000) i").await;
    let engine = begin(&server, &client, &["t"]).await;
    let resume = engine.stop().await;
    free(&client).await;

    // Named in the configuration from now on: it joins by itself. Ended in the middle, it begins anew.
    let both = config(&server.url(), &["t", "late"], "tidemark_tables");
    let mut engine = FakeEngine::start(both.clone(), resume);
    engine.until_seen("reading", |engine| engine.rows.values().any(|rows| rows.len() >= 5_000)).await;
    let (rows, resume) = (engine.rows.clone(), engine.stop().await);
    free(&client).await;
    let ResumePoint::Resume { tables, .. } = &resume else { panic!() };
    assert!(tables.iter().any(|table| table.schema.name == "late" && table.standing == TableState::Reading));
    run(&client, "UPDATE late SET v = -v WHERE id < 100; INSERT INTO t VALUES (1, 1)").await;
    // No longer named, it is still to be read.
    let mut engine = FakeEngine::start(config(&server.url(), &["t"], "tidemark_tables"), resume);
    engine.rows = rows;
    engine.until_seen("reading again", |engine| engine.rows.values().any(|rows| rows.len() >= 5_000)).await;
    // Altered while it is being read: whichever shape it is read in, it is exact.
    run(&client, "ALTER TABLE late ALTER x TYPE int8; INSERT INTO late VALUES (30000, 1, 1)").await;
    engine.until_seen("joined", |engine| engine.joined == 1).await;
    assert_same(&client, &mut engine, "late").await;
    assert_same(&client, &mut engine, "t").await;
    assert!(engine.halted.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_read_anew_by_a_source_that_lags() {
    let server = Server::start(&[]);
    let client = server.client().await;
    run(&client, "CREATE TABLE t (id int8 PRIMARY KEY, v int8); CREATE TABLE late (id int8 PRIMARY KEY, v int8); INSERT INTO late SELECT i, i FROM generate_series(1, 1000) i").await;
    let mut engine = begin(&server, &client, &["t", "late"]).await;
    // The engine takes nothing: the stream stands, and the new snapshot of the table will be ahead of it.
    // More than is taken from the socket before anything else is looked at.
    run(&client, "DO $$ BEGIN FOR n IN 1..20000 LOOP INSERT INTO t VALUES (n, n); UPDATE late SET v = v + 1 WHERE id = n % 1000 + 1; INSERT INTO late VALUES (n + 5000, 0); COMMIT; END LOOP; END $$").await;
    let (reply, _answer) = tokio::sync::oneshot::channel();
    engine.commands.send(SourceCommand::ReadTable { table: "late".to_owned(), row_image: None, reply }).await.unwrap();
    let asked = Instant::now();
    loop {
        // However long the slot takes, the stream stays behind; unless nobody has come to the command yet.
        engine.take_what_came(if asked.elapsed() < Duration::from_secs(10) { 15_000 } else { usize::MAX });
        let slots = client.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await.unwrap();
        if slots.get::<_, i64>(0) == 2 {
            break;
        }
    }
    assert!(engine.transactions.len() < 19_000, "the stream is still behind: {}", engine.transactions.len());
    engine.until_seen("joined", |engine| engine.joined == 1).await;
    run(&client, "UPDATE late SET v = v + 1; INSERT INTO t VALUES (-1, -1)").await;
    for table in ["t", "late"] {
        assert_same(&client, &mut engine, table).await;
    }
}

/// Another owner is written as something left out for a moment is: the catalog does not tell which it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_that_was_altered_has_its_tables_read_anew() {
    let server = Server::start(&[]);
    let client = server.client().await;
    run(
        &client,
        "CREATE TABLE t (id int8 PRIMARY KEY, v int8); INSERT INTO t VALUES (1, 1); CREATE ROLE other SUPERUSER",
    )
    .await;
    let mut engine = begin(&server, &client, &["t"]).await;
    engine.until_seen("the signs are noted", |engine| engine.notes.is_some()).await;
    run(&client, "ALTER PUBLICATION tidemark_tables OWNER TO other; INSERT INTO t VALUES (2, 2)").await;
    engine.until_seen("read anew", |engine| engine.joined == 1).await;
    run(&client, "INSERT INTO t VALUES (3, 3)").await;
    assert_same(&client, &mut engine, "t").await;
    let resume = engine.resume_point();
    let rows = engine.rows.clone();
    engine.stop().await;
    free(&client).await;
    // While nobody looked.
    run(&client, "ALTER PUBLICATION tidemark_tables SET (publish = 'insert'); UPDATE t SET v = 10 * v").await;
    run(&client, "ALTER PUBLICATION tidemark_tables SET (publish = 'insert, update, delete, truncate')").await;
    let mut engine = FakeEngine::start(config(&server.url(), &["t"], "tidemark_tables"), resume);
    engine.rows = rows;
    engine.until_seen("read anew once more", |engine| engine.joined == 1).await;
    assert_same(&client, &mut engine, "t").await;
    assert_eq!(engine.status.borrow().state, SourceState::Live);
}

/// Who reads a table while it happens is not sent it either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_being_read_while_the_publication_is_altered_is_read_anew() {
    let server = Server::start(&[]);
    let client = server.client().await;
    run(&client, "CREATE TABLE t (id int8 PRIMARY KEY, v int8); CREATE TABLE late (id int8 PRIMARY KEY, v int8); INSERT INTO late SELECT i, i FROM generate_series(1, 20000) i").await;
    let mut engine = begin(&server, &client, &["t"]).await;
    engine.until_seen("the signs are noted", |engine| engine.notes.is_some()).await;
    let (reply, _answer) = tokio::sync::oneshot::channel();
    engine.commands.send(SourceCommand::ReadTable { table: "late".to_owned(), row_image: None, reply }).await.unwrap();
    engine.until_seen("reading", |engine| engine.rows.values().any(|rows| rows.len() >= 5_000)).await;
    run(&client, "BEGIN; ALTER PUBLICATION tidemark_tables SET (publish = 'insert'); UPDATE late SET v = -v; ALTER PUBLICATION tidemark_tables SET (publish = 'insert, update, delete, truncate'); COMMIT").await;
    // Where it was read before anybody looked, it is read once more.
    let none_is_left = |engine: &FakeEngine| engine.joined >= 2 && engine.reading.is_empty();
    engine
        .until_seen("both are read", |engine| none_is_left(engine) && rows_of(engine, "late")[0][1].contains('-'))
        .await;
    for table in ["t", "late"] {
        assert_same(&client, &mut engine, table).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_that_changes_halts_the_source() {
    for change in [
        "ALTER PUBLICATION tidemark_tables SET (publish = 'insert')",
        "ALTER PUBLICATION tidemark_tables SET (publish_via_partition_root = true)",
        "DROP PUBLICATION tidemark_tables",
        "DROP PUBLICATION tidemark_tables; CREATE PUBLICATION tidemark_tables FOR TABLE ONLY t",
    ] {
        let server = Server::start(&[]);
        let client = server.client().await;
        run(&client, "CREATE TABLE t (id int8 PRIMARY KEY, v int8)").await;
        let mut engine = begin(&server, &client, &["t"]).await;
        engine.until_seen("the signs are noted", |engine| engine.notes.is_some()).await;
        run(&client, change).await;
        assert_eq!(engine.until_halted().await, "publication_changed", "{change}");
        // Whoever asks is told the same way out, and it is one.
        if change.contains(" SET (") {
            let settings = config(&server.url(), &["t"], "tidemark_tables");
            let publication = async || {
                let found = check(&settings, Stage::Unknown).await;
                found.into_iter().find(|found| found.check.name == "publication").unwrap()
            };
            let found = publication().await;
            let SourceState::Halted { remedy, .. } = engine.status.borrow().state.clone() else { panic!("{change}") };
            assert_eq!((found.code, &found.check.remedy), ("publication_changed", &remedy), "{change}");
            assert!(remedy.contains("reads the tables anew"), "{change}: {remedy}");
            for statement in &found.repair {
                run(&client, statement).await;
            }
            assert!(!publication().await.is_failed(), "{change}");
        }
    }
}
