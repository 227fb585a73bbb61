//! Our end of the replication protocol: one session from its connecting to its end.
//!
//! Written by hand for two reasons. The row's way from the socket to the assembler has no task, no channel and no
//! allocation in it; and what upstream must hear goes out from wherever we wait, also while nobody takes rows: the
//! session writes its status in [`ReplicationClient::receive`] and in [`ReplicationClient::attend`], and one of the two is
//! always being waited for. A walsender that waits for us to read does read what we tell it.

mod certificate;
mod copying;
mod event;
mod feedback;
mod frames;
mod socket;
mod startup;
mod tls;
mod wire;

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use engine::change::Lsn;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;
use tokio::time::{Instant, Sleep, sleep_until};

pub(super) use copying::{Copied, CopySession};
pub(super) use event::Event;
pub(super) use frames::Span;
pub(super) use socket::{Established, Socket};
pub(super) use tls::{TlsSettings, failure_of};

use super::config::{PostgresConfig, quote_identifier};
use super::error::{Failure, server_said};
use event::Copied as Heard;
use feedback::Feedback;
use frames::FrameError;
use startup::Purpose;
use wire::Wire;

/// Answers of a conversation are small.
const CONVERSATION_LIMIT: usize = 16 << 20;

const COPY_DATA: u8 = b'd';
const COPY_BOTH: u8 = b'W';
const COPY_DONE: u8 = b'c';
const COMMAND_COMPLETE: u8 = b'C';
const ERROR: u8 = b'E';
const NOTICE: u8 = b'N';
const PARAMETER: u8 = b'S';

/// Where a session reads from, and what it may tell upstream as durable.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Positions {
    pub(super) start: Lsn,
    pub(super) durable: Lsn,
}

/// What a session says about the server it reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerIdentity {
    pub(super) system: String,
    pub(super) timeline: u32,
    /// End of the flushed log.
    pub(super) flushed: Lsn,
}

/// One row of an answer, as text.
pub(super) type QueryRow = Vec<Option<Bytes>>;

/// A replication session.
pub(super) struct ReplicationClient {
    wire: Wire,
    feedback: Feedback,
    /// Wakes us for the next status.
    timer: Pin<Box<Sleep>>,
    max_message_bytes: usize,
}

impl ReplicationClient {
    /// Connects and authenticates.
    pub(super) async fn connect(config: &PostgresConfig, options: &str, name: &str) -> Result<Self, Failure> {
        let with = format!("{}:{}", config.host, config.port);
        let mut wire = Wire::new(Socket::open(config).await?, CONVERSATION_LIMIT, with);
        startup::start_up(&mut wire, config, Purpose::Replication, options, name).await?;
        let now = Instant::now();
        Ok(ReplicationClient {
            wire,
            feedback: Feedback::new(Lsn::ZERO, Lsn::ZERO, now),
            timer: Box::pin(sleep_until(now)),
            max_message_bytes: config.max_message_bytes,
        })
    }

    /// Runs one command; its rows as text. An exported snapshot dies with the next one.
    pub(super) async fn simple_query(&mut self, sql: &str) -> Result<Vec<QueryRow>, Failure> {
        query(&mut self.wire, sql).await
    }

    /// Who the server is, and where its log ends.
    pub(super) async fn identify_system(&mut self) -> Result<ServerIdentity, Failure> {
        let rows = self.simple_query("IDENTIFY_SYSTEM").await?;
        let field = |index: usize| std::str::from_utf8(rows.first()?.get(index)?.as_deref()?).ok();
        let identity = || {
            Some(ServerIdentity {
                system: field(0)?.to_owned(),
                timeline: field(1)?.parse().ok()?,
                flushed: field(2)?.parse().ok()?,
            })
        };
        identity().ok_or_else(|| self.wire.not_understood("no identity"))
    }

