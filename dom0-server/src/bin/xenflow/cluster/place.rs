//! Where a member of a cluster lives: its settings file holds the arguments of its `ovsdb-server`, and nothing else.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use dom0_server::db::DATABASE;

use crate::Failure;

/// What `xenflow-ovsdb.service` reads.
const KEY: &str = "XENFLOW_OVSDB_ARGS";

/// Files of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Its copy of the database, in the format of clusters.
    pub(super) file: PathBuf,
    /// The directory of its sockets.
    pub(super) rundir: PathBuf,
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) ca: PathBuf,
}

impl Place {
    /// The control socket.
    pub(super) fn ctl(&self) -> PathBuf {
        self.rundir.join("ovsdb.ctl")
    }

    /// The socket without role: for operators, who are root.
    pub(super) fn remote(&self) -> String {
        format!("unix:{}", self.rundir.join("db.sock").display())
    }

    /// Refuses what cannot stand in the settings file.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let Self { file, rundir, cert, key, ca } = self;
        for path in [file, rundir, cert, key, ca] {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:".contains(c);
            let text = path.to_str().unwrap_or_default();
            if !path.is_absolute() || !text.chars().all(is_plain) {
                let path = path.display();
                let rule = "paths of a cluster are absolute, of letters, digits and / . _ - + @ :";
                return Err(Failure::Input(anyhow!("\"{path}\": {rule}; use another path")));
            }
        }
        Ok(())
    }

    /// Of `ovsdb-server`.
    pub(super) fn arguments(&self) -> Vec<String> {
        let Self { file, rundir, cert, key, ca } = self;
        vec![
            format!("--remote=p{}", self.remote()),
            // With their roles: see `db::rbac`.
            format!("--remote=db:{DATABASE},{DATABASE},connections"),
            format!("--unixctl={}", self.ctl().display()),
            format!("--pidfile={}", rundir.join("ovsdb-server.pid").display()),
            format!("--private-key={}", key.display()),
            format!("--certificate={}", cert.display()),
            format!("--ca-cert={}", ca.display()),
            // Ciphers that nothing before TLS 1.2 has. Open vSwitch before 3.5 has no name for TLS 1.3 and would switch
            // it off with any --ssl-protocols.
            "--ssl-ciphers=ECDHE+AESGCM:ECDHE+CHACHA20".into(),
            file.display().to_string(),
        ]
    }

    /// Writes the settings file; false if it was so already.
    pub(super) fn write(&self, settings: &Path) -> anyhow::Result<bool> {
        let text = format!(
            "# Arguments of this host's member of the XenFlow cluster, for xenflow-ovsdb.service.\n\
             # Written by 'xenflow cluster init' and 'join', removed by 'leave'.\n\
             {KEY}=\"{}\"\n",
            self.arguments().join(" ")
        );
        if fs::read_to_string(settings).is_ok_and(|found| found == text) {
            return Ok(false);
        }
        make_parent(settings)?;
        fs::write(settings, text).with_context(|| format!("cannot write {}", settings.display()))?;
        Ok(true)
    }

    /// Reads it; none if there is none.
    pub(super) fn read(settings: &Path) -> anyhow::Result<Option<Self>> {
        let text = match fs::read_to_string(settings) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(anyhow::Error::from(error).context(format!("cannot read {}", settings.display())));
            }
        };
        let broken = || anyhow!("{} is not as 'xenflow cluster' writes it", settings.display());
        Self::parse(&text).ok_or_else(broken).map(Some)
    }

    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix(KEY)?.strip_prefix('='))?;
        let words: Vec<&str> = line.trim().trim_matches('"').split_whitespace().collect();
        let option = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)).map(PathBuf::from);
        let place = Self {
            file: words.last().filter(|word| word.starts_with('/')).map(PathBuf::from)?,
            rundir: option("--unixctl=")?.parent()?.to_owned(),
            cert: option("--certificate=")?,
            key: option("--private-key=")?,
            ca: option("--ca-cert=")?,
        };
        Some(place)
    }
}

pub(super) fn make_parent(path: &Path) -> anyhow::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        let path = |text: &str| PathBuf::from(text);
        Place {
            file: path("/var/lib/xenflow/cluster.db"),
            rundir: path("/run/xenflow"),
            cert: path("/etc/xenflow/pki/a.pem"),
            key: path("/etc/xenflow/pki/a.key"),
            ca: path("/etc/xenflow/pki/ca.pem"),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let text = format!("# x\n{KEY}=\"{}\"\n", place().arguments().join(" "));
        assert_eq!(Place::parse(&text), Some(place()));
        assert_eq!(Place::parse(&text.replace("--unixctl", "--nixctl")), None);
        assert_eq!(Place::parse("# nothing\n"), None);
    }

    #[test]
    fn paths_that_systemd_would_split_are_refused() {
        assert!(place().check().is_ok());
        for wrong in ["db", "/a b", "/a\"b", "/a$b", "/ä"] {
            let place = Place { file: wrong.into(), ..place() };
            assert!(matches!(place.check(), Err(Failure::Input(_))), "{wrong}");
        }
    }
}
