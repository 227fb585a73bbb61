//! `tidemark live NAME`: an answer and its changes, drawn on a terminal and written as lines elsewhere.
//!
//! The surprise: a connection that is dead may look as one that is quiet. The server says something at least every 15 seconds,
//! so silence is an end, and the position of the last event is where it goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, IsTerminal, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::chart::{Bar, Size, draw, room};
use crate::cli::{LiveArguments, OutputFormat};
use crate::client::{Client, Lines, problem_text};
use crate::document::{field, list, plain};
use crate::failure::Failure;
use crate::output::{nobody_reads, remark, still_read};
use crate::table::{csv_line, harmless};

/// Three times the server's own pause.
const SILENCE: Duration = Duration::from_secs(45);
/// How often it is looked whether anybody reads, while there is nothing to show.
const LOOK: Duration = Duration::from_secs(1);
/// Pause before a connection is made again.
const RECONNECT: Duration = Duration::from_secs(1);
/// Events that wait to be shown.
const WAITING: usize = 64;

/// Follows until nobody reads any more.
pub fn run(arguments: &LiveArguments) -> Result<(), Failure> {
    let client = Client::new(&arguments.server)?;
    let mut lines = client.live(&arguments.question, None)?;
    let mut view = View::of(arguments);
    loop {
        if !follow(lines, &mut view)? {
            return Ok(());
        }
        remark("the connection was lost; trying again");
        lines = loop {
            std::thread::sleep(RECONNECT);
            if nobody_reads() {
                return Ok(());
            }
            match client.live(&arguments.question, view.last_id.as_deref()) {
                Ok(lines) => break lines,
                Err(Failure::Failed(_)) => {}
                Err(other) => return Err(other),
            }
        };
    }
}

/// Shows the events of one connection. Whether anybody reads on.
fn follow(lines: Lines, view: &mut View<'_>) -> Result<bool, Failure> {
    let events = read(lines);
    let mut heard = Instant::now();
    loop {
        match events.recv_timeout(LOOK) {
            Ok(line) if !view.show(&line)? => return Ok(false),
            Ok(_) => heard = Instant::now(),
            Err(RecvTimeoutError::Timeout) if nobody_reads() => return Ok(false),
            Err(RecvTimeoutError::Timeout) if heard.elapsed() < SILENCE => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(true),
        }
    }
}

/// Reads by a thread of its own: nothing else can give up a read that nothing comes of.
fn read(mut lines: Lines) -> Receiver<String> {
    let (sender, receiver) = sync_channel(WAITING);
    std::thread::spawn(move || {
        let mut line = String::new();
        while lines.read_line(&mut line).is_ok_and(|bytes| bytes > 0) && sender.send(std::mem::take(&mut line)).is_ok()
        {
        }
    });
    receiver
}

/// How events are shown.
enum Form {
    /// As they come.
    Json,
    /// A row of the answer each; the head is written.
    Csv,
    /// A line for each row that changed.
    Lines,
    /// A picture that is drawn again, so many lines high at the moment.
    Chart { height: usize },
}

/// What was sent so far, as far as it has to be known.
struct View<'a> {
    arguments: &'a LiveArguments,
    form: Form,
    /// Id of the last event, by which a connection goes on.
    last_id: Option<String>,
    /// Position that the rows are of.
    lsn: String,
    /// An answer has begun before.
    begun: bool,
    /// Names of what tells one row from another.
    keys: Vec<String>,
    /// Names of all columns.
    columns: Vec<String>,
    measure: String,
    /// Rows by what tells them apart, for the picture; in the order in which times are written.
    rows: BTreeMap<Vec<String>, Value>,
    changed: BTreeSet<Vec<String>>,
}

