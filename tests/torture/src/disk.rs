//! What of a data directory a power cut may take: which bytes and which names were made durable, by the journals of the lives
//! since the last cut.
//!
//! The model is POSIX with one mercy that ext4, XFS and btrfs all grant:
//!
//! - a sync of a file covers the bytes written by calls that had ended when it began, and no others;
//! - a sync of a directory covers the names made, changed and removed in it by calls that had ended when it began;
//! - a sync of a file covers, besides, the making of its own name, though not that of its directory;
//! - what is not covered may be lost or kept, each for itself and in any order: a name before the bytes, a later one without
//!   an earlier one.
//!
//! Names that are removed come back only where their file was there before the life: nobody else still has its bytes.
//! Nothing the store writes is written over in place but single bytes, by which it mends a log before it reads it; they are
//! kept here. If they were lost, the next life would find what this one found. Elsewhere the model stops.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::journal::{Call, Entry};

/// Written over in a log, at a time.
const MENDED_BYTES: u64 = 1;

/// A file, by whatever names.
pub type Inode = usize;

/// A change of names that no sync covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A file or directory was made.
    Made(PathBuf),
    /// A name was changed; the file that had the new one lost it.
    Renamed(PathBuf, PathBuf, Option<Inode>),
    /// A name was removed.
    Removed(PathBuf, Inode),
}

impl Change {
    /// The names it is about.
    pub fn names(&self) -> Vec<&Path> {
        match self {
            Change::Made(path) | Change::Removed(path, _) => vec![path],
            Change::Renamed(from, to, _) => vec![from, to],
        }
    }
}

#[derive(Clone, Debug, Default)]
struct File {
    length: u64,
    synced: u64,
    /// Writes not covered yet: when they ended, and the length from then on.
    unsynced: Vec<(usize, u64)>,
}

/// The files under one directory.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    root: PathBuf,
    files: Vec<File>,
    names: BTreeMap<PathBuf, Inode>,
    /// When it ended, and what it was.
    changes: Vec<(usize, Change)>,
    /// Lines of the journals before.
    clock: usize,
}

impl Disk {
    /// All of these files, with their lengths, are durable.
    pub fn holding(root: &Path, files: impl IntoIterator<Item = (PathBuf, u64)>) -> Disk {
        let mut disk = Disk { root: root.to_owned(), ..Disk::default() };
        for (path, length) in files {
            let inode = disk.new_file(length);
            disk.names.insert(path, inode);
        }
        disk
    }

    /// The names that there are.
    pub fn names(&self) -> impl Iterator<Item = (&Path, Inode)> {
        self.names.iter().map(|(path, inode)| (path.as_path(), *inode))
    }

    /// Up to which length a file is durable.
    pub fn synced(&self, inode: Inode) -> u64 {
        self.files[inode].synced
    }

    /// Changes of names that may be lost, the oldest first.
    pub fn changes(&self) -> impl DoubleEndedIterator<Item = &Change> {
        self.changes.iter().map(|(_, change)| change)
    }

    /// One life more, which is over. What it was killed in happened where the names that are there say so.
    pub fn replay(&mut self, journal: &[Entry], there: impl Fn(&Path) -> bool) {
        let start = self.clock;
        let over = start + journal.iter().map(|entry| entry.ended.unwrap_or(entry.began) + 1).max().unwrap_or_default();
        for Entry { call, began, ended } in journal {
            let happened = match call {
                _ if ended.is_some() => true,
                Call::Rename(from, _) | Call::Remove(from) => !there(from),
                Call::Create(path) | Call::CreateEmpty(path) | Call::MakeDirectory(path) | Call::Link(_, path) => {
                    there(path)
                }
                Call::Append(..) | Call::WriteAt(..) | Call::Truncate(..) | Call::Sync(_) => false,
            };
            if happened {
                self.call(call, start + began, ended.map_or(over, |at| start + at));
            }
        }
        self.clock = over + 1;
    }

    fn call(&mut self, call: &Call, began: usize, at: usize) {
        match call {
            Call::Append(path, bytes) => self.grow(path, at, |length| length + bytes),
            Call::WriteAt(path, from, bytes) => {
                if let Some(file) = self.file(path) {
                    assert!(
                        *from >= file.length || *bytes == MENDED_BYTES,
                        "{} is written over at {from}",
                        path.display()
                    );
                }
                self.grow(path, at, |length| length.max(from + bytes));
            }
            Call::Truncate(path, length) => self.grow(path, at, |_| *length),
            Call::Sync(path) => self.sync(path, began),
            Call::Create(path) => self.create(path, at),
            Call::CreateEmpty(path) => {
                self.create(path, at);
                self.grow(path, at, |_| 0);
            }
            Call::MakeDirectory(path) if path.starts_with(&self.root) => {
                self.changes.push((at, Change::Made(path.clone())));
            }
            Call::MakeDirectory(_) => {}
            Call::Link(from, to) => {
                if let Some(inode) = self.names.get(from).copied() {
                    self.names.insert(to.clone(), inode);
                    self.changes.push((at, Change::Made(to.clone())));
                }
            }
            Call::Rename(from, to) => {
                if let Some(inode) = self.names.remove(from) {
                    let replaced = self.names.insert(to.clone(), inode);
                    self.changes.push((at, Change::Renamed(from.clone(), to.clone(), replaced)));
                }
            }
            Call::Remove(path) => {
                if let Some(inode) = self.names.remove(path) {
                    self.changes.push((at, Change::Removed(path.clone(), inode)));
                }
            }
        }
    }

