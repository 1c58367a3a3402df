//! Neighbors stay fresh although no packet passes the router, and nobody's entries are touched.

use std::time::{Duration, Instant};

use crate::support::{Client, Host, Lab, Peer, in_namespace, ip, sysctl, until};

/// A router whose kernel forgets within a second, and a peer with a gateway's addresses and another.
fn router(more: &str, before: impl FnOnce()) -> (Lab, Host, Peer, Client) {
    let lab = Lab::new();
    let peer = Peer::new(&["192.0.2.2/24", "192.0.2.3/24", "2001:db8::2/64"]);
    for family in ["ipv4", "ipv6"] {
        for (setting, value) in [
            ("base_reachable_time_ms", "500"),
            ("retrans_time_ms", "100"),
            ("delay_first_probe_time", "1"),
            ("interval_probe_time_ms", "500"),
        ] {
            sysctl(&format!("{family}/neigh/p0/{setting}"), value);
        }
    }
    before();
    let host = Host::start(&lab, 8);
    let client = lab.client(more);
    host.wait("snapshot", |table| table.snapshots == 1);
    (lab, host, peer, client)
}

fn entry(addr: &str) -> String {
    ip(&format!("neigh show to {addr} dev p0"))
}

#[test]
fn gateways_are_managed() {
    in_namespace("neighbors::gateways_are_managed", || {
        let (_lab, host, peer, _client) = router("", || {
            ip("route add 198.51.100.0/24 via 192.0.2.2");
        });
        peer.ip("link set p1 address 52:54:00:00:00:aa");
        // Nobody sent a packet.
        host.wait_has("neighbor 192.0.2.2 p0 52:54:00:00:00:aa");
        until("managed", || entry("192.0.2.2").contains(" managed "));
        peer.ip("link set p1 address 52:54:00:00:00:bb");
        host.wait_has("neighbor 192.0.2.2 p0 52:54:00:00:00:bb");
        // By a next-hop object, and of IPv6.
        ip("nexthop add id 1 via 2001:db8::2 dev p0");
        ip("route add 2001:db8:1::/48 nhid 1");
        host.wait_has("neighbor 2001:db8::2 p0 52:54:00:00:00:bb");
        until("managed", || entry("2001:db8::2").contains(" managed "));
        ip("nexthop del id 1");
        ip("route del 198.51.100.0/24");
        until("released", || !ip("neigh show dev p0").contains(" managed "));
    });
}

#[test]
fn a_neighbor_that_lives_does_not_flap() {
    in_namespace("neighbors::a_neighbor_that_lives_does_not_flap", || {
        let (_lab, host, _peer, _client) = router("", || {
            ip("route add 198.51.100.0/24 via 192.0.2.2");
        });
        host.wait("gateway", |table| table.lines().iter().any(|l| l.starts_with("neighbor 192.0.2.2 ")));
        // It learns of the neighbors' link-local addresses at leisure.
        let news = |table: &crate::support::Table| {
            table.lines().into_iter().filter(|l| l.starts_with("neighbor 192.")).collect::<Vec<_>>()
        };
        host.forbid_removal_of("neighbor 192.");
        let before = news(&host.table());
        std::thread::sleep(Duration::from_secs(6));
        assert_eq!(news(&host.table()), before);
    });
}

#[test]
fn others_are_probed_when_they_go_stale() {
    in_namespace("neighbors::others_are_probed_when_they_go_stale", || {
        let (_lab, host, peer, _client) = router("", || {});
        peer.ip("link set p1 address 52:54:00:00:00:aa");
        // One with the right MAC, one that was replaced, one that died.
        ip("neigh add 192.0.2.3 lladdr 52:54:00:00:00:aa dev p0 nud stale");
        ip("neigh add 192.0.2.2 lladdr 52:54:00:00:00:99 dev p0 nud stale");
        ip("neigh add 192.0.2.77 lladdr 52:54:00:00:00:aa dev p0 nud stale");
        host.wait_has("neighbor 192.0.2.3 p0 52:54:00:00:00:aa");
        host.wait_gone("neighbor 192.0.2.2 ");
        host.wait_gone("neighbor 192.0.2.77 ");
        host.assert_has("neighbor 192.0.2.3 p0 52:54:00:00:00:aa");
    });
}

#[test]
fn entries_of_others_stay_as_they_are() {
    in_namespace("neighbors::entries_of_others_stay_as_they_are", || {
        let (_lab, host, _peer, _client) = router("", || {
            ip("route add 198.51.100.0/24 via 192.0.2.50");
            ip("route add 198.51.101.0/24 via 192.0.2.51");
            ip("route add 198.51.102.0/24 via 192.0.2.2");
            ip("neigh add 192.0.2.50 lladdr 52:54:00:00:00:50 dev p0 nud permanent");
            ip("neigh add 192.0.2.51 lladdr 52:54:00:00:00:51 dev p0 nud stale extern_learn");
            ip("neigh add 192.0.2.52 dev p0 managed");
        });
        // By then, it has asked for what it wants.
        until("managed", || entry("192.0.2.2").contains(" managed "));
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(entry("192.0.2.50").trim(), "192.0.2.50 lladdr 52:54:00:00:00:50 PERMANENT");
        let learned = entry("192.0.2.51");
        assert!(learned.contains("extern_learn") && learned.contains("STALE"), "{learned}");
        assert!(entry("192.0.2.52").contains(" managed "));
        host.assert_has("neighbor 192.0.2.50 p0 52:54:00:00:00:50");
    });
}

/// No timer but its own wakes the client: not even a host is there.
#[test]
fn rounds_come_by_themselves() {
    in_namespace("neighbors::rounds_come_by_themselves", || {
        let lab = Lab::new();
        let client = lab
            .client("survey_interval_ms = 3600000\nreconnect_min_ms = 3600000\nreconnect_max_ms = 3600000");
        client.wait_log("Connection refused");
        let rounds = || client.log().matches("looked at the neighbors").count();
        until("the first", || rounds() > 0);
        let (start, before) = (Instant::now(), rounds());
        until("three more", || rounds() >= before + 3);
        // One is due every 2 s, and the first of these may have been due at once.
        assert!(start.elapsed() >= Duration::from_secs(4), "three rounds in {:?}", start.elapsed());
    });
}

#[test]
fn switched_off_it_lets_go() {
    in_namespace("neighbors::switched_off_it_lets_go", || {
        let (lab, _host, _peer, client) = router("", || {
            ip("route add 198.51.100.0/24 via 192.0.2.2");
        });
        until("managed", || entry("192.0.2.2").contains(" managed "));
        drop(client);
        let _client = lab.client("keep_neighbors = false");
        until("released", || !entry("192.0.2.2").contains(" managed "));
    });
}

#[test]
fn without_rights_it_says_so_once() {
    in_namespace("neighbors::without_rights_it_says_so_once", || {
        let lab = Lab::new();
        ip("route add 198.51.100.0/24 via 192.0.2.2");
        ip("route add 198.51.101.0/24 via 192.0.2.3");
        let host = Host::start(&lab, 8);
        let client = lab.client_without_capabilities("");
        host.wait("snapshot", |table| table.snapshots == 1);
        client.wait_log("neighbors may go stale unseen");
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(client.log().matches("neighbors may go stale unseen").count(), 1);
    });
}
