//! The commands that read a running server: tables for people, JSON and CSV for programs, a picture that moves on a terminal
//! and lines elsewhere; where a setting comes from; what is made from the command line itself.

use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::{Server, tidemark};

/// One dimension's value would move the cursor, another would run in a spreadsheet.
const TABLES: &str = "
    CREATE TABLE payments (id bigint PRIMARY KEY, payer text, amount numeric(14,2), created_at timestamptz);
    INSERT INTO payments SELECT i, CASE i % 3 WHEN 0 THEN E'\\x1b[2Jx' WHEN 1 THEN '=1+1' ELSE 'ES1' END, i * 0.25,
      '2024-01-01Z'::timestamptz + i * interval '1 day' FROM generate_series(1, 900) AS i;
";

fn serving(database: &Database, data: &std::path::Path) -> Server {
    let server = Server::start(data, &database.url(), &["public.payments"], &[]);
    server.register(
        "monthly",
        &json!({"table": "public.payments", "dimensions": ["payer"], "rollups": ["year"],
                "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
                "time": {"column": "created_at", "granularity": "month"}}),
    );
    server
}

fn asking(server: &Server, arguments: &[&str]) -> Command {
    let mut command = tidemark();
    command.args(arguments).env("TIDEMARK_SERVER", format!("http://{}", server.address()));
    command
}

/// Exit code, standard output, standard error.
fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn what_is_read_is_printed_for_people_and_for_programs() {
    let database = Database::start(&[], TABLES);
    let data = tempfile::tempdir().unwrap();
    let server = serving(&database, data.path());
    let asked = |arguments: &[&str]| run(&mut asking(&server, arguments));
    let yearly = ["query", "monthly", "granularity=year", "from=2024", "to=2025"];

    let (code, table, _) = asked(&yearly);
    assert_eq!(code, 0);
    let head = table.lines().next().unwrap();
    assert!(head.starts_with("TIME") && head.contains("AMOUNT") && head.ends_with("COMPLETE"), "{table}");
    assert!(table.contains("3 rows at 0/") && !table.contains('\u{1b}'), "a value moves the cursor: {table:?}");
    // Digits stand below each other.
    let at = head.find("AMOUNT").unwrap() + "AMOUNT".len();
    for line in table.lines().skip(1).take(3) {
        let cells: Vec<char> = line.chars().collect();
        assert!(cells[at - 1].is_ascii_digit() && cells[at] == ' ', "{table}");
    }
    let (_, csv, _) = asked(&[&yearly[..], &["--output", "csv"]].concat());
    assert_eq!(csv.lines().next(), Some("time,payer,amount,n,complete"));
    assert!(csv.contains(",'=1+1,") && csv.lines().count() == 4, "{csv}");
    let (_, answer, _) = asked(&[&yearly[..], &["--output", "json"]].concat());
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["data"].as_array().unwrap().len(), 3);
    let by_environment = run(asking(&server, &yearly).env("TIDEMARK_OUTPUT", "json")).1;
    assert!(serde_json::from_str::<Value>(&by_environment).is_ok(), "{by_environment}");

    for command in [&["list"][..], &["describe", "monthly"], &["explain", "monthly", "granularity=year"]] {
        let (code, table, said) = asked(command);
        assert_eq!((code, said.as_str()), (0, ""), "{command:?}");
        assert!(table.contains("monthly"), "{command:?}: {table}");
        let (_, json, _) = asked(&[command, &["--output", "json"]].concat());
        assert!(serde_json::from_str::<Value>(&json).is_ok_and(|document| document.is_object()), "{command:?}: {json}");
        let (_, csv, _) = asked(&[command, &["--output", "csv"]].concat());
        let columns = csv.lines().next().unwrap().matches(',').count();
        assert!(csv.lines().count() >= 2 && columns >= 4, "{command:?}: {csv}");
    }
    let (_, explained, _) = asked(&["explain", "monthly", "granularity=year", "--analyze"]);
    assert!(explained.contains("9 cells read") && explained.contains("month  "), "{explained}");

    // Another exit code for what the server refuses than for a server that is not there.
    let (code, _, said) = asked(&["explain", "absent"]);
    assert!(code == 2 && said.contains("unknown_aggregate"), "{code} {said}");
    let (code, _, said) = run(tidemark().args(["explain", "monthly", "--server", "http://127.0.0.1:1"]));
    assert!(code == 1 && said.contains("does not answer"), "{code} {said}");

    // A registration that is waited for; progress is for terminals.
    let file = data.path().join("by_payer.json");
    std::fs::write(
        &file,
        r#"{"table":"public.payments","dimensions":["payer"],"measures":[{"name":"n","count":"*"}]}"#,
    )
    .unwrap();
    let (code, registered, said) = asked(&["register", file.to_str().unwrap(), "--wait"]);
    assert_eq!((code, said.as_str()), (0, ""));
    assert!(registered.contains("\"state\": \"live\""), "as it was before it was waited for: {registered}");
    assert_eq!(server.get("/v1/aggregates/by_payer/data").0, 200, "it was not waited for");
    // Advice for a request is no advice for a command.
    std::fs::write(&file, r#"{"table":"public.payments","measures":[{"name":"n","count":"*"}]}"#).unwrap();
    let (code, _, said) = asked(&["register", file.to_str().unwrap()]);
    assert!(code == 2 && said.contains("definition_differs") && said.contains("tidemark drop by_payer"), "{said}");

    let (code, _, said) = asked(&["verify", "monthly", "--from", "2026", "--to", "2025"]);
    assert!(code == 2 && said.contains("empty_range"), "{said}");
    let (code, compared, _) = asked(&["verify", "monthly", "--from", "1990", "--to", "1991"]);
    assert!(code == 0 && compared.contains("nothing was compared"), "{compared}");
    let (code, differing, said) = asked(&["verify", "--output", "csv"]);
    assert_eq!((code, differing.trim(), said.as_str()), (0, "aggregate,granularity,time,key,stored,expected", ""));
}

