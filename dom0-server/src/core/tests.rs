//! The core between a guest, a database and a switch that are played by hand; then between random ones.

mod acks;
mod in_use;
mod kept;
mod lone;
mod model;
mod moves;
mod progress;
mod queues;
mod resume;
mod thinned;
mod turns;

use std::net::IpAddr;
use std::num::NonZeroU32;

use openflow::{ErrorCode, Flow, Group, Meter};
use ovsdb::Uuid;
use xenflow_flow_app::{MeterChange, PuntClass};
use xenflow_proto::message::{GuestMessage, Hello, VERSION};
use xenflow_proto::table::{Route, RouteKey, RouteKind, RouteTarget, TABLE_MAIN};
use xenflow_proto::{Change, Identity, MacAddr, Object, VlanId, control};

use super::meters::meter_id;
use super::*;
use crate::counters::Poll;
use crate::db::{self, RouterId as Number, Segment, Vif, VifNumber, row};
use crate::ports::{ControlPort, SwitchPort};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn mac(router: u8, vif: u8) -> MacAddr {
    MacAddr([2, 0x52, 0, 0, router, vif])
}

/// Routers r1 and so on of one network, each with a vif on one segment and a control vif.
fn desired(routers: &[u8]) -> Desired {
    let network = name("red");
    let uuid = Uuid::ZERO;
    let vlan = VlanId::try_from(11).unwrap();
    let mut desired = Desired::default();
    let contract = crate::db::Contract::default();
    desired.networks.insert(network.clone(), row::Network { uuid, name: network.clone(), contract });
    let segment = Segment { uuid, name: name("lan"), network: network.clone(), vlan };
    desired.segments.insert(segment.name.clone(), segment);
    for number in routers {
        let router = name(&format!("r{number}"));
        let id = Number::try_from(i64::from(*number)).unwrap();
        let policy = db::RouterPolicy::default();
        let row = row::Router { uuid, name: router.clone(), network: network.clone(), id, policy };
        desired.routers.insert(router.clone(), row);
        let kinds = [db::Attachment::Segment(name("lan")), db::Attachment::Control];
        for (vif, attachment) in (1..).zip(kinds) {
            let vif_name = name(&format!("r{number}-{vif}"));
            let number_of = VifNumber::try_from(i64::from(vif)).unwrap();
            let mac = mac(*number, vif);
            let row = Vif {
                uuid,
                name: vif_name.clone(),
                router: router.clone(),
                number: number_of,
                mac,
                attachment,
            };
            desired.vifs.insert(vif_name, row);
        }
    }
    desired
}

/// All of their vifs plugged in, and the control port.
fn ports(routers: &[u8]) -> SwitchPorts {
    let port = |router: u8, vif: u8| SwitchPort {
        row: ovsdb::Uuid(u128::from(router) << 8 | u128::from(vif)),
        name: format!("v{router}-{vif}"),
        number: NonZeroU32::from(std::num::NonZeroU8::new(router).unwrap()).get() * 10 + u32::from(vif),
        iface_id: None,
        attached_mac: Some(mac(router, vif)),
        is_up: vif == 1,
        was_home: false,
        mtu: 1500,
    };
    SwitchPorts {
        ports: routers.iter().flat_map(|router| [1, 2].map(|vif| port(*router, vif))).collect(),
        control: Some(ControlPort { number: 9, ifindex: 3 }),
        ..SwitchPorts::default()
    }
}

/// What the switch takes for a batch.
const TOOK: Duration = Duration::from_millis(5);
const SWITCH_UP: fn() -> Event = || Event::SwitchUp { has_meters: true };

fn core(limit: usize) -> Core {
    Core::new(name("a"), limit)
}

/// A core that has heard of r1 and r2 and is connected to an empty switch in step with it.
fn ready() -> Core {
    let mut core = core(1000);
    core.handle(Event::Desired(desired(&[1, 2])));
    core.handle(Event::Ports(ports(&[1, 2])));
    let effects = core.handle(SWITCH_UP());
    assert!(matches!(effects.as_slice(), [Effect::Dump(_)]), "{effects:?}");
    let effects = core.handle(Event::DumpEnd);
    confirm_all(&mut core, effects);
    core
}

