//! The bytes of one connection, cut into frames: a tag, a length, a body.
//!
//! One buffer is read into over and over, as much at a time as the kernel has, and bodies are looked at where they lie:
//! a row costs no copy and no allocation here. The surprise: a length is only a claim. A body beyond the limit is refused
//! by its header, and the buffer grows with the bytes that really come, never with what a header promises.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// What is read at once, and kept between reads.
const CAPACITY: usize = 256 << 10;

/// With less room than this behind the last byte, what is held moves to the front.
const MIN_ROOM: usize = 16 << 10;

/// Tag and length.
const HEADER: usize = 5;

/// How much of a refused body is waited for, so that it can be said what it was.
const TELLING: usize = 64;

/// Where a body lies; good until the next [`Frames::poll_fill`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Span {
    start: usize,
    end: usize,
}

impl Span {
    /// Without its first bytes.
    pub(super) fn skip(self, bytes: usize) -> Span {
        Span { start: self.start.saturating_add(bytes).min(self.end), end: self.end }
    }
}

/// One message of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) tag: u8,
    pub(super) body: Span,
}

/// Why the bytes are no frame that we take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameError {
    /// A length that is none.
    Malformed,
    /// A body beyond the limit; `head` are its first bytes.
    TooLarge { bytes: usize, head: Span },
}

#[derive(Debug)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    /// What is held and not yet cut off lies between these two.
    start: usize,
    end: usize,
    limit: usize,
}

