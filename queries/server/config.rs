//! What `serve` runs with: flags win over the environment, that over the file, that over the defaults. Unknown keys of the
//! file are refused. A connection string is a secret: it is neither logged nor part of any Debug output.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ArgMatches;
use clap::parser::ValueSource;
use connectors::postgres::DEFAULT_SNAPSHOT_READERS;
use connectors::tables::TableFile;
use engine::engine::{BACKUPS, DEFAULT_MAX_AGGREGATES, DEFAULT_SCRUB_CELLS_PER_S};
use queries::exposure::{read_by_all, refuse_changed_by_all};
use queries::http::{ConnectionLimits, Protection, check_listen_address};
use queries::query::aggregate_query::duration;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::cli::{LogFormat, ServeArguments, UpstreamArguments};
use crate::failure::Failure;

/// What messages call the file.
const CONFIGURATION: &str = "configuration";

const DEFAULT_PORT: u16 = 7_171;
const DEFAULT_DATA: &str = "tidemark-data";
const DEFAULT_MEMORY: u64 = 512 << 20;
const DEFAULT_MAX_TRANSACTION: u64 = 1 << 30;
const DEFAULT_MAX_ROW: u64 = 256 << 20;

/// What `serve` runs with.
#[derive(Debug)]
pub struct ServeConfig {
    /// Where everything is kept.
    pub data: PathBuf,
    /// Where backups are written.
    pub backup_dir: PathBuf,
    /// Space on its disk below which nothing is taken from the source, where stated; in bytes.
    pub min_free_bytes: Option<u64>,
    /// Where HTTP is served; checked.
    pub listen: SocketAddr,
    /// The tokens that everyone is asked for.
    pub tokens: Option<PathBuf>,
    /// Our certificate, and its key.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Names that are ours.
    pub hosts: Vec<String>,
    /// How many connections there may be.
    pub limits: ConnectionLimits,
    /// What is followed.
    pub source: SourceConfig,
    /// Standbys copy the replication slot.
    pub failover_slot: bool,
    /// Row data of one transaction beyond which the source halts, in bytes.
    pub max_transaction_bytes: u64,
    /// Bytes of one row beyond which the source halts.
    pub max_row_bytes: u64,
    /// Sessions that read existing rows at a time, where stated.
    pub snapshot_readers: Option<usize>,
    /// Worker threads of the engine.
    pub workers: NonZeroUsize,
    /// Memory for caches, in bytes.
    pub memory_bytes: u64,
    /// Cells compared with their control totals in a second; none where 0.
    pub scrub_cells_per_s: u64,
    /// Aggregates beyond which no further one is registered.
    pub max_aggregates: usize,
    /// How often a bucket is compared with upstream; never where there is none.
    pub verify_every: Option<Duration>,
    /// How the log is written.
    pub log: LogFormat,
    /// What is to be said once there is a log.
    pub warning: Option<String>,
}

/// What is followed.
#[derive(Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// A Postgres database.
    Postgres {
        /// How to connect.
        url: Secret,
        /// Tables as `schema.name`; at least one.
        tables: Vec<String>,
        /// Those of them that keep no row images.
        no_row_image: Vec<String>,
    },
    /// Made-up payments.
    Generator {
        /// The same seed makes the same payments.
        seed: u64,
    },
    /// A recorded file.
    Replay {
        /// The file.
        file: PathBuf,
    },
    /// Events that are posted.
    Events {
        /// The tables, and how their events are written.
        tables: TableFile,
    },
}

