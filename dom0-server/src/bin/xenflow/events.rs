//! `xenflow events`: what happened on this host, as its daemon keeps it; and what goes on to happen, until somebody
//! interrupts, through restarts of the daemon.
//!
//! Owns the conversation and the lines. What events there are is `dom0_server::events`'s; those of all nodes are
//! `all`'s.

mod all;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use dom0_server::clock::utc_of_ms;
use dom0_server::db::happened;
use dom0_server::events::MAX_EVENTS;
use dom0_server::inspect::{self, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use xenflow_proto::Name;

use crate::args::{EventsArgs, Target};
use crate::ask::Daemon;
use crate::{Failure, client, output};

/// Between two tries to reach a daemon that is away.
const RETRY: Duration = Duration::from_millis(500);
/// How soon it is seen that nobody reads the lines any more.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) fn run(args: EventsArgs, db: &Target, seconds: u32, json: bool) -> Result<(), Failure> {
    let EventsArgs { follow, all, router, kinds, socket } = args;
    let all = all || db.is_named;
    if let Some(router) = &router {
        let _: Name = router.parse()?;
    }
    for kind in kinds.iter().filter(|kind| !all || !happened::KINDS.contains(&kind.as_str())) {
        inspect::events::kind(kind).map_err(|error| match all {
            false => Failure::Input(error.into()),
            true => Failure::Input(anyhow!("{error}, {}", happened::KINDS.join(", "))),
        })?;
    }
    let lines = Lines { router, kinds, json };
    if all {
        return client::run(all::run(db, lines, follow, seconds));
    }
    let reader = Reader { lines, socket: socket.socket, seconds, after: None };
    if !follow {
        return Ok(reader.list()?);
    }
    client::run(async {
        let mut signals = signals()?;
        let mut look = tokio::time::interval(LOOK);
        let (done, mut ended) = oneshot::channel();
        // It waits in system calls, and goes with the process.
        std::thread::spawn(move || done.send(reader.follow()));
        loop {
            tokio::select! {
                () = signals.any() => return Ok(()),
                result = &mut ended => return Ok(result.context("nobody follows any more")??),
                _ = look.tick() => if is_closed() { return Ok(()) },
            }
        }
    })
}

/// What ends a command that goes on.
pub(crate) struct Signals(Signal, Signal);

pub(crate) fn signals() -> anyhow::Result<Signals> {
    let [interrupt, terminate] =
        [SignalKind::interrupt(), SignalKind::terminate()].map(|kind| signal(kind).context("no signals"));
    Ok(Signals(interrupt?, terminate?))
}

