//! Signs by which a change is noticed that the stream does not tell: which publication and membership these are, what a table
//! is called, which column is behind which name, what the labels of an enum are, which files and partitions hold the rows, which
//! tables inherit from it.
//!
//! The surprise is how a rewrite in place is told from VACUUM FULL. `ALTER ... TYPE same_type USING ...` changes every value
//! without an event and with an identical RELATION message; it gives the table a new file, as VACUUM FULL, CLUSTER and
//! TRUNCATE do. But it also writes the column's row in `pg_attribute` anew, which those three do not: a new file together
//! with a new `xmin` of a column's catalog row is a column whose values may be others now.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use engine::change::{ColumnType, Lsn, TableId, TableSchema};
use engine::source::{FollowedTable, SourceError};
use postgres_types::PgLsn;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::catalog::IS_NONDETERMINISTIC;
use super::config::TableName;
use super::error::{Failure, source_error};
use super::following::{read_anew, reading};
use super::inheritance::{self, CHILDREN};
use super::patience::with_patience;
use super::synchronous;

/// Signs of the publication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PublicationSigns {
    pub(super) oid: u32,
    /// What it publishes, and how: `puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot`.
    pub(super) flags: String,
    /// Transaction that wrote its catalog row: another one after `SET (publish = 'insert')` and back. Adding a table writes
    /// another row. `None` where an earlier version stored it.
    #[serde(default)]
    pub(super) xmin: Option<String>,
}

/// [`PublicationSigns::flags`] of a publication that carries everything.
const COMPLETE: &str = "f,t,t,t,t,f";

impl PublicationSigns {
    /// Whether nothing of its tables is left out.
    pub(super) fn is_complete(&self) -> bool {
        self.flags == COMPLETE
    }

    /// Whether it is known to have been as it is ever since.
    pub(super) fn is_still(&self, now: &PublicationSigns) -> bool {
        (self.oid, &self.flags) == (now.oid, &now.flags) && (self.xmin.is_none() || self.xmin == now.xmin)
    }
}

/// Signs of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TableSigns {
    /// What it is called; compared with the schema it was read under, so nobody keeps it.
    #[serde(skip)]
    pub(super) namespace: String,
    #[serde(skip)]
    pub(super) name: String,
    /// OID of the row that makes the table a member of the publication; new whenever it is added.
    pub(super) membership: Option<u32>,
    /// Row filters and column lists, its own and those of what is below and above it: the statements that end them.
    #[serde(skip)]
    pub(super) narrowed: Vec<String>,
    /// Some of the tables that inherit from it, quoted. One that comes and goes between two looks changes none of its rows.
    #[serde(skip)]
    pub(super) children: Vec<String>,
    pub(super) columns: Vec<ColumnSign>,
    /// Names, in key order.
    pub(super) key: Vec<String>,
    /// The relations that hold rows, by OID: the table itself, or its partitions.
    pub(super) parts: BTreeMap<u32, PartSigns>,
    pub(super) partitioned: bool,
}

/// Signs of one column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ColumnSign {
    pub(super) name: String,
    pub(super) attnum: i16,
    /// Transaction that wrote its catalog row.
    pub(super) xmin: String,
    /// Of an enum, by OID: the transaction that wrote the label's catalog row, and the label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) labels: BTreeMap<u32, String>,
    /// Its collation takes texts for equal that differ. Compared with the type that it was read as.
    #[serde(skip)]
    pub(super) nondeterministic: bool,
}

/// Signs of one relation that holds rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartSigns {
    /// New after TRUNCATE, VACUUM FULL, CLUSTER and every ALTER that writes all rows anew.
    pub(super) filenode: u32,
    /// Transactions that attached it and what is above it; empty for an ordinary table.
    pub(super) attached: String,
    /// Where its changes are not in the log, the statement that ends that.
    #[serde(skip)]
    pub(super) outside_log: Option<String>,
}

/// Everything as found at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// End of upstream's log before anything was looked at: whatever happened before it was seen.
    pub(super) from: Lsn,
    /// End of upstream's log after everything else: whatever was seen happened before it.
    pub(super) at: Lsn,
    /// The tables that were looked for.
    pub(super) asked: Vec<TableId>,
    pub(super) publication: Option<PublicationSigns>,
    /// By OID; a table that does not exist any more is missing.
    pub(super) tables: BTreeMap<u32, TableSigns>,
}

