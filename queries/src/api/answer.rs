//! Answers as JSON, NDJSON and CSV: the same columns and values in each.

use engine::aggregate::Function;
use engine::change::ColumnType;
use engine::materialization::{Aggregate, Bucket, Granularity, Plan, group_key};
use engine::snapshot::AsOf;
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use super::field::Field;
use super::warning::Warning;
use crate::query::aggregate_query::bucket_end;
use crate::query::instant::format_instant;
use crate::query::{AggregateQuery, Layout, ReadPlan};
use crate::read::{Answer, Row};

/// What an answer says about one of its columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ColumnBody {
    /// Name in the rows.
    pub name: String,
    /// `timestamp`, `decimal`, `int64`, `text`, ...
    #[serde(rename = "type")]
    pub column_type: &'static str,
    /// `time`, `dimension`, `measure` or `flag`.
    pub role: &'static str,
    /// Length of the time's buckets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<String>,
    /// Zone of the time's buckets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Digits after the point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<u16>,
}

/// The columns of an answer with these dimensions and measures.
#[must_use]
pub fn columns(plan: &Plan, granularity: Granularity, group_by: &[usize], measures: &[usize]) -> Vec<ColumnBody> {
    let column = |name: &str, column_type, role| ColumnBody {
        name: name.to_owned(),
        column_type,
        role,
        granularity: None,
        time_zone: None,
        scale: None,
    };
    let mut columns = Vec::new();
    if granularity != Granularity::All {
        columns.push(ColumnBody {
            granularity: Some(granularity.to_string()),
            time_zone: Some(plan.calendar.zone().name().to_owned()),
            ..column("time", "timestamp", "time")
        });
    }
    for dimension in group_by.iter().filter_map(|position| plan.dimensions.get(*position)) {
        columns.push(column(&dimension.name, dimension_type(&dimension.column_type), "dimension"));
    }
    for measure in measures.iter().filter_map(|position| plan.measures.get(*position)) {
        let (column_type, scale) = match measure.function {
            Function::CountRows | Function::CountValues => ("int64", None),
            Function::SumInteger => ("decimal", Some(0)),
            Function::SumNumeric { scale } => ("decimal", Some(scale)),
            Function::SumFloat => ("float64", None),
        };
        columns.push(ColumnBody { scale, ..column(&measure.name, column_type, "measure") });
    }
    if granularity != Granularity::All {
        columns.push(column("complete", "boolean", "flag"));
    }
    columns
}

fn dimension_type(column_type: &ColumnType) -> &'static str {
    match column_type {
        ColumnType::Int2 | ColumnType::Int4 | ColumnType::Int8 => "int64",
        ColumnType::Numeric { .. } => "decimal",
        ColumnType::Float4 | ColumnType::Float8 => "float64",
        ColumnType::Bool => "boolean",
        ColumnType::Uuid => "uuid",
        ColumnType::Date => "date",
        ColumnType::Timestamp => "local_timestamp",
        ColumnType::TimestampTz => "timestamp",
        ColumnType::Text | ColumnType::Char | ColumnType::Unsupported(_) | ColumnType::Gone(_) => "text",
    }
}

/// An answer with everything that is said about it.
#[derive(Debug)]
pub struct AnswerView<'a> {
    /// Who answers.
    pub aggregate: &'a Aggregate,
    /// What was asked.
    pub query: &'a AggregateQuery,
    /// What was read for it.
    pub reads: &'a ReadPlan,
    /// The rows.
    pub answer: &'a Answer,
    /// What it is true of.
    pub as_of: AsOf,
    /// How far that is behind upstream.
    pub lag_ms: u64,
    /// Whether it follows upstream at the moment.
    pub state: &'a str,
    /// Remarks.
    pub warnings: Vec<Warning>,
}

