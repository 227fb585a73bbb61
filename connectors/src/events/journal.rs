//! What was answered as taken and is not yet durable in the engine: lines on disk, synced before the answer, read again
//! after a restart. So one small request costs one sync of a small file, and the beginning of a transaction can be taken
//! before its end came.
//!
//! ```text
//! DIR/journal-00000007     [length u32][checksum u64][kind u8, text] ...      begins with a checkpoint, except for the first
//! DIR/journal-00000008     begun when the one before was long; that one goes once all it holds is durable in the engine
//! ```
//!
//! A tail that a crash left half written was never answered; it is cut off.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use engine::change::Lsn;

/// Least length from which on a new file is begun.
const LONG: u64 = 4 << 20;

/// One thing that was written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The ledger, as JSON; what was read before is behind it.
    Checkpoint(Vec<u8>),
    /// A line that the checkpoint counts as seen, whose transaction had not ended.
    Waiting(Vec<u8>),
    /// A line that was taken.
    Line(Vec<u8>),
    /// A request ended.
    EndOfRequest,
    /// The initial snapshot was said to be complete.
    EndOfSnapshot,
}

impl Entry {
    fn parts(&self) -> (u8, &[u8]) {
        match self {
            Entry::Checkpoint(text) => (1, text),
            Entry::Waiting(text) => (2, text),
            Entry::Line(text) => (3, text),
            Entry::EndOfRequest => (4, &[]),
            Entry::EndOfSnapshot => (5, &[]),
        }
    }

    fn of(kind: u8, text: &[u8]) -> Option<Entry> {
        Some(match kind {
            1 => Entry::Checkpoint(text.to_vec()),
            2 => Entry::Waiting(text.to_vec()),
            3 => Entry::Line(text.to_vec()),
            4 => Entry::EndOfRequest,
            5 => Entry::EndOfSnapshot,
            _ => return None,
        })
    }
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    file: File,
    number: u64,
    length: u64,
    /// Length from which on a new file is begun: several times what the checkpoint took, which is all written again.
    long: u64,
    /// Full ones, and the position that has to be durable before they go.
    full: Vec<(u64, Lsn)>,
}

impl Journal {
    /// Opens the journal of a directory, which is made where it is not there; hands all entries to `read`, in order.
    pub fn open(directory: &Path, mut read: impl FnMut(Entry)) -> io::Result<Journal> {
        fs::create_dir_all(directory)?;
        let mut numbers = Vec::new();
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("journal-")?.parse::<u64>().ok());
            numbers.extend(number);
        }
        numbers.sort_unstable();
        let mut last = None;
        for number in &numbers {
            let bytes = fs::read(path(directory, *number))?;
            let whole = entries(&bytes, &mut read);
            last = Some((*number, whole as u64));
        }
        let (number, length) = last.unwrap_or((1, 0));
        let file = OpenOptions::new().create(true).append(true).open(path(directory, number))?;
        file.set_len(length)?;
        file.sync_all()?;
        File::open(directory)?.sync_all()?;
        let full = numbers.iter().filter(|other| **other != number).map(|other| (*other, Lsn(u64::MAX))).collect();
        Ok(Journal { directory: directory.to_owned(), file, number, length, long: LONG.max(length * 3), full })
    }

    /// Writes entries; they are on disk when it returns.
    pub fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let bytes = frames(entries);
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Begins a new file where this one is long, from a checkpoint at `position`.
    pub fn turn(&mut self, position: Lsn, checkpoint: impl FnOnce() -> io::Result<Vec<Entry>>) -> io::Result<()> {
        if self.length < self.long {
            return Ok(());
        }
        let entries = checkpoint()?;
        let number = self.number + 1;
        // Under another name until it is complete: a file without its checkpoint would lose what was before.
        let unfinished = self.directory.join("journal.new");
        let bytes = frames(&entries);
        let mut file = File::create(&unfinished)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path(&self.directory, number))?;
        File::open(&self.directory)?.sync_all()?;
        self.file = OpenOptions::new().append(true).open(path(&self.directory, number))?;
        self.full.push((self.number, position));
        (self.number, self.length) = (number, bytes.len() as u64);
        self.long = LONG.max(self.length * 3);
        Ok(())
    }

    /// All that was read on opening has this position or an earlier one.
    pub fn read_up_to(&mut self, position: Lsn) {
        self.full.iter_mut().for_each(|(_, until)| *until = position.min(*until));
    }

    /// Removes files that hold only what is durable in the engine.
    pub fn forget(&mut self, durable: Lsn) -> io::Result<()> {
        while let Some((number, _)) = self.full.first().filter(|(_, until)| *until <= durable) {
            fs::remove_file(path(&self.directory, *number))?;
            self.full.remove(0);
        }
        Ok(())
    }
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("journal-{number:08}"))
}

