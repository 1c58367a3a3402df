//! `service`: the units of `xen-scripts/` as shipped, under the real systemd, installed as an operator installs them. The
//! host's daemon and the guest's client are stopped, restarted, upgraded, killed and hung under a probe that crosses the
//! router; then the journal is asked for the router and its session, and all is taken away again.
//!
//! Open vSwitch is run by its own Debian units. What the unit files say by themselves is tested without a lab
//! (`tests/tests/units.rs`); the end of the switch and of its database is `restart`'s.

mod site;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use self::site::{DOM0, GUEST, Site};
use crate::process::wait_for;
use crate::scenario::{Lab, Scenario};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "service",
    about: "the units under the real systemd: stop, restart, upgrade, crash and hang under a probe; install and uninstall",
    memory_mib: 1024,
    limit: Duration::from_secs(600),
    needs_product: true,
    in_suite: true,
    targets: &[
        ("probe_loss", "0"),
        ("control", "more than 0"),
        ("left_behind", "0"),
        ("crash_restarts", "1 in the suite, 3 in all"),
        ("journal_lines", "at least 2"),
        ("session_lines", "at least 2"),
    ],
    run,
};

/// In the suite: what contracts are about. A daemon that hangs, and what is done to the client, take as long again.
pub(super) const SUITE_ARGS: &[&str] = &["stop", "restart", "upgrade", "kill"];

const LIMIT: Duration = Duration::from_secs(30);
/// `WatchdogSec` for a daemon that hangs: the shipped one would take ten times as long.
const WATCHDOG: &str = "[Service]\nWatchdogSec=3s\n";
/// That long the control loses packets.
const DARK: Duration = Duration::from_millis(500);

/// What is done, by the name under which the arguments pick it.
type Act = fn(&mut Site, &mut Map<String, Value>) -> Result<()>;

const ACTS: [(&str, Act); 8] = [
    ("stop", stop),
    ("restart", restart),
    ("upgrade", upgrade),
    ("kill", kill),
    ("hang", hang),
    ("guest-restart", guest_restart),
    ("guest-upgrade", guest_upgrade),
    ("guest-kill", guest_kill),
];

fn run(lab: &mut Lab) -> Result<Value> {
    for wanted in lab.args() {
        ensure!(ACTS.iter().any(|(name, _)| name == wanted), "there is no act {wanted:?}");
    }
    let mut site = Site::build(lab)?;
    lab.ready()?;
    let mut figures = Map::new();
    confined(&site, &mut figures)?;
    let probe = site.probe(lab)?;
    for (name, act) in ACTS {
        if lab.args().is_empty() || lab.args().iter().any(|wanted| wanted == name) {
            lab.step(format!("under a probe: {name}"));
            act(&mut site, &mut figures)?;
            site.settle()?;
        }
    }
    let report = probe.stop()?;
    figures.insert("probe_sent".into(), report.sent.into());
    figures.insert("probe_loss".into(), report.lost.into());
    ensure!(report.lost == 0 && report.duplicated == 0, "the probe h1 → h2: {report:?}");
    control(lab, &mut site, &mut figures)?;
    journal(lab, &site, &mut figures)?;
    shaping(lab, &site)?;
    lab.step("uninstalling");
    let left = site.uninstall()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    figures.insert("left_behind".into(), left.len().into());
    Ok(Value::Object(figures))
}

/// The walls are there, and not only in the unit's text; and what the daemon must have it has.
fn confined(site: &Site, figures: &mut Map<String, Value>) -> Result<()> {
    for unit in [DOM0, GUEST] {
        let pid = site.main_pid(unit)?;
        let status = site.systemd.run("cat", &[&format!("/proc/{pid}/status")])?;
        let says = |key: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            value.unwrap_or_default().trim().to_owned()
        };
        // CAP_NET_ADMIN is number 12.
        let seen = ["CapBnd", "CapEff", "NoNewPrivs", "Seccomp"].map(says);
        ensure!(seen == ["0000000000001000", "0000000000001000", "1", "2"], "{unit} has {seen:?}");
        let within = ["--target", &pid, "--mount", "--", "touch", "/usr/xenflow"];
        let written = site.systemd.run("nsenter", &within);
        ensure!(
            written.as_ref().is_err_and(|error| error.to_string().contains("Read-only")),
            "{unit} may write to /usr: {written:?}"
        );
        let text = site.systemd.run("systemd-analyze", &["--no-pager", "security", unit])?;
        let exposure = text.split("exposure level for ").nth(1).and_then(|rest| rest.split(' ').nth(1));
        figures
            .insert(format!("exposure_{}", &unit["xenflow-".len()..]), exposure.unwrap_or_default().into());
    }
    let status = site.systemd.run("xenflow", &["status", "--json"])?;
    let status: Value = serde_json::from_str(&status)?;
    ensure!(status["routers"].as_array().is_some_and(|routers| routers.len() == 1), "status: {status}");
    figures.insert("status_text".into(), site.systemd.property(DOM0, "StatusText")?.into());
    Ok(())
}

