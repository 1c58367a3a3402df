//! How much processor time processes take, as the lab's kernel accounts for it.
//!
//! The kernel samples at 100 Hz: shares of a second or more mean something, less does not.

use std::time::Instant;

use anyhow::{Context, Result};

/// Ticks of `/proc/<pid>/stat` in a second: `USER_HZ`, which is 100 on every Linux that matters here.
const USER_HZ: f64 = 100.0;

/// The meter of some processes, from now on.
#[derive(Debug)]
pub struct Meter {
    start: Instant,
    processes: Vec<(String, u32, f64)>,
}

impl Meter {
    /// Starts with processes, named and by id.
    pub fn start(processes: &[(&str, u32)]) -> Result<Self> {
        let processes = processes
            .iter()
            .map(|(name, id)| Ok(((*name).to_owned(), *id, seconds(*id)?)))
            .collect::<Result<_>>()?;
        Ok(Self { start: Instant::now(), processes })
    }

    /// Each process's share of the time since the start, in percent of one processor.
    pub fn percent(&self) -> Result<serde_json::Map<String, serde_json::Value>> {
        let elapsed = self.start.elapsed().as_secs_f64();
        let share = |(name, id, before): &(String, u32, f64)| {
            let share = (seconds(*id)? - before) / elapsed;
            Ok((name.clone(), ((share * 1000.0).round() / 10.0).into()))
        };
        self.processes.iter().map(share).collect()
    }
}

/// User and system time of a process with all its threads so far, in seconds.
pub fn seconds(id: u32) -> Result<f64> {
    let path = format!("/proc/{id}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    ticks(&text).map(|ticks| ticks / USER_HZ).with_context(|| format!("{path} holds {text:?}"))
}

/// Fields 14 and 15 of proc_pid_stat(5); the second, a name in parentheses, may hold anything.
fn ticks(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_may_hold_anything() {
        let stat = "12 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20";
        assert_eq!(ticks(stat), Some(200.0));
        assert_eq!(ticks("12 (cut) S 1"), None);
    }

    #[test]
    fn a_busy_process_is_seen() {
        let meter = Meter::start(&[("self", std::process::id())]).unwrap();
        while meter.start.elapsed().as_millis() < 200 {
            std::hint::spin_loop();
        }
        assert!(meter.percent().unwrap()["self"].as_f64().unwrap() > 10.0);
        assert!(Meter::start(&[("nobody", u32::MAX)]).is_err());
    }
}
