//! Who may do what, against the real binary: every route with every kind of token, tokens that are pinned to a part of an
//! aggregate and must never see the rest of it, revocation while an answer is live, and TLS.
//!
//! The payments in USD carry values that are found nowhere else; an answer to a pinned token that holds one of them leaked.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::{Reply, Server, tidemark};

/// Values of what the pinned token must not see: sums, counts, texts.
const CANARIES: [&str; 6] = ["777001", "1554002", "usd-canary", "ACCT-CANARY", "by_account", "secret_table"];

const TABLES: &str = "
    CREATE TABLE payments (id bigint PRIMARY KEY, at timestamptz, currency text, account text, amount numeric(14,2));
    INSERT INTO payments VALUES
        (1, '2026-01-05Z', 'EUR', 'ES1', 10), (2, '2026-02-05Z', 'EUR', 'ES2', 5.5),
        (3, '2026-01-06Z', 'USD', 'ACCT-CANARY', 777001), (4, '2026-02-06Z', 'USD', 'usd-canary', 777001);
    CREATE TABLE secret_table (id bigint PRIMARY KEY, n bigint);
";

fn definition(dimension: &str) -> Value {
    json!({"table": "payments", "dimensions": [dimension], "drill_through": true,
        "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
        "time": {"column": "at", "granularity": "month"}, "rollups": ["year"]})
}

struct Guarded {
    server: Server,
    database: Database,
    tokens: PathBuf,
    _directory: tempfile::TempDir,
}

