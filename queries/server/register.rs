//! `tidemark register FILE`: registers definitions with a running server, and waits for them where asked to.

use std::time::Duration;

use engine::shell;
use serde_json::Value;

use crate::cli::RegisterArguments;
use crate::client::{Client, problem_text};
use crate::definition_file::DefinitionFile;
use crate::document::{field, parse};
use crate::failure::Failure;
use crate::output::say_document;
use crate::progress::Filling;

/// How often is asked how far a filling is.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Registers one after the other; fillings take turns, so they are waited for at the end.
pub fn run(arguments: &RegisterArguments) -> Result<(), Failure> {
    let definitions = DefinitionFile::read(&arguments.file, arguments.name.as_deref())?;
    let client = Client::new(&arguments.server)?;
    for definition in &definitions {
        let registered = client.put(definition)?.into_success().map_err(|failure| by_command(failure, definition))?;
        // Of one that is waited for it is told how it stands then.
        if !arguments.wait {
            say_document(&registered)?;
        }
    }
    for definition in definitions.iter().filter(|_| arguments.wait) {
        wait(&client, &definition.name)?;
        say_document(&client.describe(&definition.name)?)?;
    }
    Ok(())
}

/// What the server advises is a parameter of a request, which this command does not send.
fn by_command(failure: Failure, definition: &DefinitionFile) -> Failure {
    match failure {
        Failure::Usage(said)
            if ["[definition_differs]", "[replace_not_supported]"].iter().any(|code| said.contains(code)) =>
        {
            let name = shell::word(&definition.name);
            Failure::Usage(format!(
                "{said}\n  with this command: tidemark drop {name}, then register it again; there is no answer until it is filled"
            ))
        }
        other => other,
    }
}

fn wait(client: &Client, name: &str) -> Result<(), Failure> {
    let filling = Filling::of(name);
    loop {
        let reply = client.backfill(name)?;
        let status = reply.status;
        let text = reply.into_success()?;
        let document = parse(&text)?;
        match field(&document, "phase").as_str() {
            "done" => return Ok(()),
            "halted" => {
                let error = document.get("error").unwrap_or(&Value::Null);
                let why = format!("{name} halted: {} [{}]", field(error, "message"), field(error, "code"));
                return Err(Failure::Failed(format!("{why}\n  remedy: {}", field(error, "remedy"))));
            }
            "building" | "paused" => filling.show(document.get("progress").unwrap_or(&Value::Null)),
            _ => return Err(Failure::Failed(problem_text(status, &text))),
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}