impl Frames {
    /// Takes bodies of up to `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Frames { buffer: vec![0; CAPACITY], start: 0, end: 0, limit }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Nothing is held, not even a part of a frame.
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Cuts off the next frame that is whole; `None` until more is read.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((tag, bytes)) = self.header()? else { return Ok(None) };
        let start = self.start + HEADER;
        if bytes > self.limit {
            let held = self.end - start;
            if held < TELLING.min(bytes) {
                return Ok(None);
            }
            return Err(FrameError::TooLarge { bytes, head: Span { start, end: start + TELLING.min(bytes) } });
        }
        let Some(end) = start.checked_add(bytes).filter(|end| *end <= self.end) else { return Ok(None) };
        self.start = end;
        Ok(Some(Frame { tag, body: Span { start, end } }))
    }

    /// The bytes of a body.
    pub(super) fn bytes(&self, span: Span) -> &[u8] {
        self.buffer.get(span.start..span.end).unwrap_or_default()
    }

    /// Reads what is there; 0 is the end of the connection. Spans given out before are void.
    pub(super) fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        from: &mut R,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<usize>> {
        self.make_room();
        let mut free = ReadBuf::new(self.buffer.get_mut(self.end..).unwrap_or_default());
        ready!(Pin::new(from).poll_read(context, &mut free))?;
        let read = free.filled().len();
        self.end += read;
        Poll::Ready(Ok(read))
    }

    /// Tag and body length of the frame in front, once its header is there.
    fn header(&self) -> Result<Option<(u8, usize)>, FrameError> {
        let held = self.buffer.get(self.start..self.end).unwrap_or_default();
        let Some(([tag, length @ ..], _)) = held.split_first_chunk::<HEADER>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length);
        // The length counts itself.
        match length.checked_sub(4) {
            Some(bytes) if i32::try_from(length).is_ok() => Ok(Some((*tag, bytes as usize))),
            _ => Err(FrameError::Malformed),
        }
    }

    fn make_room(&mut self) {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > CAPACITY {
                self.buffer = vec![0; CAPACITY];
            }
            return;
        }
        if self.buffer.len() - self.end >= MIN_ROOM {
            return;
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.buffer.len() - self.end < MIN_ROOM {
            let wanted = match self.header() {
                Ok(Some((_, bytes))) => bytes.min(self.limit) + HEADER + MIN_ROOM,
                _ => CAPACITY,
            };
            let most = self.buffer.len() * 2;
            self.buffer.resize(wanted.clamp(self.end + MIN_ROOM, most.max(self.end + MIN_ROOM)), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 2 << 20;

    /// Hands out the bytes in pieces of these lengths, over and over.
    struct Pieces<'b> {
        rest: &'b [u8],
        lengths: std::iter::Cycle<std::vec::IntoIter<usize>>,
    }

    impl<'b> Pieces<'b> {
        fn new(rest: &'b [u8], lengths: Vec<usize>) -> Self {
            Pieces { rest, lengths: lengths.into_iter().cycle() }
        }
    }

    impl AsyncRead for Pieces<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            let length = self.lengths.next().unwrap().min(into.remaining()).min(self.rest.len());
            let (head, tail) = self.rest.split_at(length);
            into.put_slice(head);
            self.rest = tail;
            Poll::Ready(Ok(()))
        }
    }

    fn read_all(bytes: &[u8], lengths: Vec<usize>, frames: &mut Frames) -> (Vec<(u8, Vec<u8>)>, Option<FrameError>) {
        let mut pieces = Pieces::new(bytes, lengths);
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut read = Vec::new();
        loop {
            loop {
                match frames.next() {
                    Ok(Some(frame)) => read.push((frame.tag, frames.bytes(frame.body).to_vec())),
                    Ok(None) => break,
                    Err(error) => return (read, Some(error)),
                }
            }
            match frames.poll_fill(&mut pieces, &mut context) {
                Poll::Ready(Ok(0)) => return (read, None),
                Poll::Ready(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn encode(frames: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (tag, body) in frames {
            bytes.push(*tag);
            bytes.extend((body.len() as u32 + 4).to_be_bytes());
            bytes.extend(body);
        }
        bytes
    }

    #[test]
    fn a_body_beyond_the_limit_is_refused_by_its_header_and_nothing_is_allocated_for_it() {
        let mut bytes = encode(&[(b'd', vec![1; 100])]);
        bytes.push(b'd');
        bytes.extend((1_000_000_000u32).to_be_bytes());
        bytes.extend([7; 100]);
        let mut frames = Frames::new(LIMIT);
        let (read, error) = read_all(&bytes, vec![1 << 16], &mut frames);
        assert_eq!(read.len(), 1);
        let Some(FrameError::TooLarge { bytes: 999_999_996, head }) = error else { panic!("{error:?}") };
        assert_eq!(frames.bytes(head), [7; TELLING]);
        assert_eq!(frames.buffer.len(), CAPACITY);
    }

    #[test]
    fn the_buffer_grows_with_what_comes_and_shrinks_again() {
        // Within the limit, but only the first bytes ever come.
        let mut bytes = vec![b'd'];
        bytes.extend((LIMIT as u32).to_be_bytes());
        bytes.extend(vec![0; 300_000]);
        let mut frames = Frames::new(LIMIT);
        assert_eq!(read_all(&bytes, vec![1 << 16], &mut frames), (vec![], None));
        assert!(frames.buffer.len() <= 2 * bytes.len(), "{}", frames.buffer.len());
        let large = encode(&[(b'd', vec![3; LIMIT]), (b'd', vec![4; 10])]);
        let mut frames = Frames::new(LIMIT);
        let (read, error) = read_all(&large, vec![100_000], &mut frames);
        assert_eq!((read.len(), error), (2, None));
        assert_eq!(frames.buffer.len(), CAPACITY);
    }

    #[test]
    fn lengths_that_are_none() {
        for length in [0u32, 3, 1 << 31, u32::MAX] {
            let bytes = [&b"d"[..], &length.to_be_bytes()].concat();
            let (read, error) = read_all(&bytes, vec![100], &mut Frames::new(usize::MAX));
            assert_eq!((read, error), (vec![], Some(FrameError::Malformed)), "{length}");
        }
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            frames in prop::collection::vec(
                (any::<u8>(), prop_oneof![8 => 0usize..200, 1 => 0usize..400_000]).prop_map(|(tag, n)| (tag, (0..n).map(|i| i as u8).collect::<Vec<u8>>())),
                0..20,
            ),
            lengths in prop::collection::vec(1usize..200_000, 1..6),
        ) {
            let bytes = encode(&frames);
            let (read, error) = read_all(&bytes, lengths, &mut Frames::new(LIMIT));
            prop_assert_eq!(error, None);
            prop_assert!(read == frames);
        }

        #[test]
        fn any_bytes_are_frames_or_refused(bytes in any::<Vec<u8>>(), lengths in prop::collection::vec(1usize..50, 1..4)) {
            let mut frames = Frames::new(1_000);
            read_all(&bytes, lengths, &mut frames);
            prop_assert!(frames.buffer.len() <= CAPACITY);
        }
    }
}