/// Everything as it is known to be in order; kept by the engine as the source's notes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Baseline {
    pub(super) publication: Option<PublicationSigns>,
    pub(super) tables: BTreeMap<u32, TableSigns>,
}

impl Look {
    /// Looks at the publication and these tables.
    pub(super) async fn take(client: &Client, publication: &str, tables: &[TableId]) -> Result<Look, Failure> {
        let from = end_of_log(client).await?;
        let publication = read_publication(client, publication).await?;
        let oid = publication.as_ref().map_or(0, |publication| publication.oid);
        let mut found = BTreeMap::new();
        for table in tables {
            if let Some(signs) = TableSigns::read(client, oid, *table).await? {
                found.insert(table.0, signs);
            }
        }
        let at = end_of_log(client).await?;
        Ok(Look { from, at, asked: tables.to_vec(), publication, tables: found })
    }
}

async fn end_of_log(client: &Client) -> Result<Lsn, Failure> {
    let at: PgLsn = client.query_one("SELECT pg_current_wal_insert_lsn()", &[]).await?.try_get(0)?;
    Ok(Lsn(at.into()))
}

/// The longest pause between two looks at whether a transaction is visible.
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

/// Waits until others can see what a transaction did. Postgres sends a transaction as soon as its commit is in the log; to
/// other sessions it is over only a moment later, with synchronous standbys perhaps much later; and where we are taken for one, never.
pub(super) async fn until_visible(client: &Client, xid: u32) -> Result<(), Failure> {
    let running =
        "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'transactionid' AND transactionid = $1::text::xid
                                  AND mode = 'ExclusiveLock' AND granted)";
    let xid = xid.to_string();
    let mut pause = Duration::from_millis(2);
    while client.query_one(running, &[&xid]).await?.try_get(0)? {
        if pause == LONGEST_PAUSE {
            synchronous::refuse(client).await?;
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
    Ok(())
}

/// The tables that a relation is a partition of, directly or not. Any of them may be the one that is followed.
pub(super) async fn partitioned_above(client: &Client, relation: TableId) -> Result<Vec<TableId>, Failure> {
    let rows = client
        .query(
            "SELECT a.relid::oid FROM pg_class c, pg_partition_ancestors(c.oid) AS a(relid)
             WHERE c.oid = $1 AND c.relispartition AND c.relkind = 'r' AND a.relid <> c.oid",
            &[&relation.0],
        )
        .await?;
    rows.iter().map(|row| Ok(TableId(row.try_get(0)?))).collect()
}

async fn read_publication(client: &Client, publication: &str) -> Result<Option<PublicationSigns>, Failure> {
    let row = client
        .query_opt(
            "SELECT oid, concat_ws(',', puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot), xmin::text
             FROM pg_publication WHERE pubname = $1",
            &[&publication],
        )
        .await?;
    row.map(|row| Ok(PublicationSigns { oid: row.try_get(0)?, flags: row.try_get(1)?, xmin: row.try_get(2)? }))
        .transpose()
}

/// One statement, so that all of it is of one moment: a new file seen without the column that was written with it would be
/// taken for VACUUM FULL. Not by the functions for partition trees or for names: they see what is newer than the statement.
/// Row filters and column lists exist since PG 15; naming their columns would fail on PG 14.
static TABLE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "
    WITH RECURSIVE tree AS (
        SELECT $2::oid AS relid, ''::text AS attached, 0::oid AS parent
        UNION ALL
        SELECT i.inhrelid, concat_ws(',', nullif(tree.attached, ''), i.xmin::text), tree.relid
        FROM tree JOIN pg_class c ON c.oid = tree.relid AND c.relkind = 'p'
        JOIN pg_inherits i ON i.inhparent = tree.relid AND NOT i.inhdetachpending
    ), above AS (
        SELECT i.inhparent AS relid FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition
        WHERE i.inhrelid = $2
        UNION ALL
        SELECT i.inhparent FROM above JOIN pg_inherits i ON i.inhrelid = above.relid
    ), holder AS (
        SELECT c.oid, c.relfilenode, tree.attached,
               CASE WHEN c.relkind = 'f'
                    THEN format('ALTER TABLE %I.%I DETACH PARTITION %I.%I', un.nspname, up.relname, n.nspname, c.relname)
                    WHEN c.relpersistence <> 'p' THEN format('ALTER TABLE %I.%I SET LOGGED', n.nspname, c.relname)
               END AS outside_log
        FROM tree JOIN pg_class c ON c.oid = tree.relid JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_class up ON up.oid = tree.parent LEFT JOIN pg_namespace un ON un.oid = up.relnamespace
        WHERE c.relkind IN ('r', 'f')
    ), col AS (
        SELECT a.attnum, a.attname::text AS name, a.xmin::text AS xmin,
               (WITH RECURSIVE base AS (
                    SELECT a.atttypid AS typid
                    UNION ALL
                    SELECT t.typbasetype FROM base JOIN pg_type t ON t.oid = base.typid AND t.typtype = 'd'
                )
                SELECT coalesce(json_object_agg(e.oid::text, e.xmin::text || ' ' || e.enumlabel)::text, '{{}}')
                FROM base JOIN pg_enum e ON e.enumtypid = base.typid) AS labels,
               {IS_NONDETERMINISTIC} AS nondeterministic
        FROM pg_attribute a WHERE a.attrelid = $2 AND a.attnum > 0 AND NOT a.attisdropped
    )
    SELECT (SELECT r.oid FROM pg_publication_rel r WHERE r.prpubid = $1 AND r.prrelid = c.oid),
           ARRAY(SELECT format('ALTER PUBLICATION %I DROP TABLE ONLY %I.%I', p.pubname, mn.nspname, m.relname)
                 FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                 JOIN pg_class m ON m.oid = r.prrelid JOIN pg_namespace mn ON mn.oid = m.relnamespace
                 WHERE r.prpubid = $1 AND r.prrelid IN (SELECT relid FROM tree UNION ALL SELECT relid FROM above)
                   AND (to_jsonb(r) ->> 'prqual' IS NOT NULL OR to_jsonb(r) ->> 'prattrs' IS NOT NULL)
                 ORDER BY r.prrelid),
           ARRAY(SELECT name FROM col ORDER BY attnum), ARRAY(SELECT attnum FROM col ORDER BY attnum),
           ARRAY(SELECT xmin FROM col ORDER BY attnum), ARRAY(SELECT labels FROM col ORDER BY attnum),
           ARRAY(SELECT a.attname::text
                 FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k(attnum, position), pg_attribute a
                 WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate AND k.position <= i.indnkeyatts
                   AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END
                   AND a.attrelid = c.oid AND a.attnum = k.attnum
                 ORDER BY k.position),
           c.relkind = 'p',
           ARRAY(SELECT oid FROM holder ORDER BY oid), ARRAY(SELECT relfilenode FROM holder ORDER BY oid),
           ARRAY(SELECT attached FROM holder ORDER BY oid), ARRAY(SELECT outside_log FROM holder ORDER BY oid),
           n.nspname::text, c.relname::text, {CHILDREN},
           ARRAY(SELECT nondeterministic FROM col ORDER BY attnum)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $2 AND c.relkind IN ('r', 'p')"
    )
});

