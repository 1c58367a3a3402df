//! What the daemon hears of a router that moves: frames that the switch hands to it in the place of the guest, or beside it. Each
//! comes with a word of the flow that did it (userdata of the packet-in): of which vif it is, and why. Nothing else of the
//! packet-in matters to who keeps or relays them; the frame itself is untagged.

use openflow::Action;
use openflow::action::Controller;

use crate::topology::{RouterId, VifId};

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HeardKind {
    /// The guest is to get it, some time and somewhere.
    Punt,
    /// The guest should have got it by its port as well.
    Copy,
    /// The guest itself has sent it.
    Mute,
    /// It came by an uplink to the router's own address, which is elsewhere, and no flow forwards it.
    Late,
}

impl HeardKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Punt, Self::Copy, Self::Mute, Self::Late];

    /// Its number in the word, never 0.
    const fn number(self) -> u8 {
        match self {
            Self::Punt => 1,
            Self::Copy => 2,
            Self::Mute => 3,
            Self::Late => 4,
        }
    }
}

/// Of which vif a frame is, and why the daemon has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Heard {
    /// Why.
    pub kind: HeardKind,
    /// That it is for; of a [`HeardKind::Mute`] one, that it is from.
    pub vif: VifId,
}

impl Heard {
    /// Bytes of the word.
    pub const LEN: usize = 6;
    /// Its first byte. A daemon may meet flows of another version until it has compared them.
    const VERSION: u8 = 1;

    /// Version, kind, router and vif (big-endian).
    #[must_use]
    pub const fn encode(self) -> [u8; Self::LEN] {
        let VifId { router, number } = self.vif;
        let ([r0, r1], [n0, n1]) = (router.0.to_be_bytes(), number.to_be_bytes());
        [Self::VERSION, self.kind.number(), r0, r1, n0, n1]
    }

    /// None for anything that [`Heard::encode`] does not give, but for numbers of routers and vifs, which are not 0.
    #[must_use]
    pub fn decode(word: &[u8]) -> Option<Self> {
        let &[Self::VERSION, kind, r0, r1, n0, n1] = word else { return None };
        let kind = HeardKind::ALL.into_iter().find(|known| known.number() == kind)?;
        let (router, number) = (u16::from_be_bytes([r0, r1]), u16::from_be_bytes([n0, n1]));
        (router > 0 && number > 0).then_some(Self { kind, vif: VifId { router: RouterId(router), number } })
    }

    /// Hands the whole frame over, through a meter that holds back nothing else.
    pub(crate) fn tell(self, meter: Option<u32>) -> Action {
        let userdata: Box<[u8]> = Box::new(self.encode());
        Action::Controller(Box::new(Controller { userdata, meter, ..Controller::default() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_read_as_it_was_written_and_no_other_is() {
        for kind in HeardKind::ALL {
            for (router, number) in [(1, 1), (0x1234, 0xff00), (u16::MAX, u16::MAX)] {
                let heard = Heard { kind, vif: VifId { router: RouterId(router), number } };
                assert_eq!(Heard::decode(&heard.encode()), Some(heard));
            }
        }
        let vif = VifId { router: RouterId(0x102), number: 0x304 };
        let good = Heard { kind: HeardKind::Late, vif }.encode();
        assert_eq!(good, [1, 4, 1, 2, 3, 4]);
        for len in 0..good.len() {
            assert_eq!(Heard::decode(&good[..len]), None);
        }
        assert_eq!(Heard::decode(&[&good[..], &[0]].concat()), None, "too long");
        for (at, wrong) in [(0, 0), (0, 2), (1, 0), (1, 5)] {
            let mut word = good;
            word[at] = wrong;
            assert_eq!(Heard::decode(&word), None, "byte {at} is {wrong}");
        }
        assert_eq!(Heard::decode(&[1, 4, 0, 0, 3, 4]), None, "no router");
        assert_eq!(Heard::decode(&[1, 4, 1, 2, 0, 0]), None, "no vif");
    }
}
