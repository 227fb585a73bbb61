//! Totals over tables that change shape: partitions come, go and are emptied, columns go, tables halt and are read anew,
//! others join. After each step every cell equals Postgres' own GROUP BY at that position, or the aggregate says why not.

use connectors::postgres::throwaway::ThrowawayPostgres;
use engine::materialization::AggregateState;
use engine::source::TableState;
use serde_json::json;
use tokio_postgres::Client;

use crate::support::cells::{Rows, cells};
use crate::support::embedded::Embedded;
use crate::support::sql;

/// The aggregates: name, table, dimension, measure.
const AGGREGATES: [(&str, &str, &str, &str); 4] =
    [("parts", "p", "d", "v"), ("plain", "t", "k", "v"), ("old", "t", "k", "w"), ("still", "u", "k", "v")];

async fn register(tidemark: &Embedded, (name, table, dimension, measure): (&str, &str, &str, &str)) {
    let definition = json!({
        "table": format!("public.{table}"), "dimensions": [dimension],
        "measures": [{"name": "total", "sum": measure}, {"name": "n", "count": "*"}],
    });
    tidemark.register(name, serde_json::from_value(definition).unwrap()).await;
}

async fn expected(client: &Client, table: &str, dimension: &str, measure: &str) -> Rows {
    let query = format!("SELECT 0, {dimension}, count(*), sum({measure}), count(*) FROM {table} GROUP BY {dimension}");
    let text = |row: Vec<Option<String>>| row.into_iter().map(|value| value.unwrap_or("NULL".to_owned())).collect();
    sql::rows(client, &query).await.into_iter().map(text).collect()
}

/// Compares with Postgres at the end of its log; nobody else writes to the table.
async fn assert_exact(tidemark: &Embedded, client: &Client, name: &str, when: &str) {
    let (_, table, dimension, measure) = AGGREGATES.into_iter().find(|aggregate| aggregate.0 == name).unwrap();
    let lsn = sql::current_lsn(client).await;
    let snapshot = tidemark.live(name, lsn).await;
    assert_eq!(cells(&snapshot, name, "all"), expected(client, table, dimension, measure).await, "{name} after {when}");
    snapshot.scrub().unwrap();
}

fn halted(tidemark: &Embedded, name: &str) -> Option<String> {
    let aggregates = tidemark.engine.aggregates();
    match &aggregates.iter().find(|aggregate| aggregate.name == name)?.state {
        AggregateState::Halted { code, .. } => Some(code.clone()),
        _ => None,
    }
}

fn standing(tidemark: &Embedded, table: &str) -> TableState {
    let tables = tidemark.engine.tables();
    tables.iter().find(|followed| followed.schema.name == table).unwrap().standing.clone()
}

async fn start(postgres: &ThrowawayPostgres, data: &std::path::Path) -> Embedded {
    Embedded::start(data, &postgres.url(), &["p", "t"], "tidemark_tables", 2).await
}

