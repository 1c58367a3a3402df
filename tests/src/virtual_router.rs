//! A virtual router: a [`Guest`] that runs `xenflow-guest`, with its control vif.

use std::fmt::Display;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::guest::Guest;
use crate::host::Vif;
use crate::node::{Node, Pki};
use crate::process::{Process, wait_for};
use crate::scenario::Lab;

/// Name of the control vif in every guest.
pub const CONTROL: &str = "ctl";
const START: Duration = Duration::from_secs(20);

/// The MAC address of the vif with this index of the router with this number.
pub fn vif_mac(router: u16, index: usize) -> String {
    let [high, low] = router.to_be_bytes();
    format!("02:52:00:{high:02x}:{low:02x}:{index:02x}")
}

/// A vif of a router on a segment.
#[derive(Debug, Clone)]
pub struct Link<'a> {
    /// Its name in the guest.
    pub name: &'a str,
    /// The segment.
    pub segment: &'a str,
    /// Its address with prefix length.
    pub address: &'a str,
}

/// A virtual router.
#[derive(Debug)]
pub struct VirtualRouter {
    // Dropped from top to bottom: the client before its namespace.
    client: Option<Process>,
    guest: Guest,
    name: String,
    number: u16,
    program: PathBuf,
    config: PathBuf,
    logs: PathBuf,
    starts: u32,
    /// In the place of the kernel's.
    boot_id: Option<PathBuf>,
}

