//! The loop: looks at the queues once in a period and tells them what differs from what they should be told.
//!
//! What stands in the kernel and in the database is read each time, so the loop adopts what it finds, and mends what
//! somebody else has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ovsdb::{Event as Said, Remote, Session, SessionConfig, SessionHandle};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use xenflow_qos::Bps;
use xenflow_qos::control::Sample;
use xenflow_qos::law::{Means, Setting};

use super::counters::{Counters, CountersError, Samples};
use super::division::{Division, Now, Watched, Way};
use super::handle::Writer;
use super::kernel::{self, Kernel, KernelError};
use super::plan::Plan;
use super::report::{LinkReport, Report};
use super::rows::{self, Kind, Port};
use super::tc;
use crate::chain::Chain;
use crate::clock::now_ms;
use crate::config::{Bandwidth, Driver};
use crate::db::Rows;

/// Where things are, and how links are divided.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Of the server of `Open_vSwitch`.
    pub remotes: Vec<Remote>,
    /// The integration bridge.
    pub bridge: String,
    /// The switch's `<bridge>.mgmt`.
    pub socket: PathBuf,
    /// The operator's settings.
    pub bandwidth: Bandwidth,
}

/// Why a link is not shaped, or not looked at, this time.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Counters(#[from] CountersError),
    #[error("the rows of its queues cannot be written")]
    Rows(#[source] ovsdb::TransactError),
}

/// Runs until nobody plans any more. What was told last stays.
pub async fn run(setup: Setup, mut plans: watch::Receiver<Option<Arc<Plan>>>, writer: Writer) {
    let config = SessionConfig::new(setup.remotes.clone()).monitor(rows::monitor());
    let mut session = Session::start(config);
    let mut shaper = Shaper {
        database: session.handle(),
        counters: Counters::new(setup.socket.clone()),
        kernel: None,
        watched: BTreeMap::new(),
        problems: BTreeMap::new(),
        begun: Instant::now(),
        last: Instant::now(),
        setup,
    };
    let mut rows = Rows::default();
    // Nothing is known of the ports before.
    let mut is_read = false;
    let mut has_begun = false;
    let mut tick = tokio::time::interval(Duration::from_millis(shaper.setup.bandwidth.period_ms.into()));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            said = session.next() => match said {
                None => return,
                Some(Said::Snapshot { changes, .. } | Said::Update { changes, .. }) => {
                    rows.apply(&changes);
                    is_read = true;
                }
                // The core's own connection says so.
                Some(Said::Connected { .. } | Said::Disconnected { .. }) => {}
            },
            changed = plans.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            _ = tick.tick() => {
                let plan = plans.borrow().clone();
                if let Some(plan) = plan.filter(|_| is_read) {
                    let (ms, report) = shaper.turn(&plan, &rows).await;
                    writer.tell(now_ms(), ms, report);
                }
            }
        }
        if is_read && !has_begun && plans.borrow().is_some() {
            has_begun = true;
            tick.reset_immediately();
        }
    }
}

struct Shaper {
    setup: Setup,
    database: SessionHandle,
    counters: Counters,
    kernel: Option<Kernel>,
    watched: BTreeMap<String, Watched>,
    /// What was wrong with each port the last time.
    problems: BTreeMap<String, String>,
    begun: Instant,
    last: Instant,
}

/// What is known of an uplink before anybody shapes it.
fn about(name: &str, port: Option<&Port>, by_hand: Option<Bps>) -> LinkReport {
    let speed = port.and_then(|port| port.speed);
    let from = match (by_hand, speed) {
        (Some(_), _) => "operator",
        (None, Some(_)) => "port",
        (None, None) => "unknown",
    };
    LinkReport {
        port: name.to_owned(),
        capacity_bps: by_hand.or(speed).unwrap_or_default(),
        capacity_from: from.to_owned(),
        driver: "none".to_owned(),
        ..LinkReport::default()
    }
}

