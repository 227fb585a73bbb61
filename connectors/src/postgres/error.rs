//! What can go wrong with Postgres, sorted by what to do about it: try again, or stop and name the remedy.
//!
//! The surprise: an unknown server error is tried again. Trying again is never inexact, because nothing after the
//! failure was handed to the engine; only what an operator must repair stops the source.

use std::fmt;

use engine::source::SourceError;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorResponseBody;
use tokio_postgres::error::SqlState;

use super::transport::failure_of;

/// Why an attempt ended.
#[derive(Debug)]
pub(crate) enum Failure {
    /// May be over the next time: connection cut, server starting, slot still held.
    Transient(String),
    /// Will not be over without someone's help.
    Definite(SourceError),
    /// The engine closed the channel: not a failure, only the end.
    Closed,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::Transient(said) => said,
            Failure::Definite(error) => &error.message,
            Failure::Closed => "the engine has stopped",
        })
    }
}

impl Failure {
    /// The state that Postgres gave (Appendix A of its manual), with what follows it.
    fn sql_state(&self) -> Option<&str> {
        let Failure::Transient(said) = self else { return None };
        said.rsplit_once("(SQLSTATE ").map(|(_, state)| state)
    }

    /// It ends with this state.
    fn is_in_state(&self, wanted: &str) -> bool {
        self.sql_state().and_then(|state| state.strip_suffix(')')) == Some(wanted)
    }

    fn is_of_class(&self, classes: &[&str]) -> bool {
        self.sql_state().is_some_and(|state| classes.iter().any(|class| state.starts_with(class)))
    }

    /// The server is up and takes no sessions: it is going down, or not up yet.
    pub(crate) fn lets_nobody_in(&self) -> bool {
        self.is_in_state("57P03")
    }

    /// Somebody else holds a lock that a statement needs.
    pub(crate) fn is_locked_out(&self) -> bool {
        self.is_in_state("55P03")
    }

    /// All replication slots are taken.
    pub(crate) fn is_lack_of_slots(&self) -> bool {
        self.is_in_state("53400")
    }

    /// A statement was refused for what it is: the session is as good as before, and the server no worse. Not so where the server ends
    /// sessions (08, 57), lacks something (53), lets transactions begin anew (40) or met what it did not expect (XX).
    pub(crate) fn is_of_the_statement(&self) -> bool {
        self.sql_state().is_some() && !self.is_of_class(&["08", "57", "53", "40", "XX"])
    }

    /// A statement was refused for its words: a value that is none of its type (22), an operator or a cast that there is not.
    pub(crate) fn is_of_the_words(&self) -> bool {
        self.is_of_class(&["22", "42804", "42846", "42883"])
    }

    /// Postgres met something that it did not expect, in its code or in its files.
    pub(crate) fn is_internal_error(&self) -> bool {
        matches!(self, Failure::Transient(said) if said.contains("(SQLSTATE XX"))
    }

    pub(crate) fn definite(code: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Failure::Definite(source_error(code, message, remedy))
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Failure::Definite(error)
    }
}

pub(crate) fn source_error(code: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> SourceError {
    SourceError { code, message: message.into(), remedy: remedy.into() }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) => {
                let detail = db.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
                by_state(db.code().code(), &format!("{}{detail}", db.message()))
            }
            None => {
                if let Some(error) = failure_of(&error, "Postgres") {
                    return error.into();
                }
                let text = chain(&error);
                match error.code() {
                    Some(code) => by_state(code.code(), &text),
                    None if text.contains("authentication") || text.contains("password missing") => {
                        by_state(SqlState::INVALID_PASSWORD.code(), &text)
                    }
                    None => Failure::Transient(text),
                }
            }
        }
    }
}

/// `tokio_postgres` hides the cause behind "error connecting to server".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// What the server says on a replication session. Before it knows us, in whatever encoding it has.
pub(crate) fn server_said(error: &ErrorResponseBody) -> Failure {
    let (mut state, mut message, mut detail) = (String::new(), String::new(), String::new());
    let mut fields = error.fields();
    while let Ok(Some(field)) = fields.next() {
        let text = String::from_utf8_lossy(field.value_bytes());
        match field.type_() {
            b'C' => state = text.into_owned(),
            b'M' => message = text.into_owned(),
            b'D' => detail = format!(" ({text})"),
            _ => {}
        }
    }
    by_state(&state, &format!("{message}{detail}"))
}

/// Who we are could not be shown.
pub(crate) fn not_authenticated(what: &str) -> Failure {
    by_state(SqlState::INVALID_PASSWORD.code(), what)
}

