//! A running server, as the commands ask it: requests, and its problems in the form of a compiler's message.

use std::fmt::Display;
use std::io::BufReader;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderValue, Request, Response, Uri, header};
use ureq::middleware::{Middleware, MiddlewareNext};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Body, BodyReader, SendBody};

use crate::cli::{Question, ServerAddress};
use crate::definition_file::DefinitionFile;
use crate::failure::Failure;
use crate::table::harmless;

/// Longer than the server's own limit, so that its reason is heard.
const TIMEOUT: Duration = Duration::from_secs(35);

/// What the server said.
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
    /// The cursor of the next page, where there is one.
    pub next: Option<String>,
}

impl Reply {
    /// Its problem in the form of a compiler's message.
    pub fn problem(&self) -> String {
        problem_text(self.status, &self.body)
    }

    /// The body, or a failure: the server's, or the caller's mistake.
    pub fn into_success(self) -> Result<String, Failure> {
        match self.status {
            500.. => Err(Failure::Failed(self.problem())),
            400.. => Err(Failure::Usage(self.problem())),
            // Nothing was done: somebody on the way answered.
            300.. => Err(Failure::Usage(format!(
                "status {}: the address points elsewhere, and a token is not sent after it\n  remedy: give the address that it \
                 points to",
                self.status
            ))),
            _ => Ok(self.body),
        }
    }
}

/// A running server.
pub struct Client {
    agent: ureq::Agent,
    url: String,
}

impl Client {
    /// A client of the server at an address.
    pub fn new(server: &ServerAddress) -> Result<Client, Failure> {
        let token = token(server)?;
        let way = Way::to(&server.url)?;
        if token.is_some() && way == Way::Clear {
            return Err(Failure::Usage(format!(
                "the token would travel to {} for everyone on the way to read\n  remedy: use https://",
                without_user(&server.url)
            )));
        }
        let tls = TlsConfig::builder().root_certs(roots(server)?).build();
        let config = ureq::Agent::config_builder();
        // A proxy of the environment would be somebody on the way, who reads the token and answers what he likes.
        let config = if way == Way::Here { config.proxy(None) } else { config };
        let agent = config
            .http_status_as_error(false)
            // A token is for the server that was named, not for where it points.
            .max_redirects(0)
            .timeout_global(Some(TIMEOUT))
            .tls_config(tls)
            .middleware(Bearer(token))
            .build();
        Ok(Client { agent: agent.into(), url: server.url.trim_end_matches('/').to_owned() })
    }

    /// All aggregates.
    pub fn list(&self) -> Result<String, Failure> {
        self.answered(self.agent.get(format!("{}/v1/aggregates", self.url)).call())?.into_success()
    }

    /// One aggregate.
    pub fn describe(&self, name: &str) -> Result<String, Failure> {
        self.answered(self.agent.get(self.aggregate(name)).call())?.into_success()
    }

    /// The names of all aggregates.
    pub fn names(&self) -> Result<Vec<String>, Failure> {
        let list: Value = serde_json::from_str(&self.list()?).unwrap_or_default();
        let entries = list.get("data").and_then(Value::as_array).into_iter().flatten();
        Ok(entries.filter_map(|entry| Some(entry.get("name")?.as_str()?.to_owned())).collect())
    }

    /// Drops an aggregate.
    pub fn delete(&self, name: &str) -> Result<Reply, Failure> {
        self.answered(self.agent.delete(self.aggregate(name)).call())
    }

    /// Registers a definition.
    pub fn put(&self, definition: &DefinitionFile) -> Result<Reply, Failure> {
        let request = self.agent.put(self.aggregate(&definition.name)).content_type(definition.content_type);
        self.answered(request.send(&definition.text))
    }

    /// What a definition would make.
    pub fn preview(&self, definition: &DefinitionFile) -> Result<Reply, Failure> {
        let url = format!("{}/v1/aggregates:preview?name={}", self.url, escape(&definition.name));
        self.answered(self.agent.post(url).content_type(definition.content_type).send(&definition.text))
    }

    /// How far an aggregate is filled.
    pub fn backfill(&self, name: &str) -> Result<Reply, Failure> {
        self.answered(self.agent.get(format!("{}/backfill", self.aggregate(name))).call())
    }

    /// Has cells compared; waits as long as that takes.
    pub fn verify(&self, request: &Value) -> Result<Reply, Failure> {
        self.patiently("/v1/verify", request)
    }

    fn patiently(&self, path: &str, request: &Value) -> Result<Reply, Failure> {
        let url = format!("{}{path}", self.url);
        let patient = self.agent.post(url).config().timeout_global(None).build();
        self.answered(patient.content_type("application/json").send(request.to_string()))
    }

    /// Has a backup taken; waits as long as that takes.
    pub fn back_up(&self, request: &Value) -> Result<Reply, Failure> {
        self.patiently("/v1/admin/checkpoints", request)
    }

    /// Asks an aggregate; `form` is `data.json` or `data.csv`.
    pub fn data(&self, question: &Question, form: &str) -> Result<Reply, Failure> {
        self.asked(question, form, &[])
    }

