//! How a router stands in a node's switch, as far as a move between nodes is concerned. Who wants which stance is the daemon's
//! business; here is what the words mean, and `table` makes flows of them: of the host's topology, never of a guest's routes.

/// Who may send to the router's next hops here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gate {
    /// Nobody: frames for the router are switched to where it is.
    Closed,
    /// What comes by uplinks, late or by a switch that does not know better; what begins here is switched to where the router is.
    Late,
    /// Everybody. At the destination of a planned move it opens on what the source has sent, else on the guest's own snapshot.
    Open,
}

/// Whose MAC routed frames carry as their source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Emission {
    /// The node's own.
    Node,
    /// The router's.
    Router,
}

/// Where packets for the guest itself go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Punts {
    /// To its port. What is kept or was relayed and not given to the guest elsewhere comes first.
    Guest,
    /// To its port, and the newest are remembered: some may sit in a ring that nobody reads any more.
    Copied,
    /// To the destination, with the copies first; kept here too until the guest is known to have them, and only kept while no
    /// destination is known.
    Relayed,
    /// Nowhere yet: what the source relays and what comes here is kept, in order and bounded.
    Kept,
    /// What the source relays goes to the guest; what comes here waits for the source's end mark.
    Ordered,
    /// Where the router is, by L2.
    Elsewhere,
}

/// How a router stands in this node's switch, as asked for or as it is; its parts may come about in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stance {
    /// Its flows are there, behind the gate.
    pub tables: bool,
    /// Who may use them.
    pub gate: Gate,
    /// Of what is routed.
    pub emission: Emission,
    /// Of what is not.
    pub punts: Punts,
    /// The node answers ARP and neighbor solicitations for the guest's own addresses; frames of such answers have its own MAC.
    pub answers: bool,
    /// What the guest itself sends is kept, in order and bounded, but its session. A port that nobody has spoken of is mute.
    pub mute: bool,
}

impl Stance {
    /// Of a router that is not here.
    pub const NONE: Self = Self {
        tables: false,
        gate: Gate::Closed,
        emission: Emission::Node,
        punts: Punts::Elsewhere,
        answers: false,
        mute: true,
    };
    /// Of a router that is not here, and whose tables are kept for when it comes.
    pub const STANDBY: Self = Self { tables: true, ..Self::NONE };
    /// Of a router that is here.
    pub const HOME: Self = Self {
        tables: true,
        gate: Gate::Open,
        emission: Emission::Router,
        punts: Punts::Guest,
        answers: false,
        mute: false,
    };
    /// The guest is here and about to leave. Nobody says when it is suspended, and its port stays for seconds: so its neighbors have
    /// answers from now on, and twice for as long as it runs.
    pub const YIELDED: Self =
        Self { emission: Emission::Node, punts: Punts::Copied, answers: true, ..Self::HOME };
    /// The guest has left, or may have: the node forwards for it.
    pub const AWAY: Self = Self { punts: Punts::Relayed, ..Self::YIELDED };
    /// The guest is about to come.
    pub const AWAITED: Self = Self { punts: Punts::Kept, ..Self::STANDBY };
    /// The guest is on its way, and who begins here is routed here already: nobody else hears what the guest is asked.
    pub const EXPECTED: Self = Self { gate: Gate::Open, answers: true, ..Self::AWAITED };
    /// The guest is here, and the others do not know yet: so what it says itself is kept.
    pub const ARRIVED: Self = Self { punts: Punts::Ordered, ..Self::EXPECTED };
    /// The others know that the router is elsewhere.
    pub const LATE: Self = Self { gate: Gate::Late, ..Self::STANDBY };
}
