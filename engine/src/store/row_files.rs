//! Rows of an initial snapshot as files of the store, written sorted, once, and taken in as they are.
//!
//! ```text
//! groups --> stretches of ascending keys --+-- goes on where an open file ends --> that file
//!                                          +-- long, and near no file ----------> a file of its own
//!                                          +-- short ---------------------------> gathered, sorted, a file
//! ```
//!
//! The usual way of a row (memtable, flush, compaction) costs three times as much. Readers go through ranges of a table's
//! pages, and rows mostly lie there in the order of their keys: a file a range then overlaps no other, lands on the last
//! level and is never written again. Rows in any other order are sorted as a memtable would, and compacted later.
//!
//! Files are made in `DATA/snapshot/` and become part of the store while the snapshot goes on. Until its cursor is
//! written nothing of it counts: the next start removes that directory and whatever rows the store has.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rocksdb::{DBCompressionType, IngestExternalFileOptions, Options, SstFileWriter};

use super::{Store, StoreError};
use crate::commit_group::GroupRows;
use crate::pipeline::yield_to_the_source;
use crate::torture::{self, Failpoint};

/// Groups that wait to be written, at most.
const WAITING_GROUPS: usize = 8;

/// When which file is complete.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Bytes of keys and rows from which on a file is complete.
    file_bytes: usize,
    /// Bytes of short stretches from which on they make a file.
    short_bytes: usize,
    /// Rows below which a stretch that continues no file is not worth one.
    long_stretch: usize,
    /// Open files, at most.
    open_files: usize,
    /// A file that none of so many last stretches continued is complete: its reader has gone on to another range.
    idle_stretches: u64,
    /// Complete files that are taken into the store at once.
    files_at_once: usize,
}

/// As many open files as there can be readers, and in memory what a memtable would take.
const LIMITS: Limits = Limits {
    file_bytes: 128 << 20,
    short_bytes: 64 << 20,
    long_stretch: 256,
    open_files: 16,
    idle_stretches: 16,
    files_at_once: 2,
};

/// Writes rows into files of their own, on a thread.
pub struct RowFiles {
    groups: Option<SyncSender<Arc<GroupRows>>>,
    thread: Option<JoinHandle<Result<(), StoreError>>>,
}

impl RowFiles {
    /// Rows that the store does not have yet; each key once.
    pub fn start(store: Store) -> Result<RowFiles, StoreError> {
        let (groups, received) = sync_channel(WAITING_GROUPS);
        let run = move || {
            yield_to_the_source();
            write_all(&store, &received)
        };
        let thread = std::thread::Builder::new().name("tidemark-rows".to_owned()).spawn(run)?;
        Ok(RowFiles { groups: Some(groups), thread: Some(thread) })
    }

    /// Adds the row images of a group.
    pub fn add(&mut self, rows: &Arc<GroupRows>) -> Result<(), StoreError> {
        match &self.groups {
            Some(groups) if groups.send(Arc::clone(rows)).is_ok() => Ok(()),
            // It ended early: it says why.
            _ => self.end(),
        }
    }

    /// Returns once all rows are in the store and survive a crash of the machine.
    pub fn finish(mut self) -> Result<(), StoreError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), StoreError> {
        drop(self.groups.take());
        let ended = self.thread.take().map(JoinHandle::join);
        ended
            .unwrap_or_else(|| Ok(Ok(())))
            .unwrap_or_else(|_| Err(StoreError::Io("the writer of rows died".to_owned())))
    }
}

impl Drop for RowFiles {
    fn drop(&mut self) {
        // The store must not be in use any more once its engine has ended.
        let _ = self.end();
    }
}

/// Removes the files that an earlier process did not finish.
pub(super) fn remove_leftovers(store: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(directory(store)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn directory(store: &Path) -> PathBuf {
    store.with_file_name("snapshot")
}

fn write_all(store: &Store, groups: &Receiver<Arc<GroupRows>>) -> Result<(), StoreError> {
    remove_leftovers(store.db.path())?;
    let directory = directory(store.db.path());
    fs::create_dir_all(&directory)?;
    let kinds = Kinds::default();
    let mut files = Files::new(store, &kinds, directory, LIMITS);
    for rows in groups {
        files.add(&rows)?;
    }
    files.finish()
}

type Row<'a> = (&'a [u8], &'a [u8]);

/// A file that is being written.
struct Open<'o> {
    writer: SstFileWriter<'o>,
    path: PathBuf,
    /// Its last key.
    last: Vec<u8>,
    bytes: usize,
    /// The stretch that it took last.
    stretch: u64,
}

impl Open<'_> {
    fn put(&mut self, (key, row): Row<'_>) -> Result<(), StoreError> {
        self.bytes += key.len() + row.len();
        Ok(self.writer.put(key, row)?)
    }
}

