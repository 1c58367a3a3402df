//! The tasks of moves, and what the daemon's loop has to do with them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use xenflow_flow_app::{Heard, RouterId};
use xenflow_proto::Name;
use xenflow_proto::message::{HostMessage, RefusalReason};

use super::carrier::Posts;
use super::carrier::task::{self as carrier, Sending};
use super::errands;
use super::links::{self, Order};
use super::megaflows;
use super::peer::incoming::Answer;
use super::toolstack::Toolstacks;
use crate::config::Config;
use crate::core::{Core, Errand, Event, SessionId, Stream, ToPeer};
use crate::db::migration::Migration;
use crate::tls;

/// The switch's ends of the frames that are handed over.
#[derive(Debug)]
pub struct Frames {
    /// From it.
    pub heard: mpsc::Sender<(Heard, Bytes)>,
    /// To it.
    pub sends: mpsc::Receiver<Sending>,
}

/// Why a node without a place for it runs no toolstack.
const NO_STATE_DIR: &str = "the node has no state_dir, where the move of a guest is kept that outlives its daemon: set it in the daemon's configuration";

/// See the module.
#[derive(Debug)]
pub struct Moves {
    posts: watch::Sender<Arc<Posts>>,
    streams: watch::Sender<Arc<BTreeMap<RouterId, Stream>>>,
    rows: watch::Sender<Arc<BTreeMap<Name, Migration>>>,
    errands: watch::Sender<Arc<BTreeMap<u64, Errand>>>,
    megaflows: watch::Sender<Arc<megaflows::Moves>>,
    /// Without a bound of its own: a stream and a source have few messages under way each, and the loop must not wait for a task
    /// that waits for it.
    orders: mpsc::UnboundedSender<Order>,
    /// Until the rows are known: they say which former runs of toolstacks count.
    waiting: Option<(Toolstacks, mpsc::Sender<Event>)>,
}

impl Moves {
    /// Begins all tasks. `prepared` is told for which moves this node's datapath is.
    #[must_use]
    pub fn start(
        config: &Config,
        node: &Name,
        access: tls::Access,
        events: &mpsc::Sender<Event>,
        prepared: watch::Sender<BTreeSet<u64>>,
    ) -> (Self, Frames) {
        let (heard, frames) = mpsc::channel(carrier::HEARD);
        let (packets, sends) = mpsc::channel(carrier::SENDS);
        let (linked, from_links) = mpsc::channel(carrier::LINKED);
        let (given, gives) = mpsc::unbounded_channel();
        let (orders, ordered) = mpsc::unbounded_channel();
        let moves = Self {
            posts: watch::Sender::default(),
            streams: watch::Sender::default(),
            rows: watch::Sender::default(),
            errands: watch::Sender::default(),
            megaflows: watch::Sender::default(),
            orders,
            waiting: None,
        };
        let channels = carrier::Channels {
            heard: frames,
            sends: packets,
            posts: moves.posts.subscribe(),
            events: events.clone(),
            linked: from_links,
            own: linked.clone(),
            given,
        };
        tokio::spawn(carrier::run(channels));
        let (flows, told) = mpsc::channel(4);
        let setup = megaflows::task::Setup {
            rundir: config.ovs_rundir.clone(),
            moves: moves.megaflows.subscribe(),
            told,
            orders: moves.orders.clone(),
            events: events.clone(),
            prepared,
        };
        tokio::spawn(megaflows::task::run(setup));
        let setup = links::Setup {
            node: node.clone(),
            listen: config.migration.listen(),
            access,
            streams: moves.streams.subscribe(),
            rows: moves.rows.subscribe(),
            orders: ordered,
            events: events.clone(),
            linked,
            given: gives,
            megaflows: flows,
        };
        tokio::spawn(links::run(setup));
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("xenflow-dom0"));
        let waiting = config.state_dir.as_ref().map(|dir| {
            (Toolstacks::new(config.migration.toolstack.clone(), dir.clone(), program), events.clone())
        });
        if waiting.is_none() {
            tokio::spawn(errands::refuse(moves.errands.subscribe(), events.clone(), NO_STATE_DIR));
        }
        (Self { waiting, ..moves }, Frames { heard, sends })
    }

    /// Passes on what the core wants now.
    pub fn follow(&mut self, core: &Core) {
        follow(&self.posts, core.posts());
        follow(&self.streams, core.streams());
        follow(&self.megaflows, core.megaflows());
        let Some(open) = core.open_moves() else { return };
        if **self.rows.borrow() != *open {
            self.rows.send_replace(Arc::new(open.clone()));
        }
        if let Some((toolstacks, events)) = self.waiting.take() {
            let numbers: BTreeSet<u64> = open.values().map(|row| row.number).collect();
            errands::forget_others(&toolstacks, &numbers);
            tokio::spawn(errands::run(toolstacks, self.errands.subscribe(), events));
        }
        follow(&self.errands, core.errands());
    }

    /// Says something to another node.
    pub fn say(&self, said: ToPeer) {
        let _ = self.orders.send(match said {
            ToPeer::Welcome(id, held) => Order::Welcome(id, held),
            ToPeer::Staged(id, seq, digest) => Order::Answer(id, Answer::Staged { seq, digest }),
            ToPeer::Feed(number, said) => Order::Feed(number, said),
        });
    }

    /// Says to a source what a guest would be told.
    pub fn tell(&self, id: SessionId, message: HostMessage) {
        if let HostMessage::Ack { seq, .. } = message {
            let _ = self.orders.send(Order::Answer(id, Answer::Ack(seq)));
        }
    }

    /// Tells a source why its connection ends.
    pub fn refuse(&self, id: SessionId, reason: RefusalReason, detail: String) {
        let refusal = Answer::Refuse(links::reason(reason), detail);
        let _ = self.orders.send(Order::Answer(id, refusal));
    }

    /// A source's last message was taken in.
    pub fn taken(&self, id: SessionId) {
        let _ = self.orders.send(Order::Taken(id));
    }
}

/// Passes on what is another one now.
pub fn follow<T>(known: &watch::Sender<Arc<T>>, now: &Arc<T>) {
    known.send_if_modified(|known| {
        let is_new = !Arc::ptr_eq(now, known);
        if is_new {
            known.clone_from(now);
        }
        is_new
    });
}
