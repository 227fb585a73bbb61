//! What an aggregate would be, before it is registered.

use engine::change::TableSchema;
use engine::materialization::{Aggregate, Definition, Granularity};
use engine::sample::{LevelSize, Preview};
use serde::Serialize;
use serde_json::Value;

use super::column::ColumnBody;
use super::warning::Warning;

/// What an aggregate would be.
#[derive(Debug, Serialize)]
pub struct PreviewBody<'a> {
    /// Its name, where one was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    /// The definition in canonical words.
    pub definition: &'a Definition,
    /// The same as SQL.
    pub sql: String,
    /// Columns of an answer that asks for nothing in particular.
    pub columns: Vec<ColumnBody>,
    /// How large it would be; absent while the rows cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<SizeBody>,
    /// An answer over the rows looked at: the newest buckets, with sums over those rows alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<Value>,
    /// What is registered under the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registered: Option<RegisteredBody>,
    /// Remarks.
    pub warnings: Vec<Warning>,
}

/// How large an aggregate would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SizeBody {
    /// Rows held of the table, about.
    pub rows: u64,
    /// Rows looked at.
    pub rows_sampled: u64,
    /// All rows were looked at: nothing is estimated.
    pub exact: bool,
    /// Cells of all levels.
    pub cells: u64,
    /// Their bytes before compression.
    pub bytes: u64,
    /// Level by level, finest first.
    pub levels: Vec<LevelSizeBody>,
}

/// How large one level would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LevelSizeBody {
    /// Its granularity.
    pub granularity: Granularity,
    /// Its cells.
    pub cells: u64,
    /// Their bytes before compression.
    pub bytes: u64,
}

/// What is registered under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RegisteredBody {
    /// `absent`, `same` or `different`.
    pub state: &'static str,
    /// The fields in which it differs.
    pub differences: Vec<&'static str>,
}

impl From<&Preview> for SizeBody {
    fn from(preview: &Preview) -> Self {
        let total = |of: fn(&LevelSize) -> u64| preview.levels.iter().map(of).fold(0u64, u64::saturating_add);
        let level =
            |size: &LevelSize| LevelSizeBody { granularity: size.granularity, cells: size.cells, bytes: size.bytes };
        SizeBody {
            rows: preview.rows,
            rows_sampled: preview.rows_sampled,
            exact: preview.whole,
            cells: total(|size| size.cells),
            bytes: total(|size| size.bytes),
            levels: preview.levels.iter().map(level).collect(),
        }
    }
}

impl RegisteredBody {
    /// Compares a definition with what is registered.
    #[must_use]
    pub fn of(existing: Option<&Aggregate>, definition: &Definition, schema: &TableSchema) -> Self {
        let Some(existing) = existing else { return RegisteredBody { state: "absent", differences: Vec::new() } };
        let differences = existing.definition.differences(definition, Some(schema));
        RegisteredBody { state: if differences.is_empty() { "same" } else { "different" }, differences }
    }
}
