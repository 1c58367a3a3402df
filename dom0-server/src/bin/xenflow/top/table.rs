//! Pages as tables of cells: what stands in which column, its order, and what a filter leaves.

use dom0_server::db::policy::PuntClass;

use super::model::View;

/// One screen's worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Page {
    Networks,
    Routers,
    Punts,
    Nodes,
    Migrations,
    Uplinks,
}

impl Page {
    pub(super) const ALL: [Self; 6] =
        [Self::Networks, Self::Routers, Self::Punts, Self::Nodes, Self::Migrations, Self::Uplinks];

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Networks => "Networks",
            Self::Routers => "Routers",
            Self::Punts => "Punts",
            Self::Nodes => "Nodes",
            Self::Migrations => "Migrations",
            Self::Uplinks => "Uplinks",
        }
    }

    /// What a reader of this page must know.
    pub(super) const fn note(self) -> &'static str {
        match self {
            Self::Networks => "MIN and MAX: promised of each uplink; IN and OUT: all ports of all nodes",
            Self::Routers => "forwarded by hosts; ROUTES/S: those that came, changed or went",
            Self::Punts => "packets/s for guests, by class, before the meter; POLICED: what it dropped",
            Self::Nodes => "IN and OUT: uplinks; REFUSED: packets/s that the tagger did not admit",
            Self::Migrations => "routers on their way from node to node",
            Self::Uplinks => "of this host, as its daemon says; xenflow explain sla NETWORK: why",
        }
    }

    /// The column that a page is ordered by at first.
    pub(super) const fn first_order(self) -> usize {
        match self {
            Self::Networks => 3,
            Self::Routers => 4,
            Self::Punts => 6,
            Self::Uplinks => 5,
            Self::Nodes | Self::Migrations => 0,
        }
    }
}

/// What stands in a column of a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Text(String),
    /// Bit/s; `None`: no bound, nothing promised.
    Rate(Option<f64>),
    /// A number, a second or by itself; `None`: not known.
    Number(Option<f64>),
    /// Seconds; `None`: never.
    Age(Option<u64>),
}

/// Three digits and a unit's letter.
fn short(value: f64) -> String {
    let sign = if value < 0.0 { "-" } else { "" };
    let mut scaled = value.abs();
    let mut letter = "";
    for next in ["k", "M", "G", "T"] {
        if scaled < 999.5 {
            break;
        }
        scaled /= 1000.0;
        letter = next;
    }
    let digits = if letter.is_empty() || scaled >= 99.95 { 0 } else { 1 };
    let text = format!("{scaled:.digits$}");
    if text == "0" { text } else { format!("{sign}{text}{letter}") }
}

impl Cell {
    pub(super) fn show(&self) -> String {
        let number = |number: Option<f64>| number.map_or("-".to_owned(), short);
        match self {
            Self::Text(text) if text.is_empty() => "-".to_owned(),
            Self::Text(text) => crate::show::printable(text),
            Self::Rate(rate) | Self::Number(rate) => number(*rate),
            Self::Age(age) => match age {
                None => "never".to_owned(),
                Some(s @ 0..100) => format!("{s}s"),
                Some(s @ 100..6_000) => format!("{}min", s / 60),
                Some(s @ 6_000..172_800) => format!("{}h", s / 3_600),
                Some(s) => format!("{}d", s / 86_400),
            },
        }
    }

    /// Numbers stand to the right, and come largest first.
    pub(super) const fn is_number(&self) -> bool {
        !matches!(self, Self::Text(_))
    }

    fn value(&self) -> f64 {
        match self {
            Self::Text(_) => 0.0,
            Self::Rate(value) | Self::Number(value) => value.unwrap_or(-1.0),
            Self::Age(age) => age.map_or(f64::MAX, |age| age as f64),
        }
    }
}

/// A page's columns and rows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Table {
    pub(super) heads: Vec<String>,
    pub(super) rows: Vec<Vec<Cell>>,
}

fn text(text: &str) -> Cell {
    Cell::Text(text.to_owned())
}

