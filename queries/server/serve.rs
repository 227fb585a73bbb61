//! `tidemark serve`: starts the engine with its source, serves HTTP over it, and stops both in that order.

use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use connectors::events::{Inlet, PostError, Receipt};
use connectors::{ConnectorConfig, EventsConfig, GeneratorConfig, PostgresConfig, ReplayConfig};
use engine::Engine;
use engine::engine::EngineConfig;
use engine::pipeline::abort_on_engine_panic;
use engine::shell;
use engine::source::{ResumePoint, SourceError};
use engine::store::StoreMemory;
use engine::store::format::claim;
use queries::access::Gate;
use queries::http::{AppState, Front, Hosts, Protection, Tls, serve};
use queries::inlet::{EventInlet, NotTaken, Taken};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::config::{Secret, ServeConfig, SourceConfig};
use crate::failure::Failure;
use crate::recount::PostgresRecount;
use crate::{logging, open_files, supervisor};

/// Runs until SIGTERM or SIGINT.
pub fn run(config: ServeConfig) -> Result<(), Failure> {
    // To the very end: the last spans are sent when it is dropped.
    let _exporting = logging::start(config.log)?;
    abort_on_engine_panic();
    if let Some(said) = &config.warning {
        tracing::warn!("{said}");
    }
    let (gate, tls) = guards(&config)?;
    let runtime = runtime()?;
    runtime.block_on(async {
        let listener = bind(config.listen).await?;
        let shutdown = stop_on_signal().map_err(|error| Failure::NotNow(format!("{error:#}")))?;
        let Started { running, source_name, inlet, upstream } = start(&config).await?;
        let mut state = state_of(&running, source_name)?
            .with_gate(gate)
            .with_hosts(Hosts::new(config.hosts.clone()))
            .with_verification(config.verify_every);
        if let Some(inlet) = inlet {
            state = state.with_inlet(Arc::new(Posted(inlet)));
        }
        if let Some(upstream) = upstream {
            state = state.with_upstream(Arc::new(upstream));
        }
        serve_engine(listener, state, Front { tls, limits: open_files::fit(config.limits) }, shutdown).await;
        running.stop().await;
        Ok(())
    })
}

/// Fails where `run` would for what the configuration says, with nothing started and nothing made.
pub fn rehearse(config: &ServeConfig) -> Result<(), Failure> {
    guards(config)?;
    match &config.source {
        SourceConfig::Postgres { url, tables, no_row_image } => {
            postgres_config(config, url, tables, no_row_image, "tidemark").map(drop)
        }
        _ => Ok(()),
    }
}

/// Who is let in, and over what.
fn guards(config: &ServeConfig) -> Result<(Gate, Option<Tls>), Failure> {
    let gate = config.tokens.clone().map_or(Ok(Gate::default()), Gate::of_file).map_err(|error| {
        let path = config.tokens.as_deref().filter(|path| !path.exists());
        Failure::Usage(path.map_or(error.clone(), |path| no_tokens(&error, path)))
    })?;
    let tls = config.tls.clone().map(|(certificate, key)| Tls::open(certificate, key));
    Ok((gate, tls.transpose().map_err(Failure::Usage)?))
}

fn no_tokens(error: &str, path: &Path) -> String {
    let path = shell::word(&path.display().to_string());
    format!("{error}\n  remedy: tidemark token create --tokens {path} --scope admin")
}

/// The runtime that HTTP and the connectors share.
pub fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::NotNow(format!("the runtime cannot be started: {error}")))
}

/// What handlers share, over a running engine.
pub fn state_of(running: &Running, source_name: &str) -> Result<AppState, Failure> {
    AppState::new(running.engine.clone(), source_name)
        .map_err(|error| Failure::NotNow(format!("no threads can be started: {error}")))
}

/// An engine and the connector that feeds it.
pub struct Running {
    /// The engine.
    pub engine: Engine,
    connector: JoinHandle<()>,
}

impl Running {
    /// Starts the engine over its data directory, and the connector where the engine stands. A new data directory has its
    /// source checked first, so that a mistake is told at once; one in use goes on even while its source is away.
    pub async fn start(engine: &EngineConfig, connector: ConnectorConfig) -> Result<Running, Failure> {
        let (engine, context) = Engine::start(engine)?;
        if matches!(context.resume, ResumePoint::Fresh)
            && let Err(error) = connectors::preflight(&connector).await
        {
            engine.stop().await;
            return Err(error.into());
        }
        // Of the highest level, so that it is there whatever RUST_LOG leaves.
        let source = tracing::error_span!("source", source = connector.name());
        Ok(Running { engine, connector: tokio::spawn(connectors::run(connector, context).instrument(source)) })
    }

    /// Commits what was received, makes it durable, acknowledges it and ends.
    pub async fn stop(self) {
        self.engine.stop().await;
        // The connector ends with the engine's channel; a moment lets it tell upstream what is durable.
        if tokio::time::timeout(CONNECTOR_STOP, self.connector).await.is_err() {
            tracing::warn!("the connector did not end in time");
        }
    }
}

/// How long a connector may take to say goodbye.
const CONNECTOR_STOP: Duration = Duration::from_secs(5);

/// What the HTTP face posts events to.
struct Posted(Inlet);

impl EventInlet for Posted {
    fn post(
        &self,
        body: Vec<u8>,
        snapshot_done: bool,
    ) -> Pin<Box<dyn Future<Output = Result<Taken, NotTaken>> + Send + '_>> {
        Box::pin(async move { self.0.post(body, snapshot_done).await.map(taken).map_err(not_taken) })
    }
}

