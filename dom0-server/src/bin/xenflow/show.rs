//! `xenflow show router` and its like: one block for each thing, with what the daemons report of it.

use std::time::{SystemTime, UNIX_EPOCH};

use dom0_server::db::edit::{EditError, Snapshot};
use dom0_server::db::policy::fast_path_str;
use dom0_server::db::row::Router;
use dom0_server::db::{Attachment, Kind, Status, Vif};
use serde_json::{Value, json};
use xenflow_proto::Name;

use crate::args::ShowCommand;
use crate::client::Client;
use crate::view::{instant, line};
use crate::{Failure, output, view};

pub(crate) async fn run(client: &Client, what: &ShowCommand, json: bool) -> Result<(), Failure> {
    let now = client.snapshot().await?;
    match what {
        ShowCommand::Router { name } => {
            let routers = chosen(&now, name.as_deref())?;
            if json {
                output::json(&routers.iter().map(|router| router_json(&now, router)).collect::<Vec<_>>());
            } else {
                let mut page = String::new();
                routers.iter().for_each(|router| router_block(&mut page, &now, router));
                output::text(&page);
            }
        }
    }
    Ok(())
}

/// The router of that name, or all of them.
fn chosen<'a>(now: &'a Snapshot, name: Option<&str>) -> Result<Vec<&'a Router>, Failure> {
    let Some(name) = name else { return Ok(now.desired.routers.values().collect()) };
    let name: Name = name.parse()?;
    let unknown = || EditError::Unknown { kind: Kind::Router, name: name.to_string() };
    Ok(vec![now.desired.routers.get(&name).ok_or_else(unknown)?])
}

fn reports<'a>(now: &'a [Status], router: &'a Router) -> impl Iterator<Item = &'a Status> {
    now.iter().filter(|report| report.router == router.name)
}

fn router_json(now: &Snapshot, router: &Router) -> Value {
    let all = now.status();
    let vif_json = |vif: &Vif| {
        let plugged = |report: &Status| {
            let port = report.ports.get(&vif.name)?;
            let node = report.node.to_string();
            Some(json!({ "node": node, "port": port, "up": report.up.contains(&vif.name) }))
        };
        let mut value = view::vif(vif);
        value["ports"] = reports(&all, router).filter_map(plugged).collect();
        value
    };
    let mut value = view::router(router);
    value["vifs"] = now.desired.vifs_of(&router.name).into_iter().map(vif_json).collect();
    value["nodes"] = reports(&all, router).map(view::status).collect();
    value
}

fn router_block(page: &mut String, now: &Snapshot, router: &Router) {
    let all = now.status();
    let policy = router.policy.effective();
    line(page, 0, format_args!("router {}", router.name));
    let fast_path = fast_path_str(policy.fast_path);
    let max = policy.max_routes;
    line(page, 1, format_args!("network {}, id {}, fastpath {fast_path}", router.network, router.id));
    for vif in now.desired.vifs_of(&router.name) {
        let place = match &vif.attachment {
            Attachment::Segment(segment) => format!("segment {segment}"),
            Attachment::Control => "control".to_owned(),
        };
        let mut ports: Vec<_> = reports(&all, router)
            .filter_map(|report| {
                let state = if report.up.contains(&vif.name) { "up" } else { "down" };
                Some(format!("port {} on {} {state}", printable(report.ports.get(&vif.name)?), report.node))
            })
            .collect();
        if ports.is_empty() {
            ports.push("not plugged in".to_owned());
        }
        let ports = ports.join(", ");
        line(page, 1, format_args!("vif {} {} {} {place}: {ports}", vif.number, vif.name, vif.mac));
    }
    if reports(&all, router).next().is_none() {
        line(page, 1, format_args!("no node reports about it"));
    }
    for report in reports(&all, router) {
        let Status { node, state, counts, acked_seq, message, slow, .. } = report;
        let (since, age) = (instant(report.since_ms), age(report.since_ms));
        line(page, 1, format_args!("node {node}: session {state} since {since} ({age}), acked {acked_seq}"));
        if !message.is_empty() {
            line(page, 2, format_args!("{}", printable(message)));
        }
        let (routes, neighbors, next_hops) = (counts.routes, counts.neighbors, counts.next_hops);
        line(page, 2, format_args!("routes {routes}, neighbors {neighbors}, next hops {next_hops}"));
        if !counts.prefixes.is_empty() {
            let of = |kind| counts.prefixes.get(kind).copied().unwrap_or_default();
            let (forwarded, punted, absent) = (of("forwarded"), of("punted"), of("absent"));
            let text = format_args!(
                "prefixes forwarded {forwarded} of at most {max} ({} %), punted {punted}, without a flow {absent}",
                forwarded.saturating_mul(100) / (max as u64).max(1),
            );
            line(page, 2, text);
        }
        if slow.is_empty() {
            line(page, 2, format_args!("the host forwards all it can"));
        } else {
            line(page, 2, format_args!("the guest forwards:"));
            slow.iter().for_each(|reason| line(page, 3, format_args!("{}", printable(reason))));
        }
    }
}

/// Words of somebody else, so that they cannot write to the terminal what they like.
fn printable(text: &str) -> String {
    let odd = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if odd(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// How long ago, in the two largest units.
fn age(since_ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    span(now.saturating_sub(since_ms / 1000))
}

fn span(seconds: u64) -> String {
    let units = [
        ("d", seconds / 86_400),
        ("h", seconds / 3_600 % 24),
        ("min", seconds / 60 % 60),
        ("s", seconds % 60),
    ];
    let first = units.iter().position(|(_, n)| *n > 0).unwrap_or(3);
    let parts = units.iter().skip(first).take(2).map(|(unit, n)| format!("{n} {unit}"));
    parts.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (61, "1 min 1 s"),
            (3_600, "1 h 0 min"),
            (90_061, "1 d 1 h"),
            (864_000, "10 d 0 h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        assert_eq!(printable("a\u{1b}[31m\nb\u{202e}c é"), "a\u{fffd}[31m\u{fffd}b\u{fffd}c é");
    }
}
