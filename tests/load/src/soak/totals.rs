//! The aggregates, and whether every cell of every level is what Postgres' `GROUP BY` gives, once nobody writes any more.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::http::Http;
use crate::sql;
use crate::tidemark::Tidemark;

/// An aggregate, and how to ask Postgres for the same.
pub struct Total {
    /// Its name.
    pub name: &'static str,
    dimension: &'static str,
    granularity: &'static str,
    rollups: &'static [&'static str],
    summed: &'static str,
    drill_through: bool,
}

/// Those that are there from beginning to end.
pub const TOTALS: [Total; 3] = [
    Total {
        name: "by_account",
        dimension: "account",
        granularity: "day",
        rollups: &["month", "year"],
        summed: "amount",
        drill_through: false,
    },
    Total {
        name: "by_hour",
        dimension: "kind",
        granularity: "hour",
        rollups: &[],
        summed: "amount",
        drill_through: true,
    },
    Total {
        name: "by_weight",
        dimension: "kind",
        granularity: "day",
        rollups: &["month"],
        summed: "weight",
        drill_through: false,
    },
];

/// The one that comes and goes.
pub const LATE: Total = Total {
    name: "late",
    dimension: "account",
    granularity: "month",
    rollups: &[],
    summed: "amount",
    drill_through: false,
};

impl Total {
    /// To register it with.
    pub fn definition(&self) -> Value {
        json!({
            "table": "public.payments", "dimensions": [self.dimension],
            "measures": [{"name": "summed", "sum": self.summed}, {"name": "n", "count": "*"}],
            "time": {"column": "created_at", "granularity": self.granularity, "time_zone": "UTC"},
            "rollups": self.rollups, "drill_through": self.drill_through,
        })
    }

    fn levels(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.granularity).chain(self.rollups.iter().copied())
    }

    async fn in_postgres(&self, client: &Client, level: &str) -> anyhow::Result<BTreeSet<Vec<String>>> {
        let (dimension, summed) = (self.dimension, self.summed);
        let query = format!(
            r#"SELECT to_char(date_trunc('{level}', created_at AT TIME ZONE 'UTC'), 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), {dimension},
                   sum({summed}), count(*)
               FROM payments GROUP BY 1, 2"#
        );
        let rows = sql::rows(client, &query).await?;
        Ok(rows.into_iter().map(|row| self.comparable(row)).collect())
    }

    async fn in_tidemark(&self, http: &mut Http, level: &str, lsn: &str) -> anyhow::Result<BTreeSet<Vec<String>>> {
        let (name, dimension) = (self.name, self.dimension);
        let path = format!(
            "/v1/aggregates/{name}/data?granularity={level}&group_by={dimension}&limit=10000&min_lsn={lsn}&wait=25s"
        );
        let (mut rows, mut page) = (BTreeSet::new(), path.clone());
        loop {
            let answer = http.ok(&page).await?;
            for row in answer.get("data").and_then(Value::as_array).context("no data")? {
                let fields = ["time", dimension, "summed", "n"].map(|field| text(row.get(field)));
                ensure!(rows.insert(self.comparable(fields.to_vec())), "{name} by {level}: {row} comes twice");
            }
            match answer.pointer("/page/next").and_then(Value::as_str) {
                Some(next) => page = format!("{path}&cursor={next}"),
                None => return Ok(rows),
            }
        }
    }

    /// A double is written by each as it likes.
    fn comparable(&self, mut row: Vec<String>) -> Vec<String> {
        if self.summed == "weight"
            && let Some(sum) = row.get_mut(2)
            && let Ok(number) = sum.parse::<f64>()
        {
            *sum = number.to_string();
        }
        row
    }
}

fn text(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

/// Cells compared, and those that differ.
pub async fn compare(tidemark: &Tidemark, client: &Client) -> anyhow::Result<(usize, usize)> {
    let lsn = sql::end_of_log(client).await?;
    let mut http = tidemark.http().await?;
    let (mut cells, mut differing) = (0, 0);
    for total in &TOTALS {
        for level in total.levels() {
            let expected = total.in_postgres(client, level).await?;
            let answered = total.in_tidemark(&mut http, level, &lsn).await?;
            for wrong in expected.symmetric_difference(&answered).take(5) {
                let whose = if expected.contains(wrong) { "Postgres" } else { "Tidemark" };
                println!("  !! {} by {level}: {wrong:?} in {whose} alone", total.name);
            }
            cells += expected.len();
            differing += expected.symmetric_difference(&answered).count();
        }
    }
    Ok((cells, differing))
}
