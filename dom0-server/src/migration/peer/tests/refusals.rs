//! Who does not get in, and why: each is told in one message that names the value and the rule.

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::AsyncReadExt;
use tokio_rustls::{TlsAcceptor, TlsConnector, client};
use xenflow_proto::node::{DestinationMessage, Hello, RefusalReason, VERSION};

use super::*;
use crate::chain::Chain;
use crate::guest::limits::HANDSHAKES;

impl Authority {
    fn pair(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let at = |end: &str| self.dir.join(format!("{name}.{end}"));
        let chain = vec![CertificateDer::from_pem_file(at("pem")).unwrap()];
        (chain, PrivateKeyDer::from_pem_file(at("key")).unwrap())
    }

    fn anchor(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.dir.join("ca.pem")).unwrap()
    }
}

/// A client with the certificate of that name.
struct Peer {
    stream: client::TlsStream<TcpStream>,
    decoder: FrameDecoder,
}

impl Peer {
    async fn connect(authority: &Authority, name: &str, address: SocketAddr) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(authority.anchor()).unwrap();
        let (chain, key) = authority.pair(name);
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        let tcp = TcpStream::connect(address).await.unwrap();
        let host = ServerName::from(std::net::IpAddr::from(xenflow_proto::control::HOST_IPV6));
        let stream = TlsConnector::from(Arc::new(config)).connect(host, tcp).await.unwrap();
        Self { stream, decoder: FrameDecoder::new(MAX) }
    }

    async fn say(&mut self, message: &SourceMessage) {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        write(&mut self.stream, &mut out).await.unwrap();
    }

    async fn hear(&mut self) -> DestinationMessage {
        loop {
            let message = next(&mut self.stream, &mut self.decoder, DestinationMessage::decode);
            let message = timeout(LONG, message).await.expect("a message").unwrap();
            if !matches!(message, DestinationMessage::Ping(_)) {
                return message;
            }
        }
    }

    /// What it is told at last.
    async fn refused(&mut self) -> (RefusalReason, String) {
        let message = self.hear().await;
        let DestinationMessage::Refusal { reason, detail } = message else { panic!("{message:?}") };
        let end = timeout(LONG, self.stream.read(&mut [0; 1])).await.expect("the end");
        assert_eq!(end.unwrap(), 0, "nothing more");
        (reason, detail)
    }
}

const MAX: usize = xenflow_proto::frame::MAX_FRAME;

fn hello(node: &str) -> Hello {
    let (node, router) = (node.parse().unwrap(), "r1".parse().unwrap());
    Hello { versions: vec![VERSION], node, migration: 7, router, stream: 1, agent: String::new() }
}

/// In one frame.
fn framed(contents: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    out.extend_from_slice(&u32::try_from(contents.len()).unwrap().to_be_bytes());
    out.extend_from_slice(contents);
    out
}

/// Whoever broke a rule waits longer the next time, so each of these is somebody else.
#[tokio::test]
async fn introductions_that_break_a_rule_are_refused_by_it() {
    let authority = Authority::new("hello", &["router/r1", "node/a", "node/b", "node/c", "node/d", "node/e"]);
    let mut b = Destination::start(&authority).await;
    let told = async |who: &str, bytes: BytesMut| {
        let mut peer = Peer::connect(&authority, who, b.address).await;
        let mut bytes = bytes;
        write(&mut peer.stream, &mut bytes).await.unwrap();
        peer.refused().await
    };
    let encoded = |message: SourceMessage| {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        out
    };
    let said = told("r1", encoded(SourceMessage::Hello(hello("r1")))).await;
    assert_eq!(said, (RefusalReason::Identity, "xenflow://router/r1 is no node".into()));
    let said = told("a", encoded(SourceMessage::Hello(hello("b")))).await;
    let words = "it says it is node b, but its certificate is of node a";
    assert_eq!(said, (RefusalReason::Identity, words.into()));
    let said = told("a", encoded(SourceMessage::Hello(Hello { versions: vec![2, 3], ..hello("a") }))).await;
    assert_eq!(said, (RefusalReason::Version, "it speaks versions [2, 3], not 1".into()));
    let said = told("a", encoded(SourceMessage::EndMark(0))).await;
    assert_eq!(said, (RefusalReason::Protocol, "the first message is no hello".into()));
    let said = told("c", BytesMut::from(&[0, 0, 0x10, 1][..])).await;
    let words = "refused frame: frame of 4097 bytes is over the limit of 4096";
    assert_eq!(said, (RefusalReason::Limit, words.into()));
    let said = told("d", framed(&[0xff; 4])).await;
    assert_eq!(
        (said.0, said.1.starts_with("refused message: malformed message")),
        (RefusalReason::Protocol, true),
        "{said:?}"
    );
    let said = told("e", framed(&[0x0a, 0])).await;
    let words = "refused message: \"\" is not a name: 1 to 63 of a-z 0-9 . _ -, the first a letter or digit";
    assert_eq!(said, (RefusalReason::Protocol, words.into()));
    assert!(b.events.try_recv().is_err(), "nobody hears of any of them");
}