const TABLES: &str = "
    CREATE TABLE p (id int8, d int4, v numeric(12,2), PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
    CREATE TABLE p0 PARTITION OF p FOR VALUES FROM (0) TO (10);
    CREATE TABLE p1 (v numeric(12,2), d int4 NOT NULL, id int8 NOT NULL, PRIMARY KEY (id, d));
    ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (10) TO (20);
    CREATE TABLE t (id int8 PRIMARY KEY, k int4, v numeric(12,2), w int8);
    CREATE TABLE u (id int8 PRIMARY KEY, k int4, v numeric(12,2));
    INSERT INTO p SELECT i, i % 20, i * 0.01 FROM generate_series(1, 5000) i;
    INSERT INTO t SELECT i, i % 7, i * 0.25, i FROM generate_series(1, 5000) i;
    INSERT INTO u SELECT i, i % 3, i FROM generate_series(1, 30000) i";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_total_is_exact_or_says_why_not() {
    let postgres = sql::postgres(&[]);
    let client = sql::connect(&postgres.url()).await;
    sql::run(&client, TABLES).await;
    let data = tempfile::tempdir().unwrap();
    let mut tidemark = start(&postgres, data.path()).await;
    tidemark.at(sql::current_lsn(&client).await).await;
    for aggregate in AGGREGATES.into_iter().filter(|aggregate| aggregate.1 != "u") {
        register(&tidemark, aggregate).await;
    }
    for change in [
        "UPDATE p SET v = v + 0.01; UPDATE p SET d = d + 10 WHERE d < 10 AND id % 5 = 0; DELETE FROM p WHERE id % 11 = 0",
        "TRUNCATE p1",
        "BEGIN; INSERT INTO p SELECT i, 15, 1 FROM generate_series(7000, 7100) i; TRUNCATE p0; INSERT INTO p SELECT i, 5, 2 FROM generate_series(8000, 8100) i; COMMIT",
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (20) TO (30); INSERT INTO p SELECT i, 25, 3 FROM generate_series(9000, 9100) i",
        "UPDATE p SET v = v * 2 WHERE d = 25",
        "TRUNCATE p",
        "INSERT INTO p SELECT i, i % 30, i * 0.01 FROM generate_series(1, 5000) i",
        "TRUNCATE t; INSERT INTO t SELECT i, i % 7, i * 0.25, i FROM generate_series(1, 5000) i",
    ] {
        sql::run(&client, change).await;
        for name in ["parts", "plain", "old"] {
            assert_exact(&tidemark, &client, name, change).await;
        }
    }

    // Its rows leave with a partition; with rows attached, the table is read anew by itself.
    sql::run(&client, "ALTER TABLE p DETACH PARTITION p2").await;
    tidemark
        .until("p2 is gone", |tidemark| {
            tidemark.engine.tables().iter().any(|table| table.schema.name == "p" && table.partitions.len() == 2)
        })
        .await;
    assert_exact(&tidemark, &client, "parts", "detaching").await;
    let p2 = sql::value(&client, "SELECT 'p2'::regclass::oid").await;
    sql::run(&client, "UPDATE p2 SET v = 77; ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (20) TO (30)").await;
    tidemark
        .until("p2 is back", |tidemark| {
            let tables = tidemark.engine.tables();
            let table = tables.iter().find(|table| table.schema.name == "p").unwrap();
            table.standing == TableState::Live && table.partitions.iter().any(|part| part.0.to_string() == p2)
        })
        .await;
    assert_exact(&tidemark, &client, "parts", "attaching").await;

    // A column goes: what used it halts, and nothing else.
    sql::run(&client, "ALTER TABLE t RENAME w TO ww; UPDATE t SET v = v + 1 WHERE id < 100").await;
    tidemark.until("old halts", |tidemark| halted(tidemark, "old").as_deref() == Some("column_gone")).await;
    assert_exact(&tidemark, &client, "plain", "renaming").await;
    // A restart changes nothing of it.
    tidemark.stop().await;
    tidemark = start(&postgres, data.path()).await;
    assert_exact(&tidemark, &client, "plain", "a restart").await;
    assert!(halted(&tidemark, "old").is_some() && halted(&tidemark, "parts").is_none());
    // Named back and read anew, both are exact.
    sql::run(&client, "ALTER TABLE t RENAME ww TO w").await;
    tidemark.engine.read_table("t", None).await.unwrap();
    tidemark
        .until("t is read", |tidemark| standing(tidemark, "t") == TableState::Live && halted(tidemark, "old").is_none())
        .await;
    for name in ["plain", "old"] {
        assert_exact(&tidemark, &client, name, "naming it back").await;
    }

    // A table that cannot be followed halts alone.
    sql::run(&client, "ALTER TABLE t ALTER id TYPE int4").await;
    tidemark.until("t halts", |tidemark| matches!(standing(tidemark, "t"), TableState::Halted { .. })).await;
    assert_eq!(halted(&tidemark, "plain").as_deref(), Some("schema_changed"));
    sql::run(&client, "INSERT INTO p VALUES (1000000, 1, 1); UPDATE t SET v = 0 WHERE id = 1").await;
    assert_exact(&tidemark, &client, "parts", "another table halted").await;
    tidemark.engine.read_table("public.t", None).await.unwrap();
    tidemark.until("t is read", |tidemark| standing(tidemark, "t") == TableState::Live).await;
    assert_exact(&tidemark, &client, "plain", "reading anew").await;

    // A table joins under load, with an aggregate registered before it is there; Tidemark stops and starts meanwhile.
    let writer = tokio::spawn({
        let client = sql::connect(&postgres.url()).await;
        async move {
            for n in 0..600i64 {
                sql::run(&client, &format!("BEGIN; UPDATE u SET v = v + 1 WHERE id = {}; INSERT INTO t VALUES ({}, 1, 0.5, 1); DELETE FROM u WHERE id = {}; COMMIT", n * 31 + 1, n + 100_000, n * 31 + 2)).await;
            }
        }
    });
    tidemark.engine.read_table("u", None).await.unwrap();
    tidemark
        .until("u is known", |tidemark| tidemark.engine.tables().iter().any(|table| table.schema.name == "u"))
        .await;
    register(&tidemark, AGGREGATES[3]).await;
    tidemark.stop().await;
    tidemark = start(&postgres, data.path()).await;
    writer.await.unwrap();
    tidemark.until("u is followed", |tidemark| standing(tidemark, "u") == TableState::Live).await;
    for name in ["still", "plain", "parts", "old"] {
        assert_exact(&tidemark, &client, name, "joining").await;
    }
    tidemark.stop().await;
}

