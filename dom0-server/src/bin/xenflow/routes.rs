//! `xenflow routes`: a router's routes as its guest says, in the words of `ip route`, and what becomes of their packets.

use std::path::Path;

use dom0_server::inspect::{self, Request};
use serde_json::Value;

use crate::Failure;
use crate::ask::{Daemon, members};

/// The route stands left of what becomes of it.
const WIDTH: usize = 60;

pub(crate) fn run(
    socket: &Path,
    seconds: u32,
    router: &str,
    prefix: Option<&str>,
    as_json: bool,
) -> Result<(), Failure> {
    if let Some(prefix) = prefix {
        inspect::which(prefix).map_err(|error| Failure::Input(error.into()))?;
    }
    Daemon::open(socket, seconds)?.list(
        as_json,
        |after| Request::Routes { router: router.to_owned(), prefix: prefix.map(str::to_owned), after },
        |page| members(page, "routes"),
        |page| {
            let slow = members(page, "slow");
            let slow = slow.iter().filter_map(Value::as_str);
            let slow = slow.map(|why| format!("# the guest forwards: {why}\n"));
            slow.chain(members(page, "routes").iter().map(line)).collect()
        },
    )
}

/// As `ip route` shows it, then the verdict.
fn line(route: &Value) -> String {
    let text = |key: &str| route[key].as_str().unwrap_or_default();
    let number = |key: &str| route[key].as_u64().unwrap_or_default();
    let mut line = String::new();
    match text("kind") {
        "unicast" => {}
        kind => line = format!("{kind} "),
    }
    line += match text("prefix") {
        "0.0.0.0/0" => "default",
        "::/0" => "default6",
        prefix => prefix,
    };
    let hops = route["hops"].as_array().map(Vec::as_slice).unwrap_or_default();
    for hop in hops {
        if hops.len() > 1 {
            line += " nexthop";
        }
        if let Some(gateway) = hop["gateway"].as_str() {
            line += &format!(" via {gateway}");
        }
        match (hop["link"].as_str(), hop["ifindex"].as_u64()) {
            (Some(link), _) => line += &format!(" dev {link}"),
            (None, Some(ifindex)) => line += &format!(" dev if{ifindex}"),
            (None, None) => {}
        }
        if hops.len() > 1 {
            line += &format!(" weight {}", hop["weight"]);
        }
        for (flag, name) in [("dead", "dead"), ("encapsulated", "encap")] {
            if hop[flag] == true {
                line += &format!(" {name}");
            }
        }
    }
    if number("table") != 254 {
        line += &format!(
            " table {}",
            if number("table") == 255 { "local".to_owned() } else { route["table"].to_string() }
        );
    }
    line += &format!(" proto {}", text("protocol"));
    for (key, name) in [("metric", "metric"), ("tos", "tos"), ("mtu", "mtu")] {
        if number(key) != 0 {
            line += &format!(" {name} {}", number(key));
        }
    }
    let verdict = match text("reason") {
        "" => text("verdict").to_owned(),
        reason => format!("{}: {reason}", text("verdict")),
    };
    format!("{line:WIDTH$}  {verdict}\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_reads_as_ip_route_does() {
        let hop = |gateway: Option<&str>, weight: u32| json!({"gateway": gateway, "link": "eth1", "ifindex": 3, "weight": weight, "dead": false, "encapsulated": false});
        let mut route = json!({
            "prefix": "0.0.0.0/0", "table": 254, "metric": 20, "tos": 0, "kind": "unicast", "protocol": "bgp",
            "mtu": null, "hops": [hop(Some("10.0.0.1"), 1)], "verdict": "forwarded", "reason": "",
        });
        let words = |route: &Value| line(route).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(&route), "default via 10.0.0.1 dev eth1 proto bgp metric 20 forwarded");
        route["hops"] = json!([hop(Some("10.0.0.1"), 1), hop(None, 2)]);
        route["table"] = json!(10);
        route["verdict"] = json!("rejected");
        route["reason"] = json!("encapsulated");
        assert_eq!(
            words(&route),
            "default nexthop via 10.0.0.1 dev eth1 weight 1 nexthop dev eth1 weight 2 table 10 proto bgp metric 20 \
             rejected: encapsulated"
        );
    }
}