/// Confirms what is sent and answers dumps with nothing until all is quiet; what guests were told comes back.
fn confirm_all(core: &mut Core, effects: Vec<Effect>) -> Vec<(SessionId, HostMessage)> {
    let mut told = Vec::new();
    let mut queue: std::collections::VecDeque<Effect> = effects.into();
    while let Some(effect) = queue.pop_front() {
        match effect {
            Effect::Send(id, ..) => queue.extend(core.handle(Event::Confirmed(id, TOOK))),
            Effect::Dump(_) => queue.extend(core.handle(Event::DumpEnd)),
            Effect::Tell(id, message) => told.push((id, message)),
            Effect::Wait(_) => queue.extend(core.handle(Event::Waited)),
            Effect::Rest(_) => queue.extend(core.handle(Event::Rested)),
            Effect::Prove(proof) => queue.extend(core.handle(Event::Proven(proof, true))),
            Effect::Taken(_) | Effect::Nudge(..) | Effect::Peer(_) => {}
            Effect::Refuse(..) => panic!("{effect:?}"),
        }
    }
    told
}

fn peer(router: u8) -> IpAddr {
    control::guest_ipv6(mac(router, 2)).into()
}

fn hello(router: &str) -> Hello {
    Hello { versions: vec![VERSION], router: name(router), boot_id: [0; 16], agent: String::new() }
}

fn open(core: &mut Core, id: u64, router: u8) -> Vec<Effect> {
    let text = format!("r{router}");
    let identity = Identity::Router(name(&text));
    core.handle(Event::Opened(SessionId(id), identity, peer(router), hello(&text)))
}

/// Says something and waits until it has been taken in.
fn say(core: &mut Core, id: u64, message: GuestMessage) -> Vec<Effect> {
    let mut effects = core.handle(Event::Said(SessionId(id), message));
    while core.is_behind() {
        effects.extend(core.handle(Event::Turn));
    }
    let all = effects.len();
    effects.retain(|effect| *effect != Effect::Taken(SessionId(id)));
    let is_there = core.sessions.contains_key(&SessionId(id));
    assert_eq!(all - effects.len(), usize::from(is_there), "the next message is asked for once");
    effects
}

fn without_nudges(effects: Vec<Effect>) -> Vec<Effect> {
    effects.into_iter().filter(|effect| !matches!(effect, Effect::Nudge(..))).collect()
}

/// A route that drops: one flow.
fn route(third: u8) -> Object {
    let dst = format!("10.9.{third}.0/24").parse().unwrap();
    Object::Route(Route {
        key: RouteKey { table: TABLE_MAIN, dst, tos: 0, metric: 0 },
        kind: RouteKind::Blackhole,
        protocol: 4,
        scope: 0,
        target: RouteTarget::Hops(Vec::new()),
        mtu: None,
    })
}

fn changes(seq: u64, thirds: impl IntoIterator<Item = u8>) -> GuestMessage {
    let changes = thirds.into_iter().map(|third| Change::Upsert(route(third))).collect();
    GuestMessage::Changes { seq: Seq(seq), changes }
}

fn ack(id: u64, seq: u64) -> Effect {
    Effect::Tell(
        SessionId(id),
        HostMessage::Ack { seq: Seq(seq), rejected: Vec::new(), accepted: Vec::new() },
    )
}

fn told_ack(id: u64, seq: u64) -> (SessionId, HostMessage) {
    (SessionId(id), HostMessage::Ack { seq: Seq(seq), rejected: Vec::new(), accepted: Vec::new() })
}

/// A session of r1, past end-of-RIB with sequence number 2.
fn live(core: &mut Core, id: u64) {
    assert!(matches!(open(core, id, 1).last(), Some(Effect::Tell(_, HostMessage::Welcome(_)))));
    assert_eq!(say(core, id, GuestMessage::SnapshotBegin(Seq(1))), [ack(id, 1)]);
    let effects = say(core, id, GuestMessage::SnapshotEnd(Seq(2)));
    assert_eq!(confirm_all(core, effects).last(), Some(&told_ack(id, 2)));
}

fn batch(effects: &[Effect]) -> (BatchId, Vec<FlowChange>) {
    match effects {
        [Effect::Send(id, _, changes)] => (*id, changes.clone()),
        other => panic!("not one batch: {other:?}"),
    }
}

