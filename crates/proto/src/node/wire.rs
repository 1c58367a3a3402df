//! Between the messages of nodes and the generated code of their schema; see `crate::wire`, whose rules hold here.

use bytes::Bytes;

use super::{
    DestinationMessage, Hello, MAX_FRAME_BYTES, MAX_MEGAFLOWS, MAX_PUNTS, MAX_VIF, MIN_FRAME_BYTES, Megaflow,
    Punt, PuntKind, RefusalReason, SourceMessage, Welcome,
};
use crate::digest::Digest;
use crate::message::MAX_CHANGES;
use crate::types::Seq;
use crate::wire::{DecodeError, Decoded, at_most, change, change_to_wire, mac, need, nonzero, text};

/// Generated from `schema/xenflow-node-v1.proto`; `tests/schema.rs` says how.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub(super) mod pb {
    include!("../../schema/xenflow-node-v1.rs");
}

fn number(value: u64, field: &'static str) -> Decoded<u64> {
    if value == 0 { Err(DecodeError::Range { field, value, want: "1 or more" }) } else { Ok(value) }
}

fn boot_id(bytes: &[u8]) -> Decoded<[u8; 16]> {
    bytes.try_into().map_err(|_| DecodeError::Length { field: "boot_id", len: bytes.len(), want: "16" })
}

fn digest(digest: Option<crate::wire::pb::Digest>) -> Decoded<Digest> {
    let crate::wire::pb::Digest { objects, sum } = need(digest, "digest")?;
    Ok(Digest { objects, sum })
}

fn digest_to_wire(digest: Digest) -> Option<crate::wire::pb::Digest> {
    let Digest { objects, sum } = digest;
    Some(crate::wire::pb::Digest { objects, sum })
}

pub(super) fn source_message(message: pb::SourceMessage) -> Decoded<SourceMessage> {
    use pb::source_message::Body;
    Ok(match need(message.body, "body of the message")? {
        Body::Hello(pb::Hello { versions, node, migration, router, stream, agent }) => {
            SourceMessage::Hello(Hello {
                versions: at_most(versions, 16, "versions")?,
                node: node.parse()?,
                migration,
                router: router.parse()?,
                stream,
                agent: text(&agent),
            })
        }
        Body::SnapshotBegin(pb::SnapshotBegin { seq, boot_id: boot }) => {
            SourceMessage::SnapshotBegin { seq: Seq(seq), boot_id: boot_id(&boot)? }
        }
        Body::Resume(pb::Resume { seq }) => SourceMessage::Resume(Seq(seq)),
        Body::Changes(pb::Changes { seq, changes }) => SourceMessage::Changes {
            seq: Seq(seq),
            changes: at_most(changes, MAX_CHANGES, "changes")?
                .into_iter()
                .map(change)
                .collect::<Decoded<_>>()?,
        },
        Body::SnapshotEnd(pb::SnapshotEnd { seq, digest: of }) => {
            SourceMessage::SnapshotEnd { seq: Seq(seq), digest: digest(of)? }
        }
        Body::Punts(pb::Punts { first, punts }) => {
            if punts.is_empty() {
                return Err(DecodeError::Missing("punts"));
            }
            let punts = at_most(punts, MAX_PUNTS, "punts")?;
            let first = number(first, "first")?;
            // Whoever counts on can do so.
            if first.checked_add(MAX_PUNTS as u64).is_none() {
                let want = "2^64 less the most punts of a message, or less";
                return Err(DecodeError::Range { field: "first", value: first, want });
            }
            SourceMessage::Punts { first, punts: punts.into_iter().map(punt).collect::<Decoded<_>>()? }
        }
        Body::EndMark(pb::EndMark { last }) => SourceMessage::EndMark(last),
        Body::Megaflows(pb::Megaflows { flows }) => SourceMessage::Megaflows(
            at_most(flows, MAX_MEGAFLOWS, "megaflows")?.into_iter().map(megaflow).collect::<Decoded<_>>()?,
        ),
        Body::Ping(pb::Ping { token }) => SourceMessage::Ping(token),
        Body::Pong(pb::Pong { token }) => SourceMessage::Pong(token),
    })
}

