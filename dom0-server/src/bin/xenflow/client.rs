//! The database's client: reads it whole, and commits edits that lose no race.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, anyhow};
use dom0_server::db::edit::{Snapshot, is_lost_race};
use dom0_server::db::location::{self, Located};
use dom0_server::db::{DATABASE, Statistics, VERSION, retire, select_all, statistics, table};
use dom0_server::migration::plan::Now;
use dom0_server::tls;
use ovsdb::{Condition, Connection, Operation, Options, Remote, RequestError, Tls, TransactError};

use crate::Failure;
use crate::args::Target;
use crate::wait::Waiter;

/// How often an edit is built anew when somebody else was faster.
pub(crate) const ATTEMPTS: u32 = 20;

/// Runs a command, within its time.
pub(crate) fn block_on(seconds: u32, work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    run(within(seconds, work))
}

/// Runs a command that keeps its time itself.
pub(crate) fn run(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(work)
}

/// A part of a command, within its time.
pub(crate) async fn within<T>(
    seconds: u32,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let limit = Duration::from_secs(seconds.into());
    tokio::time::timeout(limit, work).await.map_err(|_| anyhow!("not done within {seconds} s"))?
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.remotes)
    }
}

impl Target {
    /// The same client, for another server.
    pub(crate) fn at(&self, remotes: String) -> Self {
        Self { remotes, ..self.clone() }
    }

    /// For `ssl:` remotes, if there are any.
    pub(crate) fn tls(&self, remotes: &[Remote]) -> Result<Option<Tls>, Failure> {
        let Some(ssl) = remotes.iter().find(|remote| matches!(remote, Remote::Ssl(_))) else {
            return Ok(None);
        };
        let (Some(ca), Some(cert), Some(key)) =
            (self.ca_cert.clone(), self.certificate.clone(), self.private_key.clone())
        else {
            let rule = "an ssl: remote needs --certificate, --private-key and --ca-cert";
            return Err(Failure::Input(anyhow!("remote {ssl}: {rule}")));
        };
        Ok(Some(tls::database(&tls::Files { ca, cert, key, crl: None })?))
    }
}

/// Connects to the first of the remotes that answers and, if it is of a cluster, is in contact with it.
pub(crate) async fn connect(db: &Target, seconds: u32) -> Result<Connection, Failure> {
    Ok(connect_asking(db, seconds, async |_| ()).await?.0)
}

/// The same, with the answer to what is asked at once: that costs no round trip more.
async fn connect_asking<T>(
    db: &Target,
    seconds: u32,
    ask: impl AsyncFn(&Connection) -> T,
) -> Result<(Connection, T), Failure> {
    let remotes = Remote::parse_list(&db.remotes)?;
    // One that does not answer leaves time for the others.
    let tries = u32::try_from(remotes.len()).unwrap_or(u32::MAX).max(1);
    let connect_timeout = Duration::from_secs(seconds.into()) / tries;
    let options = Options { connect_timeout, tls: db.tls(&remotes)?, ..Options::default() };
    let mut last = anyhow!("no remote");
    for remote in &remotes {
        let attempt = async {
            let (connection, _) = Connection::open(remote, &options).await?;
            let contact = async {
                match is_in_contact(&connection).await? {
                    true => Ok(()),
                    false => Err(anyhow!("{remote} has no contact with the cluster of database {DATABASE}")),
                }
            };
            let ((), answer) = tokio::try_join!(contact, async { Ok(ask(&connection).await) })?;
            Ok((connection, answer))
        };
        last = match tokio::time::timeout(connect_timeout, attempt).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => error,
            Err(_) => anyhow!("{remote} does not answer within {:.1} s", connect_timeout.as_secs_f64()),
        };
    }
    Err(last.into())
}

