//! What meters a switch can have: bytes by hand, and a real Open vSwitch.
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

mod common;

use openflow::{Message, MeterFeatures, MultipartReply, MultipartRequest, meter};

#[test]
fn bytes() {
    let mut out = bytes::BytesMut::new();
    Message::MultipartRequest(MultipartRequest::MeterFeatures).encode(7, &mut out).unwrap();
    assert_eq!(&out[..], [6, 18, 0, 16, 0, 0, 0, 7, 0, 11, 0, 0, 0, 0, 0, 0]);
    let reply = [
        &[6, 19, 0, 32, 0, 0, 0, 7, 0, 11, 0, 0, 0, 0, 0, 0][..],
        &[0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 15, 1, 0, 0, 0],
    ];
    let body =
        MeterFeatures { max_meters: 65536, band_types: 2, capabilities: 15, max_bands: 1, max_colors: 0 };
    let reply = reply.concat();
    let body = MultipartReply::MeterFeatures(body);
    assert_eq!(Message::decode(&reply), Ok((7, Message::MultipartReply { more: false, body })));
    for end in 8..reply.len() - 2 {
        let mut short = reply[..end].to_vec();
        short[3] = u8::try_from(end).unwrap();
        assert!(Message::decode(&short).is_err(), "{end} bytes");
    }
}

#[test]
fn a_switch_says_what_it_has() {
    let switch = common::Switch::start("meter-features");
    let mut client = switch.connect();
    let MultipartReply::MeterFeatures(features) = client.ask(MultipartRequest::MeterFeatures) else {
        panic!()
    };
    assert!(features.max_meters > 0 && features.max_bands > 0, "{features:?}");
    assert_ne!(features.band_types & 1 << 1, 0, "{features:?}");
    assert_ne!(features.capabilities & u32::from(meter::meter_flags::PKTPS), 0, "{features:?}");
}
