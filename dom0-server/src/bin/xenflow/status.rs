//! `xenflow status`: this host on one page, as its daemon says.

use std::fmt::Write;

use dom0_server::inspect::Request;
use serde_json::Value;

use crate::ask::Daemon;
use crate::{Failure, output};

pub(crate) fn run(daemon: &mut Daemon, as_json: bool) -> Result<(), Failure> {
    let status = daemon.ask(&Request::Status {})?;
    if as_json {
        output::json(&status);
    } else {
        output::text(&page(&status));
    }
    Ok(())
}

fn page(status: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let switch = &status["switch"];
    let switch = match (switch["connected"] == true, switch["in_step"] == true) {
        (false, _) => "not connected".to_owned(),
        (true, true) => "connected, holds all that is known to belong there".to_owned(),
        (true, false) => format!("connected, {} bundles in flight", switch["bundles_in_flight"]),
    };
    let databases = &status["databases"];
    let database = match (databases["XenFlow"]["connected"] == true, databases["XenFlow"]["known"] == true) {
        (true, true) => "connected",
        (true, false) => "connected, not read yet",
        (false, true) => "away: going on with what is known",
        (false, false) => "away, and nothing is known",
    };
    let ports = if databases["Open_vSwitch"]["known"] == true { "read" } else { "not read yet" };
    let mut page = format!(
        "node {}, xenflow-dom0 {}\n  switch        {switch}\n  XenFlow       {database}\n  Open_vSwitch  {ports}\n  \
         sessions      {}\n",
        text(&status["node"]),
        text(&status["version"]),
        status["sessions"]
    );
    for router in status["routers"].as_array().into_iter().flatten() {
        let acked = router["acked_seq"].as_u64().map(|seq| format!(", acked {seq}")).unwrap_or_default();
        let over = if router["is_over"] == true { ", over: nothing is forwarded for it" } else { "" };
        let _ = writeln!(
            page,
            "router {}: session {}{acked}{over}\n  routes {}, forwarded {} of at most {}, punted {}, absent {}",
            text(&router["name"]),
            text(&router["session"]),
            router["routes"],
            router["forwarded"],
            router["max_routes"],
            router["punted"],
            router["absent"]
        );
        for (vif, port) in router["ports"].as_object().into_iter().flatten() {
            let link = if port["up"] == true { "up" } else { "no link" };
            let _ = writeln!(page, "  vif {vif}: port {}, {link}", text(&port["port"]));
        }
        for slow in router["slow"].as_array().into_iter().flatten() {
            let _ = writeln!(page, "  the guest forwards: {}", text(slow));
        }
    }
    for problem in status["problems"].as_array().into_iter().flatten() {
        let _ = writeln!(page, "{}", text(problem));
    }
    page
}
