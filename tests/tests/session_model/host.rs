//! A host without its I/O: the real core, a switch that is a few maps, and the rule that a lost session withdraws
//! nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Add;
use std::time::Duration;

use dom0_server::core::{Core, Effect, Event, MeterError, SessionId};
use dom0_server::db::{self, Desired, Segment, Vif, VifNumber, row};
use dom0_server::ports::{ControlPort, SwitchPort, SwitchPorts, bind};
use dom0_server::queues::Numbers;
use openflow::{Action, ErrorCode, Flow, Group, Instruction, Meter};
use ovsdb::Uuid;
use xenflow_flow_app::pipeline::cookie;
use xenflow_flow_app::{App, FlowChange, FlowKey, MeterChange, RouterId};
use xenflow_proto::message::GuestMessage;
use xenflow_proto::{Change, HostMessage, Identity, Key, Name, Object, Seq, VlanId, control};

use crate::kernel::{LINKS, mac};

/// Objects of one guest that a host keeps.
const LIMIT: usize = 10_000;
const ROUTER: RouterId = RouterId(1);

/// For a guest.
#[derive(Debug)]
pub(crate) enum Output {
    Tell(SessionId, HostMessage),
    Close(SessionId),
    /// The host takes this session's next message.
    Taken(SessionId),
    /// The guest is to look whether it speaks with the right host.
    Nudge,
}

/// What the laws were tried on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) snapshots: u64,
    pub(crate) resumes: u64,
    /// Resumed sessions with nothing to tell.
    pub(crate) empty: u64,
    /// Sessions that resumed from older tables: another host was told something since.
    pub(crate) older: u64,
    /// Sets of tables that came from the other host, some time later.
    pub(crate) copies: u64,
    /// How often it was looked whether something was withdrawn while no session was there.
    pub(crate) watched: u64,
    /// Routes that were rejected at quiet moments.
    pub(crate) rejected: u64,
    /// Rejections that a host has taken back.
    pub(crate) accepted: u64,
    /// Things that the kernel did and told nobody.
    pub(crate) concealed: u64,
    /// Dumps by the clock.
    pub(crate) audits: u64,
    /// Keys that they repaired.
    pub(crate) repaired: u64,
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            snapshots: self.snapshots + other.snapshots,
            resumes: self.resumes + other.resumes,
            empty: self.empty + other.empty,
            older: self.older + other.older,
            copies: self.copies + other.copies,
            watched: self.watched + other.watched,
            rejected: self.rejected + other.rejected,
            accepted: self.accepted + other.accepted,
            concealed: self.concealed + other.concealed,
            audits: self.audits + other.audits,
            repaired: self.repaired + other.repaired,
        }
    }
}

#[derive(Debug, Default)]
struct Switch {
    up: bool,
    flows: BTreeMap<FlowKey, Flow>,
    groups: BTreeMap<u32, Group>,
    meters: BTreeMap<u32, Meter>,
    orders: VecDeque<Effect>,
    answers: VecDeque<Event>,
    /// The next bundle is refused because of one of its flows, or of none.
    refuse: Option<Option<usize>>,
    /// How often flows changed.
    changes: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Host {
    node: Name,
    core: Core,
    switch: Switch,
    is_plugged: bool,
    max_routes: Option<u32>,
    waits: bool,
    /// The session that has told something of the tables.
    speaking: Option<SessionId>,
    begun: Option<SessionId>,
    /// The router's flows when all was done that a session told of them, and how often flows had changed then.
    kept: Option<(BTreeMap<FlowKey, Flow>, u64)>,
    /// Flows may be missing because the switch refused them.
    is_tainted: bool,
    /// It may have fewer flows than routes.
    is_aggregated: bool,
    /// The control: what a lost session told is withdrawn.
    withdraws: bool,
    pub(crate) counts: Counts,
}

impl Host {
    pub(crate) fn new(node: &str, is_aggregated: bool, withdraws: bool) -> Self {
        let node: Name = node.parse().unwrap();
        let mut host = Self {
            core: core(&node, is_aggregated),
            node,
            switch: Switch::default(),
            is_plugged: false,
            max_routes: None,
            waits: false,
            speaking: None,
            begun: None,
            kept: None,
            is_tainted: false,
            is_aggregated,
            withdraws,
            counts: Counts::default(),
        };
        host.restart();
        host.switch_up();
        host
    }

