//! Backups of a Tidemark under load: what is restored is exact once it has caught up, or says why it cannot; a half taken or
//! damaged one is never restored. Damage byte by byte is in `engine/src/backup.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use engine::change::Lsn;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::{Server, tidemark};
use crate::support::sql;

const TABLES: &str = "
    CREATE TABLE payments (id bigint PRIMARY KEY, grp text, amount numeric(14,2), at timestamptz, note text);
    INSERT INTO payments SELECT i, 'g' || i % 7, i * 0.37, timestamptz '2026-01-01 UTC' + interval '1 minute' * i, md5(i::text)
      FROM generate_series(1, 100000) AS i;
";
const CHECKPOINTS: &str = "/v1/admin/checkpoints";

fn start(database: &Database, data: &Path, more: &[&str]) -> Server {
    Server::start(data, &database.url(), &["payments"], more)
}

fn register(server: &Server) {
    server.register(
        "monthly",
        &json!({"table": "payments", "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
                "dimensions": ["grp"], "time": {"column": "at", "granularity": "month"}, "rollups": ["all"], "drill_through": true}),
    );
    server.register("notes", &json!({"table": "payments", "measures": [{"name": "n", "count": "note"}]}));
}

/// Inserts, changes, moves and removes until told to stop.
async fn write(url: String, stop: Arc<AtomicBool>) {
    let client = sql::connect(&url).await;
    let mut id = 1_000_000;
    while !stop.load(Ordering::SeqCst) {
        id += 1;
        let old = id % 100_000;
        sql::run(
            &client,
            &format!(
                "BEGIN; INSERT INTO payments VALUES ({id}, 'new', 1.01, timestamptz '2026-03-03 UTC', 'x');
                 UPDATE payments SET amount = amount + 0.01, grp = 'g' || ({id} % 5) WHERE id = {old};
                 DELETE FROM payments WHERE id = {old} - 777; COMMIT"
            ),
        )
        .await;
    }
}

/// What is restored equals Postgres' own GROUP BY, with nobody writing and every cell at one position.
fn assert_exact(server: &Server, database: &Database) {
    let lsn = database.value("SELECT pg_current_wal_lsn()");
    let answer = server.get_ok(&format!("/v1/aggregates/monthly/data?granularity=all&min_lsn={lsn}&wait=20s"));
    let mut answered: Vec<String> = answer["data"].as_array().unwrap().iter().map(line).collect();
    answered.sort();
    let query = "SELECT string_agg(grp || ' ' || amount || ' ' || n, ',' ORDER BY grp COLLATE \"C\")
        FROM (SELECT grp, sum(amount) AS amount, count(*) AS n FROM payments GROUP BY grp) AS g";
    assert_eq!(answered.join(","), database.value(query));
    let found = server.try_post("/v1/verify", b"{}").unwrap().1;
    assert_eq!((&found["equal"], &found["skipped"]), (&json!(true), &json!([])), "{found}");
}

fn line(row: &Value) -> String {
    format!("{} {} {}", row["grp"].as_str().unwrap(), row["amount"].as_str().unwrap(), row["n"])
}

/// Exit code, standard output, standard error.
fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn restore(backup: &Path, data: &Path) -> (Option<i32>, String, String) {
    run(tidemark().arg("restore").arg(backup).arg("--data").arg(data))
}

