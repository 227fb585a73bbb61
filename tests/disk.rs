//! The disk fills up: nothing is taken any more, answers go on, no number is wrong, and once there is space everything goes on
//! by itself. On a small disk in memory; where none can be mounted the tests say so and do nothing. `TIDEMARK_DISK_ROUNDS` has
//! each of the two fill it more often.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::statvfs;
use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::{Server, serve};

/// Room for two of the largest transactions in logs, memory written out and table files at once.
const SIZE_MIB: u64 = 400;
/// How long it is looked at while it is full; longer than the times between two tries.
const HELD: Duration = Duration::from_secs(1);
/// The promise.
const GOES_ON_WITHIN: Duration = Duration::from_secs(10);

/// Far less than what is committed while it is held, which would be in the store's log first. What the store does by itself
/// meanwhile, tables that it flushes and merges, is not in the log.
const NEXT_TO_NOTHING: u64 = 1 << 20;

/// What it says then.
const GOES_ON: &str = "there is space again";

/// How often in one round the store may give back space by itself.
const ATTEMPTS: u32 = 4;

/// How often each test fills the disk and frees it again.
const ROUNDS: u32 = 5;

fn rounds() -> u32 {
    std::env::var("TIDEMARK_DISK_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS)
}

/// A small disk, gone with the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let place = tempfile::tempdir().unwrap();
        let size = format!("size={SIZE_MIB}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(place.path()).output();
        if mounted.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(SmallDisk(place));
        }
        println!("skipped: no disk can be mounted here: {mounted:?}");
        None
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    fn ballast(&self) -> PathBuf {
        self.0.path().join("ballast")
    }

    fn free_bytes(&self) -> u64 {
        let seen = statvfs(self.0.path()).unwrap();
        seen.f_bavail * seen.f_frsize
    }

    /// What the store's logs have.
    fn log_bytes(&self) -> u64 {
        fn within(directory: &Path) -> u64 {
            let of_entry = |entry: std::io::Result<fs::DirEntry>| {
                let path = entry.unwrap().path();
                match path.extension() {
                    _ if path.is_dir() => within(&path),
                    // One that is gone by now has nothing.
                    Some(extension) if extension == "log" => fs::metadata(&path).map_or(0, |file| file.len()),
                    _ => 0,
                }
            };
            fs::read_dir(directory).unwrap().map(of_entry).sum()
        }
        within(&self.data())
    }

    /// Fills it but for so many bytes.
    fn fill(&self, leave_bytes: u64) {
        let mut file = File::options().create(true).append(true).open(self.ballast()).unwrap();
        let block = vec![0u8; 1 << 16];
        while self.free_bytes() > leave_bytes + block.len() as u64 {
            if file.write_all(&block).is_err() {
                return;
            }
        }
    }

    /// To the last page.
    fn fill_entirely(&self) {
        self.fill(0);
        let mut file = File::options().append(true).open(self.ballast()).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn start(database: &Database, data: &Path, min_free: &str) -> Server {
    // A small memtable, so that table files are written too.
    Server::start(data, &database.url(), &["payments"], &["--memory", "32MiB", "--min-free-bytes", min_free])
}

fn prepare() -> Database {
    Database::start(
        &[],
        "CREATE TABLE payments (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, acct int, amount numeric(14,2), note text);
         INSERT INTO payments (acct, amount, note) SELECT i % 50, i % 2 * 2 - 1, md5(i::text) FROM generate_series(1, 5000) AS i",
    )
}

fn register(server: &Server) {
    let sums = json!([{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}]);
    server.register("accounts", &json!({"table": "payments", "measures": sums, "dimensions": ["acct"]}));
}

/// Both halves of transfers in one transaction: in every answer the amounts add up to 0 and the rows are even.
fn transfer(database: &Database, transfers: u32, note_bytes: u32) {
    database.sql(&format!(
        "INSERT INTO payments (acct, amount, note)
           SELECT i % 50, sign * i, (SELECT string_agg(md5((i * j * sign)::text), '') FROM generate_series(1, {note_bytes} / 32 + 1) AS j)
           FROM generate_series(1, {transfers}) AS i, (VALUES (1), (-1)) AS s(sign)"
    ));
}

/// An answer, which has to come and to be right.
fn answer(server: &Server) -> Value {
    let (status, body) = server.get("/v1/aggregates/accounts/data?group_by=");
    assert_eq!(status, 200, "reads stopped: {body}");
    let row = &body["data"][0];
    assert_eq!((row["amount"].as_str(), row["n"].as_u64().unwrap() % 2), (Some("0.00"), 0), "a wrong number: {body}");
    body
}

fn metric(server: &Server, name: &str) -> f64 {
    let text = server.exchange("GET", "/metrics", &[], &[]).unwrap().text;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// Reads all the time until this holds; how long that took.
fn until(server: &Server, what: &str, within: Duration, mut holds: impl FnMut(&Value) -> bool) -> Duration {
    let began = Instant::now();
    loop {
        let now = answer(server);
        if holds(&now) {
            return began.elapsed();
        }
        assert!(began.elapsed() < within, "{what}: not within {within:?}: {now} {:#?}", server.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Every group is Postgres'.
fn assert_exact(server: &Server, database: &Database) {
    let lsn = database.value("SELECT pg_current_wal_lsn()");
    server.get_ok(&format!("/v1/aggregates/accounts/data?min_lsn={lsn}&wait=20s"));
    let found = server.try_post("/v1/verify", b"{}").unwrap().1;
    assert_eq!((&found["equal"], &found["skipped"]), (&json!(true), &json!([])), "{found}");
}

fn rows(database: &Database) -> u64 {
    database.value("SELECT count(*) FROM payments").parse().unwrap()
}

/// Fills the disk, has more than would fit committed, and sees that nothing of it is taken. `false` where the store gave back
/// enough by itself meanwhile, as it does when it lets go of a log file: then it goes on, and has to have said why.
fn is_held(disk: &SmallDisk, database: &Database, server: &Server) -> bool {
    server.log();
    until(server, "it is held", Duration::from_secs(5), |answer| {
        disk.fill(24 << 20);
        answer["as_of"]["state"] == "disk_low"
    });
    let logged_before = disk.log_bytes();
    let (before, source, low) =
        (answer(server), server.get_ok("/v1/sources/postgres"), metric(server, "tidemark_disk_low"));
    transfer(database, 15_000, 1_000);
    let began = Instant::now();
    while began.elapsed() < HELD {
        let now = answer(server);
        if now["as_of"]["state"] != "disk_low" || now["data"] != before["data"] {
            println!("{}", server.wait_for_line(GOES_ON));
            return false;
        }
    }
    assert_eq!((&source["state"], &source["ready"], low), (&json!("disk_low"), &json!(true), 1.0), "{source}");
    let shown = (source["free_bytes"].as_u64().unwrap(), source["enough_bytes"].as_u64().unwrap());
    assert!(shown.0 < shown.1 && shown.1 == 36 << 20, "{source}");
    assert_eq!(metric(server, "tidemark_disk_min_free_bytes"), f64::from(32 << 20));
    let logged = disk.log_bytes();
    assert!(
        logged <= logged_before + NEXT_TO_NOTHING,
        "written though the disk is low: {logged}, before {logged_before}"
    );
    true
}

/// Frees the disk; all that is committed then is visible soon.
fn free_and_wait(disk: &SmallDisk, database: &Database, server: &Server) {
    database.sql("DELETE FROM payments WHERE length(note) > 100");
    let (rows, lsn) = (rows(database), database.value("SELECT pg_current_wal_lsn()"));
    disk.free();
    let took = until(server, "it goes on", GOES_ON_WITHIN, |answer| {
        let query = format!("/v1/aggregates/accounts/data?group_by=&min_lsn={lsn}&wait=10ms");
        answer["data"][0]["n"] == rows && server.get(&query).0 == 200
    });
    println!("went on {took:?} after space was freed");
}

#[test]
fn before_the_disk_is_full_the_source_is_held_and_goes_on_by_itself() {
    let Some(disk) = SmallDisk::mount() else { return };
    let database = prepare();
    let server = start(&database, &disk.data(), "32MiB");
    register(&server);
    assert_eq!(metric(&server, "tidemark_disk_low"), 0.0);
    assert!(metric(&server, "tidemark_disk_free_bytes") > f64::from(64 << 20));
    for round in 0..rounds() {
        let mut attempts = 1;
        while !is_held(&disk, &database, &server) {
            assert!(attempts < ATTEMPTS, "it went on by itself {attempts} times");
            attempts += 1;
            free_and_wait(&disk, &database, &server);
        }
        // Callers are served meanwhile.
        let late = json!({"table": "payments", "measures": [{"name": "n", "count": "*"}]});
        assert_eq!(server.put(&format!("/v1/aggregates/late{round}"), &late).0, 202);
        transfer(&database, 100, 32);
        free_and_wait(&disk, &database, &server);
        server.get_ok(&format!("/v1/aggregates/late{round}/data"));
        assert_exact(&server, &database);
        // However many rounds there are, there is as much to do in each.
        assert_eq!(server.delete(&format!("/v1/aggregates/late{round}")).unwrap().0, 204);
    }
    assert!(server.terminate().success());
}

#[test]
fn a_write_that_finds_the_disk_full_waits_and_no_number_is_wrong() {
    let Some(disk) = SmallDisk::mount() else { return };
    let database = prepare();
    let mut server = start(&database, &disk.data(), "0");
    register(&server);
    for round in 0..rounds() {
        disk.fill(1 << 20);
        transfer(&database, 6_000, 2_000);
        until(&server, "a write fails", Duration::from_secs(20), |_| metric(&server, "tidemark_disk_low") == 1.0);
        // Nothing is left even for the smallest file.
        disk.fill(0);
        let held = Instant::now();
        while held.elapsed() < HELD {
            answer(&server);
        }
        if round % 4 == 1 {
            // Asked to end while it waits, it does.
            let began = Instant::now();
            let _ = server.terminate();
            assert!(began.elapsed() < Duration::from_secs(10), "it took {:?} to end", began.elapsed());
            disk.free();
            server = start(&database, &disk.data(), "0");
            server.get_ok("/readyz");
        } else if round % 4 == 2 {
            server.kill();
            disk.free();
            server = start(&database, &disk.data(), "0");
            server.get_ok("/readyz");
        } else {
            disk.free();
            let rows = rows(&database);
            let took = until(&server, "it goes on", GOES_ON_WITHIN, |answer| answer["data"][0]["n"] == rows);
            println!("went on {took:?} after space was freed");
        }
        assert_exact(&server, &database);
        database.sql("DELETE FROM payments WHERE length(note) > 100");
        assert_exact(&server, &database);
        // What was written while it was full is on disk, and acknowledged, only now.
        server.kill();
        server = start(&database, &disk.data(), "0");
        server.get_ok("/readyz");
        assert_exact(&server, &database);
    }
    assert!(server.terminate().success());
}

/// It did not get as far as holding its source: a start that finds no space is tried again, and loses nothing.
#[test]
fn a_start_that_finds_the_disk_full_is_worth_another_try() {
    let Some(disk) = SmallDisk::mount() else { return };
    let start = || {
        let mut command = serve(&disk.data());
        command.args(["--generator", "1", "--listen", "127.0.0.1:0"]);
        command
    };
    let refused = |what: &str| {
        disk.fill_entirely();
        let ended = start().output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(4), "{what}: {said}");
        assert!(said.contains("make space there") && said.contains("No space left"), "{what}: {said}");
        disk.free();
    };
    refused("a new directory");
    let server = Server::listen(serve(&disk.data()).args(["--generator", "1"]));
    server.get_ok("/readyz");
    assert!(server.terminate().success());
    refused("one in use");
    assert!(Server::listen(serve(&disk.data()).args(["--generator", "1"])).terminate().success());
}
