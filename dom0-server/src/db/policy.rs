//! What the operator says of a router beside where it belongs: columns `fastpath`, `max_routes` and `punt_rate`.
//!
//! Owns their words, ranges and defaults; what they do is the flow app's business.

use std::collections::BTreeMap;

use ovsdb::{Atom, Datum, Row};
use xenflow_flow_app as flow_app;
pub use xenflow_flow_app::{FastPath, PuntClass};

use super::RowError;

/// Greatest `max_routes`.
pub const MAX_ROUTES: i64 = 1_000_000_000;
/// Greatest rate of a class, in packets/s.
pub const MAX_RATE: i64 = 10_000_000;

/// A router's policy as the database has it: what is not said is left to the defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouterPolicy {
    /// Whether the host forwards for it; none: [`FastPath::Auto`].
    pub fast_path: Option<FastPath>,
    /// Prefixes that the host forwards for it, at most.
    pub max_routes: Option<u32>,
    /// Packets/s that its guest gets at most, by class.
    pub punt_rates: BTreeMap<PuntClass, u32>,
}

const FAST_PATHS: [FastPath; 3] = [FastPath::Auto, FastPath::Always, FastPath::Never];

/// As the database and the command line write it.
#[must_use]
pub fn fast_path_str(policy: FastPath) -> &'static str {
    match policy {
        FastPath::Auto => "auto",
        FastPath::Always => "always",
        FastPath::Never => "never",
    }
}

/// Reads the word of a policy.
///
/// # Errors
/// [`RowError::FastPath`] names it.
pub fn parse_fast_path(text: &str) -> Result<FastPath, RowError> {
    let found = FAST_PATHS.into_iter().find(|policy| fast_path_str(*policy) == text);
    found.ok_or_else(|| RowError::FastPath(shown(text)))
}

/// Reads the word of a class.
///
/// # Errors
/// [`RowError::PuntClass`] names it.
pub fn parse_class(text: &str) -> Result<PuntClass, RowError> {
    let found = PuntClass::ALL.into_iter().find(|class| class.as_str() == text);
    found.ok_or_else(|| RowError::PuntClass(shown(text)))
}

fn max_routes(value: i64) -> Result<u32, RowError> {
    let inside = (1..=MAX_ROUTES).contains(&value).then_some(value).and_then(|n| u32::try_from(n).ok());
    inside.ok_or_else(|| RowError::MaxRoutes { value: value.to_string() })
}

fn rate(class: PuntClass, value: i64) -> Result<u32, RowError> {
    let inside = (1..=MAX_RATE).contains(&value).then_some(value).and_then(|n| u32::try_from(n).ok());
    inside.ok_or_else(|| RowError::PuntRate { class, value: value.to_string() })
}

/// Somebody else's words, in a message.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(40).map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl RouterPolicy {
    /// Reads the columns of a row of `Router`.
    ///
    /// # Errors
    /// [`RowError`] names the value and the rule.
    pub fn parse(row: &Row) -> Result<Self, RowError> {
        let mut policy = Self {
            fast_path: row.opt_str("fastpath")?.map(parse_fast_path).transpose()?,
            max_routes: row.opt_int("max_routes")?.map(max_routes).transpose()?,
            punt_rates: BTreeMap::new(),
        };
        for (class, value) in row.map_str_int("punt_rate")? {
            let class = parse_class(class)?;
            policy.punt_rates.insert(class, rate(class, value)?);
        }
        Ok(policy)
    }

    /// The columns that say this.
    #[must_use]
    pub fn columns(&self) -> [(&'static str, Datum); 3] {
        let fast_path = self.fast_path.map(|policy| Atom::from(fast_path_str(policy)));
        let max_routes = self.max_routes.map(|max| Atom::from(i64::from(max)));
        let rates = self.punt_rates.iter().map(|(class, rate)| (class.as_str(), i64::from(*rate)));
        [
            ("fastpath", Datum::set(fast_path)),
            ("max_routes", Datum::set(max_routes)),
            ("punt_rate", Datum::map(rates)),
        ]
    }

    /// With the defaults for what is not said.
    #[must_use]
    pub fn effective(&self) -> flow_app::Policy {
        let mut policy = flow_app::Policy::default();
        if let Some(fast_path) = self.fast_path {
            policy.fast_path = fast_path;
        }
        if let Some(max) = self.max_routes {
            policy.max_routes = max as usize;
        }
        let rates = &mut policy.punt_rates;
        for (class, rate) in &self.punt_rates {
            *match class {
                PuntClass::Routing => &mut rates.routing,
                PuntClass::Resolution => &mut rates.resolution,
                PuntClass::Host => &mut rates.host,
                PuntClass::Exception => &mut rates.exception,
                PuntClass::Transit => &mut rates.transit,
            } = *rate;
        }
        policy
    }
}

/// A change of a policy; what it leaves out stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyChange {
    /// A new policy of the fast path.
    pub fast_path: Option<FastPath>,
    /// A new limit; `Some(None)` is the default.
    pub max_routes: Option<Option<u32>>,
    /// New rates; `None` is the default.
    pub punt_rates: BTreeMap<PuntClass, Option<u32>>,
}

impl PolicyChange {
    /// Reads the words of the command line: a policy; a number or `default`; each `CLASS=PPS` or `CLASS=default`.
    ///
    /// # Errors
    /// [`RowError`] names the value and the rule.
    pub fn parse(fast_path: Option<&str>, routes: Option<&str>, rates: &[String]) -> Result<Self, RowError> {
        let mut change = Self { fast_path: fast_path.map(parse_fast_path).transpose()?, ..Self::default() };
        change.max_routes = match routes {
            None => None,
            Some("default") => Some(None),
            Some(text) => {
                let refuse = |_| RowError::MaxRoutes { value: shown(text) };
                Some(Some(max_routes(text.parse().map_err(refuse)?)?))
            }
        };
        for text in rates {
            let (class, value) = text.split_once('=').ok_or_else(|| RowError::PuntSyntax(shown(text)))?;
            let class = parse_class(class)?;
            let value = match value {
                "default" => None,
                value => {
                    let refuse = |_| RowError::PuntRate { class, value: shown(value) };
                    Some(rate(class, value.parse().map_err(refuse)?)?)
                }
            };
            if change.punt_rates.insert(class, value).is_some() {
                return Err(RowError::PuntTwice(class));
            }
        }
        Ok(change)
    }

    /// The policy after the change.
    #[must_use]
    pub fn applied(&self, policy: &RouterPolicy) -> RouterPolicy {
        let mut policy = policy.clone();
        if self.fast_path.is_some() {
            policy.fast_path = self.fast_path;
        }
        if let Some(max) = self.max_routes {
            policy.max_routes = max;
        }
        for (class, rate) in &self.punt_rates {
            match rate {
                Some(rate) => policy.punt_rates.insert(*class, *rate),
                None => policy.punt_rates.remove(class),
            };
        }
        policy
    }
}
