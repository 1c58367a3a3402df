//! FRR 10 of Debian 13, for machines with Debian 12, whose FRR 8.4 reads no notifications back.
//!
//! Unpacked below `target/` as [`super::fetch`] does it, and never installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::fetch;
use crate::process::output;
use crate::progress::say;

/// The release that has it.
const RELEASE: &str = "trixie";
/// FRR and the libraries that its daemons load.
const PACKAGES: &[&str] = &[
    "frr",
    "libaudit1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcares2",
    "libcrypt1",
    "libelf1t64",
    "libgcc-s1",
    "libjson-c5",
    "liblua5.3-0",
    "liblzma5",
    "libpam0g",
    "libpcre2-8-0",
    "libprotobuf-c1",
    "libreadline8t64",
    "libstdc++6",
    "libsystemd0",
    "libtinfo6",
    "libunwind8",
    "libxxhash0",
    "libyang3",
    "libzstd1",
    "zlib1g",
];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Where it is, below cargo's target folder.
pub fn root(target: &Path) -> PathBuf {
    target.join(format!("frr-{RELEASE}"))
}

/// Puts it there, unless it is.
pub(super) fn unpack(target: &Path) -> Result<()> {
    let root = root(target);
    if root.join("usr/lib/frr/zebra").is_file() {
        return Ok(());
    }
    say(format!("lab: fetching FRR of Debian's {RELEASE}, about 25 MB, for one guest; nothing is installed"));
    fetch::unpack(&root, RELEASE, PACKAGES, |unpacked| {
        let words = words(unpacked, "zebra");
        let version = output(Command::new("env").args(words).arg("--version"))
            .context("what was unpacked does not run: is a library missing from the list?")?;
        ensure!(version.starts_with("zebra version 10."), "what was unpacked is not FRR 10: {version:?}");
        Ok(())
    })
    .with_context(|| format!("could not fetch FRR of Debian's {RELEASE}"))
}

/// A program of the unpacked FRR, to be started with the libraries beside it.
pub fn words(root: &Path, program: &str) -> Vec<String> {
    let word = |path: PathBuf| path.display().to_string();
    let libraries = word(root.join(LIBRARIES));
    let loader = word(root.join("usr/lib64/ld-linux-x86-64.so.2"));
    let libraries = format!("{libraries}:{libraries}/frr");
    vec![loader, "--library-path".into(), libraries, word(root.join("usr/lib/frr").join(program))]
}

/// Where its modules are, `dplane_fpm_nl` among them.
pub fn modules(root: &Path) -> PathBuf {
    root.join(LIBRARIES).join("frr/modules")
}
