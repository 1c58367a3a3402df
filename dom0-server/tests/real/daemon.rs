//! The whole daemon between a real `ovsdb-server` and a real `ovs-vswitchd` on its dummy datapath: what it configures,
//! counts and arms, what is left of that when one of them dies, and what it tells systemd.

use std::cell::RefCell;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Dir, Running, Runs, ok, run, serves};

/// A host with one segment and two end hosts.
struct Host {
    daemon: Option<Running>,
    switch: Option<Running>,
    _ovsdb: Running,
    /// What the daemon takes for systemd. The kernel keeps no more than ten words for it, so each wait reads them.
    systemd: UnixDatagram,
    told: RefCell<String>,
    dir: Dir,
}

impl Runs for Host {
    fn dir(&self) -> &Dir {
        &self.dir
    }

    fn turn(&self) {
        self.told();
    }
}

impl Host {
    fn start() -> Self {
        let dir = Dir::new();
        let mut create =
            dir.command("ovsdb-tool", &["create", "conf.db", "/usr/share/openvswitch/vswitch.ovsschema"]);
        assert!(create.status().expect("ovsdb-tool is needed").success());
        let ovsdb = dir.spawn("ovsdb-server", &["conf.db", "--remote=punix:db.sock", "--unixctl=db.ctl"]);
        let systemd = UnixDatagram::bind(dir.0.join("notify")).unwrap();
        systemd.set_nonblocking(true).unwrap();
        let mut host =
            Self { daemon: None, switch: None, _ovsdb: ovsdb, systemd, told: RefCell::default(), dir };
        host.until("ovsdb-server", |host| serves(&host.path("db.sock")) && serves(&host.path("db.ctl")));
        host.tool("ovs-vsctl", &["--db=unix:db.sock", "--no-wait", "init"]);
        host.start_switch();
        let (file, ctl) = (host.path("xenflow.db"), host.path("db.ctl"));
        host.xenflow(&format!("init --db-file {} --ctl {}", file.display(), ctl.display()));
        let pki = host.path("pki");
        host.xenflow(&format!("pki init {}", pki.display()));
        host.xenflow(&format!("pki issue node a --ca {}", pki.display()));
        for line in [
            "network add red",
            "segment add lan --network red --vlan 100",
            "access add h1 --segment lan --mac 02:00:00:00:01:01",
            "access add h2 --segment lan --mac 02:00:00:00:01:02",
        ] {
            host.xenflow(line);
        }
        let config = format!(
            "node = \"a\"\nca = \"{0}/ca.pem\"\ncert = \"{0}/a.pem\"\nkey = \"{0}/a.key\"\novs_db = \"unix:{1}/db.sock\"\n\
             ovs_rundir = \"{1}\"\nstatistics_interval_s = 1\ncontrol_socket = \"{1}/control.sock\"\n",
            pki.display(),
            host.dir.0.display()
        );
        fs::write(host.path("dom0.toml"), config).unwrap();
        host.start_daemon();
        host.until("the bridge", |host| host.vsctl(&["list-br"]) == "br-xf");
        host.until("the node's row", |host| host.xenflow("node list --json") != "[]\n");
        for (port, id) in [("p1", "h1"), ("p2", "h2")] {
            let id = format!("external_ids:iface-id={id}");
            host.vsctl(&["add-port", "br-xf", port, "--", "set", "Interface", port, "type=dummy", &id]);
        }
        host
    }

    fn start_switch(&mut self) {
        let arguments = ["unix:db.sock", "--enable-dummy=override", "--unixctl=sw.ctl"];
        self.switch = Some(self.dir.spawn("ovs-vswitchd", &arguments));
        self.until("ovs-vswitchd", |host| serves(&host.path("sw.ctl")));
    }

    fn start_daemon(&mut self) {
        let mut command = self.daemon();
        // A watchdog of 4 s is fed every second.
        command.env("NOTIFY_SOCKET", self.path("notify")).env("WATCHDOG_USEC", "4000000");
        self.daemon = Some(Running(command.spawn().unwrap()));
    }

    fn kill_switch(&mut self) {
        self.switch = None;
        let _ = fs::remove_file(self.path("sw.ctl"));
    }

