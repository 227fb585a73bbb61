//! What a life did to its files, read from what `strace -f -y -s 0` wrote.
//!
//! A call of one thread is often cut in two by those of others: `write(7</d/a.log>, ""..., 5 <unfinished ...>`, later
//! `<... write resumed>) = 5`. Both moments count: a sync covers what had ended when it *began*, and only once it *ended*.
//! A call that never ended, because the process was killed in it, may have happened or not.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Bytes at the end of a file.
    Append(PathBuf, u64),
    /// Bytes somewhere in it: from, how many.
    WriteAt(PathBuf, u64, u64),
    /// From here on it has this length.
    Truncate(PathBuf, u64),
    /// A file or a directory is made durable.
    Sync(PathBuf),
    /// A file is opened that is made where there is none.
    Create(PathBuf),
    /// It is emptied, too.
    CreateEmpty(PathBuf),
    /// A directory is made.
    MakeDirectory(PathBuf),
    /// A second name for a file.
    Link(PathBuf, PathBuf),
    /// Another name.
    Rename(PathBuf, PathBuf),
    /// A name goes away.
    Remove(PathBuf),
}

/// A call that succeeded, or that nobody saw the end of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub call: Call,
    /// When, counted in lines.
    pub began: usize,
    /// Absent where the process was killed in it.
    pub ended: Option<usize>,
}

/// Everything in a journal, in the order in which it ended; what never ended comes last.
pub fn read(text: &str) -> Vec<Entry> {
    let mut open: HashMap<&str, (usize, &str)> = HashMap::new();
    let mut entries = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let Some((thread, said)) = line.split_once(char::is_whitespace) else { continue };
        let said = said.trim_start();
        if let Some(begun) = said.strip_suffix("<unfinished ...>") {
            open.insert(thread, (at, begun));
        } else if said.starts_with("<... ") {
            let Some((began, begun)) = open.remove(thread) else { continue };
            let rest = said.split_once(" resumed>").map_or("", |(_, rest)| rest);
            entries.extend(entry(&format!("{begun}{rest}"), began, at));
        } else {
            entries.extend(entry(said, at, at));
        }
    }
    let mut unfinished: Vec<_> = open.into_values().collect();
    unfinished.sort_unstable();
    // How much was written is not known, and need not be: none of it was synced.
    entries.extend(
        unfinished
            .into_iter()
            .filter_map(|(began, begun)| call(begun, 0).map(|call| Entry { call, began, ended: None })),
    );
    entries
}

/// The calls that were made to fail.
pub fn failures(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.ends_with("(INJECTED)")).collect()
}

fn entry(said: &str, began: usize, ended: usize) -> Option<Entry> {
    let (begun, returned) = said.rsplit_once(" = ")?;
    // A file descriptor is followed by its path; a failure is negative.
    let returned = returned.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    Some(Entry { call: call(begun, returned)?, began, ended: Some(ended) })
}

fn call(begun: &str, returned: u64) -> Option<Call> {
    let (name, arguments) = begun.split_once('(')?;
    let last = || arguments.trim_end().trim_end_matches([')', ',']).rsplit(", ").next()?.parse().ok();
    let paths = || {
        let mut paths = named(arguments).into_iter();
        Some((paths.next()?, paths.next()?))
    };
    Some(match name {
        "write" | "writev" => Call::Append(described(arguments)?, returned),
        "pwrite64" => Call::WriteAt(described(arguments)?, last().unwrap_or_default(), returned),
        "ftruncate" => Call::Truncate(described(arguments)?, last()?),
        "fsync" | "fdatasync" => Call::Sync(described(arguments)?),
        "creat" => Call::CreateEmpty(named(arguments).pop()?),
        "openat" if arguments.contains("O_CREAT") && arguments.contains("O_TRUNC") => {
            Call::CreateEmpty(named(arguments).pop()?)
        }
        "openat" if arguments.contains("O_CREAT") => Call::Create(named(arguments).pop()?),
        "mkdir" | "mkdirat" => Call::MakeDirectory(named(arguments).pop()?),
        "link" | "linkat" => paths().map(|(from, to)| Call::Link(from, to))?,
        "rename" | "renameat" | "renameat2" => paths().map(|(from, to)| Call::Rename(from, to))?,
        "unlink" | "unlinkat" | "rmdir" => Call::Remove(named(arguments).pop()?),
        _ => return None,
    })
}

