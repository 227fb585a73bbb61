//! A private Postgres for the demo and for tests: its own temporary directory, a unix socket in it, no network.
//!
//! Nothing outlives it: dropping stops the server and removes the directory, and the kernel stops the server when the
//! thread that started it ends, even by `kill -9` (`setpriv --pdeathsig`). So it must be started by a thread that lives
//! as long as it is needed. Postgres refuses to run as root; started by root it runs as the user `postgres`.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use engine::source::SourceError;
use rustix::process::{Pid, Signal, kill_process};

use super::error::source_error;

/// How long a server may take to accept connections.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running private server.
#[derive(Debug)]
pub struct ThrowawayPostgres {
    directory: tempfile::TempDir,
    binaries: PathBuf,
    settings: Vec<String>,
    server: Option<Child>,
}

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Disconnects everyone and writes everything (`pg_ctl stop -m fast`).
    Fast,
    /// As a crash, as far as data goes (`pg_ctl stop -m immediate`).
    Immediate,
}

impl ThrowawayPostgres {
    /// Creates a cluster with logical replication and starts it; `settings` are further `name=value` pairs.
    pub fn start(settings: &[&str]) -> Result<Self, SourceError> {
        let mut server = Self::without_cluster(settings)?;
        let data = server.data();
        run(server
            .command("initdb")
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(data))?;
        server.launch()?;
        Ok(server)
    }

    /// A server that has a directory of its own and nothing in it yet.
    fn without_cluster(settings: &[&str]) -> Result<Self, SourceError> {
        let binaries = find_binaries()?;
        let directory = own_directory()?;
        Ok(ThrowawayPostgres {
            settings: server_settings(directory.path(), settings),
            directory,
            binaries,
            server: None,
        })
    }

    /// Starts a server over a copy of a cluster that no server runs over; its slots are there, and as they were.
    pub fn over_copy_of(cluster: &Path, settings: &[&str]) -> Result<Self, SourceError> {
        let mut server = Self::without_cluster(settings)?;
        run(Command::new("cp").arg("-a").arg(cluster).arg(server.data()))?;
        server.launch()?;
        Ok(server)
    }

    /// Copies the cluster of this stopped server; the copy, once launched, is a hot standby of it. It streams through the
    /// primary's physical slot `standby`, which is the caller's to create; `settings` are added to the primary's own.
    pub fn standby(&self, settings: &[&str]) -> Result<Self, SourceError> {
        let directory = own_directory()?;
        let mut standby = ThrowawayPostgres {
            settings: self.settings.clone(),
            directory,
            binaries: self.binaries.clone(),
            server: None,
        };
        standby.settings.extend([
            format!("unix_socket_directories={}", standby.directory.path().display()),
            format!(
                "primary_conninfo=host={} port={} user=postgres dbname=postgres application_name=standby",
                self.socket_directory().display(),
                self.port()
            ),
            "primary_slot_name=standby".to_owned(),
            "hot_standby_feedback=on".to_owned(),
            "wal_retrieve_retry_interval=100ms".to_owned(),
        ]);
        standby.settings.extend(settings.iter().map(|setting| (*setting).to_owned()));
        run(Command::new("cp").arg("-a").arg(self.data()).arg(standby.data()))?;
        File::create(standby.data().join("standby.signal")).map_err(|e| failed("the sign of a standby", &e))?;
        Ok(standby)
    }

    /// Copies the files of a replication slot to a stopped standby, as cluster managers do for servers that do not copy
    /// slots themselves.
    pub fn copy_slot_to(&self, standby: &ThrowawayPostgres, slot: &str) -> Result<(), SourceError> {
        let home = |server: &ThrowawayPostgres| server.data().join("pg_replslot").join(slot);
        run(Command::new("cp").arg("-a").arg(home(self)).arg(home(standby)))
    }

