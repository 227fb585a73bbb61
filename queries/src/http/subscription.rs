//! One reader of a live answer. It is asked for the next event only when the one before was taken, so a slow reader costs
//! one answer's rows and no queue: what happened meanwhile arrives as one difference.
//!
//! ```text
//!            +--> snapshot --> (change | progress)* --+
//! connect ---+                                        +--> resync --> snapshot ...   the aggregate was built anew
//!            +--> (change | progress)*  resumed       +--> error                     it cannot answer any more
//! ```
//!
//! Every event shows one commit of ours, so a transaction of the source is in it whole or not at all. What the reader has is
//! known from the id of its last event ([`EventId`]): a position alone would not say which version of the aggregate it saw, nor
//! which range `from=-2d` was, nor what was asked: an id of another question, or of a token that sees less, begins anew.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use engine::change::Lsn;
use engine::materialization::AggregateId;
use engine::snapshot::AsOf;
use serde::Serialize;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::asking::{Answered, Asked, ask, ask_of, in_live_turn, restricted};
use super::state::AppState;
use super::told::told;
use crate::access::Caller;
use crate::api::changes::{ChangesBody, Known};
use crate::api::{AnswerView, Problem};
use crate::query::fingerprint::Fingerprint;
use crate::query::process::this_process;
use crate::query::{AggregateQuery, QueryError, QueryRequest};

/// Most rows of a live answer.
pub(super) const MAX_ROWS: usize = 10_000;
/// Time after which something is sent even though nothing happened.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How often progress is told at most.
const PROGRESS: Duration = Duration::from_secs(1);
/// How often an aggregate that is built anew is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What the reader had after an event: everything that its rows depended on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EventId {
    lsn: Lsn,
    aggregate: AggregateId,
    /// What `now` and `-2d` were relative to, microseconds since 2000-01-01 UTC.
    asked_us: i64,
    /// Numbers of aggregates mean something only to the process that they come from.
    process: u64,
    /// Fingerprint of what was asked, with what the token leaves of it.
    question: u64,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EventId { lsn, aggregate, asked_us, process, question } = self;
        write!(f, "{lsn};{};{asked_us};{process:x};{question:x}", aggregate.0)
    }
}

impl EventId {
    fn parse(text: &str) -> Option<EventId> {
        let mut parts = text.split(';');
        let id = EventId {
            lsn: parts.next()?.parse().ok()?,
            aggregate: AggregateId(parts.next()?.parse().ok()?),
            asked_us: parts.next()?.parse().ok()?,
            process: u64::from_str_radix(parts.next()?, 16).ok()?,
            question: u64::from_str_radix(parts.next()?, 16).ok()?,
        };
        parts.next().is_none().then_some(id)
    }
}

/// One thing that is sent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LiveEvent {
    /// `snapshot`, `change`, `progress`, `resync`, `error`.
    pub(super) name: &'static str,
    /// What the reader has then.
    pub(super) id: Option<String>,
    /// JSON.
    pub(super) data: String,
}

impl LiveEvent {
    fn new(name: &'static str, id: Option<EventId>, data: &impl Serialize) -> Result<LiveEvent, Problem> {
        let data = serde_json::to_string(data)
            .map_err(|_| Problem::new(500, "internal_error", "the event cannot be written"))?;
        Ok(LiveEvent { name, id: id.map(|id| id.to_string()), data })
    }
}

/// What the reader has.
struct Sent {
    aggregate: AggregateId,
    known: Known,
    /// Tag of what was looked at last; `None` where looking is reading.
    tag: Option<u64>,
    as_of: AsOf,
    asked_us: i64,
    question: u64,
}

impl Sent {
    fn id(&self) -> EventId {
        event_id(self.as_of, self.aggregate, self.asked_us, self.question)
    }
}

fn event_id(as_of: AsOf, aggregate: AggregateId, asked_us: i64, question: u64) -> EventId {
    EventId { lsn: as_of.lsn, aggregate, asked_us, process: this_process(), question }
}

/// Of a question as its token leaves it: every part of it but how long to wait for what.
fn fingerprint(restricted: QueryRequest) -> u64 {
    let question = QueryRequest { min_lsn: None, wait: None, ..restricted };
    Fingerprint::default().with(format!("{question:?}")).finish()
}

/// A live answer to one reader.
pub(super) struct Subscription {
    state: AppState,
    caller: Caller,
    name: String,
    request: QueryRequest,
    /// Fingerprint of `request`, as the token leaves it.
    question: u64,
    throttle: Duration,
    sent: Option<Sent>,
    last_event: Instant,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

impl Subscription {
    /// Checks the question, and resumes where the reader was if that position is still kept.
    pub(super) async fn open(
        state: AppState,
        caller: Caller,
        name: String,
        request: QueryRequest,
        throttle: Duration,
        since: Option<String>,
    ) -> Result<Subscription, Problem> {
        refuse_unfit(&request)?;
        let place = Arc::clone(&state.subscribers).try_acquire_owned().map_err(|_| {
            Problem::new(429, "too_many_subscribers", "too many live answers are being read").retry_after(5)
        })?;
        let asked = ask(&state, &caller, &name, &request).await?;
        let question = fingerprint(restricted(&caller, &name, &request)?);
        let mut subscription = Subscription {
            state,
            caller,
            name,
            request,
            question,
            throttle,
            sent: None,
            last_event: Instant::now(),
            ended: false,
            _place: place,
        };
        if let Some(since) = since {
            subscription.resume(&asked, &since).await?;
        }
        Ok(subscription)
    }

