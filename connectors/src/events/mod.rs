//! Change events that are posted to us, as an existing Debezium writes them.
//!
//! A request is answered once all of it is on disk: in the [`journal`], from where the engine gets it. What was answered
//! survives a crash, what was not may be sent again: events that were seen before are skipped and counted. Requests are
//! taken one after another.
//!
//! Where an event shows that the log has another history than what was taken, the source ends, also for every later start: what
//! was taken and is there no more, nobody tells.
//!
//! The source is live once the initial snapshot is complete: with the row marked as the last, with the first event of the
//! log where no row of a snapshot came, or when a caller says so. Until then nothing is answered from it.

/// The body of a request -> its events.
mod body;
/// What was taken and is not yet durable in the engine.
mod journal;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use engine::change::{Lsn, TableId, TableSchema, Transaction};
use engine::source::{
    Check, CheckOutcome, ResumePoint, SourceContext, SourceError, SourceEvent, SourceIdentity, SourceState,
    SourceStatus,
};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

use self::body::Item;
use self::journal::{Entry, Journal, OpenError};
use crate::acknowledge::note_durable;
use crate::debezium::ledger::{DIVERGED, Kind, Ledger, READ_ANEW};
use crate::debezium::{Assembly, Decoder, Message, Refusal};
use crate::tables::{TableFile, are_described};

/// Requests that wait for their turn.
const REQUESTS: usize = 8;

/// Settings of the source.
#[derive(Clone, Debug)]
pub struct EventsConfig {
    /// The tables, and how their events are written.
    pub tables: TableFile,
    /// Where the journal is kept.
    pub directory: PathBuf,
    /// The source's end of the inlet.
    pub outlet: Outlet,
}

/// Makes an inlet, and the end of it that the source takes.
#[must_use]
pub fn inlet() -> (Inlet, Outlet) {
    let (requests, waiting) = mpsc::channel(REQUESTS);
    (Inlet { requests }, Outlet(Arc::new(Mutex::new(Some(waiting)))))
}

/// Where events are posted; cheap to clone.
#[derive(Clone, Debug)]
pub struct Inlet {
    requests: mpsc::Sender<Request>,
}

/// The source's end of an inlet; the first source that runs takes it.
#[derive(Clone, Debug)]
pub struct Outlet(Arc<Mutex<Option<mpsc::Receiver<Request>>>>);

#[derive(Debug)]
struct Request {
    body: Vec<u8>,
    snapshot_done: bool,
    reply: oneshot::Sender<Result<Receipt, PostError>>,
}

/// What became of the events of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// New ones.
    pub accepted: u64,
    /// Seen before, and skipped.
    pub duplicates: u64,
    /// Nothing that concerns rows of our tables.
    pub ignored: u64,
    /// Events, of earlier requests too, that are visible once their transaction's end comes.
    pub waiting: u64,
    /// Position of all that has ended.
    pub lsn: Lsn,
}

/// Why a request was not taken, or not all of it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PostError {
    /// Too many wait already.
    #[error("{REQUESTS} requests wait for their turn already")]
    Busy,
    /// The source has ended.
    #[error("the source takes no events any more")]
    Stopped,
    /// An event is refused. What came before it and was complete was taken.
    #[error("line {line}: {refusal}")]
    Refused {
        /// What was taken.
        receipt: Receipt,
        /// Line of the event, or its place in an array; from 1.
        line: usize,
        /// Why.
        refusal: Box<Refusal>,
    },
}

impl Inlet {
    /// Posts events; returns once those that were taken are on disk.
    pub async fn post(&self, body: Vec<u8>, snapshot_done: bool) -> Result<Receipt, PostError> {
        let (reply, answer) = oneshot::channel();
        self.requests.try_send(Request { body, snapshot_done, reply }).map_err(|error| match error {
            TrySendError::Full(_) => PostError::Busy,
            TrySendError::Closed(_) => PostError::Stopped,
        })?;
        answer.await.map_err(|_| PostError::Stopped)?
    }
}

