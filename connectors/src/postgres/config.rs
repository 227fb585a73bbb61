//! Where Postgres is and which tables to follow.
//!
//! Owns the secrecy of the password: nothing here prints the URL, only `user@host:port/database`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use engine::change::TableSchema;
use engine::source::SourceError;
use tokio_postgres::config::{Host, SslMode, SslNegotiation};

use super::error::{bad_url, source_error};
use super::transport::TlsSettings;

/// How long connecting and one catalog query may take before the attempt counts as failed.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Postgres cuts longer names off.
const MAX_APPLICATION_NAME: usize = 63;

const DEFAULT_MAX_TRANSACTION_BYTES: usize = 1 << 30;
/// Sessions that read existing rows at a time, unless asked otherwise.
pub const DEFAULT_SNAPSHOT_READERS: usize = 2;
const MOST_SNAPSHOT_READERS: usize = 16;
const DEFAULT_MAX_MESSAGE_BYTES: usize = 256 << 20;

/// Settings of the Postgres source.
#[derive(Clone)]
pub struct PostgresConfig {
    pub(super) endpoint: Box<tokio_postgres::Config>,
    /// Socket directory or host name.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) database: String,
    pub(super) tables: Vec<TableName>,
    /// Those of `tables` that keep no row images.
    row_images_off: Vec<TableName>,
    pub(super) slot: String,
    pub(super) publication: String,
    /// The slot is made so that standbys copy it.
    pub(super) failover: bool,
    pub(super) max_transaction_bytes: usize,
    pub(super) snapshot_readers: usize,
    pub(super) max_message_bytes: usize,
    /// Where the backups are that slots hold log for.
    pub(super) backups: Option<PathBuf>,
    pub(super) tls: Box<TlsSettings>,
}

impl PostgresConfig {
    /// Reads a URL `postgres://user:password@host:port/database` (`?host=/directory` for a unix socket; `sslmode`,
    /// `sslrootcert`, `sslcert` and `sslkey` as libpq has them), the tables as `name` or `schema.name`, and the name of the replication slot, which is also the publication's unless
    /// [`PostgresConfig::with_publication`] says otherwise. Looks at nothing but the text.
    pub fn new(url: &str, tables: &[String], slot: &str) -> Result<Self, SourceError> {
        let server = Self::server(url, slot)?;
        Ok(PostgresConfig { tables: parse_tables(tables)?, ..server })
    }

