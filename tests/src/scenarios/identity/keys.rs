//! Looks for private keys where none should be: by the words that begin one in PEM, and by the lines that are secret.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;

const WORDS: &str = "PRIVATE KEY";

/// The keys of a lab, also those that others took the place of.
#[derive(Default)]
pub(super) struct Keys {
    files: BTreeSet<PathBuf>,
    secrets: BTreeSet<String>,
    open: BTreeSet<PathBuf>,
}

impl Keys {
    /// Takes note of all that are in these folders now: the files that end in `.key`.
    pub(super) fn learn(&mut self, dirs: &[PathBuf]) -> Result<()> {
        for dir in dirs {
            for path in files_below(dir)?.into_iter().filter(|path| is_key(path)) {
                // The rest of a key is its public half.
                let text = fs::read_to_string(&path)?;
                let secret = text.lines().filter(|line| !line.starts_with("-----")).take(2);
                self.secrets.extend(secret.map(str::to_owned));
                if is_open(&path)? {
                    self.open.insert(path.clone());
                }
                self.files.insert(path);
            }
        }
        Ok(())
    }

    /// How many files there were.
    pub(super) fn count(&self) -> usize {
        self.files.len()
    }

    /// Those that somebody else than the owner could open.
    pub(super) fn open(&self) -> &BTreeSet<PathBuf> {
        &self.open
    }

    /// Lines of a text that hold a key or a part of one.
    pub(super) fn seen(&self, text: &str) -> usize {
        let is_secret = |line: &&str| {
            line.contains(WORDS) || self.secrets.iter().any(|secret| line.contains(secret.as_str()))
        };
        text.lines().filter(is_secret).count()
    }

    /// The same of all files below a folder that are no keys.
    pub(super) fn seen_below(&self, dir: &Path) -> Result<usize> {
        let mut seen = 0;
        for path in files_below(dir)?.iter().filter(|path| !is_key(path)) {
            seen += self.seen(&String::from_utf8_lossy(&fs::read(path)?));
        }
        Ok(seen)
    }
}

/// Whether a file has another mode than 0600.
pub(super) fn is_open(path: &Path) -> Result<bool> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o7777 != 0o600)
}

fn is_key(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "key")
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}
