//! Makes the write-ahead log survive a crash of the machine: its files are synced here, by descriptors of our own.
//!
//! Not by RocksDB's own call, because of what that does beside a full disk: a log whose write failed it does not sync, and
//! calls that an error of another kind, from which it never recovers. The failed write alone it does recover from, once
//! there is space, and the two threads cannot know of each other in time.
//!
//! ```text
//! write() returned  =>  its bytes are in a file DATA/store/N.log     (no buffer of RocksDB's holds them back)
//!                   or  that file is gone: what it held is in synced table files
//! ```

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

/// Syncs every file of the log that exists now, and the directory that names them.
pub fn sync(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        match File::open(&path) {
            Ok(file) => file.sync_data()?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    File::open(directory)?.sync_all()
}
