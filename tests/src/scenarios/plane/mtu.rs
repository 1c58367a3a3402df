//! Sizes: what fits never touches the VM, to the byte; what does not is the VM's to answer or to fragment.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::packet::{self, IcmpError, fragment, icmp_error, numbers};
use super::site::{End, R1, Site};
use super::wire::Wire;
use crate::frame;
use crate::iperf;
use crate::scenario::Lab;

/// Of r1's link w1.
const LINK: usize = 1400;
/// Of the route to [`NARROW`].
const ROUTE: usize = 1300;
/// Behind n2.
const NARROW: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
/// Behind u, in w1: leaves by the uplink.
const FAR: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 1);
/// Every wire here takes more, but these end hosts do not send more.
const ETHERNET: usize = 1500;
/// For packets to arrive, and answers.
const SETTLE: Duration = Duration::from_millis(300);

/// One packet: where it comes in, where it goes, what it is like.
struct Case<'a> {
    name: String,
    from: &'a End,
    out: &'a Wire,
    to: Ipv4Addr,
    mtu: usize,
    len: usize,
    df: bool,
}

impl Case<'_> {
    fn fits(&self) -> bool {
        self.len <= self.mtu
    }
}

/// Measures; adds its figures.
pub(super) fn run(lab: &Lab, site: &Site, figures: &mut Map<String, Value>) -> Result<()> {
    lab.step("MTU 1400 on a link and 1300 on a route: one byte less, exactly, one byte more");
    site.change(&format!(
        "link set w1 mtu {LINK}\nroute add 10.98.0.0/16 via 10.22.0.10 mtu {ROUTE}\nroute add 10.97.0.0/16 via 10.21.0.11\n"
    ))?;
    site.resolve()?;
    let cases = cases(site);
    let (mut wrong, mut transit_fitting) = (Vec::new(), 0);
    let mut answered = 0;
    for fits in [true, false] {
        let chosen: Vec<(u32, &Case<'_>)> =
            (1..).zip(&cases).filter(|(_, case)| case.fits() == fits).collect();
        for wire in site.n.iter().map(|n| &n.wire).chain([&site.far, &site.h.wire, &site.u.wire]) {
            wire.take()?;
        }
        let transit = site.transit(|| {
            for (number, case) in &chosen {
                let mut udp = site.udp(case.from, case.to);
                (udp.len, udp.df) = (case.len, case.df);
                case.from.wire.send(&[udp.frame(&[], *number, 0)])?;
            }
            std::thread::sleep(SETTLE);
            Ok(())
        })?;
        let outs: Vec<(&Wire, Vec<Vec<u8>>)> = site
            .n
            .iter()
            .map(|n| &n.wire)
            .chain([&site.far])
            .map(|wire| Ok((wire, wire.take()?)))
            .collect::<Result<_>>()?;
        let answers = [site.h.wire.take()?, site.u.wire.take()?];
        for (number, case) in &chosen {
            let came = outs.iter().find(|(wire, _)| std::ptr::eq(*wire, case.out));
            let came = &came.context("no such wire")?.1;
            let back = if std::ptr::eq(case.from, &site.u) { &answers[1] } else { &answers[0] };
            let errors: Vec<IcmpError> = back
                .iter()
                .filter_map(|frame| icmp_error(frame))
                .filter(|error| is_about(error, *number))
                .collect();
            answered += errors.len();
            if let Some(fault) = fault(case, *number, came, &errors) {
                wrong.push(format!("{}: {fault}", case.name));
            }
        }
        if fits {
            transit_fitting = transit;
        } else {
            let fragmented = chosen.iter().filter(|(_, case)| !case.df).count() as u64;
            ensure!(transit >= fragmented, "{transit} packets fragmented by r1, not {fragmented}");
        }
    }
    ensure!(answered > 0, "no ICMP error came at all");

    let six = ipv6(lab, site)?;
    wrong.extend(six);

    lab.step("fragments come together again; path MTU discovery, and TCP with super-packets over it");
    let n1 = &site.n[0];
    let target = n1.address.to_string();
    let mut ping = site.h.ns.command("ping");
    let whole = ping.args(["-n", "-M", "dont", "-s", "1450", "-c", "1", "-W", "1", &target]).output()?;
    if !whole.status.success() {
        wrong.push("a packet in fragments does not come together again".to_owned());
    }
    // The discovery: it is lost.
    let mut ping = site.h.ns.command("ping");
    let _ = ping.args(["-n", "-M", "do", "-s", "1450", "-c", "1", "-W", "1", &target]).output()?;
    let route = site.h.ns.ip(&["route", "get", &target])?;
    let discovered = route.contains(&format!("mtu {LINK}"));
    let (mut tcp, mut tcp_transit) = (Vec::new(), Vec::new());
    let mut ping = site.u.ns.command("ping");
    let _ = ping.args(["-n", "-M", "do", "-s", "1450", "-c", "1", "-W", "1", &target]).output()?;
    for from in [&site.h, &site.u] {
        let before = site.r1.guest().forwarded()?;
        tcp.push(iperf::tcp(lab, &from.ns, &n1.ns, &target, 1)?.gbit_s);
        tcp_transit.push(site.r1.guest().forwarded()? - before);
    }

    lab.step("control: without discovery every super-packet is too large for the host");
    site.h.ns.run("sh", &["-c", "ip route flush cache; echo 1 > /proc/sys/net/ipv4/ip_no_pmtu_disc"])?;
    let before = site.r1.guest().forwarded()?;
    // Without DF, the guest fragments.
    iperf::tcp(lab, &site.h.ns, &n1.ns, &target, 1)?;
    let control = site.r1.guest().forwarded()? - before;
    site.h.ns.sysctls(&[("net.ipv4.ip_no_pmtu_disc", "0")])?;
    ensure!(control > 0, "TCP that discovers nothing went by the host over a smaller MTU");

    site.change(&format!("link set w1 mtu {ETHERNET}\nroute del 10.98.0.0/16\nroute del 10.97.0.0/16\n"))?;
    site.h.ns.ip(&["route", "flush", "cache"])?;
    figures.insert("mtu_cases".into(), cases.len().into());
    figures.insert("mtu_wrong".into(), wrong.len().into());
    figures.insert("mtu_transit_fitting".into(), transit_fitting.into());
    figures.insert("mtu_discovered".into(), if discovered { "yes" } else { "no" }.into());
    figures.insert("mtu_tcp_gbit_s".into(), tcp.iter().copied().fold(f64::MAX, f64::min).into());
    figures.insert("mtu_tcp_transit".into(), tcp_transit.iter().sum::<u64>().into());
    figures.insert(
        "mtu".into(),
        json!({
            "wrong": wrong,
            "tcp_gbit_s": tcp,
            "tcp_transit": tcp_transit,
            "icmp_errors": answered,
            "control_tcp_transit": control,
        }),
    );
    Ok(())
}

/// From an access port and from the uplink, to an access port, to a narrower route and to the uplink.
fn cases(site: &Site) -> Vec<Case<'_>> {
    let mut cases = Vec::new();
    let targets = [
        ("link", site.n[0].address, &site.n[0].wire, LINK),
        ("route", NARROW, &site.n[1].wire, ROUTE),
        ("uplink", FAR, &site.far, LINK),
        // As large as everything: a comparison here would be one of nothing.
        ("full", site.n[2].address, &site.n[2].wire, ETHERNET),
    ];
    for (side, from) in [("access", &site.h), ("trunk", &site.u)] {
        for (target, to, out, mtu) in targets {
            for len in [mtu - 1, mtu, mtu + 1] {
                for df in [true, false] {
                    if len > ETHERNET {
                        continue;
                    }
                    let name = format!("{side} to {target}, {len} bytes{}", if df { ", DF" } else { "" });
                    cases.push(Case { name, from, out, to, mtu, len, df });
                }
            }
        }
    }
    cases
}

