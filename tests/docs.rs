//! The guide and the README: every command in them is run, in order, against the real binary and a Postgres of its own, and prints what the
//! page says it prints. The guide's README says how its blocks are written; [`Kind`] is the same in code.
//!
//! Two surprises. Pages go on where the quickstart's mark stands, so its blocks up to there are run before theirs. And what
//! is not run is a mistake unless [`NOT_RUN`] has the reason: a block of an unknown kind, one that is indented, an output
//! without a command and a page that is not listed are all red.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::sql;

/// As the pages write them; replaced by those of the page's own server and Postgres.
const ADDRESS: &str = "127.0.0.1:7171";
const POSTGRES: &str = "postgres://user:password@localhost:5432/shop";

/// Where in the quickstart the other pages go on.
const MARK: &str = "<!-- The other pages go on from here. -->";

/// The page at the root, from the guide. Its table is the quickstart's, and no answer in it may be a problem.
const README: &str = "../README.md";
const DRAWING: &str =
    "payments ──▶ logical replication ──▶ ┌───────────────────────── tidemark ─────────────────────────┐";
const COMMANDS: &str = "tidemark list | describe NAME | drop NAME | register FILE --wait | query NAME granularity=year | explain NAME ...     from the command line";
const READ_ANEW: &str = "curl -X POST http://127.0.0.1:7171/v1/sources/postgres/tables -H 'Content-Type: application/json' -d '{\"table\":\"public.payments\"}'";
const DIRECTORIES: &str = "engine/       change events -> stored cells; ARCHITECTURE.md has the drawing, the invariants and the crash argument";

/// Blocks that cannot be run here, by page and first line, and why.
const NOT_RUN: [(&str, &str, &str); 13] = [
    (README, DRAWING, "a drawing"),
    (README, "make demo", "brings a Postgres and a server of its own; `command_line` and `dashboard` run it"),
    (README, "make test", "this test is part of it"),
    (README, "make build", "builds what the test has built, and would put another binary on the path"),
    (
        README,
        "curl -N 'http://127.0.0.1:7171/v1/aggregates/payments_by_month/live?granularity=month'",
        "goes on until Ctrl-C",
    ),
    (README, COMMANDS, "a list of what there is, with words to be replaced"),
    (
        README,
        "tidemark serve --listen 0.0.0.0:7171 --tls-certificate tls.crt --tls-key tls.key ...",
        "a host and a certificate that are nobody's; `security.md` runs it",
    ),
    (README, READ_ANEW, "the server of the page has been stopped by then"),
    (README, DIRECTORIES, "a list of directories"),
    ("quickstart.md", "make build", "builds what the test has built, and would put another binary on the path"),
    (
        "coming-from.md",
        "CREATE SOURCE shop FROM POSTGRES CONNECTION pg (PUBLICATION 'mz_source') FOR TABLES (public.payments);",
        "of Materialize",
    ),
    ("coming-from.md", "CREATE MATERIALIZED VIEW daily WITH (timescaledb.continuous) AS", "of TimescaleDB"),
    ("coming-from.md", "cubes:", "of Cube"),
];

/// Every page, and whether it goes on where the quickstart's mark stands. Each is a test of its own, so they share the processors.
macro_rules! pages {
    ($($name:ident $file:literal $goes_on:literal;)*) => {
        const PAGES: &[(&str, bool)] = &[$(($file, $goes_on)),*];
        $(#[test]
        fn $name() {
            run_page($file, $goes_on);
        })*
    };
}

pages! {
    readme "../README.md" false;
    index "README.md" false;
    quickstart "quickstart.md" false;
    concepts "concepts.md" true;
    registering "registering.md" true;
    querying "querying.md" true;
    time_zones "time-zones.md" true;
    money "money.md" true;
    security "security.md" true;
    coming_from "coming-from.md" true;
    limits "limits.md" true;
    problems "problems.md" true;
}

/// What is done with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `sh`: run by bash, and has to end well.
    Shell,
    /// `sh fails`: run by bash, and has to end with a failure.
    Fails,
    /// `sh serve`: stays in the background, in place of the one before, which is stopped as with Ctrl-C.
    Serve,
    /// `sh stopped`: as `sh`, once the server is stopped.
    Stopped,
    /// `sql`: run by psql.
    Sql,
    /// `text`, `json`: what the command before prints, with `...` for anything.
    Output { json: bool },
    /// `console`, `yaml`: not run; needs a reason.
    Never,
}

