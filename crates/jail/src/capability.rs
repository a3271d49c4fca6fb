//! Capability names and the system calls that take them away.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

macro_rules! capabilities {
    ($($name:ident = $number:literal,)*) => {
        /// A Linux capability, `capabilities(7)`.
        #[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs, reason = "the names are those of capabilities(7)")]
        #[repr(u8)]
        pub enum Capability { $($name = $number,)* }
    };
}

capabilities! {
    Chown = 0, DacOverride = 1, DacReadSearch = 2, Fowner = 3, Fsetid = 4, Kill = 5, Setgid = 6,
    Setuid = 7, Setpcap = 8, LinuxImmutable = 9, NetBindService = 10, NetBroadcast = 11,
    NetAdmin = 12, NetRaw = 13, IpcLock = 14, IpcOwner = 15, SysModule = 16, SysRawio = 17,
    SysChroot = 18, SysPtrace = 19, SysPacct = 20, SysAdmin = 21, SysBoot = 22, SysNice = 23,
    SysResource = 24, SysTime = 25, SysTtyConfig = 26, Mknod = 27, Lease = 28, AuditWrite = 29,
    AuditControl = 30, Setfcap = 31, MacOverride = 32, MacAdmin = 33, Syslog = 34, WakeAlarm = 35,
    BlockSuspend = 36, AuditRead = 37, Perfmon = 38, Bpf = 39, CheckpointRestore = 40,
}

impl Capability {
    /// The bit of this capability in a capability set.
    pub fn bit(self) -> u64 {
        1 << (self as u8)
    }
}

/// The set as the kernel counts it.
pub(crate) fn mask(capabilities: &[Capability]) -> u64 {
    capabilities
        .iter()
        .fold(0, |mask, capability| mask | capability.bit())
}

/// Takes everything outside `keep` out of the bounding set, also what a newer kernel may know.
pub(crate) fn limit_bounding_set(keep: u64) -> Result<(), Errno> {
    for number in 0..64u32 {
        if keep & (1 << number) != 0 {
            continue;
        }
        // SAFETY: PR_CAPBSET_DROP takes one integer and touches no memory.
        let result =
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
        if result != 0 {
            match last_errno() {
                // The first number beyond what this kernel knows.
                Errno::INVAL if number > 0 => return Ok(()),
                errno => return Err(errno),
            }
        }
    }
    Ok(())
}

/// Makes permitted and effective set `mask`, inheritable (and with it ambient) empty.
pub(crate) fn set(mask: u64) -> Result<(), Errno> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the set is split into two halves"
    )]
    let half = |bits: u64| Data {
        effective: bits as u32,
        permitted: bits as u32,
        inheritable: 0,
    };
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let data = [half(mask & u64::from(u32::MAX)), half(mask >> 32)];
    // SAFETY: version 3 reads a header and two data blocks, which both live until after the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    if result == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

/// `errno` of the call that just failed.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
