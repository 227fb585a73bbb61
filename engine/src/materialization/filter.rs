//! The `where` of a definition: SQL conditions over the table's own columns, with SQL's three-valued logic.
//!
//! Parsed by sqlparser, checked against the schema, and reduced to comparisons that need no allocation per row. What is
//! not certain to mean here what it means in Postgres is refused: ordering of text depends on the collation, functions
//! and casts on the session.

use std::cmp::Ordering;

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use sqlparser::ast::{BinaryOperator, DataType, Expr, TimezoneInfo, UnaryOperator, Value as SqlValue};

use super::condition::{self, SUPPORTED};
use crate::change::value::EPOCH_UNIX_US;
use crate::change::{ColumnType, Numeric, TableSchema, Value, ValueRef};

/// A condition on a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// `column <op> literal`
    Compare {
        /// Position in the row.
        column: usize,
        /// Which results of the comparison count.
        accept: Accept,
        /// What it is compared with; never NULL.
        literal: Value,
    },
    /// `column IN (...)`
    In {
        /// Position in the row.
        column: usize,
        /// The list: in order, each value once, no NULL.
        list: Vec<Value>,
    },
    /// `column IS NULL`
    IsNull {
        /// Position in the row.
        column: usize,
    },
    /// A boolean column on its own.
    Column {
        /// Position in the row.
        column: usize,
    },
    /// A literal TRUE, FALSE or NULL (`None`).
    Constant(Option<bool>),
    /// All of them.
    And(Box<Filter>, Box<Filter>),
    /// Any of them.
    Or(Box<Filter>, Box<Filter>),
    /// The opposite; of unknown, unknown.
    Not(Box<Filter>),
}

/// The orderings that satisfy a comparison operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    less: bool,
    equal: bool,
    greater: bool,
}

/// The condition is not one we can evaluate exactly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FilterError(pub String);

pub(super) fn refuse<T>(message: impl Into<String>) -> Result<T, FilterError> {
    Err(FilterError(message.into()))
}

impl Filter {
    /// Parses and checks a condition.
    pub fn parse(text: &str, schema: &TableSchema) -> Result<Filter, FilterError> {
        let expression = condition::read(text)?;
        let filter = compile(&expression, schema)?;
        // What runs here has words for Postgres, too: no condition is sent to it as it came.
        condition::write(&expression)?;
        Ok(filter)
    }