/// Text that must not be shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text, for whoever connects with it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is a password in it, as it is written in a URL or as a parameter.
    fn has_password(&self) -> bool {
        let user = self.0.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@')).map(|(user, _)| user);
        user.is_some_and(|user| user.contains(':')) || self.0.contains("password=")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The Postgres that `check` and `drop-slot` ask themselves.
#[derive(Debug)]
pub struct UpstreamConfig {
    /// How to connect.
    pub url: Secret,
    /// The tables of the configuration file.
    pub tables: Vec<String>,
    /// Those of them that keep no row images.
    pub no_row_image: Vec<String>,
    /// The slot shall be one that standbys copy.
    pub failover_slot: bool,
    /// Where its backups are.
    pub backup_dir: PathBuf,
    /// The data directory.
    pub data: PathBuf,
    /// It was named, so it is meant even where it does not exist yet.
    pub data_named: bool,
}

impl UpstreamConfig {
    /// Puts together what the command line, the environment and the file say.
    pub fn resolve(arguments: &UpstreamArguments) -> Result<UpstreamConfig, Failure> {
        let file = arguments.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let url = arguments.postgres.clone().map(Secret).or(file.postgres).ok_or_else(|| {
            Failure::Usage("no database to ask: give it with TIDEMARK_POSTGRES or --postgres".to_owned())
        })?;
        let data = arguments.data.clone().or(file.data);
        Ok(UpstreamConfig {
            url,
            tables: file.tables,
            no_row_image: file.no_row_image,
            failover_slot: file.failover_slot,
            data_named: data.is_some(),
            backup_dir: file.backup_dir.unwrap_or_else(|| data_or_default(&data).join(BACKUPS)),
            data: data_or_default(&data),
        })
    }
}

fn data_or_default(data: &Option<PathBuf>) -> PathBuf {
    data.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_DATA))
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data: Option<PathBuf>,
    backup_dir: Option<PathBuf>,
    min_free_bytes: Option<String>,
    listen: Option<SocketAddr>,
    tokens: Option<PathBuf>,
    tls_certificate: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    #[serde(default)]
    hosts: Vec<String>,
    max_connections: Option<usize>,
    max_connections_per_address: Option<usize>,
    #[serde(default)]
    insecure_listen: bool,
    postgres: Option<Secret>,
    #[serde(default)]
    tables: Vec<String>,
    #[serde(default)]
    no_row_image: Vec<String>,
    #[serde(default)]
    failover_slot: bool,
    max_transaction: Option<String>,
    max_row: Option<String>,
    snapshot_readers: Option<usize>,
    generator: Option<u64>,
    replay: Option<PathBuf>,
    events: Option<EventsSetting>,
    workers: Option<usize>,
    memory: Option<String>,
    scrub_cells: Option<u64>,
    max_aggregates: Option<usize>,
    verify_every: Option<String>,
    log: Option<LogFormat>,
}

/// The tables whose events are posted: a file of JSON, or the same right here.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum EventsSetting {
    File(PathBuf),
    Here(toml::Table),
}

impl EventsSetting {
    fn resolve(self) -> Result<TableFile, Failure> {
        let (described, place) = match self {
            EventsSetting::File(path) => {
                let text = std::fs::read_to_string(&path).map_err(|error| error.to_string());
                (text.and_then(|text| TableFile::parse(&text)), path.display().to_string())
            }
            EventsSetting::Here(table) => {
                let parsed = table.try_into::<TableFile>().map_err(|error| error.message().to_owned());
                (parsed.and_then(TableFile::checked), "the configuration's events".to_owned())
            }
        };
        described.map_err(|what| Failure::Usage(format!("{place}: {what}")))
    }
}

impl ServeConfig {
    /// Puts together what the command line, the environment and the file say.
    pub fn resolve(mut arguments: ServeArguments, matches: &ArgMatches) -> Result<ServeConfig, Failure> {
        arguments.postgres.take_if(|_| gives_way(matches, "postgres"));
        arguments.generator.take_if(|_| gives_way(matches, "generator"));
        arguments.replay.take_if(|_| gives_way(matches, "replay"));
        arguments.events.take_if(|_| gives_way(matches, "events"));
        let path = arguments.config.clone();
        let file = path.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let holds_password = file.postgres.as_ref().is_some_and(Secret::has_password);
        let warning = path.as_deref().filter(|_| holds_password).and_then(|path| read_by_all(CONFIGURATION, path));
        Ok(ServeConfig { warning, ..combine(arguments, file)? })
    }
}

