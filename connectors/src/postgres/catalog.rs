//! What the catalog says about our tables: their shape, the relations that hold their rows, and whether they can be followed.

use std::collections::BTreeMap;

use engine::change::{Column, ColumnType, TableId, TableSchema};
use engine::source::{FollowedTable, TableState};
use tokio_postgres::Client;

use super::config::{PostgresConfig, TableName, Wanted, quote_identifier};
use super::error::Failure;
use super::preflight::check_relations;
use super::readers::{Part, Reading};

/// A table that can be followed, with what the snapshot needs to read it.
#[derive(Clone, Debug)]
pub(super) struct CatalogTable {
    pub(super) schema: TableSchema,
    /// One SQL expression per column of the schema.
    pub(super) copy_columns: Vec<String>,
    /// By the server's statistics.
    pub(super) rows_estimated: u64,
    /// This role may add it to a publication.
    pub(super) owned: bool,
    /// The relations that hold its rows: itself, or its partitions.
    pub(super) parts: Vec<Part>,
    pub(super) partitioned: bool,
    /// Their files, new after TRUNCATE and after every ALTER that writes all rows anew.
    filenodes: Vec<u32>,
}

impl CatalogTable {
    /// Equal for two looks between which nothing happened that a snapshot could not see.
    pub(super) fn version(&self) -> (&TableSchema, &[Part], &[u32]) {
        (&self.schema, &self.parts, &self.filenodes)
    }

    /// As the engine is to know it.
    pub(super) fn followed(&self, standing: TableState) -> FollowedTable {
        let partitions = if self.partitioned { self.parts.iter().map(|part| part.id).collect() } else { Vec::new() };
        FollowedTable { schema: self.schema.clone(), partitions, standing }
    }

    /// As the readers are to read it.
    pub(super) fn reading(&self) -> Reading<'_> {
        Reading { schema: &self.schema, copy_columns: &self.copy_columns, parts: &self.parts }
    }
}

/// Columns of this kind compare by other rules than their bytes, so nothing may group by them.
pub(super) const NONDETERMINISTIC: &str = "text with nondeterministic collation";

/// SQL: whether the column `a` is of that kind. A column has the collation of its domain.
pub(super) const IS_NONDETERMINISTIC: &str =
    "EXISTS (SELECT 1 FROM pg_collation o WHERE o.oid = a.attcollation AND NOT o.collisdeterministic)";

/// Reads all tables, or says which one cannot be followed and why.
pub(super) async fn resolve_tables(
    client: &Client,
    config: &PostgresConfig,
    wanted: &[Wanted],
) -> Result<Vec<CatalogTable>, Failure> {
    let mut tables = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        check_relations(client, config, wanted).await?;
        tables.push(shape(client, wanted).await?);
    }
    Ok(tables)
}

/// What a table looks like; whether that can be followed was checked before.
pub(super) async fn shape(client: &Client, wanted: &Wanted) -> Result<CatalogTable, Failure> {
    let name = &wanted.name;
    let row = client
        .query_opt(
            "SELECT c.oid, c.relkind = 'p', c.relreplident = 'i', c.reltuples::float8, pg_has_role(c.relowner, 'USAGE'),
                    c.relfilenode
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')",
            &[&name.namespace, &name.name],
        )
        .await?;
    let Some(row) = row else { return Err(table_missing(client, name).await?) };
    let oid: u32 = row.try_get(0)?;
    let partitioned: bool = row.try_get(1)?;
    let by_identity_index: bool = row.try_get(2)?;
    let estimate: f64 = row.try_get(3)?;
    let owned: bool = row.try_get(4)?;

    let columns = columns(client, oid).await?;
    let key = key_columns(client, oid, by_identity_index).await?;
    let primary_key: Option<Vec<usize>> =
        key.iter().map(|attnum| columns.iter().position(|column| column.attnum == *attnum)).collect();
    let primary_key = primary_key.filter(|key| !key.is_empty()).ok_or_else(|| missing_primary_key(name))?;
    let (parts, filenodes) = match partitioned {
        true => partitions(client, oid).await?,
        false => (vec![Part { id: TableId(oid), quoted: name.quoted() }], vec![row.try_get(5)?]),
    };
    Ok(CatalogTable {
        schema: TableSchema {
            id: TableId(oid),
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            columns: columns
                .iter()
                .map(|c| Column { name: c.name.clone(), column_type: c.column_type.clone() })
                .collect(),
            primary_key,
            keeps_row_image: wanted.keeps_row_image,
        },
        copy_columns: columns.iter().map(CatalogColumn::copy_expression).collect(),
        rows_estimated: if estimate > 0.0 { estimate as u64 } else { 0 },
        owned,
        parts,
        partitioned,
        filenodes,
    })
}

