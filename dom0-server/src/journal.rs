//! Log lines for systemd's journal, with each value as a field: `journalctl -u xenflow-dom0 XENFLOW_ROUTER=r1`.
//!
//! Owns how a line becomes an entry (`systemd.journal-fields(7)`, and the "native protocol" of systemd's
//! documentation); which lines there are is everybody else's. The text of an entry says all that a line on stderr
//! says. The daemon never waits for the journal: what it does not take is counted, and the next entry says so.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::chain::Chain;
use crate::events;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Longer values are cut: an entry is one datagram.
const MAX_VALUE: usize = 8192;
/// What a field's name begins with, so that it is none of the journal's own.
const PREFIX: &str = "XENFLOW_";
/// Routers are named so in certificates; in the journal by their names alone.
pub(crate) const ROUTER: &str = "xenflow://router/";

/// A layer that writes to the journal.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    /// Lines that it did not take since the last that it took.
    lost: AtomicU64,
}

impl Journal {
    /// The journal, if it is what this process's stderr goes to, and listens.
    #[must_use]
    pub fn behind_stderr() -> Option<Self> {
        let stream = std::env::var("JOURNAL_STREAM").ok()?;
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned().ok()?).metadata().ok()?;
        // Whoever inherited the variable, but has another stderr, is meant to be read there.
        (stream == format!("{}:{}", stderr.dev(), stderr.ino())).then_some(())?;
        Self::at(Path::new(SOCKET)).ok()
    }

    /// One that listens there.
    fn at(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, lost: AtomicU64::new(0) })
    }

    fn write(&self, metadata: &Metadata<'_>, fields: &Fields) {
        let lost = self.lost.load(Ordering::Relaxed);
        let mut text = fields.text();
        if lost > 0 {
            let _ = write!(text, " (the journal did not take {lost} lines before this one)");
        }
        let mut entry = Vec::new();
        put(&mut entry, "MESSAGE", &text);
        put(&mut entry, "PRIORITY", priority(*metadata.level()));
        put(&mut entry, "SYSLOG_IDENTIFIER", env!("CARGO_PKG_NAME").trim_end_matches("-server"));
        put(&mut entry, "XENFLOW_TARGET", metadata.target());
        if let Some(kind) = events::kind(metadata.name()) {
            put(&mut entry, "XENFLOW_EVENT", kind);
        }
        for (name, value) in fields.0.iter().filter(|(name, _)| *name != MESSAGE) {
            put(
                &mut entry,
                &key(name),
                value.strip_prefix(ROUTER).filter(|_| *name == "router").unwrap_or(value),
            );
        }
        match self.socket.send(&entry) {
            Ok(_) => self.lost.fetch_sub(lost, Ordering::Relaxed),
            Err(_) => self.lost.fetch_add(1, Ordering::Relaxed),
        };
    }
}

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                fields.inherit(of_span);
            }
        }
        self.write(event.metadata(), &fields);
    }
}

/// The field that tracing keeps a line's words in.
pub(crate) const MESSAGE: &str = "message";

