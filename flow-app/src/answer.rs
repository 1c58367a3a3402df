//! What a guest is told of its routes: which ones the host does not forward, and which it forwards again.
//!
//! **Who is rejected.** What becomes of a prefix in a routing table is one thing, so all routes of the prefix, of
//! whatever metric or type of service, have one answer. It is [`Answer::Rejected`] where the host never forwards as
//! the guest's tables say, for one of the reasons of [`Rejection`]: there is no room, flows cannot describe it, or the
//! switch refused them. It is [`Answer::Accepted`] in all other cases, among them
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
//! the mark ([`crate::App::take_answers`]). What the guest says of a route makes it another one: a rejection of that is
//! told with the mark behind it, never with an earlier one, and where the route was rejected before, it is told that it
//! is accepted, too, also when it is gone. So of several answers the last one counts. At the end of a snapshot all
//! rejections are told again, since a new session knows of none. **A guest may rely on it**: a rejection that it was told
//! in a session stands until it is told otherwise.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::mem;

use openflow::ErrorCode;
use xenflow_proto::table::RouteKey;

use crate::limit::Prefix;

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
    /// There is no number or are not enough buckets left for a group of its next hops ([`crate::App::with_max_buckets`]).
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
    /// The switch refused its flow, its group or the flow of a next hop, or has no room for it or for one that it stands
    /// in for (`crate::router::refused`).
    Switch(ErrorCode),
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Switch(error) => return write!(f, "the switch refused it: {error}"),
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

/// Answers, each with the number of the time that it was given. A mark that is reached again comes behind others that
/// know better, so of several answers the one with the highest number counts.
type Numbered = BTreeMap<RouteKey, (u64, Answer)>;

/// The answers of one router.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// Routes that the guest has and that are rejected, as far as the switch was told.
    rejected: BTreeMap<RouteKey, Rejection>,
    /// Routes that were rejected until the guest said something else of them, which has not been decided yet.
    revoked: BTreeSet<RouteKey>,
    /// What changed since the last mark, and a mark behind which it is to be told.
    untold: BTreeMap<RouteKey, (Answer, u64)>,
    /// What changed before each mark that was reached, in the order in which they were.
    marked: VecDeque<(u64, Numbered)>,
    /// Times that a mark was reached.
    reached: u64,
    /// Some mark was reached again since all were taken: it may say something older than those before it.
    is_mixed: bool,
    /// The last mark that was asked for.
    asked: u64,
}

impl Answers {
    /// The guest removes a route or says something else of it: what it was told counts no more.
    pub(crate) fn changed(&mut self, key: RouteKey) {
        if self.rejected.remove(&key).is_some() {
            self.untold.remove(&key);
            self.revoked.insert(key);
        }
    }

    /// All routes of a prefix are rejected, or none of them is. It is told with a mark that comes after that one.
    pub(crate) fn settle(
        &mut self,
        prefix: Prefix,
        routes: impl Iterator<Item = RouteKey>,
        why: Option<Rejection>,
        after: u64,
    ) {
        if let Some(why) = why {
            for key in routes {
                self.revoked.remove(&key);
                if self.rejected.insert(key, why) != Some(why) {
                    self.tell(key, Answer::Rejected(why), after);
                }
            }
        }
        if self.rejected.is_empty() && self.revoked.is_empty() {
            return;
        }
        let key = |tos, metric| RouteKey { table: prefix.table, dst: prefix.dst, tos, metric };
        let all = key(0, 0)..=key(u8::MAX, u32::MAX);
        let mut accepted: Vec<RouteKey> = self.revoked.extract_if(all.clone(), |_| true).collect();
        if why.is_none() {
            accepted.extend(self.rejected.extract_if(all, |_, _| true).map(|(key, _)| key));
        }
        for key in accepted {
            self.tell(key, Answer::Accepted, after);
        }
    }

    /// Exactly these are rejected. It is told with the last mark that was asked for, or after the one that comes with
    /// the route.
    pub(crate) fn replace(&mut self, rejected: BTreeMap<RouteKey, (Rejection, u64)>) {
        let before = mem::take(&mut self.rejected);
        let mut gone = mem::take(&mut self.revoked);
        gone.extend(before.keys());
        for (key, (why, after)) in rejected {
            gone.remove(&key);
            self.rejected.insert(key, why);
            if before.get(&key) != Some(&why) {
                self.tell(key, Answer::Rejected(why), after.max(self.before_last()));
            }
        }
        for key in gone {
            self.tell(key, Answer::Accepted, self.before_last());
        }
    }

