//! What a replication stream says, as far as the transport understands it: where transactions begin and end, where
//! upstream is, and everything else as bytes for `pgoutput`.

use engine::change::Lsn;

use super::frames::Span;

/// One message of a replication stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Event {
    Begin {
        /// Where its commit record begins: every transaction that ends at or before this came earlier.
        commit_lsn: Lsn,
        /// Its number upstream.
        xid: u32,
    },
    /// A message between BEGIN and COMMIT; see [`super::ReplicationClient::bytes`].
    Change {
        /// Only for messages to people: positions of rows mean nothing.
        position: Lsn,
        body: Span,
    },
    Commit {
        end_lsn: Lsn,
        /// Microseconds since 2000-01-01 UTC.
        commit_time_us: i64,
    },
    /// Upstream has decoded its log up to here. Where it asked for an answer, the transport gives it.
    KeepAlive {
        position: Lsn,
        /// Microseconds since 2000-01-01 UTC.
        time_us: i64,
    },
    /// A message beyond the limit was announced; nothing can be read after it.
    TooLarge {
        position: Lsn,
        bytes: usize,
        limit: usize,
        /// OID of the table it is a row of, where it is one.
        relation: Option<u32>,
    },
}

/// What stands in one CopyData frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copied {
    Event(Event),
    /// Upstream wants to hear from us at once where `reply` is set.
    KeepAlive {
        position: Lsn,
        time_us: i64,
        reply: bool,
    },
}

/// Tag, start, end and time in front of every message of `pgoutput`.
const DATA_HEADER: usize = 25;

/// Reads the body of one CopyData frame, which lies at `span`; `None` where it is none of this protocol.
pub(super) fn read(body: &[u8], span: Span) -> Option<Copied> {
    match *body.first()? {
        b'w' => {
            let (header, message) = body.split_at_checked(DATA_HEADER)?;
            let position = Lsn(u64_at(header, 1)?);
            let event = match *message.first()? {
                b'B' => Event::Begin { commit_lsn: Lsn(u64_at(message, 1)?), xid: u32_at(message, 17)? },
                // Flags and the start of the commit record come before these two.
                b'C' => Event::Commit {
                    end_lsn: Lsn(u64_at(message, 10)?),
                    commit_time_us: u64_at(message, 18)?.cast_signed(),
                },
                _ => Event::Change { position, body: span.skip(DATA_HEADER) },
            };
            Some(Copied::Event(event))
        }
        b'k' => Some(Copied::KeepAlive {
            position: Lsn(u64_at(body, 1)?),
            time_us: u64_at(body, 9)?.cast_signed(),
            reply: *body.get(17)? != 0,
        }),
        _ => None,
    }
}

/// What can be said of a message that is too large to be read, from its first bytes.
pub(super) fn too_large(head: &[u8], bytes: usize, limit: usize) -> Event {
    let message = head.get(DATA_HEADER..).unwrap_or_default();
    let of_a_row = matches!(message.first(), Some(b'I' | b'U' | b'D'));
    let relation = message.get(1..5).filter(|_| of_a_row).and_then(|oid| oid.try_into().ok()).map(u32::from_be_bytes);
    Event::TooLarge { position: Lsn(u64_at(head, 1).unwrap_or_default()), bytes, limit, relation }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}
