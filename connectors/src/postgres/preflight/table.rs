//! What a table must be, all of it at once: name, kind, children, rights, row-level security, key and replica identity, of a
//! partitioned table also for each partition.
//!
//! The surprise: a table without identity works until it is published. From then on Postgres refuses the application's
//! own updates and deletes, so it has to be told before we publish anything.

use tokio_postgres::{Client, Row};

use super::super::config::{PostgresConfig, TableName, Wanted, quote_identifier};
use super::super::dotted_name;
use super::super::error::Failure;
use super::super::inheritance::{self, CHILDREN};
use super::finding::Finding;

/// Names shown of many partitions.
const SHOWN: usize = 3;

/// What the catalog says of one table or partition.
#[derive(Clone, Debug)]
pub(super) struct TableFacts {
    pub(super) oid: u32,
    name: TableName,
    kind: String,
    persistence: String,
    identity: String,
    rows_estimated: f64,
    usable_schema: bool,
    readable: bool,
    rows_hidden: bool,
    /// Has a primary key that is checked at once.
    primary_key: bool,
    /// Has the index that its replica identity names.
    identity_index: bool,
    /// An index that could be the replica identity.
    unique_index: Option<String>,
    stored_generated: bool,
    virtual_generated: bool,
    /// Some of the tables that inherit from it, quoted; its partitions do not count.
    children: Vec<String>,
}

/// What the publication and the server make of generated columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Generated {
    /// As in `server_version_num`.
    pub(super) version: i32,
    /// The publication carries stored generated columns.
    pub(super) published: bool,
}

impl TableFacts {
    /// The table of this name, where there is one, and its partitions that hold rows.
    pub(super) async fn read(client: &Client, name: &TableName) -> Result<Option<(Self, Vec<Self>)>, Failure> {
        let Some(row) = client
            .query_opt(
                "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
                &[&name.namespace, &name.name],
            )
            .await?
        else {
            return Ok(None);
        };
        let oid: u32 = row.try_get(0)?;
        let mut relations = Self::of(client, oid).await?;
        let Some(at) = relations.iter().position(|relation| relation.oid == oid) else { return Ok(None) };
        let table = relations.swap_remove(at);
        relations.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Some((table, relations)))
    }

    /// A table and its leaves.
    async fn of(client: &Client, oid: u32) -> Result<Vec<Self>, Failure> {
        let rows = client
            .query(
                // Not by the functions for partition trees: they wait for the lock of every partition.
                &format!(
                    "WITH RECURSIVE tree AS (
                     SELECT i.inhrelid FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent
                     WHERE i.inhparent = $1 AND p.relkind = 'p'
                     UNION ALL
                     SELECT i.inhrelid FROM tree JOIN pg_class p ON p.oid = tree.inhrelid AND p.relkind = 'p'
                     JOIN pg_inherits i ON i.inhparent = p.oid
                 )
                 SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
                        c.relreplident::text, c.reltuples::float8, has_schema_privilege(n.oid, 'USAGE'),
                        has_table_privilege(c.oid, 'SELECT'), row_security_active(c.oid),
                        EXISTS (SELECT 1 FROM pg_index i
                                WHERE i.indrelid = c.oid AND i.indisprimary AND i.indisvalid AND i.indimmediate),
                        EXISTS (SELECT 1 FROM pg_index i
                                WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid AND i.indimmediate),
                        (SELECT x.relname::text FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
                         WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
                           AND i.indpred IS NULL AND i.indexprs IS NULL
                           AND NOT EXISTS (SELECT 1 FROM unnest(i.indkey) WITH ORDINALITY AS k(attnum, position)
                                           JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
                                           WHERE k.position <= i.indnkeyatts AND NOT a.attnotnull)
                         ORDER BY i.indnkeyatts, x.relname LIMIT 1),
                        EXISTS (SELECT 1 FROM pg_attribute a
                                WHERE a.attrelid = c.oid AND NOT a.attisdropped AND a.attgenerated = 's'),
                        EXISTS (SELECT 1 FROM pg_attribute a
                                WHERE a.attrelid = c.oid AND NOT a.attisdropped AND a.attgenerated = 'v'),
                        {CHILDREN}
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.oid = $1 OR c.relkind <> 'p' AND c.oid IN (SELECT inhrelid FROM tree)"
                ),
                &[&oid],
            )
            .await?;
        rows.iter().map(Self::from_row).collect()
    }

    fn from_row(row: &Row) -> Result<Self, Failure> {
        Ok(TableFacts {
            oid: row.try_get(0)?,
            name: TableName { namespace: row.try_get(1)?, name: row.try_get(2)? },
            kind: row.try_get(3)?,
            persistence: row.try_get(4)?,
            identity: row.try_get(5)?,
            rows_estimated: row.try_get(6)?,
            usable_schema: row.try_get(7)?,
            readable: row.try_get(8)?,
            rows_hidden: row.try_get(9)?,
            primary_key: row.try_get(10)?,
            identity_index: row.try_get(11)?,
            unique_index: row.try_get(12)?,
            stored_generated: row.try_get(13)?,
            virtual_generated: row.try_get(14)?,
            children: row.try_get(15)?,
        })
    }

    fn is_partitioned(&self) -> bool {
        self.kind == "p"
    }

    /// Can tell its rows apart.
    fn has_identity(&self) -> bool {
        if self.identity == "i" { self.identity_index } else { self.primary_key }
    }

    fn default_identity(&self) -> String {
        format!("ALTER TABLE {} REPLICA IDENTITY DEFAULT", self.name.quoted())
    }

    /// What it is, where that is nothing we can follow; with the remedy and whether that is a statement.
    fn unsupported(&self) -> Option<(&'static str, String)> {
        let what = match (self.kind.as_str(), self.persistence.as_str()) {
            ("r", "p") | ("p", _) => return None,
            ("r", "u") => "an unlogged table, which has no log to follow",
            ("r", _) => "a temporary table",
            ("v" | "m", _) => "a view",
            ("f", _) => "a foreign table",
            _ => "not a table",
        };
        let remedy = match (self.kind.as_str(), self.persistence.as_str()) {
            ("r", "u") => format!("ALTER TABLE {} SET LOGGED;", self.name.quoted()),
            _ => "list ordinary tables only; for a view, list the tables it reads".to_owned(),
        };
        Some((what, remedy))
    }
}

