//! `tidemark man` and `tidemark completions`: made from the same command line that is parsed, so they cannot be out of date.

use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::output::say;

/// Prints the page of a command, or of all of Tidemark.
pub fn page(command: &[String]) -> Result<(), Failure> {
    let mut described = Cli::command();
    described.build();
    let mut found: &Command = &described;
    for name in command {
        found = found.find_subcommand(name).ok_or_else(|| {
            let there: Vec<&str> = found.get_subcommands().map(Command::get_name).collect();
            Failure::Usage(format!("there is no command {name:?}; there are {}", there.join(", ")))
        })?;
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(found.clone()).render(&mut text).map_err(|error| Failure::Failed(error.to_string()))?;
    print(&text)
}

/// Writes all pages to a directory.
pub fn pages(directory: &Path) -> Result<(), Failure> {
    let unwritable =
        |error: std::io::Error| Failure::Usage(format!("{} cannot be written: {error}", directory.display()));
    std::fs::create_dir_all(directory).map_err(unwritable)?;
    clap_mangen::generate_to(Cli::command(), directory).map_err(unwritable)
}

/// Prints what completes the commands in a shell.
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tidemark", &mut text);
    print(&text)
}

fn print(text: &[u8]) -> Result<(), Failure> {
    say(String::from_utf8_lossy(text).trim_end())
}
