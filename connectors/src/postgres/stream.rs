//! Following the log: one replication session from its first event to its end.
//!
//! The surprise: acknowledging must go on while the engine takes nothing. So every wait for the engine also watches the
//! durable position, and lets the transport keep telling Postgres that we live.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::time::Duration;

use engine::change::{Lsn, TableId, TableSchema};
use engine::source::{FollowedTable, Milestone, SourceCommand, SourceError, SourceEvent, SourceState, TableState};
use engine::torture::{self, Failpoint};
use futures::FutureExt;
use tokio::sync::mpsc;
use tokio::task::unconstrained;
use tokio::time::Instant;
use tokio_postgres::Client;

use super::Link;
use super::catalog::{TypeCatalog, quoted_name};
use super::config::{PostgresConfig, TableName, Wanted, parse_table_name};
use super::error::{Failure, source_error, with_slot_named};
use super::following::{Following, Judgement, read_anew};
use super::joiner::{self, Joiner, Told};
use super::joins::Joins;
use super::monitor::{self, Monitor, View};
use super::nesting::{nested, overlap, relation_of};
use super::pgoutput::{Message, RelationMessage, decode};
use super::preflight::check_table;
use super::relation;
use super::signs::{Look, attached_with_rows, partitioned_above, until_visible};
use super::transaction::{Applied, Assembler};
use super::transport::{Event, ReplicationClient};
use super::upstream::{Session, misses_new_members};

/// Idle positions are sent at most this often: a busy neighbour table makes thousands a second.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(20);

/// Silence of stream and monitor together that means the network swallows our packets.
const SILENCE: Duration = Duration::from_secs(60);

/// How long upstream may show no session on our slot before ours counts as cut.
const DETACHED: Duration = Duration::from_secs(6);

/// How long a server that is going down may wait for us: what is on its way becomes durable and is acknowledged within.
const FAREWELL: Duration = Duration::from_millis(700);

/// Before this version a walsender remembers for its whole life that a table it met was not published, also after the table
/// was attached to a published one, and leaves out its rows. A new session knows better.
const FORGETS_WHAT_WAS_NOT_PUBLISHED: i32 = 150_000;

/// Events taken in one go at most, before the durable position and the monitor are looked at again.
const MAX_DRAINED: usize = 8_192;

/// Postgres sends every row by itself. Woken for each of them, we would spend more on waking than on rows, and so would
/// Postgres: after this many waits in a row that were this short, rows are left to gather for a moment.
const SHORT_WAITS: u32 = 16;
const SHORT_WAIT: Duration = Duration::from_micros(200);
const NAP: Duration = Duration::from_micros(50);

/// Where the source is; outlives sessions.
pub(super) struct Course {
    /// Highest position handed to the engine, or put into the outbox for it.
    pub(super) handed_over: Lsn,
    /// What upstream has there.
    pub(super) milestone: Milestone,
    pub(super) following: Following,
    pub(super) joins: Joins,
    /// What the engine is still to be told. State that outlives a session changes together with what is put here, so a
    /// connection that is cut while the engine takes nothing loses none of it.
    pub(super) outbox: VecDeque<SourceEvent>,
    pub(super) commands: mpsc::Receiver<SourceCommand>,
    /// Nobody can ask any more.
    pub(super) commands_ended: bool,
}

/// State of one session while it runs.
pub(super) struct Follower<'s> {
    config: &'s PostgresConfig,
    link: &'s mut Link,
    course: &'s mut Course,
    monitor: &'s mut Monitor,
    client: ReplicationClient,
    sql: Client,
    version: i32,
    assembler: Assembler,
    types: TypeCatalog,
    /// Every RELATION message of this session, the last of each relation.
    described: BTreeMap<TableId, Vec<u8>>,
    /// The transaction that is being received.
    xid: u32,
    /// Highest position received in this session: never acknowledged beyond.
    received: Lsn,
    /// Where upstream stood on connecting; `None` once it was reached.
    catching_up_to: Option<Lsn>,
    /// Idle position that waits for its turn.
    idle: Option<(Lsn, i64)>,
    next_progress: Instant,
    started: Instant,
    heard_at: Instant,
    /// Something came in: the connection works, and the next failure is the first again.
    pub(super) fruitful: bool,
}

