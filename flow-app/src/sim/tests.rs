//! The simulator by itself, against what the sources of Open vSwitch say.

use openflow::action::Controller;
use openflow::{Bucket, GroupType, Selection};

use super::*;

fn packet() -> Packet {
    let headers = [(Field::EthSrc, 0xa), (Field::EthDst, 0xb), (Field::EthType, 0x800), (Field::IpTtl, 9)];
    Packet { headers: headers.into(), ..Packet::default() }
}

fn flow(table: u8, priority: u16, actions: impl Into<Vec<Action>>) -> Flow {
    Flow::new(table, priority, 0, Match::any()).apply(actions)
}

fn ports(switch: &Switch) -> Vec<PortNo> {
    switch.send(1, &packet()).unwrap().sent.into_iter().map(|(port, _)| port).collect()
}

fn reg_to_port(table: u8, value: u32, port: PortNo) -> Flow {
    let matching = Match::builder().reg(0, value).build();
    Flow::new(table, 9, 0, matching).apply([Action::output(port)])
}

#[test]
fn the_highest_priority_wins_and_a_miss_drops() {
    let mut switch: Switch = [flow(0, 1, [Action::output(2)])].into_iter().collect();
    switch.insert(flow(0, 5, [Action::output(3)]));
    assert_eq!(ports(&switch), [3]);
    switch.insert(flow(0, 5, [Action::output(4)]));
    assert_eq!(ports(&switch), [4], "in the place of the other");
    switch.insert(Flow::new(0, 9, 0, Match::builder().vlan_tagged().build()).apply([Action::output(5)]));
    assert_eq!(ports(&switch), [4], "there is no tag");
    switch.insert(Flow::new(0, 9, 0, Match::builder().untagged().build()).goto(7));
    assert_eq!(ports(&switch), []);
}

#[test]
fn no_output_to_the_input_port_unless_it_is_reset() {
    let reset = Action::set_field(Field::InPortNxm, 0);
    let back = || Action::output(1);
    assert_eq!(ports(&[flow(0, 1, [back(), reset, back()])].into_iter().collect()), [1]);
}

#[test]
fn what_a_resubmitted_table_sets_stays_but_not_what_a_clone_sets() {
    let set = || Action::set_field(Field::Reg(0), 7);
    let then = [Action::resubmit(2), Action::Clone(Box::new([Action::resubmit(1)])), Action::resubmit(2)];
    let mut switch: Switch =
        [flow(0, 1, then), flow(1, 1, [set()]), reg_to_port(2, 7, 5)].into_iter().collect();
    assert_eq!(ports(&switch), []);
    switch.insert(flow(0, 1, [Action::resubmit(1), Action::resubmit(2), Action::output(6)]));
    assert_eq!(ports(&switch), [5, 6]);
}

#[test]
fn the_controller_gets_the_packet_as_it_is_and_its_meter_holds_back_nothing_else() {
    let src = |value| Action::set_field(Field::EthSrc, value);
    let tell = |word: u8, meter| {
        Action::Controller(Box::new(Controller { userdata: [word].into(), meter, ..Controller::default() }))
    };
    let actions = [src(5), tell(1, None), src(6), tell(2, Some(9)), Action::output(2)];
    let mut switch: Switch = [flow(0, 1, actions)].into_iter().collect();
    let told = |word: u8, src| -> (Box<[u8]>, Packet) { ([word].into(), packet().with(Field::EthSrc, src)) };
    let outcome = switch.send(1, &packet()).unwrap();
    assert_eq!((outcome.told, outcome.metered), (vec![told(1, 5), told(2, 6)], vec![9]));
    switch.exhaust(9);
    let outcome = switch.send(1, &packet()).unwrap();
    assert_eq!((outcome.told, outcome.sent.len()), (vec![told(1, 5)], 1));
    // One before it does.
    switch.exhaust(8);
    switch.insert(flow(0, 1, [Action::Meter(8), tell(1, None)]));
    assert_eq!(switch.send(1, &packet()).unwrap().told, []);
}

