//! The product's binary, started as a user would.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::http::Http;
use crate::payments;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// A running `tidemark serve`.
#[derive(Debug)]
pub struct Tidemark {
    child: Child,
    /// When it was started.
    pub started: Instant,
    /// Where it serves.
    pub address: SocketAddr,
}

/// The binary beside this one.
pub fn binary() -> anyhow::Result<PathBuf> {
    let binary = std::env::current_exe()?.with_file_name("tidemark");
    ensure!(binary.exists(), "{} is missing: cargo build --release -p tidemark", binary.display());
    Ok(binary)
}

impl Tidemark {
    /// Starts it on a free port and waits until it serves. To be called on the main thread: the kernel ends it with that.
    pub fn start(data: &Path, postgres: &str) -> anyhow::Result<Self> {
        Self::start_with(data, postgres, &[])
    }

    /// The same with more arguments.
    pub fn start_with(data: &Path, postgres: &str, more: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(binary()?).args(["serve", "--listen", "127.0.0.1:0", "--data"]);
        command.arg(data).args(["--table", "public.payments"]).args(more);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TIDEMARK_")) {
            command.env_remove(name);
        }
        command.env("TIDEMARK_POSTGRES", postgres).env("RUST_LOG", "info").env_remove("RUST_BACKTRACE");
        let started = Instant::now();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let stderr = BufReader::new(child.stderr.take().context("no stderr")?);
        let (lines, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                // What it complains about while it is measured must be seen.
                if line.contains("WARN") || line.contains("ERROR") {
                    println!("    tidemark: {line}");
                }
                let _ = lines.send(line);
            }
        });
        let mut said = Vec::new();
        while let Ok(line) = log.recv_timeout(PATIENCE) {
            if let Some((_, address)) = line.split_once("serving on http://") {
                return Ok(Tidemark { child, started, address: address.trim().parse()? });
            }
            said.push(line);
        }
        bail!("tidemark does not serve: {said:#?}")
    }

    /// A new connection to it.
    pub async fn http(&self) -> anyhow::Result<Http> {
        Http::connect(self.address).await
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it is ready; the time since it was started.
    pub async fn ready(&self) -> anyhow::Result<Duration> {
        let mut http = self.http().await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, body) = http.get("/readyz").await?;
            if status == 200 {
                return Ok(self.started.elapsed());
            }
            ensure!(Instant::now() < deadline, "not ready: {body}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Registers one of the aggregates and waits until it is live; how long that took.
    pub async fn register(&self, name: &str) -> anyhow::Result<Duration> {
        let (_, definition) = payments::aggregates().into_iter().find(|(one, _)| *one == name).context("no such")?;
        self.register_as(name, &definition).await
    }

    /// Registers an aggregate and waits until it is live; how long that took.
    pub async fn register_as(&self, name: &str, definition: &serde_json::Value) -> anyhow::Result<Duration> {
        let mut http = self.http().await?;
        let path = format!("/v1/aggregates/{name}");
        let started = Instant::now();
        let (status, body) = http.put(&path, definition).await?;
        ensure!(status < 300, "{path}: {status} {body}");
        loop {
            let body = http.ok(&path).await?;
            if body.get("state").and_then(|state| state.as_str()) == Some("live") {
                return Ok(started.elapsed());
            }
            ensure!(started.elapsed() < PATIENCE, "not live: {body}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// SIGTERM; how long the end took.
    pub async fn terminate(mut self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM)?;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "tidemark ended with {status}");
                return Ok(started.elapsed());
            }
            ensure!(started.elapsed() < PATIENCE, "tidemark does not end");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Tidemark {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
