//! The connection to the host: how it is made, and what ends it. The driver decides when, [`crate::control`] where.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use xenflow_proto::frame::MAX_HELLO;
use xenflow_proto::message::Hello;
use xenflow_proto::table::{IfIndex, Link};
use xenflow_proto::{FrameDecoder, FrameError, MacAddr, Name};

use crate::config::Config;
use crate::control::source;
use crate::session::{Session, SessionError};
use crate::tls;

/// A connection that is not made and authenticated by then is tried anew.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Interfaces that are asked side by side; further ones follow as these answer or do not.
const SIDE_BY_SIDE: usize = 16;
/// How long a place that is [`Place::late`] waits for the others. A node that is asked directly shows its certificate
/// sooner.
const HEAD_START: Duration = Duration::from_millis(300);
/// Failures that are told of one search.
const TOLD: usize = 4;

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
    #[error("connection cut off by the host")]
    Cut,
    #[error("nudged by a host that does not know of the session")]
    Nudged,
    #[error("connection")]
    Io(#[source] io::Error),
    #[error("{device} has not the address {from}, the only one that the host answers")]
    NoAddress { device: String, from: IpAddr },
    #[error("connecting to {to} at {device}")]
    Connect { to: IpAddr, device: String, source: io::Error },
    #[error("TLS with {to} at {device}")]
    Handshake { to: IpAddr, device: String, source: io::Error },
    #[error("no answer from {to} at {device} within {CONNECT_TIMEOUT:?}")]
    Timeout { to: IpAddr, device: String },
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    #[error("the certificate of the host counts no more: {0}")]
    Distrusted(tls::InWords),
    #[error("the interface of the session is gone")]
    InterfaceGone,
    #[error("interface {0} is not there")]
    NoInterface(String),
    #[error("interface {0} is not up")]
    InterfaceDown(String),
    #[error("interface {0} has no MAC address of six bytes")]
    NoMac(String),
    #[error("no interface that may be the control network's is up{}", list("; down or without carrier: ", .0))]
    NoCandidate(Vec<String>),
    #[error("no host at any interface: {}", .0.join("; "))]
    Nowhere(Vec<String>),
}

fn list(before: &str, names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("{before}{}", names.join(", ")) }
}

impl LinkError {
    /// The connection failed while it was read. Without a word of TLS, the other end is gone.
    pub(crate) fn read(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Cut } else { Self::Io(error) }
    }

    /// The other end went away from under a session, as it does when this guest was moved: the next host is
    /// there already.
    pub(crate) fn is_reset(&self) -> bool {
        matches!(self, Self::Closed | Self::Cut | Self::Nudged | Self::InterfaceGone)
            || matches!(self, Self::Io(e) if matches!(e.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe))
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
    /// What the host showed.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// When it did.
    pub(crate) shown: UnixTime,
    /// When the host took the session.
    pub(crate) up_since: Option<Duration>,
}

