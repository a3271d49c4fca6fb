//! The child's way into the container. It runs in a copy of the single-threaded
//! agent, or with a launcher's memory, and ends in `execve`, or returns when it has told what went wrong.

use std::{
    convert::Infallible,
    ffi::CString,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, StatxFlags, statx},
    io::Errno,
    mount::MountPropagationFlags,
    process::umask,
    system::{setdomainname, sethostname},
};

use super::{
    Failure, Io, capabilities,
    devices::{self, Device},
    failure::{During, Step},
    hidden,
    hooks::Hooks,
    mounts::{Mount, Own},
    namespaces::Namespaces,
    process,
    report::READY_BYTES,
    rootfs, streams,
    sys::{self, exit_now},
    sysctl::{self, Sysctl},
    terminal::Terminal,
};

/// Everything the init process of a container has to do, worked out before it
/// is cloned.
#[derive(Debug)]
pub struct Plan {
    pub namespaces: Namespaces,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub sysctls: Vec<Sysctl>,
    pub rootfs: CString,
    pub root_read_only: bool,
    pub root_propagation: Option<MountPropagationFlags>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    pub masked: Vec<CString>,
    pub read_only: Vec<CString>,
    pub hooks: Hooks,
    pub process: process::Plan,
}

/// Everything a further process has to do. Its bounding set of capabilities is right already.
#[derive(Debug)]
pub struct ExecPlan<'a> {
    /// Of the container's init process.
    pub init: BorrowedFd<'a>,
    pub namespaces: Namespaces,
    pub process: process::Plan,
}

/// The child's ends of the two pipes to the agent.
#[derive(Debug)]
pub struct Channel {
    pub status: OwnedFd,
    pub gate: OwnedFd,
}

/// Runs the init process of a new container.
pub fn run(plan: &Plan, io: &Io, terminal: Option<&Terminal>, channel: &Channel) {
    let mut ends = Ends::new(channel);
    let Err(failure) = become_init(plan, io, terminal, &mut ends);
    ends.fail(&failure)
}

/// Runs a further process of a container. `status` is for a failure only: the end of the file means
/// that the program runs, or that the process is no more.
pub fn run_exec(plan: &ExecPlan<'_>, io: &Io, terminal: Option<&Terminal>, status: BorrowedFd<'_>) {
    let mut ends = Ends { status, gate: None };
    let Err(failure) = become_exec(plan, io, terminal, &mut ends);
    ends.fail(&failure)
}

fn become_init<'a>(
    plan: &'a Plan,
    io: &Io,
    terminal: Option<&Terminal>,
    ends: &mut Ends<'a>,
) -> Step<Infallible> {
    let mut devpts = plan.mounts.iter().find_map(Mount::made);
    begin(io, terminal, ends, devpts.as_mut())?;
    plan.namespaces.enter()?;
    name_host(plan)?;
    sysctl::apply(&plan.sysctls)?;
    plan.process.protect_from_oom()?;

    let mut prepared = Vec::with_capacity(plan.mounts.len());
    rootfs::enter(&plan.rootfs, || {
        for mount in &plan.mounts {
            prepared.push(mount.prepare(devpts)?);
        }
        Ok(())
    })?;
    let mut own = Own::default();
    let mut bound = Vec::new();
    for (mount, prepared) in plan.mounts.iter().zip(prepared) {
        mount.attach(prepared, &mut own)?;
        bound.extend(prepared.filter(|_| mount.is_bind()));
    }
    let dev_is_bound = plan
        .mounts
        .iter()
        .any(|m| m.is_bind() && m.destination() == c"/dev");
    devices::make(&plan.devices, &own, dev_is_bound)?;
    if let Some(terminal) = terminal {
        devices::bind_console(&terminal.path)?;
    }
    for mount in &plan.mounts {
        mount.settle()?;
    }
    hidden::make_read_only(&plan.read_only, &own)?;
    hidden::mask(&plan.masked, &own)?;
    plan.process.go_to_cwd(true)?;
    if plan.root_read_only {
        rootfs::make_read_only()?;
    }
    if let Some(flags) = plan.root_propagation {
        rootfs::propagate(flags)?;
    }

    streams::give_to(plan.process.user.uid)?;
    capabilities::limit_bounding_set(plan.process.bounding())?;
    let ready = plan.process.become_user()?;
    ends.wait_for_start()?;
    look_again(&bound);
    plan.hooks.run()?;
    ready.run()
}

