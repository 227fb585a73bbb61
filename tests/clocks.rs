//! Clock readings without a zone: each is the instant that Postgres takes it for, also where the clock shows it twice or skips it,
//! in every zone that Postgres has, and by the rules that go on after 2037; cells that were filled otherwise are not served.
//!
//! `TIDEMARK_ZONES=all cargo test --release clocks` compares years to 2110 of all zones; for a Postgres with as new a zone database.

use std::fmt::Write;

use engine::materialization::Granularity;
use engine::materialization::bucket::{Calendar, days_from_civil};
use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::sql;
use crate::support::tamper::{Tamper, add_one};

const MINUTE_US: i64 = 60_000_000;
const DAY_US: i64 = 24 * 60 * MINUTE_US;
/// What Postgres takes for a number of hours in a statement; no zone of ours.
const ABBREVIATIONS: [&str; 7] = ["CET", "EET", "EST", "HST", "MET", "MST", "WET"];
/// Whose clocks were set back over midnight from after it: the day has begun then, and for `date_trunc` it has not.
const TWICE_OVER_MIDNIGHT: [&str; 5] =
    ["America/Goose_Bay", "America/Moncton", "America/St_Johns", "Canada/Newfoundland", "Antarctica/Casey"];
/// Whose rules were others in some year since 2010, but for the first two, and have been the same for long.
const LATER: [&str; 5] = ["Europe/Madrid", "America/New_York", "Europe/Moscow", "Europe/Istanbul", "America/Cancun"];
/// Zones, and the days around which readings are compared: an hour, half an hour, another standard time without summer time, a
/// midnight shown twice, a day that never was.
const SET: [(&str, &[&str]); 7] = [
    ("Europe/Madrid", &["2026-03-29", "2026-10-25"]),
    ("America/New_York", &["2026-03-08", "2026-11-01"]),
    ("Australia/Lord_Howe", &["2026-04-05", "2026-10-04"]),
    ("Europe/Moscow", &["2014-10-26"]),
    ("Asia/Pyongyang", &["2015-08-15", "2018-05-05"]),
    ("America/Havana", &["2026-03-08", "2026-11-01"]),
    ("Pacific/Apia", &["2011-12-30"]),
];

/// Readings before, at, within and after every change of a clock in these years, and one every ten days.
fn readings_around_changes(calendar: &Calendar, [from, to]: [i64; 2]) -> Vec<i64> {
    let mut readings = Vec::new();
    for day in days_from_civil(from, 1, 1)..days_from_civil(to, 1, 1) {
        let (at, next) = (day * DAY_US, (day + 1) * DAY_US);
        readings.extend((day % 10 == 0).then_some(at));
        if calendar.offset_s(at) != calendar.offset_s(next) {
            let (mut before, mut change) = (at, next);
            while change - before > 1 {
                let middle = before + (change - before) / 2;
                if calendar.offset_s(middle) == calendar.offset_s(at) { before = middle } else { change = middle }
            }
            for offset_s in [calendar.offset_s(before), calendar.offset_s(change)] {
                let shown = change + offset_s * 1_000_000;
                readings.extend([-61, -20, 0, 20, 61].map(|minutes| shown + minutes * MINUTE_US));
                readings.push(shown - 1);
            }
        }
    }
    readings
}

#[test]
fn in_every_zone_a_reading_and_its_day_are_those_of_postgres() {
    let database = Database::start(&[], "");
    let all = std::env::var("TIDEMARK_ZONES").is_ok_and(|zones| zones == "all");
    let names = database.value("SELECT string_agg(name, ' ') FROM pg_timezone_names");
    let (mut zones, mut compared, mut over_midnight) = (0, 0, 0);
    let client = database.runtime.block_on(sql::connect(&database.url()));
    for name in names.split(' ').filter(|name| !ABBREVIATIONS.contains(name)) {
        let Ok(zone) = name.parse() else { continue };
        let calendar = Calendar::new(zone, 0);
        let mut readings = readings_around_changes(&calendar, [1995, 2021]);
        if all || LATER.contains(&name) {
            readings.extend(readings_around_changes(&calendar, [2036, 2110]));
        }
        let mut list = String::new();
        readings.iter().for_each(|reading| write!(list, "{reading},").unwrap());
        let us = |expression: &str| format!("(extract(epoch FROM {expression}) * 1000000 - 946684800000000)::int8");
        let query = format!(
            "SELECT {}, {} FROM (
               SELECT at, (timestamp '2000-01-01' + reading * interval '1 microsecond') AT TIME ZONE '{name}' AS t
               FROM unnest('{{{}}}'::int8[]) WITH ORDINALITY AS r(reading, at)) AS g ORDER BY at",
            us("t"),
            us(&format!("date_trunc('day', t, '{name}')")),
            list.trim_end_matches(',')
        );
        let rows = database.runtime.block_on(sql::rows(&client, &query));
        assert_eq!(rows.len(), readings.len());
        for (reading, row) in readings.iter().zip(rows) {
            let [instant, day] = [0, 1].map(|column| row[column].as_ref().unwrap().parse::<i64>().unwrap());
            assert_eq!(calendar.instant_of_reading(*reading), instant, "{name}: {reading}");
            // Postgres may name a day by an instant within it.
            let [ours, named] = [instant, day].map(|at| calendar.interval(Granularity::Day, at).start);
            assert!(ours == named || TWICE_OVER_MIDNIGHT.contains(&name), "{name}: {reading}: {ours} {named}");
            over_midnight += usize::from(ours != named);
        }
        zones += 1;
        compared += readings.len();
    }
    println!("{compared} readings of {zones} zones");
    assert!(zones > 400 && compared > 50_000 && over_midnight > 0, "{zones} {compared} {over_midnight}");
}

