//! `xenflow explain`: what becomes of a packet at each table, as XenFlow has it and as the switch does it, from node to node.
//!
//! Owns the way across nodes and what is printed. What happens on a node its daemon says (`dom0_server::inspect::explain`).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use dom0_server::inspect::Request;
use dom0_server::inspect::explain::{Asked, PacketError};
use serde_json::{Value, json};
use xenflow_proto::Name;

use crate::args::{ExplainArgs, Target, WhyCommand};
use crate::ask::Daemon;
use crate::show::printable;
use crate::{Failure, client, output, sla};

/// Nodes that a packet is followed to: those of a fabric pass it on by their routers.
const MAX_NODES: usize = 16;

impl From<PacketError> for Failure {
    fn from(error: PacketError) -> Self {
        Self::Input(error.into())
    }
}

impl ExplainArgs {
    fn asked(self) -> Asked {
        let Self { from, frame, dst, src, router, dst_mac, proto, sport, dport, ttl, .. } = self;
        Asked { from, frame, dst, src, router, dst_mac, proto, sport, dport, ttl }
    }
}

/// `NODE=PATH`.
fn peers(texts: &[String]) -> Result<BTreeMap<Name, PathBuf>, Failure> {
    let peer = |text: &String| {
        let wrong = || Failure::Input(anyhow!("--host {text} is not NODE=PATH, as b=/tmp/b.sock"));
        let (node, path) = text.split_once('=').filter(|(_, path)| !path.is_empty()).ok_or_else(wrong)?;
        Ok((node.parse()?, PathBuf::from(path)))
    };
    texts.iter().map(peer).collect()
}

pub(crate) fn run(db: &Target, seconds: u32, args: ExplainArgs, as_json: bool) -> Result<(), Failure> {
    if let Some(WhyCommand::Sla { network, socket }) = &args.why {
        if args.from.is_some() || args.dst.is_some() || args.frame.is_some() {
            return Err(Failure::Input(anyhow!("a packet and 'sla {network}' are two questions: ask one")));
        }
        return sla::explain(&socket.socket, seconds, network, as_json);
    }
    let hosts = peers(&args.hosts)?;
    let mut socket = args.socket.socket.clone();
    let mut asked = args.asked();
    asked.clone().parse()?;
    let mut nodes: Vec<Value> = Vec::new();
    let missing = loop {
        let mut answer = ask(&socket, seconds, asked)?;
        let next = follow(db, seconds, &mut answer);
        nodes.push(answer);
        let Some((node, frame)) = next else { break None };
        match hosts.get(&node) {
            Some(_) if nodes.len() >= MAX_NODES => {
                break Some(format!("not followed further than {MAX_NODES} nodes"));
            }
            Some(path) => socket.clone_from(path),
            None => {
                break Some(format!(
                    "--host {node}=SOCKET follows it there, or there: xenflow explain --from UPLINK --frame {frame}"
                ));
            }
        }
        asked = Asked { frame: Some(frame), ..Asked::default() };
    };
    if as_json {
        output::json(&json!({ "nodes": nodes, "next": missing }));
    } else {
        let pages: Vec<String> = nodes.iter().map(page).collect();
        let missing = missing.map(|what| format!("\n{what}\n")).unwrap_or_default();
        output::text(&(pages.join("\n") + &missing));
    }
    let wrong = |node: &Value| {
        let name = text(&node["node"]);
        match node["verdict"].as_str() {
            Some("same") => None,
            Some("different") => Some(format!("node {name}: {}", text(&node["difference"]))),
            _ => Some(format!("node {name}: {}", text(&node["switch_error"]))),
        }
    };
    match nodes.iter().find_map(wrong) {
        None => Ok(()),
        Some(what) => Err(anyhow!("{}", printable(&what)).into()),
    }
}

fn ask(socket: &Path, seconds: u32, packet: Asked) -> Result<Value, Failure> {
    Ok(Daemon::open(socket, seconds)?.ask(&Request::Explain { packet: Box::new(packet) })?)
}

/// The node that a frame on an uplink is for, and the frame; each such output of the answer gets to know it.
fn follow(db: &Target, seconds: u32, answer: &mut Value) -> Option<(Name, String)> {
    let outputs = answer.get_mut("outputs").and_then(Value::as_array_mut)?;
    let mut first = None;
    for output in outputs.iter_mut().filter(|output| output["is_uplink"] == true) {
        let found = match output["is_elsewhere"] == true {
            true => locate(db, seconds, &output["segment"], &output["mac"]),
            false => Err("who has it beyond the uplink is not known here".to_owned()),
        };
        match found {
            Ok(node) => {
                output["next_node"] = json!(node.to_string());
                first = first.or_else(|| Some((node, output["frame"].as_str()?.to_owned())));
            }
            Err(why) => output["beyond"] = json!(why),
        }
    }
    first
}

