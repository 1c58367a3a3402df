//! The status socket: JSON lines for people, tests and routing daemons. On connecting, one line with the state;
//! then one per acknowledgement and per change of state.

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use tokio::io::{AsyncWriteExt, BufWriter};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, watch};
use tracing::{debug, warn};

/// Lines that a reader may lag behind before it is cut off.
const BACKLOG: usize = 1024;
/// Most readers at a time.
const MAX_READERS: usize = 16;

/// The state of the client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct State {
    /// "starting", "down", "connecting", "syncing", "up".
    pub state: &'static str,
    /// The host, while there is a session.
    pub node: Option<String>,
    /// The interface on the control network, if it is known: configured, or that of the last session.
    pub interface: Option<String>,
    /// Why the last session or attempt ended, until the next is up.
    pub error: Option<String>,
    /// Last sequenced message sent.
    pub seq: u64,
    /// Last one that the switch confirmed.
    pub acked: u64,
    /// Routes in the kernel's tables.
    pub routes: usize,
    /// Valid neighbors.
    pub neighbors: usize,
    /// Keys whose state the host was not sent yet, a running snapshot apart.
    pub backlog: usize,
    /// The session goes on from what the host held, rather than from nothing.
    pub resumed: bool,
    /// Changes sent in this session.
    pub changes: u64,
    /// Keys that stay with the guest, up to [`crate::rejected::MAX_KEYS`].
    pub rejected: usize,
    /// The first [`crate::rejected::SHOWN`] of them, with the reasons.
    #[serde(serialize_with = "list")]
    pub rejections: Arc<[String]>,
    /// Complete dumps of the kernel's tables so far.
    pub dumps: u64,
    /// Keys that audits found otherwise than the kernel's events had told, and repaired. Should be 0.
    pub repaired: u64,
    /// Times that the kernel dropped events.
    pub overflows: u64,
    /// What the host must leave to this guest, and why: "eth1 IPv4: rp_filter is on (net.ipv4.conf.eth1.rp_filter =
    /// 2)".
    #[serde(serialize_with = "list")]
    pub obstacles: Arc<[String]>,
}

fn list<S: serde::Serializer>(lines: &Arc<[String]>, serializer: S) -> Result<S::Ok, S::Error> {
    lines.as_ref().serialize(serializer)
}

/// An acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AckLine {
    /// All up to this.
    pub acked: u64,
    /// `CLOCK_MONOTONIC` when it came.
    pub monotonic_ns: u64,
    /// `CLOCK_MONOTONIC` when the kernel told the oldest change in it; none if all were of a snapshot.
    pub queued_ns: Option<u64>,
    /// Changes in it.
    pub changes: usize,
    /// Keys that stay with the guest.
    pub rejected: usize,
}

/// The writing end, held by the driver.
#[derive(Debug)]
pub struct Status {
    state: watch::Sender<State>,
    lines: broadcast::Sender<String>,
}

impl Status {
    /// Listens at `path`, in place of a socket that a former run left there.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn listen(path: &Path) -> io::Result<Self> {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(io::Error::from(io::ErrorKind::AddrInUse)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        let (state, _) = watch::channel(State { state: "starting", ..State::default() });
        let (lines, _) = broadcast::channel(BACKLOG);
        let status = Self { state, lines };
        let (state, lines) = (status.state.subscribe(), status.lines.clone());
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) if lines.receiver_count() < MAX_READERS => {
                        tokio::spawn(serve(stream, state.clone(), lines.subscribe()));
                    }
                    Ok(_) => debug!("too many readers of the status"),
                    Err(error) => {
                        warn!(%error, "status socket");
                        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    }
                }
            }
        });
        Ok(status)
    }

    /// Renews the state; a line goes out if it is another one than before.
    pub fn update(&self, state: State) {
        let changed = {
            let before = self.state.borrow();
            (before.state, &before.node, &before.obstacles) != (state.state, &state.node, &state.obstacles)
        };
        if changed && self.lines.receiver_count() > 0 {
            self.send(&state);
        }
        self.state.send_if_modified(|current| {
            let differs = *current != state;
            *current = state;
            differs
        });
    }

    /// Tells of an acknowledgement.
    pub fn acked(&self, line: &AckLine) {
        if self.lines.receiver_count() > 0 {
            self.send(line);
        }
    }

    fn send(&self, value: &impl Serialize) {
        if let Ok(line) = serde_json::to_string(value) {
            // Nobody listening is no error.
            let _ = self.lines.send(line + "\n");
        }
    }
}

async fn serve(stream: UnixStream, state: watch::Receiver<State>, mut lines: broadcast::Receiver<String>) {
    let (mut reader, writer) = stream.into_split();
    let mut writer = BufWriter::new(writer);
    let mut line = serde_json::to_string(&*state.borrow()).unwrap_or_default() + "\n";
    let mut byte = [0];
    loop {
        let written = async {
            writer.write_all(line.as_bytes()).await?;
            writer.flush().await
        };
        if written.await.is_err() {
            return;
        }
        line = tokio::select! {
            next = lines.recv() => match next {
                Ok(line) => line,
                Err(_) => return,
            },
            // A reader says nothing; this tells that it went.
            _ = tokio::io::AsyncReadExt::read(&mut reader, &mut byte) => return,
        };
    }
}
