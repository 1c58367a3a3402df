//! The last desired state that the database said, in a file of this host: with it a daemon goes on that starts while no
//! database is to be reached.
//!
//! Owns the file: a line of JSON that says what follows, with its length and checksum, then the rows as OVSDB writes them.
//! A file that is not whole, or not exactly what this version of the daemon writes, is refused, since it would have the
//! daemon take flows away. When one is written is in [`keeper`], when one is used in [`crate::ovs::database`].

pub mod keeper;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ovsdb::{ColumnError, Row, Uuid};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::db::{self, Rows};

/// Its name in the state directory.
pub const FILE: &str = "desired.json";
/// Bytes of the largest file that is written or read.
pub const MAX_BYTES: u64 = 64 << 20;
/// Says what the file is.
const FORMAT: &str = "xenflow-desired-state";
/// Of the file; another one is not read.
const VERSION: u32 = 1;
/// Of the first line.
const MAX_HEADER: usize = 512;

/// Why a file is not written or not used.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// The system refuses.
    #[error("the file cannot be used")]
    Io(#[from] io::Error),
    /// A link, a device or a directory.
    #[error("it is no regular file")]
    NotFile,
    /// Others than its owner could have written it.
    #[error("its mode is {mode:o}: others than its owner may write it")]
    Mode {
        /// Its permissions.
        mode: u32,
    },
    /// Larger than anything that is read.
    #[error("it has {bytes} bytes, more than {MAX_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// The first line is not this daemon's.
    #[error("its first line does not say what it is")]
    Header,
    /// Of another version.
    #[error(
        "it is of version {version} for the schema {schema}, this daemon is of {VERSION} for {}",
        db::VERSION
    )]
    Version {
        /// What it says.
        version: u32,
        /// The schema of its rows.
        schema: String,
    },
    /// It was cut short, or is longer than it says.
    #[error("it should have {expected} bytes of rows and has {found}")]
    Length {
        /// What the first line says.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// A byte of it is another one.
    #[error("its checksum is {found}, not {expected}")]
    Checksum {
        /// What the first line says.
        expected: String,
        /// What it is.
        found: String,
    },
    /// What follows is not rows by table and UUID.
    #[error("its rows cannot be read")]
    Syntax(#[source] serde_json::Error),
    /// A table that is not kept.
    #[error("table \"{0}\" is none of those that are kept")]
    Table(String),
    /// A row that is none.
    #[error("row {uuid} of table {table} cannot be read")]
    Row {
        /// The row's table.
        table: &'static str,
        /// The row.
        uuid: String,
        /// Why.
        #[source]
        source: RowError,
    },
}

/// Why a row is none.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// Its name.
    #[error("the UUID does not parse")]
    Uuid,
    /// Its columns.
    #[error(transparent)]
    Column(#[from] ColumnError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    schema: String,
    /// When the rows were so: milliseconds since the Unix epoch.
    saved_ms: u64,
    /// Of what follows this line.
    bytes: u64,
    /// Of the same: FNV-1a of 64 bits. It is for worn disks and lost writes, not for people.
    checksum: String,
}

/// Reads a file: the rows, and when they were so, in milliseconds since the Unix epoch; none if there is no file.
///
/// # Errors
/// [`KeptError`]: the file cannot be used, and why.
pub fn load(path: &Path) -> Result<Option<(Rows, u64)>, KeptError> {
    // Who is no file must not be waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(KeptError::NotFile);
        }
        Err(error) => return Err(error.into()),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(KeptError::NotFile);
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(KeptError::Mode { mode: metadata.mode() & 0o7777 });
    }
    if metadata.len() > MAX_BYTES {
        return Err(KeptError::TooLarge { bytes: metadata.len() });
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    parse(&bytes).map(Some)
}

fn parse(bytes: &[u8]) -> Result<(Rows, u64), KeptError> {
    let end = bytes.iter().take(MAX_HEADER).position(|byte| *byte == b'\n').ok_or(KeptError::Header)?;
    let (header, body) = bytes.split_at(end);
    let body = body.strip_prefix(b"\n").unwrap_or_default();
    let header: Header = serde_json::from_slice(header).map_err(|_| KeptError::Header)?;
    if header.format != FORMAT {
        return Err(KeptError::Header);
    }
    if (header.version, header.schema.as_str()) != (VERSION, db::VERSION) {
        let schema = header.schema.chars().take(40).flat_map(char::escape_debug).collect();
        return Err(KeptError::Version { version: header.version, schema });
    }
    if header.bytes != body.len() as u64 {
        return Err(KeptError::Length { expected: header.bytes, found: body.len() as u64 });
    }
    let found = checksum(body);
    if header.checksum != found {
        let expected = header.checksum.chars().take(16).flat_map(char::escape_debug).collect();
        return Err(KeptError::Checksum { expected, found });
    }
    let tables: BTreeMap<String, BTreeMap<String, Map<String, Value>>> =
        serde_json::from_slice(body).map_err(KeptError::Syntax)?;
    let mut rows = Rows::default();
    for (name, all) in tables {
        let Some((table, columns)) = db::kept_tables().find(|(table, _)| *table == name) else {
            return Err(KeptError::Table(name.chars().take(40).flat_map(char::escape_debug).collect()));
        };
        for (uuid, row) in all {
            let (uuid, row) = parse_row(&uuid, &row, columns).map_err(|source| {
                let uuid = uuid.chars().take(40).flat_map(char::escape_debug).collect();
                KeptError::Row { table, uuid, source }
            })?;
            rows.insert(table, uuid, row);
        }
    }
    Ok((rows, header.saved_ms))
}

fn parse_row(uuid: &str, row: &Map<String, Value>, columns: &[&str]) -> Result<(Uuid, Row), RowError> {
    let uuid = uuid.parse().map_err(|_| RowError::Uuid)?;
    let row = Row::from_json(row)?;
    // A row without one of them would be left out, and its flows with it.
    for column in columns {
        row.datum(column)?;
    }
    Ok((uuid, row))
}

/// Writes a file anew: at every moment it is the former one or this one, whole. Only its owner may read it.
///
/// # Errors
/// [`KeptError`]: the former file stays.
pub fn save(path: &Path, rows: &Rows, saved_ms: u64) -> Result<(), KeptError> {
    let bytes = written(rows, saved_ms)?;
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

fn written(rows: &Rows, saved_ms: u64) -> Result<Vec<u8>, KeptError> {
    let row =
        |row: &Row| row.columns().map(|(name, datum)| (name.to_owned(), json!(datum))).collect::<Map<_, _>>();
    let table = |(table, _): (&'static str, _)| {
        let all = rows.of(table).map(|(uuid, columns)| (uuid.to_string(), row(columns)));
        (table, all.collect::<BTreeMap<_, _>>())
    };
    let tables: BTreeMap<_, _> = db::kept_tables().map(table).collect();
    let body = serde_json::to_vec(&tables).map_err(io::Error::from)?;
    let header = Header {
        format: FORMAT.to_owned(),
        version: VERSION,
        schema: db::VERSION.to_owned(),
        saved_ms,
        bytes: body.len() as u64,
        checksum: checksum(&body),
    };
    let mut bytes = serde_json::to_vec(&header).map_err(io::Error::from)?;
    bytes.push(b'\n');
    bytes.extend(body);
    match bytes.len() as u64 {
        bytes @ MAX_BYTES.. => Err(KeptError::TooLarge { bytes }),
        _ => Ok(bytes),
    }
}

fn checksum(bytes: &[u8]) -> String {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

#[cfg(test)]
mod tests;
