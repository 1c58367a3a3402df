//! The methods of RFC 7047 section 4.1 and ovsdb-server(7) section 4.1 as calls on a [`Connection`].

use serde_json::{Value, json};

use crate::connection::{Connection, RequestError, parse_reply, reply_error};
use crate::monitor::{Monitor, MonitorReply};
use crate::ops::{OpResult, Operation, OperationError, read_results};
use crate::schema::DatabaseSchema;
use crate::value::Uuid;

/// Why a transaction has no results.
#[derive(Debug, thiserror::Error)]
pub enum TransactError {
    /// The server refused; nothing was done.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// No usable reply, see there what that says about the transaction.
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl TransactError {
    /// True if the transaction may or may not have been done.
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(self, Self::Request(RequestError::OutcomeUnknown(_) | RequestError::Reply { .. }))
    }

    /// The server's short error text, such as `constraint violation`.
    pub fn server_error(&self) -> Option<&str> {
        match self {
            Self::Operation(e) => Some(&e.error),
            Self::Request(RequestError::Rpc(e)) => Some(&e.error),
            Self::Request(_) => None,
        }
    }
}

impl Connection {
    /// Names of the server's databases, `_Server` among them.
    pub async fn list_dbs(&self) -> Result<Vec<String>, RequestError> {
        parse_reply("list_dbs", self.request("list_dbs", &[(); 0]).await?)
    }

    /// The schema of a database.
    pub async fn get_schema(&self, database: &str) -> Result<DatabaseSchema, RequestError> {
        let json: Value = parse_reply("get_schema", self.request("get_schema", &[database]).await?)?;
        DatabaseSchema::from_json(&json).map_err(|e| reply_error("get_schema", e))
    }

    /// The version of a database's schema; cheaper than to read it whole.
    pub async fn schema_version(&self, database: &str) -> Result<String, RequestError> {
        #[derive(serde::Deserialize)]
        struct Schema {
            version: String,
        }
        let schema: Schema = parse_reply("get_schema", self.request("get_schema", &[database]).await?)?;
        Ok(schema.version)
    }

    /// Does all operations, or none. One result per operation.
    pub async fn transact(&self, database: &str, ops: &[Operation]) -> Result<Vec<OpResult>, TransactError> {
        let mut params = vec![json!(database)];
        params.extend(ops.iter().map(Operation::to_json));
        let result = self.request("transact", &params).await?;
        let results = read_results(ops, result.as_deref()).map_err(|e| reply_error("transact", e))?;
        Ok(results?)
    }

    /// Asks for a lock. True: owned now; false: queued, and a `locked` notification comes when it is owned.
    pub async fn lock(&self, name: &str) -> Result<bool, RequestError> {
        self.lock_request("lock", name).await
    }

    /// Takes a lock from whoever owns it, who gets a `stolen` notification.
    pub async fn steal(&self, name: &str) -> Result<bool, RequestError> {
        self.lock_request("steal", name).await
    }

    /// Gives a lock back, or gives up waiting for it.
    pub async fn unlock(&self, name: &str) -> Result<(), RequestError> {
        self.request("unlock", &[name]).await.map(drop)
    }

    async fn lock_request(&self, method: &'static str, name: &str) -> Result<bool, RequestError> {
        let json: Value = parse_reply(method, self.request(method, &[name]).await?)?;
        json.get("locked").and_then(Value::as_bool).ok_or_else(|| reply_error(method, "no member 'locked'"))
    }

    /// Starts a monitor by `monitor_cond_since`, or `monitor_cond` if the server is older than that. `id`
    /// comes back in the notifications, `last` is the transaction that the caller's copy is at
    /// ([`Uuid::ZERO`]: none).
    pub async fn monitor(
        &self,
        id: &Value,
        monitor: &Monitor,
        last: Uuid,
    ) -> Result<MonitorReply, RequestError> {
        let requests = monitor.to_json();
        let params = (&monitor.database, id, &requests, last.to_string());
        match self.request("monitor_cond_since", &params).await {
            Ok(result) => {
                let (found, last, updates): (bool, String, _) = parse_reply("monitor_cond_since", result)?;
                let last =
                    last.parse().map_err(|e: crate::ValueError| reply_error("monitor_cond_since", e))?;
                Ok(MonitorReply { found, last, updates })
            }
            Err(RequestError::Rpc(error)) if error.error == "unknown method" => {
                let result = self.request("monitor_cond", &(&monitor.database, id, &requests)).await?;
                let updates = parse_reply("monitor_cond", result)?;
                Ok(MonitorReply { found: false, last: Uuid::ZERO, updates })
            }
            Err(error) => Err(error),
        }
    }

    /// Ends a monitor.
    pub async fn monitor_cancel(&self, id: &Value) -> Result<(), RequestError> {
        self.request("monitor_cancel", &[id]).await.map(drop)
    }
}