/// Every five minutes of the days around, read by each of the clocks.
fn readings() -> String {
    let mut days: Vec<&str> = SET.iter().flat_map(|(_, days)| days.iter().copied()).collect();
    days.sort_unstable();
    days.dedup();
    let days = days.join("', '");
    format!(
        "SELECT row_number() OVER (), day + i * interval '5 minutes', 'g' || i % 3
         FROM unnest(ARRAY['{days}']::date[]) AS day, generate_series(-288, 575) AS i"
    )
}

fn counted(granularity: &str, zone: &str, assumed: &str) -> Value {
    json!({
        "table": "readings", "dimensions": ["kind"], "measures": [{"name": "n", "count": "*"}, {"name": "ids", "sum": "id"}],
        "time": {"column": "at", "granularity": granularity, "time_zone": zone, "assume_time_zone": assumed},
    })
}

fn verify(server: &Server, request: &Value) -> Value {
    let (status, found) = server.try_post("/v1/verify", request.to_string().as_bytes()).unwrap();
    assert_eq!(status, 200, "{request}: {found}");
    found
}

#[test]
fn every_cell_of_local_times_equals_postgres_where_clocks_are_set() {
    let database = Database::start(
        &[],
        &format!(
            "CREATE TABLE readings (id bigint PRIMARY KEY, at timestamp, kind text);
             CREATE TABLE waiting AS SELECT * FROM (SELECT * FROM ({}) AS r(id, at, kind)) AS r;
             INSERT INTO readings SELECT * FROM waiting WHERE id % 3 > 0;
             INSERT INTO readings VALUES (-1, NULL, 'g1'), (-2, 'infinity', 'g1'), (-3, '-infinity', 'g1')",
            readings()
        ),
    );
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["readings"], &[]);
    for (number, (zone, _)) in SET.iter().enumerate() {
        server.register(&format!("quarters{number}"), &counted("PT15M", "UTC", zone));
        server.register(&format!("days{number}"), &counted("day", zone, zone));
        // Where the clock is set by half an hour, hours are not comparable.
        if !["Australia/Lord_Howe", "Asia/Pyongyang"].contains(zone) {
            server.register(&format!("hours{number}"), &counted("hour", zone, zone));
        }
    }
    let equal = |against: &str| {
        let found = verify(&server, &json!({"against": against}));
        assert_eq!((&found["equal"], &found["skipped"]), (&json!(true), &json!([])), "{found}");
        assert!(found["cells"].as_u64().unwrap() > 10_000, "{found}");
    };
    equal("postgres");
    database.sql(
        "INSERT INTO readings SELECT * FROM waiting WHERE id % 3 = 0;
         UPDATE readings SET at = at + interval '10 minutes' WHERE id % 7 = 0;
         UPDATE readings SET kind = 'g9' WHERE id % 11 = 0;
         DELETE FROM readings WHERE id % 5 = 0",
    );
    equal("postgres");
    equal("rows");
}

/// What a Tidemark of before wrote: a record that does not say how clocks were read, and another cell than now.
fn as_before(data: &std::path::Path, aggregate: u32) {
    let tamper = Tamper::open(data);
    tamper.forget_how_clocks_were_read(aggregate);
    let (stored, mut cell) = tamper.cells(aggregate).swap_remove(0);
    add_one(&mut cell, 1);
    tamper.put_in_balance(&stored, &cell);
}

#[test]
fn cells_of_another_reading_are_filled_anew_and_never_served() {
    const WHY: &str = "filled anew: its clock";
    let database = Database::start(
        &[],
        &format!(
            "CREATE TABLE readings (id bigint PRIMARY KEY, at timestamp, kind text);
             INSERT INTO readings {};
             INSERT INTO readings VALUES (-1, '2040-07-01 05:30', 'g0')",
            readings()
        ),
    );
    let data = tempfile::tempdir().unwrap();
    let start = || Server::start(data.path(), &database.url(), &["readings"], &["--scrub-cells", "0"]);
    let server = start();
    server.register("madrid", &counted("hour", "Europe/Madrid", "Europe/Madrid"));
    server.register("utc", &counted("hour", "UTC", "UTC"));
    // By the days of a zone; one has a row of a year after 2037, when rules were taken for others.
    let mut past = counted("day", "America/Mexico_City", "UTC");
    server.register("future", &past);
    past["where"] = json!("at < '2030-01-01'");
    server.register("past", &past);
    let answer = |server: &Server| server.get_ok("/v1/aggregates/madrid/data?limit=100000")["data"].clone();
    let right = answer(&server);
    assert!(server.terminate().success());
    (1..=4).for_each(|aggregate| as_before(data.path(), aggregate));

    let server = start();
    let told: Vec<&String> = server.said.iter().filter(|line| line.contains(WHY)).collect();
    assert!(told.len() == 2 && told[0].contains("madrid") && told[1].contains("future"), "{told:?}");
    assert_eq!(answer(&server), right);
    server.get_ok("/v1/aggregates/future/data");
    let differing = |name: &str| verify(&server, &json!({"aggregate": name}))["differing"].clone();
    assert_eq!(["madrid", "future"].map(differing), [0, 0]);
    // Whose cells cannot be others were left alone, and the cell that was altered is still wrong.
    assert_eq!(["utc", "past"].map(differing), [1, 1]);
    assert!(server.terminate().success());
    assert_eq!(Tamper::open(data.path()).cells(1), [], "the cells of before are gone");

    let server = start();
    assert_eq!(answer(&server), right);
    assert!(!server.said.iter().any(|line| line.contains(WHY)), "once is enough");
    assert!(server.terminate().success());
}
