//! What a guest is told of its routes: which ones the host does not forward, and which it forwards again.
//!
//! **Who is rejected.** What becomes of a prefix in a routing table is one thing, so all routes of the prefix, of
//! whatever metric or type of service, have one answer. It is [`Answer::Rejected`] where the host never forwards as
//! the guest's tables say, for one of the reasons of [`Rejection`]: there is no room, or flows cannot describe it. It is
//! [`Answer::Accepted`] in all other cases, among them
//!
//! * what the guest gets by design: its own addresses, unreachable and prohibited destinations, groups;
//! * blackholes within the limit, which the host drops by itself;
//! * what waits for something: a neighbor or a next-hop object that is not known yet, a vif that is not plugged in or
//!   has no carrier, the end of a snapshot. It passes, and a route that is withdrawn meanwhile would do harm;
//! * on-link prefixes behind links that are no vifs: the guest's own networks, as its loopbacks, its management network
//!   or the inside of a tunnel. A *gateway* behind such a link is where others' packets go, so that is rejected;
//! * routes that nothing is looked up by (all hops dead, a table that no vif uses);
//! * everything, while the router as a whole, a vif or a family takes the slow path: that is shown as
//!   [`crate::fast_path::Slow`], and no single route is to blame.
//!
//! **When.** An answer is told when the switch has confirmed what it says: the transitions up to a mark are taken with
//! the mark ([`crate::App::take_answers`]). A rejection stands until the route is accepted, or until the guest removes
//! the route or says something else of it: then it is rejected anew, or accepted without a word, by the mark behind
//! that change. At the end of a snapshot all rejections are told again, since a new session knows of none.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::mem;

use xenflow_proto::table::RouteKey;

/// Of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    /// The host forwards by it as far as it is concerned.
    Accepted,
    /// The guest forwards by it itself, and why.
    Rejected(Rejection),
}

/// Why the host does not forward by a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rejection {
    /// Its prefix is beyond the limit of the router, or stands in for one that is ([`crate::limit`]).
    Limit,
    /// There is no number left for a group of its next hops.
    Groups,
    /// One of the prefix's routes is for a type of service.
    TypeOfService,
    /// It leaves encapsulated.
    Encapsulation,
    /// Its gateway is behind an interface that is no vif.
    Interface,
    /// Its next hops are of a kind that flows cannot describe: an object of another kind, destinations on a link among
    /// several hops, an IPv4 gateway of IPv6 packets.
    NextHop,
    /// It is of a kind that sends the lookup elsewhere (throw), or of one unknown here.
    Kind,
    /// Its MTU is more than the switch compares with.
    Mtu,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Limit => "over the limit of routes that the host forwards",
            Self::Groups => "more sets of next hops than the host has groups",
            Self::TypeOfService => "there are routes by type of service",
            Self::Encapsulation => "encapsulated",
            Self::Interface => "by an interface that is no vif of the host",
            Self::NextHop => "its next hops cannot be described to the switch",
            Self::Kind => "of a kind that the host does not look up",
            Self::Mtu => "its MTU is more than the switch can compare",
        })
    }
}

/// The answers of one router.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// Routes that the guest has and that are rejected, as far as the switch was told.
    rejected: BTreeMap<RouteKey, Rejection>,
    /// What changed since the last mark.
    untold: BTreeMap<RouteKey, Answer>,
    /// What changed before each mark, the oldest first.
    marked: VecDeque<(u64, BTreeMap<RouteKey, Answer>)>,
    /// The last mark that was asked for, and the last one that was taken: equal, if none is awaited.
    asked: u64,
    taken: u64,
    /// Routes that the guest changed while marks were awaited, with the last mark before that: what is told with it or
    /// with an earlier one the guest takes for an answer to what the route was.
    changed: BTreeMap<RouteKey, u64>,
}

impl Answers {
    /// The guest removes a route or says something else of it: what it was told counts no more.
    pub(crate) fn changed(&mut self, key: RouteKey) {
        self.rejected.remove(&key);
        self.untold.remove(&key);
        if self.asked > self.taken {
            self.changed.insert(key, self.asked);
        }
    }

    /// The routes of a prefix are rejected, or none of them is.
    pub(crate) fn settle(&mut self, routes: impl Iterator<Item = RouteKey>, why: Option<Rejection>) {
        if why.is_none() && self.rejected.is_empty() {
            return;
        }
        for key in routes {
            let before = match why {
                Some(why) => self.rejected.insert(key, why),
                None => self.rejected.remove(&key),
            };
            if before != why {
                self.untold.insert(key, why.map_or(Answer::Accepted, Answer::Rejected));
            }
        }
    }

