//! Body of a fuzz target: any bytes may come from a netlink socket, nothing may panic, and what is understood of
//! them must be what a host accepts.

use std::time::Duration;

use xenflow_proto::message::MAX_TEXT;
use xenflow_proto::{Change, FrameDecoder, GuestMessage, Object, Seq};

use crate::attribute::{Message, Messages};
use crate::facts::{Chain, Facts, Netconf, Policy, Rule, TrafficControl};
use crate::link::link;
use crate::mirror::Mirror;
use crate::neighbors::{Entry, Pace, Wanted};
use crate::obstacles::survey;
use crate::translate::{AF_INET, AF_INET6, Event, translate};

/// A datagram of the kernel, as an event and as part of a dump. Returns how many messages were understood.
pub fn datagram(data: &[u8]) -> usize {
    let mut mirror = Mirror::new(&[0; 16]);
    mirror.begin_dump();
    let mut understood = 0;
    for message in Messages::new(data).map_while(Result::ok) {
        facts(&message);
        let Ok(Some(event)) = translate(&message) else { continue };
        let change = match &event {
            Event::Upsert(object) => Change::Upsert(object.clone()),
            Event::Remove(key) => Change::Remove(key.clone()),
            Event::Route(route, _) | Event::RouteGone(route) => Change::Upsert(Object::Route(route.clone())),
        };
        let message = GuestMessage::Changes { seq: Seq(1), changes: vec![change] };
        let mut decoder = FrameDecoder::new(usize::MAX);
        message.encode(decoder.buffer());
        let frame = decoder.next_frame().ok().flatten();
        assert_eq!(
            frame.map(GuestMessage::decode),
            Some(Ok(message)),
            "the host accepts what was understood"
        );
        mirror.apply_dumped(event.clone(), Duration::ZERO);
        let _ = mirror.apply(event, Duration::ZERO);
        understood += 1;
    }
    let _ = mirror.end_dump(Duration::ZERO);
    understood
}

/// Whatever a survey or a look at the neighbors may be answered with.
fn facts(message: &Message<'_>) {
    let mut facts = Facts::default();
    facts.links.extend(link(message.payload).ok().flatten());
    for (at, family) in [AF_INET, AF_INET6].into_iter().enumerate() {
        if let (Some(netconf), Some(rules)) = (facts.netconf.get_mut(at), facts.rules.get_mut(at)) {
            *netconf = Netconf::decode(message, family).map(|netconf| vec![netconf]);
            *rules = Rule::decode(message, family).map(|rule| vec![rule]);
        }
        let entry = Entry::decode(message, family);
        let wanted =
            Wanted { links: entry.iter().map(|entry| entry.key.ifindex).collect(), ..Wanted::default() };
        Pace::default().plan(Duration::ZERO, &Vec::from_iter(entry), &wanted);
    }
    facts.chains.extend(Chain::decode(message));
    facts.policies.extend(Policy::decode(message).into_iter().chain(Policy::decode_default(message)));
    facts.filters.extend(TrafficControl::decode(message).map(|tc| (tc.ifindex, tc.kind)));
    for obstacle in survey(&facts).obstacles {
        assert!(obstacle.detail.len() <= MAX_TEXT, "the host accepts what was understood");
    }
}
