//! Expressions that put a time into buckets: `date_trunc`, `date_bin`, `time_bucket`, `CTUMBLE`, `EXTRACT`, and
//! `c - mod(c, 100)` over dates that are integers.
//!
//! What an expression means may depend on the column's type: `ts AT TIME ZONE 'Europe/Madrid'` is the clock of Madrid where
//! `ts` is an instant, and the instant at which Madrid's clock showed it where it is a `timestamp`.

use engine::change::ColumnType;
use engine::materialization::condition::folded;
use engine::materialization::filter::{parse_timestamp, stated_time};
use engine::materialization::{DateCodec, Granularity};
use sqlparser::ast::{
    BinaryOperator, DataType, DateTimeField, ExactNumberInfo, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArguments, Value,
};

use super::interval::{Stride, TIME_BUCKET_ORIGIN, epoch_1970};

/// Zones are this far apart, or a multiple of it.
const QUARTER_HOUR_US: i64 = 900_000_000;

/// A time in a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TimeItem {
    pub(super) operand: Operand,
    pub(super) bucket: BucketWords,
    /// The zone that the function is told.
    pub(super) zone: Option<String>,
}

/// A column and what is done to it before it is put into buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Operand {
    pub(super) column: String,
    pub(super) codec: Option<DateCodec>,
    /// `AT TIME ZONE`, in the order in which they apply.
    pub(super) zones: Vec<String>,
    /// It is a date by then: it has no hours, and no zone any more.
    pub(super) is_date: bool,
}

/// The buckets that are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BucketWords {
    /// A granularity, and the origin of a step in microseconds since 2000-01-01.
    Granularity(Granularity, i64),
    /// One field of a date, such as `year`: part of a granularity.
    Field(String),
    /// `c - mod(c, 100)`
    Modulo(i64),
}

/// Why an expression about time is refused: code, message, hint.
pub(super) type Refusal = (&'static str, String, String);

fn refusal<T>(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Result<T, Refusal> {
    Err((code, message.into(), hint.into()))
}

/// The column of a plain name; the table before it is not looked at, there is only one.
pub(super) fn column(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Nested(inner) => column(inner),
        Expr::Identifier(name) => Some(folded(name)),
        Expr::CompoundIdentifier(parts) if parts.len() == 2 => parts.last().map(folded),
        _ => None,
    }
}

/// A function's name and its plain arguments.
pub(super) fn call(function: &Function) -> Option<(String, Vec<&Expr>)> {
    let FunctionArguments::List(list) = &function.args else { return None };
    let arguments = list.args.iter().map(|argument| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expression)) => Some(expression),
        _ => None,
    });
    Some((function.name.to_string().to_lowercase(), arguments.collect::<Option<_>>()?))
}

/// The text of a constant.
fn text(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Nested(inner) => text(inner),
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Some(text.clone()),
            _ => None,
        },
        _ => None,
    }
}

/// The text of a constant and the type that it is said to be of: `timestamp '2000-01-01'`, `'2000-01-01'::timestamp`.
fn typed_text(expression: &Expr) -> Option<(String, Option<&DataType>)> {
    match expression {
        Expr::Nested(inner) => typed_text(inner),
        Expr::TypedString(typed) => Some((typed.value.value.clone().into_string()?, Some(&typed.data_type))),
        Expr::Cast { expr, data_type, .. } => Some((text(expr)?, Some(data_type))),
        other => Some((text(other)?, None)),
    }
}

/// Whether a number is written without a point.
fn is_whole(expression: &Expr) -> bool {
    let digits = |value: &Value| matches!(value, Value::Number(digits, _) if !digits.contains('.'));
    matches!(expression, Expr::Value(value) if digits(&value.value))
}

fn number(expression: &Expr) -> Option<i64> {
    let Expr::Value(value) = expression else { return None };
    let Value::Number(digits, _) = &value.value else { return None };
    digits.trim_end_matches('0').strip_suffix('.').map_or_else(|| digits.parse().ok(), |whole| whole.parse().ok())
}