    /// All that systemd was told, but for what was forgotten.
    fn told(&self) -> String {
        let (mut told, mut buffer) = (self.told.borrow_mut(), [0; 4096]);
        while let Ok(len) = self.systemd.recv(&mut buffer) {
            told.push_str(std::str::from_utf8(&buffer[..len]).unwrap());
            told.push('\n');
        }
        told.clone()
    }

    fn forget(&self) {
        self.told();
        self.told.borrow_mut().clear();
    }

    /// Whether all threads of the daemon are stopped, as `proc(5)` has it.
    fn hangs(&self) -> bool {
        let tasks = format!("/proc/{}/task", self.daemon.as_ref().unwrap().0.id());
        let is_stopped = |task: std::io::Result<fs::DirEntry>| {
            let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            stat.rsplit(')').next().unwrap().starts_with(" T")
        };
        fs::read_dir(tasks).unwrap().all(is_stopped)
    }

    fn signal(&self, signal: &str) {
        self.tool("kill", &[signal, &self.daemon.as_ref().unwrap().0.id().to_string()]);
    }

    /// A question to the daemon.
    fn asked(&self, line: &str) -> String {
        self.xenflow(&format!("{line} --socket {}", self.path("control.sock").display()))
    }

    fn xenflow(&self, line: &str) -> String {
        ok(line, run(&format!("unix:{}", self.path("db.sock").display()), line))
    }

    /// `flow-restore-wait`.
    fn key(&self) -> String {
        self.vsctl(&["--if-exists", "get", "Open_vSwitch", ".", "other_config:flow-restore-wait"])
    }

    /// Packets that left to an end host, as the daemon counts them.
    fn sent_to(&self, host: &str) -> u64 {
        let shown: Value = serde_json::from_str(&self.xenflow("show segment lan --json")).unwrap();
        assert_eq!(shown[0]["access"].as_array().unwrap().len(), 2);
        let rows = self.tool(
            "ovsdb-client",
            &[
                "transact",
                "unix:db.sock",
                &format!(
                    r#"["XenFlow",{{"op":"select","table":"Statistics","where":[["scope","==","access"],["name","==","{host}"]],"columns":["counters"]}}]"#
                ),
            ],
        );
        let rows: Value = serde_json::from_str(&rows).unwrap();
        let counters = rows[0]["rows"][0]["counters"][1].as_array().cloned().unwrap_or_default();
        let out = counters.iter().find(|pair| pair[0] == "out_packets");
        out.and_then(|pair| pair[1].as_u64()).unwrap_or_default()
    }

    /// A packet from h1 to h2.
    fn send(&self) {
        let packet = "in_port(1),eth(src=02:00:00:00:01:01,dst=02:00:00:00:01:02),eth_type(0x0800),\
                      ipv4(src=10.0.0.1,dst=10.0.0.2,proto=17,tos=0,ttl=64,frag=no),udp(src=1,dst=9)";
        let target = self.path("sw.ctl");
        self.tool("ovs-appctl", &["-t", target.to_str().unwrap(), "netdev-dummy/receive", "p1", packet]);
    }

    /// Sends until more has left to h2 than before.
    fn forwards(&self, what: &str) -> u64 {
        let before = self.sent_to("h2");
        self.until(what, |host| {
            host.send();
            std::thread::sleep(Duration::from_millis(300));
            host.sent_to("h2") > before
        });
        self.sent_to("h2")
    }
}

