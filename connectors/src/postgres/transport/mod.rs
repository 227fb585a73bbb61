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