impl Shaper {
    /// One look at all uplinks; how long the last one is ago, and how it goes.
    async fn turn(&mut self, plan: &Plan, rows: &Rows) -> (u64, Report) {
        let since = self.last.elapsed();
        self.last = Instant::now();
        let ports = rows::ports(rows, &self.setup.bridge);
        let is_on = self.setup.bandwidth.driver() != Driver::Off && plan.is_asked_for();
        let mut links = Vec::new();
        let counted = if is_on && self.setup.bandwidth.driver() == Driver::Ovs {
            self.counters.ask().await
        } else {
            Ok(Samples::new())
        };
        for (name, by_hand) in &plan.uplinks {
            let port = ports.get(name);
            let about = about(name, port, by_hand.map(crate::db::contract::Rate::bps));
            links.push(if is_on { self.link(plan, rows, port, about, &counted).await } else { about });
        }
        let shaped: BTreeSet<&String> = plan.uplinks.keys().filter(|_| is_on).collect();
        self.watched.retain(|name, _| shaped.contains(name));
        for (name, port) in ports.iter().filter(|(name, port)| port.is_ours && !shaped.contains(name)) {
            self.release(rows, name, port).await;
        }
        self.log(&links);
        let bandwidth = &self.setup.bandwidth;
        let policy = if is_on { bandwidth.policy.law().as_str() } else { "off" };
        let report = Report { policy: policy.to_owned(), period_ms: bandwidth.period_ms.into(), links };
        (u64::try_from(since.as_millis()).unwrap_or(u64::MAX), report)
    }

    async fn link(
        &mut self,
        plan: &Plan,
        rows: &Rows,
        port: Option<&Port>,
        about: LinkReport,
        counted: &Result<Samples, CountersError>,
    ) -> LinkReport {
        let name = about.port.as_str();
        let unshaped = |driver: &str, why: String| LinkReport {
            driver: driver.to_owned(),
            problem: Some(why),
            ..about.clone()
        };
        let Some(port) = port else { return unshaped("none", "there is no such port on the bridge".into()) };
        if rows::is_userspace(rows, &self.setup.bridge) {
            let why =
                "the datapath is netdev, which has no queues: maxima are kept by meters, minima are not";
            return unshaped("meter", why.into());
        }
        let Some((interface, ifindex)) = &port.interface else {
            return unshaped("none", "it has not one interface of the kernel, but several or none".into());
        };
        if port.is_foreign {
            let why =
                format!("its QoS row is somebody else's: \"ovs-vsctl clear Port {name} qos\" gives it free");
            return unshaped("none", why);
        }
        let capacity = about.capacity_bps;
        if capacity == 0 {
            let why =
                format!("nobody knows what it carries: \"xenflow uplink set NODE {name} --capacity RATE\"");
            return unshaped("none", why);
        }
        let driver = self.setup.bandwidth.driver();
        let done = match driver {
            Driver::Ovs => match counted {
                Ok(counted) => {
                    let samples = rows::ofport(rows, interface).and_then(|number| counted.get(&number));
                    self.by_rows(plan, rows, name, port, *ifindex, capacity, samples).await
                }
                Err(error) => return unshaped("ovs", Chain(error).to_string()),
            },
            Driver::Auto | Driver::Tc | Driver::Off => {
                self.by_tc(plan, rows, name, port, (interface, *ifindex), capacity).await
            }
        };
        let driver = if driver == Driver::Ovs { "ovs" } else { "tc" };
        match done {
            Ok((link, error)) => LinkReport {
                port: about.port.clone(),
                capacity_from: about.capacity_from.clone(),
                driver: driver.to_owned(),
                problem: error.map(|error| Chain(&error).to_string()).or(link.problem),
                ..link
            },
            Err(error) => unshaped(driver, Chain(&error).to_string()),
        }
    }

    /// The same look for both drivers: what is seen, and stands, makes what should be told, and a report.
    fn look(
        &mut self,
        plan: &Plan,
        name: &str,
        way: Way,
        samples: &BTreeMap<u32, Sample>,
        told: &BTreeMap<u32, Setting>,
    ) -> (Division, LinkReport) {
        let at_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let now = Now { at_ms, unix_ms: now_ms() };
        let kept = usize::from(self.setup.bandwidth.samples);
        let watched = self.watched.entry(name.to_owned()).or_insert_with(|| Watched::new(kept));
        watched.look(now, plan, way, samples, told)
    }

