//! The inside of the lab from the kernel's hand-over to power-off.
//!
//! Process 1 ([`process_one`]) mounts, starts the same binary once more as `lab inside` ([`inside`]), collects
//! orphans until that one has ended, and powers off. So a scenario may panic: process 1 still tells the story.
//!
//! The root is the real machine's, read-only. Everything that programs write to is covered by memory; the real
//! machine's root appears once more below [`HOST`], uncovered, as the product may have been built below `/tmp`.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname, sync};

use crate::job::{self, Job, Outcome};
use crate::net::NAMESPACES;
use crate::process;
use crate::progress::{Events, uptime_s};
use crate::scenario::{Lab, ShellEnded};
use crate::scenarios;

/// Where the results folder is mounted.
pub const RESULTS: &str = "/run/results";
/// Where the real machine's root is seen without the lab's mounts.
pub const HOST: &str = "/run/host";
/// The kernel parameter with the results folder on the real machine.
pub const PARAM_RESULTS: &str = "lab.results=";
/// The kernel parameter with the lab's binary on the real machine.
pub const PARAM_BINARY: &str = "lab.binary=";
/// The scenario's folder in memory.
const WORK: &str = "/tmp/lab";
/// Where `modprobe -d` looks: the UML package keeps its modules outside `/lib/modules`.
const MODULES: &str = "/run/modules";
/// Loaded at the start. The kernel's own requests work as well, through a script, but cost a process each.
const MODULE_NAMES: &[&str] = &[
    "openvswitch",
    "vport-vxlan",
    "vport-geneve",
    "vport-gre",
    "veth",
    "bridge",
    "8021q",
    "vrf",
    "dummy",
    "tun",
    "sch_htb",
    "sch_netem",
    "sch_fq_codel",
    "sch_ingress",
    "cls_flower",
    "cls_u32",
    "act_mirred",
    "nf_tables",
    "nft_ct",
    "nft_limit",
    "nft_log",
    "mpls_router",
    "mpls_iptunnel",
    "xfrm_user",
    "ip_tables",
    "iptable_filter",
    "tcp_bbr",
];

/// What process 1 does. Never returns: the lab is off afterwards.
pub fn process_one() -> ! {
    let outcome = supervise();
    if let Err(error) = outcome {
        crate::progress::say(format!("lab init: {error:#}"));
        let result = Path::new(RESULTS).join(job::RESULT);
        if !result.exists() {
            let _ = job::write(&result, &Outcome::failure(format!("{error:#}"), uptime_s()));
        }
    }
    sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
    // Only if the kernel refuses to power off; process 1 must not end.
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn supervise() -> Result<()> {
    mount_fs("proc", "/proc", "proc", "")?;
    let parameters = std::fs::read_to_string("/proc/cmdline")?;
    let parameter = |name: &str| {
        parameters
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name))
            .with_context(|| format!("the kernel's command line has no {name}"))
    };
    mounts(parameter(PARAM_RESULTS)?)?;
    let binary = PathBuf::from(format!("{HOST}{}", parameter(PARAM_BINARY)?));
    let child = Command::new(&binary)
        .arg("inside")
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/tmp")
        .env("LANG", "C.UTF-8")
        .env("RUST_BACKTRACE", "1")
        .current_dir("/tmp")
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    let child = Pid::from_raw(i32::try_from(child.id())?);
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, 0)) if pid == child => return Ok(()),
            Ok(WaitStatus::Exited(pid, code)) if pid == child => {
                anyhow::bail!("the scenario's process ended with exit code {code}");
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                anyhow::bail!("the scenario's process was ended by {signal}");
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for the scenario's process"),
        }
    }
}

/// Mounts everything but `/proc`.
fn mounts(results: &str) -> Result<()> {
    mount_fs("sysfs", "/sys", "sysfs", "")?;
    mount_fs("cgroup2", "/sys/fs/cgroup", "cgroup2", "")?;
    if !Path::new("/dev/null").exists() {
        mount_fs("devtmpfs", "/dev", "devtmpfs", "")?;
    }
    for (dir, kind) in [("/dev/pts", "devpts"), ("/dev/shm", "tmpfs")] {
        std::fs::create_dir_all(dir)?;
        mount_fs(kind, dir, kind, "")?;
    }
    for (link, target) in [("/dev/fd", "/proc/self/fd"), ("/dev/stdin", "fd/0"), ("/dev/stdout", "fd/1")] {
        if !Path::new(link).exists() {
            symlink(target, link)?;
        }
    }
    for dir in ["/run", "/tmp", "/var"] {
        mount_fs("tmpfs", dir, "tmpfs", "mode=755")?;
    }
    std::fs::set_permissions("/tmp", std::fs::Permissions::from_mode(0o1777))?;
    for dir in [RESULTS, HOST, "/var/log", "/var/lib", "/var/tmp", NAMESPACES, "/run/lock"] {
        std::fs::create_dir_all(dir)?;
    }
    // As `ip netns` does before its first namespace.
    let (none, flags) =
        (None::<&str>, [MsFlags::MS_BIND | MsFlags::MS_REC, MsFlags::MS_SHARED | MsFlags::MS_REC]);
    for flags in flags {
        mount(Some(NAMESPACES), NAMESPACES, none, flags, none).context("cannot share /run/netns")?;
    }
    symlink("/run", "/var/run")?;
    symlink("/run/lock", "/var/lock")?;
    mount_fs("none", RESULTS, "hostfs", results)?;
    mount(Some("none"), HOST, Some("hostfs"), MsFlags::MS_RDONLY, Some("/"))
        .context("cannot mount the machine's root")?;
    // Packages give these to other users; covered, an ordinary user's lab can read them too.
    for dir in ["/etc/frr", "/etc/openvswitch"] {
        if Path::new(dir).is_dir() {
            mount_fs("tmpfs", dir, "tmpfs", "mode=755")?;
        }
    }
    Ok(())
}