#[test]
fn who_may_not_come_in_is_told_why() {
    use RefusalReason as R;
    let router = |text: &str| Identity::Router(name(text));
    let old = Hello { versions: vec![7, 8], ..hello("r1") };
    let elsewhere: IpAddr = "fe80::1:2:3:4".parse().unwrap();
    let mut unplugged = ports(&[1, 2]);
    unplugged.ports.retain(|port| port.name != "v2-2");
    for (identity, peer, hello, reason, detail) in [
        (
            Identity::Node(name("b")),
            peer(1),
            hello("r1"),
            R::Identity,
            "the certificate is of xenflow://node/b, not of a router",
        ),
        (
            router("r2"),
            peer(2),
            hello("r1"),
            R::Identity,
            "router r1 is not the certificate's, which is of xenflow://router/r2",
        ),
        (router("r1"), peer(1), old, R::Version, "protocol versions [7, 8], this host speaks 1"),
        (router("r9"), peer(1), hello("r9"), R::UnknownRouter, "router r9 is not configured here"),
        (router("r2"), peer(2), hello("r2"), R::Identity, "router r2 has no control vif plugged in here"),
        (
            router("r1"),
            elsewhere,
            hello("r1"),
            R::Identity,
            "fe80::1:2:3:4 is not the address of router r1's control vif 02:52:00:00:01:02",
        ),
    ] {
        let mut core = ready();
        let effects = core.handle(Event::Ports(unplugged.clone()));
        confirm_all(&mut core, effects);
        let effects = core.handle(Event::Opened(SessionId(1), identity, peer, hello));
        assert_eq!(effects, [Effect::Refuse(SessionId(1), reason, detail.into())]);
        assert_eq!(say(&mut core, 1, GuestMessage::SnapshotBegin(Seq(1))), []);
    }
}

#[test]
fn both_addresses_of_the_control_vif_are_its_own() {
    for address in [peer(1), control::guest_ipv4(mac(1, 2)).into()] {
        let mut core = ready();
        let event = Event::Opened(SessionId(1), Identity::Router(name("r1")), address, hello("r1"));
        assert!(matches!(core.handle(event).as_slice(), [Effect::Tell(_, HostMessage::Welcome(_))]));
    }
}

#[test]
fn what_breaks_the_order_ends_the_session() {
    let begin = |seq| GuestMessage::SnapshotBegin(Seq(seq));
    let end = |seq| GuestMessage::SnapshotEnd(Seq(seq));
    let resume = |seq| GuestMessage::Resume(Seq(seq));
    for (said, detail) in [
        (vec![begin(5)], "sequence number 5 after 0"),
        (vec![begin(0)], "sequence number 0 after 0"),
        (vec![begin(1), begin(1)], "sequence number 1 after 1"),
        (vec![begin(1), begin(2)], "message 2 is out of place: in a snapshot"),
        (vec![changes(1, [1])], "message 1 is out of place: neither a snapshot nor a resumption has begun"),
        (vec![end(1)], "message 1 is out of place: neither a snapshot nor a resumption has begun"),
        (vec![begin(1), end(2), end(3)], "message 3 is out of place: after the end of the snapshot"),
        (vec![resume(1)], "nothing is held that could be resumed"),
        (vec![begin(1), resume(2)], "message 2 is out of place: in a snapshot"),
        (vec![begin(1), changes(u64::MAX, [])], "sequence number 18446744073709551615 after 1"),
        (vec![GuestMessage::Hello(hello("r1"))], "a second hello"),
    ] {
        let mut core = ready();
        open(&mut core, 1, 1);
        let last = said.into_iter().map(|message| say(&mut core, 1, message)).last().unwrap();
        let refusal = Effect::Refuse(SessionId(1), RefusalReason::Protocol, detail.into());
        assert!(last.contains(&refusal), "{last:?} has no {refusal:?}");
        assert_eq!(say(&mut core, 1, begin(1)), []);
    }
}

#[test]
fn a_guest_that_does_not_wait_for_acknowledgements_is_refused() {
    let mut core = ready();
    live(&mut core, 1);
    for seq in 3..=2 + u64::from(WINDOW) {
        let effects = say(&mut core, 1, changes(seq, [1]));
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Refuse(..))), "{effects:?}");
    }
    let detail = "259 is more than 256 after 2, the last acknowledged";
    let effects = say(&mut core, 1, changes(259, [1]));
    assert_eq!(effects, [Effect::Refuse(SessionId(1), RefusalReason::Protocol, detail.into())]);
}

