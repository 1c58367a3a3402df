//! The files of the listener, and what they make: whom to trust, whom not any more, and who the host is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, StoresServerSessions, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use time::OffsetDateTime;
use xenflow_proto::Identity;

use super::shown::Watching;
use super::{PeerIdentityError, Refusal, peer_identity};
use crate::pki::{self, FileError};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file without certificate.
    #[error("{path} holds no certificate in PEM")]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A file without key. Says nothing of the contents.
    #[error("{path} holds no private key in PEM")]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// A file without revocation list.
    #[error("{path} holds no revocation list in PEM")]
    NoList {
        /// The file.
        path: PathBuf,
    },
    /// A revocation list that is none, or that its authority did not sign.
    #[error("a revocation list in {path} cannot be used")]
    List {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// An authority's certificate cannot be a trust anchor.
    #[error("a certificate of ca is not that of an authority")]
    Authority(#[source] rustls::Error),
    /// The verifier could not be made.
    #[error("clients cannot be verified against the authority")]
    Verifier(#[from] VerifierBuilderError),
    /// Certificate and key are not a pair, or unusable.
    #[error("{cert} and {key} are no certificate and its key")]
    Pair {
        /// The file of the certificate.
        cert: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The host's own certificate names nobody.
    #[error("{path} is not of a node: 'xenflow pki issue node' makes one that is")]
    Own {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: PeerIdentityError,
    },
    /// The host's own certificate is of somebody else.
    #[error("{path} is of {identity}, not of a node: 'xenflow pki issue node' makes one that is")]
    NotNode {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        identity: Identity,
    },
}

/// Where everything is, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The authorities.
    pub ca: PathBuf,
    /// The host's certificate chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities' revocation lists; by default `crl.pem` beside `ca`, if it is there.
    pub crl: Option<PathBuf>,
}

/// What tells that a file is another one, of each.
pub(super) type Stamp = [Option<(u64, u64, u64, i64, i64)>; 4];

impl Files {
    fn lists(&self) -> PathBuf {
        self.crl.clone().unwrap_or_else(|| self.ca.with_file_name(pki::CRL))
    }

    pub(super) fn stamp(&self) -> Stamp {
        [&self.ca, &self.cert, &self.key, &self.lists()].map(|path| {
            let found = fs::metadata(path).ok()?;
            Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
        })
    }

    /// The lists; none if no file is named, `wanted` is false and there is none.
    pub(super) fn read_lists(&self, wanted: bool) -> Result<Lists, ConfigError> {
        let path = self.lists();
        if wanted || self.crl.is_some() || fs::symlink_metadata(&path).is_ok() {
            Lists::read(&path)
        } else {
            Ok(Lists::default())
        }
    }

    /// Reads them.
    pub fn load(&self) -> Result<Server, ConfigError> {
        self.load_after(None)
    }

    /// Reads them again. Lists that were there must be there: whoever is revoked stays so.
    pub(super) fn load_after(&self, before: Option<&Server>) -> Result<Server, ConfigError> {
        let anchors = certificates(&self.ca)?;
        let chain = certificates(&self.cert)?;
        let key = private_key(&self.key)?;
        let path = self.lists();
        let lists = self.read_lists(before.is_some_and(|server| !server.trust.lists.0.is_empty()))?;
        let trust = Trust::new(anchors, lists).map_err(|error| {
            if let ConfigError::Verifier(VerifierBuilderError::InvalidCrl(reason)) = error {
                ConfigError::List { path: path.clone(), source: reason.into() }
            } else {
                error
            }
        })?;
        let own = || self.cert.clone();
        let identity = peer_identity(&chain).map_err(|source| ConfigError::Own { path: own(), source })?;
        let Identity::Node(_) = identity else {
            return Err(ConfigError::NotNode { path: own(), identity });
        };
        match trust.verify(&chain, UnixTime::now()) {
            // Its signature is looked at when it is first needed, which would be a guest's handshake.
            Err(source @ rustls::Error::InvalidCertRevocationList(_)) => {
                return Err(ConfigError::List { path, source });
            }
            Err(rustls::Error::InvalidCertificate(rustls::CertificateError::Revoked)) => {
                tracing::warn!(cert = %self.cert.display(), "this host's own certificate was revoked");
            }
            // An authority need not let hosts be clients.
            Ok(()) | Err(_) => {}
        }
        let pair = |source| ConfigError::Pair { cert: own(), key: self.key.clone(), source };
        let provider = rustls::crypto::ring::default_provider();
        let shown = CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider).map_err(pair)?;
        let config = server_config(&trust, chain.clone(), key).map_err(pair)?;
        Ok(Server {
            config: Arc::new(config),
            identity,
            trust: Arc::new(trust),
            chain,
            shown: Arc::new(shown),
        })
    }
}

pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ConfigError> {
    PrivateKeyDer::from_pem_slice(&pki::read_bytes(path)?)
        .map_err(|_| ConfigError::NoKey { path: path.to_owned() })
}

pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pki::read_bytes(path)?).collect();
    let all = all.ok().filter(|all| !all.is_empty());
    all.ok_or_else(|| ConfigError::NoCertificate { path: path.to_owned() })
}