/// Everything about one table, in the order in which it would stop a source; `generated` where that is known.
pub(super) fn judge(
    config: &PostgresConfig,
    wanted: &Wanted,
    table: &TableFacts,
    partitions: &[TableFacts],
    generated: Option<Generated>,
) -> Vec<Finding> {
    if let Some((what, remedy)) = table.unsupported() {
        return vec![Finding::failed("table", "unsupported_table", format!("{} is {what}", table.name)).remedy(remedy)];
    }
    let mut findings = vec![judge_kind(table, partitions)];
    // The rows, and with them rights and identity, are the partitions'.
    let holders: Vec<&TableFacts> = if table.is_partitioned() { partitions.iter().collect() } else { vec![table] };
    findings.extend(judge_nothing(table, &holders));
    findings.push(judge_rights(config, table, &holders));
    findings.push(judge_row_security(config, table, &holders));
    findings.push(judge_key(table, &holders));
    if !wanted.keeps_row_image {
        findings.push(judge_whole_old_rows(table, &holders));
    }
    findings.extend(generated.and_then(|generated| judge_generated(table, &holders, generated)));
    findings
}

fn judge_kind(table: &TableFacts, partitions: &[TableFacts]) -> Finding {
    if let Some((message, remedy)) = dotted_name::refused(&table.name.namespace, &table.name.name) {
        return Finding::failed("table", "unsupported_table", message).remedy(remedy);
    }
    let unsupported = partitions.iter().find_map(|leaf| leaf.unsupported().map(|found| (leaf, found)));
    if let Some((leaf, (what, remedy))) = unsupported {
        let message = format!("partition {} of {} is {what}", leaf.name, table.name);
        return Finding::failed("table", "unsupported_table", message).remedy(remedy);
    }
    if let Some(message) = inheritance::what(&table.name.to_string(), &table.children) {
        let then = "it has no rows but its own then; to count all of them, make it a partitioned table (PARTITION BY)";
        let remedy = inheritance::remedy(&table.name.quoted(), &table.children, then);
        return Finding::failed("table", "unsupported_table", message).remedy(remedy);
    }
    let rows: f64 = if table.is_partitioned() {
        partitions.iter().map(|leaf| leaf.rows_estimated.max(0.0)).sum()
    } else {
        table.rows_estimated
    };
    let rows = if rows < 0.0 { String::new() } else { format!(", about {rows:.0} rows") };
    let what = if table.is_partitioned() {
        format!("a partitioned table of {} partitions", partitions.len())
    } else {
        "an ordinary table".to_owned()
    };
    Finding::ok("table", format!("{} is {what}{rows}", table.name))
}

