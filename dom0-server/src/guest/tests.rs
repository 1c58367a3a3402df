//! Real connections over the loopback interface, with the core played by hand.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use time::OffsetDateTime;
use tokio_rustls::{TlsConnector, client};
use xenflow_proto::message::VERSION;
use xenflow_proto::table::{RouteKey, TABLE_MAIN};
use xenflow_proto::{Change, Key, Seq};

use super::*;

mod trust;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(100);

/// A host that listens, whose core is the test.
struct Host {
    dir: PathBuf,
    addr: SocketAddr,
    sessions: Sessions,
    inbox: mpsc::Receiver<Event>,
}

impl Host {
    async fn start(name: &str, change_rate: u32) -> Self {
        let dir = std::env::temp_dir().join(format!("xenflow-guest-{name}-{}", std::process::id()));
        let now = OffsetDateTime::now_utc();
        crate::pki::init(&dir, now).unwrap();
        let mut store = crate::pki::Store::open(&dir).unwrap();
        for uri in ["xenflow://node/a", "xenflow://router/r1", "xenflow://router/r2"] {
            store.issue(&dir, &uri.parse().unwrap(), time::Duration::DAY, now, false).unwrap();
        }
        let at = |name| dir.join(name);
        let files = tls::Files { ca: at("ca.pem"), cert: at("a.pem"), key: at("a.key"), crl: None };
        let server = files.load().unwrap();
        let access = tls::Access::new(tls::follow(files, server, None), None);
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let (listener, other) = (bind().await.unwrap(), bind().await.unwrap());
        let addr = listener.local_addr().unwrap();
        let sessions = Sessions::new(change_rate);
        let (events, inbox) = mpsc::channel(256);
        let of_task = sessions.clone();
        tokio::spawn(async move { serve_all(&other, &listener, access, of_task, events).await });
        Self { dir, addr, sessions, inbox }
    }

