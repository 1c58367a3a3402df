//! The flow of a prefix: what its verdict becomes under the router's limit, its groups and what the switch refuses.

use openflow::{ErrorCode, Group};
use xenflow_proto::table::RouteKey;

use super::refused::Refused;
use crate::answer::Rejection;
use crate::fib::{Ruling, Verdict};
use crate::group::Groups;
use crate::limit::{Class, Prefix};
use crate::punt::PuntClass;
use crate::rib::Rib;
use crate::table::Outcome;
use crate::topology::RouterId;

/// What is left of a verdict at its place within the limit.
fn limited(class: Class, verdict: Option<Verdict>) -> Option<Verdict> {
    match class {
        Class::Forward if verdict.is_some() => verdict,
        // One that is wanted no more goes when its own turn comes.
        Class::Forward | Class::Punt => Some(Verdict::Punt(PuntClass::Transit)),
        Class::Absent => None,
    }
}

/// What becomes of a prefix.
pub(super) struct RouteFlow {
    /// The group that comes before its flow.
    pub(super) add: Option<Group>,
    /// What a flow of it does; none: it has none.
    pub(super) outcome: Option<Outcome>,
    /// The group that goes after it.
    pub(super) remove: Option<u32>,
    /// Why the host does not forward by it, where it does not.
    pub(super) rejection: Option<Rejection>,
}

/// What becomes of a prefix at its place within the limit.
pub(super) fn route_flow(
    router: RouterId,
    groups: &mut Groups,
    refused: &Refused,
    prefix: Prefix,
    class: Class,
    ruling: Option<Ruling>,
) -> RouteFlow {
    let (verdict, rejection) = match ruling {
        Some(Ruling { verdict, rejection }) => match refused.by(&verdict) {
            Some(why) => (Some(Verdict::Punt(PuntClass::Transit)), Some(Rejection::Switch(why))),
            None => (Some(verdict), rejection),
        },
        None => (None, None),
    };
    // What the guest gets anyway loses nothing by the limit.
    let is_forwarded = verdict.as_ref().is_some_and(|verdict| !matches!(verdict, Verdict::Punt(_)));
    let verdict = limited(class, verdict);
    let shared = match &verdict {
        Some(Verdict::OneOf(hops, _)) => Some(hops),
        Some(Verdict::Via(_) | Verdict::Punt(_) | Verdict::Drop) | None => None,
    };
    let assigned = groups.assign(prefix, shared);
    let rejection = match class {
        Class::Punt | Class::Absent if is_forwarded => Some(match refused.room() {
            Some(_) => Rejection::Switch(ErrorCode::TABLE_FULL),
            None => Rejection::Limit,
        }),
        Class::Forward if shared.is_some() && assigned.id.is_none() => Some(Rejection::Groups),
        Class::Forward | Class::Punt | Class::Absent => rejection,
    };
    let outcome = verdict.map(|verdict| match verdict {
        Verdict::Via(hop) => Outcome::Via(hop),
        // Or no number was left for it.
        Verdict::OneOf(_, mtu) => {
            assigned.id.map_or(Outcome::Punt(PuntClass::Transit), |group| Outcome::Group(group, mtu))
        }
        Verdict::Punt(class) => Outcome::Punt(class),
        Verdict::Drop => Outcome::Drop,
    });
    let (outcome, rejection) = match outcome.and_then(|outcome| refused.why(router, prefix, outcome)) {
        Some(why) => (Some(Outcome::Punt(PuntClass::Transit)), Some(Rejection::Switch(why))),
        None => (outcome, rejection),
    };
    RouteFlow { add: assigned.add, outcome, remove: assigned.remove, rejection }
}

/// The guest's routes of a prefix.
pub(super) fn routes_of(rib: &Rib, Prefix { table, dst }: Prefix) -> impl Iterator<Item = RouteKey> {
    rib.candidates(table, dst).map(|route| route.key)
}
