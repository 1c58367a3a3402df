//! A database over TLS, whose clients have roles: two nodes' locations when one of them is cut off, the whole daemon and
//! the operator's tools by a certificate, and a server that shows the wrong one.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dom0_server::core::Event;
use dom0_server::db::location::{self, Place};
use dom0_server::db::{DATABASE, rbac};
use dom0_server::locations::watch::{self, Here, Moves};
use dom0_server::tls::{self, Files};
use ovsdb::{Connection, Operation, Options, Remote};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch as state};
use tokio::task::{JoinHandle, JoinSet};

use crate::support::{self, Dir, LIMIT, Running, Runs, free_port, ok, run, serves};

/// An `ovsdb-server` that serves `XenFlow` to nodes over TLS, and to root by a socket.
struct Server {
    running: Vec<Running>,
    port: u16,
    dir: Dir,
}

impl Runs for Server {
    fn dir(&self) -> &Dir {
        &self.dir
    }
}

impl Server {
    /// One that shows the certificate of a node, or of whom `shows` says.
    fn start(shows: &str) -> Self {
        let port = free_port();
        let mut server = Self { running: Vec::new(), port, dir: Dir::new() };
        let pki = server.at("pki");
        ok("pki init", run("unix:/nonexistent", &format!("pki init {pki}")));
        for who in ["node a", "node b", "node s", "router r1", "operator ann"] {
            ok(who, run("unix:/nonexistent", &format!("pki issue {who} --ca {pki}")));
        }
        fs::write(server.at("xenflow.ovsschema"), dom0_server::db::schema()).unwrap();
        server.tool("ovsdb-tool", &["create", "xenflow.db", "xenflow.ovsschema"]);
        let identity = server.identity(shows);
        let mut arguments = vec!["xenflow.db", "--remote=punix:db.sock", "--unixctl=db.ctl"];
        arguments.push("--remote=db:XenFlow,XenFlow,connections");
        arguments.extend(identity.iter().map(String::as_str));
        server.running.push(server.dir.spawn("ovsdb-server", &arguments));
        server.until("its socket", |server| serves(&server.path("db.sock")));
        let results = server.transact(&rbac::select());
        let operations = rbac::operations(&results, &format!("pssl:{port}:127.0.0.1")).unwrap();
        server.transact(&operations);
        server.until("its port", |server| std::net::TcpStream::connect(("127.0.0.1", server.port)).is_ok());
        server
    }

    fn at(&self, name: &str) -> String {
        self.dir.0.join(name).to_str().unwrap().to_owned()
    }

    /// As root, by the socket.
    fn transact(&self, operations: &[Value]) -> Value {
        let all = [&[json!(DATABASE)], operations].concat();
        let said = self.tool("ovsdb-client", &["transact", "unix:db.sock", &Value::from(all).to_string()]);
        assert!(!said.contains("error"), "{operations:?}: {said}");
        serde_json::from_str(&said).unwrap()
    }

    /// How to be somebody, for tools.
    fn identity(&self, who: &str) -> [String; 3] {
        let pki = self.at("pki");
        [
            format!("--private-key={pki}/{who}.key"),
            format!("--certificate={pki}/{who}.pem"),
            format!("--ca-cert={pki}/ca.pem"),
        ]
    }

    fn tls(&self, who: &str) -> ovsdb::Tls {
        let file = |name: &str| PathBuf::from(self.at("pki")).join(name);
        let (ca, cert, key) = (file("ca.pem"), file(&format!("{who}.pem")), file(&format!("{who}.key")));
        tls::database(&Files { ca, cert, key, crl: None }).unwrap()
    }

    fn remote(&self) -> String {
        format!("ssl:127.0.0.1:{}", self.port)
    }

    /// The built `xenflow` over TLS.
    fn xenflow(&self, who: Option<&str>, line: &str) -> Output {
        let identity = who.map(|who| self.identity(who).join(" ")).unwrap_or_default();
        run(&self.remote(), format!("{line} {identity}").trim_end())
    }

    /// Node, last byte of the address and generation of every location.
    fn locations(&self) -> BTreeSet<(String, String, i64)> {
        let said = self.transact(&[json!({"op": "select", "table": "Location", "where": []})]);
        let text = |row: &Value, column: &str| row[column].as_str().unwrap().to_owned();
        let row = |row: &Value| {
            (text(row, "node"), text(row, "mac").split_off(15), row["generation"].as_i64().unwrap())
        };
        said[0]["rows"].as_array().unwrap().iter().map(row).collect()
    }

