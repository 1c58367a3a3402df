//! What `ovs-appctl` does: commands to ovs-vswitchd over its control socket, JSON-RPC without a database
//! (`lib/unixctl.c`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use ovsdb::{Connection, Options, Remote};

use crate::chain::Chain;

/// The switch answers within this.
const LIMIT: Duration = Duration::from_secs(5);
/// A switch that nobody asks anything may tell of the end of a look half a second after it.
const AGAIN: Duration = Duration::from_millis(5);
/// Bytes of an answer that are read: traces of a flood to many ports are long.
const MAX_ANSWER: usize = 16 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AppctlError {
    /// No ovs-vswitchd has its control socket there.
    #[error("no ovs-vswitchd has a control socket in {0}")]
    NoSwitch(PathBuf),
    /// It does not talk.
    #[error("ovs-vswitchd does not answer at {path}: {why}")]
    Silent {
        /// Its control socket.
        path: PathBuf,
        /// What happened.
        why: String,
    },
    /// It does not do it.
    #[error("ovs-vswitchd refuses {command}: {why}")]
    Refused {
        /// What was asked.
        command: String,
        /// In its words.
        why: String,
    },
    /// It says something that is no text, or a longer one than is read.
    #[error("ovs-vswitchd's answer to {0} is not understood")]
    Syntax(String),
}

/// Has a command carried out by the ovs-vswitchd whose sockets are in this directory; what it says.
///
/// # Errors
/// [`AppctlError`].
pub async fn call(rundir: &Path, command: &str, args: &[&str]) -> Result<String, AppctlError> {
    let path = control_socket(rundir)?;
    let silent = |why: String| AppctlError::Silent { path: path.clone(), why };
    let exchange = async {
        let remote = Remote::Unix(path.clone());
        let options = Options { probe_interval: None, ..Options::default() };
        let connection = Connection::open(&remote, &options).await;
        let (connection, _) = connection.map_err(|error| silent(Chain(&error).to_string()))?;
        let refused = |why: String| AppctlError::Refused { command: command.to_owned(), why };
        connection.request(command, &args).await.map_err(|error| refused(Chain(&error).to_string()))
    };
    let said = tokio::time::timeout(LIMIT, exchange).await;
    let said = said.map_err(|_| silent(format!("nothing within {} s", LIMIT.as_secs())))??;
    // Nothing to say is `null`.
    let Some(text) = said else { return Ok(String::new()) };
    let text = Some(text).filter(|text| text.get().len() <= MAX_ANSWER);
    let text = text.and_then(|text| serde_json::from_str::<Option<String>>(text.get()).ok());
    Ok(text.ok_or_else(|| AppctlError::Syntax(command.to_owned()))?.unwrap_or_default())
}

/// Waits until the datapath has nothing left of what the switch was told before: `poke` is to have it look at all that it holds.
///
/// `revalidator/wait` answers at the end of a look, and looks are half a second apart if nothing changes. So it is asked first, then
/// the switch is poked; and twice, since the first end may be of a look that had begun before. Nor does the end of a look wake the
/// thread that answers (`udpif_run`): so that is asked other things meanwhile.
///
/// # Errors
/// [`AppctlError`].
pub async fn revalidated(rundir: &Path, poke: impl Fn() + Sync) -> Result<(), AppctlError> {
    for _ in 0..2 {
        let waiting = call(rundir, "revalidator/wait", &[]);
        tokio::pin!(waiting);
        let poked = async {
            // Another connection: once that is answered, what was asked before over the first has been read.
            call(rundir, "version", &[]).await?;
            poke();
            loop {
                tokio::time::sleep(AGAIN).await;
                call(rundir, "version", &[]).await?;
            }
        };
        tokio::select! {
            biased;
            said = &mut waiting => { said?; }
            failed = poked => return failed,
        }
    }
    Ok(())
}

/// `ovs-vswitchd.PID.ctl` with the PID of `ovs-vswitchd.pid`, or `ovs-vswitchd.ctl`.
fn control_socket(rundir: &Path) -> Result<PathBuf, AppctlError> {
    let pid = std::fs::read_to_string(rundir.join("ovs-vswitchd.pid")).unwrap_or_default();
    let by_pid = pid.trim().parse::<u32>().map(|pid| format!("ovs-vswitchd.{pid}.ctl")).ok();
    let names = by_pid.into_iter().chain(["ovs-vswitchd.ctl".to_owned()]);
    let mut paths = names.map(|name| rundir.join(name));
    paths.find(|path| is_socket(path)).ok_or_else(|| AppctlError::NoSwitch(rundir.to_owned()))
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}
