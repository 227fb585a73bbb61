//! A definition resolved against the table's schema: columns by position, everything checked, nothing left to fail but
//! the data itself.

use chrono_tz::Tz;

use super::bucket::{Bucket, Calendar, Granularity};
use super::date_codec::{DateCodec, INSTANTS};
use super::definition::{Definition, MeasureDefinition, TimeDefinition};
use super::filter::{self, Filter};
use crate::aggregate::{Cell, Function};
use crate::change::{ColumnType, TableId, TableSchema, ValueRef};

/// Most measures, dimensions or rollups of one aggregate.
const MAX_PARTS: usize = 32;
/// Most digits after the point that a sum can keep.
const MAX_SCALE: u16 = 30;
const DAY_US: i64 = 86_400_000_000;

/// A definition that can be executed.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The table.
    pub table: TableId,
    /// Which rows count.
    pub filter: Option<Filter>,
    /// Where the time comes from; `None` where there is a single bucket.
    pub time: Option<TimePlan>,
    /// The columns of the group key, in order.
    pub dimensions: Vec<DimensionPlan>,
    /// What is computed.
    pub measures: Vec<MeasurePlan>,
    /// The granularities kept: the base first, then the rollups from finer to coarser. The position is the level.
    pub levels: Vec<Granularity>,
    /// Zone and origin of all levels.
    pub calendar: Calendar,
}

/// How a row's time becomes an instant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimePlan {
    /// Position in the row.
    pub column: usize,
    /// Zone in which a local time is read; `None` where values are instants already, or UTC.
    pub assumed: Option<Calendar>,
    /// How an integer is a date or an instant.
    pub codec: Option<DateCodec>,
}

/// One dimension.
#[derive(Clone, Debug, PartialEq)]
pub struct DimensionPlan {
    /// The column's name, and the dimension's.
    pub name: String,
    /// Position in the row.
    pub column: usize,
    /// What it holds.
    pub column_type: ColumnType,
}

/// One measure.
#[derive(Clone, Debug, PartialEq)]
pub struct MeasurePlan {
    /// Name in answers.
    pub name: String,
    /// Position in the row; `None` for `COUNT(*)`.
    pub column: Option<usize>,
    /// What is computed.
    pub function: Function,
    /// Which rows count for it, of those that count.
    pub filter: Option<Filter>,
}

/// What is wrong with a definition, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DefinitionError {
    /// JSON pointer into the definition (RFC 6901).
    pub pointer: String,
    /// Stable name of the reason.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do instead; may be empty.
    pub hint: String,
}

fn error(pointer: impl Into<String>, code: &'static str, message: impl Into<String>) -> DefinitionError {
    DefinitionError { pointer: pointer.into(), code, message: message.into(), hint: String::new() }
}

