//! `hooks.startContainer`: programs of the container that run in it, as its
//! user, right before its own program.

use std::{
    ffi::CString,
    io::{Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use oci_spec::runtime::{Hook as Spec, Spec as Config};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    process::{WaitId, WaitIdOptions, waitid},
};

use super::{
    ContainerError, Failure,
    failure::{During, Step},
    program,
    sys::{self, Cloned},
};

const FIELD: &str = "hooks.startContainer";

/// A program to run.
#[derive(Debug)]
pub struct Hook {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    timeout: Option<Timespec>,
}

/// The hooks of a container and what they are told on their standard input.
#[derive(Debug)]
pub struct Hooks {
    hooks: Vec<Hook>,
    state: serde_json::Value,
}

impl Hooks {
    /// Checks the hooks of the specification. `bundle` is the host's name for it.
    pub fn plan(id: &str, spec: &Config, bundle: &Path) -> Result<Self, ContainerError> {
        let hooks = spec
            .hooks()
            .as_ref()
            .and_then(|hooks| hooks.start_container().as_deref());
        let hooks = hooks.unwrap_or_default();
        let hooks = hooks
            .iter()
            .enumerate()
            .map(|(index, hook)| plan_one(&format!("{FIELD}[{index}]"), hook))
            .collect::<Result<Vec<_>, _>>()?;
        if hooks.is_empty() {
            return Ok(Self {
                hooks,
                state: serde_json::Value::Null,
            });
        }
        let state = serde_json::json!({
            "ociVersion": spec.version(),
            "id": id,
            "status": "created",
            "bundle": bundle,
            "annotations": spec.annotations().clone().unwrap_or_default(),
        });
        Ok(Self { hooks, state })
    }

    /// Runs them in order, in the calling process' place; the first that fails
    /// ends it.
    pub fn run(&self) -> Step {
        if self.hooks.is_empty() {
            return Ok(());
        }
        let mut state = self.state.clone();
        if let Some(state) = state.as_object_mut() {
            state.insert(
                "pid".to_owned(),
                rustix::process::getpid().as_raw_nonzero().get().into(),
            );
        }
        let state = state.to_string();
        for hook in &self.hooks {
            hook.run(state.as_bytes())
                .map_err(|failure| failure.with_field(FIELD))?;
        }
        Ok(())
    }
}

fn plan_one(field: &str, spec: &Spec) -> Result<Hook, ContainerError> {
    if !spec.path().is_absolute() {
        return Err(ContainerError::invalid(
            format!("{field}.path"),
            "it must be absolute",
        ));
    }
    let null = || ContainerError::invalid(field, "it contains a null byte");
    let path = CString::new(spec.path().as_os_str().as_bytes()).map_err(|_| null())?;
    let strings = |list: &Option<Vec<String>>| {
        list.iter()
            .flatten()
            .map(|string| CString::new(string.as_str()).map_err(|_| null()))
            .collect::<Result<Vec<_>, _>>()
    };
    let mut args = strings(spec.args())?;
    if args.is_empty() {
        args.push(path.clone());
    }
    let timeout = match spec.timeout() {
        None => None,
        Some(seconds) if seconds > 0 => Some(Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        }),
        Some(_) => {
            return Err(ContainerError::invalid(
                format!("{field}.timeout"),
                "it must be positive",
            ));
        }
    };
    Ok(Hook {
        path,
        args,
        env: strings(spec.env())?,
        timeout,
    })
}

impl Hook {
    fn run(&self, state: &[u8]) -> Step {
        let step = || format!("run the hook {}", self.path.to_string_lossy());
        // A file, not a pipe: a hook that does not read cannot block or break it.
        let stdin = memfd_create("state", MemfdFlags::CLOEXEC).during(step)?;
        let mut stdin = std::fs::File::from(stdin);
        stdin
            .write_all(state)
            .and_then(|()| stdin.rewind())
            .during(step)?;
        // SAFETY: the calling process is the single-threaded child of the agent.
        match unsafe { sys::clone3(0, None) }.during(step)? {
            Cloned::Child => self.become_hook(stdin.into()),
            Cloned::Parent { pidfd, .. } => self.wait(pidfd),
        }
    }

    fn become_hook(&self, stdin: OwnedFd) -> ! {
        let args = program::pointers(&self.args);
        let env = program::pointers(&self.env);
        let code = match rustix::stdio::dup2_stdin(&stdin) {
            Ok(()) => {
                let failure = program::run(&self.path, &args, &env);
                if failure.errno == libc::ENOENT {
                    127
                } else {
                    126
                }
            }
            Err(_) => 126,
        };
        sys::exit_now(code)
    }

    fn wait(&self, pidfd: OwnedFd) -> Step {
        let name = self.path.to_string_lossy();
        let step = || format!("wait for the hook {name}");
        let mut ready = [PollFd::new(&pidfd, PollFlags::IN)];
        let in_time = poll(&mut ready, self.timeout.as_ref()).during(step)? > 0;
        if !in_time {
            let kill = rustix::process::Signal::KILL;
            rustix::process::pidfd_send_signal(&pidfd, kill).during(step)?;
        }
        let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).during(step)?;
        let code = status.and_then(|status| status.exit_status());
        match code {
            _ if !in_time => Err(Failure::plain(format!(
                "run the hook {name}: it took too long"
            ))),
            Some(0) => Ok(()),
            Some(code) => Err(Failure::plain(format!(
                "run the hook {name}: it exited with {code}"
            ))),
            None => Err(Failure::plain(format!(
                "run the hook {name}: a signal ended it"
            ))),
        }
    }
}
