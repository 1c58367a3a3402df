//! Several nodes and one database, in any order, with transactions that are lost or late, and daemons that start anew.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use ovsdb::{Datum, Row};
use xenflow_proto::MacAddr;

use super::*;
use crate::db::node_status::PREPARED;

const NODES: usize = 3;
const PLACES: usize = 2;

fn node(n: usize) -> Name {
    ["a", "b", "c"][n].parse().unwrap()
}

fn place(n: usize) -> Place {
    Place { segment: "s1".parse().unwrap(), mac: MacAddr([2, 0, 0, 0, 0, n as u8]) }
}

type Table = BTreeMap<(Place, Name), u64>;

fn located(table: &Table) -> Located {
    table.iter().map(|((place, node), generation)| (place.clone(), node.clone(), *generation)).collect()
}

/// What a transaction of this write does to the rows; false: it is refused.
fn commit(table: &mut Table, node: &Name, write: &Write) -> Result<bool, String> {
    match write {
        Write::Claim(place, generation) => {
            let mut rows = table.iter().filter(|((of, _), _)| of == place);
            if rows.any(|(_, there)| there >= generation) {
                return Ok(false);
            }
            let before = table.insert((place.clone(), node.clone()), *generation);
            if before.is_some_and(|before| before >= *generation) {
                return Err(format!("{node}: {before:?} -> {generation}"));
            }
        }
        Write::Restore(place, generation) => {
            let key = (place.clone(), node.clone());
            if table.contains_key(&key) {
                return Ok(false);
            }
            table.insert(key, *generation);
        }
        Write::Withdraw(place, generation) => {
            let key = (place.clone(), node.clone());
            if table.get(&key).is_some_and(|there| there <= generation) {
                table.remove(&key);
            }
        }
    }
    Ok(true)
}

struct Node {
    name: Name,
    claims: Claims,
    here: BTreeSet<Place>,
    /// The rows as they were told last.
    view: Located,
}

struct World {
    nodes: Vec<Node>,
    table: Table,
    /// Transactions of broken connections that the database may do yet.
    late: Vec<(Name, Write)>,
    /// Whose claim of a place was passed over by another's.
    passed_over: BTreeSet<(Place, Name)>,
    refused: usize,
    lost: usize,
}

impl World {
    fn new() -> Self {
        let node = |n| Node {
            name: node(n),
            claims: started(node(n), &BTreeSet::new()),
            here: BTreeSet::new(),
            view: Located::default(),
        };
        Self {
            nodes: (0..NODES).map(node).collect(),
            table: Table::new(),
            late: Vec::new(),
            passed_over: BTreeSet::new(),
            refused: 0,
            lost: 0,
        }
    }

    fn commit(&mut self, name: &Name, write: &Write) -> Result<bool, String> {
        let done = commit(&mut self.table, name, write)?;
        // A node that has been passed over while its port stays has lost the place until the other withdraws.
        if let (true, Write::Claim(place, generation)) = (done, write) {
            self.passed_over.remove(&(place.clone(), name.clone()));
            for ((of, other), there) in &self.table {
                if of == place && other != name {
                    if there >= generation {
                        return Err(format!("{name} claims {generation}, but {other} has {there}"));
                    }
                    self.passed_over.insert((place.clone(), other.clone()));
                }
            }
        }
        Ok(done)
    }

    /// `how`: done and told; refused or lost before; done, but nobody knows; done later than anybody expects.
    fn turn(&mut self, n: usize, how: u8) -> Result<(), String> {
        let view = self.nodes[n].view.clone();
        let name = self.nodes[n].name.clone();
        for write in self.nodes[n].claims.due(&view) {
            match how % 4 {
                0 | 1 => {
                    let is_done = self.commit(&name, &write)?;
                    self.refused += usize::from(!is_done);
                }
                2 => self.lost += 1,
                _ => self.late.push((name.clone(), write)),
            }
        }
        Ok(())
    }