/// The column, codec and zones of what is put into buckets.
fn operand(expression: &Expr) -> Option<Operand> {
    if let Some(column) = column(expression) {
        return Some(Operand { column, ..Operand::default() });
    }
    match expression {
        Expr::Nested(inner) => operand(inner),
        // With a precision it rounds.
        Expr::Cast { expr, data_type: DataType::Timestamp(None, _), .. } => operand(expr),
        Expr::Cast { expr, data_type: DataType::Date, .. } => {
            operand(expr).map(|operand| Operand { is_date: true, ..operand })
        }
        // Of another type a zone means the opposite.
        Expr::AtTimeZone { timestamp, .. } if is_cast(timestamp) => None,
        Expr::AtTimeZone { timestamp, time_zone } => {
            let mut operand = operand(timestamp).filter(|operand| !operand.is_date)?;
            operand.zones.push(text(time_zone)?);
            Some(operand)
        }
        Expr::Function(function) => {
            let (name, arguments) = call(function)?;
            let (column, codec) = match (name.as_str(), arguments.as_slice()) {
                ("to_timestamp", [instant]) => since_epoch(instant)?,
                ("to_date", [digits, pattern]) => {
                    let pattern = text(pattern)?.to_lowercase();
                    (digits_of(digits, &pattern)?, DateCodec::of_name(&pattern)?)
                }
                _ => return None,
            };
            Some(Operand { column, codec: Some(codec), ..Operand::default() })
        }
        _ => None,
    }
}

fn is_cast(expression: &Expr) -> bool {
    match expression {
        Expr::Nested(inner) => is_cast(inner),
        other => matches!(other, Expr::Cast { .. }),
    }
}

/// `c`, `c / 1000.0`. By 1000 Postgres divides whole numbers, and cuts what is before 1970 off towards it.
fn since_epoch(expression: &Expr) -> Option<(String, DateCodec)> {
    match expression {
        Expr::Nested(inner) | Expr::Cast { expr: inner, data_type: DataType::DoublePrecision, .. } => {
            since_epoch(inner)
        }
        Expr::BinaryOp { left, op: BinaryOperator::Divide, right } => {
            let codec = match (number(right)?, is_whole(right)) {
                (1_000, false) => DateCodec::EpochMs,
                (1_000_000, false) => DateCodec::EpochUs,
                _ => return None,
            };
            // Postgres shows the type that it divides in.
            let divided = match left.as_ref() {
                Expr::Cast { expr, data_type: DataType::Numeric(ExactNumberInfo::None), .. } => expr,
                other => other,
            };
            Some((column(divided)?, codec))
        }
        other => Some((column(other)?, DateCodec::EpochS)),
    }
}

/// `c::text`, `lpad(c::text, 6, '0')`. What may begin with a zero has to be filled up: of 70115 Postgres takes 70 for the year.
fn digits_of(expression: &Expr, pattern: &str) -> Option<String> {
    let written = |expression: &Expr| match expression {
        Expr::Cast { expr, data_type: DataType::Text | DataType::Varchar(None), .. } => column(expr),
        _ => None,
    };
    let Expr::Function(function) = expression else {
        return written(expression).filter(|_| pattern.starts_with("yyyy"));
    };
    let (name, arguments) = call(function)?;
    let (digits, length, filler) = match (name.as_str(), arguments.as_slice()) {
        ("lpad", [digits, length, filler]) => (written(digits)?, number(length)?, text(filler)?),
        _ => return None,
    };
    (usize::try_from(length) == Ok(pattern.len()) && filler == "0").then_some(digits)
}

/// What an expression says of time; `None` where it says nothing.
pub(super) fn time_item(expression: &Expr) -> Result<Option<TimeItem>, Refusal> {
    read_time_item(expression)?.map(checked).transpose()
}

/// Refuses what Postgres computes from a date and what buckets of instants would not give.
fn checked(item: TimeItem) -> Result<TimeItem, Refusal> {
    const DAY_US: i64 = 86_400_000_000;
    let of_days = match &item.bucket {
        BucketWords::Granularity(Granularity::Hour, _) => false,
        BucketWords::Granularity(Granularity::Step(us), origin) => us % DAY_US == 0 && origin % DAY_US == 0,
        BucketWords::Granularity(..) | BucketWords::Field(_) | BucketWords::Modulo(_) => true,
    };
    if item.operand.is_date && !(of_days && item.zone.is_none()) {
        return refusal(
            "finer_than_a_date",
            format!("{} is cast to a date, which has neither hours nor a zone", item.operand.column),
            "leave the cast out, or group by days and longer; the zone of the days stands in WITH (timezone = '...')",
        );
    }
    Ok(item)
}

