//! A supervised connection: finds a server, watches databases, reports what differs, and comes back by itself.
//!
//! Owns reconnecting, the choice of the server, and the replicas. The owner of a [`Session`] may be slow:
//! changes that it has not fetched are merged per row, so what waits is never more than the databases hold,
//! and reading never stops.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::backlog::Backlog;
use crate::client::TransactError;
use crate::connection::{CloseReason, Connection, Notification, Options, RequestError};
use crate::monitor::{Monitor, MonitorError, MonitorUpdate, Replica, RowChange, UpdateError};
use crate::ops::{Condition, OpResult, Operation};
use crate::remote::{ConnectError, Remote};
use crate::row::ColumnError;

/// What a session connects to and watches.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Servers, in order of preference. Several serve the same databases.
    pub remotes: Vec<Remote>,
    /// What to watch: at most one monitor per database.
    pub monitors: Vec<Monitor>,
    /// Limits and times of the connection.
    pub options: Options,
    /// Of a clustered database, accept only the server that leads it. Without this, any server that is in
    /// contact with the cluster will do.
    pub leader_only: bool,
    /// Pause after the first failed pass over the remotes; doubles up to `backoff_max`. 100 ms by default.
    pub backoff_min: Duration,
    /// Longest pause; 5 s by default.
    pub backoff_max: Duration,
    /// Time for schema and first contents after connecting; 60 s by default.
    pub sync_timeout: Duration,
    /// Events that wait in the channel; more are merged. 16 by default.
    pub event_capacity: usize,
}

impl SessionConfig {
    /// Defaults for these servers, watching nothing.
    pub fn new(remotes: Vec<Remote>) -> Self {
        Self {
            remotes,
            monitors: Vec::new(),
            options: Options::default(),
            leader_only: false,
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            sync_timeout: Duration::from_secs(60),
            event_capacity: 16,
        }
    }

    /// Watches one more database.
    #[must_use]
    pub fn monitor(mut self, monitor: Monitor) -> Self {
        self.monitors.push(monitor);
        self
    }
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A server accepted. A [`Snapshot`](Self::Snapshot) of every watched database follows.
    Connected {
        /// Which one.
        remote: Remote,
    },
    /// The contents of a database are known, for the first time or again: all that differs from what was
    /// reported before. May be empty.
    Snapshot {
        /// Name of the database.
        database: Arc<str>,
        /// Rows that differ.
        changes: Vec<RowChange>,
    },
    /// Rows changed.
    Update {
        /// Name of the database.
        database: Arc<str>,
        /// Rows that differ from what was reported before.
        changes: Vec<RowChange>,
    },
    /// The connection ended, or none could be made; said once per connection and once per outage. What was
    /// reported stays as it is until the next snapshot.
    Disconnected {
        /// Why.
        reason: SessionError,
    },
}