    /// Whether the row counts: only where the condition is true, not where it is unknown. A number of more than 38 digits
    /// compares with nothing: rows that have one in a [`Filter::compared`] column are not to be asked about.
    #[inline]
    #[must_use]
    pub fn accepts(&self, row: &[ValueRef<'_>]) -> bool {
        self.evaluate(row) == Some(true)
    }

    fn evaluate(&self, row: &[ValueRef<'_>]) -> Option<bool> {
        match self {
            Filter::Compare { column, accept, literal } => {
                let ordering = compare(*row.get(*column)?, literal.as_ref())?;
                Some(accept.matches(ordering))
            }
            Filter::In { column, list } => {
                let value = *row.get(*column)?;
                if matches!(value, ValueRef::Null) {
                    return None;
                }
                Some(list.binary_search_by(|item| order(item.as_ref(), value)).is_ok())
            }
            Filter::IsNull { column } => Some(matches!(row.get(*column)?, ValueRef::Null)),
            Filter::Column { column } => match row.get(*column)? {
                ValueRef::Bool(v) => Some(*v),
                _ => None,
            },
            Filter::Constant(v) => *v,
            Filter::And(a, b) => match (a.evaluate(row), b.evaluate(row)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
            Filter::Or(a, b) => match (a.evaluate(row), b.evaluate(row)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
            Filter::Not(a) => a.evaluate(row).map(|v| !v),
        }
    }

    /// The columns whose values it compares, and does not only ask whether they are NULL.
    pub fn compared(&self, into: &mut Vec<usize>) {
        self.looked_at(&mut |column, compared| into.extend(compared.then_some(column)));
    }

    /// The columns it looks at.
    pub fn columns(&self, into: &mut Vec<usize>) {
        self.looked_at(&mut |column, _| into.push(column));
    }

    /// Tells each column that it looks at, and whether its value is compared.
    fn looked_at(&self, tell: &mut dyn FnMut(usize, bool)) {
        match self {
            Filter::Compare { column, .. } | Filter::In { column, .. } | Filter::Column { column } => {
                tell(*column, true)
            }
            Filter::IsNull { column } => tell(*column, false),
            Filter::Constant(_) => {}
            Filter::And(a, b) | Filter::Or(a, b) => {
                a.looked_at(tell);
                b.looked_at(tell);
            }
            Filter::Not(a) => a.looked_at(tell),
        }
    }
}

impl Filter {
    /// The conditions that all have to be true.
    #[must_use]
    pub fn into_conjuncts(self) -> Vec<Filter> {
        match self {
            Filter::And(a, b) => [a.into_conjuncts(), b.into_conjuncts()].concat(),
            other => vec![other],
        }
    }

    /// The column and the values it may have, where the condition is an equality or an `IN`.
    #[must_use]
    pub fn equals(&self) -> Option<(usize, &[Value])> {
        match self {
            Filter::Compare { column, accept: Accept { less: false, equal: true, greater: false }, literal } => {
                Some((*column, std::slice::from_ref(literal)))
            }
            Filter::In { column, list } => Some((*column, list)),
            _ => None,
        }
    }

    /// The same condition over columns at other positions; `None` where `position` does not know one.
    #[must_use]
    pub fn moved(&self, position: &impl Fn(usize) -> Option<usize>) -> Option<Filter> {
        let boxed = |filter: &Filter| Some(Box::new(filter.moved(position)?));
        Some(match self {
            Filter::Compare { column, accept, literal } => {
                Filter::Compare { column: position(*column)?, accept: *accept, literal: literal.clone() }
            }
            Filter::In { column, list } => Filter::In { column: position(*column)?, list: list.clone() },
            Filter::IsNull { column } => Filter::IsNull { column: position(*column)? },
            Filter::Column { column } => Filter::Column { column: position(*column)? },
            Filter::Constant(value) => Filter::Constant(*value),
            Filter::And(a, b) => Filter::And(boxed(a)?, boxed(b)?),
            Filter::Or(a, b) => Filter::Or(boxed(a)?, boxed(b)?),
            Filter::Not(a) => Filter::Not(boxed(a)?),
        })
    }
}

impl Accept {
    fn matches(self, ordering: Ordering) -> bool {
        match ordering {
            Ordering::Less => self.less,
            Ordering::Equal => self.equal,
            Ordering::Greater => self.greater,
        }
    }

    fn of(operator: &BinaryOperator) -> Option<Accept> {
        let (less, equal, greater) = match operator {
            BinaryOperator::Eq => (false, true, false),
            BinaryOperator::NotEq => (true, false, true),
            BinaryOperator::Lt => (true, false, false),
            BinaryOperator::LtEq => (true, true, false),
            BinaryOperator::Gt => (false, false, true),
            BinaryOperator::GtEq => (false, true, true),
            _ => return None,
        };
        Some(Accept { less, equal, greater })
    }

    fn mirrored(self) -> Accept {
        Accept { less: self.greater, equal: self.equal, greater: self.less }
    }

    fn needs_order(self) -> bool {
        self.less != self.greater
    }
}

/// A condition in the words that every way of writing it comes to. `None` for what is no condition.
#[must_use]
pub fn canonical(text: &str) -> Option<String> {
    condition::read(text).and_then(|expression| condition::write(&expression)).ok()
}

fn compile(expression: &Expr, schema: &TableSchema) -> Result<Filter, FilterError> {
    match expression {
        Expr::Nested(inner) => compile(inner, schema),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            Ok(Filter::And(Box::new(compile(left, schema)?), Box::new(compile(right, schema)?)))
        }
        Expr::BinaryOp { left, op: BinaryOperator::Or, right } => {
            Ok(Filter::Or(Box::new(compile(left, schema)?), Box::new(compile(right, schema)?)))
        }
        Expr::BinaryOp { left, op, right } => {
            let Some(accept) = Accept::of(op) else {
                return refuse(format!(
                    "the operator {op} is not supported here; use = <> < <= > >= IN BETWEEN IS NULL AND OR NOT"
                ));
            };
            match (column_of(left, schema)?, column_of(right, schema)?) {
                (Some(column), None) => comparison(column, accept, right, schema),
                (None, Some(column)) => comparison(column, accept.mirrored(), left, schema),
                _ => refuse(format!("{expression}: one side has to be a column and the other a constant")),
            }
        }
        Expr::UnaryOp { op: UnaryOperator::Not, expr } => Ok(Filter::Not(Box::new(compile(expr, schema)?))),
        Expr::IsNull(inner) => Ok(Filter::IsNull { column: required_column(inner, schema)? }),
        Expr::IsNotNull(inner) => Ok(Filter::Not(Box::new(Filter::IsNull { column: required_column(inner, schema)? }))),
        Expr::InList { expr, list, negated } => {
            let column = required_column(expr, schema)?;
            let mut list =
                list.iter().map(|item| literal_in(item, list.len(), column, schema)).collect::<Result<Vec<_>, _>>()?;
            if list.contains(&Value::Null) {
                return refuse("NULL in an IN list makes the condition unknown; leave it out");
            }
            list.sort_by(|a, b| order(a.as_ref(), b.as_ref()));
            list.dedup_by(|a, b| order(a.as_ref(), b.as_ref()) == Ordering::Equal);
            let within = Filter::In { column, list };
            Ok(if *negated { Filter::Not(Box::new(within)) } else { within })
        }
        Expr::Between { expr, negated, low, high } => {
            let column = required_column(expr, schema)?;
            let from = comparison(column, Accept { less: false, equal: true, greater: true }, low, schema)?;
            let to = comparison(column, Accept { less: true, equal: true, greater: false }, high, schema)?;
            let within = Filter::And(Box::new(from), Box::new(to));
            Ok(if *negated { Filter::Not(Box::new(within)) } else { within })
        }
        Expr::Value(value) => match &value.value {
            SqlValue::Boolean(v) => Ok(Filter::Constant(Some(*v))),
            SqlValue::Null => Ok(Filter::Constant(None)),
            other => refuse(format!("{other} is not a condition")),
        },
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) => {
            let column = required_column(expression, schema)?;
            match schema.columns.get(column).map(|c| &c.column_type) {
                Some(ColumnType::Bool) => Ok(Filter::Column { column }),
                _ => refuse(format!("{expression} is not a boolean column")),
            }
        }
        other => refuse(format!("{other}: {SUPPORTED}")),
    }
}

pub(super) fn column_of(expression: &Expr, schema: &TableSchema) -> Result<Option<usize>, FilterError> {
    let identifier = match expression {
        Expr::Nested(inner) => return column_of(inner, schema),
        Expr::Identifier(identifier) => identifier,
        Expr::CompoundIdentifier(parts) => match parts.as_slice() {
            [table, column] if table.value == schema.name => column,
            _ => return refuse(format!("{expression}: only columns of {} can be used", schema.qualified_name())),
        },
        _ => return Ok(None),
    };
    let name = condition::folded(identifier);
    match schema.column_index(&name) {
        Some(index) => Ok(Some(index)),
        None => refuse(format!("{} has no column {name}", schema.qualified_name())),
    }
}

fn required_column(expression: &Expr, schema: &TableSchema) -> Result<usize, FilterError> {
    match column_of(expression, schema)? {
        Some(column) => Ok(column),
        None => refuse(format!("{expression} is not a column of {}", schema.qualified_name())),
    }
}

fn comparison(column: usize, accept: Accept, constant: &Expr, schema: &TableSchema) -> Result<Filter, FilterError> {
    let literal = literal(constant, column, schema)?;
    if literal == Value::Null {
        return Ok(Filter::Constant(None));
    }
    if accept.needs_order() && matches!(literal, Value::Text(_)) {
        return refuse("text can be compared with = and <> only: its order depends on the collation");
    }
    Ok(Filter::Compare { column, accept, literal })
}

fn literal(expression: &Expr, column: usize, schema: &TableSchema) -> Result<Value, FilterError> {
    literal_in(expression, 1, column, schema)
}

/// One of several constants, which Postgres brings to one type with the column first: numbers beside a `real` become such.
fn literal_in(expression: &Expr, several: usize, column: usize, schema: &TableSchema) -> Result<Value, FilterError> {
    let Some(column) = schema.columns.get(column) else { return refuse("no such column") };
    let (text, quoted, typed) = match expression {
        Expr::Nested(inner) => match schema.column_index(&column.name) {
            Some(index) => return literal_in(inner, several, index, schema),
            None => return refuse("no such column"),
        },
        Expr::Value(value) => match &value.value {
            SqlValue::Null => return Ok(Value::Null),
            SqlValue::Boolean(v) if column.column_type == ColumnType::Bool => return Ok(Value::Bool(*v)),
            SqlValue::Number(digits, _) => (digits.clone(), false, None),
            SqlValue::SingleQuotedString(text) => (text.clone(), true, None),
            other => return refuse(format!("{other} cannot be compared with {}", column.name)),
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match expr.as_ref() {
            Expr::Value(value) => match &value.value {
                SqlValue::Number(digits, _) => (format!("-{digits}"), false, None),
                other => return refuse(format!("-{other} is not a constant")),
            },
            other => return refuse(format!("-{other} is not a constant")),
        },
        Expr::TypedString(typed) if matches!(typed.data_type, DataType::Date | DataType::Timestamp(..)) => {
            match typed.value.value.clone().into_string() {
                Some(text) => (text, true, Some(&typed.data_type)),
                None => return refuse(format!("{expression} is not a constant")),
            }
        }
        other => return refuse(format!("{other} is not a constant")),
    };
    same_to_postgres(&text, typed, &column.column_type).map_err(FilterError)?;
    if quoted && !is_quoted_integer(&text, &column.column_type) {
        return refuse(format!("{text:?} is not a value of {} ({})", column.name, column.column_type.name()));
    }
    let as_column = quoted || several > 1 && column.column_type == ColumnType::Float4;
    constant_of(&text, as_column, &column.column_type).ok_or_else(|| {
        FilterError(format!("{text:?} is not a value of {} ({})", column.name, column.column_type.name()))
    })
}

/// Refuses the texts of times that Postgres reads without complaint, and not as we do: it drops the offset of what has no zone, and
/// the time of a date.
fn same_to_postgres(text: &str, typed: Option<&DataType>, column_type: &ColumnType) -> Result<(), String> {
    let is_date = NaiveDate::parse_from_str(text, "%Y-%m-%d").is_ok();
    let infinite = matches!(text, "infinity" | "-infinity");
    let is_time = matches!(column_type, ColumnType::Date | ColumnType::Timestamp | ColumnType::TimestampTz);
    match (typed, column_type) {
        (Some(_), _) if !is_time => Err(format!("a time is not compared with a column of type {}", column_type.name())),
        (Some(DataType::Timestamp(Some(_), _)), _) => {
            Err("a precision would round the time: write it without one".to_owned())
        }
        _ if infinite || !is_time => Ok(()),
        _ if !begins_with_year(text) => {
            Err(format!("{text:?}: write the year with four digits, 0001 to 9999, such as '2026-01-31'"))
        }
        _ if !has_plain_clock(text) => Err(format!(
            "{text:?}: write a time as '2026-01-31 10:00:00+01', with one blank, 59 seconds at most and an offset below 16 hours"
        )),
        _ if fraction_digits(text) > 6 => Err(format!("{text:?}: write at most six digits of a second's fraction")),
        (Some(DataType::Timestamp(..)), ColumnType::Date) => Err("a date is compared with a DATE".to_owned()),
        (Some(DataType::Date), _) | (None, ColumnType::Date) if !is_date => {
            Err(format!("{text:?} is not a date: write it as '2026-01-31'"))
        }
        (Some(DataType::Timestamp(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone)), _)
        | (None, ColumnType::Timestamp)
            if clock_reading(text).is_none() =>
        {
            Err(format!(
                "{text:?} is not a time without zone: write it as '2026-01-31 10:00', or TIMESTAMPTZ before one with an offset"
            ))
        }
        _ => Ok(()),
    }
}

/// A time in a statement, in microseconds since 2000-01-01, where Postgres reads the same. Without a type it has no offset but zero,
/// because what Postgres makes of one depends on the column.
pub fn stated_time(text: &str, typed: Option<&DataType>) -> Result<i64, String> {
    // The same, dropped or not.
    let text = ["Z", "z", "+00", "+00:00"].iter().find_map(|zero| text.strip_suffix(zero)).unwrap_or(text);
    same_to_postgres(text, typed, &ColumnType::Timestamp)?;
    let finite = parse_timestamp(text).filter(|us| *us != i64::MAX && *us != i64::MIN);
    finite.ok_or_else(|| format!("{text:?} is not a time: write it as '2026-01-31 10:00:00'"))
}

/// An instant in a definition, in microseconds since 2000-01-01, where Postgres reads it, too.
pub(super) fn stated_instant(text: &str) -> Option<i64> {
    stated_time(text, Some(&DataType::Timestamp(None, TimezoneInfo::Tz))).ok()
}

fn begins_with_year(time: &str) -> bool {
    time.split_once('-').is_some_and(|(year, _)| {
        year.len() == 4 && year.bytes().all(|b| b.is_ascii_digit()) && year.bytes().any(|b| b != b'0')
    })
}

/// Whether blanks, seconds and the offset are as Postgres takes them, too: chrono is content without the one, and with more of the others.
fn has_plain_clock(time: &str) -> bool {
    let Some((date, clock)) = time.split_once(['T', 't', ' ']) else {
        return time.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    };
    let sign = clock.find(['+', '-', 'Z', 'z']).unwrap_or(clock.len());
    let (clock, offset) = clock.split_at(sign);
    let hours = offset.get(1..3).and_then(|hours| hours.parse::<u8>().ok()).unwrap_or_default();
    let dense = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
    date.matches('-').count() == 2
        && dense(date)
        && dense(clock.trim_end_matches(' '))
        && dense(offset)
        && !clock.contains(":60.")
        && hours < 16
}

/// A quoted constant is read as the column's type, and an integer is one of its range.
fn is_quoted_integer(text: &str, column_type: &ColumnType) -> bool {
    match column_type {
        ColumnType::Int2 => text.trim().parse::<i16>().is_ok(),
        ColumnType::Int4 => text.trim().parse::<i32>().is_ok(),
        ColumnType::Int8 => text.trim().parse::<i64>().is_ok(),
        _ => true,
    }
}

fn fraction_digits(time: &str) -> usize {
    time.split_once('.').map_or(0, |(_, fraction)| fraction.bytes().take_while(u8::is_ascii_digit).count())
}

/// A constant as a value that compares with columns of the type.
#[must_use]
pub fn constant_of(text: &str, quoted: bool, column_type: &ColumnType) -> Option<Value> {
    Some(match column_type {
        ColumnType::Int2 | ColumnType::Int4 | ColumnType::Int8 => match text.trim().parse::<i64>() {
            Ok(v) => Value::Int(v),
            Err(_) => Value::Numeric(parse_numeric(text)?),
        },
        ColumnType::Numeric { .. } => Value::Numeric(parse_numeric(text)?),
        // A quoted one is read as the column's type; a number is a double, and so becomes the column's value.
        ColumnType::Float4 if quoted => Value::Float(within_range(text, f64::from(text.parse::<f32>().ok()?))?),
        ColumnType::Float4 | ColumnType::Float8 => Value::Float(within_range(text, text.parse().ok()?)?),
        ColumnType::Text => quoted.then(|| Value::Text(text.to_owned()))?,
        ColumnType::Char => quoted.then(|| Value::Text(text.trim_end_matches(' ').to_owned()))?,
        ColumnType::Bool if !quoted => return None,
        ColumnType::Bool => match text.to_ascii_lowercase().as_str() {
            "t" | "true" | "yes" | "on" | "1" => Value::Bool(true),
            "f" | "false" | "no" | "off" | "0" => Value::Bool(false),
            _ => return None,
        },
        ColumnType::Uuid => quoted.then(|| parse_uuid(text))?.map(Value::Uuid)?,
        ColumnType::Date => Value::Date(match parse_timestamp(text)? {
            i64::MAX => i32::MAX,
            i64::MIN => i32::MIN,
            instant => i32::try_from(instant.div_euclid(86_400_000_000)).ok()?,
        }),
        ColumnType::Timestamp | ColumnType::TimestampTz => Value::Timestamp(parse_timestamp(text)?),
        ColumnType::Unsupported(_) | ColumnType::Gone(_) => return None,
    })
}

/// A float, unless its digits say another than infinity or zero, and it became that: Postgres refuses those.
fn within_range(text: &str, value: f64) -> Option<f64> {
    let (digits, _) = text.split_once(['e', 'E']).unwrap_or((text, ""));
    let says = |digit: fn(&u8) -> bool| digits.as_bytes().iter().any(digit);
    let lost = value.is_infinite() && says(u8::is_ascii_digit) || value == 0.0 && says(|b| matches!(b, b'1'..=b'9'));
    (!lost).then_some(value)
}

/// A decimal as Postgres writes it, or `NaN`, `Infinity`, `-Infinity`.
#[must_use]
pub fn parse_numeric(text: &str) -> Option<Numeric> {
    match text.trim() {
        "NaN" => return Some(Numeric::NaN),
        "Infinity" => return Some(Numeric::PositiveInfinity),
        "-Infinity" => return Some(Numeric::NegativeInfinity),
        _ => {}
    }
    let (negative, digits) = match text.trim().strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.trim()),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let magnitude = format!("{whole}{fraction}").parse::<i128>().ok()?;
    let mantissa = if negative { magnitude.checked_neg()? } else { magnitude };
    Some(Numeric::Finite { mantissa, scale: u16::try_from(fraction.len()).ok()? })
}

/// `a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11`; a hyphen may stand after each four digits.
#[must_use]
pub fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let mut digits = String::new();
    let mut hyphen = true;
    for c in text.chars() {
        hyphen = match c {
            '-' if !hyphen && digits.len().is_multiple_of(4) && digits.len() < 32 => true,
            c if c.is_ascii_hexdigit() => {
                digits.push(c);
                false
            }
            _ => return None,
        };
    }
    if digits.len() != 32 {
        return None;
    }
    u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
}

/// RFC 3339 or Postgres' ISO form, with or without time and offset (UTC where absent), as microseconds since 2000-01-01.
#[must_use]
pub fn parse_timestamp(text: &str) -> Option<i64> {
    match text {
        "infinity" => return Some(i64::MAX),
        "-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let instant = if let Some(reading) = clock_reading(text) {
        reading.and_utc()
    } else if let Ok(instant) = DateTime::parse_from_rfc3339(text) {
        instant.to_utc()
    } else {
        let forms = ["%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z", "%Y-%m-%dT%H:%M%#z"];
        forms.iter().find_map(|form| DateTime::parse_from_str(text, form).ok())?.to_utc()
    };
    instant.timestamp_micros().checked_sub(EPOCH_UNIX_US)
}

/// A date, or a date and a time, without an offset.
pub(super) fn clock_reading(text: &str) -> Option<NaiveDateTime> {
    if let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return date.and_hms_opt(0, 0, 0);
    }
    ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"]
        .iter()
        .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
}

