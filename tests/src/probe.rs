//! Numbered packets over UDP: which were lost, doubled or overtaken, and how long nothing came.
//!
//! A packet carries when it was handed to the kernel, and its receiver's kernel says when it came: both by the clock of the
//! lab's one kernel, so the difference is the delay of one way, without what the receiver's process waits for its turn.
//!
//! `lab probe send` and `lab probe recv` are the programs in the namespaces; [`Probe`] starts and reads them. They
//! send and receive in batches, because a system call inside the lab costs about ten times its normal price.

use std::io::{BufRead as _, BufReader, IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, Subcommand};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg,
    setsockopt, sockopt,
};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::net::Netns;
use crate::scenario::Lab;

/// First bytes of every probe packet; captures can look for them.
pub const MAGIC: [u8; 8] = *b"xf-probe";
/// Magic, stream id, number and time: the least a packet holds.
const HEADER: usize = 8 + 4 + 8 + 8;
/// The sender wakes this often (the lab's kernel ticks at 100 Hz) and sends what has come due.
const TICK: Duration = Duration::from_millis(10);
/// Packets per system call.
const BATCH: usize = 64;
/// Highest packet number the receiver keeps account of: an hour at 10,000 a second.
const MAX_PACKETS: u64 = 36_000_000;
/// So many events are kept.
const MAX_EVENTS: usize = 16;
/// A packet that was under way for longer is an event.
const LATE: Duration = Duration::from_millis(20);
/// How long a probe's first packet may take.
const FIRST: Duration = Duration::from_secs(20);
/// The receiver's silence that ends the drain after the sender has stopped.
const QUIET: Duration = Duration::from_millis(500);

/// The two ends of a probe.
#[derive(Debug, Subcommand)]
pub enum ProbeCommand {
    /// Sends numbered packets until standard input ends, then reports.
    Send(SendArgs),
    /// Receives until standard input has ended and nothing more comes, then reports.
    Recv(RecvArgs),
}

/// Options of the sender.
#[derive(Debug, Args)]
pub struct SendArgs {
    /// Where to: address:port.
    #[arg(long)]
    to: SocketAddr,
    /// Packets per second.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Number of the stream; the receiver refuses others.
    #[arg(long, default_value_t = 0)]
    stream: u32,
    /// Bytes of UDP payload.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Send the first packet alone, and the others once a byte came on standard input.
    #[arg(long)]
    first_alone: bool,
}

/// Options of the receiver.
#[derive(Debug, Args)]
pub struct RecvArgs {
    /// Where to listen: address:port.
    #[arg(long)]
    bind: SocketAddr,
    /// Number of the stream.
    #[arg(long, default_value_t = 0)]
    stream: u32,
}

/// What a program tells on standard output, one JSON line each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "tell", rename_all = "snake_case")]
enum Tell {
    /// The receiver listens.
    Listening,
    /// The receiver has got its first packet.
    First,
    /// The sender's report.
    Sent { packets: u64, errors: u64, seconds: f64 },
    /// The receiver's report.
    Got(Count),
}

/// The receiver's account.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Count {
    unique: u64,
    duplicated: u64,
    reordered: u64,
    foreign: u64,
    longest_gap_ms: f64,
    gap_end_ms: f64,
    longest_delay_ms: f64,
    longest_loss: u64,
    highest: Option<u64>,
    events: Vec<Event>,
}

/// Something that should not have been: a packet that came late, out of its order, or after others that are missing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The packet.
    pub number: u64,
    /// When it was sent: milliseconds since the Unix epoch.
    pub sent_ms: f64,
    /// How long it was under way, in ms.
    pub delay_ms: f64,
    /// The number that was the highest so far when it came.
    pub after: u64,
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Packets sent.
    pub sent: u64,
    /// Distinct packets received.
    pub received: u64,
    /// Packets that never came.
    pub lost: u64,
    /// Packets that came again.
    pub duplicated: u64,
    /// Packets that came after one with a higher number.
    pub reordered: u64,
    /// Packets of another stream or no stream at all that came to this receiver.
    pub foreign: u64,
    /// Sends the kernel refused (such as: no route); they count as lost.
    pub send_errors: u64,
    /// Longest time between two arrivals from the second packet on, in ms, within the sender's life.
    pub longest_gap_ms: f64,
    /// When the longest such time ended: milliseconds since the Unix epoch.
    pub gap_end_ms: f64,
    /// Longest time that a packet was under way, in ms; the first one, which goes alone, does not count.
    pub longest_delay_ms: f64,
    /// Longest run of lost numbers, in packets.
    pub longest_loss: u64,
    /// How long the sender sent all but its first packet, in seconds.
    pub seconds: f64,
    /// The first [`MAX_EVENTS`] packets that were late, out of order, or came after missing ones.
    pub events: Vec<Event>,
}

