//! What operators ask of a running daemon, through its control socket: how it is, a router's routes with what becomes of
//! them, the flows that it should have in the switch, what happened, what becomes of a packet, and how uplinks are shared.
//!
//! A request is a line of JSON, an answer too: `{"ok": …}` or `{"error": "…"}`. What may be long comes in pages: an answer
//! with `next` is followed by another one for the same request with that as `after`. So the core's loop never does more
//! for a question than a page; what becomes text does so in the task of the client that asked.
//!
//! Owns the words of the protocol and what they are made of. The socket is in [`socket`], flows as `ovs-ofctl` writes them
//! are in [`ofctl`].

pub mod cursor;
pub mod events;
pub mod explain;
pub mod ofctl;
pub mod sla;
pub mod socket;
pub mod status;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use xenflow_flow_app::{Fate, FlowCursor, FlowPage, RouteView, RouterId, Which};
use xenflow_proto::identity::NameError;
use xenflow_proto::table::{RouteKey, RouteKind};
use xenflow_proto::types::MacParseError;
use xenflow_proto::{MacAddr, Name};

use crate::core::Core;

/// Bytes of a request, its line end not counted.
pub const MAX_REQUEST: usize = 64 * 1024;
/// Routes, or things that have flows, in an answer.
const PAGE: usize = 1000;

