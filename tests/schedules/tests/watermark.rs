//! The two cells that tell other threads that something is there, in every order of memory that the language allows a machine,
//! also those that this processor never takes: the engine's own file, over loom's atomics.
//!
//! What else is published passes through a lock or through arc-swap's exchange, whose order is not ours to get wrong.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

/// In the place of `engine/src/sync.rs`.
mod sync {
    pub use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
}

#[path = "../../../engine/src/watermark.rs"]
mod watermark;

include!(concat!(env!("OUT_DIR"), "/unordered.rs"));

use std::panic::catch_unwind;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

/// The checks, over one copy of the file.
macro_rules! checks {
    ($module:ident) => {
        pub mod $module {
            use super::super::$module::{Flag, Watermark};
            use super::super::*;

            /// Whoever reads a number sees everything up to it.
            pub fn a_number_brings_what_it_counts() {
                loom::model(|| {
                    let (written, watermark) = (Arc::new(AtomicU64::new(0)), Arc::new(Watermark::new(0)));
                    let (writes, reaches) = (Arc::clone(&written), Arc::clone(&watermark));
                    let writer = thread::spawn(move || {
                        for number in 1..=2 {
                            writes.store(number, Ordering::Relaxed);
                            reaches.reach(number);
                        }
                    });
                    let reached = watermark.reached();
                    assert!(written.load(Ordering::Relaxed) >= reached);
                    assert!(watermark.reached() >= reached);
                    writer.join().unwrap();
                });
            }

            /// Whoever finds a flag raised sees what was written before, also by the one whose flag made another raise this one.
            pub fn a_flag_brings_what_it_tells_of() {
                loom::model(|| {
                    let written = Arc::new(AtomicU64::new(0));
                    let flags = Arc::new([Flag::new(false), Flag::new(false)]);
                    let (writes, raises, passes_on) = (Arc::clone(&written), Arc::clone(&flags), Arc::clone(&flags));
                    let writer = thread::spawn(move || {
                        writes.store(1, Ordering::Relaxed);
                        raises[0].raise();
                    });
                    let between = thread::spawn(move || {
                        if passes_on[0].is_raised() {
                            passes_on[1].raise();
                        }
                    });
                    if flags[1].is_raised() {
                        assert_eq!(written.load(Ordering::Relaxed), 1);
                    }
                    writer.join().unwrap();
                    between.join().unwrap();
                });
            }
        }
    };
}

mod checked {
    checks!(watermark);
    checks!(unreleased);
    checks!(unacquired);
}

#[test]
fn a_number_brings_what_it_counts() {
    checked::watermark::a_number_brings_what_it_counts();
}

#[test]
fn a_flag_brings_what_it_tells_of() {
    checked::watermark::a_flag_brings_what_it_tells_of();
}

#[test]
fn half_an_order_is_found() {
    let mistaken = [
        checked::unreleased::a_number_brings_what_it_counts,
        checked::unreleased::a_flag_brings_what_it_tells_of,
        checked::unacquired::a_number_brings_what_it_counts,
        checked::unacquired::a_flag_brings_what_it_tells_of,
    ];
    let missed = mistaken.iter().filter(|check| catch_unwind(check).is_ok()).count();
    assert_eq!(missed, 0);
}