    async fn kernel(&mut self, ifindex: u32) -> Result<tc::Standing, KernelError> {
        let kernel = match self.kernel.take() {
            Some(kernel) => kernel,
            None => Kernel::open()?,
        };
        let standing = kernel.read(ifindex).await;
        // A socket that has failed is not asked again.
        self.kernel = standing.is_ok().then_some(kernel);
        standing
    }

    async fn transact(&self, operations: &[ovsdb::Operation]) -> Result<(), LinkError> {
        if !operations.is_empty() {
            self.database.transact(rows::OPEN_VSWITCH, operations).await.map_err(LinkError::Rows)?;
        }
        Ok(())
    }

    /// The driver `tc`. A report comes with what could not be told.
    async fn by_tc(
        &mut self,
        plan: &Plan,
        rows: &Rows,
        name: &str,
        port: &Port,
        (interface, ifindex): (&str, u32),
        capacity: Bps,
    ) -> Result<(LinkReport, Option<LinkError>), LinkError> {
        let way = Way { policy: self.setup.bandwidth.policy.law(), means: Means::Tree, capacity };
        let standing = self.kernel(ifindex).await?;
        let (samples, told) = (standing.samples(), standing.told());
        let (division, report) = self.look(plan, name, way, &samples, &told);
        // First Open vSwitch lets go of the qdisc, which it takes away when it does.
        let operations = rows::operations(rows, port, Kind::Noop, &division);
        if !operations.is_empty() {
            return Ok((report, self.transact(&operations).await.err()));
        }
        let lines = tc::batch(interface, &division, &standing);
        let told = if lines.is_empty() { Ok(()) } else { kernel::run(&lines).await };
        Ok((report, told.err().map(LinkError::from)))
    }

    /// The driver `ovs`. OpenFlow counts bytes and what was dropped, the kernel what waits.
    #[expect(clippy::too_many_arguments, reason = "one call")]
    async fn by_rows(
        &mut self,
        plan: &Plan,
        rows: &Rows,
        name: &str,
        port: &Port,
        ifindex: u32,
        capacity: Bps,
        counted: Option<&BTreeMap<u32, Sample>>,
    ) -> Result<(LinkReport, Option<LinkError>), LinkError> {
        let way = Way { policy: self.setup.bandwidth.policy.law(), means: Means::Flat, capacity };
        let waiting = self.kernel(ifindex).await?.samples();
        let mut samples = counted.cloned().unwrap_or_default();
        for (number, sample) in &mut samples {
            sample.backlog = waiting.get(number).and_then(|waiting| waiting.backlog);
        }
        let (division, report) = self.look(plan, name, way, &samples, &rows::told(rows, port));
        let operations = rows::operations(rows, port, Kind::Htb, &division);
        Ok((report, self.transact(&operations).await.err()))
    }

    /// A port that is no uplink any more, or nothing is promised.
    async fn release(&mut self, rows: &Rows, name: &str, port: &Port) {
        match self.clear(rows, port).await {
            Ok(()) => tracing::info!(port = name, "the port is not shaped any more"),
            Err(error) => tracing::warn!(port = name, error = %Chain(&error), "the port's queues stay"),
        }
    }

    /// The qdisc first: as long as the rows stand, the next turn tries again.
    async fn clear(&mut self, rows: &Rows, port: &Port) -> Result<(), LinkError> {
        if let Some((interface, ifindex)) = &port.interface
            && self.kernel(*ifindex).await?.is_htb()
        {
            kernel::run(&tc::clear(interface)).await?;
        }
        self.transact(&rows::clear(rows, port)).await
    }

    /// What has come to be wrong, and what is no more.
    fn log(&mut self, links: &[LinkReport]) {
        let now: BTreeMap<String, String> =
            links.iter().filter_map(|link| Some((link.port.clone(), link.problem.clone()?))).collect();
        for (port, problem) in now.iter().filter(|(port, now)| self.problems.get(*port) != Some(*now)) {
            tracing::warn!(name: "problem", port, "uplink {port} is not shaped as it should be: {problem}");
        }
        for port in self.problems.keys().filter(|port| !now.contains_key(*port)) {
            tracing::info!(name: "problem-gone", port, "uplink {port} is shaped as it should be");
        }
        self.problems = now;
    }
}
