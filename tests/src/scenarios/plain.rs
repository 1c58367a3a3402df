//! `plain`: two hosts, Open vSwitch as everybody has it (`NORMAL` switching, `tag=`), no XenFlow at all.
//!
//! It proves the lab, and gives the figures the product is compared with. Two networks use the same addresses on
//! one trunk; routers of FRR find each other through it; a probe counts nothing lost, and then, with the wire cut,
//! something: a probe that cannot lose would prove nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::capture::{self, Capture};
use crate::endhost::{EndHost, NIC};
use crate::frame;
use crate::guest::Guest;
use crate::host::Host;
use crate::inject;
use crate::iperf;
use crate::probe::{self, Probe};
use crate::scenario::{Lab, Scenario};
use crate::trunk::{Trunk, TrunkKind};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "plain",
    about: "two hosts with Open vSwitch in plain NORMAL switching: ping, TCP, OSPF, a probe, a cut wire",
    memory_mib: 1024,
    limit: Duration::from_secs(300),
    needs_product: false,
    in_suite: true,
    targets: &[],
    run,
};

const BRIDGE: &str = "br0";
/// Name and tag of each network.
const NETWORKS: [(&str, u16); 2] = [("red", 10), ("blue", 20)];
const PROBE_TIME: Duration = Duration::from_secs(2);

struct Topology {
    trunk: Trunk,
    ends: Vec<[EndHost; 2]>,
    routers: [Guest; 2],
    hosts: [Host; 2],
}

fn build(lab: &Lab, kind: TrunkKind) -> Result<Topology> {
    lab.step("making hosts A and B");
    let mut hosts = [Host::create(lab, "A")?, Host::create(lab, "B")?];
    let trunk = Trunk::connect(kind, &[&hosts[0], &hosts[1]])?;
    for host in &hosts {
        host.vsctl(&["add-br", BRIDGE])?;
        host.add_port(BRIDGE, Trunk::PORT, &["trunks=10,20,30"])?;
    }
    let mut ends = Vec::new();
    for (name, tag) in NETWORKS {
        let pair = [EndHost::create(&format!("{name}1"))?, EndHost::create(&format!("{name}2"))?];
        for ((end, host), number) in pair.iter().zip(&hosts).zip(1..) {
            let mac = format!("02:00:00:00:{tag:02}:{number:02}");
            host.plug(name, end.netns(), NIC, &mac)?;
            host.add_port(BRIDGE, name, &[&format!("tag={tag}")])?;
            end.configure(&format!("10.0.0.{number}/24"), None)?;
        }
        ends.push(pair);
    }
    lab.step("starting routers r1 and r2");
    let mut routers = [Guest::create(lab, "r1")?, Guest::create(lab, "r2")?];
    for ((router, host), number) in routers.iter_mut().zip(&hosts).zip(1..) {
        host.plug("router", router.netns(), "core", &format!("02:00:00:00:30:{number:02}"))?;
        host.add_port(BRIDGE, "router", &["tag=30"])?;
        router.netns().configure("core", &[&format!("10.9.0.{number}/24")])?;
        router.netns().ip(&["link", "add", "stub", "type", "dummy"])?;
        router.netns().configure("stub", &[&format!("10.9.{number}.1/24")])?;
        let ospf = format!(
            "interface core\n ip ospf network point-to-point\n ip ospf hello-interval 1\n ip ospf dead-interval 20\n\
             router ospf\n ospf router-id 10.9.0.{number}\n network 10.9.0.0/16 area 0\n"
        );
        router.start_frr(&[("ospfd", &ospf)])?;
    }
    lab.step("starting the switches");
    for host in &mut hosts {
        host.start_vswitchd()?;
    }
    Ok(Topology { trunk, ends, routers, hosts })
}

