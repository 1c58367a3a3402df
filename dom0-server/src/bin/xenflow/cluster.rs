//! `xenflow cluster`: a RAFT cluster of `ovsdb-server`s (ovsdb(7), "Clustered Databases") that serves the XenFlow
//! database by TLS, with the roles of [`rbac`].
//!
//! The contents are made complete, roles among them, before a server ever opens them. Owns the order of the steps; each
//! is done only if it is not. Files and arguments of a member are in `place`, its own report in `status`. Processes are
//! systemd's: without it, the command that starts the server is printed.

mod place;
pub(crate) mod status;

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use dom0_server::config::Config;
use dom0_server::db::{DATABASE, VERSION, rbac, schema};
use dom0_server::tls;
use ovsdb::{Connection, Options, Remote};
use serde_json::{Value, json};

use crate::args::{ClusterCommand, MemberArgs, PlaceArgs, Target};
use crate::client::{Version, check_version, connect, is_in_contact};
use crate::{Failure, init, output};
use place::{Place, make_parent};
use status::{ClusterStatus, Member};

/// Where a member's settings are.
pub(crate) const SETTINGS: &str = "/etc/xenflow/cluster.env";
/// Where members listen for each other.
pub(crate) const PORT: u16 = 6661;
const UNIT: &str = "xenflow-ovsdb.service";
/// Between two looks at something that takes its time.
const PAUSE: Duration = Duration::from_millis(100);

/// The database of a command that is not told any: that of this host, as a member of a cluster or by itself.
pub(crate) fn default_remote() -> String {
    let place = Place::read(Path::new(SETTINGS)).ok().flatten();
    place.map_or_else(|| "unix:/var/run/openvswitch/db.sock".to_owned(), |place| place.remote())
}

/// Why this host needs no embedded database: by the settings of its daemon, if they are there.
pub(crate) fn elsewhere(config: Option<&Path>) -> Result<Option<String>, Failure> {
    let Some(path) = config.filter(|path| path.exists()) else { return Ok(None) };
    let config = Config::load(path)?;
    let other = config.xenflow_db.filter(|remote| *remote != config.ovs_db);
    Ok(other.map(|remote| format!("{}: xenflow_db is {remote}: nothing to do here", path.display())))
}

fn input(message: String) -> Failure {
    Failure::Input(anyhow!(message))
}

/// Does one of the commands.
pub(crate) async fn run(
    command: ClusterCommand,
    db: &Target,
    seconds: u32,
    json: bool,
) -> Result<(), Failure> {
    match command {
        ClusterCommand::Init { member, from, client_port } => {
            output::report(&first(&member, &from, client_port, db, seconds).await?, json)
        }
        ClusterCommand::Join { member, peers } => {
            output::report(&join(&member, &peers, db, seconds).await?, json)
        }
        ClusterCommand::Status { place } => {
            let place = known(&place)?;
            let status = ask(&place).await?;
            if json {
                output::json(&status);
            } else {
                output::text(&status.page());
            }
            Ok(())
        }
        ClusterCommand::Kick { server, place, force } => {
            output::report(&kick(&place, &server, force).await?, json)
        }
        ClusterCommand::Leave { place, last, to } => {
            output::report(&leave(&place, last.then_some(to.as_path())).await?, json)
        }
    }
}

/// A member as it is to be.
struct Planned {
    place: Place,
    ip: IpAddr,
    /// As `ovsdb-tool` writes it.
    local: String,
}