#[test]
fn overlapping_parts_of_a_register_count_in_unary() {
    let reg = Field::Reg(0);
    let count =
        || [Action::CopyField { src: reg.slice(0, 31), dst: (reg, 1) }, Action::set_masked(reg, 1, 1)];
    let thrice: Vec<Action> = count().into_iter().chain(count()).chain(count()).collect();
    let switch: Switch = [flow(0, 1, thrice).goto(1), reg_to_port(1, 0b111, 5)].into_iter().collect();
    assert_eq!(ports(&switch), [5]);
}

#[test]
fn a_dying_packet_ends_its_list() {
    let switch: Switch =
        [flow(0, 1, [Action::DecTtl, Action::output(2)]).goto(1), flow(1, 1, [Action::output(3)])]
            .into_iter()
            .collect();
    let ttl = |ttl| switch.send(1, &packet().with(Field::IpTtl, ttl)).unwrap().sent;
    assert_eq!(ttl(1), []);
    assert_eq!(ttl(2).len(), 2);
    assert_eq!(ttl(2)[0].1.header(Field::IpTtl), 1);
}

#[test]
fn tags_are_pushed_empty_set_and_popped() {
    let vid = |vid| Action::set_field(Field::VlanVid, vid);
    let actions = [vid(5), Action::PushVlan(ETH_VLAN), Action::output(2), vid(0x1007), Action::output(3)];
    let switch: Switch =
        [flow(0, 1, actions).goto(1), flow(1, 1, [Action::PopVlan, Action::output(4)])].into_iter().collect();
    let sent = switch.send(1, &packet()).unwrap().sent;
    let expected = [(2, packet().tagged(Tag::new(0))), (3, packet().tagged(Tag::new(7))), (4, packet())];
    assert_eq!(sent, expected);
}

#[test]
fn headers_behind_two_tags_are_not_seen() {
    let switch: Switch =
        [Flow::new(0, 1, 0, Match::builder().eth_type(0x800).build()).apply([Action::output(2)])]
            .into_iter()
            .collect();
    let one = packet().tagged(Tag::new(1));
    assert_eq!(switch.send(1, &one).unwrap().sent.len(), 1);
    assert_eq!(switch.send(1, &one.tagged(Tag::new(2))).unwrap().sent, []);
}

#[test]
fn endless_lookups_are_a_fault() {
    let switch: Switch = [flow(0, 1, [Action::resubmit(0)])].into_iter().collect();
    assert_eq!(switch.send(1, &packet()), Err(Fault::TooDeep));
    // Twice in each of 13 later tables: 2^13 lookups, none of them deep.
    let wide =
        (0..13).map(|table| flow(table, 1, [Action::resubmit(table + 1), Action::resubmit(table + 1)]));
    assert_eq!(wide.collect::<Switch>().send(1, &packet()), Err(Fault::TooManyLookups));
    let unknown: Switch = [flow(0, 1, [Action::Other(Box::new([]))])].into_iter().collect();
    assert_eq!(unknown.send(1, &packet()), Err(Fault::Action(Box::new(Action::Other(Box::new([]))))));
}

#[test]
fn a_learned_flow_leads_back() {
    let learn = Learn {
        table: 1,
        priority: 4,
        cookie: 9,
        idle_timeout: 3,
        specs: vec![
            LearnSpec::Match(LearnSrc::Field(Field::VlanTci.slice(0, 12)), (Field::VlanTci, 0)),
            LearnSpec::Match(LearnSrc::Field(Field::EthSrc.whole()), (Field::EthDst, 0)),
            LearnSpec::Load(LearnSrc::Field(Field::InPort.whole()), (Field::Reg(0), 0)),
            LearnSpec::Output(Field::InPort.whole()),
        ],
        ..Learn::default()
    };
    let switch: Switch = [flow(0, 1, [Action::Learn(Box::new(learn))])].into_iter().collect();
    let outcome = switch.send(3, &packet().tagged(Tag::new(5))).unwrap();
    let matching = Match::builder().vlan_vid_masked(5, 0xfff).eth_dst([0, 0, 0, 0, 0, 0xa]).build();
    let flow = Flow::new(1, 4, 9, matching).apply([Action::set_field(Field::Reg(0), 3), Action::output(3)]);
    assert_eq!(outcome.learned, [Flow { idle_timeout: 3, ..flow }]);
}

