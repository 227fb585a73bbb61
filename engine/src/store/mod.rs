//! Bytes on disk: the only place that names RocksDB.
//!
//! One column family for everything that must agree (a damaged log then always opens at a consistent prefix), absolute
//! values, the cursor in the same batch as the cells. Nothing here is ever repaired automatically: what is lost is
//! replayed from upstream, which still holds it.

mod answered;
mod chain;
/// Values on disk.
pub mod codec;
/// How far the store is, and where its content comes from.
pub mod cursor;
/// What makes a directory a data directory.
pub mod format;
/// The map of the disk.
pub mod key;
mod log;
/// Tables and aggregates on disk.
pub mod registry;
/// Rows of an initial snapshot, past the memtable.
pub mod row_files;
/// A consistent view for readers.
pub mod view;

use std::path::Path;
use std::sync::Arc;

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, Options, WriteBatch, WriteOptions, properties,
};

use crate::hindrance::Hindrance;
pub use answered::Answered;
use chain::Chain;
pub use cursor::Cursor;
pub use key::{KeyKind, Range};
pub use row_files::RowFiles;
pub use view::View;

/// Version of the files' format: one release of RocksDB back can still open the store.
const TABLE_FORMAT: i32 = 6;
/// Of filters: one look-up of a hundred goes into a file for nothing.
const BITS_PER_KEY: f64 = 10.0;

/// The store cannot be opened; the message names the directory, the remedy what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}\n  remedy: {remedy}")]
pub struct OpenError {
    /// Stable name of the reason.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
    /// Whether trying again may be enough.
    pub hindrance: Hindrance,
}

impl OpenError {
    pub(crate) fn new(code: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        OpenError { code, message: message.into(), remedy: remedy.into(), hindrance: Hindrance::Standing }
    }

    /// The same where it may pass by itself.
    pub(crate) fn passing(self) -> Self {
        OpenError { hindrance: Hindrance::Passing, ..self }
    }

    /// Threads, memory or open files that the system does not give now.
    pub(crate) fn cannot_start(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        OpenError::new("cannot_start", message, remedy).passing()
    }
}

/// Reading or writing failed, or what was read is damaged. A failed write ends the store's use: nothing is retried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// RocksDB reported a failure.
    #[error("store: {0}")]
    Io(String),
    /// The disk is full. What was to be written was not; the store accepts it again once there is space.
    #[error("store: {0}")]
    NoSpace(String),
    /// A value is not of this format.
    #[error("store: damaged {0}")]
    Damaged(&'static str),
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        let text = error.to_string();
        if error.kind() == std::io::ErrorKind::StorageFull { StoreError::NoSpace(text) } else { StoreError::Io(text) }
    }
}

impl From<rocksdb::Error> for StoreError {
    fn from(error: rocksdb::Error) -> Self {
        let text = error.into_string();
        // The wrapper does not tell it apart.
        if text.contains(NO_SPACE) { StoreError::NoSpace(text) } else { StoreError::Io(text) }
    }
}

/// The open store; cheap to clone. One process at a time.
#[derive(Clone)]
pub struct Store {
    db: Arc<DB>,
    chain: Arc<Chain>,
    cache: Cache,
}

/// Memory that RocksDB may take.
#[derive(Clone, Copy, Debug)]
pub struct StoreMemory {
    /// Blocks, indexes and filters, in bytes.
    pub block_cache: usize,
    /// One memtable, in bytes; up to four exist.
    pub write_buffer: usize,
}

impl Default for StoreMemory {
    fn default() -> Self {
        StoreMemory { block_cache: 256 << 20, write_buffer: 64 << 20 }
    }
}

/// Memory that RocksDB has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreMemoryUse {
    /// Blocks, indexes and filters, in bytes. Those of files that are gone stay until others need their room.
    pub block_cache: u64,
    /// Memtables, in bytes.
    pub memtables: u64,
}

