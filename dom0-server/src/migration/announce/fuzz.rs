//! Body of a fuzz target: anybody on a segment may send any frame, nothing may panic, and what is answered is no more than was asked
//! for. The corpus in `corpus/questions/` runs through it as an ordinary test.

use std::net::{IpAddr, Ipv6Addr};

use xenflow_proto::{MacAddr, VlanId};

use super::frame::{self, Arp};
use super::{Vif, answer};

/// The node's.
const NODE: MacAddr = MacAddr([0x0e, 0, 0, 0, 0, 0xaa]);
/// The router's.
const ROUTER: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);

/// Bytes in the place of a frame from a segment; the router is 52:54:00:00:00:01 with 192.0.2.1, 2001:db8::1 and
/// fe80::5054:ff:fe00:1. Returns the address that was asked for, if there is an answer.
pub fn question(data: &[u8]) -> Option<IpAddr> {
    let own: [IpAddr; 3] = [
        [192, 0, 2, 1].into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe00, 1).into(),
    ];
    let said = answer(&Vif::new(VlanId::MIN, ROUTER, own), NODE, data)?;
    let mut rest = &said[..];
    let to = MacAddr(frame::take(&mut rest)?);
    assert_eq!(frame::take(&mut rest), Some(NODE.0), "switches learn nothing");
    assert!(to.is_unicast() && to != ROUTER || to == frame::ALL_NODES_MAC, "{to} is no neighbor");
    let address = match frame::take_u16(&mut rest) {
        Some(frame::ARP) => {
            let arp = Arp::parse(rest);
            let (mac, address) = arp.map_or((NODE, own[1]), |arp| (arp.sender.0, arp.sender.1.into()));
            assert_eq!((arp.map(|arp| arp.operation), mac, said.len()), (Some(frame::REPLY), ROUTER, 42));
            address
        }
        _ => {
            let (header, message) = rest.split_at(40);
            let address = |at: usize| {
                let octets: Option<[u8; 16]> = header.get(at..at + 16).and_then(|part| part.try_into().ok());
                Ipv6Addr::from(octets.unwrap_or_default())
            };
            assert_eq!(frame::checksum(address(8), address(24), message), 0);
            assert_eq!((message[0], header[7], said.len()), (frame::NEIGHBOR_ADVERTISEMENT, 255, 86));
            assert_eq!(message[8..24], header[8..24], "it speaks of the address that it comes from");
            assert_eq!(message[24..], [&[2, 1][..], &ROUTER.0].concat());
            address(8).into()
        }
    };
    assert!(own.contains(&address), "{address} is not the router's");
    let octets = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    assert!(data.windows(octets.len()).any(|part| part == octets), "nobody asked for {address}");
    Some(address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Files of `corpus/questions/` (hexadecimal, `#` comments) with what their names say: `<what>.<address>.hex`, colons as `-`, or
    /// `<what>.none.hex`.
    fn corpus() -> Vec<(String, Option<IpAddr>, Vec<u8>)> {
        let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/questions")).unwrap();
        let read = |path: std::path::PathBuf| {
            let text = std::fs::read_to_string(&path).unwrap();
            let code: String = text.lines().filter_map(|line| line.split('#').next()).collect();
            let digits: Vec<_> = code.chars().filter_map(|c| c.to_digit(16)).collect();
            let data = digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let (_, address) = name.strip_suffix(".hex").unwrap().split_once('.').unwrap();
            let address = (address != "none").then(|| address.replace('-', ":").parse().unwrap());
            (name, address, data)
        };
        folder.map(|entry| read(entry.unwrap().path())).collect()
    }

    #[test]
    fn corpus_is_answered_as_its_names_say() {
        let corpus = corpus();
        for (name, address, data) in &corpus {
            assert_eq!(question(data), *address, "{name}");
            for at in 0..data.len() {
                question(&data[..at]);
                for bit in 0..8 {
                    let mut changed = data.clone();
                    changed[at] ^= 1 << bit;
                    question(&changed);
                }
            }
        }
        let answered = corpus.iter().filter(|(_, address, _)| address.is_some()).count();
        assert!(answered >= 7 && corpus.len() >= answered + 20, "{answered} of {} files", corpus.len());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(data in proptest::collection::vec(any::<u8>(), 0..128)) {
            question(&data);
        }

        /// Several changes to something real get further than noise.
        #[test]
        fn any_change_is_taken(
            which in any::<prop::sample::Index>(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            tail in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let corpus = corpus();
            let mut data = which.get(&corpus).2.clone();
            for (at, byte) in changes {
                if !data.is_empty() {
                    *at.get_mut(&mut data) = byte;
                }
            }
            data.extend(tail);
            question(&data);
        }
    }
}
