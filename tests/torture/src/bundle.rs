//! What is left of a failure for whoever looks into it: with `--keep DIRECTORY` the data directory as it was found wrong, what it was
//! made from, Postgres with its log and slots, and what was run. Without, all of that goes with the run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where to; nothing is kept where nobody said.
static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// Failures from here on are kept in this directory.
pub fn keep_in(directory: PathBuf) {
    let _ = DIRECTORY.set(directory);
}

/// Copies a directory under this name, owners and times as they are; a second one of that name takes its place.
pub fn keep(name: &str, from: &Path) {
    let Some(directory) = DIRECTORY.get() else { return };
    let into = directory.join(name);
    let _ = fs::remove_dir_all(&into);
    let copied =
        fs::create_dir_all(directory).and_then(|()| Command::new("cp").arg("-a").arg(from).arg(&into).status());
    match copied {
        Ok(status) if status.success() => println!("kept: {}", into.display()),
        failed => println!("not kept: {}: {failed:?}", into.display()),
    }
}

/// What was run, and what was wrong.
pub fn note(seed: u64, failures: &[String]) {
    let Some(directory) = DIRECTORY.get() else { return };
    let command: Vec<String> = std::env::args().collect();
    let text = format!("{}\nseed {seed}\n\n{}\n", command.join(" "), failures.join("\n\n"));
    if let Err(error) = fs::create_dir_all(directory).and_then(|()| fs::write(directory.join("run.txt"), text)) {
        println!("not kept: run.txt: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_kept_with_what_it_was_made_from() {
        let (directory, failed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(failed.path().join("store")).unwrap();
        fs::write(failed.path().join("store/CURRENT"), "MANIFEST-1").unwrap();
        keep("data", failed.path());
        assert!(fs::read_dir(directory.path()).unwrap().next().is_none(), "nobody asked for it");
        keep_in(directory.path().join("bundle"));
        for text in ["MANIFEST-2", "MANIFEST-3"] {
            fs::write(failed.path().join("store/CURRENT"), text).unwrap();
            keep("data", failed.path());
        }
        note(7, &["wrong".to_owned()]);
        let read = |name: &str| fs::read_to_string(directory.path().join("bundle").join(name)).unwrap();
        assert_eq!(read("data/store/CURRENT"), "MANIFEST-3");
        assert!(read("run.txt").contains("seed 7\n\nwrong"));
    }
}
