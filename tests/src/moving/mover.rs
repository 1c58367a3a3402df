//! `lab mover`: the toolstack of the lab's machines, as `[migration.toolstack.lab]` of `dom0.toml` calls it.
//!
//! It freezes all processes of the guest, and cuts both directions of all its vifs in the hypervisor, since a namespace
//! whose processes are frozen still answers. Frozen, the vifs go from one host's switch to the other's. After the thaw the
//! hypervisor announces the guest as QEMU does: what ordinary switches need, and XenFlow's are not to listen to.

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket};
use nix::time::{ClockId, clock_gettime};

use super::links::Links;
use super::switch::Switch;
use super::vm::{Files, Machine, Moved, Place};
use crate::progress::print;
use crate::{frame, inject, net};

/// For a guest's processes to be frozen, and for a wire to carry.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at that: a guest is frozen meanwhile.
const POLL: Duration = Duration::from_micros(500);
/// RFC 903, and QEMU's `announce-self`: when it says so after the thaw, in milliseconds.
const RARP: u16 = 0x8035;
const ANNOUNCE_MS: [u64; 4] = [0, 50, 150, 300];

/// Moves machines of the lab.
#[derive(Debug, Args)]
pub struct MoverArgs {
    /// The folder of the machines
    #[arg(long)]
    machines: PathBuf,
    /// The node that asks
    #[arg(long)]
    node: String,
    #[command(subcommand)]
    order: Order,
}

/// What a daemon says to a toolstack.
#[derive(Debug, Subcommand)]
enum Order {
    /// Says what the guest does at this node: running, suspended, gone
    State {
        /// The guest
        guest: String,
    },
    /// Moves the guest
    Move {
        /// The guest
        guest: String,
        /// Its node
        from: String,
        /// Where to
        to: String,
        /// Of the migration
        number: u64,
    },
}

/// The program `lab mover`.
pub fn main(args: &MoverArgs) -> Result<()> {
    match &args.order {
        Order::State { guest } => {
            let at = Files::of(&args.machines, guest).whereabouts()?;
            print(match (at.node == args.node, at.is_frozen) {
                (false, _) => "gone",
                (true, true) => "suspended",
                (true, false) => "running",
            });
            Ok(())
        }
        Order::Move { guest, from, to, number } => {
            ensure!(*from == args.node, "{guest} is moved by its own node, and {} is not {from}", args.node);
            Move::prepare(&Files::of(&args.machines, guest), (from, to, *number))?.run()
        }
    }
}

/// SIGTERM, held back: it brings the guest back at the next step.
struct Stop(SignalFd);

impl Stop {
    fn hold() -> Result<Self> {
        let set: SigSet = [Signal::SIGTERM].into_iter().collect();
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// Waits, at most so long; whether somebody wants us to stop.
    fn wait(&self, until: Instant) -> Result<bool> {
        use std::os::fd::AsFd as _;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Up to the next millisecond, or the last of them would be spent at full speed.
            let left = u32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u32::MAX);
            let mut files = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut files, timeout) {
                Ok(0) if Instant::now() >= until => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error).context("cannot wait for a signal"),
            }
        }
    }
}

/// One end of the move.
struct End {
    node: String,
    links: Links,
    switch: Switch,
}

impl End {
    fn open(node: &str, machine: &Machine) -> Result<Self> {
        let place = machine.hosts.get(node).with_context(|| format!("there is no host {node}"))?;
        let Place { netns, db } = place;
        Ok(Self { node: node.to_owned(), links: Links::open(netns)?, switch: Switch::open(db)? })
    }
}

struct Move<'a> {
    files: &'a Files,
    machine: Machine,
    number: u64,
    from: End,
    to: End,
    hypervisor: Links,
    stop: Stop,
    begun_ns: u64,
    since: Instant,
    steps: Vec<(String, f64)>,
}

