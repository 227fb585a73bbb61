//! Messages over a stream: frames in, bytes out. Both sides keep their state between polls, so whoever waits for a frame
//! may stop waiting at any time.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::Message;
use tokio::io::AsyncWrite;

use super::super::error::Failure;
use super::frames::{Frame, FrameError, Frames, Span};
use super::socket::Socket;
use super::tls::failure_of;

pub(super) struct Wire {
    stream: Socket,
    frames: Frames,
    out: BytesMut,
    /// Bytes went into the stream that it may still hold.
    unflushed: bool,
    /// Who is at the other end, for messages.
    with: String,
}

impl Wire {
    /// Takes messages of up to `limit` bytes.
    pub(super) fn new(stream: Socket, limit: usize, with: String) -> Self {
        Wire { stream, frames: Frames::new(limit), out: BytesMut::new(), unflushed: false, with }
    }

    pub(super) fn limit(&self) -> usize {
        self.frames.limit()
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.frames.set_limit(limit);
    }

    /// What a password exchange can be bound to.
    pub(super) fn end_point(&self) -> Option<&[u8]> {
        self.stream.end_point()
    }

    pub(super) fn bytes(&self, span: Span) -> &[u8] {
        self.frames.bytes(span)
    }

    /// The next frame that has been read already.
    pub(super) fn next_read(&mut self) -> Result<Option<Frame>, FrameError> {
        self.frames.next()
    }

    /// Reads what has arrived; bodies given out before are void.
    pub(super) fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match ready!(self.frames.poll_fill(&mut self.stream, context)) {
            Ok(0) => Poll::Ready(Err(Failure::Transient(format!("{} closed the connection", self.with)))),
            Ok(_) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(self.broken(error))),
        }
    }

    /// Where messages to be sent are appended.
    pub(super) fn out(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    /// Sends what waits to be sent, as far as the stream takes it.
    pub(super) fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        while !self.out.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(context, &self.out)) {
                Ok(0) => return Poll::Ready(Err(self.broken(io::ErrorKind::WriteZero.into()))),
                Ok(sent) => self.out.advance(sent),
                Err(error) => return Poll::Ready(Err(self.broken(error))),
            }
            self.unflushed = true;
        }
        if self.unflushed {
            if let Err(error) = ready!(Pin::new(&mut self.stream).poll_flush(context)) {
                return Poll::Ready(Err(self.broken(error)));
            }
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends all that waits to be sent.
    pub(super) async fn send(&mut self) -> Result<(), Failure> {
        poll_fn(|context| self.poll_send(context)).await
    }

    /// Waits for the next frame of a conversation (not of a stream of rows).
    pub(super) async fn frame(&mut self) -> Result<Frame, Failure> {
        loop {
            match self.frames.next() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => poll_fn(|context| self.poll_fill(context)).await?,
                Err(FrameError::Malformed) => return Err(self.not_understood("a message without a length")),
                Err(FrameError::TooLarge { bytes, .. }) => {
                    return Err(self.not_understood(&format!("an answer of {bytes} bytes")));
                }
            }
        }
    }

    /// Waits for the next message of a conversation, past those that nobody asked for.
    pub(super) async fn message(&mut self) -> Result<Message, Failure> {
        loop {
            let frame = self.frame().await?;
            match self.parse(frame)? {
                Message::NoticeResponse(_) | Message::ParameterStatus(_) | Message::NotificationResponse(_) => {}
                message => return Ok(message),
            }
        }
    }

    /// Reads a frame of a conversation.
    pub(super) fn parse(&self, frame: Frame) -> Result<Message, Failure> {
        let body = self.bytes(frame.body);
        let length = u32::try_from(body.len() + 4).map_err(|_| self.not_understood("a message that is too long"))?;
        let mut bytes = BytesMut::with_capacity(body.len() + 5);
        bytes.extend_from_slice(&[frame.tag]);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(body);
        match Message::parse(&mut bytes) {
            Ok(Some(message)) => Ok(message),
            _ => Err(self.not_understood(&format!("a message {:?}", char::from(frame.tag)))),
        }
    }

    /// The other side does not keep to the protocol.
    pub(super) fn not_understood(&self, what: &str) -> Failure {
        Failure::Transient(format!("{} sent {what}, which is not understood here", self.with))
    }

    fn broken(&self, error: io::Error) -> Failure {
        match failure_of(&error, &self.with) {
            Some(error) => error.into(),
            None => Failure::Transient(format!("the connection to {} broke: {error}", self.with)),
        }
    }
}
