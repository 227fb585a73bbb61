//! Answers as JSON, NDJSON and CSV: the same columns and values in each.

use engine::aggregate::MeasureValue;
use engine::materialization::{Aggregate, Bucket, Calendar, Granularity, group_key};
use engine::snapshot::AsOf;
use engine::source::FollowedTable;
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use super::column::{ColumnBody, ColumnKind, columns};
use super::field::Field;
use super::table_rows::TableRows;
use super::warning::Warning;
use crate::query::aggregate_query::{COMPARED, bucket_end};
use crate::query::instant::format_instant;
use crate::query::output::divide;
use crate::query::{AggregateQuery, Layout, OutputType, ReadPlan};
use crate::read::{Answer, Before, Behind, Row};

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
    /// What the rows were so much earlier, where it was asked.
    pub before: Option<&'a Before>,
    /// The newest rows of the table behind each row, where they were asked for.
    pub behind: Option<(&'a [Behind], &'a FollowedTable)>,
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
        let (plan, query) = (&self.aggregate.plan, self.query);
        let mut columns = columns(plan, (query.granularity, &query.calendar), &query.group_by, &query.outputs);
        let flags = columns.len() - usize::from(query.granularity != Granularity::All);
        let mut more = Vec::new();
        if self.before.is_some() {
            for output in &query.outputs {
                let of = |what| ColumnBody::of_output(&format!("{}_{what}", output.name), output.output_type(plan));
                more.extend(COMPARED.map(of));
            }
        }
        if query.share.is_some() {
            more.push(ColumnBody::of_output("share", OutputType::Decimal(SHARE_DIGITS)));
        }
        if query.others {
            more.push(ColumnBody::new("others", ColumnKind::Boolean, "flag"));
        }
        columns.splice(flags..flags, more);
        columns
    }

    /// All rows, the one of the others last.
    pub(super) fn all_rows(&self) -> impl Iterator<Item = Vec<Field>> + '_ {
        let rows = self.answer.rows.iter().enumerate().map(|(at, row)| self.fields(at, row));
        rows.chain(self.answer.others.iter().map(|values| self.fields_of_others(values)))
    }

    fn row_count(&self) -> usize {
        self.answer.rows.len() + usize::from(self.answer.others.is_some())
    }

    /// The rows of the table behind a row.
    fn rows_behind(&self, at: usize) -> Option<TableRows<'_>> {
        let (behind, table) = self.behind?;
        let rows = behind.get(at).map_or(&[][..], |behind| &behind.rows);
        Some(TableRows { schema: &table.schema, rows, calendar: &self.query.calendar })
    }

    /// A row with the rows of the table behind it.
    fn object<'o>(&'o self, at: usize, object: Object<'o>) -> WithRows<'o> {
        WithRows { object, rows: self.rows_behind(at) }
    }

    /// The cursor of the next page.
    #[must_use]
    pub fn next(&self) -> Option<String> {
        self.answer.next.as_ref().map(|cursor| cursor.encode(self.query.fingerprint))
    }

    /// The whole answer as one JSON document.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&self.body())
    }

    /// The whole answer, as part of a larger document.
    pub fn body(&self) -> impl Serialize + '_ {
        AnswerBody {
            aggregate: &self.aggregate.name,
            columns: self.columns(),
            data: Data(self),
            as_of: FreshnessBody { as_of: AnswerView::as_of_body(self.as_of), lag_ms: self.lag_ms, state: self.state },
            page: PageBody { next: self.next() },
            stats: StatsBody { cells_read: self.answer.cells_read, served_from: self.served_from() },
            warnings: &self.warnings,
        }
    }

    /// A position, as it is written.
    #[must_use]
    pub fn as_of_body(as_of: AsOf) -> AsOfBody {
        AsOfBody { lsn: as_of.lsn.to_string(), commit_time: format_instant(as_of.commit_time_us, &Calendar::UTC) }
    }

    /// One JSON object per line and row.
    pub fn to_ndjson(&self) -> serde_json::Result<Vec<u8>> {
        let columns = self.columns();
        let mut lines = Vec::new();
        for (at, fields) in self.all_rows().enumerate() {
            serde_json::to_writer(&mut lines, &self.object(at, Object { columns: &columns, fields: &fields }))?;
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
        let columns = self.columns();
        line(&columns.iter().map(|column| Field::Text(column.name.clone())).collect::<Vec<_>>());
        for fields in self.all_rows() {
            // Numbers may begin with a minus; what users wrote may not.
            let safe = |(column, field): (&ColumnBody, Field)| {
                if column.kind == ColumnKind::Text { field.defused() } else { field }
            };
            line(&columns.iter().zip(fields).map(safe).collect::<Vec<_>>());
        }
        text
    }

    /// `year`, or `month+day` where a range was put together.
    fn served_from(&self) -> String {
        self.reads.levels.iter().map(Granularity::to_string).collect::<Vec<_>>().join("+")
    }

    /// Time and dimensions of a row.
    pub(super) fn key_fields(&self, row: &Row) -> Vec<Field> {
        let (plan, query) = (&self.aggregate.plan, self.query);
        let mut fields = Vec::new();
        if query.granularity != Granularity::All {
            fields.push(Field::of_bucket(row.bucket, &query.calendar));
        }
        let values = group_key::decode(&row.key).unwrap_or_default();
        let dimensions = query.group_by.iter().filter_map(|position| plan.dimensions.get(*position));
        fields.extend(
            dimensions
                .zip(values)
                .map(|(dimension, value)| Field::of_dimension(value, &dimension.column_type, &query.calendar)),
        );
        fields
    }

    /// The values of a row, in the order of the columns.
    pub(super) fn fields(&self, at: usize, row: &Row) -> Vec<Field> {
        let (plan, query) = (&self.aggregate.plan, self.query);
        let mut fields = self.key_fields(row);
        fields.extend(self.measures(&row.values));
        if let Some(before) = self.before {
            let before = before.0.get(at).and_then(Option::as_deref).unwrap_or_default();
            for (position, output) in query.outputs.iter().enumerate() {
                let value = |values: &[MeasureValue]| values.get(position).copied().unwrap_or(MeasureValue::Null);
                let output_type = output.output_type(plan);
                let (now, then) = (value(&row.values), value(before));
                fields.push(Field::of_measure(then, output_type));
                fields.push(Field::of_measure(change(now, then), output_type));
            }
        }
        fields.extend(query.share.map(|of| self.share(of, &row.values)));
        if query.others {
            fields.push(Field::Bool(false));
        }
        if query.granularity != Granularity::All {
            fields.push(Field::Bool(self.complete(row.bucket)));
        }
        fields
    }

    fn measures<'v>(&'v self, values: &'v [MeasureValue]) -> impl Iterator<Item = Field> + 'v {
        let plan = &self.aggregate.plan;
        self.query.outputs.iter().zip(values).map(|(output, value)| Field::of_measure(*value, output.output_type(plan)))
    }

    fn fields_of_others(&self, values: &[MeasureValue]) -> Vec<Field> {
        let query = self.query;
        let timed = query.granularity != Granularity::All;
        let mut fields = vec![Field::Null; usize::from(timed) + query.group_by.len()];
        fields.extend(self.measures(values));
        if self.before.is_some() {
            fields.resize(fields.len() + 2 * query.outputs.len(), Field::Null);
        }
        fields.extend(query.share.map(|of| self.share(of, values)));
        fields.push(Field::Bool(true));
        if timed {
            fields.push(Field::Null);
        }
        fields
    }

    /// The part of the whole; NULL where there is no whole.
    fn share(&self, of: usize, values: &[MeasureValue]) -> Field {
        let whole = self.answer.whole.as_ref().and_then(|whole| whole.get(of));
        let (part, whole) = (values.get(of).copied(), whole.copied());
        let share = match (part.and_then(mantissa), whole.and_then(mantissa), part, whole) {
            (Some(part), Some(whole), ..) => divide(part, whole, SHARE_DIGITS),
            (_, _, Some(MeasureValue::Float(part)), Some(MeasureValue::Float(whole))) => share_of_doubles(part, whole),
            _ => None,
        };
        share.map_or(Field::Null, |mantissa| Field::Decimal { mantissa, scale: SHARE_DIGITS })
    }

    /// Whether the bucket is over, and lies whole within the range.
    #[must_use]
    pub fn complete(&self, bucket: Bucket) -> bool {
        let Some(end) = bucket_end(&self.query.calendar, self.query.granularity, bucket) else { return false };
        let begins_inside = bucket.is_special() || self.query.from.is_none_or(|from| from <= bucket.0);
        begins_inside && self.query.to.is_none_or(|to| end <= to) && end <= self.as_of.commit_time_us
    }
}

