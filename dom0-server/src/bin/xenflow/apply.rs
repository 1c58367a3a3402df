//! `xenflow apply`: the differences between a description and the database, printed and made.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use dom0_server::db::apply::{self, Difference, Verb};
use dom0_server::db::description::{Description, MAX_BYTES};
use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::{Failure, output};

pub(crate) async fn run(
    client: &Client,
    file: &Path,
    dry_run: bool,
    adopt: bool,
    as_json: bool,
) -> Result<(), Failure> {
    let text = read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let description = Description::parse(&text)?;
    let mut differences = Vec::new();
    if dry_run {
        differences = apply::plan(&client.snapshot().await?, &description, adopt)?.differences;
    } else {
        let build = |now: &_| {
            let plan = apply::plan(now, &description, adopt)?;
            differences = plan.differences;
            Ok::<_, apply::ApplyError>(plan.operations)
        };
        client.edit(build).await?;
    }
    if as_json {
        let differences: Vec<_> = differences.iter().map(object).collect();
        output::json(&json!({ "applied": !dry_run, "differences": differences }));
    } else {
        differences.iter().for_each(|difference| output::text(&format!("{difference}\n")));
        output::text(&summary(&differences));
    }
    Ok(())
}

/// No more than a description may have, so that a wrong file is not read to its end.
fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let limit = MAX_BYTES as u64 + 1;
    if file == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(file)?.take(limit).read_to_string(&mut text)?;
    }
    Ok(text)
}

fn object(difference: &Difference) -> Value {
    let Difference { verb, kind, name, columns } = difference;
    let columns = columns.iter().map(|(column, before, after)| {
        let before = (*verb != Verb::Add).then_some(before);
        ((*column).to_owned(), json!({ "before": before, "after": after }))
    });
    json!({
        "verb": verb.as_str(), "kind": kind.to_string(), "name": name, "columns": columns.collect::<Map<_, _>>(),
    })
}

fn summary(differences: &[Difference]) -> String {
    if differences.is_empty() {
        return "nothing differs\n".to_owned();
    }
    let count = |verb| differences.iter().filter(|difference| difference.verb == verb).count();
    let (add, set) = (count(Verb::Add), count(Verb::Set));
    format!("{add} added, {set} set, {} replaced, {} removed\n", count(Verb::Replace), count(Verb::Remove))
}
