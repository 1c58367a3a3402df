//! What the switch alone takes for the same: `ovs-ofctl` with the flows in a file, and single changes over a connection that is open.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use openflow::{Config, Event, Flow, FlowMod, Match, Message, Session};

use crate::host::Host;
use crate::process;
use crate::scenario::Lab;

/// A bridge of the same switch that nobody else writes to.
const BRIDGE: &str = "br-alone";
/// The table of routes (`xenflow_flow_app::pipeline::ROUTE`), which keeps the same tries here.
const ROUTES: &str = "3";
const LIMIT: Duration = Duration::from_secs(1800);

/// The bridge, and where the files are.
pub(super) struct Alone {
    file: PathBuf,
}

impl Alone {
    pub(super) fn create(lab: &Lab, host: &Host) -> Result<Self> {
        let tries = format!("flow_tables:{ROUTES}=@t");
        host.vsctl(&[
            "--",
            "--id=@t",
            "create",
            "Flow_Table",
            "prefixes=[ip_dst,ipv6_dst]",
            "--",
            "add-br",
            BRIDGE,
            "--",
            "set",
            "bridge",
            BRIDGE,
            "datapath_type=system",
            "fail_mode=secure",
            &tries,
        ])?;
        Ok(Self { file: lab.work().join("flows.txt") })
    }

    /// Takes the flows of a router's prefixes from the bridge; how many there are.
    pub(super) fn copy(&self, host: &Host, bridge: &str) -> Result<usize> {
        let out = std::fs::File::create(&self.file)?;
        let mut command = ofctl(host);
        command.args(["--no-stats", "dump-flows", bridge, &format!("table={ROUTES}")]).stdout(out);
        ensure!(command.status()?.success(), "ovs-ofctl does not dump the flows of {bridge}");
        let all = std::fs::read_to_string(&self.file)?;
        let prefixes =
            |line: &&str| line.contains("ip_dst=") || line.contains("nw_dst=") || line.contains("ipv6_dst=");
        let flows: Vec<&str> = all.lines().map(str::trim).filter(prefixes).collect();
        std::fs::write(&self.file, flows.join("\n") + "\n")?;
        Ok(flows.len())
    }

    /// How long it takes to delete every other one, and to add these again, both in bundles.
    pub(super) fn halves(&self, host: &Host) -> Result<[Duration; 2]> {
        process::output(ofctl(host).args(["--bundle", "add-flows", BRIDGE]).arg(&self.file))?;
        let all = std::fs::read_to_string(&self.file)?;
        let half: Vec<&str> = all.lines().step_by(2).collect();
        let strict = |line: &&str| -> Option<String> {
            let (matching, _) = line.split_once(" actions=")?;
            Some(format!("delete_strict {}\n", matching.get(matching.find("table=")?..)?))
        };
        let deletions: String = half.iter().filter_map(strict).collect();
        let additions: String = half.iter().map(|line| format!("add {line}\n")).collect();
        let file = self.file.with_extension("half");
        let mut took = [Duration::ZERO; 2];
        for (took, lines) in took.iter_mut().zip([deletions, additions]) {
            std::fs::write(&file, lines)?;
            let start = Instant::now();
            process::output(ofctl(host).args(["--bundle", "add-flows", BRIDGE]).arg(&file))?;
            *took = start.elapsed();
        }
        process::output(ofctl(host).args(["del-flows", BRIDGE]))?;
        Ok(took)
    }

    /// How long it takes to add all of them, until the last barrier. They are gone afterwards.
    pub(super) fn load(&self, host: &Host) -> Result<Duration> {
        let mut command = ofctl(host);
        command.args(["--bundle", "add-flows", BRIDGE]).arg(&self.file);
        let start = Instant::now();
        process::output(&mut command)?;
        let took = start.elapsed();
        process::output(ofctl(host).args(["del-flows", BRIDGE]))?;
        Ok(took)
    }
}

fn ofctl(host: &Host) -> Command {
    let mut command = host.command("ovs-ofctl");
    command.args(["-O", "OpenFlow14", &format!("--timeout={}", LIMIT.as_secs())]);
    command
}

/// An OpenFlow connection that is open.
pub(super) struct Bare {
    stream: UnixStream,
    session: Session,
    at: u32,
}

impl Bare {
    pub(super) fn connect(host: &Host) -> Result<Self> {
        let path = host.rundir().join(format!("{BRIDGE}.mgmt"));
        let stream =
            UnixStream::connect(&path).with_context(|| format!("no bridge at {}", path.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let session = Session::new(Config::default(), Instant::now());
        let mut bare = Self { stream, session, at: 0 };
        while !bare.session.is_up() {
            bare.turn()?;
        }
        Ok(bare)
    }

    /// How long a flow-mod takes, until its barrier.
    pub(super) fn change(&mut self) -> Result<Duration> {
        self.at += 1;
        let matching = Match::builder().eth_type(0x0800).ipv4_dst_prefix([198, 18, 0, 0].into(), 24).build();
        let flow = Flow::new(ROUTES.parse()?, 100, u64::from(self.at), matching);
        let start = Instant::now();
        self.session.send(&Message::FlowMod(FlowMod::add(flow)))?;
        let wanted = self.session.send_barrier();
        loop {
            if self
                .turn()?
                .into_iter()
                .any(|event| matches!(event, Event::BarrierReply { xid } if xid == wanted))
            {
                return Ok(start.elapsed());
            }
        }
    }

    /// Sends what there is, and takes what comes.
    fn turn(&mut self) -> Result<Vec<Event>> {
        while let Some(bytes) = self.session.poll_transmit() {
            self.stream.write_all(&bytes)?;
        }
        let mut events = Vec::new();
        let mut bytes = [0; 4096];
        let len = self.stream.read(&mut bytes).context("the switch says nothing")?;
        ensure!(len > 0, "the switch has closed the connection");
        self.session.handle_input(&bytes[..len], Instant::now())?;
        while let Some(event) = self.session.poll_event() {
            events.push(event);
        }
        Ok(events)
    }
}
