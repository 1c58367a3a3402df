//! `xenflow init`: the XenFlow database in the running ovsdb-server. Each step is done only if it is not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, anyhow, bail};
use dom0_server::db::{DATABASE, VERSION, edit, rbac, schema};
use ovsdb::{Condition, Connection, Operation, Options, Remote, RequestError};

use crate::Failure;
use crate::args::Target;
use crate::client::{Version, check_version, connect};
use crate::cluster::transact;

/// What was done, one line each.
pub(crate) async fn run(
    db: &Target,
    seconds: u32,
    file: &Path,
    ctl: Option<&Path>,
) -> Result<Vec<String>, Failure> {
    let mut done = Vec::new();
    let mut connection = connect(db, seconds).await?;
    let serves = connection.list_dbs().await.map_err(anyhow::Error::from)?;
    if serves.iter().any(|name| name == DATABASE) {
        done.push(format!("{db} serves {DATABASE} already"));
    } else {
        let ctl = match ctl {
            Some(ctl) => ctl.to_owned(),
            None => find_ctl(&db.remotes)?,
        };
        let file = std::path::absolute(file).context("no working directory")?;
        if file.exists() {
            done.push(format!("{} is there already", file.display()));
        } else {
            create(&file)?;
            done.push(format!("created {}", file.display()));
        }
        add(&ctl, &file).await?;
        // A server that gets another database closes its clients' connections.
        connection = connect(db, seconds).await?;
        done.push(format!("added {DATABASE} to the server behind {db}"));
    }
    let found = connection.schema_version(DATABASE).await.map_err(anyhow::Error::from)?;
    match check_version(&found)? {
        Version::Same => done.push(format!("schema {found}")),
        Version::Older => {
            convert(&connection).await?;
            // A server that converts a database closes its clients' connections.
            connection = connect(db, seconds).await?;
            done.push(format!("converted the schema from {found} to {VERSION}"));
        }
    }
    first_row(&connection).await?;
    // Daemons of this version write columns that an earlier program's role does not permit.
    let rows = transact(&connection, &rbac::select()).await?;
    let renewal = rbac::renewal(&rows).map_err(anyhow::Error::from)?;
    if !renewal.is_empty() {
        transact(&connection, &renewal).await?;
        done.push(format!("clients have the role {} from now on", rbac::ROLE));
    }
    Ok(done)
}

/// The control socket of the server that listens on a unix socket: `ovsdb-server.PID.ctl` in its directory,
/// with the PID of `ovsdb-server.pid` there.
pub(crate) fn find_ctl(db: &str) -> anyhow::Result<PathBuf> {
    let remotes = Remote::parse_list(db)?;
    let Some(Remote::Unix(socket)) = remotes.first() else {
        bail!("{db} is not a unix: socket of this host: say --ctl SOCKET");
    };
    let dir = socket.parent().unwrap_or(Path::new("/"));
    let pidfile = dir.join("ovsdb-server.pid");
    let pid = fs::read_to_string(&pidfile)
        .with_context(|| format!("cannot read {} (or say --ctl SOCKET)", pidfile.display()))?;
    let pid: u32 = pid.trim().parse().map_err(|_| anyhow!("{} holds no process id", pidfile.display()))?;
    Ok(dir.join(format!("ovsdb-server.{pid}.ctl")))
}

/// `ovsdb-tool create`: the format of the file is that program's business.
pub(crate) fn create(file: &Path) -> anyhow::Result<()> {
    let mut source = file.as_os_str().to_owned();
    source.push(".schema");
    let source = PathBuf::from(source);
    fs::write(&source, schema()).with_context(|| format!("cannot write {}", source.display()))?;
    let ran = Command::new("ovsdb-tool").arg("create").arg(file).arg(&source).output();
    fs::remove_file(&source).with_context(|| format!("cannot remove {}", source.display()))?;
    let ran = ran.context("cannot run ovsdb-tool (package openvswitch-switch or openvswitch-common)")?;
    if !ran.status.success() {
        bail!("ovsdb-tool create failed: {}", String::from_utf8_lossy(&ran.stderr).trim());
    }
    Ok(())
}

/// `ovs-appctl -t CTL METHOD ARGUMENTS`: the control socket speaks JSON-RPC as well (unixctl).
pub(crate) async fn control(ctl: &Path, method: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let remote = Remote::Unix(ctl.to_owned());
    let options = Options { probe_interval: None, ..Options::default() };
    let (connection, _) = Connection::open(&remote, &options).await.context("no control socket")?;
    let answer = connection.request(method, &arguments).await?;
    Ok(answer.and_then(|text| serde_json::from_str(text.get()).ok()).unwrap_or_default())
}

/// `ovsdb-server/add-db`.
pub(crate) async fn add(ctl: &Path, file: &Path) -> anyhow::Result<()> {
    let path = file.to_str().ok_or_else(|| anyhow!("{} is not UTF-8", file.display()))?;
    let added = control(ctl, "ovsdb-server/add-db", &[path]).await;
    added.with_context(|| format!("the server does not add {}", file.display())).map(drop)
}

/// `ovsdb-client convert`: rows stay, and new columns get their defaults.
pub(crate) async fn convert(connection: &Connection) -> anyhow::Result<()> {
    let mut schema: serde_json::Value = serde_json::from_str(schema()).context("the schema is no JSON")?;
    let select = Operation::select("Database").filter(Condition::eq("name", DATABASE));
    let found = connection.transact("_Server", &[select]).await?;
    let rows = found.first().map(|result| result.rows()).unwrap_or_default();
    if rows.iter().any(|row| row.str("model").is_ok_and(|model| model == "clustered")) {
        without_ephemeral(&mut schema);
    }
    match connection.request("convert", &(DATABASE, schema)).await {
        // The connection may go before the answer comes; what became of it is asked for then.
        Ok(_) | Err(RequestError::OutcomeUnknown(_)) => Ok(()),
        Err(other) => Err(anyhow::Error::from(other).context("the server does not convert the database")),
    }
}

/// Makes all columns persistent, as `ovsdb-tool create-cluster` and `ovsdb-client convert` do: a cluster has no other
/// ones. A server does not refuse them, but writes the schema to the cluster's log, where no member can read it.
fn without_ephemeral(schema: &mut serde_json::Value) {
    let tables = schema.get_mut("tables").and_then(|tables| tables.as_object_mut());
    for table in tables.into_iter().flat_map(|tables| tables.values_mut()) {
        let columns = table.get_mut("columns").and_then(|columns| columns.as_object_mut());
        for column in columns.into_iter().flat_map(|columns| columns.values_mut()) {
            if let Some(column) = column.as_object_mut() {
                column.remove("ephemeral");
            }
        }
    }
}

async fn first_row(connection: &Connection) -> anyhow::Result<()> {
    let found = connection.transact(DATABASE, &[Operation::select("XenFlow")]).await?;
    if found.iter().all(|result| result.rows().is_empty()) {
        match connection.transact(DATABASE, &edit::first_row()).await {
            // Another one was faster: the table takes one row.
            Err(error) if edit::is_lost_race(&error) => {}
            other => drop(other?),
        }
    }
    Ok(())
}
