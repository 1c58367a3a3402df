//! A real switch on the dummy datapath and on virtual time, into which frames are put, and whose ports count what
//! leaves.

#![allow(dead_code, reason = "each test uses a part")]

use std::fmt::Write;

use openflow::{Flow, Message};
use xenflow_flow_app::{App, FlowChange, PortNo, RouterId, Topology};
use xenflow_proto::{Change, MacAddr};

use super::common;

/// Bytes of an Ethernet frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame(pub Vec<u8>);

impl Frame {
    pub fn new(src: MacAddr, dst: MacAddr, eth_type: u16, payload: &[u8]) -> Self {
        let mut bytes = [&dst.0[..], &src.0, &eth_type.to_be_bytes(), payload].concat();
        bytes.resize(bytes.len().max(60), 0);
        Self(bytes)
    }

    /// A question for 10.0.0.1.
    pub fn arp(src: MacAddr, dst: MacAddr) -> Self {
        let head = [0, 1, 8, 0, 6, 4, 0, 1];
        let payload = [&head[..], &src.0, &[10, 0, 0, 9], &[0; 6], &[10, 0, 0, 1]].concat();
        Self::new(src, dst, 0x0806, &payload)
    }

    pub fn ipv4(src: MacAddr, dst: MacAddr, from: [u8; 4], to: [u8; 4], proto: u8, ttl: u8) -> Self {
        let head = [0x45, 0, 0, 60, 0, 0, 0, 0, ttl, proto, 0, 0];
        let mut payload = [&head[..], &from, &to, &[0; 40]].concat();
        // A TCP header of 20 bytes, a UDP datagram of 40.
        match proto {
            6 => payload[32] = 0x50,
            17 => payload[25] = 40,
            _ => {}
        }
        Self::new(src, dst, 0x0800, &payload)
    }

    /// With ports behind an IPv4 header.
    pub fn ports(mut self, from: u16, to: u16) -> Self {
        self.0[34..36].copy_from_slice(&from.to_be_bytes());
        self.0[36..38].copy_from_slice(&to.to_be_bytes());
        self
    }

    /// Within one more tag.
    pub fn tagged(mut self, tpid: u16, tci: u16) -> Self {
        let tag = [tpid.to_be_bytes(), tci.to_be_bytes()].concat();
        self.0.splice(12..12, tag);
        self
    }

    pub fn hex(&self) -> String {
        self.0.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        })
    }
}

pub struct Live {
    pub switch: common::Switch,
    pub client: common::Client,
    pub app: App,
}

impl Live {
    /// With the flows for that topology and those guests' words, each perhaps changed, and time stopped.
    pub fn start(
        name: &str,
        topology: Topology,
        said: &[(RouterId, Vec<Change>)],
        change: impl Fn(Flow) -> Flow,
    ) -> Self {
        let switch = common::Switch::start(name);
        let vifs = topology.vifs.values().filter_map(|vif| vif.port);
        for port in vifs.chain(topology.access.keys().copied()).filter(|port| *port > 3) {
            let (name, number) = (format!("p{port}"), format!("ofport_request={port}"));
            let add = ["--db=unix:db.sock", "--timeout=20", "add-port", "br0", &name];
            let set = ["--", "set", "interface", &name, "type=dummy", &number];
            switch.run("ovs-vsctl", &[&add[..], &set].concat());
        }
        let mut client = switch.connect();
        let mut app = App::new(1000);
        app.set_topology(topology);
        for (router, changes) in said.iter().filter(|(_, changes)| !changes.is_empty()) {
            app.begin_snapshot(*router);
            changes.iter().for_each(|change| app.apply(*router, change.clone()).unwrap());
            app.end_snapshot(*router);
        }
        install(&mut client, &mut app, change);
        switch.appctl(&["time/stop"]);
        Self { switch, client, app }
    }

    pub fn tell(&mut self, router: RouterId, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(|change| self.app.apply(router, change).unwrap());
        install(&mut self.client, &mut self.app, |flow| flow);
    }

    /// The host is like that from now on.
    pub fn stand(&mut self, topology: Topology) {
        self.app.set_topology(topology);
        install(&mut self.client, &mut self.app, |flow| flow);
    }

    /// Until the datapath has taken all of them.
    pub fn receive(&mut self, port: PortNo, frames: &[Frame]) {
        // The first one alone: it is what makes the datapath's flow. More than 100 the port cannot hold.
        let (first, rest) = frames.split_first().unwrap();
        for part in std::iter::once(std::slice::from_ref(first)).chain(rest.chunks(90)) {
            let before = self.count(port, "rx");
            let name = format!("p{port}");
            let hex: Vec<String> = part.iter().map(Frame::hex).collect();
            let words = ["netdev-dummy/receive", &name].into_iter().chain(hex.iter().map(String::as_str));
            self.switch.appctl(&words.collect::<Vec<_>>());
            while self.count(port, "rx") < before + part.len() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    }

    /// Frames that have left by each port meanwhile.
    pub fn sent<const N: usize>(&mut self, ports: [PortNo; N], act: impl FnOnce(&mut Self)) -> [usize; N] {
        let before = ports.map(|port| self.count(port, "tx"));
        act(self);
        // The datapath has a thread of its own: until nothing moves any more.
        let mut last = ports.map(|port| self.count(port, "tx"));
        let mut still = 0;
        while still < 4 {
            std::thread::sleep(std::time::Duration::from_millis(50));
            let now = ports.map(|port| self.count(port, "tx"));
            still = if now == last { still + 1 } else { 0 };
            last = now;
        }
        let mut counts = [0; N];
        for ((count, last), before) in counts.iter_mut().zip(last).zip(before) {
            *count = last - before;
        }
        counts
    }

    fn count(&self, port: PortNo, way: &str) -> usize {
        // "  port p100: rx pkts=…\n           tx pkts=12, bytes=…"
        let text = self
            .switch
            .run("ovs-ofctl", &["-O", "OpenFlow15", "dump-ports", "unix:br0.mgmt", &port.to_string()]);
        let count = text.split(&format!("{way} pkts=")).nth(1).and_then(|rest| rest.split(',').next());
        count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{text}"))
    }

    /// Virtual time goes on.
    pub fn warp(&self, ms: u32) {
        self.switch.appctl(&["time/warp", &ms.to_string(), "100"]);
    }

    pub fn trace_all(&self, port: PortNo, flow: &str) -> String {
        self.switch.appctl(&["ofproto/trace", "br0", &format!("in_port={port},{flow}")])
    }

    /// What the datapath is told to do.
    pub fn trace(&self, port: PortNo, flow: &str) -> String {
        let trace = self.trace_all(port, flow);
        let line = trace.lines().find_map(|line| line.strip_prefix("Datapath actions: "));
        line.unwrap_or_else(|| panic!("{trace}")).to_owned()
    }
}

/// Everything that is due.
fn install(client: &mut common::Client, app: &mut App, change: impl Fn(Flow) -> Flow) {
    while !app.is_idle() {
        if app.begin_dump().is_some() {
            app.dump_end();
        }
        let batch = app.next_batch(1000);
        let changes = batch.changes.into_iter().map(|step| match step {
            FlowChange::Upsert(flow) => FlowChange::Upsert(change(flow)),
            other => other,
        });
        let messages = batch.meters.into_iter().map(Message::from).chain(changes.map(Message::from));
        client.install(&messages.collect::<Vec<_>>());
    }
}
