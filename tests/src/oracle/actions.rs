//! Datapath actions, as `odp-util.c` of Open vSwitch prints them, run on a packet.

use anyhow::{Context, Result, bail, ensure};

use super::witness::{Emit, Packet};

/// Runs the actions on a packet whose frame has this many bytes, a tag not counted.
pub fn outputs(actions: &str, packet: &Packet, frame_len: u32) -> Result<Vec<Emit>> {
    let mut packet = packet.clone();
    let mut emits = Vec::new();
    run(actions, &mut packet, frame_len, &mut emits)?;
    Ok(emits)
}

fn run(actions: &str, packet: &mut Packet, len: u32, emits: &mut Vec<Emit>) -> Result<()> {
    if actions == "drop" {
        return Ok(());
    }
    for action in split(actions) {
        if let Ok(port) = action.parse() {
            emits.push(Emit { port, packet: packet.clone() });
        } else if action == "pop_vlan" {
            ensure!(packet.vlan.take().is_some(), "pop_vlan without a tag");
        } else if let Some(tag) = inside(action, "push_vlan") {
            ensure!(packet.vlan.is_none(), "a second tag");
            packet.vlan = Some(value(tag, "vid").context("push_vlan without vid")?.parse()?);
        } else if let Some(field) = inside(action, "set") {
            set(field, packet)?;
        } else if let Some(inner) = inside(action, "clone") {
            run(inner, &mut packet.clone(), len, emits)?;
        } else if let Some(check) = inside(action, "check_pkt_len") {
            run(branch(check, len)?, &mut packet.clone(), len, emits)?;
        } else if let Some(meter) = inside(action, "meter") {
            // How many pass is not asked here.
            meter.parse::<u32>().with_context(|| format!("the meter {meter:?}"))?;
        } else {
            bail!("the datapath action {action:?} is not known here");
        }
    }
    Ok(())
}

/// The actions of `size=…,gt(…),le(…)` for a frame of that length.
fn branch(check: &str, len: u32) -> Result<&str> {
    let size: u32 = value(check, "size").context("check_pkt_len without size")?.parse()?;
    let name = if len > size { "gt" } else { "le" };
    let branch = split(check).into_iter().find_map(|part| inside(part, name));
    branch.with_context(|| format!("check_pkt_len without {name}"))
}

fn set(field: &str, packet: &mut Packet) -> Result<()> {
    if let Some(queue) = inside(field, "skb_priority") {
        // The queue of a port: when a packet leaves, not where.
        let digits = queue.strip_prefix("0x").unwrap_or(queue);
        u32::from_str_radix(digits, 16).with_context(|| format!("the priority {queue:?}"))?;
        return Ok(());
    }
    if let Some(eth) = inside(field, "eth") {
        for (name, place) in [("src", &mut packet.eth_src), ("dst", &mut packet.eth_dst)] {
            if let Some(mac) = value(eth, name) {
                mac.clone_into(place);
            }
        }
        return Ok(());
    }
    let ttl = inside(field, "ipv4").and_then(|ip| value(ip, "ttl"));
    let ttl = ttl.or_else(|| inside(field, "ipv6").and_then(|ip| value(ip, "hlimit")));
    packet.ttl = ttl.with_context(|| format!("the rewrite {field:?} is not known here"))?.parse()?;
    Ok(())
}

/// What is between the parentheses of `name(…)`.
fn inside<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')')
}

/// The value of `key=value` or `key=value/mask` in a list.
fn value<'a>(list: &'a str, key: &str) -> Option<&'a str> {
    let value = list.split(',').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))?;
    value.split('/').next()
}

/// Splits at commas outside of parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0_u32, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Packet {
        Packet {
            eth_src: "02:00:00:00:00:01".into(),
            eth_dst: "02:00:00:00:00:02".into(),
            vlan: None,
            src: "10.0.0.1".parse().unwrap(),
            dst: "10.0.0.2".parse().unwrap(),
            ttl: 64,
            port: 7,
        }
    }

    fn small(actions: &str) -> Result<Vec<Emit>> {
        outputs(actions, &packet(), 100)
    }

    // What ofproto/trace of Open vSwitch 3.1.0 prints for a routed and flooded packet.
    const FLOOD: &str = "set(eth(src=02:aa:00:00:00:01,dst=02:bb:00:00:00:01)),set(ipv4(ttl=63)),4,push_vlan(vid=102,pcp=0),6";

    #[test]
    fn actions_are_run() {
        let emits = small(FLOOD).unwrap();
        let (ports, vlans): (Vec<_>, Vec<_>) = emits.iter().map(|it| (it.port, it.packet.vlan)).unzip();
        assert_eq!((ports, vlans), (vec![4, 6], vec![None, Some(102)]));
        assert!(emits.iter().all(|it| it.packet.ttl == 63 && it.packet.eth_dst == "02:bb:00:00:00:01"));
        assert_eq!(small("drop").unwrap(), []);
    }

    #[test]
    fn a_clone_leaves_the_packet_as_it_was() {
        let emits = small("clone(set(ipv6(hlimit=1/0xff)),1),2").unwrap();
        assert_eq!(emits.iter().map(|it| it.packet.ttl).collect::<Vec<_>>(), [1, 64]);
    }

    #[test]
    fn a_queue_changes_no_way() {
        // As Open vSwitch prints what chooses class 1:3 of a port, and takes it back.
        let emits = small("set(skb_priority(0x10003)),2,set(skb_priority(0)),1").unwrap();
        assert_eq!(emits, small("2,1").unwrap());
    }

    #[test]
    fn lengths_choose_a_branch() {
        let check = "check_pkt_len(size=1414,gt(meter(3),7),le(set(ipv4(ttl=63)),check_pkt_len(size=99,gt(4),le(drop)),5))";
        let ports = |len| {
            let emits = outputs(check, &packet(), len).unwrap();
            emits.iter().map(|emit| (emit.port, emit.packet.ttl)).collect::<Vec<_>>()
        };
        assert_eq!(ports(1415), [(7, 64)]);
        assert_eq!(ports(1414), [(4, 63), (5, 63)]);
        assert_eq!(ports(99), [(5, 63)]);
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        let unknown = ["recirc(0x1)", "set(skb_mark(0x1)),1", "userspace(pid=1)", "trunc(100),1"];
        for actions in unknown.into_iter().chain([
            "pop_vlan,1",
            "",
            "set(skb_priority(x)),1",
            "check_pkt_len(size=9,le(1))",
        ]) {
            assert!(small(actions).is_err(), "{actions}");
        }
    }
}