/// The partitions that hold rows, and their files.
async fn partitions(client: &Client, oid: u32) -> Result<(Vec<Part>, Vec<u32>), Failure> {
    let rows = client
        .query(
            // Not by the functions for partition trees: they see what is newer than the snapshot.
            "WITH RECURSIVE tree AS (
                 SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = $1 AND NOT i.inhdetachpending
                 UNION ALL
                 SELECT i.inhrelid FROM tree
                 JOIN pg_inherits i ON i.inhparent = tree.inhrelid AND NOT i.inhdetachpending
             )
             SELECT c.oid, format('%I.%I', n.nspname, c.relname), c.relfilenode
             FROM tree JOIN pg_class c ON c.oid = tree.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'r' ORDER BY c.oid",
            &[&oid],
        )
        .await?;
    let (mut parts, mut filenodes) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
    for row in rows {
        parts.push(Part { id: TableId(row.try_get(0)?), quoted: row.try_get(1)? });
        filenodes.push(row.try_get(2)?);
    }
    Ok((parts, filenodes))
}

/// There is a key, and not one that rows of the log have: a generated column is in it.
fn missing_primary_key(name: &TableName) -> Failure {
    Failure::definite(
        "missing_primary_key",
        format!("table {name} has no key of columns that are in the log: its rows cannot be told apart"),
        format!(
            "ALTER TABLE {} ADD PRIMARY KEY (...); -- or: ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
            name.quoted()
        ),
    )
}

async fn table_missing(client: &Client, name: &TableName) -> Result<Failure, Failure> {
    let rows = client
        .query(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
               AND n.nspname !~ '^pg_(toast|temp)' LIMIT 10000",
            &[],
        )
        .await?;
    let mut nearest: Option<(usize, TableName)> = None;
    for row in rows {
        let other = TableName { namespace: row.try_get(0)?, name: row.try_get(1)? };
        let distance = edit_distance(&name.name.to_lowercase(), &other.name.to_lowercase());
        let near = distance <= 1 + name.name.len() / 4;
        if near && nearest.as_ref().is_none_or(|(best, _)| distance < *best) {
            nearest = Some((distance, other));
        }
    }
    Ok(Failure::definite(
        "table_missing",
        format!("table {name} does not exist in this database"),
        match nearest {
            Some((_, other)) => format!("did you mean {other}?"),
            None => "check the name (it is taken literally, upper and lower case matter) and the database in the URL"
                .to_owned(),
        },
    ))
}

