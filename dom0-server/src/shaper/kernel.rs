//! What the kernel says of a device's classes (rtnetlink(7)), and how it is told (`tc -batch`).
#![allow(clippy::wildcard_enum_match_arm, reason = "a kernel says more than is listened to")]

use std::io;
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla, NlasIterator};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcHandle, TcMessage, TcOption, TcQdiscFqCodelOption, TcStats2,
};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use xenflow_qos::Bps;

use super::tc::{Class, Standing};

/// A batch for thousands of classes takes some seconds; one that hangs is ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of what tc says that are kept.
const MAX_SAID: usize = 300;

/// Why the kernel's classes cannot be read or set.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No netlink socket.
    #[error("no netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel refuses to list them.
    #[error("the kernel does not list the qdiscs")]
    List(#[source] rtnetlink::Error),
    /// tc cannot be run.
    #[error("cannot run tc (package iproute2)")]
    Run(#[source] io::Error),
    /// tc has failed, in its words.
    #[error("tc: {0}")]
    Tc(String),
}

/// A netlink socket of this host.
#[derive(Debug)]
pub struct Kernel(rtnetlink::Handle);

impl Kernel {
    /// Opens it.
    ///
    /// # Errors
    /// [`KernelError::Socket`].
    pub fn open() -> Result<Self, KernelError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(KernelError::Socket)?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// What stands on a device.
    ///
    /// # Errors
    /// [`KernelError::List`].
    pub async fn read(&self, ifindex: u32) -> Result<Standing, KernelError> {
        let mut about = TcMessage::with_index(i32::try_from(ifindex).unwrap_or(0));
        let mut standing = Standing::default();
        for message in self.list(RouteNetlinkMessage::GetQueueDiscipline(about.clone())).await? {
            qdisc(&message, about.header.index, &mut standing);
        }
        // Only classes of the root qdisc: fq_codel would list its flows.
        about.header.parent = TcHandle { major: 1, minor: 0 };
        for message in self.list(RouteNetlinkMessage::GetTrafficClass(about.clone())).await? {
            class(&message, about.header.index, &mut standing);
        }
        Ok(standing)
    }

    async fn list(&self, about: RouteNetlinkMessage) -> Result<Vec<TcMessage>, KernelError> {
        let mut request = NetlinkMessage::from(about);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answer = self.0.clone().request(request).map_err(KernelError::List)?;
        let mut all = Vec::new();
        while let Some(part) = answer.next().await {
            match part.payload {
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewQueueDiscipline(message)
                    | RouteNetlinkMessage::NewTrafficClass(message),
                ) => all.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(KernelError::List(rtnetlink::Error::NetlinkError(error)));
                }
                _ => {}
            }
        }
        Ok(all)
    }
}

/// Runs these lines; a line that fails does not keep the others from being run.
///
/// # Errors
/// [`KernelError::Run`] and [`KernelError::Tc`].
pub async fn run(lines: &str) -> Result<(), KernelError> {
    let mut tc = Command::new("tc");
    tc.args(["-force", "-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = tc.kill_on_drop(true).spawn().map_err(KernelError::Run)?;
    let input = child.stdin.take();
    let write = async {
        if let Some(mut input) = input {
            input.write_all(lines.as_bytes()).await?;
        }
        Ok::<_, io::Error>(())
    };
    let both = async { tokio::join!(write, child.wait_with_output()) };
    let (written, output) = tokio::time::timeout(PATIENCE, both)
        .await
        .map_err(|_| KernelError::Tc(format!("not done after {} s", PATIENCE.as_secs())))?;
    let output = output.map_err(KernelError::Run)?;
    if output.status.success() {
        return written.map_err(KernelError::Run);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(KernelError::Tc(
        said.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_SAID).collect(),
    ))
}

fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

fn options(message: &TcMessage) -> impl Iterator<Item = &TcOption> {
    let options = message.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten()
}

fn stats(message: &TcMessage) -> impl Iterator<Item = &TcStats2> {
    let stats = message.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Stats2(stats) => Some(stats),
        _ => None,
    });
    stats.flatten()
}

fn qdisc(message: &TcMessage, index: i32, standing: &mut Standing) {
    // Older kernels list those of all devices whatever was asked for.
    let (header, Some(kind)) = (&message.header, kind(message)) else { return };
    if header.index != index {
        return;
    }
    if header.parent == TcHandle::ROOT {
        let handle = u32::from(header.handle.major) << 16 | u32::from(header.handle.minor);
        standing.root = Some((kind.to_owned(), handle));
    } else if header.parent.major == 1 {
        let target = options(message).find_map(|option| match option {
            TcOption::FqCodel(TcQdiscFqCodelOption::Target(us)) => Some(*us),
            _ => None,
        });
        standing.leaves.insert(header.parent.minor, (kind.to_owned(), target));
        // What a qdisc drops when its packets are taken, its class does not count.
        for stats in stats(message) {
            if let TcStats2::Queue(queue) = stats {
                standing.dropped.insert(header.parent.minor, queue.drops.into());
            }
        }
    }
}