impl<'s> Follower<'s> {
    /// Over a session that has passed all checks.
    pub(super) fn new(
        config: &'s PostgresConfig,
        link: &'s mut Link,
        course: &'s mut Course,
        monitor: &'s mut Monitor,
        session: Session,
    ) -> (Self, Look, Judgement) {
        let mut assembler = Assembler::new(config);
        assembler.take_tables(course.following.live());
        let follower = Follower {
            config,
            link,
            course,
            monitor,
            client: session.client,
            sql: session.sql,
            version: session.version,
            assembler,
            types: TypeCatalog::default(),
            described: BTreeMap::new(),
            xid: 0,
            received: session.start,
            catching_up_to: Some(session.upstream),
            idle: None,
            next_progress: session.started,
            started: session.started,
            heard_at: session.started,
            fruitful: false,
        };
        (follower, session.look, session.judgement)
    }

    /// Runs until something fails. First comes what was seen of the tables on connecting.
    pub(super) async fn run(&mut self, look: Look, judgement: Judgement) -> Failure {
        self.link.set_state(SourceState::CatchingUp);
        self.note_caught_up();
        let (mut ending, started) = (self.monitor.view.clone(), self.started);
        let following = async {
            match self.follow(look, judgement).await {
                Ok(never) => match never {},
                Err(failure) => failure,
            }
        };
        tokio::select! {
            failure = following => failure,
            // Also while the engine takes nothing. What it has not taken comes again.
            () = monitor::ended(&mut ending, started, FAREWELL) => Failure::Transient("Postgres is going down".to_owned()),
        }
    }

    async fn follow(&mut self, look: Look, judgement: Judgement) -> Result<Infallible, Failure> {
        self.act_on(&look, judgement).await?;
        // As they were stored by a version that followed both.
        for table in self.course.following.overlapping() {
            if self.make_way(table, None).await? {
                self.want_anew(table);
                self.flush().await?;
            }
        }
        let mut short_waits = 0u32;
        loop {
            let waiting = Instant::now();
            self.step().await?;
            let waited = self.heard_at.saturating_duration_since(waiting);
            short_waits = if waited < SHORT_WAIT { short_waits.saturating_add(1) } else { 0 };
            self.drain().await?;
            if short_waits > SHORT_WAITS {
                // The thread is this source's own. The runtime's timers are too coarse for this.
                std::thread::sleep(NAP);
            }
        }
    }

