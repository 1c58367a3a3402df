//! The rules that a source's messages keep; pure.

use xenflow_proto::node::SourceMessage;

use super::WINDOW;

/// A rule that a peer broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The introduction is over.
    #[error("a second introduction")]
    Hello,
    /// Messages of tables are counted.
    #[error("message {got} of tables, not {want}")]
    Seq {
        /// Its number.
        got: u64,
        /// The next one's.
        want: u64,
    },
    /// Tables have a beginning.
    #[error("message 1 of tables neither begins a snapshot nor resumes")]
    Beginning,
    /// Not more than was agreed is unacknowledged.
    #[error("message {seq} of tables, more than {WINDOW} beyond {acked}, the last acknowledged")]
    Window {
        /// Its number.
        seq: u64,
        /// The last acknowledged one's.
        acked: u64,
    },
    /// Punts are counted.
    #[error("punt {got}, not {want} or a later one")]
    Punt {
        /// Its number.
        got: u64,
        /// The next one's.
        want: u64,
    },
    /// The end mark comes last.
    #[error("punt {got} behind the end mark")]
    Ended {
        /// Its number.
        got: u64,
    },
    /// The end mark says what came last.
    #[error("an end mark behind punt {last}, but {came} has come")]
    EndMark {
        /// What it says.
        last: u64,
        /// What has come.
        came: u64,
    },
    /// An answer is about something that was said.
    #[error("an answer to message {seq} of tables, but {said} was the last")]
    Unsaid {
        /// What it is about.
        seq: u64,
        /// The last that was sent.
        said: u64,
    },
    /// A destination goes on where it was, or begins at 1.
    #[error("message {want} of tables is wanted, but {first} to {next} are to be had")]
    Wanted {
        /// What it wants.
        want: u64,
        /// The first that is still there.
        first: u64,
        /// The next that will be.
        next: u64,
    },
}

/// What a destination knows of the order of one connection's messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    pub(super) next_seq: u64,
    pub(super) next_punt: u64,
    pub(super) has_ended: bool,
}

impl Order {
    /// Looks at the next message; `acked` is the last of tables that was acknowledged.
    pub(super) fn take(&mut self, message: &SourceMessage, acked: u64) -> Result<(), Broken> {
        match message {
            SourceMessage::Hello(_) => return Err(Broken::Hello),
            SourceMessage::SnapshotBegin { seq, .. } | SourceMessage::Resume(seq) => {
                self.tables(seq.0, acked)?
            }
            SourceMessage::Changes { seq, .. } | SourceMessage::SnapshotEnd { seq, .. } => {
                self.tables(seq.0, acked)?;
                if seq.0 == 1 {
                    return Err(Broken::Beginning);
                }
            }
            SourceMessage::Punts { first, punts } => {
                if self.has_ended {
                    return Err(Broken::Ended { got: *first });
                }
                if *first < self.next_punt {
                    return Err(Broken::Punt { got: *first, want: self.next_punt });
                }
                self.next_punt = first + punts.len() as u64;
            }
            SourceMessage::EndMark(last) => {
                let came = self.next_punt - 1;
                if *last < came {
                    return Err(Broken::EndMark { last: *last, came });
                }
                self.has_ended = true;
            }
            SourceMessage::Megaflows(_) | SourceMessage::Ping(_) | SourceMessage::Pong(_) => {}
        }
        Ok(())
    }

    fn tables(&mut self, seq: u64, acked: u64) -> Result<(), Broken> {
        if seq != self.next_seq {
            return Err(Broken::Seq { got: seq, want: self.next_seq });
        }
        if seq > acked.saturating_add(WINDOW.into()) {
            return Err(Broken::Window { seq, acked });
        }
        self.next_seq += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use xenflow_proto::Seq;
    use xenflow_proto::node::{Punt, PuntKind};

    use super::*;

    fn changes(seq: u64) -> SourceMessage {
        SourceMessage::Changes { seq: Seq(seq), changes: Vec::new() }
    }

    fn punts(first: u64, count: usize) -> SourceMessage {
        let punt = Punt { vif: 1, kind: PuntKind::Punt, frame: Bytes::from_static(&[0; 14]) };
        SourceMessage::Punts { first, punts: vec![punt; count] }
    }

    #[test]
    fn every_rule_names_what_it_is_about() {
        let begin = SourceMessage::SnapshotBegin { seq: Seq(1), boot_id: [0; 16] };
        let fresh = Order { next_seq: 1, next_punt: 1, has_ended: false };
        let said = |mut order: Order, messages: &[SourceMessage]| {
            let last = messages.iter().map(|message| order.take(message, 0)).last().unwrap();
            last.map_err(|broken| broken.to_string())
        };
        assert_eq!(said(fresh, &[begin.clone(), changes(2), punts(1, 3), punts(4, 1), punts(9, 2)]), Ok(()));
        assert_eq!(said(fresh, &[SourceMessage::EndMark(0)]), Ok(()));
        assert_eq!(said(fresh, &[punts(1, 3), SourceMessage::EndMark(4), SourceMessage::EndMark(4)]), Ok(()));
        let err = |text: &str| Err(text.to_owned());
        assert_eq!(
            said(fresh, &[changes(1)]),
            err("message 1 of tables neither begins a snapshot nor resumes")
        );
        assert_eq!(said(fresh, &[begin.clone(), changes(3)]), err("message 3 of tables, not 2"));
        assert_eq!(said(fresh, &[begin.clone(), begin]), err("message 1 of tables, not 2"));
        let late = Order { next_seq: 17, ..fresh };
        let window = "message 17 of tables, more than 16 beyond 0, the last acknowledged";
        assert_eq!(said(late, &[changes(17)]), err(window));
        assert_eq!(late.clone().take(&changes(17), 1), Ok(()));
        assert_eq!(said(fresh, &[punts(1, 3), punts(3, 1)]), err("punt 3, not 4 or a later one"));
        assert_eq!(said(fresh, &[SourceMessage::EndMark(3), punts(4, 1)]), err("punt 4 behind the end mark"));
        assert_eq!(
            said(fresh, &[punts(1, 3), SourceMessage::EndMark(2)]),
            err("an end mark behind punt 2, but 3 has come")
        );
    }
}
