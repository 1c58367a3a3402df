//! Rows of migrations in a real `ovsdb-server`: what comes late, twice, or second is refused.

use dom0_server::db::location::{self, Located, Place};
use dom0_server::db::migration::{AbortError, CreateError, KEPT, Phase, Via, Wanted, forget};
use dom0_server::db::{DATABASE, Migration, edit, table};
use ovsdb::{Connection, OpResult, Operation, Options, Remote, Row};

use crate::support::Server;

pub struct Database(Connection);

impl Database {
    pub async fn of(server: &Server) -> Self {
        let remote = server.db().parse::<Remote>().unwrap();
        Self(Connection::open(&remote, &Options::default()).await.unwrap().0)
    }

    pub async fn rows(&self, table: &str) -> Vec<Row> {
        match self.0.transact(DATABASE, &[Operation::select(table)]).await.unwrap().swap_remove(0) {
            OpResult::Rows(rows) => rows,
            other => panic!("{other:?}"),
        }
    }

    pub async fn all(&self) -> Vec<Migration> {
        let rows = self.rows(table::MIGRATION).await;
        let mut all: Vec<_> = rows.iter().map(|row| Migration::parse(row).unwrap()).collect();
        all.sort_by_key(|row| row.number);
        all
    }

    pub async fn does(&self, operations: &[Operation]) -> bool {
        match self.0.transact(DATABASE, operations).await {
            Ok(_) => true,
            Err(error) => {
                assert!(edit::is_lost_race(&error), "{error}");
                false
            }
        }
    }
}

fn wanted(router: &str, from: &str, to: &str) -> Wanted {
    let name = |text: &str| text.parse().unwrap();
    Wanted {
        router: name(router),
        from: name(from),
        to: name(to),
        via: Via::Xl,
        move_limit_s: 600,
        phase: Phase::Staging,
    }
}

#[tokio::test]
async fn each_transaction_is_done_once_and_in_its_phase() {
    let server = Server::ready();
    let database = Database::of(&server).await;
    let place = Place { segment: "lan".parse().unwrap(), mac: "02:00:00:00:00:01".parse().unwrap() };
    assert!(database.does(&location::claim(&place, &"a".parse().unwrap(), 5)).await);

    let first = wanted("r1", "a", "b").create(&[], &[(place.clone(), 5)], 10).unwrap();
    let stale = wanted("r1", "a", "b").create(&[], &[(place.clone(), 4)], 10).unwrap();
    assert!(!database.does(&stale).await, "the generation is another");
    assert!(database.does(&first).await);
    assert!(!database.does(&first).await, "it is open already");
    let all = database.all().await;
    let refused = wanted("r1", "b", "c").create(&all, &[], 11).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "router r1 is on its way already: migration 1, from a to b, is staging; wait for it, or abort it"
    );
    let same = wanted("r2", "b", "b").create(&all, &[], 11);
    assert!(matches!(same, Err(CreateError::Same { .. })), "{same:?}");
    // Two routers may cross.
    assert!(database.does(&wanted("r2", "b", "a").create(&all, &[], 11).unwrap()).await);

    let [staging, _] = &database.all().await[..] else { panic!("two rows") };
    assert!(database.does(&staging.advance(Phase::Staged, 12)).await);
    assert!(!database.does(&staging.advance(Phase::Staged, 12)).await, "twice");
    assert!(!database.does(&staging.abort("late", 12)).await);
    let staged = &database.all().await[0];
    assert!(!staged.yielded);
    assert!(database.does(&staged.advance(Phase::Moving, 13)).await);
    let moving = database.all().await.swap_remove(0);
    assert!(moving.yielded && !moving.left);
    let by_hand = moving.abort_by_hand(14).unwrap();
    assert!(database.does(&moving.leaves()).await);
    assert!(!database.does(&by_hand).await, "the guest has left meanwhile");
    let left = database.all().await.swap_remove(0);
    let late = left.abort_by_hand(14).unwrap_err();
    assert_eq!(
        late.to_string(),
        "migration 1 is moving: router r1 has left a and runs on b; migrate it back once this is done"
    );
    assert!(database.does(&left.advance(Phase::Arrived, 14)).await);
    assert!(database.does(&database.all().await[0].advance(Phase::Verified, 15)).await);
    let verified = database.all().await.swap_remove(0);
    assert!(!database.does(&verified.announce([&place], 5, 16)).await, "somebody has that generation");
    assert!(database.does(&verified.announce([&place], 6, 16)).await);
    let located = Located::of_rows(&database.rows(table::LOCATION).await);
    assert_eq!(located.winner(&place).map(ToString::to_string).as_deref(), Some("b"));
    let announced = database.all().await.swap_remove(0);
    assert_eq!((announced.phase, announced.generation, announced.error.as_str()), (Phase::Announced, 6, ""));
    assert!(database.does(&announced.advance(Phase::Draining, 17)).await);
    assert!(database.does(&database.all().await[0].advance(Phase::Done, 18)).await);
    let [done, other] = &database.all().await[..] else { panic!("two rows") };
    let reached: Vec<_> = done.reached.iter().map(|(phase, at)| (phase.as_str(), *at)).collect();
    let expected = [
        ("announced", 16),
        ("arrived", 14),
        ("done", 18),
        ("draining", 17),
        ("moving", 13),
        ("staged", 12),
        ("staging", 10),
        ("verified", 15),
    ];
    assert_eq!(reached, expected);
    assert!(matches!(done.abort_by_hand(19), Err(AbortError::Over { .. })));

    // Back again, and aborted: the guest has not left.
    assert!(database.does(&other.abort_by_hand(20).unwrap()).await);
    let aborting = database.all().await.swap_remove(1);
    assert_eq!((aborting.phase, aborting.error.as_str()), (Phase::Aborting, "by the operator"));
    let back = wanted("r1", "b", "a").create(&database.all().await, &[(place, 6)], 21).unwrap();
    assert!(database.does(&back).await);
    assert_eq!(database.all().await.iter().map(|row| row.number).collect::<Vec<_>>(), [1, 2, 3]);
}

