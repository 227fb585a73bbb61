//! The accept loop. Our own, because the framework's installs no timer and therefore no limit on how slowly a client may
//! send its head: a few hundred idle sockets would then be a denial of service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tower::Layer;

use super::connections::{ConnectionLimits, Connections};
use super::lingering::Lingering;
use super::refreshing::refresh;
use super::router::router;
use super::sampler;
use super::stalling::Stalling;
use super::state::AppState;
use super::tls::Tls;

/// Longest time for a request's head to arrive, and for a connection to stay idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for which a client may take nothing of what it is sent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for which the rest of a request that has its answer is read and thrown away.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes of a request's head, its path and parameters included, after which no more of it is read.
const MAX_HEAD: usize = 64 << 10;
/// Longest wait for requests under way when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often Snapshots of answers that nobody pages through any more are let go.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// Pause after an accept that failed: the reason is likely to last (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What keeps others from reading and changing what they should not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    /// Everyone is held to tokens.
    pub tokens: bool,
    /// Nobody on the way reads along.
    pub tls: bool,
}

impl Protection {
    /// What is missing, in words; `None` where nothing is.
    #[must_use]
    pub fn missing(self) -> Option<&'static str> {
        match (self.tokens, self.tls) {
            (true, true) => None,
            (true, false) => Some("TLS"),
            (false, true) => Some("tokens"),
            (false, false) => Some("tokens and TLS"),
        }
    }
}

/// The address would open the server to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{address} is not a loopback address, and there are no {missing}: whoever reaches it, or listens on the way, could read \
     and drop every aggregate\n  remedy: give --tokens FILE (made with `tidemark token create`), --tls-certificate FILE and \
     --tls-key FILE, or listen on 127.0.0.1, or accept the risk with --insecure-listen"
)]
pub struct ListenError {
    address: SocketAddr,
    missing: &'static str,
}

/// Refuses addresses that others reach without protection, unless that is wanted.
pub fn check_listen_address(address: SocketAddr, protection: Protection, insecure: bool) -> Result<(), ListenError> {
    match protection.missing() {
        Some(missing) if !address.ip().is_loopback() && !insecure => Err(ListenError { address, missing }),
        _ => Ok(()),
    }
}

/// How connections are taken.
#[derive(Clone, Debug, Default)]
pub struct Front {
    /// Encryption, where there is.
    pub tls: Option<Tls>,
    /// How many connections there may be.
    pub limits: ConnectionLimits,
}

/// Serves until `shutdown`, then lets the requests under way finish.
pub async fn serve(listener: TcpListener, state: AppState, front: Front, shutdown: CancellationToken) {
    let kept = [Arc::clone(&state.pages), Arc::clone(&state.moments)];
    let state = AppState { stopping: shutdown.clone(), ..state };
    let forgetting = async move {
        loop {
            tokio::time::sleep(FORGET_EVERY).await;
            kept.iter().for_each(|pages| pages.forget_old());
        }
    };
    let sampling = sampler::run(state.clone());
    tokio::select! {
        () = refresh(state.gate.clone(), front.tls.clone()) => {}
        () = serve_router(listener, router(state), front, shutdown) => {}
        () = sampling => {}
        () = forgetting => {}
    }
}

async fn serve_router(listener: TcpListener, router: Router, front: Front, shutdown: CancellationToken) {
    let connections = Connections::new(front.limits);
    // One that made room is open until its task has seen that; a burst must not have more files than this wait for it.
    let sockets = Arc::new(Semaphore::new(front.limits.total.saturating_add(front.limits.total / 8).saturating_add(1)));
    let graceful = GracefulShutdown::new();
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD);
    loop {
        let accepting = async { (Arc::clone(&sockets).acquire_owned().await, listener.accept().await) };
        let (socket, accepted) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accepting => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Closed at once, so that the client hears of it.
        let Some(place) = connections.admit(address.ip()) else {
            tracing::debug!(%address, "a connection was turned away: all places are busy");
            continue;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let service = TowerToHyperService::new(Extension(Arc::clone(&place)).layer(router.clone()));
        let (builder, watcher) = (builder.clone(), graceful.watcher());
        let (tls, stopping) = (front.tls.clone(), shutdown.clone());
        tokio::spawn(async move {
            let served = async {
                let Some(stream) = greeted(stream, tls, stopping).await else { return };
                let stream = TokioIo::new(Lingering::new(Stalling::new(stream, WRITE_TIMEOUT), LINGER));
                if let Err(error) = watcher.watch(builder.serve_connection(stream, service).into_owned()).await {
                    tracing::debug!(%error, "a connection ended early");
                }
            };
            tokio::select! {
                () = served => {}
                () = place.closing().cancelled() => tracing::debug!("an idle connection made room"),
            }
            drop(socket);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still under way when the server stopped");
    }
}

/// The connection as it is read and written, once both sides agree how.
async fn greeted(
    stream: TcpStream,
    tls: Option<Tls>,
    stopping: CancellationToken,
) -> Option<Either<TcpStream, TlsStream<TcpStream>>> {
    let Some(tls) = tls else { return Some(Either::Left(stream)) };
    let greeting = tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream));
    match stopping.run_until_cancelled(greeting).await {
        Some(Ok(Ok(stream))) => Some(Either::Right(stream)),
        Some(Ok(Err(error))) => {
            tracing::debug!(%error, "a client did not agree on TLS");
            None
        }
        Some(Err(_)) | None => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use axum::body::Bytes;
    use axum::extract::DefaultBodyLimit;
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn only_loopback_is_listened_on_unasked() {
        for (address, tokens, tls, insecure, missing) in [
            ("127.0.0.1:7171", false, false, false, None),
            ("[::1]:7171", false, false, false, None),
            ("0.0.0.0:7171", false, false, false, Some("no tokens and TLS")),
            ("0.0.0.0:7171", true, false, false, Some("no TLS")),
            ("10.0.0.1:7171", false, true, false, Some("no tokens")),
            ("0.0.0.0:7171", true, true, false, None),
            ("0.0.0.0:7171", false, false, true, None),
        ] {
            let checked = check_listen_address(address.parse().unwrap(), Protection { tokens, tls }, insecure);
            let said = checked.err().map(|error| error.to_string());
            assert_eq!(said.is_some(), missing.is_some(), "{address}: {said:?}");
            assert!(said.unwrap_or_default().contains(missing.unwrap_or_default()), "{address}");
        }
    }

    /// A request that is under way when the server stops is answered; a connection that is idle does not hold it up.
    #[tokio::test]
    async fn stops_after_the_requests_under_way() {
        let slow = || async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            "done"
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let app = Router::new().route("/slow", get(slow));
        let server = tokio::spawn(serve_router(listener, app, Front::default(), shutdown.clone()));
        let _idle = TcpStream::connect(address).await.unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        shutdown.cancel();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
        tokio::time::timeout(Duration::from_secs(3), server).await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn who_sends_too_much_hears_so() {
        const TOO_MUCH: usize = 16 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let app = Router::new().route("/", post(|_: Bytes| async {})).layer(DefaultBodyLimit::max(1_000));
        let server = tokio::spawn(serve_router(listener, app, Front::default(), shutdown.clone()));
        let mut client = TcpStream::connect(address).await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {TOO_MUCH}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&vec![b' '; TOO_MUCH]).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(3), server).await.unwrap().unwrap();
    }
}