    /// The daemon is killed and started: the switch keeps what it holds.
    pub(crate) fn restart(&mut self) -> Vec<Output> {
        self.core = core(&self.node, self.is_aggregated);
        self.switch.orders.clear();
        self.switch.answers.clear();
        (self.waits, self.speaking, self.begun) = (false, None, None);
        let mut out = self.handle(Event::Desired(desired(self.max_routes)));
        out.extend(self.handle(Event::Ports(ports(self.is_plugged))));
        if std::mem::take(&mut self.switch.up) {
            self.switch_up();
        }
        out
    }

    /// The router's vifs are plugged in here, or not any more.
    pub(crate) fn plug(&mut self, is_plugged: bool) -> Vec<Output> {
        self.is_plugged = is_plugged;
        self.kept = None;
        self.handle(Event::Ports(ports(is_plugged)))
    }

    /// The operator lets the router have so many prefixes here.
    pub(crate) fn limit(&mut self, max_routes: Option<u32>) -> Vec<Output> {
        self.max_routes = max_routes;
        self.kept = None;
        self.handle(Event::Desired(desired(max_routes)))
    }

    pub(crate) fn open(&mut self, id: SessionId, hello: xenflow_proto::message::Hello) -> Vec<Output> {
        let identity = Identity::Router("r1".parse().unwrap());
        let peer = control::guest_ipv6(mac(LINKS[2])).into();
        self.handle(Event::Opened(id, identity, peer, hello))
    }

    pub(crate) fn said(&mut self, id: SessionId, message: GuestMessage) -> Vec<Output> {
        match &message {
            GuestMessage::SnapshotBegin(_) => {
                self.counts.snapshots += 1;
                self.begun = None;
            }
            GuestMessage::Resume(_) => {
                self.counts.resumes += 1;
                self.begun = Some(id);
            }
            GuestMessage::Changes { .. } | GuestMessage::SnapshotEnd(_) => {
                let is_end = matches!(message, GuestMessage::SnapshotEnd(_));
                self.counts.empty += u64::from(is_end && self.begun == Some(id));
                self.begun = None;
                self.speaking = Some(id);
                self.kept = None;
            }
            GuestMessage::Hello(_) | GuestMessage::Ping(_) | GuestMessage::Pong(_) | GuestMessage::Renew => {}
        }
        self.handle(Event::Said(id, message))
    }

    /// An acknowledgement that says something of routes has gone out.
    pub(crate) fn told(&mut self, id: SessionId) -> Vec<Output> {
        self.handle(Event::Told(id))
    }

    pub(crate) fn silent(&mut self, id: SessionId) -> Vec<Output> {
        self.handle(Event::Silent(id))
    }

    pub(crate) fn closed(&mut self, id: SessionId) -> Vec<Output> {
        self.no_more(id);
        let mut out = self.handle(Event::Closed(id));
        if self.withdraws {
            let id = SessionId(1 << 60 | id.0);
            let hello = xenflow_proto::message::Hello {
                versions: vec![xenflow_proto::message::VERSION],
                router: "r1".parse().unwrap(),
                boot_id: [0xff; 16],
                agent: String::new(),
            };
            out.extend(self.open(id, hello));
            for message in [GuestMessage::SnapshotBegin(Seq(1)), GuestMessage::SnapshotEnd(Seq(2))] {
                out.extend(self.handle(Event::Said(id, message)));
            }
            out.extend(self.handle(Event::Closed(id)));
        }
        out
    }

    /// Some other way than by its guest, the host comes to hold tables that this boot of the guest has said, while its
    /// vifs may not be there yet.
    pub(crate) fn copy(&mut self, boot_id: [u8; 16], tables: &BTreeMap<Key, Object>) -> Vec<Output> {
        self.counts.copies += 1;
        let was_plugged = self.is_plugged;
        let mut out = self.plug(true);
        let id = SessionId(1 << 61 | self.counts.copies);
        let hello = xenflow_proto::message::Hello {
            versions: vec![xenflow_proto::message::VERSION],
            router: "r1".parse().unwrap(),
            boot_id,
            agent: String::new(),
        };
        out.extend(self.open(id, hello));
        let changes = tables.values().cloned().map(Change::Upsert).collect();
        for message in [
            GuestMessage::SnapshotBegin(Seq(1)),
            GuestMessage::Changes { seq: Seq(2), changes },
            GuestMessage::SnapshotEnd(Seq(3)),
        ] {
            out.extend(self.handle(Event::Said(id, message)));
            while self.core.is_behind() {
                out.extend(self.turn());
            }
        }
        out.extend(self.handle(Event::Closed(id)));
        out.extend(self.plug(was_plugged));
        // None of this is for the guest, but that its own session here is over.
        out.retain(|output| !matches!(output, Output::Tell(to, _) | Output::Taken(to) if *to == id));
        out
    }