/// Digits after the point of a share.
const SHARE_DIGITS: u16 = 6;

/// The quotient with the digits of a share; `None` where it is no number.
fn share_of_doubles(part: f64, whole: f64) -> Option<i128> {
    let share = part / whole * 10f64.powi(i32::from(SHARE_DIGITS));
    // Beyond this a double has no digits left for a share.
    (share.abs() < 1e15).then(|| share.round() as i128)
}

/// All digits of an exact number; `None` where it is none.
fn mantissa(value: MeasureValue) -> Option<i128> {
    match value {
        MeasureValue::Integer(mantissa) | MeasureValue::Decimal { mantissa, .. } => Some(mantissa),
        MeasureValue::Null | MeasureValue::Float(_) | MeasureValue::Special(_) => None,
    }
}

/// The difference of two finished values of one measure; NULL where there is none.
fn change(now: MeasureValue, then: MeasureValue) -> MeasureValue {
    let difference = match (now, then) {
        (MeasureValue::Integer(a), MeasureValue::Integer(b)) => a.checked_sub(b).map(MeasureValue::Integer),
        (MeasureValue::Decimal { mantissa: a, scale }, MeasureValue::Decimal { mantissa: b, .. }) => {
            a.checked_sub(b).map(|mantissa| MeasureValue::Decimal { mantissa, scale })
        }
        (MeasureValue::Float(a), MeasureValue::Float(b)) => Some(MeasureValue::Float(a - b)),
        _ => None,
    };
    difference.unwrap_or(MeasureValue::Null)
}

