//! What callers write, malformed: definitions in JSON and SQL, questions in bodies and addresses, cursors. It is refused, or it
//! says the same when it is written again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

use engine::change::ColumnType;
use engine::materialization::{Bucket, Plan};

use super::extract::{parse_definition, parse_queries};
use crate::access::Pin;
use crate::query::AggregateQuery;
use crate::query::cursor::Cursor;
use crate::query::fixture::{daily_in, parse as parse_question, schema};
use crate::sql::{self, Look, Registration, create_statement};

#[path = "../../../tests/support/mutation.rs"]
mod mutation;

/// Names are for the fixture's table.
const DEFINITIONS: [&str; 6] = [
    r#"{"table":"t","measures":[{"name":"amount","sum":"amount"},{"name":"n","count":"*"}],"dimensions":["country"],"time":{"column":"ts","granularity":"day","time_zone":"Europe/Madrid"},"rollups":["month","year"]}"#,
    r#"{"table":"public.t","measures":[{"name":"a","sum":"amount","where":"country in ('EUR','USD') and not (merchant is null)"}],"where":"amount > 0.5 or country like 'E%'"}"#,
    r#"{"table":"t","measures":[{"name":"n","count":"merchant"}],"time":{"column":"ts","granularity":"PT15M","origin":"2024-01-01T00:00:00Z"},"drill_through":true}"#,
    r#"{"table":"t","measures":[{"name":"n","count":"*"}],"time":{"column":"merchant","granularity":"month","codec":"yyyymmdd"}}"#,
    r#"{"table":"t","measures":[{"name":"n","sum":"amount","scale":4}],"where":"ts >= '2024-02-30' and merchant between -5 and 9223372036854775807"}"#,
    r#"{"table":"t","measures":[{"name":"n","count":"*"}],"where":"((((((merchant = 1))))))"}"#,
];

const QUESTIONS: [&str; 4] = [
    r#"{"aggregate":"a","from":"2026-03-01","to":"now","granularity":"month","where":{"country":"EUR","merchant":42},"limit":5}"#,
    r#"{"queries":[{"table":"t","measures":["sum(amount) as s","count(*)"],"order":["-s"],"others":true}],"explain":"plan"}"#,
    r#"{"aggregate":"a","where":["country:'EUR'","merchant:1"],"having":"amount > 5 and n <> 0","fill":"zero","compare":"P1Y"}"#,
    r#"{"aggregate":"a","filter":"country in ('a','b') or merchant is null","group_by":["country"],"share":true,"wait":"2s"}"#,
];

const STATEMENTS: [&str; 5] = [
    "CREATE ONLINE AGGREGATE monthly AS SUM(amount) AS amount, COUNT(*) AS n FROM t GROUP BY EXTRACT(YEAR FROM ts) AS y, EXTRACT(MONTH FROM ts) AS m, country;",
    "CREATE MATERIALIZED VIEW IF NOT EXISTS m AS SELECT date_trunc('month', ts) AS m, country, sum(amount) AS amount, count(*) AS n FROM public.t WHERE country = 'EUR' GROUP BY 1, 2;",
    "CREATE MATERIALIZED VIEW \"M\" WITH (timezone = 'Europe/Madrid', rollups = 'month,year') AS SELECT date_trunc('day', ts AT TIME ZONE 'Europe/Madrid') AS d, sum(amount::numeric(38,4)) FILTER (WHERE merchant > 5) AS s FROM t GROUP BY 1;",
    "-- a comment\nCREATE MATERIALIZED VIEW v AS SELECT date_bin('15 minutes', ts, '2024-01-01') AS q, count(merchant) AS c FROM t GROUP BY 1; SELECT 1;",
    "CREATE MATERIALIZED VIEW w AS SELECT count(*) AS n FROM t WHERE ts >= '2024-01-01' AND (merchant IN (1, 2) OR NOT country LIKE 'x%') HAVING count(*) > 0;",
];

const ADDRESSES: [&str; 8] = [
    "from=2026-03-01&to=2027&granularity=month&group_by=country,merchant",
    "where=country:EUR&where=merchant:42&measures=amount,n",
    "filter=country in ('a','b') and merchant is not null&limit=3",
    "from=-30d&to=now&granularity=year&group_by=",
    "group_by=merchant,country&order=-n&granularity=all",
    "from=2026-01-01T00:00:00Z&to=2027-01-01&granularity=year&wait=30s",
    "measures=sum(amount) as s,count(*)&having=s > 5",
    "from=2026&to=2027&granularity=year&compare=P1Y&group_by=country",
];