impl TableSigns {
    async fn read(client: &Client, publication: u32, table: TableId) -> Result<Option<TableSigns>, Failure> {
        let Some(row) = client.query_opt(TABLE.as_str(), &[&publication, &table.0]).await? else { return Ok(None) };
        let (names, attnums): (Vec<String>, Vec<i16>) = (row.try_get(2)?, row.try_get(3)?);
        let (xmins, labels): (Vec<String>, Vec<String>) = (row.try_get(4)?, row.try_get(5)?);
        let nondeterministic: Vec<bool> = row.try_get(15)?;
        let columns = names.into_iter().zip(attnums).zip(xmins.into_iter().zip(labels)).zip(nondeterministic);
        let columns = columns.map(|(((name, attnum), (xmin, labels)), nondeterministic)| {
            let labels = serde_json::from_str(&labels).map_err(|error| Failure::Transient(error.to_string()))?;
            Ok(ColumnSign { name, attnum, xmin, labels, nondeterministic })
        });
        let columns: Vec<ColumnSign> = columns.collect::<Result<_, Failure>>()?;
        let (oids, filenodes): (Vec<u32>, Vec<u32>) = (row.try_get(8)?, row.try_get(9)?);
        let (attached, outside_log): (Vec<String>, Vec<Option<String>>) = (row.try_get(10)?, row.try_get(11)?);
        let parts = oids.into_iter().zip(filenodes).zip(attached.into_iter().zip(outside_log));
        Ok(Some(TableSigns {
            namespace: row.try_get(12)?,
            name: row.try_get(13)?,
            membership: row.try_get(0)?,
            narrowed: row.try_get(1)?,
            children: row.try_get(14)?,
            columns,
            key: row.try_get(6)?,
            parts: parts
                .map(|((oid, filenode), (attached, outside_log))| (oid, PartSigns { filenode, attached, outside_log }))
                .collect(),
            partitioned: row.try_get(7)?,
        }))
    }

