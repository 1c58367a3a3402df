//! `xenflow`: the operator's command. Writes desired state into the XenFlow database, reads it and the daemons'
//! reports back, and runs the private authority.
//!
//! Owns the words of the command line and what is printed. The rules of the database are in `dom0_server::db`,
//! those of the authority in `dom0_server::pki`. Exit codes: 0 done, 1 failed, 2 refused as wrong input.

mod apply;
mod args;
mod client;
mod cluster;
mod doctor;
mod init;
mod output;
mod persist;
mod pki;
mod show;
mod top;
mod view;
mod wait;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use args::{
    AccessCommand, Args, ClassCommand, Command, ContractArgs, DatabaseCommand, NamedCommand, RouterCommand,
    SegmentCommand, SlaCommand, UplinkCommand, VifCommand,
};
use clap::{CommandFactory, Parser};
use client::Client;
use dom0_server::db::apply::ApplyError;
use dom0_server::db::class::Matching;
use dom0_server::db::contract::ContractChange;
use dom0_server::db::description::DescriptionError;
use dom0_server::db::edit::EditError;
use dom0_server::db::policy::PolicyChange;
use dom0_server::db::{self, Attachment, Contract, Kind, RouterPolicy, RowError};
use xenflow_proto::identity::NameError;
use xenflow_proto::types::{MacParseError, VlanRangeError};
use xenflow_proto::{Name, VlanId};

/// Why a command ends with another code than 0.
#[derive(Debug)]
enum Failure {
    /// What the operator asked for cannot be: 2.
    Input(anyhow::Error),
    /// It could be, but was not done: 1.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

macro_rules! input {
    ($($ty:ty),*) => {$(
        impl From<$ty> for Failure {
            fn from(error: $ty) -> Self {
                Self::Input(error.into())
            }
        }
    )*};
}

input!(
    EditError,
    ApplyError,
    DescriptionError,
    RowError,
    NameError,
    VlanRangeError,
    MacParseError,
    ovsdb::RemoteParseError,
    dom0_server::config::ConfigError,
    dom0_server::tls::ConfigError
);

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if error.use_stderr() => {
            output::error(&usage(&error));
            return ExitCode::from(2);
        }
        Err(help) => {
            output::text(&help.to_string());
            return ExitCode::SUCCESS;
        }
    };
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => {
            output::error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
        Err(Failure::Input(error)) => {
            output::error(&format!("{error:#}"));
            ExitCode::from(2)
        }
    }
}

/// What clap says, without its heading and its pointer to the help.
fn usage(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let body = text.split("\n\nUsage:").next().unwrap_or_default();
    let body = body.split("\n\nFor more information").next().unwrap_or_default();
    body.strip_prefix("error: ").unwrap_or(body).to_owned()
}

fn run(args: Args) -> Result<(), Failure> {
    let Args { db, json, timeout, wait, command } = args;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(timeout.into());
    match command {
        Command::Completions { shell } => {
            output::completions(shell, &mut Args::command());
            Ok(())
        }
        Command::Pki(command) => pki::run(command, json),
        Command::Doctor { host_only, config } => doctor::run(&db.remotes, timeout, host_only, &config, json),
        Command::Top { interval, once } => {
            top::run(&db.remotes, &top::Options { interval_s: interval, once, json, timeout_s: timeout })
        }
        Command::Init { db_file, forget: true, defaults, .. } => {
            output::report(&[persist::run(&defaults, &db_file, true)?], json)
        }
        Command::Init { db_file, ctl, unless, persist, forget: _, defaults } => {
            client::block_on(timeout, async {
                if let Some(elsewhere) = cluster::elsewhere(unless.as_deref())? {
                    return output::report(&[elsewhere], json);
                }
                let mut report = init::run(&db, timeout, &db_file, ctl.as_deref()).await?;
                if persist {
                    report.push(persist::run(&defaults, &db_file, false)?);
                }
                output::report(&report, json)
            })
        }
        Command::Cluster(command) => {
            client::block_on(timeout, async { cluster::run(command, &db, timeout, json).await })
        }
        Command::Database(command) => client::block_on(timeout, async {
            let client = Client::open(&db, timeout, wait.then_some(deadline)).await?;
            database(&client, command, json).await?;
            client.wait().await
        }),
    }
}

