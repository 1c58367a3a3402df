//! The kernel, its guest client, two hosts and the connections between them, and the steps that they take.

mod laws;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::BytesMut;
use dom0_server::core::SessionId;
use xenflow_proto::digest::Digest;
use xenflow_proto::frame::MAX_FRAME;
use xenflow_proto::message::RefusalReason;
use xenflow_proto::{FrameDecoder, GuestMessage, HostMessage, Key, Object};
use xenflow_tests::oracle::random::Random;

use crate::guest::{AUDIT_AFTER, AUDIT_SOON, Ended, Guest};
use crate::host::{Counts, Host, Output};
use crate::kernel::{Kernel, Speech};

/// What is wrong on purpose.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// The client does not dump after silent deletions.
    pub(crate) trusts_silence: bool,
    /// The client does not dump by the clock.
    pub(crate) trusts_events: bool,
    /// The client takes whatever an audit changed for repaired.
    pub(crate) is_hasty: bool,
    /// Hosts withdraw what a lost session told.
    pub(crate) withdraws: bool,
    /// The client starts anew at each move.
    pub(crate) forgets: bool,
    /// The client does not hear which rejections have ended.
    pub(crate) overlooks: bool,
}

/// Tables that both hosts may come to hold are remembered at so many quiet moments.
const COPIES: usize = 4;
/// The greatest limit of prefixes, if there is one: kernels have more of them, and fewer.
const MAX_ROUTES: u8 = 12;

/// A step, and how often it is taken.
#[derive(Debug, Clone, Copy)]
enum Op {
    Act(Speech),
    Read,
    List { late: bool },
    Dump,
    Survey,
    Connect,
    Transmit,
    DeliverUp,
    DeliverDown,
    Work,
    Answer,
    Break { whole: bool },
    GuestNotices,
    HostNotices,
    HostAsks,
    Time { ms: u64 },
    SwitchDown,
    SwitchUp,
    Refuse,
    Limit,
    Waited,
    Turn,
    ClientRestarts,
    Reboot,
    DaemonRestarts,
    Move,
    Copy,
}

const OPS: [(usize, Op); 32] = [
    (110, Op::Act(Speech::Prompt)),
    (10, Op::Act(Speech::Late)),
    (2, Op::Act(Speech::Silent)),
    (100, Op::Read),
    (40, Op::List { late: false }),
    (10, Op::List { late: true }),
    (40, Op::Dump),
    (15, Op::Survey),
    (40, Op::Connect),
    (90, Op::Transmit),
    (90, Op::DeliverUp),
    (90, Op::DeliverDown),
    (60, Op::Work),
    (60, Op::Answer),
    (8, Op::Break { whole: false }),
    (4, Op::Break { whole: true }),
    (30, Op::GuestNotices),
    (20, Op::HostNotices),
    (2, Op::HostAsks),
    (60, Op::Time { ms: 20 }),
    (3, Op::Time { ms: 2100 }),
    (2, Op::SwitchDown),
    (20, Op::SwitchUp),
    (3, Op::Refuse),
    (4, Op::Limit),
    (10, Op::Waited),
    (40, Op::Turn),
    (2, Op::ClientRestarts),
    (1, Op::Reboot),
    (2, Op::DaemonRestarts),
    (4, Op::Move),
    (3, Op::Copy),
];

