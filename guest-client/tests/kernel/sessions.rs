//! Sessions that break, hosts that come back and others in their place.

use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose;
use xenflow_proto::control;

use crate::support::{Host, Lab, NOT_BY_ITSELF, in_namespace, ip, until};

#[test]
fn a_host_that_holds_the_tables_gets_the_difference() {
    in_namespace("sessions::a_host_that_holds_the_tables_gets_the_difference", || {
        let lab = Lab::new();
        ip("route add 198.51.100.0/24 via 192.0.2.2");
        let host = Host::start(&lab, 8);
        let client = lab.client("");
        host.wait("snapshot", |table| table.snapshots == 1);
        host.wait_has("main 198.51.100.0/24 m0 via 192.0.2.2 p0");

        host.cut();
        host.wait("resume", |table| table.resumes == 1);
        assert_eq!((host.table().changes, host.table().snapshots), (0, 1), "nothing has changed");
        until("resumed", || lab.status()["resumed"] == true && lab.status()["state"] == "up");

        // As for a client that starts anew: the host keeps the tables.
        drop(client);
        let client = lab.client("");
        host.wait("resume of a new client", |table| table.resumes == 2);
        assert_eq!((host.table().changes, host.table().snapshots), (0, 1), "nothing has changed");

        // Changed while nobody listens.
        let table = host.table();
        drop(host);
        client.wait_log("Connection refused");
        ip("route add 203.0.113.0/24 via 192.0.2.2");
        ip("route del 198.51.100.0/24");
        until("backlog", || lab.status()["backlog"] == 2);
        let host = Host::start_with(&lab, 8, table);
        host.wait("resume of the difference", |table| table.resumes == 3);
        assert_eq!((host.table().changes, host.table().snapshots), (2, 1), "two routes have changed");
        host.wait_same_as_kernel();
    });
}

#[test]
fn a_host_that_holds_nothing_gets_a_snapshot() {
    in_namespace("sessions::a_host_that_holds_nothing_gets_a_snapshot", || {
        let lab = Lab::new();
        ip("route add 198.51.100.0/24 via 192.0.2.2");
        let host = Host::start(&lab, 8);
        let client = lab.client("");
        host.wait("snapshot", |table| table.snapshots == 1);
        drop(host);
        ip("route del 198.51.100.0/24");
        client.wait_log("Connection refused");
        let host = Host::start(&lab, 8);
        host.wait("second snapshot", |table| table.snapshots == 1);
        host.wait_same_as_kernel();
        until("up", || lab.status()["state"] == "up" && lab.status()["node"] == "a");
        assert_eq!(lab.status()["resumed"], false);
        // A link event at the control interface makes it look at once.
        ip("link set ctl0 down");
        client.wait_log("control interface changed");
        ip("link set ctl0 up");
        ip("route add 203.0.113.0/24 via 192.0.2.2");
        host.wait_has("main 203.0.113.0/24 m0 via 192.0.2.2 p0");
    });
}

#[test]
fn a_nudge_of_the_host_makes_the_client_look_at_once() {
    in_namespace("sessions::a_nudge_of_the_host_makes_the_client_look_at_once", || {
        let lab = Lab::new();
        let client = lab.client(NOT_BY_ITSELF);
        client.wait_log("Connection refused");
        let host = Host::start(&lab, 8);
        ip("addr add fe80::2/64 dev ctl1 nodad");
        lab.datagram("fe80::2", control::NUDGE);
        client.wait_log("not a nudge");
        lab.datagram("fe80::1", b"xenflow nudge 2");
        std::thread::sleep(Duration::from_millis(200));
        assert!(!client.log().contains("nudged"), "neither is one");

        lab.datagram("fe80::1", control::NUDGE);
        host.wait("snapshot", |table| table.snapshots == 1);
        // In a session it only asks whether the host is still there.
        lab.datagram("fe80::1", control::NUDGE);
        until("another nudge", || client.log().matches("nudged").count() == 2);
        host.wait_same_as_kernel();
        assert_eq!(host.table().sessions, 1);
    });
}

/// The old host is gone without a word, as the guest was moved; the new one holds the tables.
#[test]
fn nudges_end_a_session_that_is_dead() {
    in_namespace("sessions::nudges_end_a_session_that_is_dead", || {
        let lab = Lab::new();
        let host = Host::start(&lab, 8);
        let client = lab.client("");
        host.wait("snapshot", |table| table.snapshots == 1 && table.unacked == 0);
        // One that ends at once would not count as a good one.
        std::thread::sleep(Duration::from_millis(1100));
        host.desert();
        std::thread::sleep(Duration::from_millis(100));
        until("another session", || {
            lab.datagram("fe80::1", control::NUDGE);
            std::thread::sleep(Duration::from_millis(200));
            host.table().sessions > 1
        });
        // Timers would have ended it as well, later and with other words.
        assert!(client.log().contains("nudged by a host that does not know of the session"));
        host.wait("resume", |table| table.resumes == 1);
        assert_eq!(host.table().changes, 0);
    });
}

#[test]
fn the_certificate_is_renewed_in_time() {
    in_namespace("sessions::the_certificate_is_renewed_in_time", || {
        let lab = Lab::new();
        let host = Host::start(&lab, 8);
        let renewed = lab.configure_to_renew();
        assert_ne!(lab.certificate(), renewed.chain[0]);
        host.renew(renewed.clone());
        let client = lab.client_as_configured();
        client.wait_log("the certificate was renewed");
        assert_eq!(lab.certificate(), renewed.chain[0]);
        // It is what the next session is made with.
        host.cut();
        host.wait("resume", |table| table.resumes == 1);
    });
}

/// The host's certificate is taken back under a session: that ends, and there is none until the host has another one.
#[test]
fn a_node_that_is_revoked_is_left_and_not_come_back_to() {
    in_namespace("sessions::a_node_that_is_revoked_is_left_and_not_come_back_to", || {
        let lab = Lab::new();
        let identity = lab.ca.issue("xenflow://node/a", ExtendedKeyUsagePurpose::ServerAuth);
        let host = Host::start_as(&lab, 8, &identity);
        let client = lab.client("reconnect_max_ms = 200");
        host.wait("snapshot", |table| table.snapshots == 1 && table.unacked == 0);
        // A list that revokes somebody else changes nothing.
        lab.revoke(&[]);
        client.wait_log("authorities and revocation lists were read again");
        assert_eq!(host.table().sessions, 1);

        lab.revoke(&[&identity.0]);
        client.wait_log("the certificate of the host counts no more: it was revoked");
        client.wait_log("TLS with fe80::1 at ctl0: certificate of the host: it was revoked");
        // Neither a file that is broken nor one that is gone brings it back.
        std::fs::write(lab.dir.path().join("crl.pem"), "-----BEGIN X509 CRL-----\n").unwrap();
        until("the broken list", || client.log().matches("what was read before stays in force").count() == 1);
        std::fs::remove_file(lab.dir.path().join("crl.pem")).unwrap();
        client.wait_log("a revocation list that was in or beside");
        std::thread::sleep(Duration::from_millis(600));
        assert_eq!(host.table().sessions, 1, "no session with who was revoked");
        drop(host);

        let other = lab.ca.issue("xenflow://node/a", ExtendedKeyUsagePurpose::ServerAuth);
        let host = Host::start_as(&lab, 8, &other);
        host.wait("snapshot", |table| table.snapshots == 1);
        assert_eq!(client.log().matches("counts no more").count(), 1);
    });
}
