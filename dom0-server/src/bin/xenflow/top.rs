//! `xenflow top`: networks, routers, punts, nodes and migrations as they are now, by rate, and this host's uplinks.
//!
//! Owns the watch on the database and the terminal. Rates are `model`'s, pages `table`'s, keys and drawing `screen`'s.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use dom0_server::clock::now_ms;
use dom0_server::db::Rows;
use dom0_server::shaper::report::LinkReport;
use ovsdb::{Event as Said, Remote, Session, SessionConfig};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEvent};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

mod model;
mod sample;
mod screen;
mod table;
#[cfg(test)]
mod tests;

use model::Model;
use sample::Sample;
use screen::{Screen, Then};

use crate::args::Target;
use crate::{Failure, client, color, output, sla};

/// How long the reader of keys sleeps before it sees that nobody wants them.
const KEYS_WAIT: Duration = Duration::from_millis(200);

/// How often, in seconds, and how.
pub(crate) struct Options {
    pub(crate) interval_s: u32,
    pub(crate) once: bool,
    pub(crate) json: bool,
    /// For the first contents of the database, in seconds.
    pub(crate) timeout_s: u32,
    /// Of this host's daemon, for its uplinks.
    pub(crate) socket: PathBuf,
}

pub(crate) fn run(db: &Target, options: &Options) -> Result<(), Failure> {
    let remotes = Remote::parse_list(&db.remotes)?;
    let mut config = SessionConfig::new(remotes.clone()).monitor(sample::watched());
    config.options.tls = db.tls(&remotes)?;
    if options.json && !options.once {
        return Err(Failure::Input(anyhow!("--json prints one sample: say --once too")));
    }
    if !options.once && !std::io::stdout().is_terminal() {
        return Err(Failure::Input(anyhow!("stdout is no terminal: say --once for one sample")));
    }
    client::run(async {
        let pause = Duration::from_secs(options.interval_s.into());
        let links = links(options.socket.clone(), pause);
        let limit = Duration::from_secs(options.timeout_s.into());
        let mut watch = Watch::start(db, config, links, limit).await?;
        if options.once { once(&mut watch, pause, options.json).await } else { live(&mut watch, pause).await }
    })
}

/// A copy of the database that keeps itself.
struct Watch {
    session: Session,
    rows: Rows,
    model: Model,
    /// This host's, as its daemon said last.
    links: watch::Receiver<Vec<LinkReport>>,
    /// Why the copy is old; empty if it is not.
    trouble: String,
}

impl Watch {
    async fn start(
        db: &Target,
        config: SessionConfig,
        links: watch::Receiver<Vec<LinkReport>>,
        limit: Duration,
    ) -> Result<Self, Failure> {
        let session = Session::start(config);
        let (rows, model) = (Rows::default(), Model::default());
        let mut watch = Self { session, rows, model, links, trouble: String::new() };
        let synced = async {
            while !watch.heard().await? {}
            anyhow::Ok(())
        };
        let synced = tokio::time::timeout(limit, synced).await;
        synced.map_err(|_| match watch.trouble.as_str() {
            "" => anyhow!("{db} has not answered within {} s", limit.as_secs()),
            trouble => anyhow!("{db}: {trouble}"),
        })??;
        watch.look();
        Ok(watch)
    }

    /// Takes in what the database says next; true if all of it is known now. Cancel safe.
    async fn heard(&mut self) -> anyhow::Result<bool> {
        match self.session.next().await.ok_or_else(|| anyhow!("the watch on the database has ended"))? {
            Said::Connected { .. } => Ok(false),
            Said::Snapshot { changes, .. } | Said::Update { changes, .. } => {
                self.rows.apply(&changes);
                self.trouble.clear();
                Ok(true)
            }
            Said::Disconnected { reason } => {
                self.trouble = format!("no database: {:#}", anyhow::Error::from(reason));
                Ok(false)
            }
        }
    }