#[test]
fn what_is_armed_is_released_and_what_is_counted_never_shrinks_whoever_dies() {
    let mut host = Host::start();
    let armed = |host: &Host| host.key() == "\"true\"";
    host.until("flow-restore-wait", armed);
    let first = host.forwards("packet counted");
    let status: Value = serde_json::from_str(&host.asked("status --json")).unwrap();
    assert_eq!((&status["node"], &status["switch"]["connected"]), (&Value::from("a"), &Value::from(true)));
    assert_eq!(status["databases"]["XenFlow"]["connected"], true);
    let page = host.asked("status");
    assert!(
        page.starts_with("node a, xenflow-dom0 ") && page.contains("XenFlow       connected\n"),
        "{page}"
    );

    // The switch dies: it waits for its flows, gets them, and is armed again.
    host.kill_switch();
    host.start_switch();
    let second = host.forwards("packet after a restart of the switch");
    assert!(second > first);
    host.until("flow-restore-wait after a restart of the switch", armed);

    // The daemon dies, then the switch: nobody releases it until the daemon is back.
    host.daemon = None;
    host.kill_switch();
    host.start_switch();
    assert!(armed(&host));
    host.start_daemon();
    let third = host.forwards("packet after a restart of both");
    assert!(third > second, "the counters of the former life are not lost: {second}, then {third}");
    host.until("flow-restore-wait after a restart of both", armed);

    // Each life of the daemon was ready once, and said why.
    let ready = "READY=1\nSTATUS=0 routers, 0 sessions, the switch ";
    host.until("word of being ready", |host| host.told().matches(ready).count() == 2);
    host.until("food for the watchdog", |host| host.told().contains("WATCHDOG=1"));
    assert_eq!(host.told().matches("READY=1").count(), 2, "{}", host.told());

    // A daemon that hangs feeds no watchdog.
    host.signal("-STOP");
    host.until("stop of the daemon", Host::hangs);
    host.forget();
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(host.told(), "", "it hangs");
    host.signal("-CONT");
    host.until("food for the watchdog", |host| host.told().contains("WATCHDOG=1"));

    // The daemon ends well: nobody will fill a switch that starts now, so it must not wait.
    host.signal("-TERM");
    assert!(host.daemon.take().unwrap().0.wait().unwrap().success(), "{}", host.log());
    assert_eq!(host.key(), "\"false\"");
    assert!(host.told().ends_with("STOPPING=1\nSTATUS=stopping: the flows stay\n"));
    assert!(!host.path("control.sock").exists());
    assert!(!host.log().contains("ERROR"), "{}", host.log());
}

/// A port of this datapath has no queues of the kernel's, which the daemon says here and to all.
#[test]
fn that_an_uplink_is_not_shaped_is_known_here_and_to_all() {
    let host = Host::start();
    host.vsctl(&["add-port", "br-xf", "p9", "--", "set", "Interface", "p9", "type=dummy"]);
    host.xenflow("uplink add a p9 --capacity 100mbit");
    host.xenflow("sla set red --min 20mbit");
    let link = |host: &Host| -> Value {
        let report: Value = serde_json::from_str(&host.asked("sla show --json")).unwrap();
        report["links"][0].clone()
    };
    let told = |host: &Host| -> Value {
        let all: Value = serde_json::from_str(&host.xenflow("show node a --json")).unwrap();
        all[0]["uplinks"][0]["shaping"].clone()
    };
    let words =
        |link: &Value| Some(json!(format!("{}: {}", link["driver"].as_str()?, link["problem"].as_str()?)));
    host.until("the same here and to all", |host| words(&link(host)) == Some(told(host)));
    let shown = link(&host);
    assert_eq!((&shown["port"], &shown["capacity_bps"]), (&json!("p9"), &json!(100_000_000)));
    assert_eq!(shown["capacity_from"], "operator");
    let why = host.asked("explain sla red");
    let problem = shown["problem"].as_str().unwrap();
    assert!(why.starts_with("network red on uplink p9:\n") && why.contains(problem), "{why}");
    host.xenflow("uplink set a p9 --capacity 50mbit");
    host.until("other capacity", |host| link(host)["capacity_bps"] == 50_000_000);
}

