//! Conditions as text: read within bounds, and written in words of our own.
//!
//! What is written goes to Postgres, where totals are computed again, and to people who paste it. So nothing is repeated as it came:
//! every literal and every name is quoted anew, and what has no words here is refused. The surprise: the parser's own printing leaves
//! a quote after a backslash alone, and two quotes, which in Postgres end the literal.

use sqlparser::ast::{BinaryOperator, DataType, Expr, Ident, TimezoneInfo, TypedString, UnaryOperator, Value};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Token, Tokenizer};

use super::filter::{FilterError, refuse};
use crate::change::TableSchema;

/// Tokens of a condition, its lists' further values not counted. A chain of operators is a tree of that depth, and whoever walks
/// through it, or drops it, takes a frame of the stack for each.
const MAX_TOKENS: usize = 1_000;
/// Values of its lists.
const MAX_VALUES: usize = 10_000;
const MAX_BYTES: usize = 256 << 10;
/// Brackets and prefixes in one another.
const MAX_NESTED: usize = 64;

/// What a condition may be, for whoever wrote something else.
pub(super) const SUPPORTED: &str =
    "only comparisons of a column with a constant, IN, BETWEEN, IS NULL, AND, OR and NOT are supported";

/// Reads one expression and nothing behind it.
pub fn read(text: &str) -> Result<Expr, FilterError> {
    if text.len() > MAX_BYTES {
        return refuse(format!("a condition has at most {MAX_BYTES} bytes, not {}", text.len()));
    }
    let dialect = PostgreSqlDialect {};
    let tokens =
        Tokenizer::new(&dialect, text).tokenize_with_location().map_err(|error| FilterError(error.to_string()))?;
    bounded(tokens.iter().map(|token| &token.token), MAX_TOKENS)?;
    let mut parser = Parser::new(&dialect).with_recursion_limit(MAX_NESTED).with_tokens_with_locations(tokens);
    let expression = parser.parse_expr().map_err(|error| FilterError(error.to_string()))?;
    let rest = parser.peek_token();
    if rest.token != Token::EOF {
        return refuse(format!("unexpected {rest} after the condition"));
    }
    Ok(expression)
}

/// Refuses what would be too deep a tree, before there is one: the parser's own limit does not count `a OR a OR a`.
pub fn bounded<'t>(tokens: impl Iterator<Item = &'t Token>, most: usize) -> Result<(), FilterError> {
    let (mut commas, mut others) = (0_usize, 0_usize);
    for token in tokens {
        match token {
            Token::Whitespace(_) | Token::Minus => {}
            Token::Comma => commas += 1,
            _ => others += 1,
        }
    }
    // One list of so many has a comma less.
    if commas >= MAX_VALUES {
        return refuse(format!("lists have at most {MAX_VALUES} values"));
    }
    // A further value of a list is a comma and a token.
    if others.saturating_sub(commas) > most {
        return refuse(format!(
            "it has more than {most} words and signs; alternatives of one column are column IN (...)"
        ));
    }
    Ok(())
}

/// A condition in the words that every way of writing it comes to: without comments and needless brackets, the same whatever its blanks
/// and the case of its keywords and unquoted names. An error for what is no condition on columns and constants.
pub fn write(expression: &Expr) -> Result<String, FilterError> {
    let mut sql = String::new();
    condition(expression, &mut sql)?;
    Ok(sql)
}

fn condition(expression: &Expr, sql: &mut String) -> Result<(), FilterError> {
    match expression {
        Expr::Nested(inner) => condition(inner, sql),
        Expr::BinaryOp { left, op: op @ (BinaryOperator::And | BinaryOperator::Or), right } => {
            operand(left, op, sql)?;
            sql.push_str(if *op == BinaryOperator::And { " AND " } else { " OR " });
            operand(right, op, sql)
        }
        Expr::BinaryOp { left, op, right } => {
            sql.push_str(&value(left)?);
            sql.push_str(match op {
                BinaryOperator::Eq => " = ",
                BinaryOperator::NotEq => " <> ",
                BinaryOperator::Lt => " < ",
                BinaryOperator::LtEq => " <= ",
                BinaryOperator::Gt => " > ",
                BinaryOperator::GtEq => " >= ",
                _ => return refuse(format!("the operator {op} is not supported: {SUPPORTED}")),
            });
            sql.push_str(&value(right)?);
            Ok(())
        }
        Expr::UnaryOp { op: UnaryOperator::Not, expr } => {
            sql.push_str("NOT (");
            condition(expr, sql)?;
            sql.push(')');
            Ok(())
        }
        Expr::IsNull(inner) => after(sql, &value(inner)?, " IS NULL"),
        Expr::IsNotNull(inner) => after(sql, &value(inner)?, " IS NOT NULL"),
        Expr::InList { expr, list, negated } => {
            let list = list.iter().map(value).collect::<Result<Vec<_>, _>>()?;
            after(sql, &value(expr)?, &format!("{} IN ({})", not(*negated), list.join(", ")))
        }
        Expr::Between { expr, negated, low, high } => {
            let between = format!("{} BETWEEN {} AND {}", not(*negated), value(low)?, value(high)?);
            after(sql, &value(expr)?, &between)
        }
        Expr::Value(_) | Expr::Identifier(_) | Expr::CompoundIdentifier(_) => after(sql, &value(expression)?, ""),
        other => refuse(format!("{other}: {SUPPORTED}")),
    }
}

