//! `process.scheduler`, `process.ioPriority` and `linux.personality`.

use std::ffi::c_int;

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, Scheduler,
};

use super::{
    ContainerError, Failure,
    failure::{During, Step},
    sys,
};

/// See personality(2).
const PER_LINUX32: u32 = 0x0008;

/// How the kernel is to schedule the process.
#[derive(Default)]
pub struct Scheduling {
    cpu: Option<libc::sched_attr>,
    io: Option<c_int>,
    personality: Option<u32>,
}

impl std::fmt::Debug for Scheduling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduling")
            .field("policy", &self.cpu.as_ref().map(|cpu| cpu.sched_policy))
            .field("io", &self.io)
            .field("personality", &self.personality)
            .finish()
    }
}

impl Scheduling {
    /// Checks the three fields.
    pub fn plan(
        scheduler: Option<&Scheduler>,
        io: Option<&LinuxIOPriority>,
        personality: Option<&LinuxPersonality>,
    ) -> Result<Self, ContainerError> {
        Ok(Self {
            cpu: scheduler.map(cpu).transpose()?,
            io: io.map(io_priority).transpose()?,
            personality: personality.map(domain).transpose()?,
        })
    }

    /// Applies them to the calling process, while it is still root.
    pub fn apply(&self) -> Step {
        if let Some(attributes) = &self.cpu {
            sys::set_scheduler(attributes)
                .during(|| "set the scheduling policy".to_owned())
                .map_err(|failure| failure.with_field("process.scheduler"))?;
        }
        if let Some(value) = self.io {
            sys::set_io_priority(value)
                .during(|| "set the I/O priority".to_owned())
                .map_err(|failure| failure.with_field("process.ioPriority"))?;
        }
        if let Some(domain) = self.personality {
            // SAFETY: takes an integer.
            let result = unsafe { libc::personality(domain.into()) };
            let result = if result == -1 {
                Err(std::io::Error::last_os_error())
            } else {
                Ok(())
            };
            result
                .during(|| "set the personality".to_owned())
                .and_then(|()| shows_as(domain))
                .map_err(|failure| failure.with_field("linux.personality"))?;
        }
        Ok(())
    }
}

/// A kernel without a 32-bit mode takes the personality, and goes on to name the 64-bit machine.
fn shows_as(domain: u32) -> Step {
    if domain == PER_LINUX32 && rustix::system::uname().machine() != c"i686" {
        let text = "be a 32-bit machine: this guest kernel has no 32-bit mode, use one that has";
        return Err(Failure::plain(text));
    }
    Ok(())
}

fn cpu(spec: &Scheduler) -> Result<libc::sched_attr, ContainerError> {
    use LinuxSchedulerFlag as Flag;
    let policy = match spec.policy() {
        LinuxSchedulerPolicy::SchedOther => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
        LinuxSchedulerPolicy::SchedIso => {
            return Err(ContainerError::unsupported(
                "process.scheduler.policy",
                "Linux has no SCHED_ISO",
            ));
        }
    };
    let mut flags = 0;
    for flag in spec.flags().iter().flatten() {
        flags |= match flag {
            Flag::SchedResetOnFork => 0x01,
            Flag::SchedFlagReclaim => 0x02,
            Flag::SchedFlagDLOverrun => 0x04,
            Flag::SchedFlagKeepPolicy => 0x08,
            Flag::SchedFlagKeepParams => 0x10,
            // Their values have no place in the specification.
            Flag::SchedFlagUtilClampMin | Flag::SchedFlagUtilClampMax => {
                return Err(ContainerError::unsupported(
                    "process.scheduler.flags",
                    "utilisation clamping has no values in the specification",
                ));
            }
        };
    }
    let priority = u32::try_from(spec.priority().unwrap_or(0)).map_err(|_| {
        ContainerError::invalid("process.scheduler.priority", "it must not be negative")
    })?;
    // SAFETY: all-zero is a valid value of this plain C structure.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    attributes.size = u32::try_from(size_of::<libc::sched_attr>()).unwrap_or(48);
    attributes.sched_policy = policy.unsigned_abs();
    attributes.sched_flags = flags;
    attributes.sched_nice = spec.nice().unwrap_or(0);
    attributes.sched_priority = priority;
    attributes.sched_runtime = spec.runtime().unwrap_or(0);
    attributes.sched_deadline = spec.deadline().unwrap_or(0);
    attributes.sched_period = spec.period().unwrap_or(0);
    Ok(attributes)
}

fn io_priority(spec: &LinuxIOPriority) -> Result<c_int, ContainerError> {
    let class = match spec.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let priority = c_int::try_from(spec.priority())
        .ok()
        .filter(|p| (0..8).contains(p))
        .ok_or_else(|| {
            ContainerError::invalid("process.ioPriority.priority", "it must be between 0 and 7")
        })?;
    Ok((class << 13) | priority)
}

fn domain(spec: &LinuxPersonality) -> Result<u32, ContainerError> {
    if spec.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(ContainerError::unsupported(
            "linux.personality.flags",
            "the specification defines none",
        ));
    }
    Ok(match spec.domain() {
        LinuxPersonalityDomain::PerLinux => 0x0000,
        LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
    })
}