#[test]
fn what_was_waited_for_is_in_the_switch_and_a_node_without_one_is_behind() {
    let mut host = Host::start();
    let shown = |host: &Host| -> Value {
        let all: Value = serde_json::from_str(&host.xenflow("show node a --json")).unwrap();
        all[0]["status"].clone()
    };
    host.vsctl(&["add-port", "br-xf", "p3", "--", "set", "Interface", "p3", "type=dummy"]);
    host.vsctl(&["set", "Interface", "p3", "external_ids:iface-id=h3"]);
    let dark = json!(["port p3 belongs to no vif, access port or uplink: it stays dark"]);
    host.until("dark port", |host| shown(host)["problems"] == dark);
    assert_eq!(shown(&host)["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(shown(&host)["datapath"], "system");

    // Its uplink's MTU is what the switch says, once that does as it is asked.
    host.vsctl(&["add-port", "br-xf", "p9", "--", "set", "Interface", "p9", "type=dummy"]);
    host.xenflow("uplink add a p9");
    let uplink = |host: &Host| -> Value {
        let all: Value = serde_json::from_str(&host.xenflow("show node a --json")).unwrap();
        all[0]["uplinks"][0]["mtu"].clone()
    };
    host.until("MTU of the uplink", |host| uplink(host) == 1500);
    host.vsctl(&["set", "Interface", "p9", "mtu_request=9000"]);
    host.until("other MTU of the uplink", |host| uplink(host) == 9000);

    let port = host.vsctl(&["get", "Interface", "p3", "ofport"]);
    let bridge = format!("unix:{}", host.path("br-xf.mgmt").display());
    let flows = |host: &Host| {
        host.tool("ovs-ofctl", &["-OOpenFlow15", "dump-flows", &bridge, &format!("in_port={port}")])
    };
    for round in 0..3 {
        host.xenflow(&format!("access add h3 --segment lan --mac 02:00:00:00:01:0{} --wait", 3 + round));
        assert!(flows(&host).contains("table="), "round {round}: {}", flows(&host));
        host.xenflow("access remove h3 --wait");
        assert!(!flows(&host).contains("table="), "round {round}: {}", flows(&host));
    }
    // Nothing to send.
    host.xenflow("network add blue --wait");
    assert_eq!(shown(&host)["is_behind"], false);

    host.kill_switch();
    host.until("loss of the switch", |host| {
        let status: Value = serde_json::from_str(&host.asked("status --json")).unwrap();
        status["switch"]["connected"] == false
    });
    let late =
        run(&format!("unix:{}", host.path("db.sock").display()), "network add green --wait --timeout 2");
    let said = String::from_utf8_lossy(&late.stderr).into_owned();
    assert_eq!(late.status.code(), Some(1), "{said}");
    assert!(said.contains("not in every switch within 2 s: a (has 10 of 11, last seen "), "{said}");
    assert_eq!(shown(&host)["is_behind"], true);
    host.start_switch();
    host.until("state in the new switch", |host| shown(host)["is_behind"] == false);
    host.xenflow("network remove green --wait --timeout 30");
}

#[test]
fn what_happened_is_told_and_followed_through_a_restart_of_the_daemon() {
    let mut host = Host::start();
    let read = |host: &Host, name: &str| fs::read_to_string(host.path(name)).unwrap_or_default();
    let file = |host: &Host, name: &str| fs::File::create(host.path(name)).unwrap();
    // Of an event the members, as far as a test names them.
    let happened = |host: &Host, wanted: Value| {
        let told = read(host, "events.jsonl");
        let mut lines = told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let wanted = wanted.as_object().unwrap().clone();
        lines.any(|event| wanted.iter().all(|(key, value)| event[key] == *value))
    };
    let await_event = |host: &Host, wanted: Value| {
        host.until(&wanted.to_string(), |host| happened(host, wanted.clone()));
    };
    host.until("daemon's socket", |host| serves(&host.path("control.sock")));
    let mut follower = Command::new(env!("CARGO_BIN_EXE_xenflow"))
        .args(["events", "--follow", "--json", "--socket"])
        .arg(host.path("control.sock"))
        .stdout(file(&host, "events.jsonl"))
        .stderr(file(&host, "events.err"))
        .spawn()
        .unwrap();
    await_event(&host, json!({"kind": "daemon-up", "node": "a", "number": 1, "severity": "info"}));
    await_event(&host, json!({"kind": "database-up", "database": "XenFlow"}));
    await_event(&host, json!({"kind": "database-up", "database": "Open_vSwitch"}));
    await_event(&host, json!({"kind": "switch-up"}));
    await_event(&host, json!({"kind": "tables-repaired"}));
    await_event(&host, json!({"kind": "location-taken", "segment": "lan", "mac": "02:00:00:00:01:01"}));

    host.vsctl(&["add-port", "br-xf", "p3", "--", "set", "Interface", "p3", "type=dummy"]);
    // By its address, as a toolstack that knows no names says it.
    host.vsctl(&["set", "Interface", "p3", "external_ids:attached-mac=\"02:00:00:00:01:03\""]);
    await_event(&host, json!({"kind": "port-dark", "port": "p3"}));
    host.xenflow("access add h3 --segment lan --mac 02:00:00:00:01:03 --wait");
    await_event(&host, json!({"kind": "port-bound", "access": "h3", "port": "p3"}));
    let gone = "no more: port p3 belongs to no vif, access port or uplink: it stays dark";
    await_event(&host, json!({"kind": "problem-gone", "text": gone}));
    await_event(
        &host,
        json!({"kind": "desired-reached", "text": "the switch has the desired state (generation 1)"}),
    );
    host.xenflow("access remove h3");
    await_event(&host, json!({"kind": "port-unbound", "access": "h3", "port": "p3"}));
    await_event(&host, json!({"kind": "location-given-up", "mac": "02:00:00:00:01:03"}));

    host.kill_switch();
    await_event(&host, json!({"kind": "switch-lost", "severity": "warning"}));
    host.start_switch();
    let page = |host: &Host| host.asked("events --kind switch-lost,switch-up");
    host.until("switch that is back", |host| page(host).lines().count() >= 3);
    let lines = page(&host);
    let kinds: Vec<&str> = lines.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    assert_eq!(kinds, ["switch-up", "switch-lost", "switch-up"], "{lines}");
    assert_eq!(host.asked("events --router r1"), "");

    host.signal("-TERM");
    assert!(host.daemon.take().unwrap().0.wait().unwrap().success());
    await_event(&host, json!({"kind": "daemon-stops"}));
    host.until("word of its end", |host| {
        read(host, "events.err").contains(": waiting for it to come back\n")
    });
    host.start_daemon();
    host.until("word of its start", |host| {
        read(host, "events.err").ends_with("xenflow: the daemon was started again\n")
    });
    host.until("another life", |host| read(host, "events.jsonl").matches("\"daemon-up\"").count() == 2);
    host.tool("kill", &["-INT", &follower.id().to_string()]);
    assert_eq!(follower.wait().unwrap().code(), Some(0));
}

/// The call that libvirt makes for `<virtualport type='openvswitch'>` (src/util/virnetdevopenvswitch.c, without a
/// profile).
fn plug_as_libvirt(host: &Host, port: &str, mac: &str, interfaceid: &str) {
    let mac = format!("external_ids:attached-mac=\"{mac}\"");
    let id = format!("external_ids:iface-id=\"{interfaceid}\"");
    let vm = "external_ids:vm-id=\"0f1e2d3c-0000-4000-8000-000000000007\"";
    let mut words = vec!["--", "--may-exist", "add-port", "br-xf", port];
    for set in [mac.as_str(), &id, vm, "external_ids:iface-status=active"] {
        words.extend(["--", "set", "Interface", port, set]);
    }
    host.vsctl(&words);
}

#[test]
fn a_port_of_libvirt_is_what_its_address_says_and_one_of_nobody_stays_dark() {
    let host = Host::start();
    for line in [
        "router add r1 --network red",
        "vif add r1-lan --router r1 --segment lan --mac 52:54:00:00:00:01",
        "access add h3 --segment lan --mac 52:54:00:00:00:03",
        "access add 7c1d1a52-5f0e-4d5c-9a9e-0d2f6f3b8a04 --segment lan",
    ] {
        host.xenflow(line);
    }
    let id = |number: u8| format!("7c1d1a52-5f0e-4d5c-9a9e-0d2f6f3b8a0{number}");
    let mac = |number: u8| format!("52:54:00:00:00:0{number}");
    // libvirt makes interfaceids up: 1 is a vif by its address, 3 an access port by its, 4 one by its name; 9 is nobody.
    for number in [1, 3, 4, 9] {
        plug_as_libvirt(&host, &format!("vnet{number}"), &mac(number), &id(number));
    }
    let problems = |host: &Host| {
        let all: Value = serde_json::from_str(&host.xenflow("show node a --json")).unwrap();
        all[0]["status"]["problems"].clone()
    };
    let dark = json!(["port vnet9 belongs to no vif, access port or uplink: it stays dark"]);
    host.until("dark port", |host| problems(host) == dark);

    let switch = |arguments: &[&str]| {
        let target = host.path("sw.ctl");
        host.tool("ovs-appctl", &[&["-t", target.to_str().unwrap()], arguments].concat())
    };
    // What the switch does with a frame to h2.
    let actions = |port: u8| {
        let frame = format!("in_port=vnet{port},dl_src={},dl_dst=02:00:00:00:01:02,ip", mac(port));
        let said = switch(&["ofproto/trace", "br-xf", &frame]);
        said.lines().find_map(|line| line.strip_prefix("Datapath actions: ")).unwrap().to_owned()
    };
    host.xenflow("network add blue --wait");
    // "    p2 2/4: (dummy)": its number in OpenFlow, and in the datapath.
    let shown = switch(&["dpif/show"]);
    let h2 =
        shown.lines().find_map(|line| line.trim().strip_prefix("p2 ")?.split(['/', ':']).nth(1)).unwrap();
    let reaches = |actions: &str| actions.split([',', '(', ')']).any(|word| word == h2);
    for bound in [1, 3, 4] {
        assert!(reaches(&actions(bound)), "vnet{bound}: {}", actions(bound));
    }
    assert_eq!(actions(9), "drop");

    let check = |name: &str| {
        let line = format!("doctor --json --config {}", host.path("dom0.toml").display());
        let ran = run(&format!("unix:{}", host.path("db.sock").display()), &line);
        let said: Value = serde_json::from_slice(&ran.stdout).unwrap();
        let all = said["findings"].as_array().unwrap().clone();
        all.into_iter().filter(|finding| finding["check"] == name).collect::<Vec<_>>()
    };
    let doctor = || check("dark-ports");
    let found = doctor();
    let seen = format!("port vnet9 has {} (external_ids:attached-mac) and is {} (iface-id)", mac(9), id(9));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0]["seen"].as_str().unwrap().starts_with(&seen), "{found:?}");
    assert!(found[0]["todo"].as_str().unwrap().contains("--mac 52:54:00:00:00:09"), "{found:?}");

    // As it says.
    host.xenflow("vif add r1-other --router r1 --segment lan --mac 52:54:00:00:00:09 --wait");
    assert!(reaches(&actions(9)), "{}", actions(9));
    assert_eq!(doctor()[0]["level"], "ok");

    // A flow of somebody else, until it is taken away as doctor says.
    let bridge = format!("unix:{}", host.path("br-xf.mgmt").display());
    let flow =
        |command: &str, flow: &str| host.tool("ovs-ofctl", &["-O", "OpenFlow15", command, &bridge, flow]);
    let flows = || {
        let found = check("flows");
        assert_eq!(found.len(), 1, "{found:?}");
        (found[0]["level"].as_str().unwrap().to_owned(), found[0]["seen"].as_str().unwrap().to_owned())
    };
    let (level, all) = flows();
    let count = all.strip_suffix(" flows, all of XenFlow").unwrap_or_else(|| panic!("{all}"));
    let more = count.parse::<u64>().unwrap() + 1;
    assert_eq!(level, "ok");
    flow("add-flow", "cookie=1,table=0,priority=7,dl_type=0x88b5,actions=drop");
    let seen = format!("1 of {more} flows are not XenFlow's, which never touches them");
    assert_eq!(flows(), ("warn".to_owned(), seen));
    assert!(check("flows")[0]["todo"].as_str().unwrap().contains("dump-flows"));
    flow("del-flows", "cookie=1/-1");
    assert_eq!(flows(), (level, all));

    // A second one of the same address, as after a crash of the toolstack: neither is used.
    plug_as_libvirt(&host, "vnet10", &mac(9), &id(9));
    host.until("two of one", |host| {
        problems(host)[0].as_str().is_some_and(|text| text.contains("both claim"))
    });
    host.xenflow("network add green --wait");
    assert_eq!(actions(9), "drop");
    let found = doctor();
    assert_eq!(found[0]["seen"], "ports vnet10, vnet9 all claim to be r1-other: none is used", "{found:?}");
}