fn ms(duration: Duration) -> Value {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).into()
}

/// Away for a while, and all flows stay.
fn stop(site: &mut Site, figures: &mut Map<String, Value>) -> Result<()> {
    site.systemd.ctl("stop", &[DOM0])?;
    ensure!(site.systemd.property(DOM0, "ActiveState")? == "inactive", "it was stopped");
    ensure!(site.systemd.property(DOM0, "Result")? == "success", "it did not end well");
    ensure!(site.flows()? == site.flows, "a stopped daemon's flows are other ones");
    let start = Instant::now();
    site.systemd.ctl("start", &[DOM0])?;
    figures.insert("start_ms".into(), ms(start.elapsed()));
    Ok(())
}

/// Also: certificates are read again by the same process.
fn restart(site: &mut Site, _: &mut Map<String, Value>) -> Result<()> {
    let before = site.main_pid(DOM0)?;
    site.systemd.ctl("reload", &[DOM0])?;
    ensure!(site.main_pid(DOM0)? == before, "a reload started another process");
    site.systemd.ctl("restart", &[DOM0])?;
    ensure!(site.main_pid(DOM0)? != before, "a restart did not");
    Ok(())
}

fn upgrade(site: &mut Site, _: &mut Map<String, Value>) -> Result<()> {
    upgraded(site, DOM0)
}

fn guest_upgrade(site: &mut Site, _: &mut Map<String, Value>) -> Result<()> {
    upgraded(site, GUEST)
}

/// Another program is installed while the old one runs, and runs after a restart.
fn upgraded(site: &mut Site, unit: &str) -> Result<()> {
    let runs_installed = |site: &Site| {
        let pid = site.main_pid(unit)?;
        let args = ["--silent", &format!("/proc/{pid}/exe"), &format!("/usr/bin/{unit}")];
        Ok::<_, anyhow::Error>(site.systemd.command("cmp").args(args).status()?.success())
    };
    ensure!(runs_installed(site)?, "{unit} runs another program than the installed one");
    let said = site.install_other(unit)?;
    let changed: Vec<&str> = said.lines().filter(|line| line.starts_with("install ")).collect();
    ensure!(changed == [format!("install   /usr/bin/{unit}")], "an upgrade said {said}");
    ensure!(!runs_installed(site)?, "the installed program of {unit} is the old one");
    site.systemd.ctl("daemon-reload", &[])?;
    site.systemd.ctl("restart", &[unit])?;
    ensure!(runs_installed(site)?, "{unit} runs the old program");
    Ok(())
}

fn kill(site: &mut Site, figures: &mut Map<String, Value>) -> Result<()> {
    let took = crash(site, DOM0, "KILL", figures)?;
    figures.insert("kill_restart_ms".into(), ms(took));
    Ok(())
}

/// A daemon whose loop does not turn: only the watchdog can know.
fn hang(site: &mut Site, figures: &mut Map<String, Value>) -> Result<()> {
    site.systemd.root().write(&format!("run/systemd/system/{DOM0}.service.d/watchdog.conf"), WATCHDOG)?;
    site.systemd.ctl("daemon-reload", &[])?;
    site.systemd.ctl("restart", &[DOM0])?;
    let took = crash(site, DOM0, "STOP", figures)?;
    figures.insert("watchdog_restart_ms".into(), ms(took));
    let lines = site.systemd.journal(&[&format!("UNIT={DOM0}.service")])?;
    let said = |line: &Value| line["MESSAGE"].as_str().is_some_and(|text| text.contains("Watchdog timeout"));
    ensure!(lines.iter().any(said), "the journal knows of no watchdog");
    Ok(())
}

fn guest_restart(site: &mut Site, _: &mut Map<String, Value>) -> Result<()> {
    site.systemd.ctl("stop", &[GUEST])?;
    ensure!(site.systemd.property(GUEST, "Result")? == "success", "the client did not end well");
    site.systemd.ctl("start", &[GUEST])?;
    site.systemd.ctl("restart", &[GUEST])
}

fn guest_kill(site: &mut Site, figures: &mut Map<String, Value>) -> Result<()> {
    let took = crash(site, GUEST, "KILL", figures)?;
    figures.insert("guest_kill_restart_ms".into(), ms(took));
    Ok(())
}

