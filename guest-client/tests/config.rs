//! Errors of the configuration name what is wrong and where.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::path::Path;

use xenflow_guest_client::config::Config;

const GOOD: &str = "router = \"r1\"\ncontrol_interface = \"ctl\"\nca = \"a\"\ncert = \"b\"\nkey = \"c\"\n";

/// With all causes.
fn error(text: &str) -> String {
    let error = Config::parse(text, Path::new("guest.toml")).unwrap_err();
    let mut all = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        all = format!("{all}: {error}");
        cause = error.source();
    }
    all
}

#[test]
fn a_short_file_is_enough() {
    let config = Config::parse(GOOD, Path::new("guest.toml")).unwrap();
    assert_eq!(config.host.to_string(), "fe80::1");
    assert_eq!(config.control_interface, "ctl");
}

#[test]
fn an_interface_may_stand_in_the_host() {
    let text = GOOD.replace("control_interface = \"ctl\"", "host = \"fe80::1%ctl\"");
    assert_eq!(Config::parse(&text, Path::new("guest.toml")).unwrap().control_interface, "ctl");
}

#[test]
fn errors_name_line_and_key() {
    for (more, wanted) in [
        ("hots = \"fe80::1\"\n", &["guest.toml", "line 6", "hots"][..]),
        ("port = \"x\"\n", &["guest.toml", "line 6", "port = \"x\""]),
        ("port = 65536\n", &["line 6", "65536"]),
        ("port = 0\n", &["port is 0"]),
        ("host = \"example.org\"\n", &["host \"example.org\" is not an address"]),
        ("host = \"192.0.2.1\"\n", &["host 192.0.2.1 is not link-local"]),
        ("host = \"fe80::1%eth9\"\n", &["\"eth9\"", "control_interface \"ctl\""]),
        ("reconnect_min_ms = 9\n", &["reconnect_min_ms is 9"]),
        ("reconnect_max_ms = 3600001\n", &["reconnect_max_ms 3600001"]),
        ("log = \"loud=very\"\n", &["log \"loud=very\""]),
        ("survey_interval_ms = 99\n", &["survey_interval_ms is 99, not 100 to 3600000"]),
        ("keep_neighbors = 1\n", &["line 6", "keep_neighbors"]),
        ("fpm_listen = \"192.0.2.1:2620\"\n", &["fpm_listen 192.0.2.1:2620", "loopback"]),
        ("fpm_listen = \"[::1]:0\"\n", &["fpm_listen [::1]:0"]),
        ("fpm_listen = \"localhost:2620\"\n", &["line 6", "fpm_listen"]),
        ("receive_buffer_bytes = -1\n", &["line 6", "receive_buffer_bytes"]),
    ] {
        let text = error(&format!("{GOOD}{more}"));
        for word in wanted {
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
    }
    let no_router = error(&GOOD.replace("router = \"r1\"\n", ""));
    assert!(
        no_router.starts_with("router is not given, and the certificate does not tell it: cannot read b")
    );
    assert!(error(&GOOD.replace("\"r1\"", "\"r 1\"")).starts_with("router: "));
    assert!(error(&GOOD.replace("\"ctl\"", "\"a/b\"")).contains("control_interface \"a/b\""));
    assert!(
        error(&GOOD.replace("control_interface = \"ctl\"\n", "")).contains("control_interface is missing")
    );
}