    fn tell(&mut self, key: RouteKey, answer: Answer, after: u64) {
        let after = self.untold.get(&key).map_or(after, |(_, already)| after.max(*already));
        self.untold.insert(key, (answer, after));
    }

    /// The guest's session is a new one: all rejections are to be told. It may have been told of others since it
    /// resumed, whose end is to be told as well.
    pub(crate) fn retell(&mut self) {
        let ended = mem::take(&mut self.revoked).into_iter();
        let ended = ended.chain(mem::take(&mut self.untold).into_keys());
        let ended = ended.chain(self.marked.drain(..).flat_map(|(_, of_mark)| of_mark.into_keys()));
        self.untold = ended.map(|key| (key, (Answer::Accepted, 0))).collect();
        let rejected = self.rejected.iter();
        self.untold.extend(rejected.map(|(key, why)| (*key, (Answer::Rejected(*why), 0))));
    }

    /// A mark is asked for; tokens grow from 1.
    pub(crate) fn ask(&mut self, token: u64) {
        self.asked = self.asked.max(token);
    }

    /// The last mark that was asked for: what the guest says now is behind it.
    pub(crate) fn last(&self) -> u64 {
        self.asked
    }

    /// What is to be told after it is told with the last mark that was asked for.
    pub(crate) fn before_last(&self) -> u64 {
        self.asked.saturating_sub(1)
    }

    /// A mark is reached: what changed before is told with it, but for what is told later. Places have their turn
    /// once, however often they are touched, so it may be more than what was asked for before the mark.
    pub(crate) fn mark(&mut self, token: u64) {
        // One that was lost with the switch and asked for again says what it would have said, and not earlier.
        let lost = self.marked.iter().position(|(of, _)| *of == token);
        self.is_mixed = (self.is_mixed && !self.marked.is_empty()) || lost.is_some();
        let mut told = lost.and_then(|at| self.marked.remove(at)).map(|(_, told)| told).unwrap_or_default();
        self.reached += 1;
        let due = self.untold.extract_if(.., |_, (_, after)| *after < token);
        told.extend(due.map(|(key, (answer, _))| (key, (self.reached, answer))));
        // Without anything of its own it is told what stands before, whose mark nobody may ask for any more.
        if !told.is_empty() || !self.marked.is_empty() {
            self.marked.push_back((token, told));
        }
    }

    /// What is to be told now that the switch has confirmed a mark, with that of the marks before it.
    pub(crate) fn take(&mut self, token: u64) -> Vec<(RouteKey, Answer)> {
        let Some(last) = self.marked.iter().position(|(of, _)| *of == token) else { return Vec::new() };
        let mut answers: Numbered = BTreeMap::new();
        for (key, answer) in self.marked.drain(..=last).flat_map(|(_, of_mark)| of_mark) {
            let newest = answers.entry(key).or_insert(answer);
            *newest = answer.max(*newest);
        }
        if self.is_mixed {
            for (_, of_mark) in &mut self.marked {
                of_mark.retain(|key, answer| answers.get(key).is_none_or(|newest| newest < answer));
            }
        }
        answers.into_iter().map(|(key, (_, answer))| (key, answer)).collect()
    }

    /// Something changed that no mark was reached behind.
    pub(crate) fn is_untold(&self) -> bool {
        !self.untold.is_empty()
    }

