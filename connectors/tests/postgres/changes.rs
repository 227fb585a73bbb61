//! What a row change brings, of every kind and of every type, compared with what SQL says.

use ::engine::change::{ColumnType, Lsn};
use ::engine::source::ResumePoint;

use crate::engine::{FakeEngine, config};
use crate::payments::{PAYMENTS, assert_same_payments, now, version};
use crate::server::Server;

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
