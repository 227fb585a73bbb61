//! What changes upstream without a row that says so: names, partitions with their rows, what the log or the publication leaves
//! out, labels of enums. After each, totals equal Postgres' own GROUP BY, or the aggregate says why not, and what its remedy
//! says makes them exact again.

use std::path::Path;

use connectors::PostgresConfig;
use engine::engine::EngineConfig;
use engine::materialization::AggregateState;
use engine::source::TableState;
use serde_json::json;
use tempfile::TempDir;
use tokio_postgres::Client;

use crate::support::cells::{Rows, cells};
use crate::support::embedded::Embedded;
use crate::support::sql;

const SLOT: &str = "tidemark_unsaid";

/// `p`, with a partition of the first ten values of `k`, and a row.
const ONE_PARTITION: &str = "
    CREATE TABLE p (id int8, k int4, v numeric(12,2), PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
    CREATE TABLE p0 PARTITION OF p FOR VALUES FROM (0) TO (10);
    INSERT INTO p VALUES (1, 1, 10.00)";

/// A server, and a Tidemark that follows tables of it.
struct Scene {
    postgres: connectors::postgres::throwaway::ThrowawayPostgres,
    client: Client,
    data: TempDir,
    tidemark: Embedded,
}

/// Follows `tables` with these row images off; each has an aggregate of its own name, by `k`, of `v`.
async fn scene(statements: &str, tables: &[&str], off: &[&str]) -> Scene {
    let postgres = sql::postgres(&[]);
    let client = sql::connect(&postgres.url()).await;
    sql::run(&client, statements).await;
    let data = tempfile::tempdir().unwrap();
    let tidemark = start(data.path(), &postgres.url(), tables, off).await;
    let scene = Scene { postgres, client, data, tidemark };
    for table in tables {
        let definition = json!({
            "table": format!("public.{table}"), "dimensions": ["k"],
            "measures": [{"name": "total", "sum": "v"}, {"name": "n", "count": "*"}],
        });
        scene.tidemark.register(table, serde_json::from_value(definition).unwrap()).await;
        scene.assert_exact(table, "the start").await;
    }
    scene
}

async fn start(data: &Path, url: &str, tables: &[&str], off: &[&str]) -> Embedded {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let config = PostgresConfig::new(url, &names(tables), SLOT).unwrap().with_row_images_off(&names(off)).unwrap();
    Embedded::start_with(&EngineConfig { workers: 2, ..EngineConfig::new(data) }, config).await
}

impl Scene {
    async fn run(&self, statements: &str) {
        sql::run(&self.client, statements).await;
    }

    /// Compares with Postgres at the end of its log; nobody else writes to the table.
    async fn assert_exact(&self, table: &str, when: &str) {
        let lsn = sql::current_lsn(&self.client).await;
        let snapshot = self.tidemark.live(table, lsn).await;
        let query = format!("SELECT 0, k, count(*), sum(v), count(*) FROM {table} GROUP BY k");
        let text = |row: Vec<Option<String>>| row.into_iter().map(|value| value.unwrap_or("NULL".to_owned())).collect();
        let expected: Rows = sql::rows(&self.client, &query).await.into_iter().map(text).collect();
        assert_eq!(cells(&snapshot, table, "all"), expected, "{table} after {when}");
        snapshot.scrub().unwrap();
    }

    /// The relation is one of the table's partitions, and everything of the table is with the engine.
    async fn until_followed(&self, table: &str, part: &str) {
        let oid = sql::value(&self.client, &format!("SELECT '{part}'::regclass::oid")).await;
        let followed = |tidemark: &Embedded| {
            tidemark.engine.tables().iter().any(|found| {
                found.schema.name == table
                    && found.standing == TableState::Live
                    && found.partitions.iter().any(|part| part.0.to_string() == oid)
            })
        };
        self.tidemark.until(&format!("{part} is followed"), followed).await;
    }

    /// The aggregate halts with this code; its remedy.
    async fn until_halted(&self, name: &str, expected: &str) -> String {
        let mut remedy = None;
        let halted = |tidemark: &Embedded| {
            let aggregates = tidemark.engine.aggregates();
            let state = aggregates.iter().find(|aggregate| aggregate.name == name).map(|found| &found.state);
            let Some(AggregateState::Halted { code, remedy: found, .. }) = state else { return false };
            assert_eq!(code, expected, "{name}");
            remedy = Some(found.clone());
            true
        };
        self.tidemark.until(&format!("{name} halts"), halted).await;
        remedy.unwrap()
    }

    /// Does what a remedy says: its statement, and the reading.
    async fn follow(&self, remedy: &str, table: &str) {
        let (statement, reading) = remedy.split_once("; -- then ").unwrap_or(("", remedy));
        assert!(reading.contains(&format!("{{\"table\":\"public.{table}\"}}")), "{remedy}");
        self.run(statement).await;
        self.read_anew(table).await;
    }

    async fn read_anew(&self, table: &str) {
        self.tidemark.engine.read_table(table, None).await.unwrap();
        let live = |tidemark: &Embedded| {
            let aggregates = tidemark.engine.aggregates();
            aggregates.iter().any(|found| found.name == table && found.state == AggregateState::Live)
        };
        self.tidemark.until(&format!("{table} is read"), live).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_with_another_name_halts() {
    let scene = scene(
        "CREATE TABLE payments (id int8 PRIMARY KEY, k int4, v numeric(12,2));
         CREATE TABLE a (id int8 PRIMARY KEY, k int4, v numeric(12,2));
         CREATE TABLE b (id int8 PRIMARY KEY, k int4, v numeric(12,2));
         CREATE TABLE moved (id int8 PRIMARY KEY, k int4, v numeric(12,2));
         CREATE SCHEMA attic;
         INSERT INTO payments VALUES (1, 1, 10.00); INSERT INTO a VALUES (1, 1, 1.00); INSERT INTO b VALUES (1, 1, 2.00)",
        &["payments", "a", "b", "moved"],
        &[],
    )
    .await;
    // As migrations do. No row of the table that we follow comes any more.
    scene
        .run(
            "BEGIN; ALTER TABLE payments RENAME TO payments_old;
             CREATE TABLE payments (id int8 PRIMARY KEY, k int4, v numeric(12,2));
             INSERT INTO payments SELECT * FROM payments_old; INSERT INTO payments VALUES (2, 1, 1000.00); COMMIT",
        )
        .await;
    let remedy = scene.until_halted("payments", "schema_changed").await;
    assert!(remedy.contains("public.payments_old"), "{remedy}");
    scene.follow(&remedy, "payments").await;
    scene.run("INSERT INTO payments VALUES (3, 2, 5.00); UPDATE payments_old SET v = 0").await;
    scene.assert_exact("payments", "reading the table that has its name").await;

    scene.run("BEGIN; ALTER TABLE a RENAME TO c; ALTER TABLE b RENAME TO a; ALTER TABLE c RENAME TO b; COMMIT").await;
    scene.run("ALTER TABLE moved SET SCHEMA attic").await;
    for name in ["a", "b", "moved"] {
        scene.until_halted(name, "schema_changed").await;
    }
    scene.assert_exact("payments", "other tables").await;
    scene.tidemark.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_came_with_a_partition_are_read() {
    let scene = scene(
        "CREATE TABLE p (id int8, k int4, v numeric(12,2), PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
         CREATE TABLE p0 PARTITION OF p FOR VALUES FROM (0) TO (10);
         CREATE TABLE elsewhere (id int8);
         INSERT INTO p VALUES (1, 1, 10.00)",
        &["p"],
        &[],
    )
    .await;
    // The transaction that attaches has the older number.
    let loader = sql::connect(&scene.postgres.url()).await;
    scene.run("BEGIN; INSERT INTO elsewhere VALUES (1)").await;
    sql::run(
        &loader,
        "CREATE TABLE p1 (LIKE p INCLUDING ALL); INSERT INTO p1 SELECT i, 11, 1 FROM generate_series(1, 1000) i",
    )
    .await;
    scene.run("ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (10) TO (20); COMMIT").await;
    scene.until_followed("p", "p1").await;
    scene.assert_exact("p", "attaching by an older transaction").await;
    // Made, filled and attached by one transaction, in parts.
    scene
        .run(
            "BEGIN; CREATE TABLE p2 (LIKE p INCLUDING ALL); SAVEPOINT loading; INSERT INTO p2 VALUES (1, 21, 200.00);
             RELEASE loading; ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (20) TO (30); COMMIT",
        )
        .await;
    scene.until_followed("p", "p2").await;
    scene.assert_exact("p", "one transaction").await;
    // Its own partition was one of it from the beginning, but it was none of ours.
    scene
        .run(
            "CREATE TABLE p3 (LIKE p INCLUDING ALL) PARTITION BY RANGE (k);
             CREATE TABLE p31 PARTITION OF p3 FOR VALUES FROM (30) TO (40); INSERT INTO p3 VALUES (1, 31, 3000.00);
             ALTER TABLE p ATTACH PARTITION p3 FOR VALUES FROM (30) TO (50)",
        )
        .await;
    scene.until_followed("p", "p31").await;
    scene.assert_exact("p", "attaching a tree").await;
    scene.tidemark.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_came_with_a_partition_and_are_gone_are_not_taken_away() {
    let scene = scene(
        "CREATE TABLE p (id int8, k int4, v numeric(12,2), note text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
         ALTER TABLE p REPLICA IDENTITY FULL;
         CREATE TABLE p0 PARTITION OF p FOR VALUES FROM (0) TO (10); ALTER TABLE p0 REPLICA IDENTITY FULL;
         CREATE TABLE p1 (LIKE p INCLUDING ALL); ALTER TABLE p1 REPLICA IDENTITY FULL;
         INSERT INTO p VALUES (1, 1, 10.00); INSERT INTO p1 VALUES (1, 11, 1000.00)",
        &["p"],
        &["p"],
    )
    .await;
    scene
        .run("BEGIN; ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (10) TO (20); UPDATE p1 SET note = 'x'; COMMIT")
        .await;
    scene.until_followed("p", "p1").await;
    scene.assert_exact("p", "writing rows anew").await;
    scene
        .run(
            "BEGIN; CREATE TABLE p2 (LIKE p INCLUDING ALL); ALTER TABLE p2 REPLICA IDENTITY FULL;
             INSERT INTO p2 VALUES (1, 21, 7.00), (2, 22, 8.00);
             ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (20) TO (30); DELETE FROM p2; COMMIT",
        )
        .await;
    scene.until_followed("p", "p2").await;
    scene.assert_exact("p", "deleting them").await;
    scene.tidemark.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_not_in_the_log_halts_its_table() {
    let scene = scene(ONE_PARTITION, &["p"], &[]).await;
    scene
        .run("CREATE UNLOGGED TABLE p1 PARTITION OF p FOR VALUES FROM (10) TO (20); INSERT INTO p VALUES (1, 11, 1000.00)")
        .await;
    let remedy = scene.until_halted("p", "unsupported_table").await;
    scene.follow(&remedy, "p").await;
    scene.assert_exact("p", "a new partition").await;
    scene.run("ALTER TABLE p0 SET UNLOGGED; INSERT INTO p VALUES (2, 2, 20.00)").await;
    let remedy = scene.until_halted("p", "unsupported_table").await;
    assert!(scene.tidemark.engine.read_table("p", None).await.is_err(), "it cannot be read as it is");
    scene.follow(&remedy, "p").await;
    scene.assert_exact("p", "an old one").await;
    // In the log again before anybody looked, and with rows that are not in it.
    scene
        .run(
            "BEGIN; CREATE UNLOGGED TABLE p2 PARTITION OF p FOR VALUES FROM (20) TO (30);
             INSERT INTO p VALUES (3, 21, 300.00); ALTER TABLE p2 SET LOGGED; COMMIT",
        )
        .await;
    scene.until_followed("p", "p2").await;
    scene.assert_exact("p", "a new one, logged late").await;
    scene.tidemark.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_that_left_something_out_has_its_tables_read_anew() {
    let scene = scene(
        "CREATE TABLE t (id int8 PRIMARY KEY, k int4, v numeric(12,2)); INSERT INTO t VALUES (1, 1, 10.00)",
        &["t"],
        &[],
    )
    .await;
    let publication = sql::value(&scene.client, "SELECT pubname FROM pg_publication").await;
    // A table that joins is no change of the publication itself.
    scene.run("CREATE TABLE u (id int8 PRIMARY KEY, k int4, v numeric(12,2))").await;
    scene.tidemark.engine.read_table("u", None).await.unwrap();
    let joined = |tidemark: &Embedded| {
        tidemark.engine.tables().iter().any(|table| table.schema.name == "u" && table.standing == TableState::Live)
    };
    scene.tidemark.until("u joins", joined).await;
    scene.assert_exact("t", "another table").await;
    let Scene { postgres, client, data, tidemark } = scene;
    tidemark.stop().await;
    sql::run(&client, &format!("ALTER PUBLICATION {publication} SET (publish = 'insert')")).await;
    sql::run(&client, "UPDATE t SET v = 1000.00").await;
    let whole = "'insert, update, delete, truncate'";
    sql::run(&client, &format!("ALTER PUBLICATION {publication} SET (publish = {whole})")).await;
    let tidemark = start(data.path(), &postgres.url(), &["t"], &[]).await;
    let scene = Scene { postgres, client, data, tidemark };
    scene.assert_exact("t", "updates that were not sent").await;
    // Another owner looks the same.
    scene.run("CREATE ROLE other SUPERUSER").await;
    scene.run(&format!("ALTER PUBLICATION {publication} OWNER TO other")).await;
    scene.run("INSERT INTO t VALUES (2, 1, 1.00)").await;
    scene.assert_exact("t", "another owner").await;
    scene.tidemark.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_published_in_part_halts_its_table() {
    let scene = scene(ONE_PARTITION, &["p"], &[]).await;
    let publication = sql::value(&scene.client, "SELECT pubname FROM pg_publication").await;
    scene.run(&format!("ALTER PUBLICATION {publication} ADD TABLE p0 WHERE (id > 100)")).await;
    scene.run("INSERT INTO p VALUES (2, 2, 1000.00)").await;
    let remedy = scene.until_halted("p", "publication_changed").await;
    scene.follow(&remedy, "p").await;
    scene.assert_exact("p", "a row filter").await;
    scene.run(&format!("ALTER PUBLICATION {publication} ADD TABLE p0 (id, k)")).await;
    let remedy = scene.until_halted("p", "publication_changed").await;
    scene.follow(&remedy, "p").await;
    // Named besides, and whole: nothing is left out.
    scene.run(&format!("ALTER PUBLICATION {publication} ADD TABLE p0")).await;
    scene.run("INSERT INTO p VALUES (3, 2, 500.00)").await;
    scene.assert_exact("p", "a column list").await;
    scene.tidemark.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_with_another_name_halts_what_groups_by_it() {
    let scene = scene(
        "CREATE TYPE state AS ENUM ('pending', 'paid'); CREATE DOMAIN standing AS state;
         CREATE TABLE t (id int8 PRIMARY KEY, k state, v numeric(12,2));
         CREATE TABLE d (id int8 PRIMARY KEY, k standing, v numeric(12,2));
         CREATE TABLE u (k state PRIMARY KEY, v numeric(12,2));
         INSERT INTO t VALUES (1, 'pending', 10.00), (2, 'paid', 1.00); INSERT INTO u VALUES ('pending', 3.00);
         INSERT INTO d VALUES (1, 'pending', 4.00)",
        &["t", "d", "u"],
        &[],
    )
    .await;
    scene.run("ALTER TYPE state ADD VALUE 'late' BEFORE 'paid'").await;
    scene.run("INSERT INTO t VALUES (3, 'late', 5.00); INSERT INTO d VALUES (2, 'late', 5.00)").await;
    for name in ["t", "d", "u"] {
        scene.assert_exact(name, "another label").await;
    }
    scene.run("ALTER TYPE state RENAME VALUE 'pending' TO 'open'; INSERT INTO t VALUES (4, 'open', 7.00)").await;
    for (name, code) in [("t", "column_gone"), ("d", "column_gone"), ("u", "schema_changed")] {
        let remedy = scene.until_halted(name, code).await;
        scene.follow(&remedy, name).await;
        scene.assert_exact(name, "a label with another name").await;
    }
    scene.tidemark.stop().await;
}