impl<'a> Move<'a> {
    /// Everything that need not be done while the guest is frozen.
    fn prepare(files: &'a Files, (from, to, number): (&str, &str, u64)) -> Result<Self> {
        let (begun_ns, since) = (now_ns(ClockId::CLOCK_MONOTONIC)?, Instant::now());
        let stop = Stop::hold()?;
        let machine = files.machine()?;
        let at = files.whereabouts()?;
        ensure!(from != to, "{from} is where it is");
        ensure!(at.node == from && !at.is_frozen, "the guest does not run on {from}: {at:?}");
        let (from, to) = (End::open(from, &machine)?, End::open(to, &machine)?);
        let hypervisor = Links::open(&machine.hypervisor)?;
        let steps = Vec::new();
        Ok(Self { files, machine, number, from, to, hypervisor, stop, begun_ns, since, steps })
    }

    fn run(mut self) -> Result<()> {
        adopt(&self.machine)?;
        self.step("prepare");
        let copied = Instant::now() + Duration::from_millis(self.machine.pace.copy_ms);
        if self.stop.wait(copied)? {
            bail!("stopped: the guest has not left {}", self.from.node);
        }
        // A server lets go of who has said nothing for so long as a copy may take.
        for end in [&mut self.from, &mut self.to] {
            end.switch = Switch::open(&self.machine.hosts[&end.node].db)?;
        }
        self.step("copy");
        let moved = self.blackout();
        if moved.is_err() {
            // A guest that is nowhere is worse than one that is not where it should be.
            let _ = self.set_frozen(false);
        }
        moved
    }

    fn blackout(&mut self) -> Result<()> {
        let frozen_ns = now_ns(ClockId::CLOCK_MONOTONIC)?;
        let end = Instant::now() + Duration::from_millis(self.machine.pace.freeze_ms);
        self.set_frozen(true)?;
        self.files.set_whereabouts(&self.from.node, true)?;
        self.step("freeze");
        self.take(false)?;
        let is_there = !self.stop.wait(end)?;
        self.step("wait");
        if !is_there {
            self.take(true)?;
        }
        let node = if is_there { &self.to.node } else { &self.from.node };
        let thawed_ns = now_ns(ClockId::CLOCK_MONOTONIC)?;
        let thawed_epoch_ms = now_ns(ClockId::CLOCK_REALTIME)? as f64 / 1e6;
        self.set_frozen(false)?;
        self.files.set_whereabouts(node, false)?;
        self.step("thaw");
        let ended_ns = now_ns(ClockId::CLOCK_MONOTONIC)?;
        let moved = Moved {
            number: self.number,
            from: self.from.node.clone(),
            to: self.to.node.clone(),
            is_there,
            begun_ns: self.begun_ns,
            frozen_ns,
            thawed_ns,
            thawed_epoch_ms,
            ended_ns,
            steps: std::mem::take(&mut self.steps),
        };
        self.files.add_move(&moved)?;
        print(serde_json::to_string(&moved)?);
        self.announce()?;
        ensure!(is_there, "stopped: the guest goes on at {}", self.from.node);
        Ok(())
    }

    fn step(&mut self, name: &str) {
        let ms = self.since.elapsed().as_secs_f64() * 1000.0;
        self.since = Instant::now();
        self.steps.push((name.to_owned(), (ms * 1000.0).round() / 1000.0));
    }

    /// Stops the guest's processes, then its wires; lets them go on in the opposite order.
    fn set_frozen(&self, is_frozen: bool) -> Result<()> {
        let wires = || {
            let mut inner = self.machine.vifs.iter().map(|vif| vif.inner());
            inner.try_for_each(|inner| self.hypervisor.isolate(&inner, is_frozen))
        };
        if !is_frozen {
            wires()?;
        }
        let cgroup = &self.machine.cgroup;
        std::fs::write(cgroup.join("cgroup.freeze"), if is_frozen { "1" } else { "0" })?;
        let wanted = format!("frozen {}", u8::from(is_frozen));
        until("the guest's processes to be as told", || {
            Ok(std::fs::read_to_string(cgroup.join("cgroup.events"))?.contains(&wanted))
        })?;
        if is_frozen { wires() } else { Ok(()) }
    }

