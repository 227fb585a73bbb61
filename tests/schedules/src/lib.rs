//! What stands in the place of `engine/src/sync.rs` while orders of steps are tried: the same names, on locks and atomics
//! of shuttle, so that another thread may go on before and within every operation.
//!
//! Only one order of memory is tried here, the sequential one; `tests/watermark.rs` looks at the others. What tokio and
//! arc-swap promise is taken for granted, and no more than that: an operation of theirs that looks at several things is
//! several steps here.

pub mod watch;

use std::future::Future;
use std::sync::Arc;
pub use std::sync::atomic::Ordering;
use std::time::Duration;

pub use shuttle::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
pub use shuttle::sync::{Mutex, MutexGuard};

/// Somebody panicked while it was locked, and so the schedule has failed already.
const POISONED: &str = "the schedule has failed";

/// A cell whose content is exchanged as a whole.
pub struct ArcSwap<T>(Mutex<Arc<T>>);

#[allow(clippy::expect_used)]
impl<T> ArcSwap<T> {
    /// With this in it.
    pub fn new(content: Arc<T>) -> ArcSwap<T> {
        ArcSwap(Mutex::new(content))
    }

    /// What is in it.
    pub fn load(&self) -> Arc<T> {
        Arc::clone(&self.0.lock().expect(POISONED))
    }

    /// Something else is in it.
    pub fn store(&self, content: Arc<T>) {
        // What was in it may take steps of its own to drop: not under the lock.
        let before = std::mem::replace(&mut *self.0.lock().expect(POISONED), content);
        drop(before);
    }
}

/// A cell that is written once.
pub struct OnceLock<T> {
    content: std::sync::OnceLock<T>,
    step: AtomicBool,
}

impl<T> OnceLock<T> {
    /// With nothing in it.
    #[must_use]
    pub fn new() -> OnceLock<T> {
        OnceLock { content: std::sync::OnceLock::new(), step: AtomicBool::new(false) }
    }

    /// What is in it.
    pub fn get(&self) -> Option<&T> {
        self.step.load(Ordering::SeqCst);
        self.content.get()
    }

    /// Puts it in, where nothing is; otherwise gives it back.
    pub fn set(&self, content: T) -> Result<(), T> {
        self.step.store(true, Ordering::SeqCst);
        self.content.set(content)
    }
}

impl<T> Default for OnceLock<T> {
    fn default() -> Self {
        OnceLock::new()
    }
}

/// No time ever runs out, so that whoever is not woken sleeps for ever, and is found.
pub async fn timeout<F: Future>(_: Duration, future: F) -> Result<F::Output, std::convert::Infallible> {
    Ok(future.await)
}
