//! Random aggregates and random questions over HTTP: whatever is answered equals Postgres' own GROUP BY over the same rows,
//! and whatever is refused names a reason that is true.
//!
//! Questions name the table, so the planner has all aggregates to choose from. The rows have NULLs, BC years, both
//! infinities and instants around the days on which the clocks of odd zones change. A failure prints its seed;
//! `TIDEMARK_SEED=7 TIDEMARK_QUESTIONS=500 cargo test --release questions` asks that many from that seed.

use std::collections::{BTreeMap, BTreeSet};

use engine::materialization::Calendar;
use queries::query::instant::{Bound, parse_bound};
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::server::Server;
use crate::support::sql;

const QUESTIONS: usize = 5_000;
const AGGREGATES: usize = 48;
const ROWS: u32 = 4_000;
/// Questions in one request: all are answered at one position.
const BATCH: usize = 25;

const ZONES: [&str; 9] = [
    "UTC",
    "Europe/Madrid",
    "America/New_York",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "America/St_Johns",
    "Asia/Beirut",
    "Pacific/Apia",
];
const DIMENSIONS: [&str; 4] = ["country", "merchant", "kind", "settled"];
const FILTERS: [&str; 9] = [
    "country = 'ES'",
    "merchant > 3",
    "merchant in (1, 2, 3)",
    "settled",
    "country is null",
    "not settled or settled is null",
    "kind <> 'fee' and merchant <= 5",
    "country in ('ES', 'FR') and settled",
    "amount > 0",
];
/// As asked, as Postgres computes it, and the stored measures it needs.
const MEASURES: [(&str, &str, &[&str]); 6] = [
    ("sum(amount)", "sum(amount)", &["amount"]),
    ("count(*)", "count(*)", &["n"]),
    ("count(amount)", "count(amount)", &["amounts"]),
    ("avg(amount)", "round(sum(amount) / count(amount), 8)", &["amount", "amounts"]),
    ("sum(units)", "sum(units)", &["units"]),
    ("avg(units)", "round(sum(units)::numeric / nullif(count(units), 0), 6)", &["units", "filled"]),
];

/// What is known of a registered aggregate, to judge refusals by.
#[derive(Clone, Debug)]
struct Kept {
    dimensions: Vec<&'static str>,
    measures: Vec<&'static str>,
    time: Option<(&'static str, &'static str)>,
    filter: Option<&'static str>,
}

impl Kept {
    fn random(rng: &mut ChaCha8Rng) -> Kept {
        let count = rng.random_range(0..=DIMENSIONS.len());
        let dimensions = DIMENSIONS.iter().copied().choose_multiple(rng, count);
        let count = rng.random_range(1..=5);
        let measures = ["amount", "n", "amounts", "units", "filled"].into_iter().choose_multiple(rng, count);
        let granularity = *["PT15M", "PT15M", "hour", "day", "month", "week"].choose(rng).unwrap();
        let zone = if granularity == "PT15M" { "UTC" } else { *ZONES.choose(rng).unwrap() };
        let time = rng.random_bool(0.9).then_some((granularity, zone));
        let filter = rng.random_bool(0.3).then(|| *FILTERS.choose(rng).unwrap());
        Kept { dimensions, measures, time, filter }
    }

    fn definition(&self, rng: &mut ChaCha8Rng) -> Value {
        let measures: Vec<Value> = self
            .measures
            .iter()
            .map(|name| match *name {
                "n" => json!({"name": "n", "count": "*"}),
                "amounts" => json!({"name": "amounts", "count": "amount"}),
                "filled" => json!({"name": "filled", "count": "units"}),
                sum => json!({"name": sum, "sum": sum}),
            })
            .collect();
        let mut definition = json!({"table": "pay", "measures": measures, "dimensions": self.dimensions});
        if let Some((granularity, zone)) = self.time {
            definition["time"] = json!({"column": "at", "granularity": granularity, "time_zone": zone});
            let coarser: &[&str] = match (granularity, zone) {
                ("PT15M", _) => &["hour", "day", "week", "month", "year", "all"],
                ("hour", _) => &["day", "month", "year"],
                ("day", _) => &["week", "month", "quarter", "year", "all"],
                ("month", _) => &["quarter", "year"],
                _ => &["all"],
            };
            let count = rng.random_range(0..=2);
            definition["rollups"] = json!(coarser.iter().copied().choose_multiple(rng, count));
        }
        if let Some(filter) = self.filter {
            definition["where"] = json!(filter);
        }
        definition
    }
}

