//! What `process` of the specification asks for, for the init process of a
//! container and for further ones alike.

use std::ffi::CString;

use oci_spec::runtime::{LinuxPersonality, Process as Spec};
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    thread::set_no_new_privs,
};

use super::{
    ContainerError,
    capabilities::Capabilities,
    failure::{During, Step, shown},
    mounts::target,
    program,
    rlimits::{self, Limit},
    scheduling::Scheduling,
    seccomp::Filter,
    user::{self, User},
};

/// A process, checked and ready to be made.
#[derive(Debug)]
pub struct Plan {
    args: Vec<CString>,
    env: Vec<CString>,
    cwd: CString,
    /// Who it runs as.
    pub user: User,
    capabilities: Capabilities,
    no_new_privileges: bool,
    rlimits: Vec<Limit>,
    oom_score_adj: Option<i32>,
    scheduling: Scheduling,
    seccomp: Option<Filter>,
}

/// A process that has become everything but its program.
#[derive(Debug)]
pub struct Ready<'a> {
    plan: &'a Plan,
    program: CString,
    home: Option<CString>,
    /// `CAP_SYS_ADMIN` was kept for the seccomp filter.
    kept_admin: bool,
}

impl Plan {
    /// Checks the process. `terminal` is what the caller provides; it has to be
    /// what the specification says.
    pub fn new(
        spec: &Spec,
        seccomp: Option<Filter>,
        personality: Option<&LinuxPersonality>,
        terminal: bool,
    ) -> Result<Self, ContainerError> {
        refuse(spec)?;
        if spec.terminal().unwrap_or(false) != terminal {
            return Err(ContainerError::invalid(
                "process.terminal",
                format!("it is {}, but the streams say otherwise", !terminal),
            ));
        }
        let args = c_strings("process.args", spec.args().as_deref().unwrap_or_default())?;
        if args.first().is_none_or(|name| name.is_empty()) {
            return Err(ContainerError::invalid(
                "process.args",
                "there is no program to run",
            ));
        }
        if !spec.cwd().is_absolute() {
            return Err(ContainerError::invalid(
                "process.cwd",
                "it must be an absolute path",
            ));
        }
        let cwd = CString::new(program::path_bytes(spec.cwd()))
            .map_err(|_| ContainerError::invalid("process.cwd", "it contains a null byte"))?;
        let oom_score_adj = spec.oom_score_adj();
        if oom_score_adj.is_some_and(|value| !(-1000..=1000).contains(&value)) {
            return Err(ContainerError::invalid(
                "process.oomScoreAdj",
                "it must be between -1000 and 1000",
            ));
        }
        Ok(Self {
            args,
            env: c_strings("process.env", spec.env().as_deref().unwrap_or_default())?,
            cwd,
            user: User::plan(spec.user())?,
            capabilities: Capabilities::plan(spec.capabilities().as_ref()),
            no_new_privileges: spec.no_new_privileges().unwrap_or(false),
            rlimits: rlimits::plan(spec.rlimits().as_deref())?,
            oom_score_adj,
            scheduling: Scheduling::plan(
                spec.scheduler().as_ref(),
                spec.io_priority().as_ref(),
                personality,
            )?,
            seccomp,
        })
    }

    /// Goes to the working directory, as root: it need not be the user's. With
    /// `make` it is made if it is missing.
    pub fn go_to_cwd(&self, make: bool) -> Step {
        let go = || match rustix::process::chdir(self.cwd.as_c_str()) {
            Err(Errno::NOENT) if make => {
                let made = target::directory(&self.cwd)?;
                rustix::process::fchdir(made).during(|| self.cwd_step())
            }
            result => result.during(|| self.cwd_step()),
        };
        go().map_err(|failure| failure.with_field("process.cwd"))
    }

    fn cwd_step(&self) -> String {
        format!("go to the working directory {}", shown(&self.cwd))
    }

