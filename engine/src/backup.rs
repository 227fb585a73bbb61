//! Copies of a running store, and new data directories made of them.
//!
//! ```text
//! BACKUPS/NAME/SHA256SUMS      every other file; `sha256sum -c` reads it too. Written last
//! BACKUPS/NAME/backup.json     what it is of: see `Manifest`
//! BACKUPS/NAME/FORMAT          as in the data directory, so that what is restored keeps its replication slot
//! BACKUPS/NAME/store/          table files as hard links, where the file system is the store's
//! ```
//!
//! The surprise: nothing is held while it is taken. The store is copied as of some commit of its own choosing; which one is
//! read from the copy itself. A backup has its name only once all of it is synced, and one that lacks a file, or holds one
//! that is not what was written, is never taken for a backup.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::change::Lsn;
use crate::change::value::EPOCH_UNIX_US;
use crate::source::SourceIdentity;
use crate::store::format::{self, FORMAT_VERSION};
use crate::store::{Answered, Cursor, Store, StoreError, cursor, registry};

/// Raised whenever an older binary could misread a newer backup.
const LAYOUT: u32 = 1;
const SUMS: &str = "SHA256SUMS";
const MANIFEST: &str = "backup.json";
const FORMAT: &str = "FORMAT";
const STORE: &str = "store";
/// What is not complete yet. No name of a backup begins with a dot.
const PARTIAL: &str = ".partial-";
/// It becomes part of the name of a replication slot, which has 63 bytes.
const LONGEST_NAME: usize = 40;
const CHUNK_BYTES: usize = 1 << 20;

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the layout of backups.
    pub layout: u32,
    /// Version of the data directory's format.
    pub format: u32,
    /// The program that took it.
    pub version: String,
    /// The data directory it is of; names its replication slot.
    pub instance: String,
    /// Everything that committed upstream up to here is in it, nothing after.
    pub lsn: Lsn,
    /// When that was committed, RFC 3339.
    pub commit_time: String,
    /// When it was taken, RFC 3339.
    pub taken_at: String,
    /// Upstream.
    pub source: SourceIdentity,
    /// The slot that keeps upstream's log from here on, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_slot: Option<String>,
    /// The aggregates in it.
    pub aggregates: Vec<String>,
    /// Number of files, this one included and the sums not.
    pub files: usize,
}

/// A complete backup.
#[derive(Clone, Debug)]
pub struct Backup {
    /// Where it is.
    pub path: PathBuf,
    /// What it is of.
    pub manifest: Manifest,
    /// Its size; on the store's own file system most of it takes no space before the store moves on.
    pub bytes: u64,
}

/// Why there is no backup, or why one is not restored. Nothing half made is left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}\n  remedy: {remedy}")]
pub struct BackupError {
    /// Who has to do something.
    pub fault: BackupFault,
    /// Stable name of the reason.
    pub code: &'static str,
    /// What is the matter.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// Kinds of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupFault {
    /// What was asked for cannot be done.
    Refused,
    /// It can be done later.
    NotNow,
    /// The backup is not what was written.
    Damaged,
    /// Reading or writing failed.
    Failed,
}

