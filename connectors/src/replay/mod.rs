//! Recorded change events from a file of JSON lines, for demonstrations, for tests and for reproducing a report.
//!
//! The first line describes the tables; every other line is one transaction:
//!
//! ```json
//! {"tables":[{"id":1,"namespace":"public","name":"payments","primary_key":[0],"columns":[{"name":"id","type":"int8"},{"name":"amount","type":{"numeric":{"scale":2}}},{"name":"paid_at","type":"timestamp_tz"}]}]}
//! {"lsn":"0/10","time":"2026-01-01T00:00:00Z","changes":[{"op":"insert","table":"public.payments","new":{"id":1,"amount":"12.50","paid_at":"2026-01-01T00:00:00Z"}}]}
//! {"lsn":"0/20","time":"2026-01-01T00:00:01Z","changes":[{"op":"update","table":"public.payments","new":{"id":1,"amount":"13.00"}}]}
//! {"lsn":"0/30","time":"2026-01-01T00:00:02Z","changes":[{"op":"update","table":"public.payments","key":{"id":1},"new":{"id":2}},{"op":"delete","table":"public.payments","key":{"id":2}},{"op":"truncate","table":"public.payments"}]}
//! ```
//!
//! - `lsn` is the end of the commit and must rise from line to line.
//! - `op` is `insert` (`new`), `update` (`new`, and `key` where the key changed, or `old` with the whole row before),
//!   `delete` (`key` or `old`), `truncate`.
//! - A column left out of `new` is NULL in an insert and unchanged in an update. Every other row names the columns it
//!   needs: `key` the primary key, `old` all columns.
//! - Values follow the column's type: integers and floats as numbers, booleans as booleans, everything else as strings,
//!   in particular `numeric`, because a JSON number may lose cents. `infinity`, `-infinity` and `NaN` as Postgres
//!   spells them. Types that cannot be used keep the bytes of their string.
//!
//! Where the first line also has `"debezium":{}`, every other line is an envelope as Debezium writes it (see
//! [`crate::debezium`]), with or without its schema block, or a pair of key and value:
//!
//! ```json
//! {"tables":[...],"debezium":{"decimals":"string"}}
//! {"before":null,"after":{"id":1,"amount":"12.50"},"source":{"connector":"postgresql","snapshot":"false","sequence":"[\"24023119\",\"24023128\"]","schema":"public","table":"payments","txId":555,"lsn":24023128,"ts_ms":1559033904863},"op":"c"}
//! ```
//!
//! Events that follow each other with the same `source.txId` are one transaction, and so is what stands between BEGIN and
//! END markers where the file has them. A transaction that a BEGIN marker announced and whose END the file lacks is left
//! out. Events that stand in the file twice count once; events that are not in the log's order are refused.
//!
//! The whole file is read once before anything starts, so a mistake in its last line is found first.

mod line;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use engine::change::{Lsn, TableSchema, Transaction};
use engine::source::{ResumePoint, SourceContext, SourceError, SourceEvent, SourceIdentity, SourceState, SourceStatus};
use tokio::sync::{mpsc, watch};

use crate::acknowledge::note_durable;
use crate::debezium::ledger::{Ledger, SNAPSHOT_COMPLETE};
use crate::debezium::{Assembly, Decoder, Refusal};
use crate::tables::{TableFile, are_described};

/// Settings of the replay source.
#[derive(Clone, Debug)]
pub struct ReplayConfig {
    /// The file of JSON lines.
    pub file: PathBuf,
}

/// Reads the whole file and reports the first line that is wrong.
pub fn preflight(config: &ReplayConfig) -> Result<(), SourceError> {
    let mut recording = Recording::open(&config.file)?;
    while recording.next()?.is_some() {}
    Ok(())
}

