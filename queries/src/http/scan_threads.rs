//! Threads for what reads many cells: as many as there are processors, and of less weight than the threads that bring changes.
//! A total that is late is worse than a large answer that is slow.
//!
//! They are the blocking threads of a runtime of their own: weight, once given up, cannot be taken back, so it must not be
//! lowered on threads that others use next.

use std::num::NonZero;
use std::thread::available_parallelism;
use std::time::Instant;

use tokio::runtime::{Builder, Runtime};
use tracing::Span;

use super::layers::REQUEST_TIMEOUT;
use crate::read::Allowance;

/// Weight falls by a tenth with each step; the engine's threads are at 5, the connector's at 0.
const NICE: i32 = 10;

/// The threads. They start when they are needed, and end with this.
#[derive(Debug)]
pub(super) struct ScanThreads {
    /// Gone only in `drop`.
    runtime: Option<Runtime>,
}

impl ScanThreads {
    /// How many scans run at once: more would only take turns, each of them longer.
    pub(super) fn count() -> usize {
        available_parallelism().map_or(2, NonZero::get).max(2)
    }

    pub(super) fn start(count: usize) -> std::io::Result<ScanThreads> {
        let yield_to_changes = || {
            // Where it is not allowed, everything still works.
            if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                tracing::debug!(%error, "no lower priority for threads that scan");
            }
        };
        let runtime = Builder::new_current_thread()
            .max_blocking_threads(count)
            .thread_name("scan")
            .on_thread_start(yield_to_changes)
            .build()?;
        Ok(ScanThreads { runtime: Some(runtime) })
    }

    /// Runs it on one of the threads; `None` where it was interrupted. A thread is nobody's to stop, so what it reads ends itself:
    /// when its time is over, or with this future, as when the client is gone or heard that it took too long.
    pub(super) async fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> Option<R> {
        // What it logs belongs to the request.
        let request = Span::current();
        let allowance = Allowance::until(Instant::now() + REQUEST_TIMEOUT);
        let _waiting = allowance.while_waited_for();
        self.runtime.as_ref()?.spawn_blocking(move || request.in_scope(|| allowance.spend(work))).await.ok()
    }
}

impl Drop for ScanThreads {
    fn drop(&mut self) {
        // The last handle may go within another runtime, where nothing may wait.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_read_to_its_end() {
        let threads = ScanThreads::start(1).unwrap();
        let (told, ended) = oneshot::channel();
        let endless = move || {
            let allowance = Allowance::current();
            while allowance.step().is_ok() {}
            told.send(())
        };
        assert!(timeout(Duration::from_millis(20), threads.run(endless)).await.is_err());
        timeout(Duration::from_secs(10), ended).await.unwrap().unwrap();
        // The next one finds the thread free, and has its own time.
        assert_eq!(threads.run(|| Allowance::current().check()).await, Some(Ok(())));
    }
}