/// What the daemon needs to listen, and to connect to other nodes.
#[derive(Debug, Clone)]
pub struct Server {
    /// For [`super::accept`].
    pub config: Arc<ServerConfig>,
    /// Who the host's certificate says it is: always a node.
    pub identity: Identity,
    /// Whose certificates count.
    pub trust: Arc<Trust>,
    /// The host's own certificate chain.
    pub chain: Vec<CertificateDer<'static>>,
    /// It, with its key: what the host shows where it is the client.
    pub(super) shown: Arc<CertifiedKey>,
}

impl Server {
    /// When the host's own certificate ends, once no more than a third of its time is left.
    pub(super) fn ends_soon(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let (_, cert) = x509_parser::parse_x509_certificate(self.chain.first()?).ok()?;
        let validity = cert.validity();
        let (begin, end) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
        (end - now <= (end - begin) / 3).then_some(end)
    }
}

/// Revocation lists in DER.
#[derive(Debug, Clone, Default)]
pub struct Lists(pub Vec<CertificateRevocationListDer<'static>>);

impl Lists {
    /// Reads a file of at least one.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let all: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(&pki::read_bytes(path)?).collect();
        let all = all.ok().filter(|all| !all.is_empty());
        all.map(Self).ok_or_else(|| ConfigError::NoList { path: path.to_owned() })
    }

    /// When the first of them should have been replaced. They still count after that: a list that is old revokes what
    /// it revokes, and no guest should be cut off because nobody signed a newer one.
    #[must_use]
    pub fn due(&self) -> Option<OffsetDateTime> {
        let due = |list: &CertificateRevocationListDer<'_>| list_due(list);
        self.0.iter().filter_map(due).min()
    }
}

/// When a list, in DER, says that the next one will be there.
pub(super) fn list_due(list: &[u8]) -> Option<OffsetDateTime> {
    let (_, list) = x509_parser::parse_x509_crl(list).ok()?;
    list.next_update().map(|due| due.to_datetime())
}

/// Whose certificates count.
#[derive(Debug)]
pub struct Trust {
    verifier: Arc<dyn ClientCertVerifier>,
    roots: Arc<RootCertStore>,
    anchors: Vec<CertificateDer<'static>>,
    lists: Lists,
}

impl Trust {
    /// Of certificates of these authorities, but what these lists revoke. Whether an authority without a list has
    /// revoked anything is not known: its certificates count.
    pub fn new(anchors: Vec<CertificateDer<'static>>, lists: Lists) -> Result<Self, ConfigError> {
        let mut roots = RootCertStore::empty();
        for anchor in &anchors {
            roots.add(anchor.clone()).map_err(ConfigError::Authority)?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider)
            .with_crls(lists.0.iter().cloned())
            .allow_unknown_revocation_status()
            .build()?;
        let verifier = Arc::new(Watching(verifier));
        Ok(Self { verifier, roots, anchors, lists })
    }