/// Sends the unit's process a signal that ends it, sooner or later, and waits for systemd to have started another; how
/// long that took.
fn crash(site: &Site, unit: &str, signal: &str, figures: &mut Map<String, Value>) -> Result<Duration> {
    let before = (site.main_pid(unit)?, site.restarts(unit)?);
    let start = Instant::now();
    site.systemd.ctl("kill", &["--kill-who=main", &format!("--signal={signal}"), unit])?;
    wait_for(&format!("{unit} to be started again"), LIMIT, || {
        let is_other = site.main_pid(unit)? != before.0;
        Ok((is_other && site.systemd.property(unit, "ActiveState")? == "active").then_some(()))
    })?;
    let took = start.elapsed();
    ensure!(site.restarts(unit)? == before.1 + 1, "{unit} was not started again once");
    let counted = figures.get("crash_restarts").and_then(Value::as_u64).unwrap_or_default();
    figures.insert("crash_restarts".into(), (counted + 1).into());
    Ok(took)
}

/// The same stop, with the flows taken away: a probe must see that.
fn control(lab: &Lab, site: &mut Site, figures: &mut Map<String, Value>) -> Result<()> {
    lab.step("control: the daemon is stopped, and its flows are deleted");
    let probe = site.probe(lab)?;
    site.systemd.ctl("stop", &[DOM0])?;
    site.delete_flows()?;
    std::thread::sleep(DARK);
    site.systemd.ctl("start", &[DOM0])?;
    site.settle()?;
    let report = probe.stop()?;
    ensure!(report.lost > 0, "without flows nothing was lost: {report:?}");
    figures.insert("control".into(), report.lost.into());
    Ok(())
}

/// What an operator asks the journal.
fn journal(lab: &Lab, site: &Site, figures: &mut Map<String, Value>) -> Result<()> {
    lab.step("asking the journal for the router and its session");
    let of_router = site.systemd.journal(&["XENFLOW_ROUTER=r1"])?;
    let opened =
        |line: &&Value| line["MESSAGE"].as_str().is_some_and(|text| text.starts_with("session opened"));
    let opened: Vec<&Value> = of_router.iter().filter(opened).collect();
    // The client's end closes the session that the daemon did not.
    let mut session_lines = 0;
    for line in &opened {
        let session = line["XENFLOW_SESSION"].as_str().unwrap_or_default();
        let invocation = line["_SYSTEMD_INVOCATION_ID"].as_str().unwrap_or_default();
        let fields = [format!("XENFLOW_SESSION={session}"), format!("_SYSTEMD_INVOCATION_ID={invocation}")];
        let lines = site.systemd.journal(&fields.each_ref().map(String::as_str))?;
        ensure!(lines.iter().all(|line| line["_SYSTEMD_UNIT"] == "xenflow-dom0.service"), "{lines:?}");
        session_lines = session_lines.max(lines.len());
    }
    ensure!(of_router.len() >= 2 && session_lines >= 2, "{} lines of r1: {of_router:?}", of_router.len());
    ensure!(site.systemd.journal(&["XENFLOW_ROUTER=r2"])?.is_empty(), "there is no r2, and it has lines");
    figures.insert("journal_lines".into(), of_router.len().into());
    figures.insert("session_lines".into(), session_lines.into());
    figures.insert("sessions_opened".into(), json!(opened.len()));
    Ok(())
}

/// The daemon may shape within its walls, where `tc` is a program of its own; and takes back what it did.
fn shaping(lab: &Lab, site: &Site) -> Result<()> {
    lab.step("shaping an uplink");
    let tell = |line: &str| {
        let mut words = line.split(' ');
        let program = words.next().unwrap_or_default();
        site.systemd.run(program, &words.collect::<Vec<_>>())
    };
    let all = |lines: &[&str]| lines.iter().try_for_each(|line| tell(line).map(drop));
    let waited = |what: &str, is_there: bool| {
        wait_for(what, LIMIT, || {
            let classes = tell("tc class show dev up0")?;
            Ok((classes.contains("rate 20Mbit ceil 100Mbit") == is_there).then_some(()))
        })
    };
    all(&[
        "ip link add up0 type dummy",
        "ip link set up0 up",
        "ovs-vsctl add-port br-xf up0",
        "xenflow uplink add a up0 --capacity 100mbit",
        "xenflow sla set red --min 20mbit",
    ])?;
    waited("the class of network red", true)?;
    tell("xenflow sla set red --min none")?;
    waited("no class where nothing is promised", false)?;
    all(&["xenflow uplink remove a up0", "ovs-vsctl del-port br-xf up0", "ip link del up0"])
}