/// Runs until the channel closes or the journal cannot be written.
pub async fn run(config: EventsConfig, context: SourceContext) {
    let SourceContext { resume, events, mut durable, status, commands } = context;
    // Nobody can be asked for a table's rows: whoever asks is told at once.
    drop(commands);
    let durable_now = durable.clone();
    let taken = config.outlet.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    let watched = events.clone();
    let serving = async {
        let Some(requests) = taken else { return Some(()) };
        let halted = match serve(config, resume, &events, &durable_now, &status, requests).await {
            Ok(()) => return Some(()),
            Err(error) => error,
        };
        status.send_modify(|status| {
            status.state =
                SourceState::Halted { code: halted.code.to_owned(), message: halted.message, remedy: halted.remedy };
        });
        None
    };
    tokio::select! {
        () = watched.closed() => {}
        _ = serving => {}
        () = note_durable(&mut durable, &status) => {}
    }
}

/// Takes requests until a channel closes.
async fn serve(
    config: EventsConfig,
    resume: ResumePoint,
    events: &mpsc::Sender<SourceEvent>,
    durable: &watch::Receiver<Lsn>,
    status: &watch::Sender<SourceStatus>,
    mut requests: mpsc::Receiver<Request>,
) -> Result<(), SourceError> {
    let tables = config.tables.tables.clone();
    let identity =
        SourceIdentity { connector: "events".to_owned(), system: "debezium".to_owned(), ..SourceIdentity::default() };
    let resumed = check_resume(&resume, &identity, &tables)?;
    let opened = blocking(move || Intake::open(&config, resumed)).await??;
    let mut intake = opened;
    if events.send(SourceEvent::Tables { identity, tables }).await.is_err() {
        return Ok(());
    }
    if resumed.is_none() && events.send(SourceEvent::SnapshotDone { lsn: Lsn::ZERO, time_us: 0 }).await.is_err() {
        return Ok(());
    }
    loop {
        for transaction in intake.assembly.take_ended() {
            if events.send(event_of(transaction)).await.is_err() {
                return Ok(());
            }
        }
        show(&intake.assembly, intake.refused.as_ref(), status);
        // Only now, so that a caller who is faster than the engine waits for it.
        if let Some((reply, answer)) = intake.answer.take() {
            let _ = reply.send(answer);
        }
        if let Some(why) = intake.diverged.take() {
            return Err(diverged(why));
        }
        let Some(request) = requests.recv().await else { return Ok(()) };
        let durable = *durable.borrow();
        intake = blocking(move || {
            let mut intake = intake;
            intake.take(request, durable).map(|()| intake)
        })
        .await??;
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, SourceError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| SourceError {
        code: "stopping",
        message: format!("the work was not done: {error}"),
        remedy: "restart tidemark".to_owned(),
    })
}

fn event_of(transaction: Transaction) -> SourceEvent {
    if transaction.changes.is_empty() {
        SourceEvent::Progress { lsn: transaction.end_lsn, time_us: transaction.commit_time_us }
    } else {
        SourceEvent::Transaction(transaction)
    }
}

/// The stored position; `None` where nothing is stored.
fn check_resume(
    resume: &ResumePoint,
    identity: &SourceIdentity,
    described: &[TableSchema],
) -> Result<Option<Lsn>, SourceError> {
    let ResumePoint::Resume { lsn, identity: stored, tables, .. } = resume else { return Ok(None) };
    if stored == identity && are_described(tables, described) {
        return Ok(Some(*lsn));
    }
    Err(SourceError {
        code: "source_changed",
        message: format!(
            "the data directory belongs to the {} source {}, with other tables than those described now",
            stored.connector, stored.system
        ),
        remedy: "restore the description, or start over with an empty data directory: tidemark serve --data NEWDIR"
            .to_owned(),
    })
}