/// `public.a`, or the partitions of it that are meant.
fn whose(table: &TableFacts, meant: &[&TableFacts]) -> String {
    if !table.is_partitioned() {
        return format!("table {}", table.name);
    }
    let names: Vec<String> = meant.iter().take(SHOWN).map(|leaf| leaf.name.to_string()).collect();
    let more = if meant.len() > SHOWN { format!(" and {} more", meant.len() - SHOWN) } else { String::new() };
    format!("of the partitions of {}, {}{more}", table.name, names.join(", "))
}

fn judge_nothing(table: &TableFacts, holders: &[&TableFacts]) -> Option<Finding> {
    let nothing: Vec<&TableFacts> = holders.iter().copied().filter(|holder| holder.identity == "n").collect();
    if nothing.is_empty() {
        return None;
    }
    let message = format!(
        "{} has REPLICA IDENTITY NOTHING: once published, Postgres would refuse the application's own updates and deletes",
        whose(table, &nothing)
    );
    let failed = Finding::failed("replica_identity", "replica_identity_nothing", message);
    let statements: Vec<String> = nothing.iter().map(|holder| holder.default_identity()).collect();
    // Without a key the default is as good as nothing; that is the next finding's to say.
    let helps = nothing.iter().all(|holder| holder.primary_key);
    Some(if helps { failed.repaired_by(statements) } else { failed.statements(&statements) })
}

fn judge_rights(config: &PostgresConfig, table: &TableFacts, holders: &[&TableFacts]) -> Finding {
    let role = quote_identifier(&config.user);
    let mut asked = vec![table];
    asked.extend(holders.iter().copied().filter(|holder| holder.oid != table.oid));
    let closed: Vec<&TableFacts> =
        asked.into_iter().filter(|relation| !relation.usable_schema || !relation.readable).collect();
    if closed.is_empty() {
        return Finding::ok("table_rights", format!("role {role} may read table {}", table.name));
    }
    let mut grants = Vec::new();
    for relation in &closed {
        let usage = format!("GRANT USAGE ON SCHEMA {} TO {role}", quote_identifier(&relation.name.namespace));
        if !relation.usable_schema && !grants.contains(&usage) {
            grants.push(usage);
        }
        if !relation.readable {
            grants.push(format!("GRANT SELECT ON {} TO {role}", relation.name.quoted()));
        }
    }
    let message = format!("role {role} may not read {}", whose(table, &closed));
    Finding::failed("table_rights", "permission_denied", message).repaired_by(grants)
}

fn judge_row_security(config: &PostgresConfig, table: &TableFacts, holders: &[&TableFacts]) -> Finding {
    let role = quote_identifier(&config.user);
    let hidden: Vec<&TableFacts> = holders.iter().copied().filter(|holder| holder.rows_hidden).collect();
    if hidden.is_empty() && !table.rows_hidden {
        return Finding::ok("row_security", format!("no row-level security hides rows of {}", table.name));
    }
    let hidden = if hidden.is_empty() { vec![table] } else { hidden };
    let message = format!("row-level security on {} hides rows from role {role}", whose(table, &hidden));
    Finding::failed("row_security", "row_security_active", message)
        .statements(&[format!("ALTER ROLE {role} BYPASSRLS")])
}

fn judge_key(table: &TableFacts, holders: &[&TableFacts]) -> Finding {
    let unkeyed: Vec<&TableFacts> = if table.is_partitioned() && !table.primary_key {
        vec![table]
    } else {
        holders.iter().copied().filter(|holder| !holder.has_identity()).collect()
    };
    let Some(first) = unkeyed.first() else {
        let how = match holders.first().map_or("", |holder| holder.identity.as_str()) {
            "f" => {
                "its primary key, while REPLICA IDENTITY FULL writes whole old rows to the log: needed only where its row images are off"
            }
            "i" => "its replica identity index",
            _ => "its primary key",
        };
        return Finding::ok("primary_key", format!("the rows of {} are told apart by {how}", table.name));
    };
    let mut message = format!(
        "{} has no primary key that is checked at once, nor a replica identity index: its rows cannot be told apart",
        whose(table, &unkeyed)
    );
    if unkeyed.iter().any(|holder| holder.identity == "d" || holder.identity == "i") {
        message.push_str(", and once it is published Postgres refuses the application's own updates and deletes");
    }
    let failed = Finding::failed("primary_key", "missing_primary_key", message);
    if first.identity == "i" && unkeyed.iter().all(|holder| holder.primary_key) {
        return failed.repaired_by(unkeyed.iter().map(|holder| holder.default_identity()).collect());
    }
    if let Some(index) = first.unique_index.as_ref().filter(|_| !table.is_partitioned()) {
        return failed.statements(&[format!(
            "ALTER TABLE {} REPLICA IDENTITY USING INDEX {}",
            first.name.quoted(),
            quote_identifier(index)
        )]);
    }
    failed.remedy(format!(
        "ALTER TABLE {} ADD PRIMARY KEY (...); -- or: ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        first.name.quoted()
    ))
}