impl VirtualRouter {
    /// Makes the guest, configures the router and its vifs on the node, and plugs them in. `number` must be unique
    /// among the lab's routers: MAC addresses and port names come from it.
    pub fn create(
        lab: &Lab,
        node: &Node,
        pki: &Pki,
        (network, name, number): (&str, &str, u16),
        links: &[Link<'_>],
    ) -> Result<Self> {
        let router = Self::described(lab, pki, (name, number))?;
        node.configure(&router.declaration(network, links))?;
        router.plug(node, links)?;
        Ok(router)
    }

    /// Makes the guest of a router that something else configures; its vifs are to have the addresses of [`Self::mac`].
    pub fn described(lab: &Lab, pki: &Pki, (name, number): (&str, u16)) -> Result<Self> {
        let guest = Guest::create(lab, name)?;
        let config = guest.dir().join("guest.toml");
        let text = format!(
            "router = \"{name}\"\ncontrol_interface = \"{CONTROL}\"\n{}status_socket = \"{}\"\nlog = \"debug\"\n",
            pki.issue("router", name, &[])?,
            guest.dir().join("status.sock").display()
        );
        std::fs::write(&config, text)?;
        Ok(Self {
            client: None,
            guest,
            name: name.to_owned(),
            number,
            program: lab.product()?.guest.clone(),
            config,
            logs: lab.results().to_owned(),
            starts: 0,
            boot_id: None,
        })
    }

    /// The MAC address of its vif with this index; 99 is the control vif.
    pub fn mac(&self, index: usize) -> String {
        vif_mac(self.number, index)
    }

    /// What configures the router with its vifs.
    pub fn declaration(&self, network: &str, links: &[Link<'_>]) -> String {
        let name = &self.name;
        let mut configuration = format!("router add {name} --network {network}\n");
        for (index, Link { name: interface, segment, .. }) in links.iter().enumerate() {
            let mac = self.mac(index);
            configuration.push_str(&format!(
                "vif add {name}-{interface} --router {name} --segment {segment} --mac {mac}\n"
            ));
        }
        let mac = self.mac(99);
        configuration.push_str(&format!("vif add {name}-{CONTROL} --router {name} --control --mac {mac}\n"));
        configuration
    }

    /// Plugs all of its vifs in at once: processes are slow in a lab.
    pub fn plug(&self, node: &Node, links: &[Link<'_>]) -> Result<()> {
        let name = &self.name;
        let mut addresses = String::new();
        let mut plugs = Vec::new();
        for (index, Link { name: interface, address, .. }) in links.iter().enumerate() {
            addresses.push_str(&format!("address add {address} dev {interface}\n"));
            plugs.push((*interface, self.mac(index)));
        }
        plugs.push((CONTROL, self.mac(99)));
        let names: Vec<(String, String)> = plugs
            .iter()
            .map(|(interface, _)| (self.port(interface), format!("{name}-{interface}")))
            .collect();
        let vifs: Vec<Vif<'_>> = plugs
            .iter()
            .zip(&names)
            .map(|((_, mac), (port, iface_id))| Vif { port, iface_id, mac, vm_uuid: None })
            .collect();
        let ns = self.guest.netns();
        let plugged: Vec<_> =
            plugs.iter().zip(&vifs).map(|((interface, _), vif)| (ns, *interface, vif)).collect();
        node.plug_all(&plugged)?;
        let ups: String = plugs.iter().map(|(interface, _)| format!("link set {interface} up\n")).collect();
        ns.ip_batch(&(addresses + &ups))
    }

    /// Name of the switch port of one of its interfaces.
    pub fn port(&self, interface: &str) -> String {
        format!("v{}-{interface}", self.number)
    }

    /// The guest.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// The guest, to start routing daemons in it.
    pub fn guest_mut(&mut self) -> &mut Guest {
        &mut self.guest
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets a key of its client's configuration to a value as TOML has it; the client reads it when it starts.
    pub fn configure(&self, key: &str, value: impl Display) -> Result<()> {
        let config = std::fs::read_to_string(&self.config)?;
        let others = config.lines().filter(|line| line.split(" = ").next() != Some(key));
        let mut config: String = others.map(|line| format!("{line}\n")).collect();
        config.push_str(&format!("{key} = {value}\n"));
        Ok(std::fs::write(&self.config, config)?)
    }

    /// Starts `xenflow-guest`. Its log is `<router>-xenflow-guest-<n>.log`.
    pub fn start_client(&mut self) -> Result<()> {
        self.starts += 1;
        let log = self.logs.join(format!("{}-xenflow-guest-{}.log", self.name, self.starts));
        let ns = self.guest.netns();
        let mut command = match &self.boot_id {
            None => ns.command(&self.program),
            Some(file) => {
                let mut command = ns.command("unshare");
                let bind = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
                command.args(["--mount", "sh", "-c", bind]).arg(file).arg(&self.program);
                command
            }
        };
        command.arg("run").arg("--config").arg(&self.config);
        let client = Process::spawn(&format!("xenflow-guest of {}", self.name), &mut command, &log)?;
        self.client = Some(client);
        Ok(())
    }

    /// The client, to signal it or to read its log.
    pub fn client(&mut self) -> Result<&mut Process> {
        self.client.as_mut().context("xenflow-guest is not running")
    }

    /// Ends the client.
    pub fn stop_client(&mut self) -> Result<()> {
        self.client.take().context("xenflow-guest is not running")?.stop()?;
        Ok(())
    }

    /// What the client says of itself from now on.
    pub fn watch(&self) -> Result<Watch> {
        Watch::connect(&self.guest.dir().join("status.sock"))
    }

    /// Has clients that start from now on find this boot id: the guest was started anew.
    pub fn reboot(&mut self, id: &str) -> Result<()> {
        let file = self.guest.dir().join("boot_id");
        std::fs::write(&file, format!("{id}\n"))?;
        self.boot_id = Some(file);
        Ok(())
    }

    /// Waits until the host has confirmed all that the client has to tell, and the kernel has as many routes as wanted.
    pub fn wait_told(&self, limit: Duration, is_wanted: impl Fn(u64) -> bool) -> Result<()> {
        wait_for(&format!("the host to have all of {}'s tables", self.name), limit, || {
            let state = self.client_state()?;
            let is_told = state.state == "up" && state.backlog == 0 && state.acked == state.seq;
            Ok((is_told && is_wanted(state.routes)).then_some(()))
        })
    }

    /// What the client says of itself now.
    pub fn client_state(&self) -> Result<ClientState> {
        let mut watch = self.watch()?;
        watch.lines.get_ref().set_read_timeout(Some(START))?;
        let mut text = String::new();
        watch.lines.read_line(&mut text).context("the client says nothing of itself")?;
        serde_json::from_str(&text).with_context(|| format!("status line {text:?}"))
    }
}

/// A connection to a client's status socket.
#[derive(Debug)]
pub struct Watch {
    lines: BufReader<UnixStream>,
}

/// A line of the status socket; the fields that tests read.
#[derive(Debug, Deserialize)]
struct Line {
    changes: Option<u64>,
    monotonic_ns: Option<u64>,
    queued_ns: Option<u64>,
}

/// A line about the session: a state, or an acknowledgement.
#[derive(Debug, Clone, Deserialize)]
pub struct SessionLine {
    /// "up", "connecting" and so on; none: an acknowledgement.
    pub state: Option<String>,
    /// The host, while there is a session.
    pub node: Option<String>,
    /// The interface that leads to the host, if it is known.
    pub interface: Option<String>,
    /// Last message sent.
    pub seq: Option<u64>,
    /// Whether the session goes on from what the host held.
    pub resumed: Option<bool>,
    /// Changes sent in this session, or acknowledged.
    pub changes: Option<u64>,
    /// Last message acknowledged.
    pub acked: Option<u64>,
}

impl SessionLine {
    /// Whether there is a session; none: it says nothing of it.
    pub fn is_up(&self) -> Option<bool> {
        self.state.as_ref().map(|state| state == "up")
    }
}

/// What a client says of its session, and when it came.
#[derive(Debug)]
pub struct Sessions(Receiver<(Instant, SessionLine)>);

impl Sessions {
    /// Waits for the next line.
    pub fn next(&self, limit: Duration) -> Result<(Instant, SessionLine)> {
        self.0.recv_timeout(limit).with_context(|| format!("the client has said nothing for {limit:?}"))
    }

    /// Waits for a line that is wanted.
    pub fn wait(
        &self,
        what: &str,
        limit: Duration,
        is_wanted: impl Fn(&SessionLine) -> bool,
    ) -> Result<(Instant, SessionLine)> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.next(left).with_context(|| format!("{what} did not come within {limit:?}"))?;
            if is_wanted(&line.1) {
                return Ok(line);
            }
        }
    }

    /// Waits until there is a session, or none.
    pub fn session(&self, is_up: bool, limit: Duration) -> Result<(Instant, SessionLine)> {
        self.wait(&format!("session {is_up}"), limit, |line| line.is_up() == Some(is_up))
    }
}

/// An acknowledgement that the client got. Times are of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acked {
    /// Changes in it, at least one.
    pub changes: u64,
    /// When it came.
    pub at_ns: u64,
    /// When the kernel told the oldest of these changes; none if all were of a snapshot.
    pub queued_ns: Option<u64>,
}

impl Acked {
    /// From the kernel's event of the oldest of these changes.
    pub fn took(&self) -> Option<Duration> {
        self.queued_ns.map(|queued| Duration::from_nanos(self.at_ns.saturating_sub(queued)))
    }
}

/// What the client says of itself when asked; the fields that tests read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ClientState {
    /// "up" once the host took its snapshot's end.
    pub state: String,
    /// Last message sent.
    pub seq: u64,
    /// Last message acknowledged.
    pub acked: u64,
    /// Keys the host was not sent yet.
    pub backlog: u64,
    /// Routes in the kernel's tables.
    pub routes: u64,
    /// Dumps of the kernel's tables.
    pub dumps: u64,
    /// Times that the kernel dropped events.
    pub overflows: u64,
}