#[test]
fn a_backup_under_load_goes_on_exactly_where_its_log_was_held_and_says_so_where_it_was_not() {
    let database = Database::start(&[], TABLES);
    let parent = tempfile::tempdir().unwrap();
    let (data, backups) = (parent.path().join("data"), parent.path().join("backups"));
    let server = start(&database, &data, &["--backup-dir", backups.to_str().unwrap()]);
    register(&server);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = database.runtime.spawn(write(database.url(), Arc::clone(&stop)));
    let applied = |server: &Server| -> Lsn {
        server.get_ok("/v1/sources/postgres")["applied_lsn"].as_str().unwrap().parse().unwrap()
    };
    let before = applied(&server);
    // As an operator takes it.
    let url = format!("http://{}", server.address());
    let (code, out, err) = run(tidemark().args(["backup", "loaded", "--hold-log", "--server", &url]));
    assert_eq!(code, Some(0), "{out}{err}");
    let taken: Value = serde_json::from_str(&out).unwrap();
    let lsn: Lsn = taken["lsn"].as_str().unwrap().parse().unwrap();
    let held = taken["held_slot"].as_str().unwrap().to_owned();
    assert!(lsn >= before, "{taken}");
    assert_eq!(taken["path"], backups.join("loaded").to_str().unwrap());
    let sums = run(Command::new("sha256sum").args(["--quiet", "-c", "SHA256SUMS"]).current_dir(backups.join("loaded")));
    assert_eq!(sums.0, Some(0), "{sums:?}");
    // The original goes on, and acknowledges what is not in the backup.
    let slot = held.strip_suffix("_loaded").unwrap().to_owned();
    let confirmed =
        format!("SELECT confirmed_flush_lsn > '{lsn}' FROM pg_replication_slots WHERE slot_name = '{slot}'");
    let deadline = Instant::now() + Duration::from_secs(20);
    while database.value(&confirmed) != "t" {
        assert!(Instant::now() < deadline, "nothing is acknowledged past {lsn}");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(server.terminate().success());

    let new = parent.path().join("new");
    let (code, out, err) = restore(&backups.join("loaded"), &new);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains(&format!("as of {lsn}")), "{out}");
    // Without the held log in place of its own it halts, and shows nothing.
    let server = start(&database, &new, &[]);
    let halted = loop {
        let (status, body) = server.get("/v1/aggregates/monthly/data");
        assert_eq!(status, 503, "shown though changes are missing: {body}");
        if body["code"] == "slot_overtaken" {
            break body;
        }
        assert!(
            ["connecting", "starting", "checking_store", "catching_up"].contains(&body["code"].as_str().unwrap()),
            "{body}"
        );
        std::thread::sleep(Duration::from_millis(10));
    };
    let hint = halted["hint"].as_str().unwrap();
    assert!(hint.contains("empty data directory"), "{halted}");
    // The way on that loses nothing comes first.
    assert!(hint.contains(&format!("SELECT pg_copy_logical_replication_slot('{held}', '{slot}');")), "{halted}");
    // All the same it knows from its start on what its store must not lack: what the original had answered by the backup. Nobody has
    // asked it anything yet.
    let answered = |data: &Path| -> u64 {
        fs::read_to_string(data.join("ANSWERED")).unwrap().split(' ').next().unwrap().parse().unwrap()
    };
    assert!((1..=answered(&data)).contains(&answered(&new)), "{} of {}", answered(&new), answered(&data));
    assert!(server.terminate().success());

    let statements: Vec<&str> = out.lines().map(str::trim).filter(|line| line.starts_with("SELECT ")).collect();
    assert_eq!(statements.len(), 2, "{out}");
    statements.iter().for_each(|statement| database.sql(statement));
    let server = start(&database, &new, &[]);
    server.get_ok("/readyz");
    assert!(applied(&server) > lsn);
    stop.store(true, Ordering::SeqCst);
    database.runtime.block_on(writer).unwrap();
    assert_exact(&server, &database);
    // Kept for the next restore, until it is dropped.
    let (code, out, err) =
        run(tidemark().args(["drop-slot", "--slot", &held]).env("TIDEMARK_POSTGRES", database.url()));
    assert_eq!(code, Some(0), "{out}{err}");
    let rows = server.get_ok("/v1/aggregates/monthly/rows?where=grp:new&limit=3");
    assert_eq!(rows["data"].as_array().unwrap().len(), 3, "{rows}");
    assert_exact(&server, &database);
}

#[test]
fn a_backup_of_a_tidemark_that_wrote_nothing_since_needs_no_held_log() {
    let database = Database::start(&[], TABLES);
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    let server = start(&database, &data, &[]);
    register(&server);
    assert!(server.terminate().success());
    let (code, out, err) = run(tidemark().args(["backup", "cold", "--data"]).arg(&data));
    assert_eq!(code, Some(0), "{out}{err}");
    database.sql("UPDATE payments SET amount = amount * 2 WHERE id % 3 = 0; DELETE FROM payments WHERE id % 5 = 0");
    let new = parent.path().join("new");
    let (code, out, _) = restore(&data.join("backups/cold"), &new);
    assert_eq!(code, Some(0));
    assert!(out.contains("slot_overtaken"), "{out}");
    let server = start(&database, &new, &[]);
    assert_exact(&server, &database);
}

/// The directories of a backup directory: the complete ones, those that are not.
fn listed(backups: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let paths = fs::read_dir(backups).into_iter().flatten().map(|entry| entry.unwrap().path());
    paths.partition(|path| !path.file_name().unwrap().to_str().unwrap().starts_with('.'))
}

