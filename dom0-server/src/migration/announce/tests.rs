//! Frames compared with those of Linux 6 for the same router, taken from a wire: only their Ethernet source is the node's where they
//! answer.

use std::net::Ipv6Addr;
use std::time::Duration;

use proptest::prelude::*;

use super::frame::{ALL_NODES_MAC, Advertisement, NEIGHBOR_SOLICITATION, checksum, solicited_node};
use super::schedule::{ANNOUNCEMENT, MAX_ADDRESSES};
use super::*;

const ROUTER: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const HOST: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
const NODE: MacAddr = MacAddr([0x0e, 0, 0, 0, 0, 0xaa]);

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

fn vif(addresses: &[&str]) -> Vif {
    Vif::new(VlanId::MIN, ROUTER, addresses.iter().map(|text| text.parse().unwrap()))
}

fn router() -> Vif {
    vif(&["192.0.2.1", "2001:db8::1", "fe80::5054:ff:fe00:1"])
}

/// What the kernel has said, as a node says it.
fn by_node(kernel: &str) -> Option<Vec<u8>> {
    let mut frame = hex(kernel);
    frame[6..12].copy_from_slice(&NODE.0);
    Some(frame)
}

#[test]
fn answers_are_the_kernels() {
    for (what, question, kernel) in [
        (
            "who has 192.0.2.1",
            "ffffffffffff 525400000002 0806 0001 0800 06 04 0001 525400000002 c0000202 000000000000 c0000201",
            "525400000002 525400000001 0806 0001 0800 06 04 0002 525400000001 c0000201 525400000002 c0000202",
        ),
        (
            "a probe, padded",
            "ffffffffffff 525400000002 0806 0001 0800 06 04 0001 525400000002 00000000 000000000000 c0000201
             000000000000000000000000000000000000",
            "525400000002 525400000001 0806 0001 0800 06 04 0002 525400000001 c0000201 525400000002 00000000",
        ),
        (
            "who has 2001:db8::1",
            "3333ff000001 525400000002 86dd 60000000 0020 3aff 20010db8000000000000000000000002
             ff0200000000000000000001ff000001 8700cbd2 00000000 20010db8000000000000000000000001 0101 525400000002",
            "525400000002 525400000001 86dd 60000000 0020 3aff 20010db8000000000000000000000001
             20010db8000000000000000000000002 8800ba1e e0000000 20010db8000000000000000000000001 0201 525400000001",
        ),
        (
            "is 2001:db8::1 free, with a nonce",
            "3333ff000001 525400000002 86dd 60000000 0020 3aff 00000000000000000000000000000000
             ff0200000000000000000001ff000001 87002d53 00000000 20010db8000000000000000000000001 0e01 2b848b6b5aa1",
            "333300000001 525400000001 86dd 60000000 0020 3aff 20010db8000000000000000000000001
             ff020000000000000000000000000001 880028d6 a0000000 20010db8000000000000000000000001 0201 525400000001",
        ),
    ] {
        assert_eq!(answer(&router(), NODE, &hex(question)), by_node(kernel), "{what}");
        assert_eq!(answer(&vif(&["192.0.2.9", "2001:db8::9"]), NODE, &hex(question)), None, "{what}");
    }
}

