//! Acknowledging where there is no upstream to tell: what is durable is only noted in the status.

use engine::change::Lsn;
use engine::source::SourceStatus;
use tokio::sync::watch;

/// Notes what is durable, until dropped.
pub(crate) async fn note_durable(durable: &mut watch::Receiver<Lsn>, status: &watch::Sender<SourceStatus>) {
    while durable.changed().await.is_ok() {
        let lsn = *durable.borrow_and_update();
        status.send_if_modified(|status| {
            status.acknowledged_lsn = lsn;
            false
        });
    }
    std::future::pending::<()>().await;
}
