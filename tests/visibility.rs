//! What a reader may demand of time: its own writes at once, and all pages of an answer at one moment.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::sql;

/// Rounds of write and read, over all writers.
const ROUNDS: u64 = 10_000;
const WRITERS: u64 = 4;
/// Groups that are paged through.
const GROUPS: i64 = 1_000_000;

#[test]
fn who_names_the_position_of_a_write_sees_it() {
    let database = Database::start(
        &[],
        "CREATE TABLE payments (id bigserial PRIMARY KEY, acct int NOT NULL, amount bigint NOT NULL)",
    );
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["public.payments"], &[]);
    let measures = json!([{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}]);
    server.register("by_acct", &json!({"table": "payments", "measures": measures, "dimensions": ["acct"]}));
    let (address, url) = (server.address(), database.url());
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let url = url.clone();
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let client = runtime.block_on(sql::connect(&url));
                let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
                let (mut rows, mut amount) = (0u64, 0i64);
                for round in 0..ROUNDS / WRITERS {
                    let change = i64::try_from(round % 7).unwrap() - 3;
                    // Sometimes two rows, sometimes the last one again, which moves nothing but the sum.
                    let statement = match round % 3 {
                        0 => format!("INSERT INTO payments (acct, amount) VALUES ({writer}, {change}), ({writer}, 1)"),
                        1 => format!("INSERT INTO payments (acct, amount) VALUES ({writer}, {change})"),
                        _ => format!("UPDATE payments SET amount = amount + {change} WHERE id = (SELECT max(id) FROM payments WHERE acct = {writer})"),
                    };
                    rows += [2, 1, 0][(round % 3) as usize];
                    amount += change + i64::from(round % 3 == 0);
                    runtime.block_on(sql::run(&client, &statement));
                    let lsn = runtime.block_on(sql::value(&client, "SELECT pg_current_wal_lsn()"));
                    let path = format!("/v1/aggregates/by_acct/data?where=acct:{writer}&min_lsn={lsn}&wait=20s");
                    let mut answer = agent.get(format!("http://{address}{path}")).call().unwrap();
                    let text = answer.body_mut().read_to_string().unwrap();
                    let body: Value = serde_json::from_str(&text).unwrap();
                    let row = &body["data"][0];
                    let seen = (row["n"].as_u64(), row["amount"].as_str().map(str::to_owned));
                    assert_eq!(seen, (Some(rows), Some(amount.to_string())), "writer {writer}, round {round}: {body}");
                }
            });
        }
    });
}

#[test]
fn all_pages_show_one_moment() {
    let database = Database::start(
        &[],
        &format!(
            "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
             INSERT INTO accounts SELECT i, 1000 FROM generate_series(1, {GROUPS}) i;"
        ),
    );
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["public.accounts"], &[]);
    let definition =
        json!({"table": "accounts", "measures": [{"name": "balance", "sum": "balance"}], "dimensions": ["id"]});
    server.register("balances", &definition);
    let (done, url) = (AtomicBool::new(false), database.url());
    std::thread::scope(|scope| {
        // Also where an assertion fails: the scope waits for its threads.
        let ends = SetOnDrop(&done);
        let transfers = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let client = runtime.block_on(sql::connect(&url));
            let mut count = 0i64;
            while !done.load(Ordering::Relaxed) {
                let (from, to) = (1 + count * 7_919 % GROUPS, 1 + count * 104_729 % GROUPS);
                let transfer = format!(
                    "BEGIN; UPDATE accounts SET balance = balance - 5 WHERE id = {from}; UPDATE accounts SET balance = balance + 5 WHERE id = {to}; COMMIT"
                );
                runtime.block_on(sql::run(&client, &transfer));
                count += 1;
            }
            count
        });
        let first = server.get_ok("/v1/aggregates/balances/data?limit=1");
        let lsn = first["as_of"]["lsn"].as_str().unwrap().to_owned();
        let large = follow(&server, &first, 100_000);
        let small = follow(&server, &first, 9_973);
        drop(ends);
        println!(
            "{} transfers while {} groups were paged through twice, at {lsn}",
            transfers.join().unwrap(),
            large.len()
        );
        assert_eq!(i64::try_from(large.len()).unwrap(), GROUPS);
        assert!(large.windows(2).all(|pair| pair[0].0 < pair[1].0), "a group comes twice, or out of order");
        assert_eq!(large.iter().map(|row| row.1).sum::<i64>(), GROUPS * 1_000, "half a transfer is shown");
        assert!(large == small, "pages of another size show another moment");
    });
    // A moment that nobody asked about for a while is not kept: to be told, not answered with another one.
    let first = server.get_ok("/v1/aggregates/balances/data?limit=1&order=-balance");
    assert!(first["page"]["next"].is_string());
}

/// Tells that it is over.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// All rows from a first page on, checking that each page is of the same position.
fn follow(server: &Server, first: &Value, limit: usize) -> Vec<(i64, i64)> {
    let mut rows = Vec::new();
    let mut page = first.clone();
    loop {
        assert_eq!(page["as_of"]["lsn"], first["as_of"]["lsn"]);
        rows.extend(
            page["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|row| (row["id"].as_i64().unwrap(), row["balance"].as_str().unwrap().parse::<i64>().unwrap())),
        );
        let Some(next) = page["page"]["next"].as_str() else { return rows };
        page = server.get_ok(&format!("/v1/aggregates/balances/data?limit={limit}&cursor={next}"));
    }
}
