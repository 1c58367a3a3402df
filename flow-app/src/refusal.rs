//! Why a frame is let in by no port. Each port has a flow for each reason, which drops and counts; its cookie says
//! both ([`crate::pipeline::cookie::refusal`]), for who reads the counters. A frame that is wrong in several ways
//! counts once.

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// Its source is a group address, which nobody has.
    GroupSource,
    /// An announcement from a port that is no uplink: only nodes announce.
    ForgedAnnouncement,
    /// An announcement from an uplink. It has come as far as it goes, and says nothing that the database does not.
    Announcement,
    /// It has a second tag, which would show up behind an access port.
    DoubleTag,
    /// A tag without a VLAN (802.1p).
    PriorityTag,
    /// A tag where there should be none, or that of no segment.
    ForeignTag,
    /// No tag on an uplink.
    NoTag,
    /// A source address that is not the port's: of a vif another one, of an access port a vif's or one that the
    /// operator does not allow it.
    ForeignSource,
    /// It leads out of the control network, or is none of the few kinds that go there.
    Control,
    /// It came by a port that nobody has configured.
    UnknownPort,
}

impl Refusal {
    /// All reasons.
    pub const ALL: [Self; 10] = [
        Self::GroupSource,
        Self::ForgedAnnouncement,
        Self::Announcement,
        Self::DoubleTag,
        Self::PriorityTag,
        Self::ForeignTag,
        Self::NoTag,
        Self::ForeignSource,
        Self::Control,
        Self::UnknownPort,
    ];

    /// As the operator reads it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GroupSource => "group-source",
            Self::ForgedAnnouncement => "forged-announcement",
            Self::Announcement => "announcement",
            Self::DoubleTag => "double-tag",
            Self::PriorityTag => "priority-tag",
            Self::ForeignTag => "foreign-tag",
            Self::NoTag => "no-tag",
            Self::ForeignSource => "foreign-source",
            Self::Control => "control",
            Self::UnknownPort => "unknown-port",
        }
    }

    /// Its number in cookies, never 0.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::GroupSource => 1,
            Self::ForgedAnnouncement => 2,
            Self::Announcement => 3,
            Self::DoubleTag => 4,
            Self::PriorityTag => 5,
            Self::ForeignTag => 6,
            Self::NoTag => 7,
            Self::ForeignSource => 8,
            Self::Control => 9,
            Self::UnknownPort => 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::cookie;

    #[test]
    fn a_cookie_says_the_reason_and_the_port() {
        for reason in Refusal::ALL {
            for port in [0, 1, 0xfeff, 0xffff_fffe] {
                let cookie = cookie::refusal(reason, port);
                assert_eq!(cookie::refusal_of(cookie), Some((reason, port)));
                assert_eq!(cookie & cookie::CATEGORY_MASK, cookie::TOPOLOGY);
            }
        }
        assert_eq!(cookie::refusal_of(cookie::TOPOLOGY), None);
        assert_eq!(cookie::refusal_of(cookie::router(crate::RouterId(1))), None);
        assert_eq!(cookie::refusal_of(cookie::TOPOLOGY | 0xff << 32), None);
    }
}
