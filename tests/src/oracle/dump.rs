//! A second opinion: routes as the kernel lists them, looked up here. Longest prefix, lowest metric, no dead next hops;
//! the rules that every kernel begins with and that of VRFs.
//!
//! Says which table decides, which a refusal does not tell, and answers for IPv6 routes with next-hop objects, where a
//! FIB match misleads (see [`super::kernel`]). Trusted only as far as it agrees with the kernel wherever that can be
//! asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::Value;

use super::kernel::{Answer, Forward, KernelHop, Refusal};
use super::plan::TABLE_MAIN;
use super::{Family, Prefix, bits};
use crate::net::Netns;

const TABLE_LOCAL: u32 = 255;
const TABLE_DEFAULT: u32 = 253;

/// What the listed routes say of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opinion {
    /// What becomes of it.
    pub answer: Answer,
    /// The table that decides; none: no table knows the destination.
    pub table: Option<u32>,
    /// Several IPv6 routes have the prefix and the metric, and the kernel prefers that through the interface by which
    /// the packet came (`rt6_score_route` in `find_rr_leaf`, of what `ip6_pol_route_input` passes on). The answer is
    /// the first, and the kernel's choice for the very packet counts.
    pub is_by_interface: bool,
}

/// The routes of a kernel.
#[derive(Debug, Default)]
pub struct Dump {
    tables: BTreeMap<(Family, u32), Table>,
    /// Prefixes with a route for a TOS, by table.
    pub tos: Vec<(u32, Prefix)>,
}

#[derive(Debug, Default)]
struct Table {
    routes: BTreeMap<Prefix, Vec<Entry>>,
    lengths: BTreeSet<u8>,
}

#[derive(Debug)]
struct Entry {
    metric: u64,
    /// None: the lookup goes on in the next table.
    answer: Option<Answer>,
}