    async fn connect(&self, router: &str) -> Guest {
        let at = |end: &str| self.dir.join(format!("{router}.{end}"));
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.dir.join("ca.pem")).unwrap()).unwrap();
        let chain = vec![CertificateDer::from_pem_file(at("pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(at("key")).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        let tcp = TcpStream::connect(self.addr).await.unwrap();
        let name = ServerName::from(IpAddr::from(HOST_IPV6));
        let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        let mut guest = Guest { stream, decoder: FrameDecoder::new(MAX_FRAME) };
        let (router, boot_id, agent) = (router.parse().unwrap(), [0; 16], String::new());
        guest.say(&GuestMessage::Hello(Hello { versions: vec![VERSION], router, boot_id, agent })).await;
        guest
    }

    async fn next(&mut self) -> Event {
        timeout(LONG, self.inbox.recv()).await.expect("an event").unwrap()
    }

    async fn opened(&mut self) -> SessionId {
        let event = self.next().await;
        let Event::Opened(id, ..) = event else { panic!("{event:?}") };
        id
    }

    /// The number of the message that a guest says next.
    async fn said(&mut self) -> u64 {
        let event = self.next().await;
        let Event::Said(_, GuestMessage::Changes { seq, .. }) = event else { panic!("{event:?}") };
        seq.0
    }

    async fn is_quiet(&mut self) -> bool {
        timeout(SHORT, self.inbox.recv()).await.is_err()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

struct Guest {
    stream: client::TlsStream<TcpStream>,
    decoder: FrameDecoder,
}

impl Guest {
    async fn say(&mut self, message: &GuestMessage) {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        write(&mut self.stream, &mut out).await.unwrap();
    }

    async fn changes(&mut self, seq: u64, count: usize) {
        let changes = vec![Change::Remove(Key::NextHop(7)); count];
        self.say(&GuestMessage::Changes { seq: Seq(seq), changes }).await;
    }

    async fn hear(&mut self) -> HostMessage {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return HostMessage::decode(frame).unwrap();
            }
            let read = timeout(LONG, self.stream.read_buf(self.decoder.buffer())).await.expect("a message");
            assert!(read.unwrap() > 0, "closed");
        }
    }
}

fn answers(seq: u64, count: usize) -> Tell {
    let key = |metric| {
        Key::Route(RouteKey { table: TABLE_MAIN, dst: "10.0.0.0/8".parse().unwrap(), tos: 0, metric })
    };
    let accepted = (0..count as u32).map(key).collect();
    Tell::Message(HostMessage::Ack { seq: Seq(seq), rejected: Vec::new(), accepted })
}

#[tokio::test]
async fn a_session_has_one_message_at_the_core() {
    let mut host = Host::start("turns", 0).await;
    let mut guest = host.connect("r1").await;
    let id = host.opened().await;
    for seq in 1..=3 {
        guest.changes(seq, 1).await;
    }
    assert_eq!(host.said().await, 1);
    assert!(host.is_quiet().await, "the first was not taken in yet");
    // Another session's does not wait for it.
    let mut other = host.connect("r2").await;
    host.opened().await;
    other.changes(9, 1).await;
    assert_eq!(host.said().await, 9);
    host.sessions.taken(id);
    assert_eq!(host.said().await, 2);
    assert!(host.is_quiet().await);
    // It is told things meanwhile.
    host.sessions.tell(id, answers(1, 0));
    assert_eq!(guest.hear().await, HostMessage::Ack { seq: Seq(1), rejected: vec![], accepted: vec![] });
    drop(guest);
    // Its end comes behind what it had said.
    host.sessions.taken(id);
    assert_eq!(host.said().await, 3);
    host.sessions.taken(id);
    assert!(matches!(host.next().await, Event::Closed(of) if of == id));
}

#[tokio::test]
async fn who_is_held_back_hears_that_the_host_is_there() {
    let mut host = Host::start("held-back", 0).await;
    let mut guest = host.connect("r1").await;
    let id = host.opened().await;
    guest.changes(1, 1).await;
    guest.say(&GuestMessage::Ping(7)).await;
    assert_eq!(host.said().await, 1);
    // Its own question is not read yet.
    for _ in 0..2 {
        assert_eq!(guest.hear().await, HostMessage::Ping(id.0));
    }
    host.sessions.taken(id);
    assert!(matches!(host.next().await, Event::Said(of, GuestMessage::Ping(7)) if of == id));
}

#[tokio::test]
async fn the_core_hears_when_answers_are_out_and_only_then() {
    let mut host = Host::start("told", 0).await;
    let mut guest = host.connect("r1").await;
    let id = host.opened().await;
    host.sessions.tell(id, answers(1, 0));
    assert!(host.is_quiet().await);
    host.sessions.tell(id, answers(2, 4096));
    assert!(matches!(host.next().await, Event::Told(of) if of == id));
    guest.hear().await;
    assert!(
        matches!(guest.hear().await, HostMessage::Ack { seq: Seq(2), accepted, .. } if accepted.len() == 4096)
    );
}

#[tokio::test]
async fn what_waits_for_a_guest_that_does_not_read_is_bounded() {
    let mut host = Host::start("slow", 0).await;
    let _guest = host.connect("r1").await;
    let id = host.opened().await;
    // No await in between: the session's task has no say yet.
    let told = (0..1000).take_while(|seq| {
        host.sessions.tell(id, answers(*seq, 4096));
        host.sessions.open.lock().unwrap().contains_key(&id)
    });
    assert!(told.count() <= QUEUED_KEYS / 4096);
    loop {
        let event = host.next().await;
        if matches!(event, Event::Closed(of) if of == id) {
            break;
        }
        assert!(matches!(event, Event::Told(_)), "{event:?}");
    }
    let slow = (Some("r1".parse().unwrap()), Limit::Slow);
    timeout(LONG, async {
        while !host.sessions.take_hits().contains_key(&slow) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it is counted");
}

#[tokio::test]
async fn a_router_whose_guest_broke_a_rule_waits_and_others_do_not() {
    let mut host = Host::start("pause", 0).await;
    // As one that did so before: the pauses are longer than two handshakes take.
    let evil = Identity::Router("r1".parse().unwrap());
    (0..2).for_each(|_| host.sessions.limits.broke(&evil, Instant::now()));
    for pause_ms in [400, 800] {
        let mut guest = host.connect("r1").await;
        host.opened().await;
        let start = Instant::now();
        guest.stream.write_all(&[0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
        assert!(matches!(guest.hear().await, HostMessage::Refusal { reason: RefusalReason::Protocol, .. }));
        assert!(matches!(host.next().await, Event::Closed(_)));
        let _again = host.connect("r1").await;
        let _other = host.connect("r2").await;
        let (Event::Opened(_, first, ..), Event::Opened(_, second, ..)) =
            (host.next().await, host.next().await)
        else {
            panic!("two sessions open")
        };
        assert_eq!(
            (first.to_string(), second.to_string()),
            ("xenflow://router/r2".into(), "xenflow://router/r1".into())
        );
        assert!(start.elapsed() >= Duration::from_millis(pause_ms), "{:?}", start.elapsed());
        drop((_again, _other));
        for _ in 0..2 {
            assert!(matches!(host.next().await, Event::Closed(_)));
        }
    }
}

#[tokio::test]
async fn changes_beyond_the_rate_wait_while_others_have_sessions() {
    let mut host = Host::start("rate", 1000).await;
    let mut guest = host.connect("r1").await;
    let id = host.opened().await;
    let _other = host.connect("r2").await;
    host.opened().await;
    let start = Instant::now();
    // The burst: 50 seconds' worth.
    for seq in 1..=50 {
        guest.changes(seq, 1000).await;
        assert_eq!(host.said().await, seq);
        host.sessions.taken(id);
    }
    // Each waits for those before, and one more is said after one had to.
    let (mut beyond, mut is_late) = (0, false);
    for seq in 51.. {
        guest.changes(seq, 300).await;
        assert_eq!(host.said().await, seq);
        assert!(start.elapsed() >= Duration::from_millis(beyond), "{beyond}: {:?}", start.elapsed());
        if is_late {
            break;
        }
        host.sessions.taken(id);
        beyond += 300;
        is_late = host.sessions.take_hits().keys().any(|(_, limit)| *limit == Limit::Delayed);
    }
}

#[tokio::test]
async fn an_address_that_knocks_too_fast_is_closed_without_a_handshake() {
    let host = Host::start("knock", 0).await;
    // It says nothing: a connection that is let in waits for its handshake.
    let knock = async || {
        let mut tcp = TcpStream::connect(host.addr).await.unwrap();
        let end = timeout(Duration::from_millis(20), tcp.read(&mut [0; 16])).await;
        matches!(end, Ok(Ok(0) | Err(_)))
    };
    assert!(!knock().await, "the first is let in");
    let hasty =
        async { while !(knock().await && host.sessions.take_hits().contains_key(&(None, Limit::Hasty))) {} };
    timeout(LONG, hasty).await.expect("one is closed, and counted");
}