    /// Reads again what the reader saw last, so that only the difference is sent. Where that is not kept any more, it
    /// begins anew.
    async fn resume(&mut self, asked: &Asked, since: &str) -> Result<(), Problem> {
        let Some(EventId { lsn, aggregate, asked_us, process, question }) = EventId::parse(since) else {
            // A position alone says too little, and so does what earlier versions said beside it.
            let position = since.split(';').next().unwrap_or_default();
            return position.parse::<Lsn>().map(drop).map_err(|_| {
                Problem::new(400, "bad_event_id", "Last-Event-ID is not the id of an event")
                    .hint("send the id of the last event")
            });
        };
        if aggregate != asked.aggregate.id || process != this_process() || question != self.question {
            return Ok(());
        }
        let Some(kept) = self.state.moments.at(&asked.snapshot, lsn, &self.caller) else { return Ok(()) };
        let Some(aggregate) = kept.catalog().aggregates.get(&self.name).filter(|old| old.id == asked.aggregate.id)
        else {
            return Ok(());
        };
        let request = restricted(&self.caller, &self.name, &self.request)?;
        let query = AggregateQuery::resolve(&request, aggregate, asked_us)?;
        let then = ask_of(&self.state, &self.caller, Arc::clone(&kept), Arc::clone(aggregate), query)?;
        let short = then.is_short();
        let known = in_live_turn(&self.state, short, move || Ok(Known::of(&then.view(&whole_answer(&then)?)))).await?;
        let (aggregate, as_of) = (asked.aggregate.id, kept.as_of());
        self.sent = Some(Sent { aggregate, known, tag: None, as_of, asked_us, question });
        Ok(())
    }

    /// The next event; `None` after the last one.
    pub(super) async fn next(&mut self) -> Option<LiveEvent> {
        if self.ended {
            return None;
        }
        let stopping = self.state.stopping.clone();
        let next = tokio::select! {
            () = stopping.cancelled() => return None,
            next = self.advance() => next,
        };
        // What is sent may have waited since its reader was looked at: for its turn, or for the aggregate to be filled.
        let next = self.check().and(next);
        self.last_event = Instant::now();
        Some(next.unwrap_or_else(|problem| {
            self.ended = true;
            let problem = told(&self.caller, problem);
            LiveEvent { name: "error", id: None, data: serde_json::to_string(&problem).unwrap_or_default() }
        }))
    }

    async fn advance(&mut self) -> Result<LiveEvent, Problem> {
        let Some(sent) = &self.sent else { return self.begin().await };
        let mut seen = sent.as_of;
        loop {
            let due = self.last_event + HEARTBEAT;
            match tokio::time::timeout_at(due, self.state.engine.newer_than(seen.sequence)).await {
                Ok(newer) => newer?,
                Err(_) => return self.beat().await,
            }
            tokio::time::sleep_until(self.last_event + self.throttle).await;
            self.check()?;
            if let Some(event) = self.look().await? {
                return Ok(event);
            }
            seen = self.sent.as_ref().map_or(seen, |sent| sent.as_of);
        }
    }

    /// What is told while nothing commits. A range that goes with the clock may have moved all the same.
    async fn beat(&mut self) -> Result<LiveEvent, Problem> {
        if self.sent.as_ref().is_some_and(|sent| sent.asked_us != 0)
            && let Some(event) = self.look().await?
        {
            return Ok(event);
        }
        self.progress()
    }

    /// Refuses a reader whose token was revoked or has expired.
    fn check(&self) -> Result<(), Problem> {
        self.state.gate.check(&self.caller).map_err(Problem::from)
    }

