//! What stands in the way of destination-only forwarding is told to the host while it is there.

use std::process::Command;

use crate::support::nftables::{Chain, Nftables};
use crate::support::uml::in_user_mode_linux;
use crate::support::{Client, Host, Lab, in_namespace, ip, sysctl, until};
use xenflow_proto::{Key, Object};

/// What the kernel tells of must be there long before the next survey by the clock.
const SELDOM: &str = "survey_interval_ms = 3600000";
const OFTEN: &str = "survey_interval_ms = 100";

fn tc(words: &str) {
    let output = Command::new("tc").args(words.split_whitespace()).output().expect("tc (iproute2) is needed");
    assert!(output.status.success(), "tc {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A router that only forwards, and its host after the snapshot.
fn router(more: &str) -> (Lab, Host, Client) {
    let lab = Lab::new();
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        sysctl(setting, "1");
    }
    let host = Host::start(&lab, 8);
    let client = lab.client(more);
    host.wait("snapshot", |table| table.snapshots == 1);
    host.assert_none("obstacle ");
    (lab, host, client)
}

#[test]
fn a_plain_router_has_settings_and_no_obstacles() {
    in_namespace("obstacles::a_plain_router_has_settings_and_no_obstacles", || {
        let lab = Lab::new();
        sysctl("ipv4/ip_forward", "1");
        sysctl("ipv4/fib_multipath_hash_policy", "1");
        let host = Host::start(&lab, 8);
        let _client = lab.client(OFTEN);
        host.wait("snapshot", |table| table.snapshots == 1);
        let told = |v4, v6| format!("settings Settings {{ ipv4_hash_policy: {v4}, ipv6_hash_policy: {v6} }}");
        host.assert_has(&told(1, 0));
        host.assert_has("obstacle ForwardingOff V6 p0: net.ipv6.conf.all.forwarding = 0");
        assert_eq!(lab.status()["obstacles"].as_array().unwrap().len(), 4, "those of four links");
        sysctl("ipv6/conf/all/forwarding", "1");
        host.wait_gone("obstacle ");
        sysctl("ipv6/fib_multipath_hash_policy", "2");
        host.wait_has(&told(1, 2));
        until("no obstacles", || lab.status()["obstacles"].as_array().unwrap().is_empty());
        // A survey that finds nothing new asks for nothing.
        let (dumps, messages) = (lab.status()["dumps"].clone(), host.table().messages);
        std::thread::sleep(std::time::Duration::from_secs(1));
        assert_eq!((lab.status()["dumps"].clone(), host.table().messages), (dumps, messages));
    });
}

#[test]
fn forwarding_and_reverse_path_filter() {
    in_namespace("obstacles::forwarding_and_reverse_path_filter", || {
        let (_lab, host, _client) = router(SELDOM);
        sysctl("ipv4/conf/p0/forwarding", "0");
        host.wait_has("obstacle ForwardingOff V4 p0: net.ipv4.conf.p0.forwarding = 0");
        sysctl("ipv4/conf/p0/rp_filter", "2");
        host.wait_has("obstacle ReversePathFilter V4 p0: net.ipv4.conf.p0.rp_filter = 2");
        sysctl("ipv4/conf/p0/forwarding", "1");
        sysctl("ipv4/conf/p0/rp_filter", "0");
        host.wait_gone("obstacle ");
        sysctl("ipv4/conf/all/rp_filter", "1");
        host.wait_has("obstacle ReversePathFilter V4 p1: net.ipv4.conf.all.rp_filter = 1");
        sysctl("ipv4/conf/all/rp_filter", "0");
        host.wait_gone("obstacle ");
        // Of no meaning for IPv6: only that of all counts.
        sysctl("ipv6/conf/p0/forwarding", "0");
        sysctl("ipv6/conf/all/forwarding", "0");
        host.wait_has("obstacle ForwardingOff V6 p0: net.ipv6.conf.all.forwarding = 0");
        sysctl("ipv6/conf/all/forwarding", "1");
        host.wait_gone("obstacle ");
        sysctl("ipv6/conf/p0/disable_ipv6", "1");
        host.wait_has("obstacle ForwardingOff V6 p0: net.ipv6.conf.p0.disable_ipv6 = 1");
        sysctl("ipv6/conf/p0/disable_ipv6", "0");
        host.wait_gone("obstacle ");
    });
}

#[test]
fn rules() {
    in_namespace("obstacles::rules", || {
        let (_lab, host, _client) = router(SELDOM);
        ip("rule add from 10.0.0.0/8 lookup 7 pref 100");
        host.wait_has("obstacle Rules V4 all: 100: from 10.0.0.0/8 lookup 7");
        ip("rule add fwmark 1 lookup 8 pref 101");
        host.wait_has("obstacle Rules V4 all: 100: from 10.0.0.0/8 lookup 7 and 1 more");
        ip("rule del pref 100");
        host.wait_has("obstacle Rules V4 all: 101: from all fwmark 0x1 lookup 8");
        ip("rule del pref 101");
        host.wait_gone("obstacle ");
        ip("-6 rule add iif p0 prohibit pref 5");
        host.wait_has("obstacle Rules V6 all: 5: from all iif p0 action 8");
        ip("-6 rule del pref 5");
        host.wait_gone("obstacle ");
        // As administrators of VRFs do; the host punts what is local wherever its rule stands.
        ip("rule add lookup local pref 32765");
        host.wait_has("obstacle Rules V4 all: 32765: from all lookup 255");
        ip("rule del pref 0");
        host.wait_gone("obstacle ");
        ip("rule del pref 32766");
        host.wait_has("obstacle Rules V4 all: no rule 32766: from all lookup 254");
        ip("rule add lookup main pref 32766");
        host.wait_gone("obstacle ");
        ip("rule add l3mdev pref 1000");
        ip("-6 rule add not from 2001:db8::/32 lookup main pref 7");
        host.wait_has("obstacle Rules V6 all: 7: not from 2001:db8::/32 lookup 254");
        host.assert_none("obstacle Rules V4");
    });
}

#[test]
fn nftables_chains() {
    in_namespace("obstacles::nftables_chains", || {
        let (_lab, host, _client) = router(SELDOM);
        let mut nft = Nftables::open();
        nft.add_table("inet", "filter");
        nft.add_chain("inet", "filter", &Chain::hooked("input", "filter", 1));
        nft.add_chain("inet", "filter", &Chain::plain("helper"));
        nft.add_chain("inet", "filter", &Chain::hooked("forward", "filter", 2));
        host.wait_has("obstacle Netfilter both all: table inet filter chain forward hook forward");
        nft.add_table("ip", "nat");
        nft.add_chain("ip", "nat", &Chain::hooked("post", "nat", 4));
        host.wait_has("obstacle Netfilter V4 all: table ip nat chain post hook postrouting");
        nft.add_table("ip6", "raw");
        nft.add_chain("ip6", "raw", &Chain::hooked("pre", "filter", 0));
        host.wait_has("obstacle Netfilter V6 all: table ip6 raw chain pre hook prerouting");
        nft.add_table("netdev", "edge");
        nft.add_chain("netdev", "edge", &Chain::hooked("in", "filter", 0).on("p0"));
        host.wait_has("obstacle Netfilter both p0: table netdev edge chain in hook ingress");
        nft.delete_chain("inet", "filter", "forward");
        host.wait_gone("obstacle Netfilter both all");
        for (family, table) in [("ip", "nat"), ("ip6", "raw"), ("netdev", "edge")] {
            nft.delete_table(family, table);
        }
        host.wait_gone("obstacle ");
    });
}

/// There is no program needed to have such a table: naming one to the kernel is enough, here by
/// `IPT_SO_SET_ADD_COUNTERS` with numbers that it then refuses. (Linux before 5.15 has them from the start.)
fn name_a_table_of_iptables(family: u32, level: u32, table: &str) {
    let script = format!(
        "socket(S, {family}, 3, 255) or die; setsockopt(S, {level}, 65, pack('a32 L x4 Q Q', '{table}', 1, 0, 0));"
    );
    let status = Command::new("perl").args(["-e", &script]).status().expect("perl is needed");
    assert!(status.success(), "perl: {status}");
}

#[test]
fn tables_of_iptables_legacy_are_found_by_the_clock() {
    in_namespace("obstacles::tables_of_iptables_legacy_are_found_by_the_clock", || {
        let (_lab, host, _client) = router(OFTEN);
        name_a_table_of_iptables(2, 0, "filter");
        host.wait_has("obstacle Netfilter V4 all: iptables-legacy table filter");
        name_a_table_of_iptables(10, 41, "mangle");
        host.wait_has("obstacle Netfilter V6 all: iptables-legacy table mangle");
    });
}

#[test]
fn xfrm_policies() {
    in_namespace("obstacles::xfrm_policies", || {
        let (_lab, host, _client) = router(SELDOM);
        let selector = "src 10.0.0.0/8 dst 10.1.0.0/16 dir fwd";
        ip(&format!("xfrm policy add {selector} tmpl src 192.0.2.2 dst 192.0.2.1 proto esp mode tunnel"));
        host.wait_has(&format!("obstacle Xfrm V4 all: {selector}"));
        ip(&format!("xfrm policy del {selector}"));
        host.wait_gone("obstacle ");
        ip("xfrm policy add src 2001:db8::/32 dst ::/0 dir out action block");
        host.wait_has("obstacle Xfrm V6 all: src 2001:db8::/32 dst ::/0 dir out");
        ip("xfrm policy flush");
        host.wait_gone("obstacle ");
        ip("xfrm policy setdefault fwd block");
        host.wait_has("obstacle Xfrm both all: default block dir fwd");
        ip("xfrm policy setdefault fwd accept");
        host.wait_gone("obstacle ");
    });
}

#[test]
fn traffic_control() {
    in_namespace("obstacles::traffic_control", || {
        let (_lab, host, _client) = router(SELDOM);
        tc("qdisc add dev p0 clsact");
        host.wait_has("obstacle TrafficControl both p0: qdisc clsact");
        tc("qdisc add dev p1 handle ffff: ingress");
        host.wait_has("obstacle TrafficControl both p1: qdisc ingress");
        tc("qdisc del dev p0 clsact");
        tc("qdisc del dev p1 ingress");
        host.wait_gone("obstacle ");
        // A discipline alone decides about nothing but time.
        tc("qdisc add dev p0 root handle 1: htb");
        tc("class add dev p0 parent 1: classid 1:10 htb rate 10mbit");
        tc("qdisc add dev p1 clsact");
        host.wait_has("obstacle TrafficControl both p1: qdisc clsact");
        host.assert_none("obstacle TrafficControl both p0");
    });
}

#[test]
fn filters_of_traffic_control() {
    // The machine's own kernel may lack the classifiers.
    let modules = "ipv6 veth sch_htb sch_prio cls_matchall cls_u32";
    in_user_mode_linux("obstacles::filters_of_traffic_control", modules, || {
        ip("link set lo up");
        let (_lab, host, _client) = router(OFTEN);
        tc("qdisc add dev p0 root handle 1: htb");
        tc("class add dev p0 parent 1: classid 1:10 htb rate 10mbit");
        tc("filter add dev p0 parent 1: protocol ip u32 match ip dst 10.0.0.0/8 flowid 1:10");
        host.wait_has("obstacle TrafficControl both p0: filter u32 at 1:0 (htb) and 2 more");
        tc("filter del dev p0 parent 1:");
        host.wait_gone("obstacle ");
        tc("filter add dev p0 parent 1:10 matchall flowid 1:10");
        host.wait_has("obstacle TrafficControl both p0: filter matchall at 1:10 (htb) and 1 more");
        tc("qdisc del dev p0 root");
        host.wait_gone("obstacle ");
    });
}

#[test]
fn a_new_link_is_not_trusted_before_it_was_looked_at() {
    in_namespace("obstacles::a_new_link_is_not_trusted_before_it_was_looked_at", || {
        let (_lab, host, _client) = router(SELDOM);
        sysctl("ipv4/conf/default/rp_filter", "1");
        // Told as it was told: the host asserts that no link comes before word of it.
        host.watch_links();
        ip("link add p2 type veth peer name p3");
        host.wait_has("obstacle ReversePathFilter V4 p2: net.ipv4.conf.p2.rp_filter = 1");
        host.wait_gone("obstacle Unreadable");
        ip("link del p2");
        // The other links were never set otherwise.
        sysctl("ipv4/conf/default/rp_filter", "0");
        host.wait_gone("obstacle ");
    });
}

#[test]
fn without_rights_it_says_what_it_cannot_read() {
    in_namespace("obstacles::without_rights_it_says_what_it_cannot_read", || {
        let lab = Lab::new();
        sysctl("ipv4/ip_forward", "1");
        sysctl("ipv6/conf/all/forwarding", "1");
        let host = Host::start(&lab, 8);
        let _client = lab.client_without_capabilities(OFTEN);
        host.wait("snapshot", |table| table.snapshots == 1);
        host.assert_has(
            "obstacle Unreadable both all: nftables: Operation not permitted (os error 1) and 1 more",
        );
    });
}

#[test]
fn the_mtu_of_ipv6() {
    in_namespace("obstacles::the_mtu_of_ipv6", || {
        let (_lab, host, _client) = router(OFTEN);
        let mtu = |wanted| {
            host.wait(&format!("{wanted:?}"), |table| {
                table.objects.values().any(|object| {
                    matches!(object, Object::Link(link) if link.name == "p0" && link.ipv6_mtu == wanted)
                })
            });
        };
        mtu(Some(1500));
        sysctl("ipv6/conf/p0/mtu", "1400");
        mtu(Some(1400));
        ip("link set p0 mtu 1300");
        mtu(Some(1300));
        ip("link set p0 mtu 1000");
        mtu(None);
        host.wait_has("obstacle ForwardingOff V6 p0: IPv6 is not on p0");
        assert!(host.table().objects.contains_key(&Key::Settings));
    });
}