fn frames(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        let (kind, text) = entry.parts();
        let length = u32::try_from(text.len() + 1).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&checksum(kind, text).to_le_bytes());
        bytes.push(kind);
        bytes.extend_from_slice(text);
    }
    bytes
}

/// Reads whole entries; returns the length of those.
fn entries(bytes: &[u8], read: &mut impl FnMut(Entry)) -> usize {
    let mut rest = bytes;
    while let Some((entry, after)) = take(rest) {
        read(entry);
        rest = after;
    }
    bytes.len() - rest.len()
}

fn take(bytes: &[u8]) -> Option<(Entry, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<8>()?;
    let (frame, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    let (kind, text) = frame.split_first()?;
    if checksum(*kind, text) != u64::from_le_bytes(*sum) {
        return None;
    }
    Some((Entry::of(*kind, text)?, rest))
}

/// FNV-1a. Against half-written tails, not against malice.
fn checksum(kind: u8, text: &[u8]) -> u64 {
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
    text.iter().fold(hash(0xCBF2_9CE4_8422_2325, &kind), hash)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn read(directory: &Path) -> Vec<Entry> {
        let mut all = Vec::new();
        Journal::open(directory, |entry| all.push(entry)).unwrap();
        all
    }

    fn line(text: &str) -> Entry {
        Entry::Line(text.as_bytes().to_vec())
    }

    #[test]
    fn what_was_appended_is_read_again_and_a_torn_tail_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path(), |_| {}).unwrap();
        let whole = [line("{}"), Entry::EndOfRequest, Entry::EndOfSnapshot];
        journal.append(&whole).unwrap();
        let file = path(directory.path(), 1);
        let length = fs::metadata(&file).unwrap().len();
        journal.append(&[line("the answer to this one never left")]).unwrap();
        let all = fs::metadata(&file).unwrap().len();
        for cut in [length + 1, length + 12, all - 1] {
            OpenOptions::new().write(true).open(&file).unwrap().set_len(cut).unwrap();
            assert_eq!(read(directory.path()), whole);
            assert_eq!(fs::metadata(&file).unwrap().len(), length);
            let mut journal = Journal::open(directory.path(), |_| {}).unwrap();
            journal.append(&[line("the answer to this one never left")]).unwrap();
        }
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
        assert_eq!(read(directory.path()), whole);
    }

    #[test]
    fn a_long_file_goes_once_all_of_it_is_durable() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path(), |_| {}).unwrap();
        let long = line(&"x".repeat(LONG as usize));
        journal.append(std::slice::from_ref(&long)).unwrap();
        let checkpoint = || Ok(vec![Entry::Checkpoint(b"{}".to_vec()), Entry::Waiting(b"1".to_vec())]);
        journal.turn(Lsn(50), checkpoint).unwrap();
        journal.append(&[line("after")]).unwrap();
        journal.turn(Lsn(60), || panic!("it is short")).unwrap();
        journal.forget(Lsn(49)).unwrap();
        assert_eq!(read(directory.path()).len(), 4);
        journal.forget(Lsn(50)).unwrap();
        let rest = [Entry::Checkpoint(b"{}".to_vec()), Entry::Waiting(b"1".to_vec()), line("after")];
        assert_eq!(read(directory.path()), rest);
    }
}
