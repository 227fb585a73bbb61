//! A performance of the script as its parent sees it: what it said, and how it ended.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::life::HALTED;
use crate::promises::Promises;
use crate::shim::{ABORTED, Failure, Shim, Tally};

const SIGABRT: i32 = 6;
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Many times what a performance takes, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It did everything, and every cell was right.
    Exact,
    /// It says that it cannot go on, and why.
    Halted(String),
    /// The shim ended it.
    Aborted,
    /// It neither ended nor halted.
    Silent,
    /// Of something that must not be.
    Violated(String),
}

/// How one is to be.
pub struct Performance<'p> {
    pub data: &'p Path,
    /// Of the world.
    pub world: u64,
    /// What lives before it said.
    pub promises: &'p Promises,
    pub unstopped: bool,
    pub failure: Option<(&'p Shim, Failure)>,
    pub patience: Duration,
}

/// One that is over.
#[derive(Clone, Debug)]
pub struct Ended {
    pub end: End,
    /// What it said.
    pub lines: Vec<String>,
    /// Its calls, where a shim was there to count them.
    pub tally: Option<Tally>,
    /// The promise that it found broken.
    pub broken: Option<String>,
}

impl<'p> Performance<'p> {
    /// One that nothing happens to.
    pub fn of(data: &'p Path, world: u64, promises: &'p Promises) -> Self {
        Performance { data, world, promises, unstopped: false, failure: None, patience: PATIENCE }
    }

    /// Runs it to its end.
    pub fn run(&self) -> Ended {
        let [said, complained, tally] = ["said", "complained", "tally"].map(|kind| beside(self.data, kind));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("script").arg("--data").arg(self.data).arg("--world").arg(self.world.to_string());
        command.arg("--acknowledged").arg(self.promises.durable.to_string());
        command.args(self.unstopped.then_some("--unstopped"));
        if let Some((shim, failure)) = self.failure {
            shim.before(&mut command, self.data, &tally, failure);
        }
        // Into files: a pipe that nobody empties would hold it up.
        command.stdin(Stdio::null()).stdout(File::create(&said).unwrap()).stderr(File::create(&complained).unwrap());
        let mut child = command.spawn().unwrap();
        let status = wait(&mut child, self.patience);
        let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        let lines: Vec<String> = text(&said).lines().map(str::to_owned).collect();
        let end = self.judge(status, &lines, &text(&complained));
        let broken = lines.iter().find_map(|line| self.promises.broken_by(line));
        Ended { end, lines, tally: self.failure.map(|_| Tally::read(&tally)), broken }
    }

    fn judge(&self, status: Option<ExitStatus>, lines: &[String], complained: &str) -> End {
        let Some(status) = status else { return End::Silent };
        let last = lines.last().map_or("", String::as_str);
        let ended_as_told = status.success() || (self.unstopped && status.signal() == Some(SIGABRT));
        match status.code() {
            _ if ended_as_told && last.starts_with("exact") => End::Exact,
            Some(HALTED) if last.starts_with("halted ") => End::Halted(last.replacen("halted ", "", 1)),
            Some(ABORTED) if self.failure.is_some_and(|(_, failure)| failure.how.is_abort()) => End::Aborted,
            _ => End::Violated(format!("{status}: {}", complained.trim().chars().take(1_500).collect::<String>())),
        }
    }
}

impl Ended {
    /// Adds what it said.
    pub fn add_to(&self, promises: &mut Promises) {
        self.lines.iter().for_each(|line| promises.hear(line));
    }

    /// Codes by which single requests and aggregates were refused meanwhile.
    pub fn refused(&self) -> impl Iterator<Item = &str> {
        let said = |line: &'_ String| line.starts_with("refused ") || line.starts_with("unanswered ");
        self.lines.iter().filter(move |line| said(line)).filter_map(|line| line.split(' ').nth(1))
    }

    /// How many cells were compared last.
    pub fn cells(&self) -> u64 {
        self.lines.last().and_then(|line| line.strip_prefix("exact ")?.parse().ok()).unwrap_or_default()
    }
}

/// Its status, or nothing where it had to be killed.
fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

fn beside(data: &Path, kind: &str) -> PathBuf {
    data.with_extension(kind)
}
