//! What the forwarding plane promises, shown with packets on one topology (`plane/site.rs`), one file for each part:
//!
//! * `ecmp`: several next hops;
//! * `plane`: sizes, limits, the tagger, VRFs;
//! * `punt`: what the guest alone decides, and neighbors;
//! * `policing`: what a guest gets at most, and that no flood takes it from others. It measures rates.
//!
//! Arguments name the parts to run; without any, all of the scenario's run.

mod adjacency;
mod ecmp;
mod fail_safe;
mod limits;
mod mtu;
mod packet;
mod policing;
mod site;
mod tagger;
mod vrf;
mod wire;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use self::site::Site;
use crate::scenario::{Lab, Scenario};

/// The registry's entry.
pub(super) const ECMP: Scenario = Scenario {
    name: "ecmp",
    about: "several next hops: shares as the weights say, flows that stay where they are, none lost or overtaken",
    run: |lab| run(lab, &ECMP, ECMP_PARTS),
    targets: &[
        ("ecmp_share_error_max", "at most 0.05"),
        ("ecmp_moved", "0"),
        ("ecmp_not_rehomed", "0"),
        ("ecmp_lost", "0"),
        ("ecmp_reordered", "0"),
    ],
    ..BASE
};

/// The registry's entry.
pub(super) const PLANE: Scenario = Scenario {
    name: "plane",
    about: "the forwarding plane with packets: MTU, limits, tagger, VRF",
    run: |lab| run(lab, &PLANE, PLANE_PARTS),
    targets: &[
        ("mtu_wrong", "0"),
        ("mtu_transit_fitting", "0"),
        ("mtu_discovered", "yes"),
        ("mtu_tcp_gbit_s", "at least 0.2"),
        ("mtu_tcp_transit", "0"),
        ("limit_lost", "0"),
        ("limit_transit_when_raised", "0"),
        ("limit_unalarmed", "0"),
        ("tagger_leaked", "0"),
        ("tagger_miscounted", "0"),
        ("vrf", "yes"),
        ("vrf_lost", "0"),
        ("vrf_leaked", "0"),
        ("vrf_transit", "0"),
    ],
    ..BASE
};

/// The registry's entry.
pub(super) const PUNT: Scenario = Scenario {
    name: "punt",
    about: "what the guest alone decides, and neighbors that come, move and die: packets to the VM and back",
    run: |lab| run(lab, &PUNT, PUNT_PARTS),
    targets: &[
        ("fail_safe_lost", "0"),
        ("fail_safe_transit_while_fast", "0"),
        ("fail_safe_delivered_while_off", "0"),
        ("fail_safe_unnamed", "0"),
        ("glean_lost", "0"),
        // Those that the VM still has are overtaken when the host takes over.
        ("glean_reordered", "at most 100"),
        ("fresh_lost", "0"),
        ("fresh_transit", "0"),
        ("moved_announced_ms", "at most 2000"),
        ("moved_unannounced_ms", "at most 15000"),
        ("dead_unreachable_ms", "at most 20000"),
    ],
    ..BASE
};

/// The registry's entry.
pub(super) const POLICING: Scenario = Scenario {
    name: "policing",
    about: "floods against a router: its other packets, its neighbor's and everybody else's are not lost",
    run: |lab| run(lab, &POLICING, POLICING_PARTS),
    targets: &[
        ("police_hellos_lost", "0"),
        ("police_r2_lost", "0"),
        ("police_over_rate_max", "at most 1.2"),
        ("police_flood_lost_by_others", "0"),
    ],
    ..BASE
};

/// What they have in common.
const BASE: Scenario = Scenario {
    name: "",
    about: "",
    memory_mib: 1536,
    limit: Duration::from_secs(360),
    needs_product: true,
    in_suite: true,
    targets: &[],
    run: |_| bail!("no scenario"),
};

/// A part adds its figures.
type Part = (&'static str, fn(&Lab, &mut Site, &mut Map<String, Value>) -> Result<()>);

const ECMP_PARTS: &[Part] = &[("ecmp", |lab, site, figures| ecmp::run(lab, site, figures))];
const PLANE_PARTS: &[Part] = &[
    ("mtu", |lab, site, figures| mtu::run(lab, site, figures)),
    ("limits", |lab, site, figures| limits::run(lab, site, figures)),
    ("tagger", |lab, site, figures| tagger::run(lab, site, figures)),
    ("vrf", |lab, site, figures| vrf::run(lab, site, figures)),
];
const PUNT_PARTS: &[Part] =
    &[("fail-safe", |lab, site, figures| fail_safe::run(lab, site, figures)), ("adjacency", adjacency::run)];
const POLICING_PARTS: &[Part] = &[("policing", |lab, site, figures| policing::run(lab, site, figures))];

fn run(lab: &mut Lab, scenario: &Scenario, parts: &[Part]) -> Result<Value> {
    let wanted = lab.args().to_vec();
    for name in &wanted {
        ensure!(parts.iter().any(|(part, _)| part == name), "there is no part {name:?}");
    }
    let mut site = Site::build(lab)?;
    lab.ready()?;
    let mut figures = Map::new();
    let mut seconds = Map::new();
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            let start = Instant::now();
            part(lab, &mut site, &mut figures).context(*name)?;
            seconds.insert((*name).into(), json!((start.elapsed().as_secs_f64() * 10.0).round() / 10.0));
        }
    }
    figures.insert("seconds".into(), seconds.into());
    let missed: Vec<&str> = scenario
        .targets
        .iter()
        .filter(|(name, must)| figures.get(*name).is_some_and(|figure| !holds(figure, must)))
        .map(|(name, _)| *name)
        .collect();
    if !missed.is_empty() {
        bail!("{} missed: {}", missed.join(", "), Value::from(figures));
    }
    Ok(figures.into())
}

/// Whether a figure is what a target says: a number, or "at most" or "at least" one.
fn holds(figure: &Value, must: &str) -> bool {
    let number = |text: &str| text.parse::<f64>().ok();
    let Some(figure) = figure.as_f64() else { return figure.as_str() == Some(must) };
    if let Some(most) = must.strip_prefix("at most ").and_then(number) {
        figure <= most
    } else if let Some(least) = must.strip_prefix("at least ").and_then(number) {
        figure >= least
    } else {
        Some(figure) == number(must)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read() {
        for (figure, must, expected) in [
            (json!(0), "0", true),
            (json!(1), "0", false),
            (json!(0.05), "at most 0.05", true),
            (json!(0.06), "at most 0.05", false),
            (json!(1), "at least 1", true),
            (json!("yes"), "yes", true),
            (json!("no"), "yes", false),
        ] {
            assert_eq!(holds(&figure, must), expected, "{figure} {must}");
        }
        for (name, must) in [ECMP, PLANE, PUNT, POLICING].iter().flat_map(|scenario| scenario.targets) {
            let number = must.split(' ').next_back().unwrap_or_default();
            assert!(number.parse::<f64>().is_ok() || *must == "yes", "{name}: {must}");
        }
    }
}