/// A request as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "request", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// How the daemon is.
    Status {},
    /// A router's routes, as its guest says, and what becomes of them.
    Routes {
        /// Its name.
        router: String,
        /// Only those of a prefix and within it, or those that cover an address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prefix: Option<String>,
        /// `next` of the answer before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// The flows that a router should have in the switch.
    Flows {
        /// Its name.
        router: String,
        /// `next` of the answer before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// What happened.
    Events {
        /// `next` of the answer before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
        /// Only a router's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        router: Option<String>,
        /// Only of these kinds; none: of all.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        kinds: Vec<String>,
        /// So many milliseconds the answer may wait for an event.
        #[serde(default)]
        wait_ms: u64,
    },
    /// How the networks share the node's uplinks.
    Sla {
        /// `next` of the answer before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// What a network had of each uplink in the last hour.
    SlaHistory {
        /// Its name.
        network: String,
        /// `next` of the answer before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// What becomes of a packet.
    Explain {
        /// The packet.
        packet: Box<explain::Asked>,
    },
    /// What stands in the way of a guest that comes to this node.
    Arrival {
        /// Addresses of its interfaces.
        macs: Vec<String>,
        /// The toolstack has plugged them in.
        is_plugged: bool,
    },
}

/// A request that was understood.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// [`Request::Status`].
    Status,
    /// [`Request::Routes`].
    Routes(Name, Which, Option<RouteKey>),
    /// [`Request::Flows`].
    Flows(Name, Option<FlowCursor>),
    /// [`Request::Events`].
    Events(events::Query),
    /// [`Request::Sla`].
    Sla(sla::Query),
    /// [`Request::SlaHistory`].
    SlaHistory(sla::HistoryQuery),
    /// [`Request::Explain`].
    Explain(Box<explain::Wanted>),
    /// It goes on, with the switch's word.
    Traced(Box<explain::Traced>),
    /// [`Request::Arrival`].
    Arrival(BTreeSet<MacAddr>, bool),
}

/// A request that cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No such request.
    #[error("not a request: {0}")]
    Syntax(#[from] serde_json::Error),
    /// The name of a router that none can have.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Neither prefix nor address.
    #[error("\"{0}\" is neither a prefix, as 10.0.0.0/8, nor an address")]
    Prefix(String),
    /// No cursor of this daemon's.
    #[error("after = \"{0}\" is no \"next\" of an answer to such a request")]
    Cursor(String),
    /// No kind of event, and which there are.
    #[error("\"{0}\" is no kind of event: {1}")]
    Kind(String, String),
    /// A packet that cannot be.
    #[error(transparent)]
    Packet(#[from] explain::PacketError),
    /// No address of an interface.
    #[error(transparent)]
    Mac(#[from] MacParseError),
}

impl Question {
    /// Understands a line.
    ///
    /// # Errors
    /// [`RequestError`] says what is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, RequestError> {
        Ok(match serde_json::from_slice(line)? {
            Request::Status {} => Self::Status,
            Request::Routes { router, prefix, after } => {
                let which = prefix.map_or(Ok(Which::All), |text| which(&text))?;
                Self::Routes(router.parse()?, which, after.map(cursor::parse_route).transpose()?)
            }
            Request::Flows { router, after } => {
                Self::Flows(router.parse()?, after.map(cursor::parse_flow).transpose()?)
            }
            Request::Events { after, router, kinds, wait_ms } => {
                Self::Events(events::Query::parse(after, router.as_deref(), &kinds, wait_ms)?)
            }
            Request::Sla { after } => Self::Sla(sla::Query::parse(after)?),
            Request::SlaHistory { network, after } => {
                Self::SlaHistory(sla::HistoryQuery::parse(&network, after)?)
            }
            Request::Explain { packet } => Self::Explain(Box::new(packet.parse()?)),
            Request::Arrival { macs, is_plugged } => {
                let macs = macs.iter().map(|mac| mac.parse()).collect::<Result<_, _>>()?;
                Self::Arrival(macs, is_plugged)
            }
        })
    }
}

/// An address, or a prefix whose host bits do not count.
///
/// # Errors
/// It is neither.
pub fn which(text: &str) -> Result<Which, RequestError> {
    let address = text.parse::<IpAddr>().map(Which::Covering).ok();
    let which = address.or_else(|| text.parse::<IpNet>().map(Which::Within).ok());
    which.ok_or_else(|| RequestError::Prefix(text.to_owned()))
}

/// A question with the way back to who asked.
#[derive(Debug)]
pub struct Ask {
    /// What is asked.
    pub question: Question,
    /// To the client.
    pub reply: oneshot::Sender<Answer>,
}

/// What a question is answered with, before it becomes text.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// As it is.
    Value(Value),
    /// Flows, which are spelled out by who asked.
    Flows(FlowPage),
    /// It is the switch's turn: the answer is that to [`Question::Traced`].
    Trace(Box<explain::Plan>),
    /// It cannot be answered, and why.
    Refused(String),
}

impl Answer {
    /// The line, with its end.
    #[must_use]
    pub fn line(&self) -> String {
        let value = match self {
            Self::Value(value) => json!({ "ok": value }),
            Self::Flows(FlowPage { flows, groups, next }) => {
                let flows: Vec<String> = flows.iter().map(ofctl::flow).collect();
                let groups: Vec<String> = groups.iter().map(ofctl::group).collect();
                let next = next.as_ref().map(cursor::flow);
                json!({ "ok": { "flows": flows, "groups": groups, "next": next } })
            }
            Self::Trace(_) => json!({ "error": "nobody asks the switch" }),
            Self::Refused(why) => json!({ "error": why }),
        };
        format!("{value}\n")
    }
}

/// Answers from the core's state; `has_database`: the XenFlow database is connected.
#[must_use]
pub fn answer(core: &Core, has_database: bool, question: &Question) -> Answer {
    match question {
        Question::Status => Answer::Value(status::status(core, has_database)),
        Question::Routes(router, which, after) => match id_of(core, router) {
            Ok(id) => routes(core, id, router, *which, *after),
            Err(why) => Answer::Refused(why),
        },
        Question::Flows(router, after) => {
            let page = id_of(core, router).map(|id| core.app().view_flows(id, *after, PAGE));
            match page {
                Ok(page) => Answer::Flows(page.unwrap_or_default()),
                Err(why) => Answer::Refused(why),
            }
        }
        // Nobody hands it over: the task of the client answers it.
        Question::Events(_) | Question::Sla(_) | Question::SlaHistory(_) => {
            Answer::Refused("the core knows nothing of that".to_owned())
        }
        Question::Explain(wanted) => match explain::plan(core, wanted) {
            Ok(plan) => Answer::Trace(Box::new(plan)),
            Err(why) => Answer::Refused(why),
        },
        Question::Traced(traced) => Answer::Value(explain::answer(core, traced)),
        Question::Arrival(macs, is_plugged) => {
            let obstacle = core.arrival(macs, *is_plugged).err();
            let is_for_now = obstacle.as_ref().is_some_and(|obstacle| obstacle.is_for_now());
            let words = obstacle.map(|obstacle| obstacle.to_string());
            Answer::Value(json!({ "obstacle": words, "is_for_now": is_for_now }))
        }
    }
}

/// The number of a router that this host has to do with.
fn id_of(core: &Core, name: &Name) -> Result<RouterId, String> {
    let Some(desired) = core.desired() else {
        return Err("the daemon has not heard of the XenFlow database yet".to_owned());
    };
    let router = desired.routers.get(name).ok_or_else(|| format!("there is no router {name}"))?;
    let id = RouterId(router.id.get());
    match core.app().router(id) {
        Some(_) => Ok(id),
        None => Err(format!("router {name} has no vif, or the switch's ports are not known yet")),
    }
}

fn routes(core: &Core, id: RouterId, name: &Name, which: Which, after: Option<RouteKey>) -> Answer {
    let (routes, next) = core.app().view_routes(id, which, after, PAGE).unwrap_or_default();
    let routes: Vec<Value> = routes.iter().map(route).collect();
    // What holds for all of them is said once.
    let slow = after.is_none().then(|| core.reports().find(|(of, _)| *of == name)).flatten();
    let slow: Vec<String> = slow.into_iter().flat_map(|(_, report)| report.slow).collect();
    Answer::Value(json!({ "routes": routes, "slow": slow, "next": next.as_ref().map(cursor::route) }))
}

fn route(RouteView { route, hops, fate }: &RouteView<'_>) -> Value {
    let hops = hops.iter().map(|(hop, link)| {
        json!({
            "gateway": hop.gateway, "link": link, "ifindex": hop.oif, "weight": hop.weight,
            "dead": hop.flags.is_dead(), "encapsulated": hop.encap,
        })
    });
    let (verdict, reason) = match fate {
        Fate::Forwarded => ("forwarded", String::new()),
        Fate::Dropped => ("dropped", String::new()),
        Fate::Punted(why) => ("punted", (*why).to_owned()),
        Fate::Rejected(why) => ("rejected", why.to_string()),
        Fate::Unused(why) => ("unused", (*why).to_owned()),
    };
    json!({
        "prefix": route.key.dst.to_string(), "table": route.key.table, "metric": route.key.metric, "tos": route.key.tos,
        "kind": kind(route.kind), "protocol": protocol(route.protocol), "mtu": route.mtu,
        "hops": hops.collect::<Vec<_>>(), "verdict": verdict, "reason": reason,
    })
}

/// As `ip route` writes it.
pub(crate) fn kind(kind: RouteKind) -> String {
    match kind {
        RouteKind::Unicast => "unicast",
        RouteKind::Local => "local",
        RouteKind::Broadcast => "broadcast",
        RouteKind::Anycast => "anycast",
        RouteKind::Multicast => "multicast",
        RouteKind::Blackhole => "blackhole",
        RouteKind::Unreachable => "unreachable",
        RouteKind::Prohibit => "prohibit",
        RouteKind::Throw => "throw",
        RouteKind::Other(number) => return number.to_string(),
    }
    .to_owned()
}

/// `RTPROT_*` of `linux/rtnetlink.h`, as `ip route` writes it.
pub(crate) fn protocol(number: u8) -> String {
    match number {
        1 => "redirect",
        2 => "kernel",
        3 => "boot",
        4 => "static",
        9 => "ra",
        11 => "zebra",
        12 => "bird",
        16 => "dhcp",
        42 => "babel",
        186 => "bgp",
        187 => "isis",
        188 => "ospf",
        189 => "rip",
        192 => "eigrp",
        other => return other.to_string(),
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &[u8]) -> String {
        Question::parse(line).unwrap_err().to_string()
    }

    #[test]
    fn requests_are_understood() {
        let routes = |text: &str| Question::parse(text.as_bytes()).unwrap();
        let r1: Name = "r1".parse().unwrap();
        assert_eq!(routes(r#"{"request":"status"}"#), Question::Status);
        assert_eq!(
            routes(r#"{"request":"routes","router":"r1","prefix":"10.1.2.3/8"}"#),
            Question::Routes(r1.clone(), Which::Within("10.1.2.3/8".parse().unwrap()), None)
        );
        let key = RouteKey { table: 254, dst: "10.0.0.0/8".parse().unwrap(), tos: 0, metric: 20 };
        assert_eq!(
            routes(r#"{"request":"routes","router":"r1","prefix":"::1","after":"254 10.0.0.0/8 0 20"}"#),
            Question::Routes(r1.clone(), Which::Covering("::1".parse().unwrap()), Some(key))
        );
        assert_eq!(
            routes(r#"{"request":"flows","router":"r1","after":"local 254 10.0.0.0/8 0 20"}"#),
            Question::Flows(r1, Some(FlowCursor::Local(Some(key))))
        );
    }

    #[test]
    fn hostile_requests_are_refused_with_what_is_wrong() {
        for (line, says) in [
            (&b""[..], "not a request"),
            (b"\xff\xfe{}", "not a request"),
            (b"[]", "not a request"),
            (b"{\"request\":\"reboot\"}", "unknown variant `reboot`"),
            (b"{\"request\":\"status\",\"x\":1}", "unknown field `x`"),
            (b"{\"request\":\"routes\"}", "missing field `router`"),
            (b"{\"request\":\"routes\",\"router\":\"A b\"}", "\"A b\" is not a name"),
            (b"{\"request\":\"routes\",\"router\":\"r1\",\"prefix\":\"10/8\"}", "\"10/8\" is neither"),
            (b"{\"request\":\"routes\",\"router\":\"r1\",\"prefix\":\"10.0.0.0/33\"}", "is neither"),
            (b"{\"request\":\"routes\",\"router\":\"r1\",\"after\":\"\"}", "after = \"\" is no"),
            (b"{\"request\":\"events\",\"after\":\"1\"}", "after = \"1\" is no"),
            (b"{\"request\":\"events\",\"after\":\"1 18446744073709551615\"}", "is no \"next\""),
            (b"{\"request\":\"events\",\"kinds\":[\"x\"]}", "\"x\" is no kind of event: bridge-repaired, "),
            (b"{\"request\":\"events\",\"router\":\"..\"}", "\"..\" is not a name"),
            (b"{\"request\":\"events\",\"wait_ms\":-1}", "invalid value"),
            (b"{\"request\":\"sla\",\"after\":\"-1 eth0\"}", "is no \"next\""),
            (b"{\"request\":\"slahistory\",\"network\":\"..\"}", "\"..\" is not a name"),
            (b"{\"request\":\"slahistory\"}", "missing field `network`"),
            (b"{\"request\":\"slahistory\",\"network\":\"red\",\"after\":\"\"}", "is no \"next\""),
            (b"{\"request\":\"arrival\",\"macs\":[\"52:54\"],\"is_plugged\":true}", "52:54"),
            (b"{\"request\":\"flows\",\"router\":\"r1\",\"after\":\"route 1 2 3\"}", "is no \"next\""),
            (b"{\"request\":\"flows\",\"router\":\"r1\",\"after\":\"group 99999999999\"}", "is no \"next\""),
        ] {
            let refusal = refused(line);
            assert!(refusal.contains(says), "{refusal}");
        }
        // Too deep for the stack of who reads it.
        let deep = [&b"{\"request\":"[..], &b"[".repeat(MAX_REQUEST - 20)].concat();
        assert!(refused(&deep).starts_with("not a request"));
    }
}