impl Table {
    /// The rows of a page, by name.
    pub(super) fn of(view: &View, page: Page) -> Self {
        let rate = |bps: f64| Cell::Rate(Some(bps));
        let number = |number: f64| Cell::Number(Some(number));
        let (heads, rows): (Vec<&str>, Vec<Vec<Cell>>) = match page {
            Page::Networks => (
                vec!["NETWORK", "IN", "IN/S", "OUT", "OUT/S", "MIN", "MAX"],
                view.networks
                    .iter()
                    .map(|row| {
                        let contract = |bps: Option<u64>| Cell::Rate(bps.map(|bps| bps as f64));
                        vec![
                            text(&row.name),
                            rate(row.in_bps),
                            number(row.in_pps),
                            rate(row.out_bps),
                            number(row.out_pps),
                            contract(row.min_bps),
                            contract(row.max_bps),
                        ]
                    })
                    .collect(),
            ),
            Page::Routers => (
                vec!["ROUTER", "NODE", "SESSION", "AGE", "FORWARDED", "PACKETS/S", "ROUTES", "ROUTES/S"],
                view.routers
                    .iter()
                    .map(|row| {
                        let age = match row.session {
                            "-" => Cell::Number(None),
                            _ => Cell::Age(Some(row.age_s)),
                        };
                        vec![
                            text(&row.name),
                            text(&row.node),
                            text(row.session),
                            age,
                            rate(row.forwarded_bps),
                            number(row.forwarded_pps),
                            number(row.routes as f64),
                            number(row.routes_per_s),
                        ]
                    })
                    .collect(),
            ),
            Page::Punts => {
                let classes = PuntClass::ALL.iter().map(|class| class.as_str());
                let heads = ["ROUTER"].into_iter().chain(classes.clone()).chain(["POLICED"]);
                let rows = view.routers.iter().map(|row| {
                    let punted =
                        classes.clone().map(|class| Cell::Number(row.punted_pps.get(class).copied()));
                    let mut cells = vec![text(&row.name)];
                    cells.extend(punted);
                    cells.push(number(row.policed_pps));
                    cells
                });
                (heads.collect(), rows.collect())
            }
            Page::Nodes => (
                vec!["NODE", "SEEN", "IN", "OUT", "REFUSED", "PROBLEMS", "VERSION", "SWITCH"],
                view.nodes
                    .iter()
                    .map(|row| {
                        vec![
                            text(&row.name),
                            Cell::Age(row.seen_s),
                            rate(row.in_bps),
                            rate(row.out_bps),
                            number(row.dropped_pps),
                            number(row.problems as f64),
                            text(&row.version),
                            text(&row.switch),
                        ]
                    })
                    .collect(),
            ),
            Page::Migrations => (
                vec!["ROUTER", "NUMBER", "FROM", "TO", "PHASE", "ERROR"],
                view.migrations
                    .iter()
                    .map(|row| {
                        vec![
                            text(row.router.as_str()),
                            number(row.number as f64),
                            text(row.from.as_str()),
                            text(row.to.as_str()),
                            text(row.phase.as_str()),
                            text(&row.error),
                        ]
                    })
                    .collect(),
            ),
            Page::Uplinks => (
                vec!["UPLINK", "NETWORK", "CLASS", "MIN", "MAX", "OBTAINED", "EXPECTED", "FITNESS%", "STATE"],
                view.uplinks
                    .iter()
                    .map(|row| {
                        let whole = |bps: u64| Cell::Rate(Some(bps as f64));
                        vec![
                            text(&row.port),
                            text(&row.network),
                            text(row.class.as_deref().unwrap_or_default()),
                            Cell::Rate((row.min_bps > 0).then_some(row.min_bps as f64)),
                            Cell::Rate(row.max_bps.map(|bps| bps as f64)),
                            whole(row.obtained_bps),
                            whole(row.expected_bps),
                            Cell::Number(row.fitness.map(|fitness| fitness * 100.0)),
                            text(&row.state),
                        ]
                    })
                    .collect(),
            ),
        };
        Self { heads: heads.into_iter().map(str::to_uppercase).collect(), rows }
    }

    /// Keeps the rows in which some text holds the filter, whatever its case.
    pub(super) fn filter(&mut self, filter: &str) {
        let filter = filter.to_lowercase();
        self.rows.retain(|row| {
            filter.is_empty()
                || row
                    .iter()
                    .any(|cell| matches!(cell, Cell::Text(text) if text.to_lowercase().contains(&filter)))
        });
    }

    /// Orders rows by a column: text from a on, numbers from the largest on; equal ones stay by name.
    pub(super) fn order(&mut self, column: usize, reversed: bool) {
        self.rows.sort_by(|a, b| {
            let order = match (a.get(column), b.get(column)) {
                (Some(Cell::Text(a)), Some(Cell::Text(b))) => a.cmp(b),
                (Some(a), Some(b)) => b.value().total_cmp(&a.value()),
                _ => std::cmp::Ordering::Equal,
            };
            if reversed { order.reverse() } else { order }
        });
    }
}
