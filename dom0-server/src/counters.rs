//! Counts by router, vif, port, segment and network, summed up from what the switch counts by flow, port and meter.
//!
//! Pure: samples in, totals out. A sample that is smaller than the one before, or younger, began anew at zero. What a
//! flow counts for follows from its match, so nothing about it is remembered but its last sample.
//!
//! Totals grow and never shrink: they go on from what the database has when the daemon starts again. What passes while
//! it is away is not in them, nor what a flow counted after the last sample before it went: they are never too large.

use std::collections::{BTreeMap, HashMap};

use openflow::{FlowDesc, MeterStats, PortStats};
use xenflow_flow_app::pipeline::NEXT_HOP;
use xenflow_flow_app::punt::meter_of;
use xenflow_flow_app::{FlowKey, RouterId};
use xenflow_proto::table::NeighborKey;

mod attribute;
mod in_use;
#[cfg(test)]
mod tests;

pub use attribute::Names;

use in_use::Busy;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// A router.
    Router,
    /// A router's interface.
    Vif,
    /// A port of an end host.
    Access,
    /// A trunk of the node, by the name of its OVS port.
    Uplink,
    /// A virtual link.
    Segment,
    /// A virtual network.
    Network,
    /// The node itself.
    Node,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Router, Self::Vif, Self::Access, Self::Uplink, Self::Segment, Self::Network, Self::Node];

    /// As the database writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Vif => "vif",
            Self::Access => "access",
            Self::Uplink => "uplink",
            Self::Segment => "segment",
            Self::Network => "network",
            Self::Node => "node",
        }
    }
}

/// A thing that has counters: what it is, and its name.
pub type Place = (Scope, String);

/// Counters by name. `schema/README.md` says what each counts.
pub type Totals = BTreeMap<Place, BTreeMap<String, u64>>;

/// What the switch counted, at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Poll {
    /// Flows of the tables that are looked at.
    pub flows: Vec<FlowDesc>,
    /// All ports.
    pub ports: Vec<PortStats>,
    /// All meters.
    pub meters: Vec<MeterStats>,
}

/// Where a sample came from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Source {
    Flow(FlowKey),
    Port(u32),
    Meter(u32),
}

/// Values that only grow while their source lives, and how long it has lived, in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sample {
    age_s: u32,
    values: Vec<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Counters {
    totals: Totals,
    last: HashMap<Source, Sample>,
    busy: Busy,
    /// A first poll of this daemon was taken: what appears from now on is new.
    is_primed: bool,
}

impl Counters {
    /// The totals so far.
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Totals of a former life of the daemon, as the database has them.
    pub fn remember(&mut self, totals: Totals) {
        for (place, counters) in totals {
            let place = self.totals.entry(place).or_default();
            for (name, value) in counters {
                let total = place.entry(name).or_default();
                *total = total.saturating_add(value);
            }
        }
    }

    /// Neighbors that this host sends to for each router, for its guest to keep fresh: those that a packet went to in
    /// the last minute, sorted; of more than [`xenflow_proto::message::MAX_IN_USE`] those that got the most packets. A
    /// router without any is left out. `neighbor_of` is [`xenflow_flow_app::App::neighbor_of`].
    #[must_use]
    pub fn in_use(
        &self,
        neighbor_of: impl Fn(&FlowKey) -> Option<(RouterId, NeighborKey)>,
    ) -> BTreeMap<RouterId, Vec<NeighborKey>> {
        self.busy.neighbors(neighbor_of)
    }

    /// Adds what was counted since the poll before. Places that are no longer there are forgotten.
    pub fn take(&mut self, poll: &Poll, names: &Names) {
        let mut last = HashMap::new();
        let mut busy = Busy::default();
        for FlowDesc { flow, counters } in &poll.flows {
            let source = Source::Flow(FlowKey::from(flow));
            let age_s = counters.duration.unwrap_or_default().0;
            let values = vec![counters.packets.unwrap_or_default(), counters.bytes.unwrap_or_default()];
            let grown = self.grown(&mut last, source, Sample { age_s, values });
            let [packets, bytes] = grown.as_slice() else { continue };
            if flow.table == NEXT_HOP {
                busy.count(&mut self.busy, FlowKey::from(flow), *packets, age_s);
            }
            for (place, counter) in names.of_flow(flow) {
                self.add(place.clone(), format!("{counter}_packets"), *packets);
                self.add(place, format!("{counter}_bytes"), *bytes);
            }
        }
        for port in &poll.ports {
            let counters = [
                ("link_rx_packets", port.rx_packets),
                ("link_tx_packets", port.tx_packets),
                ("link_rx_bytes", port.rx_bytes),
                ("link_tx_bytes", port.tx_bytes),
                ("link_rx_dropped", port.rx_dropped),
                ("link_tx_dropped", port.tx_dropped),
                ("link_rx_errors", port.rx_errors),
                ("link_tx_errors", port.tx_errors),
            ];
            // All ones: the switch does not count it.
            let values = counters.iter().map(|(_, value)| if *value == u64::MAX { 0 } else { *value });
            let sample = Sample { age_s: port.duration.0, values: values.collect() };
            let grown = self.grown(&mut last, Source::Port(port.number), sample);
            let Some(place) = names.of_port(port.number) else { continue };
            for ((counter, _), value) in counters.iter().zip(grown) {
                self.add(place.clone(), (*counter).to_owned(), value);
            }
        }
        for meter in &poll.meters {
            let over = meter.bands.iter().map(|(packets, _)| *packets).sum();
            // Meters have no age here: their numbers are never used for anything else.
            let grown =
                self.grown(&mut last, Source::Meter(meter.id), Sample { age_s: 0, values: vec![over] });
            let Some((router, class)) = meter_of(meter.id) else { continue };
            if let (Some(place), [packets]) = (names.of_router(router), grown.as_slice()) {
                self.add(place, format!("policed_{}_packets", class.as_str()), *packets);
            }
        }
        self.last = last;
        self.busy = busy;
        self.is_primed = true;
        self.totals.retain(|place, _| names.has(place));
    }

    /// By how much a source has grown since it was last seen.
    fn grown(&self, last: &mut HashMap<Source, Sample>, source: Source, now: Sample) -> Vec<u64> {
        let grown = match self.last.get(&source) {
            // It was there before this daemon, for nobody knows how long.
            None if !self.is_primed => vec![0; now.values.len()],
            None => now.values.clone(),
            Some(before) => {
                let is_same = now.age_s >= before.age_s
                    && now.values.iter().zip(&before.values).all(|(now, before)| now >= before);
                let from = |(now, before): (&u64, &u64)| if is_same { now - before } else { *now };
                now.values.iter().zip(&before.values).map(from).collect()
            }
        };
        last.insert(source, now);
        grown
    }

    /// Adds to a counter.
    pub fn add(&mut self, place: Place, counter: String, value: u64) {
        let total = self.totals.entry(place).or_default().entry(counter).or_default();
        // The database's integers are signed.
        *total = total.saturating_add(value).min(i64::MAX as u64);
    }
}
