//! `xenflow migrate`, `migrations` and `abort`: routers on their way from one node to another.
//!
//! Owns the words, and the transactions that operators make. What must hold before a router moves is in
//! `dom0_server::migration::plan`, how long a move is followed in `follow`, what is told of one in `report`.

mod follow;
mod report;

use std::collections::BTreeSet;

use anyhow::anyhow;
use clap::{Subcommand, ValueEnum};
use dom0_server::clock::now_ms;
use dom0_server::db::edit::{EditError, is_lost_race};
use dom0_server::db::migration::{AbortError, Via, forget, next_number};
use dom0_server::db::{DATABASE, Kind, Migration};
use dom0_server::migration::plan::{self, Asked, MOVE_LIMIT_MAX_S, MOVE_LIMIT_S, Now, Plan, PlanError};
use ovsdb::{Connection, Operation};

use crate::args::Target;
use crate::client::{self, ATTEMPTS};
use crate::events::signals;
use crate::{Failure, output, view};

/// For what is asked of the database before a router moves.
const SECONDS: u32 = 10;
/// So many moves are listed, the newest; more if more are open.
const LISTED: usize = 10;

#[derive(Debug, Subcommand)]
pub(crate) enum MoveCommand {
    /// Move a router to another node without losing packets, and follow that to its end
    ///
    /// The two nodes do it; what they need is looked at first. Each phase is one line, with the time since the beginning by the
    /// clocks of the nodes that wrote it. Ctrl-C ends only the following.
    ///
    /// Exit codes: 0 the router is there. 1 failed. 2 refused: nothing has begun. 3 aborted: the router is where it was. 4 not
    /// followed to the end, since a phase takes more than twice as long as the nodes let it; 130 not followed any further, as somebody has
    /// interrupted: in both cases it goes on, and 'xenflow abort' ends it.
    #[command(after_long_help = "Examples:
  xenflow migrate r1 host-b --dry-run       # what would be refused, and what would be done
  xenflow migrate r1 host-b                 # by xl, or what external_ids:toolstack of the router says
  xenflow migrate r1 host-b --via virsh --timeout 120 --json
  xenflow router set r1 --external-id standby=host-a,host-b   # its tables are ready at the other one from then on")]
    Migrate(MigrateArgs),
    /// Routers on their way, and the newest that were: one line each
    #[command(
        args_conflicts_with_subcommands = true,
        after_long_help = "Examples:
  xenflow migrations
  xenflow migrations --all --json
  xenflow migrations show 7                 # times of its phases, and what was counted"
    )]
    Migrations {
        #[command(subcommand)]
        what: Option<MigrationsCommand>,
        /// All that the database has: those that are open, and the 100 newest that have ended
        #[arg(long)]
        all: bool,
    },
    /// Have a router stay where it is, while its guest has not left; ends when it does
    ///
    /// Exit codes: 0 aborted. 1 failed. 2 refused: the guest has left, or nothing moves. 3 too late: the router is on the other node.
    /// 4 and 130 as of 'migrate'.
    #[command(after_long_help = "Examples:
  xenflow abort r1
  xenflow abort 7                           # as 'xenflow migrations' numbers them")]
    Abort {
        /// The router, or the number of its migration
        #[arg(value_name = "ROUTER|NUMBER")]
        what: String,
    },
}

/// Which router, where to, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct MigrateArgs {
    /// The router
    router: String,
    /// The node that it is to go to
    node: String,
    /// Look at all that would be refused, print what would be done, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Only live: refuses lab, of whose command nobody knows for how long it stops the guest. xl and virsh always move live
    #[arg(long)]
    live: bool,
    /// What moves the guest; by default what external_ids:toolstack of the router says, else xl
    #[arg(long, value_name = "TOOLSTACK")]
    via: Option<By>,
    /// How long the guest may be on its way: if it has not left by then, it stays
    // In the place of what all commands have by this name: who moves a router waits for that.
    #[arg(long, value_name = "SECONDS", default_value_t = MOVE_LIMIT_S, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOVE_LIMIT_MAX_S)))]
    timeout: u32,
}

/// What an operator can have a guest moved by.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    /// Xen: xl migrate
    Xl,
    /// libvirt: virsh migrate
    Virsh,
    /// The command in [migration.toolstack.lab] of the node's dom0.toml
    Lab,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MigrationsCommand {
    /// What became of one: times of its phases, packets, and what else was counted
    Show {
        /// Its number
        number: u64,
    },
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        Self::Input(error.into())
    }
}

impl From<AbortError> for Failure {
    fn from(error: AbortError) -> Self {
        Self::Input(error.into())
    }
}

pub(crate) async fn run(command: MoveCommand, db: &Target, seconds: u32, json: bool) -> Result<(), Failure> {
    match command {
        MoveCommand::Migrate(args) => migrate(args, db, json).await,
        MoveCommand::Abort { what } => abort(&what, db, seconds, json).await,
        MoveCommand::Migrations { what, all } => {
            let (_, now) = client::within(seconds, client::moves(db, seconds)).await?;
            match what {
                Some(MigrationsCommand::Show { number }) => show(numbered(&now, number)?, json),
                None => list(&now.migrations, all, json),
            }
            Ok(())
        }
    }
}