/// A node may remove only what it has taken part in, and whoever writes a row removes what is old: the newest are kept, and all that
/// are open.
#[tokio::test]
async fn old_rows_are_removed_by_whoever_makes_one() {
    let server = Server::ready();
    let database = Database::of(&server).await;
    let mut all = Vec::new();
    let kept = u64::try_from(KEPT).unwrap();
    for number in 1..=kept + 6 {
        let (from, to) = [("a", "b"), ("b", "c"), ("c", "d")][usize::try_from(number % 3).unwrap()];
        assert!(database.does(&wanted("r1", from, to).create(&all, &[], number).unwrap()).await);
        let row = database.all().await.pop().unwrap();
        // The oldest stays open.
        if number == 1 {
            let rename = Operation::update(table::MIGRATION).set("router", "r0");
            assert!(database.does(&[rename]).await);
        } else {
            assert!(database.does(&row.advance(Phase::Aborted, number)).await);
        }
        all = database.all().await;
    }
    let numbers = |all: &[Migration]| all.iter().map(|row| row.number).collect::<Vec<_>>();
    assert_eq!(all.len() as u64, kept + 6, "planned: whoever has the rights removes them apart");
    // Ended are 2 to 106, so 2 to 6 are too many; of node a are 3 and 6.
    let arrived = Wanted { via: Via::Other, phase: Phase::Arrived, ..wanted("r2", "b", "a") };
    assert!(database.does(&arrived.create(&all, &[], 1).unwrap()).await);
    all = database.all().await;
    assert_eq!(numbers(&all)[..5], [1, 2, 4, 5, 7]);
    assert_eq!(all.last().unwrap().number, kept + 7);
    assert!(database.does(&forget(&all, None)).await);
    all = database.all().await;
    assert_eq!(numbers(&all)[..3], [1, 7, 8]);
    assert_eq!(all.iter().filter(|row| row.phase.is_over()).count(), KEPT);
    assert_eq!(forget(&all, None), []);
}