/// Frames under way in both directions.
#[derive(Debug)]
struct Connection {
    host: usize,
    up: VecDeque<BytesMut>,
    down: VecDeque<BytesMut>,
    has_hello: bool,
    /// The host has taken the last message.
    is_taken: bool,
    /// Nothing more gets through, not even the news of that.
    is_cut: bool,
    /// The host has closed it, or does not know it any more.
    is_gone: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct World {
    random: Random,
    faults: Faults,
    now: Duration,
    boots: u64,
    kernel: Kernel,
    /// This world's kernels may conceal what they do.
    conceals: bool,
    /// This world's clients audit so often: rarely, so that audits do not make up for what else is wrong, or often.
    audit_after: Duration,
    guest: Guest,
    hosts: [Host; 2],
    /// Where the guest is.
    place: usize,
    connections: BTreeMap<u64, Connection>,
    /// The guest's.
    current: Option<u64>,
    next_id: u64,
    /// What the last host that took a session held.
    held: Option<Digest>,
    /// The host that was told something last.
    told: Option<usize>,
    /// A session with the other one, that has resumed and told nothing yet.
    resumed: Option<u64>,
    /// The tables at quiet moments of this boot, the last ones.
    copies: VecDeque<BTreeMap<Key, Object>>,
    /// Their digests, of all since the client started: a host held them, so the client knows of them.
    known: HashSet<Digest>,
    counts: Counts,
    trace: VecDeque<Op>,
}

impl World {
    pub(crate) fn new(mut random: Random, faults: Faults) -> Self {
        let now = Duration::from_secs(1);
        let audit_after = *random.pick(&[AUDIT_SOON, AUDIT_AFTER]);
        let mut kernel = Kernel::new();
        let guest = Guest::start(1, &mut kernel, now, audit_after, faults);
        let mut hosts = ["a", "b"].map(|node| Host::new(node, random.percent(50), faults.withdraws));
        hosts[0].plug(true);
        Self {
            // The controls see what they are for, and nothing else.
            conceals: !faults.trusts_silence && (faults.trusts_events || random.percent(50)),
            audit_after,
            random,
            faults,
            now,
            boots: 1,
            kernel,
            guest,
            hosts,
            place: 0,
            connections: BTreeMap::new(),
            current: None,
            next_id: 1,
            held: None,
            told: None,
            resumed: None,
            copies: VecDeque::new(),
            known: HashSet::new(),
            counts: Counts::default(),
            trace: VecDeque::new(),
        }
    }

    /// The last steps.
    pub(crate) fn trace(&self) -> String {
        format!("{:?}", self.trace)
    }

    /// Takes steps; every now and then, and at the end, all becomes quiet and is compared.
    pub(crate) fn live(&mut self, steps: u64) -> Result<Counts, String> {
        for step in 1..=steps {
            let op = self.random.weighted(&OPS);
            if self.trace.len() == 60 {
                self.trace.pop_front();
            }
            self.trace.push_back(op);
            self.step(op)?;
            self.hosts.iter_mut().try_for_each(Host::look)?;
            if self.random.below(150) == 0 || step == steps {
                self.settle()?;
                self.compare()?;
                if !self.faults.withdraws && self.random.percent(30) {
                    self.return_unchanged()?;
                }
                if self.random.percent(50) {
                    self.begin_audit();
                }
            }
        }
        self.count();
        Ok(self.hosts.iter().fold(self.counts, |total, host| total + host.counts))
    }

