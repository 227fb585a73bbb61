//! The questions of dashboards and applications over 100,000 accounts and 24 months, beside the same questions to Postgres
//! over a summary table with the right indexes, and beside a handler that answers as many bytes without thinking.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use connectors::postgres::throwaway::ThrowawayPostgres;
use serde_json::json;
use tokio::task::JoinSet;

use crate::bare::Bare;
use crate::figures::{Latencies, Table};
use crate::http::Http;
use crate::tidemark::Tidemark;
use crate::{Scale, sql};

/// A question to both.
struct Question {
    name: &'static str,
    /// `{a}` is an account.
    path: &'static str,
    /// `$1` is an account.
    statement: &'static str,
    of_account: bool,
}

const QUESTIONS: [Question; 5] = [
    Question {
        name: "point: one account, one month",
        path: "granularity=month&from=2024-07&to=2024-08&where=dst_acct:acct{a}",
        statement: "SELECT amount, n FROM summary WHERE dst_acct = $1 AND month = timestamptz '2024-07-01Z'",
        of_account: true,
    },
    Question {
        name: "series: one account, 24 months",
        path: "granularity=month&from=2024&to=2026&where=dst_acct:acct{a}",
        statement: "SELECT month, amount, n FROM summary WHERE dst_acct = $1 ORDER BY month",
        of_account: true,
    },
    Question {
        name: "roll-up: one account, 2 years",
        path: "granularity=year&from=2024&to=2026&where=dst_acct:acct{a}",
        statement: "SELECT date_trunc('year', month, 'UTC'), sum(amount), sum(n) FROM summary WHERE dst_acct = $1 GROUP BY 1 ORDER BY 1",
        of_account: true,
    },
    Question {
        name: "top 10 of a month",
        path: "granularity=month&from=2024-07&to=2024-08&order=-amount&limit=10",
        statement: "SELECT dst_acct, amount, n FROM summary WHERE month = timestamptz '2024-07-01Z' ORDER BY amount DESC LIMIT 10",
        of_account: false,
    },
    Question {
        name: "top 10 of two years",
        path: "granularity=all&from=2024&to=2026&order=-amount&limit=10",
        statement: "SELECT dst_acct, sum(amount), sum(n) FROM summary GROUP BY 1 ORDER BY 2 DESC LIMIT 10",
        of_account: false,
    },
];

/// Clients that ask at once.
const CLIENTS: u64 = 2;

/// Runs it.
pub async fn measure(postgres: &ThrowawayPostgres, scale: Scale) -> anyhow::Result<Table> {
    let accounts = scale.accounts;
    println!("answers: writing {accounts} accounts and 24 months");
    let admin = sql::connect(&postgres.url()).await?;
    sql::run(&admin, "CREATE DATABASE answers").await?;
    let url = postgres.url_of("answers");
    let client = sql::connect(&url).await?;
    let fill = format!(
        "CREATE TABLE payments (id bigint PRIMARY KEY, dst_acct text, amount numeric(12,2), created_at timestamptz);
         INSERT INTO payments SELECT a * 24 + m, 'acct' || a, ((a * 7919 + m * 104729) % 1000000) / 100.0,
             timestamptz '2024-01-10Z' + m * interval '1 month'
         FROM generate_series(0, {accounts} - 1) a, generate_series(0, 23) m;
         CREATE TABLE summary AS SELECT dst_acct, date_trunc('month', created_at, 'UTC') AS month, sum(amount) AS amount, count(*) AS n
         FROM payments GROUP BY 1, 2;
         ALTER TABLE summary ADD PRIMARY KEY (dst_acct, month);
         CREATE INDEX ON summary (month, amount DESC);
         VACUUM ANALYZE summary;"
    );
    for statement in fill.split_inclusive(';').filter(|statement| !statement.trim().is_empty()) {
        sql::run(&client, statement).await?;
    }
    let directory = tempfile::tempdir()?;
    let tidemark = Tidemark::start(&directory.path().join("data"), &url)?;
    tidemark.ready().await?;
    let definition = json!({"table": "payments", "dimensions": ["dst_acct"], "rollups": ["year"],
        "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
        "time": {"column": "created_at", "granularity": "month"}});
    tidemark.register_as("by_account", &definition).await?;
    let mut table = Table::new(
        &format!("answers over {accounts} accounts and 24 months, {CLIENTS} clients"),
        &[
            "question",
            "tidemark/s",
            "p50",
            "p99",
            "postgres/s",
            "p50",
            "p99",
            "bare/s",
            "p50",
            "p99",
            "of postgres",
            "of bare",
        ],
    );
    let duration = Duration::from_millis(scale.query_milliseconds);
    for question in &QUESTIONS {
        println!("answers: {}", question.name);
        let path = format!("/v1/aggregates/by_account/data?{}", question.path);
        let mut http = tidemark.http().await?;
        let (status, body) = http.exchange(&Http::request(&path.replace("{a}", "5"))).await?;
        ensure!(status == 200, "{path}: {status} {}", String::from_utf8_lossy(body));
        let bare = Bare::start(body.len())?;
        let product = ask_http(tidemark.address, &path, accounts, duration).await?;
        let postgres = ask_postgres(&url, question, accounts, duration).await?;
        let reference = ask_http(bare.address, "/", accounts, duration).await?;
        let row = [
            question.name.to_owned(),
            format!("{:.0}", product.0),
            product.1.quantile(0.5),
            product.1.quantile(0.99),
            format!("{:.0}", postgres.0),
            postgres.1.quantile(0.5),
            postgres.1.quantile(0.99),
            format!("{:.0}", reference.0),
            reference.1.quantile(0.5),
            reference.1.quantile(0.99),
            format!("{:.2}", product.0 / postgres.0),
            format!("{:.2}", product.0 / reference.0),
        ];
        table.row(&row.each_ref().map(String::as_str));
    }
    table.remark(
        "accounts at random; postgres: prepared statements over its socket, a session for each client".to_owned(),
    );
    tidemark.terminate().await?;
    Ok(table)
}