/// Where it stands. Nothing is answered before the initial snapshot is complete, and after a restart not before what was
/// taken is applied again.
fn show(assembly: &Assembly, refused: Option<&Check>, status: &watch::Sender<SourceStatus>) {
    let position = assembly.ledger().position();
    let streaming = assembly.ledger().is_streaming();
    let state = if streaming {
        SourceState::Live
    } else {
        SourceState::Snapshotting { rows_done: assembly.rows_read(), rows_estimated: 0 }
    };
    status.send_if_modified(|status| {
        let checks = refused.cloned().into_iter().collect();
        let changed = status.state != state || status.checks != checks;
        status.state = state;
        status.checks = checks;
        (status.received_lsn, status.upstream_lsn) = (position, position);
        if streaming {
            status.upstream_lsn_at_start.get_or_insert(position);
        }
        changed
    });
}

type Answer = (oneshot::Sender<Result<Receipt, PostError>>, Result<Receipt, PostError>);

/// Decoder, assembly and journal, handed to a thread that may block for each request.
struct Intake {
    decoder: Decoder,
    assembly: Assembly,
    journal: Journal,
    answer: Option<Answer>,
    /// Another history was posted: why that is known.
    diverged: Option<String>,
    /// The last request was refused, and nothing that lies behind it is known: what an operator has to see.
    refused: Option<Check>,
}

impl Intake {
    /// Reads the journal and takes everything in it again; the engine skips what it has.
    fn open(config: &EventsConfig, resumed: Option<Lsn>) -> Result<Intake, SourceError> {
        let encoding = config.tables.debezium.clone().unwrap_or_default();
        let taken = Decoder::new(config.tables.tables.clone(), encoding.clone().as_they_were_taken());
        let decoder = Decoder::new(config.tables.tables.clone(), encoding);
        let ids: Vec<_> = config.tables.tables.iter().map(|table| table.id).collect();
        let mut replay = Replay::new(&taken, ids);
        let opened = Journal::open(&config.directory, |entry| replay.take(entry));
        let stored = resumed.unwrap_or_default();
        let mut journal = opened.map_err(|error| match error {
            OpenError::Io(error) => failed(&error),
            OpenError::Damaged { .. } => damaged(&error, &replay, stored),
        })?;
        if let Some(why) = replay.diverged {
            return Err(diverged(why));
        }
        let wrong = replay.check(stored);
        let mut assembly = replay.assembly;
        assembly.goes_on();
        journal.read_up_to(assembly.ledger().position());
        if let Some(what) = wrong {
            return Err(SourceError {
                code: "journal_damaged",
                message: format!("the journal in {} does not belong to the data: {what}", config.directory.display()),
                remedy:
                    "restore the whole data directory, or start over with an empty one: tidemark serve --data NEWDIR"
                        .to_owned(),
            });
        }
        Ok(Intake { decoder, assembly, journal, answer: None, diverged: None, refused: None })
    }