#[test]
fn what_a_kill_leaves_is_never_taken_for_a_backup() {
    let seed = std::env::var("TIDEMARK_SEED").map_or(20_261_129, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let database = Database::start(&[], TABLES);
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    let backups = data.join("backups");
    let server = start(&database, &data, &[]);
    register(&server);
    let (status, whole) = server.try_post(CHECKPOINTS, b"{\"name\":\"whole\"}").unwrap();
    assert_eq!(status, 201, "{whole}");
    let takes_ms = whole["took_ms"].as_u64().unwrap().max(5);
    drop(server);
    let (mut cut_short, mut complete) = (0, 0);
    for round in 0..40 {
        let server = start(&database, &data, &[]);
        server.get_ok("/readyz");
        // So that there is something to flush.
        database.sql(&format!("UPDATE payments SET amount = amount + {round} WHERE id < 20000"));
        let delay = Duration::from_micros(rng.random_range(0..takes_ms * 2_000));
        let url = format!("http://{}{CHECKPOINTS}", server.address());
        let asking = std::thread::spawn(move || {
            let body = json!({"name": format!("k{round}")}).to_string();
            // It may be killed before it answers.
            let _ = ureq::post(url).content_type("application/json").send(body);
        });
        std::thread::sleep(delay);
        server.kill();
        asking.join().unwrap();
        let (named, partial) = listed(&backups);
        for (number, path) in partial.iter().enumerate() {
            cut_short += 1;
            let target = parent.path().join(format!("p{round}_{number}"));
            let (code, out, err) = restore(path, &target);
            assert!(matches!(code, Some(2 | 3)), "{}: {code:?} {out}{err}", path.display());
            assert!(fs::read_dir(&target).map_or(true, |mut entries| entries.next().is_none()));
        }
        if let Some(path) = named.iter().find(|path| path.ends_with(format!("k{round}"))) {
            complete += 1;
            let (code, out, err) = restore(path, &parent.path().join(format!("r{round}")));
            assert_eq!(code, Some(0), "{out}{err}");
        }
        if cut_short >= 3 && complete >= 1 {
            break;
        }
    }
    println!("{cut_short} were cut short, {complete} were complete before the kill");
    assert!(cut_short > 0, "no kill was in time");
    let server = start(&database, &data, &[]);
    server.get_ok("/readyz");
    assert_eq!(server.try_post(CHECKPOINTS, b"").unwrap().0, 201);
    assert_eq!(listed(&backups).1, Vec::<PathBuf>::new(), "what was left is removed");
    assert_exact(&server, &database);
}

#[test]
fn every_refusal_has_its_words_and_its_exit_code() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    let server = Server::start_source(&data, &["--generator", "1"]);
    server.get_ok("/readyz");
    let post = |body: &str| {
        let (status, body) = server.try_post(CHECKPOINTS, body.as_bytes()).unwrap();
        (status, body["code"].as_str().unwrap_or_default().to_owned())
    };
    for name in ["../up", "/etc/tidemark", "a/b", "", ".hidden", "UPPER"] {
        assert_eq!(post(&json!({"name": name}).to_string()), (422, "bad_backup_name".to_owned()), "{name}");
    }
    assert_eq!(post("{\"path\":\"/tmp\"}"), (422, "invalid_checkpoint_request".to_owned()));
    assert_eq!(post("{\"hold_log\":true}"), (422, "no_postgres".to_owned()));
    assert_eq!(post("{\"name\":\"one\"}").0, 201);
    assert_eq!(post("{\"name\":\"one\"}"), (409, "backup_exists".to_owned()));
    let offline = |name: &str, data: &Path| run(tidemark().args(["backup", name, "--data"]).arg(data));
    let (code, _, err) = offline("two", &data);
    assert!(code == Some(2) && err.contains("in use by another process"), "{code:?} {err}");
    assert!(server.terminate().success());
    let (code, _, err) = offline("one", &data);
    assert!(code == Some(2) && err.contains("there is a backup one already"), "{code:?} {err}");
    let (code, _, err) = offline("two", &parent.path().join("none"));
    assert!(code == Some(2) && err.contains("is no Tidemark data directory"), "{code:?} {err}");
    assert!(!parent.path().join("none").exists());
    assert_eq!(offline("two", &data).0, Some(0));

    let (whole, new) = (data.join("backups/two"), parent.path().join("new"));
    let (code, _, err) = restore(&whole, &data);
    assert!(code == Some(2) && err.contains("is not empty"), "{code:?} {err}");
    let (code, _, err) = restore(parent.path(), &new);
    assert!(code == Some(2) && err.contains("is no complete backup"), "{code:?} {err}");
    let sums = whole.join("SHA256SUMS");
    let kept = fs::read(&sums).unwrap();
    fs::remove_file(&sums).unwrap();
    let (code, _, err) = restore(&whole, &new);
    assert!(code == Some(3) && err.contains("SHA256SUMS is missing"), "{code:?} {err}");
    fs::write(&sums, kept).unwrap();
    assert_eq!(restore(&whole, &new).0, Some(0));
    let server = Server::start_source(&new, &["--generator", "1"]);
    server.get_ok("/readyz");
}