impl Signals {
    pub(crate) async fn any(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

/// Nobody reads what is printed any more.
fn is_closed() -> bool {
    let stdout = io::stdout();
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().intersects(PollFlags::ERR)
}

/// Which events, and how they are printed.
struct Lines {
    router: Option<String>,
    kinds: Vec<String>,
    json: bool,
}

struct Reader {
    lines: Lines,
    socket: PathBuf,
    seconds: u32,
    /// `next` of the last answer.
    after: Option<String>,
}

/// After a page.
enum Then {
    /// There are more.
    More,
    /// These were the newest.
    Newest,
    /// Who reads has read enough.
    Enough,
}

impl Reader {
    fn list(mut self) -> anyhow::Result<()> {
        let mut daemon = Daemon::open(&self.socket, self.seconds)?;
        loop {
            let page = self.ask(&mut daemon, 0)?;
            if !matches!(self.print(&page), Then::More) {
                return Ok(());
            }
        }
    }

    /// Ends when nobody reads any more. A daemon that was there once may go and come back.
    fn follow(mut self) -> anyhow::Result<()> {
        let mut daemon = Daemon::open(&self.socket, self.seconds)?;
        let mut is_away = false;
        let mut wait_ms = 0;
        loop {
            match self.ask(&mut daemon, wait_ms) {
                Ok(page) => {
                    if is_away {
                        let again =
                            if page["restarted"] == true { "was started again" } else { "answers again" };
                        output::error(&format!("the daemon {again}"));
                        is_away = false;
                    }
                    if matches!(self.print(&page), Then::Enough) {
                        return Ok(());
                    }
                    // Half of what it takes for a daemon to count as gone.
                    wait_ms = u64::from(self.seconds) * 500;
                    continue;
                }
                // It was never there to lose.
                Err(error) if self.after.is_none() => return Err(error),
                Err(error) if !is_away => {
                    output::error(&format!("{error:#}: waiting for it to come back"));
                    is_away = true;
                }
                Err(_) => {}
            }
            loop {
                std::thread::sleep(RETRY);
                if let Ok(back) = Daemon::open(&self.socket, self.seconds) {
                    daemon = back;
                    break;
                }
            }
        }
    }

    fn ask(&self, daemon: &mut Daemon, wait_ms: u64) -> anyhow::Result<Value> {
        let Lines { router, kinds, .. } = &self.lines;
        let (after, router, kinds) = (self.after.clone(), router.clone(), kinds.clone());
        daemon.ask(&Request::Events { after, router, kinds, wait_ms })
    }

    fn print(&mut self, page: &Value) -> Then {
        let mut text = String::new();
        if let Some(missed @ 1..) = page["missed"].as_u64() {
            let words = format!("{missed} events missed: the daemon keeps the last {MAX_EVENTS}");
            text += &self.lines.line(json!({ "kind": "missed", "missed": missed, "text": words }));
        }
        let events = page["events"].as_array().map(Vec::as_slice).unwrap_or_default();
        events.iter().for_each(|event| text += &self.lines.line(event.clone()));
        self.after = page["next"].as_str().map(str::to_owned);
        if !text.is_empty() && !output::part(&text) {
            Then::Enough
        } else if page["more"] == true {
            Then::More
        } else {
            Then::Newest
        }
    }
}

impl Lines {
    fn wants(&self, event: &Value) -> bool {
        let is = |member: &str, wanted: &String| event[member] == wanted.as_str();
        self.router.as_ref().is_none_or(|router| is("router", router))
            && (self.kinds.is_empty() || self.kinds.iter().any(|kind| is("kind", kind)))
    }

    fn line(&self, mut event: Value) -> String {
        let at = event["time_ms"]
            .as_u64()
            .and_then(|ms| Some(utc_of_ms(ms)?.replace('Z', &format!(".{:03}Z", ms % 1000))));
        if self.json {
            event["time"] = at.into();
            return event.to_string() + "\n";
        }
        line(&event, at.as_deref().unwrap_or("-"))
    }
}

/// `TIME NODE KIND SUBJECT: SENTENCE`.
fn line(event: &Value, at: &str) -> String {
    let text = |name: &str| event[name].as_str();
    let subject =
        ["network", "router", "vif", "access", "port", "segment", "mac", "database", "migration", "session"];
    let subject = subject.iter().filter_map(|name| Some(format!("{name} {}", text(name)?)));
    let mut line = format!("{at} {} {:19}", text("node").unwrap_or("-"), text("kind").unwrap_or_default());
    let subject = subject.collect::<Vec<_>>().join(" ");
    if !subject.is_empty() {
        line += &format!(" {subject}:");
    }
    format!("{line} {}\n", text("text").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_when_where_what_and_about_whom() {
        let event = json!({
            "number": 7, "node": "a", "kind": "port-bound", "severity": "info", "vif": "r1-lan", "router": "r1",
            "port": "vif1.0", "text": "the port is bound",
        });
        assert_eq!(
            line(&event, "2026-01-02T03:04:05.006Z"),
            "2026-01-02T03:04:05.006Z a port-bound          router r1 vif r1-lan port vif1.0: the port is bound\n"
        );
        let missed = json!({"kind": "missed", "missed": 17, "text": "17 events missed"});
        assert_eq!(line(&missed, "-"), "- - missed              17 events missed\n");
    }
}
