//! Keeps what was read from files up to date: looked at every second, read again on SIGHUP whether it changed or not.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::tls::Tls;
use crate::access::Gate;

/// How long a revoked token still counts at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs until dropped.
pub(super) async fn refresh(gate: Gate, tls: Option<Tls>) {
    if gate.is_open() && tls.is_none() {
        // There is nothing to read, and SIGHUP keeps its meaning.
        return std::future::pending().await;
    }
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => Some(hangup),
        Err(error) => {
            tracing::warn!(%error, "SIGHUP cannot be listened for; changed files are found by looking");
            None
        }
    };
    let mut second = interval(LOOK_EVERY);
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let asked = tokio::select! {
            _ = second.tick() => false,
            Some(()) = async { hangup.as_mut()?.recv().await } => true,
        };
        let (gate, tls) = (gate.clone(), tls.clone());
        // Disks may be slow.
        let looked = tokio::task::spawn_blocking(move || {
            if let Some(tokens) = gate.tokens() {
                if asked { tokens.reload() } else { tokens.refresh() }
            }
            if let Some(tls) = &tls {
                if asked { tls.files().reload() } else { tls.files().refresh() }
            }
        });
        if let Err(error) = looked.await {
            tracing::error!(%error, "files could not be looked at");
        }
    }
}
