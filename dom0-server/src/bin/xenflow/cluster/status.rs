//! What `cluster/status` of `ovsdb-server` says (ovsdb-server(1), "Cluster Commands"), as values.

use std::collections::BTreeMap;

use serde::Serialize;

/// A member's view of its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ClusterStatus {
    /// Short identifier of the cluster.
    pub(crate) cluster: String,
    /// Short identifier of this server.
    pub(crate) server: String,
    /// Where other members reach it.
    pub(crate) address: String,
    /// As `cluster member`, `joining cluster`, `leaving cluster`, `left cluster`.
    pub(crate) state: String,
    /// As `leader`, `follower`, `candidate`.
    pub(crate) role: String,
    /// The election that is in force, by number.
    pub(crate) term: u64,
    /// The leader's identifier; none is known without contact.
    pub(crate) leader: Option<String>,
    /// Index of the first entry of the log that is kept.
    pub(crate) log_first: u64,
    /// Index of the next entry.
    pub(crate) log_next: u64,
    /// Entries that no majority has yet.
    pub(crate) uncommitted: u64,
    /// Whether this server is in contact with a majority, so that its clients may write. As its clients are told.
    pub(crate) in_contact: bool,
    /// All members, this one among them.
    pub(crate) members: Vec<Member>,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Member {
    pub(crate) server: String,
    pub(crate) address: String,
    /// It is the one that was asked.
    pub(crate) is_self: bool,
    /// There is a connection to it, in either direction.
    pub(crate) connected: bool,
    /// How long ago it said something, if this server knows.
    pub(crate) last_message_ms: Option<u64>,
    /// Index up to which it has the log, as the leader knows.
    pub(crate) match_index: Option<u64>,
}

impl ClusterStatus {
    /// Reads the text; none if it is another one. `in_contact` is false.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut fields = BTreeMap::new();
        let mut servers = Vec::new();
        for line in text.lines() {
            match (line.strip_prefix("    "), line.split_once(':')) {
                (Some(server), _) => servers.push(server),
                (None, Some((name, value))) => {
                    fields.insert(name, value.trim());
                }
                (None, None) => {}
            }
        }
        let field = |name: &str| fields.get(name).copied();
        let short = |name: &str| field(name)?.split_whitespace().next().map(str::to_owned);
        let server = short("Server ID")?;
        let (first, next) = field("Log")?.trim_matches(['[', ']']).split_once(", ")?;
        // A broken connection stands in parentheses.
        let connections: Vec<&str> = field("Connections").unwrap_or_default().split_whitespace().collect();
        let member = |line: &&str| {
            let (id, rest) = line.split_once(' ')?;
            let address = rest.split_once(" at ")?.1.split(')').next()?;
            let number = |name: &str| rest.split_once(name)?.1.split_whitespace().next()?.parse().ok();
            Some(Member {
                server: id.to_owned(),
                address: address.to_owned(),
                is_self: id == server,
                connected: id == server
                    || connections
                        .iter()
                        .any(|word| *word == format!("->{id}") || *word == format!("<-{id}")),
                last_message_ms: number("last msg "),
                match_index: number("match_index="),
            })
        };
        Some(Self {
            cluster: short("Cluster ID").unwrap_or_default(),
            address: field("Address")?.to_owned(),
            state: field("Status")?.to_owned(),
            role: field("Role").unwrap_or_default().to_owned(),
            term: field("Term")?.parse().ok()?,
            leader: match field("Leader")? {
                "unknown" => None,
                "self" => Some(server.clone()),
                other => Some(other.to_owned()),
            },
            log_first: first.parse().ok()?,
            log_next: next.parse().ok()?,
            uncommitted: field("Entries not yet committed")?.parse().ok()?,
            in_contact: false,
            members: servers.iter().map(member).collect::<Option<_>>()?,
            server,
        })
    }

    /// For people.
    pub(crate) fn page(&self) -> String {
        let leader = self.leader.as_deref().unwrap_or("unknown");
        let contact = if self.in_contact { "yes" } else { "no: clients cannot write here" };
        let mut page = format!(
            "cluster {}: {}\nthis server {} at {}, {}, in contact: {contact}\nleader {leader}, term {}, log {} to {}, not \
             committed {}\n",
            self.cluster,
            self.state,
            self.server,
            self.address,
            self.role,
            self.term,
            self.log_first,
            self.log_next,
            self.uncommitted
        );
        for member in &self.members {
            let mut words = vec![format!("  member {} at {}", member.server, member.address)];
            if self.leader.as_ref() == Some(&member.server) {
                words.push("leader".into());
            }
            words.push(match (member.is_self, member.connected) {
                (true, _) => "this server".into(),
                (false, true) => "connected".into(),
                (false, false) => "not connected".into(),
            });
            words.extend(member.match_index.map(|index| format!("has the log up to {index}")));
            words.extend(member.last_message_ms.map(|ms| format!("last heard {ms} ms ago")));
            page += &(words.join(", ") + "\n");
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // ovs-appctl -t ./ctl cluster/status XenFlow, of Open vSwitch 3.1.0, after one of three was killed.
    const LEADER: &str = "\
e364
Name: XenFlow
Cluster ID: 64dc (64dcf17a-0176-4052-961e-3732b59cf7bc)
Server ID: e364 (e36453e8-bd9d-4a45-8fd0-b3cee874fc43)
Address: ssl:[fd00::1]:6661
Status: cluster member
Role: leader
Term: 3
Leader: self
Vote: self

Last Election started 1515 ms ago, reason: timeout
Last Election won: 1515 ms ago
Election timer: 1000
Log: [2, 7]
Entries not yet committed: 1
Entries not yet applied: 0
Connections: ->2222 <-2222 (->3333)
Disconnections: 1
Servers:
    e364 (e364 at ssl:[fd00::1]:6661) (self) next_index=2 match_index=6
    2222 (2222 at ssl:[fd00::2]:6661) next_index=7 match_index=6 last msg 31 ms ago
    3333 (3333 at ssl:[fd00::3]:6661) next_index=5 match_index=4 last msg 9031 ms ago
";

    #[test]
    fn a_leader_tells_of_its_members() {
        let status = ClusterStatus::parse(LEADER).unwrap();
        assert_eq!((status.server.as_str(), status.cluster.as_str(), status.term), ("e364", "64dc", 3));
        assert_eq!((status.log_first, status.log_next, status.uncommitted), (2, 7, 1));
        assert_eq!(status.leader.as_deref(), Some("e364"));
        let members: Vec<_> = status
            .members
            .iter()
            .map(|m| (m.server.as_str(), m.is_self, m.connected, m.match_index, m.last_message_ms))
            .collect();
        assert_eq!(
            members,
            [
                ("e364", true, true, Some(6), None),
                ("2222", false, true, Some(6), Some(31)),
                ("3333", false, false, Some(4), Some(9031)),
            ]
        );
        assert_eq!(status.members[2].address, "ssl:[fd00::3]:6661");
        assert!(status.page().contains(
            "  member 3333 at ssl:[fd00::3]:6661, not connected, has the log up to 4, last heard 9031 ms ago\n"
        ));
    }

    #[test]
    fn without_contact_there_is_no_leader() {
        let text =
            LEADER.replace("Leader: self", "Leader: unknown").replace("Role: leader", "Role: candidate");
        let status = ClusterStatus::parse(&text).unwrap();
        assert_eq!((status.leader, status.role.as_str()), (None, "candidate"));
        assert_eq!(ClusterStatus::parse("something else\n"), None);
        assert_eq!(ClusterStatus::parse(&LEADER.replace("[2, 7]", "none")), None);
    }
}
