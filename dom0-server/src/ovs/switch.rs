//! OpenFlow with the integration bridge over its `<bridge>.mgmt` socket: connects, stays connected, sends batches
//! as bundles and dumps flows.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use openflow::action::port;
use openflow::group::ALL_GROUPS;
use openflow::meter::ALL_METERS;
use openflow::{
    BundleId, Config, ErrorCode, Event as Said, Flow, FlowFilter, FlowMod, Match, Message, MultipartReply,
    MultipartRequest, Session,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use xenflow_flow_app::pipeline::{self, cookie};
use xenflow_flow_app::{Dump, FlowChange, Heard, MeterChange};

use crate::clock::until;
use crate::core::{BatchId, Event, MeterError};
use crate::counters::Poll;
use crate::migration::carrier::task::Sending;
use crate::migration::shell::Frames;

/// What the core wants of the switch, and which connection it means: the first is 1. What it asked of an earlier
/// one is void; it asks again.
#[derive(Debug)]
pub struct Order {
    /// How many times the core had been told [`Event::SwitchUp`].
    pub connection: u64,
    /// What to do.
    pub command: Command,
}

/// Something to do for the core.
#[derive(Debug)]
pub enum Command {
    /// Changes of meters, then one bundle. The core was asked for it at this instant.
    Send(BatchId, Vec<MeterChange>, Vec<FlowChange>, Instant),
    /// All that is asked for, then [`Event::DumpEnd`].
    Dump(Dump),
    /// What the switch has counted, unless the last answer has not come yet.
    Poll,
    /// A change that changes nothing: the switch looks at all that its datapath holds.
    Poke,
}

/// Flows whose counters are looked at: those of tables that ports, vifs and neighbors bound, never the routes.
fn counted() -> impl Iterator<Item = FlowFilter> {
    let of = |table, cookie| FlowFilter {
        table,
        cookie,
        cookie_mask: cookie::CATEGORY_MASK,
        ..FlowFilter::default()
    };
    let topology =
        [pipeline::ADMISSION, pipeline::LOCAL, pipeline::EGRESS].map(|table| of(table, cookie::TOPOLOGY));
    let routers = [pipeline::ROUTER, pipeline::NEXT_HOP].map(|table| of(table, cookie::ROUTERS));
    topology.into_iter().chain(routers)
}

/// Bytes for the switch, beyond which frames wait.
const MOST_OUTPUT: usize = 1 << 20;

/// A flow in a table that no packet comes to, gone by itself after a second.
fn poke() -> FlowMod {
    let flow = Flow::new(IDLE_TABLE, 0, 0, Match::any());
    FlowMod::add(Flow { hard_timeout: 1, ..flow })
}

/// No packet comes to this table, and nothing in it is ours ([`cookie::MAGIC`]).
const IDLE_TABLE: u8 = 250;

/// A switch that is busy with a bundle of the largest size answers no echo meanwhile.
const PROBE: Duration = Duration::from_secs(30);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Down {
    #[error("cannot connect to {path}")]
    Connect {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    #[error("the switch closed the connection")]
    Closed,
    #[error("the conversation failed")]
    Session(#[from] openflow::SessionError),
    #[error("a message cannot be sent")]
    Encode(#[from] openflow::EncodeError),
    #[error("the daemon stops")]
    Stopped,
}

/// Runs until the core is gone.
pub async fn run(
    socket: PathBuf,
    mut orders: mpsc::Receiver<Order>,
    mut frames: Frames,
    events: mpsc::Sender<Event>,
) {
    let mut pause = BACKOFF_MIN;
    let mut connection = 0;
    loop {
        let before = connection;
        let Err(reason) = converse(&socket, &mut orders, &mut frames, &events, &mut connection).await;
        if matches!(reason, Down::Stopped) {
            return;
        }
        if connection > before {
            tracing::warn!(name: "switch-lost", error = &reason as &dyn std::error::Error, "the switch is gone");
            pause = BACKOFF_MIN;
            if events.send(Event::SwitchDown).await.is_err() {
                return;
            }
        } else {
            tracing::debug!(error = &reason as &dyn std::error::Error, "no switch yet");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

/// What the answers of one connection belong to.
#[derive(Debug, Default)]
struct Pending {
    /// The question which meters there can be: the switch counts as up when it has answered.
    features: Option<u32>,
    is_up: bool,
    /// With when the core was asked for them.
    bundles: HashMap<BundleId, (BatchId, Instant)>,
    /// Changes of meters, by their requests; forgotten when the bundle after them is answered.
    meters: HashMap<u32, (BatchId, MeterChange)>,
    /// Requests of a dump; the last one ends it.
    dump: BTreeSet<u32>,
    /// Requests of a poll, and what has been answered.
    poll: BTreeSet<u32>,
    counted: Poll,
    /// Barriers behind frames, by their requests.
    confirms: HashMap<u32, oneshot::Sender<()>>,
}

impl Pending {
    /// A part, and the end of the dump if it is the last one.
    fn part_of_dump(&mut self, part: Event, xid: u32, more: bool) -> Vec<Event> {
        if !self.dump.contains(&xid) {
            return Vec::new();
        }
        let end = !more && self.dump.remove(&xid) && self.dump.is_empty();
        [part].into_iter().chain(end.then_some(Event::DumpEnd)).collect()
    }

    /// A part of a poll, and all of it if it is the last one.
    fn part_of_poll(&mut self, xid: u32, more: bool) -> Vec<Event> {
        let end = !more && self.poll.remove(&xid) && self.poll.is_empty();
        end.then(|| Event::Counted(std::mem::take(&mut self.counted))).into_iter().collect()
    }

    /// A bundle was answered, so long after the core was asked for it.
    fn bundle(&mut self, id: BundleId) -> Option<(BatchId, Duration)> {
        let (batch, sent) = self.bundles.remove(&id)?;
        self.meters.retain(|_, (of, _)| *of != batch);
        Some((batch, sent.elapsed()))
    }

    fn up(&mut self, has_meters: bool) -> Vec<Event> {
        self.features = None;
        self.is_up = true;
        vec![Event::SwitchUp { has_meters }]
    }
}

async fn converse(
    path: &Path,
    orders: &mut mpsc::Receiver<Order>,
    frames: &mut Frames,
    events: &mpsc::Sender<Event>,
    connection: &mut u64,
) -> Result<std::convert::Infallible, Down> {
    let stream = UnixStream::connect(path).await;
    let mut stream = stream.map_err(|source| Down::Connect { path: path.into(), source })?;
    let config = Config { probe_interval: PROBE, ..Config::default() };
    let mut session = Session::new(config, Instant::now());
    let mut pending = Pending::default();
    let mut input = BytesMut::with_capacity(64 * 1024);
    let (mut reader, mut writer) = stream.split();
    let mut output = bytes::Bytes::new();
    loop {
        while let Some(said) = session.poll_event() {
            if matches!(said, Said::Up(_)) {
                let request = MultipartRequest::MeterFeatures;
                pending.features = Some(session.send(&Message::MultipartRequest(request))?);
            }
            if let Said::PacketIn(packet) = said {
                // What nobody can take in at once is lost, as in any queue.
                if let Some(heard) = Heard::decode(&packet.userdata) {
                    let _ = frames.heard.try_send((heard, packet.data));
                }
                continue;
            }
            for event in translate(said, &mut pending) {
                *connection += u64::from(matches!(event, Event::SwitchUp { .. }));
                events.send(event).await.map_err(|_| Down::Stopped)?;
            }
        }
        if output.is_empty() {
            output = session.poll_transmit().unwrap_or_default();
        }
        let deadline = session.poll_timeout().map(|(at, _)| at);
        let timeout = until(deadline.map(Into::into));
        tokio::select! {
            read = reader.read_buf(&mut input) => {
                if read? == 0 {
                    return Err(Down::Closed);
                }
                session.handle_input(&input, Instant::now())?;
                input.clear();
            }
            written = writer.write_buf(&mut output), if !output.is_empty() => { written?; }
            Some(sending) = frames.sends.recv(), if pending.is_up && session.pending_output() < MOST_OUTPUT => {
                match sending {
                    Sending::Frame(packet) => _ = session.send(&Message::PacketOut(packet))?,
                    Sending::Confirm(reply) => _ = pending.confirms.insert(session.send_barrier(), reply),
                }
            }
            order = orders.recv(), if pending.is_up => {
                let order = order.ok_or(Down::Stopped)?;
                if order.connection != *connection {
                    continue;
                }
                match order.command {
                    Command::Send(batch, meters, changes, begun) => {
                        for change in meters {
                            let xid = session.send(&Message::from(change.clone()))?;
                            pending.meters.insert(xid, (batch, change));
                        }
                        let messages: Vec<Message> = changes.into_iter().map(Message::from).collect();
                        let bundle = session.send_bundle(&messages)?;
                        pending.bundles.insert(bundle, (batch, begun));
                    }
                    Command::Poke => _ = session.send(&Message::FlowMod(poke()))?,
                    Command::Poll if !pending.poll.is_empty() => {}
                    Command::Poll => {
                        let flows = counted().map(MultipartRequest::Flows);
                        let rest = [MultipartRequest::PortStats(port::ANY), MultipartRequest::MeterStats(ALL_METERS)];
                        for request in flows.chain(rest) {
                            pending.poll.insert(session.send(&Message::MultipartRequest(request))?);
                        }
                    }
                    Command::Dump(Dump { flows, groups_and_meters }) => {
                        let whole = [MultipartRequest::Groups(ALL_GROUPS), MultipartRequest::Meters(ALL_METERS)];
                        let whole = whole.into_iter().filter(|_| groups_and_meters);
                        for request in flows.into_iter().map(MultipartRequest::Flows).chain(whole) {
                            pending.dump.insert(session.send(&Message::MultipartRequest(request))?);
                        }
                    }
                }
            }
            () = timeout => session.handle_timeout(Instant::now())?,
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "a switch says more than is listened to")]
fn translate(said: Said, pending: &mut Pending) -> Vec<Event> {
    match said {
        Said::Up(features) => {
            let datapath = format_args!("{:016x}", features.datapath_id);
            tracing::info!(name: "switch-up", datapath, "switch connected");
            Vec::new()
        }
        Said::Multipart { xid, body: MultipartReply::MeterFeatures(meters), .. }
            if pending.features == Some(xid) =>
        {
            pending.up(meters.max_meters > 0 && meters.max_bands > 0)
        }
        Said::Error { xid, error } if pending.features == Some(xid) => {
            tracing::warn!(%error, "the switch does not say which meters it can have");
            pending.up(false)
        }
        Said::BundleCommitted { id } => {
            let confirmed = pending.bundle(id).map(|(batch, took)| Event::Confirmed(batch, took));
            confirmed.into_iter().collect()
        }
        Said::BundleFailed { id, errors } => {
            for (_, error) in errors.iter().filter(|(index, _)| index.is_none()) {
                tracing::debug!(%error, "a bundle failed");
            }
            let culprits = errors.into_iter().filter_map(|(index, error)| Some((index?, error.code)));
            let refused = pending.bundle(id).map(|(batch, _)| Event::Refused(batch, culprits.collect()));
            refused.into_iter().collect()
        }
        Said::BarrierReply { xid } => {
            // Who asked may be gone.
            let _ = pending.confirms.remove(&xid).map(|reply| reply.send(()));
            Vec::new()
        }
        Said::Flows { xid, flows, more } if pending.poll.contains(&xid) => {
            pending.counted.flows.extend(flows);
            pending.part_of_poll(xid, more)
        }
        Said::Multipart { xid, body: MultipartReply::PortStats(ports), more }
            if pending.poll.contains(&xid) =>
        {
            pending.counted.ports.extend(ports);
            pending.part_of_poll(xid, more)
        }
        Said::Multipart { xid, body: MultipartReply::MeterStats(meters), more }
            if pending.poll.contains(&xid) =>
        {
            pending.counted.meters.extend(meters);
            pending.part_of_poll(xid, more)
        }
        Said::Flows { xid, flows, more } => {
            let flows = flows.into_iter().map(|described| described.flow).collect();
            pending.part_of_dump(Event::Dumped(flows), xid, more)
        }
        Said::Multipart { xid, body: MultipartReply::Groups(groups), more } => {
            pending.part_of_dump(Event::DumpedGroups(groups), xid, more)
        }
        Said::Multipart { xid, body: MultipartReply::Meters(meters), more } => {
            pending.part_of_dump(Event::DumpedMeters(meters), xid, more)
        }
        Said::Error { xid, error } => {
            if let Some((_, change)) = pending.meters.remove(&xid) {
                let is_drift = [ErrorCode::METER_EXISTS, ErrorCode::UNKNOWN_METER].contains(&error.code);
                let error = MeterError { is_drift, reason: error.to_string() };
                return vec![Event::MeterRefused(change, error)];
            }
            if pending.dump.contains(&xid) {
                // What else is answered belongs to no dump any more.
                pending.dump.clear();
                return vec![Event::DumpFailed(error.to_string())];
            }
            if pending.poll.contains(&xid) {
                // A switch without meters, maybe: the rest counts all the same.
                tracing::debug!(%error, "a question for counters is not answered");
                return pending.part_of_poll(xid, false);
            }
            tracing::error!(name: "problem", xid, %error, "the switch reports an error");
            Vec::new()
        }
        other => {
            tracing::trace!(?other, "message of the switch");
            Vec::new()
        }
    }
}
