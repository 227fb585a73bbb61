//! A life as its parent sees it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use engine::torture::{Bug, Failpoint};

use crate::life::HALTS;
use crate::tracer::Tracer;

const ABORTED: i32 = 6;
/// Longest time for one thing it is told.
const PATIENCE: Duration = Duration::from_secs(90);
/// Longest time until a tracer has run the program.
const TRACER_PATIENCE: Duration = Duration::from_secs(30);
/// Tracers that may stand still.
const TRACERS: usize = 3;

/// What a life is born with.
#[derive(Clone, Debug, Default)]
pub struct Fate {
    /// The mistake it makes.
    pub planted: Option<Bug>,
    /// Where it aborts, and at which hit.
    pub failpoint: Option<(Failpoint, u64)>,
    /// Who watches it, and spoils its calls.
    pub tracer: Option<Tracer>,
}

/// A running life.
pub struct Life {
    child: Child,
    input: ChildStdin,
    lines: mpsc::Receiver<String>,
    fate: Fate,
    patience: Duration,
    /// Its own, where the child is the one that traces it.
    traced: Option<String>,
}

/// How a life ended that was told something.
#[derive(Debug)]
pub enum End {
    /// At its failpoint.
    Aborted,
    /// It says that it cannot go on, and why.
    Halted(String),
    /// It neither answered nor ended.
    Silent(String),
    /// Of something that must not be.
    Violated(String),
}

impl Life {
    /// Starts one over a data directory; it says `started` once it is there.
    ///
    /// A tracer was seen to stand still before it ran the program at all. Nothing was touched then, so it is ended and
    /// another one begins; a program that did run and is silent is a failure.
    pub fn start(data: &Path, url: &str, fate: Fate) -> Life {
        for _ in 0..TRACERS {
            let mut life = Life::spawn(data, url, fate.clone());
            if fate.tracer.is_none() {
                return life;
            }
            match life.lines.recv_timeout(TRACER_PATIENCE) {
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    println!("a tracer stood still before the program ran ({}): another one begins", life.threads());
                    life.end_all();
                }
                said => {
                    life.traced = said.ok().and_then(|line| Some(line.strip_prefix("pid ")?.to_owned()));
                    return life;
                }
            }
        }
        panic!("{TRACERS} tracers stood still, one after the other");
    }

    fn spawn(data: &Path, url: &str, fate: Fate) -> Life {
        let program = std::env::current_exe().unwrap();
        let mut command =
            fate.tracer.as_ref().map_or_else(|| Command::new(&program), |tracer| tracer.command(&program));
        command.arg("life").arg(data).arg(url).process_group(0);
        if let Some(bug) = fate.planted {
            command.env("TIDEMARK_PLANTED", format!("{bug:?}"));
        }
        if let Some((point, nth)) = fate.failpoint {
            command.env("TIDEMARK_FAILPOINT", format!("{point:?}:{nth}"));
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (lines, said) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        let input = child.stdin.take().unwrap();
        Life { child, input, lines: said, fate, patience: PATIENCE, traced: None }
    }

    /// Waits no longer than this from here on.
    pub fn patience(&mut self, time: Duration) {
        self.patience = time;
    }

    /// Tells it something, and waits until it says this.
    pub fn ask(&mut self, command: &str, answer: &str) -> Result<String, End> {
        // Where it is dead, it says nothing.
        let _ = writeln!(self.input, "{command}");
        self.hears(answer)
    }

    /// Waits until it says this.
    pub fn hears(&mut self, answer: &str) -> Result<String, End> {
        let deadline = Instant::now() + self.patience;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with(answer) => return Ok(line),
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(self.end()),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let threads = self.threads();
                    self.end_it();
                    return Err(End::Silent(format!("never {answer}: {:?}, {threads}", self.end())));
                }
            }
        }
    }

    /// Whether it aborts by itself within this time.
    pub fn aborts_within(&mut self, time: Duration) -> Result<bool, String> {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            if self.child.try_wait().unwrap().is_some() {
                return match self.end() {
                    End::Aborted => Ok(true),
                    End::Halted(why) | End::Silent(why) | End::Violated(why) => Err(why),
                };
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(false)
    }

    /// `kill -9`. Where it is traced, the journal is complete afterwards.
    pub fn kill(mut self) {
        self.end_it();
        self.end();
    }

    /// What each thread waits for, as the kernel names it; of the tracer, where the life never said its process id.
    fn threads(&self) -> String {
        let pid = self.traced.clone().unwrap_or_else(|| self.child.id().to_string());
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        tasks.map(|task| format!("{} {}; ", read(task.path().join("comm")), read(task.path().join("wchan")))).collect()
    }

    /// The tracer and what it traces.
    fn end_all(&mut self) {
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-9", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }

    fn end_it(&mut self) {
        // Its number may be another's by now.
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let _ = match &self.traced {
            Some(pid) => Command::new("kill").args(["-9", pid]).stderr(Stdio::null()).status().map(drop),
            None => self.child.kill(),
        };
    }

    /// How it ended by itself.
    fn end(&mut self) -> End {
        let status = self.child.wait().unwrap();
        let mut said = String::new();
        let _ = self.child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
        if self.fate.failpoint.is_some() && status.signal() == Some(ABORTED) {
            return End::Aborted;
        }
        let halts = said.trim_end().ends_with(HALTS);
        let why = format!("{status}: {}", said.trim().chars().take(600).collect::<String>());
        if halts { End::Halted(why) } else { End::Violated(why) }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.end_it();
        let _ = self.child.wait();
    }
}
