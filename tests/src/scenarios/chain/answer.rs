//! What comes back for one echo request: a reply, an ICMP error and its sender, or nothing.

use std::net::Ipv4Addr;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::endhost::EndHost;

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Answer {
    /// An echo reply.
    Reply(Ipv4Addr),
    /// An ICMP error, in the words of iputils' `ping`.
    Error(Ipv4Addr, String),
    /// Nothing within a second.
    Silence,
}

/// Sends one echo request, with options of `ping` such as `-t 3`.
pub(super) fn ask(from: &EndHost, target: &str, options: &[&str]) -> Result<Answer> {
    let mut command = from.netns().command("ping");
    command.args(["-n", "-c", "1", "-W", "1"]).args(options).arg(target).stdin(Stdio::null());
    // Its exit code only says whether there was a reply.
    let out = command.output().context("cannot run ping")?;
    let text = String::from_utf8_lossy(&out.stdout);
    read(&text).with_context(|| format!("ping said: {text}{}", String::from_utf8_lossy(&out.stderr)))
}

/// The address that answers at each distance, up to the one that is not a router any more.
pub(super) fn trace(from: &EndHost, target: Ipv4Addr, routers: u8) -> Result<Vec<Answer>> {
    (1..=routers + 1).map(|ttl| ask(from, &target.to_string(), &["-t", &ttl.to_string()])).collect()
}

/// Reads the output of `ping -n -c 1`.
fn read(text: &str) -> Option<Answer> {
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("From ") {
            let (from, rest) = rest.split_once(' ')?;
            let (_, words) = rest.strip_prefix("icmp_seq=")?.split_once(' ')?;
            return Some(Answer::Error(from.parse().ok()?, words.trim().to_owned()));
        }
        if let Some((_, rest)) = line.split_once(" bytes from ") {
            return Some(Answer::Reply(rest.split_once(':')?.0.parse().ok()?));
        }
    }
    text.contains("1 packets transmitted, 0 received").then_some(Answer::Silence)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "PING 10.1.2.10 (10.1.2.10) 56(84) bytes of data.\n";

    #[test]
    fn answers_are_read() {
        let one = Ipv4Addr::new(10, 1, 0, 2);
        let of = |line: &str| read(&format!("{HEAD}{line}\n"));
        assert_eq!(
            of("From 10.1.0.2 icmp_seq=1 Time to live exceeded"),
            Some(Answer::Error(one, "Time to live exceeded".to_owned()))
        );
        assert_eq!(of("64 bytes from 10.1.0.2: icmp_seq=1 ttl=63 time=0.5 ms"), Some(Answer::Reply(one)));
        assert_eq!(of("1 packets transmitted, 0 received, 100% packet loss"), Some(Answer::Silence));
        assert_eq!(of("ping: connect: Network is unreachable"), None);
    }
}
