//! Bytes as the kernel sends them: messages of an independent encoder are understood, and any others harm nobody.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::net::Ipv4Addr;

use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, Inet6DevConf, InfoData, InfoKind, InfoVrf, LinkAttribute, LinkInfo,
    LinkMessage, LinkXdp, XdpAttached,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use xenflow_guest_client::attribute::Messages;
use xenflow_guest_client::fuzz;
use xenflow_guest_client::link::{self, Ipv6, LinkFacts};
use xenflow_guest_client::translate::{Event, Place, translate};
use xenflow_proto::table::{Hop, HopFlags, Neighbor, NeighborKey, RouteKey, RouteKind, RouteTarget};
use xenflow_proto::{MacAddr, Object};

fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
    let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    bytes
}

fn understood(bytes: &[u8]) -> Event {
    let message = Messages::new(bytes).next().unwrap().unwrap();
    translate(&message).unwrap().unwrap()
}

fn route_message() -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 24;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet(Ipv4Addr::new(198, 51, 100, 0))),
        RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(192, 0, 2, 1))),
        RouteAttribute::Oif(7),
        RouteAttribute::Priority(20),
    ];
    message
}

fn neighbor_message(state: NeighbourState) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = 7;
    message.header.state = state;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(Ipv4Addr::new(192, 0, 2, 1))),
        NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]),
    ];
    message
}

#[test]
fn a_route_is_understood() {
    let event = understood(&bytes(RouteNetlinkMessage::NewRoute(route_message())));
    let Event::Route(route, Place::First) = event else { panic!("{event:?}") };
    let dst = "198.51.100.0/24".parse().unwrap();
    assert_eq!(route.key, RouteKey { table: 254, dst, tos: 0, metric: 20 });
    assert_eq!(route.kind, RouteKind::Unicast);
    let gateway = Some(Ipv4Addr::new(192, 0, 2, 1).into());
    let hop = Hop { gateway, oif: Some(7), weight: 1, flags: HopFlags(0), encap: false };
    assert_eq!(route.target, RouteTarget::Hops(vec![hop]));
}

#[test]
fn a_neighbor_is_understood() {
    let key = NeighborKey { ifindex: 7, addr: Ipv4Addr::new(192, 0, 2, 1).into() };
    let stale = bytes(RouteNetlinkMessage::NewNeighbour(neighbor_message(NeighbourState::Stale)));
    let mac = MacAddr([2, 0, 0, 0, 0, 9]);
    assert_eq!(understood(&stale), Event::Upsert(Object::Neighbor(Neighbor { key, mac })));
    let failed = bytes(RouteNetlinkMessage::NewNeighbour(neighbor_message(NeighbourState::Failed)));
    assert_eq!(understood(&failed), Event::Remove(xenflow_proto::Key::Neighbor(key)));
}

fn link_facts(attributes: Vec<LinkAttribute>) -> LinkFacts {
    let mut message = LinkMessage::default();
    message.header.index = 7;
    message.attributes = attributes;
    message.attributes.extend([LinkAttribute::IfName("eth0".into()), LinkAttribute::Mtu(1500)]);
    let bytes = bytes(RouteNetlinkMessage::NewLink(message));
    let message = Messages::new(&bytes).next().unwrap().unwrap();
    link::link(message.payload).unwrap().unwrap()
}

#[test]
fn a_vrf_and_its_link_are_understood() {
    let vrf = link_facts(vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vrf),
        LinkInfo::Data(InfoData::Vrf(vec![InfoVrf::TableId(100)])),
    ])]);
    assert_eq!((vrf.link.kind.as_str(), vrf.link.vrf_table), ("vrf", Some(100)));
    let slave = link_facts(vec![LinkAttribute::Controller(9)]);
    assert_eq!((slave.link.master, slave.link.vrf_table), (Some(9), None));
}

#[test]
fn xdp_and_ipv6_of_a_link_are_understood() {
    let plain = link_facts(vec![LinkAttribute::Xdp(vec![LinkXdp::Attached(XdpAttached::None)])]);
    assert_eq!((plain.xdp, plain.ipv6, plain.link.ipv6_mtu), (false, None, None));
    let driver = link_facts(vec![LinkAttribute::Xdp(vec![LinkXdp::Attached(XdpAttached::Driver)])]);
    assert!(driver.xdp);
    for (mtu6, disabled, told) in [(1400, 0, 1400), (9000, 1, 1500)] {
        let mut conf = Inet6DevConf::default();
        (conf.mtu6, conf.disable_ipv6) = (mtu6, disabled);
        let specific = AfSpecUnspec::Inet6(vec![AfSpecInet6::DevConf(conf)]);
        let facts = link_facts(vec![LinkAttribute::AfSpecUnspec(vec![specific])]);
        let wanted = Ipv6 { mtu: mtu6.try_into().unwrap(), disabled: disabled != 0 };
        assert_eq!((facts.ipv6, facts.link.ipv6_mtu), (Some(wanted), Some(told)));
    }
}

#[test]
fn the_corpus_is_understood_as_named() {
    let mut files = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let digits: Vec<u8> = text
            .lines()
            .flat_map(|line| line.split('#').next().unwrap().bytes())
            .filter(u8::is_ascii_hexdigit)
            .collect();
        let data: Vec<u8> = digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        let name = path.file_name().unwrap().to_str().unwrap();
        let count: usize = name.split('.').nth(1).unwrap().parse().unwrap();
        assert_eq!(fuzz::datagram(&data), count, "{name}");
        files += 1;
    }
    assert!(files >= 6, "{files} files");
}

/// A message whose frame is right and whose contents may be anything: what reaches deepest.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop::sample::select(vec![16u16, 17, 20, 21, 24, 25, 28, 29, 32, 36, 80, 104, 105]);
    let family = prop::sample::select(vec![0u8, 2, 10, 7]);
    let length = prop::sample::select(vec![0usize, 2, 4, 4, 4, 6, 8, 8, 16, 16, 18, 40]);
    let value =
        length.prop_flat_map(|length| prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], length));
    let attributes = prop::collection::vec((0..32u16, value), 0..8);
    let header = prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 20);
    (kind, family, header, attributes, any::<u16>()).prop_map(
        |(kind, family, mut header, attributes, flags)| {
            // The sizes of `translate`'s headers.
            let size = match kind {
                16 | 17 => 16,
                24 | 25 | 28 | 29 | 32 => 12,
                36 => 20,
                80 => 4,
                _ => 8,
            };
            header.truncate(size);
            header[0] = family;
            let mut bytes = vec![0; 4];
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(flags.to_ne_bytes());
            bytes.extend([0; 8]);
            bytes.extend(header);
            for (kind, value) in attributes {
                bytes.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
                bytes.extend(kind.to_ne_bytes());
                bytes.extend(&value);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            let length = u32::try_from(bytes.len()).unwrap();
            bytes.splice(..4, length.to_ne_bytes());
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn no_bytes_harm(data in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz::datagram(&data);
    }

    #[test]
    fn no_message_harms(messages in prop::collection::vec(message(), 1..4), cut in 0..400usize) {
        let mut data = messages.concat();
        fuzz::datagram(&data);
        data.truncate(cut);
        fuzz::datagram(&data);
    }
}

/// The strategy above would prove nothing if nothing of it were understood.
#[test]
fn random_messages_are_understood_at_times() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let understood: usize =
        (0..1000).map(|_| fuzz::datagram(&message().new_tree(&mut runner).unwrap().current())).sum();
    assert!(understood > 50, "{understood} of 1000");
}
