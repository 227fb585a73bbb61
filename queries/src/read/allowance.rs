//! What one request may take: time, cells, and bytes of its answers. All its questions share it, however many there are.
//!
//! The surprise: it is not passed on, the thread that reads has it. A request is read by one thread from its beginning to its
//! end, and every function from the handler down to the loop over cells would only hand it through. Whoever reads without one
//! gets one of his own that no time ends.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::reader::ReadFailure;

/// Most cells read for one request.
pub const MAX_CELLS: u64 = 5_000_000;
/// Most bytes of the answers to one request, as rows and as text: 100,000 rows of the widest aggregate that there is.
pub const MAX_BYTES: usize = 256 << 20;
/// Steps from one look at the clock to the next.
const STEPS: u32 = 1_024;

tokio::task_local! {
    static CURRENT: Rc<Allowance>;
}

/// What one request may take.
#[derive(Debug, Default)]
pub struct Allowance {
    deadline: Option<Instant>,
    /// Nobody waits any more.
    given_up: Arc<AtomicBool>,
    steps: Cell<u32>,
    cells: Cell<u64>,
    bytes: Cell<usize>,
}

/// Somebody waits for what is read; nobody does once this is dropped.
#[derive(Debug)]
pub struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Allowance {
    /// One that a time ends.
    #[must_use]
    pub fn until(deadline: Instant) -> Allowance {
        Allowance { deadline: Some(deadline), ..Allowance::default() }
    }

    /// Ends it, too: when what this returns is dropped.
    #[must_use]
    pub fn while_waited_for(&self) -> Waiting {
        Waiting(Arc::clone(&self.given_up))
    }

    /// Does work that takes from it.
    pub fn spend<R>(self, work: impl FnOnce() -> R) -> R {
        CURRENT.sync_scope(Rc::new(self), work)
    }

    /// The one that this thread takes from now.
    #[must_use]
    pub fn current() -> Rc<Allowance> {
        CURRENT.try_get().unwrap_or_default()
    }

    /// To be asked in every loop over what is stored: whether there is time to go on.
    pub fn step(&self) -> Result<(), ReadFailure> {
        self.steps.set(self.steps.get().wrapping_add(1));
        if self.steps.get().is_multiple_of(STEPS) { self.check() } else { Ok(()) }
    }

    /// The same, and the clock is looked at.
    pub fn check(&self) -> Result<(), ReadFailure> {
        let late = || self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if self.given_up.load(Ordering::Relaxed) || late() { Err(ReadFailure::OutOfTime) } else { Ok(()) }
    }

    /// Takes one cell.
    pub fn take_cell(&self) -> Result<(), ReadFailure> {
        self.cells.set(self.cells.get().saturating_add(1));
        if self.cells.get() > MAX_CELLS { Err(ReadFailure::TooWide) } else { Ok(()) }
    }

    /// Takes room for a part of an answer, before it is made.
    pub fn take(&self, bytes: usize) -> Result<(), ReadFailure> {
        self.bytes.set(self.bytes.get().saturating_add(bytes));
        if self.bytes.get() > MAX_BYTES { Err(ReadFailure::TooLarge) } else { Ok(()) }
    }

    /// Gives room back.
    pub fn give_back(&self, bytes: usize) {
        self.bytes.set(self.bytes.get().saturating_sub(bytes));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Whether a loop without end ends, and after how many steps.
    fn steps(allowance: Allowance, before_each: impl Fn(u32)) -> Option<u32> {
        allowance.spend(|| {
            (1..1_000_000).find(|step| {
                before_each(*step);
                Allowance::current().step() == Err(ReadFailure::OutOfTime)
            })
        })
    }

    #[test]
    fn a_loop_ends_soon_after_its_time_or_when_nobody_waits() {
        let an_hour = || Instant::now() + Duration::from_secs(3_600);
        assert_eq!(steps(Allowance::until(an_hour()), |_| {}), None);
        assert_eq!(steps(Allowance::until(Instant::now()), |_| {}), Some(STEPS));
        let allowance = Allowance::until(an_hour());
        let waiting = Cell::new(Some(allowance.while_waited_for()));
        let give_up = |step: u32| drop(if step == 5_000 { waiting.take() } else { None });
        assert_eq!(steps(allowance, give_up), Some(5 * STEPS));
    }

    #[test]
    fn the_questions_of_a_request_share_what_it_may_take() {
        let nearly_spent =
            Allowance { cells: Cell::new(MAX_CELLS - 2), bytes: Cell::new(MAX_BYTES - 10), ..Allowance::default() };
        nearly_spent.spend(|| {
            let (one, another) = (Allowance::current(), Allowance::current());
            assert_eq!((one.take_cell(), another.take_cell()), (Ok(()), Ok(())));
            assert_eq!(one.take_cell(), Err(ReadFailure::TooWide));
            assert_eq!((one.take(5), another.take(5)), (Ok(()), Ok(())));
            one.give_back(5);
            assert_eq!((another.take(5), another.take(1)), (Ok(()), Err(ReadFailure::TooLarge)));
        });
        // The next request has its own.
        assert_eq!(Allowance::current().take_cell(), Ok(()));
    }
}