    fn create(&mut self, path: &Path, at: usize) {
        if path.starts_with(&self.root) && !self.names.contains_key(path) {
            let inode = self.new_file(0);
            self.names.insert(path.to_owned(), inode);
            self.changes.push((at, Change::Made(path.to_owned())));
        }
    }

    fn grow(&mut self, path: &Path, at: usize, length: impl FnOnce(u64) -> u64) {
        if let Some(file) = self.file(path) {
            file.length = length(file.length);
            file.synced = file.synced.min(file.length);
            file.unsynced.push((at, file.length));
        }
    }

    fn sync(&mut self, path: &Path, began: usize) {
        if let Some(file) = self.file(path) {
            let covered = file.unsynced.partition_point(|(ended, _)| *ended < began);
            if let Some((_, length)) = file.unsynced.drain(..covered).next_back() {
                file.synced = length.min(file.length);
            }
            self.changes
                .retain(|(ended, change)| *ended >= began || !matches!(change, Change::Made(made) if made == path));
        } else {
            self.changes.retain(|(ended, change)| {
                *ended >= began || change.names().last().is_none_or(|name| name.parent() != Some(path))
            });
        }
    }

    fn file(&mut self, path: &Path) -> Option<&mut File> {
        self.names.get(path).map(|inode| &mut self.files[*inode])
    }

    fn new_file(&mut self, length: u64) -> Inode {
        self.files.push(File { length, synced: length, unsynced: Vec::new() });
        self.files.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal;

    fn after(journals: &[&str]) -> Disk {
        let mut disk = Disk::holding(Path::new("/d"), [("/d/CURRENT".into(), 16), ("/d/1.sst".into(), 50)]);
        journals.iter().for_each(|text| disk.replay(&journal::read(text), |path| path != Path::new("/d/1.sst")));
        disk
    }

    fn synced(disk: &Disk, path: &str) -> u64 {
        disk.synced(disk.names[Path::new(path)])
    }

    const MADE: &str = "1 openat(AT_FDCWD</>, \"/d/a.log\", O_WRONLY|O_CREAT, 0644) = 3</d/a.log>\n";

    #[test]
    fn a_sync_covers_what_had_ended_when_it_began() {
        let text = format!(
            "{MADE}\
1 write(3</d/a.log>, \"\"..., 5) = 5
1 write(3</d/a.log>, \"\"..., 3 <unfinished ...>
2 fdatasync(4</d/a.log> <unfinished ...>
1 <... write resumed>) = 3
1 write(3</d/a.log>, \"\"..., 2) = 2
2 <... fdatasync resumed>) = 0
"
        );
        let disk = after(&[&text]);
        assert_eq!(synced(&disk, "/d/a.log"), 5);
        assert_eq!(disk.changes().count(), 0, "the file's own name is covered");
        assert_eq!(synced(&after(&[&text, "1 fsync(9</d/a.log>) = 0"]), "/d/a.log"), 10, "of the life before, too");
        assert_eq!(synced(&after(&[MADE, "1 fsync(9</d/a.log> <unfinished ...>"]), "/d/a.log"), 0);
    }

    #[test]
    fn names_are_covered_by_their_directory_only() {
        let text = format!(
            "{MADE}\
1 write(3</d/a.log>, \"\"..., 5) = 5
1 rename(\"/d/a.log\", \"/d/CURRENT\") = 0
1 mkdir(\"/d/s\", 0777) = 0
1 fsync(5</d> <unfinished ...>
2 unlink(\"/d/1.sst\") = 0
1 <... fsync resumed>) = 0
"
        );
        let disk = after(&[&text]);
        assert_eq!(disk.changes().cloned().collect::<Vec<_>>(), [Change::Removed("/d/1.sst".into(), 1)]);
        assert_eq!(synced(&disk, "/d/CURRENT"), 0, "the bytes are not");
        let half = after(&["1 rename(\"/d/1.sst\", \"/d/CURRENT\" <unfinished ...>"]);
        assert_eq!(
            half.changes().cloned().collect::<Vec<_>>(),
            [Change::Renamed("/d/1.sst".into(), "/d/CURRENT".into(), Some(0))]
        );
    }

    #[test]
    fn other_directories_are_no_business_of_ours() {
        let disk =
            after(&["1 openat(AT_FDCWD</>, \"/t/x\", O_CREAT|O_TRUNC) = 3</t/x>\n1 write(3</t/x>, \"\"..., 5) = 5"]);
        assert_eq!(disk.names().count(), 2);
        assert_eq!(disk.changes().count(), 0);
    }
}
