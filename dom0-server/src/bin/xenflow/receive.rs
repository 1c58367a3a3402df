//! `xenflow xl-receive`: stands between the transport of `xl migrate` and `xl migrate-receive`, on the host that a guest comes to.
//!
//! It relays both ways, and has a planned guest wait twice: before any of its memory comes, while its router's tables are not here, when
//! it costs nothing; and once it is here whole, suspended on both hosts, until its ports are in the switch. If that takes too long, or the
//! migration is called off, the guest goes on where it was, and the copy that is here is destroyed. Only what is known to be in the
//! way is: without a daemon everything passes.

mod stream;

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use anyhow::{Context, anyhow};

use self::stream::{Answers, Guest, Header};
use crate::{Failure, arrival, output};

/// Bytes at a time.
const CHUNK: usize = 256 * 1024;

/// What both directions have to do with.
#[derive(Debug)]
struct Reception {
    socket: PathBuf,
    seconds: u32,
    /// Once its header has come.
    guest: OnceLock<Guest>,
    /// To `xl`; none: it has been told that no more comes.
    input: Mutex<Option<ChildStdin>>,
    /// The guest is not let in.
    is_refused: AtomicBool,
}

/// `command`: the receiver, as `xl` asks for it.
pub(crate) fn run(socket: PathBuf, seconds: u32, command: &[String]) -> Result<(), Failure> {
    let (program, arguments) = command.split_first().context("no receiver was named")?;
    let mut receiver = Command::new(program);
    receiver.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut receiver = receiver.spawn().with_context(|| format!("cannot run {program}"))?;
    let said = receiver.stdout.take().context("no pipe from it")?;
    let reception = Arc::new(Reception {
        socket,
        seconds,
        guest: OnceLock::new(),
        input: Mutex::new(receiver.stdin.take()),
        is_refused: AtomicBool::new(false),
    });
    let inward = Arc::clone(&reception);
    // It ends with this process: the other host says nothing more once it has heard how it went.
    std::thread::spawn(move || inward.inward(io::stdin().lock()));
    reception.outward(said, io::stdout().lock()).context("the receiver says nothing more")?;
    let status = receiver.wait().context("the receiver cannot be waited for")?;
    if status.success() && !reception.is_refused.load(Ordering::Relaxed) {
        return Ok(());
    }
    reception.clean(program);
    Err(anyhow!("{} ended with {status}", command.join(" ")).into())
}

impl Reception {
    /// From the other host to the receiver.
    fn inward(&self, mut from: impl Read) {
        let mut header = Some(Header::default());
        let mut bytes = vec![0; CHUNK];
        loop {
            let count = match from.read(&mut bytes) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            let bytes = bytes.get(..count).unwrap_or_default();
            let is_whole = header.as_mut().is_some_and(|header| header.take(bytes));
            if let Some(whole) = if is_whole { header.take() } else { None } {
                let guest = self.guest.get_or_init(|| whole.guest().unwrap_or_default());
                if let Err(why) = arrival::wait(&self.socket, self.seconds, &guest.macs, false) {
                    self.refuse(&why);
                }
            }
            let Ok(mut input) = self.input.lock() else { return };
            let is_taken = input.as_mut().is_some_and(|input| input.write_all(bytes).is_ok());
            if bytes.is_empty() || !is_taken {
                // The receiver destroys what it has, and says so.
                *input = None;
                return;
            }
        }
    }

    /// From the receiver to the other host.
    fn outward(&self, mut from: impl Read, mut to: impl Write) -> io::Result<()> {
        let mut answers = Answers::default();
        let mut bytes = vec![0; 4096];
        loop {
            let count = match from.read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if count == 0 {
                return Ok(());
            }
            let (mut pass, is_ready) = answers.take(bytes.get(..count).unwrap_or_default());
            if is_ready {
                let macs = self.guest.get().map(|guest| guest.macs.as_slice()).unwrap_or_default();
                if let Err(why) = arrival::wait(&self.socket, self.seconds, macs, true) {
                    self.refuse(&why);
                    // At once: to wait until the connection ends would keep the guest suspended for longer.
                    pass = stream::NOT_READY.to_vec();
                    let _ = to.write_all(&pass).and_then(|()| to.flush());
                }
            }
            // What the receiver says of a guest that is not let in is for nobody. And if nobody hears it any more, it is read all the
            // same, for the receiver does not destroy its copy unless it can say so.
            if !self.is_refused.load(Ordering::Relaxed) {
                let _ = to.write_all(&pass).and_then(|()| to.flush());
            }
        }
    }

    fn refuse(&self, why: &anyhow::Error) {
        output::error(&format!("{why:#}; the guest goes on where it was"));
        self.is_refused.store(true, Ordering::Relaxed);
        if let Ok(mut input) = self.input.lock() {
            *input = None;
        }
    }

    /// A copy that its receiver has left behind.
    fn clean(&self, xl: &str) {
        let Some(name) = self.guest.get().and_then(|guest| guest.name.as_deref()) else { return };
        let mut destroy = Command::new(xl);
        destroy.args(["destroy", &format!("{name}--incoming")]);
        // There is none where the receiver could do it itself.
        let _ = destroy.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}