/// Settings that each name a source; one of them counts.
pub const SOURCES: [&str; 4] = ["postgres", "generator", "replay", "events"];

/// Whether a setting is a source of the environment, and another one is a flag: variables are there for other commands too.
pub fn gives_way(matches: &ArgMatches, setting: &str) -> bool {
    let is_of = |name: &str, source| matches.value_source(name) == Some(source);
    SOURCES.contains(&setting)
        && is_of(setting, ValueSource::EnvVariable)
        && SOURCES.iter().any(|source| is_of(source, ValueSource::CommandLine))
}

/// The keys of a configuration file that `serve` would take.
pub fn file_of(path: &Path) -> Result<toml::Table, Failure> {
    read_file(path)?;
    read_with(path, parse)
}

/// The value of a setting that nobody states, as it would be written; `None` where that is nothing.
pub fn default_of(setting: &str) -> Option<String> {
    let limits = ConnectionLimits::default();
    Some(match setting {
        "data" => DEFAULT_DATA.to_owned(),
        "listen" => SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)).to_string(),
        "max_connections" => limits.total.to_string(),
        "max_connections_per_address" => limits.per_address.to_string(),
        "insecure_listen" | "failover_slot" => "false".to_owned(),
        "max_transaction" => size_text(DEFAULT_MAX_TRANSACTION),
        "max_row" => size_text(DEFAULT_MAX_ROW),
        "snapshot_readers" => DEFAULT_SNAPSHOT_READERS.to_string(),
        "workers" => default_workers().to_string(),
        "memory" => size_text(DEFAULT_MEMORY),
        "scrub_cells" => DEFAULT_SCRUB_CELLS_PER_S.to_string(),
        "max_aggregates" => DEFAULT_MAX_AGGREGATES.to_string(),
        "log" => "pretty".to_owned(),
        _ => return None,
    })
}

/// As `parse_size` reads it.
fn size_text(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let whole = units.into_iter().find(|(_, shift)| bytes.is_multiple_of(1 << shift));
    whole.map_or_else(|| bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

fn read_file(path: &Path) -> Result<File, Failure> {
    read_with(path, parse_file)
}

fn read_with<T>(path: &Path, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, Failure> {
    refuse_changed_by_all(CONFIGURATION, path).map_err(Failure::Usage)?;
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::Usage(format!("the configuration {} cannot be read: {error}", path.display())))?;
    parse(&text).map_err(|error| Failure::Usage(format!("the configuration {}: {error}", path.display())))
}

fn parse_file(text: &str) -> Result<File, String> {
    parse(text)
}

/// An error names the key and the line, and not the line's text nor a value in it: it may be the one with the password.
fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
        let at = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        format!("{at}{}", without_values(error.message()))
    })
}

/// A message without the texts that it quotes; of an unknown name without one that is an address.
fn without_values(message: &str) -> String {
    if let Some(rest) = message.strip_prefix("unknown ")
        && let Some((kind, rest)) = rest.split_once('`')
        && let Some((name, expected)) = rest.rsplit_once("`, expected")
    {
        let name = if name.contains(['@', ':', '/', '=']) { "***" } else { name };
        return format!("unknown {kind}`{name}`, expected{expected}");
    }
    let quoted = message.split_once('"').and_then(|(before, rest)| Some((before, rest.rsplit_once('"')?.1)));
    quoted.map_or_else(|| message.to_owned(), |(before, after)| format!("{before}\"***\"{after}"))
}

