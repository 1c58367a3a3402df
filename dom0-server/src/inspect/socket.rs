//! The control socket: accepts operators' programs on this host, reads their requests, hands the questions to the daemon's
//! loop and writes the answers back.
//!
//! Only who may write to the socket may ask: it is made with mode 0600, in a directory of mode 0700 where that is made with
//! it. A client has one question at a time in the daemon; one that does not read its answers is dropped, and so is one
//! that asks nothing.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Answer, Ask, MAX_REQUEST, Question, events, sla};
use crate::events::Events;
use crate::shaper::handle::Handle;

/// Clients at a time; one more is told so and closed.
pub const MAX_CLIENTS: usize = 16;
/// Questions that wait for the daemon's loop.
const ASKS: usize = 4;
/// A client takes an answer within this, or is dropped.
const WRITE: Duration = Duration::from_secs(5);
/// A client says something within this, or is dropped.
const IDLE: Duration = Duration::from_secs(120);
/// Between tries to accept when there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(200);

/// The socket, until it is dropped: then it is gone.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another daemon answers there.
    #[error("another daemon answers at {0}")]
    Taken(PathBuf),
    /// There is something else.
    #[error("{0} is there and no socket")]
    NoSocket(PathBuf),
    /// It cannot be made.
    #[error("cannot make {path}")]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Listens; the questions come by the receiver, but for those about what happened and how links are shared.
///
/// # Errors
/// [`ControlError`]: there is no socket, and nothing was changed but for the directory.
pub async fn open(
    path: &Path,
    happened: &Events,
    shaped: &Handle,
) -> Result<(Control, mpsc::Receiver<Ask>), ControlError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ControlError::Io { path, source }
    };
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed(dir))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => return Err(ControlError::NoSocket(path.to_owned())),
        // A socket that nobody listens on is one of a daemon that was killed.
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            return Err(ControlError::Taken(path.to_owned()));
        }
        Ok(_) | Err(_) => {}
    }
    // Made aside, so that nobody can connect to it before its mode is set.
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    let _ = std::fs::remove_file(&aside);
    let listener = UnixListener::bind(&aside).map_err(failed(&aside))?;
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600)).map_err(failed(&aside))?;
    std::fs::rename(&aside, path).map_err(failed(path))?;
    let (asks, questions) = mpsc::channel(ASKS);
    let task = tokio::spawn(accept(listener, asks, happened.clone(), shaped.clone()));
    Ok((Control { path: path.to_owned(), task }, questions))
}

async fn accept(listener: UnixListener, asks: mpsc::Sender<Ask>, happened: Events, shaped: Handle) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let dropped = Arc::new(AtomicU64::new(0));
    // Clients go when this task is aborted.
    let mut clients = tokio::task::JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the control socket does not accept");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            let full = Answer::Refused(format!("{MAX_CLIENTS} clients are being served already"));
            // There is room for a line in a new socket's buffer.
            let _ = timeout(PAUSE, stream.write_all(full.line().as_bytes())).await;
            continue;
        };
        let (asks, happened, shaped) = (asks.clone(), happened.clone(), shaped.clone());
        let dropped = Arc::clone(&dropped);
        clients.spawn(async move {
            if let Err(error) = serve(stream, &asks, &happened, &shaped).await {
                let dropped = dropped.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::info!(name: "client-dropped", %error, dropped, "a client of the control socket is dropped");
            }
            drop(place);
        });
    }
}

async fn serve(
    stream: UnixStream,
    asks: &mpsc::Sender<Ask>,
    happened: &Events,
    shaped: &Handle,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let idle = |_| io::Error::other("it asks nothing");
    while let Some(line) = timeout(IDLE, read(&mut reader, &mut line)).await.map_err(idle)?? {
        let answer = match Question::parse(line) {
            Ok(Question::Events(query)) => tokio::select! {
                biased;
                answer = events::answer(happened, &query) => answer,
                left = left(&mut reader) => return left,
            },
            Ok(Question::Sla(query)) => sla::answer(shaped, &query),
            Ok(Question::SlaHistory(query)) => sla::history(shaped, &query),
            Ok(question) => match ask(question, asks).await? {
                Answer::Trace(plan) => ask(Question::Traced(Box::new(plan.trace().await)), asks).await?,
                answer @ (Answer::Value(_) | Answer::Flows(_) | Answer::Refused(_)) => answer,
            },
            Err(error) => Answer::Refused(error.to_string()),
        };
        let written = timeout(WRITE, writer.write_all(answer.line().as_bytes())).await;
        written.map_err(|_| io::Error::other("it does not read what it asked for"))??;
    }
    Ok(())
}

/// The client is gone; whether it has said more does not matter.
async fn left(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<()> {
    if reader.fill_buf().await?.is_empty() { Ok(()) } else { std::future::pending().await }
}

async fn ask(question: Question, asks: &mpsc::Sender<Ask>) -> io::Result<Answer> {
    let (reply, answer) = oneshot::channel();
    let gone = || io::Error::other("the daemon ends");
    asks.send(Ask { question, reply }).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())
}

/// The next line without its end; none at the end of the stream.
async fn read<'a>(
    reader: &mut (impl AsyncBufRead + Unpin),
    line: &'a mut Vec<u8>,
) -> io::Result<Option<&'a [u8]>> {
    line.clear();
    let limit = MAX_REQUEST as u64 + 1;
    if reader.take(limit).read_until(b'\n', line).await? == 0 {
        return Ok(None);
    }
    if line.pop_if(|last| *last == b'\n').is_none() {
        let what = if line.len() > MAX_REQUEST { "a request is too long" } else { "half a request" };
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(Some(line))
}
