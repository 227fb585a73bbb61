//! The callers' way to the sequencer, and back.
//!
//! The surprise: a request that comes into the channel at the very moment at which its receiver goes away stays there, with its reply,
//! for as long as anybody can send. Whoever waited for the reply alone would wait for ever. So the committer is watched, too:
//! it gives the last answers, and where it is gone there is none to come.

use tokio::sync::{mpsc, oneshot, watch};

use crate::sequencer::Request;

/// Asks the sequencer; cheap to clone.
#[derive(Clone)]
pub struct Requests {
    sequencer: mpsc::Sender<Request>,
    /// Never changes; its sender goes with the committer.
    committer: watch::Receiver<()>,
}

impl Requests {
    /// To a sequencer whose committer holds the other end of `committer`.
    pub fn new(sequencer: mpsc::Sender<Request>, committer: watch::Receiver<()>) -> Self {
        Requests { sequencer, committer }
    }

    /// Asks, and waits for the answer. `None` where nobody is there to give one any more.
    pub async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (reply, mut answer) = oneshot::channel();
        self.sequencer.send(request(reply)).await.ok()?;
        let mut committer = self.committer.clone();
        tokio::select! {
            biased;
            answered = &mut answer => answered.ok(),
            _ = committer.changed() => answer.try_recv().ok(),
        }
    }

    /// The same without keeping the sequencer from ending where nobody else can ask.
    pub fn downgrade(&self) -> mpsc::WeakSender<Request> {
        self.sequencer.downgrade()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    /// A request that nobody takes and nobody drops, as one that came while its receiver went away.
    #[tokio::test]
    async fn who_asks_at_the_very_end_learns_of_it() {
        let (sequencer, taken_by_nobody) = mpsc::channel(4);
        let (committer, watched) = watch::channel(());
        let requests = Requests::new(sequencer, watched);
        let asking = tokio::spawn({
            let requests = requests.clone();
            async move { requests.ask(Request::Stop).await }
        });
        while taken_by_nobody.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(!asking.is_finished());
        drop(committer);
        assert_eq!(tokio::time::timeout(Duration::from_secs(10), asking).await.unwrap().unwrap(), None);
        // Who asks later, too.
        assert_eq!(requests.ask(Request::Stop).await, None);
    }

    /// The committer answers, and ends right after it.
    #[tokio::test]
    async fn an_answer_before_the_end_is_one() {
        let (sequencer, mut taken) = mpsc::channel(4);
        let (committer, watched) = watch::channel(());
        let asking = tokio::spawn(async move { Requests::new(sequencer, watched).ask(Request::Stop).await });
        let Some(Request::Stop(reply)) = taken.recv().await else { unreachable!("it was asked to stop") };
        reply.send(()).unwrap();
        drop(committer);
        assert_eq!(asking.await.unwrap(), Some(()));
    }
}
