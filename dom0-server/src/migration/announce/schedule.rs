//! When what is told: all of a router's vifs at once, then again, and never more than a segment's switches stand.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use xenflow_proto::{MacAddr, VlanId};

use super::Vif;
use super::frame::{ALL_NODES, ALL_NODES_MAC, Advertisement, Arp, REPLY, REQUEST, REVERSE_REQUEST};

/// Frames a second, of all segments together.
pub const PER_SECOND: u32 = 1000;
/// Frames at once.
const BURST: usize = 100;
/// Between two frames, on average.
const GAP: Duration = Duration::from_micros(1_000_000 / PER_SECOND as u64);
/// MAX_NEIGHBOR_ADVERTISEMENT (RFC 4861, 10). ARP has ANNOUNCE_NUM = 2 (RFC 5227, 1.1): every other round.
const ROUNDS: u32 = 3;
/// RETRANS_TIMER (RFC 4861, 10); two of them are ANNOUNCE_INTERVAL (RFC 5227, 1.1).
const INTERVAL: Duration = Duration::from_secs(1);
/// Addresses that are told, beside the first of each vif. Whoever asks for others is answered; and one address of a vif is enough
/// for switches.
pub(super) const MAX_ADDRESSES: usize = 4096;
/// Where the special ARP reply goes; no port of a XenFlow switch lets it in (`flow-app`, `table/admission.rs`).
pub(crate) const ANNOUNCEMENT: MacAddr = MacAddr([0xaa; 6]);

/// A frame to be sent once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telling {
    /// On every port of this segment but vifs' of the router itself.
    pub vlan: VlanId,
    /// Without a tag.
    pub frame: Vec<u8>,
}

/// What is told after an announcement, and how far that is. Times are from the announcement.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// In the order of a round; whether it is in every round.
    frames: Vec<(Telling, bool)>,
    /// The first of them, one of each vif.
    vifs: usize,
    /// How many of the round were sent.
    sent: usize,
    round: u32,
    began: Duration,
    next: Duration,
}

impl Schedule {
    /// Of all the vifs of a router. Each is told of once before the rest of any is.
    #[must_use]
    pub fn new(vifs: &[Vif]) -> Self {
        let first = |vif: &Vif| match vif.addresses.first() {
            Some(address) => vif.address(*address),
            None => (vif.reverse(), true),
        };
        let mut frames: Vec<_> = vifs.iter().map(first).collect();
        frames.extend(vifs.iter().map(|vif| (vif.special(), true)));
        let mut others: Vec<_> = vifs.iter().map(|vif| (vif, vif.addresses.iter().skip(1))).collect();
        let limit = frames.len() + MAX_ADDRESSES;
        while !others.is_empty() && frames.len() < limit {
            others.retain_mut(|(vif, addresses)| {
                let address = addresses.next().filter(|_| frames.len() < limit);
                frames.extend(address.map(|address| vif.address(*address)));
                address.is_some()
            });
        }
        let (began, next) = (Duration::ZERO, Duration::ZERO);
        Self { frames, vifs: vifs.len(), sent: 0, round: 0, began, next }
    }

    /// When something is due next; none: all was told.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        (self.round < ROUNDS && !self.frames.is_empty()).then_some(self.next)
    }

    /// What is due by now. Who asks late is not given more for it.
    pub fn due(&mut self, now: Duration) -> Vec<Telling> {
        let mut due = Vec::new();
        if self.next().is_none_or(|next| now < next) {
            return due;
        }
        if self.sent == 0 {
            self.began = now;
        }
        while due.len() < BURST
            && let Some((telling, is_in_each)) = self.frames.get(self.sent)
        {
            self.sent += 1;
            if *is_in_each || self.round.is_multiple_of(2) {
                due.push(telling.clone());
            }
        }
        self.next = now + GAP * u32::try_from(due.len()).unwrap_or(PER_SECOND);
        if self.sent == self.frames.len() {
            self.sent = 0;
            self.round += 1;
            self.next = self.next.max(self.began + INTERVAL);
        }
        due
    }

    /// Every vif was told of at least once.
    #[must_use]
    pub fn has_told_all(&self) -> bool {
        self.round > 0 || self.sent >= self.vifs
    }
}

impl Vif {
    /// One of its addresses; whether in every round.
    fn address(&self, address: IpAddr) -> (Telling, bool) {
        match address {
            // RFC 5227: the target's MAC address is ignored, and should be zero.
            IpAddr::V4(v4) => {
                (self.arp(REQUEST, MacAddr::BROADCAST, (self.mac, v4), (MacAddr::ZERO, v4)), false)
            }
            IpAddr::V6(target) => {
                let all = Advertisement { target, mac: self.mac, to: ALL_NODES, is_solicited: false };
                (Telling { vlan: self.vlan, frame: all.frame(ALL_NODES_MAC, self.mac) }, true)
            }
        }
    }

    /// RFC 903, as QEMU has it.
    fn reverse(&self) -> Telling {
        let party = (self.mac, Ipv4Addr::UNSPECIFIED);
        self.arp(REVERSE_REQUEST, MacAddr::BROADCAST, party, party)
    }

    fn special(&self) -> Telling {
        let is_v4 = |address: &IpAddr| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        };
        let address = self.addresses.iter().find_map(is_v4).unwrap_or(Ipv4Addr::UNSPECIFIED);
        self.arp(REPLY, ANNOUNCEMENT, (self.mac, address), (ANNOUNCEMENT, address))
    }

    fn arp(
        &self,
        operation: u16,
        to: MacAddr,
        sender: (MacAddr, Ipv4Addr),
        target: (MacAddr, Ipv4Addr),
    ) -> Telling {
        Telling { vlan: self.vlan, frame: Arp { operation, sender, target }.frame(to, self.mac) }
    }
}
