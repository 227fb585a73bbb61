//! What makes a directory a Tidemark data directory: a file `FORMAT` beside the store, written before anything else and
//! read before the store is opened, so that a foreign or newer directory is refused untouched.
//!
//! ```text
//! DATA/FORMAT     "tidemark 1 4f0c93ab\n": format version, and the instance, which names the replication slot
//! DATA/store/     RocksDB
//! DATA/ANSWERED   how many answers it must not lack (`answered`)
//! DATA/snapshot/  files on their way there, during the initial snapshot only
//! ```

use std::hash::{BuildHasher, Hasher};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::{fs, io};

use rustix::io::Errno;

use super::{OpenError, disk_failed, disk_full};

/// Raised whenever an older binary could misread what a newer one wrote.
pub const FORMAT_VERSION: u32 = 1;

/// Rows of a database are not for everyone who has an account on the machine.
const CLOSED: u32 = 0o700;

/// Accepts a directory of this format, or makes an empty one into it. Returns the instance: eight hexadecimal digits
/// that tell this directory's replication slot from that of another.
pub fn claim(directory: &Path) -> Result<String, OpenError> {
    let shown = directory.display().to_string();
    create_closed(directory).map_err(|error| not_usable(directory, &error))?;
    let marker = directory.join("FORMAT");
    match fs::read_to_string(&marker) {
        Ok(text) => return check(&text, &shown),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(not_usable(directory, &error)),
    }
    let mut entries = fs::read_dir(directory).map_err(|error| not_usable(directory, &error))?;
    let half_made = |entry: &fs::DirEntry| entry.file_name() == "FORMAT.new";
    if entries.any(|entry| !entry.is_ok_and(|entry| half_made(&entry) || came_with_the_disk(&entry))) {
        return Err(OpenError::new(
            "foreign_directory",
            format!("{shown} is not empty and not a Tidemark data directory"),
            "name an empty or new directory with --data",
        ));
    }
    // Keys of hash maps are the randomness that the standard library has.
    let instance = format!("{:08x}", std::hash::RandomState::new().build_hasher().finish() as u32);
    replace(directory, "FORMAT", &format!("tidemark {FORMAT_VERSION} {instance}\n"))
        .map_err(|error| not_usable(directory, &error))?;
    Ok(instance)
}

/// Makes a directory that holds rows, for its owner alone; one that is there stays as it is, and those around it are as usual.
pub(crate) fn create_closed(directory: &Path) -> io::Result<()> {
    if let Some(around) = directory.parent() {
        fs::create_dir_all(around)?;
    }
    match fs::DirBuilder::new().mode(CLOSED).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        made => made,
    }
}

/// What a new file system has in it: root's directory for what a repair may find. One that holds something is somebody's.
pub(crate) fn came_with_the_disk(entry: &fs::DirEntry) -> bool {
    const ROOT: u32 = 0;
    let is_roots = || entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == ROOT);
    let holds_nothing = || match fs::read_dir(entry.path()) {
        Ok(mut inside) => inside.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    };
    entry.file_name() == "lost+found" && is_roots() && holds_nothing()
}

/// Writes a file whole or not at all, and for good.
pub(super) fn replace(directory: &Path, name: &str, text: &str) -> io::Result<()> {
    let file = directory.join(format!("{name}.new"));
    fs::write(&file, text)?;
    fs::File::open(&file)?.sync_all()?;
    fs::rename(&file, directory.join(name))?;
    fs::File::open(directory)?.sync_all()
}

/// The instance of a directory that was claimed before, without touching it; absent where there is none.
pub fn instance(directory: &Path) -> Result<Option<String>, OpenError> {
    let shown = directory.display().to_string();
    match fs::read_to_string(directory.join("FORMAT")) {
        Ok(text) => check(&text, &shown).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(not_usable(directory, &error)),
    }
}

