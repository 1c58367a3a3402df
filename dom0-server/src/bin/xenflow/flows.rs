//! `xenflow flows`: what a router should have in the switch, as `ovs-ofctl` writes it. What the switch has is what
//! `ovs-ofctl dump-flows` shows.

use std::path::Path;

use dom0_server::inspect::Request;
use serde_json::{Value, json};

use crate::Failure;
use crate::ask::{Daemon, members};

pub(crate) fn run(socket: &Path, seconds: u32, router: &str, as_json: bool) -> Result<(), Failure> {
    Daemon::open(socket, seconds)?.list(
        as_json,
        |after| Request::Flows { router: router.to_owned(), after },
        |page| {
            let flows = members(page, "flows").into_iter().map(|flow| json!({ "flow": flow }));
            let groups = members(page, "groups").into_iter().map(|group| json!({ "group": group }));
            flows.chain(groups).collect()
        },
        |page| {
            let all = [members(page, "flows"), members(page, "groups")].concat();
            all.iter().filter_map(Value::as_str).map(|line| format!(" {line}\n")).collect()
        },
    )
}
