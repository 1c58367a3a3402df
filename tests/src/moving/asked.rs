//! Whether a router's neighbors have an answer whenever they ask for it: their kernels' own probes (RFC 4861, 7.3), to its MAC address,
//! over and over while it moves.
//!
//! A kernel gives a neighbor up that does not answer three of them, and keeps only some 200 KB of packets until a broadcast is answered.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::site::{Site, gateway};
use crate::endhost::NIC;
use crate::net::Netns;
use crate::process::output_with_input;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(100);

/// Has all end hosts ask for their gateways while something happens; the longest time for which one of them had no answer.
pub fn during<T>(site: &Site, what: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(site, &is_over));
        let done = what();
        is_over.store(true, Ordering::Relaxed);
        let silence = asking.join().map_err(|_| anyhow!("a thread panicked"))?;
        Ok((done?, silence?))
    })
}

fn ask(site: &Site, is_over: &AtomicBool) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    let mut answered: Vec<Instant> = site.h.iter().map(|_| Instant::now()).collect();
    while !is_over.load(Ordering::Relaxed) {
        for (at, (end, answered)) in site.h.iter().zip(&mut answered).enumerate() {
            let is_answered = look_and_ask(end.netns(), &gateway(at))?;
            longest = longest.max(answered.elapsed());
            if is_answered {
                *answered = Instant::now();
            }
        }
        std::thread::sleep(PAUSE);
    }
    Ok(longest)
}

/// Whether the last question was answered; asks again.
fn look_and_ask(ns: &Netns, of: &str) -> Result<bool> {
    let mut command: Command = ns.command("ip");
    let lines = format!("neigh show to {of} dev {NIC}\nneigh change {of} dev {NIC} nud probe\n");
    Ok(output_with_input(command.args(["-batch", "-"]), &lines)?.contains("REACHABLE"))
}