    fn no_more(&mut self, id: SessionId) {
        if self.speaking == Some(id) {
            self.speaking = None;
        }
    }

    fn handle(&mut self, event: Event) -> Vec<Output> {
        let mut out = Vec::new();
        for effect in self.core.handle(event) {
            match effect {
                Effect::Send(..) | Effect::Dump(_) => {
                    assert!(self.switch.up, "an order without a switch");
                    self.switch.orders.push_back(effect);
                }
                Effect::Wait(_) => self.waits = true,
                Effect::Rest(_) => panic!("a lone router rests"),
                Effect::Tell(id, message) => out.push(Output::Tell(id, message)),
                Effect::Taken(id) => out.push(Output::Taken(id)),
                Effect::Nudge(..) => out.push(Output::Nudge),
                Effect::Prove(_) | Effect::Peer(_) => panic!("nobody moves: {effect:?}"),
                Effect::Refuse(id, reason, detail) => {
                    self.no_more(id);
                    out.push(Output::Tell(id, HostMessage::Refusal { reason, detail }));
                    out.push(Output::Close(id));
                }
            }
        }
        out
    }

    pub(crate) fn switch_down(&mut self) -> Vec<Output> {
        self.switch.orders.clear();
        self.switch.answers.clear();
        if std::mem::take(&mut self.switch.up) { self.handle(Event::SwitchDown) } else { Vec::new() }
    }

    pub(crate) fn switch_up(&mut self) -> Vec<Output> {
        if std::mem::replace(&mut self.switch.up, true) {
            return Vec::new();
        }
        // It takes again what it refused. Nobody tells of what the dump puts right.
        (self.switch.refuse, self.is_tainted, self.kept) = (None, false, None);
        self.handle(Event::SwitchUp { has_meters: true })
    }

    /// Something was refused that a switch which was away would take.
    pub(crate) fn is_tainted(&self) -> bool {
        self.is_tainted || self.switch.refuse.is_some()
    }

    pub(crate) fn refuse(&mut self, culprit: Option<usize>) {
        self.switch.refuse = Some(culprit);
    }

    /// The core goes on with a long message.
    pub(crate) fn turn(&mut self) -> Vec<Output> {
        if self.core.is_behind() { self.handle(Event::Turn) } else { Vec::new() }
    }

    pub(crate) fn waited(&mut self) -> Vec<Output> {
        if std::mem::take(&mut self.waits) { self.handle(Event::Waited) } else { Vec::new() }
    }

    /// One answer of the switch arrives.
    pub(crate) fn answer(&mut self) -> Vec<Output> {
        match self.switch.answers.pop_front() {
            Some(event) => self.handle(event),
            None => Vec::new(),
        }
    }

    /// The switch does one thing it was told.
    pub(crate) fn work(&mut self) {
        let switch = &mut self.switch;
        match switch.orders.pop_front() {
            Some(Effect::Send(id, meters, changes)) => {
                for change in meters {
                    switch.meter(change);
                }
                if !changes.is_empty()
                    && let Some(culprit) = switch.refuse.take()
                {
                    self.is_tainted |= culprit.is_some();
                    let culprit = culprit.map(|at| (at % changes.len(), ErrorCode::BAD_OUT_PORT));
                    switch.answers.push_back(Event::Refused(id, culprit.into_iter().collect()));
                    return;
                }
                changes.into_iter().for_each(|change| switch.change(change));
                switch.answers.push_back(Event::Confirmed(id, Duration::ZERO));
            }
            Some(Effect::Dump(dump)) => {
                if dump.groups_and_meters {
                    let groups = switch.groups.values().cloned().collect();
                    switch.answers.push_back(Event::DumpedGroups(groups));
                    let meters = switch.meters.values().cloned().collect();
                    switch.answers.push_back(Event::DumpedMeters(meters));
                }
                for filter in dump.flows {
                    let covers = |flow: &&Flow| {
                        flow.cookie & filter.cookie_mask == filter.cookie & filter.cookie_mask
                            && [flow.table, openflow::flow::ALL_TABLES].contains(&filter.table)
                    };
                    let flows = switch.flows.values().filter(covers).cloned().collect();
                    switch.answers.push_back(Event::Dumped(flows));
                }
                switch.answers.push_back(Event::DumpEnd);
            }
            _ => {}
        }
    }

