//! The arrows of `ARCHITECTURE.md`, read from `cargo metadata`: who may depend on whom, and which crates are pure.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Every package of the workspace and the packages of the workspace that it may use.
const ARROWS: [(&str, &[&str]); 8] = [
    ("xenflow-proto", &[]),
    ("openflow", &[]),
    ("ovsdb", &[]),
    ("xenflow-flow-app", &["xenflow-proto", "openflow"]),
    ("xenflow-qos", &[]),
    ("xenflow-guest-client", &["xenflow-proto"]),
    ("xenflow-dom0-server", &["xenflow-proto", "openflow", "ovsdb", "xenflow-flow-app", "xenflow-qos"]),
    (
        "xenflow-tests",
        &[
            "xenflow-proto",
            "openflow",
            "ovsdb",
            "xenflow-flow-app",
            "xenflow-qos",
            "xenflow-guest-client",
            "xenflow-dom0-server",
        ],
    ),
];

/// Packages without sockets, clock and randomness, so without crates that bring them.
const PURE: [&str; 4] = ["xenflow-proto", "openflow", "xenflow-flow-app", "xenflow-qos"];
const IMPURE: [&str; 7] = ["tokio", "mio", "socket2", "rustls", "rand", "libc", "nix"];

struct Package {
    name: String,
    dependencies: BTreeSet<String>,
}

fn packages() -> Vec<Package> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter().map(|package| {
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let used = dependencies.filter(|dependency| dependency["kind"].is_null());
        Package {
            name: package["name"].as_str().unwrap().to_owned(),
            dependencies: used.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect(),
        }
    });
    packages.collect()
}

/// What is wrong with these packages.
fn violations(packages: &[Package]) -> Vec<String> {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.into();
    let names: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let mut wrong = Vec::new();
    for package in packages {
        let Some(allowed) = arrows.get(package.name.as_str()) else {
            wrong.push(format!("{} is in no arrow", package.name));
            continue;
        };
        for dependency in &package.dependencies {
            if names.contains(dependency.as_str()) && !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{} uses {dependency}", package.name));
            }
            if PURE.contains(&package.name.as_str()) && IMPURE.contains(&dependency.as_str()) {
                wrong.push(format!("{}, which is pure, uses {dependency}", package.name));
            }
        }
    }
    wrong
}

#[test]
fn arrows_point_where_they_are_drawn() {
    let packages = packages();
    assert_eq!(packages.len(), ARROWS.len());
    assert_eq!(violations(&packages), [""; 0]);
}

#[test]
fn a_wrong_arrow_is_seen() {
    let package = |name: &str, dependency: &str| Package {
        name: name.to_owned(),
        dependencies: BTreeSet::from([dependency.to_owned()]),
    };
    let packages = [
        package("xenflow-guest-client", "openflow"),
        package("xenflow-flow-app", "tokio"),
        package("openflow", "bytes"),
    ];
    let expected = ["xenflow-guest-client uses openflow", "xenflow-flow-app, which is pure, uses tokio"];
    assert_eq!(violations(&packages), expected);
}