/// Commands on the contents of the database.
async fn database(client: &Client, command: DatabaseCommand, json: bool) -> Result<(), Failure> {
    match command {
        DatabaseCommand::Network(command) => match command {
            NamedCommand::Add { name } => {
                let name: Name = name.parse()?;
                client.edit(|now| now.add_network(&name)).await
            }
            NamedCommand::List => list(client, Kind::Network, json).await,
            NamedCommand::Remove { name } => remove(client, Kind::Network, &name).await,
        },
        DatabaseCommand::Segment(command) => match command {
            SegmentCommand::Add { name, network, vlan } => {
                let (name, network): (Name, Name) = (name.parse()?, network.parse()?);
                let vlan = VlanId::try_from(vlan)?;
                client.edit(|now| now.add_segment(&name, &network, vlan)).await
            }
            SegmentCommand::List => list(client, Kind::Segment, json).await,
            SegmentCommand::Remove { name } => remove(client, Kind::Segment, &name).await,
        },
        DatabaseCommand::Router(command) => match command {
            RouterCommand::Add { name, network, policy } => {
                let (name, network): (Name, Name) = (name.parse()?, network.parse()?);
                let policy = policy.parse()?.applied(&RouterPolicy::default());
                client.edit(|now| now.add_router(&name, &network, &policy)).await
            }
            RouterCommand::Set { name, policy } => {
                let name: Name = name.parse()?;
                let change = policy.parse()?;
                if change == PolicyChange::default() {
                    return Err(Failure::Input(anyhow!(
                        "nothing to set: say --fastpath, --max-routes or --punt-rate"
                    )));
                }
                client.edit(|now| now.set_router(&name, &change)).await
            }
            RouterCommand::List => list(client, Kind::Router, json).await,
            RouterCommand::Remove { name } => remove(client, Kind::Router, &name).await,
        },
        DatabaseCommand::Vif(command) => match command {
            VifCommand::Add { name, router, segment, control: _, mac } => {
                let (name, router): (Name, Name) = (name.parse()?, router.parse()?);
                let attachment = match segment {
                    Some(segment) => Attachment::Segment(segment.parse()?),
                    None => Attachment::Control,
                };
                let mac = mac.parse()?;
                client.edit(|now| now.add_vif(&name, &router, &attachment, mac)).await
            }
            VifCommand::List => list(client, Kind::Vif, json).await,
            VifCommand::Remove { name } => remove(client, Kind::Vif, &name).await,
        },
        DatabaseCommand::Access(command) => match command {
            AccessCommand::Add { name, segment, macs } => {
                let (name, segment): (Name, Name) = (name.parse()?, segment.parse()?);
                let macs = macs.iter().map(|mac| mac.parse()).collect::<Result<_, _>>()?;
                client.edit(|now| now.add_access(&name, &segment, &macs)).await
            }
            AccessCommand::List => list(client, Kind::Access, json).await,
            AccessCommand::Remove { name } => remove(client, Kind::Access, &name).await,
        },
        DatabaseCommand::Uplink(command) => match command {
            UplinkCommand::Add { node, port } => {
                let node: Name = node.parse()?;
                client.edit(|now| now.add_uplink(&node, &port)).await
            }
            UplinkCommand::List => list(client, Kind::Node, json).await,
            UplinkCommand::Remove { node, port } => client.edit(|now| now.remove_uplink(&node, &port)).await,
        },
        DatabaseCommand::Sla(command) => match command {
            SlaCommand::Set { network, contract } => {
                let network: Name = network.parse()?;
                let change = change(&contract)?;
                client.edit(|now| now.set_contract(&network, &change)).await
            }
            SlaCommand::List => list(client, Kind::Network, json).await,
        },
        DatabaseCommand::Class(command) => class(client, command, json).await,
        DatabaseCommand::Apply { file, dry_run, adopt } => {
            apply::run(client, &file, dry_run, adopt, json).await
        }
        DatabaseCommand::Show { what: Some(what) } => show::run(client, &what, json).await,
        DatabaseCommand::Show { what: None } => {
            let now = client.snapshot().await?;
            if json {
                output::json(&view::page_json(&now))
            } else {
                output::text(&view::page(&now))
            }
            Ok(())
        }
    }
}

async fn class(client: &Client, command: ClassCommand, json: bool) -> Result<(), Failure> {
    match command {
        ClassCommand::Add { network, name, priority, dscp, protocol, ports, contract } => {
            let (network, name): (Name, Name) = (network.parse()?, name.parse()?);
            let protocol = protocol.as_deref().map(db::class::protocol).transpose()?;
            let matching = Matching::new(dscp, protocol, ports)?;
            let priority = db::class::priority(priority)?;
            let change = ContractChange::parse(contract.min.as_deref(), contract.max.as_deref())?;
            let contract = change.applied(&Contract::default())?;
            client.edit(|now| now.add_class(&network, &name, priority, &matching, &contract)).await
        }
        ClassCommand::Set { network, name, contract } => {
            let (network, name): (Name, Name) = (network.parse()?, name.parse()?);
            let change = change(&contract)?;
            client.edit(|now| now.set_class(&network, &name, &change)).await
        }
        ClassCommand::List => list(client, Kind::Class, json).await,
        ClassCommand::Remove { network, name } => {
            let (network, name): (Name, Name) = (network.parse()?, name.parse()?);
            client.edit(|now| now.remove_class(&network, &name)).await
        }
    }
}

/// A change of a contract that changes something.
fn change(contract: &ContractArgs) -> Result<ContractChange, Failure> {
    let change = ContractChange::parse(contract.min.as_deref(), contract.max.as_deref())?;
    if change.is_empty() {
        return Err(Failure::Input(anyhow!("nothing to set: say --min or --max")));
    }
    Ok(change)
}

async fn list(client: &Client, kind: Kind, json: bool) -> Result<(), Failure> {
    let now = client.snapshot().await?;
    let rows = view::list(&now.desired, kind);
    if json {
        output::json(&rows)
    } else {
        output::text(&view::columns(&rows))
    }
    Ok(())
}

async fn remove(client: &Client, kind: Kind, name: &str) -> Result<(), Failure> {
    client.edit(|now| now.remove(kind, name)).await
}
