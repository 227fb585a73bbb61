//! The checks: every mistake is found with its remedy, and is gone once the remedy was run. And what follows from them:
//! poolers, slots in use, slots left behind, sessions left behind.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ::engine::change::Lsn;
use ::engine::source::{CheckOutcome, ResumePoint, SourceState};
use connectors::postgres::{Finding, Stage, check, drop_slot};
use connectors::{ConnectorConfig, PostgresConfig};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_postgres::Client;

use crate::engine::{FakeEngine, config};
use crate::payments::{PAYMENTS, now, version, wait_for};
use crate::server::Server;

/// All findings of one name.
async fn named(settings: &PostgresConfig, stage: Stage, name: &str) -> Vec<Finding> {
    check(settings, stage).await.into_iter().filter(|finding| finding.check.name == name).collect()
}

/// What is wrong with a check of this name; the worst first.
async fn wrong(settings: &PostgresConfig, name: &str) -> Finding {
    let found = named(settings, Stage::Fresh, name).await;
    let finding = found.into_iter().next().unwrap_or_else(|| panic!("no check {name}"));
    assert_ne!(finding.check.outcome, CheckOutcome::Ok, "{name}: {finding:?}");
    assert!(!finding.check.message.is_empty() && !finding.check.remedy.is_empty(), "{finding:?}");
    assert_eq!(finding.is_failed(), !finding.code.is_empty(), "{finding:?}");
    finding
}

/// The statements of a remedy, as someone would paste them.
fn statements(remedy: &str) -> Vec<String> {
    let code = remedy.split(" -- ").next().unwrap();
    code.split(';').map(str::trim).filter(|statement| !statement.is_empty()).map(str::to_owned).collect()
}

