//! The client's peer: a TLS server that decodes messages with the protocol's own crate and keeps the table.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddrV6, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use xenflow_proto::message::{Renewed, Welcome};
use xenflow_proto::{FrameDecoder, GuestMessage, HostMessage, Key, Seq, control};

use super::{LIMIT, Lab, Table, ifindex, ip};

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
