//! What is read from files and may change while we run. The surprise: files that became wrong change nothing; what was read
//! before stays in force, and the log says so once.

use std::fmt::Debug;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

/// Whether a file is another one than before.
type Stamp = Option<(u64, i64, i64, u64)>;

/// How files become what they say.
type Read<T> = dyn Fn(&[PathBuf]) -> Result<T, String> + Send + Sync;

/// What files say, anew whenever they change.
pub struct Reloading<T> {
    paths: Vec<PathBuf>,
    read: Box<Read<T>>,
    current: ArcSwap<T>,
    stamps: Mutex<Vec<Stamp>>,
}

impl<T> Debug for Reloading<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloading").field("paths", &self.paths).finish_non_exhaustive()
    }
}

impl<T> Reloading<T> {
    /// Reads the files for the first time.
    pub fn open(
        paths: Vec<PathBuf>,
        read: impl Fn(&[PathBuf]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        // Stamped before it is read: what changes in between is read once more.
        let stamps = Mutex::new(stamps(&paths));
        let current = ArcSwap::from_pointee(read(&paths)?);
        Ok(Reloading { paths, read: Box::new(read), current, stamps })
    }

    /// What is in force.
    pub fn get(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Reads the files again where they changed.
    pub fn refresh(&self) {
        let now = stamps(&self.paths);
        let changed = {
            let mut known = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *known, now.clone()) != now
        };
        if changed {
            self.reload();
        }
    }

    /// Reads the files again.
    pub fn reload(&self) {
        match (self.read)(&self.paths) {
            Ok(read) => {
                self.current.store(Arc::new(read));
                tracing::info!(files = ?self.paths, "read anew");
            }
            Err(error) => tracing::error!(error, "what was read before stays in force"),
        }
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |data: Metadata| (data.ino(), data.mtime(), data.mtime_nsec(), data.len());
    paths.iter().map(|path| std::fs::metadata(path).ok().map(stamp)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_files_say_counts_from_the_next_look_and_what_is_wrong_never() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("number");
        let number = |paths: &[PathBuf]| {
            let text = std::fs::read_to_string(paths.first().unwrap()).map_err(|error| error.to_string())?;
            text.parse::<u64>().map_err(|error| error.to_string())
        };
        assert!(Reloading::open(vec![path.clone()], number).is_err());
        std::fs::write(&path, "1").unwrap();
        let reloading = Reloading::open(vec![path.clone()], number).unwrap();
        let mut expected = 1;
        for (text, now) in [("22", 22), ("many", 22), ("333", 333)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(*reloading.get(), expected);
            reloading.refresh();
            assert_eq!(*reloading.get(), now);
            expected = now;
        }
        std::fs::remove_file(&path).unwrap();
        reloading.refresh();
        assert_eq!(*reloading.get(), 333);
    }
}