#[tokio::test]
async fn messages_that_break_a_rule_are_refused_by_it() {
    let authority = Authority::new("rules", &["node/a", "node/b", "node/c", "node/d"]);
    let mut b = Destination::start(&authority).await;
    let mut told = async |who: &str, messages: &[SourceMessage]| {
        let mut peer = Peer::connect(&authority, who, b.address).await;
        peer.say(&SourceMessage::Hello(hello(who))).await;
        let mut opened = b.opened().await;
        opened.answers.say(Answer::Welcome(Standing { next_punt: 5, ..Standing::NEW }));
        assert!(matches!(peer.hear().await, DestinationMessage::Welcome(_)));
        for message in messages {
            peer.say(message).await;
        }
        let refused = peer.refused().await;
        assert_eq!(b.closed().await, opened.id);
        refused
    };
    let begin = SourceMessage::Changes { seq: Seq(1), changes: vec![change(1)] };
    let words = "message 1 of tables neither begins a snapshot nor resumes";
    assert_eq!(told("a", &[begin]).await, (RefusalReason::Protocol, words.into()));
    let early = SourceMessage::Punts { first: 4, punts: vec![frame(4)] };
    assert_eq!(told("c", &[early]).await, (RefusalReason::Protocol, "punt 4, not 5 or a later one".into()));
    let again = SourceMessage::Hello(hello("d"));
    assert_eq!(told("d", &[again]).await, (RefusalReason::Protocol, "a second introduction".into()));
}

#[tokio::test]
async fn half_open_connections_of_an_address_are_few() {
    let authority = Authority::new("half", &["node/a", "node/b"]);
    let b = Destination::start(&authority).await;
    let mut open = Vec::new();
    for _ in 0..HANDSHAKES {
        open.push(TcpStream::connect(b.address).await.unwrap());
    }
    let mut more = TcpStream::connect(b.address).await.unwrap();
    let end = timeout(LONG, more.read(&mut [0; 1])).await.expect("it is closed");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert!(open.iter().all(|tcp| tcp.try_read(&mut [0; 1]).is_err()), "the others wait for their handshake");
}

#[tokio::test]
async fn whoever_is_not_the_node_that_was_dialled_is_told_nothing() {
    let authority = Authority::new("wrong", &["node/a", "node/b", "router/r1"]);
    let mut b = Destination::start(&authority).await;
    let mut a = Outgoing::start(dial("c", b.address), authority.access("a")).unwrap();
    let why = |event: Event| {
        let Event::Broken(failure) = event else { panic!("{event:?}") };
        Chain(&failure).to_string()
    };
    assert_eq!(why(event(&mut a).await), "xenflow://node/b is there, not node c");
    assert!(b.events.try_recv().is_err(), "it did not introduce itself");

    // A guest that listens, with a certificate of the same authority.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let trust = tls::Trust::new(vec![authority.anchor()], tls::Lists::default()).unwrap();
    let (chain, key) = authority.pair("r1");
    let config = Arc::new(tls::server_config(&trust, chain, key).unwrap());
    let guest = tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let _ = TlsAcceptor::from(config.clone()).accept(tcp).await;
        }
    });
    let mut a = Outgoing::start(dial("r1", address), authority.access("a")).unwrap();
    let words = "the handshake with node r1 failed: its certificate is not for hosts (extended key usage)";
    assert_eq!(why(event(&mut a).await), words);
    guest.abort();

    // Nobody is there any more.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut a = Outgoing::start(dial("b", address), authority.access("a")).unwrap();
    let said = why(event(&mut a).await);
    assert!(said.starts_with(&format!("node b cannot be reached at {address}: ")), "{said}");
}
