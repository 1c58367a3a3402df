//! What the tests against a kernel share: a namespace, its interfaces, certificates, and the peer of the client:
//! a TLS server that decodes messages with the protocol's own crate and keeps the table.

pub mod nftables;
pub mod uml;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddrV6, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SanType, SerialNumber,
};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use xenflow_proto::digest::{Digest, Keyed};
use xenflow_proto::message::{Renewed, Welcome};
use xenflow_proto::table::RouteTarget;
use xenflow_proto::{Change, FrameDecoder, GuestMessage, HostMessage, Key, Object, Seq, control};

const LIMIT: Duration = Duration::from_secs(30);

/// The client tries again after half an hour at the earliest: what comes within [`LIMIT`] did not wait for that.
pub const NOT_BY_ITSELF: &str = "reconnect_min_ms = 3600000\nreconnect_max_ms = 3600000";

/// Runs a test's body in a new network namespace: the test binary starts itself again for this one test.
pub fn in_namespace(name: &str, body: impl FnOnce()) {
    if std::env::var_os("XENFLOW_TEST_NAMESPACE").is_some() {
        return body();
    }
    let status = Command::new("unshare")
        .arg("-n")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("XENFLOW_TEST_NAMESPACE", "1")
        .status()
        .expect("unshare (util-linux) is needed");
    assert!(status.success(), "{name} failed in its namespace: {status}");
}

/// `ip WORDS`, which must succeed.
pub fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split_whitespace()).output().expect("ip (iproute2) is needed");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Many commands in one process: fast enough to outrun a small receive buffer.
pub fn ip_batch(lines: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip -batch");
}

pub struct Ca {
    key: KeyPair,
    params: CertificateParams,
    /// The number of each certificate, by its PEM.
    issued: Mutex<BTreeMap<String, SerialNumber>>,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test CA");
        Self { key: KeyPair::generate().unwrap(), params, issued: Mutex::default() }
    }

    /// Certificate and key in PEM.
    pub fn issue(&self, uri: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        (self.issue_for(&key, uri, usage, 4000).pem(), key.serialize_pem())
    }

    /// A certificate until this year.
    fn issue_for(&self, key: &KeyPair, uri: &str, usage: ExtendedKeyUsagePurpose, end: i32) -> Certificate {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![usage];
        params.not_after = rcgen::date_time_ymd(end, 1, 1);
        let mut issued = self.issued.lock().unwrap();
        let number = SerialNumber::from(issued.len() as u64 + 1);
        params.serial_number = Some(number.clone());
        let issuer = Issuer::from_params(&self.params, &self.key);
        let cert = params.signed_by(key, &issuer).unwrap();
        issued.insert(cert.pem(), number);
        cert
    }

    pub fn pem(&self) -> String {
        self.params.clone().self_signed(&self.key).unwrap().pem()
    }
}

/// The interfaces of one guest, with the other ends of their wires in the same namespace.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub ca: Ca,
}