/// One question, in Tidemark's words and in Postgres'.
#[derive(Clone, Debug)]
struct Question {
    group_by: Vec<&'static str>,
    measures: Vec<usize>,
    granularity: &'static str,
    zone: Option<&'static str>,
    week_start: Option<&'static str>,
    year_start: Option<u8>,
    from: Option<String>,
    to: Option<String>,
    filter: Option<String>,
    having: bool,
}

impl Question {
    fn random(rng: &mut ChaCha8Rng) -> Question {
        let count = rng.random_range(0..=2);
        let group_by = DIMENSIONS.iter().copied().choose_multiple(rng, count);
        let count = rng.random_range(1..=3);
        let measures = (0..MEASURES.len()).choose_multiple(rng, count);
        let granularity =
            *["all", "all", "hour", "day", "week", "month", "quarter", "year", "PT6H"].choose(rng).unwrap();
        let zone = rng.random_bool(0.7).then(|| *ZONES.choose(rng).unwrap());
        // Where the clock is set by half an hour, ours is an edge of an hour and Postgres' is not: not comparable.
        let zone = zone.filter(|zone| !matches!(granularity, "hour") || *zone != "Australia/Lord_Howe");
        let edge = |rng: &mut ChaCha8Rng, year: i32| {
            let (month, day) = (rng.random_range(1..=12), rng.random_range(1..=28));
            match rng.random_range(0..6) {
                0 => format!("{year}"),
                1 => format!("{year}-{month:02}"),
                2 => format!("{year}-{month:02}-{day:02}T{:02}:00:00Z", rng.random_range(0..24)),
                3 => format!("{year}-{month:02}-{day:02}T03:45:00+05:45"),
                _ => format!("{year}-{month:02}-{day:02}"),
            }
        };
        let year = rng.random_range(2019..2026);
        let from = rng.random_bool(0.6).then(|| edge(rng, year));
        let end = year + rng.random_range(1..3);
        let to = rng.random_bool(0.6).then(|| edge(rng, end));
        let mut filters: Vec<&str> = (0..rng.random_range(0..3)).map(|_| *FILTERS.choose(rng).unwrap()).collect();
        filters.dedup();
        let filter = filters.iter().map(|filter| format!("({filter})")).collect::<Vec<_>>().join(" and ");
        Question {
            group_by,
            measures,
            granularity,
            zone,
            week_start: (granularity == "week" && rng.random_bool(0.5)).then_some("sunday"),
            year_start: (matches!(granularity, "year" | "quarter") && rng.random_bool(0.4))
                .then(|| rng.random_range(1..=12)),
            from,
            to,
            filter: Some(filter).filter(|filter| !filter.is_empty()),
            having: rng.random_bool(0.15),
        }
    }

    fn request(&self) -> Value {
        let mut request = json!({
            "table": "pay", "time": "at", "group_by": self.group_by, "granularity": self.granularity, "limit": 100_000,
            "measures": self.measures.iter().enumerate().map(|(at, m)| format!("{} as m{at}", MEASURES[*m].0)).collect::<Vec<_>>(),
        });
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                request[name] = value;
            }
        };
        put("time_zone", self.zone.map(Value::from));
        put("week_start", self.week_start.map(Value::from));
        put("year_start", self.year_start.map(Value::from));
        put("from", self.from.as_deref().map(Value::from));
        put("to", self.to.as_deref().map(Value::from));
        put("filter", self.filter.as_deref().map(Value::from));
        put("having", self.having.then(|| Value::from("m0 is not null and m0 > 1")));
        request
    }

    /// What Postgres computes in a zone.
    fn sql(&self, zone: &str) -> String {
        let local = format!("(at at time zone '{zone}')");
        let months = i32::from(self.year_start.unwrap_or(1)) - 1;
        let civil = |truncated: String| format!("(extract(epoch from {truncated}) / 86400)::text");
        let bucket = match self.granularity {
            "all" => None,
            "hour" => Some(format!("(extract(epoch from date_trunc('hour', at, '{zone}')))::text")),
            "PT6H" => Some("(extract(epoch from date_bin('6 hours', at, timestamptz '2000-01-01Z')))::text".to_owned()),
            "week" if self.week_start.is_some() => {
                Some(civil(format!("date_trunc('week', {local} + interval '1 day') - interval '1 day'")))
            }
            unit if months > 0 => {
                let shift = format!("interval '{months} months'");
                Some(civil(format!("date_trunc('{unit}', {local} - {shift}) + {shift}")))
            }
            unit => Some(civil(format!("date_trunc('{unit}', {local})"))),
        };
        let mut columns: Vec<String> = bucket.into_iter().collect();
        columns.extend(self.group_by.iter().map(|dimension| format!("{dimension}::text")));
        let groups = (1..=columns.len()).map(|at| at.to_string()).collect::<Vec<_>>().join(", ");
        let measure = |m: &usize| {
            let text = MEASURES[*m].1;
            if text.starts_with("round(sum(amount)") {
                text.replace("count(amount)", "nullif(count(amount), 0)")
            } else {
                text.to_owned()
            }
        };
        columns.extend(self.measures.iter().map(measure));
        let mut conditions: Vec<String> = self.filter.iter().cloned().collect();
        let calendar = Calendar::new(zone.parse().unwrap(), 0);
        for (text, operator) in [(&self.from, ">="), (&self.to, "<")] {
            if let Some(text) = text {
                let Some(Bound::At(us)) = parse_bound(text, &calendar, 0) else { panic!("{text} is no time") };
                conditions.push(format!("at {operator} timestamptz '2000-01-01Z' + {us} * interval '1 microsecond'"));
            }
        }
        let mut sql = format!("SELECT {} FROM pay", columns.join(", "));
        if !conditions.is_empty() {
            sql.push_str(&format!(" WHERE {}", conditions.join(" AND ")));
        }
        if !groups.is_empty() {
            sql.push_str(&format!(" GROUP BY {groups}"));
        }
        sql.push_str(" HAVING count(*) > 0");
        if self.having {
            sql.push_str(&format!(" AND {} > 1", measure(&self.measures[0])));
        }
        sql
    }
}

