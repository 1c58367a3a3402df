//! `xenflow`: the operator's command. Writes desired state into the XenFlow database, reads it and the daemons'
//! reports back, and runs the private authority.
//!
//! Owns the words of the command line and what is printed. The rules of the database are in `dom0_server::db`,
//! those of the authority in `dom0_server::pki`. Exit codes: 0 done, 1 failed, 2 refused as wrong input; others are in
//! the help of the command that has them.

mod apply;
mod args;
mod arrival;
mod ask;
mod client;
mod cluster;
mod color;
mod doctor;
mod events;
mod explain;
mod flows;
mod init;
mod man;
mod moves;
mod node;
mod nouns;
mod output;
mod persist;
mod pki;
mod receive;
mod routes;
mod show;
mod sla;
mod status;
mod top;
mod view;
mod wait;

use std::process::ExitCode;

use args::{Args, Command, DatabaseCommand, SlaCommand};
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches};
use client::Client;
use dom0_server::db::apply::ApplyError;
use dom0_server::db::description::DescriptionError;
use dom0_server::db::edit::{EditError, Key};
use dom0_server::db::{Kind, RowError};
use wait::Waiter;
use xenflow_proto::identity::NameError;
use xenflow_proto::types::{MacParseError, VlanRangeError};

/// Why a command ends with another code than 0.
#[derive(Debug)]
enum Failure {
    /// What the operator asked for cannot be: 2.
    Input(anyhow::Error),
    /// It could be, but was not done: 1.
    Failed(anyhow::Error),
    /// It has ended in a way that has a code of its own.
    Ended(u8, anyhow::Error),
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
    let args = match parse() {
        Ok(args) => args,
        Err(error) if error.use_stderr() => {
            output::error(&usage(&error));
            return ExitCode::from(2);
        }
        Err(help) => {
            output::help(&help.render());
            return ExitCode::SUCCESS;
        }
    };
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let (code, error) = match failure {
                Failure::Failed(error) => (1, error),
                Failure::Input(error) => (2, error),
                Failure::Ended(code, error) => (code, error),
            };
            output::error(&format!("{error:#}"));
            ExitCode::from(code)
        }
    }
}

fn parse() -> Result<Args, clap::Error> {
    let matches = Args::command().try_get_matches()?;
    let mut args = Args::from_arg_matches(&matches)?;
    // Said before a subcommand it is known there, and said behind one only there.
    let mut levels = std::iter::successors(Some(&matches), |level| Some(level.subcommand()?.1));
    args.db.is_named = levels.any(|level| level.value_source("remotes") == Some(ValueSource::CommandLine));
    Ok(args)
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
    match command {
        Command::Completions { shell } => {
            output::completions(shell, &mut Args::command());
            Ok(())
        }
        Command::Man { dir } => output::report(&man::run(&dir)?, json),
        Command::Move(command) => client::run(moves::run(command, &db, timeout, json)),
        Command::Host(command) => ask::run(command, &db, timeout, json),
        Command::Pki(command) => pki::run(command, json),
        Command::XlReceive { socket, command } => receive::run(socket.socket, timeout, &command),
        Command::Doctor { host_only, config } => doctor::run(&db, timeout, host_only, &config, json),
        Command::Top { interval, once, socket } => {
            let socket = socket.socket;
            top::run(&db, &top::Options { interval_s: interval, once, json, timeout_s: timeout, socket })
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
        Command::Database(DatabaseCommand::Sla(SlaCommand::Show { network, socket })) => {
            sla::show(&socket.socket, timeout, network.as_deref(), json)
        }
        Command::Database(DatabaseCommand::Sla(SlaCommand::Plot { networks, svg, socket })) => {
            sla::plot(&socket.socket, timeout, &networks, &svg, json)
        }
        Command::Database(command) => client::run(async {
            let waiter = wait.then(|| Waiter::new(db.clone(), timeout));
            let client = client::within(timeout, async {
                let client = Client::open(&db, timeout, waiter).await?;
                database(&client, command, json).await?;
                Ok(client)
            });
            client.await?.wait().await
        }),
    }
}

/// Commands on the contents of the database.
async fn database(client: &Client, command: DatabaseCommand, json: bool) -> Result<(), Failure> {
    match command {
        DatabaseCommand::Network(verb) => nouns::run(client, Kind::Network, verb, json).await,
        DatabaseCommand::Segment(verb) => nouns::run(client, Kind::Segment, verb, json).await,
        DatabaseCommand::Router(verb) => nouns::run(client, Kind::Router, verb, json).await,
        DatabaseCommand::Vif(verb) => nouns::run(client, Kind::Vif, verb, json).await,
        DatabaseCommand::Access(verb) => nouns::run(client, Kind::Access, verb, json).await,
        DatabaseCommand::Class(verb) => nouns::run(client, Kind::Class, verb, json).await,
        DatabaseCommand::Uplink(command) => nouns::uplink(client, command, json).await,
        DatabaseCommand::Node(command) => node::run(client, command, json).await,
        DatabaseCommand::Sla(SlaCommand::Set { network, contract }) => {
            let key = Key { kind: Kind::Network, network: None, name: network };
            nouns::set(client, &key, &contract).await
        }
        DatabaseCommand::Sla(SlaCommand::List) => nouns::list(client, Kind::Network, json).await,
        // They are answered without the database.
        DatabaseCommand::Sla(SlaCommand::Show { .. } | SlaCommand::Plot { .. }) => Ok(()),
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