    async fn has(&self, wanted: &[(&str, &str, i64)]) {
        let wanted: BTreeSet<_> =
            wanted.iter().map(|(a, b, n)| ((*a).to_owned(), (*b).to_owned(), *n)).collect();
        let end = Instant::now() + LIMIT;
        while self.locations() != wanted {
            assert!(Instant::now() < end, "{:?}, not {wanted:?}", self.locations());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A way to a server that can be cut: it ends what goes over it, and whoever comes then.
///
/// It listens all the time. A port that is given up cannot be had again at once, as a process that another test begins
/// just then has a copy of the socket until its `exec`.
struct Way {
    at: SocketAddr,
    wanted: state::Sender<bool>,
    is_open: state::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Way {
    async fn open(server: &Server) -> Self {
        let to = SocketAddr::from(([127, 0, 0, 1], server.port));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (wanted, mut asked) = state::channel(true);
        let (tell, is_open) = state::channel(true);
        let task = tokio::spawn(async move {
            let mut streams = JoinSet::new();
            loop {
                tokio::select! {
                    _ = asked.changed() => {
                        let is_open = *asked.borrow_and_update();
                        if !is_open {
                            streams.shutdown().await;
                        }
                        tell.send_replace(is_open);
                    }
                    accepted = listener.accept() => {
                        let (mut near, _) = accepted.unwrap();
                        if *tell.borrow() {
                            streams.spawn(async move {
                                let mut far = TcpStream::connect(to).await.unwrap();
                                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                            });
                        }
                    }
                }
            }
        });
        Self { at, wanted, is_open, task }
    }

    async fn mend(&mut self) {
        self.set(true).await;
    }

    /// Nothing goes over it when this returns.
    async fn cut(&mut self) {
        self.set(false).await;
    }

    async fn set(&mut self, is_open: bool) {
        self.wanted.send_replace(is_open);
        self.is_open.wait_for(|now| *now == is_open).await.unwrap();
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn place(last: u8) -> Place {
    Place { segment: "s1".parse().unwrap(), mac: format!("02:00:00:00:00:{last:02x}").parse().unwrap() }
}

/// What of a node's daemon says where addresses are.
struct Node {
    here: state::Sender<Here>,
    _moves: state::Sender<Moves>,
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

impl Node {
    fn start(server: &Server, name: &str, remote: &str) -> Self {
        let (here, watched) = state::channel(None);
        let (moves, due) = state::channel(Moves::default());
        let (sender, events) = mpsc::channel(16);
        let (remotes, tls) = (Remote::parse_list(remote).unwrap(), Some(server.tls(name)));
        let task = tokio::spawn(watch::run(remotes, tls, name.parse().unwrap(), None, watched, due, sender));
        Self { here, _moves: moves, events, task }
    }

    fn has(&self, last: &[u8]) {
        self.here.send_replace(Some(Arc::new(last.iter().copied().map(place).collect())));
    }

    /// Waits until it knows that others have these.
    async fn knows(&mut self, last: &[u8]) {
        let wanted: BTreeSet<Place> = last.iter().copied().map(place).collect();
        loop {
            let event = tokio::time::timeout(LIMIT, self.events.recv()).await.unwrap().unwrap();
            if matches!(event, Event::Whereabouts(it) if it.elsewhere == wanted) {
                return;
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_cut_off_takes_nothing_back() {
    let server = Server::start("s");
    let mut way = Way::open(&server).await;
    let remote = format!("ssl:{}", way.at);
    let mut a = Node::start(&server, "a", &remote);
    let mut b = Node::start(&server, "b", &server.remote());
    a.has(&[1, 2]);
    b.has(&[]);
    server.has(&[("a", "01", 1), ("a", "02", 1)]).await;
    b.knows(&[1, 2]).await;

    // a is cut off; the first address moves. a still has its port, and knows of nothing.
    way.cut().await;
    b.has(&[1]);
    let moved = [("a", "01", 1), ("a", "02", 1), ("b", "01", 2)];
    server.has(&moved).await;
    // What comes to it meanwhile waits.
    a.has(&[1, 2, 3]);
    way.mend().await;
    a.knows(&[1]).await;
    server.has(&[&moved[..], &[("a", "03", 1)]].concat()).await;

    // It is cut off again, and its daemon starts anew meanwhile: what it finds is no coming.
    way.cut().await;
    drop(a);
    let mut a = Node::start(&server, "a", &remote);
    a.has(&[1, 2]);
    way.mend().await;
    a.knows(&[1]).await;
    server.has(&moved).await;

    // What it had said before is delivered only now.
    let connection = |who: &str| {
        let options = Options { tls: Some(server.tls(who)), ..Options::default() };
        let remote: Remote = server.remote().parse().unwrap();
        async move { Connection::open(&remote, &options).await.unwrap() }
    };
    let (late, _notifications) = connection("a").await;
    let node = |name: &str| name.parse().unwrap();
    let say = |operations: Vec<Operation>| {
        let late = late.clone();
        async move { late.transact(DATABASE, &operations).await.map(drop).map_err(|error| error.to_string()) }
    };
    for generation in [1, 2] {
        let claim = say(location::claim(&place(1), &node("a"), generation)).await.unwrap_err();
        assert!(claim.contains("timed out"), "{claim}");
    }
    let restore = say(location::restore(&place(1), &node("a"), 1)).await.unwrap_err();
    assert!(restore.contains("timed out"), "{restore}");
    assert_eq!(server.locations().len(), moved.len());
    // Nor can it take the row of the other one away, or give it another generation.
    let theirs = say(vec![location::withdraw(&place(1), &node("b"), 9)]).await.unwrap_err();
    assert!(theirs.contains("permission error"), "{theirs}");
    let theirs = say(location::claim(&place(9), &node("b"), 1)).await.unwrap_err();
    assert!(theirs.contains("permission error"), "{theirs}");
    server.has(&moved).await;

    // Its port goes and comes: that is a coming, and a withdrawal of the time before does not undo it.
    a.has(&[2]);
    server.has(&moved[1..]).await;
    a.has(&[1, 2]);
    let back = [("a", "01", 3), ("a", "02", 1), ("b", "01", 2)];
    server.has(&back).await;
    b.knows(&[1, 2]).await;
    say(vec![location::withdraw(&place(1), &node("a"), 1)]).await.unwrap();
    server.has(&back).await;
}

/// The daemon, with the certificate of a node, of a host whose `Open_vSwitch` has no switch.
fn daemon(server: &mut Server) {
    server.tool("ovsdb-tool", &["create", "conf.db", "/usr/share/openvswitch/vswitch.ovsschema"]);
    let ovsdb =
        server.dir.spawn("ovsdb-server", &["conf.db", "--remote=punix:ovs.sock", "--unixctl=ovs.ctl"]);
    server.running.push(ovsdb);
    server.until("Open_vSwitch", |server| serves(&server.path("ovs.sock")));
    server.tool("ovs-vsctl", &["--db=unix:ovs.sock", "--no-wait", "init"]);
    let (at, remote) = (server.dir.0.display(), server.remote());
    let config = format!(
        "node = \"a\"\nca = \"{at}/pki/ca.pem\"\ncert = \"{at}/pki/a.pem\"\nkey = \"{at}/pki/a.key\"\n\
         ovs_db = \"unix:{at}/ovs.sock\"\nxenflow_db = \"{remote}\"\novs_rundir = \"{at}\"\n\
         control_socket = \"{at}/control.sock\"\n"
    );
    fs::write(server.at("dom0.toml"), config).unwrap();
    let daemon = Running(server.daemon().spawn().unwrap());
    server.running.push(daemon);
}

#[test]
fn the_daemon_and_the_tools_work_by_their_certificates() {
    let mut server = Server::start("s");
    let root = format!("unix:{}", server.at("db.sock"));
    ok("add", run(&root, "network add red"));
    ok("add", run(&root, "router add r1 --network red"));
    daemon(&mut server);
    // It reports of its node over TLS, as its role permits.
    server.until("report", |server| {
        let shown = ok("show", server.xenflow(Some("ann"), "show node --json"));
        let shown: Value = serde_json::from_str(&shown).unwrap();
        shown[0]["name"] == "a" && shown[0]["status"]["version"] == env!("CARGO_PKG_VERSION")
    });

    let top = ok("top", server.xenflow(Some("ann"), "top --once --json --interval 1"));
    let top: Value = serde_json::from_str(&top).unwrap();
    assert_eq!(top["routers"][0]["name"], "r1", "{top}");
    let doctor = server.xenflow(Some("ann"), &format!("doctor --json --config {}", server.at("dom0.toml")));
    let said: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let found = |check: &str| {
        let all = said["findings"].as_array().unwrap();
        let one = all.iter().find(|finding| finding["check"] == check).unwrap_or_else(|| panic!("{said}"));
        (one["level"].as_str().unwrap().to_owned(), one["seen"].as_str().unwrap().to_owned())
    };
    assert_eq!(found("cluster"), ("ok".to_owned(), "1 servers, 0 of a cluster".to_owned()));
    assert_eq!(found("database").0, "ok");

    for line in ["top --once", "doctor"] {
        let rule = "an ssl: remote needs --certificate, --private-key and --ca-cert";
        let ran = server.xenflow(None, line);
        support::refused(line, &ran, 2, &format!("remote {}: {rule}", server.remote()));
    }
}

#[test]
fn a_server_that_is_no_node_is_refused_in_words() {
    for shows in ["r1", "ann"] {
        let mut server = Server::start(shows);
        let said = format!(
            "cannot connect to {}: invalid peer certificate: certificate does not allow extended key usage for server \
             authentication",
            server.remote()
        );
        for line in ["network list", "top --once --timeout 2"] {
            let ran = server.xenflow(Some("ann"), line);
            let stderr = String::from_utf8_lossy(&ran.stderr);
            assert!(stderr.contains(&said), "{line}: {stderr}");
            assert_eq!(ran.status.code(), Some(1), "{line}");
        }
        daemon(&mut server);
        server.until("refusal", |server| server.log().contains(&said));
    }
}