    fn column(&self, name: &str) -> Option<&ColumnSign> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// What a look shows to be otherwise than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Drift {
    /// The table as a whole cannot be followed exactly.
    Table(SourceError),
    /// The column at this position of the schema.
    Column(usize, String),
    /// A relation holds rows of the table now that did not before.
    PartAppeared(TableId),
    /// A relation was taken away and came back: what happened to it meanwhile was not sent.
    PartReturned(TableId),
    /// A relation holds none any more.
    PartVanished(TableId),
}

/// The reason of a table that has another name now: who asks for the old one may mean another table.
pub(super) fn renamed(schema: &TableSchema, namespace: &str, name: &str) -> SourceError {
    let (was, is) = (schema.qualified_name(), format!("{namespace}.{name}"));
    source_error(
        "schema_changed",
        format!("table {was}: it is now called {is}, and {was} may be another table"),
        format!(
            "have the table that is meant read: {} -- or, where there is a {was} again: {}",
            reading(&is),
            reading(&was)
        ),
    )
}

/// The reason of a table of which the publication leaves something out.
pub(super) fn narrowed(schema: &TableSchema, now: &TableSigns) -> Option<SourceError> {
    if now.narrowed.is_empty() {
        return None;
    }
    let name = schema.qualified_name();
    let what = format!(
        "the publication has a row filter or a column list for table {name}, or for a partition of it: changes are left out \
         since then and cannot be known"
    );
    let remedy = format!("{}; -- then {}", now.narrowed.join("; "), read_anew(&name));
    Some(source_error("publication_changed", what, remedy))
}

/// Compares a look with what was known before it.
pub(super) fn drifts(table: &FollowedTable, before: &TableSigns, now: Option<&TableSigns>) -> Vec<Drift> {
    let schema = &table.schema;
    let name = schema.qualified_name();
    let halts = |code: &'static str, what: String| vec![Drift::Table(source_error(code, what, read_anew(&name)))];
    let Some(now) = now else {
        return halts("table_dropped", format!("table {name} does not exist any more"));
    };
    if (&schema.namespace, &schema.name) != (&now.namespace, &now.name) {
        return vec![Drift::Table(renamed(schema, &now.namespace, &now.name))];
    }
    if let Some(reason) = narrowed(schema, now) {
        return vec![Drift::Table(reason)];
    }
    if before.membership != now.membership {
        let what = if now.membership.is_none() { "was taken out of" } else { "was taken out of and added again to" };
        let what = format!("table {name} {what} the publication; changes in between were not sent and cannot be known");
        return halts("publication_changed", what);
    }
    if let Some(statement) = now.parts.values().find_map(|part| part.outside_log.as_ref()) {
        let what = format!(
            "a partition of table {name} is an unlogged or a foreign table now: its changes are not in the log"
        );
        let remedy = format!("{statement}; -- then {}", read_anew(&name));
        return vec![Drift::Table(source_error("unsupported_table", what, remedy))];
    }
    if let Some(what) = inheritance::what(&name, &now.children) {
        let quoted = TableName::of(schema).quoted();
        let remedy = inheritance::remedy(&quoted, &now.children, &format!("then {}", read_anew(&name)));
        return vec![Drift::Table(source_error("schema_changed", what, remedy))];
    }
    if before.key != now.key || before.partitioned != now.partitioned {
        let what = format!("the primary key of {name} was ({}) and is ({})", before.key.join(", "), now.key.join(", "));
        return halts("schema_changed", what);
    }
    let rewritten = |id: &u32, part: &PartSigns| now.parts.get(id).is_some_and(|now| now.filenode != part.filenode);
    let rewritten = before.parts.iter().any(|(id, part)| rewritten(id, part));
    let mut drifts = column_drifts(schema, before, now, rewritten);
    for (id, part) in &now.parts {
        match before.parts.get(id) {
            None => drifts.push(Drift::PartAppeared(TableId(*id))),
            Some(before) if before.attached != part.attached => drifts.push(Drift::PartReturned(TableId(*id))),
            Some(_) => {}
        }
    }
    // One that was taken in and went before anybody looked is in no look.
    let taken_in = table.partitions.iter().map(|part| part.0).filter(|_| now.partitioned);
    let mut vanished: Vec<u32> = before.parts.keys().copied().chain(taken_in).collect();
    vanished.retain(|id| !now.parts.contains_key(id));
    vanished.sort_unstable();
    vanished.dedup();
    drifts.extend(vanished.into_iter().map(|id| Drift::PartVanished(TableId(id))));
    drifts
}