/// An answer of a router: at the end host nobody listens, which it may say.
fn is_about(error: &IcmpError, number: u32) -> bool {
    error.number == number && !matches!((error.kind, error.code), (3, 3) | (1, 4))
}

/// What is wrong with what became of a packet.
fn fault(case: &Case<'_>, number: u32, came: &[Vec<u8>], errors: &[IcmpError]) -> Option<String> {
    let whole = came
        .iter()
        .filter(|frame| numbers(frame).is_some_and(|(of, _)| of == number) && frame.len() == case.len + 14);
    let whole = whole.count();
    let parts: Vec<usize> = came
        .iter()
        .filter_map(|frame| fragment(frame))
        .filter(|(id, _)| *id == number)
        .map(|(_, len)| len)
        .collect();
    if case.fits() {
        return (whole != 1 || !parts.is_empty() || !errors.is_empty())
            .then(|| format!("came {whole} times, {} fragments, {errors:?}", parts.len()));
    }
    if case.df {
        let right = IcmpError { from: IpAddr::V4(R1), kind: 3, code: 4, mtu: case.mtu as u32, number };
        return (whole + parts.len() > 0 || errors != [right])
            .then(|| format!("came {whole} times, {} fragments, {errors:?}", parts.len()));
    }
    let sum: usize = parts.iter().sum();
    (whole != 0 || parts.len() < 2 || sum != case.len - 20 || !errors.is_empty())
        .then(|| format!("came {whole} times, fragments of {parts:?} bytes, {errors:?}"))
}

/// IPv6: routers do not fragment (RFC 8200 5).
fn ipv6(lab: &Lab, site: &Site) -> Result<Vec<String>> {
    lab.step("IPv6: packet too big");
    let macs = (frame::mac(&site.r1.mac(0))?, site.h.mac);
    let (from, to): (Ipv6Addr, Ipv6Addr) = ("fd01::10".parse()?, "fd21::10".parse()?);
    site.h.wire.take()?;
    site.n[0].wire.take()?;
    let sizes = [LINK - 1, LINK, LINK + 1];
    let frame = |(number, len): (u32, &usize)| packet::udp6(macs, (from, to), *len, number);
    let frames: Vec<_> = (1..).zip(&sizes).map(frame).collect();
    let transit = site.transit(|| {
        site.h.wire.send(&frames)?;
        std::thread::sleep(SETTLE);
        Ok(())
    })?;
    let came: Vec<u32> = site.n[0].wire.take()?.iter().filter_map(|f| numbers(f)).map(|(of, _)| of).collect();
    let errors: Vec<IcmpError> = site
        .h
        .wire
        .take()?
        .iter()
        .filter_map(|f| icmp_error(f))
        .filter(|it| is_about(it, it.number))
        .collect();
    let router: Ipv6Addr = "fd01::1".parse()?;
    let right = IcmpError { from: router.into(), kind: 2, code: 0, mtu: LINK as u32, number: 3 };
    let mut wrong = Vec::new();
    if came != [1, 2] {
        wrong.push(format!("IPv6: {came:?} of the sizes {sizes:?} came"));
    }
    if errors != [right] {
        wrong.push(format!("IPv6: {errors:?}, not {right:?}"));
    }
    if transit != 0 {
        wrong.push(format!("IPv6: r1 forwarded {transit} packets"));
    }
    Ok(wrong)
}
