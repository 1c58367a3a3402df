//! Flows and groups as `ovs-ofctl` writes them and reads them: those that are made for routers. What XenFlow never makes is
//! shown as this program's own structures are, which no other reads.

#![allow(clippy::wildcard_enum_match_arm, reason = "what is not made is shown as the structure it is")]

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use openflow::action::port;
use openflow::{Action, Field, Flow, Group, GroupType, Instruction, MatchField, Selection, SubField};
use xenflow_proto::MacAddr;

/// A flow, as `ovs-ofctl dump-flows` would show it but for what is counted.
#[must_use]
pub fn flow(flow: &Flow) -> String {
    let mut text = format!("cookie={:#x}, table={}, priority={}", flow.cookie, flow.table, flow.priority);
    for constraint in matching(flow) {
        let _ = write!(text, ",{constraint}");
    }
    for (name, seconds) in [("idle_timeout", flow.idle_timeout), ("hard_timeout", flow.hard_timeout)] {
        if seconds != 0 {
            let _ = write!(text, ",{name}={seconds}");
        }
    }
    let actions: Vec<String> = flow.instructions.iter().flat_map(instruction).collect();
    let actions = if actions.is_empty() { "drop".to_owned() } else { actions.join(",") };
    text + " actions=" + &actions
}

/// A group, as `ovs-ofctl dump-groups` would show it.
#[must_use]
pub fn group(group: &Group) -> String {
    let kind = match group.kind {
        GroupType::Select => "select".to_owned(),
        other => format!("{other:?}").to_lowercase(),
    };
    let mut text = format!("group_id={},type={kind}", group.id);
    if let Some(Selection::Hash { fields, .. }) = &group.selection {
        let fields: Vec<String> = fields.iter().map(|(field, _)| name(*field)).collect();
        let _ = write!(text, ",selection_method=hash,fields({})", fields.join(","));
    }
    for bucket in &group.buckets {
        let actions: Vec<String> = bucket.actions.iter().map(action).collect();
        let _ = write!(text, ",bucket=bucket_id:{}", bucket.id);
        if bucket.weight != 1 {
            let _ = write!(text, ",weight:{}", bucket.weight);
        }
        let _ = write!(text, ",actions={}", actions.join(","));
    }
    text
}

fn matching(flow: &Flow) -> Vec<String> {
    let fields: Vec<MatchField> = flow.matching.fields().collect();
    let protocol = fields.iter().find(|it| it.field == Field::IpProto && it.mask == it.field.all_ones());
    let mut all = Vec::new();
    for it in &fields {
        match it.field {
            Field::Xreg(n) => all.extend(registers(n, it)),
            Field::EthType => all.push(eth_type(it, protocol)),
            // It is in the name that stands for the Ethernet type.
            Field::IpProto if protocol.is_some_and(|of| shorthand(of.value).is_some()) => {}
            _ => all.push(constraint(it)),
        }
    }
    all
}

/// The two registers that a field of 64 bits is.
fn registers(n: u8, it: &MatchField) -> impl Iterator<Item = String> {
    let low = u128::from(u32::MAX);
    let halves = [(2 * n, it.value >> 32, it.mask >> 32), (2 * n + 1, it.value & low, it.mask & low)];
    halves.into_iter().filter(|(.., mask)| *mask != 0).map(move |(n, value, mask)| match mask == low {
        true => format!("reg{n}={value:#x}"),
        false => format!("reg{n}={value:#x}/{mask:#x}"),
    })
}

fn shorthand(protocol: u128) -> Option<&'static str> {
    match protocol {
        6 => Some("tcp"),
        17 => Some("udp"),
        132 => Some("sctp"),
        _ => None,
    }
}

fn eth_type(it: &MatchField, protocol: Option<&MatchField>) -> String {
    let protocol = protocol.and_then(|protocol| shorthand(protocol.value));
    match (it.value, protocol) {
        (0x0800, Some(name)) => name.to_owned(),
        (0x86dd, Some(name)) => format!("{name}6"),
        (0x0800, None) => "ip".to_owned(),
        (0x86dd, None) => "ipv6".to_owned(),
        (0x0806, _) => "arp".to_owned(),
        (other, _) => format!("dl_type={other:#06x}"),
    }
}