fn locate(db: &Target, seconds: u32, segment: &Value, mac: &Value) -> Result<Name, String> {
    let place = || Some((segment.as_str()?.parse().ok()?, mac.as_str()?.parse().ok()?));
    let (segment, mac) = place().ok_or("the answer names no place")?;
    let mut found = Err("the database knows no node that has it".to_owned());
    let asked = client::block_on(seconds, async {
        let located = client::located(db, seconds).await?;
        if let Some(node) = located.winner(&dom0_server::db::location::Place { segment, mac }) {
            found = Ok(node.clone());
        }
        Ok(())
    });
    match asked {
        Ok(()) => found,
        Err(Failure::Failed(error) | Failure::Input(error) | Failure::Ended(_, error)) => {
            Err(format!("another node's; which one: {error:#}"))
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// What one node says, as a page.
fn page(node: &Value) -> String {
    let mut page =
        format!("node {}: {}\n  {}\n", text(&node["node"]), text(&node["from"]), text(&node["packet"]));
    let has_switch = node["switch_error"].is_null();
    let steps = node["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<[String; 3]> = steps.iter().map(|step| row(step, has_switch)).collect();
    let heads = ["table", "XenFlow", "switch"].map(str::to_owned);
    let width = |column: usize| {
        let all = rows.iter().chain([&heads]).map(|row| row[column].chars().count());
        all.max().unwrap_or(0)
    };
    let widths = [width(0), width(1)];
    for [table, own, switch] in [&heads].into_iter().chain(&rows) {
        let line = format!("  {table:0$}  {own:1$}  {switch}", widths[0], widths[1]);
        let _ = writeln!(page, "{}", line.trim_end());
    }
    if let Some(fault) = node["fault"].as_str() {
        let _ = writeln!(page, "  the packet is dropped whole: {fault}");
    }
    let outputs = node["outputs"].as_array().map(Vec::as_slice).unwrap_or_default();
    if outputs.is_empty() {
        let _ = writeln!(page, "  out: nothing");
    }
    for output in outputs {
        let _ = writeln!(page, "  out: {}: {}", text(&output["name"]), text(&output["packet"]));
        if let Some(next) = output["next_node"].as_str() {
            let _ = writeln!(page, "       to node {next}: {}", text(&output["frame"]));
        } else if let Some(beyond) = output["beyond"].as_str() {
            let _ = writeln!(page, "       {beyond}: {}", text(&output["frame"]));
        }
    }
    if let Some(datapath) = node["datapath"].as_str() {
        let _ = writeln!(page, "  the datapath: {datapath}");
    }
    for note in node["notes"].as_array().into_iter().flatten() {
        let _ = writeln!(page, "  note: {}", text(note));
    }
    let verdict = match node["verdict"].as_str() {
        Some("same") => "XenFlow and the switch agree",
        Some("different") => "XenFlow and the switch DIFFER",
        _ => "the switch was not asked",
    };
    let _ = writeln!(page, "  {verdict}");
    page.lines().map(|line| printable(line) + "\n").collect()
}

fn row(step: &Value, has_switch: bool) -> [String; 3] {
    let (own, switch) = (&step["xenflow"], &step["switch"]);
    let of = if own.is_null() { switch } else { own };
    let table = format!("{} {}", of["table"], text(&of["name"]));
    let words = match (own.is_null(), own["taken"] == false) {
        (true, _) => "does not come here".to_owned(),
        (false, true) => format!("(of another length: {})", text(&own["words"])),
        (false, false) => text(&own["words"]).to_owned(),
    };
    let switch = match (has_switch, step["differs"].as_str(), switch.is_null()) {
        (false, ..) => "-".to_owned(),
        (true, Some(what), _) => format!("DIFFERS: {what}"),
        (true, None, true) => "-".to_owned(),
        (true, None, false) if switch["priority"].is_null() => "no flow".to_owned(),
        (true, None, false) => format!("priority {}, cookie {}", switch["priority"], text(&switch["cookie"])),
    };
    [table, words, switch]
}
