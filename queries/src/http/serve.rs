//! The accept loop. Our own, because the framework's installs no timer and therefore no limit on how slowly a client may
//! send its head: a few hundred idle sockets would then be a denial of service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::router::router;
use super::state::AppState;

/// Connections at once; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 2_048;
/// Longest time for a request's head to arrive, and for a connection to stay idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for requests under way when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an accept that failed: the reason is likely to last (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The address would open the server to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is not a loopback address, and this version has neither tokens nor TLS: anybody who reaches it could read and \
     drop every aggregate. Listen on 127.0.0.1, or accept the risk with --insecure-listen"
)]
pub struct ListenError(pub SocketAddr);

/// Refuses addresses that others reach, unless that is wanted.
pub fn check_listen_address(address: SocketAddr, insecure: bool) -> Result<(), ListenError> {
    if address.ip().is_loopback() || insecure { Ok(()) } else { Err(ListenError(address)) }
}

/// Serves until `shutdown`, then lets the requests under way finish.
pub async fn serve(listener: TcpListener, state: AppState, shutdown: CancellationToken) {
    serve_router(listener, router(state), shutdown).await;
}

async fn serve_router(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    loop {
        // The place is taken before the connection, so that those we cannot serve stay in the kernel's queue.
        let (place, accepted) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let connection =
            builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone())).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still under way when the server stopped");
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> (Option<tokio::sync::OwnedSemaphorePermit>, std::io::Result<TcpStream>) {
    let place = Arc::clone(connections).acquire_owned().await.ok();
    (place, listener.accept().await.map(|(stream, _)| stream))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn only_loopback_is_listened_on_unasked() {
        for (address, insecure, ok) in [
            ("127.0.0.1:7171", false, true),
            ("[::1]:7171", false, true),
            ("0.0.0.0:7171", false, false),
            ("10.0.0.1:7171", false, false),
            ("0.0.0.0:7171", true, true),
        ] {
            assert_eq!(check_listen_address(address.parse().unwrap(), insecure).is_ok(), ok, "{address}");
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
        let server = tokio::spawn(serve_router(listener, app, shutdown.clone()));
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
}
