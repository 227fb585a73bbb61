//! A replication slot and a connector that reads it, over the naive model: what is not acknowledged comes again, what is
//! acknowledged never does. Every event is one step, and none is forced on an engine that takes no more.

use std::collections::{BTreeMap, VecDeque};

use engine::change::{Changes, Lsn, TableSchema};
use engine::source::{ResumePoint, SourceCommand, SourceContext, SourceEvent, SourceIdentity, SourceState, TableState};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc::error::TrySendError;

use crate::support::model::{Row, TABLE, schema};
use crate::support::upstream::Upstream;

/// Transactions that may come once more after a reconnect.
const AGAIN: usize = 3;

/// Upstream: the table at every position, the log, and what was acknowledged of it.
pub struct Slot {
    pub upstream: Upstream,
    /// The rows at the end of each transaction.
    states: BTreeMap<u64, BTreeMap<i64, Row>>,
    pub confirmed: Lsn,
    /// An initial snapshot became durable once, so that no later one is called for.
    pub streamed: bool,
}

impl Slot {
    pub fn new(upstream: Upstream) -> Slot {
        let states = [(upstream.lsn, upstream.table.rows.clone())].into();
        Slot { upstream, states, confirmed: Lsn::ZERO, streamed: false }
    }

    /// Somebody commits.
    pub fn commit(&mut self, rng: &mut ChaCha8Rng) {
        self.upstream.transaction(rng);
        self.states.insert(self.upstream.lsn, self.upstream.table.rows.clone());
    }

    /// Where whole old rows come, no row images are kept.
    fn schema(&self) -> TableSchema {
        TableSchema { keeps_row_image: !self.upstream.table.full_identity, ..schema(TABLE, "payments") }
    }

    /// The rows at a position.
    pub fn rows_at(&self, lsn: Lsn) -> &BTreeMap<i64, Row> {
        self.states.range(..=lsn.0).next_back().map(|(_, rows)| rows).expect("nothing is before the first snapshot")
    }

    fn acknowledge(&mut self, durable: Lsn) {
        self.confirmed = self.confirmed.max(durable);
        self.streamed |= durable > Lsn::ZERO;
    }
}

/// What the connector does next.
enum Stage {
    /// Rows of the snapshot, then its end.
    Snapshot,
    /// The stream.
    Stream,
    /// The table is read anew; what happens meanwhile comes with its rows.
    Reading,
}

/// The connector of one life.
pub struct Connector {
    context: SourceContext,
    stage: Stage,
    /// What comes before anything else, in this order.
    ready: VecDeque<SourceEvent>,
    /// Up to here everything was sent, since the last reconnect.
    position: u64,
    /// Up to here something was sent, or stored by a life before.
    reached: u64,
    /// The engine wants the table read anew, for aggregates that only its rows can fill.
    wanted: bool,
}

impl Connector {
    /// Begins where the engine stands; it may stand nowhere behind what was acknowledged.
    pub fn begin(slot: &mut Slot, context: SourceContext, rng: &mut ChaCha8Rng) -> Result<Connector, String> {
        let upstream_lsn = Lsn(slot.upstream.lsn);
        context.status.send_modify(|status| {
            status.state = SourceState::Live;
            status.upstream_lsn_at_start = Some(upstream_lsn);
        });
        let identity = SourceIdentity { connector: "simulated".to_owned(), ..SourceIdentity::default() };
        let mut ready = VecDeque::from([SourceEvent::Tables { identity, tables: vec![slot.schema()] }]);
        let (stage, position) = match &context.resume {
            ResumePoint::Fresh if slot.streamed => return Err("a snapshot that was durable is gone".to_owned()),
            ResumePoint::Fresh => {
                ready.extend(pieces(&slot.upstream.table.rows, rng).map(SourceEvent::SnapshotRows));
                (Stage::Snapshot, slot.upstream.lsn)
            }
            ResumePoint::Resume { lsn, .. } if *lsn < slot.confirmed => {
                return Err(format!("it stands at {lsn}, and had acknowledged {}", slot.confirmed));
            }
            ResumePoint::Resume { tables, .. } if tables.iter().any(|table| table.standing != TableState::Live) => {
                ready.push_back(SourceEvent::TableBegin(slot.schema()));
                ready.extend(pieces(slot.rows_at(upstream_lsn), rng).map(SourceEvent::TableRows));
                ready.push_back(progress(slot.upstream.lsn));
                (Stage::Reading, slot.upstream.lsn)
            }
            ResumePoint::Resume { .. } => (Stage::Stream, again(slot, rng)),
        };
        let reached = match &context.resume {
            ResumePoint::Resume { lsn, .. } => position.max(lsn.0),
            ResumePoint::Fresh => position,
        };
        Ok(Connector { context, stage, ready, position, reached, wanted: false })
    }

