//! Many routers on one node: how long all their tables take into an empty switch, and what each costs the daemon.
//!
//! The guests are up when the daemon starts, as after a host's restart: it nudges them, and time is from its start to the last
//! acknowledgement. From ten routers to a thousand both are to grow in a line, so the steps between are compared.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::{LONG, resident, told};
use crate::benches::round;
use crate::cpu;
use crate::node::{BRIDGE, Node, Pki};
use crate::scenario::Lab;
use crate::virtual_router::{Link, Sessions, VirtualRouter};

/// Nodes with a tenth, a hundredth and all of them.
const STEPS: [usize; 3] = [100, 10, 1];
/// Routers whose vifs are asked for at a time.
const CHUNK: usize = 50;

/// See the module.
struct Site {
    // Dropped from top to bottom.
    routers: Vec<VirtualRouter>,
    node: Node,
    _pki: Pki,
}

impl Site {
    fn create(lab: &Lab, routers: usize, routes: usize) -> Result<Self> {
        let pki = Pki::create(lab)?;
        let mut node = Node::create(lab, "a", &pki)?;
        node.host().vsctl(&["add-br", BRIDGE])?;
        let mut all = Vec::new();
        for from in (1..=routers).step_by(CHUNK) {
            let mut configuration = String::new();
            for number in from..(from + CHUNK).min(routers + 1) {
                let _ = writeln!(configuration, "network add n{number}");
                let _ = writeln!(configuration, "segment add s{number} --network n{number} --vlan {number}");
                let router =
                    VirtualRouter::described(lab, &pki, (&format!("r{number}"), u16::try_from(number)?))?;
                let segment = format!("s{number}");
                configuration.push_str(&router.declaration(&format!("n{number}"), &links(&segment)));
                all.push((router, segment));
            }
            node.configure(&configuration)?;
            for (router, segment) in &all[from - 1..] {
                router.plug(&node, &links(segment))?;
                let routes: String = (0..routes)
                    .map(|at| format!("route add 10.{}.{}.0/24 via 10.0.0.2\n", 1 + at / 256, at % 256))
                    .collect();
                let neighbor = "neigh add 10.0.0.2 lladdr 02:aa:00:00:00:02 dev lan nud permanent\n";
                router.guest().netns().ip_batch(&(neighbor.to_owned() + &routes))?;
            }
            lab.step(format!("{} routers are plugged in", all.len()));
        }
        node.host_mut().start_vswitchd()?;
        Ok(Self { routers: all.into_iter().map(|(router, _)| router).collect(), node, _pki: pki })
    }
}

fn links(segment: &str) -> [Link<'_>; 1] {
    [Link { name: "lan", segment, address: "10.0.0.1/24" }]
}

/// Of so many routers with so many routes each.
pub(super) fn measure(lab: &Lab, routers: usize, routes: usize) -> Result<Map<String, Value>> {
    lab.step(format!("making {routers} routers with {routes} routes each"));
    let mut site = Site::create(lab, routers, routes)?;
    let mut lines: Vec<Sessions> = Vec::new();
    let mut steps = Vec::new();
    for count in STEPS.map(|part| routers / part) {
        lab.step(format!("{count} guests run, and the daemon starts"));
        for router in site.routers.iter_mut().take(count).skip(lines.len()) {
            router.start_client()?;
            lines.push(router.watch()?.sessions()?);
        }
        site.node.host().ofctl(&["-OOpenFlow14", "del-flows", BRIDGE])?;
        let switch = site.node.host_mut().vswitchd()?.id();
        let before = cpu::seconds(switch)?;
        let begun = Instant::now();
        site.node.spawn_daemon()?;
        let mut last = begun;
        for lines in &lines {
            last = last.max(told(lines, LONG)?);
        }
        let daemon = site.node.daemon()?.id();
        steps.push(Step {
            routers: count as f64,
            load: (last - begun).as_secs_f64(),
            daemon: cpu::seconds(daemon)?,
            switch: cpu::seconds(switch)? - before,
            bytes: resident(daemon)?,
        });
        site.node.kill_daemon()?;
    }
    let [few, some, all] = steps.as_slice() else { anyhow::bail!("there are three steps") };
    let mib = [few.bytes, some.bytes, all.bytes].map(|bytes| round(bytes / 1024.0 / 1024.0));
    let figures = json!({
        "routers": routers,
        "routers_routes": routes,
        "routers_load_s": [round(few.load), round(some.load), round(all.load)],
        "routers_dom0_cpu_s": [round(few.daemon), round(some.daemon), round(all.daemon)],
        "routers_vswitchd_cpu_s": [round(few.switch), round(some.switch), round(all.switch)],
        "routers_dom0_mib": mib,
        "routers_load_linearity": round(linearity(&steps, |step| step.load).context("no step")?),
        "routers_memory_linearity": round(linearity(&steps, |step| step.bytes).context("no step")?),
    });
    let Value::Object(figures) = figures else { unreachable!("it is one") };
    Ok(figures)
}

/// What was measured with so many routers.
struct Step {
    routers: f64,
    /// Seconds.
    load: f64,
    /// Seconds of a processor.
    daemon: f64,
    switch: f64,
    /// That the daemon has in memory.
    bytes: f64,
}

/// What one router more costs among many over what it costs among few; 1 is a line.
fn linearity(steps: &[Step], of: impl Fn(&Step) -> f64) -> Option<f64> {
    let [few, some, all] = steps else { return None };
    let slope = |from: &Step, to: &Step| (of(to) - of(from)) / (to.routers - from.routers);
    Some(slope(some, all) / slope(few, some))
}