    /// Exactly these are rejected.
    pub(crate) fn replace(&mut self, rejected: BTreeMap<RouteKey, Rejection>) {
        let before = mem::replace(&mut self.rejected, rejected);
        let new = self.rejected.iter().filter(|(key, why)| before.get(key) != Some(why));
        self.untold.extend(new.map(|(key, why)| (*key, Answer::Rejected(*why))));
        let gone = before.into_keys().filter(|key| !self.rejected.contains_key(key));
        self.untold.extend(gone.map(|key| (key, Answer::Accepted)));
    }

    /// Another session begins: marks of the one before are awaited by nobody.
    pub(crate) fn restart(&mut self) {
        self.taken = self.asked;
        self.changed.clear();
    }

    /// The guest knows of no rejection: all are to be told, and nothing that was to be told before.
    pub(crate) fn retell(&mut self) {
        self.restart();
        self.marked.clear();
        self.untold = self.rejected.iter().map(|(key, why)| (*key, Answer::Rejected(*why))).collect();
    }

    /// A mark is asked for.
    pub(crate) fn ask(&mut self, token: u64) {
        self.asked = self.asked.max(token);
    }

    /// A mark is reached: what changed before is told with it. Places have their turn once, however often they are
    /// touched, so it may be more than what was asked for before the mark.
    pub(crate) fn mark(&mut self, token: u64) {
        let is_before = |key: &RouteKey| self.changed.get(key).is_none_or(|at| *at < token);
        let told: BTreeMap<RouteKey, Answer> = self.untold.extract_if(.., |key, _| is_before(key)).collect();
        // Without anything of its own it is told what stands before, whose mark nobody may ask for any more.
        if !told.is_empty() || !self.marked.is_empty() {
            self.marked.push_back((token, told));
        }
    }

    /// What is to be told now that the switch has confirmed a mark, with that of the marks before it.
    pub(crate) fn take(&mut self, token: u64) -> Vec<(RouteKey, Answer)> {
        self.taken = self.taken.max(token);
        self.changed.retain(|_, at| *at >= token);
        // One that was asked for again stands there twice, and the switch has confirmed both.
        let Some(last) = self.marked.iter().rposition(|(of, _)| *of == token) else { return Vec::new() };
        let mut answers = BTreeMap::new();
        for (_, of_mark) in self.marked.drain(..=last) {
            answers.extend(of_mark);
        }
        answers.into_iter().collect()
    }

    /// Something changed that no mark was reached behind.
    pub(crate) fn is_untold(&self) -> bool {
        !self.untold.is_empty()
    }

    /// All that are rejected.
    pub(crate) fn rejected(&self) -> impl Iterator<Item = (RouteKey, Rejection)> {
        self.rejected.iter().map(|(key, why)| (*key, *why))
    }
}

#[cfg(test)]
mod tests {
    use xenflow_proto::table::TABLE_MAIN;

    use super::*;

    fn key(net: u8, metric: u32) -> RouteKey {
        RouteKey { table: TABLE_MAIN, dst: format!("10.{net}.0.0/16").parse().unwrap(), tos: 0, metric }
    }

    const FULL: Option<Rejection> = Some(Rejection::Limit);
    const REJECTED: Answer = Answer::Rejected(Rejection::Limit);

    fn settle(answers: &mut Answers, key: RouteKey, why: Option<Rejection>) {
        answers.settle([key].into_iter(), why);
    }

    #[test]
    fn only_transitions_are_told_and_each_behind_its_mark() {
        let mut answers = Answers::default();
        settle(&mut answers, key(1, 0), None);
        answers.mark(1);
        assert!(!answers.is_untold());
        assert_eq!(answers.take(1), []);
        settle(&mut answers, key(1, 0), FULL);
        assert!(answers.is_untold());
        answers.mark(2);
        settle(&mut answers, key(1, 0), FULL);
        settle(&mut answers, key(2, 0), FULL);
        answers.mark(3);
        assert_eq!(answers.take(2), [(key(1, 0), REJECTED)], "the other one is not confirmed yet");
        settle(&mut answers, key(1, 0), None);
        answers.mark(4);
        assert_eq!(answers.take(4), [(key(1, 0), Answer::Accepted), (key(2, 0), REJECTED)]);
        assert_eq!(answers.take(3), [], "told already");
        assert_eq!(answers.rejected().collect::<Vec<_>>(), [(key(2, 0), Rejection::Limit)]);
    }

