//! The carrier's channels: frames from the switch and to it, to and from other nodes, and what the core says and hears.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openflow::PacketOut;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use xenflow_flow_app::{Heard, RouterId};
use xenflow_proto::node::Punt;

use super::{Carrier, Out, Posts};
use crate::clock::until;
use crate::core::Event;
use crate::migration::peer::outgoing::Relayed;

/// Frames from the switch that wait; it hands over thousands a second at most, by meters.
pub const HEARD: usize = 4096;
/// Frames that wait for the switch.
pub const SENDS: usize = 1024;
/// Between two reports of what has become of frames.
const TALLY: Duration = Duration::from_secs(1);
/// What other nodes say.
pub const LINKED: usize = 64;

/// What comes by connections with other nodes, or is to do with them.
#[derive(Debug)]
pub enum Linked {
    /// A router's frames go this way to its destination from now on; or nowhere.
    Stream(RouterId, Option<mpsc::Sender<Relayed>>),
    /// The source of a migration is connected with this stream; which frame is wanted next is the answer.
    Connected(u64, u64, oneshot::Sender<u64>),
    /// It has relayed frames, from this number on.
    Relayed(u64, u64, Vec<Punt>),
    /// It has no more than up to this number.
    EndMark(u64, u64),
    /// A router's frames that have come back.
    TakenBack(RouterId, Vec<Punt>),
    /// What the switch was to send for a router's migration before this it has sent; or not.
    Confirmed(RouterId, u64, bool),
}

/// What the switch is to do, in this order.
#[derive(Debug)]
pub enum Sending {
    /// A frame.
    Frame(PacketOut),
    /// To say when everything before is done. Dropped: it is gone.
    Confirm(oneshot::Sender<()>),
}

/// The source of a migration need not keep frames up to this number.
pub type Given = (u64, u64);

/// The task's ends.
#[derive(Debug)]
pub struct Channels {
    /// From the switch.
    pub heard: mpsc::Receiver<(Heard, Bytes)>,
    /// To the switch.
    pub sends: mpsc::Sender<Sending>,
    /// From the core.
    pub posts: watch::Receiver<Arc<Posts>>,
    /// To the core.
    pub events: mpsc::Sender<Event>,
    /// From other nodes.
    pub linked: mpsc::Receiver<Linked>,
    /// To itself, for answers.
    pub own: mpsc::Sender<Linked>,
    /// To other nodes. Without a bound of its own: there is one for some frames, which have one; and who reads it may be waiting
    /// for an answer from here.
    pub given: mpsc::UnboundedSender<Given>,
}

/// Runs until the core is gone.
pub async fn run(mut channels: Channels) {
    let begin = Instant::now();
    let mut carrier = Carrier::default();
    let mut streams: BTreeMap<RouterId, mpsc::Sender<Relayed>> = BTreeMap::new();
    let mut roles = BTreeMap::new();
    let mut tallying = interval(TALLY);
    tallying.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let wake = carrier.wake().map(|at| begin + at);
        let mut gone = None;
        let out = tokio::select! {
            // What was handed over before the router stood otherwise comes first.
            biased;
            Some((heard, frame)) = channels.heard.recv() => carrier.heard(heard, frame, begin.elapsed()),
            changed = channels.posts.changed() => {
                if changed.is_err() {
                    return;
                }
                let posts = channels.posts.borrow_and_update().clone();
                roles.clone_from(&posts.roles);
                carrier.set(&posts, begin.elapsed())
            }
            Some(linked) = channels.linked.recv() => {
                let now = begin.elapsed();
                match linked {
                    Linked::Stream(id, Some(sender)) => {
                        streams.insert(id, sender);
                        carrier.set_streamed(id, true, now)
                    }
                    Linked::Stream(id, None) => {
                        gone = Some(id);
                        carrier.set_streamed(id, false, now)
                    }
                    Linked::Connected(migration, stream, answer) => {
                        let _ = answer.send(carrier.connected(migration, stream));
                        Vec::new()
                    }
                    Linked::Relayed(migration, first, punts) => {
                        carrier.relayed(migration, first, punts, now);
                        carrier.due(now)
                    }
                    Linked::EndMark(migration, last) => {
                        carrier.end_mark(migration, last);
                        carrier.due(now)
                    }
                    Linked::TakenBack(id, punts) => carrier.taken_back(id, punts, now),
                    Linked::Confirmed(id, migration, is_sent) => {
                        carrier.confirmed(id, migration, is_sent, now)
                    }
                }
            }
            () = until(wake) => carrier.due(begin.elapsed()),
            _ = tallying.tick(), if !roles.is_empty() => {
                for (id, (number, role)) in &roles {
                    let tallied = Event::Tallied(*id, *number, carrier.counters(*id, *role));
                    if channels.events.send(tallied).await.is_err() {
                        return;
                    }
                }
                continue;
            }
        };
        for out in out {
            match out {
                Out::Send(packet) => {
                    if channels.sends.send(Sending::Frame(packet)).await.is_err() {
                        return;
                    }
                }
                Out::Confirm(id, migration) => {
                    let (reply, answer) = oneshot::channel();
                    if channels.sends.send(Sending::Confirm(reply)).await.is_err() {
                        return;
                    }
                    let own = channels.own.clone();
                    tokio::spawn(async move {
                        let confirmed = Linked::Confirmed(id, migration, answer.await.is_ok());
                        let _ = own.send(confirmed).await;
                    });
                }
                Out::Relay(id, punt) => say(&streams, id, Relayed::Frame(punt)).await,
                Out::EndMark(id) => say(&streams, id, Relayed::EndMark).await,
                Out::TakeBack(id) => {
                    let (reply, answer) = oneshot::channel();
                    say(&streams, id, Relayed::TakeBack(reply)).await;
                    let own = channels.own.clone();
                    tokio::spawn(async move {
                        let punts = answer.await.unwrap_or_default();
                        let _ = own.send(Linked::TakenBack(id, punts)).await;
                    });
                }
                Out::Given(migration, number) => _ = channels.given.send((migration, number)),
                Out::Carried(id, carried) => {
                    // It may be what ends this node's part.
                    tallying.reset_immediately();
                    if channels.events.send(Event::Carried(id, carried)).await.is_err() {
                        return;
                    }
                }
            }
        }
        // Its task ends with it, once it has given back what it has.
        if let Some(id) = gone {
            streams.remove(&id);
        }
    }
}

/// Says something to a router's destination; its task takes it at once.
async fn say(streams: &BTreeMap<RouterId, mpsc::Sender<Relayed>>, id: RouterId, what: Relayed) {
    if let Some(stream) = streams.get(&id) {
        let _ = stream.send(what).await;
    }
}
