//! More than we are made for, all at once: thousands of connections that say nothing or say it byte by byte, questions over
//! all cells, answers that are asked for and never read, live answers too. Who behaves is served meanwhile, the stream of
//! changes keeps up, and memory stays within a bound. What is refused is refused with 429 or 503 and a time to come back.
//!
//! The figures are printed; the bounds that are asserted are generous, because the machine may be busy with other things.
//!
//! `TIDEMARK_CONNECTIONS=10000 cargo test --release overload` has so many at a time: half of them slow and opened anew whenever they
//! are closed, a tenth that ask and do not read. Who behaves then asks 15,000 times, at most 500 times a second.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::scope;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::Server;

/// Clients that ask for everything, again and again.
const GREEDY: usize = 96;
/// Live answers that are not read.
const DEAF: usize = 50;

/// Those who are there besides.
struct Crowd {
    /// Connections that never become a request.
    idle: usize,
    /// Those of them that send a byte now and then.
    slow: usize,
    /// Answers that are asked for and not read.
    unread: usize,
    /// Places that the server has, where stated.
    places: Option<usize>,
    /// Questions of the client that behaves.
    questions: usize,
    /// From one of them to the next, at least.
    pause: Duration,
}

/// More connections than there are places.
const CROWD: Crowd = Crowd { idle: 4_000, slow: 400, unread: 100, places: None, questions: 300, pause: Duration::ZERO };

impl Crowd {
    /// The usual one, or as many as the environment says, all of which have a place.
    fn called() -> Crowd {
        let Ok(connections) = std::env::var("TIDEMARK_CONNECTIONS") else { return CROWD };
        let connections: usize = connections.parse().unwrap();
        let unread = connections / 10 - DEAF;
        let places = Some(connections);
        let (questions, pause) = (15_000, Duration::from_millis(2));
        Crowd { idle: connections - unread - DEAF, slow: connections / 2, unread, places, questions, pause }
    }

    /// Allows this process, and so the server that it starts, the files that they need: the server gives connections half of its own.
    fn make_room_for_files(&self) {
        let wanted = self.places.map_or(10_000, |places| places * 2) as u64;
        let limit = getrlimit(Resource::Nofile);
        let current = limit.current.unwrap_or(u64::MAX);
        assert!(limit.maximum.is_none_or(|maximum| maximum >= wanted), "{wanted} files: raise ulimit -Hn");
        setrlimit(Resource::Nofile, Rlimit { current: Some(current.max(wanted)), maximum: limit.maximum }).unwrap();
    }
}

/// Longest time for one answer to the client that behaves.
const LATENCY_BOUND: Duration = Duration::from_secs(2);
/// Longest time from a commit to its being visible.
const LAG_BOUND: Duration = Duration::from_secs(5);
/// Most memory.
const MEMORY_BOUND: u64 = 1_500 << 20;

const TABLES: &str = "
    CREATE TABLE payments (id bigint PRIMARY KEY, at timestamptz, account int, amount numeric(14,2));
    INSERT INTO payments
    SELECT i, timestamptz '2025-01-01Z' + i % 24 * interval '1 month', i % 50000, i * 0.01 FROM generate_series(1, 400000) AS i;
";
const EVERYTHING: &str = "/v1/aggregates/by_account/data?limit=100000";
const POINT: &str = "/v1/aggregates/by_account/data?granularity=month&from=2025-08&to=2025-09&where=account:7";

/// How long some of the answers took, the slowest last.
struct Latencies(Vec<Duration>);

impl Latencies {
    fn of(count: usize, pause: Duration, mut ask: impl FnMut()) -> Latencies {
        let mut latencies: Vec<Duration> = (0..count)
            .map(|_| {
                let started = Instant::now();
                ask();
                let took = started.elapsed();
                std::thread::sleep(pause.saturating_sub(took));
                took
            })
            .collect();
        latencies.sort_unstable();
        Latencies(latencies)
    }

    fn percentile(&self, percent: usize) -> Duration {
        self.0[(self.0.len() - 1) * percent / 100]
    }
}

