//! `tidemark serve`: starts the engine with its source, serves HTTP over it, and stops both in that order.

use std::net::SocketAddr;

use anyhow::Context;
use engine::Engine;
use queries::http::{AppState, serve};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::ServeConfig;
use crate::failure::Failure;
use crate::logging;

/// Runs until SIGTERM or SIGINT.
pub fn run(config: ServeConfig) -> Result<(), Failure> {
    logging::start(config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Usage(format!("the runtime cannot be started: {error}")))?;
    runtime.block_on(async {
        let listener = bind(config.listen).await?;
        let (engine, source_name) = start_engine(&config)?;
        let shutdown = stop_on_signal().map_err(|error| Failure::Usage(format!("{error:#}")))?;
        serve_engine(listener, engine, source_name, shutdown).await;
        Ok(())
    })
}

/// Starts the engine with the configured connector. The second part is the name of its source in `/v1/sources`.
fn start_engine(config: &ServeConfig) -> Result<(Engine, &'static str), Failure> {
    Err(Failure::Usage(format!("this build cannot follow {:?} yet", config.source)))
}

/// Serves HTTP over a running engine until `shutdown`.
pub async fn serve_engine(listener: TcpListener, engine: Engine, source_name: &str, shutdown: CancellationToken) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!("serving on http://{address}");
        if !address.ip().is_loopback() {
            tracing::warn!("{address} is reachable by others, without tokens or TLS");
        }
    }
    serve(listener, AppState::new(engine, source_name), shutdown).await;
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| Failure::Usage(format!("cannot listen on {address}: {error}")))
}

/// A token that SIGTERM or SIGINT cancels; a second one ends the process at once.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
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
                token.cancel();
            } else {
                std::process::exit(1);
            }
        }
    });
    Ok(shutdown)
}
