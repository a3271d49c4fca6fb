//! The `jailed` hat: enters a jail and executes a program that knows nothing of jails.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Jail, JailError, confine};

/// What to execute in which jail.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ExecConfig {
    /// The walls. After the one `execve` that starts the program its filter allows no other.
    pub jail: Jail,
    /// The program, by its path inside the jail.
    pub program: PathBuf,
    /// Its arguments, without its name.
    pub args: Vec<String>,
    /// Its whole environment, as `NAME=value`.
    pub env: Vec<String>,
    /// `personality(2)` flags the program would otherwise set and execute itself again for.
    #[serde(default)]
    pub personality: u32,
    /// Most processes and threads of the jail's user, which should have no others; none: as many as
    /// the caller may have.
    #[serde(default)]
    pub processes: Option<u64>,
}

/// Enters the jail and becomes the program; returns only on failure, after which the process must
/// exit. Call it as the first act of a process started by [`spawn`](crate::spawn).
pub fn main(config: ExecConfig) -> JailError {
    match run(&config) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn run(config: &ExecConfig) -> Result<Infallible, JailError> {
    if !config.jail.capabilities.is_empty() {
        return Err(JailError::ExecWithCapabilities {
            count: config.jail.capabilities.len(),
        });
    }
    let string = |bytes: &[u8], what| CString::new(bytes).map_err(|_| JailError::Nul { what });
    let program = string(config.program.as_os_str().as_bytes(), "the program's path")?;
    let mut args = vec![program.clone()];
    for arg in &config.args {
        args.push(string(arg.as_bytes(), "an argument")?);
    }
    let mut env = Vec::with_capacity(config.env.len());
    for variable in &config.env {
        env.push(string(variable.as_bytes(), "an environment variable")?);
    }
    let pointers = |strings: &[CString]| {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect::<Vec<_>>()
    };
    let (argv, envp) = (pointers(&args), pointers(&env));
    if config.personality != 0 {
        // SAFETY: takes one integer and touches no memory.
        if unsafe { libc::personality(libc::c_ulong::from(config.personality)) } < 0 {
            return Err(JailError::Confine {
                step: "set the personality",
                source: std::io::Error::last_os_error(),
            });
        }
    }
    if let Some(most) = config.processes {
        confine::limit_processes(most)?;
    }
    config.jail.enter_to_execute(&program)?;
    // SAFETY: both arrays end with a null pointer, and they and the strings they point to live
    // until the process image is replaced.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Err(JailError::Exec {
        program: config.program.clone(),
        source: std::io::Error::last_os_error(),
    })
}