#[test]
fn the_newest_session_wins() {
    let mut core = ready();
    live(&mut core, 1);
    let effects = open(&mut core, 2, 1);
    let detail = format!("a newer session came from {}", peer(1));
    assert_eq!(effects.first(), Some(&Effect::Refuse(SessionId(1), RefusalReason::Replaced, detail)));
    assert!(matches!(effects.get(1), Some(Effect::Tell(SessionId(2), HostMessage::Welcome(_)))));
    assert_eq!(say(&mut core, 1, changes(3, [1])), [], "the older one is not listened to");
    // Another router's session is nobody's business.
    assert!(matches!(open(&mut core, 3, 2).as_slice(), [Effect::Tell(SessionId(3), _)]));
    // The end of the older connection, which comes late, ends nothing.
    core.handle(Event::Closed(SessionId(1)));
    assert_eq!(say(&mut core, 2, GuestMessage::SnapshotBegin(Seq(1))), [ack(2, 1)]);
}

#[test]
fn pings_are_answered_and_silence_is_asked_about() {
    let mut core = ready();
    live(&mut core, 1);
    assert_eq!(
        say(&mut core, 1, GuestMessage::Ping(77)),
        [Effect::Tell(SessionId(1), HostMessage::Pong(77))]
    );
    let asked = core.handle(Event::Silent(SessionId(1)));
    assert_eq!(asked, [Effect::Tell(SessionId(1), HostMessage::Ping(1))]);
    assert_eq!(say(&mut core, 1, GuestMessage::Pong(1)), []);
}

#[test]
fn a_change_is_acknowledged_when_the_switch_has_it() {
    let mut core = ready();
    live(&mut core, 1);
    let (first, sent) = batch(&say(&mut core, 1, changes(3, [1])));
    assert_eq!(sent.len(), 1);
    let (second, _) = batch(&say(&mut core, 1, changes(4, [2])));
    // Two bundles are under way: the rest waits, and is acknowledged together.
    assert_eq!(say(&mut core, 1, changes(5, [3])), []);
    assert_eq!(say(&mut core, 1, changes(6, [3])), []);
    let effects = core.handle(Event::Confirmed(first, TOOK));
    assert!(matches!(effects.as_slice(), [told, Effect::Send(..)] if *told == ack(1, 3)), "{effects:?}");
    assert_eq!(core.handle(Event::Confirmed(second, TOOK)), [ack(1, 4)]);
    let Effect::Send(third, ..) = effects[1] else { panic!() };
    assert_eq!(core.handle(Event::Confirmed(third, TOOK)), [ack(1, 6)]);
    // Nothing for the switch to do: at once.
    assert_eq!(say(&mut core, 1, changes(7, [3])), [ack(1, 7)]);
    assert_eq!(core.handle(Event::Confirmed(third, TOOK)), [], "a batch is confirmed once");
}

#[test]
fn the_switch_hears_nothing_before_both_databases_have_spoken() {
    let events: [fn() -> Event; 3] =
        [|| Event::Desired(desired(&[1])), || Event::Ports(ports(&[1])), SWITCH_UP];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut core = core(100);
        for step in &order[..2] {
            assert_eq!(without_nudges(core.handle(events[*step]())), [], "{order:?}");
        }
        let effects = without_nudges(core.handle(events[order[2]]()));
        assert!(matches!(effects.as_slice(), [Effect::Dump(_)]), "{order:?}");
    }
}

#[test]
fn what_was_under_way_to_a_lost_switch_is_acknowledged_by_the_next_once() {
    let mut core = ready();
    live(&mut core, 1);
    let (lost, _) = batch(&say(&mut core, 1, changes(3, [1])));
    say(&mut core, 1, changes(4, [2]));
    say(&mut core, 1, changes(5, [3]));
    assert_eq!(core.handle(Event::SwitchDown), []);
    assert_eq!(core.handle(Event::Confirmed(lost, TOOK)), []);
    assert_eq!(say(&mut core, 1, changes(6, [4])), [], "nobody is there to confirm it");
    let effects = core.handle(SWITCH_UP());
    assert_eq!(confirm_all(&mut core, effects), [told_ack(1, 6)]);
}