impl Connection {
    /// Of a stream just made.
    pub(crate) fn new(stream: Stream, hello: Hello, time: Duration) -> Self {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let (reader, writer) = tokio::io::split(stream);
        Self {
            session: Session::new(time, hello),
            reader,
            writer,
            decoder: FrameDecoder::new(MAX_HELLO),
            out: BytesMut::new(),
            unflushed: false,
            node: None,
            chain,
            shown: UnixTime::now(),
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

/// An interface to connect by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) ifindex: IfIndex,
    pub(crate) name: String,
    pub(crate) mac: MacAddr,
    /// Gives the others [`HEAD_START`].
    pub(crate) late: bool,
}

impl Place {
    /// The link of this name, if a connection may be made by it.
    pub(crate) fn named(name: &str, link: Option<&Link>) -> Result<Self, LinkError> {
        let link = link.ok_or_else(|| LinkError::NoInterface(name.to_owned()))?;
        if !link.up {
            return Err(LinkError::InterfaceDown(name.to_owned()));
        }
        let mac = link.mac.ok_or_else(|| LinkError::NoMac(name.to_owned()))?;
        Ok(Self { ifindex: link.ifindex, name: name.to_owned(), mac, late: false })
    }
}

/// A stream to a node of the authority, and where it was found.
pub(crate) type Found = (Stream, Place);

/// Starts to connect: at all of these places, and the first with a node wins.
///
/// # Errors
/// The credentials cannot be used.
pub(crate) fn attempt(
    config: &Config,
    trust: tls::Trust,
    places: Vec<Place>,
) -> Result<JoinHandle<Result<Found, LinkError>>, LinkError> {
    // Read anew each time: certificates are renewed under a running client.
    let credentials = Arc::new(tls::client_config(config, trust)?);
    let (host, port) = (config.host, config.port);
    Ok(tokio::spawn(async move {
        let mut left = places.into_iter();
        // Dropped with what still runs in it.
        let mut running = JoinSet::new();
        let mut failed = Vec::new();
        loop {
            while running.len() < SIDE_BY_SIDE
                && let Some(place) = left.next()
            {
                let credentials = Arc::clone(&credentials);
                running.spawn(async move {
                    let stream = at(&place, host, port, credentials).await;
                    (stream, place)
                });
            }
            match running.join_next().await {
                Some(Ok((Ok(stream), place))) => return Ok((stream, place)),
                Some(Ok((Err(error), place))) => failed.push((place.ifindex, error)),
                Some(Err(error)) => return Err(LinkError::Io(io::Error::other(error))),
                None => return Err(together(failed)),
            }
        }
    }))
}

/// One error out of many; the same ones always give the same text.
fn together(mut failed: Vec<(IfIndex, LinkError)>) -> LinkError {
    failed.sort_by_key(|(ifindex, _)| *ifindex);
    if failed.len() == 1
        && let Some((_, error)) = failed.pop()
    {
        return error;
    }
    let mut texts: Vec<String> = failed.iter().take(TOLD).map(|(_, error)| chain(error)).collect();
    if let more @ 1.. = failed.len().saturating_sub(TOLD) {
        texts.push(format!("and {more} more"));
    }
    LinkError::Nowhere(texts)
}

/// Connects at one place, from the one source address that the host's switch lets through.
async fn at(
    place: &Place,
    host: IpAddr,
    port: u16,
    credentials: Arc<rustls::ClientConfig>,
) -> Result<Stream, LinkError> {
    let Place { ifindex, name: device, mac, late } = place;
    let from = source(host, *mac);
    let scoped = |address, port| match address {
        IpAddr::V6(v6) => SocketAddr::from(SocketAddrV6::new(v6, port, 0, *ifindex)),
        IpAddr::V4(v4) => (v4, port).into(),
    };
    if *late {
        tokio::time::sleep(HEAD_START).await;
    }
    let connect = async {
        let connect = |source| LinkError::Connect { to: host, device: device.clone(), source };
        let socket = if host.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() };
        let socket = socket.map_err(connect)?;
        if host.is_ipv4() {
            // Any interface may have a route to 169.254.0.0/16.
            socket.bind_device(Some(device.as_bytes())).map_err(connect)?;
        }
        socket.bind(scoped(from, 0)).map_err(|error| {
            if error.kind() == io::ErrorKind::AddrNotAvailable {
                return LinkError::NoAddress { device: device.clone(), from };
            }
            connect(error)
        })?;
        let tcp = socket.connect(scoped(host, port)).await.map_err(connect)?;
        tcp.set_nodelay(true).map_err(connect)?;
        // An address sends no server name; the host is known by the URI in its certificate.
        let name = rustls_pki_types::ServerName::IpAddress(host.into());
        let stream = TlsConnector::from(credentials).connect(name, tcp).await;
        stream.map_err(|source| LinkError::Handshake {
            to: host,
            device: device.clone(),
            source: tls::in_words(source),
        })
    };
    let timeout = || LinkError::Timeout { to: host, device: device.clone() };
    tokio::time::timeout(CONNECT_TIMEOUT, connect).await.unwrap_or_else(|_| Err(timeout()))
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