/// A line's values by name.
#[derive(Debug, Default)]
pub(crate) struct Fields(pub(crate) Vec<(&'static str, String)>);

impl Fields {
    /// What is around a line, unless it says better.
    fn inherit(&mut self, outer: &Self) {
        for (name, value) in &outer.0 {
            if !self.0.iter().any(|(known, _)| known == name) {
                self.0.push((name, value.clone()));
            }
        }
    }

    /// As on stderr: the words, then the values.
    fn text(&self) -> String {
        let mut text: String = self
            .0
            .iter()
            .find(|(name, _)| *name == MESSAGE)
            .map(|(_, words)| words.clone())
            .unwrap_or_default();
        for (name, value) in self.0.iter().filter(|(name, _)| *name != MESSAGE) {
            let _ = write!(text, " {name}={value}");
        }
        text
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.0.push((field.name(), Chain(value).to_string()));
    }
}

/// Of syslog(3): an operator's `journalctl -p warning` shows what is worth a look.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

/// A name the journal takes: capitals, digits and underscores, at most 64.
fn key(name: &str) -> String {
    let letters = name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    PREFIX.chars().chain(letters).take(64).collect()
}

/// With its length before it, so that a value may hold anything.
fn put(entry: &mut Vec<u8>, key: &str, value: &str) {
    let value = &value[..value.floor_char_boundary(MAX_VALUE)];
    entry.extend(key.as_bytes());
    entry.push(b'\n');
    entry.extend((value.len() as u64).to_le_bytes());
    entry.extend(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tracing_subscriber::prelude::*;

    use super::*;

    /// A journal in a directory of its own.
    struct Reader(UnixDatagram, std::path::PathBuf);

    impl Reader {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("xenflow-journal-{}-{name}", std::process::id()));
            let socket = UnixDatagram::bind(&path).unwrap();
            socket.set_nonblocking(true).unwrap();
            Self(socket, path)
        }

        /// The next entry, read as the journal reads it.
        fn entry(&self) -> BTreeMap<String, String> {
            let mut buffer = vec![0; 1 << 20];
            let len = self.0.recv(&mut buffer).unwrap();
            let (mut rest, mut fields) = (&buffer[..len], BTreeMap::new());
            while !rest.is_empty() {
                let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
                let name = String::from_utf8(rest[..end].to_vec()).unwrap();
                rest = &rest[end + 1..];
                let len = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
                let value = String::from_utf8(rest[8..8 + len].to_vec()).unwrap();
                assert_eq!(rest[8 + len], b'\n');
                rest = &rest[9 + len..];
                assert_eq!(fields.insert(name, value), None, "once each");
            }
            fields
        }
    }

    impl Drop for Reader {
        fn drop(&mut self) {
            std::fs::remove_file(&self.1).unwrap();
        }
    }

    fn logging(reader: &Reader) -> tracing::subscriber::DefaultGuard {
        let journal = Journal::at(&reader.1).unwrap();
        // Not by `set_default`, which would turn the records of `log` on for all tests.
        tracing::subscriber::set_default(tracing_subscriber::registry().with(journal))
    }

    #[test]
    fn values_are_fields_and_stand_in_the_text_too() {
        let reader = Reader::new("fields");
        let _logging = logging(&reader);
        let router = "xenflow://router/r1";
        tracing::warn!(name: "session-lost", session = 7, %router, "session ended");
        let entry = reader.entry();
        let of = |name: &str| entry.get(name).map(String::as_str);
        assert_eq!(of("MESSAGE"), Some("session ended session=7 router=xenflow://router/r1"));
        assert_eq!(of("PRIORITY"), Some("4"));
        assert_eq!(of("SYSLOG_IDENTIFIER"), Some("xenflow-dom0"));
        assert_eq!(of("XENFLOW_ROUTER"), Some("r1"), "as an operator names it");
        assert_eq!(of("XENFLOW_SESSION"), Some("7"));
        assert_eq!(of("XENFLOW_EVENT"), Some("session-lost"), "as xenflow events has it");
        assert_eq!(of("XENFLOW_TARGET"), Some(module_path!()));
    }

    #[test]
    fn what_is_around_a_line_is_its_own_unless_it_says_better() {
        let reader = Reader::new("spans");
        let _logging = logging(&reader);
        let _outer = tracing::info_span!("migration", migration = "m1", router = "r1").entered();
        let inner = tracing::info_span!("guest", session = tracing::field::Empty).entered();
        inner.record("session", 3);
        tracing::info!(router = "r2", "moved");
        let entry = reader.entry();
        assert_eq!(entry["MESSAGE"], "moved router=r2 session=3 migration=m1");
        assert_eq!((entry["XENFLOW_ROUTER"].as_str(), entry["XENFLOW_MIGRATION"].as_str()), ("r2", "m1"));
    }

    #[test]
    fn a_value_may_hold_anything_and_its_causes_and_is_cut() {
        let reader = Reader::new("values");
        let _logging = logging(&reader);
        let error = io::Error::other("no\nPRIORITY=0");
        tracing::error!(error = &error as &dyn std::error::Error, "refused");
        let entry = reader.entry();
        assert_eq!((entry["XENFLOW_ERROR"].as_str(), entry["PRIORITY"].as_str()), ("no\nPRIORITY=0", "3"));
        tracing::info!(detail = %"ä".repeat(MAX_VALUE), "long");
        assert_eq!(reader.entry()["XENFLOW_DETAIL"].len(), MAX_VALUE);
        assert_eq!(key("error.sources"), "XENFLOW_ERROR_SOURCES");
        assert_eq!(key(&"x".repeat(100)).len(), 64);
    }

    #[test]
    fn a_journal_that_takes_nothing_stops_nobody_and_is_told_what_it_missed() {
        let reader = Reader::new("full");
        let _logging = logging(&reader);
        let many = 100_000;
        for number in 0..many {
            tracing::info!(number, "line");
        }
        let mut taken = 0;
        while reader.0.recv(&mut [0; 4096]).is_ok() {
            taken += 1;
        }
        assert!(taken > 0 && taken < many, "{taken} of {many}: the socket holds some");
        tracing::info!("after");
        let said = format!("after (the journal did not take {} lines before this one)", many - taken);
        assert_eq!(reader.entry()["MESSAGE"], said);
        tracing::info!("and again");
        assert_eq!(reader.entry()["MESSAGE"], "and again");
    }
}
