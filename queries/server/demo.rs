//! `tidemark demo`: a private Postgres with a payments table under a live workload, Tidemark over it, three aggregates,
//! the page, with a story to try what exact means. Everything is in temporary directories and gone at the end.
//!
//! Where no Postgres is installed the generator makes the payments instead.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use connectors::postgres::throwaway::{Stop, ThrowawayPostgres};
use connectors::postgres::workload::Workload;
use connectors::{ConnectorConfig, GeneratorConfig, PostgresConfig};
use engine::engine::EngineConfig;
use engine::materialization::Definition;
use engine::{Engine, pipeline};
use queries::dashboard::story::Teller;
use queries::http::{Front, Protection, check_listen_address};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cli::LogFormat;
use crate::failure::Failure;
use crate::logging;
use crate::recount::PostgresRecount;
use crate::serve::{Running, bind, runtime, serve_engine, state_of, stop_on_signal};
use crate::story::{Kill, Storyteller};

/// Payments that exist before Tidemark comes.
const HISTORY_ROWS: i64 = 200_000;
/// Sessions that write at the same time.
const SESSIONS: u64 = 4;

/// How long Postgres stays away, so that the page is seen to say so.
const OUTAGE: Duration = Duration::from_secs(2);
/// Until a session of the workload tries again.
const RECONNECT: Duration = Duration::from_millis(200);

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
            "where":"status = 'settled'","drill_through":true}"#,
    ),
    (
        "payments_by_status",
        r#"{"table":"public.payments","measures":[{"name":"amount","sum":"amount"},{"name":"n","count":"*"}],
            "dimensions":["currency","status"]}"#,
    ),
];

/// Runs until Ctrl-C.
pub fn run(listen: SocketAddr) -> Result<(), Failure> {
    let logged = std::env::var_os("RUST_LOG").is_some();
    let _exporting = logged.then(|| logging::start(LogFormat::Pretty)).transpose()?;
    pipeline::abort_on_engine_panic();
    check_listen_address(listen, Protection::default(), false).map_err(|error| Failure::Usage(error.to_string()))?;
    let listener = runtime()?.block_on(async { bind(listen).await.map(drop) });
    listener?;
    say("starting a private Postgres ...");
    // Started by this thread, which lives to the end: the kernel stops the server with it.
    let mut postgres = match ThrowawayPostgres::start(&[]) {
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
    runtime()?.block_on(demonstrate(listen, postgres.as_mut(), data.path()))?;
    say("stopped; the private Postgres and all data are removed");
    Ok(())
}

async fn demonstrate(
    listen: SocketAddr,
    mut postgres: Option<&mut ThrowawayPostgres>,
    data: &std::path::Path,
) -> Result<(), Failure> {
    let listener = bind(listen).await?;
    // The port may have been left to the system.
    let listen = listener.local_addr().unwrap_or(listen);
    let shutdown = stop_on_signal().map_err(|error| Failure::NotNow(format!("{error:#}")))?;
    let mut sessions = JoinSet::new();
    let mut upstream = None;
    let (kill, mut kills) = mpsc::channel(1);
    let mut teller: Option<Arc<dyn Teller>> = None;
    let (connector, merchant) = match &postgres {
        None => {
            let generator = GeneratorConfig { snapshot_rows: HISTORY_ROWS as u64, ..GeneratorConfig::default() };
            (ConnectorConfig::Generator(generator), "dst_acct")
        }
        Some(postgres) => {
            say(&format!("creating the payments table with {HISTORY_ROWS} payments of the last two years ..."));
            let failed = |error: &dyn std::fmt::Display| Failure::Failed(error.to_string());
            let workload = Workload::create(&postgres.url(), HISTORY_ROWS).await.map_err(|error| failed(&error))?;
            for seed in 0..SESSIONS {
                sessions.spawn(live_on(workload.clone(), seed));
            }
            let tables = ["public.payments".to_owned()];
            let config =
                PostgresConfig::new(&postgres.url(), &tables, "tidemark_demo").map_err(|error| failed(&error))?;
            upstream = Some(PostgresRecount(config.clone()));
            teller = Some(Arc::new(Storyteller::new(listen, workload, kill)));
            (ConnectorConfig::Postgres(config), "merchant")
        }
    };
    let source_name = connector.name();
    let running = Running::start(&EngineConfig::new(data), connector).await?;
    let mut state = state_of(&running, source_name)?;
    if let Some(upstream) = upstream {
        state = state.with_upstream(Arc::new(upstream));
    }
    if let Some(teller) = teller {
        state = state.with_teller(teller);
    }
    // By other threads: this one is held while it restarts Postgres.
    let mut serving = tokio::spawn(serve_engine(listener, state, Front::default(), shutdown.clone()));
    let demo = async {
        for (name, definition) in AGGREGATES {
            register(&running.engine, name, &definition.replace("\"merchant\"", &format!("\"{merchant}\""))).await?;
        }
        say(&format!(
            "\nopen http://{listen}/ and watch the totals move; Ctrl-C ends the demo and removes everything\n"
        ));
        say(&format!("  curl 'http://{listen}/v1/aggregates/payments_by_month/data?granularity=year'\n"));
        tokio::select! {
            () = narrate(&running.engine) => {}
            () = kill_when_asked(&mut kills, postgres.as_deref_mut()) => {}
        }
        Ok(())
    };
    let outcome = tokio::select! {
        outcome = demo => outcome,
        _ = &mut serving => Ok(()),
    };
    shutdown.cancel();
    sessions.shutdown().await;
    running.stop().await;
    outcome
}

/// A session's life, again whenever its server comes back.
async fn live_on(workload: Workload, seed: u64) {
    loop {
        let _ = workload.live(seed).await;
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Stops Postgres as a power cut would, and starts it again: by the thread that this is polled on, which is the one that
/// started it and lives to the end.
async fn kill_when_asked(kills: &mut mpsc::Receiver<Kill>, mut postgres: Option<&mut ThrowawayPostgres>) {
    while let (Some(done), Some(postgres)) = (kills.recv().await, postgres.as_deref_mut()) {
        postgres.stop(Stop::Immediate);
        tokio::time::sleep(OUTAGE).await;
        let _ = done.send(postgres.launch().map_err(|error| error.to_string()));
    }
    // Nobody asks any more: the demo goes on until it is ended.
    std::future::pending().await
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