impl Dump {
    /// Lists the routes of a namespace; `indices` are its interfaces.
    pub fn read(ns: &Netns, indices: &BTreeMap<String, u32>) -> Result<Self> {
        let mut dump = Self::default();
        for family in Family::ALL {
            let text = ns.ip(&["-j", family.option(), "route", "show", "table", "all"])?;
            // `ip` writes an encapsulation's label beside the route's destination, under the same name.
            let text = text.replace(r#""encap":"mpls","dst":"#, r#""encap":"mpls","label":"#);
            let routes: Vec<Value> = serde_json::from_str(&text).context("what ip lists is no JSON")?;
            for route in &routes {
                dump.add(family, route, indices).with_context(|| format!("the route {route}"))?;
            }
        }
        for table in dump.tables.values_mut() {
            table.lengths = table.routes.keys().map(|prefix| prefix.len).collect();
            for entries in table.routes.values_mut() {
                // Stable: of routes with one metric, the first that the kernel lists counts.
                entries.sort_by_key(|entry| entry.metric);
            }
        }
        Ok(dump)
    }

    fn add(&mut self, family: Family, route: &Value, indices: &BTreeMap<String, u32>) -> Result<()> {
        let text = |key: &str| route.get(key).and_then(Value::as_str);
        let table = match text("table") {
            None | Some("main") => TABLE_MAIN,
            Some("local") => TABLE_LOCAL,
            Some("default") => TABLE_DEFAULT,
            Some(number) => number.parse().context("the table")?,
        };
        let prefix = match text("dst").context("no destination")? {
            "default" => Prefix::new(family, 0, 0),
            prefix => Prefix::parse(prefix).context("the destination")?,
        };
        if route.get("tos").is_some() {
            self.tos.push((table, prefix));
            return Ok(());
        }
        let answer = match text("type") {
            None | Some("unicast") => Some(Answer::Forward(forward(route, table, prefix, indices)?)),
            Some("blackhole") => Some(Answer::Blackhole),
            Some("unreachable") => Some(Answer::Refuse(Refusal::Unreachable)),
            Some("prohibit") => Some(Answer::Refuse(Refusal::Prohibit)),
            Some("throw") => None,
            Some(_) => Some(Answer::Local),
        };
        let metric = route.get("metric").and_then(Value::as_u64).unwrap_or(0);
        let table = self.tables.entry((family, table)).or_default();
        table.routes.entry(prefix).or_default().push(Entry { metric, answer });
        Ok(())
    }

    /// What becomes of a packet that is looked up in `own`, its link's table.
    pub fn look_up(&self, own: u32, dst: IpAddr) -> Opinion {
        let family = Family::of(dst);
        let mut order = vec![TABLE_LOCAL, own];
        order.extend([TABLE_MAIN, TABLE_DEFAULT].into_iter().filter(|table| *table != own));
        for table in order {
            let found = self.tables.get(&(family, table)).and_then(|table| table.look_up(dst));
            let answer = match found {
                Some((Some(answer), _)) => answer.clone(),
                // Thrown on, unless the interface decides otherwise.
                Some((None, true)) => Answer::Refuse(Refusal::NoRoute),
                Some((None, false)) | None => continue,
            };
            let is_by_interface = found.is_some_and(|(_, several)| several);
            return Opinion { answer, table: Some(table), is_by_interface };
        }
        Opinion { answer: Answer::Refuse(Refusal::NoRoute), table: None, is_by_interface: false }
    }

    /// How many routes a table has.
    pub fn len(&self, family: Family, table: u32) -> usize {
        self.tables.get(&(family, table)).map_or(0, |table| table.routes.values().map(Vec::len).sum())
    }
}

impl Table {
    /// The best route, and whether there are several; within, none: a throw.
    fn look_up(&self, dst: IpAddr) -> Option<(&Option<Answer>, bool)> {
        let family = Family::of(dst);
        self.lengths.iter().rev().find_map(|len| {
            let entries = self.routes.get(&Prefix::new(family, bits(dst), *len))?;
            let mut alive = entries.iter().filter(|entry| !entry.is_dead());
            let first = alive.next()?;
            let are_several = family == Family::V6 && alive.any(|entry| entry.metric == first.metric);
            Some((&first.answer, are_several))
        })
    }
}

impl Entry {
    fn hops(&self) -> &[KernelHop] {
        match &self.answer {
            Some(Answer::Forward(forward)) => &forward.hops,
            Some(Answer::Local | Answer::Blackhole | Answer::Refuse(_)) | None => &[],
        }
    }