impl BackupError {
    fn new(
        fault: BackupFault,
        code: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> BackupError {
        BackupError { fault, code, message: message.into(), remedy: remedy.into() }
    }

    pub(crate) fn not_now(code: &'static str, message: &str, remedy: &str) -> BackupError {
        BackupError::new(BackupFault::NotNow, code, message, remedy)
    }

    fn refused(code: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> BackupError {
        BackupError::new(BackupFault::Refused, code, message, remedy)
    }

    fn incomplete(backup: &Path, why: &str) -> BackupError {
        BackupError::refused(
            "not_a_backup",
            format!("{} is no complete backup of Tidemark's: {why}", backup.display()),
            "name the directory that `tidemark backup` printed",
        )
    }

    fn damaged(backup: &Path, what: impl std::fmt::Display) -> BackupError {
        BackupError::new(
            BackupFault::Damaged,
            "backup_damaged",
            format!("the backup {} is damaged: {what}", backup.display()),
            "restore another backup, or start over with an empty directory: everything is read from upstream again",
        )
    }

    fn failed(place: &Path, error: impl std::fmt::Display) -> BackupError {
        BackupError::new(
            BackupFault::Failed,
            "backup_failed",
            format!("{}: {error}", place.display()),
            "see that the disk works and has space, then do it again",
        )
    }
}

/// A name made of the time, for whoever gives none.
#[must_use]
pub fn name_of_now() -> String {
    Utc::now().format("%Y%m%d_%H%M%S").to_string()
}

/// That a backup may have this name and none has it yet. The name is all of a path that a caller chooses.
pub fn check_vacant(backups: &Path, name: &str) -> Result<(), BackupError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(allowed) {
        return Err(BackupError::refused(
            "bad_backup_name",
            format!("{:?} cannot be the name of a backup", name.chars().take(80).collect::<String>()),
            format!("use 1 to {LONGEST_NAME} lower-case letters, digits and underscores"),
        ));
    }
    let path = backups.join(name);
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(BackupError::failed(&path, error)),
        Ok(_) => Err(BackupError::refused(
            "backup_exists",
            format!("there is a backup {name} already"),
            "use another name, or remove it first",
        )),
    }
}

/// Whether a slot that keeps log for a backup of this name has that backup: there, under whatever name it has now, or being taken.
#[must_use]
pub fn wants_slot(backups: &Path, name: &str, held_slot: &str) -> bool {
    let wants = |entry: fs::DirEntry| {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            return entry.file_name().to_string_lossy().ends_with(&format!("-{name}"));
        }
        let manifest = fs::read(entry.path().join(MANIFEST)).ok();
        let manifest = manifest.and_then(|text| serde_json::from_slice::<Manifest>(&text).ok());
        manifest.is_some_and(|manifest| manifest.held_slot.as_deref() == Some(held_slot))
    };
    fs::read_dir(backups).into_iter().flatten().flatten().any(wants)
}

/// Removes what a process that was killed left of a backup of this store, which is open, and of which nobody takes one yet.
pub(crate) fn remove_leftovers(data: &Path, backups: &Path) {
    let Ok(Some(instance)) = format::instance(data) else { return };
    match remove_partial(backups, &partial_of(&instance)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "what is left of a backup that was cut short cannot be removed now");
        }
        _ => {}
    }
}

/// Takes a backup of an open store; one at a time of a store.
pub(crate) fn take(
    store: &Store,
    backups: &Path,
    name: &str,
    held_slot: Option<String>,
) -> Result<Backup, BackupError> {
    check_vacant(backups, name)?;
    // A copy of an initial snapshot that is not complete would be read by nobody.
    if Cursor::read(store).map_err(|error| BackupError::failed(backups, error))?.is_none() {
        return Err(nothing_yet());
    }
    let text =
        fs::read_to_string(store.data().join(FORMAT)).map_err(|error| BackupError::failed(store.data(), error))?;
    let instance = format::check(&text, &store.data().display().to_string())
        .map_err(|error| BackupError::failed(store.data(), error))?;
    format::create_closed(backups).map_err(|error| BackupError::failed(backups, error))?;
    // Of this store only: others may be taking theirs into the same directory.
    let ours = partial_of(&instance);
    remove_partial(backups, &ours).map_err(|error| BackupError::failed(backups, error))?;
    let partial = backups.join(format!("{ours}{name}"));
    let taken = Copying { store, partial: &partial, format: &text, instance, held_slot }.run();
    let done = taken.and_then(|(manifest, bytes)| {
        let path = backups.join(name);
        let named = fs::rename(&partial, &path).and_then(|()| sync(backups));
        named.map_err(|error| BackupError::failed(&path, error))?;
        Ok(Backup { path, manifest, bytes })
    });
    if done.is_err() {
        // What cannot be removed now is removed by the next one.
        let _ = fs::remove_dir_all(&partial);
    }
    done
}