    fn step(&mut self, op: Op) -> Result<(), String> {
        let some = 1 + self.random.below(6);
        let host = self.random.below(2);
        match op {
            Op::Act(Speech::Silent) if !self.conceals => {}
            Op::Act(speech) => self.kernel.act(speech, &mut self.random),
            Op::Read => self.guest.read(&mut self.kernel, 2 * some, self.now),
            Op::List { late } => self.kernel.list(2 * some, late, &mut self.random),
            Op::Dump => self.guest.dump(&mut self.kernel, self.now),
            Op::Survey => self.guest.survey(&self.kernel, self.now),
            Op::Connect => self.connect(),
            Op::Transmit => self.transmit(some),
            Op::DeliverUp => self.deliver_up(some)?,
            Op::DeliverDown => self.deliver_down(some)?,
            Op::Work => (0..some).for_each(|_| self.hosts[host].work()),
            Op::Answer => {
                for _ in 0..some {
                    let out = self.hosts[host].answer();
                    self.send(out)?;
                }
            }
            Op::Break { whole } => self.cut(whole),
            Op::GuestNotices => self.guest_notices(),
            Op::HostNotices => self.host_notices()?,
            Op::HostAsks => self.host_asks()?,
            Op::Time { ms } => self.pass(Duration::from_millis(ms)),
            Op::SwitchDown => {
                let out = self.hosts[host].switch_down();
                self.send(out)?;
            }
            Op::SwitchUp => {
                let out = self.hosts[host].switch_up();
                self.send(out)?;
            }
            Op::Refuse => {
                let culprit = self.random.percent(50).then(|| self.random.below(8));
                self.hosts[host].refuse(culprit);
            }
            Op::Limit => {
                let max = self.random.percent(70).then(|| self.random.between(1, MAX_ROUTES).into());
                let out = self.hosts[host].limit(max);
                self.send(out)?;
            }
            Op::Waited => {
                let out = self.hosts[host].waited();
                self.send(out)?;
            }
            Op::Turn => {
                let out = self.hosts[host].turn();
                self.send(out)?;
            }
            Op::ClientRestarts => self.start_client(),
            Op::Reboot => {
                self.boots += 1;
                let concealed = self.kernel.concealed;
                self.kernel = Kernel::new();
                self.kernel.concealed = concealed;
                self.copies.clear();
                self.start_client();
            }
            Op::DaemonRestarts => self.restart_daemon(host)?,
            Op::Move => self.migrate()?,
            Op::Copy => self.copy()?,
        }
        Ok(())
    }

    fn connect(&mut self) {
        if self.current.is_some() || !self.guest.mirror.is_trusted() {
            return;
        }
        let connection = Connection {
            host: self.place,
            up: VecDeque::new(),
            down: VecDeque::new(),
            has_hello: false,
            is_taken: true,
            is_cut: false,
            is_gone: false,
        };
        self.connections.insert(self.next_id, connection);
        self.current = Some(self.next_id);
        self.next_id += 1;
        self.guest.connect(self.now);
    }

    fn mine(&mut self) -> Option<&mut Connection> {
        self.connections.get_mut(&self.current?)
    }

    fn transmit(&mut self, messages: usize) {
        for _ in 0..messages {
            let Some(message) = self.guest.next_message() else { return };
            let mut frame = BytesMut::new();
            message.encode(&mut frame);
            if let Some(connection) = self.mine().filter(|it| !it.is_cut) {
                connection.up.push_back(frame);
            }
        }
    }

    /// To the hosts: also what a guest said before it lost the connection.
    fn deliver_up(&mut self, messages: usize) -> Result<(), String> {
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        let Some(&id) = ids.get(self.random.below(ids.len().max(1))) else { return Ok(()) };
        for _ in 0..messages {
            let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
            if connection.is_gone {
                connection.up.clear();
            } else if !connection.is_taken {
                return Ok(());
            }
            let Some(frame) = connection.up.pop_front() else { return Ok(()) };
            let message = decode(frame, GuestMessage::decode)?;
            let (session, has_hello, host) = (SessionId(id), connection.has_hello, connection.host);
            connection.is_taken = !std::mem::replace(&mut connection.has_hello, true);
            self.look(id, host, &message)?;
            let out = match message {
                GuestMessage::Hello(hello) if !has_hello => self.hosts[host].open(session, hello),
                other if has_hello => self.hosts[host].said(session, other),
                other => return Err(format!("{other:?} before Hello")),
            };
            self.send(out)?;
        }
        Ok(())
    }