/// Engines write files that are bound into the container, as its `hosts`, between creation and start: what
/// the kernel remembers of them may be from before.
fn look_again(bound: &[BorrowedFd<'_>]) {
    let flags = AtFlags::EMPTY_PATH.union(AtFlags::STATX_FORCE_SYNC);
    for place in bound {
        // One that is gone by now shows when the container wants it.
        let _ = statx(place, c"", flags, StatxFlags::BASIC_STATS);
    }
}

fn become_exec<'a>(
    plan: &ExecPlan<'a>,
    io: &Io,
    terminal: Option<&Terminal>,
    ends: &mut Ends<'a>,
) -> Step<Infallible> {
    let mut init = plan.init;
    begin(io, terminal, ends, Some(&mut init))?;
    plan.process.protect_from_oom()?;
    sys::setns(init, plan.namespaces.exec_flags())
        .during(|| "join the container's namespaces".to_owned())?;
    plan.process.go_to_cwd(false)?;
    streams::give_to(plan.process.user.uid)?;
    plan.process.become_user()?.run()
}

/// What comes first in any child: nothing of the agent's may be reached from
/// the container through it, or linger in it.
fn begin<'a>(
    io: &Io,
    terminal: Option<&Terminal>,
    ends: &mut Ends<'a>,
    keep: Option<&mut BorrowedFd<'a>>,
) -> Step {
    sys::prctl(libc::PR_SET_DUMPABLE, 0).during(|| "become non-dumpable".to_owned())?;
    reset_signals().during(|| "reset the signals".to_owned())?;
    let mut kept = vec![&mut ends.status];
    kept.extend(&mut ends.gate);
    kept.extend(keep);
    streams::take(io, terminal, &mut kept)?;
    // Modes are meant as they are written; the user's umask comes with the user.
    umask(rustix::fs::Mode::empty());
    sys::new_session_keyring().during(|| "make a session keyring".to_owned())
}

/// Handlers went with `clone3`; SIGPIPE is what Rust programs ignore by default,
/// and the agent may block signals.
fn reset_signals() -> nix::Result<()> {
    use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
    // SAFETY: the default action is no handler.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

fn name_host(plan: &Plan) -> Step {
    if let Some(name) = &plan.hostname {
        sethostname(name.as_bytes())
            .during(|| format!("set the host name to {name:?}"))
            .map_err(|failure| failure.with_field("hostname"))?;
    }
    if let Some(name) = &plan.domainname {
        setdomainname(name.as_bytes())
            .during(|| format!("set the domain name to {name:?}"))
            .map_err(|failure| failure.with_field("domainname"))?;
    }
    Ok(())
}

/// The child's ends of the pipes, wherever they have been moved to.
struct Ends<'a> {
    status: BorrowedFd<'a>,
    gate: Option<BorrowedFd<'a>>,
}

impl<'a> Ends<'a> {
    fn new(channel: &'a Channel) -> Self {
        Self {
            status: channel.status.as_fd(),
            gate: Some(channel.gate.as_fd()),
        }
    }

    /// Tells the agent that all is ready and waits for its byte. An agent that
    /// closes the gate wants no such process.
    fn wait_for_start(&self) -> Step {
        let step = || "wait to be started".to_owned();
        rustix::io::write(self.status, &READY_BYTES).during(step)?;
        let gate = self.gate.ok_or(Errno::BADF).during(step)?;
        let mut byte = [0];
        loop {
            match rustix::io::read(gate, &mut byte) {
                Ok(0) => exit_now(1),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).during(step),
            }
        }
    }

    fn fail(&self, failure: &Failure) {
        // If the agent is gone there is nobody to tell.
        let _ = rustix::io::write(self.status, &failure.encode());
    }
}
