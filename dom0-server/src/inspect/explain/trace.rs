//! The switch's own word on a packet: `ofproto/trace`, asked over ovs-vswitchd's control socket and read step by step.
//!
//! Nothing changes by it: the packet is named by its fields, and `ofproto/trace` learns only from packets that it is given as bytes
//! (`ofproto_unixctl_trace` in ofproto/ofproto-dpif-trace.c).

#![allow(clippy::wildcard_enum_match_arm, reason = "what is not asked for does not matter")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use openflow::{Action, Field, Flow, Match};
use xenflow_flow_app::pipeline::{ETH_LLC, LEARNED, OUT_PORT};
use xenflow_flow_app::sim::{Packet, Pick};
use xenflow_flow_app::{Hints, PortNo};
use xenflow_proto::MacAddr;

use crate::inspect::ofctl;
use crate::ovs::appctl::{self, AppctlError};

/// Where the switch is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// The directory of ovs-vswitchd's sockets.
    pub rundir: PathBuf,
    /// Name of the integration bridge.
    pub name: String,
}

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Nobody has said where the switch is.
    #[error("nobody says where the switch is")]
    Nowhere,
    /// The switch does not answer.
    #[error(transparent)]
    Switch(#[from] AppctlError),
    /// What it says is not understood.
    #[error("ovs-vswitchd's trace is not understood: {0}")]
    Syntax(String),
}

/// What the switch did in one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Number of the table.
    pub table: u8,
    /// The flow that was met: its match as written, priority and cookie.
    pub flow: Option<(String, u16, u64)>,
    /// What was done, in the words of [`done`].
    pub actions: Vec<String>,
    /// What the switch has to say about it.
    pub remarks: Vec<String>,
}

/// A trace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// Lookups in their order.
    pub steps: Vec<Seen>,
    /// The datapath's actions, as written.
    pub datapath: String,
}

impl Bridge {
    /// What the switch would do with a packet.
    ///
    /// # Errors
    /// [`TraceError`].
    pub async fn trace(&self, in_port: PortNo, packet: &Packet) -> Result<Trace, TraceError> {
        let flow = flow(in_port, packet);
        parse(&appctl::call(&self.rundir, "ofproto/trace", &[&self.name, &flow]).await?)
    }
}

/// Fields in an order in which each comes behind those that it depends on.
const FIELDS: [Field; 29] = [
    Field::EthSrc,
    Field::EthDst,
    Field::EthType,
    Field::IpProto,
    Field::Ipv4Src,
    Field::Ipv4Dst,
    Field::Ipv6Src,
    Field::Ipv6Dst,
    Field::Ipv6Flabel,
    Field::IpDscp,
    Field::IpEcn,
    Field::IpTtl,
    Field::TcpSrc,
    Field::TcpDst,
    Field::TcpFlags,
    Field::UdpSrc,
    Field::UdpDst,
    Field::SctpSrc,
    Field::SctpDst,
    Field::Icmpv4Type,
    Field::Icmpv4Code,
    Field::Icmpv6Type,
    Field::Icmpv6Code,
    Field::NdTarget,
    Field::NdSll,
    Field::NdTll,
    Field::ArpOp,
    Field::ArpSpa,
    Field::ArpTpa,
];

/// A packet as ovs-fields(7) writes it.
#[must_use]
pub fn flow(in_port: PortNo, packet: &Packet) -> String {
    let mut parts = vec![format!("in_port={in_port}")];
    match packet.tags.first() {
        Some(tag) => parts.push(format!("dl_vlan={},dl_vlan_pcp={}", tag.vid, tag.pcp)),
        None => parts.push("vlan_tci=0x0000".to_owned()),
    }
    // Behind a second tag nothing is looked at.
    if let Some(inner) = packet.tags.get(1) {
        let macs = [Field::EthSrc, Field::EthDst].map(|field| part(packet, field));
        parts.extend(macs.into_iter().flatten());
        parts.push(format!("dl_type={:#06x}", inner.tpid));
        return parts.join(",");
    }
    for field in FIELDS.into_iter().chain([Field::ArpSha, Field::ArpTha]) {
        parts.extend(part(packet, field));
    }
    parts.extend(packet.headers.get(&Field::IpFrag).map(|frag| match frag {
        0 => "ip_frag=no".to_owned(),
        1 => "ip_frag=first".to_owned(),
        _ => "ip_frag=later".to_owned(),
    }));
    parts.join(",")
}

fn part(packet: &Packet, field: Field) -> Option<String> {
    let value = *packet.headers.get(&field)?;
    Some(match field {
        Field::EthType if value == u128::from(ETH_LLC) => "dl_type=0x05ff".to_owned(),
        Field::EthType => format!("dl_type={value:#06x}"),
        _ => format!("{}={}", ofctl::name(field), ofctl::number(field, value)),
    })
}

/// What one of XenFlow's own actions is called where the two views are compared; none for what only prepares others, or what
/// Open vSwitch spells in a way of its own.
#[must_use]
pub fn done(action: &Action) -> Option<String> {
    #[allow(clippy::wildcard_enum_match_arm, reason = "the rest is spelled out")]
    match action {
        Action::Learn(_) | Action::Clone(_) | Action::OutputTrunc { .. } => None,
        action => normal(&ofctl::action(action)),
    }
}

