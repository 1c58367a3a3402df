//! `migration`: what packets lose while a router moves, and how long its new host takes: by XenFlow, and beside it (a) with
//! plain switches and packets through the guest, (b) in the paper's order, where nothing is made before the guest is there.
//!
//! XenFlow's moves are of all sizes of tables, freezes and rates, in rounds, between a router's node and its standby; with each table
//! there is one (*cold*) to a node that is none and gets the tables in the move. Of (a) and (b) there is one each. Controls are moves of a bystander, which cost what bare moves cost: what delays its packets is the lab.

mod bulk;
mod limit;
mod moves;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use self::moves::{Bare, Cell, Tried};
use super::{Options, round};
use crate::moving::site::{By, Site};
use crate::moving::vm::Pace;
use crate::scenario::{Lab, Scenario};

/// The registry's entry.
pub(super) const BENCH: Scenario = Scenario {
    name: "migration",
    about: "packets lost while a router moves (--rounds N, --only ours|plain|paper, --routes N, --percent N, --pps N instead of the search for it; --standby 0: all of ours cold)",
    memory_mib: 4096,
    limit: std::time::Duration::from_secs(3600),
    needs_product: true,
    in_suite: false,
    targets: &[
        ("lost", "0"),
        ("duplicated", "0"),
        ("reordered", "0"),
        ("control_lost", "0"),
        ("flaps", "0"),
        ("delay_extra_ms_max", "at most 10"),
        ("thaw_to_verified_ms_200k", "at most 100"),
        ("extra_total_ms", "at most 500"),
        ("lost_plain", "more than 0"),
    ],
    run,
};

/// Routes, with their names in keys.
const TABLES: [(u32, &str); 3] = [(100, "100"), (10_000, "10k"), (200_000, "200k")];
const FREEZES_MS: [u64; 3] = [200, 2000, 10_000];
/// Rates, in percent of what the lab carries when nothing moves.
const RATES: [u32; 3] = [10, 40, 80];
/// How long a guest's memory is copied.
const COPY_MS: u64 = 200;
/// By how much one path is longer where that is tried.
const UNEVEN_MS: u32 = 5;
/// The cell of (a) and (b): table and freeze by their numbers, and the rate in percent. At a higher one the packets that go
/// through the guest take the one processor of the lab, and (b) does not end within two minutes.
const ONE: (usize, usize, u32) = (2, 1, 10);

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Ours,
    Plain,
    Paper,
}

impl Variant {
    const ALL: [Self; 3] = [Self::Plain, Self::Paper, Self::Ours];

    fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Plain => "plain",
            Self::Paper => "paper",
        }
    }

    /// What its keys end with.
    fn suffix(self) -> &'static str {
        match self {
            Self::Ours => "",
            Self::Plain => "_plain",
            Self::Paper => "_paper",
        }
    }

    fn by(self) -> By {
        match self {
            Self::Ours => By::Planned,
            Self::Plain => By::Plain,
            Self::Paper => By::XenFlow,
        }
    }
}

