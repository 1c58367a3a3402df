//! Asks the kernel for everything that may stand in the way of destination-only forwarding. I/O only: what the
//! answers mean is [`crate::facts`]', what stands in the way [`crate::obstacles`]'.
//!
//! A survey asks for all of it, always: no event can be missed for longer than until the next one.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::netlink;

use crate::attribute::Message;
use crate::facts::{Chain, Facts, Netconf, Policy, Rule, TrafficControl};
use crate::link::link;
use crate::questions::{QuestionError, Questions, attribute};
use crate::translate::{AF_INET, AF_INET6, AF_UNSPEC, rtm};

const RTM_GETRULE: u16 = 34;
const RTM_GETQDISC: u16 = 38;
const RTM_GETTCLASS: u16 = 42;
const RTM_GETTFILTER: u16 = 46;
const RTM_GETNETCONF: u16 = 82;
/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETCHAIN`.
const NFT_GETCHAIN: u16 = 10 << 8 | 4;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRM_MSG_GETDEFAULT: u16 = 0x28;
/// Bytes of `struct xfrm_userpolicy_id`.
const XFRM_POLICY_ID: usize = 64;

/// Disciplines and classes that are looked at for filters.
const MAX_PLACES: usize = 1024;

/// Asks, and remembers what the kernel does not have.
#[derive(Debug, Default)]
pub struct Surveyor {
    /// Modules that were asked for in vain. Asking makes the kernel look for one each time.
    absent: BTreeSet<&'static str>,
}

impl Surveyor {
    /// All facts, as of now. Takes as long as the kernel does, which is not long: some milliseconds.
    pub fn facts(&mut self) -> Facts {
        let mut facts = Facts::default();
        let mut unreadable = Vec::new();
        let mut note = |what: &str, error: QuestionError| match error {
            QuestionError::Absent => {}
            QuestionError::Kernel(_) | QuestionError::Changing | QuestionError::TooMany(_) => {
                unreadable.push(format!("{what}: {error}"))
            }
        };
        match Questions::open(None) {
            Ok(mut route) => {
                // IFLA_EXT_MASK = RTEXT_FILTER_SKIP_STATS: counters are most of a link's message.
                let mut body = vec![0; 16];
                attribute(&mut body, 29, &8u32.to_ne_bytes());
                let links = route.dump(rtm::GETLINK, &body, |message| link(message.payload).ok().flatten());
                facts.links = links.unwrap_or_else(|error| {
                    note("links", error);
                    Vec::new()
                });
                for (at, family) in [AF_INET, AF_INET6].into_iter().enumerate() {
                    let netconf =
                        route.dump(RTM_GETNETCONF, &[family, 0, 0, 0], |m| Netconf::decode(m, family));
                    let netconf = netconf.map_err(|error| note("netconf", error)).ok();
                    // A kernel without a family answers with the others.
                    let netconf = netconf.filter(|netconf| !netconf.is_empty());
                    let body = [family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                    let rules = route.dump(RTM_GETRULE, &body, |message| Rule::decode(message, family));
                    let rules = rules.map_err(|error| note("rules", error)).ok();
                    if let (Some(netconfs), Some(of)) = (facts.netconf.get_mut(at), facts.rules.get_mut(at)) {
                        (*netconfs, *of) = (netconf, rules);
                    }
                }
                facts.filters = filters(&mut route).unwrap_or_else(|error| {
                    note("traffic control", error);
                    Vec::new()
                });
            }
            Err(error) => note("rtnetlink", error),
        }
        facts.chains = self.chains().unwrap_or_else(|error| {
            note("nftables", error);
            Vec::new()
        });
        facts.policies = self.policies().unwrap_or_else(|error| {
            note("xfrm policies", error);
            Vec::new()
        });
        for (names, path) in facts.legacy_tables.iter_mut().zip(["ip_tables_names", "ip6_tables_names"]) {
            match read(&format!("/proc/net/{path}")) {
                Ok(text) => *names = text.lines().map(str::to_owned).collect(),
                Err(error) => unreadable.push(error),
            }
        }
        for (policy, family) in facts.hash_policies.iter_mut().zip(["ipv4", "ipv6"]) {
            match read(&format!("/proc/sys/net/{family}/fib_multipath_hash_policy")) {
                Ok(text) => *policy = text.trim().parse().unwrap_or(0),
                Err(error) => unreadable.push(error),
            }
        }
        facts.unreadable = unreadable;
        facts
    }

    fn chains(&mut self) -> Result<Vec<Chain>, QuestionError> {
        const MODULE: &str = "nf_tables";
        self.asking(MODULE, || {
            let mut netfilter = Questions::open(Some(netlink::NETFILTER))?;
            match netfilter.dump(NFT_GETCHAIN, &[AF_UNSPEC, 0, 0, 0], Chain::decode) {
                // `nfnetlink_rcv_msg` knows no such subsystem.
                Err(QuestionError::Kernel(Errno::INVAL)) => Err(QuestionError::Absent),
                answer => answer,
            }
        })
    }

    fn policies(&mut self) -> Result<Vec<Policy>, QuestionError> {
        self.asking("xfrm_user", || {
            let mut xfrm = Questions::open(Some(netlink::XFRM))?;
            let mut policies = xfrm.dump(XFRM_MSG_GETPOLICY, &[0; XFRM_POLICY_ID], Policy::decode)?;
            match xfrm.ask(XFRM_MSG_GETDEFAULT, 0, &[0; 4], Policy::decode_default) {
                Ok(defaults) => policies.extend(defaults),
                // Before Linux 5.15.
                Err(QuestionError::Kernel(Errno::INVAL) | QuestionError::Absent) => {}
                Err(error) => return Err(error),
            }
            Ok(policies)
        })
    }

    fn asking<T: Default>(
        &mut self,
        module: &'static str,
        ask: impl FnOnce() -> Result<T, QuestionError>,
    ) -> Result<T, QuestionError> {
        if self.absent.contains(module) && !may_be_loaded(module) {
            return Err(QuestionError::Absent);
        }
        let answer = ask();
        if matches!(answer, Err(QuestionError::Absent)) {
            self.absent.insert(module);
        } else {
            self.absent.remove(module);
        }
        answer
    }
}

/// Links with an ingress or clsact discipline, which is there for nothing but filters, and with filters at any
/// other discipline or class. What disciplines do without filters (delay, share out) is not decided by packets.
fn filters(route: &mut Questions) -> Result<Vec<(u32, String)>, QuestionError> {
    let about = |ifindex: u32, parent: u32| {
        let mut body = vec![0; 20];
        body.splice(4..8, ifindex.to_ne_bytes());
        body.splice(12..16, parent.to_ne_bytes());
        body
    };
    let disciplines = route.dump(RTM_GETQDISC, &about(0, 0), TrafficControl::decode)?;
    let mut found = Vec::new();
    let mut places = 0;
    for TrafficControl { ifindex, handle, kind } in disciplines {
        if matches!(kind.as_str(), "ingress" | "clsact") {
            found.push((ifindex, format!("qdisc {kind}")));
            continue;
        }
        // The kernel's own choice for a link has no number, no filters, and classes only for each hardware queue.
        if handle == 0 {
            continue;
        }
        let of = |message: &Message<'_>| TrafficControl::decode(message).filter(|tc| tc.ifindex == ifindex);
        let classes = route.dump(RTM_GETTCLASS, &about(ifindex, handle), of)?;
        let parents = classes.iter().map(|class| class.handle).chain([handle]);
        for parent in parents {
            places += 1;
            if places > MAX_PLACES {
                return Err(QuestionError::TooMany(MAX_PLACES));
            }
            let filters = route.dump(RTM_GETTFILTER, &about(ifindex, parent), of)?;
            found.extend(filters.into_iter().map(|filter| {
                (
                    ifindex,
                    format!("filter {} at {:x}:{:x} ({kind})", filter.kind, parent >> 16, parent & 0xffff),
                )
            }));
        }
    }
    Ok(found)
}

/// Whether a module that was not there may be there now. Without `/sys`, as in a small initramfs, nobody knows.
pub(crate) fn may_be_loaded(module: &str) -> bool {
    let modules = Path::new("/sys/module");
    !modules.exists() || modules.join(module).exists()
}

/// The text of a file; empty if the kernel does not have it. Or else what cannot be read, and why.
fn read(path: &str) -> Result<String, String> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other.map_err(|error| format!("{path}: {error}")),
    }
}