fn constraint(it: &MatchField) -> String {
    let (field, value, mask) = (it.field, it.value, it.mask);
    let present = u128::from(openflow::VLAN_PRESENT);
    match field {
        Field::VlanVid if mask == present => format!("vlan_tci={value:#06x}/{present:#06x}"),
        Field::VlanVid if value & present != 0 => format!("dl_vlan={}", value & 0xfff),
        Field::VlanVid => "vlan_tci=0x0000/0x1fff".to_owned(),
        _ => match (mask == field.all_ones(), prefix_len(field, mask)) {
            (true, _) => format!("{}={}", name(field), number(field, value)),
            (false, Some(len)) => format!("{}={}/{len}", name(field), number(field, value)),
            (false, None) => format!("{}={}/{}", name(field), number(field, value), number(field, mask)),
        },
    }
}

/// The length of a mask of an IP address that has one.
fn prefix_len(field: Field, mask: u128) -> Option<u32> {
    if !matches!(field, Field::Ipv4Src | Field::Ipv4Dst | Field::Ipv6Src | Field::Ipv6Dst) {
        return None;
    }
    let bits = u32::from(field.bits());
    let len = mask.count_ones();
    (mask == field.all_ones() >> (bits - len) << (bits - len)).then_some(len)
}

#[allow(clippy::cast_possible_truncation, reason = "a field's value has no more bits than the field")]
pub(crate) fn number(field: Field, value: u128) -> String {
    match field {
        Field::EthSrc | Field::EthDst | Field::ArpSha | Field::ArpTha | Field::NdSll | Field::NdTll => {
            let [_, _, bytes @ ..] = (value as u64).to_be_bytes();
            MacAddr(bytes).to_string()
        }
        Field::Ipv4Src | Field::Ipv4Dst | Field::ArpSpa | Field::ArpTpa => {
            Ipv4Addr::from_bits(value as u32).to_string()
        }
        Field::Ipv6Src | Field::Ipv6Dst | Field::NdTarget => Ipv6Addr::from_bits(value).to_string(),
        Field::InPort | Field::InPortNxm if value == u128::from(port::LOCAL) => "LOCAL".to_owned(),
        Field::Reg(_) | Field::Xreg(_) | Field::Xxreg(_) | Field::Metadata | Field::TcpFlags => {
            format!("{value:#x}")
        }
        _ => value.to_string(),
    }
}

/// The name that `ovs-ofctl` reads everywhere (ovs-fields(7)).
pub(crate) fn name(field: Field) -> String {
    match field {
        Field::InPort | Field::InPortNxm => "in_port",
        Field::Metadata => "metadata",
        Field::TunnelId => "tun_id",
        Field::EthSrc => "dl_src",
        Field::EthDst => "dl_dst",
        Field::VlanVid => "vlan_vid",
        Field::VlanPcp => "vlan_pcp",
        Field::VlanTci => "vlan_tci",
        Field::EthType => "dl_type",
        Field::IpProto => "nw_proto",
        Field::IpDscp => "ip_dscp",
        Field::IpEcn => "nw_ecn",
        Field::IpTtl => "nw_ttl",
        Field::IpFrag => "ip_frag",
        Field::Ipv4Src => "nw_src",
        Field::Ipv4Dst => "nw_dst",
        Field::Ipv6Src => "ipv6_src",
        Field::Ipv6Dst => "ipv6_dst",
        Field::Ipv6Flabel => "ipv6_label",
        Field::TcpSrc => "tcp_src",
        Field::TcpDst => "tcp_dst",
        Field::TcpFlags => "tcp_flags",
        Field::UdpSrc => "udp_src",
        Field::UdpDst => "udp_dst",
        Field::SctpSrc => "sctp_src",
        Field::SctpDst => "sctp_dst",
        Field::Icmpv4Type => "icmp_type",
        Field::Icmpv4Code => "icmp_code",
        Field::Icmpv6Type => "icmpv6_type",
        Field::Icmpv6Code => "icmpv6_code",
        Field::ArpOp => "arp_op",
        Field::ArpSpa => "arp_spa",
        Field::ArpTpa => "arp_tpa",
        Field::ArpSha => "arp_sha",
        Field::ArpTha => "arp_tha",
        Field::NdTarget => "nd_target",
        Field::NdSll => "nd_sll",
        Field::NdTll => "nd_tll",
        Field::Reg(n) => return format!("reg{n}"),
        Field::Xreg(n) => return format!("xreg{n}"),
        Field::Xxreg(n) => return format!("xxreg{n}"),
        other => return format!("{other:?}"),
    }
    .to_owned()
}