    /// The history file of a timeline above the first.
    pub(super) async fn timeline_history(&mut self, timeline: u32) -> Result<String, Failure> {
        let rows = self.simple_query(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let content = rows.first().and_then(|row| row.get(1)).and_then(Option::as_deref);
        let content = content.ok_or_else(|| self.wire.not_understood("no history"))?;
        Ok(String::from_utf8_lossy(content).into_owned())
    }

    /// Starts the stream; from here on only [`Self::receive`] and what belongs to it.
    pub(super) async fn start(&mut self, slot: &str, publication: &str, positions: Positions) -> Result<(), Failure> {
        let publication = quote_identifier(publication).replace('\'', "''");
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {} (proto_version '1', publication_names '{publication}', binary 'true')",
            quote_identifier(slot),
            positions.start
        );
        frontend::query(&command, self.wire.out()).map_err(|error| Failure::Transient(error.to_string()))?;
        self.wire.send().await?;
        loop {
            let frame = self.wire.frame().await?;
            match frame.tag {
                COPY_BOTH => break,
                NOTICE | PARAMETER => {}
                ERROR => match self.wire.parse(frame)? {
                    Message::ErrorResponse(error) => return Err(server_said(&error)),
                    _ => return Err(self.wire.not_understood("an error that is none")),
                },
                _ => return Err(self.wire.not_understood("something else than a stream")),
            }
        }
        self.wire.set_limit(self.max_message_bytes);
        self.feedback = Feedback::new(positions.start, positions.durable, Instant::now());
        Ok(())
    }

    /// Waits for the next event, and tells upstream meanwhile what it must hear. Nothing is lost where the caller stops
    /// waiting. What [`Self::bytes`] gave before is void.
    pub(super) async fn receive(&mut self) -> Result<Event, Failure> {
        loop {
            if let Some(event) = self.next_read()? {
                return Ok(event);
            }
            poll_fn(|context| {
                if let Poll::Ready(failure) = self.poll_feedback(context) {
                    return Poll::Ready(Err(failure));
                }
                self.wire.poll_fill(context)
            })
            .await?;
        }
    }

    /// The next event of those that have been read from the socket already.
    pub(super) fn next_read(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            let frame = match self.wire.next_read() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(None),
                Err(FrameError::TooLarge { bytes, head }) => {
                    return Ok(Some(event::too_large(self.wire.bytes(head), bytes, self.wire.limit())));
                }
                Err(FrameError::Malformed) => return Err(self.wire.not_understood("a message without a length")),
            };
            match frame.tag {
                COPY_DATA => match event::read(self.wire.bytes(frame.body), frame.body) {
                    Some(Heard::Event(event)) => {
                        if let Event::Commit { end_lsn, .. } = event {
                            self.feedback.receive(end_lsn);
                        }
                        return Ok(Some(event));
                    }
                    Some(Heard::KeepAlive { position, time_us, reply }) => {
                        self.feedback.receive(position);
                        if reply {
                            self.feedback.ask(position);
                        }
                        return Ok(Some(Event::KeepAlive { position, time_us }));
                    }
                    None => return Err(self.wire.not_understood("a part of the stream")),
                },
                COPY_DONE | COMMAND_COMPLETE => {
                    return Err(Failure::Transient("Postgres ended the stream".to_owned()));
                }
                NOTICE | PARAMETER => {}
                _ => {
                    return Err(match self.wire.parse(frame)? {
                        Message::ErrorResponse(error) => server_said(&error),
                        _ => self.wire.not_understood("something else than a stream"),
                    });
                }
            }
        }
    }

    /// The bytes of an event's body; good until the next [`Self::receive`].
    pub(super) fn bytes(&self, body: Span) -> &[u8] {
        self.wire.bytes(body)
    }

    /// Goes on telling upstream what it must hear, without reading. Ends only when that fails.
    pub(super) async fn attend(&mut self) -> Failure {
        poll_fn(|context| self.poll_feedback(context)).await
    }

    /// What upstream is told as durable from now on: never back, and never more than it sent.
    pub(super) fn acknowledge(&mut self, durable: Lsn) {
        self.feedback.make_durable(durable);
    }

    fn poll_feedback(&mut self, context: &mut Context<'_>) -> Poll<Failure> {
        loop {
            match self.wire.poll_send(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(failure)) => return Poll::Ready(failure),
                // Upstream takes nothing at the moment: what waits is enough.
                Poll::Pending => return Poll::Pending,
            }
            let (due, now) = (self.feedback.due(), Instant::now());
            if due > now {
                if self.timer.deadline() != due {
                    self.timer.as_mut().reset(due);
                }
                if self.timer.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
            }
            self.feedback.write(self.wire.out(), now);
        }
    }
}

