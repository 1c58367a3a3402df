//! Cargo compiles a library once for each set of features, so the lab, the product and the tests must have the same ones:
//! a feature that only a test asks for stands in `tests/Cargo.toml` as well.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;

/// Packages with their features, as cargo chooses them for these arguments.
fn chosen(args: &[&str]) -> BTreeSet<String> {
    let out = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--quiet", "--prefix", "none", "--format", "{p} with {f}"])
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
}

#[test]
fn nothing_is_compiled_twice() {
    let tests = chosen(&["--workspace", "--edges", "normal,build,dev"]);
    for args in [&["--package", "xenflow-tests"][..], &["--workspace"]] {
        let without = chosen(&[args, &["--edges", "normal,build"]].concat());
        assert!(without.len() > 100, "{without:?}");
        let twice: Vec<_> = without.difference(&tests).collect();
        assert!(twice.is_empty(), "the tests have other features than these: {twice:#?}");
    }
}
