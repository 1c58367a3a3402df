//! What happened on this host: the newest events, numbered, for `xenflow events`.
//!
//! An event is a line of the log whose `tracing` name is one of [`KINDS`], so that it is written once and read in both
//! places; what the log's filter leaves out is kept here all the same. Owns the kinds, and how many events are kept. Who
//! asks for them and how is [`crate::inspect::events`]'s.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::{Map, Value};
use tokio::sync::{Semaphore, watch};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterFn, Filtered};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;
use xenflow_proto::Name;

use crate::clock::now_ms;
use crate::journal::{Fields, MESSAGE, ROUTER};

/// Events that are kept.
pub const MAX_EVENTS: usize = 4096;
/// Bytes that they take, as far as they are longer than others.
pub const MAX_BYTES: usize = 1 << 20;
/// Bytes of a sentence; the rest is left out.
const MAX_TEXT: usize = 512;
/// Bytes of what an event is about.
const MAX_SUBJECT: usize = 128;
/// Clients that may wait for events at a time.
pub const MAX_WAITING: usize = 8;

/// What events there are, in the order of their names.
pub const KINDS: [&str; 39] = [
    "bridge-repaired",
    "certificate-renewed",
    "certificates-read",
    "client-dropped",
    "daemon-stops",
    "daemon-up",
    "database-lost",
    "database-up",
    "desired-changed",
    "desired-reached",
    "fastpath-off",
    "fastpath-on",
    "guest-refused",
    "limit-reached",
    "location-given-up",
    "location-taken",
    "move-overdue",
    "move-step",
    "nudge",
    "port-bound",
    "port-dark",
    "port-unbound",
    "problem",
    "problem-gone",
    "restore-armed",
    "restore-disarmed",
    "router-stale",
    "router-stance",
    "router-withdrawn",
    "session-lost",
    "session-resumed",
    "session-up",
    "snapshot-complete",
    "standby-ready",
    "switch-lost",
    "switch-up",
    "tables-repaired",
    "vif-fenced",
    "vif-unfenced",
];

/// What an event may be about; the other values of its line are part of the sentence.
const SUBJECTS: [&str; 9] =
    ["router", "vif", "access", "port", "session", "segment", "mac", "database", "migration"];
/// Values that say why.
const REASONS: [&str; 2] = ["reason", "error"];

/// The kind that a name is of.
#[must_use]
pub fn kind(name: &str) -> Option<&'static str> {
    KINDS.iter().find(|kind| **kind == name).copied()
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// From 1, without a gap, anew with every life of the daemon.
    pub number: u64,
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// One of [`KINDS`].
    pub kind: &'static str,
    /// `info`, `warning`, `error`, or `debug` for what happens in the ordinary course of things.
    pub severity: &'static str,
    /// What it is about.
    pub subject: Vec<(&'static str, String)>,
    /// A sentence.
    pub text: String,
}

impl Event {
    fn new(metadata: &Metadata<'_>, kind: &'static str, fields: &Fields) -> Self {
        let plain = |value: &str, most: usize| {
            let value = value.replace(ROUTER, "");
            let value = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
            value[..value.floor_char_boundary(most)].to_owned()
        };
        let of = |name: &str| fields.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value);
        let mut text = of(MESSAGE).cloned().unwrap_or_default();
        for reason in REASONS.iter().filter_map(|name| of(name)) {
            let _ = write!(text, ": {reason}");
        }
        let is_more = |name: &str| name != MESSAGE && !SUBJECTS.contains(&name) && !REASONS.contains(&name);
        let more = fields.0.iter().filter(|(name, _)| is_more(name));
        let more: Vec<String> = more.map(|(name, value)| format!("{name} {value}")).collect();
        if !more.is_empty() {
            let _ = write!(text, " ({})", more.join(", "));
        }
        let subject =
            SUBJECTS.iter().filter_map(|name| Some((*name, plain(of(name)?, MAX_SUBJECT)))).collect();
        let severity = severity(*metadata.level());
        Self { number: 0, time_ms: now_ms(), kind, severity, subject, text: plain(&text, MAX_TEXT) }
    }

    /// What it is about, if that is of such a kind.
    #[must_use]
    pub fn about(&self, kind: &str) -> Option<&str> {
        self.subject.iter().find(|(known, _)| *known == kind).map(|(_, name)| name.as_str())
    }

    /// As an object; what it is about are members of it.
    #[must_use]
    pub fn json(&self, node: &str) -> Value {
        let Self { number, time_ms, kind, severity, subject, text } = self;
        let mut all = Map::new();
        all.insert("number".to_owned(), (*number).into());
        all.insert("time_ms".to_owned(), (*time_ms).into());
        all.insert("node".to_owned(), node.into());
        all.insert("kind".to_owned(), (*kind).into());
        all.insert("severity".to_owned(), (*severity).into());
        all.extend(subject.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())));
        all.insert("text".to_owned(), text.as_str().into());
        Value::Object(all)
    }

    fn bytes(&self) -> usize {
        let subject: usize =
            self.subject.iter().map(|(_, value)| size_of::<(&str, String)>() + value.len()).sum();
        size_of::<Self>() + subject + self.text.len()
    }
}

