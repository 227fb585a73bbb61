//! A definition as the SQL that Postgres would need for the same rows: for people to read, and to check an answer with.

use engine::change::{ColumnType, TableSchema};
use engine::materialization::{Definition, Granularity, MeasureDefinition, TimeDefinition};

/// `CREATE MATERIALIZED VIEW ... AS SELECT ... GROUP BY ...`
#[must_use]
pub fn create_statement(name: &str, definition: &Definition, schema: Option<&TableSchema>) -> String {
    let time = definition.time.as_ref().and_then(|time| time_expression(time, schema));
    let mut columns: Vec<String> = time.map(|time| format!("{time} AS time")).into_iter().collect();
    columns.extend(definition.dimensions.iter().map(|dimension| quote(dimension)));
    let groups = (1..=columns.len()).map(|position| position.to_string()).collect::<Vec<_>>().join(", ");
    columns.extend(definition.measures.iter().map(measure));
    let table = definition.qualified_table();
    let table = table.split('.').map(quote).collect::<Vec<_>>().join(".");
    let mut sql = format!("CREATE MATERIALIZED VIEW {} AS SELECT {} FROM {table}", quote(name), columns.join(", "));
    if let Some(filter) = &definition.filter {
        sql.push_str(&format!(" WHERE {filter}"));
    }
    if groups.is_empty() {
        // A cell without rows does not exist; without GROUP BY, Postgres would answer a row all the same.
        sql.push_str(" HAVING count(*) > 0");
    } else {
        sql.push_str(&format!(" GROUP BY {groups}"));
    }
    sql.push(';');
    sql
}

fn measure(measure: &MeasureDefinition) -> String {
    let expression = match (&measure.sum, measure.count.as_deref()) {
        (Some(column), _) => format!("sum({})", quote(column)),
        (None, Some("*") | None) => "count(*)".to_owned(),
        (None, Some(column)) => format!("count({})", quote(column)),
    };
    format!("{expression} AS {}", quote(&measure.name))
}

fn time_expression(time: &TimeDefinition, schema: Option<&TableSchema>) -> Option<String> {
    let column_type = schema.and_then(|schema| schema.columns.get(schema.column_index(&time.column)?));
    let column = quote(&time.column);
    let instant = match column_type.map(|column| &column.column_type) {
        Some(ColumnType::Timestamp) => {
            format!("{column} AT TIME ZONE {}", literal(time.assume_time_zone.as_deref().unwrap_or("UTC")))
        }
        Some(ColumnType::Date) => format!("{column}::timestamp AT TIME ZONE 'UTC'"),
        _ => column,
    };
    Some(match time.granularity {
        Granularity::All => return None,
        Granularity::Step(us) => {
            let origin = time.origin.as_deref().unwrap_or("2000-01-01T00:00:00Z");
            format!("date_bin('{} seconds', {instant}, timestamptz {})", us / 1_000_000, literal(origin))
        }
        civil => format!("date_trunc('{civil}', {instant}, {})", literal(&time.time_zone)),
    })
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// An identifier, quoted where Postgres would read it differently without.
fn quote(name: &str) -> String {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && name.bytes().next().is_some_and(|b| !b.is_ascii_digit())
        && !RESERVED.contains(&name);
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// Words that Postgres reserves and that people name columns.
const RESERVED: [&str; 24] = [
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "case",
    "check",
    "column",
    "default",
    "desc",
    "end",
    "from",
    "group",
    "limit",
    "offset",
    "order",
    "primary",
    "references",
    "table",
    "to",
    "user",
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use engine::change::{Column, TableId};

    use super::*;

    fn schema(column_type: ColumnType) -> TableSchema {
        TableSchema {
            id: TableId(1),
            namespace: "public".to_owned(),
            name: "payments".to_owned(),
            columns: vec![Column { name: "pmt_ts".to_owned(), column_type }],
            primary_key: vec![0],
        }
    }

    fn definition(text: &str) -> Definition {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn reads_as_postgres_would_write_it() {
        let monthly = definition(
            r#"{"table":"payments","measures":[{"name":"amount","sum":"amount"},{"name":"n","count":"*"}],
                "dimensions":["dst_acct","order"],"where":"status = 'settled'",
                "time":{"column":"pmt_ts","granularity":"month","time_zone":"Europe/Madrid"}}"#,
        );
        assert_eq!(
            create_statement("monthly", &monthly, Some(&schema(ColumnType::TimestampTz))),
            "CREATE MATERIALIZED VIEW monthly AS SELECT date_trunc('month', pmt_ts, 'Europe/Madrid') AS time, dst_acct, \
             \"order\", sum(amount) AS amount, count(*) AS n FROM public.payments WHERE status = 'settled' GROUP BY 1, 2, 3;"
        );
        assert!(
            create_statement("monthly", &monthly, Some(&schema(ColumnType::Timestamp)))
                .contains("date_trunc('month', pmt_ts AT TIME ZONE 'UTC', 'Europe/Madrid')")
        );
    }

    #[test]
    fn steps_and_totals() {
        let step = definition(
            r#"{"table":"s.T","measures":[{"name":"n","count":"x"}],"time":{"column":"pmt_ts","granularity":"PT15M"}}"#,
        );
        assert_eq!(
            create_statement("q", &step, None),
            "CREATE MATERIALIZED VIEW q AS SELECT date_bin('900 seconds', pmt_ts, timestamptz '2000-01-01T00:00:00Z') AS \
             time, count(x) AS n FROM s.\"T\" GROUP BY 1;"
        );
        let total = definition(r#"{"table":"payments","measures":[{"name":"n","count":"*"}]}"#);
        assert_eq!(
            create_statement("total", &total, None),
            "CREATE MATERIALIZED VIEW total AS SELECT count(*) AS n FROM public.payments HAVING count(*) > 0;"
        );
    }
}
