//! Errors of the configuration name what is wrong and where.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::path::Path;

use xenflow_guest_client::config::{Config, ConfigError};

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
    assert_eq!(config.control_interface.as_deref(), Some("ctl"));
}

#[test]
fn no_file_is_enough_where_the_certificate_is_in_its_place() {
    let config = Config::parse("router = \"r1\"", Path::new("guest.toml")).unwrap();
    assert_eq!(config.control_interface, None, "it is found");
    let files = [&config.ca, &config.cert, &config.key].map(|path| path.to_str().unwrap());
    assert_eq!(files, ["/etc/xenflow/ca.pem", "/etc/xenflow/router.pem", "/etc/xenflow/router.key"]);
    // One that is named must be there.
    let error = Config::load(Some(Path::new("/nonexistent/guest.toml"))).unwrap_err();
    assert_eq!(error.to_string(), "cannot read /nonexistent/guest.toml");
    // The default one need not be, and then it is the certificate that is missed.
    if !Path::new(xenflow_guest_client::config::PATH).exists() {
        let error = Config::load(None).unwrap_err();
        assert!(matches!(error, ConfigError::Certificate(_)), "{error}");
    }
}

/// What the unit lets it write is what it writes without a configuration.
#[test]
fn the_unit_fits_the_defaults() {
    let unit = include_str!("../../xen-scripts/xenflow-guest.service");
    let words = |key: &str| -> Vec<&str> {
        let lines = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        lines.flat_map(str::split_whitespace).collect()
    };
    assert_eq!(words("ExecStart"), ["/usr/bin/xenflow-guest", "run"], "the file is optional only by default");
    let config = Config::parse("router = \"r1\"", Path::new("guest.toml")).unwrap();
    let writable: Vec<_> =
        words("ReadWritePaths").into_iter().map(|path| path.trim_start_matches('-')).collect();
    for path in [&config.status_socket, &config.ca, &config.cert] {
        let dir = path.parent().unwrap().to_str().unwrap();
        assert!(writable.contains(&dir), "{} is not in {writable:?}", path.display());
    }
}

#[test]
fn an_interface_may_stand_in_the_host() {
    let text = GOOD.replace("control_interface = \"ctl\"", "host = \"fe80::1%ctl\"");
    let config = Config::parse(&text, Path::new("guest.toml")).unwrap();
    assert_eq!(config.control_interface.as_deref(), Some("ctl"));
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
        ("audit_interval_s = 0\n", &["audit_interval_s is 0, not 1 to 3600"]),
        ("audit_interval_s = 3601\n", &["audit_interval_s is 3601"]),
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
}
