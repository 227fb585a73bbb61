//! `tidemark backup`: has a running server take a backup, or takes one of a data directory that nobody uses.

use std::path::Path;

use engine::backup::{BackupError, BackupFault, name_of_now, take_of_stopped};
use engine::engine::BACKUPS;
use serde_json::json;

use crate::cli::BackupArguments;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{say, say_document};

/// Takes one, and prints where it is.
pub fn run(arguments: &BackupArguments) -> Result<(), Failure> {
    let BackupArguments { name, hold_log, data, backup_dir, server } = arguments;
    match data {
        Some(data) => of_stopped(data, backup_dir.as_deref(), name.clone().unwrap_or_else(name_of_now)),
        None => {
            say_document(&Client::new(server)?.back_up(&json!({"name": name, "hold_log": hold_log}))?.into_success()?)
        }
    }
}

fn of_stopped(data: &Path, backups: Option<&Path>, name: String) -> Result<(), Failure> {
    let default = data.join(BACKUPS);
    let backup = take_of_stopped(data, backups.unwrap_or(&default), &name)?;
    say(&format!("{}: as of {}, {} bytes", backup.path.display(), backup.manifest.lsn, backup.bytes))
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        match error.fault {
            BackupFault::Refused => Failure::Usage(error.to_string()),
            BackupFault::Damaged => Failure::Damaged(error.to_string()),
            BackupFault::NotNow | BackupFault::Failed => Failure::Failed(error.to_string()),
        }
    }
}