fn read_time_item(expression: &Expr) -> Result<Option<TimeItem>, Refusal> {
    let item = |operand, bucket| Ok(Some(TimeItem { operand, bucket, zone: None }));
    match expression {
        Expr::Nested(inner) => read_time_item(inner),
        Expr::Cast { data_type: DataType::Date, .. } => match operand(expression) {
            Some(operand) => item(operand, BucketWords::Granularity(Granularity::Day, 0)),
            None => Ok(None),
        },
        Expr::Extract { field, expr, .. } => match operand(expr) {
            Some(operand) => item(operand, BucketWords::Field(field_name(field))),
            None => Ok(None),
        },
        Expr::Function(function) => match call(function) {
            Some((name, arguments)) => function_item(&name, &arguments),
            None => Ok(None),
        },
        Expr::BinaryOp { left, op: BinaryOperator::Minus, right } => match (column(left), modulo(right)) {
            (Some(whole), Some((part, unit))) if whole == part => {
                item(Operand { column: whole, ..Operand::default() }, BucketWords::Modulo(unit))
            }
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}

fn field_name(field: &DateTimeField) -> String {
    match field {
        DateTimeField::Custom(name) => name.value.to_lowercase(),
        field => field.to_string().to_lowercase(),
    }
}

/// `mod(c, 100)`, `c % 100`
fn modulo(expression: &Expr) -> Option<(String, i64)> {
    match expression {
        Expr::Nested(inner) => modulo(inner),
        Expr::BinaryOp { left, op: BinaryOperator::Modulo, right } => Some((column(left)?, number(right)?)),
        Expr::Function(function) => match (call(function)?.0.as_str(), call(function)?.1.as_slice()) {
            ("mod", [left, right]) => Some((column(left)?, number(right)?)),
            _ => None,
        },
        _ => None,
    }
}

fn function_item(name: &str, arguments: &[&Expr]) -> Result<Option<TimeItem>, Refusal> {
    let usage = match name {
        "date_trunc" => "date_trunc('month', ts) or date_trunc('month', ts, 'Europe/Madrid')",
        "date_part" => "date_part('year', ts)",
        "date" => "date(ts)",
        "date_bin" => "date_bin('15 minutes', ts, timestamptz '2000-01-01')",
        "time_bucket" => "time_bucket('1 day', ts) or time_bucket('1 day', ts, 'Europe/Madrid')",
        "ctumble" => "CTUMBLE(ts, INTERVAL '1' day, TIMESTAMP '1970-01-01 00:00:00')",
        "tumble" => {
            return refusal("tumble", "TUMBLE stands after FROM", "write FROM TUMBLE(payments, ts, INTERVAL '1 day')");
        }
        _ => return Ok(None),
    };
    let wrong =
        || -> Refusal { ("time_expression", format!("{name} cannot be read like this"), format!("write {usage}")) };
    let of = |expression: &Expr| operand(expression).ok_or_else(wrong);
    let item = |operand, bucket, zone| Ok(Some(TimeItem { operand, bucket, zone }));
    match (name, arguments) {
        ("date_trunc", [unit, time, zone @ ..]) if zone.len() <= 1 => {
            let Some(unit) = text(unit) else { return Err(wrong()) };
            let zone = match zone {
                [zone] => Some(text(zone).ok_or_else(wrong)?),
                _ => None,
            };
            match unit.to_lowercase().parse() {
                Ok(granularity) if granularity != Granularity::All => {
                    item(of(time)?, BucketWords::Granularity(granularity, 0), zone)
                }
                _ => refusal(
                    "date_trunc_unit",
                    format!("there are no buckets of one {unit}"),
                    "there are second, minute, hour, day, week, month, quarter and year",
                ),
            }
        }
        ("date", [time]) => {
            let operand = Operand { is_date: true, ..of(time)? };
            item(operand, BucketWords::Granularity(Granularity::Day, 0), None)
        }
        ("date_part", [field, time]) => {
            let Some(field) = text(field) else { return Err(wrong()) };
            item(of(time)?, BucketWords::Field(field.to_lowercase()), None)
        }
        ("date_bin", [stride, time, origin]) => {
            let (Some(stride), Some(origin)) = (Stride::of(stride), origin_of(origin)?) else { return Err(wrong()) };
            let granularity = stride.step().or_else(|message| refusal("length", message, ""))?;
            item(of(time)?, BucketWords::Granularity(granularity, origin), None)
        }
        ("time_bucket", [stride, time, more @ ..]) if more.len() <= 1 => {
            let Some(stride) = Stride::of(stride) else { return Err(wrong()) };
            let default = if stride.months > 0 { epoch_1970() } else { TIME_BUCKET_ORIGIN };
            let (origin, zone) = match more {
                [] => (default, None),
                [more] => match (origin_of(more)?, text(more)) {
                    (Some(origin), _) => (origin, None),
                    (None, Some(zone)) => (default, Some(zone)),
                    _ => return Err(wrong()),
                },
                _ => return Err(wrong()),
            };
            item(of(time)?, stride_words(stride, origin)?, zone)
        }
        ("ctumble", [time, stride, origin @ ..]) if origin.len() <= 1 => {
            let Some(stride) = Stride::of(stride) else { return Err(wrong()) };
            let origin = match origin {
                [origin] => origin_of(origin)?.ok_or_else(wrong)?,
                _ => epoch_1970(),
            };
            item(of(time)?, stride_words(stride, origin)?, None)
        }
        _ => Err(wrong()),
    }
}

/// The windows of `FROM TUMBLE(t, ts, length)`.
pub(super) fn tumble(time: &Expr, length: &Expr) -> Result<TimeItem, Refusal> {
    let (Some(operand), Some(stride)) = (operand(time), Stride::of(length)) else {
        return refusal(
            "time_expression",
            "TUMBLE cannot be read like this",
            "write FROM TUMBLE(payments, ts, INTERVAL '1 day')",
        );
    };
    checked(TimeItem { operand, bucket: stride_words(stride, epoch_1970())?, zone: None })
}

fn stride_words(stride: Stride, origin: i64) -> Result<BucketWords, Refusal> {
    let granularity = stride.granularity(origin).or_else(|message| refusal("length", message, ""))?;
    Ok(BucketWords::Granularity(granularity, origin))
}

/// Where steps begin; `None` for what is no time. One that Postgres reads otherwise would shift all buckets.
fn origin_of(expression: &Expr) -> Result<Option<i64>, Refusal> {
    let Some((text, data_type)) = typed_text(expression) else { return Ok(None) };
    if data_type.is_none() && parse_timestamp(&text).is_none()
        || !matches!(data_type, None | Some(DataType::Date | DataType::Timestamp(..)))
    {
        return Ok(None);
    }
    stated_time(&text, data_type).map(Some).or_else(|message| {
        refusal("time_expression", format!("the origin: {message}"), "for example timestamptz '2000-01-01 00:00:00+01'")
    })
}

/// The granularity that fields of one date make together: `year` and `month` a month.
pub(super) fn fields_together(fields: &[String], column: &str) -> Result<Granularity, Refusal> {
    let has = |name: &str| fields.iter().any(|field| field == name);
    let known = ["year", "quarter", "month", "day", "doy", "isoyear", "week"];
    if let Some(other) = fields.iter().find(|field| !known.contains(&field.as_str())) {
        return refusal(
            "extract_field",
            format!("{other} alone is no bucket of time: it mixes the days of all years"),
            "write date_trunc('hour', ts) for buckets of an hour; year, quarter, month, day, isoyear and week can be extracted",
        );
    }
    let only = |names: &[&str]| fields.iter().all(|field| names.contains(&field.as_str()));
    if has("isoyear") && has("week") && only(&["isoyear", "week"]) {
        return Ok(Granularity::Week);
    }
    if has("week") || has("isoyear") {
        return refusal(
            "extract_field",
            "weeks belong to ISO years: 2027-01-01 is in week 53 of 2026",
            format!("write date_trunc('week', {column}), or EXTRACT(ISOYEAR ...) with EXTRACT(WEEK ...)"),
        );
    }
    if !has("year") {
        let (unit, mixed) = if has("month") {
            ("month", "January of every year")
        } else if has("quarter") {
            ("quarter", "the first quarter of every year")
        } else {
            ("day", "the same day of every month or year")
        };
        return refusal(
            "month_of_year",
            format!("EXTRACT({} ...) without the year puts {mixed} into one bucket", unit.to_uppercase()),
            format!(
                "for one bucket per {unit} write EXTRACT(YEAR FROM {column}) AS y before it, or date_trunc('{unit}', {column})"
            ),
        );
    }
    match () {
        () if has("doy") || has("day") && has("month") => Ok(Granularity::Day),
        () if has("day") => refusal(
            "month_of_year",
            "EXTRACT(DAY ...) without the month puts the same day of every month into one bucket",
            format!("add EXTRACT(MONTH FROM {column})"),
        ),
        () if has("month") => Ok(Granularity::Month),
        () if has("quarter") => Ok(Granularity::Quarter),
        () => Ok(Granularity::Year),
    }
}

/// What `c - mod(c, unit)` makes of dates under a codec.
pub(super) fn modulo_words(unit: i64, codec: DateCodec, column: &str) -> Result<Granularity, Refusal> {
    match (codec, unit) {
        (DateCodec::Yyyymmdd | DateCodec::Yymmdd, 1) => Ok(Granularity::Day),
        (DateCodec::Yyyymmdd | DateCodec::Yymmdd, 100) | (DateCodec::Yyyymm, 1) => Ok(Granularity::Month),
        (DateCodec::Yyyymmdd | DateCodec::Yymmdd, 10_000) | (DateCodec::Yyyymm, 100) => Ok(Granularity::Year),
        (DateCodec::Ddmmyy, _) => refusal(
            "month_of_year",
            format!(
                "{column} - mod(..., {unit}) of a date as ddmmyy takes away the year and leaves the day: \
                 the same day of every year, not a month"
            ),
            format!("write date_trunc('month', to_date(lpad({column}::text, 6, '0'), 'DDMMYY'))"),
        ),
        (DateCodec::EpochS, _) => refused_before_1970(&format!("to_timestamp({column})")),
        (DateCodec::EpochMs, _) => refused_before_1970(&format!("to_timestamp({column} / 1000.0)")),
        (DateCodec::EpochUs, _) => refused_before_1970(&format!("to_timestamp({column} / 1000000.0)")),
        _ => refusal(
            "modulo",
            format!("{column} - mod(..., {unit}) of a date as {} is no bucket of time", codec.name()),
            "mod(c, 100) makes months of yyyymmdd and yymmdd, and years of yyyymm; mod(c, 10000) years",
        ),
    }
}

/// Postgres' `mod` cuts towards zero: around 1970 a bucket would be twice as long, and all before it would end where ours begin.
fn refused_before_1970<T>(instant: &str) -> Result<T, Refusal> {
    refusal(
        "modulo",
        "mod cuts towards zero in Postgres: of instants before 1970 it makes other buckets than of those after",
        format!("write date_bin('1 hour', {instant}, timestamptz '1970-01-01 00:00:00Z')"),
    )
}

/// The zone of the buckets, and the one in which a `timestamp` is read.
pub(super) fn zones(
    item: &TimeItem,
    column_type: Option<&ColumnType>,
    stated: Option<&str>,
    assumed: Option<&str>,
) -> Result<(String, Option<String>), Refusal> {
    let own = |zone: Option<&str>| zone.or(stated).unwrap_or("UTC").to_owned();
    let told = item.zone.as_deref();
    let mut zones: Vec<&str> = item.operand.zones.iter().map(String::as_str).collect();
    let local = matches!(column_type, Some(ColumnType::Timestamp));
    let assumed = if local && !zones.is_empty() { Some(zones.remove(0)) } else { assumed };
    let zone = match (zones.as_slice(), told) {
        ([], told) => told,
        ([zone], None) => Some(*zone),
        _ => {
            return refusal(
                "time_zones",
                "there are too many time zones in this expression",
                "write date_trunc('month', ts, 'Europe/Madrid'), and for a timestamp \
                 date_trunc('month', ts AT TIME ZONE 'UTC', 'Europe/Madrid')",
            );
        }
    };
    if let (Some(zone), Some(stated)) = (zone, stated)
        && zone != stated
    {
        return refusal(
            "time_zones",
            format!("the zone is {zone} here and {stated} after WITH"),
            "leave one of them out",
        );
    }
    // A step that does not divide what zones are apart begins elsewhere on another clock.
    if let (Some(zone), BucketWords::Granularity(Granularity::Step(step), _)) = (zone, &item.bucket)
        && zone != "UTC"
        && QUARTER_HOUR_US % step != 0
    {
        return refusal(
            "time_zones",
            format!("steps of a fixed length are counted from their origin, not on the clock of {zone}"),
            "leave the zone out and state the origin, for example timestamptz '2000-01-01 00:00:00+01'",
        );
    }
    let fixed = matches!(item.bucket, BucketWords::Granularity(Granularity::Step(_), _));
    if local && !item.operand.zones.is_empty() && zone.or(stated).is_none() && !fixed {
        let read = assumed.unwrap_or_default();
        return refusal(
            "time_zones",
            format!("this says on whose clock the time is ({read}), and not by whose days it is to be grouped"),
            format!("write date_trunc('month', {} AT TIME ZONE '{read}', '{read}')", item.operand.column),
        );
    }
    Ok((own(zone), assumed.map(str::to_owned)))
}
