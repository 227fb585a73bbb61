//! `tidemark token`: makes, lists and revokes the tokens of a file. A running server sees the change within a second.
//! The text of a token is shown once, when it is made, on standard output; what is kept cannot be turned back into it.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::DateTime;
use queries::access::{Token, TokenFile};
use serde_json::json;

use crate::cli::{OutputFormat, TokenCommand, TokenCreateArguments};
use crate::failure::Failure;
use crate::output::{say, say_document};
use crate::table::Table;

/// Runs one of the commands.
pub fn run(command: &TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Create(arguments) => create(arguments),
        TokenCommand::List { tokens, printing } => {
            list(&TokenFile::read(tokens).map_err(Failure::Usage)?.tokens, printing.output)
        }
        TokenCommand::Revoke { id, tokens } => TokenFile::change(tokens, |file| {
            let before = file.tokens.len();
            file.tokens.retain(|token| token.id != *id);
            let found = file.tokens.len() < before;
            if found {
                Ok(())
            } else {
                Err(format!("there is no token {id}\n  remedy: `tidemark token list` shows their ids"))
            }
        })
        .map_err(Failure::Usage),
    }
}

fn create(arguments: &TokenCreateArguments) -> Result<(), Failure> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let expires_s = arguments.expires.map(|after_s| now_s.saturating_add(after_s));
    let (text, token) =
        Token::create(arguments.scope, arguments.pins.clone(), arguments.note.clone(), now_s, expires_s)
            .map_err(|error| Failure::Usage(error.to_string()))?;
    TokenFile::change(&arguments.tokens, |file| {
        file.tokens.push(token);
        Ok(())
    })
    .map_err(Failure::Usage)?;
    say(&text)
}

fn list(tokens: &[Token], output: OutputFormat) -> Result<(), Failure> {
    let when = |second: u64| {
        let instant = i64::try_from(second).ok().and_then(|second| DateTime::from_timestamp(second, 0));
        instant.map_or_else(|| second.to_string(), |instant| instant.format("%Y-%m-%dT%H:%MZ").to_string())
    };
    if output == OutputFormat::Json {
        let described: Vec<_> = tokens
            .iter()
            .map(|token| {
                json!({"id": token.id, "scope": token.scope.name(), "created": when(token.created_s),
                       "expires": token.expires_s.map(when), "note": token.note,
                       "pins": token.pins.iter().map(ToString::to_string).collect::<Vec<_>>()})
            })
            .collect();
        return say_document(&json!(described).to_string());
    }
    let mut table = Table::new(&["id", "scope", "created", "expires", "sees", "note"]);
    for token in tokens {
        let pins = token.pins.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let sees = if pins.is_empty() { "everything".to_owned() } else { pins };
        let expires = token.expires_s.map_or_else(|| "never".to_owned(), when);
        let scope = token.scope.name().to_owned();
        table.row([token.id.clone(), scope, when(token.created_s), expires, sees, token.note.clone()]);
    }
    if output == OutputFormat::Csv { table.print_csv() } else { table.print() }
}
