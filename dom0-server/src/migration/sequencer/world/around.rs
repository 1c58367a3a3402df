//! What is around the nodes: the toolstack, an operator, the link.

use super::database::Row;
use super::*;

/// How the toolstack is, whoever has started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in super::super) enum Tool {
    Idle,
    /// It copies; the guest runs.
    Copies,
    /// Both copies are suspended.
    Suspended,
    /// Past its point of no return: the guest runs at the destination.
    Resumed,
    /// And is gone from the source.
    Removed,
    Ended,
}

impl Tool {
    pub(super) const fn runs(self) -> bool {
        !matches!(self, Self::Idle | Self::Ended)
    }
}

impl World {
    pub(super) fn of_toolstack(&self, steps: &[Option<Step>; 2], all: &mut Vec<(Event, Self)>) {
        let (from, to) = (self.tool_from, 1 - self.tool_from);
        let moved = |tool: Tool, source: Guest, destination: Guest| {
            let mut next = Self { tool, ..*self };
            let guests = [(from, source), (to, destination)];
            for (n, guest) in guests {
                // A port that comes is one that the switch has no flows for.
                let node = &mut next.nodes[n];
                let comes = node.guest == Guest::Gone && guest != Guest::Gone;
                if comes {
                    (node.anew, node.stance.mute, node.found) = (true, true, Guest::Gone);
                }
                node.guest = guest;
            }
            next
        };
        let step = steps[from].as_ref();
        let stops = step.is_some_and(|step| step.drive == Drive::Stop);
        let back = moved(Tool::Ended, Guest::Running, Guest::Gone);
        let can_fail = self.budget.failures > 0;
        let mut fails = |mut next: Self| {
            next.budget.failures -= 1;
            all.push((Event::Failed(next.tool), next));
        };
        if can_fail {
            match self.tool {
                Tool::Copies => fails(back),
                Tool::Suspended => {
                    fails(back);
                    // Killed, and nobody goes on.
                    fails(Self { tool: Tool::Ended, ..*self });
                }
                // Killed, and what is left of the source is removed later.
                Tool::Resumed => fails(Self { tool: Tool::Ended, ..*self }),
                Tool::Idle | Tool::Removed | Tool::Ended => {}
            }
        }
        match self.tool {
            Tool::Copies => {
                let suspended = moved(Tool::Suspended, Guest::Plugged, Guest::Plugged);
                all.push((Event::Tool(Tool::Suspended), suspended));
                if self.nodes[to].guest == Guest::Gone {
                    all.push((Event::Plugged(to), moved(Tool::Copies, Guest::Running, Guest::Plugged)));
                }
            }
            Tool::Suspended => {
                let resumed = moved(Tool::Resumed, Guest::Plugged, Guest::Running);
                all.push((Event::Tool(Tool::Resumed), resumed));
            }
            Tool::Resumed => {
                let removed = moved(Tool::Removed, Guest::Gone, Guest::Running);
                all.push((Event::Tool(Tool::Removed), removed));
            }
            Tool::Removed => all.push((Event::Tool(Tool::Ended), Self { tool: Tool::Ended, ..*self })),
            Tool::Idle | Tool::Ended => {
                // The operator looks at both ends.
                match [self.nodes[0].guest, self.nodes[1].guest] {
                    [Guest::Plugged, Guest::Plugged] => all.push((Event::Repaired, back)),
                    [Guest::Plugged, Guest::Running] | [Guest::Running, Guest::Plugged] => {
                        let removed = moved(Tool::Ended, Guest::Gone, Guest::Running);
                        all.push((Event::Repaired, removed));
                    }
                    _ => {}
                }
                for n in [0, 1] {
                    let row = self.nodes[n].view.open();
                    let starts = steps[n].as_ref().is_some_and(|step| step.drive == Drive::Start);
                    if let Some(row) = row.filter(|row| starts && row.number > self.tool_of) {
                        let is_here = self.nodes[n].guest == Guest::Running;
                        let tool = if is_here { Tool::Copies } else { Tool::Ended };
                        let next = Self { tool, tool_of: row.number, tool_from: n, ..*self };
                        all.push((Event::Tool(tool), next));
                    }
                }
            }
        }
        if stops && matches!(self.tool, Tool::Copies | Tool::Suspended) {
            all.push((Event::Tool(Tool::Ended), back));
        }
    }

    pub(super) fn of_operator(&self, all: &mut Vec<(Event, Self)>) {
        let Budget { planned, by_hand, aborts, cuts, .. } = self.budget;
        let here = [0, 1].into_iter().find(|n| self.nodes[*n].guest == Guest::Running);
        let is_whole = self.nodes.iter().all(|node| !node.dead);
        let here = here.filter(|_| !self.tool.runs() && is_whole);
        if let Some(here) = here.filter(|here| self.database.owner() == Some(*here))
            && self.database.open().is_none()
            && planned > 0
        {
            let mut next = *self;
            next.budget.planned -= 1;
            next.database.create(here, Phase::Staging, true);
            all.push((Event::OperatorMigrates, next));
        }
        // A node that is out of the database's reach while the router leaves and comes back cannot know that it did.
        let all_know = self.nodes.iter().all(|node| node.view.generations == self.database.generations);
        let may = |here: &Index| by_hand > 0 && all_know && self.nodes[1 - *here].guest == Guest::Gone;
        if let Some(here) = here.filter(may) {
            let mut next = Self { tool: Tool::Copies, tool_from: here, ..*self };
            next.budget.by_hand -= 1;
            all.push((Event::MovedByHand, next));
        }
        if let Some(row) = self.database.open()
            && aborts > 0
            && !row.left
            && matches!(row.phase, Phase::Staging | Phase::Staged | Phase::Moving)
        {
            let mut next = *self;
            next.budget.aborts -= 1;
            let row = Row { phase: Phase::Aborting, yielded: false, ..row };
            next.database.row = Some(row);
            all.push((Event::OperatorAborts, next));
        }
        if cuts > 0 && self.link {
            let mut next = Self { link: false, ..*self };
            next.budget.cuts -= 1;
            all.push((Event::Cut, next));
        }
        if !self.link {
            all.push((Event::Healed, Self { link: true, ..*self }));
        }
    }
}
