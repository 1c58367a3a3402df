//! Debian packages below `target/`, for what only one bench or guest needs.
//!
//! They are fetched from the mirror that this machine has configured, by apt, which checks their signatures with
//! Debian's keys, into lists and a cache of their own; and are unpacked into a folder, where no script of theirs runs, so
//! that no service starts, and nothing of the machine changes. It needs no rights, and is done once.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::run;
use crate::process::output;

/// Debian's keys, as the package `debian-archive-keyring` has them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Stands before a package whose name says no version: the first that it depends on is meant.
const DEPENDS: &str = "depends:";

/// Puts packages of a release into the folder `root`, all of them or none; `check` says whether what was unpacked will do.
pub(super) fn unpack(
    root: &Path,
    release: &str,
    packages: &[&str],
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let work = root.with_extension("partial");
    if work.exists() {
        std::fs::remove_dir_all(&work)?;
    }
    let unpacked = work.join("root");
    for dir in ["lists/partial", "archives/partial", "packages", "parts", "root"] {
        std::fs::create_dir_all(work.join(dir))?;
    }
    std::fs::write(work.join("status"), "")?;
    let signed = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
    let mirror = mirror(&work, release)?;
    std::fs::write(work.join("sources.list"), format!("deb {signed}{mirror} {release} main\n"))?;
    let refused = || format!("this machine's mirror {mirror} does not give it");
    run(apt("apt-get", &work)?.arg("update")).with_context(refused)?;
    let mut names = Vec::new();
    for package in packages {
        names.push(match package.strip_prefix(DEPENDS) {
            Some(newest) => {
                let said = output(apt("apt-cache", &work)?.args(["depends", newest]))?;
                let first = said.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
                first.with_context(|| format!("package {newest} depends on nothing"))?.to_owned()
            }
            None => (*package).to_owned(),
        });
    }
    run(apt("apt-get", &work)?.current_dir(work.join("packages")).arg("download").args(names))
        .with_context(refused)?;
    for entry in std::fs::read_dir(work.join("packages"))? {
        run(Command::new("dpkg-deb").arg("--extract").arg(entry?.path()).arg(&unpacked))?;
    }
    check(&unpacked)?;
    std::fs::rename(&unpacked, root)?;
    std::fs::remove_dir_all(&work)?;
    Ok(())
}

/// The code name of this machine's release.
pub(super) fn codename() -> Result<String> {
    let release = std::fs::read_to_string("/etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    codename.map(str::to_owned).context("/etc/os-release has no VERSION_CODENAME: is this Debian?")
}

/// A program of apt's with nothing of this machine's but its architecture and how it reaches the network.
fn apt(program: &str, work: &Path) -> Result<Command> {
    let mut command = Command::new(program);
    let work = work.canonicalize()?;
    for (name, value) in [
        ("Dir::Etc::SourceList", "sources.list"),
        ("Dir::Etc::SourceParts", "parts"),
        ("Dir::Etc::Preferences", "preferences"),
        ("Dir::Etc::PreferencesParts", "parts"),
        ("Dir::State::Lists", "lists"),
        ("Dir::State::Status", "status"),
        ("Dir::Cache::Archives", "archives"),
        ("Dir::Cache::PkgCache", "pkgcache.bin"),
        ("Dir::Cache::SrcPkgCache", "srcpkgcache.bin"),
    ] {
        command.arg(format!("-o{name}={}", work.join(value).display()));
    }
    // All of it belongs to whoever runs this, also if that is root.
    command.args(["-oAPT::Sandbox::User=", "-oAcquire::Languages=none", "-oquiet=1"]);
    Ok(command)
}

/// The mirror that this machine has its own release from; `release` is what it is wanted for, and below `work` is a folder `lists`.
pub(super) fn mirror(work: &Path, release: &str) -> Result<String> {
    let codename = codename()?;
    // Without lists, apt names all files that it would fetch.
    let lists = format!("-oDir::State::Lists={}", work.join("lists").canonicalize()?.display());
    let uris = output(Command::new("apt-get").args([&lists, "--print-uris", "update"]))?;
    find_mirror(&uris, &codename).with_context(|| {
        format!("apt has no source for {codename}, from whose mirror {release} could be fetched")
    })
}

fn find_mirror(uris: &str, codename: &str) -> Option<String> {
    let end = format!("/dists/{codename}/InRelease");
    uris.lines()
        .find_map(|line| line.strip_prefix('\'')?.split('\'').next()?.strip_suffix(&end).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_mirror_is_that_of_the_own_release() {
        let uris = "'http://a.example/debian-security/dists/bookworm-security/InRelease' x 0 \n\
                    'http://b.example/debian/dists/bookworm/InRelease' y 0 \n";
        assert_eq!(super::find_mirror(uris, "bookworm").as_deref(), Some("http://b.example/debian"));
        assert_eq!(super::find_mirror(uris, "trixie"), None);
    }
}
