//! Compiles the frozen schema without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=schema/xenflow-v1.proto");
    let descriptors = protox::compile(["schema/xenflow-v1.proto"], ["schema"])?;
    prost_build::Config::new().compile_fds(descriptors)?;
    Ok(())
}