    /// Sends one event, where there is one and the engine takes it.
    pub fn step(&mut self, slot: &mut Slot, rng: &mut ChaCha8Rng) {
        while let Ok(command) = self.context.commands.try_recv() {
            self.wanted |= matches!(command, SourceCommand::ReadAnew { .. });
        }
        if self.wanted {
            self.read_anew(slot, rng);
        }
        if self.ready.is_empty() {
            self.prepare(slot, rng);
        }
        self.reached = self.reached.max(self.position);
        let Some(event) = self.ready.pop_front() else { return };
        if let Err(TrySendError::Full(event)) = self.context.events.try_send(event) {
            self.ready.push_front(event);
        }
    }

    /// Tells upstream what is durable.
    pub fn acknowledge(&self, slot: &mut Slot) {
        slot.acknowledge(*self.context.durable.borrow());
    }

    /// The connection is lost and made again.
    pub fn reconnect(&mut self, slot: &mut Slot, rng: &mut ChaCha8Rng) {
        if let Stage::Stream = self.stage
            && self.ready.is_empty()
        {
            self.position = again(slot, rng);
        }
    }

    /// Begins to read the table anew, in the middle of everything.
    pub fn read_anew(&mut self, slot: &Slot, rng: &mut ChaCha8Rng) {
        // Behind what the engine has, its rows would be older than the position it gives them.
        if let Stage::Stream = self.stage
            && self.ready.is_empty()
            && self.position >= self.reached
        {
            // Rows as of what was sent: what comes after it comes with them.
            self.ready.push_back(SourceEvent::TableBegin(slot.schema()));
            self.ready.extend(pieces(slot.rows_at(Lsn(self.position)), rng).map(SourceEvent::TableRows));
            self.stage = Stage::Reading;
            self.wanted = false;
        }
    }

    /// Whether everything was sent.
    pub fn is_done(&self, slot: &Slot) -> bool {
        matches!(self.stage, Stage::Stream)
            && self.ready.is_empty()
            && !self.wanted
            && self.position >= slot.upstream.lsn
    }

    fn prepare(&mut self, slot: &Slot, rng: &mut ChaCha8Rng) {
        let log = &slot.upstream.log;
        let next = log.get(log.partition_point(|transaction| transaction.end_lsn.0 <= self.position));
        match (&self.stage, next) {
            (Stage::Snapshot, _) => {
                self.ready.push_back(SourceEvent::SnapshotDone { lsn: Lsn(self.position), time_us: 0 });
                self.stage = Stage::Stream;
            }
            (Stage::Stream, Some(transaction)) => {
                self.position = transaction.end_lsn.0;
                self.ready.push_back(SourceEvent::Transaction(transaction.clone()));
            }
            (Stage::Stream, None) => {
                self.position = self.position.max(slot.upstream.lsn);
                if rng.random_ratio(1, 4) {
                    self.ready.push_back(progress(self.position));
                }
            }
            (Stage::Reading, Some(transaction)) if rng.random_ratio(3, 4) => {
                self.position = transaction.end_lsn.0;
                self.ready.push_back(SourceEvent::TableRows(transaction.changes.clone()));
                self.ready.push_back(progress(self.position));
            }
            (Stage::Reading, _) => {
                self.ready.push_back(SourceEvent::TableDone { table: TABLE });
                self.stage = Stage::Stream;
            }
        }
    }
}

fn progress(lsn: u64) -> SourceEvent {
    SourceEvent::Progress { lsn: Lsn(lsn), time_us: lsn as i64 }
}

/// Where a new connection begins to send: what is not acknowledged, and sometimes a little more.
fn again(slot: &Slot, rng: &mut ChaCha8Rng) -> u64 {
    let log = &slot.upstream.log;
    let first = log.partition_point(|transaction| transaction.end_lsn <= slot.confirmed);
    let first = first.saturating_sub(rng.random_range(0..=AGAIN));
    // Nothing was ever before the first transaction.
    first.checked_sub(1).and_then(|before| log.get(before)).map_or(0, |before| before.end_lsn.0)
}

/// Rows in pieces of any size.
fn pieces(rows: &BTreeMap<i64, Row>, rng: &mut ChaCha8Rng) -> std::vec::IntoIter<Changes> {
    let rows: Vec<&Row> = rows.values().collect();
    let pieces: Vec<Changes> =
        rows.chunks(rng.random_range(1..30)).map(|piece| Upstream::snapshot(piece.iter().copied())).collect();
    pieces.into_iter()
}
