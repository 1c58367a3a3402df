//! Collects the facts: the only part of the doctor that asks anybody. Each step has a time of its own, and what cannot
//! be had becomes a fact itself.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use dom0_server::clock::now_ms;
use dom0_server::config::Config;
use dom0_server::db::{DATABASE, Statistics};
use dom0_server::shaper::report::Report;
use openflow::{Event, FlowFilter, Message, MultipartReply, MultipartRequest, Session};
use ovsdb::{Condition, Connection, Operation, Options, Remote, Tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use x509_parser::time::ASN1Time;
use xenflow_flow_app::pipeline::cookie;

use super::facts::{Disk, Facts, Fleet, Life, Server, Switch, Trust, select_switch};
use super::fleet;
use crate::client::{Version, check_version, snapshot, statistics};
use crate::{output, sla};

/// Where `ovsdb-server` keeps databases.
const DISKS: [&str; 2] = ["/etc/openvswitch", "/var/lib/openvswitch"];
/// Seconds between two looks at counters: daemons write theirs every 5 s if not told otherwise.
pub(super) const SECOND_LOOK_S: u32 = 6;
/// Bits of a cookie that say whose it is.
const OWNER: u64 = 0xffff << 48;

/// Of the XenFlow database, and how to speak with them.
pub(super) struct Servers {
    pub(super) remotes: Vec<Remote>,
    pub(super) tls: Option<Tls>,
    /// The time of each step.
    pub(super) step: Duration,
}

impl Servers {
    async fn open(&self, remotes: &[Remote]) -> anyhow::Result<Connection> {
        let options = Options { connect_timeout: self.step, tls: self.tls.clone(), ..Options::default() };
        let opened = Connection::open_any(remotes, &options).await?;
        opened.map(|(connection, _)| connection).ok_or_else(|| anyhow!("no remote"))
    }
}

pub(super) async fn facts(db: &str, servers: &Servers, host_only: bool, path: &Path) -> Facts {
    let Servers { remotes, step, .. } = servers;
    let step = *step;
    let config = path.exists().then(|| Config::load(path).map_err(|error| words(error.into())));
    let settings = config.as_ref().and_then(|config| config.as_ref().ok());
    let bridge = settings.map_or("br-xf".to_owned(), |settings| settings.bridge.clone());
    let rundir = settings.map_or_else(|| rundir(remotes), |settings| settings.ovs_rundir.clone());
    let ovs = settings.map_or(db, |settings| &settings.ovs_db);
    let switch = within(step, switch(ovs, servers)).await;
    let has_bridge = switch.as_ref().is_ok_and(|switch| switch.bridge(&bridge).is_some());
    let flows = match has_bridge {
        true => Some(within(step, flows(&rundir.join(format!("{bridge}.mgmt")))).await),
        false => None,
    };
    let mut answers = Vec::new();
    let mut fleet = None;
    let mut seen_ms = now_ms();
    if !host_only {
        for remote in remotes {
            answers.push((remote.to_string(), within(step, server(remote, servers)).await));
        }
        let mut read = within(step, read(servers)).await;
        // Before the second look: that is what the age of all else is told by.
        seen_ms = now_ms();
        if let Ok(fleet) = &mut read
            && fleet::may_grow(&fleet.statistics, seen_ms)
        {
            output::progress(&format!("looking at the meters again in {SECOND_LOOK_S} s"));
            tokio::time::sleep(Duration::from_secs(SECOND_LOOK_S.into())).await;
            fleet.later = Some(within(step, counted(servers)).await);
        }
        fleet = Some(read);
    }
    let shared = match settings {
        Some(settings) => Some(within(step, shared(settings.control_socket.clone(), step)).await),
        None => None,
    };
    Facts {
        now_ms: seen_ms,
        node: config.as_ref().map(|config| config.as_ref().map(|c| c.node.clone()).map_err(Clone::clone)),
        config: path.to_owned(),
        bridge,
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").ok().map(|text| text.trim().to_owned()),
        module: Path::new("/sys/module/openvswitch").exists(),
        switch,
        flows,
        synchronized: synchronized().await,
        disks: DISKS.iter().filter_map(|dir| disk(Path::new(dir))).collect(),
        trust: settings.map(trust).unwrap_or_default(),
        servers: answers,
        fleet,
        shared,
    }
}

fn words(error: anyhow::Error) -> String {
    format!("{error:#}")
}

async fn within<T>(step: Duration, work: impl Future<Output = anyhow::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(step, work).await {
        Ok(done) => done.map_err(words),
        Err(_) => Err(format!("no answer within {} s", step.as_secs())),
    }
}

/// The directory of a socket of the database's; that of Open vSwitch's packages for any other remote.
fn rundir(remotes: &[Remote]) -> PathBuf {
    let dir = remotes.iter().find_map(|remote| match remote {
        Remote::Unix(path) => path.parent(),
        Remote::Tcp(_) | Remote::Ssl(_) => None,
    });
    dir.unwrap_or(Path::new("/var/run/openvswitch")).to_owned()
}

async fn switch(db: &str, servers: &Servers) -> anyhow::Result<Switch> {
    let connection = servers.open(&Remote::parse_list(db)?).await?;
    let rows = connection.transact("Open_vSwitch", &select_switch()).await?;
    Ok(Switch::parse(&rows)?)
}

/// How many flows there are, and how many of XenFlow.
#[allow(clippy::wildcard_enum_match_arm, reason = "what else the switch says is for others")]
async fn flows(socket: &Path) -> anyhow::Result<(u64, u64)> {
    let path = socket.display();
    let mut stream =
        UnixStream::connect(socket).await.with_context(|| format!("cannot connect to {path}"))?;
    let mut session = Session::new(openflow::Config::default(), Instant::now());
    let mut bytes = vec![0; 1 << 16];
    let ours = FlowFilter { cookie: cookie::MAGIC, cookie_mask: OWNER, ..FlowFilter::default() };
    let mut asked = Vec::new();
    let mut counts = [None, None];
    loop {
        while let Some(event) = session.poll_event() {
            match event {
                Event::Up(_) => {
                    for filter in [FlowFilter::default(), ours.clone()] {
                        let request = Message::MultipartRequest(MultipartRequest::Aggregate(filter));
                        asked.push(session.send(&request)?);
                    }
                }
                Event::Multipart { xid, body: MultipartReply::Aggregate(sum), .. } => {
                    if let Some(at) = asked.iter().position(|asked| *asked == xid) {
                        counts[at] = sum.flows.map(u64::from);
                    }
                }
                Event::Error { error, .. } => bail!("the switch refuses to count: {error}"),
                _ => {}
            }
        }
        if let [Some(all), Some(ours)] = counts {
            return Ok((all, ours));
        }
        while let Some(out) = session.poll_transmit() {
            stream.write_all(&out).await?;
        }
        match stream.read(&mut bytes).await? {
            0 => bail!("the switch closed the connection"),
            n => session.handle_input(bytes.get(..n).unwrap_or_default(), Instant::now())?,
        }
    }
}

/// What the daemon says of its uplinks. A thread of its own asks: the client of the control socket waits by itself.
async fn shared(socket: PathBuf, step: Duration) -> anyhow::Result<Report> {
    let seconds = u32::try_from(step.as_secs()).unwrap_or(u32::MAX).max(1);
    tokio::task::spawn_blocking(move || sla::of(&socket, seconds)).await?
}

async fn server(remote: &Remote, servers: &Servers) -> anyhow::Result<Server> {
    let connection = servers.open(std::slice::from_ref(remote)).await?;
    let select =
        Operation::select("Database").filter(Condition::eq("name", DATABASE)).columns(&Server::COLUMNS);
    let results = connection.transact("_Server", &[select]).await?;
    let row = results.first().and_then(|result| result.rows().first());
    let row = row.ok_or_else(|| anyhow!("it serves no database {DATABASE}: run 'xenflow init'"))?;
    Ok(Server::parse(row)?)
}

async fn read(servers: &Servers) -> anyhow::Result<Fleet> {
    let connection = servers.open(&servers.remotes).await?;
    let version = connection.schema_version(DATABASE).await?;
    if let Version::Older = check_version(&version)? {
        bail!("its schema is {version}, older than this xenflow: run 'xenflow init' to convert it");
    }
    let now = snapshot(&connection).await?;
    let statistics = statistics(&connection).await?;
    Ok(Fleet {
        invalid: now.invalid.iter().map(ToString::to_string).collect(),
        status: now.status(),
        nodes: now.nodes(),
        desired: now.desired,
        statistics,
        later: None,
    })
}

async fn counted(servers: &Servers) -> anyhow::Result<Vec<Statistics>> {
    Ok(statistics(&servers.open(&servers.remotes).await?).await?)
}

/// What systemd-timesyncd notes, or else what `timedatectl` finds out of the kernel, whoever keeps its clock.
async fn synchronized() -> Option<bool> {
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return Some(true);
    }
    let (tell, told) = tokio::sync::oneshot::channel();
    // A thread of its own: one that hangs keeps nobody.
    std::thread::spawn(move || {
        let mut command = std::process::Command::new("timedatectl");
        let said = command.args(["show", "-p", "NTPSynchronized", "--value"]).output();
        let said = said.ok().filter(|said| said.status.success()).map(|said| said.stdout);
        // Whoever asked may have gone.
        let _ = tell.send(said);
    });
    let said = tokio::time::timeout(Duration::from_secs(2), told).await.ok()?.ok()??;
    match said.trim_ascii() {
        b"yes" => Some(true),
        b"no" => Some(false),
        _ => None,
    }
}

