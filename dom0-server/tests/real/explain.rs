//! `xenflow explain` between real switches on their dummy datapaths, a real database and two cores: nodes a and b, with a
//! router on a whose guest is played by hand.

use crate::common;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{self, Server, link, refused};
use dom0_server::core::{Core, Effect, Event, SessionId};
use dom0_server::events::Events;
use dom0_server::inspect::explain::trace::Bridge;
use dom0_server::inspect::{self, Answer, socket};
use dom0_server::locations::watch as located;
use dom0_server::ovs::{appctl, database, switch as conversation};
use dom0_server::ports::{ControlPort, SwitchPort, SwitchPorts};
use dom0_server::shaper::handle::Handle;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use xenflow_proto::message::{GuestMessage, Hello, VERSION};
use xenflow_proto::table::{
    AddressKey, Hop, HopFlags, IfIndex, Neighbor, NeighborKey, Route, RouteKey, RouteKind, RouteTarget,
    TABLE_LOCAL, TABLE_MAIN,
};
use xenflow_proto::{Change, Identity, MacAddr, Object, Seq, control};

const LIMIT: Duration = Duration::from_secs(40);
const CONTROL: MacAddr = MacAddr([2, 0, 0, 0, 9, 1]);

/// What is in the database: h1 and r1 on a, h3 on b, r1 between lan and wan.
const TOPOLOGY: [&str; 14] = [
    "network add red",
    "class add red bulk --priority 5 --protocol udp --port 5001 --max 1gbit",
    "segment add lan --network red --vlan 100",
    "segment add wan --network red --vlan 101",
    "router add r1 --network red --fastpath always",
    "vif add r1-lan --router r1 --segment lan --mac 02:00:00:00:00:01",
    "vif add r1-wan --router r1 --segment wan --mac 02:00:00:00:00:02",
    "vif add r1-ctl --router r1 --control --mac 02:00:00:00:09:01",
    "access add h1 --segment lan --mac 02:00:00:00:01:01",
    "access add h2 --segment wan --mac 02:00:00:00:01:02",
    "access add h3 --segment wan --mac 02:00:00:00:01:03",
    "access add h4 --segment wan",
    "uplink add a p2",
    "uplink add b p2",
];

/// A node: its switch, its core, and the daemon's loop in short.
struct Node {
    switch: common::Switch,
    socket: PathBuf,
    events: mpsc::Sender<Event>,
}

fn port(name: &str, number: u32, iface_id: Option<&str>, mac: Option<[u8; 6]>) -> SwitchPort {
    SwitchPort {
        row: ovsdb::Uuid(number.into()),
        name: name.to_owned(),
        number,
        iface_id: iface_id.map(str::to_owned),
        attached_mac: mac.map(MacAddr),
        is_up: true,
        was_home: false,
        mtu: 1500,
    }
}

