//! Stores that lives of the script have left, to be copied and spoilt again and again.
//!
//! In memory where the machine offers that (`/dev/shm`): syncs cost nothing there, and no test here asks what a sync is good
//! for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::performance::{End, Performance};
use crate::promises::Promises;

const MEMORY: &str = "/dev/shm";

/// A directory of its own, in memory where possible.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in(MEMORY).or_else(|_| tempfile::tempdir()).unwrap()
}

/// A data directory as some lives have left it.
pub struct Prepared {
    directory: TempDir,
    /// Of the world.
    pub world: u64,
    /// How many lives it has had.
    pub lives: u32,
    /// What they said.
    pub promises: Promises,
}

impl Prepared {
    /// Before any life.
    pub fn new(world: u64) -> Prepared {
        let directory = scratch();
        fs::create_dir(directory.path().join("data")).unwrap();
        Prepared { directory, world, lives: 0, promises: Promises::default() }
    }

    /// The same after so many lives more, of which the last one does not stop where that is asked for.
    pub fn after(&self, lives: u32, unstopped: bool) -> Result<Prepared, String> {
        let mut next = Prepared { directory: scratch(), promises: self.promises.clone(), ..*self };
        self.copy_to(&next.data());
        for life in 1..=lives {
            let data = next.data();
            let unstopped = unstopped && life == lives;
            let ended = Performance { unstopped, ..Performance::of(&data, self.world, &next.promises) }.run();
            if ended.end != End::Exact || ended.broken.is_some() {
                return Err(format!("world {}, life {}: {ended:?}", self.world, next.lives + 1));
            }
            ended.add_to(&mut next.promises);
            next.lives += 1;
        }
        Ok(next)
    }

    /// Where it is.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Copies all of it; nothing is shared with the copy.
    pub fn copy_to(&self, data: &Path) {
        copy(&self.data(), data).unwrap();
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