    #[test]
    fn another_reason_is_told_and_of_two_changes_the_last() {
        let mut answers = Answers::default();
        settle(&mut answers, key(1, 0), FULL);
        settle(&mut answers, key(1, 0), Some(Rejection::Encapsulation));
        answers.mark(1);
        settle(&mut answers, key(1, 0), None);
        answers.mark(2);
        assert_eq!(answers.take(2), [(key(1, 0), Answer::Accepted)]);
    }

    #[test]
    fn what_the_guest_changes_is_rejected_anew() {
        let mut answers = Answers::default();
        settle(&mut answers, key(1, 0), FULL);
        answers.mark(1);
        assert_eq!(answers.take(1), [(key(1, 0), REJECTED)]);
        answers.changed(key(1, 0));
        assert!(!answers.is_untold());
        settle(&mut answers, key(1, 0), FULL);
        answers.mark(2);
        assert_eq!(answers.take(2), [(key(1, 0), REJECTED)]);
        // Nor is it told what was to be told of one that it has removed.
        settle(&mut answers, key(2, 0), FULL);
        answers.changed(key(2, 0));
        assert!(!answers.is_untold());
    }

    #[test]
    fn what_the_guest_changed_after_it_asked_is_not_in_the_answer() {
        let mut answers = Answers::default();
        answers.ask(1);
        // The route's place has its turn before the mark, as something else had touched it.
        answers.changed(key(1, 0));
        settle(&mut answers, key(1, 0), FULL);
        settle(&mut answers, key(2, 0), FULL);
        answers.mark(1);
        assert!(answers.is_untold());
        // The mark is lost on its way, and reached again.
        answers.ask(1);
        answers.mark(1);
        assert_eq!(answers.take(1), [(key(2, 0), REJECTED)]);
        answers.ask(2);
        answers.mark(2);
        assert_eq!(answers.take(2), [(key(1, 0), REJECTED)]);
        assert_eq!((answers.changed.len(), answers.asked), (0, answers.taken));
        answers.changed(key(3, 0));
        assert_eq!(answers.changed.len(), 0, "nothing is awaited");
    }

    #[test]
    fn a_mark_that_is_lost_and_asked_for_again_tells_all_of_it() {
        let mut answers = Answers::default();
        settle(&mut answers, key(1, 0), FULL);
        answers.mark(1);
        settle(&mut answers, key(2, 0), FULL);
        answers.mark(2);
        // The switch was away, and both are reached again.
        settle(&mut answers, key(3, 0), FULL);
        answers.mark(1);
        answers.mark(2);
        answers.mark(3);
        let all = [1, 2, 3].map(|net| (key(net, 0), REJECTED));
        assert_eq!(answers.take(1), all);
        assert_eq!(answers.take(2), []);
        // Of a session that ended nobody takes the marks.
        settle(&mut answers, key(4, 0), FULL);
        answers.mark(4);
        answers.mark(5);
        assert_eq!(answers.take(5), [(key(4, 0), REJECTED)]);
    }

    #[test]
    fn a_new_session_is_told_what_stands_and_nothing_else() {
        let mut answers = Answers::default();
        settle(&mut answers, key(1, 0), FULL);
        settle(&mut answers, key(2, 0), FULL);
        answers.mark(1);
        settle(&mut answers, key(2, 0), None);
        answers.retell();
        assert_eq!(answers.take(1), [], "that was for somebody else");
        answers.mark(2);
        assert_eq!(answers.take(2), [(key(1, 0), REJECTED)]);
    }

    #[test]
    fn a_replacement_is_told_as_the_difference() {
        let mut answers = Answers::default();
        for net in [1, 2, 3] {
            settle(&mut answers, key(net, 0), FULL);
        }
        answers.mark(1);
        answers.take(1);
        let kind = Rejection::Kind;
        answers.replace([(key(1, 0), Rejection::Limit), (key(2, 0), kind), (key(4, 0), kind)].into());
        answers.mark(2);
        let kind = Answer::Rejected(kind);
        assert_eq!(answers.take(2), [(key(2, 0), kind), (key(3, 0), Answer::Accepted), (key(4, 0), kind)]);
    }
}
