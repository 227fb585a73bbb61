//! What makes a directory a Tidemark data directory: a file `FORMAT` beside the store, written before anything else and
//! read before the store is opened, so that a foreign or newer directory is refused untouched.
//!
//! ```text
//! DATA/FORMAT     "tidemark 1\n"
//! DATA/store/     RocksDB
//! ```

use std::path::Path;
use std::{fs, io};

use super::OpenError;

/// Raised whenever an older binary could misread what a newer one wrote.
pub const FORMAT_VERSION: u32 = 1;

/// Accepts a directory of this format, or makes an empty one into it.
pub fn claim(directory: &Path) -> Result<(), OpenError> {
    let shown = directory.display().to_string();
    fs::create_dir_all(directory).map_err(|error| not_writable(&shown, &error))?;
    let marker = directory.join("FORMAT");
    match fs::read_to_string(&marker) {
        Ok(text) => return check(&text, &shown),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(not_writable(&shown, &error)),
    }
    let mut entries = fs::read_dir(directory).map_err(|error| not_writable(&shown, &error))?;
    if entries.next().is_some() {
        return Err(OpenError::new(
            "foreign_directory",
            format!("{shown} is not empty and not a Tidemark data directory"),
            "name an empty or new directory with --data",
        ));
    }
    let write = || -> io::Result<()> {
        let file = directory.join("FORMAT.new");
        fs::write(&file, format!("tidemark {FORMAT_VERSION}\n"))?;
        fs::File::open(&file)?.sync_all()?;
        fs::rename(&file, &marker)?;
        fs::File::open(directory)?.sync_all()
    };
    write().map_err(|error| not_writable(&shown, &error))
}

fn check(text: &str, shown: &str) -> Result<(), OpenError> {
    let version = text.trim().strip_prefix("tidemark ").and_then(|version| version.parse::<u32>().ok());
    match version {
        Some(FORMAT_VERSION) => Ok(()),
        Some(version) => Err(OpenError::new(
            "other_format",
            format!("{shown} holds data of format {version}; this Tidemark reads format {FORMAT_VERSION}"),
            "use the Tidemark that wrote it, or name an empty directory with --data",
        )),
        None => Err(OpenError::new(
            "foreign_directory",
            format!("{shown}/FORMAT is not Tidemark's"),
            "name an empty or new directory with --data",
        )),
    }
}

fn not_writable(shown: &str, error: &io::Error) -> OpenError {
    OpenError::new(
        "data_not_writable",
        format!("cannot use {shown}: {error}"),
        "name a directory that this user can create and write, with --data",
    )
}
