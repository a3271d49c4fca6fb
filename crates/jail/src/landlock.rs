//! Landlock: a process gives up the file system by a rule of its own, beside the root it was given.
//!
//! A second fence: it holds where the first, the jail's empty root, was got around by a descriptor of a
//! directory outside. What is open stays open and usable.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

use crate::JailError;
use crate::capability::last_errno;

/// `struct landlock_ruleset_attr` of `linux/landlock.h`. Older kernels know its beginning only and take
/// the rest as long as it is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rights {
    /// What may be done with files by path.
    files: u64,
    /// TCP ports: bind and connect.
    net: u64,
    /// Abstract local sockets and signals, kept inside.
    scopes: u64,
}

impl Rights {
    /// All that a kernel of interface version `abi` can take away.
    fn all(abi: u32) -> Self {
        // Bits of `LANDLOCK_ACCESS_FS_*`: 13 at first, then linking across directories (2), truncation
        // (3), requests to devices (5).
        let files = match abi {
            0 => 0,
            1 => 13,
            2 => 14,
            3 | 4 => 15,
            _ => 16,
        };
        Self {
            files: (1 << files) - 1,
            net: if abi >= 4 { 0b11 } else { 0 },
            scopes: if abi >= 6 { 0b11 } else { 0 },
        }
    }
}

/// The version of Landlock's interface this host's kernel has; none when it was built without Landlock, or
/// started without it (`lsm=`).
pub fn version() -> Option<u32> {
    const CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the kernel reads no attributes; it asks for a null pointer and size 0.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<Rights>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

/// Gives up every path, TCP and what is outside of the process for good, as far as this host's Landlock goes;
/// nothing where it has none. Needs `no_new_privs`. Threads started later inherit it.
///
/// # Errors
/// When a kernel with Landlock refuses.
pub(crate) fn give_up_paths() -> Result<(), JailError> {
    let Some(abi) = version() else {
        return Ok(());
    };
    let ruleset = ruleset(Rights::all(abi)).map_err(JailError::confine(
        "make a Landlock rule set without any path",
    ))?;
    // SAFETY: takes two integers.
    let result =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) };
    if result < 0 {
        return Err(JailError::confine("give up all paths by Landlock")(
            last_errno(),
        ));
    }
    Ok(())
}

fn ruleset(rights: Rights) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads as many bytes of the attributes, which live until after the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const rights,
            size_of::<Rights>(),
            0_u32,
        )
    };
    let fd = i32::try_from(fd).map_err(|_| Errno::RANGE)?;
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_asked_of_an_older_kernel_are_those_it_knows() {
        let at = |abi| {
            let Rights { files, net, scopes } = Rights::all(abi);
            (files, net, scopes)
        };
        assert_eq!(at(1), (0x1fff, 0, 0));
        assert_eq!(at(2), (0x3fff, 0, 0));
        assert_eq!(at(3), (0x7fff, 0, 0));
        assert_eq!(at(4), (0x7fff, 3, 0));
        assert_eq!(at(5), (0xffff, 3, 0));
        assert_eq!(at(6), (0xffff, 3, 3));
    }

    #[test]
    fn rights_of_this_kernel_are_taken_by_it() {
        let Some(abi) = version() else {
            eprintln!("skipped: this host's kernel has no Landlock");
            return;
        };
        ruleset(Rights::all(abi)).expect("rule set");
    }
}