/// Makes a token; returns its text.
fn create(tokens: &Path, more: &[&str]) -> String {
    let output = tidemark().args(["token", "create", "--tokens"]).arg(tokens).args(more).output().unwrap();
    assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn revoke(tokens: &Path, token: &str) {
    let id = token.split('_').nth(1).unwrap();
    assert!(tidemark().args(["token", "revoke", id, "--tokens"]).arg(tokens).status().unwrap().success());
}

impl Guarded {
    /// A server that asks for tokens, with two aggregates, and the token of an administrator.
    fn start() -> (Guarded, String) {
        let directory = tempfile::tempdir().unwrap();
        let tokens = directory.path().join("tokens.json");
        let admin = create(&tokens, &["--scope", "admin"]);
        let database = Database::start(&[], TABLES);
        let data = directory.path().join("data");
        let more = ["--tokens", tokens.to_str().unwrap()];
        let server = Server::start(&data, &database.url(), &["public.payments", "public.secret_table"], &more);
        let guarded = Guarded { server, database, tokens, _directory: directory };
        for (name, dimension) in [("by_currency", "currency"), ("by_account", "account")] {
            guarded.register(&admin, name, &definition(dimension));
        }
        (guarded, admin)
    }

    fn register(&self, admin: &str, name: &str, definition: &Value) {
        let path = format!("/v1/aggregates/{name}");
        self.until(admin, "PUT", &path, &definition.to_string(), 200);
        self.until(admin, "GET", &format!("{path}/data"), "", 200);
    }

    /// A live answer, as it comes.
    fn live(&self, token: &str, path: &str) -> impl Read {
        let patient = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(60))).build();
        let request = ureq::Agent::from(patient).get(format!("http://{}{path}", self.server.address()));
        request.header("authorization", format!("Bearer {token}")).call().unwrap().into_body().into_reader()
    }

    /// Has the table of the payments read anew, and the filling that follows held.
    fn hold(&self, admin: &str, name: &str) {
        // Enough rows that they are not all in what is filled at once.
        self.database.sql(
            "INSERT INTO payments SELECT i, '2026-01-07Z', 'USD', 'usd-canary', 1 FROM generate_series(10000, 310000) AS i",
        );
        let backfill = format!("/v1/aggregates/{name}/backfill");
        for _ in 0..20 {
            self.until(admin, "POST", "/v1/sources/postgres/tables", r#"{"table":"public.payments"}"#, 202);
            // It may be over sooner than we look, and it may come to its end although it is to pause.
            let deadline = Instant::now() + Duration::from_secs(10);
            while Instant::now() < deadline {
                let paused = self.ask(Some(admin), "POST", &format!("{backfill}:pause"), "").status == 200;
                if !paused {
                    continue;
                }
                std::thread::sleep(Duration::from_millis(500));
                if self.ask(Some(admin), "GET", &backfill, "").text.contains("paused") {
                    return;
                }
                break;
            }
        }
        panic!("{name} is filled sooner than it is held");
    }

    fn ask(&self, token: Option<&str>, method: &str, path: &str, body: &str) -> Reply {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
        self.server.exchange(method, path, &headers, body.as_bytes()).unwrap()
    }

    /// Asks until this is answered; at most a minute.
    fn until(&self, token: &str, method: &str, path: &str, body: &str, status: u16) -> Reply {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let reply = self.ask(Some(token), method, path, body);
            if reply.status == status {
                return reply;
            }
            assert!(Instant::now() < deadline, "{method} {path}: {} {}", reply.status, reply.text);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A request that is under way.
struct Started(TcpStream);

impl Started {
    /// Sends the head of a request with this body, and nothing of that.
    fn send(guarded: &Guarded, token: &str, method: &str, path: &str, body: &str) -> Started {
        let mut stream = TcpStream::connect(guarded.server.address()).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        Started(stream)
    }

    /// Sends a part of the body.
    fn begin(mut self, part: &str) -> Started {
        self.0.write_all(part.as_bytes()).unwrap();
        self
    }

    /// Sends the rest of it, and reads the answer.
    fn finish(self, rest: &str) -> String {
        let mut stream = self.begin(rest).0;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

fn code(reply: &Reply) -> String {
    let body: Value = serde_json::from_str(&reply.text).unwrap_or_default();
    body["code"].as_str().unwrap_or_default().to_owned()
}

/// Requests that wait for a position far ahead, more of them than there are places.
#[test]
fn one_token_leaves_others_their_connections() {
    const ASKED: usize = 400;
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens.json");
    let (greedy, other) = (create(&tokens, &["--scope", "admin"]), create(&tokens, &["--scope", "read"]));
    let mut command = tidemark();
    command
        .args(["serve", "--generator", "1", "--max-connections", "300", "--data"])
        .arg(directory.path().join("data"));
    let server = Server::listen(command.arg("--tokens").arg(&tokens));
    let ask = |token: &str, method: &str, path: &str, body: &[u8]| {
        let bearer = format!("Bearer {token}");
        server.exchange(method, path, &[("authorization", &bearer), ("content-type", "application/json")], body)
    };
    let count = br#"{"table": "payments", "measures": [{"name": "n", "count": "*"}]}"#;
    let deadline = Instant::now() + Duration::from_secs(60);
    for (method, path) in [("PUT", "/v1/aggregates/all"), ("GET", "/v1/aggregates/all/data")] {
        while !ask(&greedy, method, path, count).is_some_and(|reply| matches!(reply.status, 200 | 202)) {
            assert!(Instant::now() < deadline, "{path} is not answered");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let head = format!(
        "GET /v1/aggregates/all/data?min_lsn=FFFFFFFF/0&wait=25s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {greedy}\r\n\r\n"
    );
    let waiting: Vec<TcpStream> = (0..ASKED)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            // Who comes after all places are taken is turned away.
            let _ = stream.write_all(head.as_bytes());
            stream
        })
        .collect();
    // One that finds no place hears nothing at all.
    let deadline = Instant::now() + Duration::from_secs(15);
    let told = loop {
        let told = ask(&greedy, "GET", "/v1/aggregates", b"").expect("no place is left, even to be told so");
        if told.status == 429 {
            break told;
        }
        assert!(Instant::now() < deadline, "all of them wait: {} {}", told.status, told.text);
    };
    assert_eq!(code(&told), "overloaded", "{}", told.text);
    assert!(told.headers.contains_key("retry-after"));
    for _ in 0..5 {
        let reply = ask(&other, "GET", "/v1/aggregates/all/data", b"").expect("others find no place");
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    drop(waiting);
    let deadline = Instant::now() + Duration::from_secs(20);
    while ask(&greedy, "GET", "/v1/aggregates", b"").is_none_or(|reply| reply.status != 200) {
        assert!(Instant::now() < deadline, "who hung up still counts");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The routes come from the server's own contract, so one that is added is part of this; the scopes are those of the
/// approved copy.
#[test]
fn every_route_asks_every_caller_for_its_scope() {
    let (guarded, admin) = Guarded::start();
    let token = |more: &[&str]| create(&guarded.tokens, more);
    let read = token(&["--scope", "read"]);
    let register = token(&["--scope", "register"]);
    let pinned = token(&["--scope", "read", "--pin", "by_currency=currency:EUR"]);
    // The file is looked at every second.
    guarded.until(&pinned, "GET", "/v1/aggregates", "", 200);
    let contract: Value = serde_json::from_str(&guarded.ask(None, "GET", "/openapi.json", "").text).unwrap();
    let (mut asked, mut open) = (0, Vec::new());
    for (path, operations) in contract["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let Some(scope) = operation.pointer("/security/0/token/0").and_then(Value::as_str) else {
                open.push(path.clone());
                continue;
            };
            let method = method.to_uppercase();
            // Nobody of that name is harmed by those who may.
            let at = path.replace("{name}", "absent");
            let refused = |token: Option<&str>, status: u16, codes: &[&str]| {
                let reply = guarded.ask(token, &method, &at, "{}");
                assert_eq!(reply.status, status, "{method} {path}: {}", reply.text);
                assert!(codes.contains(&code(&reply).as_str()), "{method} {path}: {}", reply.text);
                reply
            };
            let reply = refused(None, 401, &["token_missing"]);
            assert!(reply.headers["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
            let mut wrong = admin.clone();
            let last = wrong.pop().unwrap();
            wrong.push(if last == '0' { '1' } else { '0' });
            refused(Some(&wrong), 401, &["token_unknown"]);
            let holders = [("read", &read), ("register", &register), ("admin", &admin)];
            let needed = holders.iter().position(|(name, _)| *name == scope).unwrap();
            for (_, lesser) in &holders[..needed] {
                refused(Some(lesser), 403, &["scope_missing"]);
            }
            for (_, enough) in &holders[needed..] {
                let reply = guarded.ask(Some(enough), &method, &at, "{}");
                assert!(!matches!(reply.status, 401 | 403 | 500), "{method} {path}: {}", reply.text);
            }
            let reply = guarded.ask(Some(&pinned), &method, &at, "{}");
            let expected = match (path.rsplit('/').next().unwrap(), scope) {
                ("aggregates" | "{name}", "read") if path.starts_with("/v1/aggregates") => "",
                (
                    "data" | "data.json" | "data.ndjson" | "data.csv" | "data.arrow" | "rows" | "live" | "query",
                    "read",
                ) => "",
                (_, "read") => "token_pinned",
                _ => "scope_missing",
            };
            let got = Some(code(&reply)).filter(|_| reply.status == 403).unwrap_or_default();
            assert_eq!(got, expected, "{method} {path}: {} {}", reply.status, reply.text);
            asked += 1;
        }
    }
    assert!(asked >= 22, "{asked} routes were asked");
    open.sort();
    assert_eq!(open, ["/healthz", "/readyz"], "these show nothing of the data");
    // Neither a cookie nor a parameter is a token.
    let cookie = format!("token={admin}; Authorization=Bearer {admin}");
    let reply = guarded.server.exchange("GET", &format!("/v1/aggregates?token={admin}"), &[("cookie", &cookie)], b"");
    assert_eq!(reply.unwrap().status, 401);
}

#[test]
fn a_pinned_token_sees_its_part_and_nothing_of_the_rest() {
    let (guarded, admin) = Guarded::start();
    let pins = ["--scope", "read", "--pin", "by_currency=currency:EUR", "--pin", "gone"];
    let pinned = create(&guarded.tokens, &pins);
    guarded.until(&pinned, "GET", "/v1/aggregates", "", 200);
    let data = "/v1/aggregates/by_currency/data";
    let answers = std::cell::Cell::new(0);
    let look = |method: &str, path: &str, body: &str| {
        let reply = guarded.ask(Some(&pinned), method, path, body);
        assert_ne!(reply.status, 500, "{path} {body}: {}", reply.text);
        let text = format!("{:?} {}", reply.headers, reply.text);
        // What was sent may come back in a refusal.
        let sent = format!("{path} {body}");
        for canary in CANARIES.iter().filter(|canary| !sent.contains(**canary)) {
            assert!(!text.contains(canary), "{canary} leaked by {method} {path} {body}: {text}");
        }
        if reply.status == 200 {
            answers.set(answers.get() + 1);
        }
        reply
    };
    for question in [
        "",
        "?granularity=year",
        "?granularity=all",
        "?group_by=currency",
        "?group_by=",
        "?filter=currency='USD'",
        "?filter=currency='USD' or amount is null",
        "?filter=currency in ('USD','EUR')",
        "?filter=currency <> 'EUR'",
        "?where=currency:USD",
        "?where=currency:EUR",
        "?where=currency:null",
        "?order=-amount&limit=1",
        "?granularity=all&group_by=currency&order=-amount&limit=1&others=true",
        "?granularity=all&order=-amount&share=true",
        "?granularity=year&from=2026&to=2027&compare=P1Y",
        "?fill=zero&from=2026&to=2027",
        "?layout=columns",
        "?having=n > 0",
        "?rows=5&granularity=all",
        "?rows=5&granularity=month",
        "?measures=sum(amount),count(*)",
        "?limit=1",
    ] {
        for format in ["", ".json", ".ndjson", ".csv", ".arrow"] {
            look(
                "GET",
                &format!("{data}{format}{}", question.replace(' ', "%20").replace('<', "%3C").replace('>', "%3E")),
                "",
            );
        }
    }
    for path in [
        "/v1/aggregates",
        "/v1/aggregates/by_currency",
        "/v1/aggregates/by_account",
        "/v1/aggregates/by_acount",
        "/v1/aggregates/by_account/data",
        "/v1/aggregates/by_account/rows",
        "/v1/aggregates/by_account/live",
        "/v1/aggregates/by_currency/rows",
        "/v1/aggregates/by_currency/rows?where=currency:USD",
        "/v1/aggregates/by_currency/rows?filter=currency='USD'",
        "/v1/aggregates/by_currency/explain",
        "/v1/aggregates/gone",
        "/v1/aggregates/gone/data",
        "/v1/aggregates/gone/rows",
        "/v1/aggregates/gone/live",
        "/v1/sources",
        "/v1/sources/postgres",
        "/metrics",
        "/readyz",
    ] {
        look("GET", path, "");
    }
    for body in [
        json!({"aggregate": "by_currency"}),
        json!({"aggregate": "by_account"}),
        json!({"aggregate": "by_currency", "where": {"currency": "USD"}}),
        json!({"aggregate": "by_currency", "pinned": []}),
        json!({"aggregate": "by_currency", "explain": "analyze"}),
        json!({"table": "payments", "measures": ["sum(amount)", "count(*)"]}),
        json!({"table": "payments", "measures": ["sum(amount)"], "group_by": ["currency"]}),
        json!({"table": "payments", "measures": ["sum(amount)"], "group_by": ["account"]}),
        json!({"table": "payments", "measures": ["sum(amount)"], "filter": "currency = 'USD'"}),
        json!({"table": "payments", "measures": ["sum(amount)"], "where": {"currency": "USD"}}),
        json!({"aggregate": "gone"}),
        json!({"queries": [{"aggregate": "gone"}]}),
        json!({"table": "secret_tabel", "measures": ["count(*)"]}),
        json!({"table": "payment", "measures": ["count(*)"]}),
        json!({"queries": [{"aggregate": "by_currency"}, {"aggregate": "by_account"},
                           {"table": "payments", "measures": ["sum(amount)"]}]}),
    ] {
        look("POST", "/v1/query", &body.to_string());
    }
    assert!(answers.get() > 40, "only {} answers", answers.get());

    // What it does see is right, and what it does not see does not exist.
    let body = |reply: Reply| serde_json::from_str::<Value>(&reply.text).unwrap();
    let total = body(look("GET", &format!("{data}?granularity=all"), ""));
    assert_eq!(total["data"][0]["amount"], "15.50", "{total}");
    let total = body(look("POST", "/v1/query", r#"{"table":"payments","measures":["sum(amount) as s"]}"#));
    assert_eq!(total["data"][0]["s"], "15.50", "{total}");
    let listed = body(look("GET", "/v1/aggregates", ""));
    assert_eq!(listed["data"].as_array().unwrap().len(), 1, "{listed}");
    let unseen = body(guarded.ask(Some(&pinned), "GET", "/v1/aggregates/by_account/data", ""));
    let absent = body(guarded.ask(Some(&pinned), "GET", "/v1/aggregates/by_nobody/data", ""));
    assert_eq!(
        unseen["detail"].as_str().unwrap().replace("by_account", "by_nobody"),
        absent["detail"].as_str().unwrap()
    );
    assert_eq!((&unseen["code"], unseen.get("hint")), (&absent["code"], absent.get("hint")));
    let gone = body(look("GET", "/v1/aggregates/gone/data", ""));
    assert_eq!((&gone["code"], gone.get("hint")), (&json!("unknown_aggregate"), None));

    // Nor do columns that its aggregate is not about.
    let about = |column: &str| {
        let question = json!({"table": "payments", "measures": ["sum(amount)"], "filter": format!("{column} = 'x'")});
        let said = body(look("POST", "/v1/query", &question.to_string()));
        ["code", "detail", "hint"].map(|part| said[part].as_str().unwrap_or_default().replace(column, "?"))
    };
    assert_eq!(about("account"), about("accounts"));
    // They have no names then, and the empty one is not theirs.
    assert_eq!(about(r#""""#)[1], about(r#""accounts""#)[1].replace("accounts", ""));
    let daily = json!({"table": "payments", "measures": ["sum(amount)"], "granularity": "day"}).to_string();
    let said = body(look("POST", "/v1/query", &daily));
    assert_eq!((&said["code"], said.get("suggestion")), (&json!("no_aggregate_answers"), None), "{said}");

    // A page of somebody else's answer is not a way in.
    let page = body(guarded.ask(Some(&admin), "GET", &format!("{data}?limit=1&order=-amount"), ""));
    let cursor = page["page"]["next"].as_str().unwrap();
    let reply = look("GET", &format!("{data}?limit=1&order=-amount&cursor={cursor}"), "");
    assert_eq!((reply.status, code(&reply).as_str()), (400, "bad_cursor"));
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Bytes as a cursor is written.
fn base64(bytes: &[u8]) -> String {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8u32).rev().map(move |at| (*byte >> at) & 1)).collect();
    let sextet = |bits: &[u8]| (0..6).fold(0u8, |sextet, at| (sextet << 1) | bits.get(at).copied().unwrap_or(0));
    bits.chunks(6).map(|bits| char::from(ALPHABET[usize::from(sextet(bits))])).collect()
}

fn from_base64(text: &str) -> Vec<u8> {
    let sextet = |c: u8| ALPHABET.iter().position(|known| *known == c).unwrap();
    let bits: Vec<usize> =
        text.bytes().map(sextet).flat_map(|sextet| (0..6u32).rev().map(move |at| (sextet >> at) & 1)).collect();
    bits.chunks_exact(8).map(|bits| bits.iter().fold(0u8, |byte, bit| (byte << 1) | u8::from(*bit == 1))).collect()
}

/// A cursor says where in the index of the rows to go on, and nobody is kept from writing another place there.
#[test]
fn a_cursor_that_was_put_together_leads_a_pinned_token_nowhere() {
    let (guarded, admin) = Guarded::start();
    // Here what the token is pinned to is not what the index begins with.
    let both = json!({"table": "payments", "dimensions": ["account", "currency"], "drill_through": true,
        "measures": [{"name": "n", "count": "*"}], "time": {"column": "at", "granularity": "month"}});
    guarded.until(&admin, "PUT", "/v1/aggregates/by_both", &both.to_string(), 200);
    guarded.database.sql("INSERT INTO payments VALUES (5, '2026-03-05Z', 'EUR', 'ES1', 1)");
    let lsn = guarded.database.value("SELECT pg_current_wal_lsn()");
    let pins = ["--scope", "read", "--pin", "by_currency=currency:EUR", "--pin", "by_both=currency:EUR"];
    let pinned = create(&guarded.tokens, &pins);
    for name in ["by_currency", "by_both"] {
        let path = format!("/v1/aggregates/{name}/data?min_lsn={lsn}&wait=10s");
        guarded.until(&pinned, "GET", &path, "", 200);
    }
    let page = |token: &str, path: &str| {
        let reply = guarded.ask(Some(token), "GET", path, "");
        assert_eq!(reply.status, 200, "{path}: {}", reply.text);
        serde_json::from_str::<Value>(&reply.text).unwrap()
    };
    let cursor_of = |page: &Value| from_base64(page["page"]["next"].as_str().unwrap());
    for (question, ids) in [
        ("by_currency/rows?limit=1", &[5i64, 2, 1][..]),
        ("by_both/rows?limit=1&where=account:ES1", &[5, 1]),
        ("by_both/rows?limit=1", &[5, 2, 1]),
    ] {
        let path = format!("/v1/aggregates/{question}");
        // Of another's rows, in the same index.
        let others = format!("{}?limit=1&where=currency:USD", path.split('?').next().unwrap());
        let others = cursor_of(&page(&admin, &others));
        let own = cursor_of(&page(&pinned, &path));
        let (head, entry) = own.split_at(24);
        let (of_aggregate, seal) = (&entry[..5], &own[own.len() - 32..]);
        let places = [
            [of_aggregate, &[0xFF; 8]].concat(),
            [of_aggregate, &[0xFF; 64]].concat(),
            vec![0xFF; 64],
            others[24..].to_vec(),
            Vec::new(),
        ];
        for place in &places {
            for seal in [&[] as &[u8], &[0; 32], seal] {
                let forged = base64(&[head, place.as_slice(), seal].concat());
                let reply = guarded.ask(Some(&pinned), "GET", &format!("{path}&cursor={forged}"), "");
                let leaked = CANARIES.iter().any(|canary| reply.text.contains(canary));
                assert!(!leaked, "{question} at {place:?}: {}", reply.text);
                assert_eq!((reply.status, code(&reply).as_str()), (400, "bad_cursor"), "{question} at {place:?}");
            }
        }
        // A place of its own, but not from us.
        let mut altered = own.clone();
        *altered.last_mut().unwrap() ^= 1;
        let reply = guarded.ask(Some(&pinned), "GET", &format!("{path}&cursor={}", base64(&altered)), "");
        assert_eq!((reply.status, code(&reply).as_str()), (410, "page_expired"), "{question}: {}", reply.text);
        // As it came it leads to the rest of what the token sees.
        let (mut found, mut at) = (Vec::new(), String::new());
        loop {
            let shown = page(&pinned, &format!("{path}{at}"));
            found.extend(shown["data"].as_array().unwrap().iter().map(|row| row["id"].as_i64().unwrap()));
            let Some(next) = shown["page"]["next"].as_str() else { break };
            assert_eq!(base64(&from_base64(next)), next);
            at = format!("&cursor={next}");
        }
        assert_eq!(found, ids, "{question}");
    }
}

/// The pin is of the second dimension, so a Partition holds everybody's cells, and every entry of the index is looked at.
#[test]
fn what_others_have_is_not_counted_for_a_pinned_token() {
    let (guarded, admin) = Guarded::start();
    let definition = json!({"table": "payments", "dimensions": ["account", "currency"], "drill_through": true,
        "measures": [{"name": "n", "count": "*"}], "time": {"column": "at", "granularity": "month"}});
    guarded.until(&admin, "PUT", "/v1/aggregates/by_both", &definition.to_string(), 200);
    guarded.until(&admin, "GET", "/v1/aggregates/by_both/data", "", 200);
    let pinned = create(&guarded.tokens, &["--scope", "read", "--pin", "by_both=currency:EUR"]);
    guarded.until(&pinned, "GET", "/v1/aggregates", "", 200);
    // The answer as of now, once the source is where it was: its state is part of the tag.
    let data = |month: &str| {
        let lsn = guarded.database.value("SELECT pg_current_wal_lsn()::text");
        let path = format!("/v1/aggregates/by_both/data?group_by=&{month}&min_lsn={lsn}&wait=25s");
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let reply = guarded.until(&pinned, "GET", &path, "", 200);
            let body: Value = serde_json::from_str(&reply.text).unwrap();
            if body["as_of"]["state"] == "live" {
                return (body["data"].clone(), body["stats"]["cells_read"].clone(), reply.headers["etag"].clone());
            }
            assert!(Instant::now() < deadline, "{body}");
        }
    };
    let (january, march) = ("from=2026-01&to=2026-02", "from=2026-03&to=2026-04");
    let (rows, counted, tag) = data(january);
    assert_eq!((&rows[0]["n"], &counted), (&json!(1), &json!(1)), "{rows}");
    let (_, _, tag_of_march) = data(march);

    guarded.database.sql(
        "INSERT INTO payments SELECT 1000 + i, '2026-01-07Z', 'USD', 'usd-canary' || i % 100, 1 FROM generate_series(1, 200001) AS i;
         INSERT INTO payments VALUES (999, '2026-03-07Z', 'USD', 'usd-canary', 777001)",
    );
    assert_eq!(data(january), (rows, counted, tag.clone()));
    assert_eq!(data(march), (json!([]), json!(0), tag_of_march));
    let known = tag.to_str().unwrap();
    let bearer = format!("Bearer {pinned}");
    let path = format!("/v1/aggregates/by_both/data?group_by=&{january}");
    let headers = [("authorization", bearer.as_str()), ("if-none-match", known)];
    assert_eq!(guarded.server.exchange("GET", &path, &headers, b"").unwrap().status, 304);
    let behind = format!("/v1/aggregates/by_both/rows?{january}");
    let reply = guarded.until(&pinned, "GET", &behind, "", 200);
    let body: Value = serde_json::from_str(&reply.text).unwrap();
    assert_eq!(body["data"].as_array().map(Vec::len), Some(1), "{body}");
    // They are as many as are refused to others.
    let reply = guarded.ask(Some(&admin), "GET", &format!("{behind}&where=currency:EUR"), "");
    assert_eq!((reply.status, code(&reply).as_str()), (422, "too_many_rows"), "{}", reply.text);

    guarded.database.sql("INSERT INTO payments VALUES (998, '2026-01-08Z', 'EUR', 'ES1', 5)");
    let (rows, counted, changed) = data(january);
    assert_eq!((&rows[0]["n"], &counted), (&json!(2), &json!(1)), "{rows}");
    assert_ne!(changed, tag);
}

#[test]
fn a_revoked_token_ends_what_it_reads_live() {
    let (guarded, _) = Guarded::start();
    let pinned = create(&guarded.tokens, &["--scope", "read", "--pin", "by_currency=currency:EUR"]);
    guarded.until(&pinned, "GET", "/v1/aggregates", "", 200);
    let ended = AtomicBool::new(false);
    let (database, over) = (&guarded.database, &ended);
    let streamed = std::thread::scope(|scope| {
        // Only a commit makes it look; one is made until it has ended.
        scope.spawn(move || {
            for id in 1_000.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let row = format!("({id}, '2026-03-01Z', 'USD', 'usd-canary', 777001)");
                database.sql(&format!("INSERT INTO payments VALUES {row}"));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let tokens = guarded.tokens.clone();
        let revoked = pinned.clone();
        scope.spawn(move || revoke(&tokens, &revoked));
        let path = "/v1/aggregates/by_currency/live?granularity=all&throttle=20ms";
        let streamed = guarded.ask(Some(&pinned), "GET", path, "");
        ended.store(true, Ordering::Relaxed);
        streamed
    });
    let refused = streamed.status == 401;
    assert!(refused || streamed.text.contains("token_unknown"), "{}", streamed.text);
    assert!(!streamed.text.contains("777001"), "{}", streamed.text);
    assert_eq!(guarded.ask(Some(&pinned), "GET", "/v1/aggregates", "").status, 401);
    // What administrators do is written down, and who did it; never with what.
    let log = guarded.server.log().join("\n");
    assert!(
        log.contains("audit") && log.contains("admin action") && log.contains("/v1/aggregates/by_account"),
        "{log}"
    );
    assert!(!log.contains(pinned.rsplit('_').next().unwrap()));
}

/// A request that is under way when its token is revoked: the position that it waits for is reached afterwards.
#[test]
fn a_revoked_token_hears_nothing_of_what_came_later() {
    let (guarded, _) = Guarded::start();
    let reader = create(&guarded.tokens, &["--scope", "read"]);
    guarded.until(&reader, "GET", "/v1/aggregates", "", 200);
    // Further ahead than what Postgres writes by itself.
    let ahead = guarded.database.value("SELECT (pg_current_wal_insert_lsn() + 1000000)::text");
    let path = format!("/v1/aggregates/by_currency/data?granularity=all&min_lsn={ahead}&wait=25s");
    let asked = Started::send(&guarded, &reader, "GET", &path, "");
    revoke(&guarded.tokens, &reader);
    guarded.until(&reader, "GET", "/v1/aggregates", "", 401);
    guarded.database.sql(
        "SELECT pg_logical_emit_message(false, 'filler', repeat('.', 1500000));
         INSERT INTO payments VALUES (5, '2026-03-01Z', 'EUR', 'ES3', 123456)",
    );
    let answer = asked.finish("");
    assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("token_unknown"), "{answer}");
    assert!(!answer.contains("123456"), "{answer}");
}

/// Every route that takes a body, from the server's own contract: its token is revoked while that is on its way.
#[test]
fn a_revoked_token_changes_nothing_however_slowly_it_speaks() {
    let (guarded, admin) = Guarded::start();
    let slow = create(&guarded.tokens, &["--scope", "admin"]);
    guarded.until(&slow, "GET", "/v1/aggregates", "", 200);
    let contract: Value = serde_json::from_str(&guarded.ask(None, "GET", "/openapi.json", "").text).unwrap();
    let (begun, rest) = (r#"{"table":"payments","#, r#""measures":[{"name":"n","count":"*"}]}"#);
    let mut asked = Vec::new();
    for (path, operations) in contract["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            if operation.get("requestBody").is_some() {
                let path = path.replace("/sources/{name}", "/sources/postgres").replace("{name}", "slow");
                let started = Started::send(&guarded, &slow, &method.to_uppercase(), &path, &format!("{begun}{rest}"));
                asked.push((path, started.begin(begun)));
            }
        }
    }
    assert!(asked.len() >= 6, "{} routes take a body", asked.len());
    revoke(&guarded.tokens, &slow);
    guarded.until(&slow, "GET", "/v1/aggregates", "", 401);
    for (path, started) in asked {
        let answer = started.finish(rest);
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("token_unknown"), "{path}: {answer}");
    }
    assert_eq!(guarded.ask(Some(&admin), "GET", "/v1/aggregates/slow", "").status, 404);
}

/// While the aggregate is filled anew there is no commit to look at; and what came after it would be an answer.
#[test]
fn a_revoked_token_ends_a_live_answer_that_waits() {
    let (guarded, admin) = Guarded::start();
    let pinned = create(&guarded.tokens, &["--scope", "read", "--pin", "by_currency=currency:EUR"]);
    guarded.until(&pinned, "GET", "/v1/aggregates", "", 200);
    let mut live = guarded.live(&pinned, "/v1/aggregates/by_currency/live?granularity=all");
    guarded.hold(&admin, "by_currency");
    revoke(&guarded.tokens, &pinned);
    let mut events = String::new();
    live.read_to_string(&mut events).unwrap();
    let (_, last) = events.rsplit_once("event:").unwrap();
    assert!(last.trim_start().starts_with("error") && last.contains("token_unknown"), "{events}");
    let backfill = guarded.ask(Some(&admin), "GET", "/v1/aggregates/by_currency/backfill", "");
    // Held while its table is read, or while it is filled from what was read.
    let waits = ["paused", "building"].iter().any(|phase| backfill.text.contains(phase));
    assert!(waits, "it did not wait: {}", backfill.text);
}

/// What `register` may do leads to no end of an aggregate that answered: neither while its table is read anew, nor by another
/// one that takes its name.
#[test]
fn who_may_not_drop_does_not_drop_in_another_way() {
    let (guarded, admin) = Guarded::start();
    let register = create(&guarded.tokens, &["--scope", "register"]);
    guarded.until(&register, "GET", "/v1/aggregates", "", 200);
    guarded.hold(&admin, "by_currency");
    let path = "/v1/aggregates/by_currency";
    for token in [&register, &admin] {
        let reply = guarded.ask(Some(token), "POST", &format!("{path}/backfill:cancel"), "");
        assert_eq!((reply.status, code(&reply).as_str()), (409, "nothing_is_built"), "{}", reply.text);
    }
    assert_eq!(guarded.ask(Some(&admin), "POST", &format!("{path}/backfill:resume"), "").status, 200);
    guarded.until(&register, "GET", &format!("{path}/data"), "", 200);

    let put = |token: &str, definition: &Value| {
        let reply = guarded.ask(Some(token), "PUT", &format!("{path}?on_change=rebuild"), &definition.to_string());
        (reply.status, code(&reply))
    };
    let refused = (403, "scope_missing".to_owned());
    let elsewhere = json!({"table": "secret_table", "measures": [{"name": "n", "count": "*"}]});
    assert_eq!(put(&register, &elsewhere), refused);
    assert_eq!(put(&register, &definition("account")), refused);
    let mut refined = definition("currency");
    refined["rollups"] = json!(["quarter", "year"]);
    assert_eq!(put(&register, &refined).0, 202);
    assert_eq!(put(&admin, &definition("account")).0, 202);
}

/// Who is pinned to totals without `drill_through` does not see the other columns of their rows. That is not for who may register
/// to change.
#[test]
fn who_may_not_drop_opens_no_rows_to_who_is_pinned() {
    let (guarded, admin) = Guarded::start();
    let register = create(&guarded.tokens, &["--scope", "register"]);
    let pinned = create(&guarded.tokens, &["--scope", "read", "--pin", "closed=currency:EUR"]);
    let mut closed = definition("currency");
    closed["drill_through"] = json!(false);
    guarded.register(&admin, "closed", &closed);
    guarded.until(&pinned, "GET", "/v1/aggregates/closed/data", "", 200);
    let open = definition("currency").to_string();
    let path = "/v1/aggregates/closed?on_change=rebuild";
    let refused = guarded.ask(Some(&register), "PUT", path, &open);
    assert_eq!((refused.status, code(&refused).as_str()), (403, "scope_missing"), "{}", refused.text);
    assert!(refused.text.contains("drill_through"), "{}", refused.text);
    let rows = guarded.ask(Some(&pinned), "GET", "/v1/aggregates/closed/rows", "");
    assert_eq!((rows.status, code(&rows).as_str()), (422, "no_drill_through"), "{}", rows.text);
    // The other way nothing is shown that was not, and who may drop may open them.
    let path_of_open = "/v1/aggregates/by_currency?on_change=rebuild";
    assert_eq!(guarded.ask(Some(&register), "PUT", path_of_open, &closed.to_string()).status, 202);
    assert_eq!(guarded.ask(Some(&admin), "PUT", path, &open).status, 202);
}

/// An action goes on where nobody waits for its answer: what was done, and by whom, is written down all the same.
#[test]
fn who_hangs_up_leaves_a_trail_and_so_does_who_is_refused() {
    const DROPPED: u64 = 24;
    let (guarded, admin) = Guarded::start();
    let of_currency = definition("currency").to_string();
    for at in 0..DROPPED {
        guarded.until(&admin, "PUT", &format!("/v1/aggregates/passing{at}"), &of_currency, 200);
    }
    for at in 0..DROPPED {
        let asked = Started::send(&guarded, &admin, "DELETE", &format!("/v1/aggregates/passing{at}"), "");
        // Some before it has begun, some while it is under way, some after its answer.
        std::thread::sleep(Duration::from_millis(at));
        drop(asked);
    }
    let reader = create(&guarded.tokens, &["--scope", "read"]);
    guarded.until(&reader, "GET", "/v1/aggregates", "", 200);
    assert_eq!(guarded.ask(Some(&reader), "DELETE", "/v1/aggregates/by_account", "").status, 403);
    assert_eq!(guarded.ask(Some("tmk_00000000_00"), "DELETE", "/v1/aggregates/by_account", "").status, 401);
    assert_eq!(guarded.ask(None, "DELETE", "/v1/aggregates/by_account", "").status, 401);
    // One change after the other: this is the last of them.
    assert_eq!(guarded.ask(Some(&admin), "DELETE", "/v1/aggregates/by_account", "").status, 204);
    let there = guarded.ask(Some(&admin), "GET", "/v1/aggregates", "").text;
    let id = |token: &str| token.split('_').nth(1).unwrap().to_owned();
    let (admin_id, reader_id) = (id(&admin), id(&reader));
    let mut expected: Vec<(String, String, &[&str])> = (0..DROPPED)
        .filter(|at| !there.contains(&format!("\"passing{at}\"")))
        .map(|at| (format!("passing{at}"), admin_id.clone(), &["\"gone\"", "204"][..]))
        .collect();
    assert!(!expected.is_empty(), "none of them is dropped");
    let of_account: [(&str, &[&str]); 4] =
        [(&reader_id, &["403"]), ("unknown", &["401"]), ("nobody", &["401"]), (&admin_id, &["204"])];
    expected.extend(of_account.map(|(token, statuses)| ("by_account".to_owned(), token.to_owned(), statuses)));
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut log = Vec::new();
    while !expected.is_empty() {
        log.extend(guarded.server.log());
        expected.retain(|(name, token, statuses)| {
            let written = |line: &String, status: &str| {
                let path = format!("\"/v1/aggregates/{name}\"");
                let parts = ["audit", "DELETE", &path, &format!("\"{token}\""), &format!("status={status}")];
                parts.iter().all(|part| line.contains(part))
            };
            !statuses.iter().any(|status| log.iter().any(|line| written(line, status)))
        });
        assert!(Instant::now() < deadline, "nobody did {expected:?}: {log:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The number that halts an aggregate may be anybody's.
#[test]
fn the_value_that_halted_an_aggregate_is_not_told_to_who_is_pinned() {
    let (guarded, admin) = Guarded::start();
    let by_day = json!({"table": "secret_table", "measures": [{"name": "entries", "count": "*"}],
        "time": {"column": "n", "codec": "yyyymmdd", "granularity": "day"}});
    guarded.register(&admin, "by_day", &by_day);
    let pinned = create(&guarded.tokens, &["--scope", "read", "--pin", "by_day"]);
    let data = "/v1/aggregates/by_day/data";
    guarded.until(&pinned, "GET", data, "", 200);
    let mut live = guarded.live(&pinned, "/v1/aggregates/by_day/live");
    guarded.database.sql("INSERT INTO secret_table VALUES (1, 20261399)");
    let all = guarded.until(&admin, "GET", data, "", 503);
    assert!(all.text.contains("20261399"), "{}", all.text);
    let of_table = json!({"table": "secret_table", "measures": ["count(*)"]});
    let several = json!({"queries": [{"aggregate": "by_day"}, of_table]});
    let mut heard = String::new();
    live.read_to_string(&mut heard).unwrap();
    let mut all_heard = vec![heard];
    for path in ["", "/data", "/data.csv", "/rows", "/live"] {
        all_heard.push(guarded.ask(Some(&pinned), "GET", &format!("/v1/aggregates/by_day{path}"), "").text);
    }
    for question in [json!({"aggregate": "by_day"}), of_table, several] {
        all_heard.push(guarded.ask(Some(&pinned), "POST", "/v1/query", &question.to_string()).text);
    }
    for heard in all_heard {
        assert!(heard.contains("time_misfit") && !heard.contains("20261399"), "{heard}");
    }
}

struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
}

impl Certificate {
    fn write(directory: &Path, name: &str) -> Certificate {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        let at = |extension: &str| directory.join(format!("{name}.{extension}"));
        std::fs::write(at("crt"), made.cert.pem()).unwrap();
        std::fs::write(at("key"), made.signing_key.serialize_pem()).unwrap();
        Certificate { certificate: at("crt"), key: at("key") }
    }
}

#[test]
fn beyond_loopback_both_are_needed_and_a_renewed_certificate_counts() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (first, second) =
        (Certificate::write(directory.path(), "first"), Certificate::write(directory.path(), "second"));
    let token = create(&at("tokens.json"), &["--scope", "read", "--note", "dashboards"]);
    std::fs::write(at("token"), &token).unwrap();
    std::fs::copy(&first.certificate, at("tls.crt")).unwrap();
    std::fs::copy(&first.key, at("tls.key")).unwrap();

    let serve = |listen: &str, with_tls: bool| {
        let mut command = tidemark();
        command.args(["serve", "--generator", "1", "--listen", listen, "--data"]).arg(at("data"));
        command.arg("--tokens").arg(at("tokens.json"));
        if with_tls {
            command.arg("--tls-certificate").arg(at("tls.crt")).arg("--tls-key").arg(at("tls.key"));
        }
        command
    };
    let refused = serve("0.0.0.0:0", false).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("no TLS"), "{said}");
    assert!(!at("data").exists(), "it began before it refused");

    let mut command = tidemark();
    command.args(["serve", "--generator", "1", "--data"]).arg(at("data")).arg("--tokens").arg(at("tokens.json"));
    command.arg("--tls-certificate").arg(at("tls.crt")).arg("--tls-key").arg(at("tls.key"));
    let server = Server::listen(&mut command);
    let list = |scheme: &str, ca: &Path| {
        let mut command = tidemark();
        command.args(["list", "--server", &format!("{scheme}://{}", server.address()), "--ca-file"]).arg(ca);
        command.arg("--token-file").arg(at("token"));
        command.output().unwrap()
    };
    let works = |output: &std::process::Output| output.status.success();
    assert!(works(&list("https", &first.certificate)));
    assert!(!works(&list("http", &first.certificate)), "it serves in clear");
    assert!(!works(&list("https", &second.certificate)), "anybody's certificate is believed");
    let mut without = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    without.args(["list", "--server", &format!("https://{}", server.address()), "--ca-file"]).arg(&first.certificate);
    let without = without.env_remove("TIDEMARK_TOKEN").output().unwrap();
    assert!(String::from_utf8_lossy(&without.stderr).contains("token_missing"), "{without:?}");

    std::fs::copy(&second.certificate, at("tls.crt")).unwrap();
    std::fs::copy(&second.key, at("tls.key")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !works(&list("https", &second.certificate)) {
        assert!(Instant::now() < deadline, "the renewed certificate is not shown");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Nonsense changes nothing.
    std::fs::write(at("tls.crt"), "nonsense").unwrap();
    server.signal(rustix::process::Signal::HUP);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !server.log().iter().any(|line| line.contains("stays in force")) {
        assert!(Instant::now() < deadline, "nobody says that the certificate is wrong");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(works(&list("https", &second.certificate)));
}

/// A proxy of the environment is somebody on the way: he would read the token, and answer in the server's place.
#[test]
fn a_token_for_this_machine_goes_through_no_proxy() {
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens.json");
    let token = create(&tokens, &["--scope", "read"]);
    let mut command = tidemark();
    command.args(["serve", "--generator", "1", "--data"]).arg(directory.path().join("data"));
    let server = Server::listen(command.arg("--tokens").arg(&tokens));
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxied = format!("http://{}", proxy.local_addr().unwrap());
    let (heard, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in proxy.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4_096];
            let length = stream.read(&mut head).unwrap();
            heard.send(String::from_utf8_lossy(&head[..length]).into_owned()).unwrap();
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 11\r\nConnection: close\r\n\r\n{\"data\":[]}";
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    for variable in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        let mut command = tidemark();
        command.args(["list", "--output", "json", "--server", &format!("http://{}", server.address())]);
        command.env_remove("NO_PROXY").env_remove("no_proxy");
        let output = command.env("TIDEMARK_TOKEN", &token).env(variable, &proxied).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let heard = asked.try_recv().ok();
        assert!(heard.is_none() && output.status.success(), "{variable}: {heard:?} {output:?}");
        assert!(said.contains("\"page\""), "{variable}: {said}");
    }
}

/// What everybody may change is refused; where they may read a secret, the log says so.
#[test]
fn secrets_that_others_may_read_are_told_and_what_they_may_change_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let tls = Certificate::write(directory.path(), "tls");
    let config = directory.path().join("tidemark.toml");
    let text = format!(
        "generator = 1\npostgres = 'postgres://u:pw@127.0.0.1/x'\ndata = {:?}\ntls_certificate = {:?}\ntls_key = {:?}\n",
        directory.path().join("data"),
        tls.certificate,
        tls.key
    );
    std::fs::write(&config, text).unwrap();
    let open_to = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let serve = || {
        let mut command = tidemark();
        // One source in place of the file's two.
        command.args(["serve", "--generator", "1", "--config"]).arg(&config);
        Server::try_listen(&mut command)
    };
    for path in [&config, &tls.key] {
        open_to(&config, 0o600);
        open_to(&tls.key, 0o600);
        open_to(path, 0o666);
        let (said, status) = serve().err().unwrap_or_else(|| panic!("{path:?} is believed"));
        let remedy = format!("remedy: chmod o= {}", path.display());
        assert!(status.code() == Some(2) && said.join("\n").contains(&remedy), "{said:?}");
    }
    for (mode, told) in [(0o644, true), (0o640, false)] {
        open_to(&config, mode);
        open_to(&tls.key, mode);
        let server = serve().unwrap_or_else(|(said, _)| panic!("{said:?}"));
        for path in [&config, &tls.key] {
            let remedy = format!("chmod o= {}", path.display());
            let said = server.said.iter().any(|line| line.contains("WARN") && line.contains(&remedy));
            assert_eq!(said, told, "{mode:o} {path:?}: {:?}", server.said);
        }
    }
}

#[test]
fn tokens_are_listed_without_what_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens.json");
    let token =
        create(&tokens, &["--scope", "read", "--pin", "m=currency:'E''R'", "--expires", "90d", "--note", "finance"]);
    let (id, secret) = token.strip_prefix("tmk_").unwrap().split_once('_').unwrap();
    let list = tidemark().args(["token", "list", "--tokens"]).arg(&tokens).output().unwrap();
    let listed = String::from_utf8(list.stdout).unwrap();
    for part in [id, "read", "m=currency:'E''R'", "finance"] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    assert!(!listed.contains(secret) && !std::fs::read_to_string(&tokens).unwrap().contains(secret));
    for (wrong, words) in [
        (&["--scope", "register", "--pin", "m=currency:EUR"][..], "can only read"),
        (&["--scope", "owner"], "not a scope"),
        (&["--scope", "read", "--pin", "m="], "is not of the form"),
        (&["--scope", "read", "--expires", "soon"], "90d"),
    ] {
        let output = tidemark().args(["token", "create", "--tokens"]).arg(&tokens).args(wrong).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(words), "{wrong:?}: {said}");
    }
    let unknown = tidemark().args(["token", "revoke", "00000000", "--tokens"]).arg(&tokens).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    revoke(&tokens, &token);
    let listed = tidemark().args(["token", "list", "--tokens"]).arg(&tokens).output().unwrap();
    assert!(listed.stdout.is_empty());
}