impl Node {
    async fn start(server: &Server, name: &str, ports: Vec<SwitchPort>) -> Self {
        let switch = common::Switch::start(&format!("explain-{name}"));
        let dir = PathBuf::from(switch.run("pwd", &[]).trim());
        std::os::unix::fs::symlink(dir.join("sw.ctl"), dir.join("ovs-vswitchd.ctl")).unwrap();
        for port in ports.iter().filter(|port| port.number > 3) {
            let number = format!("ofport_request={}", port.number);
            let add = [
                "--db=unix:db.sock",
                "--timeout=20",
                "add-port",
                "br0",
                &port.name,
                "--",
                "set",
                "interface",
            ];
            switch.run("ovs-vsctl", &[&add[..], &[&port.name, "type=dummy", &number]].concat());
        }
        let (events, mut inbox) = mpsc::channel(256);
        let (orders, taken) = mpsc::channel(16);
        tokio::spawn(conversation::run(dir.join("br0.mgmt"), taken, support::no_frames(), events.clone()));
        let remotes = ovsdb::Remote::parse_list(&server.db()).unwrap();
        let database = database::desired(remotes.clone(), None, name.parse().unwrap(), None, events.clone());
        let (here, watched) = watch::channel(None);
        let (moves, moving) = watch::channel(located::Moves::default());
        let node_name = name.parse().unwrap();
        tokio::spawn(located::run(remotes, None, node_name, None, watched, moving, events.clone()));
        let socket = dir.join("control.sock");
        let (guard, mut asks) = socket::open(&socket, &Events::default(), &Handle::default()).await.unwrap();
        let mut core = Core::new(name.parse().unwrap(), 10_000);
        let bridge = Arc::new(Bridge { rundir: dir, name: "br0".to_owned() });
        let node = Self { switch, socket, events: events.clone() };
        let control = Some(ControlPort { number: 9, ifindex: 3 });
        events.send(Event::Ports(SwitchPorts { ports, control, ..SwitchPorts::default() })).await.unwrap();
        tokio::spawn(async move {
            let _kept = (guard, database, moves);
            let mut connection = 0;
            loop {
                let event = tokio::select! {
                    Some(ask) = asks.recv() => {
                        let mut answer = inspect::answer(&core, true, &ask.question);
                        if let Answer::Trace(plan) = &mut answer {
                            plan.aim(&bridge);
                        }
                        let _ = ask.reply.send(answer);
                        continue;
                    }
                    Some(event) = inbox.recv() => event,
                };
                connection += u64::from(matches!(event, Event::SwitchUp { .. }));
                let begun = Instant::now();
                let mut effects = core.handle(event);
                while core.is_behind() {
                    effects.extend(core.handle(Event::Turn));
                }
                let later = |pause: Duration, event: Event| {
                    let events = events.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(pause).await;
                        let _ = events.send(event).await;
                    });
                };
                for effect in effects {
                    let command = match effect {
                        Effect::Send(batch, meters, changes) => {
                            conversation::Command::Send(batch, meters, changes, begun)
                        }
                        Effect::Dump(dump) => conversation::Command::Dump(dump),
                        Effect::Wait(pause) => {
                            later(pause, Event::Waited);
                            continue;
                        }
                        Effect::Rest(pause) => {
                            later(pause, Event::Rested);
                            continue;
                        }
                        Effect::Refuse(_, reason, detail) => panic!("{reason:?}: {detail}"),
                        Effect::Prove(proof) => {
                            let (events, bridge) = (events.clone(), bridge.clone());
                            tokio::spawn(async move {
                                let said = appctl::call(&bridge.rundir, "revalidator/wait", &[]).await;
                                let _ = events.send(Event::Proven(proof, said.is_ok())).await;
                            });
                            continue;
                        }
                        Effect::Tell(..) | Effect::Taken(_) | Effect::Peer(_) | Effect::Nudge(..) => continue,
                    };
                    orders.send(conversation::Order { connection, command }).await.unwrap();
                }
                here.send_if_modified(|known: &mut located::Here| {
                    let is_new = core.here() != known.as_ref();
                    *known = core.here().cloned();
                    is_new
                });
            }
        });
        node
    }

    fn asked(&self, server: &Server, line: &str) -> std::process::Output {
        server.run(&format!("{line} --socket {}", self.socket.display()))
    }

    /// What is explained, and with which code it ends.
    fn explained(&self, server: &Server, line: &str) -> (Value, i32, String) {
        let output = self.asked(server, &format!("explain {line} --json"));
        let stderr = String::from_utf8(output.stderr).unwrap();
        let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{line}: {stderr}"));
        (value, output.status.code().unwrap(), stderr)
    }

    /// Both views agree; the words of all nodes come back.
    fn agreed(&self, server: &Server, line: &str) -> (Value, String) {
        let (value, code, stderr) = self.explained(server, line);
        assert_eq!((code, stderr.as_str()), (0, ""), "{line}: {value:#}");
        let nodes = value["nodes"].as_array().unwrap();
        assert!(nodes.iter().all(|node| node["verdict"] == "same"), "{value:#}");
        let steps = nodes.iter().flat_map(|node| node["steps"].as_array().unwrap());
        let words: Vec<String> =
            steps.map(|step| step["xenflow"]["words"].as_str().unwrap().to_owned()).collect();
        (value, words.join("\n"))
    }

    fn ofctl(&self, command: &str, what: &str) {
        self.switch.run("ovs-ofctl", &["-O", "OpenFlow15", command, "br0", what]);
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// All that r1's guest says.
fn tables() -> Vec<Object> {
    let index = |n: u32| IfIndex::try_from(n).unwrap();
    let mut said = Vec::new();
    let route = |dst: &str, kind, protocol, hops: &[(Option<&str>, u32, u32)], metric, table| {
        let hop = |(gateway, oif, weight): &(Option<&str>, u32, u32)| Hop {
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            oif: Some(index(*oif)),
            weight: *weight,
            flags: HopFlags(0),
            encap: false,
        };
        Object::Route(Route {
            key: RouteKey { table, dst: dst.parse().unwrap(), tos: 0, metric },
            kind,
            protocol,
            scope: 0,
            target: RouteTarget::Hops(hops.iter().map(hop).collect()),
            mtu: None,
        })
    };
    for (number, net, own) in [(1, "10.0.0.0/24", "10.0.0.1"), (2, "10.0.1.0/24", "10.0.1.1")] {
        said.push(link(index(number), &format!("eth{number}"), MacAddr([2, 0, 0, 0, 0, number as u8]), 1500));
        let address = format!("{own}/24").parse().unwrap();
        said.push(Object::Address(AddressKey { ifindex: index(number), address }));
        said.push(route(&format!("{own}/32"), RouteKind::Local, 2, &[], 0, TABLE_LOCAL));
        said.push(route(net, RouteKind::Unicast, 2, &[(None, number, 1)], 0, TABLE_MAIN));
    }
    for (link, addr, last) in [(1, "10.0.0.5", 1), (2, "10.0.1.2", 2), (2, "10.0.1.3", 3)] {
        said.push(Object::Neighbor(Neighbor {
            key: NeighborKey { ifindex: index(link), addr: addr.parse().unwrap() },
            mac: MacAddr([2, 0, 0, 0, 1, last]),
        }));
    }
    let near = (Some("10.0.1.2"), 2, 1);
    let far = (Some("10.0.1.3"), 2, 2);
    said.push(route("10.2.0.0/16", RouteKind::Unicast, 186, &[near], 20, TABLE_MAIN));
    said.push(route("10.3.0.0/16", RouteKind::Unicast, 186, &[far], 20, TABLE_MAIN));
    said.push(route("10.4.0.0/16", RouteKind::Unicast, 186, &[near, far], 20, TABLE_MAIN));
    said.push(route("10.5.0.0/16", RouteKind::Blackhole, 4, &[], 0, TABLE_MAIN));
    said.push(route("10.6.0.0/16", RouteKind::Unicast, 4, &[(Some("10.0.1.9"), 2, 1)], 0, TABLE_MAIN));
    said
}

async fn speak(node: &Node) {
    let id = SessionId(1);
    let router = "r1".parse().unwrap();
    let hello = Hello { versions: vec![VERSION], router, boot_id: [7; 16], agent: String::new() };
    let identity = Identity::Router("r1".parse().unwrap());
    let peer = control::guest_ipv6(CONTROL).into();
    node.events.send(Event::Opened(id, identity, peer, hello)).await.unwrap();
    let changes = tables().into_iter().map(Change::Upsert).collect();
    for message in [
        GuestMessage::SnapshotBegin(Seq(1)),
        GuestMessage::Changes { seq: Seq(2), changes },
        GuestMessage::SnapshotEnd(Seq(3)),
    ] {
        node.events.send(Event::Said(id, message)).await.unwrap();
    }
}

/// Whether a node's switch holds all that it should, with so many routers' tables.
fn is_settled(server: &Server, node: &Node, sessions: u64) -> bool {
    let output = node.asked(server, "status --json");
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    status["switch"]["in_step"] == true && status["sessions"] == sessions && {
        let routers = status["routers"].as_array().cloned().unwrap_or_default();
        sessions == 0 || routers.iter().all(|router| router["session"] == "up")
    }
}

async fn nodes(server: &Server) -> (Node, Node) {
    for line in TOPOLOGY {
        server.ok(line);
    }
    let a = vec![
        port("p1", 1, Some("h1"), None),
        port("p2", 2, None, None),
        port("p3", 3, Some("made-up"), Some([2, 0, 0, 0, 1, 2])),
        port("p4", 4, None, Some([2, 0, 0, 0, 0, 1])),
        port("p5", 5, None, Some([2, 0, 0, 0, 0, 2])),
        port("p6", 6, None, Some(CONTROL.0)),
        port("p7", 7, Some("h4"), None),
    ];
    let a = Node::start(server, "a", a).await;
    let b = Node::start(server, "b", vec![port("p1", 1, Some("h3"), None), port("p2", 2, None, None)]).await;
    until("routers known", || {
        let output = a.asked(server, "routes r1 --json");
        output.status.success()
    });
    speak(&a).await;
    until("a in step", || is_settled(server, &a, 1));
    until("b in step", || is_settled(server, &b, 0));
    until("h3 known to be on b", || {
        let output = a.asked(server, "explain --from h1 --dst 10.3.0.7 --json");
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        value["nodes"][0]["outputs"][0]["is_elsewhere"] == true && is_settled(server, &a, 1)
    });
    (a, b)
}

/// Every word is in what was said.
fn says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "no \"{word}\" in: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_packet_is_explained_as_the_switch_treats_it() {
    let server = Server::ready();
    let (a, b) = nodes(&server).await;

    // Routed on one host.
    let (value, words) = a.agreed(&server, "--router r1 --from h1 --dst 10.2.0.7");
    says(
        &words,
        &[
            "in by port p1 (access port h1): segment lan (VLAN 100)",
            "to r1's vif r1-lan: routed",
            "route 10.2.0.0/16 via 10.0.1.2 dev eth2 (RIB: metric 20, bgp)",
            "neighbor 10.0.1.2 is at 02:00:00:00:01:02: from vif r1-wan, segment wan (VLAN 101), TTL 64 → 63",
            "out of port p3 (access port h2), untagged",
        ],
    );
    let node = &value["nodes"][0];
    assert_eq!(
        node["packet"],
        "UDP 10.0.0.5 → 10.2.0.7, ports 49152 → 9, TTL 64, 02:00:00:00:01:01 → 02:00:00:00:00:01"
    );
    assert_eq!(node["outputs"].as_array().unwrap().len(), 1);
    assert_eq!(
        node["outputs"][0]["packet"],
        "UDP 10.0.0.5 → 10.2.0.7, ports 49152 → 9, TTL 63, 02:00:00:00:00:02 → 02:00:00:00:01:02"
    );
    assert!(node["datapath"].as_str().unwrap().contains("set(ipv4(ttl=63))"), "{node}");

    // A frame as it is: the same one, and what the page says of it.
    let frame = node["frame"].as_str().unwrap();
    let (again, _) = a.agreed(&server, &format!("--from p1 --frame {frame}"));
    assert_eq!(again["nodes"][0]["steps"], node["steps"]);
    let page = a.asked(&server, &format!("explain --from h1 --frame {frame}"));
    let page = String::from_utf8(page.stdout).unwrap();
    says(
        &page,
        &["node a: port p1 (access port h1)\n", "table", "0 admission", "XenFlow and the switch agree\n"],
    );

    // Each way that a packet can end.
    for (line, word) in [
        ("--from h1 --dst 10.5.0.1", "blackhole 10.5.0.0/16 (RIB: metric 0, static): dropped"),
        ("--from h1 --dst 10.2.0.7 --ttl 1", "punted, class exception: its TTL of 1 ends here"),
        (
            "--from h1 --dst 10.2.0.7 --ttl 1",
            "out of port p4 (vif r1-lan): the guest gets it, class exception",
        ),
        ("--from h1 --dst 10.9.0.1", "punted, class exception: r1 has no route to 10.9.0.1"),
        ("--from h1 --dst 10.6.0.1", "punted, class transit: vif r1-wan has no neighbor 10.0.1.9 resolved"),
        ("--from h1 --dst 10.0.0.1", "punted: 10.0.0.1 is r1's own"),
        ("--from h1 --dst 10.0.0.1 --proto tcp --dport 179", "class routing"),
        ("--from h1 --dst 10.0.1.2 --proto icmp", "10.0.1.2/32 is a neighbor on a connected network"),
        ("--from h1 --dst 224.0.0.5", "nobody forwards to 224.0.0.5"),
        ("--from h1 --dst 10.2.0.7 --src 10.0.1.1", "it says that it is from r1's own 10.0.1.1"),
        ("--from h1 --dst 10.2.0.7 --dst-mac 02:00:00:00:07:07", "flooded within segment lan (VLAN 100)"),
        ("--from h2 --dst 10.0.0.5", "in by port p3 (access port h2): segment wan (VLAN 101)"),
        ("--from h4 --dst 10.0.0.5", "in by port p7 (access port h4): segment wan (VLAN 101)"),
        ("--from h1 --dst 10.4.0.9", "of 2 next hops (10.0.1.2 weight 1, 10.0.1.3 weight 2)"),
        (
            "--from h1 --frame ffffffffffff0200000001010806000108000604000102000000010100000000000000000000000a000001",
            "class resolution",
        ),
        (
            "--from h1 --frame ffffffffffff0200000009990806000108000604000102000000099900000000000000000000000a000001",
            "foreign-source",
        ),
    ] {
        let (_, words) = a.agreed(&server, line);
        says(&words, &[word]);
    }
    // Whatever next hop the switch picks, it is one of the group's.
    for last in 1..9 {
        a.agreed(&server, &format!("--from h1 --dst 10.4.0.{last} --sport {last}"));
    }

    // To the next node, and on there.
    let line = "--from h1 --dst 10.3.0.7";
    let (value, words) = a.agreed(&server, line);
    says(
        &words,
        &[
            "02:00:00:00:01:03 is another node's: by port p2 (uplink)",
            "in no class: its network's queue",
            "out of port p2 (uplink) with VLAN 101, queue 1 (network red)",
        ],
    );
    let (_, words) = a.agreed(&server, &format!("{line} --proto udp --dport 5001"));
    says(&words, &["of a class: queue 2 (class bulk of network red)"]);
    assert_eq!(value["nodes"][0]["outputs"][0]["next_node"], "b");
    says(value["next"].as_str().unwrap(), &["--host b=SOCKET follows it there"]);
    let (value, words) = a.agreed(&server, &format!("{line} --host b={}", b.socket.display()));
    assert_eq!((value["nodes"].as_array().unwrap().len(), &value["next"]), (2, &Value::Null));
    says(
        &words,
        &["in by port p2 (uplink): segment wan (VLAN 101)", "out of port p1 (access port h3), untagged"],
    );
    says(
        value["nodes"][1]["packet"].as_str().unwrap(),
        &["TTL 63, 02:00:00:00:00:02 → 02:00:00:00:01:03, VLAN 101"],
    );

    // What the switch learns is its own business, and XenFlow follows it.
    a.ofctl(
        "add-flow",
        "table=6,priority=10,cookie=0x5846030000640000,vlan_tci=0x0064/0x0fff,dl_dst=02:00:00:00:07:07,actions=load:2->NXM_NX_REG2[]",
    );
    let (_, words) = a.agreed(&server, "--from h1 --dst 10.2.0.7 --dst-mac 02:00:00:00:07:07");
    says(&words, &["learned by the switch: 02:00:00:00:07:07 is behind port p2 (uplink)"]);
    let learned = a.switch.run("ovs-ofctl", &["-O", "OpenFlow15", "dump-flows", "br0", "table=6"]);
    assert_eq!(learned.matches("cookie=").count(), 1, "to ask teaches the switch nothing: {learned}");

    what_is_not_right_is_found(&server, &a);
}