fn column_drifts(schema: &TableSchema, before: &TableSigns, now: &TableSigns, rewritten: bool) -> Vec<Drift> {
    let mut drifts = Vec::new();
    for (index, column) in schema.columns.iter().enumerate() {
        let Some(was) = before.column(&column.name) else { continue };
        let is = now.columns.iter().find(|is| is.attnum == was.attnum);
        let what = match is {
            None => format!("column {} was dropped", column.name),
            Some(is) if is.name != was.name => format!("column {} was renamed to {}", was.name, is.name),
            Some(is) if is.nondeterministic && is_text(&column.column_type) => {
                format!(
                    "column {} has a nondeterministic collation now, to which texts are equal that differ",
                    column.name
                )
            }
            Some(is) if rewritten && is.xmin != was.xmin => {
                format!(
                    "the values of column {} may have been rewritten (ALTER TABLE ... ALTER ... TYPE ... USING)",
                    column.name
                )
            }
            // Rows are stored under the labels they came with. One that is named back has been another meanwhile.
            Some(is) if was.labels.iter().any(|(oid, label)| is.labels.get(oid) != Some(label)) => {
                format!("a value of the enum of column {} was renamed (ALTER TYPE ... RENAME VALUE)", column.name)
            }
            Some(_) => continue,
        };
        let name = schema.qualified_name();
        drifts.push(match schema.primary_key.contains(&index) {
            true => Drift::Table(source_error("schema_changed", format!("table {name}: {what}"), read_anew(&name))),
            false => Drift::Column(index, what),
        });
    }
    drifts
}

/// Told apart by their bytes; an enum, too, but it has no collation.
fn is_text(column_type: &ColumnType) -> bool {
    matches!(column_type, ColumnType::Text | ColumnType::Char)
}

/// Whether rows may have come to a table with a partition, and so without an event.
///
/// Not by the rows: a transaction with an older number may attach what a newer one wrote, and rows may be written anew or
/// deleted after they came. A partition that was made as one, and so were the partitioned ones it is in, never held others:
/// attaching writes the catalog rows of all columns anew, so one of them is still of the command that wrote those of the
/// system columns. Its file must be the first one, because a new partition may have been unlogged for a moment. Into any other
/// rows may have come if it has a page; and where no row images tell changes of such rows from others, even if it has none. `None`
/// where it does not exist any more.
pub(super) async fn attached_with_rows(
    client: &Client,
    table: &TableSchema,
    partition: TableId,
) -> Result<Option<bool>, Failure> {
    let row = client
        .query_opt(
            "WITH RECURSIVE chain AS (
                 SELECT $1::oid AS relid
                 UNION ALL
                 SELECT i.inhparent FROM chain JOIN pg_inherits i ON i.inhrelid = chain.relid WHERE i.inhparent <> $2
             )
             SELECT c.relfilenode = c.oid AND (
                        SELECT bool_and(EXISTS (
                            SELECT 1 FROM pg_attribute s JOIN pg_attribute a ON a.attrelid = s.attrelid AND a.attnum > 0
                            WHERE s.attrelid = chain.relid AND s.attnum = -1 AND a.xmin = s.xmin AND a.cmin = s.cmin
                              AND a.xmax = '0' AND s.xmax = '0'))
                        FROM chain)
             FROM pg_class c WHERE c.oid = $1",
            &[&partition.0, &table.id.0],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let made_as_one: bool = row.try_get(0)?;
    Ok(Some(!made_as_one && (!table.keeps_row_image || may_have_pages(client, partition).await?)))
}

