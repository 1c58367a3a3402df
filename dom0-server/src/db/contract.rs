//! Contracts: what a network or a class of its traffic is promised, and what it gets at most. Columns `min_bps` and
//! `max_bps`, and rates as the command line and descriptions write them.

use std::fmt;
use std::str::FromStr;

use ovsdb::{Atom, Datum, Row};

use super::RowError;

/// A rate in bit/s of Ethernet frames: 8 kbit/s to 1 Tbit/s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(u64);

impl Rate {
    /// Least.
    pub const MIN: u64 = 8_000;
    /// Greatest.
    pub const MAX: u64 = 1_000_000_000_000;

    /// In bit/s.
    #[must_use]
    pub const fn bps(self) -> u64 {
        self.0
    }

    pub(super) fn column(self) -> Atom {
        Atom::from(i64::try_from(self.0).unwrap_or(i64::MAX))
    }
}

/// Units of tc(8), longest first: powers of ten, of bits a second.
const UNITS: [(&str, u64); 5] =
    [("tbit", 1_000_000_000_000), ("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1000), ("bit", 1)];

impl TryFrom<i64> for Rate {
    type Error = RowError;

    fn try_from(value: i64) -> Result<Self, RowError> {
        let inside = u64::try_from(value).ok().filter(|rate| (Self::MIN..=Self::MAX).contains(rate));
        inside.map(Self).ok_or_else(|| RowError::Rate(value.to_string()))
    }
}

/// A whole number with a unit, as `20mbit`; without one it is bit/s.
impl FromStr for Rate {
    type Err = RowError;

    fn from_str(text: &str) -> Result<Self, RowError> {
        let refuse = || RowError::Rate(text.chars().take(40).collect());
        let lower = text.to_ascii_lowercase();
        let unit = UNITS.iter().find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?, *factor)));
        let (number, factor) = unit.unwrap_or((&lower, 1));
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 = number.parse().ok().filter(|_| is_number).ok_or_else(refuse)?;
        let rate = number.checked_mul(factor).and_then(|rate| i64::try_from(rate).ok()).ok_or_else(refuse)?;
        Self::try_from(rate).map_err(|_| refuse())
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bits(self.0))
    }
}

/// So many bit/s as [`Rate`] writes them, sums of rates among them: a whole number of the largest unit that fits.
#[must_use]
pub fn bits(bps: u64) -> String {
    let fits = UNITS.iter().find(|(_, factor)| bps.is_multiple_of(*factor) && bps > 0);
    let (unit, factor) = fits.copied().unwrap_or(("bit", 1));
    format!("{}{unit}", bps / factor)
}

/// Reads a rate, or `none`.
///
/// # Errors
/// [`RowError::Rate`] names the value and the rule.
pub fn rate_or_none(text: &str) -> Result<Option<Rate>, RowError> {
    if text == "none" { Ok(None) } else { text.parse().map(Some) }
}

/// What is promised, and the most there is; both may be left open. Never a maximum below its minimum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Contract {
    min: Option<Rate>,
    max: Option<Rate>,
}

impl Contract {
    /// Checks that the two go together.
    ///
    /// # Errors
    /// [`RowError::Contract`] if the maximum is below the minimum.
    pub fn new(min: Option<Rate>, max: Option<Rate>) -> Result<Self, RowError> {
        match (min, max) {
            (Some(min), Some(max)) if max < min => Err(RowError::Contract { min, max }),
            _ => Ok(Self { min, max }),
        }
    }

    /// What it gets whenever it wants as much.
    #[must_use]
    pub const fn min(&self) -> Option<Rate> {
        self.min
    }

    /// What it gets at most.
    #[must_use]
    pub const fn max(&self) -> Option<Rate> {
        self.max
    }

    /// Reads the columns of a row.
    ///
    /// # Errors
    /// [`RowError`] names the value and the rule.
    pub fn parse(row: &Row) -> Result<Self, RowError> {
        let rate = |column| row.opt_int(column)?.map(Rate::try_from).transpose();
        Self::new(rate("min_bps")?, rate("max_bps")?)
    }

    /// The columns that say this.
    #[must_use]
    pub fn columns(&self) -> [(&'static str, Datum); 2] {
        [
            ("min_bps", Datum::set(self.min.map(Rate::column))),
            ("max_bps", Datum::set(self.max.map(Rate::column))),
        ]
    }
}

/// A change of a contract; what it leaves out stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContractChange {
    min: Option<Option<Rate>>,
    max: Option<Option<Rate>>,
}

impl ContractChange {
    /// Reads the words of the command line: a rate or `none`.
    ///
    /// # Errors
    /// [`RowError::Rate`] names the value and the rule.
    pub fn parse(min: Option<&str>, max: Option<&str>) -> Result<Self, RowError> {
        Ok(Self { min: min.map(rate_or_none).transpose()?, max: max.map(rate_or_none).transpose()? })
    }

    /// It changes nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.min.is_none() && self.max.is_none()
    }

    /// The contract after the change.
    ///
    /// # Errors
    /// See [`Contract::new`].
    pub fn applied(&self, to: &Contract) -> Result<Contract, RowError> {
        Contract::new(self.min.unwrap_or(to.min), self.max.unwrap_or(to.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_whole_numbers_with_the_units_of_tc() {
        for (text, bps) in [
            ("8000", 8000),
            ("20mbit", 20_000_000),
            ("1500KBIT", 1_500_000),
            ("1tbit", 1_000_000_000_000),
            ("10gbit", 10_000_000_000),
            ("8000bit", 8000),
        ] {
            assert_eq!(text.parse().map(Rate::bps), Ok(bps), "{text}");
        }
        for text in
            ["", "mbit", "7999", "-1", "+9000", "1.5gbit", "2tbit", "20 mbit", "20mb", "99999999999999999999"]
        {
            let error = text.parse::<Rate>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("rate \"{text}\"")), "{error}");
        }
        for text in ["8kbit", "20mbit", "1500kbit", "8001bit", "10gbit", "1tbit"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_contract_never_has_its_maximum_below_its_minimum() {
        let change = |min, max| ContractChange::parse(min, max).unwrap();
        let both = change(Some("20mbit"), Some("80mbit")).applied(&Contract::default()).unwrap();
        assert_eq!(change(None, Some("none")).applied(&both).unwrap().min(), both.min());
        let error = change(None, Some("10mbit")).applied(&both).unwrap_err().to_string();
        assert_eq!(error, "max 10mbit is below min 20mbit");
        assert!(change(None, None).is_empty() && !change(Some("none"), None).is_empty());
    }
}
