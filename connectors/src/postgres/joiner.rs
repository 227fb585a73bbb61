//! Reads one table while the source runs, so that it joins the others at an exact position and disturbs none of them.
//!
//! ```text
//! temporary slot + snapshot at L     rows as of L -> TableRows       the main stream leaves the table's rows out
//! the slot's stream from L           what happened since -> TableRows, never beyond the main stream
//! near                               everything up to the main stream's position was told
//! the main stream                    between two transactions, at P: stands still until the joiner is at P as well,
//!                                    then TableDone, and the table's rows too from there on
//! ```
//!
//! Upstream's log is the only buffer. The surprise: the joiner must not run ahead, and the main stream must not run on while
//! the last changes are told; either would lose or double what happened between their positions. The stand is short, as it
//! begins only when the joiner is near. The joiner runs on a thread of its own and begins anew, with another snapshot,
//! whenever something comes in between.

use std::time::Duration;

use engine::change::{Lsn, TableId};
use engine::source::{FollowedTable, SourceError, SourceEvent, TableState};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_postgres::Client;

use super::catalog::TypeCatalog;
use super::config::{PostgresConfig, TableName, Wanted};
use super::connect::{refuse_standby, sql_session};
use super::error::{Failure, source_error};
use super::patience::with_patience;
use super::pgoutput::{Message, decode};
use super::relation;
use super::signs::{Look, narrowed, partitioned_above, until_visible};
use super::slot::NewSlot;
use super::snapshot::{Exported, MADE_ANEW};
use super::synchronous;
use super::transaction::{Applied, Assembler};
use super::transport::{Event, Positions, ReplicationClient};
use super::upstream::start_stream;
use super::{Backoff, Link};

/// How long a table's lock is waited for to publish it: VACUUM and CREATE INDEX CONCURRENTLY have it for long.
const PUBLISHING: Duration = Duration::from_millis(500);

/// What Postgres says where a temporary slot or an exported snapshot is gone, or where it is a standby now: others may do.
const OF_WHAT_PASSES: [&str; 3] = ["slot_unusable", "slot_missing", "server_not_understood"];

/// How long a table waits whose relation another one has, before it is tried again.
const HELD: Duration = Duration::from_millis(500);

/// What the joiner tells the main stream.
#[derive(Debug)]
pub(super) enum Told {
    /// The table as it is being read, with what was seen of it.
    Begun(Box<FollowedTable>, Box<Look>),
    /// It has caught up; more so at every moment that the main stream does not move.
    Near,
    /// It begins anew.
    Again,
    /// Every change of it up to where the main stream stands is with the engine, and none after.
    There,
    /// It cannot be read.
    Failed(SourceError),
}

/// Where the main stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Main {
    pub(super) position: Lsn,
    /// It stands between two transactions, and waits.
    pub(super) waits: bool,
}

/// A table on its way; dropping this ends it.
#[derive(Debug)]
pub(super) struct Joiner {
    pub(super) wanted: Wanted,
    pub(super) told: mpsc::Receiver<Told>,
    /// Where the main stream is.
    pub(super) main: watch::Sender<Main>,
    _holds: oneshot::Sender<()>,
}

impl Joiner {
    /// Starts to read a table that is in the publication already. Where it turns out to have a relation of `others`, it ends
    /// without a word, and nothing of it is told.
    pub(super) fn start(
        config: &PostgresConfig,
        wanted: Wanted,
        link: &Link,
        position: Lsn,
        others: Vec<TableId>,
    ) -> Joiner {
        let (tell, told) = mpsc::channel(4);
        let (main, main_position) = watch::channel(Main { position, waits: false });
        let (holds, mut let_go) = oneshot::channel::<()>();
        let mut joining = Joining {
            config: config.clone(),
            wanted: wanted.clone(),
            link: link.clone(),
            tell,
            main: main_position,
            others,
            anew: MADE_ANEW,
        };
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async {
                tokio::select! {
                    () = joining.run() => {}
                    _ = &mut let_go => {}
                }
            });
        };
        tokio::task::spawn_blocking(run);
        Joiner { wanted, told, main, _holds: holds }
    }
}

