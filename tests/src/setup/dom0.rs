//! The disk of a Xen host, of packages of Debian 12: made below `target/` once, and again if how it is made has changed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{fetch, privileged, run};
use crate::progress::say;

const SCRIPT: &str = include_str!("dom0.sh");
/// The release that has Xen 4.17, whose C library is that of the programs built here.
const RELEASE: &str = "bookworm";
/// Has the script by which it was made.
const MADE: &str = "made";

/// Makes it, unless it is there; and says where.
pub(crate) fn build() -> Result<PathBuf> {
    let folder = super::target_dir()?.join("xen");
    if std::fs::read_to_string(folder.join(MADE)).is_ok_and(|made| made == SCRIPT) {
        return Ok(folder);
    }
    let release = fetch::codename()?;
    ensure!(
        release == RELEASE,
        "this machine has Debian's {release}: programs built here may not run on the lab's Xen hosts, which have {RELEASE}"
    );
    say("lab: making the disk of a Xen host of Debian's packages, about 150 MB; nothing is installed here");
    std::fs::create_dir_all(folder.join("lists/partial"))?;
    let mirror = fetch::mirror(&folder, RELEASE)?;
    make(&folder, &mirror).context("could not make the disk of a Xen host")?;
    Ok(folder)
}

fn make(folder: &Path, mirror: &str) -> Result<()> {
    let script = folder.join("dom0.sh");
    std::fs::write(&script, SCRIPT)?;
    run(privileged(nix::unistd::geteuid().is_root(), "sh").arg(&script).arg(folder).arg(mirror))?;
    std::fs::write(folder.join(MADE), SCRIPT)?;
    Ok(())
}
