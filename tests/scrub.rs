//! What is stored is damaged while Tidemark is stopped: no wrong number is ever shown, the aggregate that is damaged says so
//! and is built anew, the others go on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::{Server, serve};
use crate::support::tamper::{Tamper, add_one};

const FLIPS: usize = 30;
const NAMES: [&str; 3] = ["monthly", "accounts", "rows"];

fn start_database() -> Database {
    Database::start(
        &[],
        "CREATE TABLE payments (id bigint PRIMARY KEY, account text, amount numeric(14,2), at timestamptz);
         INSERT INTO payments SELECT i, 'ES' || i % 50, i * 0.37, timestamptz '2024-01-15 UTC' + interval '1 hour' * i
           FROM generate_series(1, 9000) AS i",
    )
}

fn register(server: &Server) {
    let sums = json!([{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}]);
    for (name, definition) in [
        (
            "monthly",
            json!({"table": "payments", "measures": sums, "dimensions": ["account"], "rollups": ["year"],
                           "time": {"column": "at", "granularity": "month"}}),
        ),
        ("accounts", json!({"table": "payments", "measures": sums, "dimensions": ["account"]})),
        ("rows", json!({"table": "payments", "measures": sums})),
    ] {
        server.register(name, &definition);
    }
}

fn data_of(server: &Server, name: &str) -> Value {
    server.get_ok(&format!("/v1/aggregates/{name}/data?limit=100000"))["data"].clone()
}

fn metric(server: &Server, name: &str) -> f64 {
    let text = server.exchange("GET", "/metrics", &[], &[]).unwrap().text;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.trim().parse().unwrap()
}