/// The name of a field of which a part is meant (`mf_parse_subfield`).
fn part(SubField { field, start, n_bits }: SubField) -> String {
    let name = match field {
        Field::Reg(n) => format!("NXM_NX_REG{n}"),
        Field::VlanTci => "NXM_OF_VLAN_TCI".to_owned(),
        Field::EthSrc => "NXM_OF_ETH_SRC".to_owned(),
        Field::EthDst => "NXM_OF_ETH_DST".to_owned(),
        Field::InPortNxm => "NXM_OF_IN_PORT".to_owned(),
        other => name(other),
    };
    if (start, n_bits) == (0, field.bits()) {
        format!("{name}[]")
    } else if n_bits == 1 {
        format!("{name}[{start}]")
    } else {
        format!("{name}[{start}..{}]", start + n_bits.max(1) - 1)
    }
}

fn instruction(instruction: &Instruction) -> Vec<String> {
    match instruction {
        Instruction::ApplyActions(actions) => actions.iter().map(action).collect(),
        Instruction::GotoTable(table) => vec![format!("goto_table:{table}")],
        other => vec![format!("{other:?}")],
    }
}

pub(crate) fn action(of: &Action) -> String {
    match of {
        Action::Output { port: port::IN_PORT, .. } => "IN_PORT".to_owned(),
        Action::Output { port: port::LOCAL, .. } => "LOCAL".to_owned(),
        Action::Output { port, .. } => format!("output:{port}"),
        Action::OutputReg { src, .. } => format!("output:{}", part(*src)),
        Action::OutputTrunc { port, max_len } => format!("output(port={port},max_len={max_len})"),
        Action::Group(id) => format!("group:{id}"),
        Action::SetQueue(queue) => format!("set_queue:{queue}"),
        Action::PopQueue => "pop_queue".to_owned(),
        Action::Meter(id) => format!("meter:{id}"),
        Action::PushVlan(eth_type) => format!("push_vlan:{eth_type:#06x}"),
        Action::PopVlan => "pop_vlan".to_owned(),
        Action::DecTtl => "dec_ttl".to_owned(),
        Action::SetField { field, value, mask } if mask.get() == field.all_ones() => {
            format!("set_field:{}->{}", number(*field, value.get()), long_name(*field))
        }
        Action::SetField { field, value, mask } => {
            let (value, mask) = (number(*field, value.get()), number(*field, mask.get()));
            format!("set_field:{value}/{mask}->{}", long_name(*field))
        }
        Action::CopyField { src, dst: (field, start) } => {
            format!("move:{}->{}", part(*src), part(field.slice(*start, src.n_bits)))
        }
        Action::Resubmit { in_port, table } => {
            let in_port = in_port.map_or_else(String::new, |port| port.to_string());
            let table = table.map_or_else(String::new, |table| table.to_string());
            format!("resubmit({in_port},{table})")
        }
        Action::Clone(actions) => {
            let actions: Vec<String> = actions.iter().map(action).collect();
            format!("clone({})", actions.join(","))
        }
        Action::CheckPktLarger { len, dst: (field, bit) } => {
            format!("check_pkt_larger({len})->{}", part(field.slice(*bit, 1)))
        }
        other => format!("{other:?}"),
    }
}