/// The instance that a `FORMAT` file of this version names.
pub(crate) fn check(text: &str, shown: &str) -> Result<String, OpenError> {
    let mut words = text.split_whitespace();
    let version =
        words.next().filter(|word| *word == "tidemark").and(words.next()).and_then(|word| word.parse::<u32>().ok());
    let instance = words.next().filter(|word| word.len() == 8 && word.bytes().all(|b| b.is_ascii_hexdigit()));
    match (version, instance) {
        (Some(FORMAT_VERSION), Some(instance)) => Ok(instance.to_owned()),
        (Some(version), _) if version != FORMAT_VERSION => Err(OpenError::new(
            "other_format",
            format!("{shown} holds data of format {version}; this Tidemark reads format {FORMAT_VERSION}"),
            "use the Tidemark that wrote it, or name an empty directory with --data",
        )),
        _ => Err(OpenError::new(
            "foreign_directory",
            format!("{shown}/FORMAT is not Tidemark's"),
            "name an empty or new directory with --data",
        )),
    }
}

/// Makes the names in a data directory survive a crash of the machine.
pub fn sync_names(directory: &Path) -> Result<(), OpenError> {
    fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(|error| not_usable(directory, &error))
}

/// Why the system does not let us use a directory. What it has run out of may come back; what it forbids stays forbidden.
pub(super) fn not_usable(directory: &Path, error: &io::Error) -> OpenError {
    let shown = directory.display().to_string();
    let message = format!("cannot use {shown}: {error}");
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::DQUOT) => disk_full(message),
        Some(Errno::IO) => disk_failed(message),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => {
            OpenError::cannot_start(message, "raise the limit of open files, or give it more memory")
        }
        _ => not_writable(&shown, error),
    }
}

pub(super) fn not_writable(shown: &str, error: impl std::fmt::Display) -> OpenError {
    OpenError::new(
        "data_not_writable",
        format!("cannot use {shown}: {error}"),
        "name a directory that this user can create and write, with --data",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_directory_is_claimed_once_and_foreign_ones_are_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let ours = parent.path().join("new/data");
        let instance = claim(&ours).unwrap();
        assert_eq!(claim(&ours).unwrap(), instance);
        assert_eq!(super::instance(&ours).unwrap(), Some(instance));
        assert_eq!(fs::metadata(&ours).unwrap().mode() & 0o777, CLOSED);
        assert_eq!(super::instance(&parent.path().join("other")).unwrap(), None);
        assert!(!parent.path().join("other").exists());

        let code = |text: &str| {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("FORMAT"), text).unwrap();
            claim(directory.path()).unwrap_err().code
        };
        assert_eq!(code("tidemark 2 4f0c93ab\n"), "other_format");
        assert_eq!(code("other 1 4f0c93ab\n"), "foreign_directory");
        assert_eq!(code("tidemark 1\n"), "foreign_directory");

        let foreign = parent.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("CURRENT"), "MANIFEST-000001\n").unwrap();
        assert_eq!(claim(&foreign).unwrap_err().code, "foreign_directory");
        assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);
    }

    #[test]
    fn what_a_new_disk_comes_with_does_not_make_it_foreign() {
        const NOBODY: u32 = 65_534;
        let disk = tempfile::tempdir().unwrap();
        let lost_and_found = disk.path().join("lost+found");
        let foreign = || claim(disk.path()).unwrap_err().code == "foreign_directory";
        // Only a directory, only of root, only with nothing in it.
        fs::write(&lost_and_found, "").unwrap();
        assert!(foreign());
        fs::remove_file(&lost_and_found).unwrap();
        fs::create_dir(&lost_and_found).unwrap();
        fs::write(lost_and_found.join("#12"), "somebody's").unwrap();
        assert!(foreign());
        fs::remove_file(lost_and_found.join("#12")).unwrap();
        if std::os::unix::fs::chown(&lost_and_found, Some(NOBODY), None).is_err() {
            // Ours, as only root can give it away or have it.
            assert!(foreign());
            return;
        }
        assert!(foreign());
        std::os::unix::fs::chown(&lost_and_found, Some(0), None).unwrap();
        fs::write(disk.path().join("thesis.tex"), "").unwrap();
        assert!(foreign());
        fs::remove_file(disk.path().join("thesis.tex")).unwrap();
        let instance = claim(disk.path()).unwrap();
        assert_eq!(claim(disk.path()).unwrap(), instance);
        assert!(lost_and_found.is_dir());
    }
}
