//! One end of a wire in this process: a packet socket of a namespace, to send frames as they are and to take what
//! came. No process is started for it, so that a scenario can afford thousands of exchanges.

use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, ControlMessage, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, bind,
    recvfrom, sendmmsg, setsockopt, socket, sockopt,
};

use crate::inject::link_address;
use crate::net::Netns;

/// Frames per system call.
const BATCH: usize = 64;
/// `PACKET_OUTGOING` of linux/if_packet.h: what the namespace itself sent.
const OUTGOING: u8 = 4;
/// What the kernel may keep until it is taken; a frame costs it about 2 KiB.
const BUFFER: usize = 64 << 20;
/// A paced sender wakes this often.
const TICK: Duration = Duration::from_millis(10);
/// If nothing at all came for so long, what is under way is taken for lost.
const LATE: Duration = Duration::from_secs(1);
/// For a call of [`Wire::send`] to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// One interface of a namespace.
#[derive(Debug)]
pub(super) struct Wire {
    socket: OwnedFd,
    address: LinkAddr,
}

impl Wire {
    /// Opens it: what comes in from now on waits until it is taken.
    pub(super) fn open(ns: &Netns, interface: &str) -> Result<Self> {
        ns.enter(|| {
            let address = link_address(interface)?;
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::EthAll,
            )
            .context("cannot open a packet socket")?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            bind(socket.as_raw_fd(), &address)?;
            let wire = Self { socket, address };
            // From before it was bound: from anywhere.
            wire.take()?;
            Ok(wire)
        })
        .with_context(|| format!("{interface} of {}", ns.name()))
    }

    /// Sends frames, as fast as it goes.
    pub(super) fn send(&self, frames: &[Vec<u8>]) -> Result<()> {
        let mut headers = MultiHeaders::<LinkAddr>::preallocate(BATCH, None);
        let addresses = [Some(self.address); BATCH];
        let start = Instant::now();
        for batch in frames.chunks(BATCH) {
            let mut rest = batch;
            while !rest.is_empty() {
                let slices: Vec<[IoSlice<'_>; 1]> = rest.iter().map(|frame| [IoSlice::new(frame)]).collect();
                let no_control: [ControlMessage<'_>; 0] = [];
                let addresses = &addresses[..rest.len()];
                let fd = self.socket.as_raw_fd();
                let done =
                    sendmmsg(fd, &mut headers, slices.iter(), addresses, no_control, MsgFlags::empty());
                match done.map(Iterator::count) {
                    Ok(done) => rest = rest.get(done..).unwrap_or_default(),
                    // Frames that wait for the switch fill the socket's buffer.
                    Err(nix::Error::EAGAIN | nix::Error::ENOBUFS) if start.elapsed() < PATIENCE => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(error) => return Err(error).context("cannot send frames"),
                }
            }
        }
        Ok(())
    }

    /// Sends frames, `rate` a second, and calls `meanwhile` between them.
    pub(super) fn pace(
        &self,
        frames: &[Vec<u8>],
        rate: u32,
        mut meanwhile: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        let mut sent = 0;
        while sent < frames.len() {
            let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as usize + 1;
            let due = due.min(frames.len());
            self.send(frames.get(sent..due).unwrap_or_default())?;
            sent = due.max(sent);
            meanwhile()?;
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// Sends frames as fast as they arrive, and waits for the last: so many are under way at most, and `missing` says how
    /// many of all have not come yet. Places are given anew only when nothing has come for [`LATE`]: a slow switch is not
    /// pressed.
    pub(super) fn window(
        &self,
        frames: &[Vec<u8>],
        most: usize,
        mut missing: impl FnMut() -> Result<usize>,
    ) -> Result<()> {
        let (mut rest, mut before, mut lost) = (frames, frames.len(), 0);
        let mut last = Instant::now();
        loop {
            let missing = missing()?;
            if missing < before {
                (before, last) = (missing, Instant::now());
            } else if last.elapsed() > LATE {
                (lost, last) = (missing - rest.len(), Instant::now());
                if rest.is_empty() {
                    return Ok(());
                }
            }
            if missing == 0 {
                return Ok(());
            }
            let under_way = (missing - rest.len()).saturating_sub(lost);
            let (now, later) = rest.split_at(most.saturating_sub(under_way).min(rest.len()));
            self.send(now)?;
            rest = later;
            std::thread::sleep(TICK);
        }
    }

    /// Takes what came in, without waiting.
    pub(super) fn take(&self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 65536];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((len, from)) => {
                    if from.is_some_and(|from| from.pkttype() != OUTGOING) {
                        frames.push(buffer.get(..len).unwrap_or_default().to_vec());
                    }
                }
                Err(nix::Error::EAGAIN) => return Ok(frames),
                Err(nix::Error::EINTR | nix::Error::ENETDOWN) => {}
                Err(error) => return Err(error).context("cannot receive frames"),
            }
        }
    }
}