fn group(id: u32, field: Field, buckets: impl IntoIterator<Item = (u16, Vec<Action>)>) -> Group {
    let buckets = (0..).zip(buckets).map(|(id, (weight, actions))| Bucket::weighted(id, weight, actions));
    let selection = Some(Selection::hash([field]));
    Group { id, kind: GroupType::Select, buckets: buckets.collect(), selection }
}

fn to_port(port: PortNo) -> Vec<Action> {
    vec![Action::set_field(Field::Reg(0), port.into()), Action::resubmit(1)]
}

#[test]
fn a_group_picks_one_bucket_by_its_fields_and_weights() {
    let mut switch: Switch =
        [flow(0, 1, [Action::Group(7)]), reg_to_port(1, 2, 2), reg_to_port(1, 3, 3)].into_iter().collect();
    assert_eq!(switch.send(1, &packet()), Err(Fault::NoGroup(7)));
    switch.insert_group(group(7, Field::EthSrc, [(1, to_port(2)), (3, to_port(3)), (0, to_port(4))]));
    let send = |packet: &Packet| switch.send(1, packet).unwrap().sent[0].0;
    let ports: Vec<PortNo> = (0..4000).map(|src| send(&packet().with(Field::EthSrc, src))).collect();
    let third = ports.iter().filter(|port| **port == 3).count();
    assert!((2900..3100).contains(&third), "{third} of 4000");
    assert_eq!(third + ports.iter().filter(|port| **port == 2).count(), 4000);
    let same = (0..100).all(|dst| send(&packet().with(Field::EthDst, dst)) == send(&packet()));
    assert!(same, "another field than the group's");
}

#[test]
fn all_ways_through_groups_are_found_once() {
    let flows = [
        flow(0, 1, [Action::Group(1)]),
        flow(2, 1, [Action::Group(2)]),
        reg_to_port(1, 2, 2),
        reg_to_port(1, 3, 3),
        reg_to_port(1, 4, 4),
    ];
    let mut switch: Switch = flows.into_iter().collect();
    let on = || vec![Action::resubmit(2)];
    switch.insert_group(group(1, Field::EthSrc, [(1, to_port(2)), (1, on()), (1, to_port(2)), (1, on())]));
    switch.insert_group(group(2, Field::EthSrc, [(1, to_port(3)), (2, to_port(4)), (1, to_port(3))]));
    let all = switch.send_all(1, &packet()).unwrap();
    let ports: Vec<PortNo> = all.iter().map(|outcome| outcome.sent[0].0).collect();
    assert_eq!(ports.len(), 3);
    assert_eq!(ports.into_iter().collect::<BTreeSet<_>>(), [2, 3, 4].into());
    assert!(all.contains(&switch.send(1, &packet()).unwrap()));
    // Without a group there is one way; without a bucket nothing becomes of it.
    let plain: Switch = [flow(0, 1, [Action::output(2)])].into_iter().collect();
    assert_eq!(plain.send_all(1, &packet()).unwrap(), [plain.send(1, &packet()).unwrap()]);
    switch.insert_group(group(1, Field::EthSrc, []));
    assert_eq!(switch.send_all(1, &packet()).unwrap().len(), 1);
    assert_eq!(switch.send(1, &packet()).unwrap().sent, []);
}

#[test]
fn a_bucket_is_an_action_set_and_changes_nothing_for_what_follows() {
    // The resubmit comes last wherever it stands; what a set cannot hold is passed over.
    let check = Action::CheckPktLarger { len: 10, dst: (Field::Reg(0), 0) };
    let bucket = vec![Action::resubmit(1), check, Action::set_field(Field::Reg(0), 2), Action::DecTtl];
    let mut switch: Switch =
        [flow(0, 1, [Action::Group(7), Action::resubmit(1), Action::output(9)]), reg_to_port(1, 2, 2)]
            .into_iter()
            .collect();
    switch.insert_group(group(7, Field::EthSrc, [(1, bucket)]));
    let expected = [(2, packet().sized(1500).with(Field::IpTtl, 8)), (9, packet().sized(1500))];
    assert_eq!(switch.send(1, &packet().sized(1500)).unwrap().sent, expected);
}

