//! Whether a source may speak: the open row that it names says so. Pure.

use xenflow_proto::Name;
use xenflow_proto::node::{Hello, RefusalReason};

use crate::db::Migration;
use crate::db::migration::Phase;

/// Why a source may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unwelcome {
    /// No row has the number, as far as this node has read.
    #[error("there is no migration {number}")]
    Unknown {
        /// What the source says.
        number: u64,
    },
    /// It has ended.
    #[error("migration {number} is {phase}")]
    Over {
        /// Its number.
        number: u64,
        /// How it ended.
        phase: Phase,
    },
    /// It is another router's.
    #[error("migration {number} is of router {row}, not {said}")]
    Router {
        /// Its number.
        number: u64,
        /// Whose it is.
        row: Name,
        /// What the source says.
        said: Name,
    },
    /// Another node is its source.
    #[error("router {router} leaves node {from} in migration {number}, not {node}")]
    Source {
        /// Its number.
        number: u64,
        /// Whose it is.
        router: Name,
        /// Its source.
        from: Name,
        /// Who has connected.
        node: Name,
    },
    /// Another node is its destination.
    #[error("router {router} goes to node {to} in migration {number}, not {own}")]
    Destination {
        /// Its number.
        number: u64,
        /// Whose it is.
        router: Name,
        /// Its destination.
        to: Name,
        /// This node.
        own: Name,
    },
}

impl Unwelcome {
    /// For programs.
    #[must_use]
    pub const fn reason(&self) -> RefusalReason {
        match self {
            Self::Source { .. } => RefusalReason::Identity,
            Self::Unknown { .. } | Self::Over { .. } | Self::Router { .. } | Self::Destination { .. } => {
                RefusalReason::UnknownMigration
            }
        }
    }
}

/// The row that a source speaks about; `node` is whose certificate it has, `own` this node.
///
/// # Errors
/// [`Unwelcome`] says what of the row stands against it.
pub fn admit<'a>(
    rows: impl IntoIterator<Item = &'a Migration>,
    own: &Name,
    node: &Name,
    hello: &Hello,
) -> Result<&'a Migration, Unwelcome> {
    let number = hello.migration;
    let row = rows.into_iter().find(|row| row.number == number).ok_or(Unwelcome::Unknown { number })?;
    let Migration { router, from, to, phase, .. } = row;
    match () {
        () if *router != hello.router => {
            Err(Unwelcome::Router { number, row: router.clone(), said: hello.router.clone() })
        }
        () if from != node => {
            Err(Unwelcome::Source { number, router: router.clone(), from: from.clone(), node: node.clone() })
        }
        () if to != own => {
            Err(Unwelcome::Destination { number, router: router.clone(), to: to.clone(), own: own.clone() })
        }
        () if phase.is_over() => Err(Unwelcome::Over { number, phase: *phase }),
        () => Ok(row),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::migration::Via;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn only_the_source_of_an_open_row_may_speak() {
        let row = |number, phase| Migration {
            number,
            router: name("r1"),
            from: name("a"),
            to: name("b"),
            via: Via::Xl,
            move_limit_s: 600,
            phase,
            generation: 0,
            yielded: false,
            left: false,
            error: String::new(),
            digest: String::new(),
            reached: [].into(),
            counters: [].into(),
        };
        let rows = [row(7, Phase::Done), row(8, Phase::Moving)];
        let asks = |own: &str, node: &str, migration, router: &str| {
            let (router, agent) = (name(router), String::new());
            let hello = Hello { versions: vec![1], node: name(node), migration, router, stream: 0, agent };
            let row = admit(&rows, &name(own), &name(node), &hello);
            row.map(|row| row.number).map_err(|why| (why.reason(), why.to_string()))
        };
        assert_eq!(asks("b", "a", 8, "r1"), Ok(8));
        let unknown = |words: &str| Err((RefusalReason::UnknownMigration, words.to_owned()));
        assert_eq!(asks("b", "a", 9, "r1"), unknown("there is no migration 9"));
        assert_eq!(asks("b", "a", 7, "r1"), unknown("migration 7 is done"));
        assert_eq!(asks("b", "a", 8, "r2"), unknown("migration 8 is of router r1, not r2"));
        assert_eq!(asks("c", "a", 8, "r1"), unknown("router r1 goes to node b in migration 8, not c"));
        let source = "router r1 leaves node a in migration 8, not c".to_owned();
        assert_eq!(asks("b", "c", 8, "r1"), Err((RefusalReason::Identity, source)));
    }
}