/// A running probe.
#[derive(Debug)]
pub struct Probe {
    sender: End,
    receiver: End,
}

impl Probe {
    /// Starts a probe from one namespace to an address of another, and returns when its first packet has arrived.
    ///
    /// `rate` packets a second follow that one. It is alone because Open vSwitch handles the first packets of a
    /// flow in a queue of its own: those that come once the flow is in the datapath overtake what still waits there.
    pub fn start(lab: &Lab, from: &Netns, to: &Netns, address: SocketAddr, rate: u32) -> Result<Self> {
        let from = from.command(lab.binary());
        Self::spawn(lab, from, to, address, &["--rate", &rate.to_string(), "--first-alone"])?.go_on()
    }

    /// As [`start`](Self::start), with two ends that wait for no other process of the lab, as those on other machines would not:
    /// what a packet is late by then is the network's, and so is what is lost.
    pub fn start_ahead(lab: &Lab, from: &Netns, to: &Netns, address: SocketAddr, rate: u32) -> Result<Self> {
        Self::prepare_ahead(lab, from, to, address, rate)?.go_on()
    }

    /// The same, with a sender that waits for [`go_on`](Self::go_on): at high rates no other one can be started meanwhile.
    pub fn prepare_ahead(
        lab: &Lab,
        from: &Netns,
        to: &Netns,
        address: SocketAddr,
        rate: u32,
    ) -> Result<Self> {
        let ahead = |ns: &Netns| {
            let mut command = ns.command("chrt");
            command.args(["--fifo", "1"]).arg(lab.binary());
            command
        };
        let rate = rate.to_string();
        Self::ends(ahead(from), ahead(to), address, lab.next_id(), &["--rate", &rate, "--first-alone"])
    }

    /// Starts a probe that sends at its full rate from the first packet, whether that arrives or not.
    pub fn start_at_once(
        lab: &Lab,
        from: &Netns,
        to: &Netns,
        address: SocketAddr,
        rate: u32,
    ) -> Result<Self> {
        Self::spawn(lab, from.command(lab.binary()), to, address, &["--rate", &rate.to_string()])
    }

    fn spawn(lab: &Lab, from: Command, to: &Netns, address: SocketAddr, options: &[&str]) -> Result<Self> {
        // Each probe its own number, so that one that strays into another is seen.
        let stream = lab.next_id();
        Self::ends(from, to.command(lab.binary()), address, stream, options)
    }

    /// As [`start`](Self::start), outside of the lab: the commands run its binary where the sender and the receiver are to be.
    pub fn between(from: Command, to: Command, address: SocketAddr, rate: u32, stream: u32) -> Result<Self> {
        Self::ends(from, to, address, stream, &["--rate", &rate.to_string(), "--first-alone"])?.go_on()
    }

    fn ends(
        mut from: Command,
        mut to: Command,
        address: SocketAddr,
        stream: u32,
        options: &[&str],
    ) -> Result<Self> {
        let (stream, address) = (stream.to_string(), address.to_string());
        to.args(["probe", "recv", "--bind", &address, "--stream", &stream]);
        let mut receiver = End::start(to)?;
        let began = receiver.next(Duration::from_secs(10))?;
        ensure!(began == Tell::Listening, "the probe's receiver began with {began:?}");
        from.args(["probe", "send", "--to", &address, "--stream", &stream]).args(options);
        let sender = End::start(from)?;
        Ok(Self { sender, receiver })
    }

