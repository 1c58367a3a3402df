//! Which interfaces are asked, when, and in which order.

use std::time::Duration;

use xenflow_proto::Object;
use xenflow_proto::table::{AddressKey, Route, RouteKind, RouteTarget};

use super::*;
use crate::connection::LinkError;
use crate::translate::Event;

const HOST: IpAddr = IpAddr::V6(control::HOST_IPV6);

struct Kernel(Mirror);

impl Kernel {
    /// With a loopback, which has a MAC of zeros.
    fn new() -> Self {
        let mut kernel = Self(Mirror::new(&[7; 16]));
        kernel.link(1, |lo| {
            lo.name = "lo".into();
            lo.mac = Some(MacAddr([0; 6]));
        });
        kernel
    }

    fn upsert(&mut self, object: Object) {
        let _ = self.0.apply(Event::Upsert(object), Duration::ZERO);
    }

    /// `eth2` is the one with number 2.
    fn link(&mut self, ifindex: u32, change: impl FnOnce(&mut Link)) {
        let mut link = Link {
            ifindex,
            name: format!("eth{ifindex}"),
            mac: Some(mac(ifindex)),
            mtu: 1500,
            up: true,
            running: true,
            kind: String::new(),
            master: None,
            vrf_table: None,
            ipv6_mtu: None,
        };
        change(&mut link);
        self.upsert(Object::Link(link));
    }

    fn links(&mut self, numbers: impl IntoIterator<Item = u32>) {
        numbers.into_iter().for_each(|ifindex| self.link(ifindex, |_| {}));
    }
}

fn mac(ifindex: u32) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, u8::try_from(ifindex).unwrap()])
}

/// Numbers of the interfaces that are asked, the late ones negative.
fn asked(control: &Control, kernel: &Kernel) -> Vec<i64> {
    let places = control.places(&kernel.0).unwrap();
    places.iter().map(|place| i64::from(place.ifindex) * if place.late { -1 } else { 1 }).collect()
}

/// A node shows its certificate there.
fn answered(control: &mut Control, kernel: &Kernel, ifindex: u32) {
    let places = control.places(&kernel.0).unwrap();
    control.connected(places.iter().find(|place| place.ifindex == ifindex).unwrap());
}

#[test]
fn what_may_be_the_one_is_asked_and_nothing_else() {
    let mut kernel = Kernel::new();
    kernel.links(2..=4);
    kernel.link(5, |link| link.kind = "veth".into());
    for (ifindex, kind) in (6..).zip(["vlan", "bridge", "bond", "vrf", "dummy", "tun", "macvlan"]) {
        kernel.link(ifindex, |link| link.kind = kind.into());
    }
    kernel.link(20, |link| link.master = Some(7));
    kernel.link(21, |link| link.mac = None);
    kernel.link(22, |link| link.up = false);
    kernel.link(23, |link| link.running = false);
    let control = Control::new(None, HOST);
    assert_eq!(asked(&control, &kernel), [2, 3, 4, 5]);
    // Those first that need no address.
    for (ifindex, address) in [(2, "192.0.2.1/24"), (3, "2001:db8::1/64"), (4, "fe80::4/64")] {
        let address = address.parse().unwrap();
        kernel.upsert(Object::Address(AddressKey { ifindex, address }));
    }
    assert_eq!(asked(&control, &kernel), [4, 5, 2, 3]);

    let mut kernel = Kernel::new();
    kernel.link(2, |link| link.up = false);
    let error = control.places(&kernel.0).unwrap_err();
    assert!(matches!(&error, LinkError::NoCandidate(down) if *down == ["eth2"]), "{error}");
    assert!(error.to_string().ends_with("is up; down or without carrier: eth2"), "{error}");
}

#[test]
fn a_configured_interface_is_the_only_one() {
    let mut kernel = Kernel::new();
    kernel.links([2, 3]);
    // Whatever it is.
    kernel.link(4, |link| link.kind = "vlan".into());
    let mut control = Control::new(Some("eth4"), HOST);
    assert_eq!((control.name(), asked(&control, &kernel)), (Some("eth4"), vec![4]));
    assert_eq!(control.look(&kernel.0), Some(Change::First));
    assert_eq!(control.listen(&kernel.0), Some(&Listen::At("eth4".into(), 4)));
    kernel.link(2, |link| link.up = false);
    assert_eq!(control.look(&kernel.0), None, "another interface");
    answered(&mut control, &kernel, 4);
    control.lost(false);
    assert_eq!(asked(&control, &kernel), [4], "there is no other");
    let mut control = Control::new(Some("eth9"), HOST);
    assert_eq!(control.look(&kernel.0), None);
    assert_eq!(control.listen(&kernel.0), None);
    assert!(matches!(control.places(&kernel.0), Err(LinkError::NoInterface(name)) if name == "eth9"));
}