/// Levenshtein's, one row at a time.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = Vec::with_capacity(row.len());
        next.push(left);
        for (to, above) in b.iter().zip(row.iter().skip(1)) {
            left = (diagonal + usize::from(from != *to)).min(left + 1).min(above + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

struct CatalogColumn {
    attnum: i16,
    name: String,
    column_type: ColumnType,
    has_binary_form: bool,
}

impl CatalogColumn {
    /// A type without a binary form would fail the whole COPY; the stream sends such a value as text, so we do too.
    fn copy_expression(&self) -> String {
        let name = quote_identifier(&self.name);
        if self.has_binary_form { name } else { format!("{name}::text") }
    }
}

/// Generated columns are left out: the stream does not carry them.
async fn columns(client: &Client, oid: u32) -> Result<Vec<CatalogColumn>, Failure> {
    let rows = client
        .query(
            &format!(
                "WITH RECURSIVE chain AS (
                 SELECT a.attnum, a.atttypid AS typid, a.atttypmod AS typmod FROM pg_attribute a
                 WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
                 UNION ALL
                 SELECT chain.attnum, t.typbasetype, t.typtypmod
                 FROM chain JOIN pg_type t ON t.oid = chain.typid WHERE t.typtype = 'd'
             )
             SELECT a.attnum, a.attname::text, t.oid, chain.typmod, t.typtype::text,
                    format_type(a.atttypid, NULL), {IS_NONDETERMINISTIC}, t.typsend::oid <> 0
             FROM chain
             JOIN pg_attribute a ON a.attrelid = $1 AND a.attnum = chain.attnum
             JOIN pg_type t ON t.oid = chain.typid AND t.typtype <> 'd'
             ORDER BY a.attnum"
            ),
            &[&oid],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let base: u32 = row.try_get(2)?;
            let typmod: i32 = row.try_get(3)?;
            let kind: String = row.try_get(4)?;
            let type_name: String = row.try_get(5)?;
            let nondeterministic: bool = row.try_get(6)?;
            let column_type = match column_type(base, typmod, &kind, &type_name) {
                ColumnType::Text | ColumnType::Char if nondeterministic => {
                    ColumnType::Unsupported(NONDETERMINISTIC.to_owned())
                }
                other => other,
            };
            Ok(CatalogColumn {
                attnum: row.try_get(0)?,
                name: row.try_get(1)?,
                column_type,
                has_binary_form: row.try_get(7)?,
            })
        })
        .collect()
}

