//! One TCP connection, as fast as it goes, while something happens: what it carries, and for how long nothing of it comes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use super::round;
use crate::bandwidth::load::{GREEDY, Kind, Sender};
use crate::endhost::NIC;
use crate::moving::site::{BY_ROUTE, Site};
use crate::net::{Netns, device_received};

const PORT: u16 = 7200;
/// Before what happens, and after it.
const AROUND: Duration = Duration::from_secs(1);
/// Between two looks at the receiver's counters.
const PERIOD: Duration = Duration::from_millis(10);

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bulk {
    gbit_s: f64,
    longest_stall_ms: f64,
}

impl Bulk {
    pub(super) fn figures(self) -> Value {
        json!({ "gbit_s": round(self.gbit_s), "longest_stall_ms": round(self.longest_stall_ms) })
    }
}

/// From h1 to h3, by one of the routes.
pub(super) fn during<T>(site: &Site, what: impl FnOnce() -> Result<T>) -> Result<(T, Bulk)> {
    let [from, to] = [0, 2].map(|at| site.h[at].netns());
    let address = format!("{BY_ROUTE}:{PORT}").parse()?;
    let sender = Sender::start(Kind::Tcp, from, to, address, 0)?;
    sender.want(GREEDY);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let seen = scope.spawn(|| look(to, &is_over));
        std::thread::sleep(AROUND);
        let done = what();
        std::thread::sleep(AROUND);
        is_over.store(true, Ordering::Relaxed);
        let seen = seen.join().map_err(|_| anyhow!("a thread panicked"))??;
        sender.check()?;
        Ok((done?, seen))
    })
}

fn look(at: &Netns, is_over: &AtomicBool) -> Result<Bulk> {
    at.enter(|| {
        let bytes = || {
            let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
            let (bytes, _) = device_received(&text, NIC).context("an end host has no interface")?;
            Ok::<_, anyhow::Error>(bytes)
        };
        let (begun, first) = (Instant::now(), bytes()?);
        let (mut last, mut came, mut stall) = (first, begun, Duration::ZERO);
        while !is_over.load(Ordering::Relaxed) {
            std::thread::sleep(PERIOD);
            let (now, at) = (bytes()?, Instant::now());
            if now > last {
                stall = stall.max(at - came);
                (last, came) = (now, at);
            }
        }
        stall = stall.max(came.elapsed());
        let gbit_s = (last - first) as f64 * 8e-9 / begun.elapsed().as_secs_f64();
        Ok(Bulk { gbit_s, longest_stall_ms: stall.as_secs_f64() * 1000.0 })
    })
}
