//! A statement as Postgres shows it of a view (`pg_get_viewdef`), in the words that are read here: without brackets around everything,
//! and without the type that each constant is said to be of, where it is the column's own.
//!
//! A cast that changes a value stays as it is, and is refused where it is read.

use engine::change::ColumnType;
use sqlparser::ast::{
    ArrayElemTypeDef, BinaryOperator, DataType, ExactNumberInfo, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArguments, TypedString, UnaryOperator, Value,
};

use super::time::column;

/// The type of a column; `None` where there is none.
pub(super) type Types<'a> = &'a dyn Fn(&str) -> Option<ColumnType>;

/// Rewrites an expression. In place, and what needs room on the stack apart: a chain of operators is as deep as it is long.
pub(super) fn plain(expression: &mut Expr, types: Types<'_>) {
    match expression {
        Expr::Nested(inner) => {
            plain(inner, types);
            unnest(expression);
        }
        Expr::BinaryOp { left, right, .. } => {
            plain(left, types);
            plain(right, types);
            beside(left, std::slice::from_mut(right.as_mut()), types);
            beside(right, std::slice::from_mut(left.as_mut()), types);
        }
        Expr::UnaryOp { expr, .. } | Expr::IsNull(expr) | Expr::IsNotNull(expr) | Expr::Extract { expr, .. } => {
            plain(expr, types);
        }
        Expr::InList { expr, list, .. } => {
            plain(expr, types);
            list.iter_mut().for_each(|value| plain(value, types));
            beside(expr, list, types);
        }
        Expr::Between { expr, low, high, .. } => {
            for part in [&mut *expr, &mut *low, &mut *high] {
                plain(part, types);
            }
            beside(expr, std::slice::from_mut(low.as_mut()), types);
            beside(expr, std::slice::from_mut(high.as_mut()), types);
        }
        Expr::AtTimeZone { timestamp, time_zone } => {
            plain(timestamp, types);
            plain(time_zone, types);
        }
        Expr::Function(function) => arguments(function, types),
        Expr::Cast { expr, .. } => {
            plain(expr, types);
            uncast(expression);
        }
        Expr::AnyOp { .. } | Expr::AllOp { .. } => listed(expression, types),
        _ => {}
    }
}

#[inline(never)]
fn unnest(expression: &mut Expr) {
    if let Expr::Nested(inner) = expression {
        *expression = take(inner);
    }
}

#[inline(never)]
fn uncast(expression: &mut Expr) {
    if let Expr::Cast { expr, data_type, .. } = expression
        && let Some(constant) = constant(expr, data_type)
    {
        *expression = constant;
    }
}

fn take(expression: &mut Expr) -> Expr {
    std::mem::replace(expression, Expr::Value(Value::Null.with_empty_span()))
}

#[inline(never)]
fn arguments(function: &mut Function, types: Types<'_>) {
    if let FunctionArguments::List(list) = &mut function.args {
        for argument in &mut list.args {
            if let FunctionArg::Unnamed(FunctionArgExpr::Expr(expression)) = argument {
                plain(expression, types);
            }
        }
    }
    if let Some(filter) = &mut function.filter {
        plain(filter, types);
    }
}

/// A constant that is cast to a type which keeps it as it is.
fn constant(constant: &mut Expr, data_type: &DataType) -> Option<Expr> {
    match (text_of(constant), data_type) {
        // Blanks at the end count in a text, and beside a `char(n)` they do not.
        (Some(text), DataType::Text | DataType::Varchar(None) | DataType::CharacterVarying(None)) => {
            (!text.ends_with(' ')).then(|| take(constant))
        }
        (Some(_), DataType::Uuid) => Some(take(constant)),
        (Some(text), DataType::Date | DataType::Timestamp(..)) => Some(Expr::TypedString(TypedString {
            data_type: data_type.clone(),
            value: Value::SingleQuotedString(text.to_owned()).with_empty_span(),
            uses_odbc_syntax: false,
        })),
        // `'-1'::integer`
        (Some(text), _) if holds(text, data_type) => {
            let digits = |digits: &str| Expr::Value(Value::Number(digits.to_owned(), false).with_empty_span());
            Some(match text.strip_prefix('-') {
                Some(positive) => Expr::UnaryOp { op: UnaryOperator::Minus, expr: Box::new(digits(positive)) },
                None => digits(text),
            })
        }
        (None, _) => holds(&number_of(constant)?, data_type).then(|| take(constant)),
        _ => None,
    }
}

