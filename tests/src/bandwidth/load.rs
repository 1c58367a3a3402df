//! Senders as threads of the lab's own process: to begin or to change one costs no process.
//!
//! A sender is told what it wants, in bit/s of Ethernet frames, at any time. UDP is packets of 1472 bytes in batches,
//! each a frame by itself (no GSO), and it does not care whether they arrive; TCP is one connection, segmented as the
//! kernel likes.

use std::io::{IoSlice, Write as _};
use std::net::{SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, recv, sendmmsg, setsockopt, sockopt,
};

use crate::net::Netns;

/// As much as there is. UDP has to be told how much that is: [`OVERLOAD`].
pub const GREEDY: u64 = u64::MAX;
/// What a greedy sender of UDP sends, in bit/s: more than the link carries, but not so much more that the processor is
/// spent on what is dropped.
pub const OVERLOAD: u64 = 115_000_000;

/// UDP payload, and the frame around it: IPv4 and UDP headers, Ethernet without tag and checksum, as HTB counts.
const PAYLOAD: usize = 1472;
const FRAME: u64 = 1514;
/// A full TCP segment with timestamps; its frame is as long.
const SEGMENT: u64 = 1448;
/// The lab's kernel ticks at 100 Hz: a sender wakes so often, and sends what has come due.
const TICK: Duration = Duration::from_millis(10);
/// Packets per system call.
const BATCH: usize = 64;
/// What did not come to be sent within this time is not made up for.
const BEHIND: Duration = Duration::from_millis(100);
/// How long a connection's call may take before it looks whether it is to end.
const CALL: Duration = Duration::from_millis(200);
/// So much of a connection's data waits in the sender, so that one that stops wanting is idle soon.
const WAITING: usize = 256 << 10;

/// The protocol of a sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Without regard to what is lost.
    Udp,
    /// One connection, cubic.
    Tcp,
}

impl Kind {
    /// As people write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }

    /// Bytes of full frames that carried what an interface has received: `bytes` without Ethernet headers, in
    /// `packets`, each of which may be many segments (GSO).
    #[must_use]
    pub fn on_the_wire(self, bytes: u64, packets: u64) -> f64 {
        let (bytes, packets) = (bytes as f64, packets as f64);
        match self {
            Self::Udp => bytes + 14.0 * packets,
            // 52: IPv4 and TCP headers with timestamps, once for all segments of a packet.
            Self::Tcp => (bytes - 52.0 * packets).max(0.0) * FRAME as f64 / SEGMENT as f64,
        }
    }
}

/// A sender and its receiver; both end when dropped.
#[derive(Debug)]
pub struct Sender {
    wants: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
    /// Where UDP arrives. Nobody reads it: what came is counted before.
    _sink: Option<UdpSocket>,
}

impl Sender {
    /// Prepares to send from a namespace to an address of another, marked with a DSCP. It wants nothing yet.
    pub fn start(kind: Kind, from: &Netns, to: &Netns, address: SocketAddrV4, dscp: u8) -> Result<Self> {
        let (wants, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let sent = Arc::new(AtomicU64::new(0));
        let tos = i32::from(dscp << 2);
        let mut threads = Vec::new();
        let mut sink = None;
        let (told, stop) = (Arc::clone(&wants), Arc::clone(&ends));
        match kind {
            Kind::Udp => {
                sink = Some(to.enter(|| Ok(UdpSocket::bind(address)?))?);
                let socket = from.enter(|| {
                    let socket = UdpSocket::bind("0.0.0.0:0")?;
                    socket.connect(address)?;
                    // What waits in the switch's queue is the sender's: it is the queue that is to be full, not this.
                    setsockopt(&socket, sockopt::SndBufForce, &(16 << 20))?;
                    setsockopt(&socket, sockopt::Ipv4Tos, &tos)?;
                    Ok(socket)
                })?;
                let count = Arc::clone(&sent);
                threads.push(std::thread::spawn(move || udp(&socket, &told, &count, &stop)));
            }
            Kind::Tcp => {
                let listener = to.enter(|| Ok(TcpListener::bind(address)?))?;
                let connect = || {
                    let stream = TcpStream::connect_timeout(&address.into(), Duration::from_secs(10))?;
                    setsockopt(&stream, sockopt::SndBuf, &WAITING)?;
                    setsockopt(&stream, sockopt::Ipv4Tos, &tos)?;
                    stream.set_write_timeout(Some(CALL))?;
                    Ok(stream)
                };
                let stream = from.enter(connect).with_context(|| format!("cannot connect to {address}"))?;
                let (other, _) = listener.accept()?;
                other.set_read_timeout(Some(CALL))?;
                let also = Arc::clone(&ends);
                threads.push(std::thread::spawn(move || swallow(&other, &also)));
                threads.push(std::thread::spawn(move || tcp(stream, &told, &stop)));
            }
        }
        Ok(Self { wants, sent, ends, threads, _sink: sink })
    }

    /// From now on it wants so much: bit/s of frames, [`GREEDY`], or 0.
    pub fn want(&self, bps: u64) {
        self.wants.store(bps, Ordering::Relaxed);
    }

    /// Bytes of frames that a sender of UDP has sent: on a slow machine less than it wants. TCP: 0, as the link says how fast
    /// it sends.
    #[must_use]
    pub fn sent(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent)
    }

