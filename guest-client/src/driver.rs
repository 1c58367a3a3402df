//! The one loop: owns the mirror and the session, moves bytes between kernel, host and status socket.

mod dumps;
mod renewal;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};
use xenflow_proto::frame::MAX_FRAME;
use xenflow_proto::message::{Hello, VERSION};
use xenflow_proto::table::NeighborKey;
use xenflow_proto::{GuestMessage, HostMessage, Key, Object};

use crate::backoff::Backoff;
use crate::config::Config;
use crate::connection::{Connection, Found, LinkError, attempt, chain, write};
use crate::control::{Change, Control};
use crate::fpm::Fpm;
use crate::mirror::{Mirror, Start};
use crate::neighbors::{Wanted, wanted};
use crate::netlink::{Input, Netlink};
use crate::nudge::Nudge;
use crate::obstacles::{Survey, describe};
use crate::refresh::Refresh;
use crate::rejected::Rejected;
use crate::session::{Acked, Event, Session};
use crate::status::{AckLine, State, Status};
use crate::tls;
use crate::watch::{Heard, Watch};
use dumps::Dumps;
use renewal::Renewal;

/// Bytes ready to be sent beyond which no more messages are made: the socket is slower than the window.
const OUT_HIGH: usize = 64 << 10;
/// A session that lived for so long was a good one: the next attempt need not wait.
const GOOD_SESSION: Duration = Duration::from_secs(1);
/// The session's end may take this long when the client stops.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// After a nudge, an attempt to connect that takes longer than this is given up for a new one, and so is a session
/// whose host has not answered for so long: what they are sent may wait for TCP to repeat it.
const STUCK: Duration = Duration::from_millis(300);
/// Datagrams read from the kernel before the host gets its turn.
const BURST: usize = 64;