impl View<'_> {
    fn of(arguments: &LiveArguments) -> View<'_> {
        let form = match arguments.printing.output {
            OutputFormat::Json => Form::Json,
            OutputFormat::Csv => Form::Csv,
            OutputFormat::Table if std::io::stdout().is_terminal() => Form::Chart { height: 0 },
            OutputFormat::Table => Form::Lines,
        };
        View {
            arguments,
            form,
            last_id: None,
            lsn: String::new(),
            begun: false,
            keys: Vec::new(),
            columns: Vec::new(),
            measure: String::new(),
            rows: BTreeMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Shows an event. Whether anybody reads on.
    fn show(&mut self, line: &str) -> Result<bool, Failure> {
        let line = line.trim_end();
        // The last one of a connection may be cut off.
        let Ok(event) = serde_json::from_str::<Value>(line) else { return Ok(true) };
        let data = event.get("data").unwrap_or(&Value::Null);
        let name = field(&event, "event");
        if let Some(id) = event.get("id").and_then(Value::as_str) {
            self.last_id = Some(id.to_owned());
        }
        if let Some(lsn) = data.pointer("/as_of/lsn").and_then(Value::as_str) {
            lsn.clone_into(&mut self.lsn);
        }
        if name == "error" {
            let status = data.get("status").and_then(Value::as_u64).and_then(|status| u16::try_from(status).ok());
            let problem = problem_text(status.unwrap_or_default(), &data.to_string());
            // A server that stops comes back, or refuses the next connection.
            return match status {
                Some(400..=499) => Err(Failure::Usage(problem)),
                _ => Err(Failure::Failed(problem)),
            };
        }
        if name == "snapshot" {
            self.begin(data)?;
            let begins_anew = std::mem::replace(&mut self.begun, true);
            if begins_anew && !self.anew("the answer begins anew")? {
                return Ok(false);
            }
        }
        match self.form {
            Form::Json => still_read(line),
            Form::Csv | Form::Lines => self.lines(&name, data),
            Form::Chart { .. } => {
                self.apply(&name, data);
                self.picture(data)
            }
        }
    }

    fn begin(&mut self, data: &Value) -> Result<(), Failure> {
        let with_role = |roles: &[&str]| {
            let columns = list(data, "columns").filter(|column| roles.contains(&field(column, "role").as_str()));
            columns.map(|column| field(column, "name")).collect::<Vec<_>>()
        };
        let measures = with_role(&["measure"]);
        self.measure = match &self.arguments.measure {
            None => measures.first().cloned().unwrap_or_default(),
            Some(measure) if measures.contains(measure) => measure.clone(),
            Some(measure) => {
                let there = measures.join(", ");
                return Err(Failure::Usage(format!("the answer has no measure {measure:?}; it has {there}")));
            }
        };
        let columns = with_role(&["time", "dimension", "measure", "flag"]);
        if matches!(self.form, Form::Csv) && columns != self.columns {
            let head = ["event", "lsn"].into_iter().chain(columns.iter().map(String::as_str));
            still_read(&csv_line(head.map(Some)))?;
        }
        self.keys = with_role(&["time", "dimension"]);
        self.columns = columns;
        Ok(())
    }

    /// A line that says: what was written so far is not the answer any more. Whether anybody reads on.
    fn anew(&self, reason: &str) -> Result<bool, Failure> {
        match self.form {
            Form::Lines => still_read(&format!("{} resync: {}", self.lsn, harmless(reason))),
            Form::Csv => {
                let nothing = self.columns.iter().map(|_| None);
                still_read(&csv_line([Some("resync"), Some(&*self.lsn)].into_iter().chain(nothing)))
            }
            Form::Json | Form::Chart { .. } => Ok(true),
        }
    }

    fn lines(&self, name: &str, data: &Value) -> Result<bool, Failure> {
        let at = self.lsn.as_str();
        let rows = match name {
            "snapshot" => list(data, "data").map(|row| ("snapshot", row)).collect::<Vec<_>>(),
            "change" => {
                let upserts = list(data, "upsert").map(|row| ("upsert", row));
                upserts.chain(list(data, "delete").map(|row| ("delete", row))).collect()
            }
            "resync" => return self.anew(&field(data, "reason")),
            _ => Vec::new(),
        };
        for (what, row) in rows {
            let cells = self.columns.iter().map(|column| Some((column, row.get(column)?)));
            let line = match self.form {
                Form::Csv => {
                    let written = |(_, cell): (_, &Value)| (!cell.is_null()).then(|| plain(cell));
                    let cells: Vec<Option<String>> = cells.map(|cell| cell.and_then(written)).collect();
                    csv_line([Some(what), Some(at)].into_iter().chain(cells.iter().map(Option::as_deref)))
                }
                _ => {
                    let pairs = cells.flatten().map(|(column, cell)| format!("{column}={}", harmless(&plain(cell))));
                    format!("{at} {what:<8} {}", pairs.collect::<Vec<_>>().join(" "))
                }
            };
            if !still_read(&line)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn apply(&mut self, name: &str, data: &Value) {
        // NULL is not an empty text.
        let key = |row: &Value| -> Vec<String> {
            self.keys.iter().map(|key| row.get(key).map_or_else(String::new, Value::to_string)).collect()
        };
        self.changed.clear();
        match name {
            "snapshot" => self.rows = list(data, "data").map(|row| (key(row), row.clone())).collect(),
            "change" => {
                for row in list(data, "upsert") {
                    self.changed.insert(key(row));
                    self.rows.insert(key(row), row.clone());
                }
                list(data, "delete").for_each(|row| drop(self.rows.remove(&key(row))));
            }
            _ => {}
        }
    }

    /// Whether the largest come first, where the question orders by what is drawn.
    fn ranked(&self) -> Option<bool> {
        let (_, order) = self.arguments.question.parameters.iter().find(|(key, _)| key == "order")?;
        let first = order.split(',').next().unwrap_or_default();
        let (descending, column) = first.strip_prefix('-').map_or((false, first), |column| (true, column));
        (column == self.measure).then_some(descending)
    }

    /// Draws over the picture before.
    fn picture(&mut self, data: &Value) -> Result<bool, Failure> {
        let (size, ranked) = (terminal_size(), self.ranked());
        let Form::Chart { height } = &mut self.form else { return Ok(true) };
        let of = |(key, row)| Bar::of(row, &self.keys, &self.measure, self.changed.contains(key));
        let mut bars: Vec<Bar> = self.rows.iter().map(of).collect();
        if let Some(descending) = ranked {
            bars.sort_by(|a, b| {
                if descending { b.number().total_cmp(&a.number()) } else { a.number().total_cmp(&b.number()) }
            });
            // The first ones are those that were asked for.
            bars.truncate(room(size));
        }
        let lag = data.get("lag_ms").or_else(|| data.pointer("/as_of/lag_ms")).map(plain);
        let lag = lag.map(|lag| format!(", {lag} ms behind")).unwrap_or_default();
        let below = format!("at {}{lag}; Ctrl-C ends", self.lsn);
        let title = format!("{}: {}", harmless(&self.arguments.question.name), harmless(&self.measure));
        let lines = draw(&title, &bars, &below, size);
        // Up to where the last one began, and away with it.
        let up = if *height > 0 { format!("\u{1b}[{height}A") } else { String::new() };
        *height = lines.len();
        let text = lines.iter().fold(format!("{up}\u{1b}[J"), |text, line| text + line + "\n");
        let mut out = std::io::stdout();
        Ok(out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok())
    }
}

/// What is drawn on; where nobody knows, what terminals used to be.
fn terminal_size() -> Size {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
    let size = size.filter(|size| size.ws_col > 0 && size.ws_row > 0);
    size.map_or(Size { columns: 80, lines: 24 }, |size| Size {
        columns: usize::from(size.ws_col),
        lines: usize::from(size.ws_row),
    })
}