fn severity(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG | Level::TRACE => "debug",
    }
}

/// The newest events.
#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    last: u64,
}

impl Ring {
    fn push(&mut self, event: Event) -> u64 {
        self.last += 1;
        self.bytes += event.bytes();
        self.events.push_back(Arc::new(Event { number: self.last, ..event }));
        while self.events.len() > MAX_EVENTS || self.bytes > MAX_BYTES {
            let Some(gone) = self.events.pop_front() else { break };
            self.bytes -= gone.bytes();
        }
        self.last
    }

    fn page(&self, after: u64, most: usize, is_wanted: impl Fn(&Event) -> bool) -> Page {
        let first = self.last + 1 - self.events.len() as u64;
        let mut page = Page { missed: first.saturating_sub(after + 1), events: Vec::new(), upto: self.last };
        let skip = usize::try_from((after + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        for event in self.events.iter().skip(skip).filter(|event| is_wanted(event)) {
            if page.events.len() == most {
                page.upto = page.events.last().map_or(after, |last| last.number);
                break;
            }
            page.events.push(Arc::clone(event));
        }
        page
    }
}

/// Some events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// So many before these are not kept any more.
    pub missed: u64,
    /// In the order of their numbers.
    pub events: Vec<Arc<Event>>,
    /// All that is wanted up to this number is here: go on after it.
    pub upto: u64,
}

/// The newest events of this daemon, shared by who writes and who reads them.
#[derive(Debug, Clone)]
pub struct Events(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Of this life of the daemon, so that nobody takes its numbers for those of another.
    life: u64,
    node: OnceLock<String>,
    ring: Mutex<Ring>,
    last: watch::Sender<u64>,
    places: Arc<Semaphore>,
}

impl Default for Events {
    fn default() -> Self {
        let shared = Shared {
            life: now_ms(),
            node: OnceLock::new(),
            ring: Mutex::default(),
            last: watch::Sender::new(0),
            places: Arc::new(Semaphore::new(MAX_WAITING)),
        };
        Self(Arc::new(shared))
    }
}

impl Events {
    /// They are of this node.
    pub fn at(&self, node: &Name) {
        let _ = self.0.node.set(node.to_string());
    }

    /// The node's name; empty before it is known.
    #[must_use]
    pub fn node(&self) -> &str {
        self.0.node.get().map_or("", String::as_str)
    }

    /// A number that another life of the daemon does not have: when this one began, in milliseconds.
    #[must_use]
    pub fn life(&self) -> u64 {
        self.0.life
    }

    /// At most so many of those after a number that somebody wants.
    pub fn page(&self, after: u64, most: usize, is_wanted: impl Fn(&Event) -> bool) -> Page {
        self.ring().page(after, most, is_wanted)
    }

    /// The number of the newest event, whenever there is one.
    #[must_use]
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.0.last.subscribe()
    }

    /// Places for clients that wait.
    pub(crate) fn places(&self) -> Arc<Semaphore> {
        Arc::clone(&self.0.places)
    }

    /// What keeps the events of a subscriber.
    #[must_use]
    pub fn layer<S>(&self) -> Filtered<Keeper, FilterFn, S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let is_event = |metadata: &Metadata<'_>| metadata.is_event() && kind(metadata.name()).is_some();
        let filter: fn(&Metadata<'_>) -> bool = is_event;
        Keeper(self.clone()).with_filter(FilterFn::new(filter).with_max_level_hint(Level::DEBUG))
    }

    fn keep(&self, event: Event) {
        let last = self.ring().push(event);
        self.0.last.send_replace(last);
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Events::layer`].
#[derive(Debug)]
pub struct Keeper(Events);

impl<S: Subscriber> Layer<S> for Keeper {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let Some(kind) = kind(event.metadata().name()) else { return };
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.0.keep(Event::new(event.metadata(), kind, &fields));
    }
}

#[cfg(test)]
mod tests;
