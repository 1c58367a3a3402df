//! VRFs: tables of their own, whose routes come and go with the links in them.

use crate::support::uml::in_user_mode_linux;
use crate::support::{Host, Lab, ip, sysctl};
use xenflow_proto::Object;
use xenflow_proto::table::Link;

fn has_link(host: &Host, what: &str, is: impl Fn(&Link) -> bool) {
    host.wait(what, |table| table.objects.values().any(|o| matches!(o, Object::Link(link) if is(link))));
}

#[test]
fn routes_of_a_vrf_follow_its_links() {
    in_user_mode_linux("vrf::routes_of_a_vrf_follow_its_links", "veth vrf", || {
        ip("link set lo up");
        let lab = Lab::new();
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            sysctl(setting, "1");
        }
        // Not flushed with the link.
        sysctl("ipv6/conf/p0/keep_addr_on_down", "1");
        ip("route add 198.51.100.0/24 via 192.0.2.2");
        let host = Host::start(&lab, 8);
        let _client = lab.client("");
        host.wait("snapshot", |table| table.snapshots == 1);
        host.assert_none("obstacle ");

        // The first one brings the rules of VRFs with it.
        ip("link add red type vrf table 100");
        ip("link set red up");
        has_link(&host, "the VRF", |link| link.kind == "vrf" && link.vrf_table == Some(100));
        ip("link set p0 master red");
        has_link(&host, "its link", |link| link.name == "p0" && link.master.is_some());
        host.wait_gone("main 192.0.2.0/24");
        host.wait_gone("main 198.51.100.0/24");
        host.wait_has("table100 192.0.2.0/24 m0 dev p0");
        host.wait_has("table100 192.0.2.1/32 m0 dev p0");
        ip("route add 198.51.100.0/24 via 192.0.2.2 vrf red");
        ip("-6 route add 2001:db8:1::/48 via 2001:db8::2 vrf red");
        ip("route add unreachable default metric 4278198272 vrf red");
        host.wait_has("table100 198.51.100.0/24 m0 via 192.0.2.2 p0");
        host.wait_has("table100 2001:db8:1::/48 m1024 via 2001:db8::2 p0");
        host.wait_same_as_kernel();
        host.wait_gone("obstacle ");

        ip("link set p0 nomaster");
        host.wait_gone("table100 198.51.100.0/24");
        host.wait_gone("table100 2001:db8:1::/48");
        host.wait_has("main 192.0.2.0/24 m0 dev p0");
        host.wait_same_as_kernel();

        ip("link set p0 master red");
        host.wait_has("table100 192.0.2.0/24 m0 dev p0");
        ip("rule del l3mdev pref 1000");
        host.wait_has("obstacle Rules V4 all: VRF red without a rule [l3mdev-table] before main");
        ip("rule add l3mdev pref 1000");
        host.wait_gone("obstacle ");
        ip("rule add l3mdev pref 32767");
        host.wait_has("obstacle Rules V4 all: 32767: from all lookup [l3mdev-table]");
        ip("rule del l3mdev pref 32767");
        ip("link del red");
        // The unreachable route is of no link, and stays.
        host.wait_gone("table100 192.");
        host.wait_gone("obstacle ");
        host.wait_same_as_kernel();
    });
}