/// The order of two values as Postgres sees it, where it is certain; `None` for NULL and for values that do not compare.
#[must_use]
pub fn compare(a: ValueRef<'_>, b: ValueRef<'_>) -> Option<Ordering> {
    match (a, b) {
        (ValueRef::Int(a), ValueRef::Int(b)) => Some(a.cmp(&b)),
        (ValueRef::Bool(a), ValueRef::Bool(b)) => Some(a.cmp(&b)),
        (ValueRef::Text(a), ValueRef::Text(b)) => Some(a.cmp(b)),
        (ValueRef::Uuid(a), ValueRef::Uuid(b)) => Some(a.cmp(&b)),
        (ValueRef::Date(a), ValueRef::Date(b)) => Some(a.cmp(&b)),
        (ValueRef::Timestamp(a), ValueRef::Timestamp(b)) => Some(a.cmp(&b)),
        // NaN equals NaN and is larger than every number.
        (ValueRef::Float(a), ValueRef::Float(b)) => a.partial_cmp(&b).or(Some(a.is_nan().cmp(&b.is_nan()))),
        (ValueRef::Numeric(a), ValueRef::Numeric(b)) => Some(compare_numeric(a, b)),
        (ValueRef::Int(a), ValueRef::Numeric(b)) => {
            Some(compare_numeric(Numeric::Finite { mantissa: i128::from(a), scale: 0 }, b))
        }
        (ValueRef::Numeric(_), ValueRef::Int(_)) => compare(b, a).map(Ordering::reverse),
        _ => None,
    }
}

