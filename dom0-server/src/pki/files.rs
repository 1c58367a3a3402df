//! Reading and writing the files of the authority. A key is private from its first byte on: the mode is given
//! when the file is created, which fails if there is one. Whoever reads a file that is replaced sees the old one or
//! the new one, also after a crash.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Mode of keys.
pub(super) const PRIVATE: u32 = 0o600;
/// Mode of certificates.
pub(super) const PUBLIC: u32 = 0o644;

/// Longest file read, in bytes: certificates and keys are a few hundred, a record is about 200.
const LIMIT: u64 = 64 << 20;

/// What could not be done with a file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { action, path, source }
}

pub(super) fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// The bytes of a file of certificates, keys or lists, however others wrote their comments in it.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>, FileError> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(LIMIT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LIMIT {
            let text = format!("more than {} MiB", LIMIT >> 20);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        Ok(bytes)
    };
    read().map_err(failed("read", path))
}

/// A file of text.
pub(super) fn read(path: &Path) -> Result<String, FileError> {
    let text = String::from_utf8(read_bytes(path)?);
    text.map_err(|error| failed("read", path)(io::Error::new(io::ErrorKind::InvalidData, error.utf8_error())))
}

/// Creates a directory for the owner alone; one that is there stays as it is.
pub(super) fn create_dir(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("create the directory", path))
}

pub(super) fn create(path: &Path, text: &str, mode: u32) -> Result<(), FileError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(failed("create", path))
}

/// Puts a new file in the place of another in one step.
pub(super) fn replace(path: &Path, text: &str, mode: u32) -> Result<(), FileError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // Left behind by somebody who was killed in between.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &new)(error)),
        _ => {}
    }
    create(&new, text, mode)?;
    fs::rename(&new, path).and_then(|()| sync_parent(path)).map_err(failed("replace", path))
}

pub(super) fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| sync_parent(path)).map_err(failed("remove", path)),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Waits until nobody else changes what is in the directory; the lock ends when what comes back is dropped.
pub(super) fn lock(dir: &Path) -> Result<File, FileError> {
    let lock = || {
        let file = File::open(dir)?;
        file.lock()?;
        Ok(file)
    };
    lock().map_err(failed("open the directory", dir))
}

/// Files of a directory that end in `.pem`.
pub(super) fn certificates(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let list = || {
        let entries: Result<Vec<_>, _> =
            fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())).collect();
        let mut paths = entries?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "pem"));
        paths.sort();
        Ok(paths)
    };
    list().map_err(failed("read the directory", dir))
}
