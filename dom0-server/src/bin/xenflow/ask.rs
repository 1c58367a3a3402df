//! The client of a daemon's control socket: one line asks, one answers, and long answers come page by page.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use dom0_server::inspect::Request;
use serde_json::Value;

use crate::args::{HostCommand, Target};
use crate::{Failure, arrival, events, explain, flows, output, routes, status};

/// A page of routes, each with many next hops, is far less.
const MAX_ANSWER: u64 = 256 << 20;

pub(crate) fn run(command: HostCommand, db: &Target, seconds: u32, json: bool) -> Result<(), Failure> {
    match command {
        HostCommand::Status { socket } => status::run(&mut Daemon::open(&socket.socket, seconds)?, json),
        HostCommand::Routes { router, prefix, socket } => {
            routes::run(&socket.socket, seconds, &router, prefix.as_deref(), json)
        }
        HostCommand::Events(args) => events::run(args, db, seconds, json),
        HostCommand::Flows { router, socket } => flows::run(&socket.socket, seconds, &router, json),
        HostCommand::Explain(args) => explain::run(db, seconds, *args, json),
        HostCommand::Arrival { macs, plugged, socket } => {
            arrival::run(&socket.socket, seconds, &macs, plugged)
        }
    }
}

/// A connection to the daemon.
pub(crate) struct Daemon {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    seconds: u32,
}

impl Daemon {
    /// Each answer has so many seconds.
    #[allow(clippy::wildcard_enum_match_arm, reason = "the rest is said as it comes")]
    pub(crate) fn open(path: &Path, seconds: u32) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow!(
                "no daemon answers at {}: start xenflow-dom0 (systemctl start xenflow-dom0), or say --socket PATH \
                 if its control_socket is another one",
                path.display()
            ),
            ErrorKind::PermissionDenied => {
                anyhow!("no right to ask the daemon at {}: run this as root", path.display())
            }
            _ => anyhow!(error).context(format!("cannot connect to {}", path.display())),
        })?;
        let limit = Some(Duration::from_secs(seconds.into()));
        let timed = stream.set_read_timeout(limit).and_then(|()| stream.set_write_timeout(limit));
        timed.context("no timeouts")?;
        Ok(Self { stream: BufReader::new(stream), path: path.to_owned(), seconds })
    }

    /// Asks one thing.
    #[allow(clippy::wildcard_enum_match_arm, reason = "the rest is said as it comes")]
    pub(crate) fn ask(&mut self, request: &Request) -> anyhow::Result<Value> {
        let line = serde_json::to_string(request)? + "\n";
        let answer = self.exchange(&line).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                let Self { path, seconds, .. } = &self;
                anyhow!("the daemon at {} does not answer within {seconds} s", path.display())
            }
            _ => anyhow!(error).context(format!("the daemon at {} is gone", self.path.display())),
        })?;
        let mut answer: Value = serde_json::from_str(&answer).context("the daemon's answer is no JSON")?;
        if let Some(why) = answer.get("error").and_then(Value::as_str) {
            bail!("{why}");
        }
        answer.get_mut("ok").map(Value::take).context("the daemon's answer says nothing")
    }

    /// Prints a list, page by page as it comes: as an array of `items` of each page, or as their text. `request` asks
    /// for what comes after a page's cursor.
    pub(crate) fn list(
        &mut self,
        as_json: bool,
        request: impl Fn(Option<String>) -> Request,
        items: impl Fn(&mut Value) -> Vec<Value>,
        text: impl Fn(&mut Value) -> String,
    ) -> Result<(), Failure> {
        let mut array = Array::begin();
        let mut after = None;
        loop {
            let mut page = self.ask(&request(after))?;
            let is_open =
                if as_json { array.extend(&items(&mut page)) } else { output::part(&text(&mut page)) };
            if !is_open {
                return Ok(());
            }
            after = page["next"].as_str().map(str::to_owned);
            if after.is_none() {
                break;
            }
        }
        if as_json {
            array.end();
        }
        Ok(())
    }

    fn exchange(&mut self, line: &str) -> std::io::Result<String> {
        self.stream.get_mut().write_all(line.as_bytes())?;
        let mut answer = String::new();
        (&mut self.stream).take(MAX_ANSWER).read_line(&mut answer)?;
        if answer.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(answer)
    }
}

/// A member of a page that is a list, taken out of it.
pub(crate) fn members(page: &mut Value, key: &str) -> Vec<Value> {
    serde_json::from_value(page[key].take()).unwrap_or_default()
}

/// A JSON array that is printed while its pages come.
struct Array {
    is_empty: bool,
}

impl Array {
    fn begin() -> Self {
        Self { is_empty: true }
    }

    /// Prints some more; false: who reads has read enough.
    fn extend(&mut self, items: &[Value]) -> bool {
        let mut text = String::new();
        for item in items {
            text += if std::mem::take(&mut self.is_empty) { "[\n  " } else { ",\n  " };
            text += &item.to_string();
        }
        output::part(&text)
    }

    fn end(self) {
        output::text(if self.is_empty { "[]\n" } else { "\n]\n" });
    }
}