    /// Takes what has arrived already, without looking at anything else for each row.
    async fn drain(&mut self) -> Result<(), Failure> {
        for _ in 0..MAX_DRAINED {
            let event = match self.client.next_read()? {
                Some(event) => event,
                None => match unconstrained(self.client.receive()).now_or_never() {
                    Some(event) => event?,
                    None => break,
                },
            };
            self.take(event).await?;
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<(), Failure> {
        if !self.assembler.is_open() {
            self.start_next_join().await?;
            self.take_over().await?;
        }
        let idle_due = self.idle.is_some() && !self.assembler.is_open();
        tokio::select! {
            event = self.client.receive() => {
                self.heard_at = Instant::now();
                self.fruitful = true;
                self.take(event?).await
            }
            durable = self.link.durable_changed() => {
                acknowledge(&mut self.client, self.link, durable, self.received);
                Ok(())
            }
            () = tokio::time::sleep_until(self.next_progress), if idle_due => self.send_idle().await,
            Ok(()) = self.monitor.view.changed() => {
                let view = self.monitor.view.borrow_and_update().clone();
                self.heed(view).await
            }
            told = self.course.joins.told() => self.hear(told).await,
            command = self.course.commands.recv(), if !self.course.commands_ended => match command {
                Some(SourceCommand::ReadTable { table, row_image, reply }) => {
                    let outcome = self.ask_for(&table, row_image).await;
                    let failed = match &outcome {
                        Err(failure) if failure.is_locked_out() => None,
                        Err(Failure::Transient(reason)) => Some(reason.clone()),
                        _ => None,
                    };
                    let _ = reply.send(outcome.map_err(refusal));
                    failed.map_or(Ok(()), |reason| Err(Failure::Transient(reason)))
                }
                Some(SourceCommand::ReadAnew { table }) => {
                    if let Some(wanted) = self.as_followed(table) {
                        self.course.joins.wait_for(wanted);
                    }
                    Ok(())
                }
                None => {
                    self.course.commands_ended = true;
                    Ok(())
                }
            },
        }
    }

    async fn heed(&mut self, view: View) -> Result<(), Failure> {
        if let Some(verdict) = view.verdict {
            return Err(verdict.into());
        }
        if let Some(reason) = view.waited_for.filter(|_| view.seen_at > self.started) {
            return Err(Failure::Transient(reason));
        }
        if view.slot_idle_since.is_some_and(|since| since > self.started && since.elapsed() > DETACHED) {
            return Err(Failure::Transient("Postgres has no session on our slot any more".to_owned()));
        }
        if self.heard_at.elapsed() > SILENCE && view.seen_at.elapsed() > SILENCE {
            return Err(Failure::Transient("Postgres has not answered for a minute".to_owned()));
        }
        if view.look.asked.is_empty() {
            return Ok(());
        }
        let (course, publication) = (&mut *self.course, &self.config.publication);
        let judgement = course.following.judge_all(publication, &view.look, course.handed_over)?;
        self.act_on(&view.look, judgement).await
    }

    /// Tells the engine what a look leads to, and checks relations that are new to a table.
    async fn act_on(&mut self, look: &Look, judgement: Judgement) -> Result<(), Failure> {
        self.course.outbox.extend(judgement.events);
        // Before anything is waited for: what was judged is known from then on and is not found again.
        if judgement.all_anew {
            self.want_all_anew();
        }
        for table in judgement.read_anew {
            self.want_anew(table);
        }
        for (table, part) in judgement.appeared {
            self.take_in(table, part).await?;
            self.course.following.note_part(table, part, look);
        }
        self.tables_changed().await?;
        self.note_signs().await
    }

    /// A relation holds rows of a table: from here on, or from before, which makes the table to be read anew.
    async fn take_in(&mut self, table: TableId, part: TableId) -> Result<(), Failure> {
        let Some(table_now) = self.course.following.table(table) else { return Ok(()) };
        if table_now.standing != TableState::Live || table_now.partitions.contains(&part) {
            return Ok(());
        }
        let schema = table_now.schema.clone();
        let Some(with_rows) = attached_with_rows(&self.sql, &schema, part).await? else { return Ok(()) };
        if self.make_way(table, Some(part)).await? || with_rows {
            tracing::warn!(table = table.0, partition = part.0, "a partition came with rows: its table is read anew");
            self.want_anew(table);
            return self.flush().await;
        }
        self.course.outbox.extend(self.course.following.add_partition(table, part));
        self.tables_changed().await
    }

    /// Sees to other tables that have relations which are this one's now: a row counts once. One that is a partition of it
    /// halts; one that has lost a partition to it is read anew, since rows do not say whether they came before that or after. True
    /// where there was one, or where `part` is another's, whatever its standing: what is still to come of it may be no rows of
    /// this table.
    async fn make_way(&mut self, id: TableId, part: Option<TableId>) -> Result<bool, Failure> {
        let following = &self.course.following;
        let mut relations: BTreeSet<TableId> = BTreeSet::from([id]);
        let others = following.tables().iter().filter(|other| other.schema.id != id);
        relations.extend(others.flat_map(|other| other.partitions.iter().copied().chain([other.schema.id])));
        if relations.len() == 1 {
            return Ok(false);
        }
        let relations: Vec<TableId> = relations.into_iter().collect();
        let pairs = nested(&self.sql, &relations).await?;
        let within = |relation: TableId| pairs.contains(&(relation, id));
        let (mut of_another, mut halts, mut read_anew) = (false, Vec::new(), Vec::new());
        for other in self.course.following.tables().iter().filter(|other| other.schema.id != id) {
            let is_partition = within(other.schema.id);
            if !is_partition && !other.partitions.iter().any(|partition| within(*partition)) {
                continue;
            }
            of_another |= part.is_some_and(|part| other.schema.id == part || other.partitions.contains(&part));
            match other.standing {
                TableState::Live if is_partition => halts.push(other.schema.clone()),
                TableState::Live => read_anew.push(other.schema.id),
                // Its own turn comes, and what is found then counts.
                TableState::Reading | TableState::Halted { .. } => {}
            }
        }
        let found = of_another || !(halts.is_empty() && read_anew.is_empty());
        let above = self.course.following.table(id).map(|table| table.schema.clone());
        for below in halts {
            let reason = now_a_partition(&below, above.as_ref());
            self.halt(below.id, reason).await?;
        }
        for other in read_anew {
            tracing::warn!(table = other.0, by = id.0, "another table has a partition of it now: it is read anew");
            self.want_anew(other);
        }
        Ok(found)
    }

    /// Whatever is followed, and whatever is being read: of that, too, something may not have been sent to who reads it.
    fn want_all_anew(&mut self) {
        tracing::warn!(
            "the publication was altered, and something may have been left out meanwhile: its tables are read anew"
        );
        if let Some(wanted) = self.course.joins.end() {
            self.course.joins.wait_for(wanted);
        }
        let live: Vec<TableId> = self.course.following.live().map(|table| table.schema.id).collect();
        live.into_iter().for_each(|table| self.want_anew(table));
    }

    /// None of the table's rows from the stream until it was read.
    fn want_anew(&mut self, id: TableId) {
        let Some(wanted) = self.as_followed(id) else { return };
        let keeps_row_image = wanted.keeps_row_image;
        self.course.joins.wait_for(wanted);
        self.begin_reading(id, keeps_row_image);
    }

    /// A followed table, as it is to be read again.
    fn as_followed(&self, id: TableId) -> Option<Wanted> {
        let schema = &self.course.following.table(id)?.schema;
        Some(self.config.wanted(TableName::of(schema), Some(schema.keeps_row_image)))
    }

    fn begin_reading(&mut self, id: TableId, keeps_row_image: bool) {
        self.course.outbox.extend(self.course.following.begin_reading(id, keeps_row_image));
        self.assembler.take_tables(self.course.following.live());
    }

    /// Takes the rows of the tables that are live now. Upstream describes a relation once: those that it has described while
    /// they were none of ours are bound from what was kept. Where that does not fit, the relation was altered since, and
    /// upstream describes it again before its next row.
    async fn tables_changed(&mut self) -> Result<(), Failure> {
        self.assembler.take_tables(self.course.following.live());
        for relation in self.assembler.unbound() {
            if let Some(bytes) = self.described.get(&relation).cloned()
                && let Ok(Message::Relation(message)) = decode(&bytes)
            {
                self.learn_types(&message).await?;
                let table = self.course.following.live_table_of(relation);
                let fits = table.and_then(|table| relation::bind(&message, table, &self.types).ok());
                if let Some(binding) = fits.filter(|binding| binding.unusable.is_empty()) {
                    self.assembler.bind(binding.table);
                }
            }
        }
        let ids = self.course.following.ids();
        self.monitor.tables.send_if_modified(|tables| {
            let changed = *tables != ids;
            *tables = ids;
            changed
        });
        Ok(())
    }

    /// Lets the engine keep what later looks are compared with.
    async fn note_signs(&mut self) -> Result<(), Failure> {
        self.course.outbox.extend(self.course.following.new_notes());
        self.flush().await
    }

    async fn take(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Begin { xid, .. } => {
                self.xid = xid;
                self.assembler.begin();
                Ok(())
            }
            Event::Change { position, body } => match self.assembler.apply(self.client.bytes(body), position)? {
                Applied::Done => Ok(()),
                Applied::Relation => {
                    let bytes = self.client.bytes(body).to_vec();
                    self.describe(&bytes).await
                }
                Applied::Unbound(relation) => {
                    let row = self.client.bytes(body).to_vec();
                    self.apply_unbound(relation, &row, position).await
                }
            },
            Event::Commit { end_lsn, commit_time_us } => self.commit(end_lsn, commit_time_us).await,
            Event::KeepAlive { position, time_us } => {
                if !self.assembler.is_open() && position > self.course.handed_over {
                    self.note_idle(position, time_us);
                    if self.next_progress <= self.heard_at {
                        self.send_idle().await?;
                    }
                }
                Ok(())
            }
            Event::TooLarge { position, bytes, limit, relation } => {
                Err(self.assembler.row_too_large(position, bytes, limit, relation).into())
            }
        }
    }

    /// A row that came without its relation being described once more: what was said of it last holds, and now leads to
    /// whatever it leads to (see [`Follower::tables_changed`]).
    async fn apply_unbound(&mut self, relation: TableId, row: &[u8], position: Lsn) -> Result<(), Failure> {
        if let Some(described) = self.described.get(&relation).cloned() {
            self.describe(&described).await?;
        }
        match self.assembler.apply(row, position)? {
            Applied::Done => Ok(()),
            Applied::Relation | Applied::Unbound(_) => Err(self.assembler.not_described(position).into()),
        }
    }

    /// A RELATION message: the shape of one of our tables, of a partition that is new, or of nothing of ours.
    async fn describe(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let Ok(Message::Relation(message)) = decode(bytes) else { return Ok(()) };
        let relation = TableId(message.relation);
        self.described.insert(relation, bytes.to_vec());
        tokio::select! {
            visible = until_visible(&self.sql, self.xid) => visible?,
            failure = self.client.attend() => return Err(failure),
        }
        // Also of one that is ours: it may be another table's by now.
        let owner = self.course.following.live_table_of(relation).map(|table| table.schema.id);
        let following = &self.course.following;
        let is_live = |table: &TableId| following.table(*table).is_some_and(|table| table.standing == TableState::Live);
        let above = partitioned_above(&self.sql, relation).await?.into_iter().find(is_live);
        match (owner, above) {
            (owner, Some(above)) if owner != Some(above) => self.take_in(above, relation).await?,
            (None, None) => return Ok(()),
            _ => {}
        }
        self.bind(&message).await?;
        // What the message does not tell: a column under the same name may be another one, its values may be others.
        match self.course.following.live_table_of(relation).map(|table| table.schema.id) {
            Some(id) => self.look_at(id).await,
            None => Ok(()),
        }
    }

    /// Has the rows of a relation read as the message says.
    async fn bind(&mut self, message: &RelationMessage<'_>) -> Result<(), Failure> {
        let relation = TableId(message.relation);
        self.learn_types(message).await?;
        let Some(table) = self.course.following.live_table_of(relation) else { return Ok(()) };
        let id = table.schema.id;
        match relation::bind(message, table, &self.types) {
            Ok(binding) => {
                for (column, what) in binding.unusable {
                    self.course.outbox.extend(self.course.following.unusable(id, column, &what));
                }
                self.assembler.bind(binding.table);
                self.flush().await
            }
            Err(reason) => self.halt(id, reason).await,
        }
    }

    async fn learn_types(&mut self, message: &RelationMessage<'_>) -> Result<(), Failure> {
        let oids: Vec<u32> = message.columns.iter().map(|column| column.type_oid).collect();
        self.types.learn(&self.sql, &oids).await
    }

    async fn look_at(&mut self, id: TableId) -> Result<(), Failure> {
        let look = Look::take(&self.sql, &self.config.publication, &[id]).await?;
        let judgement = self.course.following.judge(&look, self.course.handed_over);
        self.act_on(&look, judgement).await
    }

    async fn halt(&mut self, id: TableId, reason: SourceError) -> Result<(), Failure> {
        let lsn = self.course.handed_over;
        let reason = with_slot_named(reason, &self.config.slot);
        tracing::error!(%lsn, code = reason.code, reason = %reason.message, remedy = %reason.remedy, "a table halted");
        self.course.outbox.push_back(self.course.following.halt(id, reason));
        self.assembler.take_tables(self.course.following.live());
        self.flush().await
    }

    /// Somebody wants a table to be followed, or to be read anew.
    async fn ask_for(&mut self, text: &str, row_image: Option<bool>) -> Result<String, Failure> {
        let name = parse_table_name(text)?;
        let qualified = name.to_string();
        let followed = self.course.following.by_name(&qualified).map(|table| table.schema.keeps_row_image);
        let wanted = self.config.wanted(name, row_image.or(followed));
        if row_image.is_some_and(|asked| asked != wanted.keeps_row_image) {
            return Err(Failure::definite(
                "row_image_configured",
                format!("the configuration lists table {qualified}, and decides whether its row images are kept"),
                format!("restart tidemark with or without --no-row-image {}", engine::shell::word(&qualified)),
            ));
        }
        self.publish_checked(&wanted).await?;
        self.link.note_refusal(&qualified, None);
        self.course.joins.wait_for(wanted);
        Ok(qualified)
    }

    /// Starts to read the next table, where one waits and none is being read. Between transactions.
    async fn start_next_join(&mut self) -> Result<(), Failure> {
        let Some(wanted) = self.course.joins.next() else { return Ok(()) };
        let known = self.course.following.by_name(&wanted.name.to_string()).map(|table| table.schema.id);
        if let Some(id) = known {
            let others = self.course.following.relations_of_others(known);
            if others.contains(&id) {
                match self.check_overlaps(&wanted.name).await {
                    // It was detached, and is its old table's until all of that is handed over.
                    Ok(()) => return Ok(()),
                    Err(failure) => return self.give_up_join(&wanted.name, failure).await,
                }
            }
            self.begin_reading(id, wanted.keeps_row_image);
            self.flush().await?;
        }
        match self.publish_checked(&wanted).await {
            Ok(()) => {
                if let Some(relation) = relation_of(&self.sql, &wanted.name).await? {
                    self.make_way(relation, None).await?;
                    self.flush().await?;
                }
                let others = self.course.following.relations_of_others(known);
                let joiner = Joiner::start(self.config, wanted, self.link, self.course.handed_over, others);
                self.course.joins.started(joiner);
                Ok(())
            }
            Err(failure) => self.give_up_join(&wanted.name, failure).await,
        }
    }

    /// A table that waits cannot be followed, or not now; any other failure is not the table's.
    async fn give_up_join(&mut self, name: &TableName, failure: Failure) -> Result<(), Failure> {
        if failure.is_locked_out() {
            tracing::info!(table = %name, "the table is locked: it is tried again in a while");
            self.course.joins.put_off(name);
            return Ok(());
        }
        let Failure::Definite(error) = failure else { return Err(failure) };
        self.course.joins.give_up(name);
        self.join_failed(name, error).await
    }

    /// Publishes a table that can be followed, and no other: once published, one without a key refuses updates.
    async fn publish_checked(&self, wanted: &Wanted) -> Result<(), Failure> {
        check_table(&self.sql, self.config, wanted).await?;
        self.check_overlaps(&wanted.name).await?;
        joiner::publish(&self.sql, self.config, &wanted.name).await
    }

    /// A table is not followed beside one that it is a partition of; nor, where it is not followed yet, beside its partitions.
    async fn check_overlaps(&self, name: &TableName) -> Result<(), Failure> {
        let Some(id) = relation_of(&self.sql, name).await? else { return Ok(()) };
        let known = self.course.following.by_name(&name.to_string()).is_some();
        let halted = |table: &FollowedTable| matches!(table.standing, TableState::Halted { .. });
        let others = self.course.following.tables().iter().filter(|other| other.schema.id != id && !halted(other));
        let names: BTreeMap<TableId, String> =
            others.map(|other| (other.schema.id, other.schema.qualified_name())).collect();
        let relations: Vec<TableId> = names.keys().copied().chain([id]).collect();
        for (below, above) in nested(&self.sql, &relations).await? {
            match (names.get(&below), names.get(&above)) {
                (None, Some(above)) if below == id => return Err(overlap(&name.to_string(), above).into()),
                (Some(below), None) if above == id && !known => return Err(overlap(below, &name.to_string()).into()),
                _ => {}
            }
        }
        Ok(())
    }

    async fn join_failed(&mut self, name: &TableName, error: SourceError) -> Result<(), Failure> {
        let error = with_slot_named(error, &self.config.slot);
        tracing::error!(table = %name, code = error.code, reason = %error.message, remedy = %error.remedy, "a table cannot be read");
        match self.course.following.by_name(&name.to_string()).map(|table| table.schema.id) {
            Some(id) => self.halt(id, error).await,
            None => {
                self.link.note_refusal(&name.to_string(), Some(error));
                Ok(())
            }
        }
    }

    async fn hear(&mut self, told: Option<Told>) -> Result<(), Failure> {
        match told {
            Some(Told::Again) => {
                self.course.joins.note_near(false);
                self.course.joins.note_main(self.course.handed_over, false);
                Ok(())
            }
            Some(Told::Begun(table, look)) => {
                self.course.following.put(*table, &look);
                self.tables_changed().await?;
                self.note_signs().await
            }
            Some(Told::Near) => {
                self.course.joins.note_near(true);
                Ok(())
            }
            Some(Told::There) => self.table_is_there().await,
            Some(Told::Failed(error)) => match self.course.joins.end() {
                Some(wanted) => self.join_failed(&wanted.name, error).await,
                None => Ok(()),
            },
            None => {
                // Its thread is gone without a word: read again.
                if let Some(wanted) = self.course.joins.end() {
                    self.course.joins.wait_for(wanted);
                }
                Ok(())
            }
        }
    }

    /// Between transactions: stands still for a table that has caught up, until it is where the stream is.
    async fn take_over(&mut self) -> Result<(), Failure> {
        if !self.course.joins.is_near() {
            return Ok(());
        }
        // What came without rows of ours counts as well: the table may have been all that it changed.
        self.send_idle().await?;
        self.course.joins.note_main(self.course.handed_over, true);
        while self.course.joins.is_near() {
            tokio::select! {
                told = self.course.joins.told() => self.hear(told).await?,
                durable = self.link.durable_changed() => acknowledge(&mut self.client, self.link, durable, self.received),
                failure = self.client.attend() => return Err(failure),
            }
        }
        Ok(())
    }

    /// Every change of the table up to here is with the engine: from here on it comes with the others.
    async fn table_is_there(&mut self) -> Result<(), Failure> {
        let Some(Wanted { name, .. }) = self.course.joins.end() else { return Ok(()) };
        let Some(id) = self.course.following.by_name(&name.to_string()).map(|table| table.schema.id) else {
            return Ok(());
        };
        self.course.outbox.push_back(SourceEvent::TableDone { table: id });
        self.course.following.done(id);
        tracing::info!(table = %name, lsn = %self.course.handed_over, "the table is followed");
        self.tables_changed().await?;
        self.note_signs().await?;
        let partitioned = self.course.following.table(id).is_some_and(|table| !table.partitions.is_empty());
        if partitioned && self.version < FORGETS_WHAT_WAS_NOT_PUBLISHED {
            return Err(Failure::Transient(
                "a walsender of Postgres 14 does not learn that a table became a partition".into(),
            ));
        }
        if misses_new_members(self.version) {
            return Err(Failure::Transient(
                "a table joined, and a walsender of this version of Postgres may not have learnt that".into(),
            ));
        }
        Ok(())
    }

    async fn commit(&mut self, end_lsn: Lsn, commit_time_us: i64) -> Result<(), Failure> {
        let transaction = self.assembler.commit(end_lsn, commit_time_us);
        if end_lsn <= self.course.handed_over {
            return Ok(());
        }
        if transaction.changes.is_empty() {
            self.note_idle(end_lsn, commit_time_us);
            if self.next_progress <= self.heard_at {
                self.send_idle().await?;
            }
        } else {
            // What was told before may be later, where the clock was put back.
            if self.idle.is_some_and(|(_, told_us)| told_us > commit_time_us) {
                self.send_idle().await?;
            }
            self.idle = None;
            let milestone = self.course.milestone.after(end_lsn, commit_time_us);
            self.hand_over(end_lsn, milestone, SourceEvent::Transaction(transaction)).await?;
        }
        self.take_over().await
    }

    /// Nothing of ours happened up to here. Of those that wait for their turn the latest time is told, which need not be the last.
    fn note_idle(&mut self, lsn: Lsn, time_us: i64) {
        let latest_us = self.idle.map_or(time_us, |(_, before_us)| time_us.max(before_us));
        self.idle = Some((lsn, latest_us));
    }

    async fn send_idle(&mut self) -> Result<(), Failure> {
        self.next_progress = Instant::now() + PROGRESS_INTERVAL;
        match self.idle.take() {
            Some((lsn, time_us)) => {
                let milestone = self.course.milestone.told(time_us);
                self.hand_over(lsn, milestone, SourceEvent::Progress { lsn, time_us }).await
            }
            None => Ok(()),
        }
    }

    async fn hand_over(&mut self, position: Lsn, milestone: Milestone, event: SourceEvent) -> Result<(), Failure> {
        // Received is received, whether or not the engine has taken it: only durable positions are acknowledged.
        self.received = self.received.max(position);
        self.link.note_received(self.received);
        self.course.outbox.push_back(event);
        self.course.handed_over = position;
        self.course.milestone = milestone;
        self.flush().await?;
        self.course.joins.note_main(position, false);
        self.note_caught_up();
        Ok(())
    }

    fn note_caught_up(&mut self) {
        if self.catching_up_to.is_some_and(|target| self.course.handed_over >= target) {
            self.catching_up_to = None;
            self.link.set_state(SourceState::Live);
        }
    }

    /// Waits for the engine to take what it is to be told, and acknowledges meanwhile.
    async fn flush(&mut self) -> Result<(), Failure> {
        let events = self.link.events.clone();
        while !self.course.outbox.is_empty() {
            let taking = events.reserve();
            tokio::pin!(taking);
            loop {
                tokio::select! {
                    permit = &mut taking => {
                        let permit = permit.map_err(|_| Failure::Closed)?;
                        if let Some(event) = self.course.outbox.pop_front() {
                            permit.send(event);
                        }
                        break;
                    }
                    durable = self.link.durable_changed() => {
                        acknowledge(&mut self.client, self.link, durable, self.received);
                    }
                    failure = self.client.attend() => return Err(failure),
                }
            }
        }
        Ok(())
    }
}

/// Tells upstream what is durable, and never more than it sent: Postgres would believe a position it never reached and
/// skip transactions up to it.
fn acknowledge(client: &mut ReplicationClient, link: &Link, durable: Lsn, received: Lsn) {
    let position = durable.min(received);
    torture::reached(Failpoint::Acknowledging);
    client.acknowledge(position);
    torture::reached(Failpoint::Acknowledged);
    link.note_acknowledged(position);
}

/// Why a followed table cannot be followed beside another one any more.
fn now_a_partition(below: &TableSchema, above: Option<&TableSchema>) -> SourceError {
    let name = below.qualified_name();
    let (of, detach) = match above {
        Some(above) => (
            above.qualified_name(),
            format!("ALTER TABLE {} DETACH PARTITION {}", quoted_name(above), quoted_name(below)),
        ),
        None => ("another followed table".to_owned(), "detach it".to_owned()),
    };
    source_error(
        "schema_changed",
        format!("table {name} is a partition of {of} now, which is followed: its rows count there"),
        format!("ask for totals over {of}; or {detach}; and {}", read_anew(&name)),
    )
}

/// Why a table is not read, for who asked.
fn refusal(failure: Failure) -> SourceError {
    match failure {
        Failure::Definite(error) => error,
        Failure::Transient(reason) => {
            source_error("source_busy", format!("Postgres could not be asked: {reason}"), "try again in a moment")
        }
        Failure::Closed => source_error("stopping", "the engine has stopped", "restart tidemark"),
    }
}
