//! The site of the scenario: one host that also has the authority, r1 between h1 and h2, and r2 beside it. Each router
//! has its files in a folder of its own, as on a machine of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::keys::Keys;
use crate::endhost::EndHost;
use crate::one_router::{H1, H2, OneRouter};
use crate::process::wait_for;
use crate::scenario::Lab;
use crate::virtual_router::VirtualRouter;

/// The bound for everything that is awaited, but for a renewal.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// See the module.
pub(super) struct Site {
    // Dropped from top to bottom.
    pub(super) h: [EndHost; 2],
    r2: VirtualRouter,
    one: OneRouter,
    xenflow: PathBuf,
    /// All that commands have printed, to either output.
    pub(super) printed: String,
    /// All keys that there were.
    pub(super) keys: Keys,
}

/// A router with an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    R1,
    R2,
}

impl Who {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::R1 => "r1",
            Self::R2 => "r2",
        }
    }

    /// How the daemon's log names it.
    pub(super) fn uri(self) -> String {
        format!("xenflow://router/{}", self.name())
    }
}

/// A place in a log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark(usize);

impl Site {
    /// Makes all of it; the host runs, the routers' clients do not.
    pub(super) fn build(lab: &Lab) -> Result<Self> {
        let one = OneRouter::create(lab)?;
        let r2 = VirtualRouter::create(lab, &one.node, &one.pki, ("red", "r2", 2), &[])?;
        let h = one.end_hosts()?;
        let xenflow = lab.product()?.xenflow.clone();
        let mut site = Self { h, r2, one, xenflow, printed: String::new(), keys: Keys::default() };
        let pki = site.authority();
        site.configure_daemon(&[("issuer_dir", Some(pki.clone())), ("crl", Some(pki.join("crl.pem")))])?;
        for who in [Who::R1, Who::R2] {
            let name = who.name();
            let dir = site.papers(who);
            fs::create_dir_all(&dir)?;
            for (key, file) in
                [("ca", "ca.pem".into()), ("cert", format!("{name}.pem")), ("key", format!("{name}.key"))]
            {
                site.router(who).configure(key, quoted(&dir.join(file)))?;
            }
            site.router(who).configure("reconnect_max_ms", 500)?;
            site.export(who)?;
        }
        site.one.node.start()?;
        Ok(site)
    }

    pub(super) fn router(&mut self, who: Who) -> &mut VirtualRouter {
        match who {
            Who::R1 => &mut self.one.r1,
            Who::R2 => &mut self.r2,
        }
    }

    /// The folders of the authority and of both routers' files; their keys are taken note of.
    pub(super) fn look_at_keys(&mut self) -> Result<[PathBuf; 3]> {
        let dirs = [self.authority(), self.papers(Who::R1), self.papers(Who::R2)];
        self.keys.learn(&dirs)?;
        Ok(dirs)
    }

    /// The folder of the authority.
    pub(super) fn authority(&self) -> PathBuf {
        self.one.pki.dir().to_owned()
    }

    /// The folder of a router's own files.
    pub(super) fn papers(&self, who: Who) -> PathBuf {
        let guest = match who {
            Who::R1 => self.one.r1.guest(),
            Who::R2 => self.r2.guest(),
        };
        guest.dir().join("papers")
    }

    /// The file that a router's papers have by this ending: `pem` or `key`.
    pub(super) fn paper(&self, who: Who, ending: &str) -> PathBuf {
        self.papers(who).join(format!("{}.{ending}", who.name()))
    }

    /// Runs a command; what it prints is kept, and its standard output comes back.
    pub(super) fn run(&mut self, command: &mut Command) -> Result<String> {
        let out = command.output().with_context(|| format!("cannot start {command:?}"))?;
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        self.printed += &stdout;
        self.printed += &stderr;
        ensure!(out.status.success(), "{command:?} ended with {}: {stderr}", out.status);
        Ok(stdout.into_owned())
    }