impl Store {
    /// Opens or creates the store in a data directory.
    pub fn open(directory: &Path, memory: StoreMemory) -> Result<Store, OpenError> {
        format::claim(directory)?;
        let path = directory.join("store");
        log::mend(&path).map_err(|error| format::not_usable(directory, &error))?;
        let cache = cache(memory);
        let db = DB::open(&options(memory, &cache), path).map_err(|error| not_opened(directory, error))?;
        // RocksDB syncs what is in its directory, not that directory's name in ours. Without the name all of it is gone.
        format::sync_names(directory)?;
        let store = Store { db: Arc::new(db), chain: Arc::default(), cache };
        let chain = Chain::read(&store.view()).map_err(|error| damaged(directory, error))?;
        Ok(Store { chain: Arc::new(chain), ..store })
    }

    /// Opens a copy of a store without writing to it. Its path is that of the copy, not of a data directory.
    pub fn open_read_only(copy: &Path) -> Result<Store, StoreError> {
        const MEMORY: StoreMemory = StoreMemory { block_cache: 8 << 20, write_buffer: 64 << 20 };
        let cache = cache(MEMORY);
        let mut options = options(MEMORY, &cache);
        options.create_if_missing(false);
        let db = Arc::new(DB::open_for_read_only(&options, copy, false)?);
        Ok(Store { db, chain: Arc::default(), cache })
    }

    /// Copies everything as of a commit at or after this call into a directory that must not exist. Table files become
    /// hard links where the file system is the same. Writers go on meanwhile.
    pub fn checkpoint(&self, into: &Path) -> Result<(), StoreError> {
        Ok(Checkpoint::new(&self.db)?.create_checkpoint(into)?)
    }

    /// The data directory it is in.
    #[must_use]
    pub fn data(&self) -> &Path {
        self.db.path().parent().unwrap_or(self.db.path())
    }

    /// What it takes of the memory that it was given.
    pub fn memory_use(&self) -> StoreMemoryUse {
        let memtables = self.db.property_int_value(properties::SIZE_ALL_MEM_TABLES).ok().flatten();
        StoreMemoryUse { block_cache: self.cache.get_usage() as u64, memtables: memtables.unwrap_or_default() }
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.db.get(key)?)
    }

    /// Looks at the value of a key without copying it.
    pub fn get_with<R>(&self, key: &[u8], read: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, StoreError> {
        Ok(self.db.get_pinned(key)?.map(|value| read(&value)))
    }

    /// Whether no key lies in the range.
    pub fn is_empty(&self, range: &Range) -> Result<bool, StoreError> {
        // One key says it: nothing is read ahead, as scans do, and no snapshot has to be held.
        let mut cursor = self.db.raw_iterator_opt(view::within(range));
        cursor.seek_to_first();
        let empty = !cursor.valid();
        cursor.status()?;
        Ok(empty)
    }

    /// Writes a batch: all of it or nothing. Visible at once, durable after [`Store::sync`].
    pub fn write(&self, batch: Batch) -> Result<(), StoreError> {
        self.db.write(batch.0)?;
        self.chain.go_on(&self.db);
        Ok(())
    }

    /// Writes a batch that need not survive a crash before the next [`Store::flush`]: cells of an initial snapshot, which
    /// starts over anyway.
    pub fn write_unlogged(&self, batch: Batch) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        Ok(self.db.write_opt(batch.0, &options)?)
    }

    /// Makes everything written so far with [`Store::write`] survive a crash of the machine.
    pub fn sync(&self) -> Result<(), StoreError> {
        Ok(log::sync(self.db.path())?)
    }

    /// Makes everything written so far, logged or not, survive a crash of the machine.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.chain.end_memtable(&self.db);
        Ok(self.db.flush()?)
    }

    /// Everything as of now, for as long as the view lives.
    #[must_use]
    pub fn view(&self) -> View {
        View::new(self.clone())
    }

    /// Adds the deletion of a range to a batch: key by key where there are few, because many range tombstones slow scans.
    pub fn delete_range(&self, batch: &mut Batch, range: &Range) -> Result<(), StoreError> {
        const FEW: usize = 10_000;
        let mut keys = Vec::new();
        let read = self.view().scan(range, |key, _| {
            keys.push(key.to_vec());
            if keys.len() > FEW { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
        });
        // What cannot be read can still be removed.
        if read.is_err() || keys.len() > FEW {
            batch.0.delete_range(&range.from, &range.to);
        } else {
            keys.iter().for_each(|key| batch.delete(key));
        }
        Ok(())
    }

    /// Removes ranges and gives their space back, with everything that an unfinished initial snapshot left.
    pub fn clear(&self, ranges: &[Range]) -> Result<(), StoreError> {
        row_files::remove_leftovers(self.db.path())?;
        if self.db.latest_sequence_number() == 0 && self.db.live_files()?.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        for range in ranges {
            batch.0.delete_range(&range.from, &range.to);
        }
        self.write(batch)?;
        self.sync()?;
        for range in ranges {
            self.db.delete_file_in_range(&range.from, &range.to)?;
            self.db.compact_range(Some(&range.from), Some(&range.to));
        }
        Ok(())
    }
}

