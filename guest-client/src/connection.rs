//! The connection to the host: how it is made, and what ends it. The driver decides when.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use xenflow_proto::frame::MAX_HELLO;
use xenflow_proto::message::Hello;
use xenflow_proto::table::Link;
use xenflow_proto::{FrameDecoder, FrameError, Name, control};

use crate::config::Config;
use crate::session::{Session, SessionError};
use crate::tls;

/// A connection that is not made and authenticated by then is tried anew.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Why there is no session, or no more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("message from the host")]
    Decode(#[from] xenflow_proto::DecodeError),
    #[error("connection closed by the host")]
    Closed,
    #[error("nudged by a host that does not know of the session")]
    Nudged,
    #[error("connection")]
    Io(#[source] io::Error),
    #[error("connecting to {to}")]
    Connect { to: SocketAddr, source: io::Error },
    #[error("TLS with {to}")]
    Handshake { to: SocketAddr, source: io::Error },
    #[error("no answer from {0} within {CONNECT_TIMEOUT:?}")]
    Timeout(SocketAddr),
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    #[error("interface {0} is not there")]
    NoInterface(String),
    #[error("interface {0} is not up")]
    InterfaceDown(String),
    #[error("interface {0} has no MAC address of six bytes")]
    NoMac(String),
}

impl LinkError {
    /// The other end went away from under a session, as it does when this guest was moved: the next host is
    /// there already.
    pub(crate) fn is_reset(&self) -> bool {
        matches!(self, Self::Closed | Self::Nudged)
            || matches!(self, Self::Io(e) if matches!(e.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe))
    }
}

/// To the host.
pub(crate) type Stream = TlsStream<TcpStream>;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) session: Session,
    pub(crate) reader: ReadHalf<Stream>,
    pub(crate) writer: WriteHalf<Stream>,
    pub(crate) decoder: FrameDecoder,
    pub(crate) out: BytesMut,
    /// TLS may hold bytes back until it is flushed.
    pub(crate) unflushed: bool,
    pub(crate) node: Option<Name>,
    /// When the host took the session.
    pub(crate) up_since: Option<Duration>,
}

impl Connection {
    /// Of a stream just made.
    pub(crate) fn new(stream: Stream, hello: Hello, time: Duration) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            session: Session::new(time, hello),
            reader,
            writer,
            decoder: FrameDecoder::new(MAX_HELLO),
            out: BytesMut::new(),
            unflushed: false,
            node: None,
            up_since: None,
        }
    }
}

/// Writes, then flushes, then waits for ever. May be dropped at any time without losing bytes.
pub(crate) async fn write(
    writer: &mut WriteHalf<Stream>,
    out: &mut BytesMut,
    unflushed: &mut bool,
) -> io::Result<()> {
    if !out.is_empty() {
        *unflushed = true;
        writer.write_buf(out).await.map(|_| ())
    } else if *unflushed {
        writer.flush().await?;
        *unflushed = false;
        Ok(())
    } else {
        std::future::pending().await
    }
}

/// Starts to connect, from the one source address that the host's switch lets through.
pub(crate) fn attempt(
    config: &Config,
    link: Option<&Link>,
) -> Result<JoinHandle<Result<Stream, LinkError>>, LinkError> {
    let name = &config.control_interface;
    let link = link.ok_or_else(|| LinkError::NoInterface(name.clone()))?;
    if !link.up {
        return Err(LinkError::InterfaceDown(name.clone()));
    }
    let mac = link.mac.ok_or_else(|| LinkError::NoMac(name.clone()))?;
    // Read anew each time: certificates are renewed under a running client.
    let tls = tls::client_config(&config.ca, &config.cert, &config.key, &config.router)?;
    let (to, from): (SocketAddr, SocketAddr) = match config.host {
        IpAddr::V6(host) => (
            SocketAddrV6::new(host, config.port, 0, link.ifindex).into(),
            SocketAddrV6::new(control::guest_ipv6(mac), 0, 0, link.ifindex).into(),
        ),
        IpAddr::V4(host) => ((host, config.port).into(), (control::guest_ipv4(mac), 0).into()),
    };
    let device = name.clone();
    let connect = async move {
        let connect = |source| LinkError::Connect { to, source };
        let socket = if to.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }.map_err(connect)?;
        if to.is_ipv4() {
            // Any interface may have a route to 169.254.0.0/16.
            socket.bind_device(Some(device.as_bytes())).map_err(connect)?;
        }
        socket.bind(from).map_err(connect)?;
        let tcp = socket.connect(to).await.map_err(connect)?;
        tcp.set_nodelay(true).map_err(connect)?;
        // An address sends no server name; the host is known by the URI in its certificate.
        let name = rustls_pki_types::ServerName::IpAddress(to.ip().into());
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await;
        stream.map_err(|source| LinkError::Handshake { to, source: tls::in_words(source) })
    };
    Ok(tokio::spawn(async move {
        tokio::time::timeout(CONNECT_TIMEOUT, connect).await.unwrap_or(Err(LinkError::Timeout(to)))
    }))
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
