//! A connection that ends once the other side can have heard the answer. To close a socket in which unread bytes lie resets it,
//! and the reset may overtake what was written last: whoever was still sending a body would not learn that it is too large.
//! See RFC 9112, section 9.6.
//!
//! ```text
//!  answer written ──▶ our side shut ──▶ nothing unread: closed
//!                                   └─▶ the rest is read and thrown away, until theirs is shut or patience ends ──▶ closed
//! ```

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Bytes thrown away at a time.
const DISCARDED: usize = 8 << 10;

/// A connection that is not closed in the middle of what it is sent, for a while.
pub(super) struct Lingering<S> {
    stream: S,
    patience: Duration,
    /// Runs while the rest is thrown away.
    ends: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + Unpin> Lingering<S> {
    pub(super) fn new(stream: S, patience: Duration) -> Self {
        Lingering { stream, patience, ends: None }
    }

    /// Ready where the other side sends nothing at the moment, at its end, and when patience has ended.
    fn poll_discard(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; DISCARDED];
        loop {
            // Asked first: the runtime has a read wait now and then, and the time with it.
            if self.ends.as_mut().is_some_and(|ends| ends.as_mut().poll(context).is_ready()) {
                return Poll::Ready(());
            }
            let mut unread = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.stream).poll_read(context, &mut unread) {
                Poll::Ready(Ok(())) if !unread.filled().is_empty() => {
                    self.ends.get_or_insert_with(|| Box::pin(sleep(self.patience)));
                }
                Poll::Pending if self.ends.is_some() => return Poll::Pending,
                Poll::Ready(_) | Poll::Pending => return Poll::Ready(()),
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        if self.ends.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        }
        self.poll_discard(context).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn who_is_still_sending_hears_the_answer() {
        let (ours, mut theirs) = duplex(10);
        let mut lingering = Lingering::new(ours, LONG);
        let sending = tokio::spawn(async move {
            theirs.write_all(&[7; 1_000]).await.unwrap();
            theirs.shutdown().await.unwrap();
            let mut heard = String::new();
            theirs.read_to_string(&mut heard).await.unwrap();
            heard
        });
        lingering.read_u8().await.unwrap();
        lingering.write_all(b"too much").await.unwrap();
        lingering.shutdown().await.unwrap();
        drop(lingering);
        assert_eq!(sending.await.unwrap(), "too much");
    }

    #[tokio::test]
    async fn who_sends_nothing_is_not_waited_for_and_who_never_ends_not_for_long() {
        let (ours, mut theirs) = duplex(10);
        let began = Instant::now();
        Lingering::new(ours, LONG).shutdown().await.unwrap();
        assert!(began.elapsed() < LONG);
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);

        let (ours, mut theirs) = duplex(10);
        tokio::spawn(async move { while theirs.write_all(&[7; 10]).await.is_ok() {} });
        let mut lingering = Lingering::new(ours, Duration::from_millis(50));
        lingering.read_u8().await.unwrap();
        lingering.shutdown().await.unwrap();
    }
}
