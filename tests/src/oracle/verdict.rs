//! The verdict on one packet: the kernel's answer against what the switch does.
//!
//! Right is the kernel's next hop, one of them where there are several, or the packet as it came at the guest's vif (a
//! punt), if a rule explains why the host leaves it to the guest. A drop is right only where the kernel drops.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::kernel::{Answer, Forward, Refusal};
use super::plan::{LINKS, Plan};
use super::questions::Question;
use super::tables::is_group;
use super::witness::{Emit, Packet};
use super::{Family, Prefix};

/// A port of the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// The router's vif on this link.
    Vif(usize),
    /// An end host on the segment of this link.
    Access(usize),
    /// The trunk.
    Uplink,
}

/// What the verdict needs to know of the surroundings.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Links and neighbors.
    pub plan: &'a Plan,
    /// MAC addresses of the router, by link.
    pub macs: [String; LINKS],
    /// Ports by their datapath number.
    pub ports: BTreeMap<u32, Port>,
    /// Links by the number that the guest's kernel gives its interfaces.
    pub links: BTreeMap<u32, usize>,
    /// Prefixes with a route for a TOS.
    pub tos: Vec<Prefix>,
    /// Whether the host has opened its gates for IPv6.
    pub forwards_v6: bool,
}

/// The verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Sent on as the kernel would.
    Forwarded,
    /// Dropped as the kernel would.
    Dropped,
    /// Left to the guest, for this reason.
    Punted(&'static str),
    /// Left to the guest, and nothing tells why.
    PuntUnexplained,
    /// Anything else.
    Wrong {
        /// It came out on a segment where it has no business.
        is_leak: bool,
    },
}

/// Never forwarded by the host, as source or as destination. The kernel drops most of them.
const MARTIANS: [&str; 9] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "::1/128",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];