    /// As [`PostgresConfig::new`], for looking after a server and a slot without following any table.
    pub fn server(url: &str, slot: &str) -> Result<Self, SourceError> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(bad_url("it does not begin with postgres://"));
        }
        let (url, tls) = TlsSettings::take_from(url)?;
        let mut endpoint = tokio_postgres::Config::from_str(&url).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            bad_url(&cause)
        })?;
        if endpoint.get_ssl_mode() != SslMode::Prefer {
            return Err(bad_url("sslmode stands where it is not understood"));
        }
        let host = match endpoint.get_hosts() {
            [Host::Tcp(host)] if host.contains('@') => {
                return Err(bad_url("the password holds an @ that is not written as %40"));
            }
            [Host::Tcp(host)] => host.clone(),
            [Host::Unix(path)] => path.to_string_lossy().into_owned(),
            [] => return Err(bad_url("it names no host")),
            _ => return Err(bad_url("it names several hosts; name the primary")),
        };
        if !endpoint.get_hostaddrs().is_empty() {
            return Err(bad_url("hostaddr is not supported; put the address in place of the host"));
        }
        let user = endpoint.get_user().ok_or_else(|| bad_url("it names no user"))?.to_owned();
        let password = String::from_utf8(endpoint.get_password().unwrap_or_default().to_vec())
            .map_err(|_| bad_url("the password is not UTF-8"))?;
        let database = endpoint.get_dbname().unwrap_or(&user).to_owned();
        let port = endpoint.get_ports().first().copied().unwrap_or(5432);
        // It gets a stream that is encrypted already, where it is to be; see `transport::Established`.
        endpoint.dbname(&database).ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        check_identifier("slot", slot)?;
        Ok(PostgresConfig {
            endpoint: Box::new(endpoint),
            host,
            port,
            user,
            password,
            database,
            tables: Vec::new(),
            row_images_off: Vec::new(),
            slot: slot.to_owned(),
            publication: slot.to_owned(),
            failover: false,
            max_transaction_bytes: DEFAULT_MAX_TRANSACTION_BYTES,
            snapshot_readers: DEFAULT_SNAPSHOT_READERS,
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
            backups: None,
            tls: Box::new(tls),
        })
    }

    /// Uses a publication of another name than the slot.
    pub fn with_publication(mut self, name: &str) -> Result<Self, SourceError> {
        check_identifier("publication", name)?;
        self.publication = name.to_owned();
        Ok(self)
    }

    /// Keeps no row images of these tables, which must have `REPLICA IDENTITY FULL`. Tables of the configuration only.
    pub fn with_row_images_off(mut self, tables: &[String]) -> Result<Self, SourceError> {
        for text in tables {
            let name = parse_table_name(text)?;
            if !self.tables.contains(&name) {
                return Err(source_error(
                    "row_image_of_unlisted_table",
                    format!("row images are switched off for table {name}, which the configuration does not list"),
                    format!(
                        "list it too: --table {name}; for one that joins later, say \"row_image\": false when it does"
                    ),
                ));
            }
            self.row_images_off.push(name);
        }
        Ok(self)
    }

    /// How a table is to be read: the configuration decides over those that it lists, for others what was `asked`.
    pub(super) fn wanted(&self, name: TableName, asked: Option<bool>) -> Wanted {
        let keeps_row_image =
            if self.tables.contains(&name) { !self.row_images_off.contains(&name) } else { asked.unwrap_or(true) };
        Wanted { name, keeps_row_image }
    }

    /// The tables of the configuration.
    pub(super) fn wanted_tables(&self) -> Vec<Wanted> {
        self.tables.iter().map(|name| self.wanted(name.clone(), None)).collect()
    }

    /// Makes the slot one that standbys copy (`sync_replication_slots`), so that the source goes on after one of them is
    /// promoted. Takes Postgres 17 or newer; a slot that exists already is changed accordingly on connecting.
    #[must_use]
    pub fn with_failover(mut self, failover: bool) -> Self {
        self.failover = failover;
        self
    }

    /// Reads existing rows over this many sessions at a time, from 1 to 16. Each takes one connection of the server.
    pub fn with_snapshot_readers(mut self, readers: usize) -> Result<Self, SourceError> {
        if !(1..=MOST_SNAPSHOT_READERS).contains(&readers) {
            return Err(source_error(
                "bad_snapshot_readers",
                format!("{readers} sessions cannot read the snapshot"),
                format!(
                    "use 1 to {MOST_SNAPSHOT_READERS}; more than the server has processors to spare make it slower"
                ),
            ));
        }
        self.snapshot_readers = readers;
        Ok(self)
    }

    /// Where backups are: a slot that holds log for one that is not there is told.
    #[must_use]
    pub fn with_backups(mut self, directory: &Path) -> Self {
        self.backups = Some(directory.to_owned());
        self
    }

    /// One row change of more bytes than this halts the source with `row_too_large`. It is held in memory at least twice.
    #[must_use]
    pub fn with_message_limit(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// Transactions of more bytes than this halt the source: they are held in memory until their commit. A row change counts with
    /// what notes it, too.
    #[must_use]
    pub fn with_max_transaction_bytes(mut self, bytes: usize) -> Self {
        self.max_transaction_bytes = bytes;
        self
    }

    /// Name of the replication slot.
    #[must_use]
    pub fn slot(&self) -> &str {
        &self.slot
    }

    /// Shown in `pg_stat_activity`, with the slot, which names the data directory: how a session that one of us left
    /// behind is told from another's.
    #[must_use]
    pub fn application_name(&self) -> String {
        let mut name = format!("tidemark/{}", self.slot);
        name.truncate(MAX_APPLICATION_NAME);
        name
    }

    /// `user@host:port/database`, for messages.
    #[must_use]
    pub fn display(&self) -> String {
        format!("{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("endpoint", &self.display())
            .field("tables", &self.tables)
            .field("row_images_off", &self.row_images_off)
            .field("slot", &self.slot)
            .field("publication", &self.publication)
            .field("failover", &self.failover)
            .field("max_transaction_bytes", &self.max_transaction_bytes)
            .field("snapshot_readers", &self.snapshot_readers)
            .field("max_message_bytes", &self.max_message_bytes)
            .field("backups", &self.backups)
            .field("tls", &self.tls)
            .finish()
    }
}

/// Slots have no other names, and publications are named unquoted in remedies.
fn check_identifier(what: &str, name: &str) -> Result<(), SourceError> {
    let good = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if good {
        return Ok(());
    }
    Err(source_error(
        if what == "slot" { "bad_slot_name" } else { "bad_publication_name" },
        format!("{name:?} cannot be the name of a {what}"),
        "use 1 to 63 lower case letters, digits and underscores",
    ))
}

/// A table as named by the user: both parts exactly as in the catalog.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TableName {
    pub(super) namespace: String,
    pub(super) name: String,
}

