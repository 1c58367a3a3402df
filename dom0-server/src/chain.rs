//! An error with everything that led to it, in one line: for the log and for a guest that is told why. Who decides
//! what an error means is where it is handled.

use std::error::Error;
use std::fmt;

/// Shows an error, its cause, that one's cause and so on, with `: ` between them.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("level {0}")]
    struct Level(u8, #[source] Option<Box<Self>>);

    #[test]
    fn every_cause_is_told_once() {
        let deep = Level(1, Some(Box::new(Level(2, Some(Box::new(Level(3, None)))))));
        assert_eq!(Chain(&deep).to_string(), "level 1: level 2: level 3");
        assert_eq!(Chain(&Level(9, None)).to_string(), "level 9");
    }
}
