//! The command line. What `serve` is told here wins over the environment, and that over the configuration file; clap does
//! the first, `config` the second.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  the server or the engine failed, or could not be reached
  2  the usage or the configuration is wrong, or something needed to start is not there";

const CHECK_HELP: &str = "Nothing is changed without --fix. With it, the statements of failed checks that lose nothing are run, each shown \
before: grants, REPLICATION for the role, the publication, REPLICA IDENTITY DEFAULT in place of NOTHING, and ALTER SYSTEM for \
what counts after the next restart of Postgres. Warnings are left to you.

Exit codes:
  0  nothing failed; there may be warnings
  2  a check failed, or the usage or the configuration is wrong";

const DROP_SLOT_HELP: &str =
    "What is gone already is no error. Slots of other data directories are listed, and dropped only when named.

Exit codes:
  0  slot and publication are gone
  2  the slot is in use, is not Tidemark's, or Postgres cannot be asked; or the usage is wrong";

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
    #[command(after_help = EXIT_CODES)]
    Serve(ServeArguments),
    /// Watch totals move: a private Postgres with live payments, three aggregates, a page
    #[command(after_help = EXIT_CODES)]
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
    /// List the aggregates of a running server
    List {
        #[command(flatten)]
        server: ServerAddress,
    },
    /// Describe an aggregate of a running server
    Describe {
        /// The aggregate
        name: String,
        #[command(flatten)]
        server: ServerAddress,
    },
    /// Drop an aggregate of a running server
    Drop {
        /// The aggregate
        name: String,
        #[command(flatten)]
        server: ServerAddress,
    },
    /// Register an aggregate from a JSON file with a running server
    Register {
        /// The definition, as JSON
        file: PathBuf,
        /// Its name; the file's name without extension unless stated
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        server: ServerAddress,
    },
    /// Ask an aggregate of a running server
    Query {
        /// The aggregate
        name: String,
        /// Parameters of the question, such as granularity=year from=2020
        #[arg(value_name = "KEY=VALUE", value_parser = parse_parameter)]
        parameters: Vec<(String, String)>,
        #[command(flatten)]
        server: ServerAddress,
    },
}

/// Where a running server is.
#[derive(Debug, Args)]
pub struct ServerAddress {
    /// Address of the running server
    #[arg(long = "server", value_name = "URL", env = "TIDEMARK_SERVER", default_value = "http://127.0.0.1:7171")]
    pub url: String,
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
    /// Repair what can be repaired without losing anything
    #[arg(long)]
    pub fix: bool,
    /// Repair as this user, who may more than Tidemark's own; implies --fix
    #[arg(long, value_name = "URL", env = "TIDEMARK_POSTGRES_ADMIN", hide_env_values = true)]
    pub fix_as: Option<String>,
    /// How to print the checks
    #[arg(long, value_enum, default_value_t)]
    pub output: OutputFormat,
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

/// How a command prints what it found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
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
    /// Address to serve HTTP on [default: 127.0.0.1:7171]
    #[arg(long, value_name = "ADDRESS", env = "TIDEMARK_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Serve on an address that others reach, without tokens or TLS
    #[arg(long, env = "TIDEMARK_INSECURE_LISTEN")]
    pub insecure_listen: bool,
    /// Follow this Postgres database; better given in the environment, where others do not see its password
    #[arg(long, value_name = "URL", env = "TIDEMARK_POSTGRES", hide_env_values = true)]
    pub postgres: Option<String>,
    /// Follow this table, as schema.name; can be repeated
    #[arg(long = "table", value_name = "TABLE", env = "TIDEMARK_TABLE", value_delimiter = ',')]
    pub tables: Vec<String>,
    /// Make the replication slot one that standbys copy, to go on after a failover; takes Postgres 17 or newer
    #[arg(long, env = "TIDEMARK_FAILOVER_SLOT")]
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
        let Command::Query { parameters, .. } = cli.command else { panic!("not a query") };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(parameters, [pair("granularity", "year"), pair("where", "a:b=c")]);
        assert!(Cli::try_parse_from(["tidemark", "query", "monthly", "year"]).is_err());
    }
}
