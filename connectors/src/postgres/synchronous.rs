//! Whether commits would wait for us: to Postgres every walsender is a standby, whatever it sends.
//!
//! The surprise: `synchronous_standby_names = '*'` names our session, too, and as the first to connect it is the one that commits wait
//! for. Each would wait until what it wrote is durable here; and the first row of a table in a session for ever, as we wait
//! until its commit is visible to others, and it is visible once we have answered. So no stream is begun where the setting
//! names us, and one that runs is ended, until somebody names the standbys.

use engine::source::SourceError;
use tokio_postgres::Client;

use super::error::{Failure, source_error};

/// What is wrong, and the statement that repairs it; `None` where commits do not wait for us.
pub(super) async fn trouble(client: &Client) -> Result<Option<SourceError>, Failure> {
    // All our sessions have the same name.
    let settings = "SELECT current_setting('synchronous_standby_names'), current_setting('application_name')";
    let row = client.query_one(settings, &[]).await?;
    let (names, application): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let what = format!(
        "synchronous_standby_names = '{names}' makes commits wait for tidemark, too: to Postgres it is one more standby"
    );
    Ok(name(&names, &application).then(|| source_error("synchronous_standby", what, REPAIR)))
}

const REPAIR: &str = "name the standbys themselves: ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (standby1, standby2)'; \
                      SELECT pg_reload_conf();";

/// Fails where commits would wait for us. It may be over the next time.
pub(super) async fn refuse(client: &Client) -> Result<(), Failure> {
    match trouble(client).await? {
        None => Ok(()),
        Some(trouble) => Err(Failure::Transient(trouble.to_string())),
    }
}

/// Whether a list such as `s1, "s 2"`, `2 (s1, s2)`, `FIRST 1 (*)` or `ANY 1 (s1)` has an application's name, as Postgres compares
/// them: without regard to case (`SyncRepGetStandbyPriority`).
fn name(list: &str, application: &str) -> bool {
    let listed = list.split_once('(').map_or(list, |(_, rest)| rest.trim_end().trim_end_matches(')'));
    listed
        .split(',')
        .map(|entry| entry.trim().trim_matches('"'))
        .any(|entry| entry == "*" || entry.eq_ignore_ascii_case(application))
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn a_list_of_standbys_that_has_our_name() {
        let ours = "tidemark/tidemark_1a2b";
        for list in ["*", "FIRST 1 (*)", "ANY 2 (s1, *)", "1 ( s1 ,\"Tidemark/TIDEMARK_1A2B\" )", "s1, \"*\""] {
            assert!(name(list, ours), "{list}");
        }
        for list in ["", "s1", "FIRST 2 (s1, s2)", "ANY 1 (\"s 1\", tidemark)", "s1, s2"] {
            assert!(!name(list, ours), "{list}");
        }
    }
}