#[test]
fn what_is_told_is_what_the_kernel_tells() {
    let told = |addresses: &[&str]| -> Vec<Vec<u8>> {
        let mut schedule = Schedule::new(&[vif(addresses)]);
        schedule.due(Duration::ZERO).into_iter().map(|telling| telling.frame).collect()
    };
    let request = hex("ffffffffffff 525400000001 0806 0001 0800 06 04 0001
         525400000001 c0000201 000000000000 c0000201");
    let special = |address: &str| {
        let head = "aaaaaaaaaaaa 525400000001 0806 0001 0800 06 04 0002";
        hex(&format!("{head} 525400000001 {address} aaaaaaaaaaaa {address}"))
    };
    let global = hex("333300000001 525400000001 86dd 60000000 0020 3aff 20010db8000000000000000000000001
         ff020000000000000000000000000001 880028d6 a0000000 20010db8000000000000000000000001 0201 525400000001");
    let link_local = hex("333300000001 525400000001 86dd 60000000 0020 3aff fe80000000000000505400fffe000001
         ff020000000000000000000000000001 8800e89d a0000000 fe80000000000000505400fffe000001 0201 525400000001");
    assert_eq!(
        told(&["192.0.2.1", "2001:db8::1", "fe80::5054:ff:fe00:1"]),
        [request, special("c0000201"), global.clone(), link_local]
    );
    assert_eq!(told(&["2001:db8::1"]), [global, special("00000000")]);
    // The frame that QEMU sends, without its padding.
    let reverse = hex("ffffffffffff 525400000001 8035 0001 0800 06 04 0003
         525400000001 00000000 525400000001 00000000");
    let nothing = [reverse, special("00000000")];
    assert_eq!(told(&[]), nothing);
    assert_eq!(
        told(&[
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.5",
            "255.255.255.255",
            "::1",
            "::",
            "ff02::5",
            "::ffff:192.0.2.1"
        ]),
        nothing
    );
    assert!(!ANNOUNCEMENT.is_multicast());
}

#[test]
fn it_is_told_as_often_as_the_rfcs_say() {
    let mut schedule = Schedule::new(&[vif(&["192.0.2.1", "2001:db8::1"])]);
    assert!(!schedule.has_told_all());
    let mut told = Vec::new();
    while let Some(at) = schedule.next() {
        if let Some(early) = at.checked_sub(Duration::from_nanos(1)) {
            assert!(schedule.due(early).is_empty());
        }
        let kind = |telling: Telling| match telling.frame[..14] {
            [0xaa, ..] => "special",
            [0xff, ..] => "arp",
            _ => "na",
        };
        told.push((at.as_secs(), schedule.due(at).into_iter().map(kind).collect::<Vec<_>>()));
        assert!(schedule.has_told_all());
    }
    let all = vec!["arp", "special", "na"];
    assert_eq!(told, [(0, all.clone()), (1, vec!["special", "na"]), (2, all)]);
    let nobody = Schedule::new(&[]);
    assert!(nobody.next().is_none() && nobody.has_told_all());
}

/// A guest says how many vifs and addresses there are.
#[test]
fn many_are_told_of_at_a_bounded_rate() {
    let vlan = |number: u16| VlanId::try_from(i64::from(number)).unwrap();
    let addresses = |from: u32, count: u32| (from..from + count).map(|n| IpAddr::from(n.to_be_bytes()));
    let vifs: Vec<_> = (0..1000u16)
        .map(|n| Vif::new(vlan(n + 1), ROUTER, addresses(0x0a00_0000 + (u32::from(n) << 8), 7)))
        .chain([Vif::new(vlan(2000), HOST, addresses(0x0b00_0000, 100_000))])
        .collect();
    let mut schedule = Schedule::new(&vifs);
    let (mut times, mut first) = (Vec::new(), BTreeSet::new());
    while let Some(at) = schedule.next() {
        // Late, as a busy daemon is.
        let at = at + Duration::from_millis(if times.len() % 700 < 100 { 30 } else { 0 });
        let due = schedule.due(at);
        if !schedule.has_told_all() {
            first.extend(due.iter().map(|telling| telling.vlan));
        }
        times.extend(due.iter().map(|_| at));
    }
    assert!(first.len() >= 900, "{} segments before any is told of twice", first.len());
    // Addresses of IPv4 twice, the special reply three times.
    assert_eq!(times.len(), 2 * (vifs.len() + MAX_ADDRESSES) + 3 * vifs.len());
    for (at, from) in times.iter().enumerate() {
        let within = times[at..].iter().take_while(|to| **to < *from + Duration::from_secs(1)).count();
        assert!(within <= PER_SECOND as usize + 100, "{within} frames in a second, from {from:?}");
    }
}

/// A solicitation in which everything may be chosen, with its right checksum.
fn solicitation(
    source: Ipv6Addr,
    to: Ipv6Addr,
    target: Ipv6Addr,
    hops: u8,
    code: u8,
    options: &[u8],
) -> Vec<u8> {
    let advertisement =
        Advertisement { target, mac: HOST, to, is_solicited: false }.frame(ALL_NODES_MAC, HOST);
    let mut frame = advertisement[..78].to_vec();
    frame.extend(options);
    let length = u16::try_from(frame.len() - 54).unwrap();
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame[21] = hops;
    frame[22..38].copy_from_slice(&source.octets());
    frame[54..62].copy_from_slice(&[NEIGHBOR_SOLICITATION, code, 0, 0, 0, 0, 0, 0]);
    let sum = checksum(source, to, &frame[54..]);
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn solicitations_are_valid_or_not_answered() {
    let ip = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    let (host, own, nobody) = (ip("2001:db8::2"), ip("2001:db8::1"), Ipv6Addr::UNSPECIFIED);
    let group = solicited_node(own);
    let link_layer = [&[1, 1][..], &HOST.0].concat();
    let is_answered = |source, to, hops, code, options: &[u8]| {
        answer(&router(), NODE, &solicitation(source, to, own, hops, code, options)).is_some()
    };
    for (what, answered, is) in [
        ("asked in the group", true, is_answered(host, group, 255, 0, &link_layer)),
        ("asked alone", true, is_answered(host, own, 255, 0, &[])),
        ("of another own address", true, is_answered(host, ip("fe80::5054:ff:fe00:1"), 255, 0, &[])),
        ("is it free", true, is_answered(nobody, group, 255, 0, &[])),
        ("unknown options", true, is_answered(host, group, 255, 0, &[200, 1, 0, 0, 0, 0, 0, 0])),
        ("from beyond a router", false, is_answered(host, group, 254, 0, &link_layer)),
        ("a code", false, is_answered(host, group, 255, 1, &link_layer)),
        ("an option of no length", false, is_answered(host, group, 255, 0, &[1, 0, 0, 0, 0, 0, 0, 0])),
        ("an option cut off", false, is_answered(host, group, 255, 0, &[1, 2, 0, 0, 0, 0, 0, 0])),
        ("half an option", false, is_answered(host, group, 255, 0, &[1])),
        (
            "sixteen bytes of address",
            false,
            is_answered(host, group, 255, 0, &[&[1, 2][..], &[2; 14]].concat()),
        ),
        ("a group's MAC address", false, is_answered(host, group, 255, 0, &[1, 1, 0x33, 0x33, 0, 0, 0, 1])),
        ("the router's", false, is_answered(host, group, 255, 0, &[&[1, 1][..], &ROUTER.0].concat())),
        ("is it free, to one", false, is_answered(nobody, own, 255, 0, &[])),
        ("is it free, by somebody", false, is_answered(nobody, group, 255, 0, &link_layer)),
        ("the router itself", false, is_answered(own, group, 255, 0, &link_layer)),
        ("a group asks", false, is_answered(ip("ff02::2"), group, 255, 0, &link_layer)),
        ("in another group", false, is_answered(host, solicited_node(host), 255, 0, &link_layer)),
        ("of another host", false, is_answered(host, ip("2001:db8::9"), 255, 0, &link_layer)),
    ] {
        assert_eq!(is, answered, "{what}");
    }
    let mut frame = solicitation(host, group, own, 255, 0, &link_layer);
    assert!(answer(&router(), NODE, &frame).is_some());
    frame[56] ^= 1;
    assert_eq!(answer(&router(), NODE, &frame), None, "a wrong checksum");
    frame[56] ^= 1;
    frame[0..6].copy_from_slice(&HOST.0);
    assert_eq!(answer(&router(), NODE, &frame), None, "not for the router");
}

proptest! {
    #[test]
    fn who_asks_for_another_address_is_not_answered(
        own in proptest::collection::btree_set(any::<[u8; 2]>(), 0..20),
        asked in any::<[u8; 2]>(),
    ) {
        let v4 = |[a, b]: [u8; 2]| IpAddr::from([10, 0, a, b]);
        let v6 = |[a, b]: [u8; 2]| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from_be_bytes([a, b]));
        let both = own.iter().flat_map(|n| [v4(*n), v6(*n).into()]);
        let vif = Vif::new(VlanId::MIN, ROUTER, both);
        let head = hex("ffffffffffff 525400000002 0806 0001 0800 06 04 0001 525400000002 c0000202 000000000000 0a00");
        prop_assert_eq!(answer(&vif, NODE, &[&head[..], &asked].concat()).is_some(), own.contains(&asked));
        let host = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
        let frame = solicitation(host, solicited_node(v6(asked)), v6(asked), 255, 0, &[]);
        prop_assert_eq!(answer(&vif, NODE, &frame).is_some(), own.contains(&asked));
    }
}
