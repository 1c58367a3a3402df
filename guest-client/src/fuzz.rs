//! Body of a fuzz target: any bytes may come from a netlink socket, nothing may panic, and what is understood of
//! them must be what a host accepts.

use std::time::Duration;

use xenflow_proto::{Change, FrameDecoder, GuestMessage, Object, Seq};

use crate::attribute::Messages;
use crate::mirror::Mirror;
use crate::translate::{Event, translate};

/// A datagram of the kernel, as an event and as part of a dump. Returns how many messages were understood.
pub fn datagram(data: &[u8]) -> usize {
    let mut mirror = Mirror::new();
    mirror.begin_dump();
    let mut understood = 0;
    for message in Messages::new(data).map_while(Result::ok) {
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