/// The monitor looks every two seconds; what these do comes in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_to_be_read_anew_in_the_middle_of_a_transaction() {
    let postgres = sql::postgres(&[]);
    let client = sql::connect(&postgres.url()).await;
    sql::run(&client, TABLES).await;
    let data = tempfile::tempdir().unwrap();
    let tidemark = start(&postgres, data.path()).await;
    tidemark.at(sql::current_lsn(&client).await).await;
    for aggregate in [AGGREGATES[0], AGGREGATES[1]] {
        register(&tidemark, aggregate).await;
        tidemark.live(aggregate.0, sql::current_lsn(&client).await).await;
    }
    for part in 5..8 {
        let (from, to) = (part * 10, part * 10 + 10);
        sql::run(&client, &format!("CREATE TABLE p{part} (LIKE p INCLUDING ALL); INSERT INTO p{part} SELECT i, {from}, 7 FROM generate_series({from}000, {from}100) i")).await;
        sql::run(&client, &format!("ALTER TABLE p ATTACH PARTITION p{part} FOR VALUES FROM ({from}) TO ({to})")).await;
        // Rows of a partition that is known, of another table, and then of the one that came with rows.
        sql::run(&client, &format!("BEGIN; INSERT INTO p VALUES ({from}500, 1, 1); INSERT INTO t VALUES ({from}500, 1, 1, 1); INSERT INTO p VALUES ({from}501, {from}, 2); COMMIT")).await;
        let oid = sql::value(&client, &format!("SELECT 'p{part}'::regclass::oid")).await;
        tidemark
            .until("it is read anew", |tidemark| {
                let tables = tidemark.engine.tables();
                let table = tables.iter().find(|table| table.schema.name == "p").unwrap();
                table.standing == TableState::Live && table.partitions.iter().any(|part| part.0.to_string() == oid)
            })
            .await;
        for name in ["parts", "plain"] {
            assert_exact(&tidemark, &client, name, "a transaction that made it be read anew").await;
        }
    }
    tidemark.stop().await;
}

async fn total(client: &Client, table: &str) -> Rows {
    expected(client, table, "d", "v").await
}

