//! A real directory, and files that this daemon has not written.

use std::os::unix::fs::{PermissionsExt, symlink};

use ovsdb::Datum;

use super::*;
use crate::chain::Chain;
use crate::db::location::{Located, Place};
use crate::db::{Desired, table};

fn rows() -> Rows {
    let (red, core) = (Uuid(1), Uuid(2));
    let mut rows = Rows::default();
    let mut row = |table, uuid, columns: &[(&'static str, Datum)]| {
        rows.insert(table, uuid, columns.iter().cloned().collect());
    };
    row(table::XENFLOW, Uuid(9), &[("next_cfg", 7.into())]);
    let carries = Datum::map([("trunk0", 1_000_000_000)]);
    row(
        table::NODE,
        Uuid(3),
        &[("name", "a".into()), ("uplinks", Datum::set(["trunk0", "trunk1"])), ("uplink_capacity", carries)],
    );
    let contract = [("min_bps", Datum::set([8000])), ("max_bps", Datum::empty())];
    row(table::NETWORK, red, &[&[("name", "red".into())], &contract[..]].concat());
    row(table::SEGMENT, core, &[("name", "core".into()), ("network", red.into()), ("vlan", 100.into())]);
    let macs = Datum::set(["02:00:00:00:00:01"]);
    row(table::ACCESS, Uuid(4), &[("name", "h1".into()), ("segment", core.into()), ("macs", macs)]);
    let place = [("segment", "core".into()), ("mac", "02:00:00:00:00:01".into())];
    row(table::LOCATION, Uuid(5), &[&place[..], &[("node", "b".into()), ("generation", 3.into())]].concat());
    rows
}

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("xenflow-kept-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join(FILE)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn what_was_saved_means_the_same() {
    let dir = Dir::new("same");
    assert!(load(&dir.file()).unwrap().is_none());
    save(&dir.file(), &Rows::default(), 1).unwrap();
    // What a write left that was cut short is in nobody's way.
    fs::write(dir.0.join("desired.json.new"), "{").unwrap();
    save(&dir.file(), &rows(), 7).unwrap();
    let mode = fs::metadata(dir.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1);
    let (loaded, saved_ms) = load(&dir.file()).unwrap().unwrap();
    assert_eq!(saved_ms, 7);
    let (wanted, invalid) = Desired::assemble(&rows());
    assert_eq!((invalid.len(), wanted.access.len(), wanted.cfg), (0, 1, 7));
    assert_eq!(Desired::assemble(&loaded), (wanted, invalid));
    let place = Place { segment: "core".parse().unwrap(), mac: "02:00:00:00:00:01".parse().unwrap() };
    assert_eq!(Located::read(&loaded), [(place, "b".parse().unwrap(), 3)].into_iter().collect());
}

#[test]
fn a_file_that_is_not_whole_or_not_ours_is_refused_in_words() {
    let dir = Dir::new("foreign");
    let good = String::from_utf8(written(&rows(), 7).unwrap()).unwrap();
    let body = &good[good.find('\n').unwrap() + 1..];
    // As somebody would write it who knows how.
    let signed = |body: &str| {
        let (bytes, checksum) = (body.len(), checksum(body.as_bytes()));
        let schema = db::VERSION;
        format!(
            "{{\"format\":\"{FORMAT}\",\"version\":1,\"schema\":\"{schema}\",\"saved_ms\":7,\"bytes\":{bytes},\
             \"checksum\":\"{checksum}\"}}\n{body}"
        )
    };
    assert_eq!(signed(body), good);
    let sum = checksum(body.as_bytes());
    let wrong =
        format!("its checksum is {}, not {sum}", checksum(body.replace("trunk0", "trunk9").as_bytes()));
    let length = format!("it should have {} bytes of rows and has {}", body.len(), body.len() - 1);
    let twice = format!("it should have {} bytes of rows and has {}", body.len(), 2 * body.len());
    let this = format!("this daemon is of 1 for {}", db::VERSION);
    let version = format!("it is of version 2 for the schema {}, {this}", db::VERSION);
    let schema = format!("it is of version 1 for the schema 0.2.0, {this}");
    let no_column = signed(&body.replace("\"vlan\":100", "\"vlans\":100"));
    let four = Uuid(4).to_string();
    let deep = signed(&"[".repeat(100_000));
    let header = "its first line does not say what it is";
    for (text, said) in [
        ("", header),
        ("\n", header),
        ("[]\n{}", header),
        (&"x".repeat(100_000), header),
        (&good.replace(FORMAT, "another-format"), header),
        (&good.replace("\"version\":1", "\"version\":1,\"more\":2"), header),
        (&good.replace("\"version\":1", "\"version\":2"), &version),
        (&good.replacen(db::VERSION, "0.2.0", 1), &schema),
        (&good[..good.len() - 1], &length),
        (&format!("{good}{body}"), &twice),
        (&good.replace("trunk0", "trunk9"), &wrong),
        (&signed("[]"), "its rows cannot be read: invalid type: sequence, expected a map at line 1 column 0"),
        (&deep, "its rows cannot be read: invalid type: sequence, expected a map at line 1 column 0"),
        (&signed("{\"Passwd\":{}}"), "table \"Passwd\" is none of those that are kept"),
        (
            &signed(&body.replace(&four, "four")),
            "row four of table Access cannot be read: the UUID does not parse",
        ),
        (
            &no_column,
            "row 00000000-0000-0000-0000-000000000002 of table Segment cannot be read: the row has no column 'vlan'",
        ),
    ] {
        fs::write(dir.file(), text).unwrap();
        fs::set_permissions(dir.file(), fs::Permissions::from_mode(0o600)).unwrap();
        let refused = load(&dir.file()).unwrap_err();
        assert_eq!(Chain(&refused).to_string(), said, "{}", &text[..text.len().min(300)]);
    }
    let value = signed(&body.replace("\"trunk0\"", "{}"));
    fs::write(dir.file(), value).unwrap();
    let refused = Chain(&load(&dir.file()).unwrap_err()).to_string();
    assert!(
        refused.starts_with("row 00000000-0000-0000-0000-000000000003 of table Node cannot"),
        "{refused}"
    );
}

#[test]
fn what_is_no_file_of_the_owner_alone_is_not_read() {
    let dir = Dir::new("kinds");
    let refused = || Chain(&load(&dir.file()).unwrap_err()).to_string();
    save(&dir.file(), &rows(), 7).unwrap();
    for (mode, said) in [(0o660, "660"), (0o602, "602")] {
        fs::set_permissions(dir.file(), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(refused(), format!("its mode is {said}: others than its owner may write it"));
    }
    fs::set_permissions(dir.file(), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(load(&dir.file()).unwrap().is_some());
    File::options().write(true).open(dir.file()).unwrap().set_len(MAX_BYTES + 1).unwrap();
    assert_eq!(refused(), "it has 67108865 bytes, more than 67108864");
    let real = dir.0.join("real");
    fs::rename(dir.file(), &real).unwrap();
    symlink(&real, dir.file()).unwrap();
    assert_eq!(refused(), "it is no regular file");
    fs::remove_file(dir.file()).unwrap();
    fs::create_dir(dir.file()).unwrap();
    assert_eq!(refused(), "it is no regular file");
    fs::remove_dir(dir.file()).unwrap();
    // Nobody writes into it: to open it must not wait.
    let fifo = std::process::Command::new("mkfifo").arg(dir.file()).status().unwrap();
    assert!(fifo.success());
    assert_eq!(refused(), "it is no regular file");
}

#[test]
fn rows_that_are_too_many_leave_the_former_file() {
    let dir = Dir::new("large");
    save(&dir.file(), &rows(), 7).unwrap();
    let mut many = rows();
    let name = "x".repeat(1 << 20);
    for uuid in 100..164 {
        many.insert(table::NODE, Uuid(uuid), [("name", Datum::from(name.as_str()))].into_iter().collect());
    }
    let refused = save(&dir.file(), &many, 8).unwrap_err().to_string();
    assert!(refused.ends_with(" bytes, more than 67108864"), "{refused}");
    assert_eq!(load(&dir.file()).unwrap().unwrap().1, 7);
}
