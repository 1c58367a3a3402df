//! A cluster of real `ovsdb-server`s on loopback, with TLS between them and for clients. A missing program fails the test
//! that needs it.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ovsdb::{Connection, Options, Remote, Tls};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

const SCHEMA: &str = r#"{"name": "Test", "version": "1.0.0", "tables": {"Thing": {"isRoot": true,
  "columns": {"name": {"type": "string"}, "size": {"type": "integer"}}}}}"#;

/// An authority of certificates for loopback addresses.
pub(crate) struct Authority {
    cert: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate of the same name for one that signed itself.
        params.distinguished_name.push(DnType::CommonName, "authority");
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        Self { cert, issuer: Issuer::new(params, key) }
    }

    fn issue(&self, address: IpAddr) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![address.to_string()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// A client that trusts this authority and shows a certificate of `of`, if any.
    pub(crate) fn client(&self, of: Option<&Self>) -> Tls {
        let mut roots = RootCertStore::empty();
        roots.add(self.cert.der().clone()).unwrap();
        let config = rustls::ClientConfig::builder().with_root_certificates(roots);
        let config = match of {
            None => config.with_no_client_auth(),
            Some(of) => {
                let (cert, key) = of.issue(Ipv4Addr::LOCALHOST.into());
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
                let cert: CertificateDer<'static> = cert.der().clone();
                config.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        Tls::new(config)
    }
}

/// One server of the cluster.
pub(crate) struct Member {
    dir: PathBuf,
    /// Where it listens for clients.
    pub(crate) address: SocketAddr,
    child: Option<Child>,
}

/// The cluster; it ends when it is dropped.
pub(crate) struct Cluster {
    pub(crate) members: Vec<Member>,
    pub(crate) authority: Authority,
    dir: PathBuf,
}

/// Ports below those that systems give out by themselves, so that nobody has them at an address of a cluster's own.
const CLIENTS: u16 = 6640;
const MEMBERS: u16 = 6644;

fn tool(args: &[&str], dir: &Path) {
    let ran = Command::new("ovsdb-tool")
        .args(args)
        .current_dir(dir)
        .output()
        .expect("ovsdb-tool must be installed");
    assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

impl Cluster {
    pub(crate) fn start(size: usize) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("ovsdb-raft-{}-{n}", std::process::id()));
        // Of a process of this number that was killed.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("test.ovsschema"), SCHEMA).unwrap();
        let authority = Authority::new();
        std::fs::write(dir.join("ca.pem"), authority.cert.pem()).unwrap();
        let mut cluster = Self { members: Vec::new(), authority, dir };
        // No other cluster that runs now has these.
        let own = |number: usize| {
            let [.., high, low] = std::process::id().to_be_bytes();
            let last = u8::try_from(n as usize * 16 + number + 1).unwrap();
            IpAddr::from(Ipv4Addr::new(127, high.max(1), low, last))
        };
        let inner = |number| format!("ssl:{}", SocketAddr::new(own(number), MEMBERS));
        for number in 0..size {
            let dir = cluster.dir.join(number.to_string());
            std::fs::create_dir_all(&dir).unwrap();
            let (cert, key) = cluster.authority.issue(own(number));
            std::fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
            std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
            if number == 0 {
                tool(&["create-cluster", "test.db", "../test.ovsschema", &inner(0)], &dir);
            } else {
                tool(&["join-cluster", "test.db", "Test", &inner(number), &inner(0)], &dir);
            }
            cluster.members.push(Member { dir, address: SocketAddr::new(own(number), CLIENTS), child: None });
            cluster.members[number].up();
            cluster.members[number].join();
        }
        cluster
    }

    pub(crate) fn remotes(&self) -> Vec<Remote> {
        self.members.iter().map(|member| Remote::Ssl(member.address)).collect()
    }

    pub(crate) fn options(&self) -> Options {
        Options { tls: Some(self.authority.client(Some(&self.authority))), ..Options::default() }
    }

    pub(crate) async fn connect(&self, member: usize) -> Connection {
        let remote = Remote::Ssl(self.members[member].address);
        Connection::open(&remote, &self.options()).await.unwrap().0
    }

    /// The member that listens there.
    pub(crate) fn at(&mut self, remote: &Remote) -> &mut Member {
        self.members.iter_mut().find(|member| Remote::Ssl(member.address) == *remote).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.members.iter_mut().for_each(Member::kill);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Member {
    pub(crate) fn up(&mut self) {
        let child = Command::new("ovsdb-server")
            .args(["test.db", "--no-chdir", "--unixctl=ctl", "-vconsole:off"])
            .arg(format!("--remote=pssl:{}:{}", self.address.port(), self.address.ip()))
            .args(["--private-key=key.pem", "--certificate=cert.pem", "--ca-cert=../ca.pem"])
            .env("OVS_RUNDIR", &self.dir)
            .current_dir(&self.dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ovsdb-server must be installed");
        self.child = Some(child);
        let deadline = Instant::now() + crate::LIMIT;
        while std::net::TcpStream::connect(self.address).is_err() {
            assert!(Instant::now() < deadline, "ovsdb-server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it is one of the cluster: before, it does not count for a majority.
    fn join(&self) {
        let mut wait = Command::new("ovsdb-client");
        wait.args(["--timeout=60", "--private-key=key.pem", "--certificate=cert.pem", "--ca-cert=../ca.pem"]);
        wait.args(["wait", &format!("ssl:{}", self.address), "Test", "connected"]);
        let ran = wait.current_dir(&self.dir).output().expect("ovsdb-client must be installed");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