#[test]
fn nested_groups_count_for_the_depth() {
    let mut switch: Switch = [flow(0, 1, [Action::Group(1)])].into_iter().collect();
    switch.insert_group(group(1, Field::EthSrc, [(1, vec![Action::resubmit(0)])]));
    assert_eq!(switch.send(1, &packet()), Err(Fault::TooDeep));
    assert_eq!(switch.send_all(1, &packet()), Err(Fault::TooDeep));
    let dp_hash = Group { selection: None, ..group(1, Field::EthSrc, []) };
    switch.insert_group(dp_hash.clone());
    assert_eq!(switch.send(1, &packet()), Err(Fault::Group(Box::new(dp_hash))));
    // 2^13 ways, each of them short.
    let mut wide: Switch = (0..13).map(|table| flow(table, 1, [Action::Group(table.into())])).collect();
    for table in 0..13 {
        let next = |value| vec![Action::set_field(Field::Reg(table), value), Action::resubmit(table + 1)];
        wide.insert_group(group(table.into(), Field::EthSrc, [(1, next(0)), (1, next(1))]));
    }
    let ports =
        (0..13).map(|n| Action::CopyField { src: Field::Reg(n).slice(0, 1), dst: (Field::EthDst, n.into()) });
    wide.insert(flow(13, 1, ports.chain([Action::output(2)]).collect::<Vec<_>>()));
    assert_eq!(wide.send_all(1, &packet()), Err(Fault::TooManyWays));
}

#[test]
fn a_size_is_compared_without_the_tag_and_answered_to_the_end_of_the_flow() {
    let check = Action::CheckPktLarger { len: 1014, dst: (Field::Reg(0), 1) };
    let within = Flow::new(2, 1, 0, Match::any()).apply([check]).goto(3);
    let flows = [flow(0, 1, [Action::resubmit(2), Action::resubmit(3)]), within, reg_to_port(3, 2, 2)];
    let mut switch: Switch = flows.into_iter().collect();
    switch.insert(reg_to_port(3, 0, 4));
    let ports = |packet: Packet| -> Vec<PortNo> {
        switch.send(1, &packet).unwrap().sent.into_iter().map(|(port, _)| port).collect()
    };
    assert_eq!(ports(packet().sized(1000)), [4, 4]);
    assert_eq!(ports(packet().sized(1001)), [2, 4], "undone after it");
    assert_eq!(ports(packet().sized(1000).tagged(Tag::new(1))), [4, 4]);
}

#[test]
fn a_meter_costs_others_their_copies_unless_its_clone_is_kept() {
    let flood = |kept: bool| {
        let copy = |port: u32| {
            let keep = Action::OutputTrunc { port: port::TABLE_16, max_len: 65_535 };
            let actions = [Action::set_field(Field::Reg(0), port.into()), Action::resubmit(1)];
            Action::Clone(kept.then_some(keep).into_iter().chain(actions).collect())
        };
        let metered = |port| {
            let matching = Match::builder().reg(0, port).build();
            Flow::new(1, 9, 0, matching).apply([Action::Meter(port), Action::output(port)])
        };
        let flows = [flow(0, 1, [copy(2), copy(3), copy(4)]), metered(2), metered(3), reg_to_port(1, 4, 4)];
        let mut switch: Switch = flows.into_iter().collect();
        assert_eq!(ports(&switch), [2, 3, 4]);
        assert_eq!(switch.send(1, &packet()).unwrap().metered, [2, 3]);
        switch.exhaust(2);
        let hit = ports(&switch);
        switch.refill();
        assert_eq!(ports(&switch), [2, 3, 4]);
        hit
    };
    assert_eq!(flood(false), []);
    assert_eq!(flood(true), [3, 4]);
}