/// Says good-bye where the socket takes it at once: an end without it is an error in upstream's log.
impl Drop for ReplicationClient {
    fn drop(&mut self) {
        frontend::terminate(self.wire.out());
        let _ = self.wire.poll_send(&mut Context::from_waker(Waker::noop()));
    }
}

/// Runs one command; its rows as text.
async fn query(wire: &mut Wire, sql: &str) -> Result<Vec<QueryRow>, Failure> {
    frontend::query(sql, wire.out()).map_err(|error| Failure::Transient(error.to_string()))?;
    wire.send().await?;
    let (mut rows, mut refused) = (Vec::new(), None);
    loop {
        match wire.message().await {
            Ok(Message::DataRow(row)) => {
                rows.push(columns(&row).ok_or_else(|| wire.not_understood("a row that is none"))?);
            }
            Ok(Message::ErrorResponse(error)) => refused = Some(server_said(&error)),
            Ok(Message::ReadyForQuery(_)) => return refused.map_or(Ok(rows), Err),
            Ok(_) => {}
            Err(failure) => return Err(refused.unwrap_or(failure)),
        }
    }
}

fn columns(row: &DataRowBody) -> Option<QueryRow> {
    let bytes = row.buffer_bytes();
    row.ranges().map(|range| Ok(range.map(|range| bytes.slice(range)))).collect().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const AUTHENTICATED: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
    const SCRAM_OFFERED: &[u8] = b"R\0\0\0\x17\0\0\0\x0ASCRAM-SHA-256\0\0";
    const STREAM: &[u8] = b"W\0\0\0\x07\0\0\0";

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[tag], &(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
    }

    fn keep_alive(position: u64, reply: bool) -> Vec<u8> {
        frame(b'd', &[b"k", &position.to_be_bytes()[..], &7u64.to_be_bytes(), &[u8::from(reply)]].concat())
    }

    /// A client of a server that is played by the test.
    async fn connect(listener: &TcpListener) -> Result<ReplicationClient, Failure> {
        let url = format!("postgres://u:p@{}/d?sslmode=disable", listener.local_addr().unwrap());
        let config = PostgresConfig::new(&url, &["t".to_owned()], "s").unwrap();
        ReplicationClient::connect(&config, "", "test").await
    }

    async fn listen() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.unwrap()
    }

    /// Says these things, each after having heard something.
    async fn say(listener: &TcpListener, lines: &[&[u8]]) -> TcpStream {
        let (mut socket, _) = listener.accept().await.unwrap();
        for line in lines {
            let mut heard = [0; 4096];
            if socket.read(&mut heard).await.unwrap_or_default() == 0 || socket.write_all(line).await.is_err() {
                break;
            }
        }
        socket
    }

    /// Started at 100, with nothing but 50 durable.
    async fn streaming(listener: &TcpListener) -> (ReplicationClient, TcpStream) {
        let client = async {
            let mut client = connect(listener).await.unwrap();
            client.start("s", "p", Positions { start: Lsn(100), durable: Lsn(50) }).await.unwrap();
            client
        };
        tokio::join!(client, say(listener, &[AUTHENTICATED, STREAM]))
    }

    /// Received, flushed and applied as the next status says, and how long it took.
    async fn status(socket: &mut TcpStream) -> ([u64; 3], Duration) {
        let began = Instant::now();
        let mut status = [0; 39];
        socket.read_exact(&mut status).await.unwrap();
        assert_eq!(status[..6], *b"d\0\0\0\x26r");
        ([6, 14, 22].map(|at| u64::from_be_bytes(status[at..at + 8].try_into().unwrap())), began.elapsed())
    }

    #[tokio::test]
    async fn upstream_hears_what_it_must_whether_we_read_or_not() {
        let listener = listen().await;
        let (mut client, mut server) = streaming(&listener).await;
        let silence = Duration::from_millis(150);
        // Reading: a question is answered at once.
        let asked = async {
            assert_eq!(status(&mut server).await.0, [100, 50, 50]);
            server.write_all(&keep_alive(500, true)).await.unwrap();
            let (told, took) = status(&mut server).await;
            assert_eq!(told, [500, 50, 50]);
            assert!(took < silence, "{took:?}");
        };
        tokio::select! {
            () = asked => {}
            () = async { while client.receive().await.is_ok() {} } => panic!("the session ended"),
        }
        // Not reading: what it waited for is told at once, more of the same within a quarter of a second, and then a
        // sign of life every second.
        for (durable, told, least, most) in [
            (500, 500, Duration::ZERO, silence),
            (u64::MAX, 500, Duration::from_millis(800), Duration::from_millis(1_400)),
        ] {
            client.acknowledge(Lsn(durable));
            let (positions, took) = tokio::select! {
                told = status(&mut server) => told,
                failure = client.attend() => panic!("{failure:?}"),
            };
            assert_eq!(positions, [500, told, told]);
            assert!(took >= least && took < most, "{took:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_does_not_know_the_password_is_not_believed() {
        let listener = listen().await;
        let (client, _server) = tokio::join!(connect(&listener), say(&listener, &[SCRAM_OFFERED, AUTHENTICATED]));
        let Err(Failure::Transient(reason)) = client else { panic!("it was believed") };
        assert!(reason.contains("something else than a challenge"), "{reason}");
    }

    #[tokio::test]
    async fn what_a_server_says_is_sorted_by_what_to_do() {
        let listener = listen().await;
        let refused = frame(b'E', b"SFATAL\0C28P01\0Mno\xFF\0\0");
        let refused: [&[u8]; 1] = [&refused];
        let (client, _) = tokio::join!(connect(&listener), say(&listener, &refused));
        let Err(Failure::Definite(error)) = client else { panic!("let in") };
        assert_eq!(error.code, "authentication_failed");
        let md5 = frame(b'R', b"\0\0\0\x05salt");
        let md5: [&[u8]; 1] = [&md5];
        let (client, _) = tokio::join!(connect(&listener), say(&listener, &md5));
        let Err(Failure::Definite(error)) = client else { panic!("let in") };
        assert!(error.message.contains("MD5") && error.remedy.contains("scram-sha-256"), "{error}");
        let (mut client, mut server) = streaming(&listener).await;
        server.write_all(&frame(b'E', b"SFATAL\0C57P01\0Mgoing\0\0")).await.unwrap();
        let Err(Failure::Transient(reason)) = client.receive().await else { panic!("still there") };
        assert!(reason.contains("going"), "{reason}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Whatever comes, and however it is cut: an event or a failure, and an end.
        #[test]
        fn any_bytes_are_a_session_or_refused(
            tags in prop::collection::vec(prop::sample::select(b"RSKZEDCTNWdcA\0".to_vec()), 0..6),
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 6),
            kinds in prop::collection::vec(prop::sample::select(b"wk\0".to_vec()), 6),
            whole in any::<bool>(),
            begun in 0usize..3,
        ) {
            let mut bytes = Vec::new();
            for ((tag, mut body), kind) in tags.into_iter().zip(bodies).zip(kinds) {
                if tag == b'd' {
                    body.insert(0, kind);
                }
                bytes.extend(frame(tag, &body));
            }
            if !whole {
                bytes.truncate(bytes.len() / 2);
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let ended = runtime.block_on(async {
                let listener = listen().await;
                let client = async {
                    let mut client = connect(&listener).await?;
                    client.start("s", "p", Positions::default()).await?;
                    loop {
                        client.receive().await?;
                    }
                };
                // After having let us in, or not; after having begun to stream, or not.
                let mut script: Vec<&[u8]> = [AUTHENTICATED, STREAM].into_iter().take(begun).collect();
                script.push(&bytes);
                let server = async { say(&listener, &script).await.shutdown().await };
                let both = async { tokio::join!(client, server).0 };
                tokio::time::timeout(Duration::from_secs(5), both).await
            });
            let ended: Result<(), Failure> = ended.expect("it ends");
            prop_assert!(ended.is_err());
        }
    }
}