fn after(sql: &mut String, value: &str, what: &str) -> Result<(), FilterError> {
    sql.push_str(value);
    sql.push_str(what);
    Ok(())
}

fn not(negated: bool) -> &'static str {
    if negated { " NOT" } else { "" }
}

/// A side of AND or OR, in brackets where it is made by the other one.
fn operand(side: &Expr, of: &BinaryOperator, sql: &mut String) -> Result<(), FilterError> {
    match side {
        Expr::Nested(inner) => operand(inner, of, sql),
        Expr::BinaryOp { op: op @ (BinaryOperator::And | BinaryOperator::Or), .. } if op != of => {
            sql.push('(');
            condition(side, sql)?;
            sql.push(')');
            Ok(())
        }
        _ => condition(side, sql),
    }
}

/// A column or a constant.
fn value(expression: &Expr) -> Result<String, FilterError> {
    match expression {
        Expr::Nested(inner) => value(inner),
        Expr::Identifier(name) => identifier(&folded(name)),
        Expr::CompoundIdentifier(parts) => match parts.as_slice() {
            // The table's name is not folded: it has to be as it is.
            [table, column] => Ok(format!("{}.{}", identifier(&table.value)?, identifier(&folded(column))?)),
            _ => refuse(format!("{expression}: {SUPPORTED}")),
        },
        Expr::Value(constant) => match &constant.value {
            Value::Null => Ok("NULL".to_owned()),
            Value::Boolean(constant) => Ok(if *constant { "true" } else { "false" }.to_owned()),
            Value::Number(digits, _) => number(digits),
            Value::SingleQuotedString(text) => literal(text),
            other => refuse(format!("{other}: {SUPPORTED}")),
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match expr.as_ref() {
            Expr::Value(constant) => match &constant.value {
                Value::Number(digits, _) => Ok(format!("-{}", number(digits)?)),
                other => refuse(format!("-{other} is not a constant")),
            },
            other => refuse(format!("-{other} is not a constant")),
        },
        Expr::TypedString(typed) => typed_literal(typed),
        other => refuse(format!("{other}: {SUPPORTED}")),
    }
}

/// `DATE '2026-01-31'`. A precision would round in Postgres, and not here.
fn typed_literal(typed: &TypedString) -> Result<String, FilterError> {
    let name = match typed.data_type {
        DataType::Date => "DATE",
        DataType::Timestamp(None, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => "TIMESTAMP",
        DataType::Timestamp(None, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => "TIMESTAMPTZ",
        _ => return refuse(format!("{typed}: constants have no type but DATE, TIMESTAMP and TIMESTAMPTZ")),
    };
    match typed.value.value.clone().into_string() {
        Some(text) => Ok(format!("{name} {}", literal(&text)?)),
        None => refuse(format!("{typed} is not a constant")),
    }
}

fn number(digits: &str) -> Result<String, FilterError> {
    let begins = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    if begins && digits.parse::<f64>().is_ok() {
        Ok(digits.to_owned())
    } else {
        refuse(format!("{digits} is no number"))
    }
}

fn literal(text: &str) -> Result<String, FilterError> {
    without_nul(text).map(quote_literal)
}

fn identifier(name: &str) -> Result<String, FilterError> {
    without_nul(name).map(quote_identifier)
}

fn without_nul(text: &str) -> Result<&str, FilterError> {
    if text.contains('\0') { refuse("Postgres has no character of code 0") } else { Ok(text) }
}

/// Unquoted names fold to lower case, and as in Postgres no letters but those of ASCII do.
#[must_use]
pub fn folded(name: &Ident) -> String {
    if name.quote_style.is_some() { name.value.clone() } else { name.value.to_ascii_lowercase() }
}

/// A text as SQL reads it where strings conform to the standard, which our sessions ask for: a backslash is a character.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// An identifier, quoted where Postgres would read it differently without.
#[must_use]
pub fn quote_identifier(name: &str) -> String {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && name.bytes().next().is_some_and(|b| !b.is_ascii_digit())
        && !RESERVED.contains(&name);
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// The name of a table in a statement.
#[must_use]
pub fn quote_table(table: &TableSchema) -> String {
    format!("{}.{}", quote_identifier(&table.namespace), quote_identifier(&table.name))
}

/// Words that Postgres reserves, also those that it lets name columns but not everything (appendix C of its manual).
#[rustfmt::skip]
const RESERVED: [&str; 142] = [
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "authorization", "between", "bigint",
    "binary", "bit", "boolean", "both", "case", "cast", "char", "character", "check", "coalesce", "collate", "collation",
    "column", "concurrently", "constraint", "create", "cross", "current_catalog", "current_date", "current_role",
    "current_schema", "current_time", "current_timestamp", "current_user", "date", "dec", "decimal", "default",
    "deferrable", "desc", "distinct", "do", "else", "end", "except", "exists", "extract", "false", "fetch", "float", "for",
    "foreign", "freeze", "from", "full", "grant", "greatest", "group", "grouping", "having", "ilike", "in", "initially",
    "inner", "inout", "int", "integer", "intersect", "interval", "into", "is", "isnull", "join", "lateral", "leading",
    "least", "left", "like", "limit", "localtime", "localtimestamp", "national", "natural", "nchar", "none", "normalize",
    "not", "notnull", "null", "nullif", "numeric", "offset", "on", "only", "or", "order", "out", "outer", "overlaps",
    "overlay", "placing", "position", "precision", "primary", "real", "references", "returning", "right", "row", "select",
    "session_user", "setof", "similar", "smallint", "some", "substring", "symmetric", "system_user", "table",
    "tablesample", "then", "time", "timestamp", "to", "trailing", "treat", "trim", "true", "union", "unique", "user",
    "using", "values", "varchar", "variadic", "verbose", "when", "where", "window", "with",
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::change::{Column, ColumnType, TableId};
    use crate::materialization::filter::Filter;

    fn written(text: &str) -> String {
        write(&read(text).unwrap()).unwrap()
    }

    #[test]
    fn a_condition_has_one_way_to_be_written() {
        for (text, expected) in [
            ("a=1", "a = 1"),
            ("((A) = (1))", "a = 1"),
            ("a = 1 /* one */ and\n(b <> 'x' AND c) -- end", "a = 1 AND b <> 'x' AND c"),
            ("a = 1 and (b = 2 or c = 3)", "a = 1 AND (b = 2 OR c = 3)"),
            ("a = 1 and b = 2 or c = 3", "(a = 1 AND b = 2) OR c = 3"),
            ("not a is null", "NOT (a IS NULL)"),
            ("a != -1.50 or b not in (1,-2)", "a <> -1.50 OR b NOT IN (1, -2)"),
            (
                "at between date '2026-01-01' and timestamp with time zone '2026-02-01'",
                "at BETWEEN DATE '2026-01-01' AND TIMESTAMPTZ '2026-02-01'",
            ),
            ("\"user\" = 1", "\"user\" = 1"),
            ("payments.\"a b\" = true", "payments.\"a b\" = true"),
            ("École = 1 OR \"École\" = 1", "\"École\" = 1 OR \"École\" = 1"),
            ("a = 'it''s'", "a = 'it''s'"),
            ("a = 'it''''s'", "a = 'it''''s'"),
            (r"a = 'x\''; DROP TABLE t; --'", r"a = 'x\''; DROP TABLE t; --'"),
        ] {
            assert_eq!(written(text), expected, "{text}");
            assert_eq!(written(expected), expected);
        }
    }

    #[test]
    fn a_table_is_named_as_postgres_reads_it() {
        let table = |namespace: &str, name: &str| TableSchema {
            id: TableId(1),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            columns: Vec::new(),
            primary_key: Vec::new(),
            keeps_row_image: true,
        };
        assert_eq!(quote_table(&table("public", "payments")), "public.payments");
        assert_eq!(quote_table(&table("Sales", "a\"; DROP TABLE t")), "\"Sales\".\"a\"\"; DROP TABLE t\"");
    }

    #[test]
    fn what_has_no_words_is_refused() {
        for text in [
            "a + 1 = 2",
            "a = b::int",
            "f(a)",
            "a LIKE 'x'",
            "a = E'x'",
            "a = $$x$$",
            "a = timestamp(0) '2026-01-01'",
            "a = 'x\0'",
        ] {
            assert!(read(text).and_then(|read| write(&read)).is_err(), "{text}");
        }
    }

    /// On a quarter of the stack that a thread has.
    #[test]
    fn no_condition_is_too_deep() {
        const BEFORE: [&str; 10] = [
            "n=1 OR ",
            "n=1 AND ",
            "n = 1 OR n = 2 AND ",
            "1 + ",
            "NOT ",
            "- ",
            "(",
            "n IS NULL OR NOT ",
            "n IN (1) AND ",
            "n || ",
        ];
        const BEHIND: [&str; 10] = [
            " IS NULL",
            "::int",
            "[1]",
            " COLLATE c",
            " AT TIME ZONE 'x'",
            " IN (1)",
            " BETWEEN 1 AND 2",
            ".n",
            "!",
            "->1",
        ];
        let look = || {
            let schema = schema();
            for times in [5, 60, 100, 160, 190, 240, 300, 450, 900, 5_000, 100_000] {
                let before = BEFORE.iter().map(|piece| format!("{}n=1", piece.repeat(times)));
                let behind = BEHIND.iter().map(|piece| format!("n{}", piece.repeat(times)));
                for text in before.chain(behind) {
                    let parsed = Filter::parse(&text, &schema);
                    assert!(parsed.is_err() || times < 1_000, "{times}: {parsed:?}");
                    if let Ok(filter) = parsed {
                        assert_eq!(filter.moved(&Some), Some(filter.clone()));
                        assert!(!filter.into_conjuncts().is_empty());
                    }
                }
            }
        };
        std::thread::Builder::new().stack_size(512 << 10).spawn(look).unwrap().join().unwrap();
        let list = vec!["-1"; MAX_VALUES].join(",");
        assert!(read(&format!("n IN ({list})")).is_ok());
        assert!(read(&format!("n IN ({list},1)")).is_err());
        assert!(read(&vec!["n = 1"; 200].join(" OR ")).is_ok());
    }

    fn schema() -> TableSchema {
        let column = |name: &str, column_type| Column { name: name.to_owned(), column_type };
        TableSchema {
            id: TableId(1),
            namespace: "public".to_owned(),
            name: "payments".to_owned(),
            columns: vec![
                column("n", ColumnType::Int4),
                column("say \"hi\" \\", ColumnType::Text),
                column("user", ColumnType::Text),
            ],
            primary_key: vec![0],
            keeps_row_image: true,
        }
    }

    /// What Postgres takes for text, cut out.
    fn outside_of_quotes(sql: &str) -> String {
        let (mut outside, mut within) = (String::new(), None);
        for c in sql.chars() {
            match within {
                // Where two of them are one, it ends and begins again.
                Some(quote) if c == quote => within = None,
                Some(_) => {}
                None if c == '\'' || c == '"' => within = Some(c),
                None => outside.push(c),
            }
        }
        assert_eq!(within, None, "{sql}");
        outside
    }

    proptest! {
        #[test]
        fn no_text_leaves_its_quotes(
            pieces in prop::collection::vec(
                select(&["'", "\\", "''", "\"", "--", "/*", ";", "x", " ", "é", "$$", "E'", "\n"][..]),
                0..12,
            ),
            column in select(&["\"say \"\"hi\"\" \\\"", "\"user\""][..]),
        ) {
            let text = quote_literal(&pieces.concat());
            let sql = format!("{column} IN ({text}, {text}) OR NOT ({column} <> {text} AND n = 1)");
            let written = written(&sql);
            let outside = outside_of_quotes(&written);
            prop_assert!(outside.chars().all(|c| c.is_ascii_alphanumeric() || " ()<>=,".contains(c)), "{}", written);
            let filter = Filter::parse(&written, &schema());
            prop_assert_eq!(&filter, &Filter::parse(&sql, &schema()));
            prop_assert!(filter.is_ok(), "{:?}", filter);
        }
    }
}
