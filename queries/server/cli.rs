//! The command line. What `serve` is told here wins over the environment, and that over the configuration file; clap does
//! the first, `config` the second.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use queries::access::{Pin, Scope};

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  the server or the engine failed, or could not be reached
  2  the usage or the configuration is wrong, the server refuses, or something needed to start is not there";

const SERVE_HELP: &str = "Flags win over the environment, that over the file, that over the defaults; `tidemark config show --origin` says which did. \
SIGTERM and SIGINT end it: requests under way are answered, what was received is made durable and acknowledged; a second one \
ends it at once. SIGHUP reads certificates and tokens anew.

Exit codes:
  0  stopped by SIGTERM or SIGINT
  1  the engine failed, or was stopped by a second signal
  2  the usage or the configuration is wrong, or the data directory is not as it has to be, or, where that is new, the
     database; with data already there it stays up, halted or trying again, and /readyz answers 503 with the reason
  4  something needed to start is not to be had now: Postgres does not answer or has no place, another process has the
     data directory or the address, the disk is full or fails, no thread can be started; try again";

const DEMO_HELP: &str = "Exit codes:
  0  stopped
  1  the server or the engine failed
  2  the usage is wrong, or something needed to start is not there
  4  something needed to start is not to be had now; try again";

const LIVE_HELP: &str = "On a terminal it draws a chart that moves; otherwise, and with --output json or csv, it writes a line for each change. A lost \
connection is made again and goes on where it was. It ends with Ctrl-C, or when nobody reads its output any more.

Exit codes:
  0  nobody reads the output any more
  1  the server failed, or could not be reached at first
  2  the usage is wrong, or the server refuses the question";

const CONFIG_HELP: &str = "It is told the same as `serve`: the same flags, environment and file. Passwords are masked.

Exit codes:
  0  `serve` would run with this
  2  it would not; the reason is on standard error";

const MAN_HELP: &str = "To read one: `tidemark man query | man -l -`";

const COMPLETIONS_HELP: &str = "bash:  tidemark completions bash > /etc/bash_completion.d/tidemark
zsh:   tidemark completions zsh > \"${fpath[1]}/_tidemark\"
fish:  tidemark completions fish > ~/.config/fish/completions/tidemark.fish";

const CHECK_HELP: &str = "Nothing is changed without --fix. With it, the statements of failed checks that lose nothing are run, each shown \
before: grants, REPLICATION for the role, the publication, REPLICA IDENTITY DEFAULT in place of NOTHING, and ALTER SYSTEM for \
what counts after the next restart of Postgres. Warnings are left to you.

Exit codes:
  0  nothing failed; there may be warnings
  2  a check failed, or the usage or the configuration is wrong";

const DROP_SLOT_HELP: &str =
    "What is gone already is no error. Slots of other data directories that nobody reads are listed, and dropped only when named; \
without a data directory and --slot nothing is dropped, and they are listed.

Exit codes:
  0  slot and publication are gone
  2  there is neither a data directory nor --slot, the publication is somebody else's (the slot is gone), the slot is in use, is not Tidemark's, or Postgres cannot be asked; or the usage is wrong";

const BACKUP_HELP: &str = "Nothing stops meanwhile. The backup is a directory of its own under the server's --backup-dir (unless stated, `backups` in \
the data directory), on the same file system as hard links: copy it to another machine, or it goes when the disk goes.

Exit codes:
  0  the backup is complete and on disk
  1  the server or the disk failed, or the server could not be reached
  2  the usage is wrong, the name is taken, or there is nothing to back up";

const RESTORE_HELP: &str = "Every file is compared with what was written, and the copy is opened once to see that it stands where the backup says.

Exit codes:
  0  the data directory can be served
  1  reading or writing failed; the directory is empty again
  2  the directory is not empty, or there is no backup there, or one of another format
  3  the backup is damaged";

const APPLY_HELP: &str = "An aggregate that is registered with another definition is left as it is and reported. \
Nothing is pruned where a definition differs or is refused.

Exit codes:
  0  the aggregates are as in the directory; with --dry-run, they could be
  1  the server failed, or could not be reached
  2  a definition differs or is refused, or the directory cannot be read";

