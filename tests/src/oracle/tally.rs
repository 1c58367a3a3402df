//! What a comparison came to: counts, findings, and the next hops that share packets.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::dump::Opinion;
use super::kernel::Answer;
use super::plan::Plan;
use super::questions::Question;
use super::verdict::{Shares, TOO_BIG, Verdict};
use super::{Family, Prefix, bits};

/// Counts of one comparison.
#[derive(Debug, Default)]
pub struct Tally {
    /// Destinations asked about.
    pub asked: usize,
    /// Dropped as the kernel would.
    pub dropped: usize,
    /// Left to the guest.
    pub punted: usize,
    /// Left to the guest without a reason.
    pub unexplained: usize,
    /// Neither the kernel's way nor left to the guest.
    pub wrong: usize,
    /// Those of them that came out where they have no business.
    pub leaked: usize,
    /// Forwarded packets that would be left to the guest if they were larger.
    pub limited: usize,
    /// Destinations of which kernel and listed routes say different things.
    pub contradictions: usize,
    /// Destinations of which a FIB match says what is not so.
    pub misled: usize,
    /// Asked and forwarded, by family.
    pub families: BTreeMap<Family, (usize, usize)>,
    /// Asked and forwarded, by routing table.
    pub tables: BTreeMap<u32, (usize, usize)>,
    /// Punts by their reasons.
    pub reasons: BTreeMap<&'static str, usize>,
    /// One line each, the first ones.
    pub findings: Vec<String>,
    /// Prefixes by which the host forwards, with their tables.
    pub used: BTreeSet<(u32, Prefix)>,
    /// Forwarded where several neighbors share the packets.
    pub shared: usize,
    /// Neighbors that share packets, with a packet that they share.
    pub shares: BTreeMap<Shares, (Question, Opinion)>,
}

/// Findings that are written down.
const MAX_FINDINGS: usize = 200;

impl Tally {
    /// Forwarded by the host.
    pub fn forwarded(&self) -> usize {
        self.families.values().map(|(_, forwarded)| forwarded).sum()
    }

    /// Nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.wrong + self.unexplained + self.leaked + self.contradictions == 0
    }

    /// Takes in the verdicts on one packet, of several sizes, the smallest first.
    pub fn take(
        &mut self,
        question: &Question,
        opinion: Option<&Opinion>,
        verdicts: &[(u32, Verdict)],
        seen: &str,
    ) {
        let is_finding =
            |verdict: &Verdict| matches!(verdict, Verdict::PuntUnexplained | Verdict::Wrong { .. });
        let Some((_, small)) = verdicts.first() else { return };
        let worst = verdicts.iter().find(|(_, verdict)| is_finding(verdict));
        let verdict = worst.map_or(small, |(_, verdict)| verdict);
        self.asked += 1;
        self.limited += usize::from(verdicts.iter().any(|(_, it)| *it == Verdict::Punted(TOO_BIG)));
        let is_forwarded = usize::from(matches!(verdict, Verdict::Forwarded(_)));
        let family = self.families.entry(question.family()).or_default();
        let table = self.tables.entry(Plan::table(question.link)).or_default();
        for (asked, forwarded) in [family, table] {
            *asked += 1;
            *forwarded += is_forwarded;
        }
        match verdict {
            Verdict::Forwarded(_) => {
                if let Some(Opinion { answer: Answer::Forward(forward), .. }) = opinion {
                    let dst = bits(question.packet.dst);
                    let prefix = Prefix::new(question.family(), dst, forward.prefix_len);
                    self.used.insert((Plan::table(question.link), prefix));
                }
            }
            Verdict::Dropped => self.dropped += 1,
            Verdict::Punted(reason) => {
                self.punted += 1;
                *self.reasons.entry(reason).or_default() += 1;
            }
            Verdict::PuntUnexplained => {
                self.punted += 1;
                self.unexplained += 1;
            }
            Verdict::Wrong { is_leak } => {
                self.wrong += 1;
                self.leaked += usize::from(*is_leak);
            }
        }
        if let Some((size, verdict)) = worst {
            self.find(format!(
                "{verdict:?} at {size} bytes: {question:?}\n  kernel: {opinion:?}\n  switch: {seen}"
            ));
        }
    }

    /// Writes a finding down.
    pub fn find(&mut self, finding: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        }
    }

    /// As JSON.
    pub fn figures(&self) -> Value {
        let pair =
            |(asked, forwarded): &(usize, usize)| json!({ "destinations": asked, "forwarded": forwarded });
        let by_family: BTreeMap<String, Value> = self
            .families
            .iter()
            .map(|(family, it)| (format!("{family:?}").to_lowercase(), pair(it)))
            .collect();
        let red = self.tables.get(&super::plan::TABLE_RED).copied().unwrap_or_default();
        json!({
            "destinations": self.asked,
            "wrong": self.wrong,
            "punted": self.punted,
            "punted_unexplained": self.unexplained,
            "leaked": self.leaked,
            "forwarded": self.forwarded(),
            "dropped": self.dropped,
            "families": by_family,
            "vrf": pair(&red),
            "multipath": self.shared,
            "limited_by_mtu": self.limited,
            "oracle_contradictions": self.contradictions,
            "fib_match_misled": self.misled,
            "punt_reasons": self.reasons,
        })
    }
}