/// The lines of a command that goes on.
struct Following {
    child: std::process::Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Following {
    fn start(command: &mut Command) -> Following {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Following { child, lines }
    }

    /// Reads on until a line holds all of these.
    fn until(&self, words: &[&str]) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| panic!("no line with {words:?}"));
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_live_answer_moves_and_survives_a_restart() {
    let database = Database::start(&[], TABLES);
    let data = tempfile::tempdir().unwrap();
    let server = serving(&database, data.path());
    let question = ["live", "monthly", "granularity=year", "group_by=", "measures=n,amount"];
    let lines = Following::start(&mut asking(&server, &question));
    let csv = Following::start(asking(&server, &question).args(["--output", "csv"]));
    let json = Following::start(asking(&server, &question).args(["--output", "json"]));
    // A terminal, as far as the command can see. When that goes a hangup ends it, but not where hangups are ignored.
    let exec = format!("exec setpriv --pdeathsig KILL {}", env!("CARGO_BIN_EXE_tidemark"));
    let picture = format!("stty cols 60 rows 12; {exec} {}", question.join(" "));
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &picture, "/dev/null"]).stdin(Stdio::null());
    terminal.env("TIDEMARK_SERVER", format!("http://{}", server.address()));
    let terminal = Following::start(&mut terminal);

    lines.until(&["snapshot", "time=2024-01-01T00:00:00Z", "n=365"]);
    assert_eq!(csv.until(&["event"]), "event,lsn,time,n,amount,complete");
    csv.until(&["snapshot,0/", ",2024-01-01T00:00:00Z,365,"]);
    json.until(&["\"event\":\"snapshot\""]);
    terminal.until(&["monthly: n"]);
    terminal.until(&["2024-01-01T00:00:00Z 365", "█"]);
    terminal.until(&["Ctrl-C ends"]);

    // Where nothing changes there is no line to be refused, and it ends all the same.
    let mut unread = asking(&server, &question).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(unread.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("snapshot"), "{first}");
    assert_eq!(end_of(&mut unread), Some(0));

    database.sql("INSERT INTO payments VALUES (10000, 'ES1', 5, '2024-06-01Z')");
    lines.until(&["upsert", "time=2024-01-01T00:00:00Z", "n=366"]);
    csv.until(&["upsert,0/", ",366,"]);
    json.until(&["\"event\":\"change\"", "366"]);
    let drawn = terminal.until(&["2024-01-01T00:00:00Z 366 *"]);
    assert!(drawn.chars().filter(|c| !c.is_control()).count() <= 60, "{drawn}");
    database.sql("DELETE FROM payments WHERE created_at >= '2026-01-01Z'");
    lines.until(&["delete", "time=2026-01-01T00:00:00Z"]);

    // The server goes and comes back at the same address, with what happened meanwhile.
    let address = server.address().to_owned();
    assert!(server.terminate().success());
    database.sql("INSERT INTO payments VALUES (10001, 'ES1', 5, '2024-06-01Z')");
    let mut command = tidemark();
    command.args(["serve", "--table", "public.payments", "--listen", &address, "--data"]).arg(data.path());
    let mut again = command.env("TIDEMARK_POSTGRES", database.url()).stderr(Stdio::null()).spawn().unwrap();
    lines.until(&["n=367"]);
    let _ = again.kill();
    let _ = again.wait();
}