struct Block {
    kind: Kind,
    text: String,
    /// Page and line, for whoever reads a failure.
    place: String,
}

fn guide() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(guide().join(file)).unwrap_or_else(|error| panic!("docs/{file}: {error}"))
}

/// The blocks of a page, in order.
fn blocks(file: &str, page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let place = format!("docs/{file}:{}", number + 1);
        let Some(fence) = line.trim_start().strip_prefix("```") else {
            assert!(!line.starts_with("    ") && !line.starts_with('\t'), "{place}: an indented block is not run");
            continue;
        };
        let kind = match fence.trim() {
            "sh" => Kind::Shell,
            "sh fails" => Kind::Fails,
            "sh serve" => Kind::Serve,
            "sh stopped" => Kind::Stopped,
            "sql" => Kind::Sql,
            "text" => Kind::Output { json: false },
            "json" => Kind::Output { json: true },
            "console" | "yaml" => Kind::Never,
            other => panic!("{place}: nobody runs a block of {other:?}"),
        };
        let margin = line.len() - line.trim_start().len();
        let text = lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```");
        let text: Vec<&str> = text.map(|line| line.get(margin..).unwrap_or_default()).collect();
        assert!(!text.is_empty(), "{place}: an empty block");
        if let Kind::Output { .. } = kind {
            let said = blocks
                .last()
                .is_some_and(|block| !matches!(block.kind, Kind::Output { .. } | Kind::Never | Kind::Serve));
            assert!(said, "{place}: what prints this?");
        }
        blocks.push(Block { kind, text: text.join("\n") + "\n", place });
    }
    blocks
}

/// One page being run: its directory, its Postgres, its server, and what its commands exported.
struct Reader {
    postgres: connectors::postgres::throwaway::ThrowawayPostgres,
    directory: tempfile::TempDir,
    address: String,
    server: Option<(Child, mpsc::Receiver<String>)>,
}

impl Reader {
    fn new() -> Reader {
        let postgres = sql::postgres(&[]);
        let directory = tempfile::tempdir().unwrap();
        let programs = directory.path().join("bin");
        std::fs::create_dir_all(&programs).unwrap();
        std::fs::create_dir_all(directory.path().join("shop")).unwrap();
        symlink(env!("CARGO_BIN_EXE_tidemark"), programs.join("tidemark")).unwrap();
        symlink(postgres.program("psql"), programs.join("psql")).unwrap();
        // Free now; nobody else takes it in the moment until the server does.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        Reader { postgres, directory, address, server: None }
    }

    /// This text as bash of its own, in the directory and with the variables of those before it.
    fn bash(&self, text: &str) -> Command {
        let text = text.replace(ADDRESS, &self.address).replace(POSTGRES, &self.postgres.url());
        let state = self.directory.path().join("exported");
        let lines =
            format!("exec 2>&1\n[ -f '{0}' ] && . '{0}'\ntrap \"export -p > '{0}'\" EXIT\n{text}", state.display());
        let mut command = Command::new("bash");
        let path = std::env::var("PATH").unwrap_or_default();
        command.args(["-euo", "pipefail", "-c", &lines]).current_dir(self.directory.path().join("shop"));
        command.env("PATH", format!("{}:{path}", self.directory.path().join("bin").display()));
        command.env("TIDEMARK_LISTEN", &self.address).env("TIDEMARK_SERVER", format!("http://{}", self.address));
        command.env("CURL_HOME", self.directory.path());
        command.env("PGTZ", "UTC").env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// Runs a command to its end; whether it ended well, and what it printed.
    fn run(&self, command: &mut Command, place: &str) -> (bool, String) {
        let mut child = command.spawn().unwrap();
        let mut printed = child.stdout.take().unwrap();
        let (done, text) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = std::io::Read::read_to_end(&mut printed, &mut bytes);
            let _ = done.send(String::from_utf8_lossy(&bytes).into_owned());
        });
        let Ok(text) = text.recv_timeout(Duration::from_secs(60)) else {
            let _ = child.kill();
            panic!("{place}: does not end");
        };
        let text = text.replace(&self.address, ADDRESS).replace(&self.postgres.url(), POSTGRES);
        (child.wait().unwrap().success(), text)
    }

    /// From here on curl fails where the answer is a problem; one that asks to come again is asked again.
    fn refuse_problems(&self) {
        let settings = "fail-with-body\nsilent\nshow-error\nretry = 20\n";
        std::fs::write(self.directory.path().join(".curlrc"), settings).unwrap();
    }

    fn psql(&self, statements: &str, place: &str) -> (bool, String) {
        let mut command = self.bash("psql -X -v ON_ERROR_STOP=1 -d \"$SHOP\" -f statements.sql");
        let mut file = std::fs::File::create(self.directory.path().join("shop/statements.sql")).unwrap();
        file.write_all(statements.as_bytes()).unwrap();
        self.run(command.env("SHOP", self.postgres.url()), place)
    }

    /// Starts a server and waits until it answers everything.
    fn serve(&mut self, text: &str, place: &str) {
        self.stop(place);
        let mut child = self.bash(&format!("exec {}", text.trim_start())).spawn().unwrap();
        let (lines, log) = mpsc::channel();
        let printed = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || printed.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        self.server = Some((child, log));
        let deadline = Instant::now() + Duration::from_secs(60);
        let scheme = if text.contains("--tls-certificate") { "https" } else { "http" };
        let ready = format!("curl -q -skf {scheme}://{ADDRESS}/readyz");
        while !self.run(&mut self.bash(&ready), place).0 {
            let (child, log) = self.server.as_mut().unwrap();
            let ended = child.try_wait().unwrap().is_some();
            let said = || log.try_iter().collect::<Vec<_>>();
            assert!(!ended && Instant::now() < deadline, "{place}: does not serve: {:#?}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ctrl-C, where one runs.
    fn stop(&mut self, place: &str) {
        if let Some((mut child, log)) = self.server.take() {
            kill_process(Pid::from_child(&child), Signal::INT).unwrap();
            assert!(child.wait().unwrap().success(), "{place}: {:#?}", log.try_iter().collect::<Vec<_>>());
        }
    }

    fn follow(&mut self, blocks: &[Block]) {
        let mut printed = String::new();
        for Block { kind, text, place } in blocks {
            match kind {
                Kind::Shell | Kind::Fails | Kind::Stopped => {
                    if *kind == Kind::Stopped {
                        self.stop(place);
                    }
                    let (well, said) = self.run(&mut self.bash(text), place);
                    assert_eq!(well, *kind != Kind::Fails, "{place}: {text}{said}");
                    printed = said;
                }
                Kind::Sql => {
                    let (well, said) = self.psql(text, place);
                    assert!(well, "{place}: {text}{said}");
                    printed = said;
                }
                Kind::Serve => self.serve(text, place),
                Kind::Output { json } => {
                    if let Some(missing) = missing(&printed, text, *json) {
                        panic!("{place}: not printed: {missing}\nprinted was:\n{printed}");
                    }
                }
                Kind::Never => {}
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.server {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The first line that is not printed, or not after those before it. `...` stands for anything; in JSON the white space
/// between values is nobody's business, elsewhere what stands in one line has to be printed in one.
fn missing<'a>(printed: &str, expected: &'a str, json: bool) -> Option<&'a str> {
    let printed = if json { compact(printed) } else { printed.to_owned() };
    let mut rest = printed.as_str();
    expected.lines().find(|line| {
        let line = if json { compact(line) } else { line.trim().to_owned() };
        let parts: Vec<&str> = line.split("...").map(str::trim).filter(|part| !part.is_empty()).collect();
        loop {
            let Some(after) = after_all(rest, &parts, json) else {
                // Its first part may stand in an earlier line too.
                match (rest.split_once('\n'), json) {
                    (Some((_, below)), false) => rest = below,
                    _ => return true,
                }
                continue;
            };
            rest = after;
            return false;
        }
    })
}

/// What follows these parts, in this order.
fn after_all<'a>(text: &'a str, parts: &[&str], json: bool) -> Option<&'a str> {
    let line = if json { text } else { text.lines().next().unwrap_or_default() };
    let mut at = 0;
    for part in parts {
        at += line[at..].find(part)? + part.len();
    }
    Some(&text[at..])
}

/// JSON without the white space between its values.
fn compact(json: &str) -> String {
    let (mut quoted, mut escaped) = (false, false);
    let kept = json.chars().filter(|c| {
        let keep = quoted || !c.is_whitespace();
        match (*c, escaped) {
            ('"', false) => (quoted, escaped) = (!quoted, false),
            ('\\', false) if quoted => escaped = true,
            _ => escaped = false,
        }
        keep
    });
    kept.collect()
}

fn run_page(file: &str, goes_on: bool) {
    let page = read(file);
    let own = blocks(file, &page);
    if own.iter().all(|block| block.kind == Kind::Never) {
        return;
    }
    let mut reader = Reader::new();
    if file == README {
        let quickstart = blocks("quickstart.md", &read("quickstart.md"));
        let table = quickstart.into_iter().find(|block| block.kind == Kind::Sql);
        reader.follow(&[table.expect("the quickstart has lost its table")]);
        reader.refuse_problems();
    }
    if goes_on {
        let quickstart = read("quickstart.md");
        let (before, _) = quickstart.split_once(MARK).expect("the quickstart has lost its mark");
        reader.follow(&blocks("quickstart.md", before));
    }
    reader.follow(&own);
    reader.stop(file);
}

#[test]
fn every_page_is_run() {
    let mut pages = BTreeSet::new();
    for entry in std::fs::read_dir(guide()).unwrap().map(Result::unwrap) {
        pages.extend(entry.file_name().to_str().filter(|name| name.ends_with(".md")).map(str::to_owned));
    }
    let of_the_guide = || PAGES.iter().filter(|(file, _)| *file != README);
    assert_eq!(pages, of_the_guide().map(|(file, _)| (*file).to_owned()).collect());
    let index = read("README.md");
    for (file, goes_on) in of_the_guide() {
        assert!(*file == "README.md" || index.contains(&format!("]({file})")), "{file} is not in the index");
        assert_eq!(
            *goes_on,
            read(file).contains("It goes on from the [quickstart](quickstart.md)"),
            "{file} says otherwise"
        );
    }
}

#[test]
fn what_is_not_run_has_a_reason() {
    let mut reasons: Vec<(&str, &str)> = NOT_RUN.iter().map(|(file, line, _)| (*file, *line)).collect();
    for (file, _) in PAGES {
        for block in blocks(file, &read(file)).iter().filter(|block| block.kind == Kind::Never) {
            let first = block.text.lines().next().unwrap_or_default();
            let known = reasons.iter().position(|reason| *reason == (*file, first));
            reasons.remove(known.unwrap_or_else(|| panic!("{}: why is this not run?", block.place)));
        }
    }
    assert!(reasons.is_empty(), "reasons for nothing: {reasons:?}");
}

#[test]
fn links_lead_somewhere() {
    for (file, _) in PAGES {
        for link in read(file).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            if path.contains("://") {
                continue;
            }
            let page = guide().join(file);
            let target = if path.is_empty() { page } else { page.with_file_name(path) };
            assert!(target.exists(), "docs/{file}: {link} leads nowhere");
            if !anchor.is_empty() {
                assert!(anchors(&std::fs::read_to_string(&target).unwrap()).contains(anchor), "docs/{file}: {link}");
            }
        }
    }
}

/// The headings of a page as links name them, and the anchors that it sets itself.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter_map(|line| line.strip_prefix('#')).map(|heading| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    });
    let set = page.split("<a id=\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned);
    headings.chain(set).collect()
}

#[test]
fn what_is_missing_in_the_output_is_found() {
    let printed = "a 1\nb 2 of 3\nc\n";
    assert_eq!(missing(printed, "a 1\nb ... 3\n", false), None);
    assert_eq!(missing(printed, "c\na 1\n", false), Some("a 1"));
    assert_eq!(missing(printed, "a ... c\n", false), Some("a ... c"));
    let printed = r#"{"a":"x y","b":[1,2],"c":3}"#;
    assert_eq!(missing(printed, "{\"a\": \"x y\",\n  \"b\": [1, ...]\n", true), None);
    assert_eq!(missing(printed, r#""a": "xy""#, true), Some(r#""a": "xy""#));
}