/// Why RocksDB did not open the store. It says so in words only: the wrapper passes on no number.
fn not_opened(data: &Path, error: rocksdb::Error) -> OpenError {
    let text = error.into_string();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    // The system's own refusals come before the lock: a lock file that cannot be made is not held by anybody.
    if says(&["Permission denied", "Read-only"]) {
        return format::not_writable(&data.display().to_string(), text);
    }
    if says(&["Too many open files", "Cannot allocate memory"]) {
        let message = format!("cannot open the store in {}: {text}", data.display());
        return OpenError::cannot_start(message, "raise the limit of open files, or give it more memory");
    }
    // Not just "lock": of a damaged file RocksDB says that a block mismatches.
    if !says(&[NO_SPACE]) && says(&["lock file", "lock hold"]) {
        return OpenError::new(
            "data_in_use",
            format!("{} is in use by another process", data.display()),
            "stop the other Tidemark, or name another directory with --data",
        )
        .passing();
    }
    damaged(data, text)
}

/// How the system itself names ENOSPC.
const NO_SPACE: &str = "No space left on device";

/// The store in a data directory cannot be used.
pub(crate) fn damaged(data: &Path, what: impl std::fmt::Display) -> OpenError {
    let message = format!("cannot open the store in {}: {what}", data.display());
    if message.contains("Input/output error") {
        return disk_failed(message);
    }
    if message.contains(NO_SPACE) {
        return disk_full(message);
    }
    OpenError::new(
        "data_damaged",
        message,
        "start over with an empty directory (--data NEWDIR): everything is derived and is read from upstream again",
    )
}

fn disk_failed(message: String) -> OpenError {
    let remedy = "see that the disk works, then start tidemark again: nothing says yet that what is on it is damaged";
    OpenError::new("disk_failed", message, remedy).passing()
}

fn disk_full(message: String) -> OpenError {
    OpenError::new("disk_full", message, "make space there, then start tidemark again: nothing is lost").passing()
}

/// Changes that happen together.
#[derive(Default)]
pub struct Batch(WriteBatch);

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.0.put(key, value);
    }

    /// Removes a key.
    pub fn delete(&mut self, key: &[u8]) {
        self.0.delete(key);
    }

    /// The same changes once more.
    #[must_use]
    pub fn copy(&self) -> Batch {
        Batch(WriteBatch::from_data(self.0.data()))
    }

    /// Number of changes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True where there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// How table files are made. Indexes and filters lie in them in small parts: those of a large file are megabytes, and where the
/// cache cannot hold one, every look-up would read and check all of it.
fn table_format() -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_format_version(TABLE_FORMAT);
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(4 << 10);
    table
}

fn cache(memory: StoreMemory) -> Cache {
    Cache::new_hyper_clock_cache(memory.block_cache, 0)
}

