//! Before the stream: mistakes of the configuration by name, passwords, TCP.

use ::engine::change::Lsn;
use ::engine::source::ResumePoint;
use connectors::{ConnectorConfig, PostgresConfig};

use crate::engine::{FakeEngine, config};
use crate::payments::{PAYMENTS, assert_same_payments, now, version};
use crate::server::Server;

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
             CREATE TABLE parent (a int4 PRIMARY KEY); CREATE TABLE child () INHERITS (parent);
             CREATE SCHEMA \"x.y\"; CREATE TABLE \"x.y\".z (a int4 PRIMARY KEY);
             CREATE SCHEMA x; CREATE TABLE x.\"y.z\" (a int4 PRIMARY KEY);
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
        let error = of(config(url, &[table], "tidemark_pre")).await.expect_err(table).error;
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
        ("parent", "unsupported_table"),
        ("\"x.y\".z", "unsupported_table"),
        ("x.\"y.z\"", "unsupported_table"),
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
        assert_eq!(of(settings).await.unwrap_err().error.code, "publication_mismatch", "{publication}");
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
        let error = connectors::preflight(&settings).await.unwrap_err().error;
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
