//! Keeps the node's row of `Node_Status`: at once when a state is confirmed, and so often that it shows that the daemon
//! lives.
//!
//! One task writes, always what is newest, so that no write overtakes a later one.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use ovsdb::{SessionHandle, TransactError};
use tokio::sync::watch;
use xenflow_proto::Name;

use crate::clock::now_ms;
use crate::core::{Core, kept_words};
use crate::db::capacity::Capacities;
use crate::db::status::bounded;
use crate::db::{self, NodeStatus, Rate};
use crate::shaper::{self, report::LinkReport};

/// A row is written at least so often; the schema promises 30 s.
const PERIOD: Duration = Duration::from_secs(20);
/// Between two tries.
const RETRY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct NodeReporter {
    node: Name,
    address: Option<SocketAddr>,
    started_ms: u64,
    newest: watch::Sender<Option<NodeStatus>>,
}

impl NodeReporter {
    /// One of a daemon that begins now, and takes planned moves at this address. It ends when this is dropped.
    #[must_use]
    pub fn start(node: Name, address: Option<SocketAddr>, database: SessionHandle) -> Self {
        let (newest, told) = watch::channel(None);
        tokio::spawn(write(database, told));
        Self { node, address, started_ms: now_ms(), newest }
    }

    /// How the node is now, its uplinks as they were shaped last. Before both databases have spoken nothing is reported.
    pub fn report(&self, core: &Core, shaped: &shaper::report::Report) {
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
            uplink_capacity: capacities(shaped),
            shaping: shaped.links.iter().map(|link| (link.port.clone(), driver(link))).collect(),
            address: self.address.map(|address| address.to_string()).unwrap_or_default(),
        };
        self.newest.send_if_modified(|newest| {
            let is_other = newest.as_ref() != Some(&status);
            *newest = Some(status);
            is_other
        });
    }
}

/// Says in the node's row at once for which migrations its datapath is prepared. It is not said again: nobody waits for long.
pub async fn say_prepared(
    database: SessionHandle,
    node: Name,
    mut preparing: watch::Receiver<BTreeSet<u64>>,
) {
    while preparing.changed().await.is_ok() {
        let operation = NodeStatus::prepare(&node, &preparing.borrow_and_update().clone());
        if let Err(error) = database.transact(db::DATABASE, &[operation]).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "others do not know what is prepared");
        }
    }
}

/// What uplinks carry, where it is known.
fn capacities(shaped: &shaper::report::Report) -> Capacities {
    let known = |link: &LinkReport| {
        let rate = i64::try_from(link.capacity_bps).ok().and_then(|bps| Rate::try_from(bps).ok())?;
        Some((link.port.clone(), rate))
    };
    shaped.links.iter().filter_map(known).collect()
}

/// Who shapes a link, and why not as it should.
fn driver(link: &LinkReport) -> String {
    let words = match &link.problem {
        Some(problem) => format!("{}: {problem}", link.driver),
        None => link.driver.clone(),
    };
    bounded([words]).pop_first().unwrap_or_else(|| "none".to_owned())
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
    all.extend(core.surplus().map(|surplus| surplus.to_string()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_uplinks_carry_and_who_shapes_them_is_as_the_loop_says() {
        let link = |port: &str, capacity_bps, driver: &str, problem: Option<&str>| LinkReport {
            port: port.to_owned(),
            capacity_bps,
            driver: driver.to_owned(),
            problem: problem.map(str::to_owned),
            ..LinkReport::default()
        };
        let links = vec![
            link("eth0", 10_000_000_000, "tc", None),
            link("eth1", 0, "none", Some("nobody knows what it carries")),
            link("eth2", 1, "", None),
        ];
        let shaped = shaper::report::Report { links, ..Default::default() };
        let known: Vec<_> = capacities(&shaped).into_iter().map(|(port, rate)| (port, rate.bps())).collect();
        assert_eq!(known, [("eth0".to_owned(), 10_000_000_000)]);
        let words: Vec<_> = shaped.links.iter().map(driver).collect();
        assert_eq!(words, ["tc", "none: nobody knows what it carries", "none"]);
        let long = driver(&link("eth3", 0, "tc", Some(&"é".repeat(600))));
        assert!(long.chars().count() <= 512);
    }
}
