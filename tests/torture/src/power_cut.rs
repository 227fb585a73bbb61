//! Lives that end with the power: after the kill, what no sync covered is lost, torn, or by chance kept, and the next life
//! starts over that. What was acknowledged upstream must still be there (`slot_overtaken` says that it is not), and every
//! cell must be Postgres'. Postgres keeps its power.
//!
//! Nothing of this can be seen by `kill -9`, which leaves everything to the kernel. What may be lost is `disk`'s to say; here
//! it is drawn and done. Some lives are only killed: the next one builds on what no sync covered, and then the power goes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::torture::Bug;
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

use crate::bench::Bench;
use crate::disk::{Change, Disk, Inode};
use crate::journal;
use crate::nemesis::{GENERATION, begin_generation, failpoint, one};
use crate::process::Fate;
use crate::tracer::Tracer;

/// A log's blocks, and where a block's first record has its type.
const BLOCK_BYTES: u64 = 32_768;
const TYPE_AT: usize = 6;

/// What is lost with the power.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    pub bytes: u64,
    pub tails: u64,
    pub names: u64,
}

impl AddAssign for Loss {
    fn add_assign(&mut self, other: Loss) {
        self.bytes += other.bytes;
        self.tails += other.tails;
        self.names += other.names;
    }
}

/// Cuts the power so many times, and compares everything after each; returns what was wrong with the first life that was.
pub async fn run(bench: &mut Bench, cuts: u64, planted: Option<Bug>) -> Result<(), String> {
    let mut power = Power::new();
    let (mut lives, mut cut, mut cells, mut lost) = (0, 0, 0, Loss::default());
    while cut < cuts {
        if lives % GENERATION == 0 {
            begin_generation(bench, planted).await;
            power = Power::new();
            power.begin(&bench.data());
        }
        lives += 1;
        let fate = Fate { planted, failpoint: failpoint(&mut bench.rng, planted), tracer: Some(power.tracer()) };
        power.hold();
        let ended = live(bench, &fate).await;
        let compared =
            ended.map_err(|why| format!("after {cut} cuts, the last {:?}, life {lives}: {why}", power.last))?;
        cells += compared;
        power.read();
        if bench.rng.random_bool(0.8) {
            lost += power.cut(&mut bench.rng);
            cut += 1;
        }
    }
    let (compared, _) = one(bench, &Fate { planted, ..Fate::default() })
        .await
        .map_err(|why| format!("life {lives}, after the last cut: {why}"))?;
    println!(
        "{cuts} power cuts in {lives} lives; lost {} KiB of {} files and {} changes of names; {} cells compared",
        lost.bytes >> 10,
        lost.tails,
        lost.names,
        cells + compared
    );
    Ok(())
}

/// A third of the lives end while they open what the one before left: there names change. Returns how many cells were compared.
async fn live(bench: &mut Bench, fate: &Fate) -> Result<u64, String> {
    if !bench.rng.random_ratio(1, 3) {
        return one(bench, fate).await.map(|(compared, _)| compared);
    }
    let time = Duration::from_millis(bench.rng.random_range(5..400));
    let mut life = bench.life(fate);
    life.aborts_within(time)?;
    life.kill();
    Ok(0)
}

/// The machine that the lives run on, between two cuts.
struct Power {
    beside: TempDir,
    root: PathBuf,
    disk: Disk,
    /// Second names of files, so that one whose name is removed can come back.
    held: HashMap<Inode, PathBuf>,
    last: Loss,
}

impl Power {
    fn new() -> Power {
        let beside = tempfile::tempdir().unwrap();
        Power { beside, root: PathBuf::new(), disk: Disk::default(), held: HashMap::new(), last: Loss::default() }
    }

    fn journal(&self) -> PathBuf {
        self.beside.path().join("journal")
    }

    fn tracer(&self) -> Tracer {
        Tracer::of(&self.journal())
    }

    /// Everything under a directory is durable.
    fn begin(&mut self, root: &Path) {
        self.held.drain().for_each(|(_, path)| fs::remove_file(path).unwrap());
        self.disk = Disk::holding(root, files(root).unwrap());
        self.root = root.to_owned();
    }

    /// Before a life.
    fn hold(&mut self) {
        for (path, inode) in self.disk.names() {
            let second = self.beside.path().join(inode.to_string());
            // A name that the last life was killed in removing may be gone.
            if !self.held.contains_key(&inode) && fs::hard_link(path, &second).is_ok() {
                self.held.insert(inode, second);
            }
        }
    }

    /// After a life.
    fn read(&mut self) {
        let text = fs::read(self.journal()).unwrap();
        self.disk.replay(&journal::read(&String::from_utf8_lossy(&text)), Path::exists);
    }

    fn cut(&mut self, rng: &mut ChaCha8Rng) -> Loss {
        let mut names: BTreeMap<PathBuf, Inode> =
            self.disk.names().map(|(path, inode)| (path.to_owned(), inode)).collect();
        let mut loss = Loss { names: self.lose_names(rng, &mut names), ..Loss::default() };
        let torn = rng.random_range(0..4);
        let mut seen = HashSet::new();
        for (path, inode) in names {
            let Ok(length) = fs::metadata(&path).map(|file| file.len()) else { continue };
            let synced = self.disk.synced(inode);
            if length > synced && seen.insert(inode) {
                tear(&path, synced, length, torn, rng).unwrap();
                loss += Loss { bytes: length - synced, tails: 1, names: 0 };
            }
        }
        self.last = loss;
        let root = std::mem::take(&mut self.root);
        self.begin(&root);
        loss
    }

