//! What has arrived, read at the far end of the link ten times a second, and what was sent. It knows nothing of queues.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::load::Kind;
use crate::net::{Netns, device_received};

/// Between two looks.
pub const LOOK: Duration = Duration::from_millis(100);

/// Bytes and packets that each device had received by then, and bytes that each sender had sent.
#[derive(Debug, Clone)]
struct Sample {
    at: Instant,
    received: Vec<(u64, u64)>,
    sent: Vec<u64>,
}

/// Counters of senders.
type Counters = Arc<Mutex<Vec<Arc<AtomicU64>>>>;

/// Looks until dropped.
#[derive(Debug)]
pub struct Witness {
    samples: Arc<Mutex<Vec<Sample>>>,
    senders: Counters,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Witness {
    /// Begins to look at devices of a namespace.
    pub fn start(ns: &Netns, devices: Vec<String>) -> Result<Self> {
        let (samples, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let senders = Counters::default();
        let (kept, stop, counters) = (Arc::clone(&samples), Arc::clone(&ends), Arc::clone(&senders));
        // It tells of the namespace that it was opened in, whoever reads it.
        let file = ns.enter(|| Ok(File::open("/proc/thread-self/net/dev")?))?;
        let thread = std::thread::spawn(move || look(file, &devices, &counters, &kept, &stop));
        Ok(Self { samples, senders, ends, thread: Some(thread) })
    }

    /// From now on, looks also at what these have sent, instead of others.
    pub fn follow(&self, counters: Vec<Arc<AtomicU64>>) -> Result<()> {
        *self.senders.lock().map_err(|_| anyhow!("the witness panicked"))? = counters;
        Ok(())
    }

    /// What each device received a second between two instants, in bit/s of frames. Waits until the second has been
    /// looked at.
    pub fn rates(&self, kind: Kind, from: Instant, to: Instant) -> Result<Vec<f64>> {
        self.when_seen(from, to, |first, last, seconds| {
            let rates = first.received.iter().zip(&last.received).map(|(before, after)| {
                let (bytes, packets) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
                kind.on_the_wire(bytes, packets) * 8.0 / seconds
            });
            rates.collect()
        })
    }

    /// What each sender that is followed sent in the same time, in bit/s of frames.
    pub fn sent(&self, from: Instant, to: Instant) -> Result<Vec<f64>> {
        self.when_seen(from, to, |first, last, seconds| {
            let sent = first.sent.iter().zip(&last.sent);
            sent.map(|(before, after)| after.saturating_sub(*before) as f64 * 8.0 / seconds).collect()
        })
    }

    fn when_seen(
        &self,
        from: Instant,
        to: Instant,
        rates: impl Fn(&Sample, &Sample, f64) -> Vec<f64>,
    ) -> Result<Vec<f64>> {
        ensure!(from < to, "nothing can be measured in no time");
        loop {
            {
                let samples = self.samples.lock().map_err(|_| anyhow!("the witness panicked"))?;
                if let Some((first, last, seconds)) = between(&samples, from, to) {
                    return Ok(rates(first, last, seconds));
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

fn look(
    mut file: File,
    devices: &[String],
    senders: &Counters,
    kept: &Mutex<Vec<Sample>>,
    ends: &AtomicBool,
) -> Result<()> {
    let mut text = String::new();
    while !ends.load(Ordering::Relaxed) {
        text.clear();
        file.rewind()?;
        let at = Instant::now();
        file.read_to_string(&mut text)?;
        let received = devices
            .iter()
            .map(|device| device_received(&text, device).with_context(|| format!("there is no {device}")));
        let received = received.collect::<Result<_>>()?;
        let senders = senders.lock().map_err(|_| anyhow!("a reader panicked"))?;
        let sent = senders.iter().map(|sent| sent.load(Ordering::Relaxed)).collect();
        drop(senders);
        let sample = Sample { at, received, sent };
        kept.lock().map_err(|_| anyhow!("a reader panicked"))?.push(sample);
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// The first samples that are not before the instants, and the seconds that passed between these; none if they have
/// not come.
fn between(samples: &[Sample], from: Instant, to: Instant) -> Option<(&Sample, &Sample, f64)> {
    let at = |instant| samples.get(samples.partition_point(|sample| sample.at < instant));
    let (first, last) = (at(from)?, at(to)?);
    let seconds = last.at.duration_since(first.at).as_secs_f64();
    (seconds > 0.0).then_some((first, last, seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_over_the_time_between_samples() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let samples = [0, 110, 1110, 1210].map(|ms| Sample { at: at(ms), received: vec![], sent: vec![] });
        let found = |from, to| {
            let (first, last, seconds) = between(&samples, at(from), at(to))?;
            Some((first.at, last.at, seconds))
        };
        assert_eq!(found(100, 1100), Some((at(110), at(1110), 1.0)));
        assert_eq!(found(100, 1300), None);
        assert_eq!(found(20, 100), None);
    }
}
