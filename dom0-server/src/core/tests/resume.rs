//! Sessions that go on from what the host holds.

use xenflow_proto::digest::{Digest, Keyed};

use super::*;

const BOOT: [u8; 16] = [7; 16];
const OTHER: [u8; 16] = [8; 16];

/// Opens a session of r1 by that boot of its guest; what it was offered comes back.
fn open_as(core: &mut Core, id: u64, boot_id: [u8; 16]) -> Option<Digest> {
    let hello = Hello { boot_id, ..hello("r1") };
    let event = Event::Opened(SessionId(id), Identity::Router(name("r1")), peer(1), hello);
    match core.handle(event).as_slice() {
        [.., Effect::Tell(_, HostMessage::Welcome(welcome))] => welcome.held,
        other => panic!("not welcomed: {other:?}"),
    }
}

fn digest(boot_id: [u8; 16], thirds: impl IntoIterator<Item = u8>) -> Digest {
    let (mut keyed, mut digest) = (Keyed::new(&boot_id), Digest::default());
    thirds.into_iter().for_each(|third| digest.add(keyed.hash(&route(third))));
    digest
}

fn resume(seq: u64) -> GuestMessage {
    GuestMessage::Resume(Seq(seq))
}

fn begin(seq: u64) -> GuestMessage {
    GuestMessage::SnapshotBegin(Seq(seq))
}

fn end(seq: u64) -> GuestMessage {
    GuestMessage::SnapshotEnd(Seq(seq))
}

/// A session of r1 that told these and is past end-of-RIB, and everything confirmed.
fn told(core: &mut Core, id: u64, thirds: impl IntoIterator<Item = u8>) {
    open_as(core, id, BOOT);
    for message in [begin(1), changes(2, thirds), end(3)] {
        let effects = say(core, id, message);
        confirm_all(core, effects);
    }
}

#[test]
fn a_resumed_session_sends_the_difference_and_disturbs_nothing() {
    let mut core = ready();
    told(&mut core, 1, 0..5);
    // A lost session withdraws nothing.
    assert_eq!(core.handle(Event::Closed(SessionId(1))), []);
    assert_eq!(open_as(&mut core, 2, BOOT), Some(digest(BOOT, 0..5)));
    assert_eq!(say(&mut core, 2, resume(1)), [ack(2, 1)]);
    let (id, sent) = batch(&say(&mut core, 2, changes(2, [9])));
    assert!(matches!(sent.as_slice(), [FlowChange::Upsert(_)]), "{sent:?}");
    let removal = GuestMessage::Changes { seq: Seq(3), changes: vec![Change::Remove(route(4).key())] };
    let (removed, sent) = batch(&say(&mut core, 2, removal));
    assert!(matches!(sent.as_slice(), [FlowChange::Remove(_)]), "{sent:?}");
    assert_eq!(say(&mut core, 2, end(4)), [], "behind what is under way");
    assert_eq!(core.handle(Event::Confirmed(id, TOOK)), [ack(2, 2)]);
    assert_eq!(core.handle(Event::Confirmed(removed, TOOK)), [ack(2, 4)]);
    assert!(core.app.router(RouterId(1)).unwrap().synced);
    assert_eq!(core.app.held(RouterId(1), &BOOT), Some(digest(BOOT, [0, 1, 2, 3, 9])));
    // It lives on as any other.
    let effects = say(&mut core, 2, changes(5, [10]));
    assert_eq!(confirm_all(&mut core, effects), [told_ack(2, 5)]);
}