fn run(lab: &mut Lab) -> Result<Value> {
    let mut options = Options::parse(lab.args())?;
    let rounds: usize = options.take("--rounds", 3)?;
    let only: String = options.take("--only", "all".to_owned())?;
    let pps: u32 = options.take("--pps", 0)?;
    let routes: u32 = options.take("--routes", 0)?;
    let percent: u32 = options.take("--percent", 0)?;
    let standby: u32 = options.take("--standby", 1)?;
    options.end()?;
    ensure!((1..=20).contains(&rounds), "{rounds} rounds is not 1 to 20");
    let wanted: Vec<Variant> =
        Variant::ALL.into_iter().filter(|variant| only == "all" || only == variant.name()).collect();
    if wanted.is_empty() {
        bail!("--only {only} is none of ours, plain and paper");
    }
    let mut figures = Map::new();
    for variant in wanted {
        lab.step(format!("variant {}", variant.name()));
        let mut site = Site::build(lab, variant.by(), Pace { copy_ms: COPY_MS, freeze_ms: 0 })?;
        if site.by == By::Planned {
            lab.ready()?;
        }
        site.grow(lab, TABLES[0].0)?;
        if site.by == By::Planned && standby > 0 {
            site.keep_standby(lab)?;
        }
        let pps = if pps == 0 { limit::search(lab, &site)? } else { pps };
        let mut tried = Tried::default();
        let end = match variant {
            Variant::Ours => matrix(lab, &mut site, Cells { pps, rounds, routes, percent }, &mut tried),
            Variant::Plain | Variant::Paper => one(lab, &mut site, variant, pps, &mut tried),
        };
        report(&mut figures, variant, pps, &tried);
        end.with_context(|| format!("so far: {}", json!(figures)))?;
        site.end(lab, variant.name())?;
    }
    let figures = Value::Object(figures);
    const ZEROS: [&str; 8] = [
        "lost",
        "duplicated",
        "reordered",
        "control_lost",
        "flaps",
        "lost_cold",
        "duplicated_cold",
        "control_lost_cold",
    ];
    let wrong: Vec<_> =
        ZEROS.into_iter().filter(|key| figures.get(key).is_some_and(|value| *value != 0)).collect();
    ensure!(wrong.is_empty(), "{} must be 0: {figures}", wrong.join(", "));
    ensure!(figures.get("lost_plain").is_none_or(|lost| *lost != 0), "(a) loses nothing: {figures}");
    Ok(figures)
}

/// One move of the matrix.
#[derive(Debug, Clone, Copy)]
struct Setting {
    /// By their numbers.
    table: usize,
    freeze: usize,
    /// Of what the lab carries.
    percent: u32,
    pps: u32,
}

impl Setting {
    fn routes(self) -> u32 {
        TABLES[self.table].0
    }

    fn pace(self) -> Pace {
        Pace { copy_ms: COPY_MS, freeze_ms: FREEZES_MS[self.freeze] }
    }

    fn rate(self) -> u32 {
        self.pps / 100 * self.percent
    }
}

/// One move from a to b, and what a bare one costs.
fn one(lab: &Lab, site: &mut Site, variant: Variant, pps: u32, tried: &mut Tried) -> Result<()> {
    let (table, freeze, percent) = ONE;
    let at = Setting { table, freeze, percent, pps };
    site.grow(lab, at.routes())?;
    lab.step(format!("control: the bystander moves: {at:?}"));
    tried.bare.push(moves::bare(lab, site, at)?);
    lab.step(format!("r1 moves from a to b: {at:?}"));
    let cell = match variant {
        Variant::Plain => moves::plain(lab, site, at, "b")?,
        Variant::Paper | Variant::Ours => moves::paper(lab, site, at, "b")?,
    };
    tried.cells.push(cell);
    Ok(())
}

/// Which cells of the matrix there are to be.
#[derive(Debug, Clone, Copy)]
struct Cells {
    pps: u32,
    rounds: usize,
    /// Only with so many; 0: with all.
    routes: u32,
    /// Only at that rate; 0: at all.
    percent: u32,
}

/// All tables, freezes and rates: in each round each freeze at another rate.
fn matrix(lab: &Lab, site: &mut Site, cells: Cells, tried: &mut Tried) -> Result<()> {
    let Cells { pps, rounds, .. } = cells;
    let tables = TABLES.into_iter().enumerate();
    for (table, (routes, _)) in tables.filter(|(_, (routes, _))| [0, *routes].contains(&cells.routes)) {
        site.grow(lab, routes)?;
        let all = |round: usize| {
            let setting = move |freeze| {
                let percent = RATES[(round + freeze) % RATES.len()];
                Setting { table, freeze, percent, pps }
            };
            let is_wanted = move |at: &Setting| [0, at.percent].contains(&cells.percent);
            (0..FREEZES_MS.len()).map(setting).filter(is_wanted)
        };
        for at in all(0) {
            lab.step(format!("control: the bystander moves: {at:?}"));
            tried.bare.push(moves::bare(lab, site, at)?);
        }
        for at in (0..rounds).flat_map(all) {
            let to = site.elsewhere()?;
            lab.step(format!("r1 moves to {to}: {at:?}"));
            tried.cells.push(moves::planned(lab, site, at, to)?);
        }
        let at = Setting { table, freeze: 1, percent: RATES[0], pps };
        if site.has_standby() {
            site.drop_standby()?;
            let to = site.elsewhere()?;
            lab.step(format!("without a standby r1 moves to {to}: {at:?}"));
            tried.cold.push(moves::planned(lab, site, at, to)?);
            site.keep_standby(lab)?;
        }
        lab.step(format!("TCP while the bystander moves, and r1: {at:?}"));
        tried.bulk.push(moves::bulk(site, at, site.elsewhere()?)?);
        site.watch.changes()?;
        if table == 0 {
            lab.step(format!("there and back while one path is {UNEVEN_MS} ms longer: {at:?}"));
            tried.uneven = Some(moves::uneven(lab, site, at, UNEVEN_MS)?);
        }
    }
    Ok(())
}