/// Rows of an answer or of Postgres: bucket and dimensions, then measures, all as text.
type Rows = BTreeMap<Vec<Option<String>>, Vec<Option<String>>>;

fn answered(question: &Question, body: &Value, zone: &str) -> Rows {
    let calendar = Calendar::new(zone.parse().unwrap(), 0);
    let civil = !matches!(question.granularity, "all" | "hour" | "PT6H");
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let bucket = |value: &Value| {
        let text = text(value)?;
        Some(match text.as_str() {
            "infinity" => "Infinity".to_owned(),
            "-infinity" => "-Infinity".to_owned(),
            _ => {
                let Some(Bound::At(us)) = parse_bound(&text, &Calendar::UTC, 0) else { panic!("{text} is no time") };
                if civil {
                    let (year, month, day) = calendar.local_date(us);
                    (engine::materialization::bucket::days_from_civil(year, month, day) + 10_957).to_string()
                } else {
                    (us / 1_000_000 + 10_957 * 86_400).to_string()
                }
            }
        })
    };
    let rows = body["data"].as_array().unwrap_or_else(|| panic!("no rows: {body}"));
    let row = |row: &Value| {
        let mut key: Vec<_> = Vec::new();
        if question.granularity != "all" {
            key.push(bucket(&row["time"]));
        }
        key.extend(question.group_by.iter().map(|dimension| text(&row[*dimension])));
        let values = (0..question.measures.len()).map(|at| text(&row[format!("m{at}")]).map(|text| trimmed(&text)));
        (key, values.collect())
    };
    let answered: Rows = rows.iter().map(row).collect();
    assert_eq!(answered.len(), rows.len(), "a row comes twice: {question:?} {body}");
    answered
}

/// Numbers as they compare: without zeros after the point.
fn trimmed(text: &str) -> String {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text.to_owned() }
}

async fn computed(client: &Client, question: &Question, zone: &str) -> Rows {
    let keys = usize::from(question.granularity != "all") + question.group_by.len();
    let rows = sql::rows(client, &question.sql(zone)).await;
    rows.into_iter()
        .map(|row| {
            let key = row[..keys].iter().enumerate().map(|(at, value)| {
                let numeric = at == 0 && question.granularity != "all";
                // A boolean as JSON writes it.
                let value = value.as_deref().map(|text| if numeric { trimmed(text) } else { text.to_owned() });
                value.map(|text| match text.as_str() {
                    "t" => "true".to_owned(),
                    "f" => "false".to_owned(),
                    _ => text,
                })
            });
            (key.collect(), row[keys..].iter().map(|value| value.as_deref().map(trimmed)).collect())
        })
        .collect()
}