#[test]
fn a_resumption_comes_first_and_once() {
    let broken = |said: Vec<GuestMessage>, detail: &str| {
        let mut core = ready();
        told(&mut core, 1, 0..5);
        assert!(open_as(&mut core, 2, BOOT).is_some());
        let last = said.into_iter().map(|message| say(&mut core, 2, message)).last().unwrap();
        assert_eq!(last, [Effect::Refuse(SessionId(2), RefusalReason::Protocol, detail.into())]);
        // What it had said before is taken for what it is: nothing is swept.
        assert_eq!(core.app.router(RouterId(1)).unwrap().rib.routes, 5);
    };
    broken(vec![resume(2)], "sequence number 2 after 0");
    broken(vec![resume(1), resume(2)], "message 2 is out of place: in a resumption");
    broken(vec![resume(1), begin(2)], "message 2 is out of place: in a resumption");
    broken(vec![begin(1), resume(2)], "message 2 is out of place: in a snapshot");
    broken(vec![resume(1), end(2), resume(3)], "message 3 is out of place: after the end of the snapshot");
}

#[test]
fn only_what_one_boot_has_said_is_offered_to_it() {
    let mut core = ready();
    assert_eq!(open_as(&mut core, 1, BOOT), None, "nothing is held");
    told(&mut core, 2, 0..5);
    let refusal = "nothing is held that could be resumed".to_owned();
    assert_eq!(open_as(&mut core, 3, OTHER), None, "of another boot");
    assert_eq!(
        say(&mut core, 3, resume(1)),
        [Effect::Refuse(SessionId(3), RefusalReason::Protocol, refusal)]
    );
    // A snapshot of the same boot that breaks off is recognized by the guest, or not.
    assert_eq!(open_as(&mut core, 4, BOOT), Some(digest(BOOT, 0..5)));
    say(&mut core, 4, begin(1));
    let effects = say(&mut core, 4, changes(2, [7]));
    confirm_all(&mut core, effects);
    assert_eq!(open_as(&mut core, 5, BOOT), Some(digest(BOOT, [0, 1, 2, 3, 4, 7])));
    // One of another boot leaves tables of both.
    open_as(&mut core, 6, OTHER);
    say(&mut core, 6, begin(1));
    let effects = say(&mut core, 6, changes(2, [1, 8]));
    confirm_all(&mut core, effects);
    assert_eq!(open_as(&mut core, 7, OTHER), None);
    assert_eq!(open_as(&mut core, 8, BOOT), None);
    // Its end makes them those of one.
    open_as(&mut core, 9, OTHER);
    for message in [begin(1), changes(2, [1, 8]), end(3)] {
        let effects = say(&mut core, 9, message);
        confirm_all(&mut core, effects);
    }
    assert_eq!(open_as(&mut core, 10, OTHER), Some(digest(OTHER, [1, 8])));
}

#[test]
fn a_first_snapshot_that_broke_off_may_be_finished_by_a_resumption() {
    let mut core = ready();
    open_as(&mut core, 1, BOOT);
    say(&mut core, 1, begin(1));
    say(&mut core, 1, changes(2, 0..5));
    assert_eq!(open_as(&mut core, 2, BOOT), Some(digest(BOOT, 0..5)));
    // Nothing of it is for the switch yet, so nothing waits for it: however long the rest is.
    assert_eq!(say(&mut core, 2, resume(1)), [ack(2, 1)]);
    for seq in 2..2 + 2 * u64::from(WINDOW) {
        assert_eq!(say(&mut core, 2, changes(seq, [u8::try_from(seq % 250).unwrap()])), [ack(2, seq)]);
    }
    let last = 2 + 2 * u64::from(WINDOW);
    let effects = say(&mut core, 2, end(last));
    assert!(matches!(effects.as_slice(), [Effect::Dump(_)]), "{effects:?}");
    assert_eq!(confirm_all(&mut core, effects), [told_ack(2, last)]);
    let status = core.app.router(RouterId(1)).unwrap();
    assert_eq!((status.synced, status.rib.routes), (true, 250));
}

#[test]
fn a_router_that_lost_its_vifs_has_nothing_to_resume() {
    let mut core = ready();
    told(&mut core, 1, 0..5);
    let mut bare = desired(&[1, 2]);
    bare.vifs.retain(|_, vif| vif.router != name("r1"));
    for wanted in [bare, desired(&[1, 2])] {
        core.handle(Event::Desired(wanted));
    }
    assert_eq!(open_as(&mut core, 2, BOOT), None);
}