#[test]
fn a_cell_that_is_not_what_was_written_is_never_shown_and_is_built_anew() {
    let database = start_database();
    let data = tempfile::tempdir().unwrap();
    let start = || Server::start(data.path(), &database.url(), &["payments"], &["--scrub-cells", "100000"]);
    let server = start();
    register(&server);
    let before = NAMES.map(|name| data_of(&server, name));
    assert!(server.terminate().success());
    // Aggregates are numbered as they are registered; what is built anew gets the next number.
    let mut number = 1;
    for kind in 0..3 {
        let tamper = Tamper::open(data.path());
        let cells = tamper.cells(number);
        assert!(cells.len() > 600, "{}", cells.len());
        let (stored, mut cell) = cells[cells.len() - 1 - kind * 300].clone();
        match kind {
            0 => {
                add_one(&mut cell, 0);
                tamper.put(&stored, Some(&cell));
            }
            1 => tamper.put(&stored, None),
            // Of a group that has no such cell.
            _ => tamper.put(&[stored.as_slice(), b"\xFE"].concat(), Some(&cell)),
        }
        drop(tamper);
        let server = start();
        let problem = loop {
            let (status, problem) = server.get("/v1/aggregates/monthly/data");
            assert_eq!(status, 503, "{kind}: a wrong number: {problem}");
            if problem["code"] == "store_corrupt" {
                break problem;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(problem["hint"].as_str().unwrap().contains("/v1/aggregates/monthly/backfill:rebuild"), "{problem}");
        assert_eq!(data_of(&server, "accounts"), before[1]);
        assert_eq!(data_of(&server, "rows"), before[2]);
        assert_eq!(metric(&server, "tidemark_damaged_aggregates_total"), 1.0);
        // It stays so over a restart, and rows that come meanwhile reach what is built anew.
        assert!(server.terminate().success());
        let server = start();
        server.get_ok("/readyz");
        assert_eq!(server.get("/v1/aggregates/monthly/data").1["code"], "store_corrupt");
        assert_eq!(server.try_post("/v1/aggregates/monthly/backfill:rebuild", b"").unwrap().0, 202);
        assert_eq!(data_of(&server, "monthly"), before[0], "{kind}");
        let found = server.try_post("/v1/verify", b"{}").unwrap().1;
        assert_eq!((&found["equal"], found["skipped"].clone()), (&json!(true), json!([])), "{found}");
        assert!(server.terminate().success());
        number = 4 + kind as u32;
    }
}

#[test]
fn a_row_that_cannot_be_read_halts_what_is_filled_from_it_and_nothing_else() {
    let database = start_database();
    let data = tempfile::tempdir().unwrap();
    let start = || Server::start(data.path(), &database.url(), &["payments"], &[]);
    let server = start();
    register(&server);
    let before = NAMES.map(|name| data_of(&server, name));
    assert!(server.terminate().success());
    Tamper::open(data.path()).spoil_a_row();
    let server = start();
    server.get_ok("/readyz");
    let late = json!({"table": "payments", "measures": [{"name": "n", "count": "*"}], "dimensions": ["account"]});
    assert_eq!(server.put("/v1/aggregates/late", &late).0, 202);
    let deadline = Instant::now() + Duration::from_secs(20);
    let problem = loop {
        let (status, problem) = server.get("/v1/aggregates/late/data");
        assert_eq!(status, 503, "a wrong number: {problem}");
        if problem["code"] == "store_corrupt" {
            break problem;
        }
        assert!(problem["code"] == "building" && Instant::now() < deadline, "{problem}");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(problem["hint"].as_str().unwrap().contains("/tables"), "{problem}");
    // The same where it was to take the place of one that answers: that one goes on, and follows the stream.
    assert_eq!(server.try_post("/v1/aggregates/rows/backfill:rebuild", b"").unwrap().0, 202);
    database.sql("INSERT INTO payments VALUES (9001, 'ES1', 1, '2024-01-15Z')");
    let lsn = database.value("SELECT pg_current_wal_lsn()");
    let rows = server.get_ok(&format!("/v1/aggregates/rows/data?min_lsn={lsn}&wait=20s"));
    assert_eq!(rows["data"][0]["n"], 9001);
    assert_ne!(data_of(&server, "monthly"), before[0]);
    // Read anew, everything is there.
    assert_eq!(server.try_post("/v1/sources/postgres/tables", b"{\"table\":\"payments\"}").unwrap().0, 202);
    while server.get("/v1/aggregates/late/data").0 != 200 {
        assert!(Instant::now() < deadline, "{:?}", server.get("/v1/aggregates/late/data"));
        std::thread::sleep(Duration::from_millis(10));
    }
    let found = server.try_post("/v1/verify", b"{}").unwrap().1;
    assert_eq!(
        (&found["equal"], found["cells"].as_u64().is_some_and(|cells| cells > 700)),
        (&json!(true), true),
        "{found}"
    );
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// Files of the store that hold data.
fn files(data: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(data.join("store")).unwrap().map(|entry| entry.unwrap().path());
    let holds_data = |path: &PathBuf| {
        let extension = path.extension().unwrap_or_default();
        (extension == "sst" || extension == "log") && path.metadata().unwrap().len() > 0
    };
    let mut files: Vec<PathBuf> = entries.filter(holds_data).collect();
    files.sort();
    files
}

#[test]
fn a_flipped_bit_never_makes_a_wrong_number() {
    let seed = std::env::var("TIDEMARK_SEED").map_or(20_261_125, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let database = start_database();
    let parent = tempfile::tempdir().unwrap();
    let whole = parent.path().join("whole");
    let server = Server::start(&whole, &database.url(), &["payments"], &[]);
    register(&server);
    let right = NAMES.map(|name| data_of(&server, name));
    assert!(server.terminate().success());
    let (mut refused, mut answered, mut silent) = (0, 0, 0);
    for number in 0..FLIPS {
        let data = parent.path().join(format!("flip{number}"));
        copy(&whole, &data);
        let file = files(&data).choose(&mut rng).unwrap().clone();
        let mut bytes = std::fs::read(&file).unwrap();
        let at = rng.random_range(0..bytes.len());
        bytes[at] ^= 1 << rng.random_range(0..8);
        std::fs::write(&file, bytes).unwrap();
        let what = format!("seed {seed}: bit flipped at {at} of {}", file.display());
        let mut command = serve(&data);
        command.env("TIDEMARK_POSTGRES", database.url()).args(["--table", "payments", "--scrub-cells", "100000"]);
        match Server::try_listen(&mut command) {
            Err((said, status)) => {
                refused += 1;
                assert_eq!(status.code(), Some(2), "{what}: {said:?}");
                assert!(said.iter().any(|line| line.contains("start over with an empty")), "{what}: {said:?}");
            }
            Ok(server) => {
                for (name, right) in NAMES.iter().zip(&right) {
                    match settled(&server, name) {
                        Some(shown) => {
                            assert_eq!(shown, *right, "{what}: {name} shows a wrong number");
                            answered += 1;
                        }
                        None => silent += 1,
                    }
                }
            }
        }
        std::fs::remove_dir_all(&data).unwrap();
    }
    println!("{refused} of {FLIPS} stores refused, {answered} answers right, {silent} not given");
    assert!(answered > 0 && refused + silent > 0);
}

/// What an aggregate answers, or nothing where it says that it will not.
fn settled(server: &Server, name: &str) -> Option<Value> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (status, body) = server.get(&format!("/v1/aggregates/{name}/data?limit=100000"));
        let waits = ["starting", "connecting", "catching_up", "checking_store"];
        match status {
            200 => return Some(body["data"].clone()),
            503 if waits.contains(&body["code"].as_str().unwrap()) => {
                assert!(Instant::now() < deadline, "{name}: {body}");
            }
            _ => return None,
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn buckets_are_compared_now_and_then_without_being_asked() {
    let database = start_database();
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["payments"], &["--verify-every", "1s"]);
    register(&server);
    let deadline = Instant::now() + Duration::from_secs(30);
    while metric(&server, "tidemark_verified_cells_total") < 100.0 {
        assert!(Instant::now() < deadline, "nothing is compared: {:?}", server.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(metric(&server, "tidemark_verified_differing_cells_total"), 0.0);
    assert!(metric(&server, "tidemark_verified_lsn_bytes") > 0.0);
    assert!(metric(&server, "tidemark_verified_time_seconds") > 1.6e9);
}
