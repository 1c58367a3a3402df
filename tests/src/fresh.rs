//! First packets: echo requests, each to another address, and how long each takes to come back.
//!
//! `lab fresh` is the program that runs inside a namespace; [`Fresh`] starts and reads it there. It owns no topology:
//! that the addresses are fresh to the switch is the caller's part.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};

use crate::net::Netns;
use crate::scenario::Lab;

/// A reply that takes longer counts as lost.
const LIMIT: Duration = Duration::from_secs(1);
/// First bytes of the payload, before the number.
const MAGIC: [u8; 8] = *b"xf-fresh";

/// Sends echo requests, each to the next address, until standard input ends, then reports.
#[derive(Debug, Args)]
pub struct FreshArgs {
    /// The first address.
    #[arg(long)]
    first: Ipv4Addr,
    /// From one address to the next.
    #[arg(long)]
    step: u32,
    /// How many addresses; after the last comes the first.
    #[arg(long)]
    count: u32,
    /// Requests per second.
    #[arg(long)]
    rate: u32,
}

/// What became of first packets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FreshReport {
    /// Requests.
    pub sent: usize,
    /// Requests without a reply within a second.
    pub lost: usize,
    /// Round trips in ms, sorted.
    pub rtt_ms: Vec<f64>,
}

/// A running sender of first packets; ended when dropped.
#[derive(Debug)]
pub struct Fresh {
    child: Child,
}

impl Fresh {
    /// Starts to send from a namespace, `rate` requests a second, to `count` addresses `step` apart.
    pub fn start(
        lab: &Lab,
        ns: &Netns,
        (first, step, count): (Ipv4Addr, u32, u32),
        rate: u32,
    ) -> Result<Self> {
        let mut command = ns.command(lab.binary());
        command.args(["fresh", "--first", &first.to_string(), "--step", &step.to_string()]);
        command.args(["--count", &count.to_string(), "--rate", &rate.to_string()]);
        Ok(Self { child: command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()? })
    }

    /// Ends it, and waits for the last replies.
    pub fn stop(mut self) -> Result<FreshReport> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.child.stdout.take().context("no pipe")?.read_to_string(&mut text)?;
        serde_json::from_str(&text).with_context(|| format!("the sender of first packets said {text:?}"))
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program `lab fresh`.
pub fn main(args: &FreshArgs) -> Result<()> {
    ensure!(args.rate > 0 && args.count > 0, "rate and count must be at least 1");
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        flag.store(true, Ordering::Relaxed);
    });
    let report = run(args, &ended)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&report)?)?;
    Ok(())
}

fn run(args: &FreshArgs, ended: &AtomicBool) -> Result<FreshReport> {
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, Some(SockProtocol::Icmp))
        .context("cannot open a raw socket")?;
    let id = u16::try_from(std::process::id() & 0xffff)?;
    let gap = Duration::from_secs_f64(1.0 / f64::from(args.rate));
    let start = Instant::now();
    // When each was sent, and how long it took.
    let mut requests: Vec<(Instant, Option<Duration>)> = Vec::new();
    loop {
        let due = start + gap * u32::try_from(requests.len())?;
        let now = Instant::now();
        if ended.load(Ordering::Relaxed) {
            let open = |(sent, took): &(Instant, Option<Duration>)| {
                took.is_none() && now.saturating_duration_since(*sent) < LIMIT
            };
            if !requests.iter().any(open) {
                break;
            }
        } else if now >= due {
            let number = u32::try_from(requests.len())?;
            let to = Ipv4Addr::from(u32::from(args.first).wrapping_add(args.step * (number % args.count)));
            requests.push((now, None));
            let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
            // Refused by the kernel (no route): it counts as lost.
            let _ = sendto(socket.as_raw_fd(), &request(id, number), &to, MsgFlags::empty());
            continue;
        }
        let wait = due.saturating_duration_since(now).clamp(Duration::from_millis(1), LIMIT / 10);
        if let Some((number, at)) = reply(&socket, id, wait)?
            && let Some((sent, took @ None)) = requests.get_mut(number)
        {
            *took = Some(at.saturating_duration_since(*sent)).filter(|took| *took < LIMIT);
        }
    }
    let took = requests.iter().filter_map(|(_, took)| *took);
    let mut rtt_ms: Vec<f64> = took.map(|took| (took.as_secs_f64() * 1e6).round() / 1e3).collect();
    rtt_ms.sort_by(f64::total_cmp);
    Ok(FreshReport { sent: requests.len(), lost: requests.len() - rtt_ms.len(), rtt_ms })
}

/// An echo request (RFC 792).
fn request(id: u16, number: u32) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0];
    packet.extend_from_slice(&id.to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(&MAGIC);
    packet.extend_from_slice(&number.to_be_bytes());
    let sum = crate::frame::checksum(&packet).to_be_bytes();
    packet[2..4].copy_from_slice(&sum);
    packet
}

/// Waits for a reply: its number, and when it came.
fn reply(socket: &OwnedFd, id: u16, wait: Duration) -> Result<Option<(usize, Instant)>> {
    let wait = TimeVal::new(0, i64::try_from(wait.as_micros())?);
    setsockopt(socket, sockopt::ReceiveTimeout, &wait)?;
    let mut buffer = [0; 128];
    match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
        Ok(len) => {
            Ok(number_of(buffer.get(..len).unwrap_or_default(), id).map(|number| (number, Instant::now())))
        }
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(None),
        Err(error) => Err(error).context("cannot receive"),
    }
}

/// The number in an IPv4 packet with an echo reply to us.
fn number_of(packet: &[u8], id: u16) -> Option<usize> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let rest = packet.get(header..)?.strip_prefix(&[0, 0])?.get(2..)?.strip_prefix(&id.to_be_bytes())?;
    let number = rest.get(2..)?.strip_prefix(&MAGIC)?.get(..4)?;
    usize::try_from(u32::from_be_bytes(number.try_into().ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_told_from_requests_and_from_those_of_others() {
        let mut packet = vec![0x45; 20];
        packet.extend(request(7, 300));
        assert_eq!(number_of(&packet, 7), None);
        packet[20] = 0;
        assert_eq!(number_of(&packet, 7), Some(300));
        assert_eq!(number_of(&packet, 8), None);
        for len in 0..packet.len() {
            assert_eq!(number_of(&packet[..len], 7), None);
        }
        // RFC 1071: the sum over a correct packet is zero.
        assert_eq!(crate::frame::checksum(&request(7, 300)), 0);
    }
}
