//! The table that everything is measured on, and its aggregates.

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::sql;
use crate::tidemark::Tidemark;

/// The table, and what makes its rows: currencies of unequal weight, 10,000 merchants, times that grow with the id over
/// 30 days as real payments' do.
pub async fn create(client: &Client, expected_rows: i64) -> anyhow::Result<()> {
    sql::run(
        client,
        &format!(
            "CREATE TABLE payments (id bigint PRIMARY KEY, merchant text NOT NULL, currency char(3) NOT NULL,
                 amount numeric(14,2) NOT NULL, status text NOT NULL, created_at timestamptz NOT NULL);
             CREATE FUNCTION make(first bigint, last bigint) RETURNS SETOF payments LANGUAGE sql AS $$
                 SELECT g, 'merchant-' || ((g * 7919 + g / 97) % 10000)::text,
                     (ARRAY['EUR','EUR','EUR','USD','USD','GBP','CHF','JPY','SEK','PLN'])[1 + (g * 31 + g / 13) % 10],
                     ((g * 104729) % 1000000) / 100.0,
                     CASE WHEN g % 20 = 0 THEN 'pending' ELSE 'settled' END,
                     timestamptz '2025-12-15 00:00:00+00' + g * interval '30 days' / {expected_rows}
                 FROM generate_series(first, last) AS g $$"
        ),
    )
    .await
}

/// Rows of one transaction.
pub async fn insert(client: &Client, first: i64, last: i64) -> anyhow::Result<()> {
    sql::run(client, &format!("INSERT INTO payments SELECT * FROM make({first}, {last})")).await
}

/// The aggregates, by name.
pub fn aggregates() -> Vec<(&'static str, Value)> {
    let definition = |dimension: &str, granularity: &str, rollups: &[&str]| {
        json!({
            "table": "public.payments",
            "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
            "dimensions": [dimension],
            "time": {"column": "created_at", "granularity": granularity, "time_zone": "UTC"},
            "rollups": rollups,
        })
    };
    vec![
        ("month_currency", definition("currency", "month", &["year"])),
        ("day_merchant", definition("merchant", "day", &[])),
        ("hour_currency", definition("currency", "hour", &[])),
    ]
}

/// What the aggregates' cells must be: year, currency, amount, number.
pub async fn yearly_totals(client: &Client) -> anyhow::Result<Vec<Vec<String>>> {
    let sql = "SELECT extract(year FROM created_at AT TIME ZONE 'UTC'), currency, sum(amount), count(*)
               FROM payments GROUP BY 1, 2 ORDER BY 1, 2";
    sql::rows(client, sql).await
}

/// Exactness is not what is measured, but a wrong total would make the figures worthless.
pub async fn check(tidemark: &Tidemark, expected: &[Vec<String>]) -> anyhow::Result<()> {
    let mut http = tidemark.http().await?;
    let body = http.ok("/v1/aggregates/month_currency/data?granularity=year&group_by=currency").await?;
    let text = |row: &Value, field: &str| match row.get(field) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let rows = body.get("data").and_then(Value::as_array).context("no rows")?;
    let mut answered: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let year = text(row, "time").chars().take(4).collect();
            vec![year, text(row, "currency"), text(row, "amount"), text(row, "n")]
        })
        .collect();
    answered.sort();
    ensure!(answered == expected, "totals differ:\n{answered:?}\n{expected:?}");
    Ok(())
}
