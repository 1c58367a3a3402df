//! The verdict on one packet: the kernel's answer against what the switch does.
//!
//! Right is the kernel's next hop, one of them where there are several, or the packet as it came at the guest's vif (a
//! punt), if a rule explains why the host leaves it to the guest. A drop is right only where the kernel drops.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::LazyLock;

use super::dump::Opinion;
use super::kernel::{Answer, Forward, KernelHop, Refusal};
use super::plan::{DOWN, ETHERNET_MTU, LINKS, Plan};
use super::questions::Question;
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
    /// Links that are up, by the number that the guest's kernel gives its interfaces.
    pub links: BTreeMap<u32, usize>,
    /// Prefixes with a route for a TOS, by table.
    pub tos: Vec<(u32, Prefix)>,
    /// Why the guest forwards by itself what comes in by a link, whatever its tables say.
    pub closed: BTreeMap<(usize, Family), &'static str>,
    /// Links with something in the guest that looks at what leaves by them.
    pub watched: BTreeSet<usize>,
}

/// A neighbor that packets are handed to: its link and its address.
pub type Member = (usize, IpAddr);

/// The verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Sent on as the kernel would, to this neighbor.
    Forwarded(Member),
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

/// A punt because a next hop has no known MAC address.
pub const UNRESOLVED: &str = "unresolved";
/// A punt because a packet is larger than its next hop takes.
pub const TOO_BIG: &str = "mtu";