pub(super) fn source_message_to_wire(message: &SourceMessage) -> pb::SourceMessage {
    use pb::source_message::Body;
    let body = match message {
        SourceMessage::Hello(Hello { versions, node, migration, router, stream, agent }) => {
            Body::Hello(pb::Hello {
                versions: versions.clone(),
                node: node.to_string(),
                migration: *migration,
                router: router.to_string(),
                stream: *stream,
                agent: text(agent),
            })
        }
        SourceMessage::SnapshotBegin { seq, boot_id } => {
            Body::SnapshotBegin(pb::SnapshotBegin { seq: seq.0, boot_id: boot_id.to_vec() })
        }
        SourceMessage::Resume(seq) => Body::Resume(pb::Resume { seq: seq.0 }),
        SourceMessage::Changes { seq, changes } => {
            Body::Changes(pb::Changes { seq: seq.0, changes: changes.iter().map(change_to_wire).collect() })
        }
        SourceMessage::SnapshotEnd { seq, digest } => {
            Body::SnapshotEnd(pb::SnapshotEnd { seq: seq.0, digest: digest_to_wire(*digest) })
        }
        SourceMessage::Punts { first, punts } => {
            Body::Punts(pb::Punts { first: *first, punts: punts.iter().map(punt_to_wire).collect() })
        }
        SourceMessage::EndMark(last) => Body::EndMark(pb::EndMark { last: *last }),
        SourceMessage::Megaflows(flows) => {
            Body::Megaflows(pb::Megaflows { flows: flows.iter().map(megaflow_to_wire).collect() })
        }
        SourceMessage::Ping(token) => Body::Ping(pb::Ping { token: *token }),
        SourceMessage::Pong(token) => Body::Pong(pb::Pong { token: *token }),
    };
    pb::SourceMessage { body: Some(body) }
}

fn megaflow(flow: pb::Megaflow) -> Decoded<Megaflow> {
    let pb::Megaflow { vlan, src, dst, fields } = flow;
    Ok(Megaflow {
        vlan: i64::from(vlan).try_into()?,
        src: mac(&src)?,
        dst: mac(&dst)?,
        fields: fields.parse()?,
    })
}

fn megaflow_to_wire(flow: &Megaflow) -> pb::Megaflow {
    let Megaflow { vlan, src, dst, fields } = flow;
    pb::Megaflow {
        vlan: vlan.get().into(),
        src: src.0.to_vec(),
        dst: dst.0.to_vec(),
        fields: fields.as_str().to_owned(),
    }
}

fn punt(punt: pb::Punt) -> Decoded<Punt> {
    use pb::punt::Kind;
    let pb::Punt { vif, kind, frame } = punt;
    let kind = match Kind::try_from(kind) {
        Ok(Kind::Copy) => PuntKind::Copy,
        Ok(Kind::Punt) => PuntKind::Punt,
        Ok(Kind::Late) => PuntKind::Late,
        Ok(Kind::Unspecified) | Err(_) => return Err(DecodeError::Missing("kind of a punt")),
    };
    if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&frame.len()) {
        return Err(DecodeError::Length { field: "frame", len: frame.len(), want: "14 to 9216" });
    }
    let vif = u16::try_from(vif)
        .ok()
        .filter(|vif| (1..=MAX_VIF).contains(vif))
        .ok_or(DecodeError::Range { field: "vif", value: vif.into(), want: "1 to 4095" })?;
    // Of its own memory: a frame that is kept for long must not keep all of the message.
    Ok(Punt { vif, kind, frame: Bytes::from(frame) })
}

fn punt_to_wire(punt: &Punt) -> pb::Punt {
    use pb::punt::Kind;
    let Punt { vif, kind, frame } = punt;
    let kind = match kind {
        PuntKind::Copy => Kind::Copy,
        PuntKind::Punt => Kind::Punt,
        PuntKind::Late => Kind::Late,
    };
    pb::Punt { vif: (*vif).into(), kind: kind.into(), frame: frame.to_vec() }
}

pub(super) fn destination_message(message: pb::DestinationMessage) -> Decoded<DestinationMessage> {
    use pb::destination_message::Body;
    Ok(match need(message.body, "body of the message")? {
        Body::Welcome(it) => DestinationMessage::Welcome(welcome(it)?),
        Body::Ack(pb::Ack { seq }) => DestinationMessage::Ack(Seq(seq)),
        Body::Staged(pb::Staged { seq, digest: of }) => {
            DestinationMessage::Staged { seq: Seq(seq), digest: digest(of)? }
        }
        Body::Given(pb::Given { punt }) => DestinationMessage::Given(punt),
        Body::Refusal(pb::Refusal { reason, detail }) => {
            DestinationMessage::Refusal { reason: refusal_reason(reason), detail: text(&detail) }
        }
        Body::Ping(pb::Ping { token }) => DestinationMessage::Ping(token),
        Body::Pong(pb::Pong { token }) => DestinationMessage::Pong(token),
    })
}

