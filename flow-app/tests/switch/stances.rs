//! Routers that move: the switch takes the flows of their stances, does what the simulator says, and tells whom it should.

use std::fmt::Write;

use openflow::{Event, Message};
use xenflow_flow_app::{Heard, HeardKind, Stance};

use super::live::Frame;
use super::*;
use crate::world::{router_id, vif_id};

const NODE: MacAddr = MacAddr([0x0e, 0, 0, 0, 0, 1]);

/// One uplink. The first router comes late here; the second's guest is about to leave, and has no gate; the third's has left.
fn start(name: &str) -> (App, Pair) {
    let mut world = host();
    world.plan.uplinks = [true, false];
    world.plan.policies[1].0 = 0;
    let mut topology = world.plan.topology();
    topology.node_mac = Some(NODE);
    let stances = [Stance::LATE, Stance::YIELDED, Stance::AWAY];
    topology.stances = (0..).zip(stances).map(|(r, stance)| (router_id(r), stance)).collect();
    topology.elsewhere = (0..3).map(|n| (vlan(n), vif_mac(0, n))).collect();
    topology.vifs.get_mut(&vif_id(2, 0)).unwrap().port = None;
    let app = world.app_on(topology);
    let pair = Pair::start(name, &app, &ports());
    (app, pair)
}

#[test]
fn a_real_switch_takes_the_flows_of_stances_and_does_what_the_simulator_says() {
    let (app, mut pair) = start("flow-app-stances");
    // In one bundle as well.
    let add = |flow: Flow| Message::from(FlowChange::Upsert(flow));
    let bundle = pair.client.session.send_bundle(app.desired().flows.into_iter().map(add)).unwrap();
    let errors = pair.client.wait(|event| match event {
        Event::BundleCommitted { id } if id == bundle => Some(Vec::new()),
        Event::BundleFailed { id, errors } if id == bundle => Some(errors),
        _ => None,
    });
    assert_eq!(errors, []);
    let mut held = pair.dump(cookie::TOPOLOGY);
    held.append(&mut pair.dump(cookie::ROUTERS));
    assert_eq!(held, by_key(app.desired().flows));

    let host = host_mac(0, 50);
    let tagged = |segment, packet: Packet| packet.tagged(Tag::new(vlan(segment).get()));
    let ports_of = |sent: &BTreeSet<(PortNo, Packet)>| sent.iter().map(|(port, _)| *port).collect::<Vec<_>>();
    for family in [V4, V6] {
        // Late, by the uplink: out again as the node.
        let packet = tagged(0, to(host, vif_mac(0, 0), address(family, 1, 8), 64));
        let sent = pair.agree(1, &packet);
        let out = |port: PortNo| sent.iter().find(|(of, _)| *of == port).map(|(_, packet)| packet.clone());
        assert_eq!(out(1).unwrap().header(Field::EthSrc), mac_bits(NODE.0), "{sent:?}");
        assert_eq!(out(12).unwrap().header(Field::EthSrc), mac_bits(vif_mac(0, 1).0), "{sent:?}");
        // What begins here goes to where the router is.
        let packet = to(host, vif_mac(0, 0), address(family, 1, 8), 64);
        let uplink = (1, tagged(0, packet.clone()));
        assert_eq!(pair.agree(10, &packet), [uplink].into());
        // Its own address, late: neither back, nor lost.
        let packet = to(host, vif_mac(0, 0), address(family, 0, 0), 64);
        let told = (port::CONTROLLER, packet.clone());
        assert_eq!(pair.agree(1, &tagged(0, packet)), [told].into());
        // Left: its own addresses.
        for segment in [0, 2] {
            let packet = to(host, vif_mac(2, 0), address(family, segment, 2), 64);
            assert_eq!(ports_of(&pair.agree(10, &packet)), [port::CONTROLLER]);
        }
        // About to leave: the guest forwards itself, and the daemon has a copy.
        let packet = to(host, vif_mac(1, 0), address(family, 1, 8), 64);
        assert_eq!(ports_of(&pair.agree(14, &packet)), [vif_port(1, 0), port::CONTROLLER]);
    }
    // Floods, of a host, of the uplink and of a guest that is mute.
    let flood = ipv4(host, MacAddr::BROADCAST, [1, 2, 3, 4], 64);
    assert!(ports_of(&pair.agree(10, &flood)).contains(&port::CONTROLLER));
    assert!(ports_of(&pair.agree(1, &tagged(0, flood.clone()))).contains(&port::CONTROLLER));
    let mute = ipv4(vif_mac(0, 0), MacAddr::BROADCAST, [1, 2, 3, 4], 64);
    assert_eq!(pair.agree(vif_port(0, 0), &mute), [(port::CONTROLLER, mute.clone())].into());
}

#[test]
fn a_real_switch_tells_of_which_vif_a_frame_is_and_why() {
    let (_, mut pair) = start("flow-app-told");
    pair.client.install(&[Message::SetPacketInFormat(true)]);
    let mut tell = |port: PortNo, frame: &Frame, tag: Option<u16>| {
        let frame = tag.map_or_else(|| frame.clone(), |tag| frame.clone().tagged(0x8100, tag));
        let mut hex = String::new();
        frame.0.iter().for_each(|byte| write!(hex, "{byte:02x}").unwrap());
        pair.switch.appctl(&["netdev-dummy/receive", &format!("p{port}"), &hex]);
        let packet = pair.client.wait(|event| match event {
            Event::PacketIn(packet) => Some(packet),
            _ => None,
        });
        (Heard::decode(&packet.userdata), Frame(packet.data.to_vec()))
    };
    let host = host_mac(0, 50);
    let data = |src, dst| Frame::ipv4(src, dst, [10, 0, 0, 99], [10, 0, 0, 1], 17, 64);
    for (kind, (router, vif), port, tag, frame) in [
        (HeardKind::Late, (0, 0), 1, Some(vlan(0).get()), data(host, vif_mac(0, 0))),
        (HeardKind::Mute, (0, 1), vif_port(0, 1), None, data(vif_mac(0, 1), host)),
        (HeardKind::Copy, (1, 0), 14, None, data(host, vif_mac(1, 0))),
        (HeardKind::Punt, (2, 0), 10, None, Frame::arp(host, vif_mac(2, 0))),
        (HeardKind::Punt, (2, 0), 1, Some(vlan(0).get()), Frame::arp(host, vif_mac(2, 0))),
    ] {
        let heard = Heard { kind, vif: vif_id(router, vif) };
        assert_eq!(tell(port, &frame, tag), (Some(heard), frame));
    }
}