impl Planned {
    fn of(args: &MemberArgs, db: &Target) -> Result<Self, Failure> {
        let MemberArgs { address, port, db_file, rundir, config, place: _ } = args;
        let rule = "the address of a member is an IP address of this host that the other members reach";
        let ip: IpAddr = address.parse().map_err(|_| input(format!("\"{address}\": {rule}")))?;
        if ip.is_unspecified() || ip.is_multicast() {
            return Err(input(format!("{ip}: {rule}")));
        }
        if TcpListener::bind(SocketAddr::new(ip, 0)).is_err() {
            return Err(input(format!("{ip}: {rule}; this host has no such address")));
        }
        let files = match (&db.certificate, &db.private_key, &db.ca_cert) {
            (Some(cert), Some(key), Some(ca)) => {
                tls::Files { ca: ca.clone(), cert: cert.clone(), key: key.clone(), crl: None }
            }
            (None, None, None) => Config::load(config)?.credentials(),
            _ => {
                let rule = "--certificate, --private-key and --ca-cert belong together";
                return Err(input(format!(
                    "{rule}: say all three, or none to take those of {}",
                    config.display()
                )));
            }
        };
        // A node's, a pair, of the authority: what members and clients will demand.
        let server = files.load()?;
        server.trust.check_host(&server.chain, rustls_pki_types::UnixTime::now()).map_err(|error| {
            Failure::Input(
                anyhow::Error::from(error).context(format!("{} cannot be used", files.cert.display())),
            )
        })?;
        let tls::Files { ca, cert, key, .. } = files;
        let place = Place { file: db_file.clone(), rundir: rundir.clone(), cert, key, ca };
        place.check()?;
        Ok(Self { place, ip, local: format!("ssl:{}", SocketAddr::new(ip, *port)) })
    }

    /// Whether its file is there, and is of this member.
    fn is_made(&self) -> Result<bool, Failure> {
        let file = &self.place.file;
        if !file.exists() {
            return Ok(false);
        }
        let shown = file.display();
        let found = tool(&["db-local-address".as_ref(), file.as_os_str()]).map_err(|_| {
            input(format!("{shown} is there, but is no member's copy: move it away, or say --db-file"))
        })?;
        if found.trim() != self.local {
            let found = found.trim();
            return Err(input(format!(
                "{}: this host is the member {found} already: 'xenflow cluster leave' ends that",
                self.local
            )));
        }
        Ok(true)
    }
}

async fn first(
    args: &MemberArgs,
    from: &Path,
    client_port: u16,
    db: &Target,
    seconds: u32,
) -> Result<Vec<String>, Failure> {
    let planned = Planned::of(args, db)?;
    let Planned { place, ip, local } = &planned;
    // Members listen on all their addresses: the row is one for all of them.
    let target =
        if ip.is_ipv6() { format!("pssl:{client_port}:[::]") } else { format!("pssl:{client_port}") };
    let mut done = Vec::new();
    let shown = place.file.display();
    if planned.is_made()? {
        done.push(format!("{shown} is there already"));
    } else {
        let ctl = detach(from, db, seconds, &mut done).await?;
        let made = make(place, from, local, &target);
        if let (Err(_), Some(ctl)) = (&made, &ctl) {
            init::add(ctl, from).await?;
        }
        made?;
        done.push(format!("created {shown}, of the member {local}"));
        if from.exists() {
            let mut kept = from.as_os_str().to_owned();
            kept.push(".before-cluster");
            fs::rename(from, &kept).with_context(|| format!("cannot rename {}", from.display()))?;
            done.push(format!("took its contents from {0}, now {0}.before-cluster", from.display()));
        }
    }
    let begun = start(place, &args.place, &mut done)?;
    if let Some(connection) = reach(place, begun, db, seconds).await? {
        let found = connection.schema_version(DATABASE).await.map_err(anyhow::Error::from)?;
        let mut connection = connection;
        if let Version::Older = check_version(&found)? {
            init::convert(&connection).await?;
            connection = connect(&db.at(place.remote()), seconds).await?;
            done.push(format!("converted the schema from {} to {VERSION}", found));
        }
        let rows = transact(&connection, &rbac::select()).await?;
        let operations = rbac::operations(&rows, &target).map_err(anyhow::Error::from)?;
        if operations.is_empty() {
            done.push(format!("clients have the role {}", rbac::ROLE));
        } else {
            transact(&connection, &operations).await?;
            done.push(format!("clients have the role {} from now on", rbac::ROLE));
        }
    }
    done.push(format!(
        "this member serves clients at ssl:{}: see xenflow_db",
        SocketAddr::new(*ip, client_port)
    ));
    Ok(done)
}