    /// Takes the vifs to the other host, or back.
    fn take(&mut self, is_back: bool) -> Result<()> {
        let vifs = &self.machine.vifs;
        let (old, new) = if is_back { (&self.to, &self.from) } else { (&self.from, &self.to) };
        let mut steps = Vec::new();
        let mut since = Instant::now();
        let mut step = |name: &str| {
            steps.push((format!("{name} {}", new.node), since.elapsed().as_secs_f64() * 1000.0));
            since = Instant::now();
        };
        old.switch.unplug(vifs)?;
        step("unplug for");
        for vif in vifs {
            old.links.hand_over(&vif.port, &new.links)?;
        }
        self.files.set_whereabouts(&new.node, true)?;
        step("hand over to");
        new.switch.plug(vifs, &self.machine.vm_uuid)?;
        step("plug in at");
        for vif in vifs {
            new.links.raise(&vif.port)?;
        }
        // The bridge hears of the carrier a moment later.
        for vif in vifs {
            until("the wire to the host", || match self.hypervisor.forward(&vif.outer()) {
                Ok(()) => Ok(true),
                Err(error) if is_down(&error) => Ok(false),
                Err(error) => Err(error),
            })?;
        }
        step("raise at");
        self.steps.extend(steps);
        self.since = Instant::now();
        Ok(())
    }

    /// Says where the guest is, as QEMU does for all of its interfaces.
    fn announce(&self) -> Result<()> {
        let vifs: Vec<_> = self.machine.vifs.iter().map(|vif| (vif.outer(), vif.mac.clone())).collect();
        net::enter(&self.machine.hypervisor, || {
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
            let start = Instant::now();
            for at_ms in ANNOUNCE_MS {
                if let Some(early) = Duration::from_millis(at_ms).checked_sub(start.elapsed()) {
                    std::thread::sleep(early);
                }
                for (device, mac) in &vifs {
                    let frame = rarp(frame::mac(mac)?);
                    sendto(socket.as_raw_fd(), &frame, &inject::link_address(device)?, MsgFlags::empty())
                        .with_context(|| format!("cannot announce {mac}"))?;
                }
            }
            Ok(())
        })
    }
}

/// "Who am I?", which nobody answers: the frame that makes switches learn.
fn rarp(mac: [u8; 6]) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 3];
    for _ in 0..2 {
        body.extend(mac);
        body.extend([0; 4]);
    }
    frame::ethernet([0xff; 6], mac, &[], RARP, &body)
}

fn is_down(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    code == Some(Errno::ENETDOWN as i32)
}

/// Puts all processes of the guest's namespace into its cgroup: those that they start are in it as well.
fn adopt(machine: &Machine) -> Result<()> {
    let namespace = std::fs::metadata(&machine.guest)?.ino();
    let procs = machine.cgroup.join("cgroup.procs");
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else {
            continue;
        };
        // One that has ended, or a thread of the kernel, has none.
        let Ok(found) = std::fs::metadata(entry.path().join("ns/net")) else { continue };
        if found.ino() == namespace {
            match std::fs::write(&procs, pid) {
                Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
                done => done.with_context(|| format!("cannot take process {pid} into the guest"))?,
            }
        }
    }
    Ok(())
}

/// Waits for a condition, looking often.
fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !holds()? {
        ensure!(Instant::now() < deadline, "waited {} s for {what}", LIMIT.as_secs());
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// A clock, in nanoseconds.
fn now_ns(clock: ClockId) -> Result<u64> {
    Ok(u64::try_from(Duration::from(clock_gettime(clock)?).as_nanos())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 903: hardware Ethernet, protocol IPv4, request reverse, sender and target alike.
    #[test]
    fn an_announcement_is_a_reverse_request() {
        let mac = [2, 0x52, 0, 0, 1, 0];
        let frame = rarp(mac);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!((&frame[6..12], &frame[12..14]), (&mac[..], &[0x80, 0x35][..]));
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!((&frame[22..28], &frame[32..38]), (&mac[..], &mac[..]));
    }
}