    /// Takes one request; the answer is left in `answer`. An error ends the source.
    fn take(&mut self, request: Request, durable: Lsn) -> Result<(), SourceError> {
        let Request { body, snapshot_done, reply } = request;
        let (items, malformed) = body::items(&body);
        drop(body);
        let mut refused = malformed.map(|malformed| {
            let remedy = "send one JSON object per line, or one array of them";
            let refusal = Refusal {
                code: "malformed_json",
                pointer: String::new(),
                reason: malformed.reason,
                remedy: remedy.to_owned(),
            };
            (malformed.line, refusal)
        });
        let mut messages = Vec::with_capacity(items.len());
        for item in &items {
            match self.decoder.decode(&item.json) {
                Ok(message) => messages.push(message),
                Err(refusal) => {
                    refused = Some((item.line, at(item, refusal)));
                    break;
                }
            }
        }
        let mut plan = self.assembly.plan(&messages, refused.is_some());
        if let Some((index, refusal)) = plan.refused {
            if refusal.code == DIVERGED {
                // Nobody knows where the other history began, so nothing more is taken.
                plan.length = 0;
                self.diverged = Some(refusal.reason.clone());
            }
            refused = items.get(index).map(|item| (item.line, at(item, refusal)));
        }
        messages.truncate(plan.length);
        let receipt =
            self.accept(&items, messages, snapshot_done && refused.is_none()).map_err(|error| failed(&error))?;
        let written = match &self.diverged {
            Some(why) => self.journal.append(&[Entry::Diverged(why.clone().into_bytes())]),
            None => self
                .journal
                .turn(self.assembly.ledger().position(), || checkpoint(&self.assembly))
                .and_then(|()| self.journal.forget(durable)),
        };
        written.map_err(|error| failed(&error))?;
        self.note_refusal(refused.as_ref(), receipt);
        let answer = match refused {
            Some((line, refusal)) => Err(PostError::Refused { receipt, line, refusal: Box::new(refusal) }),
            None => Ok(receipt),
        };
        self.answer = Some((reply, answer));
        Ok(())
    }

    /// A sender that tries again and again is written down once, and one that sends nothing has repaired nothing.
    fn note_refusal(&mut self, refused: Option<&(usize, Refusal)>, receipt: Receipt) {
        let Some((line, refusal)) = refused else {
            self.refused.take_if(|_| receipt.accepted > 0);
            return;
        };
        let check = refused_check(*line, refusal, receipt.lsn);
        if self.refused.as_ref() != Some(&check) {
            tracing::warn!(code = refusal.code, "{}", check.message);
        }
        self.refused = Some(check);
    }

    /// Writes down what is taken, then takes it.
    fn accept(&mut self, items: &[Item], messages: Vec<Message>, snapshot_done: bool) -> io::Result<Receipt> {
        let mut entries: Vec<Entry> = Vec::with_capacity(messages.len() + 2);
        let (mut taken, mut receipt) = (Vec::with_capacity(messages.len()), Receipt::default());
        let mut trial = self.assembly.ledger().clone();
        for (item, message) in items.iter().zip(messages) {
            let kind = trial.admit(&message).map(|verdict| verdict.kind).unwrap_or_default();
            match kind {
                Kind::New => receipt.accepted += 1,
                Kind::Duplicate => receipt.duplicates += 1,
                Kind::Nothing => receipt.ignored += 1,
            }
            // Nothing that a restart has to know.
            if matches!(message, Message::Nothing) || kind == Kind::Duplicate {
                continue;
            }
            let line = serde_json::to_vec(&item.json)?;
            entries.push(Entry::Line(line.clone()));
            taken.push((message, line));
        }
        if !entries.is_empty() {
            entries.push(Entry::EndOfRequest);
        }
        if snapshot_done {
            entries.push(Entry::EndOfSnapshot);
        }
        if !entries.is_empty() {
            self.journal.append(&entries)?;
        }
        for (message, line) in taken {
            // Planned, so not refused.
            let _ = self.assembly.push(message, &line);
        }
        self.assembly.end_of_request();
        if snapshot_done {
            self.assembly.end_snapshot();
        }
        receipt.waiting = self.assembly.waiting() as u64;
        receipt.lsn = self.assembly.ledger().position();
        Ok(receipt)
    }
}

/// What is said of a refused event to others than its sender: where it was and why, and never a value of it.
fn refused_check(line: usize, refusal: &Refusal, position: Lsn) -> Check {
    let Refusal { code, pointer, remedy, .. } = refusal;
    Check {
        name: "posted_events",
        outcome: CheckOutcome::Failed,
        message: format!(
            "the event in line {line} of the last request was refused at {pointer:?} ({code}); {position} is the last position that was taken"
        ),
        remedy: remedy.clone(),
    }
}

/// Points into the body instead of into the event.
fn at(item: &Item, refusal: Refusal) -> Refusal {
    Refusal { pointer: format!("{}{}", item.pointer, refusal.pointer), ..refusal }
}

