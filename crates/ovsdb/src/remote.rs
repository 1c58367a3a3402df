//! Where a server is: the `unix:`, `tcp:` and `ssl:` methods of ovsdb(7), and opening a stream to it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// Address of one server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remote {
    /// `unix:PATH`: a stream socket in the file system.
    Unix(PathBuf),
    /// `tcp:IP[:PORT]`: plain TCP; the port defaults to 6640.
    Tcp(SocketAddr),
    /// `ssl:IP[:PORT]`: TLS over TCP.
    Ssl(SocketAddr),
}

/// The port that IANA gave to OVSDB.
pub const DEFAULT_PORT: u16 = 6640;

/// Why a text names no remote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteParseError {
    /// Another method than the three known ones.
    #[error("remote '{text}' does not begin with unix:, tcp: or ssl:")]
    Method {
        /// The text.
        text: String,
    },
    /// `unix:` without a path.
    #[error("remote '{text}' has no path")]
    Path {
        /// The text.
        text: String,
    },
    /// No numeric address and port after the method.
    #[error("remote '{text}' is not METHOD:IP[:PORT] with a numeric IP address (IPv6 in brackets)")]
    Address {
        /// The text.
        text: String,
    },
    /// A list without any remote.
    #[error("the list of remotes is empty")]
    Empty,
}

impl FromStr for Remote {
    type Err = RemoteParseError;

    fn from_str(text: &str) -> Result<Self, RemoteParseError> {
        let owned = || text.to_owned();
        match text.split_once(':') {
            Some(("unix", "")) => Err(RemoteParseError::Path { text: owned() }),
            Some(("unix", path)) => Ok(Self::Unix(PathBuf::from(path))),
            Some((method @ ("tcp" | "ssl"), address)) => {
                let bare = address.trim_start_matches('[').trim_end_matches(']');
                let address = address
                    .parse()
                    .or_else(|_| bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DEFAULT_PORT)))
                    .map_err(|_| RemoteParseError::Address { text: owned() })?;
                Ok(if method == "tcp" { Self::Tcp(address) } else { Self::Ssl(address) })
            }
            _ => Err(RemoteParseError::Method { text: owned() }),
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Ssl(address) => write!(f, "ssl:{address}"),
        }
    }
}

impl Remote {
    /// Reads a comma-separated list, such as `ssl:10.0.0.1:6641,ssl:10.0.0.2:6641`.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, RemoteParseError> {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let remotes = items.map(str::parse).collect::<Result<Vec<_>, _>>()?;
        if remotes.is_empty() { Err(RemoteParseError::Empty) } else { Ok(remotes) }
    }
}

/// How to speak TLS with `ssl:` remotes.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

impl Tls {
    /// With these trust anchors and this certificate of the client. Sessions are not resumed, whatever `config` says:
    /// `ovsdb-server` checks certificates without a session id context, and OpenSSL then refuses each client that comes
    /// back with a ticket ("session id context uninitialized").
    pub fn new(mut config: ClientConfig) -> Self {
        config.resumption = Resumption::disabled();
        Self { config: Arc::new(config), server_name: None }
    }

    /// The name that the server's certificate must carry, in the place of the remote's IP address.
    #[must_use]
    pub fn server_name(self, name: ServerName<'static>) -> Self {
        Self { server_name: Some(name), ..self }
    }
}

/// Why no stream to a remote was opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The operating system or the TLS handshake refused.
    #[error("cannot connect to {remote}")]
    Io {
        /// The remote.
        remote: Remote,
        /// What failed.
        #[source]
        source: std::io::Error,
    },
    /// Not done in time.
    #[error("cannot connect to {remote} within {seconds} s")]
    Timeout {
        /// The remote.
        remote: Remote,
        /// The limit, in seconds.
        seconds: f64,
    },
    /// An `ssl:` remote, but [`Options::tls`](crate::Options::tls) is `None`.
    #[error("remote {remote} needs a TLS configuration and there is none")]
    NoTls {
        /// The remote.
        remote: Remote,
    },
}

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(crate) async fn open(remote: &Remote, tls: Option<&Tls>) -> Result<Box<dyn Io>, ConnectError> {
    let failed = |source| ConnectError::Io { remote: remote.clone(), source };
    let tcp = async |address| {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    match remote {
        Remote::Unix(path) => Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?)),
        Remote::Tcp(address) => Ok(Box::new(tcp(*address).await.map_err(failed)?)),
        Remote::Ssl(address) => {
            let tls = tls.ok_or_else(|| ConnectError::NoTls { remote: remote.clone() })?;
            let name = tls.server_name.clone().unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
            let stream = tcp(*address).await.map_err(failed)?;
            let stream =
                TlsConnector::from(tls.config.clone()).connect(name, stream).await.map_err(failed)?;
            Ok(Box::new(stream))
        }
    }
}
