//! A guest's interfaces, what is at their other ends, and the client's settings.

use std::net::{SocketAddrV6, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rcgen::{
    CertificateRevocationListParams, ExtendedKeyUsagePurpose, Issuer, KeyIdMethod, KeyPair, RevokedCertParams,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use xenflow_proto::control;
use xenflow_proto::message::Renewed;

use super::{Ca, Client, ifindex, ip, until};

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