/// Whoever writes flows by hand is found out, and where.
fn what_is_not_right_is_found(server: &Server, a: &Node) {
    let line = "--from h1 --dst 10.2.0.7";
    let dumped =
        a.switch.run("ovs-ofctl", &["-O", "OpenFlow15", "--no-stats", "dump-flows", "br0", "table=4"]);
    let rewrite =
        dumped.lines().find(|flow| flow.contains("02:00:00:00:01:02->eth_dst")).unwrap().trim().to_owned();
    a.ofctl("add-flow", &rewrite.replace("02:00:00:00:01:02->eth_dst", "02:00:00:00:01:77->eth_dst"));
    let (value, code, stderr) = a.explained(server, line);
    assert_eq!(value["nodes"][0]["verdict"], "different");
    let difference = "table 4 (next hop): it should do set_field:02:00:00:00:01:02->eth_dst, and does \
                      set_field:02:00:00:00:01:77->eth_dst";
    assert_eq!((code, stderr), (1, format!("xenflow: node a: {difference}\n")));
    assert_eq!(value["nodes"][0]["difference"], difference);
    let page = a.asked(server, &format!("explain {line}"));
    assert_eq!(page.status.code(), Some(1));
    says(
        &String::from_utf8(page.stdout).unwrap(),
        &["DIFFERS: it should do", "XenFlow and the switch DIFFER"],
    );
    a.ofctl("add-flow", &rewrite);
    a.agreed(server, line);

    // A flow that should not be there, and one that is missing.
    a.ofctl("add-flow", "table=3,priority=500,cookie=0x1,ip,nw_dst=10.2.0.7,actions=drop");
    let (_, code, stderr) = a.explained(server, line);
    assert_eq!(code, 1, "{stderr}");
    says(
        &stderr,
        &[
            "table 3 (route): it should meet the flow of priority 66",
            "and meets the flow of priority 500 and cookie 0x1",
        ],
    );
    a.ofctl("del-flows", "cookie=0x1/-1");
    a.ofctl("del-flows", "table=3,ip,nw_dst=10.2.0.0/16");
    let (_, code, stderr) = a.explained(server, line);
    assert_eq!(code, 1);
    says(
        &stderr,
        &["table 3 (route): it should meet the flow of priority 66", "and meets the flow of priority 2 "],
    );

    // No switch to ask.
    let ctl = a.switch.run("readlink", &["ovs-vswitchd.ctl"]);
    a.switch.run("rm", &["ovs-vswitchd.ctl"]);
    let (value, code, stderr) = a.explained(server, line);
    assert_eq!((code, value["nodes"][0]["verdict"].as_str()), (1, Some("unknown")), "{ctl}");
    says(&stderr, &["xenflow: node a: no ovs-vswitchd has a control socket in "]);

    // What cannot be asked.
    for (line, message) in [
        ("--from h3 --dst 10.2.0.7", "h3 has no port on node a"),
        ("--from nix --dst 10.2.0.7", "node a has no access port, vif or port of the switch named nix"),
        (
            "--from p2 --dst 10.2.0.7",
            "port p2 (uplink) is on no segment: say --frame HEX for what comes by it",
        ),
        ("--from h1 --dst 10.2.0.7 --router r9", "there is no router r9"),
        ("--from h1 --dst 2001:db8::1", "no address of port p1 (access port h1) is known: say --src ADDRESS"),
    ] {
        refused(line, &a.asked(server, &format!("explain {line}")), 1, message);
    }
}
