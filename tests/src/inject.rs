//! Raw frames onto an interface: what no honest IP stack would send.
//!
//! `lab inject` is the program that runs inside a namespace; [`inject`] starts it there.

use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

use crate::net::Netns;
use crate::process;
use crate::scenario::Lab;

/// Sends the frames given on standard input (one in hex per line), in turn.
#[derive(Debug, Args)]
pub struct InjectArgs {
    /// The interface.
    #[arg(long)]
    dev: String,
    /// How many frames in all.
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Frames per second; 0 is as fast as it goes.
    #[arg(long, default_value_t = 0)]
    rate: u32,
}

/// The program `lab inject`.
pub fn main(args: &InjectArgs) -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let frames = text.lines().map(unhex).collect::<Result<Vec<_>>>()?;
    ensure!(!frames.is_empty(), "there is no frame on standard input");
    let address = link_address(&args.dev)?;
    // Protocol 0: this socket receives nothing.
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .context("cannot open a packet socket")?;
    let start = Instant::now();
    for (number, frame) in (0..args.count).zip(frames.iter().cycle()) {
        if args.rate > 0 {
            let due = Duration::from_secs_f64(f64::from(number) / f64::from(args.rate));
            if let Some(early) = due.checked_sub(start.elapsed()) {
                std::thread::sleep(early);
            }
        }
        let sent = sendto(socket.as_raw_fd(), frame, &address, MsgFlags::empty())
            .with_context(|| format!("cannot send frame {number} on {}", args.dev))?;
        ensure!(sent == frame.len(), "only {sent} of {} bytes of frame {number} were sent", frame.len());
    }
    Ok(())
}

/// Sends `count` frames on an interface of a namespace, taking `frames` in turn, `rate` a second (0: no limit).
pub fn inject(lab: &Lab, ns: &Netns, dev: &str, frames: &[Vec<u8>], count: u32, rate: u32) -> Result<()> {
    let text: String = frames.iter().map(|frame| hex(frame) + "\n").collect();
    let mut command = ns.command(lab.binary());
    command.args(["inject", "--dev", dev, "--count", &count.to_string(), "--rate", &rate.to_string()]);
    process::output_with_input(&mut command, &text)?;
    Ok(())
}

/// The interface's address for packet sockets: its index is what counts.
pub(crate) fn link_address(dev: &str) -> Result<LinkAddr> {
    getifaddrs()?
        .filter(|entry| entry.interface_name == dev)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .with_context(|| format!("there is no interface {dev}"))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Result<Vec<u8>> {
    let text = text.trim();
    ensure!(text.is_ascii() && text.len().is_multiple_of(2), "{text:?} is not hex");
    (0..text.len())
        .step_by(2)
        .map(|at| {
            let pair = text.get(at..at + 2).unwrap_or_default();
            u8::from_str_radix(pair, 16).with_context(|| format!("{pair:?} is not hex"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_goes_both_ways() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&bytes)).unwrap(), bytes);
        assert!(unhex("0").is_err());
        assert!(unhex("0g").is_err());
    }
}