fn disk(dir: &Path) -> Option<Disk> {
    let seen = rustix::fs::statvfs(dir).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(seen.f_frsize);
    Some(Disk { dir: dir.to_owned(), free: bytes(seen.f_bavail), total: bytes(seen.f_blocks) })
}

fn trust(config: &Config) -> Trust {
    let crl = match &config.crl {
        Some(path) => Some(path.clone()),
        None => Some(config.ca.with_file_name("crl.pem")).filter(|path| path.exists()),
    };
    let own = lives(&config.cert, "CERTIFICATE");
    Trust {
        own: Some(own.clone().and_then(|mut chain| match chain.is_empty() {
            true => Err(format!("{} holds no certificate", config.cert.display())),
            false => Ok(chain.swap_remove(0).0),
        })),
        issuer: own.ok().and_then(|chain| chain.into_iter().next()).map(|(_, issuer)| issuer),
        authorities: Some(lives(&config.ca, "CERTIFICATE").map(first)),
        lists: crl.map(|path| lives(&path, "X509 CRL").map(first)),
    }
}

fn first(pairs: Vec<(Life, String)>) -> Vec<Life> {
    pairs.into_iter().map(|(life, _)| life).collect()
}

/// The certificates or lists of a file, each with who signed it.
fn lives(path: &Path, tag: &str) -> Result<Vec<(Life, String)>, String> {
    let read = || {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let blocks = pem::parse_many(&text).with_context(|| format!("{} is no PEM", path.display()))?;
        let blocks = blocks.iter().filter(|block| block.tag() == tag);
        blocks
            .map(|block| match tag {
                "CERTIFICATE" => certificate(block.contents()),
                _ => list(block.contents()),
            })
            .collect::<anyhow::Result<Vec<_>>>()
            .with_context(|| format!("{} cannot be understood", path.display()))
    };
    read().map_err(words)
}

fn certificate(der: &[u8]) -> anyhow::Result<(Life, String)> {
    let (_, cert) = x509_parser::parse_x509_certificate(der)?;
    let time = cert.validity();
    let (begin, end) = (time.not_before.timestamp(), time.not_after.timestamp());
    Ok((Life { of: cert.subject().to_string(), begin, end }, cert.issuer().to_string()))
}

/// Without a time for the next one it is good for ever.
fn list(der: &[u8]) -> anyhow::Result<(Life, String)> {
    let (_, list) = x509_parser::parse_x509_crl(der)?;
    let begin = list.last_update().timestamp();
    let end = list.next_update().map_or(i64::MAX, |next: ASN1Time| next.timestamp());
    let of = list.issuer().to_string();
    Ok((Life { of: of.clone(), begin, end }, of))
}
