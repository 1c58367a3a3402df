//! Whether a guest may go on at this node: what the hooks of toolstacks ask while both of its copies stand still, or before.
//!
//! Only a planned move has anything to wait for. A guest that nobody has announced is let in: its router is forwarded for by the
//! node that it has left, until this one has its tables.

use std::collections::BTreeSet;

use xenflow_flow_app::RouterId;
use xenflow_proto::{MacAddr, Name};

use super::Core;
use crate::db::migration::{Migration, Phase};

/// What stands in a guest's way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// The destination is being made ready.
    #[error(
        "router {router} is not ready here: migration {number} from {from} is {phase}, and its guest may come once it is moving"
    )]
    Early {
        /// Whose guest.
        router: Name,
        /// By which migration.
        number: u64,
        /// From where.
        from: Name,
        /// How far it is.
        phase: Phase,
    },
    /// Somebody has called it off.
    #[error("router {router} is to stay on {from}: migration {number} is being aborted")]
    Aborting {
        /// Whose guest.
        router: Name,
        /// By which migration.
        number: u64,
        /// From where.
        from: Name,
    },
    /// Its interface is not plugged in, or the daemon has not heard of it.
    #[error("router {router} is not ready here: no port of {vif} ({mac}) is on the bridge")]
    NoPort {
        /// Whose guest.
        router: Name,
        /// Which interface.
        vif: Name,
        /// Its address.
        mac: MacAddr,
    },
    /// The switch is being told of its ports.
    #[error("router {router} is not ready here: the switch has not confirmed the flows of its ports")]
    Unconfirmed {
        /// Whose guest.
        router: Name,
    },
}

impl Obstacle {
    /// Whether it may go away while somebody waits.
    #[must_use]
    pub const fn is_for_now(&self) -> bool {
        !matches!(self, Self::Aborting { .. })
    }
}

impl Core {
    /// What stands in the way of a guest with these addresses; `is_plugged`: its interfaces are said to be here by now.
    ///
    /// # Errors
    /// [`Obstacle`] says what it is.
    pub fn arrival(&self, macs: &BTreeSet<MacAddr>, is_plugged: bool) -> Result<(), Obstacle> {
        let (Some(desired), Some(whereabouts)) = (&self.desired, &self.whereabouts) else { return Ok(()) };
        let vifs = || desired.vifs.values().filter(|vif| macs.contains(&vif.mac));
        let routers: BTreeSet<&Name> = vifs().map(|vif| &vif.router).collect();
        for router in routers {
            let Some(row) = whereabouts.moves.get(router).filter(|row| row.to == self.node) else { continue };
            let Some(id) = desired.routers.get(router).map(|router| RouterId(router.id.get())) else {
                continue;
            };
            let bound: BTreeSet<MacAddr> = self
                .app
                .topology()
                .vifs_of(id)
                .filter(|(_, vif)| vif.port.is_some())
                .map(|(_, vif)| vif.mac)
                .collect();
            judge(row)?;
            let missing = vifs().find(|vif| vif.router == *router && !bound.contains(&vif.mac));
            match missing.filter(|_| is_plugged) {
                Some(vif) => {
                    let (router, vif, mac) = (router.clone(), vif.name.clone(), vif.mac);
                    return Err(Obstacle::NoPort { router, vif, mac });
                }
                None if is_plugged && !self.has_told_ports() => {
                    return Err(Obstacle::Unconfirmed { router: router.clone() });
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Whether the switch has confirmed what depends on no guest.
    fn has_told_ports(&self) -> bool {
        self.switch_up && self.in_flight.is_empty() && self.app.is_topology_sent()
    }
}

/// By the row alone.
fn judge(row: &Migration) -> Result<(), Obstacle> {
    let (router, number, from) = (row.router.clone(), row.number, row.from.clone());
    match row.phase {
        Phase::Staging | Phase::Staged => Err(Obstacle::Early { router, number, from, phase: row.phase }),
        Phase::Aborting => Err(Obstacle::Aborting { router, number, from }),
        Phase::Moving
        | Phase::Arrived
        | Phase::Verified
        | Phase::Announced
        | Phase::Draining
        | Phase::Done
        | Phase::Aborted => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::db::migration::Via;

    fn row(phase: Phase) -> Migration {
        let name = |text: &str| text.parse().unwrap();
        Migration {
            number: 7,
            router: name("r1"),
            from: name("a"),
            to: name("b"),
            via: Via::Virsh,
            move_limit_s: 60,
            phase,
            generation: 0,
            yielded: false,
            left: false,
            error: String::new(),
            digest: String::new(),
            reached: BTreeMap::new(),
            counters: BTreeMap::new(),
        }
    }

    #[test]
    fn a_planned_guest_comes_from_moving_on_and_never_while_it_is_called_off() {
        for (phase, word) in Phase::ALL {
            let said = judge(&row(phase)).map_err(|obstacle| (obstacle.to_string(), obstacle.is_for_now()));
            match phase {
                Phase::Staging | Phase::Staged => {
                    let (words, is_for_now) = said.unwrap_err();
                    assert!(
                        words.contains(&format!("migration 7 from a is {word}")) && is_for_now,
                        "{words}"
                    );
                }
                Phase::Aborting => {
                    let expected = "router r1 is to stay on a: migration 7 is being aborted".to_owned();
                    assert_eq!(said, Err((expected, false)));
                }
                Phase::Moving
                | Phase::Arrived
                | Phase::Verified
                | Phase::Announced
                | Phase::Draining
                | Phase::Done
                | Phase::Aborted => assert_eq!(said, Ok(()), "{word}"),
            }
        }
    }
}
