//! The binary `tidemark`: reads the command line and the configuration, and runs one command.

mod apply;
mod backup;
mod chart;
mod check;
mod cli;
mod client;
mod config;
mod config_show;
mod definition_file;
mod demo;
mod describe;
mod document;
mod drop_slot;
mod explain;
mod failure;
mod list;
mod live;
mod logging;
mod manual;
mod open_files;
#[cfg(feature = "otel")]
mod otlp;
mod output;
mod progress;
mod query;
mod recount;
mod register;
mod restore;
mod serve;
#[cfg(feature = "otel")]
mod spans;
#[cfg(not(feature = "otel"))]
#[path = "no_spans.rs"]
mod spans;
mod story;
mod supervisor;
mod table;
mod token;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches};

use cli::{Cli, Command, ConfigCommand};
use failure::Failure;

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match run(cli, &matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody is left to hear that standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {}", told(&failure));
            failure.exit_code()
        }
    }
}

/// The lines of a failure. Names in it come from the database.
fn told(failure: &Failure) -> String {
    failure.to_string().split('\n').map(table::harmless).collect::<Vec<_>>().join("\n")
}

fn run(cli: Cli, matches: &ArgMatches) -> Result<(), Failure> {
    match cli.command {
        Command::Serve(arguments) => serve::run(config::ServeConfig::resolve(*arguments, innermost(matches))?),
        Command::Demo { listen } => demo::run(listen),
        Command::Check(arguments) => check::run(&arguments),
        Command::DropSlot(arguments) => drop_slot::run(&arguments),
        Command::Backup(arguments) => backup::run(&arguments),
        Command::Restore(arguments) => restore::run(&arguments),
        Command::List(arguments) => list::run(&arguments),
        Command::Describe(arguments) => describe::run(&arguments),
        Command::Drop { name, server } => client::Client::new(&server)?.delete(&name)?.into_success().map(drop),
        Command::Register(arguments) => register::run(&arguments),
        Command::Token { command } => token::run(&command),
        Command::Apply(arguments) => apply::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Query(arguments) => query::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Live(arguments) => live::run(&arguments),
        Command::Config { command: ConfigCommand::Show(arguments) } => config_show::run(*arguments, innermost(matches)),
        Command::Openapi => output::say_document(&queries::http::openapi::document().to_string()),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { command, directory: None } => manual::page(&command),
        Command::Man { directory: Some(directory), .. } => manual::pages(&directory),
    }
}

/// What was matched for the command that is run.
fn innermost(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, matches)| innermost(matches))
}