fn checkpoint(assembly: &Assembly) -> io::Result<Vec<Entry>> {
    let ledger = Entry::Checkpoint(serde_json::to_vec(assembly.ledger())?);
    let waiting = assembly.waiting_lines().iter().map(|line| Entry::Waiting(line.to_vec()));
    Ok(std::iter::once(ledger).chain(waiting).collect())
}

fn failed(error: &io::Error) -> SourceError {
    SourceError {
        code: "journal_failed",
        message: format!("the journal of posted events cannot be read or written: {error}"),
        remedy:
            "see that the disk has space and works, then restart tidemark; send again what was not answered with 200"
                .to_owned(),
    }
}

/// Something that was answered cannot be read any more. What came before it can be gone on from, unless more is stored.
fn damaged(error: &OpenError, replay: &Replay<'_>, stored: Lsn) -> SourceError {
    let reached = replay.assembly.ledger().position();
    let start_over = "start over with an empty data directory and a new snapshot: tidemark serve --data NEWDIR";
    let remedy = match error {
        OpenError::Damaged { file, at, others_follow, in_checkpoint: false }
            if replay.check(stored).is_none() && replay.assembly.ledger().is_streaming() =>
        {
            let others = if *others_follow { ", remove the journal files after it" } else { "" };
            format!(
                "stop tidemark and the sender; truncate -s {at} {}{others}; start tidemark; and have everything sent \
                 again from before source.lsn {} ({reached}) on, in order and before anything newer. What is not sent \
                 again is missing for good; where that cannot be, {start_over}",
                file.display(),
                reached.0,
            )
        }
        _ => start_over.to_owned(),
    };
    SourceError {
        code: "journal_damaged",
        message: format!("{error}: events after {reached} that were answered with 200 are lost"),
        remedy,
    }
}

fn diverged(why: String) -> SourceError {
    SourceError { code: DIVERGED, message: why, remedy: READ_ANEW.to_owned() }
}

/// Takes the journal's entries as they were taken before.
struct Replay<'a> {
    decoder: &'a Decoder,
    assembly: Assembly,
    tables: Vec<TableId>,
    entries: u64,
    /// Where the first checkpoint is, if the journal begins with one.
    from: Lsn,
    /// Lines of a later checkpoint, which were read already, are passed over.
    passing: bool,
    diverged: Option<String>,
    wrong: Option<String>,
}

impl<'a> Replay<'a> {
    fn new(decoder: &'a Decoder, tables: Vec<TableId>) -> Self {
        let assembly = Assembly::again(tables.clone(), Ledger::default());
        Replay { decoder, assembly, tables, entries: 0, from: Lsn::ZERO, passing: false, diverged: None, wrong: None }
    }

    fn take(&mut self, entry: Entry) {
        let first = self.entries == 0;
        self.entries += 1;
        let taken = match entry {
            Entry::Checkpoint(text) if first => serde_json::from_slice::<Ledger>(&text)
                .map(|ledger| {
                    self.from = ledger.position();
                    self.assembly = Assembly::again(self.tables.clone(), ledger);
                })
                .map_err(|error| error.to_string()),
            Entry::Checkpoint(text) => {
                self.passing = true;
                self.check_reached(&text)
            }
            Entry::Waiting(_) if self.passing => Ok(()),
            Entry::Waiting(line) => self.decode(&line).map(|message| {
                if let Message::Event(event) = message {
                    self.assembly.hold(event, &line);
                }
            }),
            Entry::Line(line) => self.decode(&line).and_then(|message| {
                self.assembly.push(message, &line).map(drop).map_err(|refusal| {
                    // An earlier version may have taken what shows it.
                    if refusal.code == DIVERGED {
                        self.diverged.get_or_insert(refusal.reason.clone());
                    }
                    refusal.to_string()
                })
            }),
            Entry::EndOfRequest => {
                self.assembly.end_of_request();
                Ok(())
            }
            Entry::EndOfSnapshot => {
                self.assembly.end_snapshot();
                Ok(())
            }
            Entry::Diverged(why) => {
                self.diverged = Some(String::from_utf8_lossy(&why).into_owned());
                Ok(())
            }
        };
        if let Err(what) = taken {
            self.wrong.get_or_insert_with(|| format!("entry {}: {what}", self.entries));
        }
    }

