//! `xenflow node`: what nodes report of themselves, and taking away what one reported that is gone.

use clap::Subcommand;
use dom0_server::clock::now_ms;

use crate::args::ShowCommand;
use crate::client::Client;
use crate::{Failure, output, show, view};

/// Nodes come by themselves, with their first uplink or report.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List all: versions, when last seen, and whether they are behind
    List,
    /// Show one, with its uplinks, problems and counters; as 'show node'
    Show {
        /// Its name
        name: String,
    },
    /// Remove what a node has reported that is gone for good: it has no uplink, and was silent for 90 s
    ///
    /// A node that has reported once is waited for by --wait until this is said of it. Its daemon, if it comes back,
    /// reports anew.
    Remove {
        /// Its name
        name: String,
        /// Although it has uplinks, or was seen just now
        #[arg(long)]
        force: bool,
        /// Do nothing if nothing is known of it
        #[arg(long)]
        if_exists: bool,
    },
}

pub(crate) async fn run(client: &Client, command: NodeCommand, json: bool) -> Result<(), Failure> {
    match command {
        NodeCommand::List => {
            let rows = show::nodes(client).await?;
            if json {
                output::json(&rows);
                return Ok(());
            }
            let rows: Vec<_> = rows
                .into_iter()
                .map(|mut row| {
                    let seen = row.as_object_mut().and_then(|row| row.remove("seen_ms"));
                    row["seen"] = seen.and_then(|ms| ms.as_u64()).map(view::ago).into();
                    row
                })
                .collect();
            output::text(&view::columns(&rows));
            Ok(())
        }
        NodeCommand::Show { name } => show::run(client, &ShowCommand::Node { name: Some(name) }, json).await,
        NodeCommand::Remove { name, force, if_exists } => {
            let is_known = client.has_reported(&name).await?;
            if if_exists && !is_known {
                return Ok(());
            }
            client.edit(|now| now.retire(&name, is_known, now_ms(), force)).await
        }
    }
}