#[test]
fn a_refused_flow_is_replaced_and_the_others_are_sent_again() {
    let mut core = ready();
    live(&mut core, 1);
    let (refused, sent) = batch(&say(&mut core, 1, changes(3, [1, 2, 3])));
    let (overtaking, later) = batch(&say(&mut core, 1, changes(4, [4])));
    let effects = core.handle(Event::Refused(refused, vec![(1, ErrorCode::BAD_OUT_PORT)]));
    assert!(matches!(effects.as_slice(), [Effect::Dump(_)]), "{effects:?}");
    assert_eq!(core.handle(Event::Confirmed(overtaking, TOOK)), [], "acknowledging 4 would acknowledge 3");
    let effects = core.handle(Event::DumpEnd);
    // The topology first; then the router, of which the switch turns out to hold one flow.
    let mut again = Vec::new();
    let mut told = Vec::new();
    let mut queue: std::collections::VecDeque<Effect> = effects.into();
    while let Some(effect) = queue.pop_front() {
        match effect {
            Effect::Send(id, _, changes) => {
                again.extend(changes);
                queue.extend(core.handle(Event::Confirmed(id, TOOK)));
            }
            Effect::Dump(_) => {
                let FlowChange::Upsert(flow) = &later[0] else { panic!("{later:?}") };
                core.handle(Event::Dumped(vec![flow.clone()]));
                queue.extend(core.handle(Event::DumpEnd));
            }
            Effect::Tell(id, message) => told.push((id, message)),
            Effect::Taken(_) | Effect::Nudge(..) | Effect::Peer(_) => {}
            Effect::Refuse(..) | Effect::Wait(_) | Effect::Rest(_) | Effect::Prove(_) => panic!("{effect:?}"),
        }
    }
    assert!(again.contains(&sent[0]) && again.contains(&sent[2]), "{again:?}");
    assert!(!again.contains(&sent[1]), "the culprit was sent again");
    assert!(!again.contains(&later[0]), "what the switch holds was sent again");
    // Where it was to be dropped, the guest gets it, and is told.
    let why = "the switch refused it: OFPBAC_BAD_OUT_PORT".to_owned();
    let rejected = vec![(route(2).key(), why)];
    let message = HostMessage::Ack { seq: Seq(4), rejected, accepted: Vec::new() };
    assert_eq!(told, [(SessionId(1), message)]);
}

#[test]
fn a_bundle_refused_for_no_flow_starts_over() {
    let mut core = ready();
    live(&mut core, 1);
    let (refused, sent) = batch(&say(&mut core, 1, changes(3, [1])));
    assert_eq!(waits(&core.handle(Event::Refused(refused, Vec::new()))), [1]);
    let effects = core.handle(Event::Waited);
    assert!(matches!(effects.as_slice(), [Effect::Dump(_)]), "{effects:?}");
    let effects = core.handle(Event::DumpEnd);
    assert_eq!(confirm_all(&mut core, effects), [told_ack(1, 3)]);
    assert_eq!(sent.len(), 1);
}

#[test]
fn the_end_of_a_dump_given_up_is_not_the_end_of_the_next() {
    let mut core = ready();
    live(&mut core, 1);
    open(&mut core, 2, 2);
    say(&mut core, 2, GuestMessage::SnapshotBegin(Seq(1)));
    let (refused, _) = batch(&say(&mut core, 1, changes(3, [1])));
    let effects = say(&mut core, 2, GuestMessage::SnapshotEnd(Seq(2)));
    assert!(matches!(effects.as_slice(), [Effect::Dump(_)]), "{effects:?}");
    core.handle(Event::Refused(refused, Vec::new()));
    assert_eq!(core.handle(Event::Waited), [], "the dump of r2 is still answered");
    assert!(matches!(core.handle(Event::DumpEnd).as_slice(), [Effect::Dump(_)]), "only now the next");
}