/// Rows of short stretches.
#[derive(Default)]
struct Short {
    bytes: Vec<u8>,
    /// Start of the key, its end, end of the row.
    rows: Vec<(usize, usize, usize)>,
}

impl Short {
    fn push(&mut self, (key, row): Row<'_>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(key);
        let key_end = self.bytes.len();
        self.bytes.extend_from_slice(row);
        self.rows.push((start, key_end, self.bytes.len()));
    }

    /// In the order of keys; of equal ones the last.
    fn sorted(&self) -> Vec<Row<'_>> {
        let piece = |from: usize, to: usize| self.bytes.get(from..to).unwrap_or_default();
        let mut rows: Vec<Row<'_>> =
            self.rows.iter().map(|(start, key, row)| (piece(*start, *key), piece(*key, *row))).collect();
        // Stable, and turned round: of equal keys the first one is kept.
        rows.reverse();
        rows.sort_by(|a, b| a.0.cmp(b.0));
        rows.dedup_by(|a, b| a.0 == b.0);
        rows
    }
}

struct Files<'o> {
    store: &'o Store,
    kinds: &'o Kinds,
    directory: PathBuf,
    limits: Limits,
    made: u64,
    stretches: u64,
    /// The one that took a stretch last is the last.
    open: Vec<Open<'o>>,
    short: Short,
    complete: Vec<PathBuf>,
}

impl<'o> Files<'o> {
    fn new(store: &'o Store, kinds: &'o Kinds, directory: PathBuf, limits: Limits) -> Self {
        let (open, short, complete) = (Vec::new(), Short::default(), Vec::new());
        Files { store, kinds, directory, limits, made: 0, stretches: 0, open, short, complete }
    }

