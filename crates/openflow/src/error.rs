//! Errors as a switch reports them, and their names.

use crate::wire::{DecodeError, Reader};
use bytes::Bytes;

/// An error message. It displays as its OpenFlow name, for example `OFPBFC_MSG_FAILED`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Type and code.
    pub code: ErrorCode,
    /// The first bytes of the message that failed (at least 64, or all of it), or a text for a failed hello.
    pub data: Bytes,
}

impl std::error::Error for Error {}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.code.fmt(f)
    }
}

impl Error {
    pub(crate) fn decode(mut r: Reader<'_>) -> Result<Error, DecodeError> {
        let kind = r.u16()?;
        let code = r.u16()?;
        let code = if kind == EXPERIMENTER {
            match r.u32()? {
                // struct nx_vendor_error: the code stands before the vendor id.
                crate::action::NX => ErrorCode::Nicira(code),
                experimenter => ErrorCode::Experimenter { experimenter, code },
            }
        } else {
            ErrorCode::OpenFlow { kind, code }
        };
        Ok(Error { code, data: Bytes::copy_from_slice(r.rest()) })
    }

    /// The type of the message that failed (`OFPT_*`), if its bytes came back.
    pub fn failed_message_type(&self) -> Option<u8> {
        self.data.get(1).copied()
    }
}

const EXPERIMENTER: u16 = 0xffff;

/// Type and code of an [`Error`]. Codes without a name survive as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorCode {
    /// `enum ofp_error_type` and its code.
    OpenFlow {
        /// Type.
        kind: u16,
        /// Code.
        code: u16,
    },
    /// An error of Open vSwitch (`NX1.2+` in `ofp-errors.h`).
    Nicira(u16),
    /// An error of somebody else.
    Experimenter {
        /// Who.
        experimenter: u32,
        /// Which.
        code: u16,
    },
}

impl ErrorCode {
    const fn of(kind: u16, code: u16) -> ErrorCode {
        ErrorCode::OpenFlow { kind, code }
    }

    /// `OFPHFC_INCOMPATIBLE`: no common version.
    pub const HELLO_INCOMPATIBLE: ErrorCode = ErrorCode::of(0, 0);
    /// `OFPBRC_BAD_VERSION`: the version is not supported.
    pub const BAD_VERSION: ErrorCode = ErrorCode::of(1, 0);
    /// `OFPBRC_BAD_TYPE`: the message type is not supported.
    pub const BAD_TYPE: ErrorCode = ErrorCode::of(1, 1);
    /// `OFPBRC_EPERM`: not permitted.
    pub const PERMISSION: ErrorCode = ErrorCode::of(1, 5);
    /// `OFPBRC_BAD_LEN`: wrong message length.
    pub const BAD_LEN: ErrorCode = ErrorCode::of(1, 6);
    /// `OFPBAC_BAD_OUT_PORT`: an action sends to a port that cannot be.
    pub const BAD_OUT_PORT: ErrorCode = ErrorCode::of(2, 4);
    /// `OFPBAC_BAD_OUT_GROUP`: an action names a group that does not exist.
    pub const BAD_OUT_GROUP: ErrorCode = ErrorCode::of(2, 9);
    /// `OFPBAC_MATCH_INCONSISTENT`: an action does not fit the match.
    pub const MATCH_INCONSISTENT: ErrorCode = ErrorCode::of(2, 10);
    /// `OFPBAC_BAD_METER`: an action names a meter that does not exist.
    pub const BAD_METER: ErrorCode = ErrorCode::of(2, 17);
    /// `OFPBMC_BAD_PREREQ`: the match lacks a field that another one requires.
    pub const BAD_PREREQ: ErrorCode = ErrorCode::of(4, 9);
    /// `OFPFMFC_TABLE_FULL`: the flow table is full.
    pub const TABLE_FULL: ErrorCode = ErrorCode::of(5, 1);
    /// `OFPFMFC_BAD_TABLE_ID`: no such table.
    pub const BAD_TABLE_ID: ErrorCode = ErrorCode::of(5, 2);
    /// `OFPFMFC_OVERLAP`: the flow overlaps another one.
    pub const OVERLAP: ErrorCode = ErrorCode::of(5, 3);
    /// `OFPGMFC_GROUP_EXISTS`: the group exists already.
    pub const GROUP_EXISTS: ErrorCode = ErrorCode::of(6, 0);
    /// `OFPGMFC_UNKNOWN_GROUP`: no such group.
    pub const UNKNOWN_GROUP: ErrorCode = ErrorCode::of(6, 8);
    /// `OFPMMFC_METER_EXISTS`: the meter exists already.
    pub const METER_EXISTS: ErrorCode = ErrorCode::of(12, 1);
    /// `OFPMMFC_UNKNOWN_METER`: no such meter.
    pub const UNKNOWN_METER: ErrorCode = ErrorCode::of(12, 3);
    /// `OFPBFC_BAD_ID`: no such bundle.
    pub const BUNDLE_BAD_ID: ErrorCode = ErrorCode::of(17, 2);
    /// `OFPBFC_MSG_FAILED`: a message of the bundle failed.
    pub const BUNDLE_MSG_FAILED: ErrorCode = ErrorCode::of(17, 13);