/// Columns of the primary key, or of the replica identity index where that is the identity. A deferrable key is no
/// identity for Postgres, so it is none for us.
async fn key_columns(client: &Client, oid: u32, by_identity_index: bool) -> Result<Vec<i16>, Failure> {
    let rows = client
        .query(
            "SELECT k.attnum FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k(attnum, position)
             WHERE i.indrelid = $1 AND i.indisvalid AND i.indimmediate
               AND CASE WHEN $2 THEN i.indisreplident ELSE i.indisprimary END AND k.position <= i.indnkeyatts
             ORDER BY k.position",
            &[&oid, &by_identity_index],
        )
        .await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// `kind` is `pg_type.typtype` of the base type. An enum is its label.
fn column_type(base: u32, typmod: i32, kind: &str, name: &str) -> ColumnType {
    match base {
        16 => ColumnType::Bool,
        20 => ColumnType::Int8,
        21 => ColumnType::Int2,
        23 => ColumnType::Int4,
        25 | 1043 => ColumnType::Text,
        1042 => ColumnType::Char,
        700 => ColumnType::Float4,
        701 => ColumnType::Float8,
        1082 => ColumnType::Date,
        1114 => ColumnType::Timestamp,
        1184 => ColumnType::TimestampTz,
        1700 => ColumnType::Numeric { scale: numeric_scale(typmod) },
        2950 => ColumnType::Uuid,
        _ if kind == "e" => ColumnType::Text,
        _ => ColumnType::Unsupported(name.to_owned()),
    }
}

/// The modifier holds the scale in its low 11 bits, signed since PG 15; a negative one declares no digits we could rely on.
fn numeric_scale(typmod: i32) -> Option<u16> {
    if typmod < 4 {
        return None;
    }
    let scale = ((typmod - 4) & 0x7FF) as u16;
    (scale < 1024).then_some(scale)
}

/// Types by OID as RELATION messages name them: domains carry their own OID there.
#[derive(Debug, Default)]
pub(super) struct TypeCatalog {
    known: BTreeMap<u32, KnownType>,
}

#[derive(Debug)]
struct KnownType {
    base: u32,
    /// Of the domain, where it is one.
    domain_typmod: Option<i32>,
    kind: String,
    name: String,
}

impl TypeCatalog {
    /// Looks up what is not known yet. A type that does not exist any more stays unknown.
    pub(super) async fn learn(&mut self, client: &Client, oids: &[u32]) -> Result<(), Failure> {
        let missing: Vec<u32> = oids.iter().copied().filter(|oid| !self.known.contains_key(oid)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let rows = client
            .query(
                "WITH RECURSIVE chain AS (
                     SELECT t.oid AS outer_oid, t.oid AS typid, -1 AS typmod FROM pg_type t WHERE t.oid = ANY($1)
                     UNION ALL
                     SELECT chain.outer_oid, t.typbasetype, t.typtypmod
                     FROM chain JOIN pg_type t ON t.oid = chain.typid WHERE t.typtype = 'd'
                 )
                 SELECT chain.outer_oid, t.oid, chain.typmod, t.typtype::text, format_type(chain.outer_oid, NULL)
                 FROM chain JOIN pg_type t ON t.oid = chain.typid AND t.typtype <> 'd'",
                &[&missing],
            )
            .await?;
        for row in rows {
            let outer: u32 = row.try_get(0)?;
            let base: u32 = row.try_get(1)?;
            let typmod: i32 = row.try_get(2)?;
            let known = KnownType {
                base,
                domain_typmod: (outer != base).then_some(typmod),
                kind: row.try_get(3)?,
                name: row.try_get(4)?,
            };
            self.known.insert(outer, known);
        }
        Ok(())
    }

    pub(super) fn column_type(&self, oid: u32, typmod: i32) -> Option<ColumnType> {
        let known = self.known.get(&oid)?;
        Some(column_type(known.base, known.domain_typmod.unwrap_or(typmod), &known.kind, &known.name))
    }
}

/// Name and OID of the database of this session, as kept in the source's identity.
pub(super) async fn database_identity(client: &Client) -> Result<String, Failure> {
    let row = client
        .query_one("SELECT datname::text || '/' || oid FROM pg_database WHERE datname = current_database()", &[])
        .await?;
    Ok(row.try_get(0)?)
}

/// `ONLY`: plain inheritance children are tables of their own and not ours.
pub(super) fn create_publication(publication: &str, tables: &[TableSchema]) -> String {
    let names: Vec<String> = tables.iter().map(quoted_name).collect();
    format!("CREATE PUBLICATION {publication} FOR TABLE ONLY {}", names.join(", ONLY "))
}

/// What makes a publication whole again that leaves operations out, or that publishes via the partition root.
pub(super) fn make_whole(publication: &str) -> String {
    let whole = "publish = 'insert, update, delete, truncate', publish_via_partition_root = false";
    format!("ALTER PUBLICATION {publication} SET ({whole})")
}

/// The same where a slot reads with it: what was left out meanwhile is found by reading everything.
pub(super) fn made_whole_and_read(publication: &str) -> String {
    format!("{}; -- then restart tidemark: it reads the tables anew", make_whole(publication))
}

pub(super) fn quoted_name(table: &TableSchema) -> String {
    format!("{}.{}", quote_identifier(&table.namespace), quote_identifier(&table.name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn numeric_scales_from_the_modifier() {
        assert_eq!(numeric_scale(-1), None);
        assert_eq!(numeric_scale((18 << 16 | 2) + 4), Some(2));
        assert_eq!(numeric_scale((5 << 16) + 4), Some(0));
        assert_eq!(numeric_scale((5 << 16 | (-2i32 & 0x7FF)) + 4), None);
        assert_eq!(numeric_scale((1000 << 16 | 1000) + 4), Some(1000));
    }

    #[test]
    fn edit_distances() {
        assert_eq!(edit_distance("payments", "payment"), 1);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
    }
}
