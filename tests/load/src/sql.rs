//! SQL in, text out.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// A session.
pub async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

/// All rows of a query; NULL is empty.
pub async fn rows(client: &Client, sql: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let messages = client.simple_query(sql).await.with_context(|| sql.to_owned())?;
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect())
        }
        _ => None,
    };
    Ok(messages.into_iter().filter_map(row).collect())
}

/// The one value of a query.
pub async fn value(client: &Client, sql: &str) -> anyhow::Result<String> {
    Ok(rows(client, sql).await?.into_iter().flatten().next().unwrap_or_default())
}

/// Statements without a result.
pub async fn run(client: &Client, sql: &str) -> anyhow::Result<()> {
    client.batch_execute(sql).await.with_context(|| sql.to_owned())
}

/// The end of the log: whatever was committed before is at or below it.
pub async fn end_of_log(client: &Client) -> anyhow::Result<String> {
    value(client, "SELECT pg_current_wal_lsn()").await
}

/// A position as a number.
pub fn position(lsn: &str) -> anyhow::Result<u64> {
    let (high, low) = lsn.split_once('/').with_context(|| format!("{lsn:?} is not a position"))?;
    Ok((u64::from_str_radix(high, 16)? << 32) | u64::from_str_radix(low, 16)?)
}

/// Drops a slot once nobody reads from it any more.
pub async fn drop_slot(client: &Client, slot: &str) -> anyhow::Result<()> {
    let idle = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}' AND NOT active"
    );
    let left = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'");
    for _ in 0..500 {
        let _ = client.batch_execute(&idle).await;
        if value(client, &left).await? == "0" {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("the slot {slot} is still in use")
}

/// The second slot stands where the first one stands.
pub async fn copy_slot(client: &Client, from: &str, to: &str) -> anyhow::Result<()> {
    run(client, &format!("SELECT pg_copy_logical_replication_slot('{from}', '{to}')")).await
}