    /// What needs the agent's `/proc`, so it comes before its root is left.
    pub fn protect_from_oom(&self) -> Step {
        let Some(value) = self.oom_score_adj else {
            return Ok(());
        };
        let write = || -> std::io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let file = openat(CWD, c"/proc/self/oom_score_adj", flags, Mode::empty())?;
            rustix::io::write(&file, value.to_string().as_bytes())?;
            Ok(())
        };
        write()
            .during(|| format!("set the OOM score adjustment to {value}"))
            .map_err(|failure| failure.with_field("process.oomScoreAdj"))
    }

    /// The capabilities that it and what it runs can have, bit n for capability number n.
    pub fn bounding(&self) -> u64 {
        self.capabilities.bounding()
    }

    /// Becomes the user with the limits and capabilities wanted and looks the
    /// program up. To be called in the container's working directory, as root, by a process whose
    /// bounding set is [`Self::bounding`] already.
    pub fn become_user(&self) -> Step<Ready<'_>> {
        self.scheduling.apply()?;
        rlimits::apply(&self.rlimits)?;
        let home = match program::value_of(&self.env, "HOME") {
            Some(home) if !home.is_empty() => None,
            _ => Some(user::home(self.user.uid)?),
        };
        self.user.apply()?;
        if self.no_new_privileges {
            set_no_new_privs(true).during(|| "set no_new_privs".to_owned())?;
        }
        let kept_admin =
            self.seccomp.is_some() && !self.no_new_privileges && !self.capabilities.has_admin();
        self.capabilities.apply(kept_admin)?;
        let name = self.args.first().map_or(c"", CString::as_c_str);
        let program = program::find(name, program::value_of(&self.env, "PATH"))?;
        Ok(Ready {
            plan: self,
            program,
            home,
            kept_admin,
        })
    }
}

impl Ready<'_> {
    /// Installs the seccomp filter and runs the program. Returns only on failure.
    pub fn run(&self) -> Step<std::convert::Infallible> {
        let plan = self.plan;
        let args = program::pointers(&plan.args);
        let home = self
            .home
            .as_ref()
            .map(|home| [b"HOME=", home.as_bytes()].concat());
        let home = home.and_then(|home| CString::new(home).ok());
        // The caller's empty HOME, if there is one, gives way to the image's.
        let env = plan
            .env
            .iter()
            .filter(|entry| home.is_none() || !entry.as_bytes().starts_with(b"HOME="));
        let env = program::pointers(env.chain(&home));
        if let Some(filter) = &plan.seccomp {
            // From here on only what the profile allows: as few calls as possible.
            filter.apply()?;
        }
        if self.kept_admin {
            plan.capabilities.finish()?;
        }
        Err(program::run(&self.program, &args, &env))
    }
}

/// What a process may ask for and the guest does not do.
fn refuse(spec: &Spec) -> Result<(), ContainerError> {
    let set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let refusal = |field: &str, reason: &str| Err(ContainerError::unsupported(field, reason));
    if set(spec.apparmor_profile()) {
        return refusal(
            "process.apparmorProfile",
            "the guest's kernel has no AppArmor; the virtual machine is the wall, leave it out",
        );
    }
    if set(spec.selinux_label()) {
        return refusal(
            "process.selinuxLabel",
            "the guest's kernel has no SELinux; the virtual machine is the wall, leave it out",
        );
    }
    if spec.exec_cpu_affinity().is_some() {
        return refusal(
            "process.execCPUAffinity",
            "the guest does not choose processors for single processes",
        );
    }
    Ok(())
}

fn c_strings(field: &str, strings: &[String]) -> Result<Vec<CString>, ContainerError> {
    strings
        .iter()
        .enumerate()
        .map(|(index, string)| {
            CString::new(string.as_str()).map_err(|_| {
                ContainerError::invalid(format!("{field}[{index}]"), "it contains a null byte")
            })
        })
        .collect()
}