    /// Takes in what the database says until then.
    async fn until(&mut self, end: Instant) -> anyhow::Result<()> {
        let end = sleep_until(end);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return Ok(()),
                heard = self.heard() => { heard?; }
            }
        }
    }

    fn look(&mut self) {
        let links = self.links.borrow().clone();
        self.model.look(Sample::of(&self.rows, links, now_ms()));
    }
}

/// What this host's daemon says of its uplinks, asked again after each pause; nothing while none answers. A thread asks, which
/// ends when nobody wants to know.
fn links(socket: PathBuf, pause: Duration) -> watch::Receiver<Vec<LinkReport>> {
    let (tell, links) = watch::channel(Vec::new());
    std::thread::spawn(move || {
        while !tell.is_closed() {
            let seconds = u32::try_from(pause.as_secs()).unwrap_or(u32::MAX).max(1);
            tell.send_replace(sla::of(&socket, seconds).map(|report| report.links).unwrap_or_default());
            std::thread::sleep(pause);
        }
    });
    links
}

/// One sample after one interval, or after two if no node has written in the first.
async fn once(watch: &mut Watch, pause: Duration, as_json: bool) -> Result<(), Failure> {
    for _ in 0..2 {
        watch.until(Instant::now() + pause).await?;
        watch.look();
        if watch.model.has_moved() {
            break;
        }
    }
    if !watch.trouble.is_empty() {
        return Err(anyhow!("{}", watch.trouble).into());
    }
    let view = watch.model.view();
    if as_json {
        output::json(&view);
    } else {
        output::text(&screen::text(&view));
    }
    Ok(())
}

/// Gives the terminal back however this ends; a panic's hook (`ratatui::try_init`) does so before it speaks.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

async fn live(watch: &mut Watch, pause: Duration) -> Result<(), Failure> {
    let has_color = color::is_wanted(&std::io::stdout());
    let mut ends = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()]
        .map(|kind| signal(kind).context("no signals"));
    let [terminate, hangup, interrupt] = &mut ends;
    let (terminate, hangup, interrupt) = match (terminate, hangup, interrupt) {
        (Ok(terminate), Ok(hangup), Ok(interrupt)) => (terminate, hangup, interrupt),
        _ => return Err(anyhow!("signals cannot be heard").into()),
    };
    let mut terminal = ratatui::try_init().context("the terminal cannot be used")?;
    let _restore = Restore;
    let mut keys = keys();
    let mut screen = Screen::new(has_color);
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    draw(&mut terminal, &mut screen, watch)?;
    loop {
        tokio::select! {
            _ = ticks.tick() => watch.look(),
            heard = watch.heard() => { heard?; continue; }
            key = keys.recv() => match key {
                Some(Some(key)) if screen.key(key) == Then::Quit => return Ok(()),
                // A key, or another size.
                Some(_) => {}
                None => return Err(anyhow!("the terminal is gone").into()),
            },
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
        draw(&mut terminal, &mut screen, watch)?;
    }
}

fn draw(terminal: &mut DefaultTerminal, screen: &mut Screen, watch: &Watch) -> anyhow::Result<()> {
    screen.trouble.clone_from(&watch.trouble);
    let view = watch.model.view();
    terminal.draw(|frame| screen.draw(frame, &view)).context("the terminal cannot be written")?;
    Ok(())
}

/// Keys, and `None` for another size, from a thread that waits for them; it ends when nobody listens.
fn keys() -> mpsc::Receiver<Option<KeyEvent>> {
    let (tell, keys) = mpsc::channel(64);
    std::thread::spawn(move || {
        while !tell.is_closed() {
            let said = match event::poll(KEYS_WAIT) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let told = match said {
                Ok(Event::Key(key)) => tell.blocking_send(Some(key)),
                Ok(Event::Resize(..)) => tell.blocking_send(None),
                Ok(_) => Ok(()),
                Err(_) => return,
            };
            if told.is_err() {
                return;
            }
        }
    });
    keys
}
