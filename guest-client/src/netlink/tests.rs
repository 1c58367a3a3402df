//! What becomes of a dump when the kernel says, byte by byte, that something is wrong with it.
//!
//! The socket is a real one, as a step sends the request for the next; what the kernel answers to that is not read.

use std::net::{IpAddr, Ipv4Addr};

use xenflow_proto::Object;
use xenflow_proto::table::AddressKey;

use super::*;

const NLM_F_MULTI: u16 = 0x2;

/// `struct nlmsghdr` and a payload.
fn message(kind: u16, flags: u16, sequence: u32, port: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(MESSAGE_HEADER + payload.len()).unwrap().to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&port.to_ne_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// `RTM_NEWADDR` of 192.0.2.LAST/24 at link 7: `struct ifaddrmsg` (family, prefix length, flags, scope, link) and
/// `IFA_LOCAL`.
fn address(last: u8) -> Vec<u8> {
    let mut bytes = vec![AF_INET, 24, 0, 0];
    bytes.extend_from_slice(&7u32.to_ne_bytes());
    for half in [8u16, 2] {
        bytes.extend_from_slice(&half.to_ne_bytes());
    }
    bytes.extend_from_slice(&[192, 0, 2, last]);
    bytes
}

fn event(last: u8) -> Event {
    let address = ipnet::IpNet::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)), 24).unwrap();
    Event::Upsert(Object::Address(AddressKey { ifindex: 7, address }))
}

struct Client(Netlink);

impl Client {
    /// A dump has begun.
    fn new() -> Self {
        let mut client = Self(Netlink::open(1 << 16).unwrap());
        client.0.start_dump().unwrap();
        client
    }

    fn hear(&mut self, datagram: &[u8]) -> Vec<Input> {
        let mut inputs = Vec::new();
        self.0.datagram(datagram, &mut |input| inputs.push(input)).unwrap();
        inputs
    }

    /// An answer to the last request.
    fn answer(&mut self, kind: u16, flags: u16, payload: &[u8]) -> Vec<Input> {
        let (sequence, port) = (self.0.sequence, self.0.port);
        self.hear(&message(kind, flags | NLM_F_MULTI, sequence, port, payload))
    }

    fn entry(&mut self, flags: u16, last: u8) -> Vec<Input> {
        self.answer(rtm::NEWADDR, flags, &address(last))
    }

    /// The end of a step.
    fn done(&mut self, flags: u16) -> Vec<Input> {
        self.answer(NLMSG_DONE, flags, &0i32.to_ne_bytes())
    }

    /// Up to the step that lists IPv4 addresses.
    fn at_addresses() -> Self {
        let mut client = Self::new();
        assert_eq!(client.done(0), []);
        client
    }

    /// The steps that are left: the dump ends like this.
    fn rest(&mut self) -> bool {
        for _ in 0..STEPS.len() {
            match self.done(0).as_slice() {
                [] => {}
                [Input::DumpEnded { whole }] => return *whole,
                other => panic!("{other:?}"),
            }
        }
        panic!("it does not end");
    }
}

#[tokio::test]
async fn a_dump_is_all_its_steps() {
    let mut client = Client::at_addresses();
    assert_eq!(client.entry(0, 1), [Input::Dumped(event(1))]);
    for _ in 2..STEPS.len() {
        assert_eq!(client.done(0), []);
        assert!(client.0.is_dumping());
    }
    assert_eq!(client.done(0), [Input::DumpEnded { whole: true }]);
    assert!(!client.0.is_dumping());
    assert_eq!(client.done(0), [], "there is none that could end");
}

#[tokio::test]
async fn an_interrupted_entry_makes_the_dump_less_than_whole() {
    let mut client = Client::at_addresses();
    assert_eq!(client.entry(0, 1), [Input::Dumped(event(1))]);
    assert_eq!(client.entry(NLM_F_DUMP_INTR, 2), [Input::Dumped(event(2))], "it is one all the same");
    assert_eq!(client.entry(0, 3), [Input::Dumped(event(3))]);
    assert!(!client.rest(), "although all that followed was in order");
    client.0.start_dump().unwrap();
    assert!(client.rest(), "the next one knows nothing of it");
}