/// Finds the mistake, runs the remedy, and finds it gone. Returns what was found.
async fn repaired(admin: &Client, settings: &PostgresConfig, name: &str, code: &str) -> Finding {
    let finding = wrong(settings, name).await;
    assert_eq!(finding.code, code, "{finding:?}");
    for statement in statements(&finding.check.remedy) {
        admin.batch_execute(&statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    wait_for(&format!("{name} is repaired"), async || {
        let after = named(settings, Stage::Fresh, name).await;
        after.iter().all(|finding| finding.check.outcome == CheckOutcome::Ok)
    })
    .await;
    finding
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_remedy_repairs_its_mistake() {
    let server = Server::start(&["max_prepared_transactions=3"]);
    let admin = server.client().await;
    admin.batch_execute(PAYMENTS).await.unwrap();
    admin
        .batch_execute(
            "CREATE ROLE plain LOGIN; GRANT SELECT ON payments TO plain;
             CREATE SCHEMA shop; CREATE TABLE shop.orders (id int4 PRIMARY KEY);
             CREATE TABLE hidden (id int4 PRIMARY KEY); ALTER TABLE hidden ENABLE ROW LEVEL SECURITY;
             GRANT SELECT ON hidden TO plain;
             CREATE TABLE nothing (id int4 PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
             CREATE TABLE unkeyed (id int4 NOT NULL, code text, UNIQUE (id), UNIQUE (code));
             CREATE TABLE indexed (id int4 PRIMARY KEY, code text NOT NULL); CREATE UNIQUE INDEX by_code ON indexed (code);
             ALTER TABLE indexed REPLICA IDENTITY USING INDEX by_code; DROP INDEX by_code;
             CREATE UNLOGGED TABLE scratch (id int4 PRIMARY KEY);
             CREATE TABLE parent (id int4 PRIMARY KEY); CREATE TABLE one () INHERITS (parent); CREATE TABLE \"Two\" () INHERITS (parent);
             CREATE TABLE odd (id int4 PRIMARY KEY, body jsonb)",
        )
        .await
        .unwrap();
    let of = |table: &str| config(&server.url(), &[table], "tidemark_c");
    let plain = |table: &str| config(&server.url_as("plain", "postgres"), &[table], "tidemark_c");

    // The role.
    let role = repaired(&admin, &plain("payments"), "replication_role", "role_cannot_replicate").await;
    assert_eq!(role.repair, ["ALTER ROLE \"plain\" REPLICATION"]);
    repaired(&admin, &plain("shop.orders"), "table_rights", "permission_denied").await;
    repaired(&admin, &plain("hidden"), "row_security", "row_security_active").await;
    repaired(&admin, &plain("payments"), "statistics", "").await;

    // The tables; before anything was published.
    let nothing = repaired(&admin, &of("nothing"), "replica_identity", "replica_identity_nothing").await;
    assert!(nothing.check.message.contains("application's own updates"));
    let unkeyed = repaired(&admin, &of("unkeyed"), "primary_key", "missing_primary_key").await;
    assert!(unkeyed.check.remedy.contains("USING INDEX \"unkeyed_id_key\""), "{unkeyed:?}");
    assert!(unkeyed.check.message.contains("application's own updates") && unkeyed.repair.is_empty());
    repaired(&admin, &of("indexed"), "primary_key", "missing_primary_key").await;
    repaired(&admin, &of("scratch"), "table", "unsupported_table").await;
    let parent = repaired(&admin, &of("parent"), "table", "unsupported_table").await;
    assert!(parent.repair.is_empty(), "whose rows are to count is somebody's decision: {parent:?}");
    let odd = named(&of("odd"), Stage::Fresh, "columns").await;
    assert!(odd[0].check.message.contains("body (jsonb)"), "{odd:?}");

    // The publication.
    for (publication, code) in [
        ("FOR TABLE payments WITH (publish = 'insert')", "publication_mismatch"),
        ("FOR TABLE payments WITH (publish_via_partition_root)", "publication_mismatch"),
        ("FOR TABLE nothing", "publication_mismatch"),
        ("FOR ALL TABLES", "publication_mismatch"),
        ("FOR TABLE payments WHERE (id > 5)", "publication_mismatch"),
        ("FOR TABLE payments (id, amount)", "publication_mismatch"),
    ] {
        if version(&admin).await < 15
            && publication.contains("payments ")
            && publication.contains('(')
            && !publication.contains("WITH")
        {
            continue;
        }
        admin.batch_execute(&format!("CREATE PUBLICATION tidemark_c {publication}")).await.unwrap();
        let tables: &[&str] = if publication == "FOR TABLE nothing" { &["payments", "nothing"] } else { &["payments"] };
        let settings = config(&server.url(), tables, "tidemark_c");
        repaired(&admin, &settings, "publication", code).await;
        connectors::preflight(&ConnectorConfig::Postgres(settings)).await.unwrap();
        admin.batch_execute("DROP PUBLICATION tidemark_c").await.unwrap();
    }
    repaired(&admin, &plain("payments"), "publication", "publication_not_permitted").await;
    // To own the table is not enough.
    admin
        .batch_execute(
            "CREATE ROLE owner_only LOGIN REPLICATION; CREATE TABLE owned (id int4 PRIMARY KEY);
             ALTER TABLE owned OWNER TO owner_only",
        )
        .await
        .unwrap();
    let owner = config(&server.url_as("owner_only", "postgres"), &["owned"], "tidemark_o");
    let found = repaired(&admin, &owner, "publication", "publication_not_permitted").await;
    assert_eq!(found.repair, ["GRANT CREATE ON DATABASE \"postgres\" TO \"owner_only\""]);

    // Settings, wherever they come from.
    repaired(&admin, &of("payments"), "max_slot_wal_keep_size", "").await;
    admin.batch_execute("ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'").await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    wait_for("a small limit is warned of", async || {
        let found = named(&of("payments"), Stage::Fresh, "max_slot_wal_keep_size").await;
        found[0].check.message.contains("64 MB")
    })
    .await;
    repaired(&admin, &of("payments"), "max_slot_wal_keep_size", "").await;
    for set in [
        "ALTER ROLE postgres SET wal_sender_timeout = 0",
        "ALTER DATABASE postgres SET wal_sender_timeout = '1h'",
        "ALTER ROLE postgres IN DATABASE postgres SET wal_sender_timeout = 0",
    ] {
        admin.batch_execute(set).await.unwrap();
        repaired(&admin, &of("payments"), "wal_sender_timeout", "").await;
    }
    admin.batch_execute("ALTER ROLE postgres SET statement_timeout = '5s'").await.unwrap();
    let pinned = named(&of("payments"), Stage::Fresh, "session_timeouts").await;
    assert!(pinned[0].check.message.contains("statement_timeout=5s"), "{pinned:?}");

    // Slots that nobody reads.
    admin.batch_execute("SELECT pg_create_logical_replication_slot('tidemark_gone', 'pgoutput')").await.unwrap();
    let left = wrong(&of("payments"), "slots_left_behind").await;
    assert!(left.check.remedy.contains("tidemark drop-slot --slot tidemark_gone"), "{left:?}");
    drop_slot(&PostgresConfig::server(&server.url(), "tidemark_gone").unwrap(), false).await.unwrap();
    assert!(named(&of("payments"), Stage::Fresh, "slots_left_behind").await.is_empty());

    // Slots that hold log for backups: of one that is there, of one that is being taken, of none.
    let backups = tempfile::tempdir().unwrap();
    let slot = of("payments").slot().to_owned();
    let with_backups = || of("payments").with_backups(backups.path());
    let make = async |backup: &str| {
        let make = format!("SELECT pg_create_logical_replication_slot('{slot}_{backup}', 'pgoutput')");
        admin.batch_execute(&make).await.unwrap();
    };
    make("nightly").await;
    let left = wrong(&with_backups(), "held_log").await;
    assert!(left.check.remedy.ends_with(&format!("tidemark drop-slot --slot {slot}_nightly")), "{left:?}");
    assert!(named(&with_backups(), Stage::Fresh, "slots_left_behind").await.is_empty(), "they are of this directory");
    let partial = backups.path().join(".partial-4f0c93ab-nightly");
    std::fs::create_dir(&partial).unwrap();
    let held = async || named(&with_backups(), Stage::Fresh, "held_log").await.remove(0).check;
    assert_eq!(held().await.outcome, CheckOutcome::Ok, "it is being taken");
    std::fs::remove_dir(&partial).unwrap();
    let kept = backups.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    let manifest = format!(
        r#"{{"layout":1,"format":1,"version":"0.1.0","instance":"4f0c93ab","lsn":"0/1","commit_time":"","taken_at":"",
            "source":{},"held_slot":"{slot}_nightly","aggregates":[],"files":1}}"#,
        serde_json::to_string(&::engine::source::SourceIdentity::default()).unwrap()
    );
    std::fs::write(kept.join("backup.json"), manifest).unwrap();
    assert!(held().await.message.contains("backups that are there"), "under another name");
    std::fs::remove_dir_all(&kept).unwrap();
    assert_eq!(held().await.outcome, CheckOutcome::Warning, "it was removed");
    drop_slot(&PostgresConfig::server(&server.url(), &format!("{slot}_nightly")).unwrap(), false).await.unwrap();
    assert_eq!(held().await.outcome, CheckOutcome::Ok);

    // Transactions that a new slot would wait for.
    let writer = server.client().await;
    writer
        .batch_execute("BEGIN; INSERT INTO payments VALUES (1, 'm', 1, 's'); PREPARE TRANSACTION 'it''s'")
        .await
        .unwrap();
    writer.batch_execute("BEGIN; INSERT INTO payments VALUES (2, 'm', 1, 's')").await.unwrap();
    for name in ["open_transactions", "prepared_transactions"] {
        wait_for(name, async || {
            let found = named(&of("payments"), Stage::Fresh, name).await;
            found[0].check.outcome == CheckOutcome::Warning
        })
        .await;
        repaired(&admin, &of("payments"), name, "").await;
    }
    assert!(check(&of("payments"), Stage::Fresh).await.iter().all(|found| found.check.outcome == CheckOutcome::Ok));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_mistakes_are_told_at_once_and_the_first_one_stops_the_start() {
    let server = Server::start(&["wal_level=replica", "wal_sender_timeout=0"]);
    let admin = server.client().await;
    admin.batch_execute(PAYMENTS).await.unwrap();
    admin
        .batch_execute(
            "CREATE ROLE plain LOGIN; CREATE TABLE unkeyed (id int4);
             CREATE TABLE parted (id int4 PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE part1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
             CREATE TABLE part2 PARTITION OF parted FOR VALUES FROM (10) TO (20);
             ALTER TABLE part2 REPLICA IDENTITY NOTHING",
        )
        .await
        .unwrap();
    let settings = config(&server.url_as("plain", "postgres"), &["paymnets", "unkeyed", "parted"], "tidemark_c");
    let findings = check(&settings, Stage::Unknown).await;
    let failed: Vec<&str> = findings.iter().filter(|found| found.is_failed()).map(|found| found.code).collect();
    assert_eq!(
        failed,
        [
            "wal_level_not_logical",
            "role_cannot_replicate",
            "table_missing",
            "permission_denied",
            "missing_primary_key",
            "replica_identity_nothing",
            "permission_denied"
        ]
    );
    let outcomes: Vec<CheckOutcome> = findings.iter().map(|found| found.check.outcome).collect();
    let rank = |outcome: &CheckOutcome| match outcome {
        CheckOutcome::Failed => 0,
        CheckOutcome::Warning => 1,
        CheckOutcome::Ok => 2,
    };
    assert!(outcomes.is_sorted_by_key(rank), "{outcomes:?}");
    let leaf = findings.iter().find(|found| found.code == "replica_identity_nothing").unwrap();
    assert_eq!(leaf.check.remedy, "ALTER TABLE \"public\".\"part2\" REPLICA IDENTITY DEFAULT;");
    // What stands on the command line cannot be changed from inside.
    let timeout = findings.iter().find(|found| found.check.name == "wal_sender_timeout").unwrap();
    assert!(timeout.check.remedy.contains("started with -c wal_sender_timeout"), "{timeout:?}");
    let refused = connectors::preflight(&ConnectorConfig::Postgres(settings)).await.unwrap_err().error;
    assert_eq!(refused.code, "wal_level_not_logical");

    // Hosted servers are recognised by settings that only they have.
    for (setting, words) in [
        ("rds.logical_replication", "rds.logical_replication = 1"),
        ("cloudsql.logical_decoding", "cloudsql.logical_decoding = on"),
    ] {
        let hosted = Server::start(&["wal_level=replica", &format!("{setting}=off")]);
        hosted.client().await.batch_execute(PAYMENTS).await.unwrap();
        let level = wrong(&config(&hosted.url(), &["payments"], "tidemark_c"), "wal_level").await;
        assert!(level.check.remedy.contains(words) && level.repair.is_empty(), "{level:?}");
    }

    // No server at all is a finding too.
    let nowhere = check(&config("postgres://u@/d?host=/nonexistent", &["t"], "tidemark_c"), Stage::Unknown).await;
    assert_eq!((nowhere.len(), nowhere[0].check.name, nowhere[0].code), (1, "connection", "cannot_connect"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_refused() {
    let mut server = Server::start(&[]);
    server.client().await.batch_execute(PAYMENTS).await.unwrap();
    server.stop(connectors::postgres::throwaway::Stop::Fast);
    std::fs::write(server.socket_directory().join("data/standby.signal"), "").unwrap();
    server.launch();
    let settings = config(&server.url(), &["payments"], "tidemark_c");
    let standby = wrong(&settings, "primary").await;
    assert_eq!(standby.code, "in_recovery");
    assert!(standby.check.message.contains("standbys are not supported"), "{standby:?}");
}

/// What stands between us and Postgres.
#[derive(Clone, Copy)]
enum Pooler {
    /// As older ones do: knows no start-up options.
    RefusesOptions,
    /// Knows that it cannot.
    RefusesReplication,
    /// Takes the wish out and lets us talk SQL.
    IgnoresReplication,
}

const SSL_REQUEST: u32 = 80_877_103;

/// The content of a packet without a type, as the first ones are.
async fn packet(client: &mut TcpStream) -> Vec<u8> {
    let length = client.read_u32().await.unwrap() as usize;
    let mut content = vec![0; length - 4];
    client.read_exact(&mut content).await.unwrap();
    content
}

/// A connection pooler that speaks just enough; returns its port.
async fn pooler(kind: Pooler, postgres: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let postgres = postgres.clone();
            tokio::spawn(async move {
                let mut startup = packet(&mut client).await;
                if startup == SSL_REQUEST.to_be_bytes() {
                    client.write_all(b"N").await.unwrap();
                    startup = packet(&mut client).await;
                }
                let words: Vec<String> = startup[4..]
                    .split(|byte| *byte == 0)
                    .map(|word| String::from_utf8_lossy(word).into_owned())
                    .collect();
                let parameters: Vec<(&str, &str)> = words
                    .chunks_exact(2)
                    .map(|pair| (pair[0].as_str(), pair[1].as_str()))
                    .filter(|(name, _)| !name.is_empty())
                    .collect();
                let unsupported = match kind {
                    Pooler::RefusesOptions => "options",
                    Pooler::RefusesReplication => "replication",
                    Pooler::IgnoresReplication => "",
                };
                if parameters.iter().any(|(name, _)| *name == unsupported) {
                    let fields = format!("SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: {unsupported}\0\0");
                    client.write_all(b"E").await.unwrap();
                    client.write_u32(fields.len() as u32 + 4).await.unwrap();
                    let _ = client.write_all(fields.as_bytes()).await;
                    return;
                }
                let mut packet = startup[..4].to_vec();
                for (name, value) in parameters.iter().filter(|(name, _)| *name != "replication") {
                    packet.extend(format!("{name}\0{value}\0").bytes());
                }
                packet.push(0);
                let mut server = UnixStream::connect(postgres).await.unwrap();
                server.write_u32(packet.len() as u32 + 4).await.unwrap();
                server.write_all(&packet).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poolers_are_told_from_postgres() {
    let server = Server::start(&[]);
    server.client().await.batch_execute(PAYMENTS).await.unwrap();
    let socket = server.socket_directory().join(".s.PGSQL.5432");
    for (kind, name) in [
        (Pooler::RefusesOptions, "connection"),
        (Pooler::RefusesReplication, "replication_session"),
        (Pooler::IgnoresReplication, "replication_session"),
    ] {
        let port = pooler(kind, socket.clone()).await;
        let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        let settings = config(&url, &["payments"], "tidemark_c");
        let finding = wrong(&settings, name).await;
        assert_eq!(finding.code, "pooler", "{finding:?}");
        assert!(finding.check.remedy.contains("direct host"), "{finding:?}");
        let error = connectors::preflight(&ConnectorConfig::Postgres(settings)).await.unwrap_err().error;
        assert_eq!(error.code, "pooler");
    }
}

/// Another program that reads a slot; ends with the test.
struct Consumer(Child);

impl Consumer {
    fn start(server: &Server, slot: &str, user: &str, application: &str) -> Consumer {
        let publication = format!("publication_names={slot}");
        // It says that it lives, and never that it has stored anything: the slot stays where it is.
        let child = Command::new(server.program("pg_recvlogical"))
            .args(["-h", server.socket_directory().to_str().unwrap(), "-U", user, "-d", "postgres", "-S", slot])
            .args([
                "--start",
                "--no-loop",
                "-f",
                "/dev/null",
                "-s",
                "1",
                "-F",
                "100000",
                "-o",
                "proto_version=1",
                "-o",
                &publication,
            ])
            .env("PGAPPNAME", application)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Consumer(child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn active_pid(client: &Client, slot: &str) -> Option<i32> {
    let query = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
    client.query_opt(query, &[&slot]).await.unwrap().and_then(|row| row.get(0))
}

async fn until_read(client: &Client, slot: &str) -> i32 {
    wait_for("the slot is read", async || active_pid(client, slot).await.is_some()).await;
    active_pid(client, slot).await.unwrap()
}

async fn until_free(client: &Client, slot: &str) {
    wait_for("the slot is free", async || active_pid(client, slot).await.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_our_own_session_that_does_not_answer_is_ended() {
    let server = Server::start(&["wal_sender_timeout=10min"]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    client.batch_execute("CREATE ROLE rep LOGIN REPLICATION; GRANT SELECT ON payments TO rep").await.unwrap();
    // Slot, role, how the reader calls itself, whether it stops answering, whether it is ours to end.
    let cases = [
        ("tidemark_z0", "postgres", "tidemark/tidemark_z0", true, true),
        ("tidemark_z1", "postgres", "tidemark/tidemark_other", true, false),
        ("tidemark_z2", "postgres", "tidemark", true, false),
        ("tidemark_z3", "postgres", "tidemark/tidemark_z3", false, false),
        // A role that does not see who answers must not guess.
        ("tidemark_z4", "rep", "tidemark/tidemark_z4", false, false),
    ];
    let mut running = Vec::new();
    for (slot, user, application, stopped, ours) in cases {
        client.batch_execute(&format!("CREATE PUBLICATION {slot} FOR TABLE payments")).await.unwrap();
        let settings = config(&server.url_as(user, "postgres"), &["payments"], slot);
        let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
        engine.until(Lsn(1)).await;
        let (rows, resume) = (engine.rows.clone(), engine.stop().await);
        until_free(&client, slot).await;
        let consumer = Consumer::start(&server, slot, user, application);
        let pid = until_read(&client, slot).await;
        if stopped {
            consumer.signal(Signal::STOP);
        }
        let mut engine = FakeEngine::start(settings, resume);
        engine.rows = rows;
        running.push((slot, ours, pid, consumer, engine));
    }
    client.batch_execute("INSERT INTO payments VALUES (1, 'm', 1, 's')").await.unwrap();
    let (slot, _, pid, _, engine) = &mut running[0];
    engine.until(now(&client).await).await;
    assert_eq!(engine.table("payments").len(), 1);
    let taken_by = active_pid(&client, slot).await.unwrap();
    assert_ne!(taken_by, *pid);
    let query = format!("SELECT application_name FROM pg_stat_activity WHERE pid = {taken_by}");
    let name: String = client.query_one(&query, &[]).await.unwrap().get(0);
    assert_eq!(name, format!("tidemark/{slot}"));
    // The others have been silent for at least as long, and then some.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for (slot, _, pid, _, engine) in running.iter().filter(|(_, ours, ..)| !ours) {
        assert_eq!(active_pid(&client, slot).await, Some(*pid), "{slot}");
        let state = engine.status.borrow().state.clone();
        assert!(
            matches!(&state, SourceState::Reconnecting { reason, .. } if reason.contains("in use")),
            "{slot}: {state:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_source_shows_its_checks() {
    let server = Server::start(&["max_slot_wal_keep_size=1MB", "max_wal_size=32MB", "min_wal_size=32MB"]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    let settings = config(&server.url(), &["payments"], "tidemark_shown");
    let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    wait_for("the checks are shown", async || !engine.status.borrow().checks.is_empty()).await;
    let checks = engine.status.borrow().checks.clone();
    let outcome = |name: &str| checks.iter().find(|check| check.name == name).map(|check| check.outcome);
    assert_eq!(outcome("wal_level"), Some(CheckOutcome::Ok));
    assert_eq!(outcome("max_slot_wal_keep_size"), Some(CheckOutcome::Warning));
    until_read(&client, "tidemark_shown").await;
    let slot = named(&settings, Stage::Unknown, "slot").await;
    assert!(slot[0].check.message.contains("read by tidemark (pid"), "{slot:?}");
    let session = named(&settings, Stage::Unknown, "replication_session").await;
    assert!(session[0].check.message.contains("of this source is connected"), "{session:?}");

    // Someone else reads it.
    let resume = engine.stop().await;
    until_free(&client, "tidemark_shown").await;
    let consumer = Consumer::start(&server, "tidemark_shown", "postgres", "curious");
    let pid = until_read(&client, "tidemark_shown").await;
    let foreign = wrong(&settings, "slot").await;
    assert!(foreign.check.message.contains(&format!("curious with pid {pid}")), "{foreign:?}");
    repaired(&client, &settings, "slot", "").await;
    drop(consumer);

    // The log is removed under it: the source halts, and the checks say the same.
    for _ in 0..4 {
        client
            .batch_execute(
                "SELECT pg_logical_emit_message(false, 'x', repeat('y', 1000000)); SELECT pg_switch_wal(); CHECKPOINT",
            )
            .await
            .unwrap();
    }
    assert_eq!(wrong(&settings, "slot").await.check.outcome, CheckOutcome::Warning, "a new one is made");
    let mut engine = FakeEngine::start(settings.clone(), resume);
    assert_eq!(engine.until_halted().await, "slot_lost");
    wait_for("the checks are looked at again", async || {
        let status = engine.status.borrow();
        status.checks.first().is_some_and(|check| check.name == "slot" && check.outcome == CheckOutcome::Failed)
    })
    .await;
    let lost = named(&settings, Stage::Unknown, "slot").await;
    assert_eq!(lost[0].code, "slot_lost");
    assert!(lost[0].check.remedy.contains("pg_drop_replication_slot('tidemark_shown')"), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_is_dropped_once_nobody_reads_it() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    client.batch_execute("SELECT pg_create_logical_replication_slot('tidemark_older', 'pgoutput')").await.unwrap();
    client.batch_execute("SELECT pg_create_logical_replication_slot('debezium', 'pgoutput')").await.unwrap();
    let settings = config(&server.url(), &["payments"], "tidemark_drop");
    let alone = PostgresConfig::server(&server.url(), "tidemark_drop").unwrap();
    let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    let pid = until_read(&client, "tidemark_drop").await;
    let refused = drop_slot(&alone, false).await.unwrap_err();
    assert_eq!(refused.code, "slot_in_use");
    assert!(refused.remedy.ends_with("tidemark drop-slot --slot tidemark_drop --force"), "{refused}");
    assert!(refused.message.contains(&format!("tidemark/tidemark_drop with pid {pid}")), "{refused}");
    assert_eq!(active_pid(&client, "tidemark_drop").await, Some(pid), "it was left alone");

    // Between two sessions on the slot it is no more free than during one.
    client
        .batch_execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
        .await
        .unwrap();
    assert_eq!(drop_slot(&alone, false).await.unwrap_err().code, "slot_in_use");

    // Right after the end of its reader.
    engine.stop().await;
    let dropped = drop_slot(&alone, false).await.unwrap();
    assert!(dropped.slot && dropped.publication);
    let orphans: Vec<&str> = dropped.orphans.iter().map(|orphan| orphan.name.as_str()).collect();
    assert_eq!(orphans, ["tidemark_older"]);
    let again = drop_slot(&alone, false).await.unwrap();
    assert!(!again.slot && !again.publication);

    // Taken from a running one, which finds out and guesses nothing.
    let mut engine = FakeEngine::start(settings, ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    until_read(&client, "tidemark_drop").await;
    assert!(drop_slot(&alone, true).await.unwrap().slot);
    let code = engine.until_halted().await;
    assert!(["slot_missing", "publication_changed"].contains(&code.as_str()), "{code}");

    // The slot is gone also where the publication is somebody else's.
    client.batch_execute("CREATE ROLE dropper LOGIN REPLICATION; CREATE PUBLICATION tidemark_theirs").await.unwrap();
    client.batch_execute("SELECT pg_create_logical_replication_slot('tidemark_theirs', 'pgoutput')").await.unwrap();
    let theirs = PostgresConfig::server(&server.url_as("dropper", "postgres"), "tidemark_theirs").unwrap();
    let dropped = drop_slot(&theirs, false).await.unwrap();
    assert!(dropped.slot && !dropped.publication);
    let left = dropped.publication_left.unwrap();
    assert_eq!(left.code, "permission_denied");
    assert!(left.remedy.ends_with("DROP PUBLICATION tidemark_theirs;"), "{left}");

    let foreign = PostgresConfig::server(&server.url(), "debezium").unwrap();
    assert_eq!(drop_slot(&foreign, true).await.unwrap_err().code, "slot_not_ours");
    client.batch_execute("SELECT pg_create_physical_replication_slot('tidemark_physical')").await.unwrap();
    let physical = PostgresConfig::server(&server.url(), "tidemark_physical").unwrap();
    assert_eq!(drop_slot(&physical, true).await.unwrap_err().code, "slot_not_ours");
    let left: i64 = client.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await.unwrap().get(0);
    assert_eq!(left, 3);
}