/// Whether a relation has a page. Looking at its size waits for whoever alters or empties it; then it may have one.
async fn may_have_pages(client: &Client, relation: TableId) -> Result<bool, Failure> {
    let size = async || {
        let row = client.query_one("SELECT coalesce(pg_relation_size($1::oid), 0) > 0", &[&relation.0]).await?;
        row.try_get(0)
    };
    match with_patience(client, SIZE_PATIENCE, size).await {
        Err(failure) if failure.is_locked_out() => Ok(true),
        looked => looked,
    }
}

/// How long a size is waited for.
const SIZE_PATIENCE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use engine::change::Column;
    use engine::source::TableState;

    use super::*;

    fn table() -> FollowedTable {
        let column = |name: &str| Column { name: name.to_owned(), column_type: ColumnType::Int8 };
        let schema = TableSchema {
            id: TableId(7),
            namespace: "public".to_owned(),
            name: "t".to_owned(),
            columns: vec![column("id"), column("a"), column("b")],
            primary_key: vec![0],
            keeps_row_image: true,
        };
        FollowedTable::new(schema, TableState::Live)
    }

    fn column(name: &str, attnum: i16) -> ColumnSign {
        ColumnSign {
            name: name.to_owned(),
            attnum,
            xmin: "700".to_owned(),
            labels: BTreeMap::new(),
            nondeterministic: false,
        }
    }

    fn part(filenode: u32, attached: &str) -> PartSigns {
        PartSigns { filenode, attached: attached.to_owned(), outside_log: None }
    }

    fn signs() -> TableSigns {
        TableSigns {
            namespace: "public".to_owned(),
            name: "t".to_owned(),
            membership: Some(1),
            narrowed: Vec::new(),
            children: Vec::new(),
            columns: vec![column("id", 1), column("a", 2), column("b", 3)],
            key: vec!["id".to_owned()],
            parts: BTreeMap::from([(7, part(70, ""))]),
            partitioned: false,
        }
    }

    /// The one code that the table halts with.
    fn code(drifts: &[Drift]) -> &'static str {
        match drifts {
            [Drift::Table(reason)] => reason.code,
            other => panic!("{other:?}"),
        }
    }

    fn after(change: impl Fn(&mut TableSigns)) -> Vec<Drift> {
        let mut now = signs();
        change(&mut now);
        drifts(&table(), &signs(), Some(&now))
    }

    #[test]
    fn what_is_harmless_is_no_drift() {
        assert!(after(|_| {}).is_empty());
        // A column comes, one gets a default, the table is truncated or compacted.
        assert!(after(|now| now.columns.push(column("c", 4))).is_empty());
        assert!(after(|now| now.columns[1].xmin = "800".into()).is_empty());
        assert!(after(|now| now.parts.get_mut(&7).unwrap().filenode = 71).is_empty());
    }

    #[test]
    fn a_column_is_its_number_and_its_catalog_row() {
        let one = |drifts: Vec<Drift>| match drifts.as_slice() {
            [Drift::Column(index, what)] => (*index, what.clone()),
            other => panic!("{other:?}"),
        };
        assert_eq!(one(after(|now| drop(now.columns.remove(1)))).0, 1);
        let renamed = one(after(|now| now.columns[2].name = "z".into()));
        assert_eq!(renamed, (2, "column b was renamed to z".to_owned()));
        // Dropped, and another one under its name.
        assert_eq!(one(after(|now| now.columns[1].attnum = 9)).0, 1);
        let rewritten = |now: &mut TableSigns| {
            now.parts.get_mut(&7).unwrap().filenode = 71;
            now.columns[2].xmin = "800".into();
        };
        assert_eq!(one(after(rewritten)).0, 2);
        let of_key = after(|now| {
            now.parts.get_mut(&7).unwrap().filenode = 71;
            now.columns[0].xmin = "800".into();
        });
        assert_eq!(code(&of_key), "schema_changed");
    }

    #[test]
    fn texts_that_differ_stay_different() {
        let read_as = |index: usize, column_type| {
            let mut table = table();
            table.schema.columns[index].column_type = column_type;
            let mut now = signs();
            now.columns[index].nondeterministic = true;
            drifts(&table, &signs(), Some(&now))
        };
        for text in [ColumnType::Text, ColumnType::Char] {
            let found = read_as(1, text.clone());
            assert!(matches!(found.as_slice(), [Drift::Column(1, what)] if what.contains("collation")), "{found:?}");
            assert_eq!(code(&read_as(0, text)), "schema_changed");
        }
        // It was so when it was read.
        assert!(read_as(1, ColumnType::Unsupported("text with nondeterministic collation".to_owned())).is_empty());
    }

    #[test]
    fn labels_come_and_keep_their_names() {
        let labelled = |labels: &[(u32, &str)]| {
            let mut signs = signs();
            let labels = labels.iter().map(|(oid, label)| (*oid, (*label).to_owned()));
            signs.columns[1].labels = labels.collect();
            signs
        };
        let before = labelled(&[(1, "700 pending"), (2, "700 paid")]);
        let more = labelled(&[(1, "700 pending"), (2, "700 paid"), (3, "800 late")]);
        assert!(drifts(&table(), &before, Some(&more)).is_empty());
        // Stored by an earlier version.
        assert!(drifts(&table(), &signs(), Some(&before)).is_empty());
        for label in ["800 open", "800 pending"] {
            let now = labelled(&[(1, label), (2, "700 paid")]);
            assert!(matches!(drifts(&table(), &before, Some(&now)).as_slice(), [Drift::Column(1, _)]));
        }
    }

    #[test]
    fn a_publication_is_known_by_who_wrote_it() {
        let with = |xmin: Option<&str>| PublicationSigns {
            oid: 5,
            flags: "f,t,t,t,t,f".to_owned(),
            xmin: xmin.map(str::to_owned),
        };
        assert!(with(Some("700")).is_still(&with(Some("700"))));
        assert!(!with(Some("700")).is_still(&with(Some("800"))));
        let stored: Baseline = serde_json::from_str(
            r#"{"publication":{"oid":5,"flags":"f,t,t,t,t,f"},"tables":{"7":{"membership":1,"partial":false,
                "columns":[{"name":"id","attnum":1,"xmin":"700"}],"key":["id"],
                "parts":{"7":{"filenode":70,"attached":""}},"partitioned":false}}}"#,
        )
        .unwrap();
        assert!(stored.publication.unwrap().is_still(&with(Some("700"))));
        assert!(drifts(&table(), &stored.tables[&7], Some(&signs())).is_empty());
    }

    #[test]
    fn tables_and_parts() {
        assert_eq!(code(&drifts(&table(), &signs(), None)), "table_dropped");
        let renamed = after(|now| now.name = "u".into());
        assert_eq!(code(&renamed), "schema_changed");
        // The one that is there comes first.
        let [Drift::Table(reason)] = renamed.as_slice() else { panic!("{renamed:?}") };
        let named = reason.remedy.split("{\"table\":\"").nth(1);
        assert!(named.is_some_and(|table| table.starts_with("public.u\"")), "{}", reason.remedy);
        assert_eq!(code(&after(|now| now.namespace = "attic".into())), "schema_changed");
        assert_eq!(code(&after(|now| now.membership = None)), "publication_changed");
        assert_eq!(code(&after(|now| now.membership = Some(2))), "publication_changed");
        assert_eq!(code(&after(|now| now.narrowed = vec!["ALTER ...".into()])), "publication_changed");
        assert_eq!(code(&after(|now| now.key = vec!["a".into()])), "schema_changed");
        assert_eq!(code(&after(|now| now.children = vec!["public.u".into()])), "schema_changed");
        let unlogged = PartSigns { outside_log: Some("ALTER ...".into()), ..part(90, "5") };
        assert_eq!(code(&after(|now| drop(now.parts.insert(9, unlogged.clone())))), "unsupported_table");
        assert_eq!(after(|now| drop(now.parts.insert(9, part(90, "5")))), [Drift::PartAppeared(TableId(9))]);
        let vanished = after(|now| {
            now.parts.clear();
        });
        assert_eq!(vanished, [Drift::PartVanished(TableId(7))]);
        let again = after(|now| now.parts.get_mut(&7).unwrap().attached = "6".into());
        assert_eq!(again, [Drift::PartReturned(TableId(7))]);
    }
}
