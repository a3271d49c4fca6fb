//! `linux.seccomp`: from the profile to a filter program, and installing it.
//!
//! Profiles of engines have hundreds of rules for several architectures, and the
//! seccomp library takes tens of milliseconds of a guest's time for one. A guest
//! whose kernel runs programs of one architecture only gets a program of our
//! own ([`native`]); otherwise the library compiles it ([`library`]).

mod bpf;
mod library;
mod native;
mod profile;
mod syscalls;

use std::sync::Arc;

use oci_spec::runtime::{Arch, LinuxSeccomp};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use self::profile::Profile;
use super::{
    ContainerError,
    failure::{During, Step},
    sys,
};

/// There only where the kernel runs 32-bit programs as well.
const SIGN_OF_32_BIT: &str = "/proc/sys/abi/vsyscall32";

/// A compiled profile. Shared by all processes of a container.
#[derive(Clone)]
pub struct Filter {
    program: Arc<[libc::sock_filter]>,
    flags: u64,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter")
            .field("instructions", &self.program.len())
            .finish()
    }
}

impl Filter {
    /// Compiles the profile.
    pub fn plan(spec: &LinuxSeccomp) -> Result<Self, ContainerError> {
        let profile = Profile::plan(spec)?;
        let program = if cfg!(target_arch = "x86_64") && !needs_32_bit(&profile) {
            native::compile(&profile)?
        } else {
            library::compile(&profile)?
        };
        Ok(Self {
            program: program.into(),
            flags: profile.flags,
        })
    }

    /// Installs it on the calling process; needs `CAP_SYS_ADMIN` or `no_new_privs`.
    pub fn apply(&self) -> Step {
        sys::set_seccomp_filter(&self.program, self.flags)
            .during(|| "install the seccomp filter".to_owned())
            .map_err(|failure| failure.with_field("linux.seccomp"))
    }
}

fn needs_32_bit(profile: &Profile<'_>) -> bool {
    profile.architectures.contains(&Arch::ScmpArchX86)
        && accessat(CWD, SIGN_OF_32_BIT, Access::EXISTS, AtFlags::empty()).is_ok()
}
