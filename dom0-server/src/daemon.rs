//! The daemon's one loop: events of all sources to the core, the core's effects to where they belong.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use xenflow_proto::{MacAddr, Name, control};

use crate::clock::until;
use crate::config::{Config, ConfigError, Driver, parse_remotes};
use crate::core::{Core, Effect, Event};
use crate::events::Events;
use crate::guest::limits::Hits;
use crate::guest::{self, Sessions, Tell};
use crate::inspect::explain::trace::Bridge;
use crate::inspect::socket::Control;
use crate::inspect::{self, Ask};
use crate::migration::links;
use crate::migration::shell::{self, Moves};
use crate::notify::Notifier;
use crate::nudge::{self, Nudges};
use crate::ovs::restore::{READY_AT_LAST, READY_WITHOUT_GUESTS, Stage};
use crate::ovs::{appctl, database, switch};
use crate::ports::{ControlPort, PortProblem};
use crate::reporter::Reporter;
use crate::reporter::node::{NodeReporter, say_prepared};
use crate::reporter::statistics::Keeper;
use crate::shaper::handle::Handle;
use crate::shaper::plan::Plan;
use crate::{control_port, kept, locations, shaper, tls};

/// Events that wait for the core; a source that has more waits itself, and so slows its peer.
const EVENTS: usize = 256;
/// The core never asks the switch for more at once.
const ORDERS: usize = 16;
/// How often the database is told what changed.
const STATUS_PERIOD: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(1);
/// What the daemon takes back when it ends has so long.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its certificate, key or authority.
    #[error("the certificates cannot be used")]
    Tls(#[from] tls::ConfigError),
    /// The authority that is to renew guests' certificates.
    #[error("issuer_dir cannot be used")]
    Issuer(#[from] crate::pki::PkiError),
    /// A remote.
    #[error(transparent)]
    Remote(#[from] ovsdb::RemoteParseError),
    /// The certificate is another node's.
    #[error("the certificate is of {certificate}, but the node is {node}")]
    Node {
        /// What the certificate says.
        certificate: String,
        /// What the configuration says.
        node: Name,
    },
    /// The configured name is none.
    #[error(transparent)]
    Name(#[from] xenflow_proto::identity::NameError),
}

/// Runs until `stop` resolves. Flows stay as they are then; `flow-restore-wait` is disarmed. Operators are told what
/// `happened`.
///
/// # Errors
/// [`StartError`] before anything is touched; nothing later ends the daemon.
pub async fn run(config: Config, happened: Events, stop: impl Future<Output = ()>) -> Result<(), StartError> {
    let node: Name = config.node.parse()?;
    let credentials = config.credentials();
    let server = credentials.load()?;
    if server.identity != xenflow_proto::Identity::Node(node.clone()) {
        return Err(StartError::Node { certificate: server.identity.to_string(), node });
    }
    if let Some(dir) = &config.issuer_dir {
        crate::pki::Store::open(dir)?;
    }
    happened.at(&node);
    tracing::info!(name: "daemon-up", version = env!("CARGO_PKG_VERSION"), "the daemon begins");
    let (events, mut inbox) = mpsc::channel(EVENTS);
    let (orders, inbox_of_switch) = mpsc::channel(ORDERS);
    let socket = config.ovs_rundir.join(format!("{}.mgmt", config.bridge));
    let (stage, watched) = watch::channel(Stage::Filling);
    let remotes = parse_remotes(&config.ovs_db)?;
    let bridge = config.bridge.clone();
    let (home, marked) = watch::channel(Arc::default());
    let keeper = database::ports(remotes, bridge, config.flow_restore_wait, watched, marked, events.clone());
    let keeper = tokio::spawn(keeper);
    let remotes = parse_remotes(config.xenflow_db())?;
    let is_tls = remotes.iter().any(|remote| matches!(remote, ovsdb::Remote::Ssl(_)));
    let tls = is_tls.then(|| tls::database(&credentials)).transpose()?;
    let kept = config.state_dir.as_ref().map(|dir| kept::keeper::Keeper::start(dir.join(kept::FILE)));
    let (kept, keeps) = kept.unzip();
    let database =
        database::desired(remotes.clone(), tls.clone(), node.clone(), kept.clone(), events.clone());

    let (here, watched) = watch::channel(None);
    let (moves, due) = watch::channel(locations::watch::Moves::default());
    let watcher =
        locations::watch::run(remotes, tls, node.clone(), kept.clone(), watched, due, events.clone());
    tokio::spawn(watcher);

    let plan = watch::Sender::new(None);
    let (teller, shaped) = shaper::handle::channel();
    let setup = shaper::task::Setup {
        remotes: parse_remotes(&config.ovs_db)?,
        bridge: config.bridge.clone(),
        socket: config.ovs_rundir.join(format!("{}.mgmt", config.bridge)),
        bandwidth: config.bandwidth,
    };
    tokio::spawn(shaper::task::run(setup, plan.subscribe(), teller));

    let credentials = tls::follow(credentials, server, config.issuer_dir.clone());
    let access = tls::Access::new(credentials, config.issuer_dir.clone());
    let (prepared, preparing) = watch::channel(BTreeSet::new());
    tokio::spawn(say_prepared(database.clone(), node.clone(), preparing));
    let (mut moving, frames) = Moves::start(&config, &node, access.clone(), &events, prepared);
    tokio::spawn(switch::run(socket, inbox_of_switch, frames, events.clone()));
    let sessions = Sessions::new(config.max_change_rate);
    let (ready, mut listening) = watch::channel(None);
    let own = events.clone();
    let mut listener = Listener { server: access, sessions: sessions.clone(), events, ready, current: None };
    let mut core = Core::new(node.clone(), config.max_objects_per_router)
        .with_max_bytes(config.max_bytes_per_router)
        .with_aggregation(config.fib_aggregation)
        .with_locations()
        .with_queues(config.bandwidth.driver != Driver::Off);
    if config.hold_time_s > 0 {
        core = core.with_hold_time(Duration::from_secs(config.hold_time_s.into()));
    }
    let mut nudges = Nudges::default();
    let mut notifier = Notifier::from_env();
    let begin = Instant::now();
    let asked = database.clone();
    let (_control, mut asks) = control(&config.control_socket, &happened, &shaped).await;
    let at = Arc::new(Bridge { rundir: config.ovs_rundir.clone(), name: config.bridge.clone() });
    let mut statistics = Keeper::new(node.clone(), database.clone());
    let about_node = NodeReporter::start(node.clone(), config.migration.address(), database.clone());
    let mut confirmed = None;
    let mut reporter = Reporter::new(node, database);
    let mut problems = BTreeSet::new();
    let mut tick = tokio::time::interval(STATUS_PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let counting = Duration::from_secs(config.statistics_interval_s.into());
    let mut count = (!counting.is_zero()).then(Instant::now);
    let mut connection = 0;
    let mut connected = Instant::now();
    let (mut wait, mut rest) = (None, None);
    tokio::pin!(stop);
    loop {
        let control: Option<u32> = *listening.borrow_and_update();
        let event = tokio::select! {
            () = &mut stop => break,
            _ = tick.tick() => {
                follow(&stage, &core, connection, connected);
                reporter.report(&core).await;
                about_node.report(&core, &shaped.report());
                notifier.turn(begin.elapsed(), &core.standing(asked.connection().is_ok()));
                if core.wants_counts() && core.is_connected() {
                    let _ = orders.try_send(switch::Order { connection, command: switch::Command::Poll });
                }
                Some(Event::Tick(begin.elapsed()))
            }
            Ok(()) = listening.changed() => continue,
            () = until(control.and(nudges.next())) => {
                for guest in nudges.due(Instant::now(), |router| core.session_of(router)) {
                    send_nudge(control, guest);
                }
                continue;
            }
            // Behind what came in meanwhile.
            () = tokio::task::yield_now(), if core.is_behind() => Some(Event::Turn),
            () = until(count) => {
                count = Some(Instant::now() + counting);
                if core.is_connected() {
                    // A switch that is busy with more is asked the next time.
                    let _ = orders.try_send(switch::Order { connection, command: switch::Command::Poll });
                }
                statistics.step(core.totals()).await.map(Event::Remembered)
            }
            () = until(wait) => {
                wait = None;
                Some(Event::Waited)
            }
            () = until(rest) => {
                rest = None;
                Some(Event::Rested)
            }
            Some(ask) = asks.recv() => {
                let mut answer = inspect::answer(&core, asked.connection().is_ok(), &ask.question);
                if let inspect::Answer::Trace(plan) = &mut answer {
                    plan.aim(&at);
                }
                let _ = ask.reply.send(answer);
                continue;
            }
            event = inbox.recv() => event,
        };
        let Some(event) = event else { continue };
        if let Event::Ports(ports) = &event {
            listener.follow(ports.control);
        }
        if matches!(event, Event::SwitchUp { .. }) {
            connection += 1;
            connected = Instant::now();
        }
        if matches!(event, Event::SwitchUp { .. } | Event::SwitchDown) {
            stage.send_replace(Stage::Filling);
        }
        let hits = if matches!(event, Event::Tick(_)) { sessions.take_hits() } else { Hits::new() };
        let begun = std::time::Instant::now();
        let mut effects = core.handle(event);
        if !hits.is_empty() {
            effects.extend(core.handle(Event::Limited(hits)));
        }
        if core.is_behind() {
            // Long messages get on however much else comes in.
            effects.extend(core.handle(Event::Turn));
        }
        for effect in effects {
            match effect {
                Effect::Send(batch, meters, changes) => {
                    let command = switch::Command::Send(batch, meters, changes, begun);
                    let _ = orders.send(switch::Order { connection, command }).await;
                }
                Effect::Dump(dump) => {
                    let command = switch::Command::Dump(dump);
                    let _ = orders.send(switch::Order { connection, command }).await;
                }
                Effect::Wait(pause) => wait = Some(Instant::now() + pause),
                Effect::Rest(pause) => rest = Some(Instant::now() + pause),
                Effect::Tell(id, message) if links::is_source(id) => moving.tell(id, message),
                Effect::Tell(id, message) => sessions.tell(id, Tell::Message(message)),
                Effect::Refuse(id, reason, detail) if links::is_source(id) => {
                    moving.refuse(id, reason, detail);
                }
                Effect::Refuse(id, reason, detail) => sessions.tell(id, Tell::Refuse(reason, detail)),
                Effect::Taken(id) if links::is_source(id) => moving.taken(id),
                Effect::Taken(id) => sessions.taken(id),
                Effect::Peer(said) => moving.say(said),
                Effect::Prove(proof) => {
                    prove(config.ovs_rundir.clone(), proof, connection, orders.clone(), own.clone());
                }
                Effect::Nudge(router, guest) => {
                    meet(control, guest);
                    nudges.ask(router, guest, core.session_of(router), Instant::now());
                }
            }
        }
        follow(&stage, &core, connection, connected);
        if core.confirmed_cfg() != confirmed {
            // Somebody may be waiting for it.
            confirmed = core.confirmed_cfg();
            about_node.report(&core, &shaped.report());
        }
        here.send_if_modified(|known: &mut locations::watch::Here| {
            let is_new = core.here().map(Arc::as_ptr) != known.as_ref().map(Arc::as_ptr);
            if is_new {
                *known = core.here().cloned();
            }
            is_new
        });
        shell::follow(&moves, core.due());
        shell::follow(&home, core.home());
        moving.follow(&core);
        plan.send_if_modified(|known: &mut Option<Arc<Plan>>| {
            let is_new = core.plan().map(Arc::as_ptr) != known.as_ref().map(Arc::as_ptr);
            if is_new {
                *known = core.plan().cloned();
            }
            is_new
        });
        if *core.problems() != problems {
            for problem in core.problems().difference(&problems) {
                match problem {
                    PortProblem::Unclaimed { port } => tracing::info!(name: "port-dark", port, "{problem}"),
                    PortProblem::Ambiguous { .. } => tracing::warn!(name: "port-dark", "{problem}"),
                }
            }
            for gone in problems.difference(core.problems()) {
                tracing::info!(name: "problem-gone", "no more: {gone}");
            }
            problems.clone_from(core.problems());
        }
    }
    tracing::info!(name: "daemon-stops", "the daemon ends: the flows stay");
    notifier.stopping();
    // Nobody will fill a switch that starts from now on: it must not wait for that.
    stage.send_replace(Stage::Stopping);
    let _ = tokio::time::timeout(LAST_WORDS, keeper).await;
    if let (Some(kept), Some(keeps)) = (kept, keeps) {
        kept.end();
        let _ = tokio::time::timeout(LAST_WORDS, keeps).await;
    }
    Ok(())
}

/// Says when the switch has all it needs to go on by itself, once for each connection.
fn follow(stage: &watch::Sender<Stage>, core: &Core, connection: u64, connected: Instant) {
    if !core.is_connected() || *stage.borrow() != Stage::Filling {
        return;
    }
    let since = connected.elapsed();
    let told = || core.has_heard_all() || since >= READY_WITHOUT_GUESTS;
    if since >= READY_AT_LAST || (core.is_in_step() && told()) {
        stage.send_replace(Stage::Ready(connection));
    }
}

/// The control socket and what comes by it. A daemon without one forwards all the same.
async fn control(path: &Path, happened: &Events, shaped: &Handle) -> (Option<Control>, mpsc::Receiver<Ask>) {
    match inspect::socket::open(path, happened, shaped).await {
        Ok((control, asks)) => (Some(control), asks),
        Err(error) => {
            tracing::warn!(error = %crate::chain::Chain(&error), "no control socket: operators' questions are not answered");
            (None, mpsc::channel(1).1)
        }
    }
}

/// Has the datapath forget what was so before, off the main loop.
fn prove(
    rundir: PathBuf,
    proof: u64,
    connection: u64,
    orders: mpsc::Sender<switch::Order>,
    events: mpsc::Sender<Event>,
) {
    tokio::spawn(async move {
        let begun = Instant::now();
        let said = appctl::revalidated(&rundir, || {
            // A switch that is as busy as that looks by itself.
            let _ = orders.try_send(switch::Order { connection, command: switch::Command::Poke });
        });
        let said = said.await;
        match &said {
            Ok(()) => tracing::debug!(proof, took = ?begun.elapsed(), "the datapath has nothing of before"),
            Err(error) => {
                tracing::warn!(error = %crate::chain::Chain(error), "nobody knows what the datapath does");
            }
        }
        let _ = events.send(Event::Proven(proof, said.is_ok())).await;
    });
}

/// Tells the kernel whose control addresses these are, off the main loop. It would ask, once a second, a guest that is suspended, and
/// keep the nudges until then.
fn meet(control: Option<u32>, guest: MacAddr) {
    let Some(ifindex) = control else { return };
    tokio::spawn(async move {
        if let Err(error) = control_port::meet(ifindex, guest).await {
            tracing::debug!(%guest, %error, "the kernel does not take the guest's address");
        }
    });
}

/// Sends a nudge by the control port of that number, off the main loop.
fn send_nudge(control: Option<u32>, guest: MacAddr) {
    let Some(ifindex) = control else { return };
    tokio::spawn(async move {
        match nudge::send(ifindex, guest).await {
            Ok(()) => tracing::trace!(%guest, "nudged"),
            // There may be no such guest yet.
            Err(error) => tracing::trace!(%guest, %error, "not nudged"),
        }
    });
}

/// The task that listens on the control port, wherever that port is.
struct Listener {
    server: tls::Access,
    sessions: Sessions,
    events: mpsc::Sender<Event>,
    /// The number of the control port, while it is ready.
    ready: watch::Sender<Option<u32>>,
    current: Option<(u32, JoinHandle<()>)>,
}

impl Listener {
    fn follow(&mut self, port: Option<ControlPort>) {
        let ifindex = port.map(|port| port.ifindex);
        if self.current.as_ref().map(|(ifindex, _)| *ifindex) == ifindex {
            return;
        }
        if let Some((_, task)) = self.current.take() {
            task.abort();
        }
        self.ready.send_replace(None);
        let Some(ifindex) = ifindex else { return };
        let (server, sessions, events) = (self.server.clone(), self.sessions.clone(), self.events.clone());
        let is_ready = self.ready.clone();
        let task = tokio::spawn(async move {
            loop {
                match control_port::ready(ifindex).await {
                    Err(error) => tracing::error!(%error, "{} cannot be set up", control::HOST_PORT_NAME),
                    Ok(()) => {
                        is_ready.send_replace(Some(ifindex));
                        let (server, sessions, events) = (server.clone(), sessions.clone(), events.clone());
                        let Err(error) = guest::listen(ifindex, server, sessions, events).await;
                        tracing::error!(%error, "cannot listen for guests");
                    }
                }
                tokio::time::sleep(RETRY).await;
            }
        });
        self.current = Some((ifindex, task));
    }
}