/// Has the host's own `ovsdb-server` give up the embedded database, so that nobody writes there any more; its control
/// socket, if it served it.
async fn detach(
    from: &Path,
    db: &Target,
    seconds: u32,
    done: &mut Vec<String>,
) -> Result<Option<std::path::PathBuf>, Failure> {
    let Ok(connection) = connect(db, seconds).await else { return Ok(None) };
    let served = connection.list_dbs().await.map_err(anyhow::Error::from)?;
    if !served.iter().any(|name| name == DATABASE) {
        return Ok(None);
    }
    if !from.exists() {
        let shown = from.display();
        return Err(input(format!(
            "{db} serves {DATABASE}, but not from {shown}: say --from FILE, so that nothing is lost"
        )));
    }
    let ctl = init::find_ctl(&db.remotes)?;
    init::control(&ctl, "ovsdb-server/remove-db", &[DATABASE])
        .await
        .with_context(|| format!("the server behind {db} does not give {DATABASE} up"))?;
    done.push(format!("the server behind {db} serves {DATABASE} no more"));
    Ok(Some(ctl))
}

/// The first member's copy: contents, the schema of this program, and the roles.
fn make(place: &Place, from: &Path, local: &str, target: &str) -> anyhow::Result<()> {
    make_parent(&place.file)?;
    let beside = |suffix: &str| {
        let mut name = place.file.as_os_str().to_owned();
        name.push(suffix);
        std::path::PathBuf::from(name)
    };
    let (contents, part) = (beside(".contents"), beside(".part"));
    let clean = || {
        for left in [&contents, &part, &beside(".schema")] {
            let _ = fs::remove_file(left);
        }
    };
    clean();
    let make = || {
        if from.exists() {
            let version = tool(&["db-version".as_ref(), from.as_os_str()])?;
            let is_older = matches!(check_version(version.trim())?, Version::Older);
            fs::copy(from, &contents).with_context(|| format!("cannot copy {}", from.display()))?;
            if is_older {
                let source = beside(".schema");
                fs::write(&source, schema()).with_context(|| format!("cannot write {}", source.display()))?;
                tool(&["convert".as_ref(), contents.as_os_str(), source.as_os_str()])?;
            }
        } else {
            init::create(&contents)?;
        }
        let rows = offline(&contents, &rbac::select())?;
        offline(&contents, &rbac::operations(&rows, target)?)?;
        tool(&["create-cluster".as_ref(), part.as_os_str(), contents.as_os_str(), local.as_ref()])?;
        fs::rename(&part, &place.file).with_context(|| format!("cannot make {}", place.file.display()))
    };
    let made = make();
    clean();
    made
}

async fn join(
    args: &MemberArgs,
    peers: &[String],
    db: &Target,
    seconds: u32,
) -> Result<Vec<String>, Failure> {
    let planned = Planned::of(args, db)?;
    let Planned { place, local, .. } = &planned;
    let peers = peers.iter().map(|text| peer(text, local)).collect::<Result<Vec<_>, _>>()?;
    let mut done = Vec::new();
    let shown = place.file.display();
    if planned.is_made()? {
        done.push(format!("{shown} is there already"));
    } else {
        make_parent(&place.file)?;
        let mut arguments =
            vec!["join-cluster".as_ref(), place.file.as_os_str(), DATABASE.as_ref(), local.as_ref()];
        arguments.extend(peers.iter().map(std::ffi::OsStr::new));
        tool(&arguments)?;
        done.push(format!("created {shown}, of the member {local}"));
    }
    let begun = start(place, &args.place, &mut done)?;
    if reach(place, begun, db, seconds).await?.is_some() {
        done.push(format!("{local} is a member of the cluster"));
    }
    Ok(done)
}

/// Where another member listens.
fn peer(text: &str, local: &str) -> Result<String, Failure> {
    let rule = "a member is IP, IP:PORT or ssl:IP:PORT";
    let bare = text.strip_prefix("ssl:").unwrap_or(text);
    let ip = bare.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let address = bare.parse().or_else(|_| ip.map(|ip| SocketAddr::new(ip, PORT)));
    let address = address.map_err(|_| input(format!("\"{text}\": {rule}")))?;
    let remote = format!("ssl:{address}");
    if remote == local {
        return Err(input(format!("{remote} is this member itself: --peer is another one")));
    }
    Ok(remote)
}