/// Never forwarded by the host, as source or as destination. The kernel drops most of them.
static MARTIANS: LazyLock<Vec<Prefix>> = LazyLock::new(|| {
    let texts = [
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
    texts.into_iter().filter_map(Prefix::parse).collect()
});

/// Bytes of a packet that fits everywhere.
const SMALL: u32 = 100;

impl Facts<'_> {
    /// Sizes of packets to look at, in bytes: small ones, the largest, and the two beside a limit.
    pub fn sizes(&self, question: &Question, opinion: Option<&Opinion>) -> Vec<u32> {
        let forward = opinion.and_then(|opinion| match &opinion.answer {
            Answer::Forward(forward) => Some(forward),
            Answer::Local | Answer::Blackhole | Answer::Refuse(_) => None,
        });
        let limit = forward.and_then(|forward| self.limit(question, forward)).unwrap_or(ETHERNET_MTU);
        if limit < ETHERNET_MTU { vec![SMALL, limit, limit + 1, ETHERNET_MTU] } else { vec![SMALL, limit] }
    }

    /// Judges what the switch did with a packet of so many bytes. There is an opinion unless the link is closed.
    pub fn judge(
        &self,
        question: &Question,
        size: u32,
        opinion: Option<&Opinion>,
        emits: &[Emit],
    ) -> Verdict {
        let closed = self.closed(question);
        if self.is_punt(question, emits) {
            let reason = closed.or_else(|| self.reason(question, size, opinion?));
            return reason.map_or(Verdict::PuntUnexplained, Verdict::Punted);
        }
        let answer = opinion.filter(|_| closed.is_none() && !self.is_martian(question)).map(|it| &it.answer);
        if emits.is_empty() && answer == Some(&Answer::Blackhole) {
            return Verdict::Dropped;
        }
        let members: Vec<(Member, u32)> = match answer {
            Some(Answer::Forward(forward)) => self.members(question, forward),
            Some(Answer::Local | Answer::Blackhole | Answer::Refuse(_)) | None => Vec::new(),
        };
        let taken = members
            .iter()
            .filter(|(_, limit)| size <= *limit && question.packet.ttl > 1)
            .find(|((link, addr), _)| self.is_via(question, emits, *link, *addr));
        if let Some((member, _)) = taken {
            return Verdict::Forwarded(*member);
        }
        let is_home = |emit: &Emit| match self.segment(emit) {
            Some(segment) => segment == question.link || members.iter().any(|it| it.0.0 == segment),
            None => false,
        };
        Verdict::Wrong { is_leak: !emits.iter().all(is_home) }
    }

    /// Why the guest forwards by itself what comes in where this packet does.
    pub fn closed(&self, question: &Question) -> Option<&'static str> {
        self.closed.get(&(question.link, question.family())).copied()
    }

    /// Neighbors that share the packets of a route, if the host can hand packets to all of them once it knows where
    /// they are: it should then use all that it knows. None where there is one alone.
    pub fn shares(&self, question: &Question, opinion: &Opinion) -> Option<Shares> {
        let Answer::Forward(forward) = &opinion.answer else { return None };
        match self.reason(question, SMALL, opinion) {
            None | Some(UNRESOLVED) => {}
            Some(_) => return None,
        }
        let members: BTreeSet<Member> =
            self.members(question, forward).into_iter().map(|(member, _)| member).collect();
        let (known, unknown) = members
            .into_iter()
            .partition::<BTreeSet<_>, _>(|(link, addr)| self.plan.mac_of(*link, *addr).is_some());
        let is_shared = known.len() + unknown.len() > 1;
        is_shared.then_some(Shares { family: question.family(), known, unknown })
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

    /// Neighbors that the kernel may hand the packet to, on links that are up, each with the bytes that fit.
    fn members(&self, question: &Question, forward: &Forward) -> Vec<(Member, u32)> {
        let usable = forward.hops.iter().filter(|hop| !hop.is_dead && !hop.is_encap);
        let member = |hop: &KernelHop| {
            let link = *self.links.get(&hop.oif?)?;
            let limit = Plan::mtu(link, question.family());
            Some((
                (link, hop.gateway.unwrap_or(question.packet.dst)),
                forward.mtu.unwrap_or(limit).min(limit),
            ))
        };
        usable.filter_map(member).collect()
    }

    /// Bytes that fit wherever the kernel hands the packet to.
    fn limit(&self, question: &Question, forward: &Forward) -> Option<u32> {
        self.members(question, forward).into_iter().map(|(_, limit)| limit).min()
    }

    /// Whether no router forwards it, whatever its tables say.
    pub fn is_martian(&self, question: &Question) -> bool {
        let Packet { src, dst, .. } = question.packet;
        let never = |addr: IpAddr| MARTIANS.iter().any(|prefix| prefix.contains(addr));
        never(src) || never(dst) || self.is_local(src)
    }

    /// An own address, or the broadcast address of a connected prefix.
    fn is_local(&self, addr: IpAddr) -> bool {
        let is_broadcast = |(link, _, own): &(usize, IpAddr, Prefix)| {
            let is_last = own.contains(addr) && super::bits(addr) == own.last();
            *link != DOWN && own.family == Family::V4 && is_last
        };
        self.plan.is_own(addr) || self.plan.own.iter().any(is_broadcast)
    }

    /// The rule by which the host leaves a packet to the guest.
    fn reason(&self, question: &Question, size: u32, opinion: &Opinion) -> Option<&'static str> {
        if question.packet.ttl <= 1 {
            return Some("ttl");
        }
        if self.is_martian(question) {
            return Some("martian");
        }
        let dst = question.packet.dst;
        let own = Plan::table(question.link);
        let forward = match &opinion.answer {
            Answer::Local => return Some("local"),
            // A VRF that does not know a destination, a throw: the guest looks on by itself.
            _ if opinion.table.is_some_and(|table| table != own) => return Some("another table"),
            _ if opinion.is_by_interface => return Some("several routes with one metric"),
            Answer::Refuse(Refusal::NoRoute) => return Some("no route"),
            Answer::Refuse(Refusal::Unreachable) => return Some("unreachable"),
            Answer::Refuse(Refusal::Prohibit) => return Some("prohibit"),
            Answer::Blackhole => return self.has_tos(own, dst, 0).then_some("tos"),
            Answer::Forward(forward) => forward,
        };
        if self.has_tos(own, dst, forward.prefix_len) {
            return Some("tos");
        }
        let alive: Vec<&KernelHop> = forward.hops.iter().filter(|hop| !hop.is_dead).collect();
        let link = |hop: &KernelHop| hop.oif.and_then(|oif| self.links.get(&oif)).copied();
        let is_host = forward.prefix_len == question.family().width();
        // One that the host cannot use leaves all packets of the route to the guest.
        if alive.iter().any(|hop| link(hop).is_none()) {
            Some("no vif")
        } else if alive.iter().any(|hop| hop.is_encap) {
            Some("encapsulation")
        } else if alive.iter().any(|hop| link(hop).is_some_and(|link| self.watched.contains(&link))) {
            Some("obstacle on the way out")
        } else if alive.len() > 1 && !is_host && alive.iter().any(|hop| hop.gateway.is_none()) {
            Some("several next hops, one of them the destination itself")
        } else if self.limit(question, forward).is_some_and(|limit| size > limit) {
            Some(TOO_BIG)
        } else if self.members(question, forward).iter().any(|(it, _)| self.plan.mac_of(it.0, it.1).is_none())
        {
            // Of several next hops the packet may have met that one.
            Some(UNRESOLVED)
        } else {
            None
        }
    }

    /// A route for a TOS at least as long as this stands in the way: the host does not look at the TOS.
    fn has_tos(&self, table: u32, dst: IpAddr, len: u8) -> bool {
        self.tos.iter().any(|(of, prefix)| *of == table && prefix.len >= len && prefix.contains(dst))
    }
}

