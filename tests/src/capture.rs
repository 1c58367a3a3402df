//! Captures: `tcpdump` into a file, and a reader of that file that lets tests count frames.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::frame::View;
use crate::net::Netns;
use crate::process::{Process, wait_for};
use crate::scenario::Lab;

/// The bound for tcpdump to catch up with the kernel.
const DRAIN: Duration = Duration::from_secs(10);

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Starts to capture on an interface, with a filter in tcpdump's language (may be empty), and returns when
    /// tcpdump listens. Keeps the first 256 bytes of each frame. Not for `lo`, where tcpdump counts each twice.
    pub fn start(lab: &Lab, ns: &Netns, interface: &str, filter: &str) -> Result<Self> {
        // Files of its own: what an earlier capture of the same interface wrote must not be taken for this one's.
        let name = format!("{}-{interface}-{}", ns.name(), lab.next_id());
        let file = lab.work().join(format!("{name}.pcap"));
        let log = lab.results().join(format!("{name}-tcpdump.log"));
        let mut command = ns.command("tcpdump");
        // -Z root: it may not become another user, who could not write here. -B: KiB of the kernel's buffer.
        command
            .args(["-Z", "root", "-n", "-U", "--immediate-mode", "-s", "256", "-B", "8192"])
            .args(["-i", interface, "-w"])
            .arg(&file);
        if !filter.is_empty() {
            command.arg(filter);
        }
        let mut process = Process::spawn(&format!("tcpdump on {interface}"), &mut command, &log)?;
        process.wait_for_log("listening on", Duration::from_secs(10))?;
        Ok(Self { process, file })
    }

    /// Ends the capture and reads it. Frames that tcpdump had to drop are an error: a count would lie.
    pub fn stop(mut self) -> Result<Vec<Frame>> {
        // What still waits in the kernel when tcpdump ends is lost, so it is asked until it has taken everything.
        let statistics = wait_for("tcpdump to take what was captured", DRAIN, || {
            self.process.signal(Signal::SIGUSR1)?;
            Ok(statistics(&self.process.log()).filter(|[captured, received, _]| captured >= received))
        })?;
        let [_, _, dropped] = statistics;
        ensure!(dropped == 0, "tcpdump did not see {dropped} frames");
        self.process.stop()?;
        let bytes = std::fs::read(&self.file)
            .with_context(|| format!("cannot read the capture {}", self.file.display()))?;
        read(&bytes)
    }
}

/// The last statistics in tcpdump's log, as it writes them on SIGUSR1: frames captured, received by the filter,
/// dropped by the kernel.
fn statistics(log: &str) -> Option<[u64; 3]> {
    let line =
        log.lines().rev().find(|line| line.contains("captured,") && line.contains("dropped by kernel"))?;
    let mut numbers = line.split([' ', ',']).filter_map(|word| word.parse().ok());
    Some([numbers.next()?, numbers.next()?, numbers.next()?])
}

/// One captured frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Time of the capture, by the lab's clock, since 1970.
    pub at: Duration,
    /// Length on the wire, in bytes; `bytes` may hold fewer.
    pub wire_len: u32,
    /// The frame from its destination MAC on.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// A look into it.
    pub fn view(&self) -> View<'_> {
        View(&self.bytes)
    }
}

/// Frames that satisfy a predicate.
pub fn count(frames: &[Frame], predicate: impl Fn(View<'_>) -> bool) -> usize {
    frames.iter().filter(|frame| predicate(frame.view())).count()
}

/// Reads a pcap file (microseconds, this machine's byte order, Ethernet: what tcpdump writes). A last record cut
/// short is an error.
pub fn read(bytes: &[u8]) -> Result<Vec<Frame>> {
    // pcap-savefile(5): magic, version 2+2, two zero words, snaplen, link type.
    let magic = u32_at(bytes, 0).context("the capture has no header")?;
    ensure!(magic == 0xa1b2_c3d4, "the capture's magic is {magic:#x}, not 0xa1b2c3d4");
    let link = u32_at(bytes, 20).context("the capture's header is cut short")?;
    ensure!(link & 0xffff == 1, "the capture's link type is {link}, not 1 (Ethernet)");
    let mut frames = Vec::new();
    let mut at = 24;
    while at < bytes.len() {
        let header =
            (u32_at(bytes, at), u32_at(bytes, at + 4), u32_at(bytes, at + 8), u32_at(bytes, at + 12));
        let (Some(seconds), Some(micros), Some(len), Some(wire_len)) = header else {
            bail!("a record's header at byte {at} is cut short");
        };
        at += 16;
        let end = at.saturating_add(usize::try_from(len)?);
        let data = bytes.get(at..end).with_context(|| format!("a record at byte {at} is cut short"))?;
        frames.push(Frame {
            at: Duration::from_secs(seconds.into()) + Duration::from_micros(micros.into()),
            wire_len,
            bytes: data.to_vec(),
        });
        at = end;
    }
    Ok(frames)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(records: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 256, 1] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        for record in records {
            let len = u32::try_from(record.len()).unwrap();
            for word in [5, 6, len, len + 100] {
                bytes.extend_from_slice(&word.to_ne_bytes());
            }
            bytes.extend_from_slice(record);
        }
        bytes
    }

    #[test]
    fn statistics_are_read() {
        let log = "listening on eth0\ntcpdump: 0 packets captured, 3 packets received by filter, 0 packets dropped by kernel\n\
            tcpdump: 3 packets captured, 4 packets received by filter, 1 packet dropped by kernel\n";
        assert_eq!(statistics(log), Some([3, 4, 1]));
        assert_eq!(statistics("listening on eth0"), None);
    }

    #[test]
    fn records_are_read() {
        let frames = read(&file(&[b"first", b"second"])).unwrap();
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0].at, Duration::from_micros(5_000_006));
        assert_eq!((frames[1].bytes.as_slice(), frames[1].wire_len), (b"second".as_slice(), 106));
        assert_eq!(count(&frames, |view| view.contains(b"sec")), 1);
    }

    #[test]
    fn every_cut_is_noticed() {
        let whole = file(&[b"first"]);
        for len in 0..whole.len() {
            // Exactly the header is an empty capture.
            assert_eq!(read(&whole[..len]).is_ok(), len == 24, "cut at {len}");
        }
    }
}
