//! Turns of what reads many cells: a few at once, a few more that wait, for a while. Whoever comes after that is told to come
//! back, at once, instead of waiting for ever with everybody else.
//!
//! Live answers have turns of their own. They wait as long as it takes: there is a limit to how many there are, and an answer
//! that is a little late is better than one that ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::Problem;

/// Scans that wait for their turn.
const MAX_WAITING: usize = 64;
/// Longest wait for a turn.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Turns of what reads many cells.
#[derive(Clone, Debug)]
pub(super) struct Turns {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    live: Arc<Semaphore>,
    max_wait: Duration,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _permit: OwnedSemaphorePermit,
}

impl From<OwnedSemaphorePermit> for Turn {
    fn from(permit: OwnedSemaphorePermit) -> Self {
        Turn { _permit: permit }
    }
}

impl Turns {
    /// So many scans run at once, and as many live answers are read.
    pub(super) fn of(scans: usize) -> Turns {
        Turns::new(scans, MAX_WAITING, MAX_WAIT)
    }

    fn new(running: usize, waiting: usize, max_wait: Duration) -> Turns {
        Turns {
            running: Arc::new(Semaphore::new(running)),
            waiting: Arc::new(Semaphore::new(waiting)),
            live: Arc::new(Semaphore::new(running)),
            max_wait,
        }
    }

    /// A turn within a while, or word to come back.
    pub(super) async fn take(&self) -> Result<Turn, Problem> {
        if let Ok(turn) = Arc::clone(&self.running).try_acquire_owned() {
            return Ok(turn.into());
        }
        let overloaded = |what: &str| {
            Problem::new(429, "overloaded", format!("too many large questions are asked at once: {what}"))
                .hint(
                    "ask again, or ask for less: a coarser granularity, a shorter range, a dimension fixed with where",
                )
                .retry_after(1)
        };
        let Ok(_place) = self.waiting.try_acquire() else { return Err(overloaded("the queue is full")) };
        match tokio::time::timeout(self.max_wait, Arc::clone(&self.running).acquire_owned()).await {
            Ok(turn) => turn.map(Turn::from).map_err(|_| stopping()),
            Err(_) => Err(overloaded(&format!("no turn came in {} ms", self.max_wait.as_millis()))),
        }
    }

    /// A turn of a live answer, whenever it comes.
    pub(super) async fn take_live(&self) -> Result<Turn, Problem> {
        Arc::clone(&self.live).acquire_owned().await.map(Turn::from).map_err(|_| stopping())
    }
}

fn stopping() -> Problem {
    Problem::new(503, "stopping", "the server is stopping").retry_after(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn one_runs_one_waits_and_the_next_is_told_at_once() {
        let turns = Turns::new(1, 1, Duration::from_secs(60));
        let first = turns.take().await.unwrap();
        let waits = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take().await.is_ok() }
        });
        while turns.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let told = turns.take().await.unwrap_err();
        assert_eq!((told.status, told.code.as_str(), told.retry_after_s), (429, "overloaded", Some(1)));
        assert!(turns.take_live().await.is_ok(), "live answers wait for others");
        drop(first);
        assert!(waits.await.unwrap());
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let turns = Turns::new(1, 1, Duration::from_millis(10));
        let _first = turns.take().await.unwrap();
        let told = turns.take().await.unwrap_err();
        assert!(told.detail.contains("10 ms"), "{}", told.detail);
        assert_eq!(turns.waiting.available_permits(), 1, "it waits on");
    }
}