    /// The name in the OpenFlow specification or in Open vSwitch.
    pub fn name(self) -> Option<&'static str> {
        match self {
            ErrorCode::OpenFlow { kind, code } => {
                let at = OPENFLOW.binary_search_by_key(&(kind, code), |&(k, c, _)| (k, c)).ok()?;
                OPENFLOW.get(at).map(|e| e.2)
            }
            ErrorCode::Nicira(code) => {
                let at = NICIRA.binary_search_by_key(&code, |e| e.0).ok()?;
                NICIRA.get(at).map(|e| e.1)
            }
            ErrorCode::Experimenter { .. } => None,
        }
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.name(), *self) {
            (Some(name), _) => f.write_str(name),
            (None, ErrorCode::OpenFlow { kind, code }) => write!(f, "openflow error type {kind} code {code}"),
            (None, ErrorCode::Nicira(code)) => write!(f, "nicira error {code}"),
            (None, ErrorCode::Experimenter { experimenter, code }) => {
                write!(f, "error {code} of experimenter {experimenter:#010x}")
            }
        }
    }
}

/// Type, code and name in OpenFlow 1.5, sorted.
const OPENFLOW: &[(u16, u16, &str)] = &[
    (0, 0, "OFPHFC_INCOMPATIBLE"),
    (0, 1, "OFPHFC_EPERM"),
    (1, 0, "OFPBRC_BAD_VERSION"),
    (1, 1, "OFPBRC_BAD_TYPE"),
    (1, 2, "OFPBRC_BAD_STAT"),
    (1, 3, "OFPBRC_BAD_VENDOR"),
    (1, 4, "OFPBRC_BAD_SUBTYPE"),
    (1, 5, "OFPBRC_EPERM"),
    (1, 6, "OFPBRC_BAD_LEN"),
    (1, 7, "OFPBRC_BUFFER_EMPTY"),
    (1, 8, "OFPBRC_BUFFER_UNKNOWN"),
    (1, 9, "OFPBRC_BAD_TABLE_ID"),
    (1, 10, "OFPBRC_IS_SECONDARY"),
    (1, 11, "OFPBRC_BAD_PORT"),
    (1, 12, "OFPBRC_BAD_PACKET"),
    (1, 13, "OFPBRC_MULTIPART_BUFFER_OVERFLOW"),
    (1, 14, "OFPBRC_MULTIPART_REQUEST_TIMEOUT"),
    (1, 15, "OFPBRC_MULTIPART_REPLY_TIMEOUT"),
    (1, 16, "OFPBRC_MULTIPART_BAD_SCHED"),
    (1, 17, "OFPBRC_PIPELINE_FIELDS_ONLY"),
    (1, 18, "OFPBRC_UNKNOWN"),
    (2, 0, "OFPBAC_BAD_TYPE"),
    (2, 1, "OFPBAC_BAD_LEN"),
    (2, 2, "OFPBAC_BAD_VENDOR"),
    (2, 3, "OFPBAC_BAD_VENDOR_TYPE"),
    (2, 4, "OFPBAC_BAD_OUT_PORT"),
    (2, 5, "OFPBAC_BAD_ARGUMENT"),
    (2, 6, "OFPBAC_EPERM"),
    (2, 7, "OFPBAC_TOO_MANY"),
    (2, 8, "OFPBAC_BAD_QUEUE"),
    (2, 9, "OFPBAC_BAD_OUT_GROUP"),
    (2, 10, "OFPBAC_MATCH_INCONSISTENT"),
    (2, 11, "OFPBAC_UNSUPPORTED_ORDER"),
    (2, 12, "OFPBAC_BAD_TAG"),
    (2, 13, "OFPBAC_BAD_SET_TYPE"),
    (2, 14, "OFPBAC_BAD_SET_LEN"),
    (2, 15, "OFPBAC_BAD_SET_ARGUMENT"),
    (2, 16, "OFPBAC_BAD_SET_MASK"),
    (2, 17, "OFPBAC_BAD_METER"),
    (3, 0, "OFPBIC_UNKNOWN_INST"),
    (3, 1, "OFPBIC_UNSUP_INST"),
    (3, 2, "OFPBIC_BAD_TABLE_ID"),
    (3, 3, "OFPBIC_UNSUP_METADATA"),
    (3, 4, "OFPBIC_UNSUP_METADATA_MASK"),
    (3, 5, "OFPBIC_BAD_EXPERIMENTER"),
    (3, 6, "OFPBIC_BAD_EXP_TYPE"),
    (3, 7, "OFPBIC_BAD_LEN"),
    (3, 8, "OFPBIC_EPERM"),
    (3, 9, "OFPBIC_DUP_INST"),
    (4, 0, "OFPBMC_BAD_TYPE"),
    (4, 1, "OFPBMC_BAD_LEN"),
    (4, 2, "OFPBMC_BAD_TAG"),
    (4, 3, "OFPBMC_BAD_DL_ADDR_MASK"),
    (4, 4, "OFPBMC_BAD_NW_ADDR_MASK"),
    (4, 5, "OFPBMC_BAD_WILDCARDS"),
    (4, 6, "OFPBMC_BAD_FIELD"),
    (4, 7, "OFPBMC_BAD_VALUE"),
    (4, 8, "OFPBMC_BAD_MASK"),
    (4, 9, "OFPBMC_BAD_PREREQ"),
    (4, 10, "OFPBMC_DUP_FIELD"),
    (4, 11, "OFPBMC_EPERM"),
    (5, 0, "OFPFMFC_UNKNOWN"),
    (5, 1, "OFPFMFC_TABLE_FULL"),
    (5, 2, "OFPFMFC_BAD_TABLE_ID"),
    (5, 3, "OFPFMFC_OVERLAP"),
    (5, 4, "OFPFMFC_EPERM"),
    (5, 5, "OFPFMFC_BAD_TIMEOUT"),
    (5, 6, "OFPFMFC_BAD_COMMAND"),
    (5, 7, "OFPFMFC_BAD_FLAGS"),
    (5, 8, "OFPFMFC_CANT_SYNC"),
    (5, 9, "OFPFMFC_BAD_PRIORITY"),
    (5, 10, "OFPFMFC_IS_SYNC"),
    (6, 0, "OFPGMFC_GROUP_EXISTS"),
    (6, 1, "OFPGMFC_INVALID_GROUP"),
    (6, 2, "OFPGMFC_WEIGHT_UNSUPPORTED"),
    (6, 3, "OFPGMFC_OUT_OF_GROUPS"),
    (6, 4, "OFPGMFC_OUT_OF_BUCKETS"),
    (6, 5, "OFPGMFC_CHAINING_UNSUPPORTED"),
    (6, 6, "OFPGMFC_WATCH_UNSUPPORTED"),
    (6, 7, "OFPGMFC_LOOP"),
    (6, 8, "OFPGMFC_UNKNOWN_GROUP"),
    (6, 9, "OFPGMFC_CHAINED_GROUP"),
    (6, 10, "OFPGMFC_BAD_TYPE"),
    (6, 11, "OFPGMFC_BAD_COMMAND"),
    (6, 12, "OFPGMFC_BAD_BUCKET"),
    (6, 13, "OFPGMFC_BAD_WATCH"),
    (6, 14, "OFPGMFC_EPERM"),
    (6, 15, "OFPGMFC_UNKNOWN_BUCKET"),
    (6, 16, "OFPGMFC_BUCKET_EXISTS"),
    (7, 0, "OFPPMFC_BAD_PORT"),
    (7, 1, "OFPPMFC_BAD_HW_ADDR"),
    (7, 2, "OFPPMFC_BAD_CONFIG"),
    (7, 3, "OFPPMFC_BAD_ADVERTISE"),
    (7, 4, "OFPPMFC_EPERM"),
    (8, 0, "OFPTMFC_BAD_TABLE"),
    (8, 1, "OFPTMFC_BAD_CONFIG"),
    (8, 2, "OFPTMFC_EPERM"),
    (9, 0, "OFPQOFC_BAD_PORT"),
    (9, 1, "OFPQOFC_BAD_QUEUE"),
    (9, 2, "OFPQOFC_EPERM"),
    (10, 0, "OFPSCFC_BAD_FLAGS"),
    (10, 1, "OFPSCFC_BAD_LEN"),
    (10, 2, "OFPSCFC_EPERM"),
    (11, 0, "OFPRRFC_STALE"),
    (11, 1, "OFPRRFC_UNSUP"),
    (11, 2, "OFPRRFC_BAD_ROLE"),
    (11, 3, "OFPRRFC_ID_UNSUP"),
    (11, 4, "OFPRRFC_ID_IN_USE"),
    (12, 0, "OFPMMFC_UNKNOWN"),
    (12, 1, "OFPMMFC_METER_EXISTS"),
    (12, 2, "OFPMMFC_INVALID_METER"),
    (12, 3, "OFPMMFC_UNKNOWN_METER"),
    (12, 4, "OFPMMFC_BAD_COMMAND"),
    (12, 5, "OFPMMFC_BAD_FLAGS"),
    (12, 6, "OFPMMFC_BAD_RATE"),
    (12, 7, "OFPMMFC_BAD_BURST"),
    (12, 8, "OFPMMFC_BAD_BAND"),
    (12, 9, "OFPMMFC_BAD_BAND_VALUE"),
    (12, 10, "OFPMMFC_OUT_OF_METERS"),
    (12, 11, "OFPMMFC_OUT_OF_BANDS"),
    (13, 0, "OFPTFFC_BAD_TABLE"),
    (13, 1, "OFPTFFC_BAD_METADATA"),
    (13, 5, "OFPTFFC_EPERM"),
    (13, 6, "OFPTFFC_BAD_CAPA"),
    (13, 7, "OFPTFFC_BAD_MAX_ENT"),
    (13, 8, "OFPTFFC_BAD_FEATURES"),
    (13, 9, "OFPTFFC_BAD_COMMAND"),
    (13, 10, "OFPTFFC_TOO_MANY"),
    (14, 0, "OFPBPC_BAD_TYPE"),
    (14, 1, "OFPBPC_BAD_LEN"),
    (14, 2, "OFPBPC_BAD_VALUE"),
    (14, 3, "OFPBPC_TOO_MANY"),
    (14, 4, "OFPBPC_DUP_TYPE"),
    (14, 5, "OFPBPC_BAD_EXPERIMENTER"),
    (14, 6, "OFPBPC_BAD_EXP_TYPE"),
    (14, 7, "OFPBPC_BAD_EXP_VALUE"),
    (14, 8, "OFPBPC_EPERM"),
    (15, 0, "OFPACFC_INVALID"),
    (15, 1, "OFPACFC_UNSUPPORTED"),
    (15, 2, "OFPACFC_EPERM"),
    (16, 0, "OFPMOFC_UNKNOWN"),
    (16, 1, "OFPMOFC_MONITOR_EXISTS"),
    (16, 2, "OFPMOFC_INVALID_MONITOR"),
    (16, 3, "OFPMOFC_UNKNOWN_MONITOR"),
    (16, 4, "OFPMOFC_BAD_COMMAND"),
    (16, 5, "OFPMOFC_BAD_FLAGS"),
    (16, 6, "OFPMOFC_BAD_TABLE_ID"),
    (16, 7, "OFPMOFC_BAD_OUT"),
    (17, 0, "OFPBFC_UNKNOWN"),
    (17, 1, "OFPBFC_EPERM"),
    (17, 2, "OFPBFC_BAD_ID"),
    (17, 3, "OFPBFC_BUNDLE_EXIST"),
    (17, 4, "OFPBFC_BUNDLE_CLOSED"),
    (17, 5, "OFPBFC_OUT_OF_BUNDLES"),
    (17, 6, "OFPBFC_BAD_TYPE"),
    (17, 7, "OFPBFC_BAD_FLAGS"),
    (17, 8, "OFPBFC_MSG_BAD_LEN"),
    (17, 9, "OFPBFC_MSG_BAD_XID"),
    (17, 10, "OFPBFC_MSG_UNSUP"),
    (17, 11, "OFPBFC_MSG_CONFLICT"),
    (17, 12, "OFPBFC_MSG_TOO_MANY"),
    (17, 13, "OFPBFC_MSG_FAILED"),
    (17, 14, "OFPBFC_TIMEOUT"),
    (17, 15, "OFPBFC_BUNDLE_IN_PROGRESS"),
    (17, 16, "OFPBFC_SCHED_NOT_SUPPORTED"),
    (17, 17, "OFPBFC_SCHED_FUTURE"),
    (17, 18, "OFPBFC_SCHED_PAST"),
];

