//! A connected stream to Postgres, over TCP or a unix socket, encrypted or not: for our own replication sessions and,
//! through [`Established`], for those of the SQL client. So there is one place where TLS is negotiated.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::tls::{ChannelBinding, TlsConnect};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::config::PostgresConfig;
use super::super::error::{Failure, bad_url};
use super::certificate;
use super::tls::{self, TlsMode, failure_of};

/// Silence after which the kernel asks whether the other side is still there, how often, and when it gives up.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// What was sent and is not confirmed within this time breaks the connection.
const UNCONFIRMED: Duration = Duration::from_secs(60);

/// Every row is a TLS record of its own; the socket below is read in larger pieces.
const ENCRYPTED_AT_ONCE: usize = 64 << 10;

/// The request for TLS, and the answers to it.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];
const TLS_FOLLOWS: u8 = b'S';
const NO_TLS: u8 = b'N';

#[derive(Debug)]
pub(in super::super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls {
        stream: Box<TlsStream<BufReader<TcpStream>>>,
        /// What a password exchange can be bound to.
        end_point: Option<Vec<u8>>,
    },
}

impl Socket {
    /// Connects, and encrypts as the settings say. Unix sockets never are.
    pub(in super::super) async fn open(config: &PostgresConfig) -> Result<Socket, Failure> {
        let with = format!("{}:{}", config.host, config.port);
        let lost = |error: io::Error| Failure::Transient(format!("cannot connect to {with}: {error}"));
        if config.host.starts_with('/') {
            let path = format!("{}/.s.PGSQL.{}", config.host, config.port);
            return UnixStream::connect(path).await.map(Socket::Unix).map_err(lost);
        }
        let mut tcp = TcpStream::connect((config.host.as_str(), config.port)).await.map_err(lost)?;
        tcp.set_nodelay(true).map_err(lost)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_AFTER)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES);
        SockRef::from(&tcp).set_tcp_keepalive(&keepalive).map_err(lost)?;
        SockRef::from(&tcp).set_tcp_user_timeout(Some(UNCONFIRMED)).map_err(lost)?;
        if config.tls.mode() == TlsMode::Disable {
            return Ok(Socket::Tcp(tcp));
        }
        let client = config.tls.client_config()?;
        tcp.write_all(&SSL_REQUEST).await.map_err(lost)?;
        // Not a byte more: what came in clear must not count as encrypted.
        match tcp.read_u8().await.map_err(lost)? {
            TLS_FOLLOWS => {}
            NO_TLS if config.tls.mode() == TlsMode::Prefer => return Ok(Socket::Tcp(tcp)),
            NO_TLS => return Err(tls::no_tls(&with).into()),
            _ => return Err(Failure::Transient(format!("{with} did not answer the request for TLS"))),
        }
        let name =
            ServerName::try_from(config.host.clone()).map_err(|_| bad_url("its host is no name and no address"))?;
        let tcp = BufReader::with_capacity(ENCRYPTED_AT_ONCE, tcp);
        let stream = TlsConnector::from(Arc::new(client))
            .connect(name, tcp)
            .await
            .map_err(|error| failure_of(&error, &with).map_or_else(|| lost(error), Failure::Definite))?;
        let (_, session) = stream.get_ref();
        let end_point = session.peer_certificates().and_then(|chain| certificate::end_point(chain.first()?));
        Ok(Socket::Tls { stream: Box::new(stream), end_point })
    }

    /// What a password exchange over this stream can be bound to.
    pub(super) fn end_point(&self) -> Option<&[u8]> {
        match self {
            Socket::Tls { end_point, .. } => end_point.as_deref(),
            _ => None,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(context, into),
            Socket::Unix(stream) => Pin::new(stream).poll_read(context, into),
            Socket::Tls { stream, .. } => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Socket::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Socket::Tls { stream, .. } => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(context),
            Socket::Tls { stream, .. } => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Socket::Tls { stream, .. } => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// Hands the SQL client a stream that is encrypted already: to be used with `SslMode::Require` and
/// `SslNegotiation::Direct`, so that the client asks for nothing of its own.
pub(in super::super) struct Established;

impl TlsConnect<Socket> for Established {
    type Stream = Socket;
    type Error = Infallible;
    type Future = Ready<Result<Socket, Infallible>>;

    fn connect(self, stream: Socket) -> Self::Future {
        ready(Ok(stream))
    }
}

impl tokio_postgres::tls::TlsStream for Socket {
    fn channel_binding(&self) -> ChannelBinding {
        match self.end_point() {
            Some(end_point) => ChannelBinding::tls_server_end_point(end_point.to_vec()),
            None => ChannelBinding::none(),
        }
    }
}