impl AnswerView<'_> {
    /// The columns.
    #[must_use]
    pub fn columns(&self) -> Vec<ColumnBody> {
        columns(&self.aggregate.plan, self.query.granularity, &self.query.group_by, &self.query.measures)
    }

    /// The cursor of the next page.
    #[must_use]
    pub fn next(&self) -> Option<String> {
        self.answer.next.as_ref().map(|cursor| cursor.encode(self.query.fingerprint))
    }

    /// The whole answer as one JSON document.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&AnswerBody {
            columns: self.columns(),
            data: Data(self),
            as_of: AsOfBody {
                lsn: self.as_of.lsn.to_string(),
                commit_time: format_instant(self.as_of.commit_time_us, &engine::materialization::Calendar::UTC),
                lag_ms: self.lag_ms,
                state: self.state,
            },
            page: PageBody { next: self.next() },
            stats: StatsBody { cells_read: self.answer.cells_read, served_from: self.served_from() },
            warnings: &self.warnings,
        })
    }

    /// One JSON object per line and row.
    pub fn to_ndjson(&self) -> serde_json::Result<Vec<u8>> {
        let columns = self.columns();
        let mut lines = Vec::new();
        for row in &self.answer.rows {
            serde_json::to_writer(&mut lines, &Object { columns: &columns, fields: &self.fields(row) })?;
            lines.push(b'\n');
        }
        Ok(lines)
    }

    /// A head line and one line per row.
    #[must_use]
    pub fn to_csv(&self) -> String {
        let mut text = String::new();
        let mut line = |fields: &[Field]| {
            for (index, field) in fields.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                field.write_csv(&mut text);
            }
            text.push_str("\r\n");
        };
        line(&self.columns().into_iter().map(|column| Field::Text(column.name)).collect::<Vec<_>>());
        for row in &self.answer.rows {
            line(&self.fields(row));
        }
        text
    }

    /// `year`, or `month+day` where a range was put together.
    fn served_from(&self) -> String {
        self.reads.levels.iter().map(Granularity::to_string).collect::<Vec<_>>().join("+")
    }

    /// The values of a row, in the order of the columns.
    fn fields(&self, row: &Row) -> Vec<Field> {
        let plan = &self.aggregate.plan;
        let mut fields = Vec::new();
        if self.query.granularity != Granularity::All {
            fields.push(match row.bucket {
                Bucket::NULL => Field::Null,
                Bucket::INFINITY => Field::Text("infinity".to_owned()),
                Bucket::NEGATIVE_INFINITY => Field::Text("-infinity".to_owned()),
                Bucket(start) => Field::Text(format_instant(start, &plan.calendar)),
            });
        }
        let values = group_key::decode(&row.key).unwrap_or_default();
        let dimensions = self.query.group_by.iter().filter_map(|position| plan.dimensions.get(*position));
        fields.extend(
            dimensions
                .zip(values)
                .map(|(dimension, value)| Field::of_dimension(value, &dimension.column_type, &plan.calendar)),
        );
        let measures = self.query.measures.iter().filter_map(|position| plan.measures.get(*position));
        fields.extend(measures.zip(&row.values).map(|(measure, value)| Field::of_measure(*value, measure.function)));
        if self.query.granularity != Granularity::All {
            fields.push(Field::Bool(self.complete(row.bucket)));
        }
        fields
    }

    /// Whether the bucket is over, and lies whole within the range.
    fn complete(&self, bucket: Bucket) -> bool {
        let Some(end) = bucket_end(&self.aggregate.plan, self.query.granularity, bucket) else { return false };
        let begins_inside = bucket.is_special() || self.query.from.is_none_or(|from| from <= bucket.0);
        begins_inside && self.query.to.is_none_or(|to| end <= to) && end <= self.as_of.commit_time_us
    }
}

#[derive(Serialize)]
struct AnswerBody<'a> {
    columns: Vec<ColumnBody>,
    data: Data<'a>,
    as_of: AsOfBody<'a>,
    page: PageBody,
    stats: StatsBody,
    warnings: &'a [Warning],
}

#[derive(Serialize)]
struct AsOfBody<'a> {
    lsn: String,
    commit_time: String,
    lag_ms: u64,
    state: &'a str,
}

#[derive(Serialize)]
struct PageBody {
    next: Option<String>,
}

#[derive(Serialize)]
struct StatsBody {
    cells_read: u64,
    served_from: String,
}

/// The rows, in the layout asked for.
struct Data<'a>(&'a AnswerView<'a>);

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let view = self.0;
        let columns = view.columns();
        let rows = &view.answer.rows;
        match view.query.layout {
            Layout::Rows => {
                let mut list = serializer.serialize_seq(Some(rows.len()))?;
                for row in rows {
                    list.serialize_element(&Object { columns: &columns, fields: &view.fields(row) })?;
                }
                list.end()
            }
            Layout::Columns => {
                let mut arrays: Vec<Vec<Field>> = columns.iter().map(|_| Vec::with_capacity(rows.len())).collect();
                for row in rows {
                    arrays.iter_mut().zip(view.fields(row)).for_each(|(array, field)| array.push(field));
                }
                let mut map = serializer.serialize_map(Some(columns.len()))?;
                for (column, array) in columns.iter().zip(&arrays) {
                    map.serialize_entry(&column.name, array)?;
                }
                map.end()
            }
        }
    }
}

/// One row as an object.
struct Object<'a> {
    columns: &'a [ColumnBody],
    fields: &'a [Field],
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.columns.len()))?;
        for (column, field) in self.columns.iter().zip(self.fields) {
            map.serialize_entry(&column.name, field)?;
        }
        map.end()
    }
}
