//! What was answered as taken and is not yet durable in the engine: lines on disk, synced before the answer, read again
//! after a restart. So one small request costs one sync of a small file, and the beginning of a transaction can be taken
//! before its end came.
//!
//! ```text
//! DIR/journal-00000007     [length u32][checksum u64][kind u8, text] ...      begins with a checkpoint, except for the first
//! DIR/journal-00000008     begun when the one before was long; that one goes once all it holds is durable in the engine
//!
//! a file     head: its checkpoint's length | checkpoint | request | note | request | note | ...
//! note       kind 6, [number u64][offset u64]: all of this file before the offset was on disk when this was written
//! ```
//!
//! A request that a crash left half written was never answered; it is cut off. The disk may have written any part of it and
//! left out any other, so what can be read behind a place that cannot says nothing; a note does. What cannot be read and lies
//! before one was answered, and is lost: then nothing is read, and nothing is cut. A note is not synced, so it costs nothing.
//! What a power cut takes with it is the note of the last request; with the next one it is on disk. Files of earlier versions
//! have no notes and get one when they are opened.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use engine::change::Lsn;

/// Least length from which on a new file is begun.
const LONG: u64 = 4 << 20;
/// Kind of a note.
const NOTE: u8 = 6;
/// Bytes of a note's kind and text.
const NOTE_FRAME: u32 = 17;
/// Bytes of all of a note.
const NOTE_LENGTH: usize = 12 + NOTE_FRAME as usize;

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
    /// The source ended here, because another history was posted; why.
    Diverged(Vec<u8>),
}

impl Entry {
    fn parts(&self) -> (u8, &[u8]) {
        match self {
            Entry::Checkpoint(text) => (1, text),
            Entry::Waiting(text) => (2, text),
            Entry::Line(text) => (3, text),
            Entry::EndOfRequest => (4, &[]),
            Entry::EndOfSnapshot => (5, &[]),
            Entry::Diverged(text) => (7, text),
        }
    }

    fn of(kind: u8, text: &[u8]) -> Option<Entry> {
        Some(match kind {
            1 => Entry::Checkpoint(text.to_vec()),
            2 => Entry::Waiting(text.to_vec()),
            3 => Entry::Line(text.to_vec()),
            4 => Entry::EndOfRequest,
            5 => Entry::EndOfSnapshot,
            7 => Entry::Diverged(text.to_vec()),
            _ => return None,
        })
    }
}

/// Why a journal is not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Something of what was on disk cannot be read any more. Everything before it was handed on; nothing was changed.
    #[error("{} cannot be read at byte {at}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where the request begins that cannot be read.
        at: u64,
        /// Others follow this file.
        others_follow: bool,
        /// It may lie in the checkpoint, without which nothing behind it means anything.
        in_checkpoint: bool,
    },
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
    pub fn open(directory: &Path, mut read: impl FnMut(Entry)) -> Result<Journal, OpenError> {
        fs::create_dir_all(directory)?;
        let mut numbers = Vec::new();
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("journal-")?.parse::<u64>().ok());
            numbers.extend(number);
        }
        numbers.sort_unstable();
        let (mut number, mut contents) = (1, Contents::default());
        for next in without_gaps(&numbers) {
            let file = path(directory, *next);
            let bytes = fs::read(&file)?;
            let others_follow = Some(next) != numbers.last();
            contents = Contents::read(&bytes, *next, others_follow, &mut read);
            if contents.is_damaged(&bytes, *next, others_follow) {
                let in_checkpoint = *next != 1 && !contents.has_requests;
                return Err(OpenError::Damaged { file, at: contents.whole as u64, others_follow, in_checkpoint });
            }
            number = *next;
        }
        let length = contents.whole as u64;
        let file = OpenOptions::new().create(true).append(true).open(path(directory, number))?;
        file.set_len(length)?;
        file.sync_all()?;
        File::open(directory)?.sync_all()?;
        let full = numbers.iter().filter(|other| **other != number).map(|other| (*other, Lsn(u64::MAX))).collect();
        let long = LONG.max(length * 3);
        let mut journal = Journal { directory: directory.to_owned(), file, number, length, long, full };
        if contents.noted < length {
            journal.note()?;
        }
        Ok(journal)
    }

    /// Writes entries; they are on disk when it returns.
    pub fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let bytes = frames(entries);
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.length += bytes.len() as u64;
        self.note()
    }

    /// Notes that everything so far is on disk.
    fn note(&mut self) -> io::Result<()> {
        let note = note(self.number, self.length);
        if self.file.write_all(&note).is_err() {
            // Missed only where the disk is damaged, too. Half of one must not lie before what is written next.
            return self.file.set_len(self.length);
        }
        self.length += note.len() as u64;
        Ok(())
    }

    /// Begins a new file where this one is long, from a checkpoint at `position`.
    pub fn turn(&mut self, position: Lsn, checkpoint: impl FnOnce() -> io::Result<Vec<Entry>>) -> io::Result<()> {
        if self.length < self.long {
            return Ok(());
        }
        let entries = frames(&checkpoint()?);
        let number = self.number + 1;
        let length = (NOTE_LENGTH + entries.len()) as u64;
        let bytes = [note(number, length), entries].concat();
        // Nothing of a file that others follow is a torn end, its last note included.
        self.file.sync_data()?;
        // Under another name until it is complete: a file without its checkpoint would lose what was before.
        let unfinished = self.directory.join("journal.new");
        let mut file = File::create(&unfinished)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path(&self.directory, number))?;
        File::open(&self.directory)?.sync_all()?;
        self.file = OpenOptions::new().append(true).open(path(&self.directory, number))?;
        self.full.push((self.number, position));
        (self.number, self.length) = (number, length);
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

