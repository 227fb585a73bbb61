//! The real binary, started as a user would, asked over HTTP, stopped or killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use queries::api::problem_codes;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A running `tidemark serve`.
pub struct Server {
    child: Child,
    address: String,
    /// What it wrote to its log before it served.
    pub said: Vec<String>,
    log: mpsc::Receiver<String>,
}

/// A status and a JSON body.
pub type Answer = (u16, Value);

/// An answer with its headers, and its body as it came.
pub struct Reply {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub bytes: Vec<u8>,
    pub text: String,
}

impl Server {
    /// Starts `tidemark serve` on a free port with these arguments, and waits until it listens.
    pub fn start(data: &Path, postgres: &str, tables: &[&str], more: &[&str]) -> Server {
        let mut command = serve(data);
        command.env("TIDEMARK_POSTGRES", postgres);
        for table in tables {
            command.args(["--table", table]);
        }
        Self::listen(command.args(more))
    }

    /// The same at this address, where one before it was.
    pub fn start_at(address: &str, data: &Path, postgres: &str, tables: &[&str]) -> Server {
        let mut command = serve(data);
        command.env("TIDEMARK_POSTGRES", postgres);
        for table in tables {
            command.args(["--table", table]);
        }
        Self::try_listen_at(&mut command, address)
            .unwrap_or_else(|(said, status)| panic!("tidemark does not serve: {said:#?} {status}"))
    }

    /// Starts `tidemark serve` with a source that these arguments name.
    pub fn start_source(data: &Path, source: &[&str]) -> Server {
        Self::listen(serve(data).args(source))
    }

    /// Starts `tidemark demo`, with its own Postgres, on a free port.
    pub fn demo() -> Server {
        Self::listen(tidemark().arg("demo"))
    }

    /// Starts this `tidemark` on a free port, and waits until it listens.
    pub fn listen(command: &mut Command) -> Server {
        Self::try_listen(command).unwrap_or_else(|(said, status)| panic!("tidemark does not serve: {said:#?} {status}"))
    }

    /// The same where it may refuse: what it said then, and its exit status.
    pub fn try_listen(command: &mut Command) -> Result<Server, (Vec<String>, ExitStatus)> {
        Self::try_listen_at(command, "127.0.0.1:0")
    }

    fn try_listen_at(command: &mut Command, address: &str) -> Result<Server, (Vec<String>, ExitStatus)> {
        let mut child = command.args(["--listen", address]).stderr(Stdio::piped()).spawn().unwrap();
        let (lines, log) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut said = Vec::new();
        loop {
            let line = log.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let Ok(line) = line else { return Err((said, child.wait().unwrap())) };
            if let Some(address) = line.split_once("serving on http").and_then(|(_, rest)| rest.split_once("://")) {
                // In a line of JSON it is quoted.
                let address = address.1.split('"').next().unwrap_or_default().trim().to_owned();
                return Ok(Server { child, address, said, log });
            }
            said.push(line);
        }
    }

    /// What it wrote to its log since it served, or since the last look.
    pub fn log(&self) -> Vec<String> {
        self.log.try_iter().collect()
    }

    /// Waits for a line that has this in it; lines before it are gone then.
    pub fn wait_for_line(&self, part: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match self.log.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(part) => return line,
                Ok(_) => {}
                Err(_) => panic!("it never wrote {part:?}"),
            }
        }
    }

    /// GET of a path; `None` where nobody answers.
    pub fn try_get(&self, path: &str) -> Option<Answer> {
        self.send("GET", path, None)
    }

    /// GET of a path.
    pub fn get(&self, path: &str) -> Answer {
        self.try_get(path).unwrap_or_else(|| panic!("no answer to {path}: {:#?}", self.log()))
    }

    /// GET of a path until it answers 200; at most a minute.
    pub fn get_ok(&self, path: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match self.get(path) {
                (200, body) => return body,
                (status, body) => {
                    let later = matches!(status, 429 | 503) || body["code"] == "not_covered";
                    assert!(later && Instant::now() < deadline, "{path}: {status} {body}");
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// PUT of a definition.
    pub fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, Some(body.to_string().as_bytes())).unwrap_or_else(|| panic!("no answer to {path}"))
    }

    /// Registers an aggregate, and waits until it answers; a source that has just been started is waited for.
    pub fn register(&self, name: &str, definition: &Value) {
        let path = format!("/v1/aggregates/{name}");
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match self.put(&path, definition) {
                (200 | 202, _) => break,
                (status, body) => assert!(status == 503 && Instant::now() < deadline, "{definition}: {status} {body}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.get_ok(&format!("{path}/data?limit=1"));
    }

    /// PUT of a body that may be anything; `None` where nobody answers.
    pub fn try_put(&self, path: &str, body: &[u8]) -> Option<Answer> {
        self.send("PUT", path, Some(body))
    }

    /// POST of a body; `None` where nobody answers.
    pub fn try_post(&self, path: &str, body: &[u8]) -> Option<Answer> {
        self.send("POST", path, Some(body))
    }

    /// DELETE of a path.
    pub fn delete(&self, path: &str) -> Option<Answer> {
        self.send("DELETE", path, None)
    }

    fn send(&self, method: &str, path: &str, body: Option<&[u8]>) -> Option<Answer> {
        let reply = self.exchange(method, path, &[("content-type", "application/json")], body.unwrap_or_default())?;
        Some((reply.status, serde_json::from_str(&reply.text).unwrap_or(Value::String(reply.text))))
    }

    /// A request with headers, and all of what came back; `None` where nobody answers.
    pub fn exchange(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Reply> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(40)))
            .build()
            .into();
        let request = ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let mut response = agent.run(request.body(body.to_vec()).unwrap()).ok()?;
        let bytes = response.body_mut().read_to_vec().ok()?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        is_in_the_table(response.status().as_u16(), &text);
        Some(Reply { status: response.status().as_u16(), headers: response.headers().clone(), bytes, text })
    }

    /// The most memory it has had resident so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Where it serves, as `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sends a signal and does not wait.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGSTOP, and returns when every thread stands still: the signal alone lets them run on until they are scheduled.
    pub fn hang(&self) {
        self.signal(Signal::STOP);
        let threads = format!("/proc/{}/task", self.child.id());
        // The state is behind the name, which may hold anything but ends with the last parenthesis.
        let runs = |status: &str| !status.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'));
        let any_runs = || {
            std::fs::read_dir(&threads).unwrap().any(|thread| {
                std::fs::read_to_string(thread.unwrap().path().join("stat")).is_ok_and(|status| runs(&status))
            })
        };
        while any_runs() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and its exit status.
    pub fn terminate(mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `tidemark serve` over a data directory, not started yet; nothing of the environment tells it more.
pub fn serve(data: &Path) -> Command {
    let mut command = tidemark();
    command.arg("serve").arg("--data").arg(data);
    command
}

/// The binary, without the environment's settings.
pub fn tidemark() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TIDEMARK_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).env("RUST_LOG", "info");
    command
}

/// Whatever is refused, and by whomever, is explained in the guide.
fn is_in_the_table(status: u16, text: &str) {
    let body: Value = serde_json::from_str(text).unwrap_or_default();
    if let (400.., Some(code), Some(_)) = (status, body["code"].as_str(), body["type"].as_str()) {
        let known =
            problem_codes::find(code).unwrap_or_else(|| panic!("{code} is not in the table of problems: {body}"));
        assert!(known.statuses.contains(&status), "{code} comes with {status}: {body}");
    }
}
