//! Tells a routing daemon which of its routes the host forwards: the listener for zebra's `dplane_fpm_nl`.
//!
//! FRR's zebra connects, tells of every route that it has put into the kernel ([`wire`]), and takes back "offloaded" or
//! "failed" for each ([`table`]). With `zebra --asic-offload=notify_on_offload` and `bgp suppress-fib-pending`, BGP
//! then advertises what the host forwards, and nothing else.
//!
//! Routes are not taken from here: the kernel stays their source. It forwards what the host leaves to it, so
//! the two must have the same routes, and zebra knows neither those of other daemons and people nor neighbors, links
//! and addresses. What zebra says here only asks for an answer. As zebra tells the kernel first, what it says here is
//! known from the kernel once everything was read that the kernel has sent: whoever calls [`Fpm::answer`] sees to that.
//!
//! Nothing is said while nobody knows better: an end of the session with the host takes nothing back.

pub mod fuzz;
pub mod table;
pub mod wire;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, info, warn};

use crate::mirror::Mirror;
use crate::rejected::Rejected;
use crate::session::Acked;
use table::Table;
use wire::Decoder;

/// Bytes of answers that wait to be sent, beyond which no more are made: zebra is slower than the host.
const OUT_HIGH: usize = 64 << 10;
/// Zebra writes its first routes in pieces of this size at most.
const READ: usize = 64 << 10;
/// The pause after a connection that could not be accepted, as for want of file descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub struct Fpm {
    listener: Option<TcpListener>,
    zebra: Option<Zebra>,
    table: Table,
}

/// A connection.
#[derive(Debug)]
struct Zebra {
    stream: TcpStream,
    decoder: Decoder,
    out: BytesMut,
}

/// What came from outside.
enum Heard {
    Connection(TcpStream),
    Bytes(usize),
    Written,
    Nothing,
}

impl Fpm {
    /// Listens at a loopback address; with none, this does nothing at all.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn listen(address: Option<SocketAddr>) -> io::Result<Self> {
        let Some(address) = address else { return Ok(Self::default()) };
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let listener = Some(TcpListener::from_std(listener)?);
        Ok(Self { listener, ..Self::default() })
    }

    /// Takes in what zebra says, and sends what there is to be sent. Returns after each step; may be dropped at any
    /// time without losing anything.
    pub async fn heard(&mut self) {
        let Some(listener) = &self.listener else { return std::future::pending().await };
        let accept = async {
            match listener.accept().await {
                Ok((stream, _)) => Ok(Heard::Connection(stream)),
                Err(error) => {
                    debug!(%error, "zebra cannot connect");
                    tokio::time::sleep(PAUSE).await;
                    Ok(Heard::Nothing)
                }
            }
        };
        let heard = match &mut self.zebra {
            None => accept.await,
            Some(Zebra { stream, decoder, out }) => {
                let (mut reader, mut writer) = stream.split();
                let write = async {
                    match out.is_empty() {
                        true => std::future::pending().await,
                        false => writer.write_buf(out).await.map(|_| Heard::Written),
                    }
                };
                let buffer = decoder.buffer();
                buffer.reserve(READ);
                tokio::select! {
                    accepted = accept => accepted,
                    read = reader.read_buf(buffer) => read.map(Heard::Bytes),
                    written = write => written,
                }
            }
        };
        match heard {
            Ok(Heard::Connection(stream)) => self.connected(stream),
            Ok(Heard::Bytes(0)) => self.closed("it closed the connection"),
            Ok(Heard::Bytes(_)) => self.decode(),
            Ok(Heard::Written | Heard::Nothing) => {}
            Err(error) => self.closed(&error.to_string()),
        }
    }

    /// A zebra that comes tells everything from the start. An older one is gone, or as good as.
    fn connected(&mut self, stream: TcpStream) {
        info!("zebra wants to know which routes the host forwards");
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "zebra's connection");
        }
        self.table.clear();
        self.zebra = Some(Zebra { stream, decoder: Decoder::default(), out: BytesMut::new() });
    }

    fn closed(&mut self, why: &str) {
        if self.zebra.take().is_some() {
            info!(why, "zebra is gone");
        }
        self.table.clear();
    }

    fn decode(&mut self) {
        let Some(zebra) = &mut self.zebra else { return };
        if let Err(error) = self.table.hear(&mut zebra.decoder) {
            warn!(%error, "what speaks here is no zebra");
            self.closed("it was not understood");
        }
    }

    /// The host acknowledged something.
    pub fn acknowledged(&mut self, step: &Acked) {
        self.table.acknowledged(step);
    }

    /// There may be something to answer.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.table.is_due() && self.zebra.as_ref().is_some_and(|zebra| zebra.out.len() < OUT_HIGH)
    }

    /// Answers what can be answered. The mirror must have all that the kernel has sent so far, and both all that the
    /// host has acknowledged.
    pub fn answer(&mut self, mirror: &Mirror, rejected: &Rejected) {
        let Some(zebra) = &mut self.zebra else { return };
        while zebra.out.len() < OUT_HIGH {
            let Some(answer) = self.table.answer(mirror, rejected) else { break };
            answer.encode(&mut zebra.out);
        }
    }
}
