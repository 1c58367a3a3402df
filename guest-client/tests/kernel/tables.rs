//! The kernel's tables reach the host, whatever happens to them.

use crate::support::{Ca, Host, Lab, in_namespace, ip, ip_batch, until};
use rcgen::ExtendedKeyUsagePurpose;

#[test]
fn snapshot_then_changes() {
    in_namespace("tables::snapshot_then_changes", || {
        let lab = Lab::new();
        ip("route add 198.51.100.0/24 via 192.0.2.2");
        ip("-6 route add 2001:db8:1::/48 via 2001:db8::2");
        ip("neigh add 192.0.2.2 lladdr 52:54:00:00:00:02 dev p0 nud permanent");
        let host = Host::start(&lab, 8);
        let _client = lab.client("");
        host.wait("snapshot", |table| table.snapshots == 1);
        host.assert_has("main 198.51.100.0/24 m0 via 192.0.2.2 p0");
        host.assert_has("main 2001:db8:1::/48 m1024 via 2001:db8::2 p0");
        host.assert_has("local 192.0.2.1/32 m0 dev p0");
        host.assert_has("neighbor 192.0.2.2 p0 52:54:00:00:00:02");
        host.assert_has("address 192.0.2.1/24 p0");
        host.assert_has("link p0 up=true running=true");

        ip("route add 203.0.113.0/24 via 192.0.2.3 metric 7");
        host.wait_has("main 203.0.113.0/24 m7 via 192.0.2.3 p0");
        ip("route replace 203.0.113.0/24 via 192.0.2.4 metric 7");
        host.wait_has("main 203.0.113.0/24 m7 via 192.0.2.4 p0");
        ip("route del 203.0.113.0/24 metric 7");
        host.wait_gone("main 203.0.113.0/24");
        ip("route add 203.0.113.0/24 via inet6 fe80::99 dev p0");
        host.wait_has("main 203.0.113.0/24 m0 via fe80::99 p0");
        ip("neigh del 192.0.2.2 dev p0");
        host.wait_gone("neighbor 192.0.2.2");
        host.wait_same_as_kernel();
    });
}

#[test]
fn nexthop_objects_take_their_routes_along() {
    in_namespace("tables::nexthop_objects_take_their_routes_along", || {
        let lab = Lab::new();
        let host = Host::start(&lab, 8);
        let _client = lab.client("");
        host.wait("snapshot", |table| table.snapshots == 1);
        ip("nexthop add id 1 via 192.0.2.2 dev p0");
        ip("nexthop add id 2 via 192.0.2.3 dev p0");
        ip("nexthop add id 10 group 1,3/2");
        host.wait_has("nexthop 10 Group([(1, 3), (2, 1)])");
        for n in 0..20 {
            ip(&format!("route add 198.51.100.{n}/32 nhid 10"));
        }
        host.wait_has("main 198.51.100.19/32 m0 nhid 10");
        ip("nexthop del id 10");
        host.wait_gone("nexthop 10");
        host.wait_gone("main 198.51.100.");
        host.wait_same_as_kernel();
    });
}

#[test]
fn link_down_and_address_gone_remove_routes_silently() {
    in_namespace("tables::link_down_and_address_gone_remove_routes_silently", || {
        let lab = Lab::new();
        ip("route add 198.51.100.0/24 via 192.0.2.2");
        ip("route add 203.0.113.0/24 dev p0 src 192.0.2.1");
        let host = Host::start(&lab, 8);
        let _client = lab.client("");
        host.wait("snapshot", |table| table.snapshots == 1);
        host.assert_has("main 198.51.100.0/24 m0 via 192.0.2.2 p0");
        ip("link set p0 down");
        host.wait_has("link p0 up=false running=false");
        host.wait_gone("main 198.51.100.0/24");
        host.wait_same_as_kernel();
        ip("link set p0 up");
        host.wait_has("main 192.0.2.0/24 m0 dev p0");
        ip("route add 198.51.100.0/24 via 192.0.2.2");
        host.wait_has("main 198.51.100.0/24 m0 via 192.0.2.2 p0");
        ip("addr del 192.0.2.1/24 dev p0");
        host.wait_gone("main 198.51.100.0/24");
        host.wait_gone("address 192.0.2.1");
        host.wait_same_as_kernel();
    });
}

#[test]
fn duplicates_of_a_key() {
    in_namespace("tables::duplicates_of_a_key", || {
        let lab = Lab::new();
        let host = Host::start(&lab, 8);
        let _client = lab.client("");
        host.wait("snapshot", |table| table.snapshots == 1);
        ip("route add 198.51.100.0/24 via 192.0.2.2");
        ip("route append 198.51.100.0/24 via 192.0.2.3");
        // Told after both: the mirror has seen the second.
        ip("route add 203.0.113.0/24 via 192.0.2.2");
        host.wait_has("main 203.0.113.0/24 m0 via 192.0.2.2 p0");
        host.assert_has("main 198.51.100.0/24 m0 via 192.0.2.2 p0");
        ip("route del 198.51.100.0/24 via 192.0.2.2");
        host.wait_has("main 198.51.100.0/24 m0 via 192.0.2.3 p0");
        ip("route prepend 198.51.100.0/24 via 192.0.2.4");
        host.wait_has("main 198.51.100.0/24 m0 via 192.0.2.4 p0");
        ip("route del 198.51.100.0/24 via 192.0.2.4");
        host.wait_has("main 198.51.100.0/24 m0 via 192.0.2.3 p0");
        ip("route del 198.51.100.0/24");
        host.wait_gone("main 198.51.100.0/24");

        // IPv6 makes one route of them.
        ip("-6 route add 2001:db8:1::/48 via 2001:db8::2");
        ip("-6 route append 2001:db8:1::/48 via 2001:db8::3");
        host.wait_has("main 2001:db8:1::/48 m1024 via 2001:db8::2 p0 via 2001:db8::3 p0");
        ip("-6 route del 2001:db8:1::/48 via 2001:db8::2");
        host.wait_has("main 2001:db8:1::/48 m1024 via 2001:db8::3 p0");
        ip("-6 route del 2001:db8:1::/48");
        host.wait_gone("main 2001:db8:1::/48");
        host.wait_same_as_kernel();
    });
}

