//! Keeps the node's row of `Node_Status`: at once when a state is confirmed, and so often that it shows that the daemon
//! lives.
//!
//! One task writes, always what is newest, so that no write overtakes a later one.

use std::collections::BTreeSet;
use std::time::Duration;

use ovsdb::{SessionHandle, TransactError};
use tokio::sync::watch;
use xenflow_proto::Name;

use crate::clock::now_ms;
use crate::core::{Core, kept_words};
use crate::db::status::bounded;
use crate::db::{self, NodeStatus};

/// A row is written at least so often; the schema promises 30 s.
const PERIOD: Duration = Duration::from_secs(20);
/// Between two tries.
const RETRY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct NodeReporter {
    node: Name,
    started_ms: u64,
    newest: watch::Sender<Option<NodeStatus>>,
}

impl NodeReporter {
    /// One of a daemon that begins now. It ends when this is dropped.
    #[must_use]
    pub fn start(node: Name, database: SessionHandle) -> Self {
        let (newest, told) = watch::channel(None);
        tokio::spawn(write(database, told));
        Self { node, started_ms: now_ms(), newest }
    }

    /// How the node is now. Before both databases have spoken nothing is reported.
    pub fn report(&self, core: &Core) {
        if !core.knows_its_routers() {
            return;
        }
        let build = core.build();
        let status = NodeStatus {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ovs_version: build.version.clone(),
            datapath: build.datapath.clone(),
            started_ms: self.started_ms,
            // Set when it is written.
            seen_ms: 0,
            cfg: core.confirmed_cfg(),
            problems: problems(core),
            uplink_mtus: core.uplink_mtus(),
            uplink_capacity: [].into(),
            shaping: [].into(),
        };
        self.newest.send_if_modified(|newest| {
            let is_other = newest.as_ref() != Some(&status);
            *newest = Some(status);
            is_other
        });
    }
}

/// What is not as it should be.
fn problems(core: &Core) -> BTreeSet<String> {
    let mut all = Vec::new();
    if !core.is_connected() {
        all.push("the switch is not connected".to_owned());
    }
    all.extend(core.kept_ms().map(kept_words));
    match core.left_out_flows() {
        0 => {}
        n => all.push(format!("the switch refuses {n} flows of the topology: they are left out")),
    }
    all.extend(core.problems().iter().map(ToString::to_string));
    all.extend(core.left_out_rows().map(|row| format!("a row is left out: {row}")));
    bounded(all)
}

async fn write(database: SessionHandle, mut newest: watch::Receiver<Option<NodeStatus>>) {
    loop {
        if database.connected().await.is_err() {
            return;
        }
        let status = newest.borrow_and_update().clone();
        let mut pause = PERIOD;
        if let Some(status) = status
            && let Err(error) = upsert(&database, NodeStatus { seen_ms: now_ms(), ..status }).await
        {
            tracing::debug!(error = &error as &dyn std::error::Error, "the node's status is not written");
            pause = RETRY;
        }
        if let Ok(Err(_)) = tokio::time::timeout(pause, newest.changed()).await {
            return;
        }
    }
}

async fn upsert(database: &SessionHandle, status: NodeStatus) -> Result<(), TransactError> {
    let results = database.transact(db::DATABASE, &[status.update()]).await?;
    if results.first().and_then(|result| result.count()) == Some(0) {
        database.transact(db::DATABASE, &[status.insert()]).await?;
    }
    Ok(())
}