/// The path of the descriptor that is the first argument: `7</d/a.log>` or, without a name by now, `7</d/a.log>(deleted)`.
fn described(arguments: &str) -> Option<PathBuf> {
    let (path, after) = arguments.split_once('<')?.1.split_once('>')?;
    (path.starts_with('/') && !after.starts_with("(deleted)")).then(|| PathBuf::from(path))
}

/// The paths in quotes, each in the directory that was named before it, if one was.
fn named(arguments: &str) -> Vec<PathBuf> {
    let mut parts = arguments.split('"');
    let mut paths = Vec::new();
    while let (Some(before), Some(path)) = (parts.next(), parts.next()) {
        let directory = before.rsplit_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(path, _)| path);
        paths.push(Path::new(directory).join(path));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(text: &str) -> Vec<(Call, usize, Option<usize>)> {
        read(text).into_iter().map(|entry| (entry.call, entry.began, entry.ended)).collect()
    }

    #[test]
    fn a_call_that_others_cut_in_two_has_both_its_moments() {
        let text = "\
10 fdatasync(3</d/a.log> <unfinished ...>
11 write(4</d/a.log>, \"\"..., 5)       = 5
10 <... fdatasync resumed>)          = 0
12 write(4</d/a.log>, \"\"..., 9 <unfinished ...>
12 +++ killed by SIGKILL +++";
        assert_eq!(
            calls(text),
            [
                (Call::Append("/d/a.log".into(), 5), 1, Some(1)),
                (Call::Sync("/d/a.log".into()), 0, Some(2)),
                (Call::Append("/d/a.log".into(), 0), 3, None),
            ]
        );
    }

    #[test]
    fn every_kind_of_call_is_understood() {
        let text = "\
7 openat(AT_FDCWD</tmp>, \"/d/a\", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0644) = 3</d/a>
7 openat(AT_FDCWD</tmp>, \"/d/L\", O_RDWR|O_CREAT|O_CLOEXEC, 0644) = 4</d/L>
7 openat(AT_FDCWD</tmp>, \"/d/a\", O_RDONLY) = 5</d/a>
7 pwrite64(3</d/a>, \"\"..., 10, 4096) = 10
7 ftruncate(3</d/a>, 20) = 0
7 rename(\"/d/a\", \"/d/b\") = 0
7 linkat(AT_FDCWD</tmp>, \"/d/b\", AT_FDCWD</tmp>, \"/d/c\", 0) = 0
7 unlinkat(9</d/s>, \"1.sst\", 0) = 0
7 mkdir(\"/d/s\", 0777) = 0
7 fsync(8</d>) = 0
7 writev(3</d/a>, [{iov_base=\"\"..., iov_len=3}], 1) = 3";
        let done: Vec<Call> = read(text).into_iter().map(|entry| entry.call).collect();
        assert_eq!(
            done,
            [
                Call::CreateEmpty("/d/a".into()),
                Call::Create("/d/L".into()),
                Call::WriteAt("/d/a".into(), 4096, 10),
                Call::Truncate("/d/a".into(), 20),
                Call::Rename("/d/a".into(), "/d/b".into()),
                Call::Link("/d/b".into(), "/d/c".into()),
                Call::Remove("/d/s/1.sst".into()),
                Call::MakeDirectory("/d/s".into()),
                Call::Sync("/d".into()),
                Call::Append("/d/a".into(), 3),
            ]
        );
    }

    #[test]
    fn what_failed_and_what_is_no_file_is_left_out() {
        let text = "\
7 fdatasync(3</d/a>) = -1 EIO (Input/output error) (INJECTED)
7 mkdir(\"/d/s\", 0777) = -1 EEXIST (File exists)
7 write(4<anon_inode:[eventfd]>, \"\"..., 8) = 8
7 write(3</d/a>(deleted), \"\"..., 8) = 8
7 --- SIGABRT ---
7 +++ exited with 0 +++";
        assert_eq!(read(text), []);
        assert_eq!(failures(text).len(), 1);
    }
}
