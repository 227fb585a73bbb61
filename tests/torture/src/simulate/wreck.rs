//! What a crash leaves of a data directory, taken while the engine that writes it stands still: after `kill -9` all that was
//! written; after a power cut the log up to its last sync, and of the rest any part.
//!
//! Names and table files are taken as they are: the store syncs those itself, and `power_cut` is there to doubt it. RocksDB's own
//! threads do not stand still. What they did while it was copied is no moment of the directory, so it is copied once more.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use engine::torture::Failpoint;

/// When and how a life ends.
#[derive(Clone, Copy, Debug)]
pub struct Crash {
    /// The failpoint, and how many times it is passed before; at the next pause of everybody where `None`.
    pub at: Option<(Failpoint, u32)>,
    /// Part of what was not synced that survives all the same; all of it where `None`.
    pub kept: Option<f64>,
}

/// The directory of one life, and the crash that is to come.
pub struct Wreck {
    directory: PathBuf,
    into: PathBuf,
    /// Bytes of each file of the log that a sync covered.
    synced: HashMap<OsString, u64>,
    crash: Option<Crash>,
    pub happened: Option<Crash>,
}

impl Wreck {
    pub fn new(directory: PathBuf, into: PathBuf) -> Wreck {
        Wreck { directory, into, synced: HashMap::new(), crash: None, happened: None }
    }

    /// From now on it is to come.
    pub fn arm(&mut self, crash: Crash) {
        self.crash = Some(crash);
    }

    /// Notes that a failpoint is reached.
    pub fn reached(&mut self, point: Failpoint) {
        if self.happened.is_some() {
            return;
        }
        if point == Failpoint::Synced {
            self.synced = logs(&self.directory).collect();
        }
        match &mut self.crash {
            Some(Crash { at: Some((at, 0)), .. }) if *at == point => self.happen(),
            Some(Crash { at: Some((at, left)), .. }) if *at == point => *left -= 1,
            _ => {}
        }
    }

    /// Nobody is in the middle of anything.
    pub fn pause(&mut self) {
        if let (Some(Crash { at: None, .. }), None) = (self.crash, self.happened) {
            self.happen();
        }
    }

    fn happen(&mut self) {
        self.happened = self.crash;
        while !copy_of_a_moment(&self.directory, &self.into) {
            fs::remove_dir_all(&self.into).unwrap();
        }
        if let Some(Crash { kept: Some(kept), .. }) = self.crash {
            for (name, length) in logs(&self.into) {
                let synced = self.synced.get(&name).copied().unwrap_or_default().min(length);
                let left = synced + ((length - synced) as f64 * kept) as u64;
                let log = fs::OpenOptions::new().write(true).open(self.into.join("store").join(name)).unwrap();
                log.set_len(left).unwrap();
            }
        }
    }
}

/// The files of the log and their lengths.
fn logs(directory: &Path) -> impl Iterator<Item = (OsString, u64)> {
    let entries = fs::read_dir(directory.join("store")).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "log"))
        .filter_map(|entry| Some((entry.file_name(), entry.metadata().ok()?.len())))
}

/// Whether the copy is what there was at one moment: nothing came, went or grew meanwhile.
fn copy_of_a_moment(from: &Path, into: &Path) -> bool {
    let before = files(from);
    for name in before.keys() {
        let target = into.join(name);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        if fs::copy(from.join(name), target).is_err() {
            return false;
        }
    }
    files(from) == before
}

/// Every file below a directory but the information log, by its path in it, and its length.
fn files(directory: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(inside) = left.pop() {
        for entry in fs::read_dir(inside).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                left.push(entry.path());
            } else if !entry.file_name().to_string_lossy().starts_with("LOG") {
                found.insert(entry.path().strip_prefix(directory).unwrap().to_owned(), metadata.len());
            }
        }
    }
    found
}