    fn step(&mut self, [what, n, p, how]: [u8; 4]) -> Result<(), String> {
        let n = usize::from(n) % NODES;
        let place = place(usize::from(p) % PLACES);
        let node = &mut self.nodes[n];
        match what % 8 {
            0 | 1 => {
                if !node.here.remove(&place) {
                    node.here.insert(place);
                }
                node.claims.follow(&node.here);
            }
            2 | 3 => node.view = located(&self.table),
            4 | 5 => self.turn(n, how)?,
            6 => {
                if !self.late.is_empty() {
                    let (name, write) = self.late.remove(usize::from(p) % self.late.len());
                    self.commit(&name, &write)?;
                }
            }
            // The daemon starts anew. Its former connection is gone, and with it what was under way.
            _ => {
                self.late.retain(|(name, _)| *name != node.name);
                node.claims = started(node.name.clone(), &node.here);
                node.view = located(&self.table);
            }
        }
        // Those who hold a place and were passed over do not win against a row that stands since.
        for place in (0..PLACES).map(self::place) {
            let now = located(&self.table);
            let Some(winner) = now.winner(&place) else { continue };
            if self.passed_over.contains(&(place.clone(), winner.clone())) {
                let claims = &now.claims(&place).unwrap();
                let newer = claims
                    .keys()
                    .filter(|other| !self.passed_over.contains(&(place.clone(), (*other).clone())));
                if newer.count() > 0 {
                    return Err(format!("{winner} wins again: {claims:?}"));
                }
            }
        }
        Ok(())
    }

    /// Everything is told and done, until nobody has anything to write.
    fn settle(&mut self) -> Result<(), String> {
        for (name, write) in std::mem::take(&mut self.late) {
            self.commit(&name, &write)?;
        }
        for _ in 0..20 {
            let before = self.table.clone();
            for n in 0..NODES {
                self.nodes[n].view = located(&self.table);
                self.turn(n, 0)?;
            }
            if self.table == before {
                return Ok(());
            }
        }
        Err(format!("never quiet: {:?}", self.table))
    }

    /// Each row is of a port that is there; each port has its row, so one of its nodes is the winner.
    fn quiet(&self) -> Result<(), String> {
        for node in &self.nodes {
            for place in (0..PLACES).map(self::place) {
                let row = self.table.contains_key(&(place.clone(), node.name.clone()));
                if row != node.here.contains(&place) {
                    return Err(format!("{}: {place:?} is here: {}, but {:?}", node.name, !row, self.table));
                }
            }
        }
        Ok(())
    }
}

fn started(name: Name, here: &BTreeSet<Place>) -> Claims {
    let mut claims = Claims::new(name);
    claims.follow(here);
    claims
}

fn law(cases: u32, check: impl Fn(Vec<[u8; 4]>) -> Result<(), String>) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&vec(any::<[u8; 4]>(), 0..60), |steps| check(steps).map_err(TestCaseError::fail));
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn each_address_ends_with_one_node_and_never_with_one_that_was_passed_over() {
    let counts = std::cell::Cell::new([0; 3]);
    law(3000, |steps| {
        let mut world = World::new();
        for step in steps {
            world.step(step)?;
        }
        world.settle()?;
        world.quiet()?;
        let [refused, lost, shared] = counts.get();
        let shares =
            (0..PLACES).filter(|p| located(&world.table).claims(&place(*p)).is_some_and(|all| all.len() > 1));
        counts.set([refused + world.refused, lost + world.lost, shared + shares.count()]);
        Ok(())
    });
    let counts = counts.get();
    assert!(counts.iter().all(|count| *count > 500), "refused, lost, shared: {counts:?}");
}

/// Rows of one place.
fn rows(claims: &[(usize, u64)]) -> Located {
    claims.iter().map(|(n, generation)| (place(0), node(*n), *generation)).collect()
}

#[test]
fn a_port_that_comes_is_claimed_above_all_that_is_known() {
    let mut claims = started(node(0), &BTreeSet::new());
    assert_eq!(claims.due(&rows(&[])), []);
    claims.follow(&[place(0)].into());
    assert_eq!(claims.due(&rows(&[(1, 7)])), [Write::Claim(place(0), 8)]);
    // Somebody was first.
    assert_eq!(claims.due(&rows(&[(1, 7), (2, 8)])), [Write::Claim(place(0), 9)]);
    assert_eq!(claims.due(&rows(&[(0, 9), (1, 7), (2, 8)])), []);
    // It is passed over, and stays so; it is not withdrawn while the port is there.
    assert_eq!(claims.due(&rows(&[(0, 9), (2, 10)])), []);
    claims.follow(&BTreeSet::new());
    assert_eq!(claims.due(&rows(&[(0, 9), (2, 10)])), [Write::Withdraw(place(0), 9)]);
    claims.follow(&[place(0)].into());
    assert_eq!(claims.due(&rows(&[(0, 9), (2, 10)])), [Write::Claim(place(0), 11)]);
}

