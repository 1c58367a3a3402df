//! FRR 10 of Debian 13, for machines with Debian 12, whose FRR 8.4 reads no notifications back.
//!
//! Its packages are fetched from the mirror that this machine has configured, by apt, which checks their signatures
//! with Debian's keys, into lists and a cache of their own; and are unpacked into a folder below `target/`, where no
//! script of theirs runs and nothing of the machine changes. It needs no rights, and is done once.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::run;
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
/// Debian's keys, as the package `debian-archive-keyring` has them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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
    let mirror = mirror(&work)?;
    std::fs::write(work.join("sources.list"), format!("deb {signed}{mirror} {RELEASE} main\n"))?;
    let refused = || format!("could not fetch FRR of Debian's {RELEASE} from this machine's mirror {mirror}");
    run(apt(&work)?.arg("update")).with_context(refused)?;
    run(apt(&work)?.current_dir(work.join("packages")).arg("download").args(PACKAGES))
        .with_context(refused)?;
    for entry in std::fs::read_dir(work.join("packages"))? {
        run(Command::new("dpkg-deb").arg("--extract").arg(entry?.path()).arg(&unpacked))?;
    }
    let words = words(&unpacked, "zebra");
    let version = output(Command::new("env").args(words).arg("--version"))
        .context("what was unpacked does not run: is a library missing from the list?")?;
    ensure!(version.starts_with("zebra version 10."), "what was unpacked is not FRR 10: {version:?}");
    std::fs::rename(&unpacked, &root)?;
    std::fs::remove_dir_all(&work)?;
    Ok(())
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

/// `apt-get` with nothing of this machine's but its architecture and how it reaches the network.
fn apt(work: &Path) -> Result<Command> {
    let mut command = Command::new("apt-get");
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
    command.args(["-oAPT::Sandbox::User=", "-oAcquire::Languages=none", "--quiet"]);
    Ok(command)
}

/// The mirror that this machine has its own release from.
fn mirror(work: &Path) -> Result<String> {
    let release = std::fs::read_to_string("/etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.context("/etc/os-release has no VERSION_CODENAME: is this Debian?")?;
    // Without lists, apt names all files that it would fetch.
    let lists = format!("-oDir::State::Lists={}", work.join("lists").canonicalize()?.display());
    let uris = output(Command::new("apt-get").args([&lists, "--print-uris", "update"]))?;
    find_mirror(&uris, codename).with_context(|| {
        format!("apt has no source for {codename}, from whose mirror {RELEASE} could be fetched")
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