fn send(address: &str, text: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(text.as_bytes()).ok()?;
    Some(stream)
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// A body of questions, sent once.
fn posted(body: &str) -> String {
    let length = body.len();
    format!(
        "POST /v1/query HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

/// The others are on other machines: here they must not take the processors from the server, nor from the client that behaves.
fn be_elsewhere() {
    rustix::process::setpriority_process(None, 19).unwrap();
}

/// Half of the start of a request, or not even that.
fn nothing_much(at: usize) -> &'static str {
    if at.is_multiple_of(2) { "" } else { "GET /v1/aggre" }
}

/// Sends a byte on some of the connections now and then until told to stop; counts those that were closed. Where all have a place, who
/// was put out comes back.
fn be_slow(address: &str, crowd: &Crowd, mut idle: Vec<TcpStream>, stop: &AtomicBool, closed: &AtomicU64) {
    be_elsewhere();
    idle.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    let silent = idle.len().saturating_sub(crowd.slow);
    while !stop.load(Ordering::Relaxed) {
        let mut found = 0;
        for (at, stream) in idle.iter_mut().enumerate() {
            let gone = if at < silent { is_closed(stream) } else { stream.write_all(b"x").is_err() };
            found += u64::from(gone && at >= silent);
            if gone
                && crowd.places.is_some()
                && let Some(again) = send(address, nothing_much(at))
            {
                again.set_nonblocking(true).unwrap();
                *stream = again;
            }
        }
        // Who does not come back is found closed each time.
        if crowd.places.is_some() {
            closed.fetch_add(found, Ordering::Relaxed);
        } else {
            closed.fetch_max(found, Ordering::Relaxed);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn is_closed(mut stream: &TcpStream) -> bool {
    match stream.read(&mut [0; 512]) {
        Ok(received) => received == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

/// Asks for everything until told to stop; counts the answers by what they were.
fn be_greedy(address: &str, stop: &AtomicBool, answered: &AtomicU64, refused: &AtomicU64) {
    be_elsewhere();
    while !stop.load(Ordering::Relaxed) {
        let head = request(EVERYTHING).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        let Some(mut stream) = send(address, &head) else { continue };
        let mut answer = Vec::new();
        // One that is cut off has no whole head, and is looked at as nothing.
        let _ = stream.read_to_end(&mut answer);
        let head = String::from_utf8_lossy(&answer[..answer.len().min(600)]).to_lowercase();
        match head.split(' ').nth(1) {
            Some("200") => answered.fetch_add(1, Ordering::Relaxed),
            Some("429" | "503") => {
                assert!(head.contains("retry-after: "), "no word when to come back: {head}");
                refused.fetch_add(1, Ordering::Relaxed)
            }
            Some(status) => panic!("{status}: {head}"),
            None => 0,
        };
    }
}

#[test]
fn who_behaves_is_served_while_others_do_their_worst() {
    let database = Database::start(&[], TABLES);
    let data = tempfile::tempdir().unwrap();
    let crowd = Crowd::called();
    crowd.make_room_for_files();
    let places = crowd.places.map(|places| places.to_string());
    let more: Vec<&str> = places.iter().flat_map(|places| ["--max-connections", places]).collect();
    let server = Server::start(data.path(), &database.url(), &["public.payments"], &more);
    let definition = json!({"table": "payments", "dimensions": ["account"],
        "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
        "time": {"column": "at", "granularity": "month"}});
    server.register("by_account", &definition);
    let expected = server.get_ok(POINT)["data"].clone();
    assert_eq!(expected.as_array().unwrap().len(), 1, "{expected}");
    // A new connection each time: being let in is part of being served.
    let ask = || {
        let (status, body) = server.get(POINT);
        assert_eq!((status, &body["data"]), (200, &expected), "{body}");
    };
    let calm = Latencies::of(crowd.questions, crowd.pause, ask);
    let memory_before = server.peak_memory();

    let address = server.address().to_owned();
    let began = Instant::now();
    let stop = AtomicBool::new(false);
    let (answered, refused, slow_closed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let idle: Vec<TcpStream> = (0..crowd.idle).filter_map(|at| send(&address, nothing_much(at))).collect();
    let unread: Vec<_> = (0..crowd.unread).filter_map(|_| send(&address, &request(EVERYTHING))).collect();
    let live = "/v1/aggregates/by_account/live?granularity=month&from=2025-08&to=2025-09&limit=10000&throttle=20ms";
    let deaf: Vec<_> = (0..DEAF).filter_map(|_| send(&address, &request(live))).collect();
    assert!(idle.len() > crowd.idle * 9 / 10, "only {} connections could be opened", idle.len());
    let mut id = 1_000_000;
    let (under_load, lags) = scope(|scope| {
        for _ in 0..GREEDY {
            scope.spawn(|| be_greedy(&address, &stop, &answered, &refused));
        }
        scope.spawn(|| be_slow(&address, &crowd, idle, &stop, &slow_closed));
        // Ended also where an assertion fails, or the others would go on for ever.
        let ended = StopOnDrop(&stop);
        let under_load = Latencies::of(crowd.questions, crowd.pause, ask);
        let lags = Latencies::of(30, Duration::ZERO, || {
            id += 1;
            database.sql(&format!("INSERT INTO payments VALUES ({id}, '2025-09-01Z', {id}, 1)"));
            let lsn = database.value("SELECT pg_current_wal_lsn()::text");
            let (status, body) = server.get(&format!("{POINT}&min_lsn={lsn}&wait=25s"));
            assert_eq!((status, &body["data"]), (200, &expected), "{body}");
        });
        // The load goes on until those who do not read and those who do not write were cut off.
        let deadline = Instant::now() + Duration::from_secs(90);
        while [&slow_closed, &answered, &refused].iter().any(|count| count.load(Ordering::Relaxed) == 0) {
            assert!(Instant::now() < deadline, "slow clients are never cut off, or large questions never answered");
            ask();
        }
        drop(ended);
        (under_load, lags)
    });
    println!("the load took {:?}", began.elapsed());
    let memory = server.peak_memory();
    println!(
        "{} connections; {} point answers p50 {:?} p99 {:?} calm, p50 {:?} p99 {:?} under load; {} slow ones closed; commit to visible p50 {:?} max {:?}; {} large \
         answers, {} refused; peak memory {} MiB before, {} MiB",
        crowd.idle + crowd.unread + DEAF,
        crowd.questions,
        calm.percentile(50),
        calm.percentile(99),
        under_load.percentile(50),
        under_load.percentile(99),
        slow_closed.load(Ordering::Relaxed),
        lags.percentile(50),
        lags.percentile(100),
        answered.load(Ordering::Relaxed),
        refused.load(Ordering::Relaxed),
        memory_before >> 20,
        memory >> 20,
    );
    assert!(under_load.percentile(100) < LATENCY_BOUND, "{:?}", under_load.percentile(100));
    assert!(lags.percentile(100) < LAG_BOUND, "{:?}", lags.percentile(100));
    assert!(memory < MEMORY_BOUND, "{} MiB", memory >> 20);
    drop((unread, deaf));
    // And it is over when it is over.
    ask();
    assert!(server.terminate().success());
}

/// A server over as many groups as this, of one row each.
const GROUPS: usize = 400_000;

fn over_many_groups(database: &Database, data: &Path) -> Server {
    database.sql(&format!(
        "CREATE TABLE payments (id bigint PRIMARY KEY, at timestamptz, account int);
         INSERT INTO payments SELECT i, '2025-01-01Z', i FROM generate_series(1, {GROUPS}) AS i"
    ));
    let server = Server::start(data, &database.url(), &["public.payments"], &[]);
    let definition = json!({"table": "payments", "dimensions": ["account"], "measures": [{"name": "n", "count": "*"}],
        "time": {"column": "at", "granularity": "month"}});
    server.register("by_account", &definition);
    server
}

/// As many questions as are read at once, each of as many cells as one request may read, and with much to do for every one of
/// them: read to their ends they would take the turns of everybody else for a long time.
#[test]
fn who_hangs_up_gives_back_the_turn() {
    let database = Database::start(&[], "");
    let data = tempfile::tempdir().unwrap();
    let server = over_many_groups(&database, data.path());
    let list: Vec<String> = (1_000_000..1_000_060).map(|account| account.to_string()).collect();
    let filter = vec![format!("account in ({})", list.join(",")); 150].join(" or ");
    let question = json!({"aggregate": "by_account", "filter": filter, "order": ["-n"], "limit": 1});
    let body = json!({"queries": vec![question; 12]}).to_string();
    let turns = std::thread::available_parallelism().map_or(2, |count| count.get().max(2));
    let asked: Vec<_> = (0..turns).filter_map(|_| send(server.address(), &posted(&body))).collect();
    assert_eq!(asked.len(), turns);
    std::thread::sleep(Duration::from_secs(1));
    asked.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    assert!(!asked.iter().any(|stream| stream.peek(&mut [0]).is_ok()), "they were answered within a second");
    drop(asked);
    let hung_up = Instant::now();
    let (status, answer) = server.get("/v1/aggregates/by_account/data?granularity=all&group_by=");
    assert_eq!((status, &answer["data"][0]["n"]), (200, &json!(GROUPS)), "{answer}");
    assert!(hung_up.elapsed() < Duration::from_secs(4), "{:?}", hung_up.elapsed());
    assert!(server.terminate().success());
}

/// Conditions of as many values as a body holds, to aggregates that are named, again and again: it takes a while to understand them, and
/// who asks something else does not wait for it.
#[test]
fn long_conditions_keep_nobody_waiting() {
    let database = Database::start(&[], "CREATE TABLE payments (id bigint PRIMARY KEY, account int)");
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["public.payments"], &[]);
    let by_account = json!({"table": "payments", "dimensions": ["account"], "measures": [{"name": "n", "count": "*"}]});
    server.register("by_account", &by_account);
    let values = (1_000_000..1_009_900).map(|value| value.to_string()).collect::<Vec<_>>().join(",");
    let bodies = [("filter", "account"), ("having", "n")].map(|(part, column)| {
        let question = json!({"aggregate": "by_account", part: format!("{column} in ({values})")});
        json!({"queries": vec![question; 12]}).to_string()
    });
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let health = scope(|scope| {
        for at in 0..24 {
            let (address, body, stop, answered) = (server.address(), &bodies[at % 2], &stop, &answered);
            scope.spawn(move || {
                be_elsewhere();
                while !stop.load(Ordering::Relaxed) {
                    let Some(mut stream) = send(address, &posted(body)) else { continue };
                    let mut answer = String::new();
                    // One that is cut off is none.
                    let _ = stream.read_to_string(&mut answer);
                    match answer.split(' ').nth(1) {
                        Some("200") => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        None | Some("429" | "503") => {}
                        Some(status) => panic!("{status}: {answer}"),
                    }
                }
            });
        }
        let ended = StopOnDrop(&stop);
        let deadline = Instant::now() + Duration::from_secs(60);
        while answered.load(Ordering::Relaxed) < 4 {
            assert!(Instant::now() < deadline, "none of the long questions is answered");
            std::thread::sleep(Duration::from_millis(10));
        }
        let health = Latencies::of(100, Duration::from_millis(10), || assert_eq!(server.get("/healthz").0, 200));
        drop(ended);
        health
    });
    println!("health p50 {:?} max {:?}", health.percentile(50), health.percentile(100));
    assert!(health.percentile(50) < Duration::from_millis(200), "{:?}", health.percentile(50));
    assert!(server.terminate().success());
}

/// Long names, in each of as many rows as there may be: it is counted before it is there.
#[test]
fn what_is_too_large_is_refused_before_it_is_made() {
    let database = Database::start(&[], "");
    let data = tempfile::tempdir().unwrap();
    let server = over_many_groups(&database, data.path());
    let measures: Vec<String> = (0..64).map(|at| format!("n as {at:0>120}")).collect();
    let question = json!({"aggregate": "by_account", "measures": measures, "limit": 100_000});
    let ask = |question: &Value| server.try_post("/v1/query", question.to_string().as_bytes()).unwrap();
    let before = server.peak_memory();
    let (status, answer) = ask(&question);
    assert_eq!((status, answer["code"].as_str()), (422, Some("query_too_wide")), "{answer}");
    let (status, several) = ask(&json!({"queries": vec![question; 32]}));
    assert_eq!(status, 200, "{several}");
    for answer in several["answers"].as_array().unwrap() {
        assert_eq!(answer["problem"]["code"], "query_too_wide", "{answer}");
    }
    let grown = server.peak_memory() - before;
    assert!(grown < 600 << 20, "{} MiB", grown >> 20);
    // In pages it is answered.
    let (status, page) = ask(&json!({"aggregate": "by_account", "measures": measures, "limit": 1_000}));
    assert_eq!((status, page["data"].as_array().map(Vec::len)), (200, Some(1_000)), "{page}");
    assert!(server.terminate().success());
}

/// With few files to open, connections must not take those that the store needs: a write that fails halts everything.
#[test]
fn connections_leave_the_store_its_files() {
    let database = Database::start(&[], "CREATE TABLE payments (id bigint PRIMARY KEY, amount numeric(12,2))");
    let data = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 200; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_tidemark")]);
    command.args(["serve", "--table", "public.payments", "--data"]).arg(data.path());
    command.env("TIDEMARK_POSTGRES", database.url()).env("RUST_LOG", "info").env_remove("TIDEMARK_TOKENS");
    let server = Server::listen(&mut command);
    let sum = json!({"table": "payments", "measures": [{"name": "amount", "sum": "amount"}]});
    server.register("total", &sum);
    let flood: Vec<_> = (0..600).filter_map(|_| send(server.address(), "GET /v1/aggre")).collect();
    assert_eq!(flood.len(), 600);
    // Each a table of the store to be opened: registered, filled, written, synced.
    for round in 1..=10 {
        database.sql(&format!("INSERT INTO payments SELECT i, 1 FROM generate_series({round}000, {round}999) AS i"));
        let lsn = database.value("SELECT pg_current_wal_lsn()::text");
        server.register(&format!("total{round}"), &sum);
        let answer = server.get_ok(&format!("/v1/aggregates/total{round}/data?min_lsn={lsn}&wait=25s"));
        assert_eq!(answer["data"][0]["amount"], format!("{round}000.00"), "{answer}");
    }
    let said = server.log().join("\n");
    assert!(!said.contains("could not be accepted"), "{said}");
    assert!(server.terminate().success());
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
