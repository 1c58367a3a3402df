//! A segment whose end hosts have no declared addresses: where they are is learned. One is on each host, and the roamer
//! on a beside e0, then on b beside e1.
//!
//! Frames reach each end host from each, and only the one they are for. The controls are an address that nobody has,
//! whose frames come to everybody, and a trunk that is cut.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::file::OPEN;
use super::{LIMIT, Site};
use crate::capture::{self, Capture};
use crate::endhost::{EndHost, NIC};
use crate::frame;
use crate::host::Vif;
use crate::node::{BRIDGE, Node};
use crate::process::wait_for;
use crate::scenario::Lab;
use crate::trunk::Trunk;

const ROAMER: usize = 3;
/// The hosts of all, by their numbers.
const BEFORE: [usize; 4] = [0, 1, 2, 0];
const AFTER: [usize; 4] = [0, 1, 2, 1];
/// Of an end host that there is not.
const NOBODY: usize = 9;
/// Packets from one to another.
const COUNT: u32 = 5;

/// The end hosts, in the order of their names.
pub(super) struct Open(Vec<EndHost>);

/// By host and end host the port that frames for it leave by.
type Places = Vec<BTreeMap<usize, u32>>;

impl Open {
    pub(super) fn build(nodes: &[Node]) -> Result<Self> {
        let mut all = Vec::new();
        for (number, (name, home)) in OPEN.into_iter().zip(BEFORE).enumerate() {
            let end = EndHost::create(name)?;
            nodes[home].plug(end.netns(), NIC, &vif(name, &mac(number)))?;
            end.configure(&format!("{}/24", address(number)), None)?;
            all.push(end);
        }
        Ok(Self(all))
    }

    /// Packets lost between any two, and how many there were.
    fn exchange(&self) -> Result<(u32, u32)> {
        let (mut lost, mut sent) = (0, 0);
        for (from, end) in self.0.iter().enumerate() {
            for to in (0..self.0.len()).filter(|to| *to != from) {
                let ping = end.ping(&address(to), COUNT, 5)?;
                (lost, sent) = (lost + ping.lost(), sent + ping.sent);
            }
        }
        Ok((lost, sent))
    }

    /// Until what the switches have learned is where everybody is.
    fn wait_places(&self, nodes: &[Node], homes: &[usize]) -> Result<()> {
        let wanted = nodes.iter().enumerate().map(|(at, node)| {
            let ports = OPEN.iter().zip(homes).enumerate();
            let port = |(number, (name, home)): (usize, (&&str, &usize))| {
                Ok((number, node.host().ofport(if *home == at { name } else { Trunk::PORT })?))
            };
            ports.map(port).collect()
        });
        let wanted: Places = wanted.collect::<Result<_>>()?;
        wait_for("all to be learned where they are", LIMIT, || {
            // They speak: what was learned of a port that has come or gone since is forgotten.
            self.exchange()?;
            let found: Places = nodes.iter().map(learned).collect::<Result<_>>()?;
            Ok((found == wanted).then_some(()))
        })?;
        // What the kernel does was decided before that, perhaps.
        nodes.iter().try_for_each(|node| node.host().appctl(&["revalidator/wait"]).map(drop))
    }
}

/// Figures of all.
pub(super) fn run(lab: &Lab, site: &Site) -> Result<Value> {
    let Site { nodes, open, trunk, .. } = site;
    lab.step("end hosts without declared addresses reach each other, by learning");
    open.wait_places(nodes, &BEFORE)?;
    let (mut lost, mut sent) = open.exchange()?;
    let (mut copies, flooded) = overheard(lab, &open.0, 0)?;

    lab.step("one of them moves from a to b");
    let [a, b, ..] = nodes.as_slice() else { anyhow::bail!("there are {} hosts", nodes.len()) };
    let roamer = OPEN[ROAMER];
    a.host().detach(BRIDGE, roamer)?;
    a.host().netns().ip(&["link", "set", roamer, "netns", b.host().netns().name()])?;
    b.host().quiet(roamer)?;
    b.host().attach(BRIDGE, &vif(roamer, &mac(ROAMER)))?;
    open.wait_places(nodes, &AFTER)?;
    let again = open.exchange()?;
    (lost, sent) = (lost + again.0, sent + again.1);
    copies += overheard(lab, &open.0, 1)?.0;

    lab.step("control: c is cut off");
    trunk.set_link(nodes[2].host(), false)?;
    let cut = open.0[2].ping(&address(ROAMER), COUNT, 5)?;
    trunk.set_link(nodes[2].host(), true)?;
    ensure!(lost == 0 && copies == 0, "{lost} of {sent} packets are lost, {copies} came to somebody else");
    ensure!(flooded > 0 && cut.lost() == COUNT, "a control finds nothing: {flooded} copies, {cut:?}");
    Ok(json!({
        "learned_sent": sent, "learned_lost": lost, "learned_copies": copies,
        "control_flooded_copies": flooded, "control_learned_lost": cut.lost(),
    }))
}

/// What an end host gets of packets from e2 to the roamer, and of those to nobody.
fn overheard(lab: &Lab, all: &[EndHost], bystander: usize) -> Result<(usize, usize)> {
    let from = &all[2];
    let [roamer, nobody] = [ROAMER, NOBODY].map(mac);
    from.netns().ip(&["neigh", "replace", &address(NOBODY), "lladdr", &nobody, "dev", NIC])?;
    // Not what the bystander says itself.
    let filter = format!("ether src {} and (ether dst {roamer} or ether dst {nobody})", mac(2));
    let capture = Capture::start(lab, all[bystander].netns(), NIC, &filter)?;
    let known = from.ping(&address(ROAMER), COUNT, 5)?;
    let unknown = from.ping(&address(NOBODY), COUNT, 5)?;
    ensure!(
        (known.lost(), unknown.lost()) == (0, COUNT),
        "e2 to the roamer and to nobody: {known:?}, {unknown:?}"
    );
    let frames = capture.stop()?;
    let [roamer, nobody] = [frame::mac(&roamer)?, frame::mac(&nobody)?];
    let of = |mac| capture::count(&frames, |view| view.dst() == Some(mac));
    Ok((of(roamer), of(nobody)))
}

/// What a switch has learned of the end hosts: by each the number of a port.
fn learned(node: &Node) -> Result<BTreeMap<usize, u32>> {
    let flows = node.host().ofctl(&["--no-stats", "--no-names", "dump-flows", BRIDGE, "table=6"])?;
    let port = |number: usize| {
        let destination = format!("dl_dst={} ", mac(number));
        let flow = flows.lines().find(|flow| flow.contains(&destination))?;
        let port =
            flow.split_once("set_field:").and_then(|(_, set)| set.split_once("->")).map(|(port, _)| port);
        let port = port.and_then(|port| u32::from_str_radix(port.strip_prefix("0x")?, 16).ok());
        Some(
            port.with_context(|| format!("a learned flow without a port: {flow}")).map(|port| (number, port)),
        )
    };
    (0..OPEN.len()).filter_map(port).collect()
}

fn vif<'a>(name: &'a str, mac: &'a str) -> Vif<'a> {
    Vif { port: name, iface_id: name, mac, vm_uuid: None }
}

fn address(number: usize) -> String {
    format!("10.8.0.{}", number + 10)
}

fn mac(number: usize) -> String {
    format!("02:48:00:00:02:{number:02x}")
}
