//! OVN of this machine's own Debian release, for the bench that measures XenFlow beside it.
//!
//! Unpacked, never installed: its packages would start services.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::fetch;
use crate::process::output;
use crate::progress::say;

/// What Open vSwitch does not bring already.
const PACKAGES: &[&str] = &["ovn-central", "ovn-common", "ovn-host"];

/// Where it is, below cargo's target folder.
pub fn root(target: &Path) -> PathBuf {
    target.join("ovn")
}

/// It is there.
pub fn is_here(root: &Path) -> bool {
    root.join("usr/bin/ovn-northd").is_file()
}

/// Puts it there, unless it is.
pub fn unpack() -> Result<()> {
    let root = root(&super::target_dir()?);
    if is_here(&root) {
        return Ok(());
    }
    let release = fetch::codename()?;
    say(format!("lab: fetching OVN of Debian's {release}, about 5 MB, for this bench; nothing is installed"));
    fetch::unpack(&root, &release, PACKAGES, |unpacked| {
        for program in ["ovn-northd", "ovn-controller", "ovn-nbctl"] {
            let said = output(Command::new(unpacked.join("usr/bin").join(program)).arg("--version"))
                .context("what was unpacked does not run: is a library missing?")?;
            ensure!(said.starts_with(program), "{program} says {said:?}");
        }
        Ok(())
    })
    .with_context(|| format!("could not fetch OVN of Debian's {release}"))
}