/// What adds up the rows of a file would not notice that there are more.
#[test]
fn csv_is_all_rows_or_says_that_there_are_more() {
    const ROWS: u64 = 12_000;
    const BEYOND_DOUBLES: u64 = 1 << 53;
    let database = Database::start(
        &[],
        &format!(
            "CREATE TABLE payments (id bigint PRIMARY KEY, account bigint, amount numeric(12,2));
             INSERT INTO payments SELECT i, {BEYOND_DOUBLES} + i, 1 FROM generate_series(1, {ROWS}) i;"
        ),
    );
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["public.payments"], &[]);
    server.register(
        "by_account",
        &json!({"table": "payments", "measures": [{"name": "n", "count": "*"}], "dimensions": ["account"]}),
    );
    let csv = |more: &[&str]| {
        let question = [&["query", "by_account", "--output", "csv"], more].concat();
        let said = asking(&server, &question).output().unwrap();
        assert!(said.status.success(), "{said:?}");
        let [out, remarks] = [said.stdout, said.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (out.lines().map(str::to_owned).collect::<Vec<_>>(), remarks)
    };
    let (lines, remarks) = csv(&[]);
    let accounts = (1..=ROWS).map(|i| format!("{},1", BEYOND_DOUBLES + i));
    assert!(std::iter::once("account,n".to_owned()).chain(accounts).eq(lines), "other rows");
    assert_eq!(remarks, "");
    let (lines, remarks) = csv(&["limit=5"]);
    assert!(lines.len() == 6 && remarks.contains("there are more: cursor="), "{remarks}");
    // Nor would a page that reads numbers as doubles tell these from one another.
    let first = server.get_ok("/v1/aggregates/by_account/data?limit=1");
    assert_eq!(first["data"][0]["account"], json!((BEYOND_DOUBLES + 1).to_string()));
}

/// The exit code of a command that nobody reads any more.
fn end_of(child: &mut std::process::Child) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        assert!(Instant::now() < deadline, "it goes on for nobody");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A reader that has gone ends it; otherwise every `| head` would leave a process.
#[test]
fn nobody_follows_for_nobody() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start_source(data.path(), &["--generator", "1"]);
    server.register(
        "daily",
        &json!({"table": "public.payments", "measures": [{"name": "n", "count": "*"}],
                "time": {"column": "created_at", "granularity": "day"}}),
    );
    let mut child = asking(&server, &["live", "daily", "throttle=20ms"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut first).unwrap();
    assert!(first.contains("snapshot"), "{first}");
    drop(out);
    assert_eq!(end_of(&mut child), Some(0));
    for (arguments, words) in [
        (&["live", "daily", "--measure", "amount"][..], "no measure"),
        (&["live", "daily", "others=true"], "not_live"),
        (&["live", "absent"], "unknown_aggregate"),
    ] {
        let (code, _, said) = run(&mut asking(&server, arguments));
        assert!(code == 2 && said.contains(words), "{arguments:?}: {code} {said}");
    }
}