#[tokio::test]
async fn an_interrupted_end_makes_the_dump_less_than_whole() {
    for step in 0..STEPS.len() {
        let mut client = Client::new();
        for _ in 0..step {
            assert_eq!(client.done(0), []);
        }
        let end = client.done(NLM_F_DUMP_INTR);
        let whole = match end.as_slice() {
            [] => client.rest(),
            [Input::DumpEnded { whole }] if step + 1 == STEPS.len() => *whole,
            other => panic!("{other:?}"),
        };
        assert!(!whole, "step {step}");
    }
}

#[tokio::test]
async fn an_overrun_ends_the_dump_and_the_trust() {
    let mut client = Client::at_addresses();
    let (sequence, port) = (client.0.sequence, client.0.port);
    assert!(!client.0.is_congested());
    // Whatever it says of itself.
    let overrun = client.hear(&message(NLMSG_OVERRUN, 0, 0, 0, &[]));
    assert_eq!(overrun, [Input::DumpEnded { whole: false }, Input::Overflow]);
    assert!(client.0.is_congested() && !client.0.is_dumping());
    let late = message(rtm::NEWADDR, NLM_F_MULTI, sequence, port, &address(1));
    assert_eq!(client.hear(&late), [], "an answer to what nobody waits for");
    assert_eq!(client.hear(&message(NLMSG_OVERRUN, 0, 0, 0, &[])), [Input::Overflow], "no dump to end");
}

#[tokio::test]
async fn an_error_ends_the_dump() {
    const EBUSY: i32 = -16;
    const EOPNOTSUPP: i32 = -95;
    for kind in [NLMSG_ERROR, NLMSG_DONE] {
        let mut client = Client::at_addresses();
        let sequence = client.0.sequence;
        assert_eq!(client.answer(kind, 0, &EBUSY.to_ne_bytes()), [Input::DumpEnded { whole: false }]);
        assert!(!client.0.is_dumping() && !client.0.is_congested(), "nothing was lost");
        // The kernel goes on with it.
        let late = message(rtm::NEWADDR, NLM_F_MULTI, sequence, client.0.port, &address(1));
        assert_eq!(client.hear(&late), []);

        let mut client = Client::at_addresses();
        assert_eq!(client.answer(kind, 0, &EOPNOTSUPP.to_ne_bytes()), [], "a kernel without such a table");
        assert!(client.rest(), "has nothing in it");

        let mut client = Client::at_addresses();
        let foreign = message(kind, 0, client.0.sequence, client.0.port + 1, &EBUSY.to_ne_bytes());
        assert_eq!(client.hear(&foreign), [], "somebody else's");
        assert!(client.rest());
    }
}

#[tokio::test]
async fn a_dump_that_stalls_is_begun_anew() {
    let mut client = Client::at_addresses();
    assert_eq!(client.entry(0, 1), [Input::Dumped(event(1))]);
    let (sequence, port) = (client.0.sequence, client.0.port);
    // Nothing came for so long that the driver asks again: from the first step on.
    client.0.start_dump().unwrap();
    for (kind, payload) in
        [(rtm::NEWADDR, address(2)), (NLMSG_DONE, vec![0; 4]), (NLMSG_ERROR, vec![0xff; 4])]
    {
        let late = message(kind, NLM_F_MULTI | NLM_F_DUMP_INTR, sequence, port, &payload);
        assert_eq!(client.hear(&late), [], "of the first attempt");
    }
    for _ in 1..STEPS.len() {
        assert_eq!(client.done(0), []);
    }
    assert_eq!(client.done(0), [Input::DumpEnded { whole: true }]);
}

#[tokio::test]
async fn events_come_through_while_a_dump_runs() {
    let mut client = Client::at_addresses();
    // Of whoever caused them, and several in a datagram with an answer.
    let mut datagram = message(rtm::NEWADDR, 0, 0, 0, &address(1));
    let (sequence, port) = (client.0.sequence, client.0.port);
    datagram.extend(message(rtm::NEWADDR, NLM_F_MULTI, sequence, port, &address(2)));
    datagram.extend(message(rtm::NEWADDR, 0, sequence, port + 1, &address(3)));
    let expected = [Input::Event(event(1)), Input::Dumped(event(2)), Input::Event(event(3))];
    assert_eq!(client.hear(&datagram), expected);
    // What is cut short may have been anything.
    datagram.truncate(datagram.len() - 1);
    let cut = client.hear(&datagram);
    assert_eq!(cut[..2], expected[..2]);
    assert_eq!(cut[2..], [Input::DumpEnded { whole: false }, Input::Overflow]);
}