fn run(lab: &mut Lab) -> Result<Value> {
    let kind = match lab.args() {
        [] => TrunkKind::Bridge,
        [word] if word == "direct" => TrunkKind::Direct,
        other => anyhow::bail!("plain takes the argument `direct` or none, not {other:?}"),
    };
    let topology = build(lab, kind)?;
    lab.ready()?;

    lab.step("ping in both networks");
    let mut pings = Vec::new();
    for ([one, _], (name, _)) in topology.ends.iter().zip(NETWORKS) {
        one.wait_reachable("10.0.0.2", Duration::from_secs(10))?;
        for host in &topology.hosts {
            host.flush_datapath()?;
        }
        let ping = one.ping("10.0.0.2", 200, 5)?;
        ensure!(ping.lost() == 0 && ping.sent == 200, "ping in {name}: {ping:?}");
        pings.push(json!({ "network": name, "ping": ping }));
    }
    let leaked = isolation(lab, &topology)?;

    lab.step("TCP through both switches");
    let [red, _] = topology.ends.as_slice() else { anyhow::bail!("there are not two networks") };
    let tcp = iperf::tcp(lab, red[0].netns(), red[1].netns(), "10.0.0.2", 3)?;
    ensure!(tcp.gbit_s > 0.1, "TCP made only {} Gbit/s", tcp.gbit_s);

    lab.step("waiting for OSPF");
    let [r1, r2] = &topology.routers;
    r1.wait_ospf_full(1, Duration::from_secs(40))?;
    r2.wait_ospf_full(1, Duration::from_secs(40))?;
    let route = r1.wait_route("10.9.2.0/24", Duration::from_secs(20))?;
    ensure!(route.contains("via 10.9.0.2"), "r1 learned {route:?}");

    lab.step("probe, 1000 packets/s");
    let to = "10.0.0.2:7000".parse()?;
    let probe = Probe::start(lab, red[0].netns(), red[1].netns(), to, 1000)?;
    let steady = probe.run_for(PROBE_TIME)?;
    ensure!(steady.lost == 0 && steady.duplicated == 0 && steady.foreign == 0, "the probe found {steady:?}");
    ensure!(steady.sent >= 1650, "the probe sent only {} packets in {:?}", steady.sent, PROBE_TIME);

    lab.step("the same with the wire cut for half a second");
    let probe = Probe::start(lab, red[0].netns(), red[1].netns(), to, 1000)?;
    topology.trunk.set_link(&topology.hosts[1], false)?;
    std::thread::sleep(Duration::from_millis(500));
    topology.trunk.set_link(&topology.hosts[1], true)?;
    let cut = probe.run_for(PROBE_TIME)?;
    ensure!(cut.lost > 0, "the wire was cut and the probe lost nothing: {cut:?}");
    ensure!(cut.received > 1000, "the wire came back and the probe did not: {cut:?}");

    Ok(json!({
        "trunk": format!("{kind:?}").to_lowercase(),
        "pings": pings,
        "leaked": leaked,
        "tcp": tcp,
        "probe": steady,
        "probe_cut": cut,
    }))
}

/// Frames injected in red must be seen in red (the control) and nowhere in blue.
fn isolation(lab: &Lab, topology: &Topology) -> Result<usize> {
    const FRAMES: u32 = 200;
    lab.step("captures while red injects marked frames");
    let [red, blue] = topology.ends.as_slice() else { anyhow::bail!("there are not two networks") };
    let mark = b"marked by red";
    let packet = frame::udp4(("10.0.0.1".parse()?, 1), ("10.0.0.255".parse()?, 9), 64, mark)?;
    let (everyone, source) = ([0xff; 6], frame::mac("02:00:00:00:10:01")?);
    let frames = [
        frame::ethernet(everyone, source, &[], frame::IPV4, &packet),
        // An access port takes no tag: Open vSwitch must drop this one.
        frame::ethernet(everyone, source, &[20], frame::IPV4, &packet),
    ];
    let in_red = Capture::start(lab, red[1].netns(), NIC, "")?;
    let in_blue = Capture::start(lab, blue[1].netns(), NIC, "")?;
    inject::inject(lab, red[0].netns(), NIC, &frames, FRAMES, 1000)?;
    // Whatever was on its way has come before this has gone there and back.
    let ping = red[0].ping("10.0.0.2", 1, 10)?;
    ensure!(ping.lost() == 0, "no ping after the frames");
    let (in_red, in_blue) = (in_red.stop()?, in_blue.stop()?);
    let seen = capture::count(&in_red, |view| view.contains(mark));
    let leaked = capture::count(&in_blue, |view| view.contains(mark) || view.contains(&probe::MAGIC));
    ensure!(seen == FRAMES as usize / 2, "red saw {seen} of its {} untagged frames", FRAMES / 2);
    ensure!(leaked == 0, "{leaked} frames of red in blue");
    Ok(leaked)
}
