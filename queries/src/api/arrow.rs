//! Answers as a stream of Apache Arrow record batches: the columns of the other formats, with types in place of text.
//!
//! The surprise: not every value that an answer may hold has a place in Arrow's types. There is no infinite time, a decimal
//! is a number of at most 38 digits, and of times Arrow counts fewer years than Postgres. Such a value refuses the answer
//! (`not_in_arrow`): a NULL in its place would be another answer. Only a decimal column whose digits after the point are
//! unknown, or more than 38, is text, whatever its values are.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::builder::{
    BooleanBuilder, Date32Builder, Decimal128Builder, Float64Builder, Int64Builder, StringBuilder,
    TimestampMicrosecondBuilder,
};
use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field as ArrowField, Schema, TimeUnit};
use engine::change::Numeric;
use engine::change::value::EPOCH_UNIX_US;

use super::answer::AnswerView;
use super::column::{ColumnBody, ColumnKind};
use super::field::Field;
use super::problem::Problem;

/// Digits of a decimal.
const DIGITS: u8 = 38;
/// The first number with more.
const TOO_LARGE: i128 = 10i128.pow(DIGITS as u32);
/// 2000-01-01, in days since 1970.
const EPOCH_UNIX_DAYS: i32 = (EPOCH_UNIX_US / 86_400_000_000) as i32;
/// Rows of one batch.
const BATCH_ROWS: usize = 16_384;
/// Text of one batch, beyond which the next begins: offsets into it have 31 bits.
const BATCH_TEXT_BYTES: usize = 64 << 20;

/// Why an answer is not written.
#[derive(Debug)]
pub enum NotWritten {
    /// A value has no place in its column's type.
    NoPlace {
        /// The column.
        column: String,
        /// The value.
        value: String,
        /// What the column holds.
        holds: DataType,
    },
    /// The library failed.
    Failed(ArrowError),
}

impl From<ArrowError> for NotWritten {
    fn from(error: ArrowError) -> Self {
        NotWritten::Failed(error)
    }
}

impl From<NotWritten> for Problem {
    fn from(why: NotWritten) -> Self {
        match why {
            NotWritten::NoPlace { column, value, holds } => Problem::new(
                422,
                "not_in_arrow",
                format!("{column} is {value} in a row, which Arrow's {holds} cannot be"),
            )
            .hint("leave the row out (from and to exclude infinite times), or ask for JSON, NDJSON or CSV"),
            NotWritten::Failed(error) => {
                tracing::error!(%error, "an answer cannot be written as Arrow");
                Problem::new(500, "internal_error", "the answer cannot be written")
            }
        }
    }
}

impl AnswerView<'_> {
    /// The schema, record batches, and the mark of the end.
    pub fn to_arrow(&self) -> Result<Vec<u8>, NotWritten> {
        let columns = self.columns();
        let zone: Arc<str> = self.query.calendar.zone().name().into();
        let fields = columns.iter().map(|column| arrow_field(column, &zone)).collect::<Vec<_>>();
        let schema = Arc::new(Schema::new_with_metadata(fields, self.metadata()));
        let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
        let mut cells: Vec<Cells> = schema.fields().iter().map(|field| Cells::new(field.data_type())).collect();
        let (mut rows, mut text_bytes) = (0, 0);
        for fields in self.all_rows() {
            for ((cells, field), column) in cells.iter_mut().zip(&fields).zip(schema.fields()) {
                text_bytes += cells.push(field).ok_or_else(|| NotWritten::NoPlace {
                    column: column.name().clone(),
                    value: field.to_string(),
                    holds: column.data_type().clone(),
                })?;
            }
            rows += 1;
            if rows == BATCH_ROWS || text_bytes > BATCH_TEXT_BYTES {
                writer.write(&batch(&schema, &mut cells, rows)?)?;
                (rows, text_bytes) = (0, 0);
            }
        }
        if rows > 0 {
            writer.write(&batch(&schema, &mut cells, rows)?)?;
        }
        Ok(writer.into_inner()?)
    }

    /// What is said about the answer beside its rows, for readers that keep no headers.
    fn metadata(&self) -> HashMap<String, String> {
        let as_of = AnswerView::as_of_body(self.as_of);
        let said = [
            ("aggregate", Some(self.aggregate.name.clone())),
            ("lsn", Some(as_of.lsn)),
            ("commit_time", Some(as_of.commit_time)),
            ("lag_ms", Some(self.lag_ms.to_string())),
            ("state", Some(self.state.to_owned())),
            ("next_cursor", self.next()),
            ("warnings", serde_json::to_string(&self.warnings).ok().filter(|_| !self.warnings.is_empty())),
        ];
        said.into_iter().filter_map(|(name, value)| Some((format!("tidemark.{name}"), value?))).collect()
    }
}

