//! The only place that prints. Data goes to stdout, what went wrong to stderr, on one line.
#![allow(clippy::print_stderr)]

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::Failure;
use crate::color::{self, Color};

/// A reader that closed the pipe has read what it wanted.
fn print(text: &str) {
    part(text);
}

/// Prints some of what is long; false: who reads it has read enough.
pub(crate) fn part(text: &str) -> bool {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => false,
        Err(error) => {
            eprintln!("xenflow: cannot write to stdout: {error}");
            std::process::exit(1);
        }
    }
}

/// Says to somebody at a terminal why nothing happens for a while.
pub(crate) fn progress(text: &str) {
    if io::stderr().is_terminal() {
        eprintln!("xenflow: {text}");
    }
}

pub(crate) fn text(text: &str) {
    print(text);
}

/// With the styles that clap gives it, for whom they help.
pub(crate) fn help(help: &clap::builder::StyledStr) {
    if color::is_wanted(&io::stdout()) { print(&help.ansi().to_string()) } else { print(&help.to_string()) }
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
    let who = color::paint(color::is_wanted(&io::stderr()), Color::Bad, "xenflow:");
    eprintln!("{who} {line}");
}