/// Writes the settings and has the server run; whether that is systemd's business.
fn start(place: &Place, args: &PlaceArgs, done: &mut Vec<String>) -> anyhow::Result<bool> {
    let shown = args.settings.display();
    if place.write(&args.settings)? {
        done.push(format!("wrote {shown}"));
    }
    fs::create_dir_all(&place.rundir).with_context(|| format!("cannot make {}", place.rundir.display()))?;
    if is_systemd(args) {
        systemctl(&["enable", "--now", UNIT])?;
        done.push(format!("{UNIT} runs, and will at every start of this host"));
        return Ok(true);
    }
    if std::os::unix::net::UnixStream::connect(place.ctl()).is_err() {
        let arguments = place.arguments().join(" ");
        done.push(format!("start the server, then say this again: ovsdb-server {arguments}"));
    }
    Ok(false)
}

fn is_systemd(args: &PlaceArgs) -> bool {
    !args.no_systemd && Path::new("/run/systemd/system").exists()
}

fn systemctl(arguments: &[&str]) -> anyhow::Result<()> {
    let ran = Command::new("systemctl").args(arguments).output().context("cannot run systemctl")?;
    if !ran.status.success() {
        let said = String::from_utf8_lossy(&ran.stderr);
        bail!("systemctl {} failed: {}", arguments.join(" "), said.trim());
    }
    Ok(())
}

