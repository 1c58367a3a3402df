//! The client finds the control interface by itself, whoever else answers for the host; and `check` says so.

use std::io::{Read, Write};
use std::net::{SocketAddrV6, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use xenflow_proto::control;

use crate::support::{Ca, Host, Lab, NOT_BY_ITSELF, Peer, ifindex, in_namespace, ip, until};

/// The guest's end of both wires is in a machine of its own.
fn guest(links: &[&str]) -> (Lab, Peer) {
    let (lab, guest) = (Lab::new(), Peer::bare());
    for link in links {
        plug(&guest, link);
    }
    (lab, guest)
}

fn plug(guest: &Peer, link: &str) {
    guest.take(link);
    guest.ip(&format!("link set {link} up"));
}

/// Somebody at the other end of `p0` who answers for the host.
struct Impostor {
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Impostor {
    fn start(answer: impl Fn(TcpStream) + Send + 'static) -> Self {
        // With the host's MAC as well.
        ip("link set p1 down");
        ip("link set p1 address 0e:58:46:00:00:01");
        ip("link set p1 up");
        ip("addr add fe80::1/64 dev p1 nodad");
        let at = SocketAddrV6::new(control::HOST_IPV6, control::PORT, 0, ifindex("p1"));
        let listener = TcpListener::bind(at).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (asked, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, over) = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let Ok((tcp, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                count.fetch_add(1, Ordering::Relaxed);
                tcp.set_nonblocking(false).unwrap();
                tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                answer(tcp);
            }
        });
        Self { asked, stop, thread: Some(thread) }
    }

    /// With a certificate of this authority; ends the session at the guest's first word. Gives what was said.
    fn with_certificate(ca: &Ca, uri: &str) -> (Self, Arc<AtomicUsize>) {
        let (cert, key) = ca.issue(uri, ExtendedKeyUsagePurpose::ServerAuth);
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        let (config, heard) = (Arc::new(config), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&heard);
        let impostor = Self::start(move |tcp| {
            let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), tcp);
            let mut said = [0; 4096];
            count.fetch_add(tls.read(&mut said).unwrap_or(0), Ordering::Relaxed);
        });
        (impostor, heard)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the impostor panicked");
    }
}

/// The session comes, where it should, though this one was there first.
fn comes(lab: &Lab, guest: &Peer, impostor: &Impostor) {
    let client = lab.client_of(guest, "");
    until("the impostor to be asked", || impostor.asked() > 0);
    let host = Host::start(lab, 8);
    host.wait("snapshot", |table| table.snapshots == 1);
    until("up", || lab.status()["state"] == "up");
    assert_eq!(lab.status()["interface"], "ctl0");
    drop(client);
}

#[test]
fn the_control_interface_is_found_when_it_comes() {
    in_namespace("search::the_control_interface_is_found_when_it_comes", || {
        let (lab, guest) = guest(&["p0"]);
        let host = Host::start(&lab, 8);
        let client = lab.client_of(&guest, NOT_BY_ITSELF);
        client.wait_log("no session with the host");
        assert_eq!(lab.status()["interface"], serde_json::Value::Null);
        plug(&guest, "ctl0");
        host.wait("snapshot", |table| table.snapshots == 1);
        until("up", || lab.status()["interface"] == "ctl0");
        client.wait_log("the control interface: a node took the session there interface=\"ctl0\"");
        // The next session is at the same one, whatever its name.
        guest.ip("link set ctl0 down");
        guest.ip("link set ctl0 name ctl9");
        guest.ip("link set ctl9 up");
        host.cut();
        host.wait("resume", |table| table.sessions >= 2);
        until("up again", || lab.status()["interface"] == "ctl9" && lab.status()["state"] == "up");

        // The host of these tests serves one guest at a time.
        drop(client);
        let (code, lines) = lab.check(&guest);
        let line = |check: &str| {
            let line = lines.as_array().unwrap().iter().find(|line| line["check"] == check);
            line.unwrap_or_else(|| panic!("no {check} in {lines}"))
        };
        assert_eq!(code, Some(0), "{lines}");
        for (check, detail) in [
            ("interface", "ctl9: a node of the authority answers there"),
            ("host", "xenflow://node/a answers fe80::1 at ctl9"),
        ] {
            assert_eq!(line(check)["verdict"], "ok", "{lines}");
            assert_eq!(line(check)["detail"], detail);
        }
        // That this kernel does not forward is no failure, and there is something to be done about it.
        for check in ["forwarding", "client"] {
            assert_eq!(line(check)["verdict"], "warn", "{lines}");
            assert!(line(check)["remedy"].is_string());
        }

        drop(host);
        let (code, lines) = lab.check(&guest);
        let line = lines.as_array().unwrap().iter().find(|line| line["check"] == "host").unwrap();
        assert_eq!((code, line["verdict"].as_str()), (Some(1), Some("fail")), "{lines}");
        assert!(line["remedy"].is_string(), "{lines}");
    });
}

#[test]
fn a_nudge_is_heard_wherever_it_comes() {
    in_namespace("search::a_nudge_is_heard_wherever_it_comes", || {
        let (lab, guest) = guest(&["p0", "ctl0"]);
        let client = lab.client_of(&guest, NOT_BY_ITSELF);
        client.wait_log("Connection refused");
        let host = Host::start(&lab, 8);
        lab.datagram("fe80::1", control::NUDGE);
        host.wait("snapshot", |table| table.snapshots == 1);
    });
}

#[test]
fn garbage_captures_nobody() {
    in_namespace("search::garbage_captures_nobody", || {
        let (lab, guest) = guest(&["p0", "ctl0"]);
        let impostor = Impostor::start(|mut tcp| {
            let _ = tcp.write_all(&[0xa5; 100_000]);
        });
        comes(&lab, &guest, &impostor);
    });
}

#[test]
fn silence_captures_nobody() {
    in_namespace("search::silence_captures_nobody", || {
        let (lab, guest) = guest(&["p0", "ctl0"]);
        let impostor = Impostor::start(|mut tcp| while tcp.read(&mut [0; 512]).unwrap_or(0) > 0 {});
        comes(&lab, &guest, &impostor);
    });
}

#[test]
fn another_authority_captures_nobody_and_is_told_nothing() {
    in_namespace("search::another_authority_captures_nobody_and_is_told_nothing", || {
        let (lab, guest) = guest(&["p0", "ctl0"]);
        let (impostor, heard) = Impostor::with_certificate(&Ca::new(), "xenflow://node/a");
        comes(&lab, &guest, &impostor);
        assert_eq!(heard.load(Ordering::Relaxed), 0, "it was greeted");
    });
}

/// As one who passes on what a real host says, which refuses sessions from there.
#[test]
fn a_node_that_refuses_captures_nobody() {
    in_namespace("search::a_node_that_refuses_captures_nobody", || {
        // Alone at first, so that it is believed.
        let (lab, guest) = guest(&["p0"]);
        let (impostor, heard) = Impostor::with_certificate(&lab.ca, "xenflow://node/a");
        let client = lab.client_of(&guest, "");
        until("greetings", || heard.load(Ordering::Relaxed) > 0);
        client.wait_log("no session with the host");
        assert_eq!(lab.status()["interface"], serde_json::Value::Null, "a certificate is not a session");
        drop(client);
        plug(&guest, "ctl0");
        comes(&lab, &guest, &impostor);
    });
}
