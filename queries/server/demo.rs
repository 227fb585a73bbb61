//! `tidemark demo`: a private Postgres with a payments table under a live workload, Tidemark over it, three aggregates,
//! the page. Everything is in temporary directories and gone at the end.
//!
//! Where no Postgres is installed the generator makes the payments instead.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use connectors::postgres::throwaway::ThrowawayPostgres;
use connectors::postgres::workload::Workload;
use connectors::{ConnectorConfig, GeneratorConfig, PostgresConfig};
use engine::engine::EngineConfig;
use engine::materialization::Definition;
use engine::{Engine, pipeline};
use queries::http::{AppState, check_listen_address};
use tokio::task::JoinSet;

use crate::cli::LogFormat;
use crate::failure::Failure;
use crate::logging;
use crate::serve::{Running, bind, runtime, serve_engine, stop_on_signal};

/// Payments that exist before Tidemark comes.
const HISTORY_ROWS: i64 = 200_000;
/// Sessions that write at the same time.
const SESSIONS: u64 = 4;

/// Each with the table's time and merchant column filled in.
const AGGREGATES: [(&str, &str); 3] = [
    (
        "payments_by_month",
        r#"{"table":"public.payments","measures":[{"name":"amount","sum":"amount"},{"name":"n","count":"*"}],
            "dimensions":["currency"],"time":{"column":"created_at","granularity":"month"},"rollups":["year"],
            "where":"status = 'settled'"}"#,
    ),
    (
        "payments_daily",
        r#"{"table":"public.payments","measures":[{"name":"amount","sum":"amount"},{"name":"n","count":"*"}],
            "dimensions":["currency","merchant"],"time":{"column":"created_at","granularity":"day"},"rollups":["month","year"],
            "where":"status = 'settled'"}"#,
    ),
    (
        "payments_by_status",
        r#"{"table":"public.payments","measures":[{"name":"amount","sum":"amount"},{"name":"n","count":"*"}],
            "dimensions":["currency","status"]}"#,
    ),
];

/// Runs until Ctrl-C.
pub fn run(listen: SocketAddr) -> Result<(), Failure> {
    if std::env::var_os("RUST_LOG").is_some() {
        logging::start(LogFormat::Pretty);
    }
    pipeline::abort_on_engine_panic();
    check_listen_address(listen, false).map_err(|error| Failure::Usage(error.to_string()))?;
    let listener = runtime()?.block_on(async { bind(listen).await.map(drop) });
    listener?;
    say("starting a private Postgres ...");
    // Started by this thread, which lives to the end: the kernel stops the server with it.
    let postgres = match ThrowawayPostgres::start(&[]) {
        Ok(postgres) => Some(postgres),
        Err(error) if error.code == "no_postgres" => {
            say(&format!("{}; payments come from the generator instead", error.message));
            None
        }
        Err(error) => return Err(Failure::Usage(error.to_string())),
    };
    let data = tempfile::Builder::new()
        .prefix("tidemark-demo-")
        .tempdir()
        .map_err(|error| Failure::Usage(format!("no temporary directory: {error}")))?;
    runtime()?.block_on(demonstrate(listen, postgres.as_ref(), data.path()))?;
    say("stopped; the private Postgres and all data are removed");
    Ok(())
}

async fn demonstrate(
    listen: SocketAddr,
    postgres: Option<&ThrowawayPostgres>,
    data: &std::path::Path,
) -> Result<(), Failure> {
    let listener = bind(listen).await?;
    let shutdown = stop_on_signal().map_err(|error| Failure::Usage(format!("{error:#}")))?;
    let mut sessions = JoinSet::new();
    let (connector, source_name, merchant) = match postgres {
        None => {
            let generator = GeneratorConfig { snapshot_rows: HISTORY_ROWS as u64, ..GeneratorConfig::default() };
            (ConnectorConfig::Generator(generator), "generator", "dst_acct")
        }
        Some(postgres) => {
            say(&format!("creating the payments table with {HISTORY_ROWS} payments of the last two years ..."));
            let failed = |error: &dyn std::fmt::Display| Failure::Failed(error.to_string());
            let workload = Workload::create(&postgres.url(), HISTORY_ROWS).await.map_err(|error| failed(&error))?;
            for seed in 0..SESSIONS {
                let workload = workload.clone();
                sessions.spawn(async move { workload.live(seed).await });
            }
            let tables = ["public.payments".to_owned()];
            let config =
                PostgresConfig::new(&postgres.url(), &tables, "tidemark_demo").map_err(|error| failed(&error))?;
            (ConnectorConfig::Postgres(config), "postgres", "merchant")
        }
    };
    let running = Running::start(&EngineConfig::new(data), connector).await?;
    let demo = async {
        for (name, definition) in AGGREGATES {
            register(&running.engine, name, &definition.replace("\"merchant\"", &format!("\"{merchant}\""))).await?;
        }
        say(&format!(
            "\nopen http://{listen}/ and watch the totals move; Ctrl-C ends the demo and removes everything\n"
        ));
        say(&format!("  curl 'http://{listen}/v1/aggregates/payments_by_month/data?granularity=year'\n"));
        narrate(&running.engine).await;
        Ok(())
    };
    let outcome = tokio::select! {
        outcome = demo => outcome,
        () = serve_engine(listener, AppState::new(running.engine.clone(), source_name), shutdown.clone()) => Ok(()),
    };
    sessions.shutdown().await;
    running.stop().await;
    outcome
}

async fn register(engine: &Engine, name: &str, definition: &str) -> Result<(), Failure> {
    let definition: Definition =
        serde_json::from_str(definition).map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
    engine.register(name, definition).await.map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
    say(&format!("registered {name}"));
    Ok(())
}

/// A line every second, until dropped.
async fn narrate(engine: &Engine) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        second.tick().await;
        let status = engine.status();
        let counters = status.counters;
        let line = match &status.ready {
            Ok(()) => format!(
                "at {}  lag {} ms  {} payments read, then {} transactions: {} inserts, {} updates, {} deletes",
                status.applied_lsn,
                status.lag_ms,
                counters.snapshot_rows,
                counters.transactions,
                counters.inserts,
                counters.updates,
                counters.deletes
            ),
            Err(reason) => format!("{}: {}", reason.code, reason.message),
        };
        say(&line);
    }
}

/// Nobody is left to hear where standard output is closed.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
