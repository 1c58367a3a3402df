//! `xenflow doctor`: what goes wrong in practice, each check with what was seen and what to do.
//!
//! Owns the order of the checks and how they are printed. What is true of this host and of the database is collected in
//! `collect`; what it means is judged in `host`, `ports`, `trust`, `fleet`, `trunk` and `bandwidth`, which are pure.

use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;
use serde::Serialize;
use serde_json::json;

mod bandwidth;
mod collect;
mod facts;
mod finding;
mod fleet;
mod host;
mod ports;
#[cfg(test)]
mod tests;
mod trunk;
mod trust;

use facts::Facts;
use finding::{Finding, Level};

use crate::args::Target;
use crate::show::printable;
use crate::{Failure, client, color, output};

/// Steps of the collecting that each may take as long as `--timeout` says, beside one for each server of the database: two
/// databases and the bridge, the clock's daemon and the host's own beside them, and a second look at the database.
const STEPS: u32 = 6;

/// Checks, prints, and fails if a check did.
pub(crate) fn run(
    db: &Target,
    seconds: u32,
    host_only: bool,
    config: &Path,
    as_json: bool,
) -> Result<(), Failure> {
    let remotes = ovsdb::Remote::parse_list(&db.remotes)?;
    let steps = STEPS.saturating_add(u32::try_from(remotes.len()).unwrap_or(u32::MAX));
    let limit = seconds.saturating_mul(steps).saturating_add(collect::SECOND_LOOK_S);
    client::block_on(limit, async {
        let step = Duration::from_secs(seconds.into());
        let servers = collect::Servers { tls: db.tls(&remotes)?, remotes, step };
        let facts = collect::facts(&db.remotes, &servers, host_only, config).await;
        let findings = judge(&facts);
        print(&findings, as_json);
        match findings.iter().filter(|finding| finding.level == Level::Fail).count() {
            0 => Ok(()),
            failed => Err(anyhow!("{failed} of {} checks failed", findings.len()).into()),
        }
    })
}

/// Every check, in the order in which one thing stands on the other.
fn judge(facts: &Facts) -> Vec<Finding> {
    let mut all = host::check(facts);
    all.extend(trust::check(&facts.trust, facts.now_s()));
    if let Ok(switch) = &facts.switch {
        all.extend(ports::check(switch, facts));
    }
    all.extend(fleet::check(facts));
    all.extend(bandwidth::check(facts));
    all
}

#[derive(Serialize)]
struct Sum {
    ok: usize,
    warn: usize,
    fail: usize,
}

fn print(findings: &[Finding], as_json: bool) {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let sum = Sum { ok: count(Level::Ok), warn: count(Level::Warn), fail: count(Level::Fail) };
    if as_json {
        output::json(&json!({ "findings": findings, "sum": sum }));
        return;
    }
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let has_color = color::is_wanted(&std::io::stdout());
    let mut text = String::new();
    for Finding { check, level, seen, todo } in findings {
        let level = color::paint(has_color, level.color(), &format!("{:4}", level.as_str()));
        text += &format!("{level}  {check:width$}  {}\n", printable(seen));
        if let Some(todo) = todo {
            text += &format!("{:4}  {:width$}  -> {}\n", "", "", printable(todo));
        }
    }
    text += &format!("{} ok, {} warnings, {} failed\n", sum.ok, sum.warn, sum.fail);
    output::text(&text);
}