    /// Lets the sender go on once its first packet has arrived.
    pub fn go_on(mut self) -> Result<Self> {
        let said = self.receiver.next(FIRST).context("while waiting for the probe's first packet")?;
        ensure!(said == Tell::First, "the probe's receiver said {said:?} before its first packet");
        let stdin = self.sender.stdin.as_mut().context("the probe's sender has no standard input")?;
        stdin.write_all(b"\n").context("cannot tell the probe's sender to go on")?;
        Ok(self)
    }

    /// Ends the sender, lets the receiver drain, and gives the report.
    pub fn stop(mut self) -> Result<ProbeReport> {
        self.sender.close();
        self.report()
    }

    /// The same of several at once, in order.
    pub fn stop_all(mut probes: Vec<Self>) -> Result<Vec<ProbeReport>> {
        for probe in &mut probes {
            probe.sender.close();
        }
        std::thread::scope(|scope| {
            let ends: Vec<_> = probes.into_iter().map(|probe| scope.spawn(|| probe.report())).collect();
            ends.into_iter().map(|end| end.join().map_err(|_| anyhow!("a thread panicked"))?).collect()
        })
    }

    /// What it has found, once the sender has ended.
    fn report(mut self) -> Result<ProbeReport> {
        let Tell::Sent { packets, errors, seconds } = self.sender.next(Duration::from_secs(10))? else {
            bail!("the probe's sender gave no report");
        };
        self.receiver.close();
        let count = loop {
            match self.receiver.next(Duration::from_secs(20))? {
                Tell::Got(count) => break count,
                Tell::First => {}
                said @ (Tell::Listening | Tell::Sent { .. }) => bail!("the probe's receiver said {said:?}"),
            }
        };
        ensure!(count.unique <= packets, "{} packets received of {packets} sent", count.unique);
        // What is missing after the highest number received is lost as well.
        let tail = packets - count.highest.map_or(0, |highest| highest + 1).min(packets);
        Ok(ProbeReport {
            sent: packets,
            received: count.unique,
            lost: packets - count.unique,
            duplicated: count.duplicated,
            reordered: count.reordered,
            foreign: count.foreign,
            send_errors: errors,
            longest_gap_ms: count.longest_gap_ms,
            gap_end_ms: count.gap_end_ms,
            longest_delay_ms: count.longest_delay_ms,
            longest_loss: count.longest_loss.max(tail),
            seconds,
            events: count.events,
        })
    }

    /// Lets the probe run for `time`, then stops it.
    pub fn run_for(self, time: Duration) -> Result<ProbeReport> {
        std::thread::sleep(time);
        self.stop()
    }
}

/// One of the two programs.
#[derive(Debug)]
struct End {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl End {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("no pipe")?;
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, stdin, lines })
    }

    /// Closes its standard input, which tells it to end.
    fn close(&mut self) {
        self.stdin = None;
    }

    fn next(&mut self, limit: Duration) -> Result<Tell> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => serde_json::from_str(&line).with_context(|| format!("a probe said {line:?}")),
            Err(RecvTimeoutError::Timeout) => bail!("a probe said nothing for {:.1} s", limit.as_secs_f64()),
            Err(RecvTimeoutError::Disconnected) => bail!("a probe ended: {}", self.child.wait()?),
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program `lab probe`.
pub fn main(command: &ProbeCommand) -> Result<()> {
    let driver = Arc::new(Driver(AtomicU8::new(Driver::SILENT)));
    let heard = Arc::clone(&driver);
    std::thread::spawn(move || heard.listen());
    match command {
        ProbeCommand::Send(args) => send(args, &driver),
        ProbeCommand::Recv(args) => receive(args, &driver),
    }
}

/// What standard input has said so far.
struct Driver(AtomicU8);

impl Driver {
    const SILENT: u8 = 0;
    const SPOKE: u8 = 1;
    const ENDED: u8 = 2;

    /// Reads standard input until it ends.
    fn listen(&self) {
        let mut input = std::io::stdin().lock();
        let mut bytes = [0; 64];
        while input.read(&mut bytes).is_ok_and(|count| count > 0) {
            self.0.store(Self::SPOKE, Ordering::Relaxed);
        }
        self.0.store(Self::ENDED, Ordering::Relaxed);
    }