/// Takes a backup of a data directory that no Tidemark uses.
pub fn take_of_stopped(data: &Path, backups: &Path, name: &str) -> Result<Backup, BackupError> {
    let refused = |error: crate::store::OpenError| BackupError::refused(error.code, error.message, error.remedy);
    if format::instance(data).map_err(refused)?.is_none() {
        return Err(BackupError::refused(
            "foreign_directory",
            format!("{} is no Tidemark data directory", data.display()),
            "name the data directory with --data, or leave it out to ask a running server",
        ));
    }
    let store = Store::open(data, crate::store::StoreMemory::default()).map_err(refused)?;
    // Of a store that has lost its end, a whole backup would be one that nobody misses anything in.
    Answered::read(&store).map_err(|error| BackupError::failed(data, error))?;
    let identity = cursor::read_source(&store).map_err(|error| BackupError::failed(data, error))?;
    check_source(&identity.unwrap_or_default())?;
    take(&store, backups, name, None)
}

/// That the store is all there is to copy.
pub(crate) fn check_source(identity: &SourceIdentity) -> Result<(), BackupError> {
    if identity.connector != "events" {
        return Ok(());
    }
    Err(BackupError::refused(
        "journal_not_backed_up",
        "posted events have a journal beside the store, which a backup would not hold",
        "stop Tidemark and copy its whole data directory; where that is put back, everything posted since has to be sent again",
    ))
}

pub(crate) fn nothing_yet() -> BackupError {
    BackupError::not_now(
        "nothing_to_back_up",
        "the existing rows are still being read, so there is nothing to back up yet",
        "try again once /readyz answers 200",
    )
}

/// How the names of those begin that this store's backups have until they are complete.
fn partial_of(instance: &str) -> String {
    format!("{PARTIAL}{instance}-")
}

fn remove_partial(backups: &Path, ours: &str) -> io::Result<()> {
    for entry in fs::read_dir(backups)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(ours) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// A backup that is being taken.
struct Copying<'s> {
    store: &'s Store,
    partial: &'s Path,
    format: &'s str,
    instance: String,
    held_slot: Option<String>,
}

impl Copying<'_> {
    /// Everything but the name.
    fn run(self) -> Result<(Manifest, u64), BackupError> {
        let partial = self.partial;
        let failed = |error: io::Error| BackupError::failed(partial, error);
        format::create_closed(partial).map_err(failed)?;
        let copy = partial.join(STORE);
        self.store.checkpoint(&copy).map_err(|error| BackupError::failed(partial, error))?;
        fs::write(partial.join(FORMAT), self.format).map_err(failed)?;
        let mut files = files_of(partial).map_err(failed)?;
        let manifest = self.manifest(&copy, files.len() + 1)?;
        let text = serde_json::to_string_pretty(&manifest).map_err(|error| BackupError::failed(partial, error))?;
        fs::write(partial.join(MANIFEST), text + "\n").map_err(failed)?;
        files.push(PathBuf::from(MANIFEST));
        let (mut sums, mut bytes) = (String::new(), 0);
        for name in files {
            let path = partial.join(&name);
            let sum = Sum::of(&path).map_err(failed)?;
            sync(&path).map_err(failed)?;
            bytes += sum.bytes;
            sums.push_str(&format!("{}  {}\n", sum.sha256, name.display()));
        }
        fs::write(partial.join(SUMS), sums).map_err(failed)?;
        [partial.join(SUMS), copy, partial.to_owned()].iter().try_for_each(|path| sync(path)).map_err(failed)?;
        Ok((manifest, bytes))
    }

    fn manifest(self, copy: &Path, files: usize) -> Result<Manifest, BackupError> {
        let found = look_into(copy).map_err(|error| BackupError::failed(copy, error))?;
        let (cursor, source, aggregates) = found.ok_or_else(nothing_yet)?;
        Ok(Manifest {
            layout: LAYOUT,
            format: FORMAT_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.instance,
            lsn: cursor.lsn,
            commit_time: shown(DateTime::from_timestamp_micros(cursor.commit_time_us.saturating_add(EPOCH_UNIX_US))),
            taken_at: shown(Some(SystemTime::now().into())),
            source,
            held_slot: self.held_slot,
            aggregates,
            files,
        })
    }
}