#[test]
fn the_interface_of_the_last_session_is_asked_alone_at_first() {
    let mut kernel = Kernel::new();
    kernel.links(2..=4);
    let mut control = Control::new(None, HOST);
    assert_eq!(control.look(&kernel.0), Some(Change::First));
    assert_eq!(control.listen(&kernel.0), Some(&Listen::Anywhere));
    answered(&mut control, &kernel, 3);
    assert_eq!(control.name(), None, "a certificate is not a session");
    assert!(control.up(&kernel.0));
    assert_eq!(control.name(), Some("eth3"));
    assert_eq!(control.look(&kernel.0), None, "nothing has changed");
    assert_eq!(control.listen(&kernel.0), Some(&Listen::At("eth3".into(), 3)));
    assert_eq!(control.listen(&kernel.0), None);
    kernel.link(2, |link| link.up = false);
    assert_eq!(control.look(&kernel.0), None, "another interface");
    kernel.link(2, |_| {});
    assert_eq!(control.look(&kernel.0), None, "another interface");
    // The session ends, and the host does not come back at once.
    control.lost(true);
    for _ in 0..LOYALTY {
        assert_eq!(asked(&control, &kernel), [3]);
        control.lost(false);
    }
    assert_eq!(asked(&control, &kernel), [2, 3, 4]);
    answered(&mut control, &kernel, 3);
    assert!(!control.up(&kernel.0), "the same as before");
    assert_eq!(asked(&control, &kernel), [3]);
    control.lost(true);
    // The interface goes, and comes back as another one.
    let _ = kernel.0.apply(Event::Remove(Key::Link(3)), Duration::ZERO);
    assert_eq!(control.look(&kernel.0), Some(Change::Later));
    assert_eq!(control.listen(&kernel.0), Some(&Listen::Anywhere));
    assert_eq!(asked(&control, &kernel), [2, 4]);
    kernel.links([5]);
    assert_eq!(control.look(&kernel.0), Some(Change::Later));
    assert_eq!(asked(&control, &kernel), [2, 4, 5]);
    answered(&mut control, &kernel, 5);
    assert!(control.up(&kernel.0));
    let _ = kernel.0.apply(Event::Remove(Key::Link(5)), Duration::ZERO);
    assert_eq!(control.look(&kernel.0), Some(Change::Gone), "from under the session");
    control.lost(true);
    kernel.links([5]);
    assert_eq!(control.look(&kernel.0), Some(Change::Later));
    answered(&mut control, &kernel, 5);
    assert!(!control.up(&kernel.0), "the same as before");
    // Without carrier it is of no use.
    kernel.link(5, |link| link.running = false);
    assert_eq!(control.look(&kernel.0), Some(Change::Later));
    assert_eq!(asked(&control, &kernel), [2, 4]);
}

#[test]
fn an_address_that_may_be_used_is_a_change() {
    let mut kernel = Kernel::new();
    kernel.links([2]);
    let mut control = Control::new(None, HOST);
    assert_eq!(control.look(&kernel.0), Some(Change::First));
    let dst = IpNet::from(IpAddr::from(control::guest_ipv6(mac(2))));
    kernel.upsert(Object::Route(Route {
        key: RouteKey { table: TABLE_LOCAL, dst, tos: 0, metric: 0 },
        kind: RouteKind::Local,
        protocol: 2,
        scope: 0,
        target: RouteTarget::Hops(Vec::new()),
        mtu: None,
    }));
    assert_eq!(control.look(&kernel.0), Some(Change::Later));
    assert_eq!(control.look(&kernel.0), None);
}

#[test]
fn where_a_session_was_refused_the_others_come_first() {
    let mut kernel = Kernel::new();
    kernel.links(2..=4);
    let mut control = Control::new(None, HOST);
    control.look(&kernel.0);
    answered(&mut control, &kernel, 2);
    control.lost(false);
    assert_eq!(asked(&control, &kernel), [-2, 3, 4]);
    // One without an answer anywhere says nothing of any.
    control.lost(false);
    assert_eq!(asked(&control, &kernel), [-2, 3, 4]);
    // Until it is another one.
    kernel.link(2, |link| link.running = false);
    control.look(&kernel.0);
    kernel.link(2, |_| {});
    control.look(&kernel.0);
    assert_eq!(asked(&control, &kernel), [2, 3, 4]);
    // If it is so everywhere, nobody waits.
    for ifindex in 2..=4 {
        answered(&mut control, &kernel, ifindex);
        control.lost(false);
    }
    assert_eq!(asked(&control, &kernel), [2, 3, 4]);
    answered(&mut control, &kernel, 4);
    assert!(control.up(&kernel.0));
    control.lost(true);
    for _ in 0..LOYALTY {
        control.lost(false);
    }
    assert_eq!(asked(&control, &kernel), [-2, -3, 4]);
}
