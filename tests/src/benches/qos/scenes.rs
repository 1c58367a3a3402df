//! What is played on the link, and what is seen of it.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::bandwidth::load::{GREEDY, Kind};
use crate::bandwidth::site::{Contracts, LINK, MBIT, NETWORKS, SECOND};
use crate::bandwidth::stage::{SETTLE, Stage};
use crate::oracle::random::Random;

/// (c): how often, and for how long each time, a network is away and back.
const RETURNS: usize = 3;
const AWAY: Duration = Duration::from_secs(3);
const BACK: Duration = Duration::from_secs(5);
/// (d): so many demands, each for so long after [`SETTLE`].
const PHASES: usize = 8;
const PHASE: Duration = Duration::from_secs(3);
/// In all, not more than this, in Mbit/s: what is dropped costs the processor as well.
const MOST: usize = 150;

/// What was seen. Rates in bit/s.
#[derive(Debug, Default)]
pub(super) struct Scene {
    pub(super) fitness: f64,
    /// While more was wanted than the link carries.
    pub(super) carried: Option<f64>,
    /// Periods until the network that came back had its minimum, and its share.
    pub(super) minimum_after: Option<f64>,
    pub(super) share_after: Option<f64>,
    /// What each sender that wanted something got, and should have.
    divided: Vec<(f64, f64)>,
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fitness {:.3}", self.fitness)?;
        for (name, value) in [("minimum", self.minimum_after), ("share", self.share_after)] {
            if let Some(value) = value {
                write!(f, ", {name} after {value:.1} periods")?;
            }
        }
        let mut before = "; Mbit/s";
        for (obtained, expected) in &self.divided {
            write!(f, "{before} {:.1} of {:.1}", obtained / 1e6, expected / 1e6)?;
            before = ",";
        }
        Ok(())
    }
}

/// What somebody wants who wants more than this share.
fn more_than(kind: Kind, share: u64) -> u64 {
    match kind {
        Kind::Udp => share * 13 / 10,
        Kind::Tcp => GREEDY,
    }
}

/// As it goes after a while, for so long.
fn steady(stage: &Stage<'_>, time: Duration) -> Result<Scene> {
    let division = stage.steady(time)?;
    let carried = Some(division.carried);
    Ok(Scene { fitness: division.fitness()?, carried, divided: division.pairs(), ..Scene::default() })
}

/// Plays a scene; none where it says nothing: classes, by hand.
pub(super) fn play(stage: &mut Stage<'_>, name: &str, seconds: u64, seed: u64) -> Result<Option<Scene>> {
    let time = Duration::from_secs(seconds);
    let two = Contracts::of([20, 40, 0, 0, 0]);
    let (first, second) = (more_than(stage.kind(), LINK / 3), more_than(stage.kind(), LINK * 2 / 3));
    let both = [(0, first), (1, second)];
    stage.want(&[])?;
    let scene = match name {
        "a" => {
            stage.contract(two)?;
            stage.want(&both)?;
            steady(stage, time)?
        }
        "b" => {
            stage.contract(two)?;
            stage.want(&[(1, GREEDY)])?;
            steady(stage, time.div_f64(2.0))?
        }
        "c" => {
            stage.contract(two)?;
            come_back(stage, two.minima[0], &both)?
        }
        "d" => {
            stage.contract(Contracts::of([20, 40, 5, 10, 15]))?;
            five(stage, seed)?
        }
        "e" if stage.has_classes() => {
            stage.contract(Contracts { classes: Some([5 * MBIT, 15 * MBIT]), ..two })?;
            let parts = [LINK / 12, LINK / 4].map(|share| more_than(stage.kind(), share));
            stage.want(&[(0, parts[0]), (SECOND, parts[1]), (1, second)])?;
            steady(stage, time)?
        }
        "e" => return Ok(None),
        "f" => {
            stage.contract(two)?;
            stage.want(&[(0, second), (1, second)])?;
            std::thread::sleep(SETTLE);
            stage.contract(Contracts::of([40, 20, 0, 0, 0]))?;
            steady(stage, time)?
        }
        other => bail!("there is no scene {other:?}"),
    };
    stage.want(&[])?;
    Ok(Some(scene))
}

/// The second network has the link for itself, then the first comes back: several times, the worst of which counts.
fn come_back(stage: &mut Stage<'_>, promised: u64, both: &[(usize, u64); 2]) -> Result<Scene> {
    let mut all = Scene { fitness: 1.0, ..Scene::default() };
    let (mut minimum, mut share, mut carried) = (0.0_f64, 0.0_f64, 0.0);
    for _ in 0..RETURNS {
        stage.want(&[(1, GREEDY)])?;
        std::thread::sleep(AWAY);
        stage.want(both)?;
        let start = Instant::now();
        std::thread::sleep(BACK);
        let end = stage.between(start + SETTLE, start + BACK)?;
        all.fitness = all.fitness.min(end.fitness()?);
        all.divided = end.pairs();
        carried += end.carried / RETURNS as f64;
        minimum = minimum.max(stage.after(0, promised as f64, start, BACK)?);
        share = share.max(stage.after(0, end.expected[0], start, BACK)?);
    }
    Ok(Scene { carried: Some(carried), minimum_after: Some(minimum), share_after: Some(share), ..all })
}

/// Five networks, of which some are idle and some want more than the link has for them. The same demands for the same seed.
fn five(stage: &mut Stage<'_>, seed: u64) -> Result<Scene> {
    let mut random = Random::new(seed, 51);
    let (mut fitness, mut carried) = (Vec::new(), Vec::new());
    let mut divided = Vec::new();
    for _ in 0..PHASES {
        let wants = loop {
            let wants: Vec<usize> =
                (0..NETWORKS).map(|_| if random.percent(40) { 0 } else { 5 + random.below(56) }).collect();
            if (1..=MOST).contains(&wants.iter().sum()) {
                break wants;
            }
        };
        let wants: Vec<(usize, u64)> =
            wants.into_iter().enumerate().map(|(seat, mbit)| (seat, mbit as u64 * MBIT)).collect();
        stage.want(&wants)?;
        let division = stage.steady(PHASE)?;
        fitness.push(division.fitness()?);
        divided = division.pairs();
        // By a tenth more, so that it is full whatever a protocol's headers are.
        if wants.iter().map(|(_, bps)| bps).sum::<u64>() > LINK / 10 * 11 {
            carried.push(division.carried);
        }
    }
    let mean =
        |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let fitness = mean(&fitness).context("no phase was played")?;
    Ok(Scene { fitness, carried: mean(&carried), divided, ..Scene::default() })
}
