//! What changes of certificates do to sessions.

use xenflow_proto::message::Renewed;

use super::*;
use crate::pki::{Reason, Store, Which};

impl Host {
    /// One that renews certificates.
    async fn that_issues(name: &str) -> Self {
        let mut host = Self::start(name, 0).await;
        let at = |name| host.dir.join(name);
        let files = tls::Files { ca: at("ca.pem"), cert: at("a.pem"), key: at("a.key"), crl: None };
        let server = files.load().unwrap();
        let access = tls::Access::new(tls::follow(files, server, None), Some(host.dir.clone()));
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let (listener, other) = (bind().await.unwrap(), bind().await.unwrap());
        host.addr = listener.local_addr().unwrap();
        let (events, inbox) = mpsc::channel(256);
        host.inbox = inbox;
        let sessions = host.sessions.clone();
        tokio::spawn(async move { serve_all(&other, &listener, access, sessions, events).await });
        host
    }

    fn store(&self) -> Store {
        Store::open(&self.dir).unwrap()
    }
}

#[tokio::test]
async fn a_revoked_guest_is_sent_away_and_another_is_not() {
    let mut host = Host::that_issues("revoked").await;
    let mut guest = host.connect("r1").await;
    let gone = host.opened().await;
    let mut other = host.connect("r2").await;
    let stays = host.opened().await;
    let r1 = Which::Identity("xenflow://router/r1".parse().unwrap());
    host.store().revoke(&r1, Reason::KeyCompromise, OffsetDateTime::now_utc()).unwrap();
    let detail = "xenflow://router/r1 is trusted no more: its certificate was revoked".to_owned();
    assert_eq!(guest.hear().await, HostMessage::Refusal { reason: RefusalReason::Identity, detail });
    assert!(matches!(host.next().await, Event::Closed(id) if id == gone));
    host.sessions.tell(stays, answers(1, 0));
    assert!(matches!(other.hear().await, HostMessage::Ack { .. }));
}

#[tokio::test]
async fn a_guest_that_asks_gets_a_certificate_and_the_core_hears_nothing_of_it() {
    let mut host = Host::that_issues("renewed").await;
    let mut guest = host.connect("r1").await;
    host.opened().await;
    guest.say(&GuestMessage::Renew).await;
    let HostMessage::Renewed(Renewed { chain, anchors }) = guest.hear().await else {
        panic!("no certificate")
    };
    let identity = tls::certificate_identity(chain.first().unwrap()).unwrap();
    assert_eq!(identity.to_string(), "xenflow://router/r1");
    assert_eq!(anchors.len(), 1);
    let last = host.store().records().last().unwrap().clone();
    assert_eq!(last.identity, Some(identity));
    // The session goes on.
    guest.changes(1, 1).await;
    assert_eq!(host.said().await, 1);
}
