//! The three messages of JSON-RPC 1.0: request, notification, response.
//!
//! Owns their JSON. What a method's parameters or results mean is decided by the caller.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::value::shorten;

/// An error that the server gave instead of a result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server refused the request: {error}{}", details.as_ref().map(|d| format!(": {d}")).unwrap_or_default())]
pub struct RpcError {
    /// Short text such as `unknown database`.
    pub error: String,
    /// What exactly, if the server says so.
    pub details: Option<String>,
}

impl RpcError {
    pub(crate) fn from_json(json: &Value) -> Self {
        let text = |key| json.get(key).and_then(Value::as_str).map(str::to_owned);
        let whole = || json.as_str().map_or_else(|| json.to_string(), str::to_owned);
        Self { error: shorten(&text("error").unwrap_or_else(whole)), details: text("details") }
    }
}

/// Why bytes are no JSON-RPC message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not JSON, or no object of the right members.
    #[error("not a JSON-RPC message")]
    Json(#[from] serde_json::Error),
    /// A response whose id is none of ours.
    #[error("response with the id {id}, which no request has")]
    Id {
        /// The id, shortened.
        id: String,
    },
}

/// A message from the server.
#[derive(Debug)]
pub(crate) enum Message {
    Request { method: String, params: Option<Box<RawValue>>, id: Value },
    Notification { method: String, params: Option<Box<RawValue>> },
    Response { id: u64, outcome: Result<Option<Box<RawValue>>, RpcError> },
}

#[derive(Deserialize)]
struct Wire {
    method: Option<String>,
    params: Option<Box<RawValue>>,
    result: Option<Box<RawValue>>,
    error: Option<Value>,
    id: Option<Value>,
}

impl Message {
    pub(crate) fn parse(text: &[u8]) -> Result<Self, MessageError> {
        let Wire { method, params, result, error, id } = serde_json::from_slice(text)?;
        Ok(match (method, id) {
            (Some(method), None) => Self::Notification { method, params },
            (Some(method), Some(id)) => Self::Request { method, params, id },
            (None, id) => {
                let id = id.unwrap_or_default();
                let Some(id) = id.as_u64() else {
                    return Err(MessageError::Id { id: shorten(&id.to_string()) });
                };
                let outcome = match error {
                    Some(error) => Err(RpcError::from_json(&error)),
                    None => Ok(result),
                };
                Self::Response { id, outcome }
            }
        })
    }
}

#[derive(Serialize)]
struct Request<'a, P> {
    id: u64,
    method: &'a str,
    params: P,
}

#[derive(Serialize)]
struct Response<'a> {
    id: &'a Value,
    result: Option<&'a RawValue>,
    error: Option<&'a str>,
}

pub(crate) fn request(id: u64, method: &str, params: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Request { id, method, params })
}

pub(crate) fn response(
    id: &Value,
    result: Option<&RawValue>,
    error: Option<&str>,
) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Response { id, result, error })
}