/// What ends the client.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The netlink socket.
    #[error("netlink")]
    Netlink(#[source] io::Error),
    /// The status socket.
    #[error("status socket {}", path.display())]
    Status {
        /// Its path.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The listener for zebra.
    #[error("fpm_listen")]
    Fpm(#[source] io::Error),
    /// The credentials.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The name, which [`Config::load`] would have refused.
    #[error(transparent)]
    Router(#[from] xenflow_proto::identity::NameError),
    /// The kernel's boot id.
    #[error("cannot read /proc/sys/kernel/random/boot_id: is /proc mounted?")]
    BootId(#[source] io::Error),
}

#[derive(Debug)]
enum Phase {
    Waiting { until: Duration },
    Connecting { task: JoinHandle<Result<Found, LinkError>>, since: Duration },
    Open(Box<Connection>),
}

/// `CLOCK_MONOTONIC`.
#[must_use]
pub fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

struct Driver {
    config: Config,
    hello: Hello,
    netlink: Netlink,
    watch: Watch,
    refresh: Refresh,
    nudge: Nudge,
    fpm: Fpm,
    renewal: Renewal,
    status: Status,
    mirror: Mirror,
    /// What the last survey found, in words.
    obstacles: Arc<[String]>,
    phase: Phase,
    backoff: Backoff,
    dumps: Dumps,
    control: Control,
    error: Option<String>,
    rejected: Rejected,
    /// What the host, or the one before, sends to.
    in_use: Vec<NeighborKey>,
    overflows: u64,
}

/// Runs until `stop`, then takes leave of the host within half a second. `seed` is for the jitter of reconnects.
///
/// # Errors
/// [`RunError`]; a host that is away is none.
pub async fn run(config: Config, seed: u64, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    // Wrong files are told at once, not at the first connection.
    tls::client_config(&config.ca, &config.cert, &config.key, &config.router)?;
    let hello = Hello {
        versions: vec![VERSION],
        router: config.router.parse()?,
        boot_id: boot_id().map_err(RunError::BootId)?,
        agent: concat!("xenflow-guest ", env!("CARGO_PKG_VERSION")).into(),
    };
    let status = Status::listen(&config.status_socket)
        .map_err(|source| RunError::Status { path: config.status_socket.clone(), source })?;
    let netlink = Netlink::open(config.receive_buffer_bytes).map_err(RunError::Netlink)?;
    let (min, max) = config.reconnect();
    let start = now();
    let mut driver = Driver {
        netlink,
        watch: Watch::new(config.survey_interval(), start),
        refresh: Refresh::new(start),
        nudge: Nudge::new(config.host),
        fpm: Fpm::listen(config.fpm_listen).map_err(RunError::Fpm)?,
        renewal: Renewal::new(start),
        status,
        mirror: Mirror::new(&hello.boot_id),
        obstacles: Arc::default(),
        phase: Phase::Waiting { until: start },
        backoff: Backoff::new(min, max, seed),
        dumps: Dumps::new(start),
        control: Control::new(config.control_interface.as_deref(), config.host),
        error: None,
        rejected: Rejected::default(),
        in_use: Vec::new(),
        overflows: 0,
        config,
        hello,
    };
    let interface = driver.control.name().unwrap_or("to be found");
    info!(router = driver.config.router, host = %driver.config.host, interface, "starting");
    tokio::pin!(stop);
    loop {
        tokio::select! {
            result = driver.step() => result?,
            () = &mut stop => break,
        }
    }
    driver.close().await;
    Ok(())
}

fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.trim().chars().filter(|&c| c != '-').collect();
    match u128::from_str_radix(&digits, 16) {
        Ok(id) if digits.len() == 32 => Ok(id.to_be_bytes()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// What the loop waits for.
enum Wake {
    Kernel(io::Result<()>),
    Watch(Heard),
    Refreshed,
    Nudged,
    Zebra,
    Connected(Box<Result<Found, LinkError>>),
    Read(io::Result<usize>),
    Written(io::Result<()>),
    Timer,
}

impl Driver {
    async fn step(&mut self) -> Result<(), RunError> {
        self.answer_zebra()?;
        self.transmit();
        self.tell();
        let deadline = self.deadline();
        let timer = tokio::time::sleep(deadline.saturating_sub(now()));
        let (netlink, watch, refresh) = (&self.netlink, &mut self.watch, &mut self.refresh);
        let (nudge, fpm) = (&mut self.nudge, &mut self.fpm);
        let kernel = async {
            tokio::select! {
                result = netlink.readable() => Wake::Kernel(result),
                heard = watch.heard() => Wake::Watch(heard),
                () = refresh.done() => Wake::Refreshed,
                () = nudge.heard() => Wake::Nudged,
                () = fpm.heard() => Wake::Zebra,
            }
        };
        let wake = match &mut self.phase {
            Phase::Waiting { .. } => tokio::select! {
                wake = kernel => wake,
                () = timer => Wake::Timer,
            },
            Phase::Connecting { task, .. } => tokio::select! {
                wake = kernel => wake,
                done = task => Wake::Connected(Box::new(
                    done.unwrap_or_else(|e| Err(LinkError::Io(io::Error::other(e)))))),
                () = timer => Wake::Timer,
            },
            Phase::Open(connection) => {
                let Connection { reader, writer, decoder, out, unflushed, .. } = &mut **connection;
                tokio::select! {
                    wake = kernel => wake,
                    result = reader.read_buf(decoder.buffer()) => Wake::Read(result),
                    result = write(writer, out, unflushed) => Wake::Written(result),
                    () = timer => Wake::Timer,
                }
            }
        };
        let time = now();
        match wake {
            Wake::Kernel(result) => {
                result.map_err(RunError::Netlink)?;
                self.read_kernel()?;
            }
            Wake::Watch(heard) => {
                self.watch.note(&heard, time);
                if let Heard::Surveyed(Some(survey)) = heard {
                    self.surveyed(&survey, time);
                }
            }
            Wake::Nudged => self.nudged(time),
            Wake::Connected(result) => self.connected(*result, time),
            Wake::Read(result) => self.received(result, time),
            Wake::Written(Ok(())) | Wake::Refreshed | Wake::Zebra | Wake::Timer => {}
            Wake::Written(Err(error)) => self.lost(LinkError::Io(error), time),
        }
        self.timers(time)
    }

    fn deadline(&self) -> Duration {
        let dump = self.dumps.deadline(self.netlink.is_dumping(), self.netlink.is_congested());
        let phase = match &self.phase {
            // Who and where to connect from is known after the first dump, what to say after the first survey.
            Phase::Waiting { until } => self.mirror.is_trusted().then_some(*until),
            Phase::Connecting { .. } => None,
            Phase::Open(connection) if connection.node.is_some() => {
                Some(connection.session.poll_timeout().0.min(self.renewal.deadline()))
            }
            Phase::Open(connection) => Some(connection.session.poll_timeout().0),
        };
        dump.into_iter()
            .chain(self.watch.deadline())
            .chain(phase)
            .min()
            .unwrap_or_else(|| now() + Duration::from_secs(3600))
    }

    fn timers(&mut self, time: Duration) -> Result<(), RunError> {
        if self.dumps.start(time, self.netlink.is_dumping(), self.netlink.is_congested()) {
            self.mirror.begin_dump();
            self.netlink.start_dump().map_err(RunError::Netlink)?;
        }
        self.watch.start(time);
        if self.mirror.is_trusted() {
            self.refresh.start(time, || match self.config.keep_neighbors {
                true => wanted(&self.mirror, self.control.name().unwrap_or_default(), &self.in_use),
                // What an earlier run asked for is released.
                false => Wanted::default(),
            });
        }
        match &mut self.phase {
            Phase::Waiting { until } if *until <= time && self.mirror.is_trusted() => self.connect(time),
            Phase::Open(connection) => {
                if connection.node.is_some() && self.renewal.is_due(&self.config, time) {
                    connection.session.renew();
                }
                if let Err(error) = connection.session.handle_timeout(time) {
                    self.lost(error.into(), time);
                }
            }
            Phase::Waiting { .. } | Phase::Connecting { .. } => {}
        }
        Ok(())
    }

    /// Zebra told the kernel before it told us: once the kernel has nothing more to say, the mirror knows of it.
    fn answer_zebra(&mut self) -> Result<(), RunError> {
        if self.fpm.is_due() && self.read_kernel()? && self.mirror.is_trusted() {
            self.fpm.answer(&self.mirror, &self.rejected);
        }
        Ok(())
    }

    /// True: everything was read.
    fn read_kernel(&mut self) -> Result<bool, RunError> {
        let (mut inputs, mut whole) = (Vec::new(), false);
        for _ in 0..BURST {
            if !self.netlink.read(|input| inputs.push(input)).map_err(RunError::Netlink)? {
                whole = true;
                break;
            }
            // Of each: what causes the last of a burst may come after the first was read.
            let time = now();
            for input in std::mem::take(&mut inputs) {
                self.input(input, time);
            }
        }
        let time = now();
        if self.mirror.take_unsurveyed() {
            self.watch.note(&Heard::Bell, time);
        }
        self.watch_control(time);
        Ok(whole)
    }

    fn input(&mut self, input: Input, time: Duration) {
        match input {
            Input::Event(event) => {
                if self.mirror.apply(event, time) {
                    self.dumps.want(time);
                }
            }
            Input::Dumped(event) => {
                self.dumps.heard(time);
                self.mirror.apply_dumped(event, time);
            }
            Input::DumpEnded { whole } => {
                let again = self.dumps.ended(time, whole);
                debug!(whole, took_us = self.dumps.took().as_micros(), "dump ended");
                let sure = whole && self.mirror.end_dump(time);
                if again || !sure {
                    self.dumps.want(time);
                }
            }
            Input::Overflow => {
                self.overflows += 1;
                debug!("the kernel dropped events");
                self.mirror.distrust();
                self.dumps.want(time);
            }
        }
    }

    fn surveyed(&mut self, survey: &Survey, time: Duration) {
        self.mirror.apply_survey(survey, time);
        // Nothing tells of an MTU of IPv6 that changes. Links that come and go have told of it already.
        let mtu = |(&ifindex, &mtu): (&u32, &Option<u32>)| match self.mirror.object(Key::Link(ifindex)) {
            Some(Object::Link(link)) => link.ipv6_mtu != mtu,
            _ => false,
        };
        if survey.links.iter().any(mtu) {
            self.dumps.want(time);
        }
        let name = |ifindex| match self.mirror.object(Key::Link(ifindex)) {
            Some(Object::Link(link)) => link.name.clone(),
            _ => format!("link {ifindex}"),
        };
        let obstacles: Vec<String> =
            survey.obstacles.iter().map(|obstacle| describe(obstacle, name)).collect();
        if *self.obstacles == *obstacles {
            return;
        }
        for obstacle in obstacles.iter().filter(|new| !self.obstacles.contains(new)).take(10) {
            info!(obstacle, "the host forwards no such packets");
        }
        for obstacle in self.obstacles.iter().filter(|old| !obstacles.contains(old)).take(10) {
            info!(obstacle, "no more in the way of the host");
        }
        self.obstacles = obstacles.into();
    }

    /// A change at the control interface may mean another host: look at once.
    fn watch_control(&mut self, time: Duration) {
        if !self.mirror.is_trusted() {
            return;
        }
        let change = self.control.look(&self.mirror);
        self.nudge.listen(self.control.listen(&self.mirror));
        let Some(change) = change else { return };
        debug!(control = ?self.control, "control interface changed");
        self.backoff.reset();
        match &mut self.phase {
            Phase::Waiting { until } => *until = time,
            // An attempt that is under way has found the interface before the mirror did.
            Phase::Connecting { .. } if change == Change::First => {}
            Phase::Connecting { task, .. } => {
                task.abort();
                self.phase = Phase::Waiting { until: time };
            }
            Phase::Open(_) if change == Change::Gone => self.lost(LinkError::InterfaceGone, time),
            Phase::Open(connection) => connection.session.probe(time),
        }
    }

    /// The host has no session of this guest, as far as it knew when it sent the nudge.
    fn nudged(&mut self, time: Duration) {
        let due = self.nudge.admit(time);
        debug!(wait_ms = due.saturating_sub(time).as_millis(), "nudged");
        match &mut self.phase {
            Phase::Waiting { until } => *until = due.min(*until),
            Phase::Connecting { task, since } if *since + STUCK <= time => {
                task.abort();
                self.phase = Phase::Waiting { until: due };
            }
            Phase::Connecting { .. } => {}
            Phase::Open(connection) => match connection.session.asked() {
                Some(asked) if asked + STUCK <= time => self.lost(LinkError::Nudged, time),
                Some(_) => {}
                None if due <= time => connection.session.probe(time),
                None => {}
            },
        }
    }

    fn connect(&mut self, time: Duration) {
        match self.control.places(&self.mirror).and_then(|places| attempt(&self.config, places)) {
            Ok(task) => self.phase = Phase::Connecting { task, since: time },
            Err(error) => self.lost(error, time),
        }
    }

    fn connected(&mut self, result: Result<Found, LinkError>, time: Duration) {
        match result {
            Ok((stream, place)) => {
                self.control.connected(&place);
                self.phase = Phase::Open(Box::new(Connection::new(stream, self.hello.clone(), time)));
            }
            Err(error) => self.lost(error, time),
        }
    }

    /// The session or the attempt is over; says why, once, and waits.
    fn lost(&mut self, error: LinkError, time: Duration) {
        self.mirror.hang_up();
        // One that ends as soon as it is up will do so again: somebody else may use the same certificate.
        let up_since = if let Phase::Open(connection) = &self.phase { connection.up_since } else { None };
        self.control.lost(up_since.is_some());
        let good = up_since.is_some_and(|since| since + GOOD_SESSION <= time);
        if good {
            self.backoff.reset();
        }
        let wait = if good && error.is_reset() { Duration::ZERO } else { self.backoff.wait() };
        self.phase = Phase::Waiting { until: time + wait };
        let text = chain(&error);
        if self.error.as_ref() != Some(&text) {
            warn!(error = text, "no session with the host");
        } else {
            debug!(error = text, wait_ms = wait.as_millis(), "no session with the host");
        }
        self.error = Some(text);
    }

    fn received(&mut self, result: io::Result<usize>, time: Duration) {
        let outcome = match result {
            Ok(0) => Err(LinkError::Closed),
            Ok(_) => self.messages(time),
            Err(error) => Err(LinkError::read(error)),
        };
        if let Err(error) = outcome {
            self.lost(error, time);
        }
    }

    fn messages(&mut self, time: Duration) -> Result<(), LinkError> {
        let Phase::Open(connection) = &mut self.phase else { return Ok(()) };
        while let Some(frame) = connection.decoder.next_frame()? {
            let message = HostMessage::decode(frame)?;
            match connection.session.handle_message(time, message, &mut self.mirror)? {
                None => {}
                Some(Event::Up(node)) => {
                    info!(%node, "session is up");
                    connection.decoder.set_limit(MAX_FRAME);
                    connection.node = Some(node);
                    connection.up_since = Some(time);
                    if self.control.up(&self.mirror) {
                        info!(
                            interface = self.control.name(),
                            "the control interface: a node took the session there"
                        );
                    }
                    self.nudge.listen(self.control.listen(&self.mirror));
                    self.error = None;
                    self.rejected.session_began();
                }
                Some(Event::Acked(step)) => {
                    self.rejected.acknowledged(&step);
                    self.fpm.acknowledged(&step);
                    acknowledged(&self.status, &step, time);
                }
                Some(Event::InUse(neighbors)) => self.in_use = neighbors,
                Some(Event::Renewed(renewed)) => self.renewal.heard(&self.config, &renewed, time),
            }
        }
        Ok(())
    }

    /// Makes messages as long as the window and the socket take them.
    fn transmit(&mut self) {
        let Phase::Open(connection) = &mut self.phase else { return };
        while connection.out.len() < OUT_HIGH {
            let Some(message) = connection.session.poll_transmit(&mut self.mirror) else { break };
            if matches!(message, GuestMessage::SnapshotBegin(_) | GuestMessage::Resume(_)) {
                let (start, backlog) = (connection.session.start(), self.mirror.backlog());
                info!(?start, backlog, "the host is brought up to date");
            }
            message.encode(&mut connection.out);
        }
    }

    /// Says what it had begun to say and that it is the end, and hears the host out.
    async fn close(&mut self) {
        let Phase::Open(connection) = &mut self.phase else { return };
        let Connection { reader, writer, out, .. } = &mut **connection;
        let leave = async {
            writer.write_all_buf(out).await?;
            writer.shutdown().await?;
            let mut rest = [0; 4096];
            while reader.read(&mut rest).await? > 0 {}
            io::Result::Ok(())
        };
        match tokio::time::timeout(CLOSE_TIMEOUT, leave).await {
            Ok(Ok(())) => debug!("session closed"),
            Ok(Err(error)) => debug!(%error, "session closed badly"),
            Err(_) => debug!("the host does not close the session"),
        }
    }

    fn tell(&self) {
        let session = match &self.phase {
            Phase::Open(connection) => Some(&connection.session),
            Phase::Waiting { .. } | Phase::Connecting { .. } => None,
        };
        let (state, node) = match &self.phase {
            Phase::Waiting { .. } if !self.mirror.is_trusted() => ("starting", None),
            Phase::Waiting { .. } => ("down", None),
            Phase::Connecting { .. } => ("connecting", None),
            Phase::Open(connection) => {
                let node = connection.node.as_ref().map(ToString::to_string);
                let state = match (&node, connection.session.is_live()) {
                    (None, _) => "connecting",
                    (Some(_), false) => "syncing",
                    (Some(_), true) => "up",
                };
                (state, node)
            }
        };
        self.status.update(State {
            state,
            node,
            interface: self.control.name().map(str::to_owned),
            error: self.error.clone(),
            seq: session.map_or(0, |session| session.sent().0),
            acked: session.map_or(0, |session| session.acked().0),
            routes: self.mirror.routes(),
            neighbors: self.mirror.neighbors(),
            backlog: self.mirror.backlog(),
            resumed: session.is_some_and(|session| session.start() == Some(Start::Resume)),
            changes: session.map_or(0, Session::changes),
            rejected: self.rejected.len(),
            rejections: self.rejected.shown(),
            dumps: self.dumps.whole(),
            overflows: self.overflows,
            obstacles: Arc::clone(&self.obstacles),
        });
    }
}

fn acknowledged(status: &Status, step: &Acked, time: Duration) {
    for (key, reason) in step.rejected.iter().take(10) {
        warn!(?key, reason, "stays with the guest");
    }
    if step.rejected.len() > 10 {
        warn!(count = step.rejected.len(), "more stay with the guest");
    }
    status.acked(&AckLine {
        acked: step.seq.0,
        monotonic_ns: nanos(time),
        queued_ns: step.oldest.map(nanos),
        changes: step.changes,
        rejected: step.rejected.len(),
    });
}
