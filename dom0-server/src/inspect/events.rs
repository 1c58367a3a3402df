//! The question what happened. It costs the daemon's loop nothing: the task of the client that asks answers it.
//!
//! A client that follows asks for what came after the last that it was told, and its answer waits until there is something.
//! So nobody holds more than a page for one that is slow: what is not kept any more when it asks again, it is told to have
//! missed.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout_at};
use xenflow_proto::Name;

use super::{Answer, RequestError};
use crate::events::{self, Event, Events, KINDS, MAX_WAITING};

/// Events in an answer.
const PAGE: usize = 256;
/// An answer waits no longer, in milliseconds: whoever asked may be gone.
pub const MAX_WAIT_MS: u64 = 30_000;

/// Which events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// The life of the daemon and the number there after which to go on; none: from the oldest that is kept.
    pub after: Option<(u64, u64)>,
    /// Only a router's.
    pub router: Option<Name>,
    /// Only of these kinds; none: of all.
    pub kinds: Vec<&'static str>,
    /// How long the answer may wait for an event to come.
    pub wait: Duration,
}

impl Query {
    /// Understands a request.
    ///
    /// # Errors
    /// [`RequestError`] says what is wrong with it.
    pub fn parse(
        after: Option<String>,
        router: Option<&str>,
        kinds: &[String],
        wait_ms: u64,
    ) -> Result<Self, RequestError> {
        let cursor = |text: String| {
            let cursor = text.split_once(' ').and_then(|(life, number)| {
                let number: u64 = number.parse().ok()?;
                Some((life.parse().ok()?, number)).filter(|_| number < u64::MAX)
            });
            cursor.ok_or(RequestError::Cursor(text))
        };
        Ok(Self {
            after: after.map(cursor).transpose()?,
            router: router.map(str::parse).transpose()?,
            kinds: kinds.iter().map(|name| kind(name)).collect::<Result<_, _>>()?,
            wait: Duration::from_millis(wait_ms.min(MAX_WAIT_MS)),
        })
    }

    fn wants(&self, event: &Event) -> bool {
        let is_of = |router: &Name| event.about("router") == Some(router.as_str());
        self.router.as_ref().is_none_or(is_of) && (self.kinds.is_empty() || self.kinds.contains(&event.kind))
    }
}

/// A kind of event.
///
/// # Errors
/// There is none of that name.
pub fn kind(name: &str) -> Result<&'static str, RequestError> {
    events::kind(name).ok_or_else(|| RequestError::Kind(name.to_owned(), KINDS.join(", ")))
}

/// Answers, at once or when something comes.
pub async fn answer(events: &Events, query: &Query) -> Answer {
    let life = events.life();
    let is_other = query.after.is_some_and(|(of, _)| of != life);
    let mut after = query.after.filter(|_| !is_other).map(|(_, number)| number);
    let mut newest = events.newest();
    let mut place = None;
    let until = Instant::now() + query.wait;
    loop {
        newest.borrow_and_update();
        // Who begins is told what is kept; nothing before it was missed.
        let begins = after.is_none();
        let page = events.page(after.unwrap_or(0), PAGE, |event| query.wants(event));
        let missed = if begins { 0 } else { page.missed };
        if !page.events.is_empty() || missed > 0 || is_other || Instant::now() >= until {
            let all: Vec<_> = page.events.iter().map(|event| event.json(events.node())).collect();
            return Answer::Value(json!({
                "events": all, "missed": missed, "restarted": is_other, "more": all.len() == PAGE,
                "next": format!("{life} {}", page.upto),
            }));
        }
        after = Some(page.upto);
        if place.is_none() {
            let Ok(taken) = events.places().try_acquire_owned() else {
                return Answer::Refused(format!(
                    "{MAX_WAITING} clients follow the events already: end one of them"
                ));
            };
            place = Some(taken);
        }
        // It ends with the time, or with an event.
        let _ = timeout_at(until, newest.changed()).await;
    }
}