    /// Starts the server of this cluster; after [`ThrowawayPostgres::stop`] again.
    pub fn launch(&mut self) -> Result<(), SourceError> {
        let log = self.directory.path().join("log");
        let output = File::options().create(true).append(true).open(&log).map_err(|e| failed("its log", &e))?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data());
        for setting in &self.settings {
            command.arg("-c").arg(setting);
        }
        let child = command.stdout(Stdio::null()).stderr(output).spawn().map_err(|e| failed("the server", &e))?;
        let pid = child.id();
        self.server = Some(child);
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.answers(pid) {
            let ended = self.server.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || Instant::now() > deadline {
                let log = fs::read_to_string(&log).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                let message = format!("a private Postgres did not start: {}", tail.join(" / "));
                return Err(source_error("postgres_did_not_start", message, "see that /tmp has space, and try again"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Postgres listens before it has recovered; that it lets sessions in is what its lock file says last.
    fn answers(&self, pid: u32) -> bool {
        let lock = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let mut lines = lock.lines();
        lines.next() == Some(pid.to_string().as_str()) && lines.next_back().is_some_and(|state| state.trim() == "ready")
    }

    /// Stops the server and keeps its cluster.
    pub fn stop(&mut self, how: Stop) {
        if let Some(mut child) = self.server.take() {
            let signal = match how {
                Stop::Fast => Signal::INT,
                Stop::Immediate => Signal::QUIT,
            };
            if kill_process(Pid::from_child(&child), signal).is_err() {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }

    /// Where its unix socket is; also a place for scratch files.
    #[must_use]
    pub fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    /// A program that works with this Postgres (`psql`, `pgbench`, `pg_recvlogical`): its own, or where it came without any,
    /// that of another version installed here.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        let own = self.binaries.join(name);
        if own.exists() {
            return own;
        }
        installed().into_iter().map(|bin| bin.join(name)).rfind(|program| program.exists()).unwrap_or(own)
    }

    /// The URL of its database `postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// The URL of a database of it.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@/{database}?host={}&port={}", self.socket_directory().display(), self.port())
    }

    fn port(&self) -> &str {
        self.settings.iter().rev().find_map(|setting| setting.strip_prefix("port=")).unwrap_or("5432")
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A program of this Postgres, as the right user, ending with this process.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        if is_root() {
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        }
        command.args(["--pdeathsig", "QUIT"]).arg(self.binaries.join(program));
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        // Ctrl-C on the terminal is for us: we stop the server once we are done with it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
    }
}

impl Drop for ThrowawayPostgres {
    fn drop(&mut self) {
        self.stop(Stop::Immediate);
    }
}

fn server_settings(directory: &Path, more: &[&str]) -> Vec<String> {
    let mut settings: Vec<String> = [
        "wal_level=logical",
        // The cluster is thrown away: nothing of it has to survive a power cut.
        "fsync=off",
        "listen_addresses=",
        "max_replication_slots=20",
        "max_wal_senders=20",
        "timezone=UTC",
    ]
    .map(str::to_owned)
    .to_vec();
    settings.push(format!("unix_socket_directories={}", directory.display()));
    settings.extend(more.iter().map(|setting| (*setting).to_owned()));
    settings
}

/// The newest installed server's programs, or those in the directory that `TIDEMARK_PG_BIN` names.
fn find_binaries() -> Result<PathBuf, SourceError> {
    if let Some(named) = std::env::var_os("TIDEMARK_PG_BIN") {
        return Ok(PathBuf::from(named));
    }
    if let Some(newest) = installed().pop() {
        return Ok(newest);
    }
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&on_path).find(|path| path.join("initdb").exists() && path.join("postgres").exists()).ok_or_else(
        || {
            source_error(
                "no_postgres",
                "no Postgres server is installed on this machine (looked for initdb and postgres)",
                "on Debian and Ubuntu: apt-get install postgresql; elsewhere put the server's bin directory on the PATH",
            )
        },
    )
}

/// The servers' programs where Debian puts them, the newest last.
fn installed() -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, path): &(u32, PathBuf)| path.join("initdb").exists())
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// A directory that the server's user may write to.
fn own_directory() -> Result<tempfile::TempDir, SourceError> {
    let directory =
        tempfile::Builder::new().prefix("tidemark-postgres-").tempdir().map_err(|e| failed("a directory", &e))?;
    if is_root() {
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))
            .map_err(|e| failed("its directory", &e))?;
        run(Command::new("chown").arg("postgres").arg(directory.path()))?;
    }
    Ok(directory)
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn run(command: &mut Command) -> Result<(), SourceError> {
    let output = command.output().map_err(|e| failed(&format!("{command:?}"), &e))?;
    if output.status.success() {
        return Ok(());
    }
    let message = format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Err(source_error("postgres_did_not_start", message, "see that the programs of Postgres work for this user"))
}

fn failed(what: &str, error: &std::io::Error) -> SourceError {
    let message = format!("cannot start a private Postgres: {what}: {error}");
    source_error("postgres_did_not_start", message, "see that /tmp is writable and util-linux (setpriv) is installed")
}
