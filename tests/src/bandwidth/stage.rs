//! Senders on the site, and what they got beside what they should have.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::law::{self, Party};
use super::load::{Kind, Sender};
use super::site::{Contracts, LINK, SEATS, Site};
use super::witness::{LOOK, Witness};

/// Of the daemon's loop.
pub const PERIOD: Duration = Duration::from_secs(1);
/// What is steady for so long is divided by the law.
pub const SETTLE: Duration = Duration::from_secs(2);
/// Of its part, for a network that came back.
const ENOUGH: f64 = 0.95;

/// Senders of one protocol, and what they are promised and want now.
#[derive(Debug)]
pub struct Stage<'a> {
    site: &'a Site,
    witness: &'a Witness,
    kind: Kind,
    senders: &'a [Sender],
    contracts: Contracts,
    wants: [u64; SEATS],
}

/// What was divided, in bit/s.
#[derive(Debug)]
pub struct Division {
    /// By seat: what arrived.
    pub obtained: Vec<f64>,
    /// By seat: what should have.
    pub expected: Vec<f64>,
    /// What arrived in all.
    pub carried: f64,
}

impl Division {
    /// See [`law::fitness`].
    pub fn fitness(&self) -> Result<f64> {
        law::fitness(&self.obtained, &self.expected).context("nothing was to be had")
    }

    /// What each got and should have, of those who should have something.
    pub fn pairs(&self) -> Vec<(f64, f64)> {
        let pairs = self.obtained.iter().copied().zip(self.expected.iter().copied());
        pairs.filter(|(_, expected)| *expected > 0.0).collect()
    }
}

impl<'a> Stage<'a> {
    /// `senders` are those of [`Site::senders`], of this kind; `contracts` are those that stand. Nobody wants anything yet.
    pub fn new(
        site: &'a Site,
        witness: &'a Witness,
        kind: Kind,
        senders: &'a [Sender],
        contracts: Contracts,
    ) -> Result<Self> {
        witness.follow(senders.iter().map(Sender::sent).collect())?;
        Ok(Self { site, witness, kind, senders, contracts, wants: [0; SEATS] })
    }

    /// The protocol.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether networks may have classes here.
    #[must_use]
    pub fn has_classes(&self) -> bool {
        self.site.has_classes()
    }

    /// Makes these the contracts.
    pub fn contract(&mut self, contracts: Contracts) -> Result<()> {
        self.site.contract(&contracts)?;
        self.contracts = contracts;
        Ok(())
    }

    /// These want so much, the others nothing.
    pub fn want(&mut self, wants: &[(usize, u64)]) -> Result<()> {
        self.wants = [0; SEATS];
        for (seat, bps) in wants {
            self.wants[*seat] = *bps;
        }
        for (sender, bps) in self.senders.iter().zip(self.wants) {
            sender.check()?;
            sender.want(bps);
        }
        Ok(())
    }

    /// What they want; of UDP only what they really sent, or a slow machine would look like a wrong division.
    fn parties(&self, from: Instant, to: Instant) -> Result<Vec<Party>> {
        let demands = match self.kind {
            Kind::Tcp => self.wants.to_vec(),
            Kind::Udp => self.witness.sent(from, to)?.into_iter().map(|sent| sent as u64).collect(),
        };
        Ok(demands.into_iter().enumerate().map(|(seat, want)| self.contracts.party(seat, want)).collect())
    }

    /// What was divided between two instants.
    pub fn between(&self, from: Instant, to: Instant) -> Result<Division> {
        let mut obtained = self.witness.rates(self.kind, from, to)?;
        obtained.truncate(SEATS);
        let carried: f64 = obtained.iter().sum();
        // Where nobody shapes, what arrives is more than the link has to give.
        let expected = law::expected(carried.min(LINK as f64), &self.parties(from, to)?);
        Ok(Division { expected, obtained, carried })
    }

    /// As it goes after a while, for so long.
    pub fn steady(&self, time: Duration) -> Result<Division> {
        std::thread::sleep(SETTLE);
        let start = Instant::now();
        std::thread::sleep(time);
        self.between(start, Instant::now())
    }

    /// Periods from `start` on until one begins in which a sender gets nearly all of `rate`, within so long.
    pub fn after(&self, seat: usize, rate: f64, start: Instant, within: Duration) -> Result<f64> {
        let mut at = Duration::ZERO;
        while at + PERIOD <= within {
            if self.between(start + at, start + at + PERIOD)?.obtained[seat] >= ENOUGH * rate {
                break;
            }
            at += LOOK;
        }
        Ok(at.as_secs_f64() / PERIOD.as_secs_f64())
    }
}