/// The name that `set_field` takes.
fn long_name(field: Field) -> String {
    match field {
        Field::EthSrc => "eth_src".to_owned(),
        Field::EthDst => "eth_dst".to_owned(),
        other => name(other),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use openflow::{Bucket, FlowMod, GroupCommand, GroupMod, Match, Message};

    use super::*;

    /// What `ovs-ofctl` makes of it, without the number of the message.
    fn ofctl(arguments: &[&str]) -> String {
        let run = Command::new("ovs-ofctl").args(["-O", "OpenFlow15"]).args(arguments).output();
        let run = run.expect("ovs-ofctl is needed");
        assert!(run.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
        let text = String::from_utf8(run.stdout).unwrap();
        let from = text.find("OFPT_").unwrap_or_default();
        let line = text[from..].lines().collect::<Vec<_>>().join(" ");
        let (name, rest) = line.split_once("(xid=").unwrap_or((&line, ") "));
        format!("{name}{}", rest.split_once(')').unwrap_or_default().1)
    }

    /// As the switch reads the message that the flow is sent in.
    fn printed(message: Message) -> String {
        let mut bytes = bytes::BytesMut::new();
        message.encode(1, &mut bytes).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        ofctl(&["ofp-print", &hex])
    }

    fn flows() -> Vec<Flow> {
        let reg = || Match::builder().reg(4, 7).reg(5, 0);
        let set = Action::set_field;
        let copy = Action::CopyField { src: Field::Reg(3).slice(0, 31), dst: (Field::Reg(3), 1) };
        let larger = Action::CheckPktLarger { len: 1514, dst: (Field::Reg(0), 2) };
        vec![
            Flow::new(
                3,
                74,
                0x5846_0200_0007_0000,
                reg().eth_type(0x800).masked(Field::Ipv4Dst, 0x0a00_0000, 0xffff_ff00).build(),
            )
            .apply([set(Field::Xreg(3), 0x0007_0001_0a01_0001), larger])
            .goto(4),
            Flow::new(3, 50, 1, reg().eth_type(0x800).masked(Field::Ipv4Dst, 0, 0).build()),
            Flow::new(
                3,
                98,
                1,
                reg().eth_type(0x86dd).masked(Field::Ipv6Dst, 0x2001_0db8 << 96, u128::MAX << 80).build(),
            )
            .apply([Action::Group(65537)]),
            Flow::new(
                4,
                200,
                1,
                Match::builder().vlan_tagged().eth_type(0x86dd).exact(Field::Xreg(3), 9).build(),
            )
            .apply([
                Action::DecTtl,
                set(Field::EthSrc, 0x0200_0000_0001),
                set(Field::EthDst, 0x0200_0000_0002),
                set(Field::VlanVid, 0x1064),
                Action::set_masked(Field::Reg(0), 1, 1),
                set(Field::InPortNxm, 0),
            ])
            .goto(5),
            Flow::new(
                1,
                200,
                1,
                Match::builder().vlan(100).eth_dst([2, 0, 0, 0, 0, 1]).eth_type(0x800).build(),
            )
            .apply([copy, set(Field::Xxreg(2), 0x2001_0db8 << 96), Action::resubmit(4)])
            .goto(2),
            Flow::new(
                2,
                350,
                1,
                Match::builder()
                    .vlan_tagged()
                    .reg_masked(0, 4, 4)
                    .eth_type(0x800)
                    .exact(Field::IpProto, 6)
                    .exact(Field::TcpDst, 179)
                    .build(),
            )
            .apply([
                Action::Meter(57),
                Action::SetQueue(9),
                Action::PopQueue,
                Action::Clone(Box::new([Action::PopVlan, Action::output(3)])),
            ]),
        ]
    }

    #[test]
    fn ovs_ofctl_reads_a_flow_as_the_switch_does() {
        for it in flows() {
            let text = flow(&it);
            assert_eq!(ofctl(&["parse-flow", &text]), printed(Message::FlowMod(FlowMod::add(it))), "{text}");
        }
    }

    #[test]
    fn a_flow_is_one_line_of_known_words() {
        let [first, default, ..] = &flows()[..] else { panic!() };
        assert_eq!(
            flow(first),
            "cookie=0x5846020000070000, table=3, priority=74,reg4=0x7,reg5=0x0,ip,nw_dst=10.0.0.0/24 \
             actions=set_field:0x700010a010001->xreg3,check_pkt_larger(1514)->NXM_NX_REG0[2],goto_table:4"
        );
        assert_eq!(flow(default), "cookie=0x1, table=3, priority=50,reg4=0x7,reg5=0x0,ip actions=drop");
    }

    #[test]
    fn a_group_is_shown_as_the_switch_shows_it() {
        let actions = [Action::set_field(Field::Xreg(3), 0x0007_0001_0a01_0001), Action::resubmit(4)];
        let it = Group {
            id: 65537,
            kind: GroupType::Select,
            buckets: vec![Bucket::weighted(5, 1, actions), Bucket::weighted(6, 2, [Action::resubmit(4)])],
            selection: Some(Selection::hash([Field::Ipv4Src, Field::Ipv4Dst])),
        };
        let text = group(&it);
        assert_eq!(
            text,
            "group_id=65537,type=select,selection_method=hash,fields(nw_src,nw_dst),bucket=bucket_id:5,\
             actions=set_field:0x700010a010001->xreg3,resubmit(,4),bucket=bucket_id:6,weight:2,actions=resubmit(,4)"
        );
        let shown = printed(Message::GroupMod(GroupMod::new(GroupCommand::Add, it)));
        let bucket = text.split_once("bucket=").unwrap().1;
        assert!(shown.ends_with(&format!("bucket={bucket}")), "{shown}");
    }
}
