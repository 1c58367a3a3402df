//! The one-way delay of small packets, a hundred a second.
//!
//! Both ends are on one machine, so on one clock: the sender writes it into the packet, the kernel notes it when the
//! packet arrives, so that a reader who has to wait for the processor changes nothing.

use std::io::IoSliceMut;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

use crate::net::Netns;

/// Between two packets.
const EVERY: Duration = Duration::from_millis(10);
/// After the last one.
const DRAIN: Duration = Duration::from_millis(500);

/// Delays in ms, sorted. A packet that has not arrived counts for as long as all took.
pub fn measure(from: &Netns, to: &Netns, address: SocketAddrV4, time: Duration) -> Result<Vec<f64>> {
    let receiver = to.enter(|| {
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        Ok(socket)
    })?;
    let sender = from.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(address)?;
        Ok(socket)
    })?;
    let is_over = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&is_over);
    let reader = std::thread::spawn(move || receive(&receiver, &flag));
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < time {
        sender.send(&nanoseconds(clock_gettime(ClockId::CLOCK_REALTIME)?).to_be_bytes())?;
        sent += 1;
        std::thread::sleep(EVERY);
    }
    std::thread::sleep(DRAIN);
    is_over.store(true, Ordering::Relaxed);
    let mut delays = reader.join().map_err(|_| anyhow!("the receiver panicked"))??;
    ensure!(!delays.is_empty(), "none of {sent} packets has arrived at {address}");
    delays.resize(sent.max(delays.len()), start.elapsed().as_secs_f64() * 1e3);
    delays.sort_by(f64::total_cmp);
    Ok(delays)
}

fn receive(socket: &UdpSocket, is_over: &AtomicBool) -> Result<Vec<f64>> {
    let mut delays = Vec::new();
    let mut buffer = [0; 64];
    let mut control = nix::cmsg_space!(TimeSpec);
    while !is_over.load(Ordering::Relaxed) {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty());
        let (arrived, length) = match message {
            Ok(message) => {
                let stamp = message.cmsgs()?.find_map(|control| {
                    let ControlMessageOwned::ScmTimestampns(at) = control else { return None };
                    Some(nanoseconds(at))
                });
                (stamp.context("the kernel has noted no time")?, message.bytes)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => return Err(error).context("cannot receive"),
        };
        let sent = buffer.get(..length).and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
        let sent = sent.context("a packet that is none of ours")?;
        delays.push(arrived.saturating_sub(sent) as f64 / 1e6);
    }
    Ok(delays)
}

fn nanoseconds(at: TimeSpec) -> u64 {
    Duration::from(at).as_nanos() as u64
}