fn combine(arguments: ServeArguments, file: File) -> Result<ServeConfig, Failure> {
    let listen =
        arguments.listen.or(file.listen).unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)));
    let tokens = arguments.tokens.or(file.tokens);
    let tls = match (arguments.tls_certificate.or(file.tls_certificate), arguments.tls_key.or(file.tls_key)) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some((certificate, key)),
        _ => return Err(Failure::Usage("--tls-certificate and --tls-key go together".to_owned())),
    };
    let protection = Protection { tokens: tokens.is_some(), tls: tls.is_some() };
    check_listen_address(listen, protection, arguments.insecure_listen || file.insecure_listen)
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let workers = arguments.workers.or(file.workers).map_or_else(
        || Ok(default_workers()),
        |workers| NonZeroUsize::new(workers).ok_or_else(|| Failure::Usage("workers has to be at least 1".to_owned())),
    )?;
    let memory = arguments.memory.or(file.memory);
    let memory_bytes = memory.as_deref().map_or(Ok(DEFAULT_MEMORY), parse_size)?;
    let max_transaction = arguments.max_transaction.or(file.max_transaction);
    let max_transaction_bytes = max_transaction.as_deref().map_or(Ok(DEFAULT_MAX_TRANSACTION), parse_size)?;
    let max_row = arguments.max_row.or(file.max_row);
    let max_row_bytes = max_row.as_deref().map_or(Ok(DEFAULT_MAX_ROW), parse_size)?;
    let verify_every = arguments.verify_every.or(file.verify_every);
    let followed = Followed {
        tables: if arguments.tables.is_empty() { file.tables } else { arguments.tables },
        no_row_image: if arguments.no_row_image.is_empty() { file.no_row_image } else { arguments.no_row_image },
    };
    let events = arguments.events.map(EventsSetting::File);
    let stated = (arguments.postgres.map(Secret), arguments.generator, arguments.replay, events);
    let source = match stated {
        // A source on the command line or in the environment replaces the file's, of whatever kind that is.
        (None, None, None, None) => source(file.postgres, file.generator, file.replay, file.events, followed)?,
        (postgres, generator, replay, events) => source(postgres, generator, replay, events, followed)?,
    };
    let data = arguments.data.or(file.data).unwrap_or_else(|| PathBuf::from(DEFAULT_DATA));
    let min_free = arguments.min_free_bytes.or(file.min_free_bytes);
    let min_free_bytes = min_free.as_deref().map(parse_size_or_none).transpose()?;
    let limits = ConnectionLimits::default();
    let per_address = arguments.max_connections_per_address.or(file.max_connections_per_address);
    Ok(ServeConfig {
        backup_dir: arguments.backup_dir.or(file.backup_dir).unwrap_or_else(|| data.join(BACKUPS)),
        data,
        min_free_bytes,
        listen,
        tokens,
        tls,
        hosts: if arguments.hosts.is_empty() { file.hosts } else { arguments.hosts },
        limits: ConnectionLimits {
            total: at_least_one("max_connections", arguments.max_connections.or(file.max_connections), limits.total)?,
            per_address: at_least_one("max_connections_per_address", per_address, limits.per_address)?,
        },
        source,
        failover_slot: arguments.failover_slot || file.failover_slot,
        max_transaction_bytes,
        max_row_bytes,
        snapshot_readers: arguments.snapshot_readers.or(file.snapshot_readers),
        workers,
        memory_bytes,
        scrub_cells_per_s: arguments.scrub_cells.or(file.scrub_cells).unwrap_or(DEFAULT_SCRUB_CELLS_PER_S),
        max_aggregates: at_least_one(
            "max_aggregates",
            arguments.max_aggregates.or(file.max_aggregates),
            DEFAULT_MAX_AGGREGATES,
        )?,
        verify_every: verify_every.as_deref().map(parse_pause).transpose()?,
        log: arguments.log.or(file.log).unwrap_or_default(),
        warning: None,
    })
}

fn at_least_one(name: &str, stated: Option<usize>, default: usize) -> Result<usize, Failure> {
    match stated {
        Some(0) => Err(Failure::Usage(format!("{name} has to be at least 1"))),
        stated => Ok(stated.unwrap_or(default)),
    }
}

fn default_workers() -> NonZeroUsize {
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(processors / 2).unwrap_or(NonZeroUsize::MIN)
}

/// Tables of a database.
struct Followed {
    tables: Vec<String>,
    no_row_image: Vec<String>,
}