struct Joining {
    config: PostgresConfig,
    wanted: Wanted,
    link: Link,
    tell: mpsc::Sender<Told>,
    main: watch::Receiver<Main>,
    /// Relations of the tables whose rows come with the main stream.
    others: Vec<TableId>,
    /// How often the slot is still made anew for the table's sake.
    anew: u32,
}

impl Joining {
    async fn run(&mut self) {
        let mut backoff = Backoff::default();
        loop {
            match self.attempt().await {
                Ok(()) => return drop(self.tell.send(Told::There).await),
                Err(Failure::Closed) => return,
                Err(Failure::Definite(error)) if !OF_WHAT_PASSES.contains(&error.code) => {
                    return drop(self.tell.send(Told::Failed(error)).await);
                }
                Err(failure) => {
                    tracing::warn!(table = %self.wanted.name, reason = %failure, "reading the table begins anew");
                    if self.tell.send(Told::Again).await.is_err() {
                        return;
                    }
                    backoff.pause().await;
                }
            }
        }
    }

    /// Reads the table and follows it to where the main stream waits.
    async fn attempt(&mut self) -> Result<(), Failure> {
        let client = sql_session(&self.config).await?;
        refuse_standby(&client).await?;
        synchronous::refuse(&client).await?;
        // One joiner at a time, and a temporary slot is its session's: the name cannot be taken by another of ours.
        let slot: String = format!("{}_join", self.config.slot).chars().take(63).collect();
        let wanted = std::slice::from_ref(&self.wanted);
        let new_slot = NewSlot::Temporary(&slot);
        let exported = Exported::open(&self.config, &client, wanted, new_slot, &mut self.anew).await?;
        let gone = || Failure::Transient("the table is gone".to_owned());
        let table = exported.tables.first().ok_or_else(gone)?.followed(TableState::Reading);
        if table.partitions.iter().chain([&table.schema.id]).any(|part| self.others.contains(part)) {
            // The main stream has to see to the other one first; it starts another joiner then.
            tracing::warn!(table = %self.wanted.name, "a relation of it is still another followed table's");
            tokio::time::sleep(HELD).await;
            return Err(Failure::Closed);
        }
        let signs = exported.look.tables.get(&table.schema.id.0);
        if let Some(reason) = signs.and_then(|signs| narrowed(&table.schema, signs)) {
            return Err(Failure::Definite(reason));
        }
        let begun = Told::Begun(Box::new(table.clone()), Box::new(exported.look.clone()));
        self.tell.send(begun).await.map_err(|_| Failure::Closed)?;
        tracing::info!(table = %self.wanted.name, lsn = %exported.lsn, "reading the table");
        self.link.send(SourceEvent::TableBegin(table.schema.clone())).await?;
        for partition in &table.partitions {
            let (table, partition) = (table.schema.id, *partition);
            self.link.send(SourceEvent::PartitionAdded { table, partition }).await?;
        }
        let link = &self.link;
        exported.read(&self.config, async |rows, _| link.send(SourceEvent::TableRows(rows)).await).await?;
        let mut replication = exported.replication;
        let positions = Positions { start: exported.lsn, durable: exported.lsn };
        start_stream(&mut replication, &slot, &self.config.publication, positions).await?;
        self.catch_up(&client, &mut replication, &table, exported.lsn).await
    }

