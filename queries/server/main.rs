//! The binary `tidemark`: reads the command line and the configuration, and runs one command.

mod apply;
mod backup;
mod check;
mod cli;
mod client;
mod config;
mod definition_file;
mod demo;
mod drop_slot;
mod failure;
mod logging;
mod open_files;
mod output;
mod recount;
mod restore;
mod serve;
mod story;
mod token;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody is left to hear that standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {failure}");
            failure.exit_code()
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Serve(arguments) => serve::run(config::ServeConfig::resolve(*arguments)?),
        Command::Demo { listen } => demo::run(listen),
        Command::Check(arguments) => check::run(&arguments),
        Command::DropSlot(arguments) => drop_slot::run(&arguments),
        Command::Backup(arguments) => backup::run(&arguments),
        Command::Restore(arguments) => restore::run(&arguments),
        Command::List { server } => client::Client::new(&server)?.list(),
        Command::Describe { name, server } => client::Client::new(&server)?.describe(&name),
        Command::Drop { name, server } => client::Client::new(&server)?.drop_aggregate(&name),
        Command::Register { file, name, server } => {
            client::Client::new(&server)?.register(&definition_file::DefinitionFile::read(&file, name.as_deref())?)
        }
        Command::Token { command } => token::run(&command),
        Command::Apply(arguments) => apply::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Query { name, parameters, server } => client::Client::new(&server)?.query(&name, &parameters),
    }
}
