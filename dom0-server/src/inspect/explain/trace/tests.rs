use openflow::mac_bits;

use super::*;
use crate::inspect::explain::frame::Frame;

fn steps(text: &str) -> Vec<(u8, Option<u16>, String)> {
    let trace = parse(text).unwrap();
    let of = |seen: &Seen| {
        (seen.table, seen.flow.as_ref().map(|(_, priority, _)| *priority), seen.actions.join(" "))
    };
    trace.steps.iter().map(of).collect()
}

/// A group behind a comparison of lengths: both ways, clones, nested lookups and lookups that meet nothing.
#[test]
fn each_action_belongs_to_its_own_step() {
    let text = include_str!("group.txt");
    let seen = steps(text);
    let tables: Vec<u8> = seen.iter().map(|(table, ..)| *table).collect();
    assert_eq!(tables, [0, 1, 2, 10, 3, 4, 5, 6, 7, 9, 8, 8, 4, 5, 9, 8]);
    assert_eq!(
        seen[0],
        (0, Some(200), "push_vlan:0x8100 set_field:4196->vlan_vid set_field:0x1->reg1 resubmit(,1)".into())
    );
    assert_eq!(seen[2], (2, Some(1), "resubmit(,10) resubmit(,3)".into()));
    assert_eq!(seen[3], (10, None, String::new()));
    let bucket = "group:65537 set_field:0x10002->xreg3 resubmit(,4)";
    assert_eq!(seen[4], (3, Some(74), format!("check_pkt_larger(1014)->NXM_NX_REG0[2] {bucket} {bucket}")));
    assert_eq!(seen[6].2, "set_field:0->reg2 resubmit(,6) resubmit(,7)");
    assert_eq!(seen[8].2, "resubmit(,9) set_field:0x2->reg2 resubmit(,8) set_field:0x3->reg2 resubmit(,8)");
    assert_eq!([&seen[10].2, &seen[11].2], ["pop_vlan output:2", "pop_vlan output:3"]);
    let trace = parse(text).unwrap();
    let pick = Pick { group: 65537, bucket: 1 };
    assert_eq!(trace.hints(), Hints { learned: Vec::new(), picks: vec![pick, pick] });
    assert_eq!(trace.steps[12].flow.as_ref().unwrap().2, 0x5846_0200_0001_0000);
    assert!(trace.datapath.starts_with("push_vlan(vid=100,pcp=0),check_pkt_len(size=1014,gt("));
}

#[test]
fn what_the_switch_learned_is_read_as_a_flow() {
    let trace = parse(include_str!("learned.txt")).unwrap();
    let matching = Match::builder().masked(Field::VlanVid, 100, 0xfff).eth_dst([2, 0, 0, 0, 0, 0x77]).build();
    let flow = Flow::new(LEARNED, 10, 0x5846_0300_0064_0000, matching);
    let load = Action::set_field(Field::Reg(OUT_PORT), 3);
    assert_eq!(trace.hints(), Hints { learned: vec![flow.apply([load])], picks: Vec::new() });
    assert_eq!(trace.steps[0].remarks, ["suppressing side effects, so learn action ignored"]);
}

#[test]
fn a_drop_is_a_step_that_meets_nothing() {
    let trace = parse(include_str!("miss.txt")).unwrap();
    assert_eq!(trace.datapath, "drop");
    assert_eq!(trace.steps.last().unwrap(), &Seen { table: 3, ..Seen::default() });
}

#[test]
fn what_is_no_trace_is_refused() {
    for text in [
        "",
        "br1: unknown bridge",
        "Flow: arp\n\nbridge(\"br0\")\n-----\n",
        "-----\n 0. priority x\n    drop\nDatapath actions: drop\n",
        "-----\n 300. priority 1\n    drop\nDatapath actions: drop\n",
        "-----\n    drop\nDatapath actions: drop\n",
        "-----\n 0. priority 1\n    drop\n",
        "-----\n 0. priority 1, cookie 0xg\n    drop\nDatapath actions: drop\n",
    ] {
        assert!(matches!(parse(text), Err(TraceError::Syntax(_))), "{text}");
    }
}

#[test]
fn a_packet_is_written_as_its_fields() {
    let udp = "02000000000102000000000808004500001c00000000401100000a0001080a0002070001000900080000";
    let packet = Frame::parse(udp).unwrap();
    assert_eq!(
        flow(1, packet.packet()),
        "in_port=1,vlan_tci=0x0000,dl_src=02:00:00:00:00:08,dl_dst=02:00:00:00:00:01,dl_type=0x0800,nw_proto=17,\
         nw_src=10.0.1.8,nw_dst=10.0.2.7,ip_dscp=0,nw_ecn=0,nw_ttl=64,udp_src=1,udp_dst=9,ip_frag=no"
    );
    let packet =
        Packet::default().with(Field::EthSrc, mac_bits([2; 6])).with(Field::EthDst, mac_bits([4; 6]));
    let tag = xenflow_flow_app::sim::Tag::new;
    assert_eq!(
        flow(2, &packet.tagged(tag(7)).tagged(tag(100))),
        "in_port=2,dl_vlan=100,dl_vlan_pcp=0,dl_src=02:02:02:02:02:02,dl_dst=04:04:04:04:04:04,dl_type=0x8100"
    );
}
