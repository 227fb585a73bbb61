//! Copies the engine's files once for each mistake in the table below, with the mistake in it, so that the tests can see
//! whether they would find it. The engine itself has no place for one.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Those that share what is published.
const FILES: [&str; 3] = ["published", "boundary", "shared"];

struct Mistake {
    name: &'static str,
    /// Which of the checks has to find it.
    check: &'static str,
    file: &'static str,
    /// What is there, and what stands there instead. Whoever changes the engine changes it here.
    edits: &'static [(&'static str, &'static str)],
}

const MISTAKES: [Mistake; 15] = [
    Mistake {
        name: "tells_before_it_shows",
        check: "whoever_is_told_finds_it",
        file: "published",
        edits: &[(
            "self.newest.store(Arc::new(newest));",
            "self.applied.send_replace(as_of); self.newest.store(Arc::new(newest));",
        )],
    },
    Mistake {
        name: "counts_before_it_shows",
        check: "whoever_is_told_finds_it",
        file: "published",
        edits: &[(
            "self.newest.store(Arc::new(newest));",
            "self.committed.reach(as_of.sequence); self.newest.store(Arc::new(newest));",
        )],
    },
    Mistake {
        name: "shows_the_catalog_ahead_of_its_snapshot",
        check: "whoever_is_told_finds_it",
        file: "published",
        edits: &[(
            "self.newest.store(Arc::new(newest));",
            "if let Some(snapshot) = &snapshot { \
                self.newest.store(Arc::new(Newest::Registered(Arc::clone(snapshot.catalog())))); \
            } \
            self.newest.store(Arc::new(newest));",
        )],
    },
    Mistake {
        name: "reads_the_durable_position_last",
        check: "whoever_is_told_finds_it",
        file: "published",
        edits: &[(
            "let durable = *self.durable.borrow();\n        (self.as_of(), durable)",
            "let applied = self.as_of(); (applied, *self.durable.borrow())",
        )],
    },
    Mistake {
        name: "changes_the_position_and_wakes_nobody",
        check: "whoever_waits_is_woken",
        file: "published",
        edits: &[(
            "self.applied.send_replace(as_of);",
            "self.applied.send_if_modified(|applied| { *applied = as_of; false });",
        )],
    },
    Mistake {
        name: "takes_the_stored_position_for_one_that_is_shown",
        check: "whoever_waits_is_woken",
        file: "published",
        edits: &[("self.snapshot().is_some() && self.scrubbed()", "self.scrubbed()")],
    },
    Mistake {
        name: "wakes_before_the_cells_count_as_checked",
        check: "whoever_waits_is_woken",
        file: "published",
        edits: &[("self.scrubbed.raise();\n        self.wake();", "self.wake(); self.scrubbed.raise();")],
    },
    Mistake {
        name: "sleeps_before_it_looks",
        check: "a_live_answer_misses_nothing",
        file: "published",
        edits: &[(
            "self.next(|as_of| as_of.sequence > sequence).await;",
            "let _ = self.applied().changed().await; let _ = sequence;",
        )],
    },
    Mistake {
        name: "tells_of_the_end_before_the_reason",
        check: "whoever_learns_of_the_end_learns_why",
        file: "published",
        edits: &[(
            "let _ = self.halted.set(reason);\n        self.wake();",
            "self.wake(); let _ = self.halted.set(reason);",
        )],
    },
    Mistake {
        name: "ends_and_wakes_nobody",
        check: "whoever_learns_of_the_end_learns_why",
        file: "published",
        edits: &[("let _ = self.halted.set(reason);\n        self.wake();", "let _ = self.halted.set(reason);")],
    },
    Mistake {
        name: "looks_for_a_reason_and_then_gives_its_own",
        check: "whoever_learns_of_the_end_learns_why",
        file: "published",
        edits: &[
            ("halted: OnceLock<Unavailable>", "halted: ArcSwap<Option<&'static Unavailable>>"),
            ("halted: OnceLock::new()", "halted: ArcSwap::new(Arc::new(None))"),
            (
                "let _ = self.halted.set(reason);",
                "if self.halted.load().is_none() { self.halted.store(Arc::new(Some(Box::leak(Box::new(reason))))); }",
            ),
            ("self.halted.get()", "*self.halted.load()"),
        ],
    },
    Mistake {
        name: "asks_whether_somebody_watches_too_early",
        check: "whoever_watches_finds_the_boundary",
        file: "boundary",
        edits: &[(
            "let mut kept = self.kept();\n        if self.watched() {",
            "if self.watched() { let mut kept = self.kept();",
        )],
    },
    Mistake {
        name: "finds_the_newest_before_it_watches",
        check: "whoever_watches_finds_the_boundary",
        file: "boundary",
        edits: &[
            (
                "let mut kept = published.boundaries.kept();",
                "let newest = published.snapshot(); let mut kept = published.boundaries.kept();",
            ),
            ("let Some(newest) = published.snapshot()", "let Some(newest) = newest"),
        ],
    },
    Mistake {
        name: "takes_the_snapshot_before_it_asks_whether_it_may",
        check: "after_a_start_nobody_is_taken_back",
        file: "shared",
        edits: &[(
            "self.ready()?;\n        self.published.snapshot().ok_or_else",
            "let newest = self.published.snapshot(); self.ready()?; newest.ok_or_else",
        )],
    },
    Mistake {
        name: "has_caught_up_with_what_is_not_shown",
        check: "after_a_start_nobody_is_taken_back",
        file: "shared",
        edits: &[("Some(start) if applied >= start =>", "Some(start) if source.upstream_lsn >= start =>")],
    },
];

