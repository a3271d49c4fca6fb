//! What several verbs do alike.

use bulkhead_sandbox::client;
use bulkhead_sandbox::id::Id;
use bulkhead_sandbox::paths::Paths;
use bulkhead_sandbox::state::State;
use bulkhead_sandbox::state::StateError;
use bulkhead_sandbox::sweep::{self, Found};
use containerd_shim_protos::shim_async::TaskClient;

use crate::error::CommandError;
use crate::options::Globals;

/// Paths of a container named on the command line.
pub fn paths(globals: &Globals, id: &str) -> Result<Paths, CommandError> {
    Ok(Paths::new(&globals.root, &id.parse::<Id>()?))
}

/// The container's state as it is now.
pub fn state(paths: &Paths) -> Result<State, CommandError> {
    match sweep::inspect(paths)? {
        Found::State(state) => Ok(*state),
        Found::Removed => Err(StateError::NotFound {
            id: paths.id().to_string(),
        }
        .into()),
        Found::Damaged(error) => Err(error.into()),
        Found::Starting => Err(CommandError::WrongState {
            verb: "look at",
            id: paths.id().to_string(),
            state: "creating",
            hint: ": try again in a moment",
        }),
    }
}

/// Runs a conversation with a sandbox process.
pub fn block_on<T>(
    conversation: impl Future<Output = Result<T, CommandError>>,
) -> Result<T, CommandError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::io("start the runtime"))?
        .block_on(conversation)
}

/// Connects to the sandbox process of a container that has one.
pub fn connect(paths: &Paths) -> Result<TaskClient, CommandError> {
    // A missing container has a better message than a missing socket.
    if !paths.dir().exists() {
        return Err(StateError::NotFound {
            id: paths.id().to_string(),
        }
        .into());
    }
    Ok(client::connect(paths)?)
}

/// Bulkhead sets up namespaces and users; without root it can only fail half way.
pub fn require_root() -> Result<(), CommandError> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err(CommandError::NotRoot)
    }
}

/// Name of the user who asks.
pub fn owner() -> String {
    let uid = rustix::process::getuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, entry) = (fields.next()?, fields.nth(1)?);
        (entry == uid.to_string()).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| uid.to_string())
}