/// A table that is to be read, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: TableName,
    pub(super) keeps_row_image: bool,
}

impl TableName {
    pub(super) fn of(schema: &TableSchema) -> Self {
        TableName { namespace: schema.namespace.clone(), name: schema.name.clone() }
    }

    pub(super) fn quoted(&self) -> String {
        format!("{}.{}", quote_identifier(&self.namespace), quote_identifier(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.namespace, self.name)
    }
}

pub(super) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn parse_tables(names: &[String]) -> Result<Vec<TableName>, SourceError> {
    let mut tables = Vec::with_capacity(names.len());
    for name in names {
        let table = parse_table_name(name)?;
        if tables.contains(&table) {
            return Err(source_error(
                "duplicate_table",
                format!("table {table} is listed twice"),
                "list each table once",
            ));
        }
        tables.push(table);
    }
    if tables.is_empty() {
        return Err(source_error(
            "no_tables",
            "the source names no table",
            "list at least one table, such as public.payments",
        ));
    }
    Ok(tables)
}

/// A table as named by the user.
pub(super) fn parse_table_name(text: &str) -> Result<TableName, SourceError> {
    parse_table(text).ok_or_else(|| {
        source_error(
            "bad_table_name",
            format!("{text:?} is not the name of a table"),
            "write schema.table, or table for one in the schema public; a part that holds a dot has to be renamed first",
        )
    })
}

fn parse_table(text: &str) -> Option<TableName> {
    let (first, rest) = take_part(text)?;
    let Some(rest) = rest else {
        return Some(TableName { namespace: "public".to_owned(), name: first });
    };
    match take_part(rest)? {
        (name, None) => Some(TableName { namespace: first, name }),
        (_, Some(_)) => None,
    }
}

/// One part of a dotted name, and what follows the dot.
fn take_part(text: &str) -> Option<(String, Option<&str>)> {
    let (part, rest) = if let Some(quoted) = text.strip_prefix('"') {
        let (part, rest) = quoted.split_once('"')?;
        (part, if rest.is_empty() { None } else { Some(rest.strip_prefix('.')?) })
    } else {
        match text.split_once('.') {
            Some((part, rest)) => (part, Some(rest)),
            None => (text, None),
        }
    };
    (!part.is_empty() && !part.contains('"') && part.len() <= 63).then(|| (part.to_owned(), rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn code(url: &str, table: &str, slot: &str) -> &'static str {
        PostgresConfig::new(url, &[table.to_owned()], slot).unwrap_err().code
    }

    #[test]
    fn reads_a_url_and_never_shows_its_password() {
        let config =
            PostgresConfig::new("postgres://anna:hun%40ter2@db:6543/shop", &["payments".into()], "tidemark_a").unwrap();
        assert_eq!(config.password, "hun@ter2");
        assert_eq!(config.display(), "anna@db:6543/shop");
        let shown = format!("{config:?}");
        assert!(!shown.contains("ter2"), "{shown}");
        let socket =
            PostgresConfig::new("postgres://anna@/shop?host=/run/pg&port=7", &["payments".into()], "tidemark_a")
                .unwrap();
        assert_eq!((socket.host.as_str(), socket.port), ("/run/pg", 7));
    }

    #[test]
    fn refuses_what_it_cannot_do_exactly() {
        let good = "postgres://a@h/d";
        assert_eq!(code("mysql://a@h/d", "t", "s"), "bad_url");
        assert_eq!(code("postgres://a@h:notaport/d", "t", "s"), "bad_url");
        assert_eq!(code("postgres://a:p@ss@h/d", "t", "s"), "bad_url");
        assert_eq!(code("postgres://a@h,i/d", "t", "s"), "bad_url");
        assert_eq!(code(&format!("{good}?sslmode=maybe"), "t", "s"), "bad_tls_settings");
        assert_eq!(code(&format!("{good}?ssl%6Dode=require"), "t", "s"), "bad_url", "never read by the wrong one");
        assert_eq!(code(&format!("{good}?sslcrl=f"), "t", "s"), "bad_url");
        assert_eq!(code(good, "t", "Upper"), "bad_slot_name");
        for readers in [0, 17] {
            let config = PostgresConfig::new(good, &["t".into()], "s").unwrap();
            assert_eq!(config.with_snapshot_readers(readers).unwrap_err().code, "bad_snapshot_readers");
        }
        assert_eq!(code(good, "t", &"x".repeat(64)), "bad_slot_name");
        assert_eq!(code(good, "a.b.c", "s"), "bad_table_name");
        assert_eq!(code(good, "", "s"), "bad_table_name");
        let twice = PostgresConfig::new(good, &["t".into(), "public.t".into()], "s").unwrap_err();
        assert_eq!(twice.code, "duplicate_table");
        let error = PostgresConfig::new("postgres://a:secret@ss@h/d", &["t".into()], "s").unwrap_err();
        assert!(!error.to_string().contains("secret") && !error.to_string().contains("ss@"), "{error}");
    }

    #[test]
    fn row_images_are_switched_off_for_listed_tables_only() {
        let config = || PostgresConfig::new("postgres://a@h/d", &["t".into(), "s.u".into()], "s").unwrap();
        let unlisted = config().with_row_images_off(&["v".into()]).unwrap_err();
        assert_eq!(unlisted.code, "row_image_of_unlisted_table");
        let config = config().with_row_images_off(&["public.t".into()]).unwrap();
        let keeps = |table: &str, asked| config.wanted(parse_table_name(table).unwrap(), asked).keeps_row_image;
        assert_eq!((keeps("t", None), keeps("s.u", None), keeps("v", None)), (false, true, true));
        // What the configuration lists is decided there.
        assert_eq!((keeps("t", Some(true)), keeps("s.u", Some(false)), keeps("v", Some(false))), (false, true, false));
    }

    #[test]
    fn table_names_may_be_quoted() {
        let name = |text| parse_table(text).map(|t| (t.namespace, t.name));
        assert_eq!(name("t"), Some(("public".into(), "t".into())));
        assert_eq!(name("s.T"), Some(("s".into(), "T".into())));
        assert_eq!(name("\"a.b\".\"c d\""), Some(("a.b".into(), "c d".into())));
        assert_eq!(name("\"c d\""), Some(("public".into(), "c d".into())));
        assert_eq!(name("\"open"), None);
        assert_eq!(name("a."), None);
    }
}
