//! Definitions in files: one as JSON, named by its file or on the command line, or any number as SQL, each naming itself.

use std::path::{Path, PathBuf};

use queries::sql::{SqlError, split};

use crate::failure::Failure;

/// One definition of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefinitionFile {
    /// Where it stands.
    pub path: PathBuf,
    /// What it defines.
    pub name: String,
    /// `application/json` or `application/sql`
    pub content_type: &'static str,
    /// The definition; in SQL after as many empty lines as stand before it in the file.
    pub text: String,
}

impl DefinitionFile {
    /// The definitions of a file. `name` is for JSON, which has no place for it.
    pub fn read(path: &Path, name: Option<&str>) -> Result<Vec<DefinitionFile>, Failure> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::Usage(format!("{} cannot be read: {error}", path.display())))?;
        let is_sql = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("sql"));
        let definition =
            |name: String, content_type, text| DefinitionFile { path: path.to_owned(), name, content_type, text };
        if !is_sql {
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            let name =
                name.or(stem).ok_or_else(|| Failure::Usage("give the aggregate a name with --name".to_owned()))?;
            return Ok(vec![definition(name.to_owned(), "application/json", text)]);
        }
        if name.is_some() {
            return Err(Failure::Usage("a statement names its aggregate: leave --name out".to_owned()));
        }
        let sources = split(&text).map_err(|error| Failure::Usage(sql_text(path, &error)))?;
        if sources.is_empty() {
            return Err(Failure::Usage(format!("there is no statement in {}", path.display())));
        }
        Ok(sources.into_iter().map(|source| definition(source.name, "application/sql", source.text)).collect())
    }

    /// The definitions of a directory: of each of its `.sql` and `.json` files, in the order of their names.
    pub fn read_all(directory: &Path) -> Result<Vec<DefinitionFile>, Failure> {
        let unreadable = |error| Failure::Usage(format!("{} cannot be read: {error}", directory.display()));
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            if ["sql", "json"].contains(&extension.to_ascii_lowercase().as_str()) {
                paths.push(path);
            }
        }
        paths.sort();
        let mut definitions: Vec<DefinitionFile> = Vec::new();
        for path in paths {
            for definition in DefinitionFile::read(&path, None)? {
                if let Some(other) = definitions.iter().find(|other| other.name == definition.name) {
                    return Err(Failure::Usage(format!(
                        "{} is defined twice: in {} and in {}",
                        definition.name,
                        other.path.display(),
                        definition.path.display()
                    )));
                }
                definitions.push(definition);
            }
        }
        Ok(definitions)
    }
}

/// A mistake in a file in the form of a compiler's message.
fn sql_text(path: &Path, error: &SqlError) -> String {
    let place = &error.place;
    let mut text =
        format!("{} [{}]\n  --> {}:{}:{}", error.message, error.code, path.display(), place.line, place.column);
    place.excerpt.lines().for_each(|line| text.push_str(&format!("\n  | {line}")));
    if !error.hint.is_empty() {
        text.push_str(&format!("\n  hint: {}", error.hint));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_directory_has_each_name_once() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        write("b.json", "{}");
        write(
            "a.sql",
            "CREATE ONLINE AGGREGATE one AS COUNT(*) FROM t;\nCREATE ONLINE AGGREGATE two AS COUNT(*) FROM t",
        );
        write("notes.txt", "nothing");
        let names = |definitions: Vec<DefinitionFile>| {
            definitions.into_iter().map(|definition| (definition.name, definition.content_type)).collect::<Vec<_>>()
        };
        let (sql, json) = ("application/sql", "application/json");
        let read = names(DefinitionFile::read_all(directory.path()).unwrap());
        assert_eq!(read, [("one".to_owned(), sql), ("two".to_owned(), sql), ("b".to_owned(), json)]);
        write("two.json", "{}");
        let message = DefinitionFile::read_all(directory.path()).unwrap_err().to_string();
        assert!(message.starts_with("two is defined twice"), "{message}");
    }

    #[test]
    fn a_mistake_is_shown_in_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sql");
        std::fs::write(&path, "-- ours\nCREATE TABLE t (x int)").unwrap();
        let message = DefinitionFile::read(&path, None).unwrap_err().to_string();
        assert!(message.contains("a.sql:2:8\n  | CREATE TABLE t (x int)\n  |        ^\n  hint: write"), "{message}");
        assert!(DefinitionFile::read(&path, Some("x")).unwrap_err().to_string().contains("--name"));
    }
}