    /// Nothing is withdrawn but by the word of a session.
    pub(crate) fn look(&mut self) -> Result<(), String> {
        if self.is_tainted {
            self.kept = None;
            return Ok(());
        }
        let Some((kept, changes)) = &mut self.kept else {
            if self.core.is_in_step() && !self.core.is_behind() {
                self.kept = Some((self.router_flows(), self.switch.changes));
            }
            return Ok(());
        };
        self.counts.watched += u64::from(self.speaking.is_none());
        if *changes == self.switch.changes {
            return Ok(());
        }
        *changes = self.switch.changes;
        let other = kept.iter().find(|(key, flow)| self.switch.flows.get(key) != Some(flow));
        match other {
            Some((key, flow)) => {
                let now = self.switch.flows.get(key);
                Err(format!("no session said so, and {flow:?} became {now:?}"))
            }
            None => Ok(()),
        }
    }

    fn router_flows(&self) -> BTreeMap<FlowKey, Flow> {
        let own = |flow: &Flow| cookie::router_of(flow.cookie).is_some();
        self.switch.flows.iter().filter(|(_, flow)| own(flow)).map(|(k, f)| (k.clone(), f.clone())).collect()
    }

    /// Nothing is to be done any more.
    pub(crate) fn is_quiet(&self) -> bool {
        self.core.is_in_step()
            && !self.core.is_behind()
            && self.switch.orders.is_empty()
            && self.switch.answers.is_empty()
    }

    /// What a host decides that was told these tables and nothing else.
    fn app(&self, tables: &BTreeMap<Key, Object>) -> App {
        let (topology, _) =
            bind(&self.node, &desired(self.max_routes), &ports(self.is_plugged), &Numbers::default());
        let mut app = App::new(LIMIT).with_aggregation(self.is_aggregated);
        app.set_topology(topology);
        app.begin_snapshot(ROUTER);
        for object in tables.values() {
            app.apply(ROUTER, Change::Upsert(object.clone())).unwrap();
        }
        app.end_snapshot(ROUTER);
        app
    }

    /// The routes that a host leaves to its guest that was told these tables and nothing else.
    pub(crate) fn rejected(&self, tables: &BTreeMap<Key, Object>) -> BTreeSet<Key> {
        let mut app = self.app(tables);
        // It is decided on the way to the switch, which holds nothing yet and takes all.
        while !app.is_idle() {
            if app.begin_dump().is_some() {
                app.dump_end();
            }
            app.next_batch(usize::MAX);
        }
        app.rejected(ROUTER).map(|(key, _)| Key::Route(key)).collect()
    }

    /// How the switch differs from what a host holds that was told these tables and nothing else.
    pub(crate) fn difference(&self, tables: &BTreeMap<Key, Object>) -> Option<String> {
        let app = self.app(tables);
        let wanted = app.desired();
        let groups: BTreeMap<u32, Group> = wanted.groups.into_iter().map(|group| (group.id, group)).collect();
        let want = described(wanted.flows.iter(), &groups);
        let have = described(self.switch.flows.values(), &self.switch.groups);
        let counts = app.router(ROUTER).map(|status| status.rib);
        let name: Name = "r1".parse().unwrap();
        let told = self.core.reports().find(|(router, _)| **router == name);
        let told = told.map(|(_, report)| report.status.rib);
        if told != counts {
            return Some(format!("{counts:?} wanted, {told:?} held"));
        }
        let missing = want.difference(&have).next().map(|flow| format!("missing: {flow}"));
        missing.or_else(|| have.difference(&want).next().map(|flow| format!("too much: {flow}")))
    }
}

fn core(node: &Name, is_aggregated: bool) -> Core {
    Core::new(node.clone(), LIMIT).with_aggregation(is_aggregated)
}

impl Switch {
    fn meter(&mut self, change: MeterChange) {
        let there = match &change {
            MeterChange::Add(it) | MeterChange::Modify(it) => self.meters.contains_key(&it.id),
            MeterChange::Remove(id) => self.meters.contains_key(id),
        };
        match change {
            MeterChange::Add(it) if !there => drop(self.meters.insert(it.id, it)),
            MeterChange::Modify(it) if there => drop(self.meters.insert(it.id, it)),
            MeterChange::Remove(id) if there => drop(self.meters.remove(&id)),
            // What was sent after a refused bundle is not what the core would have sent.
            MeterChange::Add(_) | MeterChange::Modify(_) | MeterChange::Remove(_) => {
                let error = MeterError { is_drift: true, reason: "not so".to_owned() };
                self.answers.push_back(Event::MeterRefused(change, error));
            }
        }
    }

