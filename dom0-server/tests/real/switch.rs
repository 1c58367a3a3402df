//! The daemon's conversations with a real Open vSwitch on its dummy datapath.

use crate::common;
use crate::support::{self, link};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use dom0_server::core::{BatchId, Event};
use dom0_server::ovs::restore::Stage;
use dom0_server::ovs::{database, switch as conversation};
use dom0_server::ports::SwitchPorts;
use dom0_server::shaper::plan::QueueOf;
use openflow::{Band, ErrorCode, Message, Meter};
use tokio::sync::{mpsc, watch};
use xenflow_flow_app::{
    App, Attachment, FastPath, MeterChange, Policy, Rejection, RouterId, Topology, Vif, VifId, pipeline,
};
use xenflow_proto::table::{
    AddressKey, Hop, HopFlags, IfIndex, Neighbor, NeighborKey, Route, RouteKey, RouteKind, RouteTarget,
    TABLE_LOCAL, TABLE_MAIN,
};
use xenflow_proto::{Change, MacAddr, Object, VlanId};

const LIMIT: Duration = Duration::from_secs(20);
const ROUTER: RouterId = RouterId(1);

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the daemon does with `Open_vSwitch`, while this lives.
struct Keeper {
    runtime: tokio::runtime::Runtime,
    task: tokio::task::JoinHandle<()>,
    stage: watch::Sender<Stage>,
    events: mpsc::Receiver<Event>,
}

impl Keeper {
    fn start(switch: &common::Switch, bridge: &str) -> Self {
        let dir = switch.run("pwd", &[]);
        let remotes = ovsdb::Remote::parse_list(&format!("unix:{}/db.sock", dir.trim())).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (sender, events) = mpsc::channel(64);
        let (stage, watched) = watch::channel(Stage::Filling);
        let (_, home) = watch::channel(std::sync::Arc::default());
        let task = runtime.spawn(database::ports(remotes, bridge.to_owned(), true, watched, home, sender));
        Self { runtime, task, stage, events }
    }

