//! A log that Postgres itself cannot decode: it says so (class `XX`, internal error or damaged data), ends the session, and
//! says the same at the next one. An outage is not ours to judge and is waited for without an end; this is no outage. Known
//! causes are damaged files under `pg_logical/snapshots` and mistakes in Postgres' own bookkeeping of catalogs after a crash.

use std::time::{Duration, Instant};

use engine::change::Lsn;

use super::error::{Failure, START_OVER};

/// Failures in a row, none of which got further than the one before.
const ATTEMPTS: u32 = 6;
/// And they go on for so long: some internal errors pass.
const PATIENCE: Duration = Duration::from_secs(10);

/// Counts internal errors of Postgres at one position.
#[derive(Default)]
pub(super) struct Impasse {
    at: Lsn,
    since: Option<Instant>,
    attempts: u32,
}

impl Impasse {
    /// The failure of an attempt that ended at this position; final where there is no way on.
    pub(super) fn judge(&mut self, failure: Failure, at: Lsn, now: Instant) -> Failure {
        let Failure::Transient(said) = &failure else { return failure };
        if !failure.is_internal_error() {
            return failure;
        }
        if at != self.at {
            *self = Impasse { at, ..Impasse::default() };
        }
        let since = *self.since.get_or_insert(now);
        self.attempts += 1;
        if self.attempts < ATTEMPTS || now.duration_since(since) < PATIENCE {
            return failure;
        }
        Failure::definite(
            "log_undecodable",
            format!(
                "Postgres cannot decode its log past {at}: {said}, {} times in {} s",
                self.attempts,
                now.duration_since(since).as_secs()
            ),
            format!(
                "restart tidemark to have it tried again; where it stays, look into Postgres' own log, then {START_OVER}"
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERNAL: &str = "Postgres said: could not map filenode (SQLSTATE XX000)";

    fn halts(said: &str, attempts: u32, pause: Duration, at: impl Fn(u32) -> u64) -> bool {
        let mut impasse = Impasse::default();
        let began = Instant::now();
        let last = (0..attempts)
            .map(|n| impasse.judge(Failure::Transient(said.to_owned()), Lsn(at(n)), began + pause * n))
            .last();
        matches!(last, Some(Failure::Definite(error)) if error.code == "log_undecodable")
    }

    #[test]
    fn only_the_same_place_again_and_again_is_final() {
        let long = Duration::from_secs(2);
        assert!(halts(INTERNAL, 6, long, |_| 7));
        assert!(!halts(INTERNAL, 5, long, |_| 7), "too few");
        assert!(!halts(INTERNAL, 50, Duration::from_millis(100), |_| 7), "too soon");
        assert!(!halts(INTERNAL, 50, long, u64::from), "it gets on");
        assert!(!halts("connection reset (SQLSTATE 08006)", 50, long, |_| 7), "an outage");
    }
}
