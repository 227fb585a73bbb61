//! Tables without row images, against a real server: `REPLICA IDENTITY FULL`, and nothing of the rows on our disk. Every cell
//! equals Postgres' own GROUP BY at the same position, or the aggregate says why not.

use std::path::Path;

use connectors::PostgresConfig;
use connectors::postgres::throwaway::ThrowawayPostgres;
use engine::engine::EngineConfig;
use engine::materialization::AggregateState;
use engine::source::TableState;
use serde_json::json;
use tokio_postgres::Client;

use crate::support::cells::{Rows, cells};
use crate::support::embedded::Embedded;
use crate::support::sql;

/// Table and dimension by the aggregate's name; `note` holds values that the log does not repeat.
const AGGREGATES: [(&str, &str, &str); 4] =
    [("kinds", "t", "k"), ("notes", "t", "note"), ("parts", "p", "d"), ("others", "u", "k")];

fn config(postgres: &ThrowawayPostgres, off: &[&str]) -> PostgresConfig {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let config = PostgresConfig::new(&postgres.url(), &names(&["t", "p"]), "tidemark_whole").unwrap();
    config.with_row_images_off(&names(off)).unwrap()
}

async fn start(data: &Path, postgres: &ThrowawayPostgres, off: &[&str]) -> Embedded {
    Embedded::start_with(&EngineConfig { workers: 2, ..EngineConfig::new(data) }, config(postgres, off)).await
}

async fn register(tidemark: &Embedded, name: &str) {
    let (_, table, dimension) = AGGREGATES.into_iter().find(|aggregate| aggregate.0 == name).unwrap();
    let definition = json!({
        "table": format!("public.{table}"), "dimensions": [dimension],
        "measures": [{"name": "total", "sum": "v"}, {"name": "n", "count": "*"}],
    });
    tidemark.register(name, serde_json::from_value(definition).unwrap()).await;
}

async fn assert_exact(tidemark: &Embedded, client: &Client, name: &str, when: &str) {
    let (_, table, dimension) = AGGREGATES.into_iter().find(|aggregate| aggregate.0 == name).unwrap();
    let lsn = sql::current_lsn(client).await;
    let snapshot = tidemark.live(name, lsn).await;
    let query = format!("SELECT 0, {dimension}, count(*), sum(v), count(*) FROM {table} GROUP BY {dimension}");
    let text = |row: Vec<Option<String>>| row.into_iter().map(|value| value.unwrap_or("NULL".to_owned())).collect();
    let expected: Rows = sql::rows(client, &query).await.into_iter().map(text).collect();
    assert!(cells(&snapshot, name, "all") == expected, "{name} after {when}");
    snapshot.scrub().unwrap();
}

fn standing(tidemark: &Embedded, table: &str) -> Option<(TableState, bool)> {
    let tables = tidemark.engine.tables();
    let table = tables.iter().find(|followed| followed.schema.name == table)?;
    Some((table.standing.clone(), table.schema.keeps_row_image))
}

fn halted(tidemark: &Embedded, name: &str) -> Option<(String, String)> {
    let aggregates = tidemark.engine.aggregates();
    match &aggregates.iter().find(|aggregate| aggregate.name == name)?.state {
        AggregateState::Halted { code, remedy, .. } => Some((code.clone(), remedy.clone())),
        _ => None,
    }
}

