//! Compiles `src/clock.c`, which the lab's switches are started with; `CLOCK` is where it is now.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let library = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("clock.so");
    println!("cargo::rerun-if-changed=src/clock.c");
    println!("cargo::rustc-env=CLOCK={}", library.display());
    let mut compiler = Command::new("cc");
    compiler
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "src/clock.c", "-o"])
        .arg(&library);
    let is_done = compiler.status().is_ok_and(|status| status.success());
    assert!(is_done, "cannot compile src/clock.c: {compiler:?}");
}
