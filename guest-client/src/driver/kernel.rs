//! What the kernel says: events and dumps go into the mirror, and what a survey found.
//!
//! Not here: when to dump (`dumps`), what becomes of the mirror's changes (`host`).

use std::time::Duration;

use tracing::{debug, info, warn};
use xenflow_proto::{Key, Object};

use super::{Driver, RunError, now};
use crate::netlink::Input;
use crate::obstacles::{Survey, describe};
use crate::watch::Heard;

/// Datagrams read from the kernel before the host gets its turn.
const BURST: usize = 64;
/// Messages in them: one datagram of a dump holds hundreds, and the host's turn comes within a millisecond.
const MESSAGES: usize = 256;

impl Driver {
    /// Zebra told the kernel before it told us: once the kernel has nothing more to say, the mirror knows of it.
    pub(super) fn answer_zebra(&mut self) -> Result<(), RunError> {
        if self.fpm.is_due() && self.read_kernel()? && self.mirror.is_trusted() {
            self.fpm.answer(&self.mirror, &self.rejected);
        }
        Ok(())
    }

    /// True: everything was read.
    pub(super) fn read_kernel(&mut self) -> Result<bool, RunError> {
        let (mut inputs, mut messages, mut whole) = (Vec::new(), 0, false);
        for _ in 0..BURST {
            if messages >= MESSAGES {
                break;
            }
            if !self.netlink.read(|input| inputs.push(input)).map_err(RunError::Netlink)? {
                whole = true;
                break;
            }
            // Of each: what causes the last of a burst may come after the first was read.
            let time = now();
            messages += inputs.len();
            for input in std::mem::take(&mut inputs) {
                self.input(input, time);
            }
        }
        let time = now();
        if whole && let Some(found) = self.mirror.take_repaired(time) {
            self.repaired += found.keys;
            let (keys, example) = (found.keys, found.example);
            warn!(keys, ?example, "an audit repaired what no event of the kernel had told: they disagreed");
        }
        if self.mirror.take_unsurveyed() {
            self.watch.note(&Heard::Bell, time);
        }
        self.watch_control(time);
        Ok(whole)
    }

    fn input(&mut self, input: Input, time: Duration) {
        match input {
            Input::Event(event) => {
                if self.mirror.apply(event, time) {
                    self.dumps.want(time);
                }
            }
            Input::Dumped(event) => {
                self.dumps.heard(time);
                self.mirror.apply_dumped(event, time);
            }
            Input::DumpEnded { whole } => {
                let again = self.dumps.ended(time, whole);
                debug!(whole, took_us = self.dumps.took().as_micros(), "dump ended");
                let sure = whole && self.mirror.end_dump(time);
                if again || !sure {
                    self.dumps.want(time);
                }
            }
            Input::Overflow => {
                self.overflows += 1;
                debug!("the kernel dropped events");
                self.mirror.distrust();
                self.dumps.want(time);
            }
        }
    }

    pub(super) fn surveyed(&mut self, survey: &Survey, time: Duration) {
        self.mirror.apply_survey(survey, time);
        // Nothing tells of an MTU of IPv6 that changes. Links that come and go have told of it already.
        let mtu = |(&ifindex, &mtu): (&u32, &Option<u32>)| match self
            .mirror
            .object(Key::Link(ifindex))
            .as_deref()
        {
            Some(Object::Link(link)) => link.ipv6_mtu != mtu,
            _ => false,
        };
        if survey.links.iter().any(mtu) {
            self.dumps.want(time);
        }
        let name = |ifindex| match self.mirror.object(Key::Link(ifindex)).as_deref() {
            Some(Object::Link(link)) => link.name.clone(),
            _ => format!("link {ifindex}"),
        };
        let obstacles: Vec<String> =
            survey.obstacles.iter().map(|obstacle| describe(obstacle, name)).collect();
        if *self.obstacles == *obstacles {
            return;
        }
        for obstacle in obstacles.iter().filter(|new| !self.obstacles.contains(new)).take(10) {
            info!(obstacle, "the host forwards no such packets");
        }
        for obstacle in self.obstacles.iter().filter(|old| !obstacles.contains(old)).take(10) {
            info!(obstacle, "no more in the way of the host");
        }
        self.obstacles = obstacles.into();
    }
}