    /// A session starts as it should, from what its host holds.
    fn look(&mut self, id: u64, host: usize, message: &GuestMessage) -> Result<(), String> {
        match message {
            GuestMessage::SnapshotBegin(_) if Some(id) == self.current => {
                if let Some(held) = self.held.filter(|held| self.known.contains(held)) {
                    return Err(format!("the client told all to a host of {held:?}, that it knew"));
                }
            }
            GuestMessage::Resume(_) => {
                self.resumed = self.told.is_some_and(|told| told != host).then_some(id);
            }
            GuestMessage::Changes { .. } => {
                self.counts.older += u64::from(self.resumed.take() == Some(id));
                self.told = Some(host);
            }
            GuestMessage::SnapshotEnd(_) => self.told = Some(host),
            _ => {}
        }
        Ok(())
    }

    fn deliver_down(&mut self, messages: usize) -> Result<(), String> {
        for _ in 0..messages {
            let Some(frame) = self.mine().and_then(|it| it.down.pop_front()) else { return Ok(()) };
            let message = decode(frame, HostMessage::decode)?;
            match &message {
                HostMessage::Welcome(welcome) => self.held = welcome.held,
                HostMessage::Ack { rejected, accepted, .. }
                    if !rejected.is_empty() || !accepted.is_empty() =>
                {
                    self.counts.accepted += accepted.len() as u64;
                    let id = self.current.unwrap_or_default();
                    let known = self.connections.get(&id).filter(|it| !it.is_gone).map(|it| it.host);
                    if let Some(host) = known {
                        let out = self.hosts[host].told(SessionId(id));
                        self.send(out)?;
                    }
                }
                _ => {}
            }
            match self.guest.hear(message, self.now) {
                Ok(()) => {}
                Err(Ended::Lost) => self.leave(),
                Err(Ended::Broken(rule)) => return Err(format!("the host broke a rule: {rule}")),
            }
        }
        Ok(())
    }

    fn send(&mut self, out: Vec<Output>) -> Result<(), String> {
        for output in out {
            match output {
                Output::Tell(
                    _,
                    HostMessage::Refusal { reason: RefusalReason::Protocol | RefusalReason::Limit, detail },
                ) => {
                    return Err(format!("the guest broke a rule: {detail}"));
                }
                Output::Tell(id, message) => {
                    let connection = self.connections.get_mut(&id.0);
                    if let Some(connection) = connection.filter(|it| !it.is_cut && !it.is_gone) {
                        let mut frame = BytesMut::new();
                        message.encode(&mut frame);
                        connection.down.push_back(frame);
                    }
                }
                Output::Taken(id) => {
                    if let Some(connection) = self.connections.get_mut(&id.0) {
                        connection.is_taken = true;
                    }
                }
                Output::Nudge => self.guest.probe(self.now),
                Output::Close(id) => {
                    if let Some(connection) = self.connections.get_mut(&id.0) {
                        connection.is_gone = true;
                    }
                }
            }
        }
        Ok(())
    }

    /// The guest's connection breaks. Of what is under way, the first arrive, and neither end knows how many.
    fn cut(&mut self, whole: bool) {
        let arrive = (self.random.bits(), self.random.bits());
        let Some(connection) = self.mine() else { return };
        connection.is_cut = true;
        if !whole {
            let first = |queue: &VecDeque<BytesMut>, draw: u64| draw as usize % (queue.len() + 1);
            connection.up.truncate(first(&connection.up, arrive.0));
            connection.down.truncate(first(&connection.down, arrive.1));
        }
    }

    /// Hears of the end of its connection, behind what was sent before.
    fn guest_notices(&mut self) {
        if self.mine().is_some_and(|it| it.down.is_empty() && (it.is_cut || it.is_gone)) {
            self.leave();
        }
    }

    /// The guest has no connection any more.
    fn leave(&mut self) {
        if let Some(connection) = self.mine() {
            connection.is_cut = true;
            connection.down.clear();
        }
        self.current = None;
        self.guest.disconnect();
    }

