//! A definition as the SQL that Postgres would need for the same rows: for people to read, to check an answer with, and to
//! register again, on this server or another.
//!
//! A time in it means the same in every session: one without zone is written with the zone that it was read in.
//!
//! What Postgres has no words for stands after `WITH`: rollups, and the zone of steps of fixed length. Without it the statement
//! runs in Postgres as it is.

use engine::change::{ColumnType, TableSchema};
use engine::materialization::condition::{quote_identifier as quote, quote_literal as literal};
use engine::materialization::{DateCodec, Definition, Granularity, MeasureDefinition, TimeDefinition};

/// `CREATE MATERIALIZED VIEW ... AS SELECT ... GROUP BY ...`
#[must_use]
pub fn create_statement(name: &str, definition: &Definition, schema: Option<&TableSchema>) -> String {
    let definition = schema.map_or_else(|| definition.canonical(), |schema| definition.in_any_zone(schema));
    let time = definition.time.as_ref().map(|time| TimeExpression::of(time, schema));
    let mut columns: Vec<String> = time.iter().map(|time| format!("{} AS time", time.expression)).collect();
    columns.extend(definition.dimensions.iter().map(|dimension| quote(dimension)));
    let groups = (1..=columns.len()).map(|position| position.to_string()).collect::<Vec<_>>().join(", ");
    columns.extend(definition.measures.iter().map(measure));
    let table = definition.table.split('.').map(quote).collect::<Vec<_>>().join(".");
    let mut sql = format!("CREATE MATERIALIZED VIEW {}", quote(name));
    let options = options(&definition, time.and_then(|time| time.zone));
    if !options.is_empty() {
        sql.push_str(&format!(" WITH ({})", options.join(", ")));
    }
    sql.push_str(&format!(" AS SELECT {} FROM {table}", columns.join(", ")));
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

fn options(definition: &Definition, zone: Option<&str>) -> Vec<String> {
    let mut options: Vec<String> = zone.map(|zone| format!("timezone = {}", literal(zone))).into_iter().collect();
    if !definition.rollups.is_empty() {
        let rollups: Vec<String> = definition.rollups.iter().map(Granularity::to_string).collect();
        options.push(format!("rollups = {}", literal(&rollups.join(","))));
    }
    if definition.drill_through {
        options.push("drill_through = true".to_owned());
    }
    options
}

fn measure(measure: &MeasureDefinition) -> String {
    let expression = match (&measure.sum, measure.count.as_deref(), measure.scale) {
        (Some(column), _, Some(scale)) => format!("sum({}::numeric(38,{scale}))", quote(column)),
        (Some(column), ..) => format!("sum({})", quote(column)),
        (None, Some("*") | None, _) => "count(*)".to_owned(),
        (None, Some(column), _) => format!("count({})", quote(column)),
    };
    let filter = measure.filter.as_ref().map(|filter| format!(" FILTER (WHERE {filter})")).unwrap_or_default();
    format!("{expression}{filter} AS {}", quote(&measure.name))
}

/// The bucket of a row.
pub(crate) struct TimeExpression<'d> {
    /// In Postgres' words; an instant, or a clock reading.
    pub(crate) expression: String,
    /// The zone, where the expression does not say it.
    zone: Option<&'d str>,
}

impl<'d> TimeExpression<'d> {
    pub(crate) fn of(time: &'d TimeDefinition, schema: Option<&TableSchema>) -> Self {
        let column_type = schema.and_then(|schema| schema.columns.get(schema.column_index(&time.column)?));
        let (operand, is_instant) = operand(time, column_type.map(|column| &column.column_type));
        let unsaid = Some(time.time_zone.as_str()).filter(|zone| *zone != "UTC");
        match time.granularity {
            Granularity::Step(us) => {
                let origin = time.origin.as_deref().unwrap_or("2000-01-01T00:00:00Z");
                let origin = if is_instant {
                    format!("timestamptz {}", literal(origin))
                } else {
                    format!("timestamp {}", literal(origin.trim_end_matches('Z')))
                };
                let expression = format!("date_bin('{} seconds', {operand}, {origin})", us / 1_000_000);
                TimeExpression { expression, zone: unsaid }
            }
            civil if is_instant => {
                let expression = format!("date_trunc('{civil}', {operand}, {})", literal(&time.time_zone));
                TimeExpression { expression, zone: None }
            }
            civil => TimeExpression { expression: format!("date_trunc('{civil}', {operand})"), zone: unsaid },
        }
    }
}