    /// A later checkpoint is where the files before it lead to, or they are not what they were.
    fn check_reached(&self, checkpoint: &[u8]) -> Result<(), String> {
        let ledger = serde_json::from_slice::<Ledger>(checkpoint).map_err(|error| error.to_string())?;
        let (reached, was) = (self.assembly.ledger().position(), ledger.position());
        if reached == was { Ok(()) } else { Err(format!("the files before go to {reached}, and went to {was}")) }
    }

    fn decode(&self, line: &[u8]) -> Result<Message, String> {
        let json = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        self.decoder.decode(&json).map_err(|refusal| refusal.to_string())
    }

    /// What keeps the journal from going on at the stored position.
    fn check(&self, stored: Lsn) -> Option<String> {
        let reached = self.assembly.ledger().position();
        let gap = || format!("it goes from {} to {reached}, and {stored} is stored", self.from);
        self.wrong.clone().or_else(|| (stored < self.from || stored > reached).then(gap))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use engine::change::{Column, ColumnType};
    use serde_json::json;

    use super::*;

    fn config(directory: PathBuf) -> EventsConfig {
        let column = |name: &str, column_type| Column { name: name.to_owned(), column_type };
        let table = TableSchema {
            id: TableId(1),
            namespace: "public".to_owned(),
            name: "payments".to_owned(),
            columns: vec![column("id", ColumnType::Int8), column("note", ColumnType::Text)],
            primary_key: vec![0],
            keeps_row_image: true,
        };
        EventsConfig { tables: TableFile { tables: vec![table], debezium: None }, directory, outlet: inlet().1 }
    }

    /// Log positions begin after those of the snapshot.
    const LOG: u64 = 0x200_0000;

    fn event(id: u64, note: &str) -> String {
        let lsn = LOG + id;
        let source = json!({
            "connector": "postgresql", "schema": "public", "table": "payments", "txId": 5, "lsn": lsn,
            "sequence": json!([null, lsn.to_string()]).to_string(), "snapshot": "false", "ts_ms": 946_684_800_000i64,
        });
        format!("{}\n", json!({"op": "c", "before": null, "after": {"id": id, "note": note}, "source": source}))
    }

    fn marker(status: &str, events: u64) -> String {
        let counts = json!([{"data_collection": "public.payments", "event_count": events}]);
        format!("{}\n", json!({"status": status, "id": format!("5:{}", LOG + 900_000), "data_collections": counts}))
    }

    fn take(intake: &mut Intake, body: &str, durable: Lsn) -> Result<Receipt, PostError> {
        let (reply, _answer) = oneshot::channel();
        intake.take(Request { body: body.as_bytes().to_vec(), snapshot_done: false, reply }, durable).unwrap();
        intake.answer.take().unwrap().1
    }

    #[test]
    fn a_transaction_that_has_not_ended_survives_with_its_checkpoint() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path().join("events"));
        let mut intake = Intake::open(&config, None).unwrap();
        let long = "x".repeat(9_000);
        assert_eq!(take(&mut intake, &marker("BEGIN", 0), Lsn::ZERO).unwrap().ignored, 1);
        for at in 0..60 {
            let body: String = (at * 10..at * 10 + 10).map(|id| event(id, &long)).collect();
            assert_eq!(take(&mut intake, &body, Lsn::ZERO).unwrap().accepted, 10);
        }
        assert_eq!(intake.assembly.waiting(), 600);
        // The stream has begun and nothing of it has ended; that is durable, and the first file goes.
        let position = intake.assembly.ledger().position();
        take(&mut intake, "", position).unwrap();
        let files: Vec<_> =
            std::fs::read_dir(&config.directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(files, ["journal-00000002"], "what waits is not written again for every request");
        let ledger = intake.assembly.ledger().clone();
        drop(intake);

        // Another store than that of the journal.
        assert_eq!(Intake::open(&config, None).err().unwrap().code, "journal_damaged");
        assert_eq!(Intake::open(&config, Some(Lsn(LOG + 1))).err().unwrap().code, "journal_damaged");

        let mut intake = Intake::open(&config, Some(position)).unwrap();
        assert_eq!(intake.assembly.ledger(), &ledger);
        assert_eq!(take(&mut intake, &event(599, &long), position).unwrap().duplicates, 1);
        take(&mut intake, &marker("END", 600), position).unwrap();
        let ended = intake.assembly.take_ended();
        assert_eq!(ended.last().map(|ended| (ended.end_lsn, ended.changes.len())), Some((Lsn(LOG + 900_000), 600)));
        assert_eq!(intake.assembly.waiting(), 0);
    }

