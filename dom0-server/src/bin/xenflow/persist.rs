//! Has Open vSwitch's own start script open the database: `--extra-dbs` of ovs-ctl, in the file of settings that
//! Debian's packages give it (`/etc/default/openvswitch-switch`).
//!
//! The settings are between two marks, so that they can be taken away again. An assignment further up is taken over
//! in its words, since of two assignments the last one counts, for systemd and for the shell. Pure but for [`run`].

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, anyhow};

use crate::Failure;

const BEGIN: &str =
    "# xenflow: begin. Made by 'xenflow init --persist', taken away by 'xenflow init --forget'.";
const END: &str = "# xenflow: end";
const KEY: &str = "OVS_CTL_OPTS";

/// Remembers or forgets; says what was done.
pub(crate) fn run(defaults: &Path, database: &Path, forget: bool) -> Result<String, Failure> {
    let shown = defaults.display();
    let text = match fs::read_to_string(defaults) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound && forget => {
            return Ok(format!("{shown} is not there: nothing to forget"));
        }
        Err(error) => {
            let message =
                format!("cannot read {shown}, the settings of Open vSwitch (or say --defaults FILE)");
            return Err(anyhow::Error::from(error).context(message).into());
        }
    };
    let wanted = if forget { without(&text) } else { with(&text, database)? };
    if wanted == text {
        let state = if forget { "does not name the database" } else { "names the database already" };
        return Ok(format!("{shown} {state}"));
    }
    // A new file in its place: whoever reads it meanwhile reads one or the other.
    let mut part = defaults.as_os_str().to_owned();
    part.push(".xenflow-new");
    let written = fs::write(&part, &wanted)
        .and_then(|()| fs::set_permissions(&part, fs::metadata(defaults)?.permissions()))
        .and_then(|()| fs::rename(&part, defaults));
    written.with_context(|| format!("cannot write {shown}"))?;
    let said = if forget { "no longer names the database" } else { "names the database from now on" };
    Ok(format!("{shown} {said}"))
}

/// The text without XenFlow's part.
fn without(text: &str) -> String {
    let mut inside = false;
    let mut kept = String::new();
    for line in text.split_inclusive('\n') {
        match line.trim_end() {
            BEGIN => inside = true,
            END if inside => inside = false,
            _ if inside => {}
            _ => kept += line,
        }
    }
    kept
}

/// The text with XenFlow's part at its end.
fn with(text: &str, database: &Path) -> Result<String, Failure> {
    let refuse = |value: &str, rule: &str| {
        Failure::Input(anyhow!(
            "{KEY}={value}: {rule}; add --extra-dbs={} to {KEY} by hand",
            database.display()
        ))
    };
    let path = database.to_str().unwrap_or_default();
    if !path.starts_with('/') || path.contains(|c: char| c.is_whitespace() || "\"'$`\\".contains(c)) {
        let rule = "Open vSwitch takes an absolute path without blanks, quotes, $, ` and \\";
        return Err(Failure::Input(anyhow!("\"{}\": {rule}; use another --db-file", database.display())));
    }
    let rest = without(text);
    let assigned =
        rest.lines().filter_map(|line| line.trim().strip_prefix(KEY)?.strip_prefix('=')).next_back();
    let value = assigned.unwrap_or_default().trim();
    let bare = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
    let bare = bare.unwrap_or(value);
    if bare.contains(['"', '\'', '$', '`', '\\', '#']) {
        return Err(refuse(value, "a value with quotes, $, `, # or \\ inside is not taken over"));
    }
    if bare.contains("--extra-dbs") {
        return Err(refuse(value, "of two --extra-dbs only the last one counts"));
    }
    let newline = if rest.is_empty() || rest.ends_with('\n') { "" } else { "\n" };
    let blank = if bare.is_empty() { "" } else { " " };
    Ok(format!("{rest}{newline}{BEGIN}\n{KEY}=\"{bare}{blank}--extra-dbs={path}\"\n{END}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DB: &str = "/etc/openvswitch/xenflow.db";

    #[test]
    fn the_last_assignment_is_taken_over_and_comes_back() {
        for (before, value) in [
            ("", format!("--extra-dbs={DB}")),
            ("# OVS_CTL_OPTS=\n", format!("--extra-dbs={DB}")),
            ("OVS_CTL_OPTS=\n", format!("--extra-dbs={DB}")),
            ("OVS_CTL_OPTS=--a\nOVS_CTL_OPTS='--b --c=1'\n", format!("--b --c=1 --extra-dbs={DB}")),
            ("X=1", format!("--extra-dbs={DB}")),
        ] {
            let after = with(before, Path::new(DB)).unwrap();
            assert!(after.starts_with(before), "{after}");
            assert!(after.ends_with(&format!("{BEGIN}\nOVS_CTL_OPTS=\"{value}\"\n{END}\n")), "{after}");
            assert_eq!(with(&after, Path::new(DB)).unwrap(), after);
            assert_eq!(without(&after).trim_end(), before.trim_end());
        }
    }

    #[test]
    fn what_cannot_be_taken_over_is_refused() {
        let said = |text: &str, path: &str| match with(text, Path::new(path)) {
            Err(Failure::Input(error)) => error.to_string(),
            Err(Failure::Failed(_) | Failure::Ended(..)) | Ok(_) => panic!("{text} {path}"),
        };
        assert_eq!(
            said("OVS_CTL_OPTS=\"--extra-dbs=/x.db\"\n", DB),
            "OVS_CTL_OPTS=\"--extra-dbs=/x.db\": of two --extra-dbs only the last one counts; add \
             --extra-dbs=/etc/openvswitch/xenflow.db to OVS_CTL_OPTS by hand"
        );
        assert!(said("OVS_CTL_OPTS=\"$OTHER\"\n", DB).contains("is not taken over"));
        assert!(said("", "/a b").contains("without blanks"));
        assert!(said("", "xenflow.db").contains("absolute path"));
    }
}
