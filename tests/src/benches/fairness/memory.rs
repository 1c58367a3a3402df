//! How much memory processes take at most while something goes on (proc_pid_status(5), proc_pid_clear_refs(5)).

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::round;

/// Processes whose largest size is counted from now on.
#[derive(Debug)]
pub(super) struct Peak(Vec<(&'static str, u32, f64)>);

/// In MiB, by process.
#[derive(Debug)]
pub(super) struct Mib {
    pub(super) peak: BTreeMap<&'static str, f64>,
    /// The peak, less what the process had before.
    pub(super) grown: BTreeMap<&'static str, f64>,
}

impl Peak {
    pub(super) fn start(processes: &[(&'static str, u32)]) -> Result<Self> {
        let start = |(name, id): &(&'static str, u32)| {
            let path = format!("/proc/{id}/clear_refs");
            // Resets VmHWM.
            std::fs::write(&path, "5").with_context(|| format!("cannot write to {path}"))?;
            Ok((*name, *id, mib(*id, "VmRSS:")?))
        };
        processes.iter().map(start).collect::<Result<_>>().map(Self)
    }

    pub(super) fn mib(&self) -> Result<Mib> {
        let (mut peak, mut grown) = (BTreeMap::new(), BTreeMap::new());
        for (name, id, before) in &self.0 {
            let most = mib(*id, "VmHWM:")?;
            peak.insert(*name, round(most));
            grown.insert(*name, round(most - before));
        }
        Ok(Mib { peak, grown })
    }
}

fn mib(id: u32, field: &str) -> Result<f64> {
    let path = format!("/proc/{id}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.map(|kib| kib / 1024.0).with_context(|| format!("{path} holds no {field}"))
}
