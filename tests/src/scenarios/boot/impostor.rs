//! Somebody on a router's own segment who answers for the host: the control address, its port, and a node's
//! certificate, but of another authority.

use std::io::Read;
use std::net::{SocketAddrV6, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use nix::net::if_::if_nametoindex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use xenflow_proto::control::{HOST_IPV6, PORT};

use crate::endhost::NIC;
use crate::net::Netns;

const POLL: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module; ends when dropped.
pub(super) struct Impostor {
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    asked: AtomicU64,
    told: AtomicU64,
}

impl Impostor {
    /// In the namespace of an end host, at its one interface.
    pub(super) fn start(ns: &Netns) -> Result<Self> {
        ns.ip(&["address", "add", &format!("{HOST_IPV6}/64"), "dev", NIC, "nodad"])?;
        let listener = ns.enter(|| {
            let at = SocketAddrV6::new(HOST_IPV6, PORT, 0, if_nametoindex(NIC)?);
            let listener = TcpListener::bind(at)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        let (config, seen) = (Arc::new(config()?), Arc::new(Seen::default()));
        let shared = Arc::clone(&seen);
        let thread = std::thread::spawn(move || {
            while !shared.stop.load(Ordering::Relaxed) {
                let Ok((tcp, _)) = listener.accept() else {
                    std::thread::sleep(POLL);
                    continue;
                };
                shared.asked.fetch_add(1, Ordering::Relaxed);
                let is_set = tcp.set_nonblocking(false).and_then(|()| tcp.set_read_timeout(Some(PATIENCE)));
                let Ok(tls) = ServerConnection::new(Arc::clone(&config)) else { return };
                let mut heard = [0; 4096];
                if is_set.is_ok()
                    && let Ok(bytes) = StreamOwned::new(tls, tcp).read(&mut heard)
                {
                    shared.told.fetch_add(bytes as u64, Ordering::Relaxed);
                }
            }
        });
        Ok(Self { seen, thread: Some(thread) })
    }

    /// Connections that came.
    pub(super) fn asked(&self) -> u64 {
        self.seen.asked.load(Ordering::Relaxed)
    }

    /// Bytes that it was told behind TLS.
    pub(super) fn told(&self) -> u64 {
        self.seen.told.load(Ordering::Relaxed)
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Everything as at a real host but the authority.
fn config() -> Result<ServerConfig> {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = Issuer::new(ca, KeyPair::generate()?);
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("xenflow://node/a".to_owned().try_into()?)];
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer)?.der().clone();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_no_client_auth().with_single_cert(vec![cert], key.into())?)
}