async fn migrate(args: MigrateArgs, db: &Target, json: bool) -> Result<(), Failure> {
    let MigrateArgs { router, node, dry_run, live, via, timeout } = args;
    let via = via.map(|by| match by {
        By::Xl => Via::Xl,
        By::Virsh => Via::Virsh,
        By::Lab => Via::Lab,
    });
    let asked = Asked { router, to: node, via, move_limit_s: timeout, live };
    if dry_run {
        let (_, now) = client::within(SECONDS, client::moves(db, SECONDS)).await?;
        let plan = plan::plan(&now, &asked, now_ms())?;
        if json {
            output::json(&report::plan_json(&plan));
        } else {
            output::text(&report::plan_text(&plan));
        }
        return Ok(());
    }
    // From here on who interrupts is told what goes on.
    let mut signals = signals()?;
    let (number, plan) = client::within(SECONDS, begin(db, &asked)).await?;
    if !json {
        output::text(&format!("migration {number}: {}\n", report::what(&plan.wanted)));
    }
    let told = follow::to_the_end(db, number, BTreeSet::new(), &mut signals, json).await;
    end(told, json, false)
}

/// Writes the row, as long as nothing is in the way.
async fn begin(db: &Target, asked: &Asked) -> Result<(u64, Plan), Failure> {
    let (connection, mut now) = client::moves(db, SECONDS).await?;
    let mut attempt = 1;
    loop {
        let plan = plan::plan(&now, asked, now_ms())?;
        let create = plan.wanted.create(&now.migrations, &plan.held, now_ms()).map_err(PlanError::from)?;
        match commit(&connection, create).await {
            Ok(()) => {
                let number = next_number(&now.migrations);
                // Whom the server lets write only rows of one node leaves the others to others.
                if let Err(error) = commit(&connection, forget(&now.migrations, None)).await
                    && error.server_error() != Some("permission error")
                {
                    output::error(&format!(
                        "old migrations are still there: {:#}",
                        anyhow::Error::from(error)
                    ));
                }
                return Ok((number, plan));
            }
            Err(error) if is_lost_race(&error) && attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(anyhow::Error::from(error).into()),
        }
        now = client::now(&connection).await.map_err(anyhow::Error::from)?;
    }
}

async fn abort(what: &str, db: &Target, seconds: u32, json: bool) -> Result<(), Failure> {
    let mut signals = signals()?;
    let row = client::within(seconds, stop(what, db, seconds)).await?;
    if !json {
        output::text(&format!("migration {} of router {} is to be aborted\n", row.number, row.router));
    }
    let known = row.reached.keys().cloned().collect();
    let told = follow::to_the_end(db, row.number, known, &mut signals, json).await;
    end(told, json, true)
}

/// Writes that a migration is to be aborted; the row as it was.
async fn stop(what: &str, db: &Target, seconds: u32) -> Result<Migration, Failure> {
    let (connection, mut now) = client::moves(db, seconds).await?;
    let mut attempt = 1;
    loop {
        let row = chosen(&now, what)?;
        match commit(&connection, row.abort_by_hand(now_ms())?).await {
            Ok(()) => return Ok(row.clone()),
            Err(error) if is_lost_race(&error) && attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(anyhow::Error::from(error).into()),
        }
        now = client::now(&connection).await.map_err(anyhow::Error::from)?;
    }
}

async fn commit(connection: &Connection, mut operations: Vec<Operation>) -> Result<(), ovsdb::TransactError> {
    if operations.is_empty() {
        return Ok(());
    }
    operations.push(Operation::commit(true));
    connection.transact(DATABASE, &operations).await.map(|_| ())
}

/// By its number, or as the one by which a router is on its way.
fn chosen<'a>(now: &'a Now, what: &str) -> Result<&'a Migration, Failure> {
    if let Ok(number) = what.parse() {
        return numbered(now, number);
    }
    let mut of_router = now.migrations.iter().filter(|row| row.router.as_str() == what).peekable();
    let desired = &now.snapshot.desired;
    if of_router.peek().is_none() && !desired.routers.keys().any(|router| router.as_str() == what) {
        return Err(EditError::Unknown { kind: Kind::Router, name: what.to_owned() }.into());
    }
    of_router.find(|row| !row.phase.is_over()).ok_or_else(|| {
        let words = format!("router {what} is not on its way: 'xenflow migrations' shows which are");
        Failure::Input(anyhow!(words))
    })
}

fn numbered(now: &Now, number: u64) -> Result<&Migration, Failure> {
    now.migrations.iter().find(|row| row.number == number).ok_or_else(|| {
        let words =
            format!("there is no migration {number}: 'xenflow migrations --all' shows those that are kept");
        Failure::Input(anyhow!(words))
    })
}

fn list(all: &[Migration], is_all: bool, json: bool) {
    let ended = all.iter().filter(|row| row.phase.is_over()).count();
    let open = all.len() - ended;
    let left_out = if is_all { 0 } else { ended.saturating_sub(LISTED.saturating_sub(open)) };
    let mut old = left_out;
    let mut rows: Vec<_> = all.iter().collect();
    rows.retain(|row| {
        let is_left_out = old > 0 && row.phase.is_over();
        old -= usize::from(is_left_out);
        !is_left_out
    });
    if json {
        output::json(&rows);
    } else {
        output::text(&view::columns(&rows.into_iter().map(report::line).collect::<Vec<_>>()));
    }
}

fn show(row: &Migration, json: bool) {
    if json {
        output::json(&report::json(row));
    } else {
        output::text(&report::text(row));
    }
}

/// What a command that has followed a migration ends with.
fn end(told: follow::Told, json: bool, is_abort: bool) -> Result<(), Failure> {
    let follow::Told { last, stopped } = told;
    if let (Some(row), true) = (&last, json) {
        output::json(&report::json(row));
    }
    match (last, stopped) {
        (_, Err(failure)) => Err(failure),
        (Some(row), Ok(())) => report::verdict(&row, is_abort),
        (None, Ok(())) => Ok(()),
    }
}
