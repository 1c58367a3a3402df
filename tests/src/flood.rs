//! A flood: one frame again and again, some of its bytes random each time, in batches.
//!
//! `lab flood` is the program that runs inside a namespace; [`Flood`] starts and ends it there. What is flooded, and
//! why, is the caller's.

use std::io::{BufRead as _, IoSlice, Read as _, Write as _};
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::sys::socket::{
    AddressFamily, ControlMessage, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockType, sendmmsg, socket,
};
use serde::{Deserialize, Serialize};

use crate::frame::IPV4;
use crate::inject::{hex, link_address, unhex};
use crate::net::Netns;
use crate::oracle::random::Random;
use crate::scenario::Lab;

/// Frames per system call.
const BATCH: usize = 64;
/// The sender wakes this often and sends what has come due.
const TICK: Duration = Duration::from_millis(10);
/// The IPv4 header of an untagged frame, and the checksum in it.
const HEADER: Range<usize> = 14..34;
const CHECKSUM: Range<usize> = 24..26;

/// Sends the frame whose hex is the first line on standard input until standard input ends, then reports.
#[derive(Debug, Args)]
pub struct FloodArgs {
    /// The interface.
    #[arg(long)]
    dev: String,
    /// Frames per second; 0 is as fast as it goes.
    #[arg(long)]
    rate: u32,
    /// First byte and number of bytes that are random in each frame, as 30:4; may be repeated.
    #[arg(long, value_parser = range)]
    vary: Vec<Range<usize>>,
    /// Seed of what is random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// What a flood came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FloodReport {
    /// Frames that the kernel took.
    pub frames: u64,
    /// Batches that it refused in part.
    pub errors: u64,
    /// How long it lasted.
    pub seconds: f64,
}

/// A running flood; ended when dropped.
#[derive(Debug)]
pub struct Flood {
    child: Child,
}

impl Flood {
    /// Starts to send `frame` by an interface of a namespace, `rate` frames a second (0: no limit), with the bytes in
    /// `vary` random. An IPv4 header stays correct.
    pub fn start(
        lab: &Lab,
        ns: &Netns,
        dev: &str,
        frame: &[u8],
        vary: &[Range<usize>],
        rate: u32,
    ) -> Result<Self> {
        ensure!(
            vary.iter().all(|range| range.end <= frame.len()),
            "{vary:?} is not in {} bytes",
            frame.len()
        );
        // A guest's processor is not the host's: what measures goes first.
        let mut command: Command = ns.command("nice");
        command.args(["-n", "19"]).arg(lab.binary());
        command.args(["flood", "--dev", dev, "--rate", &rate.to_string(), "--seed", &lab.seed().to_string()]);
        for range in vary {
            command.args(["--vary", &format!("{}:{}", range.start, range.len())]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.as_mut().context("no pipe")?;
        writeln!(stdin, "{}", hex(frame))?;
        Ok(Self { child })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it.
    pub fn stop(mut self) -> Result<FloodReport> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.child.stdout.take().context("no pipe")?.read_to_string(&mut text)?;
        serde_json::from_str(&text).with_context(|| format!("the flood said {text:?}"))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn range(text: &str) -> Result<Range<usize>, String> {
    let parsed = text.split_once(':').and_then(|(at, len)| {
        let (at, len): (usize, usize) = (at.parse().ok()?, len.parse().ok()?);
        Some(at..at.checked_add(len)?)
    });
    parsed.ok_or_else(|| format!("{text:?} is not FIRST:COUNT"))
}

/// The program `lab flood`.
pub fn main(args: &FloodArgs) -> Result<()> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let frame = unhex(&line)?;
    let fits = args.vary.iter().all(|range| range.end <= frame.len());
    ensure!(fits && !frame.is_empty(), "a frame of {} bytes does not hold {:?}", frame.len(), args.vary);
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        flag.store(true, Ordering::Relaxed);
    });
    let report = send(args, frame, &ended)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&report)?)?;
    Ok(())
}

fn send(args: &FloodArgs, frame: Vec<u8>, ended: &AtomicBool) -> Result<FloodReport> {
    let address = link_address(&args.dev)?;
    // Protocol 0: this socket receives nothing.
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .context("cannot open a packet socket")?;
    let mut random = Random::new(args.seed, 3);
    let mut frames = vec![frame; BATCH];
    let addresses = vec![Some(address); BATCH];
    let mut headers = MultiHeaders::<LinkAddr>::preallocate(BATCH, None);
    let (mut sent, mut errors) = (0_u64, 0);
    let start = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        let due = match args.rate {
            0 => sent + BATCH as u64,
            rate => (start.elapsed().as_secs_f64() * f64::from(rate)) as u64,
        };
        // What could not be sent in time is not made up for.
        sent = sent.max(due.saturating_sub(u64::from(args.rate) / 10));
        while sent < due && !ended.load(Ordering::Relaxed) {
            let batch = usize::try_from(due - sent)?.min(BATCH);
            for frame in frames.iter_mut().take(batch) {
                vary(frame, &args.vary, &mut random);
            }
            let slices: Vec<[IoSlice<'_>; 1]> =
                frames.iter().take(batch).map(|frame| [IoSlice::new(frame)]).collect();
            let no_control: [ControlMessage<'_>; 0] = [];
            let done = sendmmsg(
                socket.as_raw_fd(),
                &mut headers,
                slices.iter(),
                &addresses[..batch],
                no_control,
                MsgFlags::empty(),
            );
            let done = done.map_or(0, Iterator::count);
            errors += u64::from(done < batch);
            sent += batch as u64;
        }
        if args.rate > 0 {
            std::thread::sleep(TICK);
        }
    }
    Ok(FloodReport { frames: sent, errors, seconds: start.elapsed().as_secs_f64() })
}

/// Makes the bytes in `ranges` random, and an IPv4 header right again.
fn vary(frame: &mut [u8], ranges: &[Range<usize>], random: &mut Random) {
    for range in ranges {
        for chunk in frame.get_mut(range.clone()).unwrap_or_default().chunks_mut(8) {
            let bytes = random.bits().to_ne_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
    if frame.get(12..14) == Some(&IPV4.to_be_bytes())
        && let Some(checksum) = frame.get_mut(CHECKSUM)
    {
        checksum.fill(0);
        let sum = crate::frame::checksum(frame.get(HEADER).unwrap_or_default());
        if let Some(checksum) = frame.get_mut(CHECKSUM) {
            checksum.copy_from_slice(&sum.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;

    #[test]
    fn varied_frames_are_still_ipv4() {
        let packet = frame::udp4(([10, 1, 0, 66].into(), 1), ([11, 0, 0, 0].into(), 9), 64, b"x").unwrap();
        let original = frame::ethernet([2; 6], [4; 6], &[], frame::IPV4, &packet);
        let mut varied = original.clone();
        vary(&mut varied, &[31..34, 34..36], &mut Random::new(1, 1));
        assert_ne!(varied, original);
        assert_eq!((&varied[..24], varied[30]), (&original[..24], 11));
        // RFC 1071: the sum over a correct header is zero.
        assert_eq!(frame::checksum(&varied[HEADER]), 0);
    }

    #[test]
    fn ranges_are_read() {
        assert_eq!(range("30:4"), Ok(30..34));
        assert!(range("30").is_err() && range("x:1").is_err() && range("1:18446744073709551615").is_err());
    }
}
