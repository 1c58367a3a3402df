//! What packets meet in the pipeline beside a plain switch: throughput of TCP and of small packets through one router and through
//! eight in a row, and the time of a first packet, whose flow the datapath does not have.
//!
//! A bridge of the same Open vSwitch that only learns (`NORMAL`) joins two more end hosts: everything else is the same for both.
//! Turns alternate, and ratios are of neighbors in time.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::table::Table;
use super::{CHUNK, LONG};
use crate::benches::{median, round};
use crate::endhost::{EndHost, NIC};
use crate::host::{Host, Vif};
use crate::iperf;
use crate::node::{BRIDGE, Node, Pki};
use crate::process::wait_for;
use crate::routes::Writer;
use crate::scenario::Lab;
use crate::virtual_router::{Link, VirtualRouter};

/// Routers in a row. Router i joins segments i−1 (its link `left`, host part 2) and i (`right`, host part 1).
const ROUTERS: u8 = 8;
/// Segments that have an end host, with host part 10.
const ENDS: [u8; 3] = [0, 1, ROUTERS];
const PLAIN: &str = "br-plain";
const PLAIN_ADDRESSES: [&str; 2] = ["10.9.0.1", "10.9.0.2"];
/// Each of all three ways.
const ROUNDS: usize = 10;
const SECONDS: u32 = 1;
/// First packets by each of two ways.
pub(super) const FIRST: usize = 100;
const LIMIT: Duration = Duration::from_secs(60);

/// See the module.
struct Site {
    // Dropped from top to bottom.
    routers: Vec<VirtualRouter>,
    ends: Vec<EndHost>,
    plain: Vec<EndHost>,
    node: Node,
    _pki: Pki,
}

fn address(segment: u8, host: u8) -> String {
    format!("10.7.{segment}.{host}")
}

impl Site {
    fn create(lab: &Lab) -> Result<Self> {
        let pki = Pki::create(lab)?;
        let node = Node::create(lab, "a", &pki)?;
        node.host().vsctl(&["add-br", BRIDGE, "--", "add-br", PLAIN])?;
        let segments = (0..=ROUTERS).map(|k| format!("segment add s{k} --network red --vlan {}\n", 100 + k));
        let accesses = ENDS.iter().map(|k| format!("access add h{k} --segment s{k}\n"));
        let lines: String = segments.chain(accesses).collect();
        node.configure(&format!("network add red\n{lines}"))?;
        let mut routers = Vec::new();
        for i in 1..=ROUTERS {
            let (left, right) = (format!("s{}", i - 1), format!("s{i}"));
            let (from, to) = (format!("{}/24", address(i - 1, 2)), format!("{}/24", address(i, 1)));
            let links = [
                Link { name: "left", segment: &left, address: &from },
                Link { name: "right", segment: &right, address: &to },
            ];
            let router =
                VirtualRouter::create(lab, &node, &pki, ("red", &format!("r{i}"), i.into()), &links)?;
            let ahead =
                (i + 1..=ROUTERS).map(|k| format!("route add {}/24 via {}\n", address(k, 0), address(i, 2)));
            let behind =
                (0..i - 1).map(|k| format!("route add {}/24 via {}\n", address(k, 0), address(i - 1, 1)));
            router.guest().netns().ip_batch(&ahead.chain(behind).collect::<String>())?;
            routers.push(router);
        }
        let mut ends = Vec::new();
        for k in ENDS {
            let end = EndHost::create(&format!("h{k}"))?;
            let (port, mac) = (format!("h{k}"), format!("02:48:00:00:00:{k:02x}"));
            node.plug(end.netns(), NIC, &Vif { port: &port, iface_id: &port, mac: &mac, vm_uuid: None })?;
            let gateway = address(k, if k == 0 { 2 } else { 1 });
            end.configure(&format!("{}/24", address(k, 10)), Some(&gateway))?;
            ends.push(end);
        }
        let mut plain = Vec::new();
        for (at, ip) in PLAIN_ADDRESSES.into_iter().enumerate() {
            let (port, mac) = (format!("p{at}"), format!("02:48:01:00:00:{at:02x}"));
            plain.push(EndHost::plug(node.host(), PLAIN, &port, &mac, (ip, None), &[])?);
        }
        Ok(Self { routers, ends, plain, node, _pki: pki })
    }

    /// Starts everything, and waits until no router's kernel forwards any more.
    fn start(&mut self) -> Result<()> {
        self.node.start()?;
        self.routers.iter_mut().try_for_each(VirtualRouter::start_client)?;
        self.plain[0].wait_reachable(PLAIN_ADDRESSES[1], LIMIT)?;
        let [_, others @ ..] = ENDS;
        for k in others {
            let target = address(k, 10);
            wait_for(&format!("the pipeline to forward to {target} and back"), LIMIT, || {
                let forwarded = || -> Result<u64> {
                    let each = self.routers.iter().map(|router| router.guest().forwarded());
                    Ok(each.collect::<Result<Vec<_>>>()?.into_iter().sum())
                };
                let before = forwarded()?;
                let ping = self.ends[0].ping(&target, 3, 20)?;
                Ok((ping.lost() == 0 && forwarded()? == before).then_some(()))
            })?;
        }
        Ok(())
    }