/// The figures of a variant.
fn report(figures: &mut Map<String, Value>, variant: Variant, pps: u32, tried: &Tried) {
    let mut put = |key: &str, value: Value| {
        figures.insert(format!("{key}{}", variant.suffix()), value);
    };
    let sum = |of: fn(&Cell) -> u64| -> Value { tried.cells.iter().map(of).sum::<u64>().into() };
    put("moves", tried.cells.len().into());
    put("sent", sum(|cell| cell.seen.sent));
    put("lost", sum(|cell| cell.seen.lost));
    put("duplicated", sum(|cell| cell.seen.duplicated));
    put("reordered", sum(|cell| cell.seen.reordered));
    put("control_sent", sum(|cell| cell.seen.control_sent));
    put("control_lost", sum(|cell| cell.seen.control_lost));
    put("control_duplicated", sum(|cell| cell.seen.control_duplicated));
    put("flaps", sum(|cell| cell.flaps));
    put("delay_extra_ms_max", greatest(tried.cells.iter().filter_map(|cell| tried.extra_delay(cell))));
    put("extra_total_ms", greatest(tried.cells.iter().filter_map(|cell| tried.extra_total(cell))));
    put("pps_max", pps.into());
    for (table, (_, name)) in TABLES.into_iter().enumerate() {
        let of_table = || tried.cells.iter().filter(|cell| cell.at.table == table);
        put(&format!("thaw_to_verified_ms_{name}"), greatest(of_table().filter_map(|cell| cell.verified_ms)));
        put(
            &format!("extra_total_ms_{name}"),
            greatest(of_table().filter_map(|cell| tried.extra_total(cell))),
        );
    }
    let sum_cold = |of: fn(&Cell) -> u64| -> Value { tried.cold.iter().map(of).sum::<u64>().into() };
    if !tried.cold.is_empty() {
        put("lost_cold", sum_cold(|cell| cell.seen.lost));
        put("duplicated_cold", sum_cold(|cell| cell.seen.duplicated));
        put("reordered_cold", sum_cold(|cell| cell.seen.reordered));
        put("control_lost_cold", sum_cold(|cell| cell.seen.control_lost));
    }
    for cell in &tried.cold {
        let (_, name) = TABLES[cell.at.table];
        put(&format!("thaw_to_verified_ms_{name}_cold"), json!(cell.verified_ms.map(round)));
        put(&format!("extra_total_ms_{name}_cold"), json!(tried.extra_total(cell).map(round)));
    }
    if let Some(uneven) = &tried.uneven {
        put(&format!("reordered_{UNEVEN_MS}ms"), uneven.reordered.into());
        put(&format!("lost_{UNEVEN_MS}ms"), uneven.lost.into());
    }
    for ([bare, bulk], (_, name)) in tried.bulk.iter().zip(TABLES) {
        put(&format!("tcp_bare_{name}"), bare.figures());
        put(&format!("tcp_{name}"), bulk.figures());
    }
    let cells: Vec<Value> = tried.cells.iter().map(|cell| cell.figures(tried)).collect();
    put("cells", cells.into());
    let cold: Vec<Value> = tried.cold.iter().map(|cell| cell.figures(tried)).collect();
    put("cold_cells", cold.into());
    let bare: Vec<Value> = tried.bare.iter().map(Bare::figures).collect();
    put("bare_moves", bare.into());
}

fn greatest(values: impl Iterator<Item = f64>) -> Value {
    values.max_by(f64::total_cmp).map_or(Value::Null, |value| json!(round(value)))
}