impl Lab {
    /// `p0` has 192.0.2.1/24 and 2001:db8::1/64; `ctl0` leads to fe80::1 at `ctl1`.
    pub fn new() -> Self {
        std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/accept_dad", "0").unwrap();
        ip("link set lo up");
        ip("link add ctl0 address 52:54:00:00:01:00 type veth peer name ctl1 address 0e:58:46:00:00:01");
        ip("link add p0 address 52:54:00:00:00:01 type veth peer name p1");
        ip("addr add fe80::1/64 dev ctl1 nodad");
        for link in ["ctl0", "ctl1", "p0", "p1"] {
            ip(&format!("link set {link} up"));
        }
        ip("addr add 192.0.2.1/24 dev p0");
        ip("addr add 2001:db8::1/64 dev p0 nodad");
        Self { dir: tempfile::tempdir().unwrap(), ca: Ca::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the real program, with these lines added to its configuration.
    pub fn client(&self, more: &str) -> Client {
        self.configure(more);
        self.client_as_configured()
    }

    pub fn client_as_configured(&self) -> Client {
        self.start(Command::new(env!("CARGO_BIN_EXE_xenflow-guest")))
    }

    fn configure(&self, more: &str) {
        let (cert, key) = self.ca.issue("xenflow://router/r1", ExtendedKeyUsagePurpose::ClientAuth);
        self.configure_with(more, &cert, &key);
    }

    fn configure_with(&self, more: &str, cert: &str, key: &str) {
        std::fs::write(self.path("ca.pem"), self.ca.pem()).unwrap();
        std::fs::write(self.path("r1.pem"), cert).unwrap();
        std::fs::write(self.path("r1.key"), key).unwrap();
        let dir = self.dir.path().display();
        let text = format!(
            "router = \"r1\"\ncontrol_interface = \"ctl0\"\nca = \"{dir}/ca.pem\"\ncert = \"{dir}/r1.pem\"\n\
             key = \"{dir}/r1.key\"\nstatus_socket = \"{dir}/status.sock\"\nlog = \"debug\"\n{more}\n"
        );
        let text = if more.contains("reconnect_min_ms") { text } else { text + "reconnect_min_ms = 50\n" };
        std::fs::write(self.path("guest.toml"), text).unwrap();
    }

    /// With a certificate that ends soon, in view of how long it is valid; with it comes the one that replaces it.
    pub fn configure_to_renew(&self) -> Renewed {
        let (key, uri) = (KeyPair::generate().unwrap(), "xenflow://router/r1");
        let issue = |end| self.ca.issue_for(&key, uri, ExtendedKeyUsagePurpose::ClientAuth, end);
        self.configure_with("", &issue(2040).pem(), &key.serialize_pem());
        let anchor = CertificateDer::from_pem_slice(self.ca.pem().as_bytes()).unwrap();
        Renewed { chain: vec![issue(4000).der().to_vec()], anchors: vec![anchor.to_vec()] }
    }

    /// A list beside the client's authorities that revokes these certificates, in PEM.
    pub fn revoke(&self, certs: &[&str]) {
        let revoked = |pem: &&str| RevokedCertParams {
            serial_number: self.ca.issued.lock().unwrap()[*pem].clone(),
            revocation_time: rcgen::date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2026, 1, 1),
            next_update: rcgen::date_time_ymd(4000, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: certs.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&Issuer::from_params(&self.ca.params, &self.ca.key)).unwrap();
        std::fs::write(self.path("crl.new"), list.pem().unwrap()).unwrap();
        std::fs::rename(self.path("crl.new"), self.path("crl.pem")).unwrap();
    }

    /// The client's certificate in its file.
    pub fn certificate(&self) -> Vec<u8> {
        let pem = std::fs::read(self.path("r1.pem")).unwrap();
        CertificateDer::from_pem_slice(&pem).unwrap().to_vec()
    }

    /// A datagram to the client, from this address at the host's end of its wire.
    pub fn datagram(&self, from: &str, payload: &[u8]) {
        let ifindex = ifindex("ctl1");
        let socket = UdpSocket::bind(SocketAddrV6::new(from.parse().unwrap(), 0, 0, ifindex)).unwrap();
        let guest = control::guest_ipv6("52:54:00:00:01:00".parse().unwrap());
        let to = SocketAddrV6::new(guest, control::NUDGE_PORT, 0, ifindex);
        assert_eq!(socket.send_to(payload, to).unwrap(), payload.len());
    }

    /// In a machine of its own, and without a word about the control interface.
    pub fn client_of(&self, guest: &Peer, more: &str) -> Client {
        self.configure(more);
        let file = self.path("guest.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("control_interface = \"ctl0\"\n", "")).unwrap();
        self.start(guest.command(env!("CARGO_BIN_EXE_xenflow-guest")))
    }

    /// `xenflow-guest check` in there: its exit code, and what it says.
    pub fn check(&self, guest: &Peer) -> (Option<i32>, serde_json::Value) {
        let mut command = guest.command(env!("CARGO_BIN_EXE_xenflow-guest"));
        let output =
            command.args(["check", "--json", "--config"]).arg(self.path("guest.toml")).output().unwrap();
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
    }

    /// As a root that may do nothing but read its own files.
    pub fn client_without_capabilities(&self, more: &str) -> Client {
        self.configure(more);
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all", env!("CARGO_BIN_EXE_xenflow-guest")]);
        self.start(command)
    }

    fn start(&self, mut command: Command) -> Client {
        let log = self.path("log");
        let child = command
            .args(["run", "--config"])
            .arg(self.path("guest.toml"))
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Client { child, log }
    }

    /// One line of `xenflow-guest status`.
    pub fn status(&self) -> serde_json::Value {
        let output = Command::new(env!("CARGO_BIN_EXE_xenflow-guest"))
            .args(["status", "--json", "--config"])
            .arg(self.path("guest.toml"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// A machine: a namespace of its own.
pub struct Peer(Child);

impl Peer {
    /// At the other end of `p0`'s wire: it has `p1`.
    pub fn new(addresses: &[&str]) -> Self {
        let peer = Self::bare();
        peer.take("p1");
        for address in addresses {
            peer.ip(&format!("addr add {address} dev p1 nodad"));
        }
        peer.ip("link set p1 up");
        peer
    }

    /// Without interfaces.
    pub fn bare() -> Self {
        let mut child = Command::new("unshare").args(["-n", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let theirs = format!("/proc/{}/ns/net", child.id());
        until("namespace", || std::fs::read_link(&theirs).is_ok_and(|namespace| namespace != own));
        Self(child.try_wait().unwrap().map_or(child, |status| panic!("{status}")))
    }

    /// Moves an interface in there.
    pub fn take(&self, link: &str) {
        ip(&format!("link set {link} netns {}", self.0.id()));
    }

    /// To run a program in there.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.0.id().to_string(), "-n", program]);
        command
    }

    /// `ip WORDS` in there.
    pub fn ip(&self, words: &str) {
        let output = self
            .command("ip")
            .args(words.split_whitespace())
            .output()
            .expect("nsenter (util-linux) is needed");
        assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

pub fn sysctl(name: &str, value: &str) {
    let path = format!("/proc/sys/net/{name}");
    std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// The running program; ends with it, and shows its log if the test fails.
pub struct Client {
    pub child: Child,
    log: PathBuf,
}

impl Client {
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Changes something of which the client hears nothing: what its socket is told meanwhile is taken from it, and the
    /// kernel knows of no loss.
    pub fn deafen(&self, change: impl FnOnce()) {
        let pid = Pid::from_child(&self.child);
        let socket = self.subscription();
        let mut buffer = vec![0; 64 << 10];
        let mut read = |flags| match recv(&socket, buffer.as_mut_slice(), flags | RecvFlags::DONTWAIT) {
            Ok(_) => true,
            Err(Errno::AGAIN) => false,
            Err(error) => panic!("the client's socket: {error}"),
        };
        loop {
            kill_process(pid, Signal::STOP).unwrap();
            let stat = format!("/proc/{}/stat", self.child.id());
            until("stop", || std::fs::read_to_string(&stat).unwrap().contains(") T "));
            if !read(RecvFlags::PEEK) {
                break;
            }
            // What it has not read yet is its own.
            kill_process(pid, Signal::CONT).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        change();
        assert!(read(RecvFlags::empty()), "the kernel told nothing");
        while read(RecvFlags::empty()) {}
        kill_process(pid, Signal::CONT).unwrap();
    }

    /// The client's netlink socket: the only one of rtnetlink that is subscribed to routes.
    fn subscription(&self) -> OwnedFd {
        const ROUTES: u32 = 1 << (7 - 1);
        let table = std::fs::read_to_string(format!("/proc/{}/net/netlink", self.child.id())).unwrap();
        let inodes: Vec<String> = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|it| it[1] == "0" && u32::from_str_radix(it[3], 16).is_ok_and(|it| it & ROUTES != 0))
            .map(|it| format!("socket:[{}]", it[it.len() - 1]))
            .collect();
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().map(Result::unwrap);
        let of_client = |file: &std::fs::DirEntry| {
            std::fs::read_link(file.path())
                .is_ok_and(|link| inodes.iter().any(|it| link.as_os_str() == it.as_str()))
        };
        let [file] = files.filter(of_client).collect::<Vec<_>>().try_into().expect("one such socket");
        let number = file.file_name().to_str().unwrap().parse().unwrap();
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        pidfd_getfd(process, number, PidfdGetfdFlags::empty()).unwrap()
    }

    pub fn wait_log(&self, text: &str) {
        until(&format!("log line with \"{text}\""), || self.log().contains(text));
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

pub fn ifindex(device: &str) -> u32 {
    std::fs::read_to_string(format!("/sys/class/net/{device}/ifindex"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or_else(|| ip(&format!("-o link show {device}")).split(':').next().unwrap().parse().unwrap())
}

pub fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What the peer was told.
#[derive(Debug, Default, Clone)]
pub struct Table {
    pub objects: BTreeMap<Key, Object>,
    fresh: Option<BTreeSet<Key>>,
    pub snapshots: usize,
    pub resumes: usize,
    pub sessions: usize,
    /// Changes in the session that runs, or ran last.
    pub changes: usize,
    /// The guest asked for this.
    pub renewed: Option<Renewed>,
    boot_id: [u8; 16],
    pub unacked: usize,
    pub messages: u64,
    watch_links: bool,
    forbidden: Option<String>,
}

impl Table {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Upsert(object) => {
                if let Object::Link(link) = &object
                    && self.watch_links
                    && !self.objects.contains_key(&object.key())
                {
                    let about =
                        |key: &Key| matches!(key, Key::Obstacle(o) if o.ifindex == Some(link.ifindex));
                    assert!(self.objects.keys().any(about), "nobody looked at {}", link.name);
                }
                if let Some(fresh) = &mut self.fresh {
                    fresh.insert(object.key());
                }
                self.objects.insert(object.key(), object);
            }
            Change::Remove(key) => {
                if let Some(fresh) = &mut self.fresh {
                    fresh.remove(&key);
                }
                let gone = self.objects.remove(&key).map(|object| self.line(&object));
                if let (Some(gone), Some(forbidden)) = (gone, &self.forbidden) {
                    assert!(!gone.starts_with(forbidden), "{gone} was removed");
                }
            }
        }
    }

    /// As [`Welcome::held`].
    fn held(&self) -> Option<Digest> {
        let (mut keyed, mut digest) = (Keyed::new(&self.boot_id), Digest::default());
        self.objects.values().for_each(|object| digest.add(keyed.hash(object)));
        (digest.objects > 0).then_some(digest)
    }

    fn name(&self, ifindex: u32) -> String {
        match self.objects.get(&Key::Link(ifindex)) {
            Some(Object::Link(link)) => link.name.clone(),
            _ => format!("if{ifindex}"),
        }
    }

    pub fn lines(&self) -> Vec<String> {
        self.objects.values().map(|object| self.line(object)).collect()
    }

    fn line(&self, object: &Object) -> String {
        match object {
            Object::Link(link) => format!("link {} up={} running={}", link.name, link.up, link.running),
            Object::Address(key) => format!("address {} {}", key.address, self.name(key.ifindex)),
            Object::NextHop(next_hop) => format!("nexthop {} {:?}", next_hop.id, next_hop.kind),
            Object::Neighbor(n) => format!("neighbor {} {} {}", n.key.addr, self.name(n.key.ifindex), n.mac),
            Object::Settings(settings) => format!("settings {settings:?}"),
            Object::Obstacle(it) => format!(
                "obstacle {:?} {} {}: {}",
                it.key.kind,
                it.key.family.map_or_else(|| "both".into(), |family| format!("{family:?}")),
                it.key.ifindex.map_or_else(|| "all".into(), |ifindex| self.name(ifindex)),
                it.detail
            ),
            Object::Route(route) => {
                let table = match route.key.table {
                    254 => "main".into(),
                    255 => "local".into(),
                    other => format!("table{other}"),
                };
                let target = match &route.target {
                    RouteTarget::NextHop(id) => format!(" nhid {id}"),
                    RouteTarget::Hops(hops) => hops.iter().fold(String::new(), |text, hop| {
                        let oif = self.name(hop.oif.unwrap_or(0));
                        match hop.gateway {
                            Some(gateway) => format!("{text} via {gateway} {oif}"),
                            None => format!("{text} dev {oif}"),
                        }
                    }),
                };
                format!("{table} {} m{}{target}", route.key.dst, route.key.metric)
            }
        }
    }
}

/// The peer.
pub struct Host {
    table: Arc<Mutex<Table>>,
    stop: Arc<AtomicBool>,
    hold: Arc<AtomicBool>,
    cut: Arc<AtomicBool>,
    desert: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Host {
    /// With a certificate of the lab's CA; allows `window` messages unacknowledged.
    pub fn start(lab: &Lab, window: u32) -> Self {
        Self::start_with(lab, window, Table::default())
    }

    /// As one that holds this.
    pub fn start_with(lab: &Lab, window: u32, table: Table) -> Self {
        let identity = lab.ca.issue("xenflow://node/a", ExtendedKeyUsagePurpose::ServerAuth);
        Self::start_as_with(lab, window, &identity, table)
    }

    pub fn start_as(lab: &Lab, window: u32, identity: &(String, String)) -> Self {
        Self::start_as_with(lab, window, identity, Table::default())
    }

    fn start_as_with(lab: &Lab, window: u32, (cert, key): &(String, String), table: Table) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(lab.ca.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        let config = Arc::new(config);
        let at = SocketAddrV6::new(control::HOST_IPV6, control::PORT, 0, ifindex("ctl1"));
        let mut listener = TcpListener::bind(at);
        let start = Instant::now();
        while listener.is_err() && start.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(20));
            listener = TcpListener::bind(at);
        }
        let listener = listener.unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut host = Self {
            table: Arc::new(Mutex::new(table)),
            stop: Arc::default(),
            hold: Arc::default(),
            cut: Arc::default(),
            desert: Arc::default(),
            thread: None,
        };
        let (table, stop) = (Arc::clone(&host.table), Arc::clone(&host.stop));
        let (hold, cut) = (Arc::clone(&host.hold), Arc::clone(&host.cut));
        let desert = Arc::clone(&host.desert);
        let thread = std::thread::spawn(move || {
            let mut deserted = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let Ok((tcp, from)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                // The one source that the host's switch lets through.
                assert_eq!(from.ip(), control::guest_ipv6("52:54:00:00:01:00".parse().unwrap()));
                tcp.set_nonblocking(false).unwrap();
                tcp.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
                let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), tcp);
                cut.store(false, Ordering::Relaxed);
                let over = || [&stop, &cut, &desert].iter().any(|flag| flag.load(Ordering::Relaxed));
                let ended = serve(&mut tls, &table, window, &over, &hold);
                if desert.swap(false, Ordering::Relaxed) {
                    deserted.push(tls);
                }
                table.lock().unwrap().fresh = None;
                drop(ended);
            }
        });
        host.thread = Some(thread);
        host
    }

    /// Answers [`GuestMessage::Renew`] with this.
    pub fn renew(&self, renewed: Renewed) {
        self.table.lock().unwrap().renewed = Some(renewed);
    }

    /// Keeps acknowledgements back, or not.
    pub fn hold(&self, hold: bool) {
        self.hold.store(hold, Ordering::Relaxed);
    }

    /// Neither reads nor writes in the session that runs, and does not end it: as a host that the guest left.
    pub fn desert(&self) {
        self.desert.store(true, Ordering::Relaxed);
    }

    /// Ends the session that runs.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    pub fn table(&self) -> Table {
        self.table.lock().unwrap().clone()
    }

    pub fn wait(&self, what: &str, condition: impl Fn(&Table) -> bool) {
        let start = Instant::now();
        while !condition(&self.table.lock().unwrap()) {
            assert!(
                start.elapsed() < LIMIT,
                "waited in vain for {what}; told:\n{}",
                self.table().lines().join("\n")
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn assert_has(&self, line: &str) {
        let lines = self.table().lines();
        assert!(lines.iter().any(|l| l == line), "no \"{line}\" in\n{}", lines.join("\n"));
    }

    pub fn assert_none(&self, start: &str) {
        let lines = self.table().lines();
        assert!(!lines.iter().any(|l| l.starts_with(start)), "\"{start}\" in\n{}", lines.join("\n"));
    }

    /// From now on, none of these may go.
    pub fn forbid_removal_of(&self, start: &str) {
        self.table.lock().unwrap().forbidden = Some(start.to_owned());
    }

    /// From now on, no link may come before an obstacle at it.
    pub fn watch_links(&self) {
        self.table.lock().unwrap().watch_links = true;
    }

    pub fn wait_has(&self, line: &str) {
        self.wait(line, |table| table.lines().iter().any(|l| l == line));
    }

    pub fn wait_gone(&self, start: &str) {
        self.wait(&format!("end of {start}"), |table| !table.lines().iter().any(|l| l.starts_with(start)));
    }

    /// The keys of routes are those that `ip` lists.
    pub fn wait_same_as_kernel(&self) {
        let kernel = kernel_routes();
        self.wait("the kernel's routes", |table| {
            let told = table.objects.keys().filter_map(|key| match key {
                Key::Route(key) => Some((key.table, key.dst.to_string(), key.metric)),
                Key::Link(_)
                | Key::Address(_)
                | Key::NextHop(_)
                | Key::Neighbor(_)
                | Key::Settings
                | Key::Obstacle(_) => None,
            });
            told.collect::<BTreeSet<_>>() == kernel
        });
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the peer panicked");
    }
}

/// Table, prefix and metric of all routes, as `ip` sees them.
fn kernel_routes() -> BTreeSet<(u32, String, u32)> {
    let mut routes = BTreeSet::new();
    for (family, host, any) in [("-4", 32, "0.0.0.0/0"), ("-6", 128, "::/0")] {
        let list: Vec<serde_json::Value> =
            serde_json::from_str(&ip(&format!("-j {family} route show table all"))).unwrap();
        for route in list {
            let table = match route["table"].as_str() {
                None | Some("main") => 254,
                Some("local") => 255,
                Some(other) => other.parse().unwrap(),
            };
            let dst = match route["dst"].as_str().unwrap() {
                "default" => any.to_owned(),
                dst if dst.contains('/') => dst.to_owned(),
                dst => format!("{dst}/{host}"),
            };
            routes.insert((table, dst, route["metric"].as_u64().unwrap_or(0).try_into().unwrap()));
        }
    }
    routes
}

type Tls = StreamOwned<ServerConnection, std::net::TcpStream>;

fn say(tls: &mut Tls, message: &HostMessage) -> std::io::Result<()> {
    let mut out = BytesMut::new();
    message.encode(&mut out);
    tls.write_all(&out)?;
    tls.flush()
}

fn serve(
    tls: &mut Tls,
    table: &Mutex<Table>,
    window: u32,
    over: &dyn Fn() -> bool,
    hold: &AtomicBool,
) -> std::io::Result<()> {
    let mut decoder = FrameDecoder::new(1 << 20);
    let (mut expected, mut acked) = (Seq(1), Seq(0));
    let mut chunk = vec![0; 64 << 10];
    loop {
        if over() {
            return Ok(());
        }
        match tls.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(n) => decoder.buffer().extend_from_slice(&chunk[..n]),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
        while let Some(frame) = decoder.next_frame().unwrap() {
            let message = GuestMessage::decode(frame).unwrap();
            let mut table = table.lock().unwrap();
            let mut number = |seq: Seq| {
                assert_eq!(seq, expected, "messages are numbered without gaps");
                expected = seq.next();
            };
            match message {
                GuestMessage::Hello(hello) => {
                    assert_eq!(hello.router.as_str(), "r1");
                    table.sessions += 1;
                    table.changes = 0;
                    if table.boot_id != hello.boot_id {
                        assert!(table.objects.is_empty(), "the kernel has booted");
                        table.boot_id = hello.boot_id;
                    }
                    let node = "a".parse().unwrap();
                    let welcome = Welcome {
                        version: 1,
                        node,
                        max_frame_bytes: 1 << 20,
                        max_changes: 100,
                        window,
                        held: table.held(),
                    };
                    say(tls, &HostMessage::Welcome(welcome))?;
                }
                GuestMessage::SnapshotBegin(seq) => {
                    number(seq);
                    table.fresh = Some(BTreeSet::new());
                }
                GuestMessage::Changes { seq, changes } => {
                    number(seq);
                    assert!((1..=100).contains(&changes.len()));
                    table.changes += changes.len();
                    changes.into_iter().for_each(|change| table.apply(change));
                }
                GuestMessage::SnapshotEnd(seq) => {
                    number(seq);
                    match table.fresh.take() {
                        Some(fresh) => {
                            table.objects.retain(|key, _| fresh.contains(key));
                            table.snapshots += 1;
                        }
                        None => table.resumes += 1,
                    }
                }
                GuestMessage::Ping(token) => say(tls, &HostMessage::Pong(token))?,
                GuestMessage::Resume(seq) => number(seq),
                GuestMessage::Renew => {
                    let renewed = table.renewed.clone().expect("a certificate that does not end soon");
                    say(tls, &HostMessage::Renewed(renewed))?;
                }
                GuestMessage::Pong(_) => {}
            }
            table.messages = expected.0 - 1;
            table.unacked = usize::try_from(expected.0 - 1 - acked.0).unwrap();
            assert!(table.unacked <= window as usize, "{} messages unacknowledged", table.unacked);
        }
        if acked.next() < expected && !hold.load(Ordering::Relaxed) {
            acked = Seq(expected.0 - 1);
            table.lock().unwrap().unacked = 0;
            say(tls, &HostMessage::Ack { seq: acked, rejected: Vec::new(), accepted: Vec::new() })?;
        }
    }
}
