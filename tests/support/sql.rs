//! A throwaway Postgres: SQL in, rows of text out.

use connectors::postgres::throwaway::ThrowawayPostgres;
use engine::change::Lsn;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// A server that ends with the test.
pub fn postgres(settings: &[&str]) -> ThrowawayPostgres {
    ThrowawayPostgres::start(settings).unwrap_or_else(|error| panic!("{error}"))
}

/// A session.
pub async fn connect(url: &str) -> Client {
    try_connect(url).await.unwrap()
}

/// A session, or why there is none.
pub async fn try_connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

/// A session with a server that may be restarting; at most a minute.
pub async fn connect_again(url: &str) -> Client {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        match try_connect(url).await {
            Ok(client) => return client,
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error:?}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// All rows of a query; NULL is `None`.
pub async fn rows(client: &Client, sql: &str) -> Vec<Vec<Option<String>>> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    messages
        .into_iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
            }
            _ => None,
        })
        .collect()
}

/// The one value of a query.
pub async fn value(client: &Client, sql: &str) -> String {
    rows(client, sql).await.remove(0).remove(0).unwrap_or_default()
}

/// Statements without a result.
pub async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// The end of the log that is written: what was committed before is at or below it, where commits are synchronous. The end
/// of what is inserted may be behind the header of a page, where nothing ends until more is written.
pub async fn current_lsn(client: &Client) -> Lsn {
    value(client, "SELECT pg_current_wal_lsn()").await.parse().unwrap()
}

/// Drops a replication slot once nobody reads from it any more.
pub async fn drop_slot(client: &Client, slot: &str) {
    let free = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}' AND NOT active"
    );
    let left = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'");
    for _ in 0..500 {
        let _ = client.batch_execute(&free).await;
        if value(client, &left).await == "0" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the slot {slot} is still in use");
}
