//! What HTTP itself costs here: a handler that answers the same number of bytes, in a process of its own as the product is.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use axum::Router;
use axum::http::header;
use axum::routing::get;
use tokio::net::TcpListener;

/// The argument that makes this program such a server; the number of bytes follows.
pub const COMMAND: &str = "bare-server";

/// A running one.
#[derive(Debug)]
pub struct Bare {
    child: Child,
    /// Where it serves.
    pub address: SocketAddr,
}

/// Serves until killed.
pub async fn serve(bytes: usize) -> anyhow::Result<()> {
    let body: &'static str = format!("\"{}\"", "x".repeat(bytes.saturating_sub(2))).leak();
    let handler = move || async move { ([(header::CONTENT_TYPE, "application/json")], body) };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, Router::new().route("/", get(handler))).await?;
    Ok(())
}

impl Bare {
    /// Starts one. To be called on the main thread.
    pub fn start(bytes: usize) -> anyhow::Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(std::env::current_exe()?).arg(COMMAND).arg(bytes.to_string());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
        Ok(Bare { child, address: line.trim().parse().context("the bare server does not start")? })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