    /// What would be read for a question.
    pub fn explain(&self, question: &Question, analyze: bool) -> Result<String, Failure> {
        let analyze = if analyze { &[("analyze", "true")][..] } else { &[] };
        self.asked(question, "explain", analyze)?.into_success()
    }

    /// The events of a live answer as lines, from a position on where one is given: for as long as the server sends them.
    pub fn live(&self, question: &Question, since: Option<&str>) -> Result<Lines, Failure> {
        let since = since.map(|since| ("since", since));
        let request = self.agent.get(format!("{}/live", self.aggregate(&question.name)));
        let request = request.query_pairs(pairs(question)).query_pairs(since);
        let patient = request.header(header::ACCEPT, "application/x-ndjson").config().timeout_global(None).build();
        let response = patient.call().map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(BufReader::new(response.into_body().into_reader()));
        }
        Err(match self.answered(Ok(response))?.into_success() {
            Ok(_) => Failure::Failed("the server sends no events".to_owned()),
            Err(failure) => failure,
        })
    }

    fn asked(&self, question: &Question, what: &str, more: &[(&str, &str)]) -> Result<Reply, Failure> {
        let request = self.agent.get(format!("{}/{what}", self.aggregate(&question.name)));
        self.answered(request.query_pairs(pairs(question)).query_pairs(more.iter().copied()).call())
    }

    fn aggregate(&self, name: &str) -> String {
        format!("{}/v1/aggregates/{}", self.url, escape(name))
    }

    fn answered(&self, response: Result<Response<Body>, ureq::Error>) -> Result<Reply, Failure> {
        let mut response = response.map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        let next =
            response.headers().get("tidemark-next-cursor").and_then(|next| next.to_str().ok()).map(str::to_owned);
        let body = response.body_mut().with_config().limit(1 << 30).read_to_string();
        Ok(Reply { status, body: body.map_err(|error| self.unreachable(&error))?, next })
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        let said = error.to_string();
        Failure::Failed(format!("{} does not answer: {said}\n  {}", without_user(&self.url), advice(&self.url, &said)))
    }
}

/// What to do about a server that was not understood. Whether it was TLS can only be told by the words.
fn advice(url: &str, said: &str) -> &'static str {
    let encrypted = url.starts_with("https://");
    if said.contains("invalid peer certificate") {
        return "remedy: give the certificate of the CA that made the server's with --ca-file, and the name that it is for in --server";
    }
    match encrypted {
        // A record of TLS is no answer in HTTP, and the other way round.
        false if said.contains("http parse fail") => "remedy: where the server has TLS, use https:// in --server",
        true if said.contains("InvalidContentType") => "remedy: where the server has no TLS, use http:// in --server",
        _ => "is `tidemark serve` running there?",
    }
}

/// An answer that is read as it comes.
pub type Lines = BufReader<BodyReader<'static>>;

fn pairs(question: &Question) -> impl Iterator<Item = (&str, &str)> {
    question.parameters.iter().map(|(key, value)| (key.as_str(), value.as_str()))
}

/// Sends the token with every request.
struct Bearer(Option<HeaderValue>);

impl Middleware for Bearer {
    fn handle(
        &self,
        mut request: Request<SendBody<'_>>,
        next: MiddlewareNext<'_>,
    ) -> Result<Response<Body>, ureq::Error> {
        if let Some(token) = &self.0 {
            request.headers_mut().insert(header::AUTHORIZATION, token.clone());
        }
        next.handle(request)
    }
}

/// The token as it is sent. One in the environment is for the one who starts us; a file wins over it.
fn token(server: &ServerAddress) -> Result<Option<HeaderValue>, Failure> {
    let token = match &server.token_file {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .map_err(|error| Failure::Usage(format!("the token in {} cannot be read: {error}", path.display())))?,
        ),
        None => std::env::var("TIDEMARK_TOKEN").ok(),
    };
    let token = token.as_deref().map(str::trim).filter(|token| !token.is_empty());
    let header = token.map(|token| {
        let value = HeaderValue::try_from(format!("Bearer {token}"));
        let mut value = value.map_err(|_| Failure::Usage("the token holds what no token holds".to_owned()))?;
        value.set_sensitive(true);
        Ok(value)
    });
    header.transpose()
}

/// An address without user and password. Where it is none, whatever stands before the last @ may be a password.
fn without_user(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let divided = if scheme.is_empty() { "" } else { "://" };
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}{divided}***@{host}"),
        None => url.to_owned(),
    }
}

/// What a request goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// TLS: nobody reads along.
    Encrypted,
    /// This machine, in clear.
    Here,
    /// The network, in clear.
    Clear,
}

impl Way {
    fn to(url: &str) -> Result<Way, Failure> {
        let wrong = || {
            let shown = without_user(url);
            Failure::Usage(format!("{shown:?} is not of the form http://host:port or https://host:port"))
        };
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        match uri.scheme_str() {
            Some("https") if !host.is_empty() => Ok(Way::Encrypted),
            Some("http") if is_here => Ok(Way::Here),
            Some("http") if !host.is_empty() => Ok(Way::Clear),
            _ => Err(wrong()),
        }
    }
}

