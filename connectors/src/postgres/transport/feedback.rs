//! What upstream is told, and when: standby status updates.
//!
//! Written is what was received, flushed and applied is what is durable here. A new durable position goes out at once
//! where upstream asked for it (a server that shuts down waits for exactly that), otherwise within [`RAISED`]; in any
//! case something goes out every [`IDLE`], so that upstream and other tidemarks see that we live.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};
use engine::change::Lsn;
use tokio::time::Instant;

/// A raised durable position is told at most this much later.
const RAISED: Duration = Duration::from_millis(250);

/// Silence of ours, at most.
const IDLE: Duration = Duration::from_secs(1);

/// Seconds between 1970 and 2000.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// Of the message, itself counted: a tag, three positions, a time, a flag.
const LENGTH: u32 = 38;

#[derive(Debug)]
pub(super) struct Feedback {
    received: Lsn,
    durable: Lsn,
    /// What upstream was told last, and when.
    told: Lsn,
    told_at: Instant,
    /// Upstream waits for an answer.
    asked: bool,
    /// The position upstream waits to hear as durable.
    awaited: Lsn,
}

impl Feedback {
    /// Something is due at once: the first status.
    pub(super) fn new(received: Lsn, durable: Lsn, now: Instant) -> Self {
        Feedback { received, durable, told: durable, told_at: now, asked: true, awaited: Lsn::ZERO }
    }

    pub(super) fn receive(&mut self, position: Lsn) {
        self.received = self.received.max(position);
    }

    /// Upstream asked, having sent everything up to `position`.
    pub(super) fn ask(&mut self, position: Lsn) {
        self.asked = true;
        self.awaited = position;
    }

    /// Never back, never beyond what was received: Postgres would believe a position it never reached and skip
    /// transactions up to it.
    pub(super) fn make_durable(&mut self, position: Lsn) {
        self.durable = self.durable.max(position.min(self.received));
    }

    /// When the next status is due.
    pub(super) fn due(&self) -> Instant {
        let raised = self.durable > self.told;
        if self.asked || (raised && self.told < self.awaited) {
            self.told_at
        } else if raised {
            self.told_at + RAISED
        } else {
            self.told_at + IDLE
        }
    }

    /// Appends the status of now.
    pub(super) fn write(&mut self, into: &mut BytesMut, now: Instant) {
        let since_epoch =
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(POSTGRES_EPOCH);
        into.put_u8(b'd');
        into.put_u32(LENGTH);
        into.put_u8(b'r');
        for position in [self.received, self.durable, self.durable] {
            into.put_u64(position.0);
        }
        into.put_u64(u64::try_from(since_epoch.as_micros()).unwrap_or_default());
        // We ask for no answer.
        into.put_u8(0);
        (self.told, self.told_at, self.asked) = (self.durable, now, false);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    /// The positions of the one status that is written.
    fn told(feedback: &mut Feedback, now: Instant) -> [u64; 3] {
        let mut bytes = BytesMut::new();
        feedback.write(&mut bytes, now);
        assert_eq!((bytes.len(), &bytes[..6]), (39, &b"d\0\0\0\x26r"[..]));
        [6, 14, 22].map(|at| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()))
    }

    #[test]
    fn never_more_than_was_received_and_never_back() {
        let now = Instant::now();
        let mut feedback = Feedback::new(Lsn(100), Lsn(90), now);
        assert_eq!(feedback.due(), now, "the first status goes out at once");
        assert_eq!(told(&mut feedback, now), [100, 90, 90]);
        feedback.make_durable(Lsn(u64::MAX));
        assert_eq!(told(&mut feedback, now), [100, 100, 100]);
        feedback.receive(Lsn(50));
        feedback.make_durable(Lsn(50));
        assert_eq!(told(&mut feedback, now), [100, 100, 100]);
    }

    #[test]
    fn when_a_status_is_due() {
        let now = Instant::now();
        let mut feedback = Feedback::new(Lsn(100), Lsn(90), now);
        told(&mut feedback, now);
        assert_eq!(feedback.due(), now + IDLE);
        feedback.receive(Lsn(200));
        assert_eq!(feedback.due(), now + IDLE);
        feedback.make_durable(Lsn(120));
        assert_eq!(feedback.due(), now + RAISED);
        // Upstream asks, is answered at once, and hears what becomes durable at once until that is all it sent.
        feedback.ask(Lsn(200));
        assert_eq!(feedback.due(), now);
        told(&mut feedback, now);
        feedback.make_durable(Lsn(150));
        assert_eq!(feedback.due(), now);
        told(&mut feedback, now);
        feedback.make_durable(Lsn(200));
        assert_eq!(feedback.due(), now);
        told(&mut feedback, now);
        feedback.receive(Lsn(300));
        feedback.make_durable(Lsn(300));
        assert_eq!(feedback.due(), now + RAISED);
    }
}
