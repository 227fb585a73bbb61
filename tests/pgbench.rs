//! pgbench, which none of us wrote: its history and accounts summed per branch equal its own branch balances.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::process::{Command, Stdio};

use engine::Snapshot;
use engine::change::Value;
use engine::materialization::{Bucket, group_key};
use serde_json::json;
use tokio_postgres::Client;

use crate::support::embedded::Embedded;
use crate::support::sql;

/// The first measure per branch, over all buckets of a level.
fn per_branch(snapshot: &Snapshot, name: &str, level: usize) -> BTreeMap<i64, i128> {
    let aggregate = &snapshot.catalog().aggregates[name];
    let mut sums = BTreeMap::new();
    snapshot
        .scan(aggregate, level, Bucket(i64::MIN), Bucket(i64::MAX), |_, group, cell| {
            let Some(Value::Int(branch)) = group_key::decode(group).unwrap().first().cloned() else {
                panic!("no branch")
            };
            let shown = aggregate.plan.measures[0].function.finish(&cell.accumulators[0]).to_string();
            *sums.entry(branch).or_default() += shown.parse::<i128>().unwrap();
            ControlFlow::Continue(())
        })
        .unwrap();
    sums
}

async fn balances(client: &Client, query: &str) -> BTreeMap<i64, i128> {
    let number = |text: &Option<String>| text.as_ref().unwrap().parse::<i128>().unwrap();
    sql::rows(client, query).await.iter().map(|row| (number(&row[0]) as i64, number(&row[1]))).collect()
}

#[test]
fn totals_equal_the_branch_balances() {
    let seconds = std::env::var("TIDEMARK_PGBENCH_SECONDS").unwrap_or_else(|_| "15".to_owned());
    let server = sql::postgres(&[]);
    let pgbench = |arguments: &[&str]| {
        let program = server.program("pgbench");
        let mut command = Command::new(program);
        command
            .args(["-h", server.socket_directory().to_str().unwrap(), "-U", "postgres"])
            .args(arguments)
            .arg("postgres");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let initialised = pgbench(&["-i", "-q", "-s", "10"]).output().unwrap();
    assert!(initialised.status.success(), "{}", String::from_utf8_lossy(&initialised.stderr));
    let data = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let client = sql::connect(&server.url()).await;
        // pgbench names its columns when it inserts, so a key of our own does not disturb it.
        sql::run(&client, "ALTER TABLE pgbench_history ADD hid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY").await;
        let tables = ["pgbench_history", "pgbench_accounts"];
        let tidemark = Embedded::start(data.path(), &server.url(), &tables, "pgbench", 1).await;
        let history = json!({
            "table": "pgbench_history", "measures": [{"name": "delta", "sum": "delta"}, {"name": "n", "count": "*"}],
            "dimensions": ["bid"], "time": {"column": "mtime", "granularity": "minute"}, "rollups": ["all"],
        });
        tidemark.register("history", serde_json::from_value(history).unwrap()).await;
        // pgbench truncates its history at the start of a run, with Tidemark following.
        let run = pgbench(&["-c", "4", "-j", "2", "-T", &seconds]).spawn().unwrap();
        let accounts = json!({
            "table": "pgbench_accounts", "measures": [{"name": "abalance", "sum": "abalance"}, {"name": "n", "count": "*"}],
            "dimensions": ["bid"],
        });
        tidemark.register("accounts", serde_json::from_value(accounts).unwrap()).await;
        let output = tokio::task::spawn_blocking(move || run.wait_with_output().unwrap()).await.unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
        let lsn = sql::current_lsn(&client).await;
        tidemark.live("accounts", lsn).await;
        let snapshot = tidemark.live("history", lsn).await;
        let expected = balances(&client, "SELECT bid, bbalance FROM pgbench_branches").await;
        assert_eq!(expected.len(), 10);
        assert!(expected.values().any(|balance| *balance != 0));
        assert_eq!(per_branch(&snapshot, "history", 0), expected, "history per minute");
        assert_eq!(per_branch(&snapshot, "history", 1), expected, "history in all");
        // pgbench draws branch and account independently: accounts equal the branches in all, not one by one.
        let accounts = per_branch(&snapshot, "accounts", 0);
        assert_eq!(accounts, balances(&client, "SELECT bid, sum(abalance) FROM pgbench_accounts GROUP BY bid").await);
        assert_eq!(accounts.values().sum::<i128>(), expected.values().sum::<i128>(), "accounts in all");
        snapshot.scrub().unwrap();
        let count = sql::value(&client, "SELECT count(*) FROM pgbench_history").await;
        println!("{count} pgbench transactions at {lsn}, equal; {}", printed.lines().find(|l| l.contains("tps")).unwrap_or_default());
        drop(snapshot);
        tidemark.stop().await;
    });
}