/// Fails where a reason for not choosing an aggregate is not true of it.
fn check_reason(question: &Question, kept: &Kept, not: &Value) {
    let code = not["code"].as_str().unwrap();
    let timed = question.from.is_some() || question.to.is_some() || question.granularity != "all";
    let lacks_dimension = |used: &str| !kept.dimensions.contains(&used);
    let is_true = match code {
        "measure_not_kept" => {
            question.measures.iter().flat_map(|m| MEASURES[*m].2).any(|needed| !kept.measures.contains(needed))
        }
        "unknown_dimension" => question.group_by.iter().any(|used| lacks_dimension(used)),
        "not_a_dimension" => {
            let filter = question.filter.as_deref().unwrap_or_default();
            ["country", "merchant", "kind", "settled", "amount"]
                .iter()
                .any(|used| filter.contains(used) && lacks_dimension(used))
        }
        "filter_not_implied" => kept.filter.is_some() && question.filter.as_deref() != kept.filter,
        "no_time" => timed && kept.time.is_none(),
        // Of the other granularities and zones; that it lies inside a bucket is compared in the planner's own tests.
        "does_not_nest" => {
            let (base, own) = kept.time.unwrap_or(("all", "UTC"));
            let other_zone = question.zone.unwrap_or("UTC") != own;
            let finer = match base {
                "PT15M" => false,
                "hour" => question.granularity == "PT6H" && own != "UTC",
                _ => ["hour", "PT6H", "day", "week", "month", "quarter", "year"].contains(&question.granularity),
            };
            timed && (kept.time.is_none() || other_zone || finer)
        }
        "range_not_aligned" => question.from.is_some() || question.to.is_some(),
        other => panic!("an unknown reason {other}: {question:?} {not}"),
    };
    assert!(is_true, "{code} is not true of {kept:?} and {question:?}");
}

async fn fill(client: &Client) {
    sql::run(
        client,
        "CREATE TABLE pay (id bigint PRIMARY KEY, country text, merchant int, kind text, settled boolean,
            amount numeric(12,2), units int, at timestamptz)",
    )
    .await;
    // Around the days on which clocks change, spread over years, and what is no instant or long ago.
    sql::run(
        client,
        &format!(
            "SELECT setseed(0.4);
             INSERT INTO pay SELECT i, (ARRAY['ES', 'FR', 'GB', NULL])[1 + floor(random() * 4)::int],
                floor(random() * 8)::int, (ARRAY['fee', 'card', ''])[1 + floor(random() * 3)::int],
                (ARRAY[true, false, NULL])[1 + floor(random() * 3)::int],
                CASE WHEN random() < 0.9 THEN round((random() * 2000 - 1000)::numeric, 2) END,
                CASE WHEN random() < 0.9 THEN floor(random() * 100 - 50)::int END,
                CASE WHEN i % 97 = 0 THEN NULL
                     WHEN i % 101 = 0 THEN timestamptz 'infinity'
                     WHEN i % 103 = 0 THEN timestamptz '-infinity'
                     WHEN i % 3 = 0 THEN (ARRAY[timestamptz '2022-03-27 00:00Z', '2022-10-30 00:00Z', '2023-04-01 13:00Z',
                        '2021-10-02 15:00Z', '2023-03-26 22:00Z', '2024-03-10 03:00Z', '2022-05-08 02:00Z', '2020-11-01 04:00Z'])
                        [1 + floor(random() * 8)::int] + random() * interval '9 hours'
                     ELSE timestamptz '2019-01-01Z' + random() * interval '7 years' END
             FROM generate_series(1, {ROWS}) i;"
        ),
    )
    .await;
    // Kept apart from the zones whose clocks were not yet quarter-hours away: in UTC it is a bucket like any other.
    sql::run(client, "INSERT INTO pay VALUES (-1, 'BC', 1, 'fee', true, 44.03, 15, '0044-03-15 12:00:00+00 BC')").await;
}

