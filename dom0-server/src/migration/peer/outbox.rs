//! What the source has said and the destination has not confirmed; pure. Tables wait encoded, at most a window of them, and are
//! sent again over a new connection from where the destination says.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use xenflow_proto::frame::MAX_FRAME;
use xenflow_proto::message::MAX_CHANGES;
use xenflow_proto::node::{DestinationMessage, SourceMessage, Welcome};
use xenflow_proto::{Change, Seq};

use super::outgoing::{Confirmed, Tables};
use super::{BLOCK, Broken, WINDOW};
use crate::migration::punts::Relay;

/// A message of tables in its frame, and the caller's mark if it is the last of what was said with it.
#[derive(Debug)]
struct Message {
    frame: Bytes,
    mark: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) relay: Relay,
    unacknowledged: VecDeque<Message>,
    /// Number of the first of them, or of the next.
    first: u64,
    /// Number of the next to be sent.
    unsent: u64,
    /// The destination has been told, or will be, what tables begin with.
    has_begun: bool,
    window: u64,
}

impl Outbox {
    pub(super) fn new(relay: Relay) -> Self {
        let window = WINDOW.into();
        Self { relay, unacknowledged: VecDeque::new(), first: 1, unsent: 1, has_begun: false, window }
    }

    fn next(&self) -> u64 {
        self.first + self.unacknowledged.len() as u64
    }

    /// Whether more tables may be said. Not all that was said at once need fit the window: it waits here.
    pub(super) fn has_room(&self) -> bool {
        (self.unacknowledged.len() as u64) < self.window
    }

    /// Takes in what is to be said. What belongs to tables whose beginning the destination does not know is dropped: they are
    /// begun again.
    pub(super) fn say(&mut self, mark: u64, tables: Tables) {
        match tables {
            Tables::Snapshot(boot_id) => {
                self.has_begun = true;
                self.put(Some(mark), |seq| SourceMessage::SnapshotBegin { seq, boot_id });
            }
            Tables::Resume => {
                self.has_begun = true;
                self.put(Some(mark), SourceMessage::Resume);
            }
            Tables::Changes(_) | Tables::End(_) if !self.has_begun => {}
            Tables::Changes(mut changes) => {
                while changes.len() > MAX_CHANGES {
                    let rest = changes.split_off(MAX_CHANGES);
                    self.changes(None, changes);
                    changes = rest;
                }
                self.changes(Some(mark), changes);
            }
            Tables::End(digest) => self.put(Some(mark), |seq| SourceMessage::SnapshotEnd { seq, digest }),
        }
    }

    /// In as many frames as are needed: one change is far smaller than a frame.
    fn changes(&mut self, mark: Option<u64>, changes: Vec<Change>) {
        let message = SourceMessage::Changes { seq: Seq(self.next()), changes };
        let mut out = BytesMut::new();
        message.encode(&mut out);
        if out.len() > MAX_FRAME
            && let SourceMessage::Changes { mut changes, .. } = message
            && changes.len() > 1
        {
            let rest = changes.split_off(changes.len() / 2);
            self.changes(None, changes);
            self.changes(mark, rest);
        } else {
            self.unacknowledged.push_back(Message { frame: out.freeze(), mark });
        }
    }

    fn put(&mut self, mark: Option<u64>, message: impl FnOnce(Seq) -> SourceMessage) {
        let mut out = BytesMut::new();
        message(Seq(self.next())).encode(&mut out);
        self.unacknowledged.push_back(Message { frame: out.freeze(), mark });
    }

    /// A connection is up. Whether the tables go on where they were; otherwise they are to be begun again.
    pub(super) fn connected(&mut self, welcome: &Welcome) -> Result<bool, Broken> {
        let want = welcome.next_seq.0;
        let (first, next) = (self.first, self.next());
        match want {
            _ if (first..=next).contains(&want) => self.unsent = want,
            // It has forgotten everything.
            1 => {
                self.unacknowledged.clear();
                (self.first, self.unsent, self.has_begun) = (1, 1, false);
            }
            _ => return Err(Broken::Wanted { want, first, next }),
        }
        self.window = u64::from(welcome.window).clamp(1, WINDOW.into());
        self.relay.connected(welcome.next_punt);
        Ok(self.has_begun)
    }

