//! Two cells that tell other threads that something is there: a [`Watermark`] rises, a [`Flag`] is raised once.
//!
//! What they tell of lies elsewhere, so the order of memory is all they are: whoever reads the number, or finds the flag
//! raised, sees what was written before. `tests/schedules` has every order looked at that the language allows a machine.

use crate::sync::{AtomicBool, AtomicU64, Ordering};

/// How far something has come.
pub struct Watermark(AtomicU64);

impl Watermark {
    /// It has come this far already.
    #[must_use]
    pub fn new(reached: u64) -> Watermark {
        Watermark(AtomicU64::new(reached))
    }

    /// It has come this far, and what was written up to here is there.
    pub fn reach(&self, number: u64) {
        self.0.store(number, Ordering::Release);
    }

    /// How far it has come.
    #[must_use]
    pub fn reached(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Something is so from now on.
pub struct Flag(AtomicBool);

impl Flag {
    /// Whether it is so already.
    #[must_use]
    pub fn new(raised: bool) -> Flag {
        Flag(AtomicBool::new(raised))
    }

    /// It is so, and what was written before is there.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it is so.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