const TABLES: &str = "
    CREATE TABLE t (id int8 PRIMARY KEY, k int4, v numeric(12,2), note text);
    ALTER TABLE t ALTER note SET STORAGE EXTERNAL;
    CREATE TABLE p (id int8, d int4, v numeric(12,2), PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
    CREATE TABLE p0 PARTITION OF p FOR VALUES FROM (0) TO (10);
    CREATE TABLE p1 (v numeric(12,2), d int4 NOT NULL, id int8 NOT NULL, PRIMARY KEY (id, d));
    ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (10) TO (20);
    CREATE TABLE u (id int8 PRIMARY KEY, k int4, v numeric(12,2));
    INSERT INTO t SELECT i, i % 7, i * 0.25, repeat(chr(65 + (i % 3)::int4), 900) FROM generate_series(1, 5000) i;
    INSERT INTO p SELECT i, i % 20, i * 0.01 FROM generate_series(1, 5000) i;
    INSERT INTO u SELECT i, i % 3, i FROM generate_series(1, 5000) i";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_without_row_images_are_exact_or_say_why_not() {
    let postgres = sql::postgres(&[]);
    let client = sql::connect(&postgres.url()).await;
    sql::run(&client, TABLES).await;
    // What the log lacks is told before anything is read, with the statements that put it right.
    let connector = connectors::ConnectorConfig::Postgres(config(&postgres, &["t", "p"]));
    let refused = connectors::preflight(&connector).await.unwrap_err().error;
    assert_eq!(refused.code, "replica_identity_not_full");
    assert_eq!(refused.remedy, "ALTER TABLE \"public\".\"t\" REPLICA IDENTITY FULL;");
    sql::run(&client, &refused.remedy).await;
    let refused = connectors::preflight(&connector).await.unwrap_err().error;
    assert!(refused.remedy.contains("\"p1\"") && refused.remedy.contains("\"p\" "), "{}", refused.remedy);
    sql::run(&client, &refused.remedy).await;

    let data = tempfile::tempdir().unwrap();
    let mut tidemark = start(data.path(), &postgres, &["t", "p"]).await;
    tidemark.at(sql::current_lsn(&client).await).await;
    register(&tidemark, "kinds").await;
    register(&tidemark, "parts").await;
    let rows_behind = json!({"table": "t", "measures": [{"name": "n", "count": "*"}], "drill_through": true});
    let refused = tidemark.engine.register("behind", serde_json::from_value(rows_behind).unwrap()).await.unwrap_err();
    assert!(refused.to_string().contains("keeps no row images"), "{refused}");
    for change in [
        "UPDATE t SET v = v + 0.01 WHERE id % 3 = 0; DELETE FROM t WHERE id % 11 = 0; UPDATE t SET id = id + 100000 WHERE id % 13 = 0",
        "UPDATE t SET note = 'x' WHERE id % 17 = 0; UPDATE t SET v = v, k = k",
        "BEGIN; UPDATE t SET k = 99, id = -id WHERE id % 5 = 0; DELETE FROM t WHERE k = 99 AND id % 2 = 0; COMMIT",
        "UPDATE p SET v = v + 0.01; UPDATE p SET d = d + 10 WHERE d < 10 AND id % 5 = 0; DELETE FROM p WHERE id % 11 = 0",
        "TRUNCATE p1",
        "BEGIN; INSERT INTO p SELECT i, 15, 1 FROM generate_series(7000, 7100) i; TRUNCATE p0; INSERT INTO p SELECT i, 5, 2 FROM generate_series(8000, 8100) i; COMMIT",
        "TRUNCATE p",
        "INSERT INTO p SELECT i, i % 20, i * 0.01 FROM generate_series(1, 5000) i",
        "BEGIN; TRUNCATE t; INSERT INTO t SELECT i, i % 7, i, repeat('y', 900) FROM generate_series(1, 3000) i; COMMIT",
    ] {
        sql::run(&client, change).await;
        for name in ["kinds", "parts"] {
            assert_exact(&tidemark, &client, name, change).await;
        }
    }

    // Registered late, and stopped before the table can have been read: the next process has it read.
    register(&tidemark, "notes").await;
    tidemark.stop().await;
    sql::run(&client, "UPDATE t SET k = k + 1 WHERE id < 500; DELETE FROM t WHERE id BETWEEN 600 AND 700").await;
    tidemark = start(data.path(), &postgres, &["t", "p"]).await;
    for name in ["notes", "kinds", "parts"] {
        assert_exact(&tidemark, &client, name, "a registration and a restart").await;
    }

    // Partitions leave with their rows, and come back with them.
    sql::run(&client, "ALTER TABLE p DETACH PARTITION p1").await;
    tidemark
        .until("p1 is gone", |tidemark| {
            tidemark.engine.tables().iter().any(|table| table.schema.name == "p" && table.partitions.len() == 1)
        })
        .await;
    assert_exact(&tidemark, &client, "parts", "detaching").await;
    sql::run(&client, "UPDATE p1 SET v = 77; ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (10) TO (20)").await;
    tidemark
        .until("p1 is back", |tidemark| {
            let tables = tidemark.engine.tables();
            tables.iter().any(|table| {
                table.schema.name == "p" && table.partitions.len() == 2 && table.standing == TableState::Live
            })
        })
        .await;
    assert_exact(&tidemark, &client, "parts", "attaching").await;

    // Old rows that do not come any more: the table halts alone, and says what to do.
    sql::run(&client, "ALTER TABLE t REPLICA IDENTITY DEFAULT; UPDATE t SET v = v + 1 WHERE id < 100").await;
    tidemark.until("t halts", |tidemark| halted(tidemark, "kinds").is_some()).await;
    let (code, remedy) = halted(&tidemark, "kinds").unwrap();
    assert_eq!(code, "replica_identity_not_full");
    assert!(remedy.starts_with("ALTER TABLE \"public\".\"t\" REPLICA IDENTITY FULL;"), "{remedy}");
    sql::run(&client, "UPDATE p SET v = v + 1 WHERE id < 100").await;
    assert_exact(&tidemark, &client, "parts", "another table halted").await;
    assert_eq!(tidemark.engine.read_table("t", None).await.unwrap_err().code, "replica_identity_not_full");
    assert_eq!(tidemark.engine.read_table("t", Some(true)).await.unwrap_err().code, "row_image_configured");
    sql::run(&client, "ALTER TABLE t REPLICA IDENTITY FULL").await;
    tidemark.engine.read_table("t", None).await.unwrap();
    tidemark.until("t is read", |tidemark| standing(tidemark, "t") == Some((TableState::Live, false))).await;
    sql::run(&client, "UPDATE t SET v = v * 2 WHERE id % 2 = 0").await;
    for name in ["notes", "kinds"] {
        assert_exact(&tidemark, &client, name, "the identity is back").await;
    }

    // Switched for a table that the stream has described with its old identity, and has sent nothing of since.
    tidemark.engine.read_table("u", None).await.unwrap();
    tidemark.until("u is followed", |tidemark| standing(tidemark, "u") == Some((TableState::Live, true))).await;
    register(&tidemark, "others").await;
    sql::run(&client, "UPDATE u SET v = v + 1 WHERE id % 2 = 0").await;
    assert_exact(&tidemark, &client, "others", "joining").await;
    sql::run(&client, "ALTER TABLE u REPLICA IDENTITY FULL").await;
    tidemark.engine.read_table("u", Some(false)).await.unwrap();
    tidemark.until("u keeps no rows", |tidemark| standing(tidemark, "u") == Some((TableState::Live, false))).await;
    sql::run(&client, "UPDATE u SET k = k + 1, v = v / 2; DELETE FROM u WHERE id % 9 = 0").await;
    assert_exact(&tidemark, &client, "others", "switching row images off").await;

    // What was said over HTTP is remembered; what the configuration says now counts.
    tidemark.stop().await;
    tidemark = start(data.path(), &postgres, &["t"]).await;
    tidemark.until("p keeps rows", |tidemark| standing(tidemark, "p") == Some((TableState::Live, true))).await;
    assert!(!standing(&tidemark, "u").unwrap().1);
    sql::run(&client, "DELETE FROM p WHERE id % 2 = 0; UPDATE t SET k = 0 WHERE id % 7 = 1; DELETE FROM u WHERE k = 2")
        .await;
    for (name, ..) in AGGREGATES {
        assert_exact(&tidemark, &client, name, "a restart with another configuration").await;
    }
    tidemark.stop().await;
}

