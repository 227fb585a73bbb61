//! The cells of one level as a query for Postgres: bucket, dimensions, rows, measures, ordered as our keys are.
//!
//! Everything is in our units, so that nothing depends on how a server prints: buckets, dates and timestamps as counts from
//! 2000-01-01, texts ordered by their bytes. A sum of doubles comes with the sum of their magnitudes and their number:
//! Postgres' own sum is rounded with every row, and that bounds by how much.

use engine::aggregate::Function;
use engine::change::ColumnType;
use engine::change::value::EPOCH_UNIX_US;
use engine::materialization::condition::{quote_identifier as quote, quote_table};
use engine::materialization::plan::MeasurePlan;
use engine::materialization::{Aggregate, Bucket, Granularity, MeasureDefinition, TimeDefinition};
use engine::source::FollowedTable;

use super::bucket_range::BucketRange;
use crate::sql::write::TimeExpression;

/// Bounds on the table's own column are put this much wider: they only spare Postgres other rows.
const SLACK_US: i64 = 2 * 86_400_000_000;

/// The query of a level.
#[must_use]
pub fn level_statement(
    aggregate: &Aggregate,
    table: &FollowedTable,
    granularity: Granularity,
    range: BucketRange,
) -> String {
    let definition = aggregate.definition.canonical();
    let time = definition.time.as_ref().filter(|_| granularity != Granularity::All);
    let mut inner: Vec<String> = Vec::new();
    let mut outer: Vec<String> = Vec::new();
    match time {
        Some(time) => {
            let at_level = TimeDefinition { granularity, ..time.clone() };
            inner.push(format!("{} AS b", TimeExpression::of(&at_level, Some(&table.schema)).expression));
            outer.push(bucket_number());
        }
        None => outer.push(format!("{}::int8 AS bucket", Bucket::ALL.0)),
    }
    for (at, dimension) in aggregate.plan.dimensions.iter().enumerate() {
        inner.push(format!("{} AS d{at}", group_column(&quote(&dimension.name), &dimension.column_type)));
        outer.push(group_value(&format!("d{at}"), &dimension.column_type));
    }
    let groups = (1..=inner.len()).map(|position| position.to_string()).collect::<Vec<_>>().join(", ");
    inner.push("count(*) AS n".to_owned());
    outer.push("n".to_owned());
    for (at, (measure, plan)) in definition.measures.iter().zip(&aggregate.plan.measures).enumerate() {
        for (part, column) in measure_columns(measure, plan).into_iter().enumerate() {
            inner.push(format!("{column} AS m{at}_{part}"));
            outer.push(format!("m{at}_{part}"));
        }
    }
    // Not ONLY: what its totals are in Postgres has the rows of tables that inherit from it, and where ours lack them, that is
    // to be seen.
    let mut sql =
        format!("SELECT {} FROM (SELECT {} FROM {}", outer.join(", "), inner.join(", "), quote_table(&table.schema));
    let mut conditions: Vec<String> = definition.filter.iter().map(|filter| format!("({filter})")).collect();
    conditions.extend(time.and_then(|time| column_bounds(time, aggregate, table, granularity, range)));
    if !conditions.is_empty() {
        sql.push_str(&format!(" WHERE {}", conditions.join(" AND ")));
    }
    // Without groups Postgres would answer a row for no rows; a cell without rows does not exist.
    sql.push_str(&if groups.is_empty() { " HAVING count(*) > 0".to_owned() } else { format!(" GROUP BY {groups}") });
    sql.push_str(") AS g");
    if time.is_some() && !range.is_all() {
        sql = format!("SELECT * FROM ({sql}) AS c WHERE bucket BETWEEN {} AND {}", int8(range.from), int8(range.to));
        // The dimensions' own names are gone; their values in our units are in the same order.
        let order = (1..=1 + aggregate.plan.dimensions.len()).map(|position| position.to_string());
        return format!("{sql} ORDER BY {}", order.collect::<Vec<_>>().join(", "));
    }
    let mut order = vec!["1".to_owned()];
    order.extend((0..aggregate.plan.dimensions.len()).map(|at| format!("d{at}")));
    format!("{sql} ORDER BY {}", order.join(", "))
}

/// A number of 64 bits, also the smallest, which has no literal.
fn int8(bucket: Bucket) -> String {
    format!("({}-1)::int8", i128::from(bucket.0) + 1)
}

