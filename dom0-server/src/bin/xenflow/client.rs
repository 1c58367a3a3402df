//! The database's client: reads it whole, and commits edits that lose no race.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, anyhow};
use dom0_server::db::edit::{Snapshot, is_lost_race};
use dom0_server::db::{DATABASE, Statistics, VERSION, select_all, statistics};
use ovsdb::{Connection, Operation, Options, Remote, RequestError};
use tokio::time::Instant;

use crate::Failure;
use crate::wait::Waiter;

/// How often an edit is built anew when somebody else was faster.
const ATTEMPTS: u32 = 20;

/// Runs a command, within its time.
pub(crate) fn block_on(seconds: u32, work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let limit = Duration::from_secs(seconds.into());
    runtime.block_on(async {
        tokio::time::timeout(limit, work).await.map_err(|_| anyhow!("not done within {seconds} s"))?
    })
}

/// Connects to the first of the remotes that answers.
pub(crate) async fn connect(db: &str, seconds: u32) -> Result<Connection, Failure> {
    let remotes = Remote::parse_list(db)?;
    let connect_timeout = Duration::from_secs(seconds.into());
    let options = Options { connect_timeout, ..Options::default() };
    let opened = Connection::open_any(&remotes, &options).await.map_err(anyhow::Error::from)?;
    // `None` comes of an empty list only, which does not parse.
    Ok(opened.map(|(connection, _)| connection).ok_or_else(|| anyhow!("no remote"))?)
}

/// How the schema of a database stands to this program's: the first two numbers of its version decide.
pub(crate) enum Version {
    /// It is the same.
    Same,
    /// `xenflow init` converts it.
    Older,
}

/// Compares versions.
pub(crate) fn check_version(found: &str) -> anyhow::Result<Version> {
    let numbers = |version: &str| {
        let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
        Some((parts.next()??, parts.next()??))
    };
    match (numbers(found), numbers(VERSION)) {
        (Some(found), Some(own)) if found == own => Ok(Version::Same),
        (Some(found), Some(own)) if found < own => Ok(Version::Older),
        _ => Err(anyhow!("database {DATABASE} has the schema \"{found}\", this xenflow is for {VERSION}")),
    }
}

/// A connection to a server that serves the XenFlow database.
pub(crate) struct Client {
    connection: Connection,
    /// For `--wait`.
    waiter: Option<Waiter>,
}

impl Client {
    /// `wait_until`: changes are waited for until then ([`Client::wait`]).
    pub(crate) async fn open(db: &str, seconds: u32, wait_until: Option<Instant>) -> Result<Self, Failure> {
        let connection = connect(db, seconds).await?;
        match connection.get_schema(DATABASE).await {
            Ok(schema) => match check_version(&schema.version)? {
                Version::Same => {}
                Version::Older => {
                    let found = schema.version;
                    return Err(anyhow!(
                        "database {DATABASE} has the schema {found}, this xenflow is for {VERSION}: run 'xenflow init' to convert it"
                    )
                    .into());
                }
            },
            Err(RequestError::Rpc(error)) if error.error == "unknown database" => {
                return Err(anyhow!("{db} serves no database {DATABASE}: run 'xenflow init' first").into());
            }
            Err(other) => return Err(anyhow::Error::from(other).into()),
        }
        let remotes = Remote::parse_list(db)?;
        let waiter = wait_until.map(|deadline| Waiter::start(remotes, seconds, deadline));
        Ok(Self { connection, waiter })
    }

    /// With `--wait`: ends when the last edit is in every switch. To be called when all else is done and printed.
    pub(crate) async fn wait(self) -> Result<(), Failure> {
        match self.waiter {
            Some(waiter) => waiter.wait().await,
            None => Ok(()),
        }
    }

    pub(crate) async fn snapshot(&self) -> anyhow::Result<Snapshot> {
        Ok(Snapshot::from_select(&self.connection.transact(DATABASE, &select_all()).await?))
    }

    /// What all nodes count. Rows that do not parse are left out.
    pub(crate) async fn statistics(&self) -> anyhow::Result<Vec<Statistics>> {
        let results = self.connection.transact(DATABASE, &[statistics::select(None)]).await?;
        let rows = results.first().map(|result| result.rows()).unwrap_or_default();
        let mut all: Vec<_> = rows.iter().filter_map(|row| Statistics::parse(row).ok()).collect();
        all.sort_by(|a, b| (&a.place, &a.node).cmp(&(&b.place, &b.node)));
        Ok(all)
    }

    /// Commits what `build` makes of the database as it is now; again, if it changed in between.
    pub(crate) async fn edit<E: Into<Failure>>(
        &self,
        mut build: impl FnMut(&Snapshot) -> Result<Vec<Operation>, E>,
    ) -> Result<(), Failure> {
        let mut attempt = 1;
        loop {
            let mut operations = build(&self.snapshot().await?).map_err(Into::into)?;
            match &self.waiter {
                Some(_) => operations.extend(Waiter::operations()),
                None if operations.is_empty() => return Ok(()),
                None => {}
            }
            operations.push(Operation::commit(true));
            match self.connection.transact(DATABASE, &operations).await {
                Ok(results) => {
                    return match &self.waiter {
                        Some(waiter) => Ok(waiter.numbered(&results)?),
                        None => Ok(()),
                    };
                }
                Err(error) if is_lost_race(&error) && attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(anyhow::Error::from(error).into()),
            }
        }
    }
}
