//! A start without the database: with what a former life was told.

use super::*;
use crate::db::location::Place;

fn kept(routers: &[u8], saved_ms: u64) -> Event {
    Event::Kept(Kept { desired: desired(routers), elsewhere: [there()].into(), saved_ms })
}

/// The first vif of r2, on another node.
fn there() -> Place {
    Place { segment: name("lan"), mac: mac(2, 1) }
}

/// A core that knows only what was kept, in step with its switch.
fn without_database() -> Core {
    let mut core = core(1000);
    core.handle(Event::Ports(ports(&[1])));
    core.handle(SWITCH_UP());
    let mut effects = core.handle(kept(&[1, 2], 7));
    effects.extend(core.handle(Event::DumpEnd));
    confirm_all(&mut core, effects);
    assert!(core.is_in_step());
    core
}

#[test]
fn guests_come_and_their_routes_become_flows() {
    let mut core = without_database();
    assert_eq!(core.kept_ms(), Some(7));
    live(&mut core, 1);
    let (_, sent) = batch(&say(&mut core, 1, changes(3, [1, 2])));
    assert_eq!(sent.len(), 2, "a route is a flow: {sent:?}");
}

#[test]
fn what_the_database_then_says_changes_only_what_differs() {
    let mut core = without_database();
    live(&mut core, 1);
    assert_eq!(core.handle(Event::Desired(desired(&[1, 2]))), [], "the same");
    assert_eq!(core.kept_ms(), None);
    assert!(core.is_in_step());
    assert_eq!(
        core.handle(Event::Whereabouts(Whereabouts {
            elsewhere: [there()].into(),
            ..Whereabouts::default()
        })),
        [],
        "the same"
    );
    assert_eq!(core.app.topology().elsewhere.len(), 1);
    core.handle(Event::Whereabouts(Whereabouts::default()));
    assert!(core.app.topology().elsewhere.is_empty(), "nobody has it any more");
}

#[test]
fn what_was_kept_never_takes_the_place_of_what_the_database_says() {
    let mut core = ready();
    assert_eq!(core.handle(kept(&[1], 7)), []);
    assert_eq!(core.kept_ms(), None);
    assert_eq!(core.desired().unwrap().routers.len(), 2);
    // The locations had come before.
    let mut core = super::core(1000);
    core.handle(Event::Whereabouts(Whereabouts::default()));
    core.handle(Event::Ports(ports(&[1])));
    core.handle(kept(&[1, 2], 7));
    assert_eq!(core.kept_ms(), Some(7));
    assert!(core.app.topology().elsewhere.is_empty());
}

/// What others have comes just after what is wanted, and the switch holds flows for both.
#[test]
fn a_start_waits_a_moment_for_what_others_have() {
    let compares = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Dump(_)));
    let start = || {
        let mut core = super::core(1000).with_locations();
        core.handle(Event::Ports(ports(&[1])));
        core.handle(SWITCH_UP());
        // The database was away for long.
        core.handle(Event::Tick(Duration::from_secs(60)));
        assert!(!compares(&core.handle(Event::Desired(desired(&[1, 2])))));
        assert!(!core.is_in_step());
        core
    };
    let mut core = start();
    assert!(compares(
        &core.handle(Event::Whereabouts(Whereabouts {
            elsewhere: [there()].into(),
            ..Whereabouts::default()
        }))
    ));
    // Nobody says it.
    let mut core = start();
    assert!(!compares(&core.handle(Event::Tick(Duration::from_secs(62)))));
    assert!(!compares(&core.handle(Event::Desired(desired(&[1])))));
    assert!(compares(&core.handle(Event::Tick(Duration::from_secs(63)))));
}
