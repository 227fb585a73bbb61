//! Makes the write-ahead log survive a crash of the machine: its files are synced here, by descriptors of our own.
//!
//! Not by RocksDB's own call, because of what that does beside a full disk: a log whose write failed it does not sync, and
//! calls that an error of another kind, from which it never recovers. The failed write alone it does recover from, once
//! there is space, and the two threads cannot know of each other in time.
//!
//! And before RocksDB reads it, it is made readable. The last power cut may have left anything behind the last sync, and at
//! one kind of it RocksDB's reader turns in a circle for ever: a header by its type of a reused file, in a file that is none
//! (`log::Reader::ReadPhysicalRecord` returns without moving on; facebook/rocksdb issue 13333). Our logs are never reused, so
//! such a header is no record. Its type is overwritten, and then it is what it is: a record whose checksum is wrong, where
//! the replay ends.
//!
//! ```text
//! write() returned  =>  its bytes are in a file DATA/store/N.log     (no buffer of RocksDB's holds them back)
//!                   or  that file is gone: what it held is in synced table files
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Of logs and manifests, as all that follows: <https://github.com/facebook/rocksdb/wiki/Write-Ahead-Log-File-Format>.
const BLOCK_BYTES: u64 = 32_768;
/// Checksum, length and type.
const HEADER_BYTES: usize = 7;
const TYPE_AT: usize = 6;
/// Types of records in reused files.
const REUSED: [u8; 6] = [5, 6, 7, 8, 11, 131];
/// The type of a record that lies in one block.
const FULL: u8 = 1;
/// What a file holds where nothing was written: the reader goes on at the next block.
const ZERO: u8 = 0;

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

/// Makes what a power cut left in logs and manifests readable. Harmless beside a process that uses them: what is being
/// written has no such headers.
pub fn mend(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if is_read_as_log(&path) {
            mend_file(&path)?;
        }
    }
    Ok(())
}

fn is_read_as_log(path: &Path) -> bool {
    let manifest = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("MANIFEST-"));
    manifest || path.extension().is_some_and(|extension| extension == "log")
}

fn mend_file(path: &Path) -> io::Result<()> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let mut block = Vec::new();
    let mut block_at = 0;
    loop {
        block.clear();
        let read = (&file).take(BLOCK_BYTES).read_to_end(&mut block)?;
        if read == 0 {
            return Ok(());
        }
        if let Some(at) = reused_type(&block) {
            let at = block_at + at as u64;
            tracing::warn!(file = %path.display(), at, "the log ends in what a crash of the machine left: it is read up to there");
            file.write_all_at(&[FULL], at)?;
        }
        block_at += BLOCK_BYTES;
    }
}

/// Where in a block the first type of a reused file is that the reader comes by, if there is one.
fn reused_type(block: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let [_, _, _, _, low, high, kind]: [u8; HEADER_BYTES] = *block.get(at..)?.first_chunk()?;
        let length = u16::from_le_bytes([low, high]);
        match kind {
            ZERO if length == 0 => return None,
            kind if REUSED.contains(&kind) => return Some(at + TYPE_AT),
            _ => at += HEADER_BYTES + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use std::io::Write;
    use std::path::PathBuf;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::store::{Batch, Store, StoreMemory};

    const MEMORY: StoreMemory = StoreMemory { block_cache: 1 << 20, write_buffer: 1 << 20 };
    /// Many times what opening takes.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Opens on a thread that may turn in a circle.
    fn open(directory: &Path) -> Store {
        let (opened, waits) = mpsc::channel();
        let directory = directory.to_owned();
        std::thread::spawn(move || opened.send(Store::open(&directory, MEMORY)));
        waits.recv_timeout(PATIENCE).unwrap().unwrap()
    }

    fn store_with_a_record() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path());
        let mut batch = Batch::default();
        batch.put(b"key", b"value");
        store.write(batch).unwrap();
        drop(store);
        let log = fs::read_dir(directory.path().join("store"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .max()
            .unwrap();
        (directory, log)
    }

    #[test]
    fn whatever_a_power_cut_leaves_behind_the_last_sync_is_passed_over() {
        for kind in (0..=12).chain([129, 130, 131, 255]) {
            for (length, tail) in [(3u16, 3), (3, 2 * BLOCK_BYTES as usize), (u16::MAX, 9)] {
                let (directory, log) = store_with_a_record();
                let mut torn = vec![kind; HEADER_BYTES + tail];
                torn[4..TYPE_AT].copy_from_slice(&length.to_le_bytes());
                OpenOptions::new().append(true).open(&log).unwrap().write_all(&torn).unwrap();
                let value = open(directory.path()).get(b"key").unwrap();
                assert_eq!(value.as_deref(), Some(&b"value"[..]), "type {kind}, length {length}");
            }
        }
    }

    #[test]
    fn what_was_written_whole_is_left_alone() {
        let (_directory, log) = store_with_a_record();
        let before = fs::read(&log).unwrap();
        mend_file(&log).unwrap();
        assert!(before.len() > HEADER_BYTES && fs::read(&log).unwrap() == before);
    }
}
