//! Tables that go to the destination of a move: which, and how far each stream is. One message at a time, whenever there is room for
//! one; what a guest changes meanwhile waits as keys, and is told as it is then.

use std::collections::BTreeMap;

use xenflow_flow_app::RouterId;
use xenflow_proto::node::Held;

use super::{Core, Effect, ToPeer};
use crate::migration::peer::outgoing::{Said, Tables};

/// Changes in one message.
const CHANGES: usize = 512;

/// Something about a stream to a destination.
#[derive(Debug)]
pub enum Fed {
    /// It is connected; the destination holds this.
    Connected {
        /// Whoever has told it.
        held: Option<Held>,
        /// What was said before goes on; otherwise it is to be begun again.
        goes_on: bool,
    },
    /// It takes one more message.
    Room,
}

/// How far one is.
#[derive(Debug)]
struct Feed {
    number: u64,
    /// See [`Stream::feed`](super::Stream::feed).
    serial: u64,
    has_room: bool,
    /// What it begins with, once it is connected; and then nothing.
    beginning: Option<Beginning>,
    /// Of the guest whose tables are being told; none: nothing was told yet.
    boot: Option<[u8; 16]>,
    /// Their digest was told.
    is_whole: bool,
    mark: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beginning {
    Snapshot([u8; 16]),
    Resume([u8; 16]),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Feeds {
    all: BTreeMap<RouterId, Feed>,
    /// Of the last that began.
    last: u64,
}

impl Feeds {
    /// Which one tells a router's tables now.
    pub(super) fn of(&self, id: RouterId) -> Option<u64> {
        Some(self.all.get(&id)?.serial)
    }
}

impl Core {
    /// These streams there are to be: others end, and new ones wait for their connection.
    pub(super) fn set_feeds(&mut self, wanted: &BTreeMap<RouterId, u64>) {
        let ended: Vec<RouterId> = {
            let is_ended = |(id, feed): &(&RouterId, &Feed)| wanted.get(id) != Some(&feed.number);
            self.feeds.all.iter().filter(is_ended).map(|(id, _)| *id).collect()
        };
        for id in ended {
            self.feeds.all.remove(&id);
            self.app.unfollow(id);
        }
        for (id, number) in wanted {
            self.feeds.all.entry(*id).or_insert_with(|| {
                self.feeds.last += 1;
                Feed {
                    number: *number,
                    serial: self.feeds.last,
                    has_room: false,
                    beginning: None,
                    boot: None,
                    is_whole: false,
                    mark: 0,
                }
            });
        }
    }

    pub(super) fn feed_said(&mut self, number: u64, said: Fed) {
        let Some((&id, feed)) = self.feeds.all.iter_mut().find(|(_, feed)| feed.number == number) else {
            return;
        };
        match said {
            Fed::Room => feed.has_room = true,
            Fed::Connected { goes_on: true, .. } => {}
            Fed::Connected { held, goes_on: false } => {
                let boot = self.app.boot_of(id);
                let holds_all = boot.is_some_and(|boot| {
                    let own = self.app.held(id, &boot);
                    held.is_some_and(|held| held.boot_id == boot && own == Some(held.digest))
                });
                self.begin_feed(id, boot, !holds_all);
            }
        }
    }

    /// The guest's tables, or if the destination has them what changes from now on.
    fn begin_feed(&mut self, id: RouterId, boot: Option<[u8; 16]>, from_the_beginning: bool) {
        let Some(feed) = self.feeds.all.get_mut(&id) else { return };
        let begin = if from_the_beginning { Beginning::Snapshot } else { Beginning::Resume };
        feed.beginning = boot.map(begin);
        feed.boot = boot;
        feed.is_whole = false;
        self.app.follow(id, from_the_beginning);
    }

    /// Says what there is to say where there is room.
    pub(super) fn feed(&mut self) {
        let ready: Vec<RouterId> =
            self.feeds.all.iter().filter(|(_, feed)| feed.has_room).map(|(id, _)| *id).collect();
        for id in ready {
            let Some(tables) = self.next_of_feed(id) else { continue };
            let Some(feed) = self.feeds.all.get_mut(&id) else { continue };
            feed.has_room = false;
            feed.mark += 1;
            let said = Said { mark: feed.mark, tables };
            self.effects.push(Effect::Peer(ToPeer::Feed(feed.number, said)));
        }
    }

    fn next_of_feed(&mut self, id: RouterId) -> Option<Tables> {
        let boot = self.app.boot_of(id)?;
        // The guest was started anew, or its first word came after the connection.
        let told = self.feeds.all.get(&id)?.boot;
        if told != Some(boot) {
            self.begin_feed(id, Some(boot), true);
        }
        let feed = self.feeds.all.get_mut(&id)?;
        match feed.beginning.take() {
            Some(Beginning::Snapshot(boot)) => return Some(Tables::Snapshot(boot)),
            Some(Beginning::Resume(_)) => return Some(Tables::Resume),
            None => {}
        }
        let changes = self.app.followed(id, CHANGES);
        if !changes.is_empty() {
            return Some(Tables::Changes(changes));
        }
        // While the guest tells a snapshot they have none.
        let digest = self.app.held(id, &boot).filter(|_| !feed.is_whole)?;
        feed.is_whole = true;
        Some(Tables::End(digest))
    }
}