    /// Why a route is rejected, if it is.
    pub(crate) fn rejection(&self, key: &RouteKey) -> Option<Rejection> {
        self.rejected.get(key).copied()
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

    fn settle_after(answers: &mut Answers, key: RouteKey, why: Option<Rejection>, after: u64) {
        let prefix = Prefix { table: key.table, dst: key.dst };
        answers.settle(prefix, [key].into_iter(), why, after);
    }

    fn settle(answers: &mut Answers, key: RouteKey, why: Option<Rejection>) {
        settle_after(answers, key, why, 0);
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
    fn what_the_guest_changes_is_decided_anew() {
        let mut answers = Answers::default();
        for net in [1, 2, 3] {
            settle(&mut answers, key(net, 0), FULL);
        }
        answers.mark(1);
        answers.take(1);
        for net in [1, 2, 3] {
            answers.changed(key(net, 0));
        }
        assert_eq!(answers.rejected().count(), 0);
        settle(&mut answers, key(1, 0), FULL);
        settle(&mut answers, key(2, 0), None);
        let gone = Prefix { table: TABLE_MAIN, dst: key(3, 0).dst };
        answers.settle(gone, [].into_iter(), None, 0);
        answers.mark(2);
        let accepted = |net| (key(net, 0), Answer::Accepted);
        assert_eq!(answers.take(2), [(key(1, 0), REJECTED), accepted(2), accepted(3)]);
    }

    #[test]
    fn what_the_guest_changed_after_it_asked_is_not_in_the_answer() {
        let mut answers = Answers::default();
        answers.ask(1);
        // The route's place has its turn before the mark, as something else had touched it.
        settle_after(&mut answers, key(1, 0), FULL, 1);
        settle_after(&mut answers, key(2, 0), FULL, 0);
        answers.mark(1);
        assert!(answers.is_untold());
        // Others may be in a hurry, it is not.
        settle_after(&mut answers, key(1, 0), Some(Rejection::Groups), 0);
        // The mark is lost on its way, and reached again.
        answers.ask(1);
        answers.mark(1);
        assert_eq!(answers.take(1), [(key(2, 0), REJECTED)]);
        answers.ask(2);
        answers.mark(2);
        assert_eq!(answers.take(2), [(key(1, 0), Answer::Rejected(Rejection::Groups))]);
    }

    #[test]
    fn marks_that_are_lost_and_asked_for_again_tell_what_they_would_have_told() {
        let mut answers = Answers::default();
        for net in [1, 2] {
            answers.ask(net.into());
            settle(&mut answers, key(net, 0), FULL);
            answers.mark(net.into());
        }
        // The switch was away, and both are reached again.
        settle(&mut answers, key(3, 0), FULL);
        answers.mark(1);
        answers.mark(2);
        assert_eq!(answers.take(1), [1, 3].map(|net| (key(net, 0), REJECTED)));
        assert_eq!(answers.take(2), [(key(2, 0), REJECTED)]);
        // Of a session that ended nobody takes the marks.
        settle(&mut answers, key(4, 0), FULL);
        answers.mark(4);
        answers.mark(5);
        assert_eq!(answers.take(5), [(key(4, 0), REJECTED)]);
    }

    #[test]
    fn of_several_answers_the_last_counts_also_where_an_older_mark_is_reached_again() {
        let mut answers = Answers::default();
        settle(&mut answers, key(1, 0), FULL);
        answers.mark(1);
        settle(&mut answers, key(1, 0), None);
        answers.mark(2);
        // The switch was away. Nobody asks for the second one any more: its session is over.
        answers.mark(1);
        assert_eq!(answers.take(1), [(key(1, 0), Answer::Accepted)]);
        // Or it had come through.
        settle(&mut answers, key(2, 0), FULL);
        answers.mark(3);
        settle(&mut answers, key(2, 0), None);
        answers.mark(4);
        answers.mark(3);
        assert_eq!(answers.take(4), [(key(2, 0), Answer::Accepted)]);
        assert_eq!(answers.take(3), [], "it was told something newer");
    }

    #[test]
    fn a_new_session_is_told_what_stands_and_what_has_ended_since_it_resumed() {
        let mut answers = Answers::default();
        for net in [1, 2, 3, 4] {
            settle(&mut answers, key(net, 0), FULL);
        }
        answers.mark(1);
        // That much it is told; of three it is not said yet that they are rejected no more.
        assert_eq!(answers.take(1).len(), 4);
        answers.changed(key(2, 0));
        settle(&mut answers, key(3, 0), None);
        answers.mark(2);
        settle(&mut answers, key(4, 0), None);
        answers.retell();
        assert_eq!(answers.take(2), [], "nothing before the end of the snapshot");
        answers.mark(3);
        let accepted = |net| (key(net, 0), Answer::Accepted);
        assert_eq!(answers.take(3), [(key(1, 0), REJECTED), accepted(2), accepted(3), accepted(4)]);
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
        answers.changed(key(5, 0));
        answers.replace(
            [(key(1, 0), (Rejection::Limit, 0)), (key(2, 0), (kind, 0)), (key(4, 0), (kind, 0))].into(),
        );
        answers.mark(2);
        let kind = Answer::Rejected(kind);
        assert_eq!(answers.take(2), [(key(2, 0), kind), (key(3, 0), Answer::Accepted), (key(4, 0), kind)]);
    }
}
