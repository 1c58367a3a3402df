//! A virtual machine: what is between a guest's namespace and the hosts that it may run on.
//!
//! A namespace per guest stands for the hypervisor. Each vif is a veth pair whose one end is the guest's interface, a
//! bridge of two ports, and another pair whose far end is the port of a host's switch; that far end moves from host to
//! host. So the guest keeps its interfaces, and sees no event of them, as in a live migration with virtio; and what stands
//! in the hypervisor to freeze it is nothing that a guest finds in its own kernel and reports.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::net::Netns;
use crate::process;
use crate::scenario::Lab;

/// The first index of an interface that leads to a host: another one than its peer has. The kernel tells a change of the
/// carrier of one whose peer has the same index up to a second late (`linkwatch_urgent_event`).
const FIRST_INDEX: usize = 1000;

/// Unicast probes of a neighbor, one a second: for longer than any machine here is frozen.
const PROBES: &str = "30";

/// One of a machine's interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vif {
    /// Its name in the guest.
    pub interface: String,
    /// Its port's name on each host.
    pub port: String,
    /// `external_ids:iface-id` of its port.
    pub iface_id: String,
    /// Its MAC address.
    pub mac: String,
    /// The VLAN of its port where the switch is a plain one.
    pub tag: Option<u16>,
}

impl Vif {
    /// The bridge's port that leads to the guest.
    pub(super) fn inner(&self) -> String {
        format!("g-{}", self.interface)
    }

    /// The one that leads to a host.
    pub(super) fn outer(&self) -> String {
        format!("h-{}", self.interface)
    }
}

/// A host as the toolstack reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) netns: PathBuf,
    pub(super) db: PathBuf,
}

/// What the toolstack knows of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) guest: PathBuf,
    pub(super) hypervisor: PathBuf,
    pub(super) cgroup: PathBuf,
    pub(super) vm_uuid: String,
    pub(super) vifs: Vec<Vif>,
    pub(super) hosts: BTreeMap<String, Place>,
    pub(super) pace: Pace,
}

/// How long the parts of a move take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// The guest runs while its memory is copied: so many milliseconds.
    pub copy_ms: u64,
    /// It is frozen for so many, or for what it takes to take its vifs from one host to another if that is more.
    pub freeze_ms: u64,
}

/// Where a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Whereabouts {
    pub(super) node: String,
    pub(super) is_frozen: bool,
}

/// What a move has taken; times of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// Of the migration.
    pub number: u64,
    /// Where from.
    pub from: String,
    /// Where to.
    pub to: String,
    /// Whether it is there; otherwise it was brought back, or has never left.
    pub is_there: bool,
    /// When the toolstack began.
    pub begun_ns: u64,
    /// When the guest was frozen.
    pub frozen_ns: u64,
    /// When it was let go on.
    pub thawed_ns: u64,
    /// The same by the clock of the day: milliseconds since the Unix epoch.
    pub thawed_epoch_ms: f64,
    /// When the toolstack ended.
    pub ended_ns: u64,
    /// Each step's milliseconds, in their order.
    pub steps: Vec<(String, f64)>,
}

impl Moved {
    /// For how long it was frozen.
    #[must_use]
    pub fn frozen(&self) -> Duration {
        Duration::from_nanos(self.thawed_ns.saturating_sub(self.frozen_ns))
    }

    /// The whole of it.
    #[must_use]
    pub fn took(&self) -> Duration {
        Duration::from_nanos(self.ended_ns.saturating_sub(self.begun_ns))
    }
}

/// Files of a machine in the toolstack's folder.
pub(super) struct Files {
    machine: PathBuf,
    whereabouts: PathBuf,
    moves: PathBuf,
}

impl Files {
    pub(super) fn of(folder: &Path, guest: &str) -> Self {
        let file = |kind: &str| folder.join(format!("{guest}.{kind}"));
        Self { machine: file("json"), whereabouts: file("at"), moves: file("moves") }
    }

