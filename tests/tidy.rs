//! The layer rules, as an ordinary test: who may name what, and that no file of this folder is forgotten.

use std::fs;
use std::path::{Path, PathBuf};

/// A word, and the only places where sources may contain it.
const HOMES: [(&str, &[&str]); 12] = [
    ("timely", &["engine/src/dataflow/"]),
    ("differential_dataflow", &["engine/src/dataflow/"]),
    ("rocksdb", &["engine/src/store/"]),
    ("tokio_postgres", &["connectors/src/postgres/"]),
    ("postgres_protocol", &["connectors/src/postgres/"]),
    ("rustls", &["connectors/src/postgres/transport/", "queries/src/http/tls.rs"]),
    ("axum", &["queries/src/http/", "queries/src/dashboard/"]),
    ("hyper_util", &["queries/src/http/"]),
    ("arrow_array", &["queries/src/api/arrow.rs"]),
    ("arrow_ipc", &["queries/src/api/arrow.rs"]),
    ("arrow_schema", &["queries/src/api/arrow.rs"]),
    ("sqlparser", &["engine/src/materialization/", "queries/src/sql/"]),
];

const UNSEEN: [&str; 6] =
    ["std::sync::atomic", "std::sync::Mutex", "std::sync::RwLock", "std::thread", "tokio::", "arc_swap::"];

/// Modules of ours that a crate or layer may not reach into.
const FORBIDDEN: [(&str, &[&str]); 8] = [
    ("connectors/src/", &["engine::store", "engine::dataflow", "engine::commit", "queries::"]),
    ("engine/src/", &["connectors::", "queries::", "StatusCode"]),
    ("queries/src/", &["connectors::", "engine::dataflow", "engine::commit", "engine::store"]),
    ("engine/src/aggregate/", &["std::fs", "std::time", "chrono", "crate::store"]),
    // What `tests/schedules` tries is `crate::sync`; of anything else it would see no step.
    ("engine/src/boundary.rs", &UNSEEN),
    ("engine/src/published.rs", &UNSEEN),
    ("engine/src/shared.rs", &UNSEEN),
    ("engine/src/watermark.rs", &UNSEEN),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// Path from the root and code of each source file: comments, which may name anything, are left out.
pub fn code() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for crate_directory in ["engine/src", "connectors/src", "queries/src"] {
        sources(&root().join(crate_directory), &mut files);
    }
    files
        .into_iter()
        .map(|file| {
            let name = file.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            let text = fs::read_to_string(&file).unwrap();
            let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            (name, code.join("\n"))
        })
        .collect()
}

fn names(code: &str, word: &str) -> bool {
    let part_of_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(word).any(|(at, _)| {
        let (before, after) = (code[..at].chars().next_back(), &code[at + word.len()..]);
        !part_of_word(before) && after.starts_with("::")
    })
}

#[test]
fn heavy_dependencies_have_one_home_each() {
    let files = code();
    for (word, homes) in HOMES {
        let strays: Vec<&String> = files
            .iter()
            .filter(|(name, code)| names(code, word) && !homes.iter().any(|home| name.starts_with(home)))
            .map(|(name, _)| name)
            .collect();
        assert!(strays.is_empty(), "{word} is named outside {homes:?}: {strays:?}");
        assert!(files.iter().any(|(_, code)| names(code, word)), "nothing names {word}: the rule is stale");
    }
}

#[test]
fn layers_do_not_reach_up() {
    for (name, code) in code() {
        for (layer, forbidden) in FORBIDDEN {
            let named: Vec<_> =
                forbidden.iter().filter(|word| name.starts_with(layer) && code.contains(**word)).collect();
            assert!(named.is_empty(), "{name} names {named:?}");
        }
    }
}

#[test]
fn every_test_file_is_part_of_the_test_binary() {
    let main = fs::read_to_string(root().join("tests/main.rs")).unwrap();
    for entry in fs::read_dir(root().join("tests")).unwrap().map(Result::unwrap) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(module) = name.strip_suffix(".rs").filter(|module| *module != "main") {
            assert!(main.contains(&format!("mod {module};")), "tests/{name} is not declared in tests/main.rs");
        }
    }
}

#[test]
fn our_crates_hold_no_unsafe_code_and_nothing_unfinished() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(manifest.contains("unsafe_code = \"forbid\""));
    for member in ["", "engine", "connectors", "queries", "tests/load", "tests/schedules", "tests/torture"] {
        let manifest = fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{member} has lints of its own");
    }
    for (name, code) in code() {
        for word in ["unimplemented!(", "todo!(", "dbg!(", "unsafe {"] {
            assert!(!code.contains(word), "{name} holds {word}");
        }
    }
}

/// `file.rs::name` in the table of threats is a test of that file; every threat has at least one.
#[test]
fn every_threat_is_answered_by_tests_that_exist() {
    let document = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let table = document.split("| threat |").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap();
    let rows: Vec<&str> = table.lines().skip(2).collect();
    assert!(rows.len() > 20, "{rows:?}");
    for row in rows {
        let words = row.split('`').skip(1).step_by(2);
        let named: Vec<(&str, &str)> = words.filter_map(|word| word.split_once(".rs::")).collect();
        assert!(!named.is_empty(), "no test is named: {row}");
        for (file, test) in named {
            let source =
                fs::read_to_string(root().join(format!("{file}.rs"))).unwrap_or_else(|error| panic!("{file}: {error}"));
            let lines: Vec<&str> = source.lines().map(str::trim_start).collect();
            let declared = format!("fn {test}(");
            let at = lines.iter().position(|line| line.trim_start_matches("async ").starts_with(&declared));
            let at = at.unwrap_or_else(|| panic!("{file} has no {test}"));
            let attributes = lines[..at].iter().rev().take_while(|line| line.starts_with("#["));
            assert!(attributes.into_iter().any(|line| line.contains("test")), "{file}: {test} is no test");
        }
    }
}

/// What `cargo deny` says more about, for whoever has it: licences, yanked versions, advisories.
#[test]
fn dependencies_come_from_one_registry_and_there_is_one_tls() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let policy = fs::read_to_string(root().join("deny.toml")).unwrap();
    let registry = "registry+https://github.com/rust-lang/crates.io-index";
    let sources: Vec<&str> = lock.lines().filter_map(|line| line.strip_prefix("source = ")).collect();
    assert!(sources.len() > 100 && sources.iter().all(|source| source.trim_matches('"') == registry));
    let denied: Vec<&str> = policy.split("{ crate = \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(denied.len() >= 3);
    for name in denied {
        assert!(!lock.contains(&format!("name = \"{name}\"")), "{name} is linked, and deny.toml forbids it");
    }
}