const VERIFY_HELP: &str = "Nobody has to stop writing: Postgres recomputes the totals in a snapshot of one position of its log, and they are compared \
with ours at that very position. Until that is done the snapshot holds back vacuum, and the tables can be written to but \
neither altered nor truncated.

Exit codes:
  0  equal
  1  cells differ; each key is printed with both values
  2  the usage is wrong, or the server refuses to compare
  3  the server failed or cannot compare now, or could not be reached";

/// Exact, live totals of a Postgres table.
#[derive(Debug, Parser)]
#[command(name = "tidemark", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Follow a source and serve totals
    #[command(after_help = SERVE_HELP)]
    Serve(Box<ServeArguments>),
    /// Watch totals move: a private Postgres with live payments, three aggregates, a page
    #[command(after_help = DEMO_HELP)]
    Demo {
        /// Address to serve HTTP on
        #[arg(long, value_name = "ADDRESS", env = "TIDEMARK_LISTEN", default_value = "127.0.0.1:7171")]
        listen: SocketAddr,
    },
    /// Look at Postgres as `serve` would, and name what has to be repaired with the statement that does
    #[command(after_help = CHECK_HELP)]
    Check(CheckArguments),
    /// Remove the replication slot and publication of a data directory that is not wanted any more
    #[command(after_help = DROP_SLOT_HELP)]
    DropSlot(DropSlotArguments),
    /// Take a backup of a running server, or with --data of a data directory that no server uses
    #[command(after_help = BACKUP_HELP)]
    Backup(BackupArguments),
    /// Make a new data directory from a backup
    #[command(after_help = RESTORE_HELP)]
    Restore(RestoreArguments),
    /// Make, list and revoke the tokens that a server asks for
    #[command(after_help = EXIT_CODES)]
    Token {
        /// What to do
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// List the aggregates of a running server
    #[command(after_help = EXIT_CODES)]
    List(ListArguments),
    /// Describe an aggregate of a running server
    #[command(after_help = EXIT_CODES)]
    Describe(DescribeArguments),
    /// Drop an aggregate of a running server
    #[command(after_help = EXIT_CODES)]
    Drop {
        /// The aggregate
        name: String,
        #[command(flatten)]
        server: ServerAddress,
    },
    /// Register the aggregates of a file with a running server
    #[command(after_help = EXIT_CODES)]
    Register(RegisterArguments),
    /// Make the aggregates of a running server those that a directory defines
    #[command(after_help = APPLY_HELP)]
    Apply(ApplyArguments),
    /// Compare what a running server holds with Postgres' own GROUP BY at the same position
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArguments),
    /// Ask an aggregate of a running server
    #[command(after_help = EXIT_CODES)]
    Query(QueryArguments),
    /// Say what a running server reads for a question, and why not something else
    #[command(after_help = EXIT_CODES)]
    Explain(ExplainArguments),
    /// Watch an aggregate of a running server
    #[command(after_help = LIVE_HELP)]
    Live(LiveArguments),
    /// Look at what `serve` would run with
    #[command(after_help = CONFIG_HELP)]
    Config {
        /// What to do
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print the contract of the HTTP interface, as OpenAPI 3.1
    #[command(after_help = EXIT_CODES)]
    Openapi,
    /// Print what completes the commands in a shell
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print a manual page, or write all of them
    #[command(after_help = MAN_HELP)]
    Man {
        /// The command that it is about, such as `query` or `token create`; without one, all of Tidemark
        command: Vec<String>,
        /// Write all pages to this directory
        #[arg(long, value_name = "DIR", conflicts_with = "command")]
        directory: Option<PathBuf>,
    },
}

/// The commands of `token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token; it is shown once and kept nowhere
    Create(TokenCreateArguments),
    /// List the tokens, without what they are
    List {
        /// File with the tokens
        #[arg(long, value_name = "FILE", env = "TIDEMARK_TOKENS")]
        tokens: PathBuf,
        #[command(flatten)]
        printing: Printing,
    },
    /// Revoke a token; a running server refuses it within a second
    Revoke {
        /// Its id, the part of it between the underscores
        id: String,
        /// File with the tokens
        #[arg(long, value_name = "FILE", env = "TIDEMARK_TOKENS")]
        tokens: PathBuf,
    },
}

