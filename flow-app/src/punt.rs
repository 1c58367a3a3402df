//! Classes of packets that a guest gets, and how many of each: the policing that keeps one kind of packet from
//! starving the others (RFC 6192).

use openflow::Meter;

use crate::topology::RouterId;

/// Why a guest gets a packet. Each class of a router has a meter of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PuntClass {
    /// Routing protocols: what keeps the router's tables alive.
    Routing,
    /// ARP and neighbor discovery.
    Resolution,
    /// Anything else to the guest's own addresses, broadcasts, groups.
    Host,
    /// What IP must answer or refuse: end of life, too big, no route, addresses never forwarded.
    Exception,
    /// Transit that the guest forwards itself: unresolved neighbors, routes that the host cannot describe, and what a
    /// VRF has no route for.
    Transit,
}

impl PuntClass {
    /// All classes.
    pub const ALL: [Self; 5] = [Self::Routing, Self::Resolution, Self::Host, Self::Exception, Self::Transit];

    /// As the operator writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Routing => "routing",
            Self::Resolution => "resolution",
            Self::Host => "host",
            Self::Exception => "exception",
            Self::Transit => "transit",
        }
    }

    /// Its number in the flow tables, 1 to 5.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Routing => 1,
            Self::Resolution => 2,
            Self::Host => 3,
            Self::Exception => 4,
            Self::Transit => 5,
        }
    }
}

/// Packets per second of each class that a router gets at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PuntRates {
    /// [`PuntClass::Routing`].
    pub routing: u32,
    /// [`PuntClass::Resolution`].
    pub resolution: u32,
    /// [`PuntClass::Host`].
    pub host: u32,
    /// [`PuntClass::Exception`].
    pub exception: u32,
    /// [`PuntClass::Transit`].
    pub transit: u32,
}

impl Default for PuntRates {
    fn default() -> Self {
        Self { routing: 5_000, resolution: 1_000, host: 2_000, exception: 1_000, transit: 20_000 }
    }
}

impl PuntRates {
    /// The rate of a class.
    #[must_use]
    pub const fn of(&self, class: PuntClass) -> u32 {
        match class {
            PuntClass::Routing => self.routing,
            PuntClass::Resolution => self.resolution,
            PuntClass::Host => self.host,
            PuntClass::Exception => self.exception,
            PuntClass::Transit => self.transit,
        }
    }

    /// The meters of a router.
    pub fn meters(self, router: RouterId) -> impl Iterator<Item = Meter> {
        PuntClass::ALL.into_iter().map(move |class| {
            let rate = self.of(class);
            // A burst of a tenth of a second: what comes at once, as after a link comes up, gets through.
            Meter::drop_pktps(meter_id(router, class), rate, (rate / 10).max(1))
        })
    }
}

/// The number of the meter of a router's class.
#[must_use]
pub fn meter_id(router: RouterId, class: PuntClass) -> u32 {
    u32::from(router.0) << 3 | u32::from(class.number())
}

/// The router and the class of a meter's number; none for a number that [`meter_id`] does not give.
#[must_use]
pub fn meter_of(id: u32) -> Option<(RouterId, PuntClass)> {
    let class = PuntClass::ALL.into_iter().find(|class| u32::from(class.number()) == id & 7)?;
    let router = u16::try_from(id >> 3).ok().filter(|router| *router != 0)?;
    Some((RouterId(router), class))
}
