//! What is read from files and may change while we run. The surprise: files that became wrong change nothing; what was read
//! before stays in force, and the log says so once. They are read again at every look until they are right: what was wrong may
//! have been the disk, or open files, and nothing of the file changes when it is over.

use std::fmt::Debug;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

/// Whether a file is another one than before, or another may read it.
type Stamp = Option<(u64, (i64, i64), (i64, i64), u64)>;

/// How files become what they say.
type Read<T> = dyn Fn(&[PathBuf]) -> Result<T, String> + Send + Sync;

/// What files say, anew whenever they change.
pub struct Reloading<T> {
    paths: Vec<PathBuf>,
    read: Box<Read<T>>,
    current: ArcSwap<T>,
    known: Mutex<Known>,
}

/// What was found at the last look.
#[derive(Debug)]
enum Known {
    /// What is in force, read from these.
    Read(Vec<Stamp>),
    /// It could not be read, and why.
    Wrong(String),
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
        let known = Mutex::new(Known::Read(stamps(&paths)));
        let current = ArcSwap::from_pointee(read(&paths)?);
        Ok(Reloading { paths, read: Box::new(read), current, known })
    }

    /// What is in force.
    pub fn get(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Reads the files again where they changed, or were wrong at the last look.
    pub fn refresh(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps(&self.paths);
        if !matches!(&*known, Known::Read(then) if *then == now) {
            self.read_anew(now, &mut known);
        }
    }

    /// Reads the files again, and says how it went: somebody asked.
    pub fn reload(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Known::Read(Vec::new());
        self.read_anew(stamps(&self.paths), &mut known);
    }

    fn read_anew(&self, now: Vec<Stamp>, known: &mut Known) {
        match (self.read)(&self.paths) {
            Ok(read) => {
                self.current.store(Arc::new(read));
                tracing::info!(files = ?self.paths, "read anew");
                *known = Known::Read(now);
            }
            Err(error) => {
                if !matches!(known, Known::Wrong(said) if *said == error) {
                    tracing::error!(error, "what was read before stays in force");
                }
                *known = Known::Wrong(error);
            }
        }
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    // Of the two times only the second tells of another owner or mode.
    let stamp = |data: Metadata| {
        let (written, changed) = ((data.mtime(), data.mtime_nsec()), (data.ctime(), data.ctime_nsec()));
        (data.ino(), written, changed, data.len())
    };
    paths.iter().map(|path| std::fs::metadata(path).ok().map(stamp)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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

    /// No open file was left, say, and then there was: of the file nothing changed.
    #[test]
    fn what_could_not_be_read_is_tried_again_and_what_could_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "").unwrap();
        let (read, fails) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, failing) = (Arc::clone(&read), Arc::clone(&fails));
        let reading = move |_: &[PathBuf]| {
            let times = counted.fetch_add(1, Ordering::Relaxed) + 1;
            if failing.load(Ordering::Relaxed) { Err("too many open files".to_owned()) } else { Ok(times) }
        };
        let reloading = Reloading::open(vec![path.clone()], reading).unwrap();
        reloading.refresh();
        assert_eq!(read.load(Ordering::Relaxed), 1, "nothing changed, and it was read again");
        fails.store(true, Ordering::Relaxed);
        std::fs::write(&path, "changed").unwrap();
        reloading.refresh();
        reloading.refresh();
        assert_eq!((*reloading.get(), read.load(Ordering::Relaxed)), (1, 3));
        fails.store(false, Ordering::Relaxed);
        reloading.refresh();
        reloading.refresh();
        assert_eq!((*reloading.get(), read.load(Ordering::Relaxed)), (4, 4));
        // As where somebody else may read it now.
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        reloading.refresh();
        assert_eq!(*reloading.get(), 5);
    }
}