    /// One of the hosts hears of the end of a connection, behind what was sent before.
    fn host_notices(&mut self) -> Result<(), String> {
        let over = |it: &Connection| it.is_gone || (it.is_cut && it.up.is_empty());
        let Some(id) = self.connections.iter().find(|(_, it)| over(it)).map(|(id, _)| *id) else {
            return Ok(());
        };
        let connection = &self.connections[&id];
        let (is_known, host) = (connection.has_hello && !connection.is_gone, connection.host);
        if Some(id) == self.current {
            // The guest's end goes when the guest notices.
            self.connections.entry(id).and_modify(|it| (it.is_gone, it.is_cut) = (true, true));
        } else {
            self.connections.remove(&id);
        }
        if is_known {
            let out = self.hosts[host].closed(SessionId(id));
            self.send(out)?;
        }
        Ok(())
    }

    fn host_asks(&mut self) -> Result<(), String> {
        let known = |it: &&Connection| it.has_hello && !it.is_gone;
        let Some((id, host)) =
            self.current.and_then(|id| Some((id, self.connections.get(&id).filter(known)?.host)))
        else {
            return Ok(());
        };
        let out = self.hosts[host].silent(SessionId(id));
        self.send(out)
    }

    fn pass(&mut self, time: Duration) {
        // No event takes that long.
        self.kernel.speak();
        self.now += time;
        if self.guest.is_over(self.now) {
            self.leave();
        }
    }

    fn start_client(&mut self) {
        self.cut(false);
        self.leave();
        self.known.clear();
        self.count();
        self.guest = Guest::start(self.boots, &mut self.kernel, self.now, self.audit_after, self.faults);
    }

    /// An audit of tables that are quiet begins. What happens from now on is a race.
    fn begin_audit(&mut self) {
        if self.conceals && self.random.percent(50) {
            self.kernel.act(Speech::Silent, &mut self.random);
        }
        self.pass(AUDIT_AFTER);
        self.guest.dump(&mut self.kernel, self.now);
        if self.random.percent(50) {
            self.kernel.act(Speech::Late, &mut self.random);
            self.kernel.list(usize::MAX, false, &mut self.random);
            self.kernel.list(usize::MAX, false, &mut self.random);
            self.guest.read(&mut self.kernel, usize::MAX, self.now);
        }
    }

    /// What the client did that ends here, and its kernel.
    fn count(&mut self) {
        self.counts.audits += std::mem::take(&mut self.guest.audits);
        self.counts.repaired += std::mem::take(&mut self.guest.repaired);
        self.counts.concealed = self.kernel.concealed;
    }

    fn restart_daemon(&mut self, host: usize) -> Result<(), String> {
        for connection in self.connections.values_mut().filter(|it| it.host == host) {
            connection.is_gone = true;
        }
        let out = self.hosts[host].restart();
        self.send(out)
    }

    /// The guest is on the other host now, which resets its connection as soon as the guest says something.
    fn migrate(&mut self) -> Result<(), String> {
        self.cut(false);
        let out = self.hosts[self.place].plug(false);
        self.send(out)?;
        self.place = 1 - self.place;
        let out = self.hosts[self.place].plug(true);
        self.send(out)?;
        if self.faults.forgets {
            let known = std::mem::take(&mut self.known);
            self.start_client();
            self.known = known;
        }
        Ok(())
    }

    /// The host where the guest is not gets tables of some time ago.
    fn copy(&mut self) -> Result<(), String> {
        let at = self.random.below(self.copies.len().max(1));
        let Some(tables) = self.copies.get(at) else { return Ok(()) };
        let out = self.hosts[1 - self.place].copy(*self.guest.boot_id(), tables);
        self.send(out)
    }
}

fn decode<T, E: std::fmt::Display>(
    frame: BytesMut,
    decode: impl Fn(bytes::Bytes) -> Result<T, E>,
) -> Result<T, String> {
    let mut decoder = FrameDecoder::new(MAX_FRAME);
    *decoder.buffer() = frame;
    let frame = decoder.next_frame().map_err(|error| error.to_string())?.ok_or("half a frame")?;
    decode(frame).map_err(|error| error.to_string())
}