pub(super) fn destination_message_to_wire(message: &DestinationMessage) -> pb::DestinationMessage {
    use pb::destination_message::Body;
    let body = match message {
        DestinationMessage::Welcome(welcome) => Body::Welcome(welcome_to_wire(welcome)),
        DestinationMessage::Ack(seq) => Body::Ack(pb::Ack { seq: seq.0 }),
        DestinationMessage::Staged { seq, digest } => {
            Body::Staged(pb::Staged { seq: seq.0, digest: digest_to_wire(*digest) })
        }
        DestinationMessage::Given(punt) => Body::Given(pb::Given { punt: *punt }),
        DestinationMessage::Refusal { reason, detail } => Body::Refusal(pb::Refusal {
            reason: refusal_reason_to_wire(*reason).into(),
            detail: text(detail),
        }),
        DestinationMessage::Ping(token) => Body::Ping(pb::Ping { token: *token }),
        DestinationMessage::Pong(token) => Body::Pong(pb::Pong { token: *token }),
    };
    pb::DestinationMessage { body: Some(body) }
}

fn welcome(welcome: pb::Welcome) -> Decoded<Welcome> {
    let pb::Welcome {
        version,
        node,
        max_frame_bytes,
        max_changes,
        window,
        next_seq,
        next_punt,
        held,
        megaflows,
    } = welcome;
    Ok(Welcome {
        version,
        node: node.parse()?,
        max_frame_bytes: nonzero(max_frame_bytes, "max_frame_bytes")?,
        max_changes: nonzero(max_changes, "max_changes")?,
        window: nonzero(window, "window")?,
        next_seq: Seq(number(next_seq, "next_seq")?),
        next_punt: number(next_punt, "next_punt")?,
        held: held
            .map(|pb::Held { boot_id: boot, digest: of }| {
                Ok::<_, DecodeError>(super::Held { boot_id: boot_id(&boot)?, digest: digest(of)? })
            })
            .transpose()?,
        megaflows,
    })
}

fn welcome_to_wire(welcome: &Welcome) -> pb::Welcome {
    let Welcome { version, node, max_frame_bytes, max_changes, window, next_seq, next_punt, held, megaflows } =
        welcome;
    pb::Welcome {
        version: *version,
        node: node.to_string(),
        max_frame_bytes: *max_frame_bytes,
        max_changes: *max_changes,
        window: *window,
        next_seq: next_seq.0,
        next_punt: *next_punt,
        held: held.map(|super::Held { boot_id, digest }| pb::Held {
            boot_id: boot_id.to_vec(),
            digest: digest_to_wire(digest),
        }),
        megaflows: *megaflows,
    }
}

fn refusal_reason(reason: i32) -> RefusalReason {
    use pb::refusal::Reason;
    match Reason::try_from(reason) {
        Ok(Reason::Version) => RefusalReason::Version,
        Ok(Reason::Identity) => RefusalReason::Identity,
        Ok(Reason::UnknownMigration) => RefusalReason::UnknownMigration,
        Ok(Reason::Protocol) => RefusalReason::Protocol,
        Ok(Reason::Limit) => RefusalReason::Limit,
        Ok(Reason::Replaced) => RefusalReason::Replaced,
        Ok(Reason::Shutdown) => RefusalReason::Shutdown,
        Ok(Reason::Unspecified) | Err(_) => RefusalReason::Other,
    }
}

fn refusal_reason_to_wire(reason: RefusalReason) -> pb::refusal::Reason {
    use pb::refusal::Reason;
    match reason {
        RefusalReason::Other => Reason::Unspecified,
        RefusalReason::Version => Reason::Version,
        RefusalReason::Identity => Reason::Identity,
        RefusalReason::UnknownMigration => Reason::UnknownMigration,
        RefusalReason::Protocol => Reason::Protocol,
        RefusalReason::Limit => Reason::Limit,
        RefusalReason::Replaced => Reason::Replaced,
        RefusalReason::Shutdown => Reason::Shutdown,
    }
}
