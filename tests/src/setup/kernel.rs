//! The kernel of this machine's own Debian release for VMs: unpacked below `target/`, never installed.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::fetch;
use crate::progress::say;

/// Depends on the newest one, the smallest that has what a VM needs.
const NEWEST: &str = "depends:linux-image-cloud-amd64";

/// Puts it there, unless it is; and says where.
pub(crate) fn unpack() -> Result<PathBuf> {
    let root = super::target_dir()?.join("vm-kernel");
    if root.join("boot").is_dir() {
        return Ok(root);
    }
    let release = fetch::codename()?;
    say(format!("lab: fetching a kernel of Debian's {release} for VMs, about 30 MB; nothing is installed"));
    fetch::unpack(&root, &release, &[NEWEST], |unpacked| {
        ensure!(unpacked.join("boot").is_dir(), "what was unpacked is no kernel");
        Ok(())
    })
    .with_context(|| format!("could not fetch a kernel of Debian's {release}"))?;
    Ok(root)
}