fn by_state(state: &str, message: &str) -> Failure {
    let said = format!("Postgres said: {message} (SQLSTATE {state})");
    if POOLER_SAYS.iter().any(|words| message.contains(words)) {
        return pooler(&said).into();
    }
    match state {
        "28P01" | "28000" => Failure::definite(
            "authentication_failed",
            said,
            "check user and password in the URL, and that pg_hba.conf lets this user in with scram-sha-256 from here, also for \
             replication connections to this database",
        ),
        "3D000" => Failure::definite("database_missing", said, "name an existing database in the URL"),
        "42501" => {
            Failure::definite("permission_denied", said, "grant the role what the message names, then restart tidemark")
        }
        // Nobody can hand it to another server than the one that holds the log.
        "55000" => Failure::definite("slot_unusable", said, START_OVER),
        "42704" => Failure::definite("slot_missing", said, START_OVER),
        "0A000" | "42601" | "42883" => Failure::definite(
            "server_not_understood",
            said,
            "report this with the server's version: it does not know what tidemark asked for",
        ),
        _ => Failure::Transient(said),
    }
}

/// How connection poolers refuse what they cannot do: our start-up options, or replication itself. Postgres says none of
/// these.
const POOLER_SAYS: [&str; 7] = [
    "unsupported startup parameter",
    "no such database: ",
    "pgbouncer",
    "RDS Proxy",
    "Tenant or user not found",
    "odyssey: ",
    "replication is not supported by pooler",
];

/// What answers is a connection pooler.
pub(crate) fn pooler(said: &str) -> SourceError {
    source_error(
        "pooler",
        format!("{said}; replication is not possible through a pooler"),
        "use the direct host and port of Postgres in the URL, not the pooler's",
    )
}

/// The one remedy where the log between us and upstream is gone. The slot's name is filled in where it is told.
pub(crate) const START_OVER: &str = "drop the slot if it exists (SELECT pg_drop_replication_slot('<slot>')) and start \
                                     over with an empty data directory: tidemark serve --data NEWDIR";

/// Every replication slot of the server is taken.
pub(crate) fn no_free_slot() -> SourceError {
    let remedy = "drop one that nobody needs, or raise max_replication_slots and restart Postgres";
    source_error("no_free_slot", "all replication slots of the server are in use", remedy)
}

/// Fills the slot's name in, before anybody reads or logs it.
pub(crate) fn with_slot_named(mut error: SourceError, slot: &str) -> SourceError {
    error.remedy = error.remedy.replace("<slot>", slot);
    error
}

pub(crate) fn bad_url(what: &str) -> SourceError {
    source_error(
        "bad_url",
        format!("the Postgres URL cannot be used: {what}"),
        "write it as postgres://user:password@host:5432/database, with special characters of the password percent-encoded",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn server_errors_are_sorted_by_state() {
        let said = |state: &str| {
            let fields = format!("SFATAL\0C{state}\0Mx (y)\0DABC\0\0").replace("ABC", "z");
            let mut bytes =
                bytes::BytesMut::from([&b"E"[..], &(fields.len() as u32 + 4).to_be_bytes()].concat().as_slice());
            bytes.extend_from_slice(fields.as_bytes());
            match postgres_protocol::message::backend::Message::parse(&mut bytes) {
                Ok(Some(postgres_protocol::message::backend::Message::ErrorResponse(error))) => server_said(&error),
                _ => panic!("{fields}"),
            }
        };
        let definite = |state: &str| match said(state) {
            Failure::Definite(error) => Some(error.code),
            _ => None,
        };
        assert_eq!(definite("28P01"), Some("authentication_failed"));
        assert_eq!(definite("3D000"), Some("database_missing"));
        let refused = by_state("08P01", "unsupported startup parameter: replication");
        assert!(matches!(refused, Failure::Definite(error) if error.code == "pooler"));
        for transient in ["57P01", "57P03", "08006", "53300", "55006", "XX000"] {
            assert_eq!(definite(transient), None, "{transient}");
        }
        assert!(by_state("57P03", "the database system is shutting down").lets_nobody_in());
        assert!(!by_state("57P01", "terminating connection").lets_nobody_in());
        assert!(by_state("25006", "cannot execute in a read-only transaction").is_of_the_statement());
        for of_the_server in ["57P01", "08006", "53300", "40001", "XX000"] {
            assert!(!by_state(of_the_server, "x").is_of_the_statement(), "{of_the_server}");
        }
        assert!(!Failure::Transient("connection closed".to_owned()).is_of_the_statement());
        assert!(by_state("22P02", "invalid input value for enum").is_of_the_words());
        for not_of_the_words in ["55P03", "42501", "42P01", "58030"] {
            assert!(!by_state(not_of_the_words, "x").is_of_the_words(), "{not_of_the_words}");
        }
    }
}
