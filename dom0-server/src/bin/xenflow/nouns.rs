//! The kinds of things that the database holds, with the same verbs each: add, set, list, show, remove.
//!
//! Owns their words and which columns these mean; what a row may be is in `dom0_server::db`. One path for each verb.

mod words;

use std::fmt::Debug;

use anyhow::anyhow;
use clap::{Args, Command, Subcommand};
use dom0_server::db::edit::{Columns, EditError, Key};
use dom0_server::db::{Kind, RowError};
use ovsdb::Row;
use xenflow_proto::Name;

use crate::client::Client;
use crate::{Failure, output, view};
pub(crate) use words::ContractArgs;
use words::{
    AccessAdd, AccessSet, ClassAdd, ClassSet, NameInNetwork, NetworkArgs, OneName, RouterAdd, RouterSet,
    SegmentAdd, SegmentSet, UplinkSet, VifAdd, VifSet,
};

/// What can be done with things of a kind: named by `K`, made of `A`, changed by `S`.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb<K: Named, A: Change, S: Change> {
    /// Add one
    Add {
        #[command(flatten)]
        key: K,
        #[command(flatten)]
        what: A,
        /// Do nothing if there is one already that is as asked for
        #[arg(long)]
        may_exist: bool,
    },
    /// Change one; what is not given stays as it is
    Set {
        #[command(flatten)]
        key: K,
        #[command(flatten)]
        what: S,
    },
    /// List all
    List,
    /// Show one: all that the database holds of it
    Show {
        #[command(flatten)]
        key: K,
    },
    /// Remove one that nothing refers to
    Remove {
        #[command(flatten)]
        key: K,
        /// Do nothing if there is none
        #[arg(long)]
        if_exists: bool,
    },
}

/// How a thing is named.
pub(crate) trait Named: Args + Debug {
    fn key(&self, kind: Kind) -> Key;
}

/// Words that say how columns are to be; none if nothing is said.
pub(crate) trait Change: Args + Debug {
    fn columns(&self, before: &Row) -> Result<Columns, RowError>;
}

pub(crate) type NetworkCommand = Verb<OneName, NetworkArgs, NetworkArgs>;
pub(crate) type SegmentCommand = Verb<OneName, SegmentAdd, SegmentSet>;
pub(crate) type RouterCommand = Verb<OneName, RouterAdd, RouterSet>;
pub(crate) type VifCommand = Verb<OneName, VifAdd, VifSet>;
pub(crate) type AccessCommand = Verb<OneName, AccessAdd, AccessSet>;
pub(crate) type ClassCommand = Verb<NameInNetwork, ClassAdd, ClassSet>;

/// Uplinks are ports of nodes, which have no other part in what is asked for: a node is there as long as it has some.
#[derive(Debug, Subcommand)]
pub(crate) enum UplinkCommand {
    /// Add one
    Add {
        /// The node
        node: String,
        /// Name of its OVS port
        port: String,
        /// What it carries, as 10gbit; by the port's speed if it is not given
        #[arg(long, value_name = "RATE")]
        capacity: Option<String>,
        /// Do nothing if it is one already
        #[arg(long)]
        may_exist: bool,
    },
    /// Change what an uplink carries, which ports a node's uplinks are, or what is kept with the node; what is not given stays as it is
    Set {
        #[command(flatten)]
        key: OneName,
        #[command(flatten)]
        what: UplinkSet,
    },
    /// List all, by node
    List,
    /// Show those of one node
    Show {
        #[command(flatten)]
        key: OneName,
    },
    /// Remove one
    Remove {
        /// The node
        node: String,
        /// Name of its OVS port
        port: String,
        /// Do nothing if it is none
        #[arg(long)]
        if_exists: bool,
    },
}

pub(crate) async fn run<K: Named, A: Change, S: Change>(
    client: &Client,
    kind: Kind,
    verb: Verb<K, A, S>,
    json: bool,
) -> Result<(), Failure> {
    match verb {
        Verb::Add { key, what, may_exist } => {
            let key = key.key(kind);
            client.edit(|now| now.add(&key, may_exist, |before| what.columns(before))).await
        }
        Verb::Set { key, what } => set(client, &key.key(kind), &what).await,
        Verb::List => list(client, kind, json).await,
        Verb::Show { key } => show(client, &key.key(kind), json).await,
        Verb::Remove { key, if_exists } => {
            let key = key.key(kind);
            client.edit(|now| now.remove(&key, if_exists)).await
        }
    }
}

pub(crate) async fn uplink(client: &Client, command: UplinkCommand, json: bool) -> Result<(), Failure> {
    match command {
        UplinkCommand::Add { node, port, capacity, may_exist } => {
            let node: Name = node.parse()?;
            let capacity = capacity.map(|text| text.parse()).transpose()?;
            client.edit(|now| now.add_uplink(&node, &port, capacity, may_exist)).await
        }
        UplinkCommand::Set { key, what } => set(client, &key.key(Kind::Node), &what).await,
        UplinkCommand::List => list(client, Kind::Node, json).await,
        UplinkCommand::Show { key } => show(client, &key.key(Kind::Node), json).await,
        UplinkCommand::Remove { node, port, if_exists } => {
            client.edit(|now| now.remove_uplink(&node, &port, if_exists)).await
        }
    }
}

/// A change that changes something.
pub(crate) async fn set<S: Change>(client: &Client, key: &Key, what: &S) -> Result<(), Failure> {
    let refuse = |error| {
        if matches!(error, EditError::Nothing { .. }) {
            return Failure::Input(anyhow!("{error}: say {}", options::<S>()));
        }
        error.into()
    };
    client.edit(|now| now.set(key, |before| what.columns(before)).map_err(refuse)).await
}

/// "--min, --max or --external-id".
fn options<S: Args>() -> String {
    let command = S::augment_args(Command::new("set"));
    let mut options: Vec<_> =
        command.get_arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?))).collect();
    let last = options.pop().unwrap_or_default();
    if options.is_empty() { last } else { format!("{} or {last}", options.join(", ")) }
}

pub(crate) async fn list(client: &Client, kind: Kind, json: bool) -> Result<(), Failure> {
    let now = client.snapshot().await?;
    let rows = view::list(&now.desired, kind);
    if json {
        output::json(&rows)
    } else {
        output::text(&view::columns(&rows))
    }
    Ok(())
}

async fn show(client: &Client, key: &Key, json: bool) -> Result<(), Failure> {
    let now = client.snapshot().await?;
    let value = view::one(&now, key)?;
    if json {
        output::json(&value)
    } else {
        output::text(&view::record(&value))
    }
    Ok(())
}