/// A different account each time, without a generator's state.
fn account(client: u64, asked: u64, accounts: u64) -> u64 {
    (client * 7_919 + asked).wrapping_mul(0x9E37_79B9_7F4A_7C15) % accounts
}

async fn ask_http(
    address: SocketAddr,
    path: &str,
    accounts: u64,
    duration: Duration,
) -> anyhow::Result<(f64, Latencies)> {
    let mut asking = JoinSet::new();
    for client in 0..CLIENTS {
        let path = path.to_owned();
        asking.spawn(async move {
            let mut http = Http::connect(address).await?;
            let mut latencies = Vec::new();
            let begin = Instant::now();
            while begin.elapsed() < duration {
                let account = account(client, latencies.len() as u64, accounts);
                let request = Http::request(&path.replace("{a}", &account.to_string()));
                let asked = Instant::now();
                let (status, _) = http.exchange(&request).await?;
                latencies.push(asked.elapsed());
                ensure!(status == 200, "status {status}");
            }
            anyhow::Ok(latencies)
        });
    }
    tally(asking, duration).await
}

async fn ask_postgres(
    url: &str,
    question: &Question,
    accounts: u64,
    duration: Duration,
) -> anyhow::Result<(f64, Latencies)> {
    let mut asking = JoinSet::new();
    for client in 0..CLIENTS {
        let (url, statement, of_account) = (url.to_owned(), question.statement, question.of_account);
        asking.spawn(async move {
            let session = sql::connect(&url).await?;
            let prepared = session.prepare(statement).await.context(statement)?;
            let mut latencies = Vec::new();
            let begin = Instant::now();
            while begin.elapsed() < duration {
                let account = format!("acct{}", account(client, latencies.len() as u64, accounts));
                let asked = Instant::now();
                let rows = match of_account {
                    true => session.query(&prepared, &[&account]).await?,
                    false => session.query(&prepared, &[]).await?,
                };
                latencies.push(asked.elapsed());
                ensure!(!rows.is_empty(), "no rows: {statement}");
            }
            anyhow::Ok(latencies)
        });
    }
    tally(asking, duration).await
}

async fn tally(asking: JoinSet<anyhow::Result<Vec<Duration>>>, duration: Duration) -> anyhow::Result<(f64, Latencies)> {
    let mut latencies = Vec::new();
    for one in asking.join_all().await {
        latencies.extend(one?);
    }
    Ok((latencies.len() as f64 / duration.as_secs_f64(), Latencies::new(latencies)))
}
