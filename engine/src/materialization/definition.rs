//! The definition of an aggregate as the user wrote it: what `PUT /v1/aggregates/{name}` takes and what the catalog
//! stores. It is only text and lists; [`super::Plan`] is the same thing resolved against a table.

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Serialize};

use super::any_zone::in_any_zone;
use super::bucket::Granularity;
use super::date_codec::DateCodec;
use super::filter;
use crate::change::TableSchema;
use crate::change::value::EPOCH_UNIX_US;

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
    /// Keeps an index from groups to the rows behind them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drill_through: bool,
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
    /// Rows that count for this measure alone, beyond the definition's own: SQL's `FILTER (WHERE ...)`.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
}

/// The time bucket of an aggregate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeDefinition {
    /// A `date`, `timestamp` or `timestamptz` column, or one of integers with a codec.
    pub column: String,
    /// How an integer is a date or an instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codec: Option<DateCodec>,
    /// Length of the base bucket.
    pub granularity: Granularity,
    /// IANA zone in which days, weeks, months, quarters and years begin.
    #[serde(default = "utc")]
    pub time_zone: String,
    /// Zone in which a `timestamp` without zone is read; UTC unless stated. Has to be stated where buckets are of another
    /// zone.
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

    /// The same definition in the words that every way of writing it comes to: the table with its schema, conditions as
    /// [`super::condition`] writes them, rollups in order, no more said than has an effect.
    #[must_use]
    pub fn canonical(&self) -> Definition {
        self.with_conditions(filter::canonical)
    }

    /// The same, with times in conditions that mean the same in every session.
    #[must_use]
    pub fn in_any_zone(&self, schema: &TableSchema) -> Definition {
        self.with_conditions(|text| in_any_zone(text, schema))
    }

    fn with_conditions(&self, written: impl Fn(&str) -> Option<String>) -> Definition {
        let condition = |text: &String| written(text).unwrap_or_else(|| text.clone());
        let mut rollups = self.rollups.clone();
        rollups.sort_unstable();
        let measures = self
            .measures
            .iter()
            .map(|measure| MeasureDefinition { filter: measure.filter.as_ref().map(condition), ..measure.clone() });
        Definition {
            table: self.qualified_table(),
            measures: measures.collect(),
            dimensions: self.dimensions.clone(),
            time: self.time.as_ref().filter(|time| time.granularity != Granularity::All).map(TimeDefinition::canonical),
            rollups,
            filter: self.filter.as_ref().map(condition),
            drill_through: self.drill_through,
        }
    }

    /// The fields in which two definitions differ, for the answer to a second, different registration. Where the table is known,
    /// a time without zone is the same as with the one that it is read in.
    #[must_use]
    pub fn differences(&self, other: &Definition, schema: Option<&TableSchema>) -> Vec<&'static str> {
        let words = |definition: &Definition| {
            schema.map_or_else(|| definition.canonical(), |schema| definition.in_any_zone(schema))
        };
        let (own, other) = (words(self), words(other));
        let mut fields = Vec::new();
        let mut note = |differs: bool, field| {
            if differs {
                fields.push(field);
            }
        };
        note(own.table != other.table, "table");
        note(own.measures != other.measures, "measures");
        note(own.dimensions != other.dimensions, "dimensions");
        note(own.time != other.time, "time");
        note(own.rollups != other.rollups, "rollups");
        note(own.filter != other.filter, "where");
        note(own.drill_through != other.drill_through, "drill_through");
        fields
    }
}

impl TimeDefinition {
    /// The origin as an RFC 3339 instant, and none where steps begin at the same instants without.
    fn canonical(&self) -> TimeDefinition {
        let origin = self.origin.as_ref().and_then(|text| match filter::parse_timestamp(text) {
            Some(us) if self.granularity.step_us().is_some_and(|step| us.rem_euclid(step) == 0) => None,
            Some(us) => Some(rfc_3339(us).unwrap_or_else(|| text.clone())),
            None => Some(text.clone()),
        });
        TimeDefinition { origin, ..self.clone() }
    }
}

fn rfc_3339(us: i64) -> Option<String> {
    let instant = DateTime::from_timestamp_micros(us.checked_add(EPOCH_UNIX_US)?)?;
    Some(instant.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn definition(rest: &str) -> Definition {
        let text = format!(r#"{{"measures":[{{"name":"n","count":"*"}}],{rest}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn the_same_in_other_words_is_the_same() {
        let one = definition(
            r#""table":"payments","where":"status='settled' and  x>1","rollups":["year","month"],
               "time":{"column":"ts","granularity":"PT15M","origin":"2024-01-01 00:05:00"}"#,
        );
        let other = definition(
            r#""table":"public.payments","where":"status = 'settled' AND x > 1","rollups":["month","year"],
               "time":{"column":"ts","granularity":"PT15M","origin":"2024-01-01T01:05:00+01:00","time_zone":"UTC"}"#,
        );
        assert!(one.differences(&other, None).is_empty(), "{:?}", one.differences(&other, None));
        let third = definition(
            r#""table":"public.payments","where":"status = 'settled' AND x > 2","rollups":["month"],
               "time":{"column":"ts","granularity":"PT15M","origin":"2024-01-01T00:05:00+01:00"}"#,
        );
        assert_eq!(one.differences(&third, None), ["time", "rollups", "where"]);
        let filtered = definition(r#""table":"payments""#);
        let mut with = filtered.clone();
        with.measures[0].filter = Some("x = 1".to_owned());
        assert_eq!(filtered.differences(&with, None), ["measures"]);
    }
}
