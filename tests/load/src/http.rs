//! A keep-alive HTTP client that costs as little as possible, so that what is measured is the server.

use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One connection.
#[derive(Debug)]
pub struct Http {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Http {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Http { stream, received: Vec::with_capacity(64 << 10) })
    }

    /// The bytes of a GET.
    pub fn request(path: &str) -> Vec<u8> {
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
    }

    /// GET of a path, with the body as JSON where it is.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<(u16, Value)> {
        let (status, body) = self.exchange(&Http::request(path)).await?;
        Ok((status, serde_json::from_slice(body).unwrap_or(Value::Null)))
    }

    /// GET that must answer 200.
    pub async fn ok(&mut self, path: &str) -> anyhow::Result<Value> {
        let (status, body) = self.get(path).await?;
        ensure!(status == 200, "{path}: {status} {body}");
        Ok(body)
    }

    /// PUT of JSON.
    pub async fn put(&mut self, path: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
        self.send("PUT", path, &body.to_string()).await
    }

    /// POST of JSON.
    pub async fn post(&mut self, path: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
        self.send("POST", path, &body.to_string()).await
    }

    /// DELETE of a path.
    pub async fn delete(&mut self, path: &str) -> anyhow::Result<(u16, Value)> {
        self.send("DELETE", path, "").await
    }

    async fn send(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, Value)> {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let (status, body) = self.exchange(request.as_bytes()).await?;
        Ok((status, serde_json::from_slice(body).unwrap_or(Value::Null)))
    }

    /// Sends a request and takes the whole answer.
    pub async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<(u16, &[u8])> {
        self.stream.write_all(request).await?;
        self.received.clear();
        let mut head = None;
        loop {
            ensure!(self.stream.read_buf(&mut self.received).await? > 0, "the connection was closed");
            if head.is_none() {
                head = parse_head(&self.received)?;
            }
            if let Some((status, start, length)) = head
                && self.received.len() >= start + length
            {
                let body = self.received.get(start..start + length).unwrap_or_default();
                return Ok((status, body));
            }
        }
    }
}

/// Status, where the body starts, and its length; `None` while the head is not complete.
fn parse_head(received: &[u8]) -> anyhow::Result<Option<(u16, usize, usize)>> {
    let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(received.get(..end).unwrap_or_default())?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status")?.parse()?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
    });
    match length {
        // An answer that has no body need not say so.
        None if status == 204 => Ok(Some((status, end + 4, 0))),
        Some(length) => Ok(Some((status, end + 4, length?))),
        None => bail!("an answer without a length: {head}"),
    }
}
