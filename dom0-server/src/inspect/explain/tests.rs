use proptest::prelude::*;
use xenflow_flow_app::sim::Tag;

use openflow::Field;

use super::frame::Recipe;
use super::*;

fn refused(asked: Asked) -> String {
    asked.parse().unwrap_err().to_string()
}

fn asked() -> Asked {
    Asked { from: Some("h1".into()), dst: Some("10.0.0.7".parse().unwrap()), ..Asked::default() }
}

#[test]
fn what_is_no_packet_is_refused_with_the_rule() {
    let frame = |text: &str| refused(Asked { frame: Some(text.into()), ..Asked::default() });
    assert_eq!(frame("0x00"), "a frame is written in hexadecimal digits, two a byte, not \"0x00\"");
    assert_eq!(frame("123"), "a frame is written in hexadecimal digits, two a byte, not \"123\"");
    assert_eq!(frame("0102"), "a frame has 14 to 9216 bytes, not 2");
    assert_eq!(frame(&"00".repeat(9217)), "a frame has 14 to 9216 bytes, not 9217");
    let cut = format!("{}0800{}", "00".repeat(12), "45".repeat(19));
    assert_eq!(frame(&cut), "the frame ends in its IPv4 header");
    assert_eq!(frame(&format!("{}8100", "00".repeat(12))), "the frame ends in its 802.1Q header");
    for (wrong, says) in [
        (Asked::default(), "a packet needs a frame or a destination address, not both"),
        (
            Asked { frame: Some(String::new()), ..asked() },
            "a packet needs a frame or a destination address, not both",
        ),
        (Asked { from: None, ..asked() }, "a packet that is made needs a port that it comes in by"),
        (
            Asked { from: Some(" ".into()), ..asked() },
            "\" \" is no name of a port: 1 to 63 characters without blanks",
        ),
        (Asked { proto: Some("sctp".into()), ..asked() }, "\"sctp\" is not a protocol: udp, tcp or icmp"),
        (Asked { proto: Some("icmp".into()), dport: Some(1), ..asked() }, "icmp has no ports"),
        (
            Asked { src: Some("::1".parse().unwrap()), ..asked() },
            "source ::1 and destination 10.0.0.7 are of different families",
        ),
        (Asked { router: Some("A b".into()), ..asked() }, "\"A b\" is not a name"),
        (
            Asked { dst: None, frame: Some("00".into()), ttl: Some(1), ..asked() },
            "a frame is taken as it is: no TTL goes with it",
        ),
    ] {
        let refusal = refused(wrong);
        assert!(refusal.starts_with(says), "{refusal}");
    }
}

fn recipe(protocol: Protocol, is_ipv4: bool) -> Recipe {
    let addresses = if is_ipv4 { ("10.0.0.5", "10.2.0.7") } else { ("2001:db8::5", "2001:db8:2::7") };
    Recipe {
        macs: (MacAddr([2, 0, 0, 0, 1, 1]), MacAddr([2, 0, 0, 0, 0, 1])),
        addresses: (addresses.0.parse().unwrap(), addresses.1.parse().unwrap()),
        protocol,
        ports: (49_152, 9),
        ttl: 64,
    }
}

/// RFC 1071: a receiver's sum over all of it is all ones.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16)
}

fn bytes(frame: &Frame) -> Vec<u8> {
    let hex = frame.hex();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn a_made_packet_is_right_down_to_its_sums() {
    for protocol in [Protocol::Udp, Protocol::Tcp, Protocol::Icmp] {
        for is_ipv4 in [true, false] {
            let frame = Frame::make(&recipe(protocol, is_ipv4)).unwrap();
            assert_eq!(Frame::parse(&frame.hex()).unwrap(), frame);
            let bytes = bytes(&frame);
            let payload = if is_ipv4 { &bytes[34..] } else { &bytes[54..] };
            let number = frame.packet().header(Field::IpProto) as u8;
            let mut pseudo = if is_ipv4 { bytes[26..34].to_vec() } else { bytes[22..54].to_vec() };
            pseudo.extend([0, number, 0, payload.len() as u8]);
            let pseudo = if number == 1 { Vec::new() } else { pseudo };
            assert_eq!(sum(&[&pseudo[..], payload].concat()), 0xffff, "{protocol:?}");
            assert!(!is_ipv4 || sum(&bytes[14..34]) == 0xffff);
            assert_eq!(usize::from(frame.packet().ip_len), bytes.len() - 14);
        }
    }
}

#[test]
fn a_frame_that_was_routed_is_the_old_one_with_other_headers() {
    for is_ipv4 in [true, false] {
        let frame = Frame::make(&recipe(Protocol::Udp, is_ipv4)).unwrap();
        let routed =
            frame.packet().clone().with(Field::IpTtl, 63).with(Field::EthDst, 9).tagged(Tag::new(101));
        let became = frame.become_of(&routed);
        // Read back it says the same, and its sum is right.
        assert_eq!(Frame::parse(&became.hex()).unwrap().packet(), &routed);
        assert!(!is_ipv4 || sum(&bytes(&became)[18..38]) == 0xffff);
        let back = became.become_of(frame.packet());
        assert_eq!(back, frame);
    }
}

proptest! {
    /// Whatever an operator pastes.
    #[test]
    fn no_bytes_are_too_strange(mut bytes in prop::collection::vec(any::<u8>(), 14..200), kind in 0..6_usize) {
        let kinds = [[8, 0], [0x86, 0xdd], [8, 6], [0x81, 0], [0x88, 0xa8], [0, 9]];
        bytes.splice(12..14, kinds[kind]);
        if let Ok(frame) = Frame::new(bytes) {
            let same = frame.become_of(frame.packet());
            prop_assert_eq!(Frame::parse(&same.hex()).map(|it| it.packet().clone()), Ok(frame.packet().clone()));
        }
    }
}