/// The files that follow each other up to the last one. Of those that were to be forgotten, a crash may have kept any.
fn without_gaps(numbers: &[u64]) -> &[u64] {
    let follows = |pair: &[u64]| matches!(pair, [before, after] if before.checked_add(1) == Some(*after));
    let begin = numbers.windows(2).rposition(|pair| !follows(pair)).map_or(0, |gap| gap + 1);
    numbers.get(begin..).unwrap_or_default()
}

/// What of a file can be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Contents {
    /// Length of the requests that are whole.
    whole: usize,
    /// Length of what can be read, that of a request without its end included.
    readable: usize,
    /// All before was on disk, by its notes.
    noted: u64,
    /// There is more than a checkpoint.
    has_requests: bool,
}

impl Contents {
    /// Hands on the entries of whole requests. Where others follow the file, it has no torn end.
    fn read(bytes: &[u8], number: u64, others_follow: bool, read: &mut impl FnMut(Entry)) -> Contents {
        let mut contents = Contents::default();
        let (mut rest, mut request) = (bytes, Vec::new());
        while let Some((kind, text, after)) = frame(rest) {
            let end = bytes.len() - after.len();
            let (note, entry) = (noted(kind, text, number), Entry::of(kind, text));
            if note.is_none() && entry.is_none() {
                break;
            }
            contents.noted = note.map_or(contents.noted, |offset| contents.noted.max(offset).max(end as u64));
            contents.readable = end;
            let ends = !matches!(entry, Some(Entry::Line(_))) || (others_follow && after.is_empty());
            contents.has_requests |= matches!(entry, Some(Entry::Line(_) | Entry::EndOfRequest | Entry::EndOfSnapshot));
            request.extend(entry);
            if ends {
                request.drain(..).for_each(&mut *read);
                contents.whole = end;
            }
            rest = after;
        }
        contents
    }

    /// Whether something that was on disk cannot be read.
    fn is_damaged(&self, bytes: &[u8], number: u64, others_follow: bool) -> bool {
        // Only the first one begins empty.
        let begins = self.whole > 0 || number == 1;
        let ends = self.whole == bytes.len() || !others_follow;
        let behind = bytes.get(self.readable..).unwrap_or_default();
        !begins || !ends || (self.whole as u64) < self.noted || noted_behind(behind, self.whole as u64, number)
    }
}

/// Whether bytes that cannot be read from their beginning on hold a note that all up to beyond `whole` was on disk; or
/// something that was written whole and is not known here.
fn noted_behind(bytes: &[u8], whole: u64, number: u64) -> bool {
    let unknown = frame(bytes).is_some_and(|(kind, ..)| kind != NOTE);
    let note = |candidate: &[u8]| {
        let (kind, text, _) = frame(candidate)?;
        noted(kind, text, number)
    };
    let head = NOTE_FRAME.to_le_bytes();
    let mut candidates = bytes.windows(NOTE_LENGTH).filter(|window| window.starts_with(&head));
    unknown || candidates.any(|candidate| note(candidate).is_some_and(|offset| offset > whole))
}

fn frames(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        let (kind, text) = entry.parts();
        write_frame(&mut bytes, kind, text);
    }
    bytes
}