/// Code and name of the Nicira errors in OpenFlow 1.5, sorted.
const NICIRA: &[(u16, &str)] = &[
    (2, "NXBRC_NXM_INVALID"),
    (3, "NXBRC_NXM_BAD_TYPE"),
    (4, "NXBRC_MUST_BE_ZERO"),
    (5, "NXBRC_BAD_REASON"),
    (9, "NXBRC_FM_BAD_EVENT"),
    (10, "NXBRC_UNENCODABLE_ERROR"),
    (11, "NXBAC_MUST_BE_ZERO"),
    (12, "NXFMFC_HARDWARE"),
    (13, "NXFMFC_BAD_TABLE_ID"),
    (15, "NXBAC_BAD_CONJUNCTION"),
    (16, "NXTTMFC_BAD_COMMAND"),
    (17, "NXTTMFC_BAD_OPT_LEN"),
    (18, "NXTTMFC_BAD_FIELD_IDX"),
    (19, "NXTTMFC_TABLE_FULL"),
    (20, "NXTTMFC_ALREADY_MAPPED"),
    (21, "NXTTMFC_DUP_ENTRY"),
    (22, "OFPBFC_BAD_VERSION"),
    (23, "NXQOFC_QUEUE_ERROR"),
    (34, "NXR_NOT_SUPPORTED"),
    (35, "NXR_STALE"),
    (36, "NXST_NOT_CONFIGURED"),
    (37, "NXFMFC_INVALID_TLV_FIELD"),
    (38, "NXTTMFC_INVALID_TLV_DEL"),
    (39, "NXBAC_BAD_HEADER_TYPE"),
    (40, "NXBAC_UNKNOWN_ED_PROP"),
    (41, "NXBAC_BAD_ED_PROP"),
    (42, "NXBAC_CT_DATAPATH_SUPPORT"),
    (43, "NXBMC_CT_DATAPATH_SUPPORT"),
    (44, "NXTFFC_DUP_TABLE"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted() {
        assert!(OPENFLOW.is_sorted_by_key(|e| (e.0, e.1)));
        assert!(NICIRA.is_sorted_by_key(|e| e.0));
    }

    #[test]
    fn names() {
        assert_eq!(ErrorCode::BUNDLE_MSG_FAILED.to_string(), "OFPBFC_MSG_FAILED");
        assert_eq!(ErrorCode::BAD_PREREQ.to_string(), "OFPBMC_BAD_PREREQ");
        assert_eq!(ErrorCode::Nicira(11).to_string(), "NXBAC_MUST_BE_ZERO");
        assert_eq!(ErrorCode::of(99, 7).to_string(), "openflow error type 99 code 7");
    }
}