/// Without row images the old rows must come with the changes. What makes them come lets the application write more log, so
/// it is not ours to run.
fn judge_whole_old_rows(table: &TableFacts, holders: &[&TableFacts]) -> Finding {
    let lacking: Vec<&TableFacts> = holders.iter().copied().filter(|holder| holder.identity != "f").collect();
    // New partitions get the identity of their table.
    let root = if table.is_partitioned() && table.identity != "f" { vec![table] } else { Vec::new() };
    if lacking.is_empty() && root.is_empty() {
        return Finding::ok("row_image", format!("the log holds the whole old rows of {}", table.name));
    }
    let meant = if lacking.is_empty() { "new partitions".to_owned() } else { whose(table, &lacking) };
    let message = format!("the row images of {} are switched off, and {meant} lacks REPLICA IDENTITY FULL", table.name);
    let statement = |relation: &&TableFacts| format!("ALTER TABLE {} REPLICA IDENTITY FULL", relation.name.quoted());
    let statements: Vec<String> = root.iter().chain(&lacking).map(statement).collect();
    Finding::failed("row_image", "replica_identity_not_full", message).statements(&statements)
}

/// Since 18 an identity that holds a column which is not published stops the application's updates and deletes.
fn judge_generated(table: &TableFacts, holders: &[&TableFacts], generated: Generated) -> Option<Finding> {
    if generated.version < 180_000 {
        return None;
    }
    let broken = |holder: &&TableFacts| {
        let unpublished = holder.virtual_generated || (holder.stored_generated && !generated.published);
        holder.identity == "f" && unpublished
    };
    let broken: Vec<&TableFacts> = holders.iter().copied().filter(|holder| broken(holder)).collect();
    if broken.is_empty() {
        return None;
    }
    let message = format!(
        "{} has REPLICA IDENTITY FULL and generated columns that are not published: once published, Postgres would refuse \
         the application's own updates and deletes",
        whose(table, &broken)
    );
    let statements: Vec<String> = broken.iter().map(|holder| holder.default_identity()).collect();
    Some(Finding::failed("replica_identity", "replica_identity_generated", message).statements(&statements))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::super::finding::first_failure;
    use super::*;

    fn relation(oid: u32, name: &str, kind: &str) -> TableFacts {
        TableFacts {
            oid,
            name: TableName { namespace: "public".into(), name: name.into() },
            kind: kind.into(),
            persistence: "p".into(),
            identity: "d".into(),
            rows_estimated: 10.0,
            usable_schema: true,
            readable: true,
            rows_hidden: false,
            primary_key: true,
            identity_index: false,
            unique_index: None,
            stored_generated: false,
            virtual_generated: false,
            children: Vec::new(),
        }
    }

    fn judged(table: &TableFacts, partitions: &[TableFacts], version: i32, keeps_row_image: bool) -> Vec<Finding> {
        let config = PostgresConfig::new("postgres://anna@h/d", &["t".into()], "tidemark_a").unwrap();
        let wanted = Wanted { name: table.name.clone(), keeps_row_image };
        judge(&config, &wanted, table, partitions, Some(Generated { version, published: false }))
    }

    fn failure(table: &TableFacts, partitions: &[TableFacts], version: i32) -> Option<(&'static str, String, String)> {
        first_failure(&judged(table, partitions, version, true)).map(|error| (error.code, error.message, error.remedy))
    }

    #[test]
    fn without_row_images_every_relation_writes_whole_old_rows() {
        let full = |oid, kind| TableFacts { identity: "f".into(), ..relation(oid, &format!("r{oid}"), kind) };
        let lacks = |oid, kind| relation(oid, &format!("r{oid}"), kind);
        let off = |table: &TableFacts, partitions: &[TableFacts]| {
            let found = judged(table, partitions, 150_000, false);
            assert!(found.iter().all(|finding| finding.repair.is_empty()), "more log is somebody's decision");
            first_failure(&found).map(|error| (error.code, error.remedy))
        };
        assert_eq!(off(&full(1, "r"), &[]), None);
        assert_eq!(off(&full(1, "p"), &[full(2, "r"), full(3, "r")]), None);
        let alter = |oid: u32| format!("ALTER TABLE \"public\".\"r{oid}\" REPLICA IDENTITY FULL;");
        assert_eq!(off(&lacks(1, "r"), &[]), Some(("replica_identity_not_full", alter(1))));
        assert_eq!(off(&full(1, "p"), &[full(2, "r"), lacks(3, "r")]).unwrap().1, alter(3));
        assert_eq!(off(&lacks(1, "p"), &[full(2, "r")]).unwrap().1, alter(1));
        assert_eq!(failure(&lacks(1, "r"), &[], 150_000), None);
    }

    #[test]
    fn partitions_answer_for_their_table() {
        let root = relation(1, "root", "p");
        let leaf = |oid: u32| relation(oid, &format!("p{oid}"), "r");
        assert_eq!(failure(&root, &[leaf(2), leaf(3)], 150_000), None);
        let nothing = |oid| TableFacts { identity: "n".into(), ..leaf(oid) };
        let many: Vec<TableFacts> = (2..8).map(nothing).collect();
        let (code, message, remedy) = failure(&root, &many, 150_000).unwrap();
        assert_eq!(code, "replica_identity_nothing");
        assert!(message.contains("public.p2, public.p3, public.p4 and 3 more"), "{message}");
        assert_eq!(remedy.matches("REPLICA IDENTITY DEFAULT;").count(), 6);
        let foreign = relation(4, "far", "f");
        assert_eq!(failure(&root, &[leaf(2), foreign], 150_000).unwrap().0, "unsupported_table");
        let closed = TableFacts { readable: false, ..leaf(2) };
        assert_eq!(failure(&root, &[closed], 150_000).unwrap().2, "GRANT SELECT ON \"public\".\"p2\" TO \"anna\";");
        assert_eq!(failure(&TableFacts { primary_key: false, ..root }, &[], 150_000).unwrap().0, "missing_primary_key");
    }

    #[test]
    fn rows_that_count_for_a_table_and_are_not_its_own() {
        let of = |children: &[&str]| {
            let children = children.iter().map(|child| (*child).to_owned()).collect();
            failure(&TableFacts { children, ..relation(1, "t", "r") }, &[], 150_000)
        };
        assert_eq!(of(&[]), None);
        let (code, message, remedy) = of(&["public.u"]).unwrap();
        assert_eq!(code, "unsupported_table");
        assert!(message.starts_with("public.u inherits from public.t: "), "{message}");
        assert!(remedy.starts_with("ALTER TABLE public.u NO INHERIT \"public\".\"t\"; -- "), "{remedy}");
    }

    #[test]
    fn a_table_is_not_called_as_another_one_is() {
        let name = TableName { namespace: "x".into(), name: "y.z".into() };
        let (code, message, remedy) = failure(&TableFacts { name, ..relation(1, "t", "r") }, &[], 150_000).unwrap();
        assert_eq!(code, "unsupported_table");
        assert!(message.contains("known as x.y.z,"), "{message}");
        assert!(remedy.starts_with("ALTER TABLE \"x\".\"y.z\" RENAME TO \"y_z\"; -- "), "{remedy}");
        // Its partitions are known by their numbers.
        assert_eq!(failure(&relation(1, "t", "p"), &[relation(2, "t.2026", "r")], 150_000), None);
    }

    #[test]
    fn generated_columns_matter_since_18_and_under_full() {
        let table =
            |identity: &str| TableFacts { identity: identity.into(), stored_generated: true, ..relation(1, "t", "r") };
        assert_eq!(failure(&table("f"), &[], 170_000), None);
        assert_eq!(failure(&table("f"), &[], 180_000).unwrap().0, "replica_identity_generated");
        assert_eq!(failure(&table("d"), &[], 180_000), None);
    }
}