#[test]
fn settings_say_where_they_come_from_and_hide_passwords() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidemark.toml");
    std::fs::write(
        &file,
        "postgres = 'postgres://tide:file-canary@db.example.com/shop'\ntables = ['public.payments', 'public.orders']\nmemory = '1GiB'\nlog = 'json'\n",
    )
    .unwrap();
    // Where others may read it, serve says more.
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let show = |more: &[&str], variables: &[(&str, &str)]| {
        let mut command = tidemark();
        command.args(["config", "show", "--origin", "--config"]).arg(&file).args(more);
        run(command.envs(variables.iter().copied()))
    };
    let (code, shown, said) = show(&["--memory", "2GiB", "--output", "json"], &[("TIDEMARK_LISTEN", "127.0.0.1:9")]);
    assert_eq!((code, said.as_str()), (0, ""));
    let settings: Vec<Value> = serde_json::from_str(&shown).unwrap();
    let file = file.to_str().unwrap();
    for (setting, value, origin, from) in [
        ("memory", "2GiB", "flag", "--memory"),
        ("listen", "127.0.0.1:9", "environment", "TIDEMARK_LISTEN"),
        ("tables", "public.payments,public.orders", "file", file),
        ("postgres", "postgres://tide@db.example.com:5432/shop", "file", file),
        ("log", "json", "file", file),
        ("max_row", "256MiB", "default", ""),
    ] {
        let expected = json!({"setting": setting, "value": value, "origin": origin, "from": from});
        assert!(settings.contains(&expected), "{expected} is not in {shown}");
    }
    // Every flag of serve is a setting that is shown.
    let (_, help, _) = run(tidemark().args(["serve", "--help"]));
    assert_eq!(help.matches("[env: TIDEMARK_").count(), settings.len(), "{shown}");

    // A source that is stated replaces the file's, and its password is hidden as well, also where the URL cannot be read.
    let (code, shown, _) = show(&["--generator", "1"], &[]);
    assert!(code == 0 && shown.contains("replaced") && !shown.contains("canary"), "{shown}");
    // So does a flag the one of the environment, which is there for other commands.
    let (code, shown, said) = show(&["--generator", "1"], &[("TIDEMARK_POSTGRES", "postgres://u:env-canary@h/db")]);
    let line = shown.lines().find(|line| line.starts_with("postgres ")).unwrap();
    assert!(code == 0 && line.contains("replaced") && line.contains("TIDEMARK_POSTGRES"), "{line}: {said}");
    let (code, _, said) = show(&[], &[("TIDEMARK_POSTGRES", "postgres://u@h/db"), ("TIDEMARK_GENERATOR", "1")]);
    assert!(code == 2 && said.contains("one of the variables"), "{said}");
    for url in
        ["postgres://u:env-canary@h/db", "nonsense:env-canary", "postgres://u:env-canary@[::1/db?sslmode=env-canary"]
    {
        let (_, shown, said) = show(&[], &[("TIDEMARK_POSTGRES", url)]);
        assert!(shown.contains("TIDEMARK_POSTGRES") && !shown.contains("canary"), "{shown}");
        assert!(!said.contains("canary"), "{said}");
    }
    // What serve would refuse is said.
    let (code, shown, said) = show(&["--generator", "1", "--replay", "x"], &[]);
    assert!(code == 2 && shown.contains("--replay") && said.contains("more than one source"), "{said}");
    // Also what it would find out once it makes of them what it runs with.
    let absent = directory.path().join("absent.json");
    for (variable, value, words) in [
        ("TIDEMARK_POSTGRES", "gopher", "postgres://"),
        ("TIDEMARK_SNAPSHOT_READERS", "17", "16"),
        ("TIDEMARK_SNAPSHOT_READERS", "0", "16"),
        ("TIDEMARK_TABLE", "a.b.c.d", "a.b.c.d"),
        ("TIDEMARK_NO_ROW_IMAGE", "public.unlisted", "public.unlisted"),
        ("TIDEMARK_TOKENS", absent.to_str().unwrap(), "tidemark token create --tokens"),
    ] {
        let (code, shown, said) = show(&[], &[(variable, value)]);
        assert!(code == 2 && shown.contains(variable) && said.contains(words), "{variable}={value}: {code} {said}");
        let mut serving = tidemark();
        serving
            .args(["serve", "--config", file, "--listen", "127.0.0.1:0", "--data"])
            .arg(directory.path().join("data"))
            .env(variable, value);
        assert_eq!(run(&mut serving), (2, String::new(), said), "{variable}={value}: serve says otherwise");
    }
    assert!(!directory.path().join("data").exists());
    // As people write yes.
    let (code, shown, _) = show(&["--listen", "0.0.0.0:9"], &[("TIDEMARK_INSECURE_LISTEN", "1")]);
    assert_eq!(code, 0, "{shown}");
}

#[test]
fn documents_are_made_from_the_command_line_itself() {
    let commands = ["serve", "explain", "live", "query", "config", "completions", "openapi", "man", "verify"];
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = run(tidemark().args(["completions", shell]));
        assert_eq!(code, 0);
        for word in commands.iter().chain(&["output", "granularity=year"][..1]) {
            assert!(script.contains(word), "{shell}: nothing of {word}");
        }
    }
    let (_, bash, _) = run(tidemark().args(["completions", "bash"]));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("completions");
    std::fs::write(&file, bash).unwrap();
    let completed = format!(
        "source {}; COMP_WORDS=(tidemark exp); COMP_CWORD=1; _tidemark tidemark exp tidemark; echo ${{COMPREPLY[*]}}",
        file.display()
    );
    assert_eq!(run(Command::new("bash").args(["-c", &completed])).1.trim(), "explain");

    let (code, page, _) = run(tidemark().args(["man", "token", "create"]));
    assert!(code == 0 && page.contains("tidemark\\-token\\-create") && page.contains("\\-\\-pin"), "{page}");
    assert_eq!(run(tidemark().args(["man", "absent"])).0, 2);
    let pages = directory.path().join("man");
    assert_eq!(run(tidemark().args(["man", "--directory"]).arg(&pages)).0, 0);
    for command in commands {
        let page = std::fs::read_to_string(pages.join(format!("tidemark-{command}.1"))).unwrap();
        // Each says how it ends, or has nothing to fail at but its usage.
        assert!(page.contains("Exit codes") || ["completions", "man"].contains(&command), "{command}");
    }

    let (_, contract, _) = run(tidemark().arg("openapi"));
    let approved = include_str!("../queries/openapi.json");
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(parse(&contract), parse(approved));
}