/// The order of one column's constants, and of a value of that column among them. Never equal where they do not compare.
fn order(a: ValueRef<'_>, b: ValueRef<'_>) -> Ordering {
    compare(a, b).unwrap_or(Ordering::Less)
}

fn compare_numeric(a: Numeric, b: Numeric) -> Ordering {
    let mut keys = (Vec::new(), Vec::new());
    match (a, b) {
        (Numeric::Finite { mantissa: a, scale: x }, Numeric::Finite { mantissa: b, scale: y }) if x == y => a.cmp(&b),
        _ => {
            let encoded = super::group_key::push(&mut keys.0, ValueRef::Numeric(a))
                .and(super::group_key::push(&mut keys.1, ValueRef::Numeric(b)));
            if encoded.is_ok() { keys.0.cmp(&keys.1) } else { Ordering::Equal }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::change::{Column, TableId};

    fn schema() -> TableSchema {
        let column = |(name, column_type): (&str, ColumnType)| Column { name: name.to_owned(), column_type };
        let columns = [
            ("b", ColumnType::Bool),
            ("i2", ColumnType::Int2),
            ("i4", ColumnType::Int4),
            ("i8", ColumnType::Int8),
            ("r", ColumnType::Float4),
            ("d", ColumnType::Float8),
            ("u", ColumnType::Uuid),
            ("t", ColumnType::Text),
            ("day", ColumnType::Date),
            ("local", ColumnType::Timestamp),
            ("at", ColumnType::TimestampTz),
        ];
        TableSchema {
            id: TableId(1),
            namespace: "public".to_owned(),
            name: "t".to_owned(),
            columns: columns.into_iter().map(column).collect(),
            primary_key: vec![0],
            keeps_row_image: true,
        }
    }

    /// Each side as Postgres 15 has it.
    #[test]
    fn what_postgres_refuses_is_refused() {
        let mut wrong = Vec::new();
        for text in [
            "b = 1",
            "b IN (0, 1)",
            "i4 = 'NaN'",
            "i4 <> '1.5'",
            "i4 = ''",
            "i2 = '40000'",
            "i4 IN ('2147483648')",
            "i8 > '9223372036854775808'",
            "r < '1e39'",
            "r = '1e-50'",
            "r IN (1, 1e39)",
            "d > '1e400'",
            "d < 1e309",
            "d = 1e-400",
            "d = -1e309",
            "day = '0000-01-01'",
            "at > '0000-01-01 00:00:00+00'",
            "at > '+2024-01-01'",
            "at > '-2024-01-01'",
            "at > '2024-01-01 10:00:00+16'",
            "at > '2024-01-01 10:00:00\u{2212}01:00'",
            "at > '2024-01-0110:00:00'",
            "local > '2024- 01-01'",
            "local > '2024-01-01 10: 00'",
            "local > '2024-01-01 10:00:60.5'",
            "t = DATE '2024-01-01'",
            "u = 11111111111111111111111111111111",
            "u = '-11111111-1111-1111-1111-111111111111'",
            "u = '11111111-1111-1111-1111-111111111111-'",
            "u = '1-1111111-1111-1111-1111-111111111111'",
            "u = '11111111--1111-1111-1111-111111111111'",
        ] {
            wrong.extend(Filter::parse(text, &schema()).is_ok().then_some(text));
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn what_postgres_reads_is_read() {
        let mut wrong = Vec::new();
        for text in [
            "b = true",
            "b = 't'",
            "i4 = 1.5",
            "i4 <> '-15'",
            "i2 = 40000",
            "i8 > 9223372036854775808",
            "r < 1e39",
            "r > 'inf'",
            "r < '1e-45'",
            "d <> 'NaN'",
            "d = '0e-400'",
            "d = 0.0",
            "at > '0001-01-01'",
            "at > '9999-12-31 10:00:00+15:59'",
            "at > '2024-03-01 12:00+02'",
            "at > '2024-03-01T12:00+02'",
            "at > '2024-03-01 12:00:00 +02'",
            "local > '2024-03-01 12:00:60'",
            "at > TIMESTAMPTZ '2024-03-01T12:00:00.25Z'",
            "local > '2024-3-1'",
            "day > 'infinity'",
            "u = '11111111-1111-1111-1111-111111111111'",
            "u = '1111-1111111111111111111111111111'",
            "u = '11111111111111111111111111111111'",
        ] {
            wrong.extend(Filter::parse(text, &schema()).err().map(|error| format!("{text}: {error}")));
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        let instant = |text: &str| Filter::parse(&format!("at = '{text}'"), &schema()).unwrap();
        assert_eq!(instant("2024-03-01 12:00+02"), instant("2024-03-01 10:00:00Z"));
    }
}