fn shown(time: Option<DateTime<Utc>>) -> String {
    time.unwrap_or_default().to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Opens a copy without writing to it: where it stands, upstream, the names of its aggregates.
fn look_into(copy: &Path) -> Result<Option<(Cursor, SourceIdentity, Vec<String>)>, StoreError> {
    let store = Store::open_read_only(copy)?;
    let Some(cursor) = Cursor::read(&store)? else { return Ok(None) };
    let source = cursor::read_source(&store)?.unwrap_or_default();
    let aggregates = registry::read_aggregates(&store)?.into_iter().map(|aggregate| aggregate.name).collect();
    Ok(Some((cursor, source, aggregates)))
}

/// Makes a backup into a new data directory. Whoever serves it needs nothing of the backup any more.
///
/// `FORMAT` comes last: without it a directory is none of Tidemark's, so one that is cut short is never served.
pub fn restore(backup: &Path, data: &Path) -> Result<Manifest, BackupError> {
    let (manifest, sums) = check(backup)?;
    check_empty(data)?;
    let copied = copy(backup, data, &manifest, &sums);
    if copied.is_err() {
        // Empty again, so that it can be tried again.
        let _ = fs::remove_dir_all(data.join(STORE));
        let _ = fs::remove_file(data.join(FORMAT));
    }
    copied.map(|()| manifest)
}

/// Reads what a backup says of itself, and that it is complete.
fn check(backup: &Path) -> Result<(Manifest, BTreeMap<PathBuf, String>), BackupError> {
    let read = |name: &str| match fs::read(backup.join(name)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(BackupError::failed(&backup.join(name), error)),
    };
    let damaged = |what: &str| BackupError::damaged(backup, what);
    // Nobody was told that it is one, also where all of it was written before the end.
    if backup.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PARTIAL)) {
        return Err(BackupError::incomplete(backup, "it was cut short before it had its name"));
    }
    let (sums, text) = match (read(SUMS)?, read(MANIFEST)?) {
        (Some(sums), Some(text)) => (sums, text),
        (None, None) => {
            return Err(BackupError::incomplete(backup, &format!("it has neither {SUMS} nor {MANIFEST}")));
        }
        (None, _) => return Err(damaged("SHA256SUMS is missing")),
        (_, None) => return Err(damaged("backup.json is missing")),
    };
    let sums = parse_sums(&sums).ok_or_else(|| damaged("SHA256SUMS is not what was written"))?;
    let mut sum = Sum::default();
    sum.add(&text);
    if sums.get(Path::new(MANIFEST)) != Some(&sum.done().sha256) {
        return Err(damaged("backup.json is not what was written"));
    }
    // Looked at before anything else of it: a newer one may say the rest in other words.
    let number = |name: &str| {
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        value.get(name).and_then(serde_json::Value::as_u64).unwrap_or_default()
    };
    let (layout, format) = (number("layout"), number("format"));
    if layout != u64::from(LAYOUT) || format != u64::from(FORMAT_VERSION) {
        return Err(BackupError::refused(
            "other_format",
            format!(
                "the backup {} is of layout {layout} and format {format}; this Tidemark reads layout {LAYOUT} and format \
                 {FORMAT_VERSION}",
                backup.display()
            ),
            "restore it with the Tidemark that took it",
        ));
    }
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| BackupError::damaged(backup, error))?;
    if sums.len() != manifest.files {
        return Err(damaged("SHA256SUMS does not list every file"));
    }
    Ok((manifest, sums))
}