fn microseconds(expression: &str) -> String {
    format!("(extract(epoch FROM {expression}) * 1000000 - {EPOCH_UNIX_US})::int8")
}

fn bucket_number() -> String {
    format!(
        "CASE WHEN b IS NULL THEN {} WHEN isfinite(b) THEN {} WHEN b > '2000-01-01' THEN {} ELSE {} END AS bucket",
        int8(Bucket::NULL),
        microseconds("b"),
        int8(Bucket::INFINITY),
        int8(Bucket::NEGATIVE_INFINITY)
    )
}

/// A dimension as it is grouped by: texts by their bytes.
fn group_column(column: &str, column_type: &ColumnType) -> String {
    match column_type {
        ColumnType::Text | ColumnType::Char => format!("{column}::text COLLATE \"C\""),
        // A real prints with fewer digits than the double that it is.
        ColumnType::Float4 => format!("{column}::float8"),
        _ => column.to_owned(),
    }
}

/// A dimension's value in our units.
fn group_value(name: &str, column_type: &ColumnType) -> String {
    let (finite, last, first) = match column_type {
        ColumnType::Date => (format!("{name} - '2000-01-01'::date"), i64::from(i32::MAX), i64::from(i32::MIN)),
        ColumnType::Timestamp | ColumnType::TimestampTz => (microseconds(name), i64::MAX, i64::MIN),
        _ => return name.to_owned(),
    };
    format!(
        "CASE WHEN {name} IS NULL THEN NULL WHEN isfinite({name}) THEN {finite} WHEN {name} > '2000-01-01' THEN {} ELSE {} END \
         AS {name}",
        int8(Bucket(last)),
        int8(Bucket(first))
    )
}

fn measure_columns(measure: &MeasureDefinition, plan: &MeasurePlan) -> Vec<String> {
    let filter = measure.filter.as_ref().map(|filter| format!(" FILTER (WHERE {filter})")).unwrap_or_default();
    let column = measure.sum.as_deref().or(measure.count.as_deref()).map(quote).unwrap_or_default();
    match plan.function {
        Function::CountRows => vec![format!("count(*){filter}")],
        Function::CountValues => vec![format!("count({column}){filter}")],
        Function::SumInteger | Function::SumNumeric { .. } => vec![format!("sum({column}){filter}")],
        Function::SumFloat => vec![
            format!("sum({column}::float8){filter}"),
            format!("sum(abs({column}::float8)){filter}"),
            format!("count({column}){filter}"),
        ],
    }
}

/// A condition on the table's own column, which an index may serve; only where the column is the time itself.
fn column_bounds(
    time: &TimeDefinition,
    aggregate: &Aggregate,
    table: &FollowedTable,
    granularity: Granularity,
    range: BucketRange,
) -> Option<String> {
    if time.codec.is_some() || time.assume_time_zone.is_some() {
        return None;
    }
    let column_type = &table.schema.columns.get(table.schema.column_index(&time.column)?)?.column_type;
    let epoch = match column_type {
        ColumnType::TimestampTz => "timestamptz '2000-01-01 00:00:00+00'",
        ColumnType::Timestamp | ColumnType::Date => "timestamp '2000-01-01'",
        _ => return None,
    };
    let column = quote(&time.column);
    let bound = |us: i64| format!("{epoch} + interval '1 second' * {}", us.div_euclid(1_000_000));
    let mut conditions = Vec::new();
    if let Some(from) = range.first_instant() {
        conditions.push(format!("{column} >= {}", bound(from.checked_sub(SLACK_US)?)));
    }
    if let Some(last) = range.last_instant() {
        let end = aggregate.plan.calendar.interval(granularity, last).end;
        conditions.push(format!("{column} < {}", bound(end.checked_add(SLACK_US)?)));
    }
    (!conditions.is_empty()).then(|| conditions.join(" AND "))
}

#[cfg(test)]
mod tests {
    use engine::source::TableState;

    use super::*;
    use crate::query::fixture::{daily, schema};

    #[test]
    fn all_rows_are_read_that_postgres_counts() {
        let table = FollowedTable::new(schema(), TableState::Live);
        let sql = level_statement(&daily(), &table, Granularity::All, BucketRange::ALL);
        assert!(sql.contains(" FROM public.payments GROUP BY "), "{sql}");
    }
}