fn bytes_of(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_of(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_row_images_the_rows_are_not_on_our_disk() {
    let postgres = sql::postgres(&[]);
    let client = sql::connect(&postgres.url()).await;
    sql::run(
        &client,
        "CREATE TABLE t (id int8 PRIMARY KEY, k int4, v numeric(12,2), note text); ALTER TABLE t REPLICA IDENTITY FULL",
    )
    .await;
    sql::run(
        &client,
        "INSERT INTO t SELECT i, i % 7, i * 0.25, md5(i::text) || md5((-i)::text) FROM generate_series(1, 200000) i",
    )
    .await;
    let mut sizes = Vec::new();
    for (slot, off) in [("kept", false), ("off", true)] {
        let data = tempfile::tempdir().unwrap();
        let config = PostgresConfig::new(&postgres.url(), &["t".to_owned()], slot).unwrap();
        let config = if off { config.with_row_images_off(&["t".to_owned()]).unwrap() } else { config };
        let tidemark = Embedded::start_with(&EngineConfig::new(data.path()), config).await;
        register(&tidemark, "kinds").await;
        assert_exact(&tidemark, &client, "kinds", slot).await;
        tidemark.stop().await;
        sizes.push(bytes_of(data.path()));
    }
    println!("200,000 rows: {} bytes with row images, {} without", sizes[0], sizes[1]);
    assert!(sizes[1] * 10 < sizes[0], "{sizes:?}");
}