    /// Appends what is to be sent now, a block of it at a time: frames for the guest first, for these somebody waits.
    pub(super) fn fill(&mut self, out: &mut BytesMut, now: Duration) {
        while out.len() < BLOCK {
            if let Some((first, punts)) = self.relay.batch(now) {
                SourceMessage::Punts { first, punts }.encode(out);
            } else if let Some(last) = self.relay.end_mark() {
                SourceMessage::EndMark(last).encode(out);
            } else if let Some(frame) = self.due() {
                out.extend_from_slice(&frame);
                self.unsent += 1;
            } else {
                return;
            }
        }
    }

    fn due(&self) -> Option<Bytes> {
        let fits = self.unsent < self.first + self.window;
        let at = usize::try_from(self.unsent - self.first).ok().filter(|_| fits)?;
        self.unacknowledged.get(at).map(|message| message.frame.clone())
    }

    /// An answer of the destination; what there is to tell.
    pub(super) fn hear(&mut self, message: &DestinationMessage) -> Result<Option<Confirmed>, Broken> {
        let said = self.unsent - 1;
        Ok(match message {
            DestinationMessage::Welcome(_) => return Err(Broken::Hello),
            DestinationMessage::Ack(Seq(seq)) | DestinationMessage::Staged { seq: Seq(seq), .. }
                if *seq > said =>
            {
                return Err(Broken::Unsaid { seq: *seq, said });
            }
            DestinationMessage::Ack(seq) => {
                let mut newest = None;
                while self.first <= seq.0 {
                    let Some(message) = self.unacknowledged.pop_front() else { break };
                    self.first += 1;
                    newest = message.mark.or(newest);
                }
                newest.map(|mark| Confirmed::Tables { mark })
            }
            DestinationMessage::Staged { digest, .. } => Some(Confirmed::Staged { digest: *digest }),
            DestinationMessage::Given(punt) => Some(Confirmed::Punts { up_to: self.relay.given(*punt) }),
            DestinationMessage::Refusal { .. }
            | DestinationMessage::Ping(_)
            | DestinationMessage::Pong(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use xenflow_proto::node::{MAX_FRAME_BYTES, Punt, PuntKind};
    use xenflow_proto::table::{Hop, HopFlags, Route, RouteKey, RouteKind, RouteTarget, TABLE_MAIN};
    use xenflow_proto::{Digest, FrameDecoder, Key, Object};

    use super::*;
    use crate::migration::punts::Bounds;

    fn outbox() -> Outbox {
        Outbox::new(Relay::new(Bounds::KEPT))
    }

    fn welcome(next_seq: u64, next_punt: u64) -> Welcome {
        Welcome {
            version: 1,
            node: "b".parse().unwrap(),
            max_frame_bytes: 1 << 20,
            max_changes: 4096,
            window: WINDOW,
            next_seq: Seq(next_seq),
            next_punt,
            held: None,
            megaflows: false,
        }
    }

    /// Everything that is to be sent now.
    fn sent(outbox: &mut Outbox) -> Vec<SourceMessage> {
        let mut decoder = FrameDecoder::new(MAX_FRAME);
        let mut all = Vec::new();
        loop {
            let before = decoder.buffer().len();
            outbox.fill(decoder.buffer(), Duration::ZERO);
            if decoder.buffer().len() == before {
                return all;
            }
            while let Some(frame) = decoder.next_frame().unwrap() {
                all.push(SourceMessage::decode(frame).unwrap());
            }
        }
    }

    /// Numbers of tables.
    fn seqs(messages: &[SourceMessage]) -> Vec<u64> {
        let seq = |message: &SourceMessage| match message {
            SourceMessage::SnapshotBegin { seq, .. }
            | SourceMessage::Resume(seq)
            | SourceMessage::Changes { seq, .. }
            | SourceMessage::SnapshotEnd { seq, .. } => Some(seq.0),
            SourceMessage::Hello(_)
            | SourceMessage::Punts { .. }
            | SourceMessage::EndMark(_)
            | SourceMessage::Megaflows(_)
            | SourceMessage::Ping(_)
            | SourceMessage::Pong(_) => None,
        };
        messages.iter().filter_map(seq).collect()
    }

    fn remove() -> Tables {
        Tables::Changes(vec![Change::Remove(Key::NextHop(7))])
    }

    #[test]
    fn tables_go_on_where_the_destination_is() {
        let mut outbox = outbox();
        assert_eq!(outbox.connected(&welcome(1, 1)), Ok(false), "nothing has begun");
        outbox.say(9, remove());
        assert_eq!(sent(&mut outbox), [], "of tables that have no beginning");
        outbox.say(10, Tables::Snapshot([7; 16]));
        (11..14).for_each(|mark| outbox.say(mark, remove()));
        assert_eq!(seqs(&sent(&mut outbox)), [1, 2, 3, 4]);
        assert_eq!(outbox.hear(&DestinationMessage::Ack(Seq(2))), Ok(Some(Confirmed::Tables { mark: 11 })));
        assert_eq!(outbox.hear(&DestinationMessage::Ack(Seq(2))), Ok(None));
        // It has taken in the third, and not confirmed it.
        assert_eq!(outbox.connected(&welcome(4, 1)), Ok(true));
        assert_eq!(seqs(&sent(&mut outbox)), [4]);
        assert_eq!(outbox.hear(&DestinationMessage::Ack(Seq(4))), Ok(Some(Confirmed::Tables { mark: 13 })));
        assert_eq!(outbox.hear(&DestinationMessage::Ack(Seq(5))), Err(Broken::Unsaid { seq: 5, said: 4 }));
        let wanted = Broken::Wanted { want: 9, first: 5, next: 5 };
        assert_eq!(outbox.connected(&welcome(9, 1)), Err(wanted));
        // It has died.
        assert_eq!(outbox.connected(&welcome(1, 1)), Ok(false));
        outbox.say(14, remove());
        outbox.say(15, Tables::Resume);
        outbox.say(16, Tables::End(Digest::default()));
        assert_eq!(seqs(&sent(&mut outbox)), [1, 2]);
    }

    #[test]
    fn no_more_than_a_window_is_sent_unacknowledged_and_punts_do_not_wait_for_it() {
        let mut outbox = outbox();
        outbox.connected(&Welcome { window: 4, ..welcome(1, 1) }).unwrap();
        outbox.say(0, Tables::Snapshot([7; 16]));
        // More than a window at once.
        outbox.say(1, Tables::Changes(vec![Change::Remove(Key::NextHop(7)); 5 * MAX_CHANGES + 1]));
        assert!(!outbox.has_room());
        assert_eq!(seqs(&sent(&mut outbox)), [1, 2, 3, 4]);
        let punt = Punt { vif: 1, kind: PuntKind::Punt, frame: vec![0; MAX_FRAME_BYTES].into() };
        (0..100).for_each(|_| assert!(outbox.relay.push(punt.clone(), Duration::ZERO).is_ok()));
        outbox.relay.end();
        let punts = sent(&mut outbox);
        let firsts = punts.iter().filter_map(|message| {
            let SourceMessage::Punts { first, punts } = message else { return None };
            Some((*first, punts.len()))
        });
        assert_eq!(firsts.collect::<Vec<_>>(), [(1, 64), (65, 36)]);
        assert_eq!((punts.len(), punts.last()), (3, Some(&SourceMessage::EndMark(100))));
        assert_eq!(outbox.hear(&DestinationMessage::Ack(Seq(3))), Ok(Some(Confirmed::Tables { mark: 0 })));
        assert_eq!(seqs(&sent(&mut outbox)), [5, 6, 7]);
        assert_eq!(outbox.hear(&DestinationMessage::Ack(Seq(7))), Ok(Some(Confirmed::Tables { mark: 1 })));
        assert!(outbox.has_room());
    }

    #[test]
    fn what_does_not_fit_a_frame_goes_in_several() {
        let hop = Hop {
            gateway: Some("fe80::7".parse().unwrap()),
            oif: Some(7),
            weight: 65536,
            flags: HopFlags(0),
            encap: false,
        };
        let route = |metric| {
            Change::Upsert(Object::Route(Route {
                key: RouteKey { table: TABLE_MAIN, dst: "2001:db8::/32".parse().unwrap(), tos: 0, metric },
                kind: RouteKind::Unicast,
                protocol: 186,
                scope: 0,
                target: RouteTarget::Hops(vec![hop; 256]),
                mtu: None,
            }))
        };
        let all: Vec<_> = (0..500).map(route).collect();
        let mut outbox = outbox();
        outbox.connected(&welcome(1, 1)).unwrap();
        outbox.say(0, Tables::Snapshot([7; 16]));
        outbox.say(1, Tables::Changes(all.clone()));
        let messages = sent(&mut outbox);
        let changes: Vec<Change> = messages
            .into_iter()
            .filter_map(|message| {
                let SourceMessage::Changes { changes, .. } = message else { return None };
                Some(changes)
            })
            .flatten()
            .collect();
        assert!(outbox.unacknowledged.len() > 3, "the control: not in one");
        assert_eq!(changes, all);
    }
}