    pub(super) fn machine(&self) -> Result<Machine> {
        read(&self.machine)
    }

    pub(super) fn whereabouts(&self) -> Result<Whereabouts> {
        read(&self.whereabouts)
    }

    pub(super) fn set_whereabouts(&self, node: &str, is_frozen: bool) -> Result<()> {
        write(&self.whereabouts, &Whereabouts { node: node.to_owned(), is_frozen })
    }

    pub(super) fn add_move(&self, moved: &Moved) -> Result<()> {
        let mut file = File::options().create(true).append(true).open(&self.moves)?;
        Ok(writeln!(file, "{}", serde_json::to_string(moved)?)?)
    }

    fn moves(&self) -> Result<Vec<Moved>> {
        let text = match std::fs::read_to_string(&self.moves) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text.with_context(|| format!("cannot read {}", self.moves.display()))?,
        };
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is not as it should be", path.display()))
}

/// All of it, or none: somebody may be reading.
fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let new = path.with_added_extension(format!("{}.new", std::process::id()));
    std::fs::write(&new, serde_json::to_vec(value)?)?;
    Ok(std::fs::rename(&new, path)?)
}

/// The folder of all machines of a lab.
pub(super) fn folder(lab: &Lab) -> PathBuf {
    lab.work().join("machines")
}

/// The words that come before `state` and `move` where a node's daemon calls the toolstack.
#[must_use]
pub fn toolstack(lab: &Lab, node: &str) -> Vec<String> {
    let shown = |path: &Path| path.display().to_string();
    let [program, folder] = [shown(lab.binary()), shown(&folder(lab))];
    vec![program, "mover".into(), "--machines".into(), folder, "--node".into(), node.into()]
}

/// A machine.
#[derive(Debug)]
pub struct Vm {
    hypervisor: Netns,
    name: String,
    folder: PathBuf,
    program: PathBuf,
}

impl Vm {
    /// Around a guest's namespace, which gets its interfaces, up and without addresses. It runs on the first of the hosts,
    /// plugged in there once that has a switch.
    pub fn create(lab: &Lab, guest: &Netns, vifs: Vec<Vif>, hosts: &[&Host], pace: Pace) -> Result<Self> {
        let name = guest.name();
        let first = hosts.first().context("a machine runs on some host")?;
        let hypervisor = Netns::create(&format!("vm-{name}"))?;
        // Both families, so that nothing here ever says a word by itself.
        hypervisor.sysctls(&[("net.ipv6.conf.default.disable_ipv6", "1")])?;
        let (mut pairs, mut inside, mut ups) = (String::new(), String::new(), String::new());
        for (index, vif) in vifs.iter().enumerate() {
            let (inner, outer) = (vif.inner(), vif.outer());
            let Vif { interface, port, mac, .. } = vif;
            let wire = format!("w-{interface}");
            pairs.push_str(&format!(
                "link add {inner} netns vm-{name} type veth peer name {interface} address {mac} netns {name}\n\
                 link add {outer} netns vm-{name} index {} type veth peer name {port} netns {}\n",
                FIRST_INDEX + index,
                first.name()
            ));
            // It learns nothing: it has two ports. Isolated ports do not reach each other: to freeze the guest, the other one is made
            // one as well.
            inside.push_str(&format!(
                "link add {wire} type bridge stp_state 0 mcast_snooping 0 ageing_time 0\nlink set {wire} up\n\
                 link set {inner} master {wire} up\nlink set {outer} master {wire} up\nlink set dev {outer} type bridge_slave isolated on\n"
            ));
            ups.push_str(&format!("link set {interface} up\n"));
        }
        process::output_with_input(Command::new("ip").args(["-batch", "-"]), &pairs)
            .with_context(|| format!("in the batch {pairs:?}"))?;
        hypervisor.ip_batch(&inside)?;
        guest.ip_batch(&ups)?;
        // The kernel of a machine that is frozen stands still, and this one does not: a neighbor that it happens to probe when the freeze
        // begins would be given up before the thaw.
        for Vif { interface, .. } in &vifs {
            let probes = |family: &str| format!("net.{family}.neigh.{interface}.ucast_solicit");
            guest.sysctls(&[(&probes("ipv4"), PROBES), (&probes("ipv6"), PROBES)])?;
        }
        for vif in &vifs {
            first.quiet(&vif.port)?;
        }
        let ports: String = vifs.iter().map(|vif| format!("link set {} up\n", vif.port)).collect();
        first.netns().ip_batch(&ports)?;
        let cgroup = PathBuf::from("/sys/fs/cgroup").join(format!("vm-{name}"));
        std::fs::create_dir_all(&cgroup).with_context(|| format!("cannot make {}", cgroup.display()))?;
        let machine = Machine {
            guest: guest.path(),
            hypervisor: hypervisor.path(),
            cgroup,
            vm_uuid: format!("00000000-0000-4000-8000-{:012}", lab.next_id()),
            vifs,
            hosts: hosts.iter().map(|host| (host.name().to_owned(), place(host))).collect(),
            pace,
        };
        let folder = folder(lab);
        std::fs::create_dir_all(&folder)?;
        let vm = Self { hypervisor, name: name.to_owned(), folder, program: lab.binary().to_owned() };
        write(&vm.files().machine, &machine)?;
        vm.files().set_whereabouts(first.name(), false)?;
        declare(first, &machine)?;
        Ok(vm)
    }

