//! A bound on the processor time of some processes: a control group with `cpu.max` (Linux's `cgroup-v2.rst`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const ROOT: &str = "/sys/fs/cgroup";
/// The processor is handed out once in this many microseconds.
const PERIOD_US: u32 = 100_000;

/// The control group; removed when dropped, which its processes must not outlive.
#[derive(Debug)]
pub(super) struct Cap(PathBuf);

impl Cap {
    /// A group whose processes together get so many percent of one processor, or with 0 as much as there is.
    pub(super) fn create(name: &str, percent: u32) -> Result<Self> {
        write(&Path::new(ROOT).join("cgroup.subtree_control"), "+cpu")?;
        let dir = Path::new(ROOT).join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let most = match percent {
            0 => "max".to_owned(),
            percent => (PERIOD_US / 100 * percent).to_string(),
        };
        write(&dir.join("cpu.max"), &format!("{most} {PERIOD_US}"))?;
        Ok(Self(dir))
    }

    /// Puts a process in, with the children that it will have.
    pub(super) fn hold(&self, process: u32) -> Result<()> {
        write(&self.0.join("cgroup.procs"), &process.to_string())
    }
}

impl Drop for Cap {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {text:?} to {}", path.display()))
}