    fn create(&mut self, options: &'o Options) -> Result<Open<'o>, StoreError> {
        self.made += 1;
        let path = self.directory.join(format!("{}.sst", self.made));
        let writer = SstFileWriter::create(options);
        writer.open(&path)?;
        Ok(Open { writer, path, last: Vec::new(), bytes: 0, stretch: 0 })
    }

    fn add(&mut self, group: &GroupRows) -> Result<(), StoreError> {
        let rows: Vec<Row<'_>> = group.writes().filter_map(|(key, row)| Some((key, row?))).collect();
        for stretch in rows.chunk_by(|before, after| before.0 < after.0) {
            self.stretch(stretch)?;
        }
        if self.short.bytes.len() >= self.limits.short_bytes {
            self.write_short()?;
        }
        while self.open.first().is_some_and(|file| file.stretch + self.limits.idle_stretches < self.stretches) {
            self.complete_oldest()?;
        }
        if self.complete.len() >= self.limits.files_at_once {
            self.take_in()?;
        }
        Ok(())
    }

    fn stretch(&mut self, rows: &[Row<'_>]) -> Result<(), StoreError> {
        let (Some((first, _)), Some((last, _))) = (rows.first(), rows.last()) else { return Ok(()) };
        self.stretches += 1;
        let continued = self.open.iter().rposition(|file| continues(&file.last, first, last, rows.len()));
        let mut file = match continued {
            Some(at) => self.open.remove(at),
            None if rows.len() < self.limits.long_stretch => {
                rows.iter().for_each(|row| self.short.push(*row));
                return Ok(());
            }
            None => self.create(&self.kinds.apart)?,
        };
        rows.iter().try_for_each(|row| file.put(*row))?;
        file.last.clear();
        file.last.extend_from_slice(last);
        file.stretch = self.stretches;
        if file.bytes >= self.limits.file_bytes {
            return self.complete(file);
        }
        self.open.push(file);
        if self.open.len() > self.limits.open_files { self.complete_oldest() } else { Ok(()) }
    }

    fn write_short(&mut self) -> Result<(), StoreError> {
        let short = std::mem::take(&mut self.short);
        if short.rows.is_empty() {
            return Ok(());
        }
        let mut file = self.create(&self.kinds.overlapping)?;
        short.sorted().into_iter().try_for_each(|row| file.put(row))?;
        self.complete(file)
    }

    fn finish(mut self) -> Result<(), StoreError> {
        self.write_short()?;
        while !self.open.is_empty() {
            self.complete_oldest()?;
        }
        torture::reached(Failpoint::SnapshotFilesWritten);
        self.take_in()?;
        Ok(fs::remove_dir_all(&self.directory)?)
    }

    fn complete_oldest(&mut self) -> Result<(), StoreError> {
        let file = self.open.remove(0);
        self.complete(file)
    }

    fn complete(&mut self, mut file: Open<'_>) -> Result<(), StoreError> {
        file.writer.finish()?;
        self.complete.push(file.path);
        Ok(())
    }

    fn take_in(&mut self) -> Result<(), StoreError> {
        if self.complete.is_empty() {
            return Ok(());
        }
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        Ok(self.store.db.ingest_external_file_opts(&options, std::mem::take(&mut self.complete))?)
    }
}

/// Whether a stretch of so many rows belongs into the file that ends with `end`: it begins a few rows after it, judged by
/// how far its own are apart. Further on, rows are to be expected in between, and another reader is at them.
fn continues(end: &[u8], first: &[u8], last: &[u8], rows: usize) -> bool {
    const FEW: u128 = 32;
    if end >= first {
        return false;
    }
    let common = end.iter().zip(last).take_while(|(a, b)| a == b).count();
    let number = |key: &[u8]| {
        let mut bytes = [0u8; 8];
        bytes.iter_mut().zip(key.iter().skip(common)).for_each(|(slot, byte)| *slot = *byte);
        u64::from_be_bytes(bytes)
    };
    let (gap, length) = (number(first).saturating_sub(number(end)), number(last).saturating_sub(number(first)));
    u128::from(gap) * rows as u128 <= u128::from(length) * FEW
}

/// How files are written.
struct Kinds {
    /// Rarely the same keys as another: a row that is looked up is in the one file that can have it.
    apart: Options,
    /// The same keys as others: a filter says which have the row.
    overlapping: Options,
}

impl Default for Kinds {
    fn default() -> Self {
        let options = |filter: bool| {
            let mut table = super::table_format();
            if filter {
                table.set_bloom_filter(super::BITS_PER_KEY, false);
            }
            let mut options = Options::default();
            options.set_block_based_table_factory(&table);
            options.set_compression_type(DBCompressionType::Lz4);
            options
        };
        Kinds { apart: options(false), overlapping: options(true) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;
    use std::ops::ControlFlow;

    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::change::TableId;
    use crate::store::{StoreMemory, key};

    const TABLE: TableId = TableId(7);

    fn row_key(id: u64) -> Vec<u8> {
        let mut key = Vec::new();
        key::push_row_prefix(&mut key, TABLE);
        key.extend_from_slice(&id.to_be_bytes());
        key
    }

    fn group(ids: impl IntoIterator<Item = u64>) -> GroupRows {
        let mut rows = GroupRows::default();
        for id in ids {
            let key = rows.store(&row_key(id)).unwrap();
            let row = rows.store(format!("row {id}").as_bytes()).unwrap();
            rows.write_once(key, row);
        }
        rows
    }

    fn stored(store: &Store) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut rows = BTreeMap::new();
        let scanned = store.view().scan(&key::rows(TABLE), |key, row| {
            assert!(rows.insert(key.to_vec(), row.to_vec()).is_none());
            ControlFlow::Continue(())
        });
        scanned.unwrap();
        rows
    }

    fn expected(ids: impl Iterator<Item = u64>) -> BTreeMap<Vec<u8>, Vec<u8>> {
        ids.map(|id| (row_key(id), format!("row {id}").into_bytes())).collect()
    }

    /// Batches of readers that take ranges one after the other; in some ranges rows lie in disorder.
    fn batches(rng: &mut ChaCha8Rng, rows: u64, readers: usize, disorder: f64) -> Vec<Vec<u64>> {
        let length = rng.random_range(50..400);
        let ranges: Vec<Vec<u64>> = (0..rows.div_ceil(length))
            .map(|range| {
                let mut ids: Vec<u64> = (range * length..rows.min((range + 1) * length)).map(|id| id * 3).collect();
                if rng.random_bool(disorder) {
                    ids.shuffle(rng);
                }
                ids
            })
            .collect();
        let mut waiting = ranges.into_iter();
        let mut reading: Vec<std::vec::IntoIter<u64>> = waiting.by_ref().take(readers).map(Vec::into_iter).collect();
        let mut batches = Vec::new();
        while !reading.is_empty() {
            let reader = rng.random_range(0..reading.len());
            let batch: Vec<u64> = reading.get_mut(reader).unwrap().take(rng.random_range(1..40)).collect();
            if batch.is_empty() {
                match waiting.next() {
                    Some(range) => *reading.get_mut(reader).unwrap() = range.into_iter(),
                    None => drop(reading.remove(reader)),
                }
            }
            batches.push(batch);
        }
        batches
    }

    #[test]
    fn every_row_is_in_the_store_whatever_the_order() {
        for seed in 0..20 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let data = tempfile::tempdir().unwrap();
            let store = Store::open(data.path(), StoreMemory::default()).unwrap();
            let rows = rng.random_range(0..4_000);
            let (readers, disorder) = (rng.random_range(1..6), rng.random_range(0.0..1.0));
            let limits = Limits {
                file_bytes: rng.random_range(1_000..50_000),
                short_bytes: rng.random_range(1_000..50_000),
                long_stretch: rng.random_range(1..60),
                open_files: rng.random_range(1..6),
                idle_stretches: rng.random_range(1..30),
                files_at_once: rng.random_range(1..4),
            };
            let (kinds, directory) = (Kinds::default(), directory(store.db.path()));
            fs::create_dir_all(&directory).unwrap();
            let mut files = Files::new(&store, &kinds, directory.clone(), limits);
            for batch in batches(&mut rng, rows, readers, disorder) {
                files.add(&group(batch)).unwrap();
            }
            files.finish().unwrap();
            assert_eq!(stored(&store), expected((0..rows).map(|id| id * 3)), "seed {seed}: {limits:?}");
            assert!(!directory.exists(), "seed {seed}");
        }
    }

    #[test]
    fn ranges_that_are_read_side_by_side_are_never_written_again() {
        let data = tempfile::tempdir().unwrap();
        let store = Store::open(data.path(), StoreMemory::default()).unwrap();
        let mut files = RowFiles::start(store.clone()).unwrap();
        for batch in 0..20 {
            for range in 0..3 {
                let first = range * 1_000_000 + batch * 1_000;
                files.add(&Arc::new(group(first..first + 1_000))).unwrap();
            }
        }
        files.finish().unwrap();
        let levels: Vec<i32> = store.db.live_files().unwrap().iter().map(|file| file.level).collect();
        assert_eq!(levels, [6, 6, 6]);
        assert_eq!(stored(&store).len(), 60_000);
    }

    #[test]
    fn what_an_unfinished_snapshot_left_is_gone_from_the_disk() {
        let data = tempfile::tempdir().unwrap();
        let store = Store::open(data.path(), StoreMemory::default()).unwrap();
        let mut files = RowFiles::start(store.clone()).unwrap();
        files.add(&Arc::new(group(0..1_000))).unwrap();
        files.add(&Arc::new(group((0..1_000).map(|id| (id * 7_919) % 100_003)))).unwrap();
        files.finish().unwrap();
        assert!(store.db.live_files().unwrap().len() > 1);
        let directory = directory(store.db.path());
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("1.sst"), "half a file").unwrap();
        store.clear(&[key::of_kind(key::KeyKind::Row)]).unwrap();
        assert!(stored(&store).is_empty() && !directory.exists());
        // A link of the chain is all there is.
        assert_eq!(store.db.live_files().unwrap().iter().map(|file| file.num_entries).sum::<u64>(), 1);
    }

    #[test]
    fn a_stretch_continues_what_it_lies_next_to() {
        let (end, key) = (row_key(1_000), row_key);
        assert!(continues(&end, &key(1_001), &key(1_500), 500));
        assert!(!continues(&end, &key(1_000), &key(1_500), 501));
        assert!(!continues(&end, &key(900), &key(1_500), 601));
        assert!(!continues(&end, &key(1_200), &key(1_700), 501));
        assert!(continues(&end, &key(3_000), &key(100_000), 50));
        assert!(continues(b"merchant-1000", b"merchant-1001", b"merchant-1500", 500));
        assert!(!continues(b"", b"", b"", 1));
    }
}