/// Waits until an aggregate over a table with the dimension `d` has every row of it.
async fn until_exact(tidemark: &Embedded, client: &Client, name: &str, table: &str) {
    let expected = total(client, table).await;
    let lsn = sql::current_lsn(client).await;
    tidemark.at(lsn).await;
    tidemark
        .until(&format!("{name} is exact"), |tidemark| {
            let Ok(snapshot) = tidemark.engine.snapshot() else { return false };
            let live = snapshot.catalog().aggregates[name].state == AggregateState::Live;
            live && cells(&snapshot, name, "all") == expected
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_counts_for_one_table() {
    let postgres = sql::postgres(&[]);
    let client = sql::connect(&postgres.url()).await;
    let parted = |name: &str| {
        format!("CREATE TABLE {name} (id int8, d int4, v numeric(12,2), PRIMARY KEY (id, d)) PARTITION BY RANGE (d)")
    };
    sql::run(
        &client,
        &format!(
            "{}; {}; CREATE TABLE hot_1 PARTITION OF hot FOR VALUES FROM (0) TO (10);
             CREATE TABLE hot_2 PARTITION OF hot FOR VALUES FROM (10) TO (20);
             CREATE TABLE cold_1 PARTITION OF cold FOR VALUES FROM (20) TO (30);
             CREATE TABLE own (LIKE hot INCLUDING ALL);
             INSERT INTO hot SELECT i, i % 20, i * 0.01 FROM generate_series(1, 2000) i;
             INSERT INTO cold SELECT i, 20 + i % 10, i * 0.25 FROM generate_series(1, 2000) i;
             INSERT INTO own SELECT i, 30 + i % 10, i FROM generate_series(1, 100) i",
            parted("hot"),
            parted("cold")
        ),
    )
    .await;
    // Not both from the start.
    let tables = ["hot".to_owned(), "hot_2".to_owned()];
    let config = connectors::PostgresConfig::new(&postgres.url(), &tables, "tidemark_both").unwrap();
    let refused = connectors::preflight(&connectors::ConnectorConfig::Postgres(config)).await.unwrap_err().error;
    assert_eq!(refused.code, "table_overlaps");
    assert!(refused.message.contains("public.hot_2 is a partition of table public.hot"), "{}", refused.message);

    let data = tempfile::tempdir().unwrap();
    let tables = ["hot", "cold", "own"];
    let tidemark = Embedded::start(data.path(), &postgres.url(), &tables, "tidemark_one", 2).await;
    tidemark.at(sql::current_lsn(&client).await).await;
    for name in tables {
        register(&tidemark, (name, name, "d", "v")).await;
        until_exact(&tidemark, &client, name, name).await;
    }
    // Nor one that joins later.
    assert_eq!(tidemark.engine.read_table("hot_2", None).await.unwrap_err().code, "table_overlaps");

    // A partition moves, within one transaction; with rows in every piece of it before anybody looks.
    sql::run(&client, "BEGIN; ALTER TABLE hot DETACH PARTITION hot_2; DELETE FROM hot_2 WHERE id % 3 = 0; ALTER TABLE cold ATTACH PARTITION hot_2 FOR VALUES FROM (10) TO (20); COMMIT").await;
    sql::run(&client, "INSERT INTO cold VALUES (10000, 15, 5); INSERT INTO hot VALUES (10001, 5, 5); UPDATE cold SET v = v + 1 WHERE d < 20").await;
    for name in ["cold", "hot"] {
        until_exact(&tidemark, &client, name, name).await;
    }
    // And back, while nobody writes.
    sql::run(&client, "BEGIN; ALTER TABLE cold DETACH PARTITION hot_2; ALTER TABLE hot ATTACH PARTITION hot_2 FOR VALUES FROM (10) TO (20); COMMIT").await;
    for name in ["cold", "hot"] {
        until_exact(&tidemark, &client, name, name).await;
    }

    // A followed table becomes a partition of another one.
    sql::run(&client, "ALTER TABLE hot ATTACH PARTITION own FOR VALUES FROM (30) TO (40)").await;
    tidemark.until("own halts", |tidemark| halted(tidemark, "own").as_deref() == Some("schema_changed")).await;
    until_exact(&tidemark, &client, "hot", "hot").await;
    sql::run(&client, "UPDATE hot SET v = v + 1; DELETE FROM hot WHERE id = 7; INSERT INTO own VALUES (20000, 31, 1)")
        .await;
    for name in ["cold", "hot"] {
        until_exact(&tidemark, &client, name, name).await;
    }
    assert_eq!(tidemark.engine.read_table("own", None).await.unwrap_err().code, "table_overlaps");
    // A new partition is no reason to read anything: the aggregate keeps its number.
    let number = |tidemark: &Embedded| {
        tidemark.engine.aggregates().iter().find(|aggregate| aggregate.name == "hot").map(|aggregate| aggregate.id)
    };
    let before = number(&tidemark);
    sql::run(
        &client,
        "CREATE TABLE hot_4 PARTITION OF hot FOR VALUES FROM (40) TO (50); INSERT INTO hot VALUES (30000, 45, 1)",
    )
    .await;
    until_exact(&tidemark, &client, "hot", "hot").await;
    assert_eq!(number(&tidemark), before);

    // Detached, it can be followed by itself again, also over a restart.
    tidemark.stop().await;
    sql::run(&client, "ALTER TABLE hot DETACH PARTITION own; INSERT INTO own VALUES (20001, 32, 1)").await;
    let tidemark = Embedded::start(data.path(), &postgres.url(), &tables, "tidemark_one", 2).await;
    until_exact(&tidemark, &client, "hot", "hot").await;
    tidemark.engine.read_table("own", None).await.unwrap();
    tidemark.until("own is read", |tidemark| standing(tidemark, "own") == TableState::Live).await;
    for name in tables {
        until_exact(&tidemark, &client, name, name).await;
    }
    tidemark.stop().await;
}