fn check_empty(data: &Path) -> Result<(), BackupError> {
    let failed = |error: io::Error| BackupError::failed(data, error);
    format::create_closed(data).map_err(failed)?;
    let mut entries = fs::read_dir(data).map_err(failed)?;
    if entries.any(|entry| !entry.is_ok_and(|entry| format::came_with_the_disk(&entry))) {
        return Err(BackupError::refused(
            "not_empty",
            format!("{} is not empty", data.display()),
            "name an empty or new directory with --data",
        ));
    }
    Ok(())
}

fn copy(backup: &Path, data: &Path, manifest: &Manifest, sums: &BTreeMap<PathBuf, String>) -> Result<(), BackupError> {
    let failed = |error: io::Error| BackupError::failed(data, error);
    format::create_closed(&data.join(STORE)).map_err(failed)?;
    let is_format = |name: &&PathBuf| name.as_path() == Path::new(FORMAT);
    for name in sums.keys().filter(|name| !is_format(name)) {
        // Read all the same, so that a backup is whole or refused.
        let to = (name.as_path() != Path::new(MANIFEST)).then(|| data.join(name));
        copy_file(backup, name, to.as_deref(), sums)?;
    }
    sync(&data.join(STORE)).map_err(failed)?;
    let found = look_into(&data.join(STORE)).map_err(|error| BackupError::damaged(backup, error))?;
    let lsn = found.map(|(cursor, _, _)| cursor.lsn);
    if lsn != Some(manifest.lsn) {
        let stands = lsn.map_or_else(|| "nowhere".to_owned(), |lsn| lsn.to_string());
        return Err(BackupError::damaged(backup, format!("it stands at {stands}, and says {}", manifest.lsn)));
    }
    copy_file(backup, Path::new(FORMAT), Some(&data.join(FORMAT)), sums)?;
    sync(data).map_err(failed)
}

/// Copies a file that is what was written; without a destination it is only read.
fn copy_file(
    backup: &Path,
    name: &Path,
    to: Option<&Path>,
    sums: &BTreeMap<PathBuf, String>,
) -> Result<(), BackupError> {
    let mut from = match File::open(backup.join(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(BackupError::damaged(backup, format!("{} is missing", name.display())));
        }
        Err(error) => return Err(BackupError::failed(&backup.join(name), error)),
    };
    let mut sum = Sum::default();
    let copied = (|| {
        let mut into = to.map(File::create).transpose()?;
        each_chunk(&mut from, |chunk| {
            sum.add(chunk);
            into.as_mut().map_or(Ok(()), |into| into.write_all(chunk))
        })?;
        into.map_or(Ok(()), |into| into.sync_all())
    })();
    copied.map_err(|error: io::Error| BackupError::failed(to.unwrap_or(name), error))?;
    if sums.get(name) != Some(&sum.done().sha256) {
        return Err(BackupError::damaged(backup, format!("{} is not what was written", name.display())));
    }
    Ok(())
}

/// Files of a backup as they are named in it, in order.
fn files_of(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = vec![PathBuf::from(FORMAT)];
    for entry in fs::read_dir(directory.join(STORE))? {
        files.push(Path::new(STORE).join(entry?.file_name()));
    }
    files.sort();
    Ok(files)
}

/// Names and sums; `None` where a line is something else, or names what is not in the backup.
fn parse_sums(text: &[u8]) -> Option<BTreeMap<PathBuf, String>> {
    let line = |line: &str| {
        let (sum, name) = line.split_once("  ")?;
        let sum_fits = sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut parts = Path::new(name).components();
        let inside = !name.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)));
        (sum_fits && inside).then(|| (PathBuf::from(name), sum.to_owned()))
    };
    let text = std::str::from_utf8(text).ok()?;
    text.ends_with('\n').then(|| text.lines().map(line).collect())?
}

/// Bytes and their SHA-256.
struct Sum {
    context: Context,
    bytes: u64,
}

struct Summed {
    sha256: String,
    bytes: u64,
}