    /// From now on moves take so long.
    pub fn set_pace(&self, pace: Pace) -> Result<()> {
        let machine = self.files().machine()?;
        write(&self.files().machine, &Machine { pace, ..machine })
    }

    /// Moves the machine as an operator who knows of no XenFlow does, and waits for the end.
    pub fn move_by_hand(&self, from: &str, to: &str) -> Result<Moved> {
        let number = u64::try_from(self.moves()?.len())? + 1_000_000;
        let mut command = Command::new(&self.program);
        command.arg("mover").arg("--machines").arg(&self.folder).args(["--node", from, "move", &self.name]);
        command.args([from, to, &number.to_string()]);
        process::output(&mut command)?;
        self.moved(number)
    }

    /// What became of the move with this number.
    pub fn moved(&self, number: u64) -> Result<Moved> {
        let moved = self.moves()?.into_iter().find(|moved| moved.number == number);
        moved.with_context(|| format!("{} has made no move {number}", self.name))
    }

    /// All moves so far.
    pub fn moves(&self) -> Result<Vec<Moved>> {
        self.files().moves()
    }

    /// Where it is.
    pub fn node(&self) -> Result<String> {
        Ok(self.files().whereabouts()?.node)
    }

    /// The namespace that stands for the hypervisor.
    pub fn hypervisor(&self) -> &Netns {
        &self.hypervisor
    }

    fn files(&self) -> Files {
        Files::of(&self.folder, &self.name)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // A frozen process takes no signal that ends it softly.
        if let Ok(machine) = self.files().machine() {
            let _ = std::fs::write(machine.cgroup.join("cgroup.freeze"), "0");
        }
    }
}

fn place(host: &Host) -> Place {
    Place { netns: host.netns().path(), db: host.db_socket() }
}

/// Plugs a machine in where no switch need run yet.
fn declare(host: &Host, machine: &Machine) -> Result<()> {
    let mut args = Vec::new();
    for Vif { port, iface_id, mac, tag, .. } in &machine.vifs {
        args.extend(["--", "add-port", crate::node::BRIDGE, port].map(str::to_owned));
        args.extend(tag.map(|tag| format!("tag={tag}")));
        args.extend(["--", "set", "Interface", port].map(str::to_owned));
        args.push(format!("external_ids:iface-id={iface_id}"));
        args.push(format!("external_ids:attached-mac=\"{mac}\""));
        args.push(format!("external_ids:vm-uuid={}", machine.vm_uuid));
        args.push("external_ids:iface-status=active".to_owned());
    }
    host.vsctl(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
    Ok(())
}
