//! What people see while they wait: lines on standard error outside, event lines on the serial port inside.
//!
//! Owns the form of those lines, not their meaning.

use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, Mutex};

use crate::job::Event;

/// Writes one line to standard error. A closed standard error is nobody's problem.
pub fn say(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
}

/// Writes one line to standard output.
pub fn print(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stdout().lock(), "{}", text.as_ref());
}

/// The inside end of the event line.
#[derive(Debug, Clone)]
pub struct Events {
    port: Arc<Mutex<File>>,
}

impl Events {
    /// Opens the serial port.
    pub fn open() -> std::io::Result<Self> {
        let port = File::options().write(true).open("/dev/ttyS0")?;
        Ok(Self { port: Arc::new(Mutex::new(port)) })
    }

    /// Sends an event. An event that cannot be sent is dropped: the result does not depend on it.
    pub fn send(&self, event: &Event) {
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        if let Ok(mut port) = self.port.lock() {
            let _ = port.write_all(&line);
        }
    }

    /// Announces a step.
    pub fn step(&self, text: impl Into<String>) {
        self.send(&Event::Step { at_s: uptime_s(), text: text.into() });
    }
}

/// Seconds since this kernel's boot; 0 if `/proc` is not there yet.
pub fn uptime_s() -> f64 {
    std::fs::read_to_string("/proc/uptime")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(0.0)
}