/// The time of a row, and whether it is an instant rather than a clock reading.
fn operand(time: &TimeDefinition, column_type: Option<&ColumnType>) -> (String, bool) {
    let column = quote(&time.column);
    let date = |digits: String, pattern: &str| (format!("to_date({digits}, '{pattern}')::timestamp"), false);
    match (time.codec, column_type, &time.assume_time_zone) {
        (Some(DateCodec::EpochS), ..) => (format!("to_timestamp({column})"), true),
        (Some(DateCodec::EpochMs), ..) => (format!("to_timestamp({column} / 1000.0)"), true),
        (Some(DateCodec::EpochUs), ..) => (format!("to_timestamp({column} / 1000000.0)"), true),
        (Some(DateCodec::Yyyymmdd), ..) => date(format!("{column}::text"), "YYYYMMDD"),
        (Some(DateCodec::Yyyymm), ..) => date(format!("{column}::text"), "YYYYMM"),
        (Some(DateCodec::Yymmdd), ..) => date(format!("lpad({column}::text, 6, '0')"), "YYMMDD"),
        (Some(DateCodec::Ddmmyy), ..) => date(format!("lpad({column}::text, 6, '0')"), "DDMMYY"),
        (None, Some(ColumnType::Date), _) => (format!("{column}::timestamp"), false),
        (None, _, Some(zone)) => (format!("{column} AT TIME ZONE {}", literal(zone)), true),
        (None, Some(ColumnType::Timestamp), None) => (column, false),
        (None, _, None) => (column, true),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use engine::change::{Column, TableId};
    use engine::materialization::Plan;
    use proptest::prelude::*;
    use proptest::sample::{select, subsequence};

    use super::*;
    use crate::sql::registration::{Look, Registration};

    const COLUMNS: [(&str, ColumnType); 14] = [
        ("id", ColumnType::Int8),
        ("at", ColumnType::TimestampTz),
        ("local", ColumnType::Timestamp),
        ("day", ColumnType::Date),
        ("ymd", ColumnType::Int4),
        ("ms", ColumnType::Int8),
        ("amount", ColumnType::Numeric { scale: Some(2) }),
        ("fee", ColumnType::Numeric { scale: None }),
        ("weight", ColumnType::Float8),
        ("status", ColumnType::Text),
        ("Order", ColumnType::Text),
        ("select", ColumnType::Int4),
        ("it's \"odd\"", ColumnType::Text),
        ("interval", ColumnType::Int8),
    ];

    struct Table;

    impl Look for Table {
        fn column_type(&self, _: &str, name: &str) -> Option<ColumnType> {
            COLUMNS.iter().find(|(column, _)| *column == name).map(|(_, column_type)| column_type.clone())
        }

        fn dates(&self, _: &str, _: &str) -> Option<String> {
            None
        }
    }

    fn schema() -> TableSchema {
        let column = |(name, column_type): (&str, ColumnType)| Column { name: name.to_owned(), column_type };
        TableSchema {
            id: TableId(1),
            namespace: "public".to_owned(),
            name: "payments".to_owned(),
            columns: COLUMNS.map(column).into_iter().collect(),
            primary_key: vec![0],
            keeps_row_image: true,
        }
    }

    fn definition(text: &str) -> Definition {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn reads_as_postgres_would_write_it() {
        let by = |time: &str| {
            let text = format!(
                r#"{{"table":"payments","measures":[{{"name":"amount","sum":"amount"}},{{"name":"n","count":"*","where":"id>5"}}],
                    "dimensions":["status","Order"],"where":"status='settled'","time":{time}}}"#
            );
            create_statement("monthly", &definition(&text), Some(&schema()))
        };
        assert_eq!(
            by(r#"{"column":"at","granularity":"month","time_zone":"Europe/Madrid"}"#),
            "CREATE MATERIALIZED VIEW monthly AS SELECT date_trunc('month', at, 'Europe/Madrid') AS time, status, \"Order\", \
             sum(amount) AS amount, count(*) FILTER (WHERE id > 5) AS n FROM public.payments WHERE status = 'settled' \
             GROUP BY 1, 2, 3;"
        );
        for (time, expression) in [
            (r#"{"column":"local","granularity":"month"}"#, "date_trunc('month', local)"),
            (
                r#"{"column":"local","granularity":"month","time_zone":"Europe/Madrid","assume_time_zone":"UTC"}"#,
                "date_trunc('month', local AT TIME ZONE 'UTC', 'Europe/Madrid')",
            ),
            (r#"{"column":"day","granularity":"week"}"#, "date_trunc('week', day::timestamp)"),
            (
                r#"{"column":"ymd","granularity":"month","codec":"ddmmyy"}"#,
                "date_trunc('month', to_date(lpad(ymd::text, 6, '0'), 'DDMMYY')::timestamp)",
            ),
            (
                r#"{"column":"ms","granularity":"hour","codec":"epoch_ms","time_zone":"Asia/Tokyo"}"#,
                "date_trunc('hour', to_timestamp(ms / 1000.0), 'Asia/Tokyo')",
            ),
            (
                r#"{"column":"at","granularity":"PT15M","origin":"2024-01-01 00:05:00"}"#,
                "date_bin('900 seconds', at, timestamptz '2024-01-01T00:05:00Z')",
            ),
        ] {
            let sql = by(time);
            assert!(sql.contains(&format!("SELECT {expression} AS time, ")), "{sql}");
        }
    }

    #[test]
    fn totals_and_what_postgres_has_no_words_for() {
        let total =
            definition(r#"{"table":"s.T","measures":[{"name":"n","count":"id"},{"name":"f","sum":"fee","scale":4}]}"#);
        assert_eq!(
            create_statement("total", &total, None),
            "CREATE MATERIALIZED VIEW total AS SELECT count(id) AS n, sum(fee::numeric(38,4)) AS f FROM s.\"T\" HAVING count(*) > 0;"
        );
        let levels = definition(
            r#"{"table":"payments","measures":[{"name":"n","count":"*"}],"rollups":["year","month"],
                "time":{"column":"at","granularity":"PT1H","time_zone":"Asia/Tokyo"}}"#,
        );
        assert_eq!(
            create_statement("levels", &levels, None),
            "CREATE MATERIALIZED VIEW levels WITH (timezone = 'Asia/Tokyo', rollups = 'month,year') AS SELECT \
             date_bin('3600 seconds', at, timestamptz '2000-01-01T00:00:00Z') AS time, count(*) AS n FROM public.payments GROUP BY 1;"
        );
    }

    fn measure_text() -> impl Strategy<Value = String> {
        let function = select(vec![
            r#""sum":"amount""#,
            r#""sum":"fee","scale":4"#,
            r#""sum":"weight""#,
            r#""sum":"select""#,
            r#""sum":"interval""#,
            r#""count":"*""#,
            r#""count":"it's \"odd\"""#,
        ]);
        (function, prop::option::of(condition())).prop_map(|(function, filter)| match filter {
            Some(filter) => format!("{function},\"where\":{}", serde_json::to_string(&filter).unwrap()),
            None => function.to_owned(),
        })
    }

    fn condition() -> impl Strategy<Value = String> {
        let leaf = select(vec![
            "status = 'settled'",
            "amount>=-1.50",
            "status IN ('a', 'it''s -- no comment')",
            "\"Order\" is not null",
            "at < timestamptz '2026-01-01 00:00:00+01'",
            "at >= '2026-01-01'",
            "day BETWEEN '2024-01-01' AND date '2024-12-31'",
            "id <> 3 /* why */",
            "\"select\" > 0",
            "\"it's \"\"odd\"\"\" = ';'",
        ])
        .prop_map(str::to_owned);
        leaf.prop_recursive(3, 12, 2, |inner| {
            prop_oneof![
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) and {b}")),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a} OR ({b})")),
                inner.prop_map(|a| format!("not ({a})")),
            ]
        })
    }

    fn time_text() -> impl Strategy<Value = String> {
        let column = select(vec!["at", "local", "day", "ymd", "ms"]);
        let granularity = select(vec![
            "second", "hour", "day", "week", "month", "quarter", "year", "all", "PT15M", "PT1H", "P1D", "P10D", "PT90S",
        ]);
        let zone = prop::option::of(select(vec!["UTC", "Europe/Madrid", "America/New_York"]));
        let codec = prop::option::of(select(DateCodec::ALL.to_vec()));
        let origin = prop::option::of(select(vec![
            "2024-01-01T00:05:00Z",
            "2000-01-01",
            "1999-12-31 23:59:59.5",
            "2024-02-01T00:00:00+01:00",
        ]));
        (column, granularity, zone.clone(), zone, codec, origin).prop_map(
            |(column, granularity, zone, assumed, codec, origin)| {
                let mut text = format!(r#"{{"column":"{column}","granularity":"{granularity}""#);
                let codec = codec.map(DateCodec::name);
                for (name, value) in
                    [("time_zone", zone), ("assume_time_zone", assumed), ("codec", codec), ("origin", origin)]
                {
                    text.extend(value.map(|value| format!(r#","{name}":"{value}""#)));
                }
                text + "}"
            },
        )
    }

    fn definition_text() -> impl Strategy<Value = Definition> {
        let dimensions =
            subsequence(vec!["status", "Order", "select", "it's \"odd\"", "id", "weight"], 0..5).prop_shuffle();
        let rollups = subsequence(vec!["week", "month", "quarter", "year", "all"], 0..4).prop_shuffle();
        let measures = prop::collection::vec(measure_text(), 1..4);
        (measures, dimensions, prop::option::of(time_text()), rollups, prop::option::of(condition()), any::<bool>())
            .prop_map(|(measures, dimensions, time, rollups, filter, drill)| {
                let measures: Vec<String> =
                    measures.iter().enumerate().map(|(at, m)| format!(r#"{{"name":"M_{at}",{m}}}"#)).collect();
                let json = |value: &dyn Fn() -> serde_json::Result<String>| value().unwrap();
                let mut text = format!(
                    r#"{{"table":"payments","drill_through":{drill},"measures":[{}],"dimensions":{},"rollups":{}"#,
                    measures.join(","),
                    json(&|| serde_json::to_string(&dimensions)),
                    json(&|| serde_json::to_string(&rollups)),
                );
                text.extend(time.map(|time| format!(r#","time":{time}"#)));
                text.extend(filter.map(|filter| format!(r#","where":{}"#, serde_json::to_string(&filter).unwrap())));
                definition(&(text + "}"))
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig { max_global_rejects: 200_000, cases: 400, ..ProptestConfig::default() })]

        /// JSON to SQL and back is the same definition, and its plan the same plan.
        #[test]
        fn what_is_printed_reads_back(definition in definition_text()) {
            let schema = schema();
            prop_assume!(Plan::resolve(&definition, &schema).is_ok());
            let sql = create_statement("odd name", &definition, Some(&schema));
            let read = Registration::parse(&sql, &Table).map_err(|error| TestCaseError::fail(format!("{sql}: {error}")))?;
            prop_assert_eq!(&read.name, "odd name");
            prop_assert!(read.warnings.is_empty());
            prop_assert_eq!(&read.definition, &definition.in_any_zone(&schema), "{}", sql);
            prop_assert!(definition.differences(&read.definition, Some(&schema)).is_empty());
            prop_assert_eq!(create_statement("odd name", &read.definition, Some(&schema)), sql.clone());
            prop_assert_eq!(Plan::resolve(&read.definition, &schema), Plan::resolve(&definition.canonical(), &schema), "{}", sql);
        }
    }
}