/// That all of file `number` before `offset` is on disk.
fn note(number: u64, offset: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(NOTE_LENGTH);
    write_frame(&mut bytes, NOTE, &[number.to_le_bytes(), offset.to_le_bytes()].concat());
    bytes
}

/// The offset that a note of this file names. A disk may show what it once held of another file.
fn noted(kind: u8, text: &[u8], number: u64) -> Option<u64> {
    let (of, offset) = text.split_first_chunk::<8>()?;
    let (offset, rest) = offset.split_first_chunk::<8>()?;
    let is_ours = kind == NOTE && u64::from_le_bytes(*of) == number && rest.is_empty();
    is_ours.then(|| u64::from_le_bytes(*offset))
}

fn write_frame(bytes: &mut Vec<u8>, kind: u8, text: &[u8]) {
    let length = u32::try_from(text.len() + 1).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&checksum(kind, text).to_le_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(text);
}

/// The kind and the text of the frame that bytes begin with, and what follows it.
fn frame(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<8>()?;
    let (frame, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    let (kind, text) = frame.split_first()?;
    (checksum(*kind, text) == u64::from_le_bytes(*sum)).then_some((*kind, text, rest))
}

/// FNV-1a. Against half-written tails and damage, not against malice.
fn checksum(kind: u8, text: &[u8]) -> u64 {
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
    text.iter().fold(hash(0xCBF2_9CE4_8422_2325, &kind), hash)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
    use proptest::prelude::*;

    use super::*;

    fn read(directory: &Path) -> Vec<Entry> {
        let mut all = Vec::new();
        Journal::open(directory, |entry| all.push(entry)).unwrap();
        all
    }

    fn line(text: &str) -> Entry {
        Entry::Line(text.as_bytes().to_vec())
    }

    fn damaged(directory: &Path) -> u64 {
        let Err(OpenError::Damaged { at, .. }) = Journal::open(directory, |_| {}) else { panic!() };
        at
    }

    fn change(file: &Path, at: usize) {
        let mut bytes = fs::read(file).unwrap();
        bytes[at] ^= 4;
        fs::write(file, bytes).unwrap();
    }

    #[test]
    fn what_was_appended_is_read_again_and_a_torn_tail_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path(), |_| {}).unwrap();
        let whole = [line("{}"), Entry::EndOfRequest, Entry::EndOfSnapshot];
        journal.append(&whole).unwrap();
        let file = path(directory.path(), 1);
        let length = fs::metadata(&file).unwrap().len();
        let unanswered = [line("the answer to this one never left"), line("{}"), Entry::EndOfRequest];
        journal.append(&unanswered).unwrap();
        let all = fs::metadata(&file).unwrap().len() - NOTE_LENGTH as u64;
        // The last cut leaves both lines, and not that they are all.
        for cut in [length + 1, length + 12, length + 60, all - 13, all - 1] {
            OpenOptions::new().write(true).open(&file).unwrap().set_len(cut).unwrap();
            assert_eq!(read(directory.path()), whole);
            assert_eq!(fs::metadata(&file).unwrap().len(), length);
            let mut journal = Journal::open(directory.path(), |_| {}).unwrap();
            journal.append(&unanswered).unwrap();
        }
        // Its note never reached the disk.
        OpenOptions::new().write(true).open(&file).unwrap().set_len(all).unwrap();
        change(&file, length as usize + 20);
        assert_eq!(read(directory.path()), whole);
    }

    #[test]
    fn damage_of_what_was_on_disk_is_no_torn_tail() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path(), |_| {}).unwrap();
        let request = [line("the answer to this one left"), Entry::EndOfRequest];
        journal.append(&request).unwrap();
        let file = path(directory.path(), 1);
        let second = fs::metadata(&file).unwrap().len();
        journal.append(&request).unwrap();
        let whole = fs::read(&file).unwrap();
        for at in 0..whole.len() - NOTE_LENGTH {
            change(&file, at);
            let before = fs::read(&file).unwrap();
            assert!([0, second - NOTE_LENGTH as u64, second].contains(&damaged(directory.path())), "{at}");
            assert_eq!(fs::read(&file).unwrap(), before);
            change(&file, at);
        }
        // The last note is all that nothing speaks for, and nothing is lost with it.
        change(&file, whole.len() - 1);
        assert_eq!(read(directory.path()), [request.clone(), request].concat());
        assert_eq!(fs::read(&file).unwrap(), whole);
    }

    #[test]
    fn a_file_that_others_follow_is_whole_and_one_that_follows_begins_with_its_checkpoint() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path(), |_| {}).unwrap();
        let request = [line("{}"), Entry::EndOfRequest];
        journal.append(&request).unwrap();
        journal.long = 0;
        journal.turn(Lsn(5), || Ok(vec![Entry::Checkpoint(b"{}".to_vec()), Entry::Waiting(b"1".to_vec())])).unwrap();
        let (first, second) = (path(directory.path(), 1), path(directory.path(), 2));
        for (file, cut) in [(&first, 1), (&first, NOTE_LENGTH + 1), (&second, 1), (&second, 15), (&second, 58)] {
            let whole = fs::read(file).unwrap();
            fs::write(file, &whole[..whole.len() - cut]).unwrap();
            damaged(directory.path());
            fs::write(file, whole).unwrap();
        }
        assert_eq!(read(directory.path()).len(), 4);
        // Of files that were to be forgotten a crash brings an earlier one back, and not the one after it.
        drop(journal);
        fs::rename(second, path(directory.path(), 3)).unwrap();
        fs::write(path(directory.path(), 3), frames(&[Entry::Checkpoint(b"{}".to_vec())])).unwrap();
        assert_eq!(read(directory.path()), [Entry::Checkpoint(b"{}".to_vec())]);
    }

    #[test]
    fn a_file_of_an_earlier_version_gets_its_note() {
        let directory = tempfile::tempdir().unwrap();
        let request = [line("{}"), Entry::EndOfRequest];
        let file = path(directory.path(), 1);
        fs::write(&file, [frames(&request), frames(&request), vec![9]].concat()).unwrap();
        let expected = [request.clone(), request].concat();
        assert_eq!(read(directory.path()), expected);
        let noted = fs::read(&file).unwrap();
        assert_eq!(noted, [frames(&expected), note(1, frames(&expected).len() as u64)].concat());
        assert_eq!(read(directory.path()), expected);
        assert_eq!(fs::read(&file).unwrap(), noted);
        change(&file, 3);
        assert_eq!(damaged(directory.path()), 0);
        // What a later version wrote is not cut off.
        let mut later = Vec::new();
        write_frame(&mut later, 77, b"later");
        fs::write(&file, [noted, later].concat()).unwrap();
        damaged(directory.path());
    }

    #[test]
    fn a_long_file_goes_once_all_of_it_is_durable() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path(), |_| {}).unwrap();
        let long = line(&"x".repeat(LONG as usize));
        journal.append(&[long, Entry::EndOfRequest]).unwrap();
        let checkpoint = || Ok(vec![Entry::Checkpoint(b"{}".to_vec()), Entry::Waiting(b"1".to_vec())]);
        journal.turn(Lsn(50), checkpoint).unwrap();
        journal.append(&[line("after"), Entry::EndOfRequest]).unwrap();
        journal.turn(Lsn(60), || panic!("it is short")).unwrap();
        journal.forget(Lsn(49)).unwrap();
        assert_eq!(read(directory.path()).len(), 6);
        journal.forget(Lsn(50)).unwrap();
        let rest =
            [Entry::Checkpoint(b"{}".to_vec()), Entry::Waiting(b"1".to_vec()), line("after"), Entry::EndOfRequest];
        assert_eq!(read(directory.path()), rest);
    }

    /// One request: its lines, and how the journal turns after it.
    #[derive(Clone, Debug)]
    struct Request {
        lines: Vec<String>,
        /// Lines that wait, in the checkpoint of a new file.
        turns: Option<usize>,
    }

    /// What a power cut does to what was not synced.
    #[derive(Clone, Debug)]
    struct PowerCut {
        /// Before the last request was synced, or after.
        unanswered: bool,
        page: usize,
        /// Pages that reached the disk.
        pages: Vec<bool>,
        length: prop::sample::Index,
    }

    /// Bytes that change while they lie there.
    #[derive(Clone, Debug)]
    struct Damage {
        file: prop::sample::Index,
        at: prop::sample::Index,
        length: usize,
        zeroed: bool,
    }

    fn request() -> impl Strategy<Value = Request> {
        let lines = prop::collection::vec("[a-z]{0,40}", 1..5);
        (lines, prop::option::weighted(0.15, 0usize..4)).prop_map(|(lines, turns)| Request { lines, turns })
    }

    fn power_cut() -> impl Strategy<Value = PowerCut> {
        let pages = prop::collection::vec(any::<bool>(), 40);
        (any::<bool>(), 1usize..50, pages, any::<prop::sample::Index>())
            .prop_map(|(unanswered, page, pages, length)| PowerCut { unanswered, page, pages, length })
    }

    fn damage() -> impl Strategy<Value = Damage> {
        (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1usize..80, any::<bool>())
            .prop_map(|(file, at, length, zeroed)| Damage { file, at, length, zeroed })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(120))]
        /// What was answered is there, or the journal is not opened. A power cut alone never keeps it from being opened.
        #[test]
        fn what_was_answered_is_read_or_said_to_be_lost(
            requests in prop::collection::vec(request(), 1..9), cut in prop::option::of(power_cut()),
            damage in prop::option::of(damage()),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let mut journal = Journal::open(directory.path(), |_| {}).unwrap();
            let (mut all, mut answered, mut synced, mut before) = (Vec::new(), 0, 0, 0);
            for (at, Request { lines, turns }) in requests.iter().enumerate() {
                let mut entries: Vec<Entry> = lines.iter().map(|text| line(text)).collect();
                entries.push(Entry::EndOfRequest);
                journal.append(&entries).unwrap();
                (answered, before) = (all.len(), synced);
                all.extend(entries);
                synced = journal.length as usize - NOTE_LENGTH;
                // A cut that comes before the last answer leaves no time to turn.
                if let Some(waiting) = turns.filter(|_| at + 1 < requests.len()) {
                    let waiting = (0..waiting).map(|at| Entry::Waiting(vec![b'w'; at * 9]));
                    let checkpoint: Vec<Entry> = std::iter::once(Entry::Checkpoint(vec![b'c'; 30])).chain(waiting).collect();
                    all.extend(checkpoint.clone());
                    journal.long = 0;
                    journal.turn(Lsn(1), || Ok(checkpoint)).unwrap();
                    synced = journal.length as usize;
                }
            }
            let newest = journal.number;
            drop(journal);
            let file = path(directory.path(), newest);
            let mut bytes = fs::read(&file).unwrap();
            if let Some(cut) = &cut {
                if cut.unanswered {
                    bytes.truncate(synced);
                    synced = before;
                }
                let unsynced = bytes.len() - synced;
                bytes.truncate(synced + cut.length.index(unsynced + 1));
                for (page, _) in cut.pages.iter().enumerate().filter(|(_, reached)| !**reached) {
                    let from = (synced + page * cut.page).min(bytes.len());
                    let to = (from + cut.page).min(bytes.len());
                    bytes[from..to].fill(0);
                }
                fs::write(&file, &bytes).unwrap();
            }
            if cut.as_ref().is_none_or(|cut| !cut.unanswered) {
                answered = all.len();
            }
            // Whether something is left that speaks for what was damaged.
            let mut told = true;
            if let Some(damage) = &damage {
                let number = damage.file.index(newest as usize) as u64 + 1;
                let file = path(directory.path(), number);
                let mut bytes = fs::read(&file).unwrap();
                let reach = if number == newest { synced } else { bytes.len() };
                if reach > 0 {
                    let at = damage.at.index(reach);
                    let to = (at + damage.length).min(bytes.len());
                    bytes[at..to].iter_mut().for_each(|byte| *byte = if damage.zeroed { 0 } else { *byte ^ 0x11 });
                    let notes = bytes.windows(NOTE_LENGTH).filter_map(|window| {
                        let (kind, text, _) = frame(window)?;
                        noted(kind, text, number)
                    });
                    told = number < newest || notes.max().is_some_and(|offset| offset as usize > at);
                    fs::write(&file, bytes).unwrap();
                }
            }
            let mut read_again = Vec::new();
            match Journal::open(directory.path(), |entry| read_again.push(entry)) {
                Ok(mut journal) => {
                    prop_assert!(all.starts_with(&read_again), "{:?} of {:?}", read_again, all);
                    prop_assert!(!told || read_again.len() >= answered, "{} of {}", read_again.len(), answered);
                    let next = [line("next"), Entry::EndOfRequest];
                    journal.append(&next).unwrap();
                    read_again.extend(next);
                    prop_assert_eq!(read(directory.path()), read_again);
                }
                Err(OpenError::Damaged { .. }) => prop_assert!(damage.is_some(), "a torn end is no damage"),
                Err(OpenError::Io(error)) => prop_assert!(false, "{}", error),
            }
        }
    }
}