fn text_of(expression: &Expr) -> Option<&str> {
    let Expr::Value(value) = expression else { return None };
    match &value.value {
        Value::SingleQuotedString(text) => Some(text),
        _ => None,
    }
}

/// The digits of a number, with its sign.
fn number_of(expression: &Expr) -> Option<String> {
    match expression {
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => number_of(expr).map(|digits| format!("-{digits}")),
        Expr::Value(value) => match &value.value {
            Value::Number(digits, _) => Some(digits.clone()),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a number of this type is the same without it.
fn holds(digits: &str, data_type: &DataType) -> bool {
    match data_type {
        DataType::SmallInt(None) => digits.parse::<i16>().is_ok(),
        DataType::Integer(None) | DataType::Int(None) => digits.parse::<i32>().is_ok(),
        DataType::BigInt(None) => digits.parse::<i64>().is_ok(),
        DataType::Numeric(ExactNumberInfo::None) => {
            let unsigned = digits.strip_prefix('-').unwrap_or(digits);
            !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        }
        _ => false,
    }
}

/// A column and the constants that it is compared with: the types that both are cast to where they are the column's own, or hold all
/// its values.
#[inline(never)]
fn beside(side: &mut Expr, constants: &mut [Expr], types: Types<'_>) {
    if let Expr::Cast { expr, data_type, .. } = side {
        let whole = matches!(
            column(expr).and_then(|name| types(&name)),
            Some(ColumnType::Int2 | ColumnType::Int4 | ColumnType::Int8)
        );
        let text = column(expr).and_then(|name| types(&name)) == Some(ColumnType::Text);
        let same = match data_type {
            DataType::Text => text,
            DataType::Numeric(ExactNumberInfo::None) => whole,
            _ => false,
        };
        if same && constants.iter().all(is_constant) {
            *side = take(expr);
        }
    }
    let own: fn(&Expr, &DataType) -> bool = match column(side).and_then(|name| types(&name)) {
        // Several are doubles in Postgres; one is what a `real` is compared with.
        Some(ColumnType::Float4) if constants.len() > 1 => return,
        Some(ColumnType::Float4 | ColumnType::Float8) => {
            |constant, of| *of == DataType::DoublePrecision && number_of(constant).is_some()
        }
        // Beside another column it would compare as `char(n)` does.
        Some(ColumnType::Char) => {
            |constant, of| is_bpchar(of) && text_of(constant).is_some_and(|text| !text.ends_with(' '))
        }
        _ => return,
    };
    for constant in constants {
        if let Expr::Cast { expr, data_type, .. } = constant
            && own(expr, data_type)
        {
            *constant = take(expr);
        }
    }
}

/// The type of `char(n)`, of no length.
fn is_bpchar(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Custom(name, lengths) if lengths.is_empty() && name.to_string().eq_ignore_ascii_case("bpchar"))
}

fn is_constant(expression: &Expr) -> bool {
    text_of(expression).is_some() || number_of(expression).is_some()
}

/// `status = ANY (ARRAY['a', 'b'])`, as Postgres keeps `status IN ('a', 'b')`, and `<> ALL` as it keeps `NOT IN`. Not of a `real`, whose
/// list is one of doubles there.
#[inline(never)]
fn listed(expression: &mut Expr, types: Types<'_>) {
    let (left, right, negated) = match expression {
        Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => (left, right, false),
        Expr::AllOp { left, compare_op: BinaryOperator::NotEq, right } => (left, right, true),
        _ => return,
    };
    plain(left, types);
    plain(right, types);
    let array = match right.as_mut() {
        Expr::Cast { expr, data_type: DataType::Array(ArrayElemTypeDef::SquareBracket(of, None)), .. }
            if **of == DataType::Text =>
        {
            expr.as_mut()
        }
        other => other,
    };
    let Expr::Array(array) = array else { return };
    array.elem.iter_mut().for_each(|value| plain(value, types));
    let mut list = std::mem::take(&mut array.elem);
    beside(left, &mut list, types);
    let of = column(left).and_then(|name| types(&name));
    let is_real = of == Some(ColumnType::Float4);
    // A list of texts, where blanks at the end count.
    let is_text = of == Some(ColumnType::Char) && list.iter().filter_map(text_of).any(|text| text.ends_with(' '));
    let whole = list.iter().all(|value| is_constant(value) || matches!(value, Expr::TypedString(_)));
    if is_real || is_text || list.is_empty() || !whole {
        array.elem = list;
        return;
    }
    let expr = Box::new(take(left));
    *expression = Expr::InList { expr, list, negated };
}
