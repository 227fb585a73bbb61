//! The definition of an aggregate as the user wrote it: what `PUT /v1/aggregates/{name}` takes and what the catalog
//! stores. It is only text and lists; [`super::Plan`] is the same thing resolved against a table.

use serde::{Deserialize, Serialize};

use super::bucket::Granularity;

/// One registered aggregate: table, filter, dimensions, time bucket, measures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// `public.payments`, or `payments` for the schema `public`.
    pub table: String,
    /// What is computed; at least one.
    pub measures: Vec<MeasureDefinition>,
    /// Columns to group by, besides time.
    #[serde(default)]
    pub dimensions: Vec<String>,
    /// The time bucket; without one there is a single bucket, `all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<TimeDefinition>,
    /// Coarser granularities kept materialized beside the base.
    #[serde(default)]
    pub rollups: Vec<Granularity>,
    /// Rows that count, as a SQL condition over the table's columns.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
}

/// One aggregate function over one column: exactly one of `sum` and `count`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasureDefinition {
    /// Name in answers.
    pub name: String,
    /// Column to sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sum: Option<String>,
    /// Column whose non-NULL values are counted, or `*` for rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<String>,
    /// Digits after the point kept for the sum of a `numeric` column that declares none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<u16>,
}

/// The time bucket of an aggregate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeDefinition {
    /// A `date`, `timestamp` or `timestamptz` column.
    pub column: String,
    /// Length of the base bucket.
    pub granularity: Granularity,
    /// IANA zone in which days, weeks, months, quarters and years begin.
    #[serde(default = "utc")]
    pub time_zone: String,
    /// Zone in which a `timestamp` without zone is read; UTC unless stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assume_time_zone: Option<String>,
    /// Where fixed steps start counting: an RFC 3339 instant; 2000-01-01T00:00:00Z unless stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

fn utc() -> String {
    "UTC".to_owned()
}

impl Definition {
    /// `schema.table`, with the default schema filled in.
    #[must_use]
    pub fn qualified_table(&self) -> String {
        if self.table.contains('.') { self.table.clone() } else { format!("public.{}", self.table) }
    }

    /// The fields in which two definitions differ, for the answer to a second, different registration.
    #[must_use]
    pub fn differences(&self, other: &Definition) -> Vec<&'static str> {
        let mut fields = Vec::new();
        let mut note = |differs: bool, field| {
            if differs {
                fields.push(field);
            }
        };
        note(self.qualified_table() != other.qualified_table(), "table");
        note(self.measures != other.measures, "measures");
        note(self.dimensions != other.dimensions, "dimensions");
        note(self.time != other.time, "time");
        note(self.rollups != other.rollups, "rollups");
        note(self.filter != other.filter, "where");
        fields
    }
}
