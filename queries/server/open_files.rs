//! How many files we may have open. Connections are files too: a flood of them must not be what keeps the store from opening
//! its own, because a write that fails halts everything. So the limit is raised as far as it goes, and connections get half.

use queries::http::ConnectionLimits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit, and holds connections to their half of it.
pub fn fit(limits: ConnectionLimits) -> ConnectionLimits {
    let limit = getrlimit(Resource::Nofile);
    let raised = match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be raised");
            limit.current
        }
    };
    let Some(half) = raised.map(|files| usize::try_from(files / 2).unwrap_or(usize::MAX).max(1)) else { return limits };
    if half < limits.total {
        tracing::warn!(
            "at most {half} connections in place of {}: {} files may be open; raise it with ulimit -n or LimitNOFILE",
            limits.total,
            raised.unwrap_or_default()
        );
    }
    ConnectionLimits { total: limits.total.min(half), ..limits }
}
