//! A cluster of real `ovsdb-server`s that the built `xenflow` makes, grows and ends, over TLS; and who may write what
//! there. A missing program fails the test that needs it.

mod upgrade;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{self, Dir, LIMIT, Running, Server, free_port, populate};

/// Hosts that are directories of their own, with loopback addresses of their own. Their members listen for clients at
/// all addresses, so that on this one host only one of them gets the port; another one takes it when that one ends.
struct Hosts {
    running: Vec<(usize, Running)>,
    port: u16,
    number: u16,
    dir: Dir,
}

impl Hosts {
    fn new() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let hosts = Self { running: Vec::new(), port: free_port(), number, dir: Dir::new() };
        let pki = hosts.path("pki");
        hosts.ok(&["pki", "init", &pki]);
        for (kind, name) in
            [("node", "a"), ("node", "b"), ("node", "c"), ("router", "r1"), ("operator", "ann")]
        {
            hosts.ok(&["pki", "issue", kind, name, "--ca", &pki]);
        }
        for host in 0..3 {
            fs::create_dir(hosts.path(&host.to_string())).unwrap();
        }
        hosts
    }

    fn path(&self, name: &str) -> String {
        self.dir.0.join(name).to_str().unwrap().to_owned()
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_xenflow")).args(args).args(["--timeout", "30"]).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        support::ok(&args.join(" "), self.run(args))
    }

    fn ip(&self, host: usize) -> String {
        let [.., high, low] = std::process::id().to_be_bytes();
        format!("127.{}.{low}.{}", high.max(1), usize::from(self.number) * 16 + host + 1)
    }

    /// How to be somebody.
    fn identity(&self, name: &str) -> [String; 3] {
        let pki = self.path("pki");
        [
            format!("--private-key={pki}/{name}.key"),
            format!("--certificate={pki}/{name}.pem"),
            format!("--ca-cert={pki}/ca.pem"),
        ]
    }

    /// `cluster init` or `join` on a host.
    fn member(&self, host: usize, command: &str, more: &[&str]) -> Output {
        let dir = self.path(&host.to_string());
        let (file, settings) = (format!("{dir}/cluster.db"), format!("{dir}/cluster.env"));
        let (ip, identity) = (self.ip(host), self.identity(["a", "b", "c"][host]));
        let mut args = vec!["cluster", command, "--no-systemd", "--address", &ip, "--rundir", &dir];
        args.extend(["--db-file", &file, "--settings", &settings]);
        args.extend(identity.iter().map(String::as_str));
        args.extend(more);
        self.run(&args)
    }

    fn made(&self, host: usize, command: &str, more: &[&str]) -> String {
        support::ok(command, self.member(host, command, more))
    }

    fn init(&self, more: &[&str]) -> String {
        let (port, none) = (self.port.to_string(), self.path("none.db"));
        let mut args = vec!["--client-port", &port];
        args.extend(if more.is_empty() {
            vec!["--from", &none, "--db", "unix:/nonexistent"]
        } else {
            more.to_vec()
        });
        self.made(0, "init", &args)
    }

    /// As the unit does it: with the arguments in the settings.
    fn up(&mut self, host: usize) {
        self.up_but(host, None);
    }

    /// With all of the arguments in the settings but one.
    fn up_but(&mut self, host: usize, without: Option<&str>) {
        let settings = fs::read_to_string(self.path(&format!("{host}/cluster.env"))).unwrap();
        let arguments = settings.lines().last().unwrap().strip_prefix("XENFLOW_OVSDB_ARGS=").unwrap();
        let child = Command::new("ovsdb-server")
            .args(["-vconsole:off", "-vsyslog:off", "-vfile:off"])
            .args(arguments.trim_matches('"').split(' ').filter(|argument| Some(*argument) != without))
            .stdin(Stdio::null())
            .spawn()
            .expect("ovsdb-server is needed");
        self.running.push((host, Running(child)));
        let ctl = PathBuf::from(self.path(&format!("{host}/ovsdb.ctl")));
        eventually("the server runs", || std::os::unix::net::UnixStream::connect(&ctl).ok());
    }

    fn kill(&mut self, host: usize) {
        self.running.retain(|(running, _)| *running != host);
    }

    /// Three members.
    fn cluster() -> Self {
        let mut hosts = Self::new();
        let said = hosts.init(&[]);
        assert!(said.contains("start the server, then say this again: ovsdb-server --remote="), "{said}");
        hosts.up(0);
        hosts.init(&[]);
        for host in 1..3 {
            let peer = hosts.ip(0);
            hosts.made(host, "join", &["--peer", &peer]);
            hosts.up(host);
            let said = hosts.made(host, "join", &["--peer", &peer]);
            assert!(
                said.ends_with(&format!("ssl:{}:6661 is a member of the cluster\n", hosts.ip(host))),
                "{said}"
            );
        }
        hosts
    }

    fn local(&self, host: usize) -> String {
        format!("unix:{}", self.path(&format!("{host}/db.sock")))
    }

    fn status(&self, host: usize) -> Value {
        let settings = self.path(&format!("{host}/cluster.env"));
        let said = self.ok(&["cluster", "status", "--json", "--settings", &settings]);
        serde_json::from_str(&said).unwrap()
    }

    /// Which of these hosts has a role.
    fn having(&self, role: &str, hosts: &[usize]) -> usize {
        let has = |host: &usize| self.status(*host)["role"] == role;
        eventually(role, || hosts.iter().copied().find(has))
    }

    /// The results of a transaction by TLS.
    fn transact(&self, who: &str, operations: &[Value]) -> Value {
        self.ask(who, operations).unwrap()
    }

    /// The same, of a server that may be gone.
    fn ask(&self, who: &str, operations: &[Value]) -> Result<Value, String> {
        let mut all = vec![json!("XenFlow")];
        all.extend_from_slice(operations);
        let ran = Command::new("ovsdb-client")
            .args(["--timeout=20", "transact", &format!("ssl:127.0.0.1:{}", self.port)])
            .arg(Value::from(all).to_string())
            .args(self.identity(who))
            .output()
            .expect("ovsdb-client is needed");
        match ran.status.success() {
            true => Ok(serde_json::from_slice(&ran.stdout).unwrap()),
            false => Err(String::from_utf8_lossy(&ran.stderr).into_owned()),
        }
    }

    /// What a write by TLS ends with: `None`, or the server's error.
    fn write(&self, who: &str, operation: &Value) -> Option<String> {
        let results = self.transact(who, std::slice::from_ref(operation));
        let errors = results.as_array().unwrap().iter().filter_map(|result| result["error"].as_str());
        errors.map(str::to_owned).next()
    }

    /// Asserts that somebody has no right to write this, which any other error would hide.
    fn denied(&self, who: &str, operation: &Value) {
        assert_eq!(self.write(who, operation).as_deref(), Some("permission error"), "{who}: {operation}");
    }

    /// All rows of tables, in an order of their own.
    fn rows(&self, tables: &[&str]) -> Vec<Vec<String>> {
        let select = |table: &&str| json!({"op": "select", "table": table, "where": []});
        let results = self.transact("c", &tables.iter().map(select).collect::<Vec<_>>());
        let rows = |result: &Value| {
            let mut rows: Vec<_> = result["rows"].as_array().unwrap().iter().map(Value::to_string).collect();
            rows.sort();
            rows
        };
        results.as_array().unwrap().iter().map(rows).collect()
    }
}

