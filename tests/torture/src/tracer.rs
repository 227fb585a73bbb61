//! `strace` before a life: what it does to files goes into a journal, and single calls are made to fail.
//!
//! The tracer is the parent, ends last and as the life did, by the same signal or status: then the journal is complete. It is
//! the life that has to be killed, not the tracer; so the life says its process id. Where tracing is forbidden, as in some
//! containers, this says so.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What changes a file system, as far as the store does it; and what makes such changes last.
const CALLS: &str = "write,writev,pwrite64,fsync,fdatasync,ftruncate,openat,creat,link,linkat,mkdir,mkdirat,\
                     rename,renameat,renameat2,rmdir,unlink,unlinkat";

/// How a life is watched.
#[derive(Clone, Debug)]
pub struct Tracer {
    /// Where the journal goes.
    pub journal: PathBuf,
    /// The call that fails, where one does.
    pub failure: Option<Failure>,
}

/// A call that the kernel does not make.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its name.
    pub call: &'static str,
    /// What it returns instead.
    pub error: &'static str,
    /// Which one of each thread.
    pub nth: u32,
    /// All after it, too.
    pub sticky: bool,
    /// On these files only.
    pub paths: Vec<PathBuf>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:error={}:when={}{}", self.call, self.error, self.nth, if self.sticky { "+" } else { "" })
    }
}

impl Tracer {
    /// A journal of everything.
    pub fn of(journal: &Path) -> Tracer {
        Tracer { journal: journal.to_owned(), failure: None }
    }

    /// The command that runs a program with its arguments under it.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("strace");
        command.args(["-f", "--seccomp-bpf", "-y", "-s", "0", "-e", "signal=none", "-o"]).arg(&self.journal);
        match &self.failure {
            None => drop(command.arg("-e").arg(format!("trace={CALLS}"))),
            Some(failure) => {
                command.arg("-e").arg(format!("trace={}", failure.call)).arg("-e").arg(format!("inject={failure}"));
                for path in &failure.paths {
                    command.arg("-P").arg(path);
                }
            }
        }
        command.arg(program);
        command
    }
}

/// Why nothing can be traced here; nothing where it can.
pub fn why_not() -> Option<String> {
    let mut tried = Command::new("strace");
    tried.args(["-f", "--seccomp-bpf", "-e", "trace=openat", "-o", "/dev/null", "true"]);
    match tried.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() && output.stderr.is_empty() => None,
        Ok(output) => Some(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Some(format!("strace: {error}")),
    }
}
