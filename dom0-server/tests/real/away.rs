//! The whole daemon while the XenFlow database, on a server of its own, is away: it starts with what it kept, goes on with
//! that, and when the database is back only what differs is written to the switch.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use serde_json::Value;

use crate::support::{self, Dir, Running, Runs, ok, run, serves};

/// Flows by all that makes them, with the seconds that the switch has had them.
type Flows = BTreeMap<String, f64>;

/// A host of a segment, an uplink, two end hosts that are plugged in, a third one that is not yet, and a fourth one on
/// another node.
struct Host {
    daemon: Option<Running>,
    database: Option<Running>,
    others: Vec<Running>,
    dir: Dir,
}

impl Runs for Host {
    fn dir(&self) -> &Dir {
        &self.dir
    }
}

impl Host {
    fn start() -> Self {
        let mut host = Self { daemon: None, database: None, others: Vec::new(), dir: Dir::new() };
        host.tool("ovsdb-tool", &["create", "conf.db", "/usr/share/openvswitch/vswitch.ovsschema"]);
        fs::write(host.path("other.ovsschema"), support::OTHER).unwrap();
        host.tool("ovsdb-tool", &["create", "other.db", "other.ovsschema"]);
        let child =
            host.dir.spawn("ovsdb-server", &["conf.db", "--remote=punix:db.sock", "--unixctl=db.ctl"]);
        host.others.push(child);
        host.until("ovsdb-server", |host| serves(&host.path("db.sock")));
        host.tool("ovs-vsctl", &["--db=unix:db.sock", "--no-wait", "init"]);
        let child =
            host.dir.spawn("ovs-vswitchd", &["unix:db.sock", "--enable-dummy=override", "--unixctl=sw.ctl"]);
        host.others.push(child);
        host.start_database("other.db");
        host.until("its control socket", |host| serves(&host.path("xf.ctl")));
        let at = host.dir.0.display().to_string();
        host.xenflow(&format!("init --db-file {at}/xenflow.db --ctl {at}/xf.ctl"));
        host.xenflow(&format!("pki init {at}/pki"));
        host.xenflow(&format!("pki issue node a --ca {at}/pki"));
        for line in ["network add red", "segment add lan --network red --vlan 100", "uplink add a trunk0"] {
            host.xenflow(line);
        }
        for number in 1..=4 {
            host.xenflow(&format!("access add h{number} --segment lan --mac 02:00:00:00:01:0{number}"));
        }
        let far = r#"{"segment":"lan","mac":"02:00:00:00:01:04","node":"b","generation":1}"#;
        let far = format!(r#"["XenFlow",{{"op":"insert","table":"Location","row":{far}}}]"#);
        host.tool("ovsdb-client", &["transact", "unix:xf.sock", &far]);
        let config = format!(
            "node = \"a\"\nca = \"{at}/pki/ca.pem\"\ncert = \"{at}/pki/a.pem\"\nkey = \"{at}/pki/a.key\"\n\
             ovs_db = \"unix:{at}/db.sock\"\nxenflow_db = \"unix:{at}/xf.sock\"\novs_rundir = \"{at}\"\n\
             statistics_interval_s = 0\ncontrol_socket = \"{at}/control.sock\"\nstate_dir = \"{at}\"\n"
        );
        fs::write(host.path("dom0.toml"), config).unwrap();
        host.start_daemon();
        host.until("the bridge", |host| host.vsctl(&["list-br"]) == "br-xf");
        for (port, id) in [("trunk0", "-"), ("p1", "h1"), ("p2", "h2")] {
            host.plug(port, id);
        }
        host
    }

    fn start_database(&mut self, file: &str) {
        self.database =
            Some(self.dir.spawn("ovsdb-server", &[file, "--remote=punix:xf.sock", "--unixctl=xf.ctl"]));
        self.until("the XenFlow database", |host| {
            let mut list = host.dir.command("ovsdb-client", &["list-dbs", "unix:xf.sock"]);
            list.output().unwrap().status.success()
        });
    }

    fn kill_database(&mut self) {
        self.database = None;
        for file in ["xf.sock", "xf.ctl"] {
            fs::remove_file(self.path(file)).unwrap();
        }
    }

    fn start_daemon(&mut self) {
        // Each life has a log of its own.
        let _ = fs::remove_file(self.path("daemon.log"));
        self.daemon = Some(Running(self.daemon().spawn().unwrap()));
    }

    fn plug(&self, port: &str, id: &str) {
        let id = format!("external_ids:iface-id={id}");
        self.vsctl(&["add-port", "br-xf", port, "--", "set", "Interface", port, "type=dummy", &id]);
    }

    fn xenflow(&self, line: &str) -> String {
        ok(line, run(&format!("unix:{}", self.path("xf.sock").display()), line))
    }

    fn status(&self) -> Value {
        let line = format!("status --json --socket {}", self.path("control.sock").display());
        let output = run("unix:/nonexistent", &line);
        // The daemon may not be that far yet.
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Until the daemon says that the switch has everything, and whether that is by what was kept.
    fn in_step(&self, is_kept: bool) {
        self.until("step", |host| {
            let status = host.status();
            let kept = &status["databases"]["XenFlow"]["kept_ms"];
            status["switch"]["in_step"] == true
                && kept.is_u64() == is_kept
                && status["databases"]["XenFlow"]["known"] == true
        });
    }

    /// Without what the switch learns by itself.
    fn flows(&self) -> Flows {
        let bridge = format!("unix:{}", self.path("br-xf.mgmt").display());
        let said = self.tool("ovs-ofctl", &["-OOpenFlow15", "dump-flows", &bridge]);
        let flows = said
            .lines()
            .filter(|line| line.contains("cookie=") && !line.contains("cookie=0x584603"))
            .map(|line| {
                let (cookie, rest) = line.trim().split_once(", duration=").unwrap();
                let (seconds, rest) = rest.split_once("s, ").unwrap();
                let counts = |word: &&str| {
                    !["n_packets=", "n_bytes=", "idle_age="].iter().any(|it| word.starts_with(it))
                };
                let rest: Vec<&str> = rest.split(' ').filter(counts).collect();
                (format!("{cookie} {}", rest.join(" ")), seconds.parse().unwrap())
            });
        flows.collect()
    }

    /// What is no flow of `before`, or was touched since then, and what is gone.
    fn difference(&self, before: &Flows, since: Instant) -> (Vec<String>, Vec<String>) {
        // Before the switch is asked: what it had then was not touched since.
        let age = since.elapsed().as_secs_f64();
        let now = self.flows();
        let is_new = |(flow, seconds): &(&String, &f64)| **seconds < age || !before.contains_key(*flow);
        let new = now.iter().filter(is_new).map(|(flow, _)| flow.clone()).collect();
        (new, before.keys().filter(|flow| !now.contains_key(*flow)).cloned().collect())
    }

    /// Packets that have left by the uplink.
    fn sent(&self) -> u64 {
        let bridge = format!("unix:{}", self.path("br-xf.mgmt").display());
        let said = self.tool("ovs-ofctl", &["-OOpenFlow15", "dump-ports", &bridge, "trunk0"]);
        let sent = said.split("tx pkts=").nth(1).unwrap();
        sent.split(',').next().unwrap().parse().unwrap()
    }

    /// A packet of h1 to the end host on the other node; how many have left by the uplink then.
    fn send(&self) -> u64 {
        let before = self.sent();
        let packet = "in_port(1),eth(src=02:00:00:00:01:01,dst=02:00:00:00:01:04),eth_type(0x0800),\
                      ipv4(src=10.0.0.1,dst=10.0.0.4,proto=17,tos=0,ttl=64,frag=no),udp(src=1,dst=9)";
        let target = self.path("sw.ctl").display().to_string();
        self.tool("ovs-appctl", &["-t", &target, "netdev-dummy/receive", "p1", packet]);
        self.until("packet at the uplink", |host| host.sent() > before);
        self.sent()
    }
}

#[test]
fn a_daemon_that_starts_without_a_database_goes_on_and_later_only_differences_are_written() {
    let mut host = Host::start();
    host.until("flows", |host| host.flows().keys().any(|flow| flow.contains("02:00:00:00:01:02")));
    host.in_step(false);
    let port_of = |port: &str| host.vsctl(&["get", "Interface", port, "ofport"]);
    let in_port = |number: &str| format!("in_port={number}");
    let p2 = port_of("p2");
    let far = |flow: &String| flow.contains("dl_dst=02:00:00:00:01:04");
    host.until("the way to another node", |host| host.flows().keys().any(far));
    host.until("a file", |host| {
        let kept = fs::read_to_string(host.path("desired.json")).unwrap_or_default();
        kept.contains("\"generation\":1")
    });
    let before = host.flows();
    let sent = host.send();

    // Daemon and database are gone; the daemon comes back.
    let mark = Instant::now();
    host.daemon = None;
    host.kill_database();
    host.start_daemon();
    host.in_step(true);
    let said = "no XenFlow database within 3 s: works with the desired state of 20";
    assert_eq!(host.log().matches(said).count(), 1, "{}", host.log());
    assert_eq!(host.difference(&before, mark), (vec![], vec![]), "{}", host.log());
    let status = host.status();
    assert_eq!(status["databases"]["XenFlow"]["connected"], false);
    assert_eq!(host.send(), sent + 1);
    let problem = |text: &Value| text.as_str().unwrap().starts_with("works with the desired state of 20");
    assert!(status["problems"].as_array().unwrap().iter().any(problem), "{status}");

    // What this host can do by itself goes on.
    host.plug("p3", "h3");
    host.until("a number of the port", |host| {
        host.vsctl(&["get", "Interface", "p3", "ofport"]).parse::<u32>().is_ok()
    });
    let p3 = host.vsctl(&["get", "Interface", "p3", "ofport"]);
    let of = |flows: &Flows, port: &str| flows.keys().filter(|flow| flow.contains(&in_port(port))).count();
    host.until("flows of a new port", |host| of(&host.flows(), &p3) > 0);
    host.in_step(true);
    let (new, gone) = host.difference(&before, mark);
    let with = host.flows();
    assert!(new.iter().all(|flow| !before.contains_key(flow)), "only new ones: {new:?}");
    assert!(gone.iter().all(|flow| !flow.contains("dl_dst=")), "at most what floods: {gone:?}");

    // The database was written to meanwhile, where the daemon does not look.
    let at = ["xenflow.db", "--remote=punix:other.sock", "--unixctl=xf.ctl"];
    host.database = Some(host.dir.spawn("ovsdb-server", &at));
    host.until("the database at another place", |host| serves(&host.path("other.sock")));
    ok("remove", run(&format!("unix:{}", host.path("other.sock").display()), "access remove h2"));
    host.database = None;
    let mark = Instant::now();
    host.start_database("xenflow.db");
    host.until("the difference", |host| of(&host.flows(), &p2) == 0);
    host.in_step(false);
    let (new, gone) = host.difference(&with, mark);
    let floods = |flow: &String| !flow.contains("in_port=") && !flow.contains("dl_dst=02:00:00:00:01:0");
    let is_of_h2 = |flow: &&String| flow.contains(&in_port(&p2)) || flow.contains("02:00:00:00:01:02");
    assert!(new.iter().all(floods), "{new:?}");
    assert!(!gone.is_empty() && gone.iter().all(|flow| is_of_h2(&flow) || floods(flow)), "{gone:?}");
    assert!(host.status()["problems"].as_array().unwrap().iter().all(|text| !problem(text)));

    assert_eq!(host.send(), sent + 2);

    // What is new is in the file when the daemon has ended well.
    host.xenflow("access remove h3");
    host.until("the removal", |host| of(&host.flows(), &p3) == 0);
    host.tool("kill", &["-TERM", &host.daemon.as_ref().unwrap().0.id().to_string()]);
    assert!(host.daemon.take().unwrap().0.wait().unwrap().success());
    let kept = fs::read_to_string(host.path("desired.json")).unwrap();
    assert!(kept.contains("\"h1\"") && !kept.contains("\"h3\""), "{kept}");

    // A file that is broken is none: nothing is known, so nothing is touched.
    fs::write(host.path("desired.json"), kept.replace("02:00:00:00:01:01", "02:00:00:00:01:0a")).unwrap();
    host.kill_database();
    let (mark, before) = (Instant::now(), host.flows());
    host.start_daemon();
    let said = "the desired state that was kept is not used path=";
    host.until("refusal", |host| host.log().contains(said));
    host.until("second try", |host| host.status()["switch"]["connected"] == true);
    assert_eq!(host.status()["databases"]["XenFlow"]["known"], false);
    assert_eq!(host.log().matches("its checksum is ").count(), 1, "{}", host.log());
    assert_eq!(host.difference(&before, mark), (vec![], vec![]), "{}", host.log());
    host.start_database("xenflow.db");
    host.in_step(false);
    assert_eq!(host.difference(&before, mark), (vec![], vec![]), "{}", host.log());
    assert_eq!(host.send(), sent + 3);
}