    fn change(&mut self, change: FlowChange) {
        self.changes += 1;
        match change {
            FlowChange::Upsert(flow) => drop(self.flows.insert(FlowKey::from(&flow), flow)),
            FlowChange::Remove(key) => drop(self.flows.remove(&key)),
            FlowChange::RemoveRouter(id) => {
                self.flows.retain(|_, flow| flow.cookie & cookie::OWNER_MASK != cookie::router(id));
            }
            // Nobody sends, so nothing is learned.
            FlowChange::ForgetLearned(_) => {}
            FlowChange::UpsertGroup(group) => drop(self.groups.insert(group.id, group)),
            FlowChange::RemoveGroup(id) => drop(self.groups.remove(&id)),
        }
    }
}

/// Flows in words, groups by what is in them: their numbers depend on the order in which they came. Groups that no
/// flow sends to are there as well.
fn described<'a>(flows: impl Iterator<Item = &'a Flow>, groups: &BTreeMap<u32, Group>) -> BTreeSet<String> {
    let content = |id: u32| {
        let group = groups.get(&id).cloned().map(|group| Group { id: 0, ..group });
        format!("{group:?}")
    };
    let mut used = BTreeSet::new();
    let mut all: BTreeSet<String> = flows
        .map(|flow| {
            let mut text = format!("{flow:?}");
            for instruction in &flow.instructions {
                let Instruction::ApplyActions(actions) = instruction else { continue };
                for action in actions {
                    if let Action::Group(id) = action {
                        used.insert(*id);
                        text = text.replace(&format!("{action:?}"), &content(*id));
                    }
                }
            }
            text
        })
        .collect();
    let unused = groups.keys().filter(|id| !used.contains(id));
    all.extend(unused.map(|id| format!("unused: {}", content(*id))));
    all
}

/// Router r1 with two vifs on segments and a control vif.
fn desired(max_routes: Option<u32>) -> Desired {
    let name = |text: &str| -> Name { text.parse().unwrap() };
    let uuid = Uuid::ZERO;
    let network = name("red");
    let mut desired = Desired::default();
    let contract = dom0_server::db::Contract::default();
    desired.networks.insert(network.clone(), row::Network { uuid, name: network.clone(), contract });
    for (vlan, lan) in [(11, "lan1"), (12, "lan2")] {
        let (name, network) = (name(lan), network.clone());
        let segment = Segment { uuid, name: name.clone(), network, vlan: VlanId::try_from(vlan).unwrap() };
        desired.segments.insert(name, segment);
    }
    let router = name("r1");
    let policy = db::RouterPolicy { max_routes, ..db::RouterPolicy::default() };
    let id = db::RouterId::try_from(i64::from(ROUTER.0)).unwrap();
    desired.routers.insert(router.clone(), row::Router { uuid, name: router.clone(), network, id, policy });
    let kinds = [
        db::Attachment::Segment(name("lan1")),
        db::Attachment::Segment(name("lan2")),
        db::Attachment::Control,
    ];
    for ((number, index), attachment) in (1..).zip(LINKS).zip(kinds) {
        let name = name(&format!("r1-{number}"));
        let number = VifNumber::try_from(number).unwrap();
        let vif =
            Vif { uuid, name: name.clone(), router: router.clone(), number, mac: mac(index), attachment };
        desired.vifs.insert(name, vif);
    }
    desired
}

fn ports(is_plugged: bool) -> SwitchPorts {
    let port = |index: u32| SwitchPort {
        row: ovsdb::Uuid(index.into()),
        was_home: false,
        name: format!("v1-{index}"),
        number: 10 + index,
        iface_id: None,
        attached_mac: Some(mac(index)),
        is_up: true,
        mtu: 1500,
    };
    let ports = if is_plugged { LINKS.map(port).to_vec() } else { Vec::new() };
    SwitchPorts { ports, control: Some(ControlPort { number: 9, ifindex: 3 }), ..SwitchPorts::default() }
}
