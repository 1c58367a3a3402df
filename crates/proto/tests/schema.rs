//! The generated code is what the schemas say.
//!
//! It stands in the repository because whoever only uses it should not have to build a compiler of schemas first.
//! After a change of a schema, `XENFLOW_REGENERATE=1 cargo test --profile lab -p xenflow-proto --test schema`
//! writes it anew.

#![allow(clippy::unwrap_used)]
#![expect(
    clippy::disallowed_methods,
    reason = "the rule is for what the crate does, and this looks at its source"
)]

use std::path::Path;

/// `known` is what another schema's code is for this one.
fn is_of_its_schema(name: &str, package: &str, known: Option<(&str, &str)>) {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    let out = tempfile::tempdir().unwrap();
    let descriptors = protox::compile([schema.join(format!("{name}.proto"))], [&schema]).unwrap();
    let mut config = prost_build::Config::new();
    if let Some((package, path)) = known {
        config.extern_path(package, path);
    }
    config.out_dir(out.path()).compile_fds(descriptors).unwrap();
    let fresh = std::fs::read_to_string(out.path().join(format!("{package}.rs"))).unwrap();
    let kept = schema.join(format!("{name}.rs"));
    if std::env::var_os("XENFLOW_REGENERATE").is_some() {
        std::fs::write(&kept, &fresh).unwrap();
    }
    assert!(std::fs::read_to_string(&kept).unwrap() == fresh, "{name}.rs is not of {name}.proto");
}

#[test]
fn generated_code_is_of_the_schema_of_guests() {
    is_of_its_schema("xenflow-v1", "xenflow.v1", None);
}

#[test]
fn generated_code_is_of_the_schema_of_nodes() {
    is_of_its_schema("xenflow-node-v1", "xenflow.node.v1", Some((".xenflow.v1", "crate::wire::pb")));
}