fn options(memory: StoreMemory, cache: &Cache) -> Options {
    let mut table = table_format();
    table.set_bloom_filter(BITS_PER_KEY, false);
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_pin_top_level_index_and_filter(true);

    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(memory.write_buffer);
    options.set_max_write_buffer_number(4);
    options.set_max_total_wal_size(256 << 20);
    options.set_max_background_jobs(2);
    // Files of one memtable each: merging four of them at a time rewrites recent data more often than it helps reads.
    options.set_level_zero_file_num_compaction_trigger(8);
    // One thread writes: the locks that let several insert into one memtable only cost.
    options.set_allow_concurrent_memtable_write(false);
    options.set_keep_log_file_num(10);
    options.set_max_log_file_size(16 << 20);
    // What it grows by: 4 MiB unless said, which a full disk would miss and each start has to write.
    options.set_manifest_preallocation_size(64 << 10);
    options.set_periodic_compaction_seconds(14 * 24 * 3_600);
    options
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rocksdb::perf::{PerfContext, PerfMetric, PerfStatsLevel, set_perf_stats};
    use rocksdb::{BottommostLevelCompaction, CompactOptions};

    use super::{Batch, Hindrance, Store, StoreMemory};

    #[test]
    fn a_disk_that_does_not_answer_is_no_reason_to_start_over() {
        let code = |what: &str| super::damaged(std::path::Path::new("data"), what).code;
        assert_eq!(
            code("IO error: Input/output error: While pread offset 0 len 48: data/store/000012.sst"),
            "disk_failed"
        );
        assert_eq!(code("Corruption: block checksum mismatch"), "data_damaged");
        assert_eq!(code("IO error: No space left on device: While appending to file"), "disk_full");
    }

    /// What a supervisor tries again is told from what it had better not.
    #[test]
    fn what_passes_by_itself_is_told_apart() {
        use std::io::{Error, ErrorKind};
        let directory = std::path::Path::new("data");
        let met = |number: i32| {
            let error = super::format::not_usable(directory, &Error::from_raw_os_error(number));
            (error.code, error.hindrance)
        };
        let (standing, passing) = (Hindrance::Standing, Hindrance::Passing);
        assert_eq!(met(rustix::io::Errno::NOSPC.raw_os_error()), ("disk_full", passing));
        assert_eq!(met(rustix::io::Errno::DQUOT.raw_os_error()), ("disk_full", passing));
        assert_eq!(met(rustix::io::Errno::IO.raw_os_error()), ("disk_failed", passing));
        assert_eq!(met(rustix::io::Errno::MFILE.raw_os_error()), ("cannot_start", passing));
        assert_eq!(met(rustix::io::Errno::NOMEM.raw_os_error()), ("cannot_start", passing));
        for kind in [ErrorKind::PermissionDenied, ErrorKind::NotADirectory, ErrorKind::ReadOnlyFilesystem] {
            let error = super::format::not_usable(directory, &Error::from(kind));
            assert_eq!((error.code, error.hindrance), ("data_not_writable", standing), "{kind}");
        }
        let damaged = |what: &str| super::damaged(directory, what).hindrance;
        assert_eq!(damaged("Corruption: block checksum mismatch"), standing);
        assert_eq!(damaged("IO error: Input/output error: While pread"), passing);

        let data = tempfile::tempdir().unwrap();
        let open = Store::open(data.path(), StoreMemory::default()).unwrap();
        let error = Store::open(data.path(), StoreMemory::default()).err().unwrap();
        assert_eq!((error.code, error.hindrance), ("data_in_use", passing));
        drop(open);
        std::fs::write(data.path().join("store/CURRENT"), "MANIFEST-000099\n").unwrap();
        let error = Store::open(data.path(), StoreMemory::default()).err().unwrap();
        assert_eq!((error.code, error.hindrance), ("data_damaged", standing));
    }

    #[test]
    fn a_look_up_reads_little_where_the_cache_is_smaller_than_the_index() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), StoreMemory { block_cache: 1 << 20, write_buffer: 1 << 20 }).unwrap();
        let keys: Vec<[u8; 8]> = (0..2_000_000u64).map(u64::to_be_bytes).collect();
        for chunk in keys.chunks(10_000) {
            let mut batch = Batch::default();
            chunk.iter().for_each(|key| batch.put(key, &key.repeat(3)));
            store.write(batch).unwrap();
        }
        let mut into_one_file = CompactOptions::default();
        into_one_file.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        store.db.compact_range_opt::<&[u8], &[u8]>(None, None, &into_one_file);

        set_perf_stats(PerfStatsLevel::EnableCount);
        let mut counted = PerfContext::default();
        counted.reset();
        // Far from each other, as the groups of a question are.
        let asked: Vec<&[u8; 8]> = keys.iter().cycle().step_by(79_193).take(1_000).collect();
        for key in &asked {
            assert!(store.get(*key).unwrap().is_some());
        }
        let read_bytes = counted.metric(PerfMetric::BlockReadByte) / asked.len() as u64;
        assert!(read_bytes < 32 << 10, "{read_bytes} bytes for each look-up");
    }
}
