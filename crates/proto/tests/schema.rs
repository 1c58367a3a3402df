//! The generated code is what the schema says.
//!
//! It stands in the repository because whoever only uses it should not have to build a compiler of schemas first.
//! After a change of the schema, `XENFLOW_REGENERATE=1 cargo test --profile lab -p xenflow-proto --test schema`
//! writes it anew.

#![expect(
    clippy::disallowed_methods,
    reason = "the rule is for what the crate does, and this looks at its source"
)]

use std::path::Path;

#[test]
fn generated_code_is_of_this_schema() {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    let out = tempfile::tempdir().unwrap();
    let descriptors = protox::compile([schema.join("xenflow-v1.proto")], [&schema]).unwrap();
    prost_build::Config::new().out_dir(out.path()).compile_fds(descriptors).unwrap();
    let fresh = std::fs::read_to_string(out.path().join("xenflow.v1.rs")).unwrap();
    let kept = schema.join("xenflow-v1.rs");
    if std::env::var_os("XENFLOW_REGENERATE").is_some() {
        std::fs::write(&kept, &fresh).unwrap();
    }
    assert!(std::fs::read_to_string(&kept).unwrap() == fresh, "xenflow-v1.rs is not of xenflow-v1.proto");
}
