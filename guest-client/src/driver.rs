//! The one loop: owns the mirror and the session, waits for what happens next, and tells the status socket.
//!
//! Not here: what becomes of what the kernel says (`kernel`), and of what the host does (`host`).

mod dumps;
mod host;
mod kernel;
mod renewal;
mod trust;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;
use tracing::info;
use xenflow_proto::message::{Hello, VERSION};
use xenflow_proto::table::NeighborKey;

use crate::backoff::Backoff;
use crate::config::Config;
use crate::connection::{Connection, Found, LinkError, write};
use crate::control::Control;
use crate::fpm::Fpm;
use crate::mirror::{Mirror, Start};
use crate::neighbors::{Wanted, wanted};
use crate::netlink::Netlink;
use crate::nudge::Nudge;
use crate::refresh::Refresh;
use crate::rejected::Rejected;
use crate::session::Session;
use crate::status::{State, Status};
use crate::tls;
use crate::watch::{Heard, Watch};
use dumps::{Cause, Dumps};
use renewal::Renewal;
use trust::Watched;

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

struct Driver {
    config: Config,
    hello: Hello,
    netlink: Netlink,
    watch: Watch,
    refresh: Refresh,
    nudge: Nudge,
    fpm: Fpm,
    renewal: Renewal,
    trust: Watched,
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
    /// Keys that audits repaired.
    repaired: u64,
}

/// Runs until `stop`, then takes leave of the host within half a second. `seed` is for the jitter of reconnects.
///
/// # Errors
/// [`RunError`]; a host that is away is none.
pub async fn run(config: Config, seed: u64, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    // Wrong files are told at once, not at the first connection.
    let trust = tls::Trust::read(&config, None)?;
    tls::client_config(&config, trust.clone())?;
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
        trust: Watched::new(trust, start),
        status,
        mirror: Mirror::new(&hello.boot_id),
        obstacles: Arc::default(),
        phase: Phase::Waiting { until: start },
        backoff: Backoff::new(min, max, seed),
        dumps: Dumps::new(start, config.audit_interval()),
        control: Control::new(config.control_interface.as_deref(), config.host),
        error: None,
        rejected: Rejected::default(),
        in_use: Vec::new(),
        overflows: 0,
        repaired: 0,
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
        let is_open = matches!(self.phase, Phase::Open(_));
        // Nobody knows before the first dump whom to ask.
        let refresh = self.refresh.deadline().filter(|_| self.mirror.is_trusted());
        dump.into_iter()
            .chain(self.mirror.audit_deadline())
            .chain(self.watch.deadline())
            .chain(refresh)
            .chain(is_open.then(|| self.trust.deadline()))
            .chain(phase)
            .min()
            .unwrap_or_else(|| now() + Duration::from_secs(3600))
    }

    fn timers(&mut self, time: Duration) -> Result<(), RunError> {
        let (is_dumping, is_congested) = (self.netlink.is_dumping(), self.netlink.is_congested());
        if let Some(cause) = self.dumps.start(time, is_dumping, is_congested) {
            match cause {
                Cause::Need => self.mirror.begin_dump(),
                Cause::Clock => self.mirror.begin_audit(),
            }
            self.netlink.start_dump().map_err(RunError::Netlink)?;
        }
        if self.mirror.audit_deadline().is_some_and(|due| due <= time) {
            self.read_kernel()?;
        }
        self.watch.start(time);
        if self.mirror.is_trusted() {
            self.refresh.start(time, || match self.config.keep_neighbors {
                true => wanted(&self.mirror, self.control.name().unwrap_or_default(), &self.in_use),
                // What an earlier run asked for is released.
                false => Wanted::default(),
            });
        }
        if matches!(self.phase, Phase::Open(_)) && self.trust.deadline() <= time {
            self.look_at_trust(time);
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
            repaired: self.repaired,
            overflows: self.overflows,
            obstacles: Arc::clone(&self.obstacles),
        });
    }
}