/// Neighbors that share the packets of a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shares {
    /// Of the packets.
    pub family: Family,
    /// With known MAC addresses.
    pub known: BTreeSet<Member>,
    /// The others: their share is the guest's.
    pub unknown: BTreeSet<Member>,
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
            macs: std::array::from_fn(|link| format!("02:52:00:00:01:0{link}")),
            ports: ports.into(),
            links: [(11, 0), (12, 1)].into(),
            tos: Vec::new(),
            closed: BTreeMap::new(),
            watched: BTreeSet::new(),
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

    fn hop(oif: u32, gateway: &str) -> KernelHop {
        KernelHop { oif: Some(oif), gateway: gateway.parse().ok(), is_dead: false, is_encap: false }
    }

    fn of(answer: Answer) -> Opinion {
        Opinion { answer, table: Some(254), is_by_interface: false }
    }

    fn via(hops: &[KernelHop]) -> Forward {
        Forward { prefix_len: 24, table: 254, hops: hops.to_vec(), mtu: None, next_hop_id: None }
    }

    fn answer() -> Opinion {
        of(Answer::Forward(via(&[hop(12, GATEWAY)])))
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
        let judge = |emits: &[Emit]| facts.judge(&question(), 100, Some(&answer()), emits);
        let good = routed(&plan);
        assert_eq!(judge(&good), Verdict::Forwarded((1, GATEWAY.parse().unwrap())));
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
        let judge = |answer: &Opinion, emits: &[Emit]| facts.judge(&question(), 100, Some(answer), emits);
        assert_eq!(judge(&answer(), &punt), Verdict::PuntUnexplained);
        let mut dying = question();
        dying.packet.ttl = 1;
        let punt_of_dying = [Emit { port: 1, packet: dying.packet.clone() }];
        assert_eq!(facts.judge(&dying, 100, Some(&answer()), &punt_of_dying), Verdict::Punted("ttl"));
        let refused = of(Answer::Refuse(Refusal::NoRoute));
        assert_eq!(judge(&refused, &punt), Verdict::Punted("no route"));
        assert_eq!(judge(&refused, &[]), Verdict::Wrong { is_leak: false });
        assert_eq!(judge(&of(Answer::Blackhole), &[]), Verdict::Dropped);
        assert_eq!(judge(&of(Answer::Blackhole), &punt), Verdict::PuntUnexplained);
        let of_another = Opinion { table: Some(10), ..of(Answer::Blackhole) };
        assert_eq!(judge(&of_another, &punt), Verdict::Punted("another table"));
        // At another vif it is no punt, and where that vif is, it has no business.
        let elsewhere = [Emit { port: 2, packet: question().packet }];
        assert_eq!(judge(&refused, &elsewhere), Verdict::Wrong { is_leak: true });
    }

    #[test]
    fn a_closed_link_punts_and_does_nothing_else() {
        let plan = Plan::new();
        let mut facts = facts(&plan);
        facts.closed.insert((0, Family::V4), "obstacle");
        let punt = [Emit { port: 1, packet: question().packet }];
        assert_eq!(facts.judge(&question(), 100, None, &punt), Verdict::Punted("obstacle"));
        assert_eq!(facts.judge(&question(), 100, None, &[]), Verdict::Wrong { is_leak: false });
        let judge = facts.judge(&question(), 100, Some(&answer()), &routed(&plan));
        assert_eq!(judge, Verdict::Wrong { is_leak: true });
    }

    #[test]
    fn what_is_larger_than_its_next_hop_takes_is_the_guests() {
        let plan = Plan::new();
        let facts = facts(&plan);
        let limited = of(Answer::Forward(Forward { mtu: Some(1300), ..via(&[hop(12, GATEWAY)]) }));
        assert_eq!(facts.sizes(&question(), Some(&limited)), [100, 1300, 1301, 1500]);
        let judge = |size, emits: &[Emit]| facts.judge(&question(), size, Some(&limited), emits);
        let punt = [Emit { port: 1, packet: question().packet }];
        assert_eq!(judge(1300, &routed(&plan)), Verdict::Forwarded((1, GATEWAY.parse().unwrap())));
        assert_eq!(judge(1300, &punt), Verdict::PuntUnexplained);
        assert_eq!(judge(1301, &routed(&plan)), Verdict::Wrong { is_leak: false });
        assert_eq!(judge(1301, &punt), Verdict::Punted(TOO_BIG));
    }

    #[test]
    fn each_of_several_next_hops_is_right_and_one_unusable_explains_a_punt() {
        let plan = Plan::new();
        let facts = facts(&plan);
        let punt = [Emit { port: 1, packet: question().packet }];
        let judge = |hops: &[KernelHop], emits: &[Emit]| {
            facts.judge(&question(), 100, Some(&of(Answer::Forward(via(hops)))), emits)
        };
        let (good, other) = (hop(12, GATEWAY), hop(11, "10.10.0.3"));
        let forwarded = Verdict::Forwarded((1, GATEWAY.parse().unwrap()));
        assert_eq!(judge(&[good.clone(), other.clone()], &routed(&plan)), forwarded);
        assert_eq!(judge(&[good.clone(), other.clone()], &punt), Verdict::PuntUnexplained);
        assert_eq!(
            judge(&[other.clone(), hop(11, "10.10.0.4")], &routed(&plan)),
            Verdict::Wrong { is_leak: true }
        );
        // The fifth neighbor of a link is unknown, 13 is no vif.
        assert_eq!(judge(&[good.clone(), hop(11, "10.10.0.6")], &punt), Verdict::Punted(UNRESOLVED));
        assert_eq!(judge(&[good.clone(), hop(13, "10.10.0.3")], &punt), Verdict::Punted("no vif"));
        let dead = KernelHop { is_dead: true, ..hop(13, "10.10.0.3") };
        assert_eq!(judge(&[good.clone(), dead], &punt), Verdict::PuntUnexplained);
        let shares = |hops: &[KernelHop]| facts.shares(&question(), &of(Answer::Forward(via(hops))));
        let shared = shares(&[good.clone(), other, hop(11, "10.10.0.6")]).unwrap();
        assert_eq!((shared.known.len(), shared.unknown.len()), (2, 1));
        assert_eq!(shares(&[good.clone(), good]), None);
    }
}
