//! What the tests against a kernel share: a namespace, its interfaces, certificates, and the peer of the client.

mod ca;
mod client;
mod host;
mod lab;
pub mod nftables;
mod table;
pub mod uml;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub use ca::Ca;
pub use client::Client;
pub use host::Host;
pub use lab::{Lab, Peer};
pub use table::Table;

const LIMIT: Duration = Duration::from_secs(30);

/// The client tries again after half an hour at the earliest: what comes within [`LIMIT`] did not wait for that.
pub const NOT_BY_ITSELF: &str = "reconnect_min_ms = 3600000\nreconnect_max_ms = 3600000";

/// Runs a test's body in a new network namespace: the test binary starts itself again for this one test.
pub fn in_namespace(name: &str, body: impl FnOnce()) {
    if std::env::var_os("XENFLOW_TEST_NAMESPACE").is_some() {
        return body();
    }
    let status = Command::new("unshare")
        .arg("-n")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("XENFLOW_TEST_NAMESPACE", "1")
        .status()
        .expect("unshare (util-linux) is needed");
    assert!(status.success(), "{name} failed in its namespace: {status}");
}

/// `ip WORDS`, which must succeed.
pub fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split_whitespace()).output().expect("ip (iproute2) is needed");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Many commands in one process: fast enough to outrun a small receive buffer.
pub fn ip_batch(lines: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip -batch");
}

pub fn sysctl(name: &str, value: &str) {
    let path = format!("/proc/sys/net/{name}");
    std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

pub fn ifindex(device: &str) -> u32 {
    std::fs::read_to_string(format!("/sys/class/net/{device}/ifindex"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or_else(|| ip(&format!("-o link show {device}")).split(':').next().unwrap().parse().unwrap())
}

pub fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