/// Sends what the file holds after the resume point, then stays silent until the channel closes.
pub async fn run(config: ReplayConfig, context: SourceContext) {
    let SourceContext { resume, events, mut durable, status, commands } = context;
    // Nothing listens: who asks is told so at once.
    drop(commands);
    let watched = events.clone();
    let reading = async {
        let sending = events.clone();
        let progress = status.clone();
        let outcome = tokio::task::spawn_blocking(move || replay(&config, resume, &sending, &progress)).await;
        match outcome {
            Ok(Err(error)) => status.send_modify(|status| {
                status.state =
                    SourceState::Halted { code: error.code.to_owned(), message: error.message, remedy: error.remedy };
            }),
            // Done, or the runtime is shutting down: in both cases the end comes with the channel's.
            Ok(Ok(())) | Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = watched.closed() => {}
        () = reading => {}
        () = note_durable(&mut durable, &status) => {}
    }
}

/// On a thread of its own, because it reads a file and waits for the channel. A closed channel is no error.
fn replay(
    config: &ReplayConfig,
    resume: ResumePoint,
    events: &mpsc::Sender<SourceEvent>,
    status: &watch::Sender<SourceStatus>,
) -> Result<(), SourceError> {
    let mut recording = Recording::open(&config.file)?;
    let identity = SourceIdentity {
        connector: "replay".to_owned(),
        system: config.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        ..SourceIdentity::default()
    };
    let resume_at = match resume {
        ResumePoint::Fresh => None,
        ResumePoint::Resume { lsn, identity: stored, tables, .. } => {
            if stored != identity || !are_described(&tables, &recording.tables) {
                return Err(SourceError {
                    code: "source_changed",
                    message: format!(
                        "the data directory belongs to the {} source {}, not to this version of {}",
                        stored.connector,
                        stored.system,
                        config.file.display()
                    ),
                    remedy:
                        "restore the file, or start over with an empty data directory: tidemark serve --data NEWDIR"
                            .to_owned(),
                });
            }
            Some(lsn)
        }
    };
    let tables = recording.tables.clone();
    let mut ahead = recording.next()?;
    let send = |event| events.blocking_send(event).is_ok();
    if !send(SourceEvent::Tables { identity, tables }) {
        return Ok(());
    }
    if resume_at.is_none() {
        let time_us = ahead.as_ref().map_or(0, |transaction| transaction.commit_time_us);
        if !send(SourceEvent::SnapshotDone { lsn: Lsn::ZERO, time_us }) {
            return Ok(());
        }
    }
    let resume_at = resume_at.unwrap_or(Lsn::ZERO);
    // Nothing is answered from half of a recorded snapshot.
    let start = if recording.envelopes.is_some() { resume_at.max(SNAPSHOT_COMPLETE) } else { resume_at };
    status.send_modify(|status| {
        status.state = SourceState::Live;
        status.upstream_lsn_at_start = Some(start);
    });
    while let Some(transaction) = ahead {
        ahead = recording.next()?;
        let end_lsn = transaction.end_lsn;
        if end_lsn <= resume_at {
            continue;
        }
        let event = if transaction.changes.is_empty() {
            SourceEvent::Progress { lsn: end_lsn, time_us: transaction.commit_time_us }
        } else {
            SourceEvent::Transaction(transaction)
        };
        if !send(event) {
            return Ok(());
        }
        status.send_if_modified(|status| {
            status.received_lsn = end_lsn;
            status.upstream_lsn = end_lsn;
            false
        });
    }
    Ok(())
}

/// The open file, one transaction at a time.
struct Recording {
    path: PathBuf,
    lines: BufReader<File>,
    number: u64,
    text: String,
    tables: Vec<TableSchema>,
    last: Lsn,
    envelopes: Option<Envelopes>,
}

/// The lines are Debezium's.
struct Envelopes {
    decoder: Decoder,
    assembly: Assembly,
    ended: VecDeque<Transaction>,
}

impl Recording {
    fn open(path: &Path) -> Result<Recording, SourceError> {
        let file = File::open(path).map_err(|error| SourceError {
            code: "replay_file_unreadable",
            message: format!("cannot read {}: {error}", path.display()),
            remedy: "name a file of recorded events that this user may read".to_owned(),
        })?;
        let mut recording = Recording {
            path: path.to_owned(),
            lines: BufReader::new(file),
            number: 0,
            text: String::new(),
            tables: Vec::new(),
            last: Lsn::ZERO,
            envelopes: None,
        };
        let described = match recording.read_line()? {
            true => TableFile::parse(&recording.text),
            false => Err("the file is empty; its first line describes the tables".to_owned()),
        };
        let TableFile { tables, debezium } = described.map_err(|what| recording.wrong(&what))?;
        recording.envelopes = debezium.map(|encoding| Envelopes {
            decoder: Decoder::new(tables.clone(), encoding),
            assembly: Assembly::new(tables.iter().map(|table| table.id).collect(), Ledger::default()),
            ended: VecDeque::new(),
        });
        recording.tables = tables;
        Ok(recording)
    }

    fn next(&mut self) -> Result<Option<Transaction>, SourceError> {
        let Some(mut envelopes) = self.envelopes.take() else { return self.next_line() };
        let next = loop {
            if let Some(transaction) = envelopes.ended.pop_front() {
                break Some(transaction);
            }
            if self.read_line()? {
                let refused = |refusal: Refusal| self.wrong(&format!("{refusal} ({})", refusal.remedy));
                let json = serde_json::from_str(&self.text).map_err(|error| self.wrong(&error.to_string()))?;
                let message = envelopes.decoder.decode(&json).map_err(refused)?;
                envelopes.assembly.push(message, &[]).map_err(refused)?;
            } else {
                envelopes.assembly.end_of_request();
                envelopes.assembly.end_snapshot();
                if envelopes.assembly.ledger().is_open() {
                    let events = envelopes.assembly.waiting();
                    tracing::warn!(events, "the file ends inside a transaction, which is left out");
                }
            }
            envelopes.ended.extend(envelopes.assembly.take_ended());
            if self.text.is_empty() && envelopes.ended.is_empty() {
                break None;
            }
        };
        self.envelopes = Some(envelopes);
        Ok(next)
    }

    fn next_line(&mut self) -> Result<Option<Transaction>, SourceError> {
        if !self.read_line()? {
            return Ok(None);
        }
        let transaction = line::transaction(&self.text, &self.tables).map_err(|what| self.wrong(&what))?;
        if transaction.end_lsn <= self.last {
            return Err(self.wrong(&format!("lsn {} does not lie after {}", transaction.end_lsn, self.last)));
        }
        self.last = transaction.end_lsn;
        Ok(Some(transaction))
    }

    /// The next line that is not blank; false at the end of the file.
    fn read_line(&mut self) -> Result<bool, SourceError> {
        loop {
            self.text.clear();
            self.number += 1;
            let read = self.lines.read_line(&mut self.text).map_err(|error| self.wrong(&error.to_string()))?;
            if read == 0 || !self.text.trim().is_empty() {
                return Ok(read > 0);
            }
        }
    }

    fn wrong(&self, what: &str) -> SourceError {
        SourceError {
            code: "bad_replay_file",
            message: format!("{} line {}: {what}", self.path.display(), self.number),
            remedy: "correct the line; connectors/src/replay/mod.rs describes the format".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    const GOOD: &str = r#"{"tables":[{"id":1,"namespace":"public","name":"payments","primary_key":[0],"columns":[{"name":"id","type":"int8"},{"name":"amount","type":{"numeric":{"scale":2}}}]}]}
{"lsn":"0/10","time":"2026-01-01T00:00:00Z","changes":[{"op":"insert","table":"public.payments","new":{"id":1,"amount":"12.50"}}]}

{"lsn":"0/20","time":"2026-01-01T00:00:01Z","changes":[]}
{"lsn":"0/30","time":"2026-01-01T00:00:02Z","changes":[{"op":"truncate","table":"public.payments"}]}
"#;

    struct Temporary(PathBuf);

    impl Temporary {
        fn new(name: &str, text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tidemark-replay-{}-{name}.ndjson", std::process::id()));
            std::fs::write(&path, text).unwrap();
            Temporary(path)
        }

        fn config(&self) -> ReplayConfig {
            ReplayConfig { file: self.0.clone() }
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    async fn collect(config: ReplayConfig, resume: ResumePoint, count: usize) -> Vec<SourceEvent> {
        let (events, mut received) = mpsc::channel(1);
        let (_durable, durable) = watch::channel(Lsn::ZERO);
        let (status, _shown) = watch::channel(SourceStatus::default());
        let task = tokio::spawn(run(config, SourceContext::new(resume, events, durable, status).0));
        let mut all = Vec::new();
        while all.len() < count {
            all.push(received.recv().await.unwrap());
        }
        drop(received);
        task.await.unwrap();
        all
    }

    #[tokio::test]
    async fn replays_in_order_and_resumes_by_position() {
        let file = Temporary::new("good", GOOD);
        preflight(&file.config()).unwrap();
        let all = collect(file.config(), ResumePoint::Fresh, 5).await;
        let SourceEvent::Tables { identity, tables } = &all[0] else { panic!() };
        assert!(matches!(all[1], SourceEvent::SnapshotDone { lsn: Lsn::ZERO, .. }));
        assert!(matches!(&all[2], SourceEvent::Transaction(t) if t.end_lsn == Lsn(0x10) && t.changes.len() == 1));
        assert!(matches!(all[3], SourceEvent::Progress { lsn: Lsn(0x20), .. }));
        let resume = ResumePoint::live(Lsn(0x20), identity.clone(), tables.clone());
        let rest = collect(file.config(), resume, 2).await;
        assert!(matches!(&rest[1], SourceEvent::Transaction(t) if t.end_lsn == Lsn(0x30)));
    }

    #[tokio::test]
    async fn a_wrong_line_is_named() {
        let file = Temporary::new("bad", &GOOD.replace("\"0/30\"", "\"0/20\""));
        let error = preflight(&file.config()).unwrap_err();
        assert_eq!(error.code, "bad_replay_file");
        assert!(error.message.contains("line 5: lsn 0/20 does not lie after 0/20"), "{error}");
        let (events, mut received) = mpsc::channel(8);
        let (_durable, durable) = watch::channel(Lsn::ZERO);
        let (status, shown) = watch::channel(SourceStatus::default());
        run(file.config(), SourceContext::new(ResumePoint::Fresh, events, durable, status).0).await;
        while received.recv().await.is_some() {}
        assert!(matches!(&shown.borrow().state, SourceState::Halted { code, .. } if code == "bad_replay_file"));
        assert_eq!(
            preflight(&ReplayConfig { file: "/nonexistent".into() }).unwrap_err().code,
            "replay_file_unreadable"
        );
        let empty = Temporary::new("empty", "");
        assert_eq!(preflight(&empty.config()).unwrap_err().code, "bad_replay_file");
    }
}
