//! Fail safe: whether the host forwards for a router, and if not, why.
//!
//! Flows decide by destination alone. Where the guest's kernel looks at more, or does not forward at all, the packets
//! of that vif and family are the guest's business ([`FastPath::Auto`]). A guest that does not say what else its
//! kernel looks at is not forwarded for.

use std::fmt;

use openflow::ErrorCode;
use xenflow_proto::table::{Family, IfIndex, ObstacleKey, ObstacleKind};

use crate::fib::Binding;
use crate::rib::Rib;
use crate::topology::{FastPath, VifId};

/// Packets that the guest forwards itself, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slow {
    /// Those that come in by this vif; none: by any.
    pub vif: Option<VifId>,
    /// Those of this family; none: of both.
    pub family: Option<Family>,
    /// Why.
    pub reason: SlowReason,
    /// What it is in the guest, in its words; may be empty.
    pub detail: String,
}

/// Why a guest forwards itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlowReason {
    /// [`FastPath::Never`].
    Never,
    /// The guest has not finished a snapshot in this life of the daemon.
    NoSnapshot,
    /// The guest does not say what its kernel looks at.
    Unreported,
    /// Its kernel looks at more than destinations, or does not forward.
    Obstacle(ObstacleKind),
    /// The switch refused flows without which it would forward otherwise than the guest.
    Refused(ErrorCode),
    /// It refused those of some routes only, and forwards by the others.
    Routes(ErrorCode),
}

impl fmt::Display for SlowReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Routes(error) => return write!(f, "the switch refused them: {error}"),
            Self::Refused(error) => return write!(f, "the switch refused its flows: {error}"),
            Self::Never => "fastpath is never",
            Self::NoSnapshot => "the guest has sent no tables yet",
            Self::Unreported => "the guest does not say how its kernel forwards",
            Self::Obstacle(kind) => kind.as_str(),
        })
    }
}

/// Whether packets of a family that come in by a link are forwarded by the host. In a VRF its device's settings count
/// as well: it is the device that the guest's IP stack sees them come in by.
pub(crate) fn is_fast(policy: FastPath, rib: &Rib, ifindex: IfIndex, family: Family) -> bool {
    match policy {
        FastPath::Always => true,
        FastPath::Never => false,
        FastPath::Auto => {
            let master = rib.link(ifindex).and_then(|link| link.master);
            let concerns = |key: ObstacleKey| {
                key.ifindex.is_none_or(|it| it == ifindex || Some(it) == master)
                    && key.family.is_none_or(|it| it == family)
            };
            rib.settings().is_some() && !rib.obstacles().any(|(key, _)| concerns(key))
        }
    }
}

/// Whether the host may send for the guest by a link: what hangs on the way out is the guest's business too.
pub(crate) fn may_send(policy: FastPath, rib: &Rib, ifindex: IfIndex) -> bool {
    let master = rib.link(ifindex).and_then(|link| link.master);
    let on_the_way_out = |kind| match kind {
        ObstacleKind::ForwardingOff | ObstacleKind::ReversePathFilter | ObstacleKind::Xdp => false,
        ObstacleKind::Rules
        | ObstacleKind::Netfilter
        | ObstacleKind::Xfrm
        | ObstacleKind::TrafficControl
        | ObstacleKind::Unreadable
        | ObstacleKind::Other(_) => true,
    };
    policy == FastPath::Always
        || !rib.obstacles().any(|(key, _)| {
            let is_on_it = key.ifindex.is_some_and(|it| it == ifindex || Some(it) == master);
            is_on_it && on_the_way_out(key.kind)
        })
}

/// All reasons, those of links that are no vifs left out.
pub(crate) fn reasons(policy: FastPath, rib: &Rib, binding: &Binding, synced: bool) -> Vec<Slow> {
    let all = |reason| vec![Slow { vif: None, family: None, reason, detail: String::new() }];
    match policy {
        FastPath::Never => all(SlowReason::Never),
        _ if !synced => all(SlowReason::NoSnapshot),
        FastPath::Always => Vec::new(),
        FastPath::Auto if rib.settings().is_none() => all(SlowReason::Unreported),
        FastPath::Auto => rib
            .obstacles()
            .flat_map(|(key, detail)| {
                let vifs: Vec<Option<VifId>> = match key.ifindex {
                    None => vec![None],
                    // An obstacle of a VRF's device is one of all its links.
                    Some(of) => {
                        let master = |ifindex| rib.link(ifindex).and_then(|link| link.master);
                        let on = |ifindex: IfIndex| ifindex == of || master(ifindex) == Some(of);
                        let vifs = binding.vifs().filter(|(ifindex, _)| on(*ifindex));
                        vifs.map(|(_, vif)| Some(vif.id)).collect()
                    }
                };
                let slow = move |vif| Slow {
                    vif,
                    family: key.family,
                    reason: SlowReason::Obstacle(key.kind),
                    detail: detail.to_owned(),
                };
                vifs.into_iter().map(slow)
            })
            .collect(),
    }
}
