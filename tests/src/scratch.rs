//! Folders outside: the scratch folder of a running lab, the place of its memory, the logs of a failed run.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::sys::statvfs::{FsFlags, statvfs};

use crate::progress::say;

/// First part of the names of scratch folders; the process id follows, and a number of the process's own.
const SCRATCH: &str = "xenflow-lab-";

/// The lab's scratch folder, removed when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes the folder, and removes those of labs that were killed before they could.
    pub fn create() -> Result<Self> {
        let base = std::env::temp_dir();
        sweep(&base);
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("{SCRATCH}{}-{number}", std::process::id()));
        // Left by a process of the same number, which is certainly gone.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Removes scratch folders whose process is gone (killed before it could clean up).
fn sweep(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(SCRATCH)) else { continue };
        let pid = rest.split('-').next().unwrap_or_default();
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Where the lab's memory is kept as a file: in memory if there is enough, which is much faster.
pub fn memory_dir(mib: u32, scratch: &Path) -> Result<PathBuf> {
    let shm = Path::new("/dev/shm");
    let problem = match statvfs(shm) {
        Err(error) => error.to_string(),
        Ok(stat) if stat.flags().contains(FsFlags::ST_NOEXEC) => "it is mounted noexec".to_owned(),
        Ok(stat) => {
            let free = stat.blocks_available().saturating_mul(stat.fragment_size()) >> 20;
            if free >= u64::from(mib) && nix::unistd::access(shm, nix::unistd::AccessFlags::W_OK).is_ok() {
                return Ok(shm.to_owned());
            }
            format!("it has {free} MiB free for this user, and the lab needs {mib}")
        }
    };
    say(format!(
        "lab: cannot use /dev/shm: {problem}; the lab's memory goes to {}, slower",
        scratch.display()
    ));
    Ok(scratch.to_owned())
}

/// Copies the results to a place that stays: beside the binary `lab`, under the scenario's name and the time.
pub fn keep_results(results: &Path, scenario: &str, lab: &Path) -> Result<PathBuf> {
    let base = lab.parent().context("the lab's binary has no folder")?;
    let time = utc(SystemTime::now());
    let kept = base.join(format!("{scenario}-{time}-{}", std::process::id()));
    copy_dir(results, &kept).with_context(|| format!("cannot keep the logs in {}", kept.display()))?;
    Ok(kept)
}

fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Seconds since 1970 as `20261121-042019`, in UTC (Howard Hinnant's `civil_from_days`).
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_utc() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101-000000");
        assert_eq!(at(951_827_696), "20000229-123456");
        assert_eq!(at(1_795_234_819), "20261121-042019");
    }
}
