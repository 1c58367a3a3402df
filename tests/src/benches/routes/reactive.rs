//! A reactive controller beside XenFlow: the switch asks for each destination that it does not know, and gets a flow for that address
//! alone (`reactive.py`, an app for Debian's os-ken).
//!
//! It has nothing to load into the switch, so its load is its own start with the routes in a file. A change takes the flows of its
//! prefix away, until the barrier. A first packet goes through the controller, as does the first reply.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::forward::{self, FIRST};
use super::resident;
use super::table::Table;
use crate::benches::{median, round};
use crate::endhost::{EndHost, NIC};
use crate::host::Host;
use crate::process::{Process, retry};
use crate::scenario::Lab;

/// What runs the app, and the package that has it.
pub(super) const PACKAGE: (&str, &str) = ("python3-os-ken", "/usr/bin/osken-manager");
const APP: &str = include_str!("reactive.py");
/// The app's, and one that only learns.
const BRIDGES: [&str; 2] = ["br-reactive", "br-plain"];
/// By bridge: the address of each end host, its router's, and the MAC addresses of both end hosts.
const ENDS: [[(&str, Option<&str>, &str); 2]; 2] = [
    [
        ("10.1.0.10", Some("10.1.0.1"), "02:48:00:00:00:00"),
        ("10.2.0.10", Some("10.2.0.1"), "02:48:00:00:00:01"),
    ],
    [("10.9.0.1", None, "02:48:01:00:00:00"), ("10.9.0.2", None, "02:48:01:00:00:01")],
];
const ROUTER: &str = "02:52:00:00:00:01";
const CONTROLLER: &str = "127.0.0.1";
const PORT: &str = "6653";
const LIMIT: Duration = Duration::from_secs(300);

/// The app is there.
pub(super) fn is_here() -> bool {
    std::path::Path::new(PACKAGE.1).exists()
}

/// With the routes of the table; IPv4.
pub(super) fn measure(lab: &Lab, table: &Table) -> Result<Map<String, Value>> {
    lab.step(format!("a reactive controller with {} routes", table.routes.len()));
    let mut host = Host::create(lab, "e")?;
    host.start_vswitchd()?;
    let mut ends = Vec::new();
    for (bridge, pair) in BRIDGES.into_iter().zip(ENDS) {
        host.vsctl(&["add-br", bridge, "--", "set", "Bridge", bridge, "datapath_type=system"])?;
        for (at, (ip, gateway, mac)) in pair.into_iter().enumerate() {
            let (port, number) = (format!("e{}", ends.len()), format!("ofport_request={}", at + 1));
            let settings = ["--", "set", "Interface", &port, &number];
            let end = EndHost::plug(&host, bridge, &port, mac, (ip, gateway), &settings)?;
            if let Some(gateway) = gateway {
                end.netns().ip_batch(&format!("neigh add {gateway} lladdr {ROUTER} dev {NIC}\n"))?;
            }
            ends.push(end);
        }
    }
    let [from, to, plain, _other] = ends.as_slice() else { unreachable!("there are four") };
    let targets = forward::targets(table, to)?;
    plain.wait_reachable(ENDS[1][1].0, LIMIT)?;

    let [bridge, _] = BRIDGES;
    let [back, by] = ENDS[0].map(|(.., mac)| mac);
    let own = format!("10.1.0.0 24 {back} 1\n10.2.0.0 24 {by} 2\n");
    let all = table.routes.iter().map(|(addr, len, _)| format!("{addr} {len} {by} 2\n")).collect::<String>();
    let remote = format!("tcp:{CONTROLLER}:{PORT}");
    host.vsctl(&["set-controller", bridge, &remote, "--", "set", "Bridge", bridge, "fail_mode=secure"])?;
    let base = resident(App::start(lab, &host, &own)?.process.id())?;
    let begun = Instant::now();
    let mut app = App::start(lab, &host, &(own + &all))?;
    let load = begun.elapsed().as_secs_f64();
    let bytes = resident(app.process.id())? - base;

    lab.step(format!("{FIRST} first packets by the controller, and by a bridge that learns"));
    from.wait_reachable(&targets[0], LIMIT)?;
    let (mut ratios, mut firsts) = (Vec::new(), Vec::new());
    for target in &targets {
        let learned = forward::first(&host, plain, ENDS[1][1].0)?;
        host.ofctl(&["del-flows", bridge, "cookie=1/-1"])?;
        let asked = forward::first(&host, from, target)?;
        ratios.push(asked / learned);
        firsts.push(asked);
    }

    lab.step("changes of routes in use");
    let mut changes = Vec::new();
    for ((addr, len, _), target) in forward::sample(table).zip(&targets) {
        ensure!(from.ping(target, 1, 10)?.lost() == 0, "{target} does not answer");
        let begun = Instant::now();
        app.ask(&format!("change {addr} {len} {by} 2"))?;
        changes.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    let count = table.routes.len();
    let figures = json!({
        "reactive_routes": count,
        "reactive_load_s": round(load),
        "reactive_change_ms_p50": round(median(&mut changes)?),
        "reactive_first_packet_ms": round(median(&mut firsts)?),
        "reactive_first_packet_ratio": round(median(&mut ratios)?),
        "reactive_bytes_per_route": round(bytes / count as f64),
    });
    let Value::Object(figures) = figures else { unreachable!("it is one") };
    Ok(figures)
}

/// The controller, and a connection on which it is told of changes.
struct App {
    commands: BufReader<UnixStream>,
    process: Process,
}

impl App {
    /// With these routes; it has the switch.
    fn start(lab: &Lab, host: &Host, routes: &str) -> Result<Self> {
        let [app, file, socket] =
            ["py", "routes", "sock"].map(|kind| lab.work().join(format!("reactive.{kind}")));
        std::fs::write(&app, APP)?;
        std::fs::write(&file, routes)?;
        if socket.exists() {
            std::fs::remove_file(&socket)?;
        }
        let (_, manager) = PACKAGE;
        let mut command = host.command(manager);
        command.args(["--ofp-listen-host", CONTROLLER, "--ofp-tcp-listen-port", PORT]).arg(app);
        command.env("ROUTES", file).env("COMMANDS", &socket);
        let process = Process::spawn("reactive", &mut command, &lab.results().join("reactive.log"))?;
        let stream = retry("the controller", LIMIT, || Ok(UnixStream::connect(&socket)?))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut app = Self { commands: BufReader::new(stream), process };
        app.ask("sync")?;
        Ok(app)
    }

    /// Returns once the switch has confirmed it.
    fn ask(&mut self, command: &str) -> Result<()> {
        writeln!(self.commands.get_mut(), "{command}")?;
        let mut line = String::new();
        self.commands.read_line(&mut line).context("the controller does not answer")?;
        ensure!(line == "done\n", "the controller answers {line:?}");
        Ok(())
    }
}