    /// The authorities, in DER.
    #[must_use]
    pub fn anchors(&self) -> &[CertificateDer<'static>] {
        &self.anchors
    }

    /// The lists.
    #[must_use]
    pub const fn lists(&self) -> &Lists {
        &self.lists
    }

    /// Lists that are of none of the authorities, by the name of who signed them. That may be an authority below one of
    /// them, which only its guests show.
    #[must_use]
    pub fn idle_lists(&self) -> Vec<String> {
        let parsed = |der| x509_parser::parse_x509_certificate(der).ok().map(|(_, cert)| cert);
        let subjects: Vec<_> =
            self.anchors.iter().filter_map(|der| Some(parsed(der)?.subject().as_raw().to_vec())).collect();
        let lists = self.lists.0.iter().filter_map(|der| Some(x509_parser::parse_x509_crl(der).ok()?.1));
        let idle = lists.filter(|list| !subjects.iter().any(|subject| subject == list.issuer().as_raw()));
        idle.map(|list| list.issuer().to_string()).collect()
    }

    /// Whether a client with this chain would be let in at that time.
    pub fn check(&self, chain: &[CertificateDer<'_>], at: UnixTime) -> Result<(), Refusal> {
        self.verify(chain, at).map_err(Refusal::from_tls)
    }

    fn verify(&self, chain: &[CertificateDer<'_>], at: UnixTime) -> Result<(), rustls::Error> {
        let (first, rest) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verifier.verify_client_cert(first, rest, at).map(|_| ())
    }

    /// Whether whoever trusts the same authorities takes this chain for a host's at that time.
    pub fn check_host(&self, chain: &[CertificateDer<'_>], at: UnixTime) -> Result<(), Refusal> {
        self.chain_of_host(chain, at).map_err(Refusal::from_tls)
    }

    fn chain_of_host(&self, chain: &[CertificateDer<'_>], at: UnixTime) -> Result<(), rustls::Error> {
        let (first, rest) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(first)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, rest, at, algorithms)
    }

    /// Whether a node with this chain would be connected to at that time.
    pub fn check_node(&self, chain: &[CertificateDer<'_>], at: UnixTime) -> Result<(), Refusal> {
        self.verify_host(chain, at).map_err(Refusal::from_tls)
    }

    /// Whether this chain is a host's that was not revoked.
    pub(super) fn verify_host(
        &self,
        chain: &[CertificateDer<'_>],
        at: UnixTime,
    ) -> Result<(), rustls::Error> {
        self.chain_of_host(chain, at)?;
        match self.verify(chain, at) {
            Err(
                error @ (rustls::Error::InvalidCertificate(rustls::CertificateError::Revoked)
                | rustls::Error::InvalidCertRevocationList(_)),
            ) => Err(error),
            // An authority need not let hosts be clients.
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// The listener's configuration: TLS 1.3, a client certificate that counts, nothing ever resumed.
pub fn server_config(
    trust: &Trust,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(trust.verifier.clone())
        .with_single_cert(chain, key)?;
    config.session_storage = Arc::new(NoSessions);
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// Keeps no session, and says so when one is asked for.
#[derive(Debug)]
struct NoSessions;

impl StoresServerSessions for NoSessions {
    fn put(&self, _: Vec<u8>, _: Vec<u8>) -> bool {
        false
    }

    fn get(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    /// What it was issued with may have been revoked since.
    fn take(&self, _: &[u8]) -> Option<Vec<u8>> {
        tracing::debug!("it asks to resume a session: refused, its certificate is looked at again");
        None
    }

    fn can_cache(&self) -> bool {
        false
    }
}