fn arrow_field(column: &ColumnBody, zone: &Arc<str>) -> ArrowField {
    let data_type = match (column.kind, column.scale.and_then(|scale| i8::try_from(scale).ok())) {
        (ColumnKind::Timestamp, _) => DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::clone(zone))),
        (ColumnKind::LocalTimestamp, _) => DataType::Timestamp(TimeUnit::Microsecond, None),
        (ColumnKind::Date, _) => DataType::Date32,
        (ColumnKind::Decimal, Some(scale)) if scale.unsigned_abs() <= DIGITS => DataType::Decimal128(DIGITS, scale),
        (ColumnKind::Int64, _) => DataType::Int64,
        (ColumnKind::Float64, _) => DataType::Float64,
        (ColumnKind::Boolean, _) => DataType::Boolean,
        (ColumnKind::Decimal | ColumnKind::Uuid | ColumnKind::Text, _) => DataType::Utf8,
    };
    let mut metadata = HashMap::from([("tidemark.role".to_owned(), column.role.to_owned())]);
    metadata.extend(column.granularity.clone().map(|granularity| ("tidemark.granularity".to_owned(), granularity)));
    ArrowField::new(&column.name, data_type, true).with_metadata(metadata)
}

fn batch(schema: &Arc<Schema>, cells: &mut [Cells], rows: usize) -> Result<RecordBatch, ArrowError> {
    let arrays = cells.iter_mut().map(Cells::finish).collect();
    // An answer may have rows and no columns.
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)
}

/// The values of one column in the batch that is being filled.
enum Cells {
    Boolean(BooleanBuilder),
    Int64(Int64Builder),
    Float64(Float64Builder),
    Decimal(Decimal128Builder, u16),
    Date(Date32Builder),
    Time(TimestampMicrosecondBuilder),
    Text(StringBuilder),
}

impl Cells {
    fn new(data_type: &DataType) -> Cells {
        match data_type {
            DataType::Boolean => Cells::Boolean(BooleanBuilder::new()),
            DataType::Int64 => Cells::Int64(Int64Builder::new()),
            DataType::Float64 => Cells::Float64(Float64Builder::new()),
            DataType::Decimal128(_, scale) => {
                let builder = Decimal128Builder::new().with_data_type(data_type.clone());
                Cells::Decimal(builder, u16::from(scale.unsigned_abs()))
            }
            DataType::Date32 => Cells::Date(Date32Builder::new()),
            DataType::Timestamp(..) => {
                Cells::Time(TimestampMicrosecondBuilder::new().with_data_type(data_type.clone()))
            }
            _ => Cells::Text(StringBuilder::new()),
        }
    }

    /// Appends a value, and says how many bytes of text that took; `None` where it has no place here.
    fn push(&mut self, field: &Field) -> Option<usize> {
        match (self, field) {
            (Cells::Boolean(cells), Field::Null) => cells.append_null(),
            (Cells::Boolean(cells), Field::Bool(value)) => cells.append_value(*value),
            (Cells::Int64(cells), Field::Null) => cells.append_null(),
            (Cells::Int64(cells), Field::Integer(value)) => cells.append_value(*value),
            (Cells::Float64(cells), Field::Null) => cells.append_null(),
            (Cells::Float64(cells), Field::Float(value)) => cells.append_value(*value),
            (Cells::Decimal(cells, _), Field::Null) => cells.append_null(),
            (Cells::Decimal(cells, scale), Field::Decimal { mantissa, scale: from }) => {
                let value = Numeric::rescale(*mantissa, *from, *scale)?;
                cells.append_value(Some(value).filter(|value| (-TOO_LARGE + 1..TOO_LARGE).contains(value))?);
            }
            (Cells::Date(cells), Field::Null) => cells.append_null(),
            (Cells::Date(cells), Field::Date(day)) => cells.append_value(day.checked_add(EPOCH_UNIX_DAYS)?),
            (Cells::Time(cells), Field::Null) => cells.append_null(),
            (Cells::Time(cells), Field::Instant { us, .. } | Field::LocalTime(us)) => {
                cells.append_value(us.checked_add(EPOCH_UNIX_US)?);
            }
            (Cells::Text(cells), Field::Null) => cells.append_null(),
            (Cells::Text(cells), Field::Text(text)) => {
                cells.append_value(text);
                return Some(text.len());
            }
            (Cells::Text(cells), decimal @ Field::Decimal { .. }) => cells.append_value(decimal.to_string()),
            _ => return None,
        }
        Some(0)
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Cells::Boolean(cells) => Arc::new(cells.finish()),
            Cells::Int64(cells) => Arc::new(cells.finish()),
            Cells::Float64(cells) => Arc::new(cells.finish()),
            Cells::Decimal(cells, _) => Arc::new(cells.finish()),
            Cells::Date(cells) => Arc::new(cells.finish()),
            Cells::Time(cells) => Arc::new(cells.finish()),
            Cells::Text(cells) => Arc::new(cells.finish()),
        }
    }
}