fn class(message: &TcMessage, index: i32, standing: &mut Standing) {
    let header = &message.header;
    if header.index != index || kind(message) != Some("htb") || header.handle.major != 1 {
        return;
    }
    let parent = if header.parent == TcHandle::ROOT { 0 } else { header.parent.minor };
    let mut class = Class { parent, ..Class::default() };
    for option in options(message) {
        if let TcOption::Other(nested) = option {
            let mut value = vec![0; nested.value_len()];
            nested.emit_value(&mut value);
            htb_options(&value, &mut class);
        }
    }
    for stats in stats(message) {
        match stats {
            TcStats2::Basic(basic) => class.sample.bytes = basic.bytes,
            TcStats2::Queue(queue) => {
                class.sample.dropped = queue.drops.into();
                class.sample.backlog = Some(queue.backlog.into());
            }
            _ => {}
        }
    }
    let dropped = standing.dropped.get(&header.handle.minor).copied().unwrap_or_default();
    class.sample.dropped = class.sample.dropped.max(dropped);
    standing.classes.insert(header.handle.minor, class);
}

/// `struct tc_htb_opt` and the rates of 64 bits beside it (linux/pkt_sched.h), in bytes/s there.
fn htb_options(nested: &[u8], class: &mut Class) {
    const PARMS: u16 = 1;
    const RATE64: u16 = 6;
    const CEIL64: u16 = 7;
    let bits = |bytes: u64| bytes.saturating_mul(8);
    // Rates of 64 bits come last, and what depends on them is reckoned then.
    let mut burst_ticks = 0;
    for option in NlasIterator::new(nested).flatten() {
        let value = option.value();
        let u32_at = |at: usize| {
            value.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
        };
        let rate64 = || -> Option<Bps> { Some(bits(u64::from_ne_bytes(value.get(..8)?.try_into().ok()?))) };
        match option.kind() {
            PARMS => {
                // Those of 64 bits follow if these are too small for them.
                class.rate = bits(u32_at(8).into());
                class.ceil = bits(u32_at(20).into());
                class.quantum = u32_at(32);
                burst_ticks = u32_at(24);
            }
            RATE64 => class.rate = rate64().unwrap_or(class.rate),
            CEIL64 => class.ceil = rate64().unwrap_or(class.ceil),
            _ => {}
        }
    }
    // As the time that it takes at the rate, in units of 64 ns (PSCHED_SHIFT of net/pkt_sched.h).
    let burst = u128::from(burst_ticks) * 64 * u128::from(class.rate / 8) / 1_000_000_000;
    class.burst = u64::try_from(burst).unwrap_or(u64::MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel has answered to `tc class add … htb rate 20mbit ceil 100mbit quantum 66000`, without its statistics.
    #[test]
    fn options_of_a_class() {
        let mut parms = vec![0_u8; 44];
        parms[8..12].copy_from_slice(&2_500_000_u32.to_ne_bytes());
        parms[20..24].copy_from_slice(&12_500_000_u32.to_ne_bytes());
        // 4 ms.
        parms[24..28].copy_from_slice(&62_500_u32.to_ne_bytes());
        parms[32..36].copy_from_slice(&66_000_u32.to_ne_bytes());
        let nla = |kind: u16, value: &[u8]| {
            let len = u16::try_from(4 + value.len()).unwrap();
            [&len.to_ne_bytes()[..], &kind.to_ne_bytes()[..], value].concat()
        };
        let mut class = Class::default();
        htb_options(&nla(1, &parms), &mut class);
        assert_eq!((class.rate, class.ceil, class.quantum), (20_000_000, 100_000_000, 66_000));
        assert_eq!(class.burst, 10_000);
        let mut class = Class::default();
        let fast = 12_500_000_000_u64.to_ne_bytes();
        parms[8..12].copy_from_slice(&u32::MAX.to_ne_bytes());
        htb_options(&[nla(1, &parms), nla(6, &fast)].concat(), &mut class);
        assert_eq!((class.rate, class.ceil), (100_000_000_000, 100_000_000));
        // Cut off, and empty.
        htb_options(&nla(1, &parms[..10]), &mut class);
        htb_options(&[5, 0, 1], &mut class);
    }

    /// The kernel of whoever runs the tests has a loopback device without a queue.
    #[tokio::test]
    async fn a_device_without_htb_has_no_classes() {
        let standing = Kernel::open().unwrap().read(1).await.unwrap();
        assert!(!standing.is_htb() && standing.classes.is_empty(), "{standing:?}");
    }

    #[tokio::test]
    async fn what_tc_refuses_is_told_in_its_words() {
        let error = run("class add dev no-such-device classid 1:1 htb rate 1mbit\n").await.unwrap_err();
        assert!(error.to_string().contains("no-such-device"), "{error}");
    }
}
