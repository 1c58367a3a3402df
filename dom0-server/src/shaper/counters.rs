//! Counters of queues by OpenFlow, over a connection of their own: the core's is busy with bundles at times.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use openflow::action::port;
use openflow::{Config, Event as Said, Message, MultipartReply, MultipartRequest, QueueStats, Session};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use xenflow_qos::control::Sample;

/// All queues of a port (`OFPQ_ALL`).
const ALL_QUEUES: u32 = u32::MAX;
/// A switch that takes longer to answer has no samples this time.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the switch says nothing.
#[derive(Debug, thiserror::Error)]
pub enum CountersError {
    /// The connection.
    #[error("the switch's counters cannot be read")]
    Io(#[from] std::io::Error),
    /// The switch has closed it.
    #[error("the switch closed the connection")]
    Closed,
    /// It said something else.
    #[error("the conversation with the switch failed")]
    Session(#[from] openflow::SessionError),
    /// The question.
    #[error("a question cannot be sent")]
    Encode(#[from] openflow::EncodeError),
    /// It refuses to answer.
    #[error("the switch does not count queues: {0}")]
    Refused(String),
    /// It does not answer.
    #[error("the switch has not answered for {} s", PATIENCE.as_secs())]
    Late,
}

/// Samples by port and number of the queue.
pub type Samples = BTreeMap<u32, BTreeMap<u32, Sample>>;

/// See the module.
#[derive(Debug)]
pub struct Counters {
    socket: PathBuf,
    open: Option<(UnixStream, Session)>,
}

impl Counters {
    /// Of the switch behind `<bridge>.mgmt`.
    #[must_use]
    pub const fn new(socket: PathBuf) -> Self {
        Self { socket, open: None }
    }

    /// What all queues have counted. An error closes the connection; the next question opens another.
    ///
    /// # Errors
    /// [`CountersError`].
    pub async fn ask(&mut self) -> Result<Samples, CountersError> {
        let asked = tokio::time::timeout(PATIENCE, self.converse()).await;
        let answer = asked.unwrap_or(Err(CountersError::Late));
        if answer.is_err() {
            self.open = None;
        }
        answer
    }

    async fn converse(&mut self) -> Result<Samples, CountersError> {
        if self.open.is_none() {
            let stream = UnixStream::connect(&self.socket).await?;
            self.open = Some((stream, Session::new(Config::default(), Instant::now())));
        }
        let Some((stream, session)) = &mut self.open else { return Err(CountersError::Closed) };
        let question =
            || Message::MultipartRequest(MultipartRequest::QueueStats { port: port::ANY, queue: ALL_QUEUES });
        let mut asked = if session.is_up() { Some(session.send(&question())?) } else { None };
        let mut input = BytesMut::with_capacity(4096);
        let mut all = Vec::new();
        loop {
            while let Some(said) = session.poll_event() {
                #[expect(clippy::wildcard_enum_match_arm, reason = "a switch says more than is asked")]
                match said {
                    Said::Up(_) => asked = Some(session.send(&question())?),
                    Said::Multipart { xid, body: MultipartReply::QueueStats(stats), more }
                        if asked == Some(xid) =>
                    {
                        all.extend(stats);
                        if !more {
                            return Ok(samples(&all));
                        }
                    }
                    Said::Error { xid, error } if asked == Some(xid) => {
                        return Err(CountersError::Refused(error.to_string()));
                    }
                    _ => {}
                }
            }
            while let Some(output) = session.poll_transmit() {
                stream.write_all(&output).await?;
            }
            if stream.read_buf(&mut input).await? == 0 {
                return Err(CountersError::Closed);
            }
            session.handle_input(&input, Instant::now())?;
            input.clear();
        }
    }
}

fn samples(stats: &[QueueStats]) -> Samples {
    let mut all = Samples::new();
    for stats in stats {
        // All ones: it is not counted.
        let dropped = if stats.tx_errors == u64::MAX { 0 } else { stats.tx_errors };
        let sample = Sample { bytes: stats.tx_bytes, dropped, backlog: None };
        all.entry(stats.port).or_default().insert(stats.queue, sample);
    }
    all
}