    fn is_silent(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::SILENT
    }

    fn ended(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::ENDED
    }
}

fn tell(what: &Tell) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    out.flush()?;
    Ok(())
}

fn send(args: &SendArgs, driver: &Driver) -> Result<()> {
    ensure!((HEADER..=1472).contains(&args.size), "size {} is not in {HEADER}..=1472", args.size);
    ensure!(args.rate > 0, "rate 0 sends nothing");
    let any: SocketAddr = if args.to.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(any)?;
    let to = SockaddrStorage::from(args.to);
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut errors = 0;
    let mut number = 0_u64;
    if args.first_alone {
        socket.send_to(&packet(args.stream, number, now()?, args.size), args.to).context("cannot send")?;
        number = 1;
        while driver.is_silent() {
            std::thread::sleep(TICK);
        }
    }
    let start = Instant::now();
    while number < MAX_PACKETS && !driver.ended() {
        let due = (start.elapsed().as_secs_f64() * f64::from(args.rate)) as u64;
        // What is due gets more and more if it is more than can be sent.
        while number < due.min(MAX_PACKETS) && !driver.ended() {
            let batch = usize::try_from(due.min(MAX_PACKETS) - number)?.min(BATCH);
            let at = now()?;
            let packets: Vec<Vec<u8>> =
                (number..).take(batch).map(|number| packet(args.stream, number, at, args.size)).collect();
            let slices: Vec<[IoSlice<'_>; 1]> = packets.iter().map(|packet| [IoSlice::new(packet)]).collect();
            let addresses = vec![Some(to); batch];
            let no_control: [ControlMessage<'_>; 0] = [];
            let done = sendmmsg(
                socket.as_raw_fd(),
                &mut headers,
                slices.iter(),
                &addresses,
                no_control,
                MsgFlags::empty(),
            )
            .map(Iterator::count);
            match done {
                Ok(sent) if sent > 0 => number += u64::try_from(sent)?,
                // The first packet of the batch could not be sent (no route, link down): it is lost.
                Ok(_) | Err(_) => {
                    errors += 1;
                    number += 1;
                }
            }
        }
        std::thread::sleep(TICK);
    }
    tell(&Tell::Sent { packets: number, errors, seconds: start.elapsed().as_secs_f64() })
}

/// The lab's clock of the day, since 1970: the one by which kernels stamp packets.
fn now() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_REALTIME)?.into())
}

fn packet(stream: u32, number: u64, at: Duration, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&u64::try_from(at.as_nanos()).unwrap_or(u64::MAX).to_be_bytes());
    bytes.resize(size, 0);
    bytes
}

/// The number of a packet of this stream, and when it was sent.
fn header_of(bytes: &[u8], stream: u32) -> Option<(u64, Duration)> {
    let rest = bytes.strip_prefix(&MAGIC)?.strip_prefix(&stream.to_be_bytes())?;
    let word = |at: usize| Some(u64::from_be_bytes(rest.get(at..at + 8)?.try_into().ok()?));
    let (number, at) = (word(0)?, Duration::from_nanos(word(8)?));
    (number < MAX_PACKETS).then_some((number, at))
}

fn receive(args: &RecvArgs, driver: &Driver) -> Result<()> {
    let socket = UdpSocket::bind(args.bind).with_context(|| format!("cannot listen on {}", args.bind))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    // Root inside the lab may go past rmem_max; elsewhere the default has to do.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20));
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("cannot have packets stamped")?;
    tell(&Tell::Listening)?;
    let mut tally = Tally::default();
    let mut last = Instant::now();
    let mut buffers = vec![[0_u8; 2048]; BATCH];
    loop {
        let space = nix::cmsg_space!(TimeSpec);
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, Some(space));
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let got =
            recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None);
        let lengths: Vec<(usize, Option<Duration>)> = match got {
            Ok(messages) => messages
                .map(|message| {
                    let stamp = message.cmsgs().ok().and_then(|mut all| {
                        all.find_map(|one| {
                            let ControlMessageOwned::ScmTimestampns(at) = one else { return None };
                            Some(Duration::from(at))
                        })
                    });
                    (message.bytes, stamp)
                })
                .collect(),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => Vec::new(),
            Err(error) => return Err(error).context("cannot receive"),
        };
        let now = Instant::now();
        if lengths.is_empty() {
            if driver.ended() && now.duration_since(last) >= QUIET {
                break;
            }
            continue;
        }
        if tally.count.unique == 0 {
            tell(&Tell::First)?;
        } else if tally.count.unique > 1 {
            // The second packet waits until the first is known to have come.
            tally.gap(now.duration_since(last))?;
        }
        last = now;
        for (buffer, (len, came)) in buffers.iter().zip(lengths) {
            let header = header_of(buffer.get(..len).unwrap_or_default(), args.stream);
            if let (Some((number @ 1.., sent)), Some(came)) = (header, came) {
                tally.delay(number, sent, came.saturating_sub(sent));
            }
            tally.take(header.map(|(number, _)| number));
        }
    }
    tell(&Tell::Got(tally.finish()))
}