fn source(
    postgres: Option<Secret>,
    generator: Option<u64>,
    replay: Option<PathBuf>,
    events: Option<EventsSetting>,
    Followed { tables, no_row_image }: Followed,
) -> Result<SourceConfig, Failure> {
    match (postgres, generator, replay, events) {
        (Some(_), None, None, None) if tables.is_empty() => {
            Err(Failure::Usage("no table to follow: give one with --table schema.name".to_owned()))
        }
        (Some(url), None, None, None) => Ok(SourceConfig::Postgres { url, tables, no_row_image }),
        (None, Some(seed), None, None) => Ok(SourceConfig::Generator { seed }),
        (None, None, Some(file), None) => Ok(SourceConfig::Replay { file }),
        (None, None, None, Some(events)) => Ok(SourceConfig::Events { tables: events.resolve()? }),
        (None, None, None, None) => Err(Failure::Usage(
            "nothing to follow: give a database with TIDEMARK_POSTGRES or --postgres, or made-up payments with --generator 1"
                .to_owned(),
        )),
        _ => Err(Failure::Usage(
            "more than one source: give one of --postgres, --generator, --replay and --events, or leave one of the variables \
             TIDEMARK_POSTGRES, TIDEMARK_GENERATOR, TIDEMARK_REPLAY and TIDEMARK_EVENTS set"
                .to_owned(),
        )),
    }
}

/// `600s`, at least one second.
fn parse_pause(text: &str) -> Result<Duration, Failure> {
    duration(text)
        .filter(|pause| *pause >= Duration::from_secs(1))
        .ok_or_else(|| Failure::Usage(format!("{text:?} is not a pause: use seconds, such as 600s")))
}

/// As [`parse_size`], and `0`.
fn parse_size_or_none(text: &str) -> Result<u64, Failure> {
    if text == "0" { Ok(0) } else { parse_size(text) }
}