/// An action as the switch writes it, likewise.
fn normal(text: &str) -> Option<String> {
    let passed = ["learn(", "clone(", "output(port="];
    if text == "drop" || passed.iter().any(|prefix| text.starts_with(prefix)) {
        return None;
    }
    if let Some(table) = text.strip_prefix("goto_table:") {
        return Some(format!("resubmit(,{table})"));
    }
    if let Some((value, field)) = text.strip_prefix("set_field:").and_then(|set| set.split_once("->")) {
        let (value, mask) = value.split_once('/').map_or((value, None), |(value, mask)| (value, Some(mask)));
        let value = if value == "0x0" { "0" } else { value };
        let mask = mask.map(|mask| format!("/{mask}")).unwrap_or_default();
        return Some(format!("set_field:{value}{mask}->{field}"));
    }
    Some(text.to_owned())
}

/// Reads what `ofproto/trace` prints.
///
/// # Errors
/// [`TraceError::Syntax`].
pub fn parse(text: &str) -> Result<Trace, TraceError> {
    let wrong = |line: &str| TraceError::Syntax(line.chars().take(200).collect());
    let mut trace = Trace::default();
    // By the column of their actions: the steps that are under way.
    let mut open: BTreeMap<usize, usize> = BTreeMap::new();
    // The next action tells the column of this step's, or of its bucket's.
    let mut next: Option<usize> = None;
    let mut lines = text.lines().skip_while(|line| !line.starts_with("---"));
    if lines.next().is_none() {
        return Err(wrong(text.lines().next().unwrap_or_default()));
    }
    for line in lines {
        if let Some(actions) = line.strip_prefix("Datapath actions: ") {
            actions.clone_into(&mut trace.datapath);
        }
        let said = line.trim_start();
        let column = line.len() - said.len();
        if column == 0 || said.is_empty() {
            continue;
        }
        if let Some((table, rest)) = header(said) {
            trace.steps.push(Seen { table, flow: met(rest).ok_or_else(|| wrong(line))?, ..Seen::default() });
            next = Some(trace.steps.len() - 1);
            continue;
        }
        let owner = match next.take_if(|_| !said.starts_with(['-', '>'])) {
            Some(step) => {
                open.insert(column, step);
                Some(step)
            }
            None => open.range(..=column).next_back().map(|(_, step)| *step).or(next),
        };
        let step = owner.and_then(|step| trace.steps.get_mut(step)).ok_or_else(|| wrong(line))?;
        if said.starts_with(['-', '>']) {
            step.remarks
                .push(said.trim_start_matches(['-', '>', ' ']).trim_end_matches([' ', '<']).to_owned());
        } else if said.strip_prefix("bucket ").is_some_and(|id| id.parse::<u32>().is_ok()) {
            next = owner;
        } else {
            step.actions.extend(normal(said));
        }
    }
    if trace.steps.is_empty() || trace.datapath.is_empty() {
        return Err(wrong(text.lines().last().unwrap_or_default()));
    }
    Ok(trace)
}

/// `10. …`: the table and what was met there.
fn header(said: &str) -> Option<(u8, &str)> {
    let (table, rest) = said.split_once(". ")?;
    Some((table.parse().ok()?, rest))
}

/// The flow that was met, if any was.
#[allow(clippy::option_option, reason = "the outer one says whether it parses")]
fn met(text: &str) -> Option<Option<(String, u16, u64)>> {
    if text.starts_with("No match") {
        return Some(None);
    }
    let (matching, rest) = match text.strip_prefix("priority ") {
        Some(rest) => ("", rest),
        None => text.split_once(", priority ")?,
    };
    let mut parts = rest.split(", ");
    let priority = parts.next()?.parse().ok()?;
    let cookie = parts.find_map(|part| part.strip_prefix("cookie 0x"));
    let cookie = cookie.map_or(Some(0), |cookie| u64::from_str_radix(cookie, 16).ok())?;
    Some(Some((matching.to_owned(), priority, cookie)))
}

impl Trace {
    /// What XenFlow cannot know by itself: learned addresses and picked buckets.
    #[must_use]
    pub fn hints(&self) -> Hints {
        let learned = self.steps.iter().filter(|step| step.table == LEARNED).filter_map(learned);
        let mut picks = Vec::new();
        for step in &self.steps {
            let mut groups = step.actions.iter().filter_map(|done| done.strip_prefix("group:")?.parse().ok());
            let mut buckets =
                step.remarks.iter().filter_map(|it| it.strip_prefix("using bucket ")?.parse().ok());
            while let (Some(group), Some(bucket)) = (groups.next(), buckets.next()) {
                picks.push(Pick { group, bucket });
            }
        }
        Hints { learned: learned.collect(), picks }
    }
}

/// A flow that the switch has learned, as the packet met it.
fn learned(step: &Seen) -> Option<Flow> {
    let (matching, priority, cookie) = step.flow.as_ref()?;
    let part = |name: &str| matching.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    let mac: MacAddr = part("dl_dst")?.parse().ok()?;
    let vlan = match part("vlan_tci") {
        Some(tci) => u16::from_str_radix(tci.split('/').next()?.strip_prefix("0x")?, 16).ok()? & 0xfff,
        None => part("dl_vlan")?.parse().ok()?,
    };
    let port =
        step.actions.iter().find_map(|done| done.strip_prefix("set_field:")?.strip_suffix("->reg2"))?;
    let port = match port.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok()?,
        None => port.parse().ok()?,
    };
    let matching = Match::builder().masked(Field::VlanVid, vlan.into(), 0xfff).eth_dst(mac.0).build();
    let load = Action::set_field(Field::Reg(OUT_PORT), port.into());
    Some(Flow::new(LEARNED, *priority, *cookie, matching).apply([load]))
}

#[cfg(test)]
mod tests;
