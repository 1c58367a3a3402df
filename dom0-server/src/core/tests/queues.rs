//! Queues: their numbers in the flows, and what there is to shape.

use openflow::{Action, Instruction};
use xenflow_flow_app::pipeline::{EGRESS, QUEUE};
use xenflow_flow_app::queue;

use super::*;
use crate::db::class::{Matching, TrafficClass};
use crate::shaper::plan::QueueOf;

/// A network more, whose queue would be the first by name, and a class of red's; one uplink that carries 10 Mbit/s.
fn shared() -> (Desired, SwitchPorts) {
    let mut desired = desired(&[1]);
    let red = name("red");
    let contract = db::Contract::new(Some("2mbit".parse().unwrap()), None).unwrap();
    let (uuid, matching) = (Uuid::ZERO, Matching::new([46], None, []).unwrap());
    let class =
        TrafficClass { uuid, name: name("ef"), network: red.clone(), priority: 7, matching, contract };
    desired.classes.insert((red, name("ef")), class);
    desired.uplinks.insert(name("a"), ["trunk".to_owned(), "gone".to_owned()].into());
    desired.capacities.insert(name("a"), [("trunk".to_owned(), "10mbit".parse().unwrap())].into());
    let mut ports = ports(&[1]);
    ports.ports.push(SwitchPort {
        name: "trunk".to_owned(),
        number: 7,
        attached_mac: None,
        ..ports.ports[0].clone()
    });
    (desired, ports)
}

fn another_network(desired: &mut Desired) {
    let network = row::Network { name: name("blue"), ..desired.networks[&name("red")].clone() };
    desired.networks.insert(network.name.clone(), network);
}

fn told(core: Core, desired: &Desired, ports: &SwitchPorts) -> Core {
    let mut core = core;
    core.handle(Event::Ports(ports.clone()));
    core.handle(Event::Desired(desired.clone()));
    core
}

/// Queues that the flows choose, in egress and for classes.
fn chosen(core: &Core) -> [Vec<u32>; 2] {
    [EGRESS, QUEUE].map(|table| {
        let flows = core.app().desired().flows.into_iter().filter(|flow| flow.table == table);
        let mut all = BTreeSet::new();
        for instruction in flows.flat_map(|flow| flow.instructions) {
            if let Instruction::ApplyActions(actions) = instruction {
                let queue = |action| if let Action::SetQueue(queue) = action { Some(queue) } else { None };
                all.extend(actions.into_iter().filter_map(queue));
            }
        }
        all.into_iter().collect()
    })
}

#[test]
fn a_restart_goes_on_with_the_numbers_of_the_queues() {
    let (mut desired, mut ports) = shared();
    let mut core = told(core(10), &desired, &ports);
    assert_eq!(chosen(&core), [vec![1], vec![2]]);
    another_network(&mut desired);
    core.handle(Event::Desired(desired.clone()));
    assert_eq!(chosen(&core), [vec![1], vec![2]], "blue has no segment");
    let plan = core.plan().unwrap();
    let queue = |network, class: Option<&str>| QueueOf { network: name(network), class: class.map(name) };
    assert_eq!(
        plan.queues,
        [(1, queue("red", None)), (2, queue("red", Some("ef"))), (3, queue("blue", None))].into()
    );

    ports.queues = plan.queues.clone();
    let after = told(super::core(10), &desired, &ports);
    assert_eq!(after.app().desired(), core.app().desired());
    assert_eq!(after.plan(), core.plan());
    ports.queues.clear();
    assert_eq!(chosen(&told(super::core(10), &desired, &ports)), [vec![2], vec![3]], "blue comes first");
}

#[test]
fn without_any_contract_a_restart_changes_no_flow_either() {
    let (mut desired, ports) = shared();
    desired.classes.values_mut().for_each(|class| class.contract = db::Contract::default());
    let mut core = told(core(10), &desired, &ports);
    another_network(&mut desired);
    core.handle(Event::Desired(desired.clone()));
    assert_eq!(chosen(&core), [Vec::<u32>::new(), Vec::new()]);
    let after = told(super::core(10), &desired, &ports);
    assert_ne!(after.plan(), core.plan(), "the numbers are others");
    assert_eq!(after.app().desired(), core.app().desired());
}

#[test]
fn what_is_to_be_shaped_changes_only_when_it_does() {
    let (mut desired, ports) = shared();
    let mut core = core(10);
    core.handle(Event::Desired(desired.clone()));
    assert_eq!(core.plan(), None, "nobody knows which uplinks are there");
    core.handle(Event::Ports(ports.clone()));
    let plan = core.plan().unwrap().clone();
    assert_eq!(plan.uplinks, [("trunk".to_owned(), Some("10mbit".parse().unwrap()))].into());
    assert_eq!(plan.networks, [(name("red"), db::Contract::default())].into());
    assert_eq!(plan.classes.len(), 1);
    let is_same = |core: &Core, plan: &Arc<_>| Arc::ptr_eq(core.plan().unwrap(), plan);
    desired.cfg += 1;
    core.handle(Event::Desired(desired.clone()));
    core.handle(Event::Ports(SwitchPorts { queues: plan.queues.clone(), ..ports }));
    assert!(is_same(&core, &plan));
    desired.classes.clear();
    core.handle(Event::Desired(desired));
    assert!(!is_same(&core, &plan) && core.plan().unwrap().queues.len() == 1);
}

#[test]
fn without_queues_the_flows_choose_none() {
    let (desired, ports) = shared();
    let core = told(core(10).with_queues(false), &desired, &ports);
    assert_eq!(chosen(&core), [Vec::<u32>::new(), Vec::new()]);
    let plan = core.plan().unwrap();
    assert!(plan.queues.is_empty() && plan.uplinks.len() == 1);
    let actions = |flow: &Flow| flow.instructions.iter().any(|it| format!("{it:?}").contains("Queue"));
    assert!(!core.app().desired().flows.iter().any(actions));
}

#[test]
fn where_the_switch_cannot_shape_meters_hold_the_maxima() {
    let (mut desired, ports) = shared();
    let contract = db::Contract::new(None, Some("5mbit".parse().unwrap())).unwrap();
    desired.networks.get_mut(&name("red")).unwrap().contract = contract;
    let mut core = told(core(10), &desired, &ports);
    let of_queues = |core: &Core| -> Vec<(Option<(PortNo, u32)>, Meter)> {
        let meters = core.app().desired().meters.into_iter().map(|meter| (queue::meter_of(meter.id), meter));
        meters.filter(|(of, _)| of.is_some()).collect()
    };
    assert_eq!(of_queues(&core), []);
    let build =
        |datapath: &str| Event::Build(SwitchBuild { datapath: datapath.to_owned(), ..Default::default() });
    core.handle(build("netdev"));
    let meter = Meter::drop_kbps(queue::meter_id(7, 1), 5000, 500);
    assert_eq!(of_queues(&core), [(Some((7, 1)), meter)], "of the uplink that is there, and of no class");
    desired.networks.get_mut(&name("red")).unwrap().contract = db::Contract::default();
    let (key, max) = ((name("red"), name("ef")), db::Contract::new(None, Some("8kbit".parse().unwrap())));
    desired.classes.get_mut(&key).unwrap().contract = max.unwrap();
    core.handle(Event::Desired(desired));
    assert_eq!(of_queues(&core), [(Some((7, 2)), Meter::drop_kbps(queue::meter_id(7, 2), 8, 128))]);
    core.handle(build("system"));
    assert_eq!(of_queues(&core), []);
}
