//! `neighbors`: a router moves while OSPF and BGP run between it and a neighbor, and its guest is frozen for as long as their
//! timers stand: 10 s with timers of 10 and 40 s (BGP: 10 and 30), 2 s with 1 and 5. No adjacency may end.
//!
//! The control: OSPF with timers of 1 and 2 s does not stand a freeze of 4 s.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::endhost::NIC;
use crate::frr::Frr;
use crate::moving::site::{By, Site, address, gateway};
use crate::moving::vm::Pace;
use crate::process::wait_for;
use crate::scenario::{Lab, Scenario};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "neighbors",
    about: "OSPF and BGP stay up while a router moves, frozen for up to 10 s",
    memory_mib: 1024,
    limit: Duration::from_secs(400),
    needs_product: true,
    in_suite: false,
    targets: &[
        ("ospf_ended", "0"),
        ("bgp_ended", "0"),
        ("quick_ospf_ended", "0"),
        ("control_ended", "more than 0"),
    ],
    run,
};

/// The neighbor: h3, behind lan3.
const AT: usize = 2;
const LAN: &str = "lan3";
const LIMIT: Duration = Duration::from_secs(120);
const COPY_MS: u64 = 100;

/// A move, by OSPF's timers in seconds and for how long the guest is frozen.
struct Move {
    to: &'static str,
    hello_s: u32,
    dead_s: u32,
    freeze_ms: u64,
}

const SLOW: Move = Move { to: "b", hello_s: 10, dead_s: 40, freeze_ms: 10_000 };
const QUICK: Move = Move { to: "a", hello_s: 1, dead_s: 5, freeze_ms: 2000 };
const CONTROL: Move = Move { to: "b", hello_s: 1, dead_s: 2, freeze_ms: 4000 };

/// How often adjacencies have ended, as both ends have seen it together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ended {
    ospf: u64,
    bgp: u64,
}

/// r1 and h3.
struct Speakers<'a> {
    site: &'a Site,
    h3: &'a Frr,
}

fn run(lab: &mut Lab) -> Result<Value> {
    let mut site = Site::build(lab, By::Planned, Pace { copy_ms: COPY_MS, freeze_ms: 0 })?;
    lab.ready()?;
    let dir = lab.work().join("frr-h3");
    std::fs::create_dir_all(&dir)?;
    let mut h3 = Frr::new(lab, "h3", &dir);
    let (r1, far) = (gateway(AT), address(AT));
    site.r1.guest_mut().start_frr(&[("ospfd", &ospf(LAN, &r1)), ("bgpd", &bgp(65001, &r1, &far, 65003))])?;
    let theirs = [ospf(NIC, &far), bgp(65003, &far, &r1, 65001)];
    h3.start(site.h[AT].netns(), &[("ospfd", &theirs[0]), ("bgpd", &theirs[1])])?;

    let speakers = Speakers { site: &site, h3: &h3 };
    let slow = speakers.go(lab, &SLOW)?;
    let quick = speakers.go(lab, &QUICK)?;
    let control = speakers.go(lab, &CONTROL)?;
    let figures = json!({
        "ospf_ended": slow.ospf, "bgp_ended": slow.bgp + quick.bgp, "quick_ospf_ended": quick.ospf,
        "control_ended": control.ospf,
    });
    ensure!(control.ospf > 0, "the control finds nothing: {figures}");
    ensure!(slow.ospf + slow.bgp + quick.ospf + quick.bgp == 0, "an adjacency has ended: {figures}");
    Ok(figures)
}

impl Speakers<'_> {
    fn both(&self) -> [(&Frr, &str); 2] {
        [(self.site.r1.guest().frr(), LAN), (self.h3, NIC)]
    }

    /// Moves r1 once all is up with these timers.
    fn go(&self, lab: &Lab, at: &Move) -> Result<Ended> {
        let Move { to, hello_s, dead_s, freeze_ms } = *at;
        for (frr, interface) in self.both() {
            let (hello, dead) =
                (format!("ip ospf hello-interval {hello_s}"), format!("ip ospf dead-interval {dead_s}"));
            frr.vtysh(&["configure", &format!("interface {interface}"), &hello, &dead])?;
        }
        lab.step(format!("OSPF with timers of {hello_s} and {dead_s} s, and BGP, come up"));
        wait_for("OSPF and BGP to be up", LIMIT, || Ok(self.is_up()?.then_some(())))?;
        // Longer than what the former timers leave of an adjacency.
        std::thread::sleep(Duration::from_secs(dead_s.into()).min(Duration::from_secs(6)));
        wait_for("OSPF and BGP to be up", LIMIT, || Ok(self.is_up()?.then_some(())))?;
        let before = self.ended()?;
        lab.step(format!("r1 moves to {to}, frozen for {freeze_ms} ms"));
        self.site.vm.set_pace(Pace { copy_ms: COPY_MS, freeze_ms })?;
        let row = self.site.migrate(to)?;
        let frozen = self.site.vm.moved(row.number)?.frozen();
        ensure!(frozen >= Duration::from_millis(freeze_ms), "r1 was frozen for {frozen:?} only");
        // Whatever has run out meanwhile has been seen by then.
        std::thread::sleep(Duration::from_secs(1));
        let after = self.ended()?;
        Ok(Ended { ospf: after.ospf - before.ospf, bgp: after.bgp - before.bgp })
    }

    fn is_up(&self) -> Result<bool> {
        for (frr, _) in self.both() {
            if !frr.vtysh(&["show ip ospf neighbor"])?.contains("Full/") {
                return Ok(false);
            }
            let peers = frr.json("show bgp summary json")?;
            let mut states = peers["ipv4Unicast"]["peers"].as_object().into_iter().flat_map(|it| it.values());
            if !states.any(|peer| peer["state"] == "Established") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn ended(&self) -> Result<Ended> {
        let mut ended = Ended { ospf: 0, bgp: 0 };
        for (frr, _) in self.both() {
            let log = std::fs::read_to_string(frr.log("ospfd"))?;
            let is_end = |line: &&str| line.contains("AdjChg") && line.contains("Full -> ");
            ended.ospf += u64::try_from(log.lines().filter(is_end).count())?;
            let peers = frr.json("show bgp neighbors json")?;
            let peers = peers.as_object().context("BGP has no neighbors")?;
            ended.bgp += peers.values().filter_map(|peer| peer["connectionsDropped"].as_u64()).sum::<u64>();
        }
        Ok(ended)
    }
}

/// On one interface, with the address as the router's number.
fn ospf(interface: &str, address: &str) -> String {
    format!(
        "interface {interface}\n ip ospf network point-to-point\n\
         router ospf\n ospf router-id {address}\n log-adjacency-changes\n network 10.3.0.0/24 area 0\n"
    )
}

fn bgp(own: u32, address: &str, peer: &str, peers: u32) -> String {
    format!(
        "router bgp {own}\n bgp router-id {address}\n no bgp ebgp-requires-policy\n timers bgp 10 30\n \
         neighbor {peer} remote-as {peers}\n"
    )
}