    #[test]
    fn damage_of_what_was_answered_says_from_where_to_send_again() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path().join("events"));
        let mut intake = Intake::open(&config, None).unwrap();
        let first = take(&mut intake, &event(1, "a"), Lsn::ZERO).unwrap().lsn;
        let file = config.directory.join("journal-00000001");
        let length = std::fs::metadata(&file).unwrap().len();
        let third = [event(2, "b"), event(3, "c")].map(|body| take(&mut intake, &body, Lsn::ZERO).unwrap().lsn)[1];
        drop(intake);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[usize::try_from(length).unwrap() + 40] ^= 1;
        std::fs::write(&file, &bytes).unwrap();

        let error = Intake::open(&config, Some(first)).err().unwrap();
        assert_eq!(error.code, "journal_damaged");
        assert!(error.message.contains(&format!("at byte {length}")), "{}", error.message);
        assert!(error.remedy.contains(&format!("truncate -s {length}")), "{}", error.remedy);
        assert!(error.remedy.contains(&format!("source.lsn {} ({first})", first.0)), "{}", error.remedy);
        // Where more is stored than can be read, nothing can go on.
        let error = Intake::open(&config, Some(third)).err().unwrap();
        assert!(error.remedy.starts_with("start over"), "{}", error.remedy);
        assert_eq!(std::fs::read(&file).unwrap(), bytes);

        // The remedy.
        std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(length).unwrap();
        let mut intake = Intake::open(&config, Some(first)).unwrap();
        let again = take(&mut intake, &[event(1, "a"), event(2, "b"), event(3, "c")].concat(), first).unwrap();
        assert_eq!((again.duplicates, again.accepted), (1, 2));
    }

    #[test]
    fn a_file_that_lacks_its_end_does_not_lead_to_the_checkpoint_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path().join("events"));
        let mut intake = Intake::open(&config, None).unwrap();
        let mut lengths = Vec::new();
        for id in 0..6 {
            take(&mut intake, &event(id, &"x".repeat(1_000_000)), Lsn::ZERO).unwrap();
            lengths.push(std::fs::metadata(config.directory.join("journal-00000001")).unwrap().len());
        }
        assert!(config.directory.join("journal-00000002").exists());
        drop(intake);
        drop(Intake::open(&config, Some(Lsn::ZERO)).unwrap());
        // Cut where a request and its note end.
        let first = config.directory.join("journal-00000001");
        let whole = std::fs::read(&first).unwrap();
        std::fs::write(&first, &whole[..usize::try_from(lengths[2]).unwrap()]).unwrap();
        assert_eq!(Intake::open(&config, Some(Lsn::ZERO)).err().unwrap().code, "journal_damaged");
        // The checkpoint itself cannot be done without.
        std::fs::write(&first, whole).unwrap();
        let second = config.directory.join("journal-00000002");
        let mut bytes = std::fs::read(&second).unwrap();
        bytes[60] ^= 1;
        std::fs::write(&second, bytes).unwrap();
        let error = Intake::open(&config, Some(Lsn::ZERO)).err().unwrap();
        assert!(error.code == "journal_damaged" && error.remedy.starts_with("start over"), "{}", error.remedy);
    }

    #[test]
    fn another_history_ends_the_source_for_good() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path().join("events"));
        let mut intake = Intake::open(&config, None).unwrap();
        let at = |body: String, ms: i64| body.replace("946684800000", &ms.to_string());
        let position = take(&mut intake, &at(event(1, "a"), 1_000), Lsn::ZERO).unwrap().lsn;
        let body = at(event(2, "b"), 1_000) + &at(event(1, "c"), 1_001);
        let Err(PostError::Refused { receipt, line: 2, refusal }) = take(&mut intake, &body, Lsn::ZERO) else {
            panic!()
        };
        assert_eq!((receipt.accepted, receipt.lsn, refusal.code), (0, position, "events_diverged"));
        assert_eq!(intake.diverged.as_ref(), Some(&refusal.reason));
        drop(intake);
        for _ in 0..2 {
            let error = Intake::open(&config, Some(position)).err().unwrap();
            assert_eq!((error.code, &error.message), ("events_diverged", &refusal.reason));
        }
    }

    #[test]
    fn what_is_refused_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path().join("events"));
        let mut intake = Intake::open(&config, None).unwrap();
        let cut = format!("{}{}{}", event(1, "a"), event(2, "b"), "{\"op\":");
        let Err(PostError::Refused { receipt, line: 3, refusal }) = take(&mut intake, &cut, Lsn::ZERO) else {
            panic!()
        };
        assert_eq!((receipt, refusal.code), (Receipt::default(), "malformed_json"));
        assert_eq!(intake.assembly.ledger(), &Ledger::default());
        assert_eq!(std::fs::metadata(config.directory.join("journal-00000001")).unwrap().len(), 0);
        assert_eq!(take(&mut intake, &event(1, "a"), Lsn::ZERO).unwrap().accepted, 1);
    }

    #[test]
    fn a_refusal_is_seen_by_others_than_its_sender_without_the_value() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path().join("events"));
        let mut intake = Intake::open(&config, None).unwrap();
        let wrong = event(2, "b").replace("\"id\":2", "\"id\":\"secret\"");
        take(&mut intake, &format!("{}{wrong}", event(1, "a")), Lsn::ZERO).unwrap_err();
        let check = intake.refused.take().unwrap();
        assert_eq!((check.name, check.outcome), ("posted_events", CheckOutcome::Failed));
        assert!(check.message.contains("line 2") && check.message.contains("value_mismatch"), "{}", check.message);
        assert!(!check.message.contains("secret") && !check.remedy.contains("secret"), "{check:?}");
        intake.refused = Some(check.clone());
        take(&mut intake, "", Lsn::ZERO).unwrap();
        assert_eq!(intake.refused, Some(check), "nothing was repaired");
        take(&mut intake, &event(2, "b"), Lsn::ZERO).unwrap();
        assert_eq!(intake.refused, None);
    }

    #[tokio::test]
    async fn no_more_requests_wait_than_there_is_room_for() {
        let (inlet, outlet) = inlet();
        let mut posts: Vec<_> = (0..REQUESTS).map(|_| Box::pin(inlet.post(Vec::new(), false))).collect();
        for post in &mut posts {
            assert!(futures::poll!(post).is_pending());
        }
        assert!(matches!(inlet.post(Vec::new(), false).await, Err(PostError::Busy)));
        drop((outlet, posts));
        assert!(matches!(inlet.post(Vec::new(), false).await, Err(PostError::Stopped)));
    }
}
