//! The only place that prints. Data goes to stdout, what went wrong to stderr, on one line.
#![allow(clippy::print_stderr)]

use std::io::{self, Write};

use serde::Serialize;

use crate::Failure;

/// A reader that closed the pipe has read what it wanted.
fn print(text: &str) {
    let mut out = io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        eprintln!("xenflow: cannot write to stdout: {error}");
        std::process::exit(1);
    }
}

pub(crate) fn text(text: &str) {
    print(text);
}

pub(crate) fn json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(&(text + "\n")),
        Err(error) => eprintln!("xenflow: cannot print JSON: {error}"),
    }
}

/// Lines that say what was done.
#[allow(clippy::unnecessary_wraps)] // as the other commands' last step
pub(crate) fn report(lines: &[String], as_json: bool) -> Result<(), Failure> {
    if as_json {
        json(&serde_json::json!({ "done": lines }));
    } else {
        lines.iter().for_each(|line| print(&format!("{line}\n")));
    }
    Ok(())
}

pub(crate) fn completions(shell: clap_complete::Shell, command: &mut clap::Command) {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "xenflow", &mut script);
    print(&String::from_utf8_lossy(&script));
}

/// One line, whatever the cause says.
pub(crate) fn error(text: &str) {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    eprintln!("xenflow: {line}");
}