fn taken(receipt: Receipt) -> Taken {
    let Receipt { accepted, duplicates, ignored, waiting, lsn } = receipt;
    Taken { accepted, duplicates, ignored, waiting, lsn }
}

fn not_taken(error: PostError) -> NotTaken {
    match error {
        PostError::Busy => NotTaken::Busy(error.to_string()),
        PostError::Stopped => NotTaken::Stopped,
        PostError::Refused { receipt, line, refusal } => NotTaken::Refused {
            taken: taken(receipt),
            line: line as u64,
            code: refusal.code.to_owned(),
            pointer: refusal.pointer,
            reason: refusal.reason,
            remedy: refusal.remedy,
        },
    }
}

/// What was started, and what the HTTP face has to know of it.
struct Started {
    running: Running,
    /// The source's name in `/v1/sources`.
    source_name: &'static str,
    /// Where events are posted to it.
    inlet: Option<Inlet>,
    /// Where it can be asked for its own totals.
    upstream: Option<PostgresRecount>,
}

/// Starts what the configuration says.
async fn start(config: &ServeConfig) -> Result<Started, Failure> {
    let (mut inlet, mut upstream) = (None, None);
    let connector = match &config.source {
        SourceConfig::Postgres { url, tables, no_row_image } => {
            // What cannot work leaves no data directory behind.
            let named = |slot: &str| postgres_config(config, url, tables, no_row_image, slot);
            named("tidemark")?;
            let postgres = named(&format!("tidemark_{}", claim(&config.data)?))?;
            upstream = Some(PostgresRecount(postgres.clone()));
            ConnectorConfig::Postgres(postgres)
        }
        SourceConfig::Generator { seed } => {
            ConnectorConfig::Generator(GeneratorConfig { seed: *seed, ..GeneratorConfig::default() })
        }
        SourceConfig::Replay { file } => ConnectorConfig::Replay(ReplayConfig { file: file.clone() }),
        SourceConfig::Events { tables } => {
            let (posted_to, outlet) = connectors::events::inlet();
            inlet = Some(posted_to);
            let directory = config.data.join("events");
            ConnectorConfig::Events(EventsConfig { tables: tables.clone(), directory, outlet })
        }
    };
    let source_name = connector.name();
    let running = Running::start(&engine_config(config), connector).await?;
    Ok(Started { running, source_name, inlet, upstream })
}

/// The source as it is told to be, behind a slot of this name.
fn postgres_config(
    config: &ServeConfig,
    url: &Secret,
    tables: &[String],
    no_row_image: &[String],
    slot: &str,
) -> Result<PostgresConfig, Failure> {
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let told = || {
        let postgres = PostgresConfig::new(url.reveal(), tables, slot)?
            .with_row_images_off(no_row_image)?
            .with_failover(config.failover_slot)
            .with_backups(&config.backup_dir)
            .with_max_transaction_bytes(size(config.max_transaction_bytes))
            .with_message_limit(size(config.max_row_bytes));
        match config.snapshot_readers {
            Some(readers) => postgres.with_snapshot_readers(readers),
            None => Ok(postgres),
        }
    };
    told().map_err(|error: SourceError| Failure::Usage(error.to_string()))
}

/// Half of the memory for blocks, a quarter for cells, the rest for what is being written.
fn engine_config(config: &ServeConfig) -> EngineConfig {
    /// Memory that a cell takes, about.
    const CELL_BYTES: u64 = 200;
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    EngineConfig {
        data: config.data.clone(),
        backups: config.backup_dir.clone(),
        min_free_bytes: config.min_free_bytes,
        workers: config.workers.get(),
        cells_in_memory: size(config.memory_bytes / 4 / CELL_BYTES),
        scrub_cells_per_s: config.scrub_cells_per_s,
        max_aggregates: config.max_aggregates,
        store_memory: StoreMemory {
            block_cache: size(config.memory_bytes / 2),
            write_buffer: size((config.memory_bytes / 8).clamp(4 << 20, 64 << 20)),
        },
    }
}

/// Serves HTTP over a running engine until `shutdown`.
pub async fn serve_engine(listener: TcpListener, state: AppState, front: Front, shutdown: CancellationToken) {
    if let Ok(address) = listener.local_addr() {
        let protection = Protection { tokens: state.asks_for_tokens(), tls: front.tls.is_some() };
        let scheme = if protection.tls { "https" } else { "http" };
        tracing::info!("serving on {scheme}://{address}");
        supervisor::ready(&format!("serving on {scheme}://{address}"));
        if let Some(missing) = protection.missing().filter(|_| !address.ip().is_loopback()) {
            tracing::warn!("{address} is reachable by others, without {missing}");
        }
    }
    serve(listener, state, front, shutdown).await;
}

/// Connections that wait to be accepted. With the usual few hundred a burst of them costs those who come a second and more.
const BACKLOG: u32 = 4_096;

/// Listens, or says why not.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| {
        let said = format!(
            "cannot listen on {address}: {error}\n  remedy: stop what listens there, or name another address with --listen"
        );
        // Privileges do not come by themselves; a process goes, and an address comes with its network.
        if error.kind() == ErrorKind::PermissionDenied { Failure::Usage(said) } else { Failure::NotNow(said) }
    })
}

/// A token that SIGTERM or SIGINT cancels; a second one ends the process at once.
pub fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be listened for")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be listened for")?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        for times in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if times == 0 {
                tracing::info!("stopping");
                supervisor::stopping();
                token.cancel();
            } else {
                std::process::exit(1);
            }
        }
    });
    Ok(shutdown)
}