impl Facts<'_> {
    /// Judges what the switch did with a packet.
    pub fn judge(&self, question: &Question, answer: &Answer, emits: &[Emit]) -> Verdict {
        if self.is_punt(question, emits) {
            return self.reason(question, answer).map_or(Verdict::PuntUnexplained, Verdict::Punted);
        }
        let is_martian = self.is_martian(question);
        if emits.is_empty() && *answer == Answer::Blackhole && !is_martian {
            return Verdict::Dropped;
        }
        let forward = match answer {
            Answer::Forward(forward) if !is_martian => Some(forward),
            Answer::Forward(_) | Answer::Local | Answer::Blackhole | Answer::Refuse(_) => None,
        };
        let hops: Vec<(usize, IpAddr)> =
            forward.map(|forward| self.next_hops(forward, question.packet.dst)).unwrap_or_default();
        let is_right = question.packet.ttl > 1
            && hops.iter().any(|(link, addr)| self.is_via(question, emits, *link, *addr));
        if is_right {
            return Verdict::Forwarded;
        }
        let is_home = |emit: &Emit| match self.segment(emit) {
            Some(segment) => segment == question.link || hops.iter().any(|(link, _)| *link == segment),
            None => false,
        };
        Verdict::Wrong { is_leak: !emits.iter().all(is_home) }
    }

    /// Untouched, at the vif that it was for, and nowhere else.
    fn is_punt(&self, question: &Question, emits: &[Emit]) -> bool {
        let [Emit { port, packet }] = emits else { return false };
        let untagged = Packet { vlan: None, ..question.packet.clone() };
        self.ports.get(port) == Some(&Port::Vif(question.link)) && *packet == untagged
    }

    /// Rewritten for this next hop, at the ports of its segment: the access port and the trunk among them.
    fn is_via(&self, question: &Question, emits: &[Emit], link: usize, addr: IpAddr) -> bool {
        let Some(mac) = self.plan.mac_of(link, addr) else { return false };
        let expected = |vlan| Packet {
            eth_src: self.macs[link].clone(),
            eth_dst: mac.to_owned(),
            vlan,
            ttl: question.packet.ttl - 1,
            ..question.packet.clone()
        };
        let is_right = |emit: &Emit| match self.ports.get(&emit.port) {
            Some(Port::Uplink) => emit.packet == expected(Some(self.plan.links[link].vlan)),
            Some(Port::Access(of) | Port::Vif(of)) => *of == link && emit.packet == expected(None),
            None => false,
        };
        let reaches =
            |port| emits.iter().filter(|emit| self.ports.get(&emit.port) == Some(&port)).count() == 1;
        emits.iter().all(is_right) && reaches(Port::Access(link)) && reaches(Port::Uplink)
    }

    /// The link on whose segment a copy comes out.
    fn segment(&self, emit: &Emit) -> Option<usize> {
        match *self.ports.get(&emit.port)? {
            Port::Vif(link) | Port::Access(link) => Some(link),
            Port::Uplink => self.plan.links.iter().position(|link| Some(link.vlan) == emit.packet.vlan),
        }
    }

    /// Next hops that count, on vifs.
    fn next_hops(&self, forward: &Forward, dst: IpAddr) -> Vec<(usize, IpAddr)> {
        let alive = forward.hops.iter().filter(|hop| !hop.is_dead && !hop.is_encap);
        alive.filter_map(|hop| Some((*self.links.get(&hop.oif?)?, hop.gateway.unwrap_or(dst)))).collect()
    }

    fn is_martian(&self, question: &Question) -> bool {
        let Packet { src, dst, .. } = question.packet;
        let never = |addr: IpAddr| {
            MARTIANS.iter().filter_map(|text| Prefix::parse(text)).any(|prefix| prefix.contains(addr))
        };
        never(src) || never(dst) || self.is_local(src)
    }

    /// An own address, or the broadcast address of a connected prefix.
    fn is_local(&self, addr: IpAddr) -> bool {
        let is_broadcast =
            |own: &Prefix| own.family == Family::V4 && own.contains(addr) && super::bits(addr) == own.last();
        self.plan.is_own(addr) || self.plan.own.iter().any(|own| is_broadcast(&own.2))
    }

    /// The rule by which the host leaves a packet to the guest.
    fn reason(&self, question: &Question, answer: &Answer) -> Option<&'static str> {
        if question.family() == Family::V6 && !self.forwards_v6 {
            return Some("family");
        }
        if question.packet.ttl <= 1 {
            return Some("ttl");
        }
        if self.is_martian(question) {
            return Some("martian");
        }
        let dst = question.packet.dst;
        let forward = match answer {
            Answer::Local => return Some("local"),
            Answer::Refuse(Refusal::NoRoute) => return Some("no route"),
            Answer::Refuse(Refusal::Unreachable) => return Some("unreachable"),
            Answer::Refuse(Refusal::Prohibit) => return Some("prohibit"),
            Answer::Blackhole => return self.has_tos(dst, 0).then_some("tos"),
            Answer::Forward(forward) => forward,
        };
        if self.has_tos(dst, forward.prefix_len) {
            return Some("tos");
        }
        let [hop] = forward.hops.as_slice() else { return Some("multipath") };
        let Some(link) = hop.oif.and_then(|oif| self.links.get(&oif)) else { return Some("no vif") };
        let next = hop.gateway.unwrap_or(dst);
        if forward.next_hop_id.is_some_and(is_group) {
            Some("multipath")
        } else if forward.mtu.is_some() {
            Some("mtu")
        } else if hop.is_dead {
            Some("dead")
        } else if hop.is_encap {
            Some("encapsulation")
        } else if Family::of(next) != question.family() {
            Some("gateway of the other family")
        } else if self.plan.mac_of(*link, next).is_none() {
            Some("unresolved")
        } else {
            None
        }
    }

    /// A route for a TOS at least as long as this stands in the way: the host does not look at the TOS.
    fn has_tos(&self, dst: IpAddr, len: u8) -> bool {
        self.tos.iter().any(|prefix| prefix.len >= len && prefix.contains(dst))
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel::KernelHop;
    use super::*;

    const GATEWAY: &str = "10.11.1.2";

    fn facts(plan: &Plan) -> Facts<'_> {
        let ports = [
            (1, Port::Vif(0)),
            (2, Port::Vif(1)),
            (3, Port::Access(0)),
            (4, Port::Access(1)),
            (5, Port::Uplink),
        ];
        Facts {
            plan,
            macs: [0, 1, 2, 3].map(|link| format!("02:52:00:00:01:0{link}")),
            ports: ports.into(),
            links: [(11, 0), (12, 1)].into(),
            tos: Vec::new(),
            forwards_v6: false,
        }
    }

    fn question() -> Question {
        let packet = Packet {
            eth_src: super::super::questions::SENDER.into(),
            eth_dst: "02:52:00:00:01:00".into(),
            vlan: None,
            src: "10.10.0.2".parse().unwrap(),
            dst: "20.0.0.1".parse().unwrap(),
            ttl: 64,
            port: 1,
        };
        Question { link: 0, is_from_uplink: false, packet }
    }

    fn answer() -> Answer {
        let hop = KernelHop { oif: Some(12), gateway: GATEWAY.parse().ok(), is_dead: false, is_encap: false };
        Answer::Forward(Forward { prefix_len: 24, hops: vec![hop], mtu: None, next_hop_id: None })
    }

    fn routed(plan: &Plan) -> Vec<Emit> {
        let mac = plan.mac_of(1, GATEWAY.parse().unwrap()).unwrap();
        let packet = Packet {
            eth_src: "02:52:00:00:01:01".into(),
            eth_dst: mac.to_owned(),
            ttl: 63,
            ..question().packet
        };
        let tagged = Packet { vlan: Some(102), ..packet.clone() };
        vec![Emit { port: 4, packet }, Emit { port: 5, packet: tagged }]
    }

    #[test]
    fn the_kernels_next_hop_is_right_and_nothing_else() {
        let plan = Plan::new();
        let facts = facts(&plan);
        let judge = |emits: &[Emit]| facts.judge(&question(), &answer(), emits);
        let good = routed(&plan);
        assert_eq!(judge(&good), Verdict::Forwarded);
        assert_eq!(judge(&[]), Verdict::Wrong { is_leak: false });
        assert_eq!(judge(&good[..1]), Verdict::Wrong { is_leak: false });
        let spoils: [fn(&mut Packet); 4] = [
            |it| it.ttl = 64,
            |it| it.eth_dst = "02:4e:00:04:01:05".into(),
            |it| it.eth_src = "02:52:00:00:01:00".into(),
            |it| it.dst = "20.0.0.2".parse().unwrap(),
        ];
        for spoil in spoils {
            let mut emits = good.clone();
            emits.iter_mut().for_each(|emit| spoil(&mut emit.packet));
            assert_eq!(judge(&emits), Verdict::Wrong { is_leak: false });
        }
        let mut leak = good;
        leak[1].packet.vlan = Some(103);
        assert_eq!(judge(&leak), Verdict::Wrong { is_leak: true });
    }

    #[test]
    fn punts_need_a_reason_and_drops_a_blackhole() {
        let plan = Plan::new();
        let facts = facts(&plan);
        let punt = [Emit { port: 1, packet: question().packet }];
        assert_eq!(facts.judge(&question(), &answer(), &punt), Verdict::PuntUnexplained);
        let mut dying = question();
        dying.packet.ttl = 1;
        let punt_of_dying = [Emit { port: 1, packet: dying.packet.clone() }];
        assert_eq!(facts.judge(&dying, &answer(), &punt_of_dying), Verdict::Punted("ttl"));
        let refused = Answer::Refuse(Refusal::NoRoute);
        assert_eq!(facts.judge(&question(), &refused, &punt), Verdict::Punted("no route"));
        assert_eq!(facts.judge(&question(), &refused, &[]), Verdict::Wrong { is_leak: false });
        assert_eq!(facts.judge(&question(), &Answer::Blackhole, &[]), Verdict::Dropped);
        assert_eq!(facts.judge(&question(), &Answer::Blackhole, &punt), Verdict::PuntUnexplained);
        // At another vif it is no punt, and where that vif is, it has no business.
        let elsewhere = [Emit { port: 2, packet: question().packet }];
        assert_eq!(facts.judge(&question(), &refused, &elsewhere), Verdict::Wrong { is_leak: true });
    }
}
