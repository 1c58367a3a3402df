//! What a check says.

use serde::Serialize;

use crate::color::Color;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// It works, and may not for long, or less than it could; or it cannot be known.
    Warn,
    /// It does not work.
    Fail,
}

impl Level {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }

    pub(super) const fn color(self) -> Color {
        match self {
            Self::Ok => Color::Good,
            Self::Warn => Color::Doubtful,
            Self::Fail => Color::Bad,
        }
    }
}

/// What a check came to. May hold words of guests: printed only after `printable`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// Name of the check.
    pub(super) check: &'static str,
    pub(super) level: Level,
    /// What was seen.
    pub(super) seen: String,
    /// What to do; nothing if all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) todo: Option<String>,
}

pub(super) fn ok(check: &'static str, seen: impl Into<String>) -> Finding {
    Finding { check, level: Level::Ok, seen: seen.into(), todo: None }
}

pub(super) fn warn(check: &'static str, seen: impl Into<String>, todo: impl Into<String>) -> Finding {
    Finding { check, level: Level::Warn, seen: seen.into(), todo: Some(todo.into()) }
}

pub(super) fn fail(check: &'static str, seen: impl Into<String>, todo: impl Into<String>) -> Finding {
    Finding { check, level: Level::Fail, seen: seen.into(), todo: Some(todo.into()) }
}

/// What is wrong, or one line that nothing is.
pub(super) fn or_ok(wrong: Vec<Finding>, check: &'static str, seen: impl Into<String>) -> Vec<Finding> {
    if wrong.is_empty() { vec![ok(check, seen)] } else { wrong }
}

/// A few of many, for a line.
pub(super) fn some<T: AsRef<str>>(all: &[T]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<_> = all.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match all.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A span of seconds in its largest unit.
pub(super) fn span(seconds: i64) -> String {
    match seconds.unsigned_abs() {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7_200 => format!("{} min", s / 60),
        s @ 7_200..172_800 => format!("{} h", s / 3_600),
        s => format!("{} d", s / 86_400),
    }
}

/// The first two numbers of a version, as `3.1.0` or `6.1.0-13-amd64`.
pub(super) fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}
