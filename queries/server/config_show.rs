//! `tidemark config show`: what `serve` would run with, and where each setting comes from. It asks the same argument parser
//! and the same file as `serve`, so no setting can be missing here.
//!
//! The surprise: a source on the command line replaces one of the environment, and either the file's, of whatever kind that is.
//! The other is shown as replaced.

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args};
use connectors::PostgresConfig;
use serde_json::json;

use crate::cli::{ConfigShowArguments, OutputFormat, ServeArguments};
use crate::config::{SOURCES, ServeConfig, default_of, file_of, gives_way};
use crate::failure::Failure;
use crate::output::say_document;
use crate::serve::rehearse;
use crate::table::Table;

/// One setting.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    name: String,
    value: String,
    origin: Origin,
    /// The flag, the variable, or the file.
    from: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Flag,
    Environment,
    File,
    /// The file or the environment states it, and does not count.
    Replaced,
    Default,
}

impl Origin {
    fn name(self) -> &'static str {
        match self {
            Origin::Flag => "flag",
            Origin::Environment => "environment",
            Origin::File => "file",
            Origin::Replaced => "replaced",
            Origin::Default => "default",
        }
    }
}

/// Prints the settings, then says whether `serve` would run with them.
pub fn run(arguments: ConfigShowArguments, matches: &ArgMatches) -> Result<(), Failure> {
    let ConfigShowArguments { origin: with_origin, printing, serve } = arguments;
    let path = serve.config.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let file = serve.config.as_deref().map(file_of).transpose()?.unwrap_or_default();
    let settings = settings(matches, &file, &path);
    let columns: &[&str] = if with_origin { &["setting", "value", "origin", "from"] } else { &["setting", "value"] };
    let mut table = Table::new(columns);
    for Setting { name, value, origin, from } in &settings {
        let cells = [name.as_str(), value, origin.name(), from];
        table.row(cells.iter().take(columns.len()).map(|cell| (*cell).to_owned()));
    }
    match printing.output {
        OutputFormat::Table => table.print()?,
        OutputFormat::Csv => table.print_csv()?,
        OutputFormat::Json => {
            let described: Vec<_> = settings
                .iter()
                .map(|Setting { name, value, origin, from }| {
                    json!({"setting": name, "value": value, "origin": origin.name(), "from": from})
                })
                .collect();
            say_document(&json!(described).to_string())?;
        }
    }
    rehearse(&ServeConfig::resolve(serve, matches)?)
}

fn settings(matches: &ArgMatches, file: &toml::Table, path: &str) -> Vec<Setting> {
    let command = ServeArguments::augment_args(clap::Command::new("serve"));
    let another_source = SOURCES.iter().any(|source| stated(matches, source).is_some());
    let setting = |argument: &Arg| {
        let name = argument.get_id().as_str();
        let in_file = file.get(name).map(toml_text);
        let (value, origin, from) = match (stated(matches, name), in_file) {
            (Some((value, Origin::Flag)), _) => {
                (value, Origin::Flag, argument.get_long().map(|long| format!("--{long}")).unwrap_or_default())
            }
            (Some((value, origin)), _) => {
                let origin = if gives_way(matches, name) { Origin::Replaced } else { origin };
                let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned());
                (value, origin, variable.unwrap_or_default())
            }
            (None, Some(value)) if another_source && SOURCES.contains(&name) => {
                (value, Origin::Replaced, path.to_owned())
            }
            (None, Some(value)) => (value, Origin::File, path.to_owned()),
            (None, None) => (default_of(name).unwrap_or_default(), Origin::Default, String::new()),
        };
        Setting { name: name.to_owned(), value: masked(name, value), origin, from }
    };
    command.get_arguments().map(setting).collect()
}

/// The value on the command line or in the environment. A switch that is off states nothing: the file may switch it on.
fn stated(matches: &ArgMatches, name: &str) -> Option<(String, Origin)> {
    let origin = match matches.value_source(name)? {
        ValueSource::CommandLine => Origin::Flag,
        ValueSource::EnvVariable => Origin::Environment,
        _ => return None,
    };
    if matches.try_get_one::<bool>(name).ok().flatten() == Some(&false) {
        return None;
    }
    let values = matches.get_raw(name)?.map(|value| value.to_string_lossy().into_owned()).collect::<Vec<_>>();
    Some((values.join(","), origin))
}

fn toml_text(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(values) => values.iter().map(toml_text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Who connects where, without what it is proved with.
fn masked(name: &str, value: String) -> String {
    if name != "postgres" || value.is_empty() {
        return value;
    }
    PostgresConfig::server(&value, "tidemark")
        .map_or_else(|_| "***".to_owned(), |config| format!("postgres://{}", config.display()))
}