/// Why a session has no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SessionError {
    /// The configuration names no remote.
    #[error("no remote is configured")]
    NoRemote,
    /// No stream.
    #[error(transparent)]
    Connect(Arc<ConnectError>),
    /// The connection ended.
    #[error(transparent)]
    Closed(CloseReason),
    /// A request that the session itself made failed.
    #[error("{method} on database {database} failed")]
    Request {
        /// The method.
        method: &'static str,
        /// The database.
        database: Arc<str>,
        /// Why.
        #[source]
        source: Arc<RequestError>,
    },
    /// A watched table or column does not exist.
    #[error(transparent)]
    Monitor(MonitorError),
    /// The server sent an update that does not fit.
    #[error("an update of database {database} does not fit; everything is loaded again")]
    Update {
        /// The database.
        database: Arc<str>,
        /// Why.
        #[source]
        source: Arc<UpdateError>,
    },
    /// An update that belongs to no monitor.
    #[error("an update cannot be read")]
    Notification(#[source] Arc<UpdateError>),
    /// The server ended a monitor: the database was removed or its schema changed.
    #[error("the server canceled a monitor")]
    Canceled,
    /// Contents were not there in time.
    #[error("no contents within {seconds} s after connecting")]
    SyncTimeout {
        /// The limit, in seconds.
        seconds: f64,
    },
    /// The server does not serve the database.
    #[error("the server has no database {database}")]
    NoDatabase {
        /// The database.
        database: Arc<str>,
    },
    /// The server does not lead the cluster.
    #[error("the server does not lead the cluster of database {database}")]
    NotLeader {
        /// The database.
        database: Arc<str>,
    },
    /// The server lost its cluster.
    #[error("the server has no contact with the cluster of database {database}")]
    NotInCluster {
        /// The database.
        database: Arc<str>,
    },
    /// The `_Server` database is not as expected.
    #[error("the database _Server cannot be read")]
    ServerRow(#[from] ColumnError),
    /// The session was dropped.
    #[error("the session has ended")]
    Ended,
}

/// Does transactions on the session's present connection. Clones share it.
#[derive(Clone, Debug)]
pub struct SessionHandle {
    state: watch::Receiver<Link>,
}

#[derive(Clone, Debug)]
enum Link {
    Up(Connection),
    Down(SessionError),
}

impl SessionHandle {
    /// The present connection, once the contents of all watched databases are known.
    pub fn connection(&self) -> Result<Connection, SessionError> {
        match &*self.state.borrow() {
            Link::Up(connection) => Ok(connection.clone()),
            Link::Down(reason) => Err(reason.clone()),
        }
    }

    /// Waits for a connection. `Err` only when the session has ended.
    pub async fn connected(&self) -> Result<Connection, SessionError> {
        let mut state = self.state.clone();
        match state.wait_for(|link| matches!(link, Link::Up(_))).await.as_deref() {
            Ok(Link::Up(connection)) => Ok(connection.clone()),
            Ok(Link::Down(reason)) => Err(reason.clone()),
            Err(_) => Err(SessionError::Ended),
        }
    }

    /// Does all operations or none, on the present connection. Never retried: an operation that was under
    /// way when the connection broke, or when the session left the server, ends with
    /// [`RequestError::OutcomeUnknown`].
    pub async fn transact(&self, database: &str, ops: &[Operation]) -> Result<Vec<OpResult>, TransactError> {
        match self.connection() {
            Ok(connection) => connection.transact(database, ops).await,
            Err(reason) => Err(RequestError::Disconnected(reason).into()),
        }
    }
}

/// A supervised connection. Dropping it ends the task.
#[derive(Debug)]
pub struct Session {
    events: mpsc::Receiver<Event>,
    handle: SessionHandle,
}

impl Session {
    /// Starts the session's task on the current tokio runtime.
    pub fn start(config: SessionConfig) -> Self {
        let (events, receiver) = mpsc::channel(config.event_capacity.max(1));
        let initial = SessionError::Closed(CloseReason::Local);
        let (link, state) = watch::channel(Link::Down(initial));
        let watched = config
            .monitors
            .iter()
            .map(|monitor| Watched {
                name: monitor.database().into(),
                monitor: monitor.clone(),
                replica: None,
            })
            .collect();
        let task = Task { config, watched, backlog: Backlog::default(), events, link, said_down: false };
        tokio::spawn(task.run());
        Self { events: receiver, handle: SessionHandle { state } }
    }

    /// For transactions.
    pub fn handle(&self) -> SessionHandle {
        self.handle.clone()
    }

    /// The next event. Cancel safe. `None` never comes while the session lives.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

struct Watched {
    name: Arc<str>,
    monitor: Monitor,
    replica: Option<Replica>,
}

const SERVER_DB: &str = "_Server";

/// Notifications that may come while the databases are loaded; more end in a timeout and a new connection.
const EARLY_MAX: usize = 1 << 16;

struct Task {
    config: SessionConfig,
    watched: Vec<Watched>,
    backlog: Backlog,
    events: mpsc::Sender<Event>,
    link: watch::Sender<Link>,
    said_down: bool,
}

impl Task {
    async fn run(mut self) {
        let events = self.events.clone();
        tokio::select! {
            () = events.closed() => {}
            () = self.supervise() => {}
        }
        self.link.send_replace(Link::Down(SessionError::Ended));
    }

    async fn supervise(&mut self) {
        let mut pause = self.config.backoff_min;
        loop {
            let mut reason = SessionError::NoRemote;
            for remote in self.config.remotes.clone() {
                let was_up;
                (was_up, reason) = self.attempt(&remote).await;
                tracing::debug!(%remote, %reason, was_up, "ovsdb session has no connection");
                self.link.send_replace(Link::Down(reason.clone()));
                if was_up {
                    pause = self.config.backoff_min;
                    self.said_down = false;
                    self.say_down(&reason);
                }
            }
            self.say_down(&reason);
            // What is not delivered yet is delivered while waiting.
            let wait = sleep(pause);
            tokio::pin!(wait);
            loop {
                tokio::select! {
                    () = &mut wait => break,
                    () = self.backlog.deliver(&self.events) => {}
                }
            }
            pause = (pause * 2).min(self.config.backoff_max);
        }
    }

    fn say_down(&mut self, reason: &SessionError) {
        if !self.said_down {
            self.backlog.push(Event::Disconnected { reason: reason.clone() });
            self.said_down = true;
        }
    }

    /// One connection from opening to its end. True if the contents of all databases were known.
    async fn attempt(&mut self, remote: &Remote) -> (bool, SessionError) {
        let opened = Connection::open(remote, &self.config.options).await;
        let (connection, mut notifications) = match opened {
            Ok(opened) => opened,
            Err(error) => return (false, SessionError::Connect(Arc::new(error))),
        };
        let limit = self.config.sync_timeout;
        // What changes in a database while the next one is loaded waits here: a connection whose notifications
        // nobody takes gives no replies either.
        let mut early = Vec::new();
        let synced = {
            let sync = tokio::time::timeout(limit, self.sync(&connection, remote));
            tokio::pin!(sync);
            loop {
                tokio::select! {
                    synced = &mut sync => break synced,
                    Some(notification) = notifications.recv(), if early.len() < EARLY_MAX => early.push(notification),
                }
            }
        };
        let mut server = match synced {
            Ok(Ok(server)) => server,
            Ok(Err(reason)) => return (false, reason),
            Err(_) => return (false, SessionError::SyncTimeout { seconds: limit.as_secs_f64() }),
        };
        for notification in &early {
            if let Err(reason) = self.notified(notification, &mut server) {
                return (true, reason);
            }
        }
        drop(early);
        self.link.send_replace(Link::Up(connection.clone()));
        let reason = self.follow(&connection, &mut notifications, server).await;
        // A server that has lost its cluster keeps what it was asked until it finds it again: nobody is to wait for that.
        connection.close();
        (true, reason)
    }

    /// Checks the server and loads every database.
    async fn sync(
        &mut self,
        connection: &Connection,
        remote: &Remote,
    ) -> Result<Option<Replica>, SessionError> {
        let failed = |method, database: &Arc<str>| {
            let database = database.clone();
            move |source| SessionError::Request { method, database, source: Arc::new(source) }
        };
        let server_db = Arc::from(SERVER_DB);
        let databases = connection.list_dbs().await.map_err(failed("list_dbs", &server_db))?;
        let mut server = None;
        if databases.iter().any(|name| name == SERVER_DB) {
            let monitor = self.server_monitor();
            let replica = load(connection, &server_db, &monitor, &mut server).await;
            replica?;
        }
        if let Some(server) = &server {
            self.check_server(server)?;
        }
        if let Some(missing) = self.watched.iter().find(|w| !databases.iter().any(|name| **name == *w.name)) {
            return Err(SessionError::NoDatabase { database: missing.name.clone() });
        }
        // All databases are loaded before any is reported: `Connected` means that the server has them all.
        let mut snapshots = Vec::new();
        for watched in &mut self.watched {
            let changes = load(connection, &watched.name, &watched.monitor, &mut watched.replica).await;
            match changes {
                Ok(changes) => snapshots.push(Event::Snapshot { database: watched.name.clone(), changes }),
                Err(reason) => {
                    // What the earlier databases changed is true, whether or not this connection lasts.
                    self.backlog.extend(snapshots);
                    return Err(reason);
                }
            }
        }
        self.backlog.push(Event::Connected { remote: remote.clone() });
        self.backlog.extend(snapshots);
        Ok(server)
    }

    /// Applies updates until the connection ends, while delivering what waits.
    async fn follow(
        &mut self,
        connection: &Connection,
        notifications: &mut mpsc::Receiver<Notification>,
        mut server: Option<Replica>,
    ) -> SessionError {
        loop {
            tokio::select! {
                notification = notifications.recv() => match notification {
                    None => return SessionError::Closed(connection.closed().await),
                    Some(notification) => {
                        if let Err(reason) = self.notified(&notification, &mut server) {
                            return reason;
                        }
                    }
                },
                () = self.backlog.deliver(&self.events) => {}
            }
        }
    }

    fn notified(&mut self, said: &Notification, server: &mut Option<Replica>) -> Result<(), SessionError> {
        if said.method == "monitor_canceled" {
            return Err(SessionError::Canceled);
        }
        let Some(update) = MonitorUpdate::parse(&said.method, &said.params) else { return Ok(()) };
        let update = update.map_err(|e| self.unreadable(e))?;
        let id = update.id.as_str().unwrap_or_default();
        if id == SERVER_DB
            && let Some(server) = server
        {
            server.apply(update.updates, update.last).map_err(|e| SessionError::Notification(Arc::new(e)))?;
            return self.check_server(server);
        }
        let Some(watched) = self.watched.iter_mut().find(|w| &*w.name == id) else { return Ok(()) };
        let Some(replica) = &mut watched.replica else { return Ok(()) };
        match replica.apply(update.updates, update.last) {
            Ok(changes) => {
                if !changes.is_empty() {
                    self.backlog.push(Event::Update { database: watched.name.clone(), changes });
                }
                Ok(())
            }
            Err(error) => {
                replica.forget();
                Err(SessionError::Update { database: watched.name.clone(), source: Arc::new(error) })
            }
        }
    }

    /// An update was lost: nobody knows of which database.
    fn unreadable(&mut self, error: UpdateError) -> SessionError {
        self.watched.iter_mut().filter_map(|w| w.replica.as_mut()).for_each(Replica::forget);
        SessionError::Notification(Arc::new(error))
    }

    fn server_monitor(&self) -> Monitor {
        let of = self.watched.iter().map(|w| Condition::eq("name", &*w.name));
        let of: Vec<_> = of.chain(self.watched.is_empty().then_some(Condition::Always(false))).collect();
        Monitor::new(SERVER_DB).table_where("Database", &["name", "model", "connected", "leader"], of)
    }

    fn check_server(&self, server: &Replica) -> Result<(), SessionError> {
        for (_, row) in server.rows("Database").filter(|(_, row)| row.str("model") == Ok("clustered")) {
            let database = || row.str("name").map(Arc::from);
            if !row.bool("connected")? {
                return Err(SessionError::NotInCluster { database: database()? });
            }
            if self.config.leader_only && !row.bool("leader")? {
                return Err(SessionError::NotLeader { database: database()? });
            }
        }
        Ok(())
    }
}

/// Loads one database into its replica, and says what differs.
async fn load(
    connection: &Connection,
    database: &Arc<str>,
    monitor: &Monitor,
    replica: &mut Option<Replica>,
) -> Result<Vec<RowChange>, SessionError> {
    let failed = |method| {
        move |source| SessionError::Request { method, database: database.clone(), source: Arc::new(source) }
    };
    let schema = connection.get_schema(database).await.map_err(failed("get_schema"))?;
    let mut fresh = Replica::new(&schema, monitor).map_err(SessionError::Monitor)?;
    let known = replica.as_ref().filter(|old| old.same_columns(&fresh));
    let last = known.map(Replica::last_transaction).unwrap_or_default();
    let reply = connection.monitor(&(&**database).into(), monitor, last).await.map_err(failed("monitor"))?;
    let unfit = |error| SessionError::Update { database: database.clone(), source: Arc::new(error) };
    let target = replica.get_or_insert_with(|| fresh.clone());
    if reply.found {
        return target.load(reply).map_err(|error| {
            target.forget();
            unfit(error)
        });
    }
    fresh.load(reply).map_err(unfit)?;
    Ok(target.replace(fresh))
}
