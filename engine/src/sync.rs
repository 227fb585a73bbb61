//! What `published`, `boundary`, `shared` and `watermark` are made of, where threads meet: the one place that names it.
//! `tests/schedules` includes those files as they are, with a module of its own in the place of this one, whose every
//! operation is a point at which another thread may go on.

pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
pub use std::sync::{Mutex, MutexGuard, OnceLock};

pub use arc_swap::ArcSwap;
pub use tokio::sync::watch;
pub use tokio::time::timeout;