    /// An error if a thread of it has ended.
    pub fn check(&self) -> Result<()> {
        if self.threads.iter().any(JoinHandle::is_finished) {
            return Err(anyhow!("a sender has ended before its time"));
        }
        Ok(())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What has come due of a rate that may change.
struct Pace {
    last: Instant,
    bytes: f64,
}

impl Pace {
    fn new() -> Self {
        Self { last: Instant::now(), bytes: 0.0 }
    }

    /// Bytes that are due at so many bit/s since they were last asked for.
    fn due(&mut self, bps: u64) -> f64 {
        let now = Instant::now();
        let rate = bps as f64 / 8.0;
        self.bytes += rate * now.duration_since(self.last).as_secs_f64();
        self.last = now;
        self.bytes = self.bytes.min(rate * BEHIND.as_secs_f64());
        self.bytes
    }
}

fn udp(socket: &UdpSocket, wants: &AtomicU64, sent: &AtomicU64, ends: &AtomicBool) -> Result<()> {
    let payload = vec![0x51; PAYLOAD];
    let slices = vec![[IoSlice::new(&payload)]; BATCH];
    let nowhere = vec![None::<SockaddrStorage>; BATCH];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut pace = Pace::new();
    while !ends.load(Ordering::Relaxed) {
        let count = (pace.due(wants.load(Ordering::Relaxed).min(OVERLOAD)) / FRAME as f64) as usize;
        if count == 0 {
            std::thread::sleep(TICK);
            continue;
        }
        let count = count.min(BATCH);
        let no_control: [ControlMessage<'_>; 0] = [];
        let batch = slices.iter().take(count);
        sendmmsg(socket.as_raw_fd(), &mut headers, batch, &nowhere[..count], no_control, MsgFlags::empty())
            .context("cannot send")?;
        let bytes = count as u64 * FRAME;
        sent.fetch_add(bytes, Ordering::Relaxed);
        pace.bytes -= bytes as f64;
    }
    Ok(())
}

fn tcp(mut stream: TcpStream, wants: &AtomicU64, ends: &AtomicBool) -> Result<()> {
    let data = vec![0x51; 64 << 10];
    let mut pace = Pace::new();
    while !ends.load(Ordering::Relaxed) {
        let wanted = wants.load(Ordering::Relaxed);
        let due = match wanted {
            GREEDY => data.len(),
            bps => (pace.due(bps) * SEGMENT as f64 / FRAME as f64) as usize,
        };
        if due == 0 {
            std::thread::sleep(TICK);
            continue;
        }
        let sent = match stream.write(&data[..due.min(data.len())]) {
            Ok(sent) => sent,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error).context("cannot send"),
        };
        if wanted == GREEDY {
            pace = Pace::new();
        } else {
            pace.bytes -= sent as f64 * FRAME as f64 / SEGMENT as f64;
            if sent == due {
                std::thread::sleep(TICK);
            }
        }
    }
    Ok(())
}

/// Takes what comes without looking at it.
fn swallow(stream: &TcpStream, ends: &AtomicBool) -> Result<()> {
    let mut buffer = vec![0; 256 << 10];
    while !ends.load(Ordering::Relaxed) {
        // tcp(7): with MSG_TRUNC the data is dropped, not copied.
        match recv(stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
            Ok(0) => break,
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot receive"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_whole() {
        // A packet of 1472 bytes: 1500 after its Ethernet header.
        assert_eq!(Kind::Udp.on_the_wire(1500, 1), FRAME as f64);
        // Ten segments in one packet; ten in ten.
        assert_eq!(Kind::Tcp.on_the_wire(10 * SEGMENT + 52, 1), 10.0 * FRAME as f64);
        assert_eq!(Kind::Tcp.on_the_wire(10 * 1500, 10), 10.0 * FRAME as f64);
    }

    #[test]
    fn what_is_late_is_not_made_up_for() {
        let mut pace = Pace { last: Instant::now() - Duration::from_secs(5), bytes: 0.0 };
        assert_eq!(pace.due(8_000_000), 100_000.0);
    }
}
