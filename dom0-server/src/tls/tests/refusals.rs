//! Who does not come in, each with the line that an operator reads of it: a real listener, a real log.

use tokio::io::AsyncRead;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::*;
use crate::captured::Log;
use crate::guest::{Sessions, serve_all};

const LONG: Duration = Duration::from_secs(20);
const R1: &str = "xenflow://router/r1";
const ENDED: &str = "session ended";

/// What comes to the door.
enum Client {
    /// A client that speaks TLS.
    Tls(Arc<ClientConfig>),
    /// These bytes; the answer is the host's last word.
    Bytes(Vec<u8>, &'static [u8]),
}

/// Knocks at a host with this configuration. The lines about it come back, with the peer's address as `PEER`.
async fn knock(config: &Arc<ServerConfig>, host: &Host, client: &Client) -> Vec<String> {
    let log = Log::start();
    let trust = Trust::new(vec![host.anchor.clone()], Lists::default()).unwrap();
    let (chain, key) = pem(&host.own);
    let provider = rustls::crypto::ring::default_provider();
    let shown = rustls::sign::CertifiedKey::from_der(chain.clone(), key, &provider).unwrap();
    let (config, identity) = (config.clone(), identity("xenflow://node/a"));
    let server = Server { config, identity, trust: Arc::new(trust), chain, shown: Arc::new(shown) };
    let access = Access::new(watch::channel(Arc::new(server)).1, None);
    let bind = || TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0));
    let (door, other) = (bind().await.unwrap(), bind().await.unwrap());
    let address = door.local_addr().unwrap();
    let (events, mut inbox) = mpsc::channel(8);
    let serving =
        tokio::spawn(async move { serve_all(&other, &door, access, Sessions::new(0), events).await });

    let mut tcp = TcpStream::connect(address).await.unwrap();
    let peer = tcp.local_addr().unwrap().to_string();
    match client {
        Client::Tls(config) => {
            let name = ServerName::from(std::net::IpAddr::from(control::HOST_IPV6));
            let mut stream = TlsConnector::from(config.clone()).connect(name, tcp).await.unwrap();
            assert!(rest(&mut stream).await.is_err(), "who is refused hears an alert");
        }
        Client::Bytes(bytes, last_word) => {
            tcp.write_all(bytes).await.unwrap();
            assert_eq!(rest(&mut tcp).await.unwrap(), *last_word);
        }
    }
    let ended = log.wait(1, ENDED).await;
    assert_eq!(ended.len(), 1, "{ended:?}");
    assert!(inbox.try_recv().is_err(), "the core never hears of it");
    serving.abort();
    log.lines(&peer).iter().map(|line| line.replace(&peer, "PEER")).collect()
}

async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut read = Vec::new();
    timeout(LONG, stream.read_to_end(&mut read)).await.expect("the host closes").map(|_| read)
}

fn serial(pair: &Pair) -> String {
    let chain = pem(pair).0;
    let (_, cert) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    Serial::new(cert.raw_serial()).to_string()
}

/// The line of a connection that ended for this reason.
fn ended(reason: &str) -> String {
    format!("WARN dom0_server::guest: {ENDED} peer=PEER reason=PEER is refused{reason}")
}

#[tokio::test]
async fn each_refusal_leaves_one_line_with_peer_certificate_and_reason() {
    let day = time::Duration::days(1);
    let host = Host::new();
    let valid = Validity::days(now(), 1);
    let mut revoking = Host::new();
    let revoked = revoking.pair(R1, valid);
    revoking.revoke(&revoked);
    let (servers, server) = odd(&[R1], ExtendedKeyUsagePurpose::ServerAuth);
    let (nameless, no_name) = odd(&["https://router/r1"], ExtendedKeyUsagePurpose::ClientAuth);
    let foreign = Host::new().pair(R1, valid);
    let expired = host.pair(R1, Validity::days(now() - day * 3, 1));
    let early = host.pair(R1, Validity::days(now() + day, 1));
    for (host, pair, reason) in [
        (&host, &foreign, "its certificate is of an unknown authority"),
        (&host, &expired, "its certificate has expired"),
        (&host, &early, "its certificate is not valid yet"),
        (&revoking, &revoked, "its certificate was revoked"),
        (&servers, &server, "its certificate is not for clients (extended key usage)"),
    ] {
        let client = Client::Tls(Arc::new(host.client(Some(pair))));
        let said = format!(" with certificate {} of {R1}: {reason}", serial(pair));
        assert_eq!(knock(&host.config, host, &client).await, [ended(&said)]);
    }
    let client = Client::Tls(Arc::new(nameless.client(Some(&no_name))));
    let said = format!(
        " with certificate {} of nobody: its identity is refused: the certificate names no xenflow:// identity",
        serial(&no_name)
    );
    assert_eq!(knock(&nameless.config, &nameless, &client).await, [ended(&said)]);
    let client = Client::Tls(Arc::new(host.client(None)));
    assert_eq!(knock(&host.config, &host, &client).await, [ended(": it showed no certificate")]);
    // A fatal protocol_version alert (RFC 8446 6.2).
    let client = Client::Bytes(hello_of_tls_1_2(), &[21, 3, 3, 0, 2, 2, 70]);
    let said = ": it does not offer what TLS 1.3 here needs: peer is incompatible: \
                SupportedVersionsExtensionRequired";
    assert_eq!(knock(&host.config, &host, &client).await, [ended(said)]);
}

/// A ticket, from wherever it is, saves no client the check of its certificate.
#[tokio::test]
async fn resumption_is_refused_and_the_certificate_counts() {
    let mut host = Host::new();
    let pair = host.pair(R1, Validity::days(now(), 1));
    let client = Arc::new(host.client(Some(&pair)));
    // The same host with the same certificate, as it would be if it gave tickets.
    let mut generous = (*host.config).clone();
    generous.send_tls13_tickets = 2;
    generous.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    let generous = Arc::new(generous);
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let (accepted, connected) = handshake(&generous, &client).await;
        let ((mut near, _), mut far) = (accepted.unwrap(), connected.unwrap());
        near.write_all(b"x").await.unwrap();
        near.flush().await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'x');
        assert_eq!(near.get_ref().1.handshake_kind(), Some(kind), "the client has and uses a ticket");
    }
    let (accepted, _) = handshake(&host.config, &client).await;
    let (stream, _) = accepted.unwrap();
    assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));

    host.revoke(&pair);
    let lines = knock(&host.config, &host, &Client::Tls(client)).await;
    let asked = "DEBUG handshake{peer=PEER}: dom0_server::tls::credentials: it asks to resume a session: refused, its \
                 certificate is looked at again";
    let said = format!(" with certificate {} of {R1}: its certificate was revoked", serial(&pair));
    assert_eq!(
        lines.iter().filter(|line| line.contains("session")).collect::<Vec<_>>(),
        [asked, &ended(&said)]
    );
}