    fn is_dead(&self) -> bool {
        !self.hops().is_empty() && self.hops().iter().all(|hop| hop.is_dead)
    }
}

fn forward(route: &Value, table: u32, prefix: Prefix, indices: &BTreeMap<String, u32>) -> Result<Forward> {
    let hops = match route.get("nexthops").and_then(Value::as_array) {
        Some(hops) => hops.iter().map(|it| hop(it, indices)).collect::<Result<Vec<_>>>()?,
        None => vec![hop(route, indices)?],
    };
    let mtu = route.get("metrics").and_then(|metrics| metrics.get(0)?.get("mtu")?.as_u64());
    let id = route.get("nhid").and_then(Value::as_u64);
    let mut forward = Forward {
        prefix_len: prefix.len,
        table,
        hops,
        mtu: mtu.map(u32::try_from).transpose()?,
        next_hop_id: id.map(u32::try_from).transpose()?,
    };
    forward.hops.sort();
    Ok(forward)
}

fn hop(of: &Value, indices: &BTreeMap<String, u32>) -> Result<KernelHop> {
    let gateway = of.get("gateway").or_else(|| of.get("via")?.get("host")).and_then(Value::as_str);
    let device = of.get("dev").and_then(Value::as_str).context("no device")?;
    let flags = of.get("flags").and_then(Value::as_array);
    Ok(KernelHop {
        oif: Some(*indices.get(device).with_context(|| format!("no device {device}"))?),
        gateway: gateway.map(str::parse).transpose()?,
        is_dead: flags.is_some_and(|flags| flags.iter().any(|flag| flag == "dead")),
        is_encap: of.get("encap").is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump(family: Family, routes: &[&str]) -> Dump {
        let mut dump = Dump::default();
        let indices = BTreeMap::from([("if0".to_owned(), 2), ("if1".to_owned(), 3)]);
        for text in routes {
            let route: Value = serde_json::from_str(text).unwrap();
            dump.add(family, &route, &indices).unwrap();
        }
        for table in dump.tables.values_mut() {
            table.lengths = table.routes.keys().map(|prefix| prefix.len).collect();
            table.routes.values_mut().for_each(|entries| entries.sort_by_key(|entry| entry.metric));
        }
        dump
    }

    fn hops(opinion: &Opinion) -> Vec<u32> {
        let Answer::Forward(forward) = &opinion.answer else { panic!("{opinion:?}") };
        forward.hops.iter().filter(|hop| !hop.is_dead).filter_map(|hop| hop.oif).collect()
    }

    // Lines of `ip -j -4 route show table all`.
    const ROUTES: [&str; 7] = [
        r#"{"dst":"default","gateway":"10.0.0.1","dev":"if0","flags":[]}"#,
        r#"{"dst":"20.0.0.0/8","gateway":"10.0.0.2","dev":"if1","metric":20,"flags":[]}"#,
        r#"{"dst":"20.0.0.0/8","gateway":"10.0.0.2","dev":"if0","metric":10,"flags":["dead","linkdown"]}"#,
        r#"{"dst":"20.1.0.0/16","flags":[],"nexthops":[{"gateway":"10.0.0.3","dev":"if0","weight":1,"flags":["dead"]},{"via":{"family":"inet6","host":"fe80::1"},"dev":"if1","weight":2,"flags":[]}]}"#,
        r#"{"type":"throw","dst":"20.1.0.0/16","table":"10","flags":[]}"#,
        r#"{"type":"blackhole","dst":"20.0.0.0/8","table":"10","flags":[]}"#,
        r#"{"type":"local","dst":"10.0.0.9","dev":"if0","table":"local","scope":"host","flags":[]}"#,
    ];

    #[test]
    fn the_kernels_order_decides() {
        let dump = dump(Family::V4, &ROUTES);
        let look_up = |table, dst: &str| dump.look_up(table, dst.parse().unwrap());
        assert_eq!(hops(&look_up(254, "9.0.0.1")), [2]);
        // The lower metric is dead.
        assert_eq!(hops(&look_up(254, "20.0.0.1")), [3]);
        assert_eq!(hops(&look_up(254, "20.1.0.1")), [3]);
        assert_eq!(
            look_up(254, "10.0.0.9"),
            Opinion { answer: Answer::Local, table: Some(255), is_by_interface: false }
        );
        let blackhole = Opinion { answer: Answer::Blackhole, table: Some(10), is_by_interface: false };
        assert_eq!(look_up(10, "20.0.0.1"), blackhole);
        // Thrown out of the VRF, and unknown to it.
        assert_eq!(look_up(10, "20.1.0.1").table, Some(254));
        assert_eq!(look_up(10, "9.0.0.1").table, Some(254));
    }

    #[test]
    fn of_one_metric_ipv6_may_take_any() {
        let routes = [
            r#"{"dst":"2600::/16","gateway":"fe80::1","dev":"if0","metric":1024,"flags":[]}"#,
            r#"{"dst":"2600::/16","dev":"if1","metric":1024,"flags":[]}"#,
            r#"{"dst":"2601::/16","gateway":"fe80::1","dev":"if0","metric":1024,"flags":[]}"#,
            r#"{"dst":"2601::/16","gateway":"fe80::3","dev":"if1","metric":2000,"flags":[]}"#,
        ];
        let dump = dump(Family::V6, &routes);
        let is_by_interface = |dst: &str| dump.look_up(254, dst.parse().unwrap()).is_by_interface;
        assert!(is_by_interface("2600::9") && !is_by_interface("2601::9"));
    }
}