impl Default for Sum {
    fn default() -> Self {
        Sum { context: Context::new(&SHA256), bytes: 0 }
    }
}

impl Sum {
    fn of(path: &Path) -> io::Result<Summed> {
        let mut sum = Sum::default();
        each_chunk(&mut File::open(path)?, |chunk| {
            sum.add(chunk);
            Ok(())
        })?;
        Ok(sum.done())
    }

    fn add(&mut self, chunk: &[u8]) {
        self.context.update(chunk);
        self.bytes += chunk.len() as u64;
    }

    fn done(self) -> Summed {
        let sha256 = self.context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Summed { sha256, bytes: self.bytes }
    }
}

fn each_chunk(file: &mut File, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk)?;
        match chunk.get(..read) {
            Some(part) if !part.is_empty() => take(part)?,
            _ => return Ok(()),
        }
    }
}

/// What is in a file, or which files are in a directory, survives a crash of the machine.
fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::{Batch, StoreMemory};

    fn store(data: &Path) -> Store {
        let store = Store::open(data, StoreMemory::default()).unwrap();
        let mut batch = Batch::default();
        Cursor { lsn: Lsn(7), commit_time_us: 0, sequence: 3 }.put(&mut batch);
        cursor::put_source(&mut batch, &SourceIdentity::default()).unwrap();
        batch.put(b"\xF0key", &[7; 10_000]);
        store.write(batch).unwrap();
        store
    }

    #[test]
    fn what_is_restored_is_what_was_there() {
        let parent = tempfile::tempdir().unwrap();
        let backups = parent.path().join("backups");
        let store = store(&parent.path().join("data"));
        let backup = take(&store, &backups, "first", Some("held".to_owned())).unwrap();
        let mut batch = Batch::default();
        Cursor { lsn: Lsn(9), commit_time_us: 0, sequence: 4 }.put(&mut batch);
        store.write(batch).unwrap();
        assert_eq!((backup.manifest.lsn, backup.manifest.held_slot.as_deref()), (Lsn(7), Some("held")));
        assert_eq!(backup.path, backups.join("first"));
        assert_eq!(take(&store, &backups, "first", None).unwrap_err().code, "backup_exists");
        let new = parent.path().join("new");
        assert_eq!(restore(&backup.path, &new).unwrap(), backup.manifest);
        assert_eq!(restore(&backup.path, &new).unwrap_err().code, "not_empty");
        assert_eq!(format::instance(&new).unwrap(), Some(backup.manifest.instance));
        let restored = Store::open(&new, StoreMemory::default()).unwrap();
        assert_eq!(Cursor::read(&restored).unwrap().unwrap().lsn, Lsn(7));
        assert_eq!(restored.get(b"\xF0key").unwrap().unwrap(), [7; 10_000]);
        assert_eq!(take_of_stopped(&new, &backups, "second").unwrap_err().code, "data_in_use");
        drop(restored);
        assert_eq!(take_of_stopped(&new, &backups, "second").unwrap().manifest.lsn, Lsn(7));
        assert_eq!(
            take_of_stopped(&parent.path().join("none"), &backups, "third").unwrap_err().code,
            "foreign_directory"
        );
    }

    #[test]
    fn names_are_no_paths() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["", "..", "../x", "/etc", "a/b", "a.b", "A", "ä", &"a".repeat(41)] {
            assert_eq!(check_vacant(parent.path(), name).unwrap_err().code, "bad_backup_name", "{name}");
        }
        check_vacant(parent.path(), &name_of_now()).unwrap();
        for sums in ["", "x  y\n", &format!("{:064x}  ../up\n", 0), &format!("{:064x}  /etc/passwd\n", 0)] {
            assert!(parse_sums(sums.as_bytes()).is_none_or(|sums| sums.is_empty()), "{sums}");
        }
        assert!(parse_sums(format!("{:064x}  store/CURRENT\n", 0).as_bytes()).is_some());
        assert!(parse_sums(format!("{:064x}  store/CURRENT", 0).as_bytes()).is_none());
    }

    #[test]
    fn every_flipped_byte_and_missing_file_is_noticed() {
        let parent = tempfile::tempdir().unwrap();
        let store = store(&parent.path().join("data"));
        let whole = take(&store, &parent.path().join("backups"), "whole", None).unwrap().path;
        let mut names = files_of(&whole).unwrap();
        names.extend([MANIFEST, SUMS].map(PathBuf::from));
        assert!(names.len() >= 6, "{names:?}");
        let new = parent.path().join("new");
        for name in names {
            let path = whole.join(&name);
            let right = fs::read(&path).unwrap();
            let refused = |what: &str| {
                let error = restore(&whole, &new).unwrap_err();
                assert_eq!(
                    (error.fault, error.code),
                    (BackupFault::Damaged, "backup_damaged"),
                    "{name:?} {what}: {error}"
                );
                assert!(fs::read_dir(&new).map_or(true, |mut entries| entries.next().is_none()), "{name:?} {what}");
            };
            // Table files are hard links: another file takes the place of one, and the store keeps its own.
            let replace = |bytes: &[u8]| {
                fs::remove_file(&path).unwrap();
                fs::write(&path, bytes).unwrap();
            };
            for at in [0, right.len() / 2, right.len().saturating_sub(1)] {
                let mut wrong = right.clone();
                let Some(byte) = wrong.get_mut(at) else { continue };
                *byte ^= 1;
                replace(&wrong);
                refused("flipped");
            }
            if let Some((_, shorter)) = right.split_last() {
                replace(shorter);
                refused("truncated");
            }
            fs::remove_file(&path).unwrap();
            refused("missing");
            fs::write(&path, &right).unwrap();
        }
        restore(&whole, &new).unwrap();
        assert_eq!(restore(parent.path(), &parent.path().join("other")).unwrap_err().code, "not_a_backup");
    }

    #[test]
    fn newer_ones_and_what_was_cut_short_are_refused() {
        let parent = tempfile::tempdir().unwrap();
        let backups = parent.path().join("backups");
        let store = store(&parent.path().join("data"));
        let backup = take(&store, &backups, "one", None).unwrap();
        let text = fs::read_to_string(backup.path.join(MANIFEST)).unwrap();
        let newer = text.replace("\"layout\": 1", "\"layout\": 2");
        let sum = |text: &str| {
            let mut sum = Sum::default();
            sum.add(text.as_bytes());
            sum.done().sha256
        };
        let sums = fs::read_to_string(backup.path.join(SUMS)).unwrap();
        fs::write(backup.path.join(MANIFEST), &newer).unwrap();
        fs::write(backup.path.join(SUMS), sums.replace(&sum(&text), &sum(&newer))).unwrap();
        let error = restore(&backup.path, &parent.path().join("new")).unwrap_err();
        assert_eq!((error.fault, error.code), (BackupFault::Refused, "other_format"));
        // What a crash left is no backup, and the next one removes it; what is another store's it does not.
        let instance = &backup.manifest.instance;
        let (left, others) = (backups.join(format!("{PARTIAL}{instance}-two")), backups.join(".partial-0badcafe-two"));
        [&left, &others].iter().for_each(|path| fs::create_dir_all(path.join(STORE)).unwrap());
        assert_eq!(restore(&left, &parent.path().join("new")).unwrap_err().code, "not_a_backup");
        // Also where only its name was missing.
        let unnamed = backups.join(format!("{PARTIAL}{instance}-unnamed"));
        fs::rename(take(&store, &backups, "four", None).unwrap().path, &unnamed).unwrap();
        assert_eq!(restore(&unnamed, &parent.path().join("new")).unwrap_err().code, "not_a_backup");
        fs::create_dir_all(left.join(STORE)).unwrap();
        take(&store, &backups, "three", None).unwrap();
        assert!(!left.exists() && others.exists());
    }
}
