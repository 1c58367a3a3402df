//! `xenflow man`: manual pages, made of the declared command line.

use std::fs;
use std::path::Path;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::args::Args;

/// One page for the command, and one for each subcommand: `xenflow-network-add.1`.
pub(crate) fn run(dir: &Path) -> anyhow::Result<Vec<String>> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
    let pages = pages();
    for (name, page) in &pages {
        let path = dir.join(name);
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(vec![format!("wrote {} pages to {}", pages.len(), dir.display())])
}

/// File names and contents.
fn pages() -> Vec<(String, Vec<u8>)> {
    let mut command = Args::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    page(command, &mut pages);
    pages
}

fn page(command: Command, pages: &mut Vec<(String, Vec<u8>)>) {
    let below: Vec<_> = command.get_subcommands().filter(|below| !below.is_hide_set()).cloned().collect();
    let source = format!("XenFlow {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command).source(source).manual("XenFlow");
    let mut text = Vec::new();
    // Writing to memory cannot fail.
    let _ = man.render(&mut text);
    pages.push((man.get_filename(), text));
    below.into_iter().for_each(|command| page(command, pages));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Names of pages that there are to be, by a walk of its own.
    fn names(command: &Command, prefix: &str, names: &mut Vec<String>) {
        let name = format!("{prefix}{}", command.get_name());
        // Hidden ones are for scripts.
        let shown = |below: &&Command| below.get_name() != "help" && !below.is_hide_set();
        for below in command.get_subcommands().filter(shown) {
            self::names(below, &format!("{name}-"), names);
        }
        names.push(format!("{name}.1"));
    }

    #[test]
    fn every_subcommand_has_a_page_with_its_options() {
        let mut wanted = Vec::new();
        names(&Args::command(), "", &mut wanted);
        let pages: BTreeMap<_, _> = pages().into_iter().collect();
        wanted.sort();
        assert_eq!(pages.keys().cloned().collect::<Vec<_>>(), wanted);
        assert!(!wanted.iter().any(|name| name == "xenflow-arrival.1") && wanted.len() > 40, "{wanted:?}");
        let text = |name: &str| String::from_utf8(pages[name].clone()).unwrap();
        let nouns = ["network", "segment", "router", "vif", "access", "uplink", "class"];
        for noun in nouns {
            for (verb, option) in [
                ("add", Some("\\-\\-may\\-exist")),
                ("set", Some("\\-\\-external\\-id")),
                ("list", None),
                ("show", None),
                ("remove", Some("\\-\\-if\\-exists")),
            ] {
                let page = text(&format!("xenflow-{noun}-{verb}.1"));
                assert!(option.is_none_or(|option| page.contains(option)), "{noun} {verb}: {page}");
                assert!(page.contains("\\-\\-json"), "{noun} {verb}: {page}");
            }
        }
        assert!(text("xenflow.1").contains("xenflow\\-network(1)"));
    }
}