#[test]
fn answers_are_postgres_and_refusals_are_true() {
    let seed = std::env::var("TIDEMARK_SEED").map_or(20_261_125, |seed| seed.parse().unwrap());
    let count = std::env::var("TIDEMARK_QUESTIONS").map_or(QUESTIONS, |count| count.parse().unwrap());
    println!("seed {seed}, {count} questions");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let postgres = sql::postgres(&[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(sql::connect(&postgres.url()));
    runtime.block_on(fill(&client));
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &postgres.url(), &["public.pay"], &[]);
    let mut kept = BTreeMap::new();
    for number in 0..AGGREGATES {
        let name = format!("a{number}");
        let one = Kept::random(&mut rng);
        server.register(&name, &one.definition(&mut rng));
        kept.insert(name, one);
    }
    let (mut equal, mut refused, mut suggested) = (0, 0, 0);
    let mut used = BTreeSet::new();
    let mut asked = 0;
    while asked < count {
        let questions: Vec<Question> = (0..BATCH).map(|_| Question::random(&mut rng)).collect();
        asked += BATCH;
        let request = json!({"queries": questions.iter().map(Question::request).collect::<Vec<_>>()});
        let answers = post(&server, &request);
        for (question, answer) in questions.iter().zip(answers["answers"].as_array().unwrap()) {
            let problem = &answer["problem"];
            if problem.is_null() {
                let name = answer["aggregate"].as_str().unwrap();
                let zone = question.zone.unwrap_or("UTC");
                if (zone, question.granularity) == ("Australia/Lord_Howe", "hour") {
                    continue;
                }
                let expected = runtime.block_on(computed(&client, question, zone));
                assert_eq!(
                    answered(question, answer, zone),
                    expected,
                    "{question:?}\n{}\n{answer}",
                    question.sql(zone)
                );
                used.insert(name.to_owned());
                equal += 1;
                continue;
            }
            refused += 1;
            match problem["code"].as_str().unwrap() {
                "no_aggregate_answers" => {
                    for not in problem["why_not"].as_array().unwrap() {
                        check_reason(question, &kept[not["aggregate"].as_str().unwrap()], not);
                    }
                    if suggested < 15 && rng.random_bool(0.05) {
                        follow_suggestion(&server, &runtime, &client, question, problem, suggested);
                        suggested += 1;
                    }
                }
                // The row of long ago lies across the edges of the zone asked for, or of those that are kept.
                "does_not_nest" => {
                    assert!(question.from.is_none(), "{question:?} {problem}");
                }
                "empty_range" => {}
                other => panic!("{other}: {question:?} {problem}"),
            }
        }
    }
    verify_all(&server, &kept);
    println!(
        "{equal} answers equal to Postgres, {refused} refused, {suggested} suggestions followed, {} aggregates used",
        used.len()
    );
    assert!(equal > asked / 4 && refused > asked / 20 && used.len() > AGGREGATES / 3);
}

/// Registers what a refusal suggests, asks again, compares, and drops it.
fn follow_suggestion(
    server: &Server,
    runtime: &tokio::runtime::Runtime,
    client: &Client,
    question: &Question,
    problem: &Value,
    number: usize,
) {
    let name = format!("suggested{number}");
    server.register(&name, &problem["suggestion"]);
    let mut request = question.request();
    // Ranges inside a bucket of the suggested granularity stay refused, with that reason.
    let answer = post(server, &json!({"queries": [request.take()]}))["answers"][0].clone();
    if answer["problem"].is_null() {
        let zone = question.zone.unwrap_or("UTC");
        assert_eq!(answer["aggregate"], name.as_str(), "{answer}");
        assert_eq!(answered(question, &answer, zone), runtime.block_on(computed(client, question, zone)));
    } else {
        let why_not = answer["problem"]["why_not"].as_array().cloned().unwrap_or_default();
        let own = why_not.iter().find(|not| not["aggregate"] == name.as_str());
        let code = own.map_or(&answer["problem"]["code"], |own| &own["code"]);
        assert!(["range_not_aligned", "does_not_nest"].contains(&code.as_str().unwrap()), "{question:?} {answer}");
    }
    server.delete(&format!("/v1/aggregates/{name}"));
}

/// The query that `verify` asks Postgres comes to the same cells, in all zones.
fn verify_all(server: &Server, kept: &BTreeMap<String, Kept>) {
    let (status, found) = server.try_post("/v1/verify", b"{}").unwrap();
    assert_eq!((status, found["skipped"].clone()), (200, json!([])), "{found}");
    for aggregate in found["aggregates"].as_array().unwrap() {
        // Where the clock is set by half an hour, as above.
        let halved = kept[aggregate["aggregate"].as_str().unwrap()].time == Some(("hour", "Australia/Lord_Howe"));
        assert!(aggregate["equal"] == true || halved, "{aggregate}");
    }
    assert!(found["cells"].as_u64().unwrap() > 10_000, "{found}");
}

fn post(server: &Server, request: &Value) -> Value {
    let (status, body) = server.try_post("/v1/query", request.to_string().as_bytes()).unwrap();
    assert_eq!(status, 200, "{request}: {body}");
    body
}