/// The member's own socket, once it is in contact with the cluster; none if its server does not run.
async fn reach(place: &Place, begun: bool, db: &Target, seconds: u32) -> Result<Option<Connection>, Failure> {
    if !begun && std::os::unix::net::UnixStream::connect(place.ctl()).is_err() {
        return Ok(None);
    }
    loop {
        // The command's own limit ends this.
        if let Ok(connection) = connect(&db.at(place.remote()), seconds).await {
            return Ok(Some(connection));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn known(args: &PlaceArgs) -> Result<Place, Failure> {
    let settings = args.settings.display();
    let none = || {
        anyhow!(
            "this host is no member of a cluster: there is no {settings}; 'xenflow cluster init' or 'join'"
        )
    };
    Ok(Place::read(&args.settings)?.ok_or_else(none)?)
}

fn not_running(place: &Place, error: anyhow::Error) -> anyhow::Error {
    let file = place.file.display();
    error.context(format!("the server of {file} does not answer: see 'systemctl status {UNIT}'"))
}

/// The server's report of itself.
async fn ask(place: &Place) -> anyhow::Result<ClusterStatus> {
    let text = init::control(&place.ctl(), "cluster/status", &[DATABASE]).await;
    let text = text.map_err(|error| not_running(place, error))?;
    let mut status =
        ClusterStatus::parse(&text).ok_or_else(|| anyhow!("cluster/status cannot be read: {text}"))?;
    let remote: Remote = place.remote().parse()?;
    let (connection, _) = Connection::open(&remote, &Options::default()).await?;
    status.in_contact = is_in_contact(&connection).await?;
    Ok(status)
}

/// Whether the server has left its cluster: it gives the database up then.
async fn has_left(place: &Place) -> anyhow::Result<bool> {
    match init::control(&place.ctl(), "cluster/status", &[DATABASE]).await {
        Ok(text) => Ok(ClusterStatus::parse(&text).is_some_and(|status| status.state == "left cluster")),
        Err(error) if format!("{error:#}").contains("unknown cluster") => Ok(true),
        Err(error) => Err(not_running(place, error)),
    }
}

/// Has the others go on without a member that cannot say so itself.
async fn kick(args: &PlaceArgs, server: &str, force: bool) -> Result<Vec<String>, Failure> {
    let place = known(args)?;
    let status = ask(&place).await?;
    let member = status.members.iter().find(|member| member.server == server || member.address == server);
    let Some(Member { server: id, address, is_self, connected, .. }) = member else {
        return Err(input(format!(
            "\"{server}\" is no member: 'xenflow cluster status' shows all, by ID and address"
        )));
    };
    if *is_self {
        return Err(input(format!(
            "{id} is this member itself: 'xenflow cluster leave' ends its membership"
        )));
    }
    if *connected && !force {
        return Err(input(format!(
            "{id} at {address} is connected: 'xenflow cluster leave' there ends its membership, or say --force"
        )));
    }
    if !status.in_contact {
        return Err(anyhow!("this member has no contact with a majority, which has to agree").into());
    }
    let asked = init::control(&place.ctl(), "cluster/kick", &[DATABASE, id]).await;
    asked.with_context(|| format!("{id} cannot be kicked"))?;
    while ask(&place).await?.members.iter().any(|member| member.server == *id) {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(vec![format!("{id} at {address} is no member any more")])
}

async fn leave(args: &PlaceArgs, keep: Option<&Path>) -> Result<Vec<String>, Failure> {
    let place = known(args)?;
    let mut done = Vec::new();
    if place.file.exists() && has_left(&place).await? {
        stop(&place, args).await?;
    } else if place.file.exists() {
        let ClusterStatus { members, state, address: local, .. } = ask(&place).await?;
        match (members.len() > 1, keep) {
            (true, None) => {
                if state == "cluster member" {
                    let asked = init::control(&place.ctl(), "cluster/leave", &[DATABASE]).await;
                    asked.with_context(|| format!("{local} cannot leave"))?;
                }
                while !has_left(&place).await? {
                    tokio::time::sleep(PAUSE).await;
                }
                done.push(format!("{local} has left the cluster"));
                stop(&place, args).await?;
            }
            (true, Some(_)) => {
                let count = members.len();
                return Err(input(format!(
                    "--last: {local} is one of {count} members: leave without --last"
                )));
            }
            (false, None) => {
                return Err(input(format!(
                    "{local} is the last member, and holds the database: 'xenflow cluster leave --last' keeps it as the \
                     embedded one"
                )));
            }
            (false, Some(to)) => {
                if to.exists() {
                    let shown = to.display();
                    return Err(input(format!("{shown} is there already: move it away, or say --to FILE")));
                }
                stop(&place, args).await?;
                make_parent(to)?;
                tool(&["cluster-to-standalone".as_ref(), to.as_os_str(), place.file.as_os_str()])?;
                done.push(format!("{} is the database of the cluster that has ended", to.display()));
            }
        }
    }
    if place.file.exists() {
        fs::remove_file(&place.file).with_context(|| format!("cannot remove {}", place.file.display()))?;
        done.push(format!("removed {}", place.file.display()));
    }
    fs::remove_file(&args.settings).with_context(|| format!("cannot remove {}", args.settings.display()))?;
    done.push(format!("removed {}", args.settings.display()));
    Ok(done)
}

/// Ends the server, and waits until it has.
async fn stop(place: &Place, args: &PlaceArgs) -> anyhow::Result<()> {
    if is_systemd(args) {
        systemctl(&["disable", "--now", UNIT])?;
    } else {
        init::control(&place.ctl(), "exit", &[]).await?;
    }
    while std::os::unix::net::UnixStream::connect(place.ctl()).is_ok() {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// A transaction with a server.
pub(crate) async fn transact(connection: &Connection, operations: &[Value]) -> anyhow::Result<Value> {
    let params: Vec<Value> = [json!(DATABASE)].into_iter().chain(operations.iter().cloned()).collect();
    let answer = connection.request("transact", &params).await?;
    results(serde_json::from_str(answer.as_ref().map_or("null", |text| text.get()))?)
}

/// A transaction with a file.
fn offline(file: &Path, operations: &[Value]) -> anyhow::Result<Value> {
    let params: Vec<Value> = [json!(DATABASE)].into_iter().chain(operations.iter().cloned()).collect();
    let text = Value::from(params).to_string();
    results(serde_json::from_str(&tool(&["transact".as_ref(), file.as_os_str(), text.as_ref()])?)?)
}

fn results(answer: Value) -> anyhow::Result<Value> {
    let failed = answer.as_array().into_iter().flatten().find(|result| result.get("error").is_some());
    failed.map_or(Ok(()), |failed| Err(anyhow!("the database refuses: {failed}")))?;
    Ok(answer)
}

/// `ovsdb-tool`: the formats of the files are that program's business.
fn tool(arguments: &[&std::ffi::OsStr]) -> anyhow::Result<String> {
    let ran = Command::new("ovsdb-tool").args(arguments).output();
    let ran = ran.context("cannot run ovsdb-tool (package openvswitch-switch or openvswitch-common)")?;
    if !ran.status.success() {
        let what = arguments.first().copied().unwrap_or_default().to_string_lossy();
        bail!("ovsdb-tool {what} failed: {}", String::from_utf8_lossy(&ran.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}