#[test]
fn a_restart_keeps_what_is_there_and_claims_what_is_not() {
    let mut claims = Claims::new(node(0));
    assert_eq!(claims.due(&rows(&[(0, 3), (1, 4)])), [], "nobody knows yet what is here");
    claims.follow(&[place(0)].into());
    assert_eq!(claims.due(&rows(&[(0, 3), (1, 4)])), [], "it was passed over before");
    // Somebody removes its row: it is put back as it was.
    assert_eq!(claims.due(&rows(&[(1, 4)])), [Write::Restore(place(0), 3)]);
    let mut claims = started(node(0), &[place(0)].into());
    assert_eq!(claims.due(&rows(&[(1, 4)])), [Write::Claim(place(0), 5)]);
    let mut claims = started(node(0), &BTreeSet::new());
    assert_eq!(claims.due(&rows(&[(0, 5), (1, 4)])), [Write::Withdraw(place(0), 5)], "it left meanwhile");
}

#[test]
fn the_greatest_generation_counts_then_the_first_name() {
    let winner = |claims: &[(usize, u64)]| rows(claims).winner(&place(0)).cloned();
    assert_eq!(winner(&[]), None);
    assert_eq!(winner(&[(0, 1), (1, 2), (2, 1)]), Some(node(1)));
    assert_eq!(winner(&[(1, 2), (2, 2)]), Some(node(1)));
    assert_eq!(rows(&[(1, 2), (2, 2)]).elsewhere(&node(2)), [place(0)].into());
    assert_eq!(rows(&[(1, 2), (2, 2)]).elsewhere(&node(1)), BTreeSet::new());
}

#[test]
fn there_is_a_greatest_generation() {
    let mut claims = started(node(0), &[place(0)].into());
    assert_eq!(claims.due(&rows(&[(1, GENERATION_MAX)])), []);
    assert_eq!(claims.due(&rows(&[(1, GENERATION_MAX - 1)])), [Write::Claim(place(0), GENERATION_MAX)]);
}

#[test]
fn what_a_move_brings_is_no_leftover_before_anybody_has_said_that_it_is_here() {
    let table = Table::from([((place(0), node(0)), 1), ((place(0), node(1)), 2)]);
    let located = located(&table);
    let begun = || started(node(1), &BTreeSet::new());
    let withdrawal = [Write::Withdraw(place(0), 2)];
    assert_eq!(begun().due(&located), withdrawal, "without a move it is one");
    let mut claims = begun();
    claims.announce(&[place(0)].into());
    assert_eq!(claims.due(&located), []);
    claims.follow(&[place(0)].into());
    assert_eq!(claims.due(&located), [], "the generation of the announcement counts");
    claims.follow(&BTreeSet::new());
    assert_eq!(claims.due(&located), withdrawal, "it was here, and is not any more");
}

#[test]
fn third_nodes_are_prepared_when_all_say_so() {
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| name.parse::<Name>().unwrap());
    let mut reports: Vec<(Name, BTreeSet<u64>)> = vec![(a.clone(), [].into()), (b.clone(), [].into())];
    assert!(are_prepared(7, [&a, &b], &reports), "there is no other");
    reports.extend([(c, [6, 7].into()), (d, [6].into())]);
    assert!(!are_prepared(7, [&a, &b], &reports));
    assert!(are_prepared(6, [&a, &b], &reports));
}

#[test]
fn what_a_node_says_that_it_is_prepared_for_is_read_again() {
    let node: Name = "c".parse().unwrap();
    let numbers = BTreeSet::from([1, 1 << 40]);
    let datum = Datum::set(numbers.iter().map(|number| i64::try_from(*number).unwrap()));
    let row: Row = [("node", Datum::from("c")), (PREPARED, datum)].into_iter().collect();
    assert_eq!(NodeStatus::prepared(&row).unwrap(), (node, numbers));
}
