//! Half of a table withdrawn and announced again, beside the switch alone; and what one other change takes meanwhile, from the
//! kernel's word until the switch has it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Map, Value, json};

use super::switch::Alone;
use super::{CHUNK, LONG, SHORT};
use crate::benches::{percentile, round};
use crate::fpm::FlowMonitor;
use crate::node::BRIDGE;
use crate::one_router::OneRouter;
use crate::routes::Writer;
use crate::scenario::Lab;

/// The route that changes meanwhile. No table has it: it is for tests (RFC 5737).
const OTHER: &str = "198.51.100.7/32";
/// Between two changes of it.
const PAUSE: Duration = Duration::from_millis(20);
const LOOK: Duration = Duration::from_millis(1);

/// Half of `lines`' routes go and come back: `route add …` as they were written, of which there are so many. `gateways` are two by
/// which the other route goes.
pub(super) fn measure(
    lab: &Lab,
    site: &OneRouter,
    alone: &Alone,
    lines: &[String],
    gateways: [String; 2],
) -> Result<Map<String, Value>> {
    lab.step("half of the routes are withdrawn, and announced again");
    let told = |routes: u64| site.r1.wait_told(LONG, |has| has == routes);
    let mut writer = Writer::open(site.guest())?;
    let all = site.r1.client_state()?.routes;
    let half: Vec<&str> = lines.iter().step_by(2).map(String::as_str).collect();
    let gone = u64::try_from(half.len())?;
    let begun = Instant::now();
    for chunk in half.chunks(CHUNK) {
        writer.write(&chunk.concat().replace("route add", "route del"))?;
    }
    told(all - gone)?;
    let withdraw = begun.elapsed().as_secs_f64();

    let (host, is_over) = (site.node.host(), AtomicBool::new(false));
    let replace = |at: usize| format!("route replace {OTHER} via {} dev lan2 proto 99\n", gateways[at % 2]);
    writer.write(&replace(0))?;
    told(all - gone + 1)?;
    let monitor = FlowMonitor::start_at(lab, host, BRIDGE, &format!("ip,nw_dst={OTHER}"))?;
    let (announce, mut others) = std::thread::scope(|scope| {
        let changing = scope.spawn(|| -> Result<Vec<f64>> {
            let mut writer = Writer::open(site.guest())?;
            let mut times = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let before = monitor.events();
                let begun = Instant::now();
                writer.write(&replace(times.len() + 1))?;
                while monitor.events() == before {
                    ensure!(begun.elapsed() < SHORT, "the switch has not got a change within {SHORT:?}");
                    std::thread::sleep(LOOK);
                }
                times.push(begun.elapsed().as_secs_f64() * 1000.0);
                std::thread::sleep(PAUSE);
            }
            Ok(times)
        });
        let begun = Instant::now();
        let announced = half
            .chunks(CHUNK)
            .try_for_each(|chunk| writer.write(&chunk.concat()))
            .and_then(|()| told(all + 1));
        let announce = begun.elapsed().as_secs_f64();
        is_over.store(true, Ordering::Relaxed);
        let others = changing.join().map_err(|_| anyhow!("a thread panicked"))??;
        announced.map(|()| (announce, others))
    })?;
    others.sort_by(f64::total_cmp);
    let of = |percent| percentile(&others, percent).context("no change meanwhile");
    let (p50, p99) = (of(50)?, of(99)?);
    let [alone_withdraw, alone_announce] = alone.halves(host)?.map(|took| took.as_secs_f64());
    let figures = json!({
        "withdraw_half_s": round(withdraw),
        "withdraw_half_over_ofctl": round(withdraw / alone_withdraw),
        "announce_half_s": round(announce),
        "announce_half_over_ofctl": round(announce / alone_announce),
        "change_in_load_ms_p50": round(p50),
        "change_in_load_ms_p99": round(p99),
        "changes_in_load": others.len(),
    });
    let Value::Object(figures) = figures else { unreachable!("it is one") };
    Ok(figures)
}