    /// The ways that are compared: from, to, and the address of the latter.
    fn ways(&self) -> [(&EndHost, &EndHost, String); 3] {
        [
            (&self.plain[0], &self.plain[1], PLAIN_ADDRESSES[1].to_owned()),
            (&self.ends[0], &self.ends[1], address(1, 10)),
            (&self.ends[0], &self.ends[2], address(ROUTERS, 10)),
        ]
    }
}

/// All of it, with so many routes in the first router.
pub(super) fn measure(lab: &Lab, routes: usize) -> Result<Map<String, Value>> {
    lab.step(format!("making {ROUTERS} routers in a row, and two end hosts on a plain bridge"));
    let mut site = Site::create(lab)?;
    site.start()?;
    lab.step(format!("the first router gets {routes} routes"));
    let first = &site.routers[0];
    let table = Table::new(routes, true, 2, lab.seed());
    let line = |(addr, len, _): &(std::net::IpAddr, u8, usize)| {
        format!("route add {addr}/{len} via {} dev right proto 99\n", address(1, 10))
    };
    let mut writer = Writer::open(first.guest().netns())?;
    for chunk in table.routes.chunks(CHUNK) {
        writer.write(&chunk.iter().map(line).collect::<String>())?;
    }
    first.wait_told(LONG, |has| has >= routes as u64)?;
    let mut figures = Map::new();
    throughput(lab, &site, &mut figures)?;
    first_packets(lab, &site, &table, &mut figures)?;
    Ok(figures)
}

fn throughput(lab: &Lab, site: &Site, figures: &mut Map<String, Value>) -> Result<()> {
    type Measured = fn(&Lab, &EndHost, &EndHost, &str) -> Result<f64>;
    let tcp: Measured =
        |lab, from, to, address| Ok(iperf::tcp(lab, from.netns(), to.netns(), address, SECONDS)?.gbit_s);
    let small: Measured =
        |lab, from, to, address| iperf::small(lab, from.netns(), to.netns(), address, SECONDS);
    for (name, suffix, measured) in [("TCP", "", tcp), ("small packets", "_small", small)] {
        lab.step(format!("{name}, {ROUNDS} times by each way"));
        let mut ratios = [Vec::new(), Vec::new()];
        let mut all = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            let [plain, one, eight] = site.ways();
            let mut rate = |at: usize, (from, to, address): (&EndHost, &EndHost, String)| -> Result<f64> {
                let rate = measured(lab, from, to, &address)?;
                all[at].push(rate);
                Ok(rate)
            };
            let plain = rate(0, plain)?;
            ratios[0].push(rate(1, one)? / plain);
            ratios[1].push(rate(2, eight)? / plain);
        }
        for (hops, ratios) in ["1hop", "8hop"].into_iter().zip(&mut ratios) {
            figures.insert(format!("forward_ratio{suffix}_{hops}"), json!(round(median(ratios)?)));
        }
        let [plain, one, eight] = &mut all;
        let rates = json!([round(median(plain)?), round(median(one)?), round(median(eight)?)]);
        figures.insert(format!("forward_rates{suffix}"), rates);
    }
    Ok(())
}

/// Echo requests of which no flow is there, nor one for the reply.
fn first_packets(lab: &Lab, site: &Site, table: &Table, figures: &mut Map<String, Value>) -> Result<()> {
    lab.step(format!(
        "{FIRST} first packets by the pipeline, each to another route, and by the plain bridge"
    ));
    let targets = targets(table, &site.ends[1])?;
    let (mut ratios, mut ours, mut plains) = (Vec::new(), Vec::new(), Vec::new());
    for target in &targets {
        let plain = first(site.node.host(), &site.plain[0], PLAIN_ADDRESSES[1])?;
        let own = first(site.node.host(), &site.ends[0], target)?;
        ratios.push(own / plain);
        ours.push(own);
        plains.push(plain);
    }
    figures.insert("first_packet_ratio".to_owned(), json!(round(median(&mut ratios)?)));
    figures.insert("first_packet_ms".to_owned(), json!(round(median(&mut ours)?)));
    figures.insert("first_packet_plain_ms".to_owned(), json!(round(median(&mut plains)?)));
    Ok(())
}

/// [`FIRST`] routes from all over the table.
pub(super) fn sample(table: &Table) -> impl Iterator<Item = &(std::net::IpAddr, u8, usize)> {
    table.routes.iter().step_by((table.routes.len() / FIRST).max(1)).take(FIRST)
}

/// An address of each of them, which the end host has from now on.
pub(super) fn targets(table: &Table, of: &EndHost) -> Result<Vec<String>> {
    let targets: Vec<String> = sample(table).map(|(addr, ..)| inside(*addr)).collect();
    let addresses: String = targets.iter().map(|addr| format!("address add {addr}/32 dev lo\n")).collect();
    of.netns().ip_batch(&addresses)?;
    Ok(targets)
}

/// Milliseconds until the reply to an echo request of which the switch's datapath has no flow, nor one of the reply.
pub(super) fn first(host: &Host, from: &EndHost, target: &str) -> Result<f64> {
    host.flush_datapath()?;
    let ping = from.ping(target, 1, 10)?;
    ping.first_ms.with_context(|| format!("{target} does not answer"))
}

/// An address of a prefix: not its first.
fn inside(addr: std::net::IpAddr) -> String {
    match addr {
        std::net::IpAddr::V4(addr) => std::net::Ipv4Addr::from_bits(addr.to_bits() | 1).to_string(),
        std::net::IpAddr::V6(addr) => std::net::Ipv6Addr::from_bits(addr.to_bits() | 1).to_string(),
    }
}