#[test]
fn a_router_that_goes_takes_its_session_along() {
    let mut core = ready();
    live(&mut core, 1);
    open(&mut core, 2, 2);
    let effects = core.handle(Event::Desired(desired(&[2])));
    let gone = Effect::Refuse(SessionId(1), RefusalReason::UnknownRouter, "the router was removed".into());
    assert!(effects.contains(&gone), "{effects:?}");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Refuse(SessionId(2), ..))));

    let mut core = ready();
    live(&mut core, 1);
    let mut bare = desired(&[1, 2]);
    bare.vifs.retain(|_, vif| vif.router != name("r1"));
    let effects = core.handle(Event::Desired(bare));
    let detail = "the router has no vif any more";
    let gone = Effect::Refuse(SessionId(1), RefusalReason::UnknownRouter, detail.into());
    assert!(effects.contains(&gone), "{effects:?}");
}

#[test]
fn a_guest_with_too_many_objects_is_refused() {
    let mut core = core(3);
    core.handle(Event::Desired(desired(&[1])));
    core.handle(Event::Ports(ports(&[1])));
    open(&mut core, 1, 1);
    say(&mut core, 1, GuestMessage::SnapshotBegin(Seq(1)));
    assert_eq!(say(&mut core, 1, changes(2, [1, 2, 3])), [ack(1, 2)]);
    let effects = say(&mut core, 1, changes(3, [4]));
    let detail = xenflow_flow_app::rib::TooMuch::Objects { limit: 3 }.to_string();
    assert_eq!(effects, [Effect::Refuse(SessionId(1), RefusalReason::Limit, detail)]);
}

#[test]
fn a_guest_whose_tables_take_too_much_memory_is_refused_and_keeps_what_it_said() {
    let mut core = core(100).with_max_bytes(2000);
    core.handle(Event::Desired(desired(&[1])));
    core.handle(Event::Ports(ports(&[1])));
    open(&mut core, 1, 1);
    say(&mut core, 1, GuestMessage::SnapshotBegin(Seq(1)));
    assert_eq!(say(&mut core, 1, changes(2, [1, 2])), [ack(1, 2)]);
    let effects = say(&mut core, 1, changes(3, [3, 4, 5, 6, 7]));
    let [Effect::Refuse(SessionId(1), RefusalReason::Limit, detail)] = effects.as_slice() else {
        panic!("{effects:?}");
    };
    assert!(detail.starts_with("the tables would take 2") && detail.ends_with("more than 2000"), "{detail}");
}

#[test]
fn what_the_operator_says_of_a_router_comes_with_the_topology() {
    let mut core = ready();
    let mut wanted = desired(&[1, 2]);
    let router = wanted.routers.get_mut(&name("r2")).unwrap();
    router.policy.fast_path = Some(db::policy::FastPath::Never);
    router.policy.max_routes = Some(5);
    core.handle(Event::Desired(wanted));
    let policy = core.app.topology().policy(RouterId(2));
    assert_eq!((policy.fast_path, policy.max_routes), (xenflow_flow_app::FastPath::Never, 5));
    assert_eq!(core.app.topology().policy(RouterId(1)), xenflow_flow_app::Policy::default());
}

fn waits(effects: &[Effect]) -> Vec<u64> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Wait(pause) = effect { Some(pause.as_secs()) } else { None })
        .collect()
}

/// A refused bundle that names no flow may be refused for ever: each time it is tried later, until it works.
#[test]
fn a_bundle_refused_without_a_culprit_is_tried_again_ever_later() {
    let mut core = ready();
    live(&mut core, 1);
    let mut effects = say(&mut core, 1, changes(3, [1]));
    for pause in [1, 2, 4, 8, 16, 32, 64, 64] {
        let (id, _) = batch(&effects);
        assert_eq!(core.handle(Event::Refused(id, Vec::new())), [Effect::Wait(Duration::from_secs(pause))]);
        assert_eq!(say(&mut core, 1, GuestMessage::Pong(0)), [], "nothing before the pause is over");
        effects = core.handle(Event::Waited);
        while !matches!(effects.last(), Some(Effect::Send(_, _, changes)) if !changes.is_empty()) {
            effects = match effects.as_slice() {
                [Effect::Dump(_)] => core.handle(Event::DumpEnd),
                // Only r1's change is refused.
                other => panic!("{other:?}"),
            };
        }
        // The topology first, as the dump gave nothing; then r1.
        while let [Effect::Send(id, _, sent), ..] = effects.as_slice()
            && sent.len() > 1
        {
            effects = core.handle(Event::Confirmed(*id, TOOK));
            if matches!(effects.as_slice(), [Effect::Dump(_)]) {
                effects = core.handle(Event::DumpEnd);
            }
        }
    }
    assert_eq!(confirm_all(&mut core, effects), [told_ack(1, 3)]);
    let (id, _) = batch(&say(&mut core, 1, changes(4, [2])));
    assert_eq!(waits(&core.handle(Event::Refused(id, Vec::new()))), [1], "all was in step in between");
}