    /// The ports as they are once `good` says so.
    fn ports(&mut self, good: impl Fn(&SwitchPorts) -> bool) -> SwitchPorts {
        let end = Instant::now() + LIMIT;
        loop {
            match self.events.try_recv() {
                Ok(Event::Ports(ports)) if good(&ports) => return ports,
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
            assert!(Instant::now() < end, "no such ports");
        }
    }
}

fn vsctl(switch: &common::Switch, args: &[&str]) -> String {
    switch.run("ovs-vsctl", &[&["--db=unix:db.sock", "--timeout=20"], args].concat()).trim().to_owned()
}

/// A router with a vif at port 1 and one at port 2, an end host at port 3 on the first one's segment, and routes of
/// every length behind a neighbor on the other's.
fn app() -> App {
    let router = ROUTER;
    let vlan = |n: i64| VlanId::try_from(n).unwrap();
    let vif = |number: u16| Vif {
        mac: mac(number as u8),
        attachment: Attachment::Segment(vlan(10 + i64::from(number))),
        port: Some(number.into()),
    };
    let topology = Topology {
        segments: [vlan(11), vlan(12)].into(),
        vifs: [1, 2].map(|number| (VifId { router, number }, vif(number))).into(),
        access: [(3, vlan(11))].into(),
        policies: [(router, Policy { fast_path: FastPath::Always, ..Policy::default() })].into(),
        ..Topology::default()
    };
    let mut app = App::new(1000);
    app.set_topology(topology);
    app.begin_snapshot(router);
    let mut say = |object| app.apply(router, Change::Upsert(object)).unwrap();
    let index = |n: u32| IfIndex::try_from(n).unwrap();
    for number in [1, 2] {
        say(link(index(number), &format!("eth{number}"), mac(number as u8), 1500));
    }
    for address in ["10.0.1.1/24", "2001:db8:1::1/64", "10.0.2.1/24", "2001:db8:2::1/64"] {
        let number = if address.contains(".1.1") || address.contains("8:1:") { 1 } else { 2 };
        let address: ipnet::IpNet = address.parse().unwrap();
        say(Object::Address(AddressKey { ifindex: index(number), address }));
        say(Object::Route(Route {
            key: RouteKey { table: TABLE_LOCAL, dst: address.addr().into(), tos: 0, metric: 0 },
            kind: RouteKind::Local,
            protocol: 2,
            scope: 0,
            target: RouteTarget::Hops(Vec::new()),
            mtu: None,
        }));
    }
    for (prefixes, gateway) in [
        (&["10.64.0.0/10", "10.200.1.0/24", "10.200.1.7/32", "192.0.2.1/32"][..], "10.0.2.9"),
        (
            &["2001:db8:100::/40", "2001:db8:200:1::/64", "2001:db8:200:1::7/128", "2001:db8:300::1/128"],
            "2001:db8:2::9",
        ),
    ] {
        let gateway = gateway.parse().unwrap();
        say(Object::Neighbor(Neighbor {
            key: NeighborKey { ifindex: index(2), addr: gateway },
            mac: mac(9),
        }));
        let hop =
            Hop { gateway: Some(gateway), oif: Some(index(2)), weight: 1, flags: HopFlags(0), encap: false };
        for dst in prefixes {
            say(Object::Route(Route {
                key: RouteKey { table: TABLE_MAIN, dst: dst.parse().unwrap(), tos: 0, metric: 0 },
                kind: RouteKind::Unicast,
                protocol: 4,
                scope: 0,
                target: RouteTarget::Hops(vec![hop]),
                mtu: None,
            }));
        }
    }
    app.end_snapshot(router);
    app
}

/// All of its flows, for a switch that holds nothing.
fn flows() -> Vec<Message> {
    let mut app = app();
    let mut messages = Vec::new();
    loop {
        let dumped = app.begin_dump().is_some();
        if dumped {
            app.dump_end();
        }
        let batch = app.next_batch(1000);
        if !dumped && batch.meters.is_empty() && batch.changes.is_empty() {
            return messages;
        }
        messages.extend(batch.meters.into_iter().map(Message::from));
        messages.extend(batch.changes.into_iter().map(Message::from));
    }
}

/// What `ofproto/trace` says of an IP packet to the router's first vif: its megaflow and its actions.
fn trace(switch: &common::Switch, addresses: &str) -> (String, String, String) {
    let packet = format!("in_port=3,dl_src={},dl_dst={},{addresses}", mac(8), mac(1));
    let said = switch.appctl(&["ofproto/trace", "br0", &packet]);
    let line = |start| {
        let found = said.lines().find_map(|line: &str| line.strip_prefix(start));
        found.unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    (line("Megaflow: "), line("Datapath actions: "), said)
}

/// Megaflows of packets to as many addresses of a prefix, which must all be forwarded.
fn megaflows(switch: &common::Switch, packets: impl Iterator<Item = String>) -> BTreeSet<String> {
    packets
        .map(|packet| {
            let (megaflow, actions, said) = trace(switch, &packet);
            assert!(actions.contains("set(eth(") && !actions.contains("drop"), "{said}");
            megaflow
        })
        .collect()
}

fn ipv6(n: u32) -> String {
    let n = n.wrapping_mul(2_654_435_761);
    let (a, b) = (n >> 16, n & 0xffff);
    // Of other networks: next to the router's own address each bit that tells them apart makes one more.
    format!("ipv6,ipv6_src=2001:db8:5:{b:x}::{a:x},ipv6_dst=2001:db8:100:{a:x}:{b:x}:{a:x}:{b:x}:1,nw_ttl=64")
}

fn ipv4(n: u32) -> String {
    let n = n.wrapping_mul(2_654_435_761);
    let (a, b, c) = (n >> 26, n >> 8 & 0xff, n & 0xff);
    format!("ip,nw_src=10.0.1.{},nw_dst=10.{}.{b}.{c},nw_ttl=64", 8 + n % 100, 64 + a % 64)
}

#[test]
fn addresses_of_a_prefix_share_a_megaflow() {
    let switch = common::Switch::start("tries");
    let mut client = switch.connect();
    client.install(&flows());
    // Control: without tries for IPv6, each address is looked at whole.
    let without = megaflows(&switch, (0..40).map(ipv6));
    assert_eq!(without.len(), 40, "{without:?}");

    let mut keeper = Keeper::start(&switch, "br0");
    keeper.ports(|ports| ports.ports.len() == 3);
    let tables = || vsctl(&switch, &["--columns=prefixes,external_ids", "list", "Flow_Table"]);
    until("three rows of Flow_Table", || tables().matches("xenflow").count() == 3);
    vsctl(&switch, &["get", "Open_vSwitch", ".", "cur_cfg"]);
    until("one megaflow for all", || megaflows(&switch, (0..40).map(ipv6)).len() == 1);
    let with = megaflows(&switch, (0..40).map(ipv6));
    assert!(with.iter().all(|it| it.contains("ipv6_dst=2001:db8:100::/40")), "{with:?}");
    let v4 = megaflows(&switch, (0..40).map(ipv4));
    // The trie of sources tells them from the router's own address, bit by bit: no more than one for each length.
    assert!(v4.len() <= 8, "sources and destinations of IPv4 share too: {v4:?}");

    // It is kept, whatever somebody does, and nothing is written twice.
    let log =
        || std::fs::read_to_string(format!("{}/sw.log", switch.run("pwd", &[]).trim())).unwrap_or_default();
    assert!(!log().contains("prefixes"), "{}", log());
    let uuid = vsctl(&switch, &["get", "Bridge", "br0", "flow_tables:3"]);
    vsctl(&switch, &["set", "Flow_Table", &uuid, "prefixes=ip_dst", "flow_limit=5000000"]);
    let repaired = || vsctl(&switch, &["get", "Flow_Table", &uuid, "prefixes"]);
    until("the prefixes are back", || repaired() == "[ip_dst, ipv6_dst]");
    assert_eq!(
        vsctl(&switch, &["get", "Flow_Table", &uuid, "flow_limit"]),
        "5000000",
        "what else it says stays"
    );
    vsctl(&switch, &["clear", "Bridge", "br0", "flow_tables"]);
    until("the rows are back", || tables().matches("xenflow").count() == 3);
    let before = vsctl(&switch, &["get", "Bridge", "br0", "flow_tables"]);
    drop(keeper);
    let mut keeper = Keeper::start(&switch, "br0");
    keeper.ports(|ports| ports.ports.len() == 3);
    assert_eq!(vsctl(&switch, &["get", "Bridge", "br0", "flow_tables"]), before);
    assert_eq!(tables().matches("xenflow").count(), 3);
}

#[test]
fn queues_are_read_from_rows_that_say_whose_they_are() {
    let switch = common::Switch::start("queues");
    let mut keeper = Keeper::start(&switch, "br0");
    keeper.ports(|ports| ports.ports.len() == 3 && ports.queues.is_empty());
    let queue = |network: &str, class: Option<&str>| QueueOf {
        network: network.parse().unwrap(),
        class: class.map(|class| class.parse().unwrap()),
    };
    // On the first port two that count, and some that nobody can mean; on the second one more and another 2.
    let rows = |queues: &[(&str, &str)]| -> Vec<String> {
        let ids = queues.iter().flat_map(|(id, whose)| {
            let create = ["--", id, "create", "Queue"].map(str::to_owned);
            create.into_iter().chain(whose.split(' ').map(|it| format!("external_ids:{it}")))
        });
        ids.collect()
    };
    let first = rows(&[
        ("--id=@a", "xenflow-network=red"),
        ("--id=@b", "xenflow-network=red xenflow-class=voice"),
        ("--id=@c", "xenflow-network=Not/A/Name"),
        ("--id=@d", "xenflow-network=red xenflow-class=+"),
        ("--id=@e", "xenflow-class=voice"),
        ("--id=@f", "somebody=else"),
    ]);
    let second = rows(&[("--id=@g", "xenflow-network=blue"), ("--id=@h", "xenflow-network=green")]);
    let write = |port: &str, queues: &str, rows: &[String]| {
        let set =
            ["set", "Port", port, "qos=@qos", "--", "--id=@qos", "create", "QoS", "type=linux-noop", queues];
        let rows = rows.iter().map(String::as_str);
        vsctl(&switch, &set.into_iter().chain(rows).collect::<Vec<_>>());
    };
    write("p1", "queues=2=@a,0=@b,61440=@b,61439=@b,3=@c,4=@d,5=@e,6=@f", &first);
    write("p2", "queues=2=@g,9=@h", &second);
    let wanted = [(2, queue("red", None)), (9, queue("green", None)), (61439, queue("red", Some("voice")))];
    let ports = keeper.ports(|ports| ports.queues.len() == 3);
    assert_eq!(ports.queues, wanted.into());
    // What they get is nobody's business here.
    vsctl(&switch, &["clear", "Port", "p1", "qos"]);
    let ports = keeper.ports(|ports| ports.queues.len() == 2);
    assert_eq!(ports.queues, [(2, queue("blue", None)), (9, queue("green", None))].into());
}

/// What a real switch answers to the daemon's orders: which meters it can have, its counters, and why it refuses.
#[test]
fn a_switch_is_asked_for_meters_and_counters_and_names_what_it_refuses() {
    let switch = common::Switch::start("orders");
    let socket = std::path::Path::new(switch.run("pwd", &[]).trim()).join("br0.mgmt");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (orders, inbox) = mpsc::channel(16);
    let (sender, mut events) = mpsc::channel(64);
    runtime.spawn(conversation::run(socket, inbox, support::no_frames(), sender));
    let mut next = move || {
        let event = runtime.block_on(async { tokio::time::timeout(LIMIT, events.recv()).await });
        event.expect("no answer").unwrap()
    };
    let order = |connection, command| {
        orders.try_send(conversation::Order { connection, command }).unwrap();
    };
    assert!(matches!(next(), Event::SwitchUp { has_meters: true }));

    let unknown = MeterChange::Modify(Meter::drop_pktps(77, 10, 1));
    let known = MeterChange::Add(Meter::drop_pktps(78, 10, 1));
    let send = conversation::Command::Send(
        BatchId(1),
        vec![unknown.clone(), known.clone()],
        Vec::new(),
        Instant::now(),
    );
    order(1, send);
    match next() {
        Event::MeterRefused(change, error) => {
            assert_eq!(
                (change, error.is_drift, error.reason.as_str()),
                (unknown, true, "OFPMMFC_UNKNOWN_METER")
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(next(), Event::Confirmed(BatchId(1), _)));
    order(1, conversation::Command::Send(BatchId(2), vec![known], Vec::new(), Instant::now()));
    assert!(matches!(next(), Event::MeterRefused(_, error) if error.is_drift), "there already");
    assert!(matches!(next(), Event::Confirmed(BatchId(2), _)));
    let bad = MeterChange::Add(Meter {
        id: 79,
        flags: 1 | 4 | 8,
        bands: vec![Band::Drop { rate: 1, burst: 1 }; 9],
    });
    order(1, conversation::Command::Send(BatchId(3), vec![bad], Vec::new(), Instant::now()));
    assert!(matches!(next(), Event::MeterRefused(_, error) if !error.is_drift), "more bands than it has");
    assert!(matches!(next(), Event::Confirmed(BatchId(3), _)));

    let mut client = switch.connect();
    client.install(&flows());
    order(0, conversation::Command::Poll);
    order(1, conversation::Command::Poll);
    match next() {
        Event::Counted(poll) => {
            assert!(poll.ports.len() >= 3, "{poll:?}");
            assert!(poll.meters.iter().any(|meter| meter.id == 78), "{poll:?}");
            let tables: BTreeSet<u8> = poll.flows.iter().map(|described| described.flow.table).collect();
            use pipeline::{ADMISSION, EGRESS, LOCAL, NEXT_HOP, ROUTER};
            let counted = [ADMISSION, ROUTER, LOCAL, NEXT_HOP, EGRESS];
            assert_eq!(tables, counted.into(), "never the routes");
        }
        other => panic!("{other:?}"),
    }
}

/// A table of routes with room for two prefixes: what is forwarded is forwarded rightly, the rest is the guest's.
#[test]
fn a_full_table_leaves_the_rest_to_the_guest() {
    let switch = common::Switch::start("full");
    let dir = switch.run("pwd", &[]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (orders, inbox) = mpsc::channel(16);
    let (sender, mut events) = mpsc::channel(64);
    runtime.spawn(conversation::run(
        std::path::Path::new(dir.trim()).join("br0.mgmt"),
        inbox,
        support::no_frames(),
        sender,
    ));
    let mut next = || {
        let event = runtime.block_on(async { tokio::time::timeout(LIMIT, events.recv()).await });
        event.expect("no answer").unwrap()
    };
    assert!(matches!(next(), Event::SwitchUp { .. }));
    // Brings the switch in step as the core does; says how many bundles were refused.
    let mut settle = |app: &mut App| {
        let (mut refusals, mut number) = (0, 0);
        let order = |command| orders.try_send(conversation::Order { connection: 1, command }).unwrap();
        loop {
            if let Some(dump) = app.begin_dump() {
                order(conversation::Command::Dump(dump));
                loop {
                    match next() {
                        Event::Dumped(flows) => flows.into_iter().for_each(|flow| app.dumped(flow)),
                        Event::DumpedGroups(all) => all.into_iter().for_each(|group| app.dumped_group(group)),
                        Event::DumpedMeters(all) => all.into_iter().for_each(|meter| app.dumped_meter(meter)),
                        Event::DumpEnd => break app.dump_end(),
                        other => panic!("{other:?}"),
                    }
                }
            }
            let batch = app.next_batch(1000);
            if batch.meters.is_empty() && batch.changes.is_empty() && app.is_idle() {
                return refusals;
            }
            number += 1;
            order(conversation::Command::Send(
                BatchId(number),
                batch.meters,
                batch.changes.clone(),
                Instant::now(),
            ));
            match next() {
                Event::Confirmed(BatchId(id), _) if id == number => {}
                Event::Refused(BatchId(id), culprits) if id == number => {
                    let [(index, why)] = culprits[..] else { panic!("{culprits:?}") };
                    assert_eq!(why, ErrorCode::TABLE_FULL, "{:?}", batch.changes[index]);
                    assert!(app.refuse(&batch.changes, index, why));
                    app.switch_reset();
                    refusals += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let mut none = App::new(1000);
    none.set_topology(app().topology().clone());
    assert_eq!(settle(&mut none), 0);
    // The topology's own flows, two prefixes, and the place that stays free.
    let own = switch.run("ovs-ofctl", &["-O", "OpenFlow15", "dump-flows", "unix:br0.mgmt", "table=3"]);
    let limit = own.matches("priority=").count() + 3;
    let create = format!("flow_limit={limit}");
    let row = ["--", "--id=@ft", "create", "Flow_Table", &create, "overflow_policy=refuse"];
    vsctl(&switch, &[&row[..], &["--", "set", "Bridge", "br0", "flow_tables:3=@ft"]].concat());

    let mut app = app();
    assert!(settle(&mut app) > 0, "there was room for all");
    let goes = |addresses: &str| trace(&switch, &format!("{addresses},nw_ttl=64")).1;
    let to_vif = |actions: &str| actions.ends_with('1') && !actions.contains("set(eth(");
    let forwarded = goes("ip,nw_src=10.0.1.8,nw_dst=10.64.1.1");
    assert!(forwarded.contains("set(eth("), "the shortest prefix is forwarded: {forwarded}");
    for (packet, why) in [
        ("ip,nw_src=10.0.1.8,nw_dst=10.200.1.7", "a longer prefix has no flow"),
        ("ip,nw_src=10.0.1.8,nw_dst=10.200.1.8", "the shorter one stands in for it"),
        ("ip,nw_src=10.0.1.8,nw_dst=192.0.2.1", "nothing covers it"),
        ("ipv6,ipv6_src=2001:db8:5::1,ipv6_dst=2001:db8:100::1", "nothing covers it"),
    ] {
        let actions = goes(packet);
        assert!(to_vif(&actions), "{packet}: {why}, and it goes {actions}");
    }
    let rejected: BTreeSet<String> = app.rejected(ROUTER).map(|(key, _)| key.dst.to_string()).collect();
    assert_eq!(rejected.len(), 7, "all but one: {rejected:?}");
    assert!(app.rejected(ROUTER).all(|(_, why)| why == Rejection::Switch(ErrorCode::TABLE_FULL)));

    let uuid = vsctl(&switch, &["get", "Bridge", "br0", "flow_tables:3"]);
    vsctl(&switch, &["set", "Flow_Table", &uuid, "flow_limit=1000"]);
    assert!(app.forgive());
    app.switch_reset();
    assert_eq!(settle(&mut app), 0);
    assert_eq!(app.rejected(ROUTER).count(), 0);
    let forwarded = goes("ip,nw_src=10.0.1.8,nw_dst=10.200.1.8");
    assert!(forwarded.contains("set(eth("), "{forwarded}");
}

/// The key is armed when the switch has what it needs, cleared by nobody for long, and gone with the daemon or with a
/// second bridge.
#[test]
fn a_restart_of_the_switch_is_prepared_only_while_nobody_else_would_wait() {
    let switch = common::Switch::start("restore");
    let key =
        || vsctl(&switch, &["--if-exists", "get", "Open_vSwitch", ".", "other_config:flow-restore-wait"]);
    let mut keeper = Keeper::start(&switch, "br0");
    keeper.ports(|ports| ports.ports.len() == 3);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(key(), "", "not before the switch has its flows");
    keeper.stage.send_replace(Stage::Ready(1));
    until("armed", || key() == "\"true\"");

    vsctl(&switch, &["set", "Open_vSwitch", ".", "other_config:flow-restore-wait=false"]);
    until("armed again", || key() == "\"true\"");
    keeper.stage.send_replace(Stage::Filling);
    keeper.stage.send_replace(Stage::Ready(2));
    until("released and armed for the next switch", || {
        let cfg = |column| vsctl(&switch, &["get", "Open_vSwitch", ".", column]);
        key() == "\"true\"" && cfg("cur_cfg") == cfg("next_cfg")
    });

    vsctl(&switch, &["add-br", "br1", "--", "set", "Bridge", "br1", "datapath_type=dummy"]);
    until("disarmed", || key() == "\"false\"");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(key(), "\"false\"", "it stays so beside another bridge");
    vsctl(&switch, &["del-br", "br1"]);
    until("armed when it is alone again", || key() == "\"true\"");

    keeper.stage.send_replace(Stage::Stopping);
    let Keeper { runtime, task, .. } = keeper;
    runtime.block_on(async { tokio::time::timeout(LIMIT, task).await }).unwrap().unwrap();
    assert_eq!(key(), "\"false\"", "nobody will fill the next switch");
}