/// The commands of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show every setting of `serve` and its value
    #[command(after_help = CONFIG_HELP)]
    Show(Box<ConfigShowArguments>),
}

/// What `config show` can be told.
#[derive(Debug, Args)]
pub struct ConfigShowArguments {
    /// Say of each where it comes from: a flag, the environment, the file, or nowhere
    #[arg(long)]
    pub origin: bool,
    #[command(flatten)]
    pub printing: Printing,
    #[command(flatten)]
    pub serve: ServeArguments,
}

/// What `list` can be told.
#[derive(Debug, Args)]
pub struct ListArguments {
    #[command(flatten)]
    pub printing: Printing,
    #[command(flatten)]
    pub server: ServerAddress,
}

/// What `describe` can be told.
#[derive(Debug, Args)]
pub struct DescribeArguments {
    /// The aggregate
    pub name: String,
    #[command(flatten)]
    pub printing: Printing,
    #[command(flatten)]
    pub server: ServerAddress,
}

/// What `register` can be told.
#[derive(Debug, Args)]
pub struct RegisterArguments {
    /// One definition as JSON, or statements in a file that ends in .sql
    pub file: PathBuf,
    /// Name of the definition in JSON; the file's name without extension unless stated
    #[arg(long)]
    pub name: Option<String>,
    /// Wait until they are filled; on a terminal it shows how far they are
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub server: ServerAddress,
}

/// What `query` can be told.
#[derive(Debug, Args)]
pub struct QueryArguments {
    #[command(flatten)]
    pub question: Question,
    #[command(flatten)]
    pub printing: Printing,
    #[command(flatten)]
    pub server: ServerAddress,
}

/// What `explain` can be told.
#[derive(Debug, Args)]
pub struct ExplainArguments {
    #[command(flatten)]
    pub question: Question,
    /// Answer the question too, and say what that took
    #[arg(long)]
    pub analyze: bool,
    #[command(flatten)]
    pub printing: Printing,
    #[command(flatten)]
    pub server: ServerAddress,
}

/// What `live` can be told.
#[derive(Debug, Args)]
pub struct LiveArguments {
    #[command(flatten)]
    pub question: Question,
    /// The measure that is drawn [default: the first]
    #[arg(long)]
    pub measure: Option<String>,
    #[command(flatten)]
    pub printing: Printing,
    #[command(flatten)]
    pub server: ServerAddress,
}

/// A question to an aggregate.
#[derive(Clone, Debug, Args)]
pub struct Question {
    /// The aggregate
    pub name: String,
    /// Parameters of the question, such as granularity=year from=2020
    #[arg(value_name = "KEY=VALUE", value_parser = parse_parameter)]
    pub parameters: Vec<(String, String)>,
}

/// What `token create` can be told.
#[derive(Debug, Args)]
pub struct TokenCreateArguments {
    /// File with the tokens; made where there is none
    #[arg(long, value_name = "FILE", env = "TIDEMARK_TOKENS")]
    pub tokens: PathBuf,
    /// What it may do: read; register, which includes read; admin, which includes both
    #[arg(long, value_parser = str::parse::<Scope>)]
    pub scope: Scope,
    /// See this aggregate only, or this part of it: monthly=currency:EUR; can be repeated
    #[arg(long = "pin", value_name = "AGGREGATE[=DIMENSION:VALUE,...]", value_parser = Pin::parse)]
    pub pins: Vec<Pin>,
    /// Count no more after this time, such as 90d
    #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
    pub expires: Option<u64>,
    /// What it is for
    #[arg(long, default_value = "", hide_default_value = true)]
    pub note: String,
}

/// What `apply` can be told.
#[derive(Debug, Args)]
pub struct ApplyArguments {
    /// The directory; its .sql and .json files are read, not those of directories in it
    #[arg(short = 'f', long = "directory", value_name = "DIR")]
    pub directory: PathBuf,
    /// Drop the aggregates that the directory does not define
    #[arg(long)]
    pub prune: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub server: ServerAddress,
}

