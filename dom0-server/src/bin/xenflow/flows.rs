//! `xenflow flows`: what a router should have in the switch, as `ovs-ofctl` writes it. What the switch has is what
//! `ovs-ofctl dump-flows` shows.

use std::path::Path;

use dom0_server::inspect::Request;
use serde_json::{Value, json};

use crate::ask::{Array, Daemon};
use crate::{Failure, output};

pub(crate) fn run(socket: &Path, seconds: u32, router: &str, as_json: bool) -> Result<(), Failure> {
    let mut daemon = Daemon::open(socket, seconds)?;
    let mut array = Array::begin();
    let mut after = None;
    loop {
        let page = daemon.ask(&Request::Flows { router: router.to_owned(), after })?;
        let lines = |key: &str| page[key].as_array().cloned().unwrap_or_default();
        let is_open = if as_json {
            let flows = lines("flows").into_iter().map(|flow| json!({ "flow": flow }));
            let groups = lines("groups").into_iter().map(|group| json!({ "group": group }));
            array.extend(&flows.chain(groups).collect::<Vec<_>>())
        } else {
            let all = [lines("flows"), lines("groups")].concat();
            output::part(
                &all.iter().filter_map(Value::as_str).map(|line| format!(" {line}\n")).collect::<String>(),
            )
        };
        after = page["next"].as_str().map(str::to_owned);
        if !is_open {
            return Ok(());
        }
        if after.is_none() {
            break;
        }
    }
    if as_json {
        array.end();
    }
    Ok(())
}
