//! A session that copies rows out: an ordinary one, whose rows are looked at where they lie in the socket's buffer.
//!
//! The SQL client hands every row over as a message of its own, counted and shared between two tasks; that is as much
//! work as reading the row.

use std::future::poll_fn;
use std::task::{Context, Waker};

use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::super::config::PostgresConfig;
use super::super::error::{Failure, server_said};
use super::frames::{FrameError, Span};
use super::socket::Socket;
use super::wire::Wire;
use super::{
    COMMAND_COMPLETE, CONVERSATION_LIMIT, COPY_DATA, COPY_DONE, ERROR, NOTICE, PARAMETER, Purpose, query, startup,
};

const COPY_OUT: u8 = b'H';

/// An ordinary session.
pub(in super::super) struct CopySession {
    wire: Wire,
    max_row_bytes: usize,
}

/// What a COPY has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Copied {
    /// Some bytes, usually one row's; see [`CopySession::bytes`].
    Bytes(Span),
    /// All were copied.
    End,
    /// Nothing until more is read: [`CopySession::fill`].
    Nothing,
}

impl CopySession {
    /// Connects and authenticates.
    pub(in super::super) async fn connect(config: &PostgresConfig, options: &str, name: &str) -> Result<Self, Failure> {
        let with = format!("{}:{}", config.host, config.port);
        let mut wire = Wire::new(Socket::open(config).await?, CONVERSATION_LIMIT, with);
        startup::start_up(&mut wire, config, Purpose::Sql, options, name).await?;
        Ok(CopySession { wire, max_row_bytes: config.max_message_bytes })
    }

    /// Runs statements without a result.
    pub(in super::super) async fn execute(&mut self, sql: &str) -> Result<(), Failure> {
        query(&mut self.wire, sql).await.map(drop)
    }

    /// Starts a COPY to the client; until its end only [`Self::next_read`] and [`Self::fill`].
    pub(in super::super) async fn copy_out(&mut self, sql: &str) -> Result<(), Failure> {
        frontend::query(sql, self.wire.out()).map_err(|error| Failure::Transient(error.to_string()))?;
        self.wire.send().await?;
        loop {
            let frame = self.wire.frame().await?;
            match frame.tag {
                COPY_OUT => break,
                NOTICE | PARAMETER => {}
                ERROR => match self.wire.parse(frame)? {
                    Message::ErrorResponse(error) => return Err(server_said(&error)),
                    _ => return Err(self.wire.not_understood("an error that is none")),
                },
                _ => return Err(self.wire.not_understood("something else than a COPY")),
            }
        }
        self.wire.set_limit(self.max_row_bytes);
        Ok(())
    }

    /// What has been read from the socket already.
    pub(in super::super) fn next_read(&mut self) -> Result<Copied, Failure> {
        loop {
            let frame = match self.wire.next_read() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(Copied::Nothing),
                Err(FrameError::TooLarge { bytes, .. }) => return Err(too_large(bytes, self.wire.limit())),
                Err(FrameError::Malformed) => return Err(self.wire.not_understood("a message without a length")),
            };
            match frame.tag {
                COPY_DATA => return Ok(Copied::Bytes(frame.body)),
                COPY_DONE | COMMAND_COMPLETE | NOTICE | PARAMETER => {}
                _ => match self.wire.parse(frame)? {
                    Message::ReadyForQuery(_) => {
                        self.wire.set_limit(CONVERSATION_LIMIT);
                        return Ok(Copied::End);
                    }
                    Message::ErrorResponse(error) => return Err(server_said(&error)),
                    _ => return Err(self.wire.not_understood("something else than rows")),
                },
            }
        }
    }

    /// Reads what has arrived; bytes given out before are void.
    pub(in super::super) async fn fill(&mut self) -> Result<(), Failure> {
        poll_fn(|context| self.wire.poll_fill(context)).await
    }

    /// The bytes that were copied; good until the next [`Self::fill`].
    pub(in super::super) fn bytes(&self, span: Span) -> &[u8] {
        self.wire.bytes(span)
    }
}

/// Says good-bye where the socket takes it at once: an end without it is an error in upstream's log.
impl Drop for CopySession {
    fn drop(&mut self) {
        frontend::terminate(self.wire.out());
        let _ = self.wire.poll_send(&mut Context::from_waker(Waker::noop()));
    }
}

fn too_large(bytes: usize, limit: usize) -> Failure {
    Failure::definite(
        "row_too_large",
        format!("a row of the snapshot has {bytes} bytes; the limit is {limit}"),
        "raise max_row (--max-row) and restart, or leave the table out of the source",
    )
}
