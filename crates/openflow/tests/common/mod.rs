//! A real Open vSwitch on the dummy datapath in a directory of its own, and a blocking client over a `Session`.

#![allow(dead_code, reason = "each test uses a part")]

use openflow::{Config, Event, Flow, FlowDesc, FlowFilter, FlowMod, Message, Session};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// `ovsdb-server` and `ovs-vswitchd`, ended with this value.
pub(crate) struct Switch {
    dir: PathBuf,
    children: Vec<Child>,
}

impl Switch {
    /// A bridge `br0` with dummy ports 1..=3.
    pub(crate) fn start(name: &str) -> Switch {
        let dir = std::env::temp_dir().join(format!("openflow-test-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let mut switch = Switch { dir, children: Vec::new() };
        switch.run("ovsdb-tool", &["create", "conf.db", "/usr/share/openvswitch/vswitch.ovsschema"]);
        let server = switch.spawn(
            "ovsdb-server",
            &["conf.db", "--remote=punix:db.sock", "--unixctl=db.ctl", "--log-file=db.log"],
        );
        switch.children.push(server);
        switch.wait_for("db.sock");
        switch.run("ovs-vsctl", &["--db=unix:db.sock", "--no-wait", "init"]);
        let switchd = switch.spawn(
            "ovs-vswitchd",
            &["unix:db.sock", "--enable-dummy=override", "--unixctl=sw.ctl", "--log-file=sw.log"],
        );
        switch.children.push(switchd);
        switch.run(
            "ovs-vsctl",
            &[
                "--db=unix:db.sock",
                "--timeout=20",
                "add-br",
                "br0",
                "--",
                "set",
                "bridge",
                "br0",
                "datapath_type=dummy",
                "protocols=OpenFlow15",
                "fail-mode=secure",
                "--",
                "add-port",
                "br0",
                "p1",
                "--",
                "set",
                "interface",
                "p1",
                "type=dummy",
                "ofport_request=1",
                "--",
                "add-port",
                "br0",
                "p2",
                "--",
                "set",
                "interface",
                "p2",
                "type=dummy",
                "ofport_request=2",
                "--",
                "add-port",
                "br0",
                "p3",
                "--",
                "set",
                "interface",
                "p3",
                "type=dummy",
                "ofport_request=3",
            ],
        );
        switch.wait_for("br0.mgmt");
        switch
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut c = Command::new(program);
        c.args(args)
            .current_dir(&self.dir)
            .env("OVS_RUNDIR", &self.dir)
            .env("OVS_LOGDIR", &self.dir)
            .env("OVS_DBDIR", &self.dir)
            .env("OVS_SYSCONFDIR", &self.dir)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        c
    }

    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        let out = self.command(program, args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
        assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn spawn(&self, program: &str, args: &[&str]) -> Child {
        self.command(program, args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}"))
    }

    /// Until somebody serves at a socket: its file is there a little earlier.
    fn wait_for(&self, socket: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(self.dir.join(socket)).is_err() {
            assert!(Instant::now() < end, "nobody serves at {socket}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn appctl(&self, args: &[&str]) -> String {
        let ctl = self.dir.join("sw.ctl");
        let mut all = vec!["--target", ctl.to_str().unwrap()];
        all.extend_from_slice(args);
        self.run("ovs-appctl", &all)
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(&self.dir.join("br0.mgmt"), Config::default())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A session over a unix socket.
pub(crate) struct Client {
    stream: UnixStream,
    pub(crate) session: Session,
}

impl Client {
    fn connect(path: &Path, config: Config) -> Client {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut client = Client { stream, session: Session::new(config, Instant::now()) };
        client.wait(|e| matches!(e, Event::Up(_)).then_some(()));
        client
    }

    fn flush(&mut self) {
        while let Some(bytes) = self.session.poll_transmit() {
            self.stream.write_all(&bytes).unwrap();
        }
    }

    /// The first event that `pick` takes; others are dropped.
    pub(crate) fn wait<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            while let Some(event) = self.session.poll_event() {
                if let Some(t) = pick(event) {
                    return t;
                }
            }
            assert!(Instant::now() < end, "nothing came");
            self.flush();
            let mut buf = [0; 65536];
            let n = self.stream.read(&mut buf).unwrap();
            assert_ne!(n, 0, "the switch closed the connection");
            self.session.handle_input(&buf[..n], Instant::now()).unwrap();
        }
    }

    /// Sends messages and a barrier; panics on an error, naming the message.
    pub(crate) fn install(&mut self, messages: &[Message]) {
        let xids: Vec<_> = messages.iter().map(|m| self.session.send(m).unwrap()).collect();
        let barrier = self.session.send_barrier();
        self.wait(|e| match e {
            Event::Error { xid, error } => {
                let at = xids.iter().position(|&x| x == xid);
                panic!("{error} for {:?}", at.map(|i| &messages[i]));
            }
            Event::BarrierReply { xid } if xid == barrier => Some(()),
            _ => None,
        });
    }

    pub(crate) fn add_flows(&mut self, flows: &[Flow]) {
        let messages: Vec<_> = flows.iter().cloned().map(|f| Message::FlowMod(FlowMod::add(f))).collect();
        self.install(&messages);
    }

    /// All flows of a filter, sorted by table and priority.
    pub(crate) fn dump(&mut self, filter: FlowFilter) -> Vec<FlowDesc> {
        let want = self.session.request_flows(filter).unwrap();
        let mut all = Vec::new();
        self.wait(|e| match e {
            Event::Flows { xid, flows, more } if xid == want => {
                all.extend(flows);
                (!more).then_some(())
            }
            _ => None,
        });
        all.sort_by_key(|f| (f.flow.table, f.flow.priority));
        all
    }

    /// Sends one request; gives the body of its answer.
    pub(crate) fn ask(&mut self, request: openflow::MultipartRequest) -> openflow::MultipartReply {
        let want = self.session.send(&Message::MultipartRequest(request)).unwrap();
        self.wait(|e| match e {
            Event::Multipart { xid, body, more: false } if xid == want => Some(body),
            Event::Error { xid, error } if xid == want => panic!("{error}"),
            _ => None,
        })
    }
}