fn mount_fs(source: &str, target: &str, kind: &str, options: &str) -> Result<()> {
    mount(Some(source), target, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("cannot mount {kind} on {target}"))
}

/// The program `lab inside`: prepares the kernel, runs the job's scenario, writes the result.
pub fn inside() -> Result<()> {
    let results = Path::new(RESULTS);
    let outcome = run_job(results).unwrap_or_else(|error| Outcome::failure(format!("{error:#}"), uptime_s()));
    job::write(&results.join(job::RESULT), &outcome)
}

fn run_job(results: &Path) -> Result<Outcome> {
    let mut job: Job = job::read(&results.join(job::JOB))?;
    let product = job
        .product
        .iter_mut()
        .flat_map(|product| [&mut product.dom0, &mut product.xenflow, &mut product.guest]);
    for program in product.chain([&mut job.lab]) {
        *program = PathBuf::from(format!("{HOST}{}", program.display()));
    }
    let scenario = scenarios::find(&job.scenario)
        .with_context(|| format!("this binary knows no scenario {:?}", job.scenario))?;
    let events = Events::open().context("cannot open the event line")?;
    watchdog(Duration::from_secs(job.limit_s), results.to_owned(), events.clone());
    prepare()?;
    events.step("the kernel is up");
    let work = PathBuf::from(WORK);
    std::fs::create_dir_all(&work)?;
    let mut lab = Lab::new(job, results.to_owned(), work, events);
    // The scenario's own thread, so that a panic is a value.
    let run = scenario.run;
    let end = std::thread::scope(|scope| scope.spawn(|| run(&mut lab)).join());
    Ok(match end {
        Ok(Ok(figures)) => Outcome { ok: true, error: None, figures, seconds: uptime_s(), exit_code: None },
        Ok(Err(error)) => match error.downcast_ref::<ShellEnded>() {
            Some(ended) => Outcome {
                ok: ended.exit_code == 0,
                error: (ended.exit_code != 0).then(|| ended.to_string()),
                figures: serde_json::Value::Null,
                seconds: uptime_s(),
                exit_code: Some(ended.exit_code),
            },
            None => Outcome::failure(format!("{error:#}"), uptime_s()),
        },
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("with something that is not text");
            Outcome::failure(format!("the scenario panicked: {text}"), uptime_s())
        }
    })
}

/// Ends the lab from inside when its time is over: the logs are still written then, which they would not be if
/// the kernel were killed from outside.
fn watchdog(limit: Duration, results: PathBuf, events: Events) {
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        let processes = process::output(Command::new("ps").args(["axo", "pid,stat,wchan:20,args"]));
        let _ = std::fs::write(results.join("processes.txt"), processes.unwrap_or_default());
        events.step(format!("the time limit of {} s is over", limit.as_secs()));
        let outcome = Outcome::failure(format!("not done within its {} s", limit.as_secs()), uptime_s());
        let _ = job::write(&results.join(job::RESULT), &outcome);
        std::process::exit(1);
    });
}

fn prepare() -> Result<()> {
    sethostname("lab")?;
    // What is written to the results folder is on the real machine a second later, whatever happens here.
    for key in ["dirty_writeback_centisecs", "dirty_expire_centisecs"] {
        std::fs::write(format!("/proc/sys/vm/{key}"), "100")?;
    }
    modules()?;
    process::output(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    Ok(())
}

fn modules() -> Result<()> {
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let source = PathBuf::from("/usr/lib/uml/modules").join(&release);
    anyhow::ensure!(source.is_dir(), "there are no kernel modules in {}", source.display());
    let dir = Path::new(MODULES).join("lib/modules");
    std::fs::create_dir_all(&dir)?;
    symlink(&source, dir.join(&release))?;
    // modprobe says nothing of /etc/modprobe.d of the machine, which may blacklist what we need.
    let script = Path::new(MODULES).join("modprobe");
    std::fs::write(&script, format!("#!/bin/sh\nexec modprobe -d {MODULES} \"$@\"\n"))?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    process::output(Command::new("modprobe").args(["-d", MODULES, "-a"]).args(MODULE_NAMES))?;
    std::fs::write("/proc/sys/kernel/modprobe", script.display().to_string())?;
    Ok(())
}
