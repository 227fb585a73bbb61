//! The table of problems against the sources: each code that is written there is in the table with its status, none is in the
//! table that no source has, and `docs/problems.md` says what the table says.
//!
//! `TIDEMARK_APPROVE=1 cargo test --release -p tidemark problems` writes the page anew. The surprise: sources are read as
//! text, by the calls that make problems ([`MAKERS`]). What is made otherwise is met by `support/server`, which refuses
//! every answer with a code that is not in the table.

use std::collections::BTreeMap;
use std::path::Path;

use queries::api::problem_codes::{ProblemCode, ProblemSection, SECTIONS, find, statuses};

use crate::tidy::code;

/// How a problem is made in the sources, which arguments may be its code, and where that is so.
const MAKERS: [(&str, &[usize], &str); 23] = [
    ("Problem::new(", &[1], ""),
    ("QueryError::refused(", &[1], ""),
    ("SqlError::refused(", &[2], ""),
    (".refused(", &[0, 1], ""),
    (".code(", &[0], ""),
    ("code: ", &[0], ""),
    ("REFUSED: &str = ", &[0], ""),
    ("parse(", &[1], ""),
    ("error(", &[1], ""),
    ("source_error(", &[0], ""),
    ("definite(", &[0], ""),
    ("Finding::failed(", &[1], ""),
    ("Drift::Table(", &[0], ""),
    ("Refusal::new(", &[0], ""),
    ("wrong(", &[0], ""),
    ("refusal(", &[0], ""),
    ("OpenError::new(", &[0], ""),
    ("halt(", &[0], ""),
    ("BackupError::refused(", &[0], ""),
    ("not_now(", &[0], ""),
    ("wait(", &[0], ""),
    ("=> (", &[0], "engine/src/"),
    ("return (", &[0], "engine/src/"),
];

/// One code as a source makes it.
struct Made {
    code: String,
    /// Where it is stated beside it.
    status: Option<u16>,
    file: String,
}

/// Every code that the sources make, without those of their tests.
fn made() -> Vec<Made> {
    let mut made = Vec::new();
    for (file, code) in code().iter().filter(|(file, _)| !file.ends_with("problem_codes.rs")) {
        let code = code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for (maker, places, _) in MAKERS.iter().filter(|(_, _, home)| file.starts_with(home)) {
            for (at, _) in code.match_indices(*maker) {
                let is_whole = |c: char| !c.is_alphanumeric() && c != '_';
                if maker.starts_with(char::is_alphabetic) && !code[..at].chars().next_back().is_none_or(is_whole) {
                    continue;
                }
                let arguments = arguments(&code[at + maker.len()..]);
                let status =
                    arguments.first().filter(|_| *maker == "Problem::new(").and_then(|first| first.parse().ok());
                let codes = places.iter().filter_map(|place| literal(arguments.get(*place)?));
                made.extend(codes.map(|code| Made { code, status, file: file.clone() }));
            }
        }
    }
    made
}

/// The first arguments of a call, as they are written.
fn arguments(text: &str) -> Vec<&str> {
    let (mut depth, mut quoted, mut escaped, mut begin, mut found) = (0, false, false, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' => depth += 1,
            ',' | ';' | ')' | ']' | '}' if depth == 0 => {
                found.push(text[begin..at].trim());
                begin = at + 1;
                if c != ',' || found.len() > 2 {
                    break;
                }
            }
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    found
}

/// What a literal holds, where it can be a code.
fn literal(argument: &str) -> Option<String> {
    let argument = argument.trim_end_matches(".to_owned()").trim_end_matches(".into()");
    let text = argument.strip_prefix('"')?.strip_suffix('"')?;
    let is_code = text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    is_code.then(|| text.to_owned())
}

#[test]
fn every_code_of_the_sources_is_in_the_table_with_its_status() {
    let made = made();
    assert!(made.len() > 250, "{}: the sources are not read as they are written", made.len());
    let missing: Vec<String> = made
        .iter()
        .filter(|made| find(&made.code).is_none())
        .map(|made| format!("{} ({}, {:?})", made.code, made.file, made.status))
        .collect();
    assert!(missing.is_empty(), "not in queries/src/api/problem_codes.rs: {missing:#?}");
    for Made { code, status, file } in made {
        let Some(known) = find(&code) else { continue };
        let fits = status.is_none_or(|status| known.statuses.contains(&status));
        assert!(fits, "{file} answers {code} with {status:?}, the table says {:?}", known.statuses);
    }
}

#[test]
fn the_table_has_no_code_that_no_source_has() {
    let sources: Vec<String> =
        code().into_iter().filter(|(file, _)| !file.ends_with("problem_codes.rs")).map(|(_, code)| code).collect();
    let mut seen = BTreeMap::new();
    for problem in SECTIONS.iter().flat_map(|section| section.problems) {
        let literal = format!("\"{}\"", problem.code);
        assert!(sources.iter().any(|code| code.contains(&literal)), "no source has {literal}");
        assert!(seen.insert(problem.code, ()).is_none(), "{literal} is in the table twice");
        for text in [problem.meaning, problem.remedy] {
            assert!(text.ends_with(['.', '?']) && !text.contains('|'), "{literal}: {text}");
        }
    }
}

const HEAD: &str = "# Problems

Every answer that is none is a problem (RFC 9457): `application/problem+json` with a `code` to program against, a `detail`, a `hint`
with what to do, and where it can be said, `errors` that point at the part of the request that is wrong. Its `type` is a link
to the entry below, on the running server: `/docs/problems#currencies_mixed`. A code is never reused.

The status says what kind it is. 400: not written correctly. 401, 403: who asks. 404, 409: what is there. 422: understood and
refused. 429: too much at once. 503: no answer now. A code without a status is said at a start, or stands in `why_not`.

```sh
curl -s -o problem.json -w '%{http_code} %{content_type}\\n' 'http://127.0.0.1:7171/v1/aggregates/sales/data?granularity=year&group_by='
cat problem.json
```

```text
422 application/problem+json
\"type\":\"/docs/problems#currencies_mixed\" ... \"code\":\"currencies_mixed\" ... \"hint\":\"add currency to group_by, or fix it: where=currency:EUR\"
```

It goes on from the [quickstart](quickstart.md). The tables are written of the server's own by a test; nothing is added here by hand.
";

fn page() -> String {
    let section = |section: &ProblemSection| {
        let row = |problem: &ProblemCode| {
            let ProblemCode { code, meaning, remedy, .. } = problem;
            format!("| <a id=\"{code}\"></a>`{code}` | {} | {meaning} | {remedy} |\n", statuses(problem))
        };
        let rows: String = section.problems.iter().map(row).collect();
        format!(
            "\n## {}\n\n{}\n\n| code | status | means | do |\n|---|---|---|---|\n{rows}",
            section.title, section.about
        )
    };
    SECTIONS.iter().fold(HEAD.to_owned(), |page, one| page + &section(one))
}

#[test]
fn the_page_says_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/problems.md");
    let now = page();
    if std::env::var_os("TIDEMARK_APPROVE").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let approved = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(now == approved, "the table changed: approve the page as described above");
}

#[test]
fn calls_are_taken_apart() {
    assert_eq!(arguments("422, \"a,(b\", x(1, 2)), y"), ["422", "\"a,(b\"", "x(1, 2)"]);
    assert_eq!(arguments("\n    \"a\",\n    b)"), ["\"a\"", "b"]);
    assert_eq!(literal("\"a_b\".to_owned()").as_deref(), Some("a_b"));
    assert_eq!(literal("\"a b\""), None);
    assert_eq!(literal("code"), None);
}