/// Whether a server can write: false for a member of a cluster that is cut off from the majority, or not admitted yet.
pub(crate) async fn is_in_contact(connection: &Connection) -> anyhow::Result<bool> {
    let select =
        Operation::select("Database").filter(Condition::eq("name", DATABASE)).columns(&["connected"]);
    let found = connection.transact("_Server", &[select]).await?;
    let rows = found.first().map(|result| result.rows()).unwrap_or_default();
    Ok(rows.iter().all(|row| row.bool("connected").unwrap_or(true)))
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

/// Connects to a server that serves the XenFlow database, with the answer to what is asked at once.
async fn open<T>(
    db: &Target,
    seconds: u32,
    ask: impl AsyncFn(&Connection) -> Result<T, TransactError>,
) -> Result<(Connection, T), Failure> {
    let both =
        async |connection: &Connection| tokio::join!(connection.schema_version(DATABASE), ask(connection));
    let (connection, (version, answer)) = connect_asking(db, seconds, both).await?;
    match version {
        Ok(version) => match check_version(&version)? {
            Version::Same => {}
            Version::Older => {
                return Err(anyhow!(
                    "database {DATABASE} has the schema {version}, this xenflow is for {VERSION}: run 'xenflow init' to convert it"
                )
                .into());
            }
        },
        Err(RequestError::Rpc(error)) if error.error == "unknown database" => {
            return Err(anyhow!("{db} serves no database {DATABASE}: run 'xenflow init' first").into());
        }
        Err(other) => return Err(anyhow::Error::from(other).into()),
    }
    Ok((connection, answer.map_err(anyhow::Error::from)?))
}

/// Which node has which address.
pub(crate) async fn located(db: &Target, seconds: u32) -> Result<Located, Failure> {
    let (_, results) =
        open(db, seconds, async |connection| connection.transact(DATABASE, &[location::select()]).await)
            .await?;
    Ok(Located::of_rows(results.first().map(|result| result.rows()).unwrap_or_default()))
}

/// Everything, with where it is and what moves; and the connection for what follows from that.
pub(crate) async fn moves(db: &Target, seconds: u32) -> Result<(Connection, Now), Failure> {
    open(db, seconds, now).await
}

/// The same, once more.
pub(crate) async fn now(connection: &Connection) -> Result<Now, TransactError> {
    Ok(Now::from_select(&connection.transact(DATABASE, &Now::select()).await?))
}

/// A connection to a server that serves the XenFlow database.
pub(crate) struct Client {
    connection: Connection,
    /// The database as it was when the connection was made, until somebody has seen it.
    first: Cell<Option<Snapshot>>,
    /// For `--wait`.
    waiter: Option<Waiter>,
}

impl Client {
    /// `waiter`: of a command that waits for its changes ([`Client::wait`]).
    pub(crate) async fn open(db: &Target, seconds: u32, waiter: Option<Waiter>) -> Result<Self, Failure> {
        let (connection, first) = open(db, seconds, snapshot).await?;
        Ok(Self { connection, first: Cell::new(Some(first)), waiter })
    }

    /// With `--wait`: ends when the last edit is in every switch. To be called when all else is done and printed.
    pub(crate) async fn wait(self) -> Result<(), Failure> {
        match self.waiter {
            Some(waiter) => waiter.wait(self.connection).await,
            None => Ok(()),
        }
    }

    pub(crate) async fn snapshot(&self) -> anyhow::Result<Snapshot> {
        match self.first.take() {
            Some(first) => Ok(first),
            None => Ok(snapshot(&self.connection).await?),
        }
    }

    /// See [`statistics`].
    pub(crate) async fn statistics(&self) -> anyhow::Result<Vec<Statistics>> {
        Ok(statistics(&self.connection).await?)
    }

    /// Whether there is anything that a node has reported.
    pub(crate) async fn has_reported(&self, node: &str) -> anyhow::Result<bool> {
        let results = self.connection.transact(DATABASE, &retire::select(node)).await?;
        Ok(results.iter().any(|result| !result.rows().is_empty()))
    }

    /// Commits what `build` makes of the database as it is now; again, if it changed in between.
    pub(crate) async fn edit<E: Into<Failure>>(
        &self,
        mut build: impl FnMut(&Snapshot) -> Result<Vec<Operation>, E>,
    ) -> Result<(), Failure> {
        let mut attempt = 1;
        loop {
            let mut operations = build(&self.snapshot().await?).map_err(Into::into)?;
            let may_place = operations.iter().any(may_place);
            match &self.waiter {
                Some(_) => operations.extend(Waiter::operations()),
                None if operations.is_empty() => return Ok(()),
                None => {}
            }
            operations.push(Operation::commit(true));
            match self.connection.transact(DATABASE, &operations).await {
                Ok(results) => {
                    return match &self.waiter {
                        Some(waiter) => Ok(waiter.numbered(&results, may_place)?),
                        None => Ok(()),
                    };
                }
                Err(error) if is_lost_race(&error) && attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(anyhow::Error::from(error).into()),
            }
        }
    }
}

/// The database as it is.
pub(crate) async fn snapshot(connection: &Connection) -> Result<Snapshot, TransactError> {
    Ok(Snapshot::from_select(&connection.transact(DATABASE, &select_all()).await?))
}

/// What all nodes count, by what and by node. Rows that do not parse are left out.
pub(crate) async fn statistics(connection: &Connection) -> Result<Vec<Statistics>, TransactError> {
    let results = connection.transact(DATABASE, &[statistics::select(None)]).await?;
    let rows = results.first().map(|result| result.rows()).unwrap_or_default();
    let mut all: Vec<_> = rows.iter().filter_map(|row| Statistics::parse(row).ok()).collect();
    all.sort_by(|a, b| (&a.place, &a.node).cmp(&(&b.place, &b.node)));
    Ok(all)
}

/// Whether an address may come to a port by it, of which that port's node has to tell others.
fn may_place(operation: &Operation) -> bool {
    let is_written = matches!(operation.name(), "insert" | "update" | "mutate");
    is_written && operation.table().is_some_and(|of| [table::VIF, table::ACCESS].contains(&of))
}
