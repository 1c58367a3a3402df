//! One of two next hops of all routes dies, as routing daemons say it: the next-hop object that the routes use is another one. Beside
//! changes of one route in the same table.
//!
//! Twice: the kernel also tells each of the object's routes anew, unless `nexthop_compat_mode` is 0, as its documentation wants it where
//! nobody needs that.

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::table::Table;
use super::{CHUNK, LONG, SHORT, gateway, mac};
use crate::benches::{median, round};
use crate::one_router::OneRouter;
use crate::routes::Writer;
use crate::scenario::Lab;

/// The objects: one next hop each, and what all routes use.
const HOPS: [u32; 2] = [11, 12];
const GROUP: u32 = 30;
/// Times that one dies, and comes back.
const TIMES: usize = 10;
const COMPATIBLE: &str = "net.ipv4.nexthop_compat_mode";
/// The kernel tells so many routes anew in half a second.
const MOST_COMPATIBLE: usize = 20_000;

pub(super) fn measure(lab: &Lab, routes: usize, is_compatible: bool) -> Result<Map<String, Value>> {
    let routes = if is_compatible { routes.min(MOST_COMPATIBLE) } else { routes };
    let mode = u8::from(is_compatible).to_string();
    lab.step(format!("{routes} routes by one of two next hops each, of which one dies; {COMPATIBLE} {mode}"));
    let mut site = OneRouter::create(lab)?;
    site.node.configure_daemon("fib_aggregation = false")?;
    site.start(SHORT)?;
    let mut lines = String::new();
    for (at, id) in HOPS.into_iter().enumerate() {
        let via = gateway(at, true);
        lines.push_str(&format!("neigh add {via} lladdr {} dev lan2 nud permanent\n", mac(at, 0)));
        lines.push_str(&format!("nexthop add id {id} via {via} dev lan2\n"));
    }
    let [first, second] = HOPS;
    lines.push_str(&format!("nexthop add id {GROUP} group {first}/{second}\n"));
    site.guest().ip_batch(&lines)?;
    site.guest().sysctls(&[(COMPATIBLE, &mode)])?;
    let table = Table::new(routes, true, 2, lab.seed());
    let mut writer = Writer::open(site.guest())?;
    for chunk in table.routes.chunks(CHUNK) {
        let line = |(addr, len, _): &(std::net::IpAddr, u8, usize)| {
            format!("route add {addr}/{len} nhid {GROUP} proto 99\n")
        };
        writer.write(&chunk.iter().map(line).collect::<String>())?;
    }
    site.r1.wait_told(LONG, |has| has >= routes as u64)?;
    let mut watch = site.r1.watch()?;
    let mut died = Vec::new();
    for time in 0..2 * TIMES {
        let group = if time % 2 == 0 { first.to_string() } else { format!("{first}/{second}") };
        writer.write(&format!("nexthop replace id {GROUP} group {group}\n"))?;
        died.push(watch.acked(SHORT)?.took().context("a change of a snapshot")?.as_secs_f64() * 1000.0);
    }
    let mut changes = Vec::new();
    for (addr, len, _) in table.routes.iter().take(TIMES) {
        for to in [format!("via {} dev lan2", gateway(0, true)), format!("nhid {GROUP}")] {
            writer.write(&format!("route replace {addr}/{len} {to} proto 99\n"))?;
            changes
                .push(watch.acked(SHORT)?.took().context("a change of a snapshot")?.as_secs_f64() * 1000.0);
        }
    }
    let (died, change) = (median(&mut died)?, median(&mut changes)?);
    let figures = [("ms_p50", died), ("over_change", died / change)];
    let of = if is_compatible { "ecmp_compat" } else { "ecmp" };
    Ok(figures.into_iter().map(|(what, figure)| (format!("{of}_{what}"), round(figure).into())).collect())
}
