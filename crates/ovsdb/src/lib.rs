//! OVSDB (RFC 7047) client: transactions and monitors.