/// What `verify` can be told.
#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// The aggregate [default: all]
    pub name: Option<String>,
    /// Only buckets that begin at or after this time, such as 2026-03 or -30d
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub from: Option<String>,
    /// Only buckets that begin before this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub to: Option<String>,
    /// Whom to compare with [default: postgres, where the source is one]
    #[arg(long, value_enum)]
    pub against: Option<VerifyAgainst>,
    #[command(flatten)]
    pub printing: Printing,
    #[command(flatten)]
    pub server: ServerAddress,
}

/// Whom cells are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyAgainst {
    /// Postgres' own GROUP BY at the same position.
    Postgres,
    /// The copy of the rows that Tidemark keeps.
    Rows,
}

/// Where a running server is.
#[derive(Debug, Default, Args)]
pub struct ServerAddress {
    /// Address of the running server
    #[arg(long = "server", value_name = "URL", env = "TIDEMARK_SERVER", default_value = "http://127.0.0.1:7171")]
    pub url: String,
    /// File that holds the token to send; or the token itself in the environment as TIDEMARK_TOKEN
    #[arg(long, value_name = "FILE", env = "TIDEMARK_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// File with the certificates to believe of a server at https://, instead of the ones that this machine trusts
    #[arg(long, value_name = "FILE", env = "TIDEMARK_CA_FILE")]
    pub ca_file: Option<PathBuf>,
}

/// Where Postgres is, for the commands that ask it themselves. The configuration file is that of `serve`.
#[derive(Debug, Default, Args)]
pub struct UpstreamArguments {
    /// Configuration file
    #[arg(long, value_name = "FILE", env = "TIDEMARK_CONFIG")]
    pub config: Option<PathBuf>,
    /// Data directory, which names slot and publication [default: ./tidemark-data]
    #[arg(long, value_name = "DIR", env = "TIDEMARK_DATA")]
    pub data: Option<PathBuf>,
    /// The Postgres database; better given in the environment, where others do not see its password
    #[arg(long, value_name = "URL", env = "TIDEMARK_POSTGRES", hide_env_values = true)]
    pub postgres: Option<String>,
}

/// What `check` can be told.
#[derive(Debug, Default, Args)]
pub struct CheckArguments {
    #[command(flatten)]
    pub upstream: UpstreamArguments,
    /// Look at this table too, as schema.name; can be repeated
    #[arg(long = "table", value_name = "TABLE", env = "TIDEMARK_TABLE", value_delimiter = ',')]
    pub tables: Vec<String>,
    /// The row images of this table are to be off, which takes REPLICA IDENTITY FULL; can be repeated
    #[arg(long, value_name = "TABLE", env = "TIDEMARK_NO_ROW_IMAGE", value_delimiter = ',')]
    pub no_row_image: Vec<String>,
    /// Repair what can be repaired without losing anything
    #[arg(long)]
    pub fix: bool,
    /// Repair as this user, who may more than Tidemark's own; implies --fix
    #[arg(long, value_name = "URL", env = "TIDEMARK_POSTGRES_ADMIN", hide_env_values = true)]
    pub fix_as: Option<String>,
    #[command(flatten)]
    pub printing: Printing,
}

/// What `drop-slot` can be told.
#[derive(Debug, Default, Args)]
pub struct DropSlotArguments {
    #[command(flatten)]
    pub upstream: UpstreamArguments,
    /// Drop this slot in place of the data directory's
    #[arg(long, value_name = "NAME")]
    pub slot: Option<String>,
    /// Drop it even while it is in use; whoever reads it is cut off
    #[arg(long)]
    pub force: bool,
}

/// What `backup` can be told.
#[derive(Debug, Args)]
pub struct BackupArguments {
    /// Its name, of lower-case letters, digits and underscores [default: the time]
    pub name: Option<String>,
    /// Have Postgres keep its log from the backup on, in a slot of its own, so that what is restored goes on exactly
    #[arg(long, conflicts_with = "data")]
    pub hold_log: bool,
    /// Back up this data directory, which no server uses, in place of asking one
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Write it into this directory [default: `backups` in the data directory]
    #[arg(long, value_name = "DIR", requires = "data")]
    pub backup_dir: Option<PathBuf>,
    #[command(flatten)]
    pub server: ServerAddress,
}

