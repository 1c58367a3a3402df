//! What has arrived, read at the far end of the link ten times a second. It knows nothing of queues.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::load::Kind;
use crate::net::{Netns, device_received};

/// Between two looks.
pub const LOOK: Duration = Duration::from_millis(100);

/// Bytes and packets that each device had received by then.
#[derive(Debug, Clone)]
struct Sample {
    at: Instant,
    received: Vec<(u64, u64)>,
}

/// Looks until dropped.
#[derive(Debug)]
pub struct Witness {
    samples: Arc<Mutex<Vec<Sample>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Witness {
    /// Begins to look at devices of a namespace.
    pub fn start(ns: &Netns, devices: Vec<String>) -> Result<Self> {
        let (samples, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (kept, stop) = (Arc::clone(&samples), Arc::clone(&ends));
        // It tells of the namespace that it was opened in, whoever reads it.
        let file = ns.enter(|| Ok(File::open("/proc/thread-self/net/dev")?))?;
        let thread = std::thread::spawn(move || look(file, &devices, &kept, &stop));
        Ok(Self { samples, ends, thread: Some(thread) })
    }

    /// What each device received a second between two instants, in bit/s of frames. Waits until the second has been
    /// looked at.
    pub fn rates(&self, kind: Kind, from: Instant, to: Instant) -> Result<Vec<f64>> {
        ensure!(from < to, "nothing can be measured in no time");
        loop {
            {
                let samples = self.samples.lock().map_err(|_| anyhow!("the witness panicked"))?;
                if let Some(rates) = between(&samples, kind, from, to) {
                    return Ok(rates);
                }
            }
            let has_ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            ensure!(!has_ended, "the witness has ended");
            std::thread::sleep(LOOK / 4);
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn look(mut file: File, devices: &[String], kept: &Mutex<Vec<Sample>>, ends: &AtomicBool) -> Result<()> {
    let mut text = String::new();
    while !ends.load(Ordering::Relaxed) {
        text.clear();
        file.rewind()?;
        let at = Instant::now();
        file.read_to_string(&mut text)?;
        let received = devices
            .iter()
            .map(|device| device_received(&text, device).with_context(|| format!("there is no {device}")));
        let sample = Sample { at, received: received.collect::<Result<_>>()? };
        kept.lock().map_err(|_| anyhow!("a reader panicked"))?.push(sample);
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// By the first samples that are not before the instants, over the time that passed between these; none if they have
/// not come.
fn between(samples: &[Sample], kind: Kind, from: Instant, to: Instant) -> Option<Vec<f64>> {
    let at = |instant| samples.get(samples.partition_point(|sample| sample.at < instant));
    let (first, last) = (at(from)?, at(to)?);
    let seconds = last.at.duration_since(first.at).as_secs_f64();
    let rates = first.received.iter().zip(&last.received).map(|(before, after)| {
        kind.on_the_wire(after.0.saturating_sub(before.0), after.1.saturating_sub(before.1)) * 8.0 / seconds
    });
    (seconds > 0.0).then(|| rates.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_over_the_time_between_samples() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let sample = |ms, packets: u64| Sample { at: at(ms), received: vec![(1500 * packets, packets)] };
        let samples = [sample(0, 7), sample(110, 7), sample(1110, 1007), sample(1210, 1008)];
        let rates = |from, to| between(&samples, Kind::Udp, at(from), at(to));
        assert_eq!(rates(100, 1100), Some(vec![1514.0 * 8.0 * 1000.0]));
        assert_eq!(rates(100, 1300), None);
        assert_eq!(rates(20, 100), None);
    }
}