/// Whose certificates are believed.
fn roots(server: &ServerAddress) -> Result<RootCerts, Failure> {
    let certificates = match &server.ca_file {
        // Looking for them takes time that a server in clear does not need.
        None if !server.url.starts_with("https://") => Vec::new(),
        None => {
            let system = rustls_native_certs::load_native_certs().certs;
            system.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
        }
        Some(path) => {
            let unreadable =
                |error: &dyn Display| Failure::Usage(format!("{} cannot be read: {error}", path.display()));
            let text = std::fs::read(path).map_err(|error| unreadable(&error))?;
            let parts = parse_pem(&text).collect::<Result<Vec<_>, _>>().map_err(|error| unreadable(&error))?;
            let certificates = parts.into_iter().filter_map(|part| match part {
                PemItem::Certificate(certificate) => Some(certificate),
                _ => None,
            });
            let certificates: Vec<_> = certificates.collect();
            if certificates.is_empty() {
                return Err(unreadable(&"it holds no certificate in PEM"));
            }
            certificates
        }
    };
    Ok(RootCerts::new_with_certs(&certificates))
}

/// A problem in the form of a compiler's message. What it tells of may have been named by others.
pub fn problem_text(status: u16, body: &str) -> String {
    let problem: Value = serde_json::from_str(body).unwrap_or_default();
    let field = |name: &str| problem.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(harmless);
    let mut text = match (field("detail"), field("code")) {
        (Some(detail), Some(code)) => format!("{detail} [{code}]"),
        _ => format!("the server answered {status}"),
    };
    for error in problem.get("errors").and_then(Value::as_array).into_iter().flatten() {
        if let Some(pointer) = error.get("pointer").and_then(Value::as_str).filter(|pointer| !pointer.is_empty()) {
            text.push_str(&format!("\n  at: {}", harmless(pointer)));
        }
        let excerpt = error.get("excerpt").and_then(Value::as_str).unwrap_or_default();
        excerpt.lines().for_each(|line| text.push_str(&format!("\n  | {}", harmless(line))));
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
        let body = r#"{"detail":"expected FROM (line 1, column 3)","code":"malformed_sql",
                       "errors":[{"line":1,"column":3,"excerpt":"abc\n  ^","detail":"x"}]}"#;
        assert_eq!(problem_text(400, body), "expected FROM (line 1, column 3) [malformed_sql]\n  | abc\n  |   ^");
        assert_eq!(problem_text(502, "<html>"), "the server answered 502");
        let named = r#"{"detail":"v\nerror: \u001b[2J","code":"c","hint":"\u001b]0;x\u0007","errors":[{"pointer":"/\u009b","excerpt":"\u001bc"}]}"#;
        let shown = problem_text(422, named);
        assert!(shown.starts_with(r"v\nerror: \u{1b}[2J [c]") && shown.lines().count() == 4, "{shown}");
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
    }

    #[test]
    fn a_token_travels_encrypted_or_on_this_machine() {
        for (url, way) in [
            ("http://127.0.0.1:7171", Some(Way::Here)),
            ("http://[::1]:7171", Some(Way::Here)),
            ("http://localhost", Some(Way::Here)),
            ("https://totals.example.com", Some(Way::Encrypted)),
            ("http://totals.example.com", Some(Way::Clear)),
            ("http://localhost.example.com", Some(Way::Clear)),
            ("http://127.0.0.1@totals.example.com", Some(Way::Clear)),
            ("ftp://127.0.0.1", None),
            ("totals", None),
        ] {
            assert_eq!(Way::to(url).ok(), way, "{url}");
        }
    }

    #[test]
    fn an_address_is_shown_without_its_password() {
        for (url, shown) in [
            ("http://u:secret@h:7171", "http://***@h:7171"),
            ("http://u:se@cret/@h", "http://***@h"),
            ("u:secret@h", "***@h"),
            ("http://h:7171/x", "http://h:7171/x"),
        ] {
            assert_eq!(without_user(url), shown);
        }
        let refused = Way::to("ftp://u:secret@h").err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains("***@h") && !refused.contains("secret"), "{refused}");
    }

    #[test]
    fn a_server_that_is_not_understood_is_told_with_what_to_do() {
        for (url, said, words) in [
            ("https://h", "io: invalid peer certificate: UnknownIssuer", "--ca-file"),
            ("http://h", "protocol: http parse fail: invalid HTTP version", "https://"),
            ("https://h", "io: received corrupt message of type InvalidContentType", "http://"),
            ("https://h", "io: Connection refused (os error 111)", "running there"),
        ] {
            assert!(advice(url, said).contains(words), "{said}");
        }
    }

    #[test]
    fn names_cannot_leave_their_place_in_the_path() {
        assert_eq!(escape("a/../b c"), "a%2F..%2Fb%20c");
    }
}