#[test]
fn lost_events_are_made_up_for() {
    in_namespace("tables::lost_events_are_made_up_for", || {
        let lab = Lab::new();
        let host = Host::start(&lab, 8);
        let client = lab.client("receive_buffer_bytes = 2304");
        host.wait("snapshot", |table| table.snapshots == 1);
        let routes = |verb: &str, from: usize, to: usize| {
            ip_batch(
                &(from..to)
                    .map(|n| format!("route {verb} 10.{}.{}.0/24 via 192.0.2.2\n", n / 256, n % 256))
                    .collect::<String>(),
            );
        };
        // A client that runs may read as fast as the kernel tells: how fast depends on the machine.
        let overflows = || lab.status()["overflows"].as_u64().unwrap();
        let before = overflows();
        client.while_stopped(|| routes("add", 0, 3000));
        until("an event was dropped", || overflows() > before);
        routes("del", 0, 1000);
        host.wait_same_as_kernel();
        assert!(client.log().contains("the kernel dropped events"));
    });
}

/// An event is lost, and nobody says so: not the kernel, nor anything that happens later.
#[test]
fn what_no_event_told_is_found_by_the_clock() {
    in_namespace("tables::what_no_event_told_is_found_by_the_clock", || {
        let lab = Lab::new();
        ip("route add 198.51.100.0/24 via 192.0.2.2");
        ip("route add 198.51.101.0/24 via 192.0.2.2");
        let host = Host::start(&lab, 8);
        let client = lab.client("audit_interval_s = 1\nkeep_neighbors = false");
        host.wait("snapshot", |table| table.snapshots == 1);
        let figure = |name: &str| lab.status()[name].as_u64().unwrap();
        let before = figure("dumps");
        until("audits", || figure("dumps") >= before + 2);

        client.deafen(|| {
            ip("route del 198.51.100.0/24");
            ip("route replace 198.51.101.0/24 via 192.0.2.3");
            ip("-6 route add 2001:db8:1::/48 via 2001:db8::2");
        });
        host.wait_gone("main 198.51.100.0/24");
        host.wait_has("main 198.51.101.0/24 m0 via 192.0.2.3 p0");
        host.wait_has("main 2001:db8:1::/48 m1024 via 2001:db8::2 p0");
        host.wait_same_as_kernel();
        until("report", || figure("repaired") == 3);
        client.wait_log("an audit repaired what no event of the kernel had told");
        assert_eq!(client.log().matches("an audit repaired").count(), 1, "of all three keys");
        assert_eq!(figure("overflows"), 0);

        // Changes of which events tell are nothing to repair, also while audits run.
        let before = figure("dumps");
        let route =
            |n: u64, round: u64| format!("route replace 10.0.{n}.0/24 via 192.0.2.{}\n", 2 + (n + round) % 9);
        let mut round = 0;
        while figure("dumps") < before + 4 {
            assert!(round < 10_000, "no audit comes");
            ip_batch(&(0..200).map(|n| route(n, round)).collect::<String>());
            round += 1;
        }
        assert_eq!(figure("repaired"), 3);
        host.wait_same_as_kernel();
    });
}

#[test]
fn slow_host_slows_the_stream() {
    in_namespace("tables::slow_host_slows_the_stream", || {
        let lab = Lab::new();
        let host = Host::start(&lab, 3);
        let _client = lab.client("");
        host.wait("snapshot", |table| table.snapshots == 1 && table.unacked == 0);
        host.hold(true);
        let before = host.table().messages;
        for round in 0..30 {
            ip(&format!("route replace 198.51.100.0/24 via 192.0.2.{}", 2 + round));
        }
        until("backlog", || lab.status()["backlog"] == 1);
        // The peer itself asserts that the window holds.
        assert_eq!(host.table().messages, before + 3);
        host.hold(false);
        host.wait_has("main 198.51.100.0/24 m0 via 192.0.2.31 p0");
        host.wait("all", |table| table.unacked == 0);
        assert_eq!(host.table().messages, before + 4, "27 changes of one key became one");
    });
}

#[test]
fn hosts_that_are_none_are_refused() {
    in_namespace("tables::hosts_that_are_none_are_refused", || {
        let lab = Lab::new();
        let client = lab.client("");
        client.wait_log("Connection refused");
        for (ca, uri, usage, reason) in [
            (
                &Ca::new(),
                "xenflow://node/a",
                ExtendedKeyUsagePurpose::ServerAuth,
                "invalid peer certificate: ",
            ),
            (
                &lab.ca,
                "xenflow://router/r2",
                ExtendedKeyUsagePurpose::ServerAuth,
                "it is that of xenflow://router/r2, not of xenflow://node/NAME",
            ),
            (
                &lab.ca,
                "xenflow://node/a",
                ExtendedKeyUsagePurpose::ClientAuth,
                "does not allow extended key usage for server authentication",
            ),
            (&lab.ca, "https://node/a", ExtendedKeyUsagePurpose::ServerAuth, "0 URIs of the form xenflow"),
        ] {
            let host = Host::start_as(&lab, 8, &ca.issue(uri, usage));
            client.wait_log(reason);
            assert_eq!(host.table().sessions, 0);
        }
        let host = Host::start(&lab, 8);
        host.wait("snapshot", |table| table.snapshots == 1);
    });
}