fn eventually<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn insert(table: &str, row: &Value) -> Value {
    json!({"op": "insert", "table": table, "row": row})
}

fn location(node: &str) -> Value {
    insert("Location", &json!({"segment": "s", "mac": "52:54:00:00:00:01", "node": node, "generation": 1}))
}

fn update(table: &str, condition: [&str; 2], row: &Value) -> Value {
    let [column, is] = condition;
    json!({"op": "update", "table": table, "where": [[column, "==", is]], "row": row})
}

fn delete(table: &str, column: &str, is: &str) -> Value {
    json!({"op": "delete", "table": table, "where": [[column, "==", is]]})
}

fn delete_all(table: &str) -> Value {
    json!({"op": "delete", "table": table, "where": []})
}

/// What a node reports: the row that it inserts, and what it changes there.
fn reports(node: &str) -> [(&'static str, Value, Value); 4] {
    [
        ("Node_Status", insert("Node_Status", &json!({"node": node})), json!({"cfg": 2})),
        (
            "Status",
            insert("Status", &json!({"node": node, "router": "r1", "state": "up"})),
            json!({"state": "down"}),
        ),
        (
            "Statistics",
            insert("Statistics", &json!({"node": node, "scope": "router", "name": "r1"})),
            json!({"updated_ms": 2}),
        ),
        ("Location", location(node), json!({"generation": 2})),
    ]
}

fn migration(from: &str, to: &str) -> Value {
    let number: u32 = [from, to].concat().bytes().map(u32::from).fold(0, |all, byte| all << 8 | byte);
    insert(
        "Migration",
        &json!({"number": number, "router": format!("{from}-{to}"), "from": from, "to": to, "via": "xl", "phase": "staging"}),
    )
}

/// What is counted of a move, and when it reached a phase.
fn counts(router: &str, key: &str) -> Value {
    let insert = |column: &str, key: &str| json!([column, "insert", ["map", [[key, 7]]]]);
    let mutations = [insert("counters", key), insert("reached", "staged")];
    json!({"op": "mutate", "table": "Migration", "where": [["router", "==", router]], "mutations": mutations})
}

/// What changes or deletes rows is asked for where there are some: of none the server refuses nothing.
#[test]
fn a_node_writes_only_what_it_reports() {
    const WRITTEN: [&str; 5] = ["Node_Status", "Status", "Statistics", "Location", "Migration"];
    let hosts = Hosts::cluster();
    let local = hosts.local(1);
    hosts.ok(&["--db", &local, "network", "add", "red"]);
    let moved = |router: &str, row: Value| update("Migration", ["router", router], &row);
    for node in ["a", "b"] {
        for (table, own, change) in reports(node) {
            assert_eq!(hosts.write(node, &own), None, "{own}");
            assert_eq!(hosts.write(node, &update(table, ["node", node], &change)), None, "{table} of {node}");
        }
    }
    for (who, allowed) in [
        ("a", migration("a", "b")),
        ("a", migration("b", "a")),
        ("b", migration("b", "c")),
        // Both sides write.
        ("a", moved("a-b", json!({"phase": "staged"}))),
        ("b", moved("a-b", json!({"phase": "moving", "generation": 2}))),
        ("a", moved("b-a", json!({"error": "no room"}))),
        ("a", moved("a-b", json!({"yielded": true, "left": true, "digest": "3:7"}))),
        ("a", counts("a-b", "source/packets/s")),
        ("b", counts("a-b", "destination/packets/s")),
    ] {
        assert_eq!(hosts.write(who, &allowed), None, "{who}: {allowed}");
    }

    let before = hosts.rows(&WRITTEN);
    assert_eq!(before.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2, 2, 3]);
    for (table, foreign, change) in reports("c") {
        hosts.denied("a", &foreign);
        hosts.denied("a", &update(table, ["node", "b"], &change));
        hosts.denied("a", &delete(table, "node", "b"));
        hosts.denied("a", &delete_all(table));
        // Nobody gives a row away, or takes one.
        hosts.denied("a", &update(table, ["node", "a"], &json!({"node": "c"})));
        hosts.denied("a", &update(table, ["node", "b"], &json!({"node": "a"})));
    }
    for refused in [
        migration("c", "b"),
        moved("b-c", json!({"phase": "aborted"})),
        moved("b-c", json!({"generation": 9})),
        counts("b-c", "source/packets/s"),
        moved("b-c", json!({"to": "a"})),
        moved("a-b", json!({"to": "c"})),
        moved("a-b", json!({"from": "c"})),
        moved("a-b", json!({"router": "c"})),
        moved("a-b", json!({"number": 1})),
        moved("a-b", json!({"via": "lab"})),
        delete("Migration", "router", "b-c"),
        delete_all("Migration"),
        insert("Network", &json!({"name": "blue"})),
        delete_all("Network"),
        insert("Node", &json!({"name": "a", "uplinks": "eth0"})),
        json!({"op": "update", "table": "XenFlow", "where": [], "row": {"next_cfg": 9}}),
        json!({"op": "mutate", "table": "XenFlow", "where": [], "mutations": [["next_cfg", "+=", 1]]}),
        delete_all("Connection"),
        delete_all("RBAC_Role"),
        delete_all("RBAC_Permission"),
        json!({"op": "update", "table": "RBAC_Permission", "where": [], "row": {"authorization": ""}}),
    ] {
        hosts.denied("a", &refused);
    }
    // Who is no node writes nothing, by whatever name.
    for (who, names) in [("r1", ["r1", "router r1"]), ("ann", ["ann", "operator ann"])] {
        for node in names {
            hosts.denied(who, &location(node));
        }
        hosts.denied(who, &delete_all("Status"));
        hosts.denied(who, &insert("Network", &json!({"name": "x"})));
    }
    // What was refused was not done.
    assert_eq!(hosts.rows(&WRITTEN), before);

    // Its own a node takes away, and only that.
    for (table, ..) in reports("a") {
        assert_eq!(hosts.write("a", &delete(table, "node", "a")), None, "{table}");
    }
    for router in ["a-b", "b-a"] {
        assert_eq!(hosts.write("a", &delete("Migration", "router", router)), None, "{router}");
    }
    let of_b = |row: &&String| row.contains(r#""node":"b""#) || row.contains(r#""router":"b-c""#);
    let left: Vec<Vec<_>> = before.iter().map(|rows| rows.iter().filter(of_b).cloned().collect()).collect();
    assert!(left.iter().all(|rows| rows.len() == 1), "{left:?}");
    assert_eq!(hosts.rows(&WRITTEN), left);

    // The operator's own socket has no role.
    assert_eq!(hosts.ok(&["--db", &local, "network", "list"]), "NAME  MIN_BPS  MAX_BPS\nred   -        -\n");
    hosts.ok(&["--db", &hosts.local(2), "network", "remove", "red"]);

    // Nor does an operator end a move by TLS, but by that socket, and a node goes on with it.
    let remote = format!("ssl:127.0.0.1:{}", hosts.port);
    let ann = hosts.identity("ann");
    let by_ann = hosts.run(&["--db", &remote, &ann[0], &ann[1], &ann[2], "abort", "b-c"]);
    assert_eq!(by_ann.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&by_ann.stderr).contains("permission error"), "{by_ann:?}");
    let aborts = Command::new(env!("CARGO_BIN_EXE_xenflow"))
        .args(["--db", &local, "abort", "b-c"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let is_aborting = || hosts.rows(&["Migration"])[0][0].contains(r#""phase":"aborting""#);
    eventually("the row says so", || is_aborting().then_some(()));
    assert_eq!(hosts.write("b", &moved("b-c", json!({"phase": "aborted"}))), None);
    support::ok("abort b-c", aborts.wait_with_output().unwrap());
}

#[test]
fn waiting_goes_on_by_another_member_when_its_own_dies() {
    let mut hosts = Hosts::cluster();
    let cfg = |cfg: i64| json!({"op": "update", "table": "Node_Status", "where": [], "row": {"cfg": cfg}});
    assert_eq!(hosts.write("a", &insert("Node_Status", &json!({"node": "a"}))), None);
    let servers = format!("{},{}", hosts.local(1), hosts.local(0));
    let mut waiting = Command::new(env!("CARGO_BIN_EXE_xenflow"))
        .args(["--db", &servers, "--timeout", "30", "--wait", "network", "add", "red"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // At the member that was asked: only what it has it has answered.
    let asked = hosts.local(1);
    eventually("the change is made", || {
        let listed = hosts.run(&["--db", &asked, "network", "list"]);
        String::from_utf8_lossy(&listed.stdout).contains("red").then_some(())
    });
    hosts.kill(1);
    assert_eq!(waiting.try_wait().unwrap(), None);
    let operations = [cfg(1)];
    eventually("the node reports", || {
        hosts.ask("a", &operations).ok().filter(|results| results[0]["count"] == 1)
    });
    let ended = waiting.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
    assert!(ended.status.success());
}

#[test]
fn a_cluster_goes_on_without_a_member_and_lets_one_leave() {
    let mut hosts = Hosts::cluster();
    let tls = format!("ssl:127.0.0.1:{}", hosts.port);
    let all: Vec<String> = (0..3).map(|host| hosts.local(host)).collect();
    let all = all.join(",");
    hosts.ok(&["--db", &all, "network", "add", "red"]);
    let listing = |hosts: &Hosts, who: &str| {
        let identity = hosts.identity(who);
        let mut args = vec!["--db", &tls, "network", "list"];
        args.extend(identity.iter().map(String::as_str));
        hosts.run(&args)
    };
    assert!(support::ok("list", listing(&hosts, "ann")).contains("red"));
    let before = hosts.status(0);
    assert_eq!(before["in_contact"], true);
    assert_eq!(before["members"].as_array().unwrap().len(), 3);

    // The one at whose socket everybody was; it leads, unless the machine was busy.
    hosts.kill(0);
    hosts.ok(&["--db", &all, "network", "add", "blue"]);
    let leader = hosts.having("leader", &[1, 2]);
    let follower = 3 - leader;
    eventually("it is missed", || {
        let now = hosts.status(leader);
        let gone = now["members"].as_array().unwrap().iter().find(|m| m["server"] == before["server"]);
        (gone.unwrap()["connected"] == false).then_some(())
    });
    eventually("another one has the port, and what was added", || {
        let listed = listing(&hosts, "b");
        (listed.status.success() && String::from_utf8_lossy(&listed.stdout).contains("blue")).then_some(())
    });

    // It comes back, with what it missed.
    hosts.up(0);
    let local = hosts.local(0);
    eventually("it is back", || {
        let listed = hosts.run(&["--db", &local, "network", "list"]);
        String::from_utf8_lossy(&listed.stdout).contains("blue").then_some(())
    });

    let settings = hosts.path(&format!("{follower}/cluster.env"));
    let leave = ["cluster", "leave", "--no-systemd", "--settings", &settings];
    let file = hosts.path(&format!("{follower}/cluster.db"));
    let said = hosts.ok(&leave);
    let address = format!("ssl:{}:6661", hosts.ip(follower));
    assert_eq!(said, format!("{address} has left the cluster\nremoved {file}\nremoved {settings}\n"));
    assert!(!PathBuf::from(&file).exists() && !PathBuf::from(&settings).exists());
    let none = format!(
        "this host is no member of a cluster: there is no {settings}; 'xenflow cluster init' or 'join'"
    );
    support::refused("leave", &hosts.run(&leave), 1, &none);
    let members = |host| hosts.status(host)["members"].as_array().unwrap().len();
    eventually("it is none of them", || (members(leader) == 2).then_some(()));
    hosts.ok(&["--db", &all, "network", "remove", "blue"]);
}

#[test]
fn a_member_that_is_gone_is_kicked() {
    let mut hosts = Hosts::cluster();
    let settings = hosts.path("0/cluster.env");
    let kick =
        |who: &str| ["cluster", "kick", "--no-systemd", "--settings", &settings, who].map(str::to_owned);
    let run = |hosts: &Hosts, who: &str| hosts.run(&kick(who).each_ref().map(String::as_str));
    let member = |hosts: &Hosts, host: usize| {
        let address = format!("ssl:{}:6661", hosts.ip(host));
        let status = hosts.status(0);
        let member = status["members"].as_array().unwrap().iter().find(|m| m["address"] == *address).cloned();
        member.map(|member| {
            (member["server"].as_str().unwrap().to_owned(), address, member["connected"] == true)
        })
    };
    let (id, address, _) = eventually("a member", || member(&hosts, 2).filter(|(.., connected)| *connected));
    let (own, ..) = member(&hosts, 0).unwrap();
    for (who, message) in [
        ("none", "\"none\" is no member: 'xenflow cluster status' shows all, by ID and address".to_owned()),
        (&own, format!("{own} is this member itself: 'xenflow cluster leave' ends its membership")),
        (
            &address,
            format!(
                "{id} at {address} is connected: 'xenflow cluster leave' there ends its membership, or say --force"
            ),
        ),
    ] {
        support::refused(who, &run(&hosts, who), 2, &message);
    }
    hosts.kill(2);
    eventually("it is missed", || member(&hosts, 2).filter(|(.., connected)| !connected));
    let said = support::ok("kick", run(&hosts, &id));
    assert_eq!(said, format!("{id} at {address} is no member any more\n"));
    eventually("it is none of them", || member(&hosts, 2).is_none().then_some(()));
}

/// What an operator had made on one host is there on many, and on one again.
#[test]
fn the_embedded_database_becomes_a_cluster_and_comes_back() {
    let mut hosts = Hosts::new();
    let server = Server::ready();
    populate(&server);
    let (db, from) = (server.db(), server.dir.0.join("xenflow.db").display().to_string());
    let said = hosts.init(&["--db", &db, "--from", &from]);
    assert!(said.contains(&format!("took its contents from {from}, now {from}.before-cluster\n")), "{said}");
    server.refused("network list", 1, &format!("{db} serves no database XenFlow: run 'xenflow init' first"));
    hosts.up(0);
    let again = hosts.init(&["--db", &db, "--from", &from]);
    let file = hosts.path("0/cluster.db");
    let end = format!("this member serves clients at ssl:{}:{}: see xenflow_db\n", hosts.ip(0), hosts.port);
    assert_eq!(again, format!("{file} is there already\nclients have the role xenflow-node\n{end}"));
    let local = hosts.local(0);
    assert!(hosts.ok(&["--db", &local, "show"]).contains("vif 1 r1-core 52:54:00:00:00:01 segment red-core"));

    // What somebody took away comes back.
    let role = json!(["XenFlow", {"op": "delete", "table": "RBAC_Role", "where": []}]).to_string();
    let ran = Command::new("ovsdb-client").args(["transact", &local, &role]).output().unwrap();
    assert!(ran.status.success());
    assert_eq!(hosts.write("a", &location("a")).as_deref(), Some("permission error"));
    let again = hosts.init(&["--db", &db, "--from", &from]);
    assert!(again.contains("clients have the role xenflow-node from now on\n"), "{again}");
    assert_eq!(hosts.write("a", &location("a")), None);

    let settings = hosts.path("0/cluster.env");
    let leave = ["cluster", "leave", "--no-systemd", "--settings", &settings];
    let address = format!("ssl:{}:6661", hosts.ip(0));
    let refused = format!(
        "{address} is the last member, and holds the database: 'xenflow cluster leave --last' keeps it as the embedded one"
    );
    support::refused("leave", &hosts.run(&leave), 2, &refused);
    hosts.ok(&["cluster", "leave", "--no-systemd", "--settings", &settings, "--last", "--to", &from]);
    assert!(!PathBuf::from(&file).exists());
    let ctl = server.ctl().display().to_string();
    server.ok(&format!("init --db-file {from} --ctl {ctl}"));
    assert!(server.ok("show").contains("vif 1 r1-core 52:54:00:00:00:01 segment red-core"));
}

#[test]
fn wrong_input_is_refused_in_these_words() {
    let hosts = Hosts::new();
    let rule = "the address of a member is an IP address of this host that the other members reach";
    let ip = hosts.ip(0);
    let pem = hosts.path("pki/r1.pem");
    for (more, message) in [
        (&["--address", "host"][..], format!("\"host\": {rule}")),
        (&["--address", "0.0.0.0"], format!("0.0.0.0: {rule}")),
        (&["--address", "192.0.2.1"], format!("192.0.2.1: {rule}; this host has no such address")),
        (&["--peer", "b"], "\"b\": a member is IP, IP:PORT or ssl:IP:PORT".into()),
        (&["--peer", &ip], format!("ssl:{ip}:6661 is this member itself: --peer is another one")),
        (
            &["--db-file", "x.db"],
            "\"x.db\": paths of a cluster are absolute, of letters, digits and / . _ - + @ :; use another path".into(),
        ),
        (
            &["--certificate", &pem],
            format!("{pem} is of xenflow://router/r1, not of a node: 'xenflow pki issue node' makes one that is"),
        ),
    ] {
        let (dir, identity) = (hosts.path("0"), hosts.identity("a"));
        let (file, settings) = (format!("{dir}/cluster.db"), format!("{dir}/cluster.env"));
        let given = |name: &str| more.first().is_some_and(|option| *option == name);
        let mut args = vec!["cluster", "join", "--no-systemd", "--rundir", &dir, "--settings", &settings];
        for (name, value) in [("--address", ip.as_str()), ("--db-file", &file), ("--peer", "192.0.2.9")] {
            if !given(name) {
                args.extend([name, value]);
            }
        }
        args.extend(more);
        let whole = identity.iter().filter(|text| !text.starts_with("--certificate") || !given("--certificate"));
        args.extend(whole.map(String::as_str));
        support::refused(&args.join(" "), &hosts.run(&args), 2, &message);
        assert!(!PathBuf::from(&settings).exists());
    }
    let list = ["--db", "ssl:192.0.2.1:6660", "network", "list"];
    let message =
        "remote ssl:192.0.2.1:6660: an ssl: remote needs --certificate, --private-key and --ca-cert";
    support::refused("list", &hosts.run(&list), 2, message);
}