    /// The whole answer. Waits while the aggregate is built anew, and says so again where that takes long.
    async fn begin(&mut self) -> Result<LiveEvent, Problem> {
        let asked = loop {
            self.check()?;
            match ask(&self.state, &self.caller, &self.name, &self.request).await {
                Ok(asked) => break asked,
                Err(problem) if matches!(problem.code.as_str(), "building" | "not_covered") => {
                    if self.last_event.elapsed() >= HEARTBEAT {
                        return self.resync(&problem.detail);
                    }
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(problem) => return Err(problem),
            }
        };
        asked.keep(&self.state.moments);
        let (short, question) = (asked.is_short(), self.question);
        let (event, sent) = in_live_turn(&self.state, short, move || {
            let tag = asked.tag_of_partitions()?;
            let answered = whole_answer(&asked)?;
            let view = asked.view(&answered);
            let (known, asked_us) = (Known::of(&view), asked.query.asked_us);
            let (aggregate, as_of) = (asked.aggregate.id, asked.snapshot.as_of());
            let sent = Sent { aggregate, known, tag, as_of, asked_us, question };
            Ok((LiveEvent::new("snapshot", Some(sent.id()), &view.body())?, sent))
        })
        .await?;
        self.sent = Some(sent);
        Ok(event)
    }

    /// Looks at the newest commit; `None` where nothing of the answer changed.
    async fn look(&mut self) -> Result<Option<LiveEvent>, Problem> {
        let asked = match ask(&self.state, &self.caller, &self.name, &self.request).await {
            Ok(asked) => asked,
            Err(problem) if problem.code == "building" => return self.resync(&problem.detail).map(Some),
            Err(problem) => return Err(problem),
        };
        let Some(sent) = &mut self.sent else { return Ok(None) };
        if asked.aggregate.id != sent.aggregate {
            return self.resync("the aggregate was built anew").map(Some);
        }
        let (as_of, asked_us) = (asked.snapshot.as_of(), asked.query.asked_us);
        let id = event_id(as_of, sent.aggregate, asked_us, self.question);
        // The reader may be cut off, come back, and name this position.
        asked.keep(&self.state.moments);
        let (seen, before) = (sent.tag, std::mem::take(&mut sent.known));
        let short = asked.is_short();
        let (event, known, tag) = in_live_turn(&self.state, short, move || {
            let tag = asked.tag_of_partitions()?;
            if tag.is_some() && tag == seen {
                return Ok((None, before, tag));
            }
            let answered = whole_answer(&asked)?;
            let view = asked.view(&answered);
            let changes = before.changes_to(&view);
            let event = match changes.is_empty() {
                true => None,
                false => Some(LiveEvent::new("change", Some(id), &ChangesBody::new(&view, &changes))?),
            };
            Ok((event, Known::of(&view), tag))
        })
        .await?;
        if let Some(sent) = &mut self.sent {
            (sent.known, sent.tag, sent.as_of, sent.asked_us) = (known, tag, as_of, asked_us);
        }
        match event {
            None if self.last_event.elapsed() >= PROGRESS => self.progress().map(Some),
            event => Ok(event),
        }
    }

    fn resync(&mut self, reason: &str) -> Result<LiveEvent, Problem> {
        let since = self.sent.take().map(|sent| sent.as_of.lsn.to_string());
        LiveEvent::new("resync", None, &json!({"reason": reason, "since": since}))
    }

    fn progress(&self) -> Result<LiveEvent, Problem> {
        // The source may have come to an end: then nothing newer wakes anybody.
        self.state.engine.snapshot()?;
        let as_of = self.sent.as_ref().map(|sent| sent.as_of).unwrap_or_default();
        let lag_ms = self.state.engine.status().lag_ms;
        LiveEvent::new(
            "progress",
            self.sent.as_ref().map(Sent::id),
            &json!({"as_of": AnswerView::as_of_body(as_of), "lag_ms": lag_ms}),
        )
    }
}

/// An answer that has no further pages: rows beyond its limit would come and go unseen. Of an ordered one they do, and nobody keeps
/// what further pages would be read from.
fn whole_answer(asked: &Asked) -> Result<Answered, Problem> {
    let mut answered = asked.answer()?;
    if answered.answer.truncated && asked.query.in_stored_order() {
        let detail = format!("a live answer has at most {} rows", asked.query.limit);
        return Err(Problem::new(422, "live_too_wide", detail).hint("shorten the range, or order and limit it"));
    }
    answered.answer.next = None;
    Ok(answered)
}

/// What has no place in a stream of differences.
fn refuse_unfit(request: &QueryRequest) -> Result<(), QueryError> {
    let unfit = [
        ("cursor", request.cursor.is_some()),
        ("others", request.others),
        ("share", request.share),
        ("rows", request.rows.is_some()),
        ("compare", request.compare.is_some()),
        ("layout", request.layout.is_some()),
        ("fill", request.fill.as_deref() == Some("previous")),
    ];
    match unfit.iter().find(|(_, asked)| *asked) {
        None => Ok(()),
        Some((parameter, _)) => {
            Err(QueryError::refused(parameter, "not_live", format!("a live answer has no {parameter}"))
                .hint("ask /data for it"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_id_says_what_was_seen() {
        let lsn = "1/16B6C50".parse().unwrap();
        let id = EventId { lsn, aggregate: AggregateId(7), asked_us: -5, process: u64::MAX, question: 10 };
        assert_eq!(id.to_string(), "1/16B6C50;7;-5;ffffffffffffffff;a");
        assert_eq!(EventId::parse(&id.to_string()), Some(id));
        // What versions before said is none, and begins with a position.
        for none in ["1/16B6C50;7;-5;1", "", "1/16B6C50", "1/16B6C50;7;-5;zz;a", "1/16B6C50;7;-5;1;a;", "x;7;-5;1;a"] {
            assert_eq!(EventId::parse(none), None, "{none}");
        }
    }
}
