//! The columns of an answer: names and types, the same in every format. Arrow's schema is made of them.

use engine::change::ColumnType;
use engine::materialization::{Calendar, Granularity, Plan};
use serde::Serialize;

use crate::query::currency::is_currency;
use crate::query::{Output, OutputType};

/// What the values of a column are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnKind {
    /// An instant.
    Timestamp,
    /// A clock reading of which no zone is known.
    LocalTimestamp,
    /// A day.
    Date,
    /// An exact decimal; text in JSON.
    Decimal,
    /// A number without fraction.
    Int64,
    /// A double.
    Float64,
    /// `true`, `false`
    Boolean,
    /// A UUID, as text.
    Uuid,
    /// Text.
    Text,
}

/// What an answer says about one of its columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ColumnBody {
    /// Name in the rows.
    pub name: String,
    /// What its values are.
    #[serde(rename = "type")]
    pub kind: ColumnKind,
    /// `time`, `dimension`, `measure` or `flag`.
    pub role: &'static str,
    /// Length of the time's buckets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<String>,
    /// Zone of the time's buckets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Digits after the point; of a dimension at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<u16>,
    /// Whether a dimension says in what money amounts are: those of different values are never added up.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub currency: bool,
}

impl ColumnBody {
    pub(super) fn new(name: &str, kind: ColumnKind, role: &'static str) -> ColumnBody {
        ColumnBody {
            name: name.to_owned(),
            kind,
            role,
            granularity: None,
            time_zone: None,
            scale: None,
            currency: false,
        }
    }

    /// A column of a table, or a dimension.
    pub(super) fn of_values(name: &str, column_type: &ColumnType, role: &'static str) -> ColumnBody {
        let (kind, scale) = match column_type {
            ColumnType::Int2 | ColumnType::Int4 | ColumnType::Int8 => (ColumnKind::Int64, None),
            ColumnType::Numeric { scale } => (ColumnKind::Decimal, *scale),
            ColumnType::Float4 | ColumnType::Float8 => (ColumnKind::Float64, None),
            ColumnType::Bool => (ColumnKind::Boolean, None),
            ColumnType::Uuid => (ColumnKind::Uuid, None),
            ColumnType::Date => (ColumnKind::Date, None),
            ColumnType::Timestamp => (ColumnKind::LocalTimestamp, None),
            ColumnType::TimestampTz => (ColumnKind::Timestamp, None),
            ColumnType::Text | ColumnType::Char | ColumnType::Unsupported(_) | ColumnType::Gone(_) => {
                (ColumnKind::Text, None)
            }
        };
        ColumnBody { scale, ..ColumnBody::new(name, kind, role) }
    }

    pub(super) fn of_output(name: &str, output_type: OutputType) -> ColumnBody {
        let (kind, scale) = match output_type {
            OutputType::Count => (ColumnKind::Int64, None),
            OutputType::Decimal(scale) => (ColumnKind::Decimal, Some(scale)),
            OutputType::Float => (ColumnKind::Float64, None),
        };
        ColumnBody { scale, ..ColumnBody::new(name, kind, "measure") }
    }
}

/// The columns of an answer with these dimensions and measures.
#[must_use]
pub fn columns(
    plan: &Plan,
    (granularity, calendar): (Granularity, &Calendar),
    group_by: &[usize],
    outputs: &[Output],
) -> Vec<ColumnBody> {
    let mut columns = Vec::new();
    if granularity != Granularity::All {
        columns.push(ColumnBody {
            granularity: Some(granularity.to_string()),
            time_zone: Some(calendar.zone().name().to_owned()),
            ..ColumnBody::new("time", ColumnKind::Timestamp, "time")
        });
    }
    for dimension in group_by.iter().filter_map(|position| plan.dimensions.get(*position)) {
        columns.push(ColumnBody {
            currency: is_currency(&dimension.name),
            ..ColumnBody::of_values(&dimension.name, &dimension.column_type, "dimension")
        });
    }
    columns.extend(outputs.iter().map(|output| ColumnBody::of_output(&output.name, output.output_type(plan))));
    if granularity != Granularity::All {
        columns.push(ColumnBody::new("complete", ColumnKind::Boolean, "flag"));
    }
    columns
}