fn bytes(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

struct Columns;

impl Look for Columns {
    fn column_type(&self, _: &str, name: &str) -> Option<ColumnType> {
        schema().columns.into_iter().find(|column| column.name == name).map(|column| column.column_type)
    }

    fn dates(&self, _: &str, _: &str) -> Option<String> {
        None
    }
}

/// What is refused before it is altered tries nothing.
#[test]
fn most_of_what_is_altered_is_understood_as_it_is() {
    let understood = [
        DEFINITIONS.iter().filter(|text| parse_definition(text.as_bytes()).is_ok()).count(),
        QUESTIONS.iter().filter(|text| parse_queries(text.as_bytes()).is_ok()).count(),
        STATEMENTS.iter().filter(|text| Registration::parse(text, &Columns).is_ok()).count(),
        ADDRESSES.iter().filter(|text| parse_question(text, &daily_in("UTC")).is_ok()).count(),
    ];
    let all = [DEFINITIONS.len(), QUESTIONS.len(), STATEMENTS.len(), ADDRESSES.len()];
    assert!(understood.iter().zip(all).all(|(understood, all)| understood + 2 >= all), "{understood:?} of {all:?}");
}

#[test]
fn a_definition_in_json_is_refused_or_says_the_same_again() {
    let schema = schema();
    mutation::feed("definition in JSON", bytes(&DEFINITIONS), 100_000, move |body| {
        let Ok(definition) = parse_definition(body) else { return };
        let written = serde_json::to_vec(&definition).unwrap();
        assert_eq!(parse_definition(&written).expect("a written definition reads"), definition);
        let _ = Plan::resolve(&definition, &schema);
    });
}

#[test]
fn a_definition_in_sql_is_refused_or_says_the_same_again() {
    let schema = schema();
    mutation::feed("definition in SQL", bytes(&STATEMENTS), 60_000, move |text| {
        let text = String::from_utf8_lossy(text);
        let Ok(statements) = sql::split(&text) else { return };
        for statement in statements {
            let Ok(read) = Registration::parse(&statement.text, &Columns) else { continue };
            // What does not fit the table has no SQL.
            if Plan::resolve(&read.definition, &schema).is_err() {
                continue;
            }
            let written = create_statement(&read.name, &read.definition, Some(&schema));
            let again = Registration::parse(&written, &Columns).unwrap_or_else(|error| panic!("{written}: {error:?}"));
            assert_eq!((again.name, again.definition), (read.name, read.definition.in_any_zone(&schema)), "{written}");
        }
    });
}

#[test]
fn a_question_in_a_body_is_read_or_refused() {
    let aggregate = daily_in("Europe/Madrid");
    mutation::feed("question in a body", bytes(&QUESTIONS), 80_000, move |body| {
        let Ok(questions) = parse_queries(body) else { return };
        for question in &questions.queries {
            let _ = AggregateQuery::resolve(question, &aggregate, 0);
        }
    });
}

#[test]
fn a_question_in_an_address_is_read_or_refused() {
    let aggregate = daily_in("America/St_Johns");
    mutation::feed("question in an address", bytes(&ADDRESSES), 60_000, move |text| {
        let text = String::from_utf8_lossy(text);
        let _ = parse_question(&text, &aggregate);
        let _ = Pin::parse(&text);
    });
}

#[test]
fn a_cursor_is_refused_or_says_the_same_again() {
    let cursor = |values: Vec<_>| {
        let (bucket, key) = (Bucket(-5), b"\x02EUR\0".to_vec());
        Cursor { process: 9, sequence: 7, asked_us: -1, bucket, key, values }
    };
    use engine::aggregate::MeasureValue;
    let values = vec![MeasureValue::Null, MeasureValue::Integer(-3), MeasureValue::Decimal { mantissa: 5, scale: 2 }];
    let corpus = [cursor(Vec::new()), cursor(values), cursor(vec![MeasureValue::Float(0.5)])];
    let corpus = corpus.iter().map(|cursor| cursor.encode(9).into_bytes()).collect();
    mutation::feed("cursor", corpus, 40_000, |text| {
        let text = String::from_utf8_lossy(text);
        if let Some((question, cursor)) = Cursor::decode(&text) {
            let once = cursor.encode(question);
            let again = Cursor::decode(&once).map(|(question, cursor)| cursor.encode(question));
            assert_eq!(again, Some(once));
        }
    });
}
