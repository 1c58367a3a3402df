//! `xenflow sla show`, `sla plot` and `explain sla`: how this node's uplinks are shared, as its daemon says.
//!
//! Owns the questions and what they are answered with as JSON. Text is made in `page` (figures) and `reasons` (why), a figure
//! in `plot`; these are pure.

mod page;
mod plot;
mod reasons;

use std::path::Path;

use anyhow::{Context, anyhow};
use dom0_server::clock::now_ms;
use dom0_server::inspect::Request;
use dom0_server::shaper::report::{LinkReport, Report};
use serde_json::json;
use xenflow_proto::Name;

use crate::ask::Daemon;
use crate::{Failure, output};
pub(crate) use page::rate;
pub(crate) use plot::run as plot;

/// What a daemon says, all pages of it.
fn report(daemon: &mut Daemon) -> anyhow::Result<Report> {
    let mut whole = Report::default();
    let mut after = None;
    loop {
        let mut page = daemon.ask(&Request::Sla { after })?;
        after = page["next"].as_str().map(str::to_owned);
        let Report { policy, period_ms, links } =
            serde_json::from_value(page.take()).context("the daemon's answer is no report")?;
        (whole.policy, whole.period_ms) = (policy, period_ms);
        for link in links {
            match whole.links.last_mut().filter(|last| last.port == link.port) {
                Some(last) => last.queues.extend(link.queues),
                None => whole.links.push(link),
            }
        }
        if after.is_none() {
            return Ok(whole);
        }
    }
}

/// The newest report of the daemon at a socket.
pub(crate) fn of(socket: &Path, seconds: u32) -> anyhow::Result<Report> {
    report(&mut Daemon::open(socket, seconds)?)
}

/// A network has to do with a link if it has a queue there, or nobody has: then the link is not shaped, for whatever reason.
fn has(link: &LinkReport, network: &str) -> bool {
    link.queues.is_empty() || link.queues.iter().any(|queue| queue.network == network)
}

fn missing(report: &Report, network: &Name) -> Failure {
    match report.links.is_empty() {
        true => anyhow!("this node shares no uplink: {}", page::NOTHING).into(),
        false => anyhow!("network {network} has no queue on an uplink of this node").into(),
    }
}

/// `xenflow sla show`.
pub(crate) fn show(socket: &Path, seconds: u32, network: Option<&str>, as_json: bool) -> Result<(), Failure> {
    let network: Option<Name> = network.map(str::parse).transpose()?;
    let mut report = of(socket, seconds)?;
    if let Some(network) = &network {
        if !report.links.iter().any(|link| has(link, network.as_str())) {
            return Err(missing(&report, network));
        }
        for link in &mut report.links {
            link.queues.retain(|queue| queue.network == network.as_str());
        }
    }
    if as_json {
        output::json(&report);
    } else {
        output::text(&page::page(&report, now_ms()));
    }
    Ok(())
}

/// `xenflow explain sla`.
pub(crate) fn explain(socket: &Path, seconds: u32, network: &str, as_json: bool) -> Result<(), Failure> {
    let network: Name = network.parse()?;
    let report = of(socket, seconds)?;
    let links = reasons::reasons(&report, network.as_str(), now_ms());
    if links.is_empty() {
        return Err(missing(&report, &network));
    }
    if as_json {
        let links = links.iter().map(|(port, lines)| json!({ "port": port, "reasons": lines }));
        output::json(&json!({ "network": network.as_str(), "links": links.collect::<Vec<_>>() }));
    } else {
        output::text(&reasons::text(network.as_str(), &links));
    }
    Ok(())
}