impl Watch {
    /// At a client's status socket, which may come to be.
    pub fn connect(path: &Path) -> Result<Self> {
        let what = format!("the status socket {}", path.display());
        let stream = wait_for(&what, START, || Ok(UnixStream::connect(path).ok()))?;
        Ok(Self { lines: BufReader::new(stream) })
    }

    /// Waits for the next acknowledgement of at least one change.
    pub fn acked(&mut self, limit: Duration) -> Result<Acked> {
        let deadline = Instant::now() + limit;
        let mut text = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no acknowledgement within {limit:?}; the last line was {text:?}");
            }
            self.lines.get_ref().set_read_timeout(Some(left))?;
            self.read(&mut text).context("no acknowledgement in time")?;
            if let Some(acked) = acked(&text)? {
                return Ok(acked);
            }
        }
    }

    /// All acknowledgements from now on of at least one change.
    pub fn into_acks(self) -> Result<Receiver<Acked>> {
        self.follow(acked)
    }

    /// What it says of its session, the state of now first.
    pub fn sessions(self) -> Result<Sessions> {
        self.follow(|text| Ok(Some((Instant::now(), serde_json::from_str(text)?)))).map(Sessions)
    }

    /// What `meaning` takes from each line from now on. A thread reads them until nobody takes what they mean, one
    /// means nothing, or the client says no more.
    pub fn follow<T: Send + 'static>(
        mut self,
        meaning: impl Fn(&str) -> Result<Option<T>> + Send + 'static,
    ) -> Result<Receiver<T>> {
        self.lines.get_ref().set_read_timeout(None)?;
        let (tell, told) = channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            while self.read(&mut text).is_ok()
                && let Ok(meant) = meaning(&text)
            {
                if meant.is_some_and(|meant| tell.send(meant).is_err()) {
                    return;
                }
            }
        });
        Ok(told)
    }

    /// Reads a line into `text`.
    fn read(&mut self, text: &mut String) -> Result<()> {
        text.clear();
        if self.lines.read_line(text)? == 0 {
            bail!("the client closed its status socket");
        }
        Ok(())
    }
}

/// The acknowledgement that a line tells of, if it is of at least one change.
fn acked(text: &str) -> Result<Option<Acked>> {
    let line: Line = serde_json::from_str(text).with_context(|| format!("status line {text:?}"))?;
    // A line of the state has no time.
    let (Some(changes @ 1..), Some(at_ns)) = (line.changes, line.monotonic_ns) else { return Ok(None) };
    Ok(Some(Acked { changes, at_ns, queued_ns: line.queued_ns }))
}
