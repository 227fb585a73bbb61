//! The commands that talk to a running server: the HTTP face from a shell. Answers go to standard output as JSON,
//! problems to standard error with what to do.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::cli::ServerAddress;
use crate::failure::Failure;

/// Longer than the server's own limit, so that its reason is heard.
const TIMEOUT: Duration = Duration::from_secs(35);

/// A running server.
pub struct Client {
    agent: ureq::Agent,
    url: String,
}

impl Client {
    /// A client of the server at an address.
    pub fn new(server: &ServerAddress) -> Result<Client, Failure> {
        if !server.url.starts_with("http://") {
            return Err(Failure::Usage(format!("{:?} is not of the form http://host:port", server.url)));
        }
        let agent = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT)).build();
        Ok(Client { agent: agent.into(), url: server.url.trim_end_matches('/').to_owned() })
    }

    /// All aggregates.
    pub fn list(&self) -> Result<(), Failure> {
        self.answered(self.agent.get(format!("{}/v1/aggregates", self.url)).call())
    }

    /// One aggregate.
    pub fn describe(&self, name: &str) -> Result<(), Failure> {
        self.answered(self.agent.get(self.aggregate(name)).call())
    }

    /// Drops an aggregate.
    pub fn drop_aggregate(&self, name: &str) -> Result<(), Failure> {
        self.answered(self.agent.delete(self.aggregate(name)).call())
    }

    /// Registers the aggregate in a file.
    pub fn register(&self, file: &Path, name: Option<&str>) -> Result<(), Failure> {
        let definition = std::fs::read_to_string(file)
            .map_err(|error| Failure::Usage(format!("{} cannot be read: {error}", file.display())))?;
        let stem = file.file_stem().and_then(|stem| stem.to_str());
        let name = name.or(stem).ok_or_else(|| Failure::Usage("give the aggregate a name with --name".to_owned()))?;
        self.answered(self.agent.put(self.aggregate(name)).content_type("application/json").send(definition))
    }

    /// Asks an aggregate.
    pub fn query(&self, name: &str, parameters: &[(String, String)]) -> Result<(), Failure> {
        let pairs = parameters.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        self.answered(self.agent.get(format!("{}/data", self.aggregate(name))).query_pairs(pairs).call())
    }

    fn aggregate(&self, name: &str) -> String {
        format!("{}/v1/aggregates/{}", self.url, escape(name))
    }

    /// Prints the answer, or turns the problem into a failure.
    fn answered(&self, response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<(), Failure> {
        let unreachable = |error: ureq::Error| {
            Failure::Failed(format!("{} does not answer: {error}\n  is `tidemark serve` running there?", self.url))
        };
        let mut response = response.map_err(unreachable)?;
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(1 << 30).read_to_string().map_err(unreachable)?;
        if status < 400 {
            return print(&text);
        }
        let message = problem_text(status, &text);
        // The server's failure, or the caller's mistake.
        Err(if status >= 500 { Failure::Failed(message) } else { Failure::Usage(message) })
    }
}

fn print(text: &str) -> Result<(), Failure> {
    if text.is_empty() {
        return Ok(());
    }
    let pretty = serde_json::from_str::<Value>(text).and_then(|value| serde_json::to_string_pretty(&value));
    let written = writeln!(std::io::stdout(), "{}", pretty.as_deref().unwrap_or(text));
    match written {
        // `tidemark query ... | head` closes the pipe; that is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::Failed(error.to_string())),
        _ => Ok(()),
    }
}

/// A problem in the form of a compiler's message.
fn problem_text(status: u16, body: &str) -> String {
    let problem: Value = serde_json::from_str(body).unwrap_or_default();
    let field = |name: &str| problem.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let mut text = match (field("detail"), field("code")) {
        (Some(detail), Some(code)) => format!("{detail} [{code}]"),
        _ => format!("the server answered {status}"),
    };
    for error in problem.get("errors").and_then(Value::as_array).into_iter().flatten() {
        if let Some(pointer) = error.get("pointer").and_then(Value::as_str).filter(|pointer| !pointer.is_empty()) {
            text.push_str(&format!("\n  at: {pointer}"));
        }
    }
    if let Some(hint) = field("hint") {
        text.push_str(&format!("\n  hint: {hint}"));
    }
    text
}

/// Escapes a part of a path (RFC 3986).
fn escape(part: &str) -> String {
    let mut escaped = String::new();
    for byte in part.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_read_like_a_compilers() {
        let body = r#"{"detail":"no column \"amont\"","code":"unknown_column","hint":"did you mean \"amount\"?",
                       "errors":[{"pointer":"/measures/0/sum","detail":"x"}]}"#;
        assert_eq!(
            problem_text(422, body),
            "no column \"amont\" [unknown_column]\n  at: /measures/0/sum\n  hint: did you mean \"amount\"?"
        );
        assert_eq!(problem_text(502, "<html>"), "the server answered 502");
    }

    #[test]
    fn names_cannot_leave_their_place_in_the_path() {
        assert_eq!(escape("a/../b c"), "a%2F..%2Fb%20c");
    }
}