#[test]
fn a_switch_that_does_not_answer_a_dump_is_asked_again_later() {
    let mut core = core(100);
    core.handle(Event::Desired(desired(&[1])));
    core.handle(Event::Ports(ports(&[1])));
    assert!(matches!(core.handle(SWITCH_UP()).as_slice(), [Effect::Dump(_)]));
    assert_eq!(waits(&core.handle(Event::DumpFailed("no".into()))), [1]);
    assert!(matches!(core.handle(Event::Waited).as_slice(), [Effect::Dump(_)]));
    assert_eq!(waits(&core.handle(Event::DumpFailed("no".into()))), [2]);
    // A new switch is asked at once.
    core.handle(Event::SwitchDown);
    assert!(matches!(core.handle(SWITCH_UP()).as_slice(), [Effect::Dump(_)]));
}

/// All changes of meters that are sent until all is quiet; refused ones are answered so, at first.
fn meters_sent(
    core: &mut Core,
    effects: Vec<Effect>,
    refuse: Option<(u32, bool)>,
) -> (Vec<MeterChange>, u32) {
    let mut queue: std::collections::VecDeque<Effect> = effects.into();
    let (mut all, mut pauses, mut refuse) = (Vec::new(), 0, refuse);
    while let Some(effect) = queue.pop_front() {
        match effect {
            Effect::Send(id, meters, _) => {
                for change in &meters {
                    if let Some((_, is_drift)) = refuse.take_if(|(id, _)| *id == meter_id(change)) {
                        let error = MeterError { is_drift, reason: "OFPMMFC_OUT_OF_METERS".into() };
                        queue.extend(core.handle(Event::MeterRefused(change.clone(), error)));
                    }
                }
                all.extend(meters);
                queue.extend(core.handle(Event::Confirmed(id, TOOK)));
            }
            Effect::Dump(_) => queue.extend(core.handle(Event::DumpEnd)),
            Effect::Wait(_) => {
                pauses += 1;
                queue.extend(core.handle(Event::Waited));
            }
            Effect::Rest(_) => queue.extend(core.handle(Event::Rested)),
            Effect::Prove(proof) => queue.extend(core.handle(Event::Proven(proof, true))),
            Effect::Tell(..)
            | Effect::Refuse(..)
            | Effect::Taken(_)
            | Effect::Nudge(..)
            | Effect::Peer(_) => {}
        }
    }
    (all, pauses)
}

#[test]
fn a_refused_meter_is_done_without_and_one_that_drifted_is_asked_for_again() {
    let meter = xenflow_flow_app::punt::meter_id(RouterId(1), PuntClass::Host);
    for (is_drift, times) in [(false, 1), (true, 2)] {
        let mut core = core(100);
        core.handle(Event::Desired(desired(&[1, 2])));
        core.handle(Event::Ports(ports(&[1, 2])));
        let effects = core.handle(SWITCH_UP());
        let (sent, pauses) = meters_sent(&mut core, effects, Some((meter, is_drift)));
        assert_eq!(sent.iter().filter(|change| meter_id(change) == meter).count(), times, "{is_drift}");
        assert_eq!(pauses, 1);
        assert!(core.app.is_idle(), "everything else is in step");
        // The next switch may have it.
        core.handle(Event::SwitchDown);
        let effects = core.handle(SWITCH_UP());
        assert_eq!(meters_sent(&mut core, effects, None).0.len(), 10);
    }
}

#[test]
fn a_switch_without_meters_is_not_asked_for_any() {
    let mut core = core(100);
    core.handle(Event::Desired(desired(&[1])));
    core.handle(Event::Ports(ports(&[1])));
    let effects = core.handle(Event::SwitchUp { has_meters: false });
    assert_eq!(meters_sent(&mut core, effects, None), (Vec::new(), 0));
    assert!(core.app.is_idle());
}