/// The receiver's book-keeping.
#[derive(Debug, Default)]
struct Tally {
    seen: Vec<bool>,
    count: Count,
}

impl Tally {
    /// Takes a packet's number; `None` is a packet that is none of ours.
    fn take(&mut self, number: Option<u64>) {
        let Some((number, at)) = number.and_then(|number| Some((number, usize::try_from(number).ok()?)))
        else {
            self.count.foreign += 1;
            return;
        };
        if self.seen.len() <= at {
            self.seen.resize(at + 1, false);
        }
        let Some(seen) = self.seen.get_mut(at) else { return };
        if *seen {
            self.count.duplicated += 1;
            return;
        }
        *seen = true;
        self.count.unique += 1;
        match self.count.highest {
            Some(highest) if highest > number => self.count.reordered += 1,
            _ => self.count.highest = Some(number),
        }
    }

    /// That nothing came for so long has ended now.
    fn gap(&mut self, gap: Duration) -> Result<()> {
        let ms = (gap.as_secs_f64() * 10_000.0).round() / 10.0;
        if ms > self.count.longest_gap_ms {
            self.count.longest_gap_ms = ms;
            self.count.gap_end_ms = (now()?.as_secs_f64() * 10_000.0).round() / 10.0;
        }
        Ok(())
    }

    /// Takes account of how long a packet was under way, before [`take`](Self::take) does of its number.
    fn delay(&mut self, number: u64, sent: Duration, delay: Duration) {
        let delay_ms = (delay.as_secs_f64() * 1e6).round() / 1e3;
        self.count.longest_delay_ms = self.count.longest_delay_ms.max(delay_ms);
        let after = self.count.highest.unwrap_or_default();
        let is_usual = number == after + 1 && delay <= LATE;
        if !is_usual && self.count.events.len() < MAX_EVENTS {
            let sent_ms = (sent.as_secs_f64() * 1e6).round() / 1e3;
            self.count.events.push(Event { number, sent_ms, delay_ms, after });
        }
    }

    fn finish(mut self) -> Count {
        let mut run = 0;
        for seen in &self.seen {
            run = if *seen { 0 } else { run + 1 };
            self.count.longest_loss = self.count.longest_loss.max(run);
        }
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_doubles_and_order_are_told_apart() {
        let mut tally = Tally::default();
        for number in [1, 0, 5, 5, 6] {
            tally.take(Some(number));
        }
        tally.take(None);
        let count = tally.finish();
        assert_eq!((count.unique, count.duplicated, count.reordered, count.foreign), (4, 1, 1, 1));
        // 2, 3 and 4 never came.
        assert_eq!((count.longest_loss, count.highest), (3, Some(6)));
    }

    #[test]
    fn packets_carry_stream_number_and_time() {
        let at = Duration::from_nanos(5);
        let bytes = packet(7, 42, at, 64);
        assert_eq!(header_of(&bytes, 7), Some((42, at)));
        assert_eq!(header_of(&bytes, 8), None);
        for len in 0..HEADER {
            assert_eq!(header_of(&bytes[..len], 7), None);
        }
        assert_eq!(header_of(&packet(7, MAX_PACKETS, at, 64), 7), None);
    }
}