/// What `restore` can be told.
#[derive(Debug, Args)]
pub struct RestoreArguments {
    /// The backup, a directory
    #[arg(value_name = "BACKUP")]
    pub backup: PathBuf,
    /// The data directory to make; empty or new
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
}

/// How a command that reads prints what it found.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Printing {
    /// How to print it
    #[arg(long, value_enum, default_value_t, env = "TIDEMARK_OUTPUT")]
    pub output: OutputFormat,
}

/// How a command prints what it found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people
    #[default]
    #[value(alias = "text")]
    Table,
    /// As the server says it, for programs
    Json,
    /// A line of names, then a line per row (RFC 4180)
    Csv,
}

/// What `serve` can be told. Each has a key in the configuration file.
#[derive(Debug, Default, Args)]
pub struct ServeArguments {
    /// Configuration file
    #[arg(long, value_name = "FILE", env = "TIDEMARK_CONFIG")]
    pub config: Option<PathBuf>,
    /// Data directory [default: ./tidemark-data]
    #[arg(long, value_name = "DIR", env = "TIDEMARK_DATA")]
    pub data: Option<PathBuf>,
    /// Write backups into this directory [default: `backups` in the data directory]
    #[arg(long, value_name = "DIR", env = "TIDEMARK_BACKUP_DIR")]
    pub backup_dir: Option<PathBuf>,
    /// Take nothing from the source while less than this is free on the data directory's disk; answers go on; 0 for no limit
    /// [default: 1GiB, or a twentieth of a smaller disk]
    #[arg(long, value_name = "SIZE", env = "TIDEMARK_MIN_FREE_BYTES")]
    pub min_free_bytes: Option<String>,
    /// Address to serve HTTP on [default: 127.0.0.1:7171]
    #[arg(long, value_name = "ADDRESS", env = "TIDEMARK_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Ask everyone for a token of this file
    #[arg(long, value_name = "FILE", env = "TIDEMARK_TOKENS")]
    pub tokens: Option<PathBuf>,
    /// Serve HTTPS with this certificate chain, in PEM; read again when it changes, and on SIGHUP
    #[arg(long, value_name = "FILE", env = "TIDEMARK_TLS_CERTIFICATE")]
    pub tls_certificate: Option<PathBuf>,
    /// The key of the certificate, in PEM
    #[arg(long, value_name = "FILE", env = "TIDEMARK_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// Answer to this name too, beside addresses and localhost; can be repeated
    #[arg(long = "host", value_name = "NAME", env = "TIDEMARK_HOST", value_delimiter = ',')]
    pub hosts: Vec<String>,
    /// Keep at most this many connections; at the limit the one that is idle longest makes room [default: 2048]
    #[arg(long, value_name = "NUMBER", env = "TIDEMARK_MAX_CONNECTIONS")]
    pub max_connections: Option<usize>,
    /// Keep at most this many connections of one address beyond this machine [default: 256]
    #[arg(long, value_name = "NUMBER", env = "TIDEMARK_MAX_CONNECTIONS_PER_ADDRESS")]
    pub max_connections_per_address: Option<usize>,
    /// Serve on an address that others reach, also without tokens or TLS
    #[arg(long, env = "TIDEMARK_INSECURE_LISTEN", value_parser = BoolishValueParser::new())]
    pub insecure_listen: bool,
    /// Follow this Postgres database; better given in the environment, where others do not see its password
    #[arg(long, value_name = "URL", env = "TIDEMARK_POSTGRES", hide_env_values = true)]
    pub postgres: Option<String>,
    /// Follow this table, as schema.name; can be repeated
    #[arg(long = "table", value_name = "TABLE", env = "TIDEMARK_TABLE", value_delimiter = ',')]
    pub tables: Vec<String>,
    /// Keep no copy of this table's rows, which takes REPLICA IDENTITY FULL: half the disk, and no look-up per change, but an
    /// aggregate that is registered later has the table read anew; can be repeated
    #[arg(long, value_name = "TABLE", env = "TIDEMARK_NO_ROW_IMAGE", value_delimiter = ',')]
    pub no_row_image: Vec<String>,
    /// Make the replication slot one that standbys copy, to go on after a failover; takes Postgres 17 or newer
    #[arg(long, env = "TIDEMARK_FAILOVER_SLOT", value_parser = BoolishValueParser::new())]
    pub failover_slot: bool,
    /// Halt at a transaction with more row data than this; it is held in memory [default: 1GiB]
    #[arg(long, value_name = "SIZE", env = "TIDEMARK_MAX_TRANSACTION")]
    pub max_transaction: Option<String>,
    /// Halt at a row of more bytes than this; it is held in memory at least twice [default: 256MiB]
    #[arg(long, value_name = "SIZE", env = "TIDEMARK_MAX_ROW")]
    pub max_row: Option<String>,
    /// Read existing rows over this many sessions at a time, 1 to 16 [default: 2]
    #[arg(long, value_name = "NUMBER", env = "TIDEMARK_SNAPSHOT_READERS")]
    pub snapshot_readers: Option<usize>,
    /// Follow made-up payments instead, from this seed
    #[arg(long, value_name = "SEED", env = "TIDEMARK_GENERATOR")]
    pub generator: Option<u64>,
    /// Follow a recorded file instead
    #[arg(long, value_name = "FILE", env = "TIDEMARK_REPLAY")]
    pub replay: Option<PathBuf>,
    /// Take change events in Debezium's format that are posted, of the tables this JSON file describes, instead
    #[arg(long, value_name = "FILE", env = "TIDEMARK_EVENTS")]
    pub events: Option<PathBuf>,
    /// Worker threads of the engine [default: half of the processors]
    #[arg(long, env = "TIDEMARK_WORKERS")]
    pub workers: Option<usize>,
    /// Memory for caches, such as 512MiB [default: 512MiB]
    #[arg(long, value_name = "SIZE", env = "TIDEMARK_MEMORY")]
    pub memory: Option<String>,
    /// Register at most this many aggregates; each takes its part of every commit [default: 200]
    #[arg(long, value_name = "NUMBER", env = "TIDEMARK_MAX_AGGREGATES")]
    pub max_aggregates: Option<usize>,
    /// Add up so many cells again per second, to compare them with their control totals; 0 for none [default: 100000]
    #[arg(long, value_name = "NUMBER", env = "TIDEMARK_SCRUB_CELLS")]
    pub scrub_cells: Option<u64>,
    /// Compare one bucket of one aggregate with Postgres this often, as `verify` does, such as 600s [default: never]
    #[arg(long, value_name = "TIME", env = "TIDEMARK_VERIFY_EVERY")]
    pub verify_every: Option<String>,
    /// How to write the log; what to write is RUST_LOG's [default: pretty]
    #[arg(long, env = "TIDEMARK_LOG")]
    pub log: Option<LogFormat>,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Pretty,
    /// One JSON object per line.
    Json,
}

/// Seconds in `90d`, `12h`, `30m`, `45s`.
fn parse_seconds(text: &str) -> Result<u64, String> {
    let units = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];
    let seconds = units.iter().find_map(|(unit, seconds)| {
        text.strip_suffix(*unit)?.parse::<u64>().ok()?.checked_mul(*seconds).filter(|seconds| *seconds > 0)
    });
    seconds.ok_or_else(|| "use a time such as 90d or 12h".to_owned())
}

fn parse_parameter(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("use the form key=value, such as granularity=year")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn questions_are_pairs() {
        let cli = Cli::try_parse_from(["tidemark", "query", "monthly", "granularity=year", "where=a:b=c"]).unwrap();
        let Command::Query(QueryArguments { question, .. }) = cli.command else { panic!("not a query") };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(question.parameters, [pair("granularity", "year"), pair("where", "a:b=c")]);
        assert!(Cli::try_parse_from(["tidemark", "query", "monthly", "year"]).is_err());
    }
}