#[derive(Serialize)]
struct AnswerBody<'a> {
    aggregate: &'a str,
    columns: Vec<ColumnBody>,
    data: Data<'a>,
    as_of: FreshnessBody<'a>,
    page: PageBody,
    stats: StatsBody,
    warnings: &'a [Warning],
}

/// A position, as it is written.
#[derive(Clone, Debug, Serialize)]
pub struct AsOfBody {
    /// The position.
    pub lsn: String,
    /// When it committed upstream.
    pub commit_time: String,
}

#[derive(Serialize)]
struct FreshnessBody<'a> {
    #[serde(flatten)]
    as_of: AsOfBody,
    lag_ms: u64,
    state: &'a str,
}

/// Whether an answer goes on, as it is written.
#[derive(Debug, Serialize)]
pub struct PageBody {
    /// The cursor of the next page.
    pub next: Option<String>,
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
        let count = view.row_count();
        match view.query.layout {
            Layout::Rows => {
                let mut list = serializer.serialize_seq(Some(count))?;
                for (at, fields) in view.all_rows().enumerate() {
                    list.serialize_element(&view.object(at, Object { columns: &columns, fields: &fields }))?;
                }
                list.end()
            }
            Layout::Columns => {
                let mut arrays: Vec<Vec<Field>> = columns.iter().map(|_| Vec::with_capacity(count)).collect();
                for fields in view.all_rows() {
                    arrays.iter_mut().zip(fields).for_each(|(array, field)| array.push(field));
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

/// One row as an object, with the rows of the table behind it where they were asked for.
struct WithRows<'a> {
    object: Object<'a>,
    rows: Option<TableRows<'a>>,
}

impl Serialize for WithRows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.object.entries(&mut map)?;
        if let Some(rows) = &self.rows {
            map.serialize_entry("rows", rows)?;
        }
        map.end()
    }
}

/// One row as an object.
pub(super) struct Object<'a> {
    pub(super) columns: &'a [ColumnBody],
    pub(super) fields: &'a [Field],
}

impl Object<'_> {
    fn entries<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        self.columns.iter().zip(self.fields).try_for_each(|(column, field)| map.serialize_entry(&column.name, field))
    }
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.columns.len()))?;
        self.entries(&mut map)?;
        map.end()
    }
}