    async fn catch_up(
        &mut self,
        client: &Client,
        replication: &mut ReplicationClient,
        table: &FollowedTable,
        start: Lsn,
    ) -> Result<(), Failure> {
        let mut reached = start;
        let mut assembler = Assembler::new(&self.config);
        // It takes what is live, and this one is, as far as this stream is concerned.
        assembler.take_tables(std::iter::once(table));
        let mut types = TypeCatalog::default();
        let mut near = false;
        // A transaction that has begun and lies beyond the main stream: where its commit record begins.
        let mut beyond: Option<Lsn> = None;
        let mut transaction = 0u32;
        loop {
            let main = *self.main.borrow_and_update();
            if beyond.is_some_and(|commit_lsn| commit_lsn < main.position) {
                beyond = None;
                assembler.begin();
            }
            // Before the main stream has reached the snapshot, the rows are newer than where it stands.
            let comparable = !assembler.is_open() && main.position >= start;
            if comparable && (beyond.is_some() || reached >= main.position) {
                if main.waits {
                    return Ok(());
                }
                if !near {
                    near = true;
                    self.tell.send(Told::Near).await.map_err(|_| Failure::Closed)?;
                }
            }
            let next = async {
                match beyond {
                    None => replication.receive().await,
                    Some(_) => Err(replication.attend().await),
                }
            };
            let event = tokio::select! {
                event = next => event?,
                changed = self.main.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return Err(Failure::Closed),
                },
            };
            match event {
                Event::Begin { commit_lsn, xid } => {
                    transaction = xid;
                    if commit_lsn >= main.position {
                        beyond = Some(commit_lsn);
                    } else {
                        assembler.begin();
                    }
                }
                Event::Change { position, body } => match assembler.apply(replication.bytes(body), position)? {
                    Applied::Done => {}
                    Applied::Relation => {
                        let bytes = replication.bytes(body).to_vec();
                        tokio::select! {
                            visible = until_visible(client, transaction) => visible?,
                            failure = replication.attend() => return Err(failure),
                        }
                        bind(client, table, &mut types, &mut assembler, &bytes).await?;
                    }
                    Applied::Unbound(_) => return Err(assembler.not_described(position).into()),
                },
                Event::Commit { end_lsn, commit_time_us } => {
                    let changes = assembler.commit(end_lsn, commit_time_us).changes;
                    if !changes.is_empty() {
                        let sending = self.link.send(SourceEvent::TableRows(changes));
                        tokio::select! {
                            sent = sending => sent?,
                            failure = replication.attend() => return Err(failure),
                        }
                    }
                    reached = reached.max(end_lsn);
                }
                Event::KeepAlive { position, .. } => {
                    if !assembler.is_open() {
                        reached = reached.max(position);
                    }
                }
                Event::TooLarge { position, bytes, limit, relation } => {
                    return Err(assembler.row_too_large(position, bytes, limit, relation).into());
                }
            }
        }
    }
}

/// Any change of shape while the table is being read: begin anew, with the shape it has then.
async fn bind(
    client: &Client,
    table: &FollowedTable,
    types: &mut TypeCatalog,
    assembler: &mut Assembler,
    bytes: &[u8],
) -> Result<(), Failure> {
    let Ok(Message::Relation(message)) = decode(bytes) else { return Ok(()) };
    let relation = TableId(message.relation);
    let altered = || Failure::Transient("it was altered meanwhile".to_owned());
    if relation != table.schema.id && !table.partitions.contains(&relation) {
        let above = partitioned_above(client, relation).await?;
        return if above.contains(&table.schema.id) { Err(altered()) } else { Ok(()) };
    }
    let oids: Vec<u32> = message.columns.iter().map(|column| column.type_oid).collect();
    types.learn(client, &oids).await?;
    let binding = relation::bind(&message, table, types).map_err(|_| altered())?;
    if !binding.unusable.is_empty() {
        return Err(altered());
    }
    assembler.bind(binding.table);
    Ok(())
}

/// Puts a table into the publication, where it is not in it yet.
pub(super) async fn publish(client: &Client, config: &PostgresConfig, name: &TableName) -> Result<(), Failure> {
    let member: bool = client
        .query_one(
            "SELECT EXISTS (SELECT 1 FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                            JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
                            WHERE p.pubname = $1 AND n.nspname = $2 AND c.relname = $3)",
            &[&config.publication, &name.namespace, &name.name],
        )
        .await?
        .try_get(0)?;
    if member {
        return Ok(());
    }
    let statement = format!("ALTER PUBLICATION {} ADD TABLE ONLY {}", config.publication, name.quoted());
    let published = with_patience(client, PUBLISHING, async || client.batch_execute(&statement).await).await;
    let refused = match published {
        Err(failure) if failure.is_locked_out() => return Err(failure),
        Err(failure) if failure.is_of_the_statement() => failure.to_string(),
        Err(Failure::Definite(error)) => error.message,
        other => return other,
    };
    Err(source_error(
        "publication_not_permitted",
        format!("table {name} cannot be added to publication {}: {refused}", config.publication),
        format!("as the table's and the publication's owner: {statement};"),
    )
    .into())
}
