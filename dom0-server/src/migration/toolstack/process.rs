//! Processes, told apart from later ones with the same number.

use std::fs;
use std::io;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process of this host, wherever in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// Its number; 0 is nobody's.
    pub(super) pid: u32,
    /// When it began, in the kernel's ticks since the boot.
    pub(super) start: u64,
    /// Of which boot.
    pub(super) boot: String,
}

/// A line of `/proc/PID/stat` (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat<'a> {
    name: &'a str,
    state: char,
    parent: u32,
    start: u64,
}

impl<'a> Stat<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        // A name may have anything in it.
        let (head, rest) = line.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        let mut words = rest.split_whitespace();
        let state = words.next()?.chars().next()?;
        let parent = words.next()?.parse().ok()?;
        // The 22nd, and these were three.
        let start = words.nth(17)?.parse().ok()?;
        Some(Self { name, state, parent, start })
    }
}

fn boot() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}

impl Process {
    /// The one that never was.
    pub(super) fn nobody() -> Self {
        Self { pid: 0, start: 0, boot: String::new() }
    }

    /// This one.
    pub(super) fn this() -> io::Result<Self> {
        let line = fs::read_to_string("/proc/self/stat")?;
        let stat = Stat::parse(&line).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pid: std::process::id(), start: stat.start, boot: boot()? })
    }

    /// It has not ended. One that nobody has waited for yet has.
    pub(super) fn is_alive(&self) -> bool {
        let line = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let is_it = Stat::parse(&line)
            .is_some_and(|stat| stat.start == self.start && !matches!(stat.state, 'Z' | 'X'));
        is_it && boot().is_ok_and(|boot| boot == self.boot)
    }

    /// SIGTERM, if it lives.
    pub(super) fn terminate(&self) -> io::Result<()> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
        let of_dead = |error: rustix::io::Errno| {
            if error == rustix::io::Errno::SRCH { Ok(()) } else { Err(error.into()) }
        };
        // Held before it is looked at, so that it is the same one then.
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(held) if self.is_alive() => pidfd_send_signal(held, Signal::TERM).or_else(of_dead),
            Ok(_) => Ok(()),
            Err(error) => of_dead(error),
        }
    }

    /// Those that it has begun and that live, with their names: of the program, cut to 15 bytes.
    pub(super) fn children(&self) -> io::Result<Vec<(Self, String)>> {
        let mut children = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let line = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if let Some(stat) = Stat::parse(&line).filter(|stat| stat.parent == self.pid) {
                children.push((Self { pid, start: stat.start, boot: boot()? }, stat.name.to_owned()));
            }
        }
        Ok(children)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_have_anything_in_it() {
        let line = "12 (a) b (c) S 7 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 2469888 200 18446744073709551615";
        let stat = Stat { name: "a) b (c", state: 'S', parent: 7, start: 4711 };
        assert_eq!(Stat::parse(line), Some(stat));
        for wrong in ["", "12", "12 (a", "12 (a) S", "12 (a) S x", "12 (a) S 7 12 12"] {
            assert_eq!(Stat::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_later_process_with_its_number_is_another() {
        let this = Process::this().unwrap();
        assert!(this.is_alive());
        let earlier = Process { start: this.start - 1, ..this.clone() };
        let before_boot = Process { boot: "0".into(), ..this.clone() };
        for other in [&earlier, &before_boot, &Process::nobody()] {
            assert!(!other.is_alive(), "{other:?}");
            // This test lives on.
            other.terminate().unwrap();
        }
    }

    #[test]
    fn a_child_is_known_until_it_ends() {
        let this = Process::this().unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let known = loop {
            let mut all = this.children().unwrap();
            // Until its program is loaded it has the name of this one.
            if let Some(at) = all.iter().position(|(it, name)| it.pid == child.id() && name == "sleep") {
                break all.swap_remove(at).0;
            }
        };
        assert!(known.is_alive());
        known.terminate().unwrap();
        while known.is_alive() {
            std::thread::yield_now();
        }
        // Not waited for yet: its number is still taken.
        assert!(fs::exists(format!("/proc/{}", child.id())).unwrap());
        known.terminate().unwrap();
        assert!(!child.wait().unwrap().success());
    }
}
