//! `ovs-ofctl ofp-print` as an independent reader of every kind of message that the crate writes.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

use bytes::{Bytes, BytesMut};
use openflow::action::{Controller, port};
use openflow::*;
use std::process::Command;

/// What `ovs-ofctl` makes of a message, in one line.
fn print(message: &Message) -> String {
    let mut out = BytesMut::from(&[0xa5; 3][..]);
    message.encode(0x11, &mut out).unwrap();
    let hex: String = out[3..].iter().map(|b| format!("{b:02x}")).collect();
    let run = Command::new("ovs-ofctl").args(["-O", "OpenFlow15", "ofp-print", &hex]).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn flow(actions: impl Into<Vec<Action>>) -> Message {
    let m = Match::builder()
        .in_port(1)
        .vlan(9)
        .ipv4_dst_prefix("10.1.0.0".parse().unwrap(), 16)
        .reg_masked(1, 2, 3);
    Message::FlowMod(FlowMod::add(
        Flow::new(4, 100, 0xc0ffee, m.build()).apply(actions).write_metadata(1, 3).goto(7),
    ))
}

#[test]
fn messages_as_ovs_reads_them() {
    let group = Group {
        id: 7,
        kind: GroupType::Select,
        buckets: vec![
            Bucket::weighted(1, 10, [Action::output(2)]),
            Bucket::weighted(2, 20, [Action::output(3)]),
        ],
        selection: Some(Selection::hash([Field::Ipv4Dst, Field::IpProto])),
    };
    let learn = Learn {
        hard_timeout: 10,
        table: 5,
        limit: 9,
        specs: vec![
            LearnSpec::Match(LearnSrc::Field(Field::EthSrc.whole()), (Field::EthDst, 0)),
            LearnSpec::Load(LearnSrc::value(3, 4), (Field::Reg(2), 4)),
            LearnSpec::Output(Field::Reg(1).whole()),
        ],
        ..Learn::default()
    };
    let control = |kind| Message::BundleCtrl(BundleCtrl { id: 1, kind, flags: 3 });
    let filter = FlowFilter { table: 3, cookie: 5, cookie_mask: 0xff, ..FlowFilter::default() };
    let all = || FlowMod::delete_by_cookie(flow::ALL_TABLES, 0x10, 0xf0);
    let request = Message::MultipartRequest;
    for (message, expected) in [
        (Message::Hello(Hello::V15), "OFPT_HELLO (OF1.5) (xid=0x11): version bitmap: 0x06"),
        (
            Message::EchoRequest(Bytes::from_static(b"ab")),
            "OFPT_ECHO_REQUEST (OF1.5) (xid=0x11): 2 bytes of payload",
        ),
        (Message::EchoReply(Bytes::new()), "OFPT_ECHO_REPLY (OF1.5) (xid=0x11): 0 bytes of payload"),
        (Message::FeaturesRequest, "OFPT_FEATURES_REQUEST (OF1.5) (xid=0x11):"),
        (
            Message::SetConfig { flags: 0, miss_send_len: 128 },
            "OFPT_SET_CONFIG (OF1.5) (xid=0x11): frags=normal miss_send_len=128",
        ),
        (
            Message::SetPacketInFormat(true),
            "NXT_SET_PACKET_IN_FORMAT (OF1.5) (xid=0x11): format=nxt_packet_in2",
        ),
        (Message::BarrierRequest, "OFPT_BARRIER_REQUEST (OF1.5) (xid=0x11):"),
        (Message::BarrierReply, "OFPT_BARRIER_REPLY (OF1.5) (xid=0x11):"),
        (
            flow([Action::DecTtl, Action::set_field(Field::EthDst, 5), Action::PopVlan, Action::output(2)]),
            "OFPT_FLOW_MOD (OF1.5) (xid=0x11): ADD table:4 priority=100,ip,reg1=0x2/0x3,in_port=1,dl_vlan=9,\
             nw_dst=10.1.0.0/16 cookie:0xc0ffee actions=dec_ttl,set_field:00:00:00:00:00:05->eth_dst,pop_vlan,\
             output:2,write_metadata:0x1/0x3,goto_table:7",
        ),
        (
            flow([
                Action::Clone([Action::resubmit(3)].into()),
                Action::CheckPktLarger { len: 99, dst: (Field::Reg(0), 3) },
                Action::OutputReg { src: Field::Reg(2).slice(0, 16), max_len: 0 },
                Action::OutputTrunc { port: 7, max_len: 64 },
                Action::SetQueue(4),
                Action::PopQueue,
            ]),
            "clone(resubmit(,3)),check_pkt_larger(99)->NXM_NX_REG0[3],output:NXM_NX_REG2[0..15],\
             output(port=7,max_len=64),set_queue:4,pop_queue",
        ),
        (
            flow([Action::Learn(Box::new(learn))]),
            "learn(table=5,hard_timeout=10,priority=0,limit=9,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],\
             load:0x3->NXM_NX_REG2[4..7],output:NXM_NX_REG1[])",
        ),
        (
            flow([
                Action::CopyField { src: Field::Reg(1).slice(0, 4), dst: (Field::Reg(2), 8) },
                Action::Meter(4),
            ]),
            "move:NXM_NX_REG1[0..3]->NXM_NX_REG2[8..11],meter:4",
        ),
        (
            flow([Action::Controller(Box::new(Controller {
                userdata: [1, 2].into(),
                meter: Some(3),
                ..Default::default()
            }))]),
            "controller(userdata=01.02,meter_id=3)",
        ),
        (
            flow([Action::PushVlan(0x8100), Action::Group(8), Action::output(port::IN_PORT)]),
            "push_vlan:0x8100,group:8,IN_PORT",
        ),
        (
            Message::FlowMod(all()),
            "OFPT_FLOW_MOD (OF1.5) (xid=0x11): DEL table:255 priority=0 cookie:0x10/0xf0 actions=drop",
        ),
        (
            Message::FlowMod(FlowMod::delete_strict(2, 9, Match::any())),
            "DEL_STRICT table:2 priority=9 actions=drop",
        ),
        (
            Message::FlowMod(FlowMod {
                check_overlap: true,
                reset_counts: true,
                ..FlowMod::add(Flow { flags: 1, importance: 3, ..Flow::default() })
            }),
            "importance:3 send_flow_rem check_overlap reset_counts actions=drop",
        ),
        (
            Message::GroupMod(GroupMod::new(GroupCommand::Add, group)),
            "OFPT_GROUP_MOD (OF1.5) (xid=0x11): ADD group_id=7,type=select,selection_method=hash,\
             fields(ip_dst,nw_proto),bucket=bucket_id:1,weight:10,actions=output:2,bucket=bucket_id:2,weight:20,\
             actions=output:3",
        ),
        (Message::GroupMod(GroupMod::delete(group::ALL_GROUPS)), "DEL group_id=4294967292"),
        (
            Message::MeterMod(MeterMod::new(MeterCommand::Modify, Meter::drop_pktps(3, 100, 20))),
            "OFPT_METER_MOD (OF1.5) (xid=0x11): MOD meter=3 pktps burst stats bands= type=drop rate=100 burst_size=20",
        ),
        (Message::MeterMod(MeterMod::delete(meter::ALL_METERS)), "DEL meter=all"),
        (
            control(BundleCtrlType::OpenRequest),
            "OFPT_BUNDLE_CONTROL (OF1.5) (xid=0x11): bundle_id=0x1 type=OPEN_REQUEST flags=atomic ordered",
        ),
        (control(BundleCtrlType::CommitRequest), "type=COMMIT_REQUEST"),
        (
            Message::BundleAdd(BundleAdd { id: 1, flags: 3, message: Box::new(Message::FlowMod(all())) }),
            "OFPT_BUNDLE_ADD_MESSAGE (OF1.5) (xid=0x11): bundle_id=0x1 flags=atomic ordered OFPT_FLOW_MOD (OF1.5) \
             (xid=0x11): DEL table:255",
        ),
        (
            Message::PacketOut(PacketOut {
                metadata: Match::builder().in_port(2).reg(1, 7).build(),
                actions: vec![Action::output(3)],
                data: Bytes::from_static(&[2; 60]),
            }),
            "OFPT_PACKET_OUT (OF1.5) (xid=0x11): reg1=0x7,in_port=2 actions=output:3 data_len=60",
        ),
        (
            Message::SetAsync(AsyncConfig {
                packet_in: Some(2),
                port_status: Some(7),
                flow_removed: Some(0),
            }),
            "OFPT_SET_ASYNC (OF1.5) (xid=0x11): primary: PACKET_IN: action PORT_STATUS: add delete modify \
             FLOW_REMOVED: (off)",
        ),
        (request(MultipartRequest::Flows(filter.clone())), "OFPST_FLOW request (OF1.5) (xid=0x11): table=3"),
        (request(MultipartRequest::Aggregate(filter)), "OFPST_AGGREGATE request (OF1.5) (xid=0x11): table=3"),
        (request(MultipartRequest::Ports(port::ANY)), "OFPST_PORT_DESC request (OF1.5) (xid=0x11): port=ANY"),
        (request(MultipartRequest::PortStats(2)), "OFPST_PORT request (OF1.5) (xid=0x11): port_no=2"),
        (
            request(MultipartRequest::QueueStats { port: port::ANY, queue: u32::MAX }),
            "OFPST_QUEUE request (OF1.5) (xid=0x11): port=ANY queue=ALL",
        ),
        (request(MultipartRequest::Groups(7)), "OFPST_GROUP_DESC request (OF1.5) (xid=0x11): group_id=7"),
        (
            request(MultipartRequest::Meters(meter::ALL_METERS)),
            "OFPST_METER_CONFIG request (OF1.5) (xid=0x11): meter=all",
        ),
        (request(MultipartRequest::MeterStats(2)), "OFPST_METER request (OF1.5) (xid=0x11): meter=2"),
        (
            Message::Error(Error { code: ErrorCode::HELLO_INCOMPATIBLE, data: Bytes::from_static(b"no") }),
            "OFPT_ERROR (OF1.5) (xid=0x11): OFPHFC_INCOMPATIBLE no",
        ),
    ] {
        let got = print(&message);
        assert!(got.contains(expected), "{message:?}\ngot      {got}\nexpected {expected}");
    }
}
