//! A guest of which some ports are here and some not: those may follow, or may never come back.

#![expect(clippy::wildcard_enum_match_arm, reason = "two kinds of effect are answered")]

use xenflow_flow_app::pipeline::{ROUTER, cookie};
use xenflow_proto::table::{Link, Settings};

use super::*;
use crate::db::location::Place;
use crate::locations::Whereabouts;

/// Router r1 with another vif on another segment.
fn wide() -> Desired {
    let mut desired = desired(&[1]);
    let (segment, vif) = (desired.segments[&name("lan")].clone(), desired.vifs[&name("r1-1")].clone());
    let core = Segment { name: name("core"), vlan: VlanId::try_from(12).unwrap(), ..segment };
    desired.segments.insert(name("core"), core);
    let attachment = db::Attachment::Segment(name("core"));
    let number = VifNumber::try_from(3).unwrap();
    desired.vifs.insert(name("r1-3"), Vif { name: name("r1-3"), number, mac: mac(1, 3), attachment, ..vif });
    desired
}

/// With ports of these vifs.
fn plugged(vifs: &[u8]) -> Event {
    let all = ports(&[1]);
    let port = |vif: &u8| SwitchPort {
        row: ovsdb::Uuid(u128::from(*vif)),
        name: format!("v1-{vif}"),
        number: 10 + u32::from(*vif),
        attached_mac: Some(mac(1, *vif)),
        is_up: true,
        ..all.ports[0].clone()
    };
    Event::Ports(SwitchPorts { ports: vifs.iter().map(port).collect(), ..all })
}

/// With these ports. Its guest has told of all its links, and of nothing that would keep the host from forwarding.
fn told(vifs: &[u8]) -> Core {
    let mut core = core(1000);
    core.handle(Event::Desired(wide()));
    core.handle(plugged(vifs));
    core.handle(SWITCH_UP());
    let effects = core.handle(Event::DumpEnd);
    confirm_all(&mut core, effects);
    let place = |segment: &str, vif| Place { segment: name(segment), mac: mac(1, vif) };
    let own = [place("lan", 1), place("core", 3)].into();
    let effects = core.handle(Event::Whereabouts(Whereabouts { own, ..Whereabouts::default() }));
    confirm_all(&mut core, effects);
    open(&mut core, 1, 1);
    let link = |vif: u8| Link {
        ifindex: vif.into(),
        name: format!("eth{vif}"),
        mac: Some(mac(1, vif)),
        mtu: 1500,
        up: true,
        running: true,
        kind: String::new(),
        master: None,
        vrf_table: None,
        ipv6_mtu: None,
    };
    let objects = [Object::Settings(Settings::default()), Object::Link(link(1)), Object::Link(link(3))];
    for message in [
        GuestMessage::SnapshotBegin(Seq(1)),
        GuestMessage::Changes { seq: Seq(2), changes: objects.map(Change::Upsert).to_vec() },
        GuestMessage::SnapshotEnd(Seq(3)),
    ] {
        let effects = say(&mut core, 1, message);
        confirm_all(&mut core, effects);
    }
    core
}

/// Gates that close by it.
fn closed(core: &mut Core, event: Event) -> usize {
    let mut queue: std::collections::VecDeque<Effect> = core.handle(event).into();
    let mut closed = 0;
    while let Some(effect) = queue.pop_front() {
        if let Effect::Send(_, _, changes) = &effect {
            let closes =
                |change: &&FlowChange| matches!(change, FlowChange::Remove(key) if key.table == ROUTER);
            closed += changes.iter().filter(closes).count();
        }
        let more = match effect {
            Effect::Send(id, ..) => core.handle(Event::Confirmed(id, TOOK)),
            Effect::Prove(proof) => core.handle(Event::Proven(proof, true)),
            _ => Vec::new(),
        };
        queue.extend(more);
    }
    closed
}

#[test]
fn what_a_guest_forwards_goes_on_while_the_rest_of_its_ports_may_follow() {
    let mut core = told(&[1, 2, 3]);
    let second = |seconds| Event::Tick(Duration::from_secs(seconds));
    closed(&mut core, second(1));
    assert_eq!(closed(&mut core, plugged(&[2, 3])), 0, "one port has gone, and it may be on its way");
    assert_eq!(closed(&mut core, second(60)), 0);
    assert_eq!(closed(&mut core, second(61)), 2, "both families of a port that nothing came after");
    // It comes again, and goes again.
    assert_eq!(closed(&mut core, plugged(&[1, 2, 3])), 0);
    assert_eq!(closed(&mut core, plugged(&[2, 3])), 0);
    // The last one is gone as well: that is another matter, with a time of its own.
    assert_eq!(closed(&mut core, plugged(&[2])), 0);
}

#[test]
fn what_never_was_plugged_in_is_not_forwarded_for() {
    let gates = |vifs| {
        let core = told(vifs);
        let is_gate = |flow: &&Flow| flow.table == ROUTER && cookie::router_of(flow.cookie).is_some();
        core.app.desired().flows.iter().filter(is_gate).count()
    };
    assert_eq!((gates(&[1, 2, 3]), gates(&[2, 3])), (4, 2));
}