impl DefinitionError {
    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl Plan {
    /// Resolves a definition, or says what is wrong with it.
    pub fn resolve(definition: &Definition, schema: &TableSchema) -> Result<Plan, DefinitionError> {
        if definition.measures.is_empty() {
            return Err(error("/measures", "no_measures", "an aggregate needs at least one measure")
                .hint(r#"for example {"name":"n","count":"*"}"#));
        }
        for (parts, count) in [
            ("/measures", definition.measures.len()),
            ("/dimensions", definition.dimensions.len()),
            ("/rollups", definition.rollups.len()),
        ] {
            if count > MAX_PARTS {
                return Err(error(parts, "too_many", format!("at most {MAX_PARTS} are supported")));
            }
        }
        if definition.drill_through && !schema.keeps_row_image {
            let message = format!(
                "table {} keeps no row images, so there are no rows to drill through to",
                schema.qualified_name()
            );
            return Err(error("/drill_through", "no_row_image", message)
                .hint("leave drill_through out, or switch the table's row images on"));
        }
        let calendar = calendar(definition.time.as_ref())?;
        Ok(Plan {
            table: schema.id,
            filter: resolve_filter(definition.filter.as_deref(), "/where", schema)?,
            time: definition.time.as_ref().map(|time| resolve_time(time, calendar, schema)).transpose()?,
            dimensions: resolve_dimensions(definition, schema)?,
            measures: resolve_measures(definition, schema)?,
            levels: resolve_levels(definition, calendar)?,
            calendar,
        })
    }

    /// What stands in for a definition that cannot be resolved: no measures, no dimensions, nothing to read.
    #[must_use]
    pub fn unresolved() -> Plan {
        Plan {
            table: TableId(0),
            filter: None,
            time: None,
            dimensions: Vec::new(),
            measures: Vec::new(),
            levels: vec![Granularity::All],
            calendar: Calendar::UTC,
        }
    }

    /// A cell with nothing in it.
    #[must_use]
    pub fn zero(&self) -> Cell {
        Cell::zero(self.measures.iter().map(|measure| measure.function))
    }
}

impl TimePlan {
    /// The instant of a row, or the special bucket of a time that is none. `None` where the value is not a time.
    #[inline]
    #[must_use]
    pub fn instant(&self, value: ValueRef<'_>) -> Option<i64> {
        match value {
            ValueRef::Null => Some(Bucket::NULL.0),
            ValueRef::Timestamp(i64::MAX) | ValueRef::Date(i32::MAX) => Some(Bucket::INFINITY.0),
            ValueRef::Timestamp(i64::MIN) | ValueRef::Date(i32::MIN) => Some(Bucket::NEGATIVE_INFINITY.0),
            ValueRef::Timestamp(us) => Some(self.assumed.map_or(us, |calendar| calendar.instant_of_reading(us))),
            // A `date` goes further than a `timestamp`.
            ValueRef::Date(day) => i64::from(day).checked_mul(86_400_000_000).filter(|us| INSTANTS.contains(us)),
            ValueRef::Int(value) => self.codec?.instant(value),
            _ => None,
        }
    }
}

fn calendar(time: Option<&TimeDefinition>) -> Result<Calendar, DefinitionError> {
    let Some(time) = time else { return Ok(Calendar::UTC) };
    let zone = zone(&time.time_zone, "/time/time_zone")?;
    let origin_us = match &time.origin {
        None => 0,
        Some(_) if !matches!(time.granularity, Granularity::Step(_)) => {
            return Err(error("/time/origin", "origin_without_step", "only fixed steps such as PT15M have an origin"));
        }
        Some(text) => filter::stated_instant(text)
            .ok_or_else(|| error("/time/origin", "bad_origin", format!("{text:?} is not an RFC 3339 instant")))?,
    };
    Ok(Calendar::new(zone, origin_us))
}

/// Names that Postgres takes for abbreviations in a statement: hours from UTC, without the summer time that the zones of the same
/// names have or had.
const ABBREVIATIONS: [&str; 7] = ["CET", "EET", "EST", "HST", "MET", "MST", "WET"];

fn zone(name: &str, pointer: &str) -> Result<Tz, DefinitionError> {
    zone_of(name).map_err(|unknown| error(pointer, "unknown_time_zone", unknown.message).hint(unknown.hint))
}

/// A name that no zone is taken by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownZone {
    /// What is wrong with it.
    pub message: String,
    /// What to write instead.
    pub hint: &'static str,
}

/// The zone of a name that means the same here and in Postgres.
pub fn zone_of(name: &str) -> Result<Tz, UnknownZone> {
    if ABBREVIATIONS.contains(&name) {
        let message = format!("{name} is a number of hours in Postgres, and elsewhere a zone with summer time");
        return Err(UnknownZone { message, hint: "name a city's, for example Europe/Brussels" });
    }
    name.parse().map_err(|_| {
        let name: String = name.chars().take(64).collect();
        UnknownZone { message: format!("{name:?} is not an IANA time zone"), hint: "for example Europe/Madrid" }
    })
}

fn column(name: &str, pointer: &str, schema: &TableSchema) -> Result<(usize, ColumnType), DefinitionError> {
    let found = schema.columns.iter().enumerate().find(|(_, column)| column.name == name);
    let Some((index, column)) = found else {
        let missing = error(pointer, "unknown_column", format!("{} has no column {name:?}", schema.qualified_name()));
        let known: Vec<&str> = schema.columns.iter().map(|column| column.name.as_str()).collect();
        return Err(missing.hint(format!("its columns are {}", known.join(", "))));
    };
    if let ColumnType::Unsupported(type_name) = &column.column_type {
        return Err(error(
            pointer,
            "unsupported_type",
            format!("{}.{name} is of type {type_name}, which can be neither aggregated nor grouped by", schema.qualified_name()),
        )
        .hint("supported are smallint, integer, bigint, numeric, real, double precision, text, varchar, char, boolean, uuid, date, timestamp and timestamptz"));
    }
    if let ColumnType::Gone(what) = &column.column_type {
        return Err(error(pointer, "column_gone", format!("{}.{name}: {what}", schema.qualified_name())).hint(
            format!(
                "have the table read anew as it is now: POST /v1/sources/postgres/tables {}",
                serde_json::json!({"table": schema.qualified_name()})
            ),
        ));
    }
    Ok((index, column.column_type.clone()))
}

fn resolve_filter(text: Option<&str>, pointer: &str, schema: &TableSchema) -> Result<Option<Filter>, DefinitionError> {
    let Some(text) = text else { return Ok(None) };
    let filter = Filter::parse(text, schema).map_err(|e| error(pointer, "bad_filter", format!("where: {e}")))?;
    let mut columns = Vec::new();
    filter.columns(&mut columns);
    for index in columns {
        if let Some(used) = schema.columns.get(index) {
            column(&used.name, pointer, schema)?;
        }
    }
    Ok(Some(filter))
}

fn resolve_time(time: &TimeDefinition, calendar: Calendar, schema: &TableSchema) -> Result<TimePlan, DefinitionError> {
    let (index, column_type) = column(&time.column, "/time/column", schema)?;
    let assumed = time.assume_time_zone.as_deref().map(|name| zone(name, "/time/assume_time_zone")).transpose()?;
    let is_integer = matches!(column_type, ColumnType::Int2 | ColumnType::Int4 | ColumnType::Int8);
    if let Some(codec) = time.codec.filter(|_| !is_integer) {
        let message = format!("{} is of type {}, not an integer that is a date", time.column, column_type.name());
        return Err(error("/time/codec", "codec_without_integer", message).hint(format!("leave {} out", codec.name())));
    }
    if is_integer {
        let codec = resolve_codec(time, assumed.is_some(), calendar, &column_type)?;
        return Ok(TimePlan { column: index, assumed: None, codec: Some(codec) });
    }
    match column_type {
        ColumnType::TimestampTz if assumed.is_some() => Err(error(
            "/time/assume_time_zone",
            "zone_known",
            format!("{} is a timestamptz: its values are instants, no zone can be assumed", time.column),
        )),
        ColumnType::TimestampTz => Ok(TimePlan { column: index, assumed: None, codec: None }),
        ColumnType::Timestamp if assumed.is_none() && calendar.zone() != Tz::UTC => Err(error(
            "/time/assume_time_zone",
            "zone_not_stated",
            format!(
                "{} is a timestamp without zone: when a day of {} begins by it depends on whose clock it shows",
                time.column, time.time_zone
            ),
        )
        .hint(format!(r#""assume_time_zone":"{}" for that zone's own clock, or "UTC""#, time.time_zone))),
        ColumnType::Timestamp => Ok(TimePlan {
            column: index,
            assumed: assumed.filter(|zone| *zone != Tz::UTC).map(|zone| Calendar::new(zone, 0)),
            codec: None,
        }),
        ColumnType::Date if assumed.is_some() || calendar.zone() != Tz::UTC => Err(date_has_no_zone(&time.column)),
        ColumnType::Date if time.granularity == Granularity::Hour => {
            Err(error("/time/granularity", "finer_than_a_date", format!("{} is a date: it has no hours", time.column))
                .hint("use day or coarser"))
        }
        ColumnType::Date => Ok(TimePlan { column: index, assumed: None, codec: None }),
        other => Err(error(
            "/time/column",
            "not_a_time",
            format!("{} is of type {}, not a date, timestamp or timestamptz", time.column, other.name()),
        )),
    }
}

fn date_has_no_zone(column: &str) -> DefinitionError {
    error(
        "/time/time_zone",
        "date_has_no_zone",
        format!("{column} is a date: it has no time zone, its days are the same everywhere"),
    )
    .hint("leave time_zone and assume_time_zone out")
}

/// The codec of a time that is an integer.
fn resolve_codec(
    time: &TimeDefinition,
    zone_assumed: bool,
    calendar: Calendar,
    column_type: &ColumnType,
) -> Result<DateCodec, DefinitionError> {
    let names =
        |codecs: &mut dyn Iterator<Item = DateCodec>| codecs.map(DateCodec::name).collect::<Vec<_>>().join(", ");
    let fitting = names(&mut DateCodec::ALL.into_iter().filter(|codec| codec.fits(column_type)));
    let type_name = column_type.name();
    let Some(codec) = time.codec else {
        let message = format!("{} is of type {type_name}: say how its numbers are dates", time.column);
        return Err(error("/time/codec", "codec_needed", message).hint(match fitting.as_str() {
            "" => "a smallint holds no date; use another column".to_owned(),
            fitting => format!(r#""codec" is one of {fitting}"#),
        }));
    };
    if !codec.fits(column_type) {
        let message = format!("{} is of type {type_name}, which is too short for {}", time.column, codec.name());
        return Err(error("/time/codec", "codec_too_long", message).hint(format!("it can hold {fitting}")));
    }
    let Some(finest) = codec.finest() else {
        return match zone_assumed {
            true => Err(error(
                "/time/assume_time_zone",
                "zone_known",
                format!("{} holds instants: no zone can be assumed", time.column),
            )),
            false => Ok(codec),
        };
    };
    if zone_assumed || calendar.zone() != Tz::UTC {
        return Err(date_has_no_zone(&time.column));
    }
    match (calendar.nests(finest, time.granularity), time.granularity) {
        (Ok(()), _) => Ok(codec),
        (Err(_), Granularity::Step(step)) if finest == Granularity::Day && step % DAY_US == 0 => Ok(codec),
        (Err(_), granularity) => Err(error(
            "/time/granularity",
            "finer_than_a_date",
            format!("{} holds {}: it cannot be put into buckets of a {granularity}", time.column, codec.name()),
        )
        .hint(format!("use {finest} or coarser"))),
    }
}

fn resolve_dimensions(definition: &Definition, schema: &TableSchema) -> Result<Vec<DimensionPlan>, DefinitionError> {
    let mut dimensions: Vec<DimensionPlan> = Vec::new();
    for (index, name) in definition.dimensions.iter().enumerate() {
        let pointer = format!("/dimensions/{index}");
        if RESERVED.contains(&name.as_str()) {
            let message =
                format!("answers have a column {name} of their own, and a dimension has the name of its column");
            return Err(error(pointer, "duplicate_name", message).hint(format!(
                "rename the column: ALTER TABLE {} RENAME COLUMN {name} TO ...",
                schema.qualified_name()
            )));
        }
        if dimensions.iter().any(|dimension| dimension.name == *name) {
            return Err(error(pointer, "duplicate_name", format!("the dimension {name:?} is listed twice")));
        }
        let (column, column_type) = column(name, &pointer, schema)?;
        dimensions.push(DimensionPlan { name: name.clone(), column, column_type });
    }
    Ok(dimensions)
}

/// Names that answers use for something else, whatever is asked.
pub const RESERVED: [&str; 3] = ["time", "complete", "others"];

fn resolve_measures(definition: &Definition, schema: &TableSchema) -> Result<Vec<MeasurePlan>, DefinitionError> {
    let mut measures: Vec<MeasurePlan> = Vec::new();
    for (index, measure) in definition.measures.iter().enumerate() {
        let pointer = format!("/measures/{index}");
        let taken = measures.iter().any(|other| other.name == measure.name)
            || definition.dimensions.contains(&measure.name)
            || RESERVED.contains(&measure.name.as_str());
        if taken {
            let message = format!("the name {:?} is used twice or reserved", measure.name);
            return Err(error(format!("{pointer}/name"), "duplicate_name", message));
        }
        if !is_name(&measure.name) {
            let message = "a measure's name is 1 to 63 letters, digits and underscores, not beginning with a digit";
            return Err(error(format!("{pointer}/name"), "bad_name", message));
        }
        measures.push(resolve_measure(measure, &pointer, schema)?);
    }
    Ok(measures)
}

fn resolve_measure(
    measure: &MeasureDefinition,
    pointer: &str,
    schema: &TableSchema,
) -> Result<MeasurePlan, DefinitionError> {
    let filter = resolve_filter(measure.filter.as_deref(), &format!("{pointer}/where"), schema)?;
    let plan = |column, function| Ok(MeasurePlan { name: measure.name.clone(), column, function, filter });
    let (sum, count) = (measure.sum.as_deref(), measure.count.as_deref());
    if measure.scale.is_some() && sum.is_none() {
        return Err(error(format!("{pointer}/scale"), "scale_without_sum", "only a sum has a scale"));
    }
    match (sum, count) {
        (None, Some("*")) => plan(None, Function::CountRows),
        (None, Some(name)) => {
            let (index, _) = column(name, &format!("{pointer}/count"), schema)?;
            plan(Some(index), Function::CountValues)
        }
        (Some(name), None) => {
            let (index, column_type) = column(name, &format!("{pointer}/sum"), schema)?;
            plan(Some(index), sum_function(measure, name, &column_type, pointer)?)
        }
        _ => Err(error(pointer, "not_a_measure", "a measure has exactly one of `sum` and `count`")
            .hint(r#"for example {"name":"amount","sum":"amount"} or {"name":"n","count":"*"}"#)),
    }
}

fn sum_function(
    measure: &MeasureDefinition,
    name: &str,
    column_type: &ColumnType,
    pointer: &str,
) -> Result<Function, DefinitionError> {
    let function = match (column_type, measure.scale) {
        (ColumnType::Numeric { scale: None }, None) => {
            return Err(error(
                format!("{pointer}/scale"),
                "scale_needed",
                format!(
                    "{name} is a numeric without a declared scale: say how many digits after the point the sum keeps"
                ),
            )
            .hint(r#"for example "scale": 2; a row with more digits halts the aggregate, it is never rounded"#));
        }
        (ColumnType::Numeric { scale }, stated) => {
            Function::SumNumeric { scale: stated.or(*scale).unwrap_or_default() }
        }
        (_, Some(_)) => {
            return Err(error(format!("{pointer}/scale"), "scale_without_numeric", format!("{name} is not a numeric")));
        }
        (ColumnType::Int2 | ColumnType::Int4 | ColumnType::Int8, None) => Function::SumInteger,
        (ColumnType::Float4 | ColumnType::Float8, None) => Function::SumFloat,
        (other, None) => {
            return Err(error(
                format!("{pointer}/sum"),
                "not_a_number",
                format!("{name} is of type {} and cannot be summed", other.name()),
            ));
        }
    };
    match function {
        Function::SumNumeric { scale } if scale > MAX_SCALE => {
            Err(error(format!("{pointer}/scale"), "scale_too_large", format!("at most {MAX_SCALE} digits can be kept")))
        }
        function => Ok(function),
    }
}

fn resolve_levels(definition: &Definition, calendar: Calendar) -> Result<Vec<Granularity>, DefinitionError> {
    let Some(time) = &definition.time else {
        if !definition.rollups.is_empty() {
            return Err(error(
                "/rollups",
                "rollups_without_time",
                "an aggregate without a time bucket has nothing to roll up",
            ));
        }
        return Ok(vec![Granularity::All]);
    };
    let mut levels = vec![time.granularity];
    for (index, rollup) in definition.rollups.iter().enumerate() {
        let pointer = format!("/rollups/{index}");
        if levels.contains(rollup) {
            return Err(error(pointer, "duplicate_rollup", format!("{rollup} is kept already")));
        }
        calendar.nests(time.granularity, *rollup).map_err(|e| error(pointer, "does_not_nest", e.to_string()))?;
        levels.push(*rollup);
    }
    // All rollups nest over the base, so sorting by the enum's order (steps by length first) keeps it in front.
    levels.sort_unstable();
    Ok(levels)
}

/// Whether a name can stand in a URL and in an answer: letters, digits, underscores, at most 63, no leading digit.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let head = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    head && name.len() <= 63 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_date_beyond_every_timestamp_is_no_time() {
        let time = TimePlan { column: 0, assumed: None, codec: None };
        assert_eq!(time.instant(ValueRef::Date(1)), Some(86_400_000_000));
        // The last day of the year 294276, and the first and last that Postgres has beyond.
        assert!(time.instant(ValueRef::Date(106_751_982)).is_some());
        for beyond in [106_751_983, 2_145_031_948, -2_451_545 - 1] {
            assert_eq!(time.instant(ValueRef::Date(beyond)), None, "{beyond}");
        }
        assert_eq!(time.instant(ValueRef::Date(i32::MAX)), Some(Bucket::INFINITY.0));
    }

    #[test]
    fn a_name_of_the_answers_own_is_told_a_way_on() {
        let schema = TableSchema {
            id: TableId(1),
            namespace: "public".to_owned(),
            name: "t".to_owned(),
            columns: vec![crate::change::Column { name: "time".to_owned(), column_type: ColumnType::Text }],
            primary_key: vec![0],
            keeps_row_image: true,
        };
        let text = r#"{"table":"t","measures":[{"name":"n","count":"*"}],"dimensions":["time"]}"#;
        let refused = Plan::resolve(&serde_json::from_str(text).unwrap(), &schema).unwrap_err();
        assert_eq!(refused.code, "duplicate_name");
        assert_eq!(refused.hint, "rename the column: ALTER TABLE public.t RENAME COLUMN time TO ...");
    }

    #[test]
    fn an_abbreviation_is_no_zone() {
        for name in ABBREVIATIONS {
            assert_eq!(zone(name, "/time/time_zone").unwrap_err().code, "unknown_time_zone", "{name}");
        }
        assert!(zone("Europe/Brussels", "/time/time_zone").is_ok());
    }
}
