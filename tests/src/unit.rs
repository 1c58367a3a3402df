//! The workspace's own tests: built at once, as `cargo test` does, and then run binary by binary. Most of their time is spent
//! waiting for real parts, and the rest in one test of many cases. Labs go before them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::progress::print;
use crate::{process, setup};

/// A binary of tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tests {
    /// Of the target.
    name: String,
    executable: PathBuf,
    /// The folder of its package: where cargo runs it.
    package: PathBuf,
}

/// Those that take longest, which begin first.
const LONGEST: [&str; 3] = ["laws", "real", "kernel"];

/// Builds all tests; those that take longest come first.
pub fn build() -> Result<Vec<Tests>> {
    let args = ["test", "--quiet", "--profile", "lab", "--workspace", "--no-run"];
    let output = setup::cargo()?
        .args(args)
        .args(["--message-format", "json-render-diagnostics"])
        .stdin(Stdio::null())
        .stderr(std::io::stderr())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "the tests cannot be built");
    let mut all = parse(&String::from_utf8_lossy(&output.stdout))?;
    ensure!(!all.is_empty(), "cargo has built no tests");
    all.sort_by_key(|tests| LONGEST.iter().position(|name| *name == tests.name).unwrap_or(LONGEST.len()));
    Ok(all)
}

/// What cargo says that it has built.
fn parse(messages: &str) -> Result<Vec<Tests>> {
    let mut all = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).with_context(|| format!("cargo says {line:?}"))?;
        let is_test = message.pointer("/profile/test").and_then(Value::as_bool) == Some(true);
        let text = |pointer| message.pointer(pointer).and_then(Value::as_str);
        let (Some(executable), true) = (text("/executable"), is_test) else { continue };
        let manifest = Path::new(text("/manifest_path").context("a package without a manifest")?);
        let package = manifest.parent().context("a manifest without a folder")?;
        let name = text("/target/name").context("a target without a name")?;
        all.push(Tests { name: name.to_owned(), executable: executable.into(), package: package.into() });
    }
    Ok(all)
}

impl Tests {
    /// Runs them; what they say is printed if one fails.
    pub fn run(&self) -> Result<()> {
        let mut command = Command::new(&self.executable);
        command.arg("--quiet").current_dir(&self.package).env("CARGO_MANIFEST_DIR", &self.package);
        let output = process::behind(&command).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("cannot run {}", self.executable.display()))?;
        if output.status.success() {
            return Ok(());
        }
        for said in [&output.stdout, &output.stderr] {
            print(String::from_utf8_lossy(said));
        }
        bail!("tests \"{}\" of {} ended with {}", self.name, self.package.display(), output.status)
    }
}

/// The examples in the documentation.
pub fn examples() -> Result<()> {
    let args = ["test", "--quiet", "--profile", "lab", "--workspace", "--doc"];
    setup::run(&mut process::behind(setup::cargo()?.args(args)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binaries_of_tests_are_told_from_what_they_need() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","manifest_path":"/x/qos/Cargo.toml","target":{"name":"xenflow_qos"},"profile":{"test":false},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/x/qos/Cargo.toml","target":{"name":"laws"},"profile":{"test":true},"executable":"/x/target/laws-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/x/dom0/Cargo.toml","target":{"name":"xenflow"},"profile":{"test":false},"executable":"/x/target/xenflow"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let laws =
            Tests { name: "laws".into(), executable: "/x/target/laws-1".into(), package: "/x/qos".into() };
        assert_eq!(parse(messages).unwrap(), [laws]);
        assert!(parse("no json").is_err());
    }
}