    /// The newest first: what a change that is kept is about cannot be changed back by losing an older one.
    fn lose_names(&self, rng: &mut ChaCha8Rng, names: &mut BTreeMap<PathBuf, Inode>) -> u64 {
        let share = [0.0, 0.5, 1.0][rng.random_range(0..3)];
        let mut kept: HashSet<&Path> = HashSet::new();
        let mut lost = 0;
        for change in self.disk.changes().rev() {
            let free = !change.names().iter().any(|name| kept.contains(name));
            if free && rng.random_bool(share) && self.undo(change, names) {
                lost += 1;
            } else {
                kept.extend(change.names());
            }
        }
        lost
    }

    /// False where that is not possible.
    fn undo(&self, change: &Change, names: &mut BTreeMap<PathBuf, Inode>) -> bool {
        match change {
            Change::Made(path) if path.is_dir() => {
                names.retain(|name, _| !name.starts_with(path));
                fs::remove_dir_all(path).is_ok()
            }
            Change::Made(path) => {
                names.remove(path);
                fs::remove_file(path).is_ok()
            }
            Change::Removed(path, inode) => {
                let back = self.held.get(inode).is_some_and(|held| fs::hard_link(held, path).is_ok());
                if back {
                    names.insert(path.clone(), *inode);
                }
                back
            }
            Change::Renamed(from, to, replaced) => {
                let before = replaced.map(|inode| (inode, self.held.get(&inode)));
                if before.is_some_and(|(_, held)| held.is_none()) || fs::rename(to, from).is_err() {
                    return false;
                }
                names.remove(to).map(|inode| names.insert(from.clone(), inode));
                if let Some((inode, Some(held))) = before {
                    fs::hard_link(held, to).unwrap();
                    names.insert(to.clone(), inode);
                }
                true
            }
        }
    }
}

/// What lies behind the synced part: gone, a part of it kept, or that with zeros or with anything behind it.
fn tear(path: &Path, synced: u64, length: u64, how: u32, rng: &mut ChaCha8Rng) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    if how == 0 {
        return file.set_len(synced);
    }
    let kept = rng.random_range(synced..=length);
    file.set_len(kept)?;
    if how == 2 {
        file.set_len(length)?;
    }
    if how == 3 {
        let mut anything = vec![0; (length - kept) as usize];
        rng.fill_bytes(&mut anything);
        mislead(&mut anything, kept, rng);
        file.seek(SeekFrom::Start(kept))?;
        file.write_all(&anything)?;
    }
    Ok(())
}

/// Makes any bytes look like records of a reused log where its reader looks for one, in half of the blocks.
fn mislead(anything: &mut [u8], from: u64, rng: &mut ChaCha8Rng) {
    let first = (from.next_multiple_of(BLOCK_BYTES) - from) as usize + TYPE_AT;
    for kind in anything.iter_mut().skip(first).step_by(BLOCK_BYTES as usize) {
        if rng.random_bool(0.5) {
            *kind = rng.random_range(5..9);
        }
    }
}

fn files(directory: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push((entry.path(), entry.metadata()?.len()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    /// Everything that may be lost is lost in some cut, and what is covered in none.
    #[test]
    fn a_cut_takes_what_no_sync_covers_and_nothing_else() {
        let mut outcomes: HashSet<String> = HashSet::new();
        for seed in 0..60 {
            let data = tempfile::tempdir().unwrap();
            let at = |name: &str| data.path().join(name);
            let text = |name: &str| fs::read_to_string(at(name)).unwrap_or_default();
            fs::write(at("CURRENT"), "old").unwrap();
            fs::write(at("gone"), "gone").unwrap();
            let mut power = Power::new();
            power.begin(data.path());
            power.hold();
            fs::write(at("a.log"), "sync-not").unwrap();
            fs::write(at("tmp"), "new").unwrap();
            fs::rename(at("tmp"), at("CURRENT")).unwrap();
            fs::remove_file(at("gone")).unwrap();
            let root = data.path().display();
            let journal = format!(
                "1 openat(AT_FDCWD</>, \"{root}/a.log\", O_CREAT) = 3<{root}/a.log>\n\
                 1 write(3<{root}/a.log>, \"\"..., 4) = 4\n1 fdatasync(3<{root}/a.log>) = 0\n\
                 1 write(3<{root}/a.log>, \"\"..., 4) = 4\n\
                 1 openat(AT_FDCWD</>, \"{root}/tmp\", O_CREAT|O_TRUNC) = 4<{root}/tmp>\n\
                 1 write(4<{root}/tmp>, \"\"..., 3) = 3\n1 fsync(4<{root}/tmp>) = 0\n\
                 1 rename(\"{root}/tmp\", \"{root}/CURRENT\") = 0\n1 unlink(\"{root}/gone\") = 0\n"
            );
            fs::write(power.journal(), journal).unwrap();
            power.read();
            power.cut(&mut ChaCha8Rng::seed_from_u64(seed));
            let log = fs::read(at("a.log")).unwrap();
            assert!(log.starts_with(b"sync") && log.len() <= 8);
            assert!(["old", "new"].contains(&text("CURRENT").as_str()));
            outcomes.extend([format!("log {}", log.len() > 4), text("CURRENT"), format!("gone {}", text("gone"))]);
        }
        assert_eq!(outcomes.len(), 6, "{outcomes:?}");
    }
}
