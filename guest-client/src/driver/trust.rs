//! Authorities and revocation lists that change under a running client: the files are looked at every second of a
//! session, and before each attempt. Whoever is revoked then is for [`Trust`] to say.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustls::Error;
use rustls_pki_types::{CertificateDer, UnixTime};
use tracing::{error, info, warn};

use crate::config::Config;
use crate::connection::chain;
use crate::renew;
use crate::tls::{InWords, TlsError, Trust};

/// Between two looks at the files.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two warnings of the same.
const REMIND: Duration = Duration::from_secs(86_400);

/// What tells that a file is another one, of each.
type Stamp = [Option<(u64, u64, u64, i64, i64)>; 2];

/// See the module.
#[derive(Debug)]
pub(super) struct Watched {
    current: Trust,
    due: Duration,
    /// Of the files that are in force, or of which it was said that they cannot be.
    seen: Option<Stamp>,
    /// Of files that could not be used once.
    failed: Option<Stamp>,
    /// When it was told that a list is old.
    reminded: Option<Duration>,
}

impl Watched {
    /// Whatever changed since the first reading is read again: the first stamp is nobody's.
    pub(super) fn new(current: Trust, now: Duration) -> Self {
        Self { current, due: now, seen: None, failed: None, reminded: None }
    }

    /// What is in force.
    pub(super) const fn current(&self) -> &Trust {
        &self.current
    }

    /// When to look the next time.
    pub(super) const fn deadline(&self) -> Duration {
        self.due
    }

    /// Reads the files if they changed. What cannot be used is told, and what was read before stays in force: nobody who
    /// was revoked comes back because a file is broken. `shown` is the certificate of a session, and when it was shown;
    /// why it counts no more comes back. That it ends meanwhile ends no session.
    pub(super) fn look(
        &mut self,
        config: &Config,
        shown: Option<(&[CertificateDer<'static>], UnixTime)>,
        now: Duration,
    ) -> Option<InWords> {
        self.due = now + PERIOD;
        let stamp = [stamp(&config.ca), stamp(&config.lists())];
        let mut distrust = None;
        if self.seen != Some(stamp) {
            match self.read(config, shown) {
                Ok((trust, error)) => {
                    if self.seen.is_some() {
                        info!(
                            lists = trust.lists().len(),
                            "authorities and revocation lists were read again"
                        );
                    }
                    (self.current, distrust) = (trust, error);
                    (self.seen, self.failed) = (Some(stamp), None);
                }
                // Two files, or one that is written over, are not replaced in one step: the second look counts.
                Err(_) if self.failed != Some(stamp) => self.failed = Some(stamp),
                Err(error) => {
                    error!(error = chain(&error), "what was read before stays in force");
                    self.seen = Some(stamp);
                }
            }
        }
        self.tell_old(now);
        distrust
    }

    fn read(
        &self,
        config: &Config,
        shown: Option<(&[CertificateDer<'static>], UnixTime)>,
    ) -> Result<(Trust, Option<InWords>), TlsError> {
        let trust = Trust::read(config, Some(&self.current))?;
        let Some(([cert, rest @ ..], at)) = shown else { return Ok((trust, None)) };
        match trust.check_node(cert, rest, at) {
            Ok(()) => Ok((trust, None)),
            Err(source @ Error::InvalidCertRevocationList(_)) => {
                Err(TlsError::Forged { ca: config.ca.clone(), source })
            }
            Err(error) => Ok((trust, Some(InWords(error)))),
        }
    }

    /// A list that should have been replaced still counts.
    fn tell_old(&mut self, now: Duration) {
        let is_old = self.current.lists().due().is_some_and(|due| due < renew::now());
        if is_old && self.reminded.is_none_or(|at| at + REMIND <= now) {
            self.reminded = Some(now);
            warn!("a revocation list is older than it should be; what it revokes stays revoked");
        }
    }
}

fn stamp(path: &Path) -> Option<(u64, u64, u64, i64, i64)> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}