fn main() {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap());
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    let engine = here.join("../../engine/src");
    let checks = here.join("tests/published/checks.rs");
    println!("cargo::rerun-if-changed=build.rs");
    let mut modules = String::new();
    let mut table = format!("pub const ALL: [(&str, &str, fn()); {}] = [\n", MISTAKES.len());
    for mistake in &MISTAKES {
        let Mistake { name, check, .. } = mistake;
        fs::create_dir_all(out.join(name)).unwrap();
        writeln!(modules, "pub mod {name} {{\n    use super::*;").unwrap();
        for file in FILES {
            let copy = out.join(name).join(file).with_extension("rs");
            fs::write(&copy, mistaken(mistake, file, &engine)).unwrap();
            writeln!(modules, "    #[path = {copy:?}]\n    pub mod {file};").unwrap();
        }
        writeln!(modules, "    #[path = {checks:?}]\n    pub mod checks;\n}}").unwrap();
        writeln!(table, "    ({name:?}, {check:?}, {name}::checks::{check}),").unwrap();
    }
    fs::write(out.join("mistakes.rs"), format!("{modules}{table}];\n")).unwrap();
    fs::write(out.join("unordered.rs"), unordered(&engine, &out)).unwrap();
    for file in FILES.iter().chain(["watermark"].iter()) {
        println!("cargo::rerun-if-changed={}", engine.join(file).with_extension("rs").display());
    }
}

/// The watermark's file without one and without the other half of its order of memory.
fn unordered(engine: &Path, out: &Path) -> String {
    let mut modules = String::new();
    let text = fs::read_to_string(engine.join("watermark.rs")).unwrap();
    for (name, order) in [("unreleased", "Ordering::Release"), ("unacquired", "Ordering::Acquire")] {
        assert_eq!(text.matches(order).count(), 2, "{order}");
        let copy = out.join(name).with_extension("rs");
        fs::write(&copy, text.replace(order, "Ordering::Relaxed").replace("crate::", "super::")).unwrap();
        writeln!(modules, "#[path = {copy:?}]\nmod {name};").unwrap();
    }
    modules
}

/// A file of the engine as a module of the mistake's, and where it is the one with the mistake in it.
fn mistaken(mistake: &Mistake, file: &str, engine: &Path) -> String {
    let mut text = fs::read_to_string(engine.join(file).with_extension("rs")).unwrap();
    if file == mistake.file {
        for (is, instead) in mistake.edits {
            assert_eq!(text.matches(is).count(), 1, "{}: {file}.rs does not have this once: {is}", mistake.name);
            text = text.replace(is, instead);
        }
    }
    text.replace("crate::", "super::")
}