    /// `xenflow pki` of this authority.
    pub(super) fn pki(&mut self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.xenflow);
        command.arg("pki").args(args).arg("--ca").arg(self.authority());
        self.run(&mut command)
    }

    /// `xenflow pki issue` or `renew` of a router's certificate into its folder.
    pub(super) fn issue(&mut self, verb: &str, who: Who, more: &[&str]) -> Result<()> {
        let out = self.papers(who).display().to_string();
        self.pki(&[&[verb, "router", who.name(), "--out", &out], more].concat())?;
        Ok(())
    }

    /// Gives a router the authorities of today.
    pub(super) fn export(&mut self, who: Who) -> Result<()> {
        let out = self.papers(who).join("ca.pem").display().to_string();
        self.pki(&["export", "--out", &out])?;
        Ok(())
    }

    /// Gives a router what the authority revoked until today.
    pub(super) fn hand_lists(&self, who: Who) -> Result<()> {
        let (new, to) = (self.papers(who).join("new"), self.papers(who).join("crl.pem"));
        fs::copy(self.authority().join("crl.pem"), &new)?;
        Ok(fs::rename(new, to)?)
    }

    /// When the certificate in a file ends, in seconds since 1970-01-01 UTC, as OpenSSL reads it.
    pub(super) fn end_of(&mut self, cert: &Path) -> Result<i64> {
        let said = self.run(Command::new("openssl").args(["x509", "-noout", "-enddate", "-in"]).arg(cert))?;
        let date = said.trim().strip_prefix("notAfter=").with_context(|| format!("openssl said {said:?}"))?;
        Ok(self.run(Command::new("date").args(["--utc", "+%s", "--date", date]))?.trim().parse()?)
    }

    /// Sets keys of the daemon's configuration, or takes them out; it reads them when it starts.
    pub(super) fn configure_daemon(&self, keys: &[(&str, Option<PathBuf>)]) -> Result<()> {
        let path = self.one.node.host().rundir().join("dom0.toml");
        let text = fs::read_to_string(&path)?;
        let is_other = |line: &&str| !keys.iter().any(|(key, _)| line.starts_with(&format!("{key} = ")));
        let mut text: String = text.lines().filter(is_other).map(|line| format!("{line}\n")).collect();
        for (key, value) in keys {
            if let Some(value) = value {
                text += &format!("{key} = {}\n", quoted(value));
            }
        }
        Ok(fs::write(&path, text)?)
    }

    /// kill -9, and a new daemon with the configuration of now, whose log begins anew.
    pub(super) fn restart_daemon(&mut self) -> Result<Mark> {
        self.one.node.kill_daemon()?;
        self.one.node.start_daemon()?;
        Ok(Mark(0))
    }

    /// Starts a router's client and waits until the host took its tables.
    pub(super) fn start_client(&mut self, who: Who) -> Result<()> {
        let router = self.router(who);
        router.start_client()?;
        router.client()?.wait_for_log("session is up", LIMIT)?;
        self.one.node.wait_session(who.name(), LIMIT)
    }

    /// Waits until h1 reaches h2, and the switch itself forwards to both.
    pub(super) fn wait_forwarding(&self) -> Result<()> {
        self.h[0].wait_reachable(H2, LIMIT)?;
        wait_for("flows to both end hosts", LIMIT, || {
            let flows = self.flows()?;
            let routed = |host: &str| flows.iter().any(|flow| flow.contains(&format!("nw_dst={host} ")));
            Ok((routed(H1) && routed(H2)).then_some(()))
        })
    }

    /// The flows that do not come and go with traffic, sorted: without learned ones, and without link-local neighbors.
    pub(super) fn flows(&self) -> Result<Vec<String>> {
        let text = self.one.node.flows()?;
        let passing = |line: &str| line.contains("table=6,") || line.contains("reg8=0xfe800000");
        let kept = text.lines().filter(|line| line.contains("table=") && !passing(line));
        let mut flows: Vec<String> = kept.map(|line| line.trim().to_owned()).collect();
        flows.sort_unstable();
        Ok(flows)
    }

    /// The end of the daemon's log.
    pub(super) fn mark(&mut self) -> Result<Mark> {
        Ok(Mark(self.one.node.daemon()?.log().len()))
    }

    /// Lines of the daemon's log since then that hold all of these words.
    pub(super) fn logged(&mut self, since: Mark, words: &[&str]) -> Result<Vec<String>> {
        let log = self.one.node.daemon()?.log();
        let lines = log.get(since.0..).unwrap_or_default().lines();
        let meant = lines.filter(|line| words.iter().all(|word| line.contains(word)));
        Ok(meant.map(str::to_owned).collect())
    }

    /// Waits until there are so many of them; how long that took.
    pub(super) fn wait_logged(&mut self, since: Mark, count: usize, words: &[&str]) -> Result<Duration> {
        let start = Instant::now();
        wait_for(&format!("{words:?} in the daemon's log"), LIMIT, || {
            Ok((self.logged(since, words)?.len() >= count).then_some(()))
        })?;
        Ok(start.elapsed())
    }

    /// How many sessions of a router have begun since then.
    pub(super) fn opened(&mut self, since: Mark, who: Who) -> Result<usize> {
        Ok(self.logged(since, &["session opened", &format!("router={} ", who.uri())])?.len())
    }

    /// How many have ended, of a router or, with none, of any.
    pub(super) fn ended(&mut self, since: Mark, who: Option<Who>) -> Result<usize> {
        let uri = who.map(Who::uri).unwrap_or_default();
        Ok(self.logged(since, &["session ended", &uri])?.len())
    }

    /// Waits until the daemon has read its certificates and lists again.
    pub(super) fn wait_read_again(&mut self, since: Mark) -> Result<()> {
        self.wait_logged(since, 1, &["were read again"])?;
        Ok(())
    }
}

/// A path as TOML has it.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}
