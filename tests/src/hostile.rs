//! A client of the host daemon that says what no honest one would. Its sockets are opened inside a namespace; it
//! shows any certificate, and any bytes.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{BufMut as _, BytesMut};
use nix::net::if_::if_nametoindex;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use xenflow_proto::control::{HOST_IPV4, HOST_IPV6, PORT};
use xenflow_proto::frame::MAX_FRAME;
use xenflow_proto::message::{Hello, VERSION};
use xenflow_proto::{FrameDecoder, GuestMessage, HostMessage};

use crate::net::Netns;
use crate::virtual_router::CONTROL;

const TIMEOUT: Duration = Duration::from_secs(5);

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Pair {
    /// `NAME.pem` and `NAME.key` of a directory.
    pub fn read(dir: &Path, name: &str) -> Result<Self> {
        let file = |end: &str| std::fs::read(dir.join(format!("{name}.{end}"))).context(end.to_owned());
        Ok(Self { cert: file("pem")?, key: file("key")? })
    }

    /// A certificate of the authority in `dir` for a router, valid from the first to the second year.
    pub fn issue(dir: &Path, router: &str, years: (i32, i32)) -> Result<Self> {
        let pem = |name: &str| std::fs::read_to_string(dir.join(name)).context(name.to_owned());
        let issuer = Issuer::from_ca_cert_pem(&pem("ca.pem")?, KeyPair::from_pem(&pem("ca.key")?)?)?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(format!("xenflow://router/{router}").try_into()?)];
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &issuer)?;
        Ok(Self { cert: cert.pem().into_bytes(), key: key.serialize_pem().into_bytes() })
    }
}

/// Connects to the host from a namespace's control interface, without a byte.
pub fn tcp(ns: &Netns) -> Result<TcpStream> {
    ns.enter(|| {
        let address = SocketAddrV6::new(HOST_IPV6, PORT, 0, if_nametoindex(CONTROL)?);
        connect(address.into())
    })
}

/// The same by IPv4.
pub fn tcp4(ns: &Netns) -> Result<TcpStream> {
    ns.enter(|| connect((HOST_IPV4, PORT).into()))
}

/// Whether a TCP connection to another guest's control address comes about.
pub fn reaches(ns: &Netns, guest: Ipv6Addr, port: u16) -> Result<bool> {
    ns.enter(|| {
        let address = SocketAddrV6::new(guest, port, 0, if_nametoindex(CONTROL)?);
        Ok(TcpStream::connect_timeout(&address.into(), Duration::from_millis(500)).is_ok())
    })
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT).context("cannot connect to the host")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// A connection with TLS.
pub struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
    decoder: FrameDecoder,
}

impl Client {
    /// Does the handshake, with this pair, or none. In TLS 1.3 it ends before the host has looked at the pair.
    pub fn open(mut tcp: TcpStream, ca: &Path, pair: Option<&Pair>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca)?)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots);
        let config = match pair {
            None => builder.with_no_client_auth(),
            Some(Pair { cert, key }) => builder.with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(cert)?],
                PrivateKeyDer::from_pem_slice(key)?,
            )?,
        };
        let host: IpAddr = tcp.peer_addr()?.ip();
        let mut tls = ClientConnection::new(Arc::new(config), host.into())?;
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp).context("in the handshake")?;
        }
        Ok(Self { stream: StreamOwned::new(tls, tcp), decoder: FrameDecoder::new(MAX_FRAME) })
    }

    /// Sends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)?;
        Ok(self.stream.flush()?)
    }

    /// Sends the length of a frame and then `body`, be it as long or not.
    pub fn frame(&mut self, len: usize, body: &[u8]) -> Result<()> {
        let mut out = BytesMut::new();
        out.put_u32(u32::try_from(len)?);
        out.put_slice(body);
        self.bytes(&out)
    }

    /// Sends a message.
    pub fn say(&mut self, message: &GuestMessage) -> Result<()> {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        self.bytes(&out)
    }

    /// The next message of the host.
    pub fn hear(&mut self) -> Result<HostMessage> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(HostMessage::decode(frame)?);
            }
            let mut bytes = [0; 4096];
            let read = self.stream.read(&mut bytes).context("while waiting for the host")?;
            if read == 0 {
                bail!("the host closed the connection without a word");
            }
            self.decoder.buffer().put_slice(bytes.get(..read).unwrap_or_default());
        }
    }

    /// Says hello and waits for the welcome.
    pub fn welcome(&mut self, router: &str) -> Result<()> {
        self.say(&hello(router, VERSION)?)?;
        match self.hear()? {
            HostMessage::Welcome(_) => Ok(()),
            other @ (HostMessage::Ack { .. }
            | HostMessage::Refusal { .. }
            | HostMessage::Ping(_)
            | HostMessage::Pong(_)
            | HostMessage::InUse(_)
            | HostMessage::Renewed(_)) => bail!("no welcome but {other:?}"),
        }
    }

    /// Ends the connection in order.
    pub fn close(mut self) -> Result<()> {
        self.stream.conn.send_close_notify();
        Ok(self.stream.flush()?)
    }
}

/// A hello for a router, with one protocol version.
pub fn hello(router: &str, version: u32) -> Result<GuestMessage> {
    let hello =
        Hello { versions: vec![version], router: router.parse()?, boot_id: [7; 16], agent: "hostile".into() };
    Ok(GuestMessage::Hello(hello))
}

/// The first flight of a client that speaks TLS 1.2 and nothing later (RFC 5246 7.4.1.2).
pub fn tls12_hello() -> Vec<u8> {
    let mut hello = vec![3, 3];
    hello.extend([0x5a; 32]);
    // No session; TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256; no compression.
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    // Extensions: supported_groups secp256r1, ec_point_formats uncompressed, signature_algorithms
    // ecdsa_secp256r1_sha256.
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 4, 0, 2, 4, 3];
    hello.extend([0, extensions.len() as u8]);
    hello.extend(extensions);
    let len = hello.len() as u8;
    // Record: handshake, version, length; then client_hello and its length.
    let mut record = vec![22, 3, 1, 0, len + 4, 1, 0, 0, len];
    record.extend(hello);
    record
}