/// `512MiB`, `2GiB`, `1000000`.
fn parse_size(text: &str) -> Result<u64, Failure> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => Some(0),
        "KiB" => Some(10),
        "MiB" => Some(20),
        "GiB" => Some(30),
        _ => None,
    };
    let bytes = shift.and_then(|shift| number.parse::<u64>().ok()?.checked_mul(1 << shift));
    bytes
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| Failure::Usage(format!("{text:?} is not a size: use bytes or KiB, MiB, GiB, such as 512MiB")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Args;

    use super::*;

    fn arguments() -> ServeArguments {
        ServeArguments::default()
    }

    fn refused(arguments: ServeArguments, file: &str) -> String {
        combine(arguments, parse_file(file).unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = "data = '/srv/tidemark'\ngenerator = 1\nworkers = 3\nmemory = '1GiB'\nlog = 'json'";
        let config = combine(ServeArguments { workers: Some(5), ..arguments() }, parse_file(file).unwrap()).unwrap();
        assert_eq!(config.data, Path::new("/srv/tidemark"));
        assert_eq!((config.workers.get(), config.memory_bytes, config.log), (5, 1 << 30, LogFormat::Json));
        assert_eq!(config.listen.to_string(), "127.0.0.1:7171");
        assert_eq!((config.backup_dir.as_path(), config.min_free_bytes), (Path::new("/srv/tidemark/backups"), None));
        assert_eq!(config.source, SourceConfig::Generator { seed: 1 });
    }

    #[test]
    fn the_defaults_that_are_shown_are_those_that_count() {
        let command = ServeArguments::augment_args(clap::Command::new("serve"));
        let names: Vec<String> = command.get_arguments().map(|argument| argument.get_id().to_string()).collect();
        let shown = names.iter().filter_map(|name| Some((name, default_of(name)?)));
        let stated: Vec<String> = shown
            .map(|(name, value)| {
                let bare = value.bytes().all(|b| b.is_ascii_digit()) || matches!(value.as_str(), "true" | "false");
                if bare { format!("{name} = {value}") } else { format!("{name} = '{value}'") }
            })
            .collect();
        assert!(stated.len() >= 13, "{stated:?}");
        let of = |file: &str| format!("{:?}", combine(arguments(), parse_file(file).unwrap()).unwrap());
        let with = of(&format!("generator = 1\n{}", stated.join("\n")));
        assert_eq!(with.replace("snapshot_readers: Some(2)", "snapshot_readers: None"), of("generator = 1"));
        // Nothing that can be told on the command line is unknown to the file.
        for name in names.iter().filter(|name| *name != "config") {
            let error = parse_file(&format!("{name} = 1979-05-27")).map(drop).err().unwrap_or_default();
            assert!(!error.contains("unknown field"), "{error}");
        }
    }

    #[test]
    fn a_stated_source_replaces_the_files() {
        let file = parse_file("postgres = 'postgres://u:secret@h/db'\ntables = ['public.payments']").unwrap();
        let config = combine(ServeArguments { generator: Some(9), ..arguments() }, file).unwrap();
        assert_eq!(config.source, SourceConfig::Generator { seed: 9 });
    }

    #[test]
    fn passwords_are_not_shown() {
        let file = parse_file("postgres = 'postgres://u:secret@h/db'\ntables = ['public.payments']").unwrap();
        let config = combine(arguments(), file).unwrap();
        assert!(!format!("{config:?}").contains("secret"));
        let wrong = "generator = 1\npostgres = { url = 'secret' }";
        let error = parse_file(wrong).unwrap_err();
        assert!(error.starts_with("line 2") && !error.contains("secret"), "{error}");
        let url = "postgres://u:\\\"secret@h/x";
        for wrong in [
            format!("tables = \"{url}\""),
            format!("log = \"{url}\""),
            format!("log = \"{}\"", url.replace("se", "`se")),
            format!("listen = \"{url}\""),
            format!("workers = \"{url}\""),
            format!("tables = [[\"{url}\"]]"),
            format!("\"{url}\" = 1"),
            format!("tables = {url}"),
            format!("events = [\"{url}\"]"),
        ] {
            let error = parse_file(&format!("data = 'd'\n{wrong}")).unwrap_err();
            assert!(error.starts_with("line 2: ") && !error.contains("secret"), "{wrong}: {error}");
        }
    }

    #[test]
    fn what_cannot_run_is_refused_with_the_remedy() {
        assert!(parse_file("worker = 3").unwrap_err().contains("unknown field `worker`"));
        assert!(refused(arguments(), "").contains("nothing to follow"));
        assert!(refused(arguments(), "generator = 1\nreplay = 'f'").contains("more than one source"));
        assert!(refused(arguments(), "postgres = 'x'").contains("--table"));
        assert!(refused(arguments(), "events = '/nonexistent'").contains("/nonexistent: "));
        assert!(refused(arguments(), "events = { tables = [] }").contains("no table is described"));
        assert!(refused(arguments(), "generator = 1\nworkers = 0").contains("at least 1"));
        assert!(refused(arguments(), "generator = 1\nmemory = '5 potatoes'").contains("512MiB"));
        assert!(refused(arguments(), "generator = 1\nmin_free_bytes = '-1'").contains("is not a size"));
        assert!(refused(arguments(), "generator = 1\nlisten = '0.0.0.0:7171'").contains("--insecure-listen"));
        let without_tls = "generator = 1\nlisten = '0.0.0.0:7171'\ntokens = 't'";
        assert!(refused(arguments(), without_tls).contains("there are no TLS"));
        assert!(refused(arguments(), "generator = 1\ntls_key = 'k'").contains("go together"));
        let listens = |more: &str| {
            let file = format!("generator = 1\nlisten = '0.0.0.0:1'\n{more}");
            combine(arguments(), parse_file(&file).unwrap()).is_ok()
        };
        assert!(listens("insecure_listen = true"));
        assert!(listens("tokens = 't'\ntls_certificate = 'c'\ntls_key = 'k'"));
    }
}
