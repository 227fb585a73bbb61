//! A stand-in for the engine: keeps every row by its key, completes what the wire leaves out, and insists on the order
//! of events that the port promises.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use connectors::{ConnectorConfig, PostgresConfig};
use engine::change::{Change, ColumnType, Lsn, OldImage, RowRef, TableId, TableSchema, Transaction, ValueRef};
use engine::source::{
    FollowedTable, Milestone, ResumePoint, SourceCommand, SourceContext, SourceError, SourceEvent, SourceIdentity,
    SourceState, SourceStatus, TableState,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Printed values: comparable, and readable in a failed assertion.
pub type Row = Vec<String>;

pub struct FakeEngine {
    pub events: mpsc::Receiver<SourceEvent>,
    pub durable: watch::Sender<Lsn>,
    pub status: watch::Receiver<SourceStatus>,
    pub task: JoinHandle<()>,
    pub identity: SourceIdentity,
    pub tables: Vec<TableSchema>,
    pub rows: BTreeMap<TableId, BTreeMap<Row, Row>>,
    pub applied: Lsn,
    pub snapshot_done: bool,
    pub snapshot_rows: u64,
    pub transactions: Vec<(Lsn, usize)>,
    pub inserts: u64,
    pub last_changes: Vec<String>,
    pub auto_durable: bool,
    pub commands: mpsc::Sender<SourceCommand>,
    /// Partition -> the table whose rows it holds.
    pub partitions: BTreeMap<TableId, TableId>,
    /// Tables that are being read while the others go on.
    pub reading: Vec<TableId>,
    /// How often one was complete.
    pub joined: usize,
    /// Columns that went away, and tables that halted.
    pub unusable: Vec<(String, SourceError)>,
    pub halted: Vec<(TableId, SourceError)>,
    pub notes: Option<String>,
    pub milestone: Milestone,
}

pub fn config(url: &str, tables: &[&str], slot: &str) -> PostgresConfig {
    let tables: Vec<String> = tables.iter().map(|t| (*t).to_owned()).collect();
    PostgresConfig::new(url, &tables, slot).unwrap()
}

pub fn show(value: ValueRef<'_>) -> String {
    format!("{value:?}")
}

impl FakeEngine {
    pub fn start(config: PostgresConfig, resume: ResumePoint) -> FakeEngine {
        Self::start_any(ConnectorConfig::Postgres(config), resume, 16)
    }

    pub fn start_any(config: ConnectorConfig, resume: ResumePoint, capacity: usize) -> FakeEngine {
        let (sender, events) = mpsc::channel(capacity);
        let (status_sender, status) = watch::channel(SourceStatus::default());
        let mut partitions = BTreeMap::new();
        let (at, identity, tables, notes, milestone, snapshot_done) = match &resume {
            ResumePoint::Fresh => (Lsn::ZERO, SourceIdentity::default(), Vec::new(), None, Milestone::default(), false),
            ResumePoint::Resume { lsn, identity, tables, notes, milestone } => {
                for table in tables {
                    partitions.extend(table.partitions.iter().map(|partition| (*partition, table.schema.id)));
                }
                let schemas = tables.iter().map(|table| table.schema.clone()).collect();
                (*lsn, identity.clone(), schemas, notes.clone(), *milestone, true)
            }
        };
        let (durable, durable_receiver) = watch::channel(at);
        let (context, commands) = SourceContext::new(resume, sender, durable_receiver, status_sender);
        let task = tokio::spawn(connectors::run(config, context));
        FakeEngine {
            events,
            durable,
            status,
            task,
            identity,
            tables,
            rows: BTreeMap::new(),
            applied: at,
            snapshot_done,
            snapshot_rows: 0,
            transactions: Vec::new(),
            inserts: 0,
            last_changes: Vec::new(),
            auto_durable: true,
            commands,
            partitions,
            reading: Vec::new(),
            joined: 0,
            unusable: Vec::new(),
            halted: Vec::new(),
            notes,
            milestone,
        }
    }

    /// Where a later process would resume.
    pub fn resume_point(&self) -> ResumePoint {
        let standing = |id: TableId| match self.halted.iter().find(|(halted, _)| *halted == id) {
            Some((_, reason)) => TableState::Halted {
                code: reason.code.to_owned(),
                message: reason.message.clone(),
                remedy: reason.remedy.clone(),
            },
            None if self.reading.contains(&id) => TableState::Reading,
            None => TableState::Live,
        };
        let table = |schema: &TableSchema| FollowedTable {
            partitions: self
                .partitions
                .iter()
                .filter(|(_, table)| **table == schema.id)
                .map(|(part, _)| *part)
                .collect(),
            ..FollowedTable::new(schema.clone(), standing(schema.id))
        };
        let tables = self.tables.iter().map(table).collect();
        ResumePoint::Resume {
            lsn: self.applied,
            identity: self.identity.clone(),
            tables,
            notes: self.notes.clone(),
            milestone: self.milestone,
        }
    }

    pub async fn stop(self) -> ResumePoint {
        let resume = self.resume_point();
        let (events, task) = (self.events, self.task);
        drop(events);
        tokio::time::timeout(Duration::from_secs(5), task).await.expect("the connector ends with its channel").unwrap();
        resume
    }

    /// Consumes until everything up to `lsn` was applied.
    pub async fn until(&mut self, lsn: Lsn) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !(self.snapshot_done && self.applied >= lsn) {
            let wait = deadline.saturating_duration_since(Instant::now());
            let event = tokio::time::timeout(wait, self.events.recv()).await;
            let status = self.status.borrow().clone();
            let event = event.unwrap_or_else(|_| panic!("stuck at {} before {lsn}: {status:?}", self.applied));
            self.apply(event.unwrap_or_else(|| panic!("the source ended at {}: {status:?}", self.applied)));
        }
    }

    /// Consumes until this holds.
    pub async fn until_seen(&mut self, what: &str, mut seen: impl FnMut(&FakeEngine) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !seen(self) {
            assert!(Instant::now() < deadline, "never: {what}: {:?}", *self.status.borrow());
            if let Ok(event) = tokio::time::timeout(Duration::from_millis(100), self.events.recv()).await {
                self.apply(event.unwrap_or_else(|| panic!("the source ended: {:?}", *self.status.borrow())));
            }
        }
    }

    /// Consumes until a table halts; returns its name and the code.
    pub async fn until_table_halted(&mut self) -> (String, &'static str) {
        let before = self.halted.len();
        self.until_seen("a table halted", |engine| engine.halted.len() > before).await;
        let (table, reason) = self.halted.last().unwrap();
        assert!(!reason.message.is_empty() && reason.remedy.contains("/tables"), "{reason:?}");
        (self.schema(*table).name.clone(), reason.code)
    }

    /// Consumes until a column goes away; returns its name and what happened.
    pub async fn until_unusable(&mut self) -> (String, String) {
        let before = self.unusable.len();
        self.until_seen("a column went away", |engine| engine.unusable.len() > before).await;
        let (column, reason) = self.unusable.last().unwrap();
        (column.clone(), reason.message.clone())
    }

    /// Asks for a table to be read, and consumes until it is.
    pub async fn read_table(&mut self, table: &str) -> Result<String, SourceError> {
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        self.commands.send(SourceCommand::ReadTable { table: table.to_owned(), row_image: None, reply }).await.unwrap();
        let mut answered = None;
        self.until_seen("an answer", |_| {
            answered = answer.try_recv().ok();
            answered.is_some()
        })
        .await;
        let name = answered.unwrap()?;
        let (joined, known) = (self.joined, name.clone());
        self.until_seen("the table is read", |engine| {
            engine.joined > joined && engine.tables.iter().any(|table| table.qualified_name() == known)
        })
        .await;
        Ok(name)
    }

    /// Consumes what is there, up to so many transactions in all.
    pub fn take_what_came(&mut self, most: usize) {
        while self.transactions.len() < most
            && let Ok(event) = self.events.try_recv()
        {
            self.apply(event);
        }
    }

    /// Consumes until the source halts; returns the code.
    pub async fn until_halted(&mut self) -> String {
        let deadline = Instant::now() + Duration::from_secs(40);
        loop {
            if let SourceState::Halted { code, message, remedy } = &self.status.borrow().state {
                assert!(!message.is_empty() && !remedy.is_empty());
                return code.clone();
            }
            assert!(Instant::now() < deadline, "not halted: {:?}", *self.status.borrow());
            match tokio::time::timeout(Duration::from_millis(100), self.events.recv()).await {
                Ok(Some(event)) => self.apply(event),
                Ok(None) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(_) => {}
            }
        }
    }

    fn apply(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Tables { identity, tables } => {
                self.identity = identity;
                self.tables = tables;
            }
            SourceEvent::SnapshotRows(changes) => {
                assert!(!self.snapshot_done && !self.tables.is_empty());
                self.snapshot_rows += changes.len() as u64;
                for change in changes.iter() {
                    assert!(matches!(change, Change::Insert { .. }));
                    self.change(change);
                }
            }
            SourceEvent::SnapshotDone { lsn, time_us } => {
                assert!(!self.snapshot_done && time_us > 0);
                self.snapshot_done = true;
                self.applied = lsn;
                self.milestone = Milestone::begin(lsn);
            }
            SourceEvent::Transaction(transaction) => self.transaction(&transaction),
            SourceEvent::Progress { lsn, time_us } => {
                assert!(self.snapshot_done && lsn > self.applied && time_us > 0);
                self.applied = lsn;
                self.milestone = self.milestone.told(time_us);
            }
            SourceEvent::TableBegin(schema) => {
                self.tables.retain(|table| table.qualified_name() != schema.qualified_name());
                self.forget(schema.id);
                self.partitions.retain(|_, table| *table != schema.id);
                self.halted.retain(|(table, _)| *table != schema.id);
                self.reading.push(schema.id);
                self.tables.push(schema);
            }
            SourceEvent::TableRows(changes) => {
                for change in changes.iter() {
                    assert!(self.reading.contains(&self.table_of(change.table())));
                    self.change(change);
                }
            }
            SourceEvent::TableDone { table } => {
                assert!(self.reading.contains(&table));
                self.reading.retain(|reading| *reading != table);
                self.joined += 1;
            }
            SourceEvent::PartitionAdded { table, partition } => {
                self.partitions.insert(partition, table);
            }
            SourceEvent::PartitionGone { table, partition } => {
                assert_eq!(self.partitions.remove(&partition), Some(table));
                self.rows.remove(&partition);
            }
            SourceEvent::ColumnUnusable { table, column, reason } => {
                let schema = self.tables.iter_mut().find(|schema| schema.id == table).unwrap();
                schema.columns[column].column_type = ColumnType::Gone(reason.message.clone());
                self.unusable.push((schema.columns[column].name.clone(), reason));
            }
            SourceEvent::TableHalted { table, reason } => self.halted.push((table, reason)),
            SourceEvent::Notes(notes) => self.notes = Some(notes),
        }
        if self.auto_durable && self.snapshot_done {
            self.durable.send_replace(self.applied);
        }
    }

    fn transaction(&mut self, transaction: &Transaction) {
        assert!(self.snapshot_done);
        assert!(transaction.commit_time_us > 0 && !transaction.changes.is_empty());
        if transaction.end_lsn <= self.applied {
            return;
        }
        self.last_changes.clear();
        for change in transaction.changes.iter() {
            self.last_changes.push(describe(change));
            self.change(change);
        }
        self.applied = transaction.end_lsn;
        self.milestone = self.milestone.after(transaction.end_lsn, transaction.commit_time_us);
        self.transactions.push((transaction.end_lsn, transaction.changes.len()));
    }

    fn table_of(&self, part: TableId) -> TableId {
        self.partitions.get(&part).copied().unwrap_or(part)
    }

    fn parts(&self, table: TableId) -> Vec<TableId> {
        let partitions = self.partitions.iter().filter(|(_, of)| **of == table).map(|(part, _)| *part);
        partitions.chain([table]).collect()
    }

    fn forget(&mut self, table: TableId) {
        for part in self.parts(table) {
            self.rows.remove(&part);
        }
    }

    fn schema(&self, part: TableId) -> &TableSchema {
        let table = self.table_of(part);
        self.tables.iter().find(|t| t.id == table).unwrap()
    }

    fn key(&self, table: TableId, row: &Row) -> Row {
        self.schema(table).primary_key.iter().map(|&i| row[i].clone()).collect()
    }

    fn change(&mut self, change: Change<'_>) {
        match change {
            Change::Insert { table, new } | Change::InsertChecked { table, new } => {
                self.inserts += 1;
                let row = read(new);
                assert!(!row.contains(&show(ValueRef::Unchanged)));
                let key = self.key(table, &row);
                let before = self.rows.entry(table).or_default().insert(key, row);
                assert!(before.is_none(), "inserted twice: {before:?} at {}, reading {:?}", self.applied, self.reading);
            }
            Change::Update { table, old, new } => {
                let mut row = read(new);
                let old_key = match old {
                    OldImage::Absent => self.key(table, &row),
                    OldImage::Key(old) | OldImage::Full(old) => self.key(table, &read(old)),
                };
                let before = self.rows.entry(table).or_default().remove(&old_key).expect("the updated row is known");
                if let OldImage::Full(full) = old {
                    assert_eq!(read(full), before);
                    assert!(!row.contains(&show(ValueRef::Unchanged)), "the old row has it");
                }
                for (value, before) in row.iter_mut().zip(before) {
                    if *value == show(ValueRef::Unchanged) {
                        *value = before;
                    }
                }
                let key = self.key(table, &row);
                assert!(self.rows.entry(table).or_default().insert(key, row).is_none());
            }
            Change::Upsert { .. } => panic!("a log says what happened, not what is"),
            Change::Delete { table, old } => {
                let (OldImage::Key(old) | OldImage::Full(old)) = old else { panic!("delete without its row") };
                let key = self.key(table, &read(old));
                assert!(self.rows.entry(table).or_default().remove(&key).is_some());
            }
            Change::Truncate { table } => self.forget(table),
        }
    }

    pub fn table(&self, name: &str) -> Vec<Row> {
        let schema = self.tables.iter().find(|t| t.name == name).unwrap();
        let rows = self.parts(schema.id).into_iter().filter_map(|part| self.rows.get(&part));
        rows.flat_map(|rows| rows.values().cloned()).collect()
    }

    pub fn column_types(&self, name: &str) -> Vec<(String, ColumnType)> {
        let schema = self.tables.iter().find(|t| t.name == name).unwrap();
        schema.columns.iter().map(|c| (c.name.clone(), c.column_type.clone())).collect()
    }
}

fn read(row: RowRef<'_>) -> Row {
    row.columns().map(|value| show(value.expect("a well-formed row"))).collect()
}

fn describe(change: Change<'_>) -> String {
    match change {
        Change::Insert { .. } | Change::InsertChecked { .. } => "insert".into(),
        Change::Update { old: OldImage::Absent, .. } => "update".into(),
        Change::Update { old: OldImage::Key(_), .. } => "update with key".into(),
        Change::Update { old: OldImage::Full(_), .. } => "update with row".into(),
        Change::Upsert { .. } => "upsert".into(),
        Change::Delete { old: OldImage::Full(_), .. } => "delete with row".into(),
        Change::Delete { .. } => "delete".into(),
        Change::Truncate { .. } => "truncate".into(),
    }
}
