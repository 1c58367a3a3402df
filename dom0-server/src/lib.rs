//! The host daemon xenflow-dom0 and the operator's command xenflow.

pub mod db;
pub mod pki;
pub mod tls;
