//! Kernels of a few instructions, entered by each protocol under the host's own KVM: whole machines,
//! without devices.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use bulkhead_jail::Profile;
use kvm_ioctls::Kvm;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::machine::{Machine, Parts};
use crate::memory::Memory;
use crate::{End, VmmError, arch, elf};

/// `mov al, 0xfe; out 0x64, al`: the reset line, in any mode.
const RESET: [u8; 4] = [0xb0, 0xfe, 0xe6, 0x64];
/// `mov al, 1; mov dx, 0x505; out dx, al`, in 32-bit and 64-bit mode: a panic.
const PANIC: [u8; 7] = [0xb0, 0x01, 0x66, 0xba, 0x05, 0x05, 0xee];

/// As long as [`PANIC`].
const SKIP: u8 = 7;

/// How a machine with this kernel ends; none where there is no KVM.
fn end_of(kernel: &[u8]) -> Option<Result<End, VmmError>> {
    let Ok(kvm) = Kvm::new() else {
        println!("SKIP: /dev/kvm cannot be opened");
        return None;
    };
    let file = |bytes: &[u8]| -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    };
    let machine = Machine::start(Parts {
        kvm,
        memory: Memory::new(4 << 20).unwrap(),
        kernel: file(kernel),
        initramfs: file(b"archive"),
        cmdline: Vec::new(),
        vcpus: 1,
        devices: Vec::new(),
        profile: Profile::None,
    })
    .unwrap();
    // SAFETY: the machine, and with it the event, lives longer than this function's use of it.
    let ended = unsafe { BorrowedFd::borrow_raw(machine.ended().as_raw_fd()) };
    let mut fds = [PollFd::from_borrowed_fd(ended, PollFlags::IN)];
    let limit = Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "{machine:?}");
    machine.end()
}

/// `check` skips [`PANIC`] if the machine says what it has to say.
fn end_of_code(check: &[u8], image: impl Fn(&[u8]) -> Vec<u8>) {
    let code = [check, &PANIC, &RESET].concat();
    if let Some(end) = end_of(&image(&code)) {
        assert_eq!(end.unwrap(), End::Reset);
    }
}

#[test]
fn kernel_entered_by_pvh_finds_its_start_information() {
    // cmp dword [ebx], the magic; je over the panic
    let check = [0x81, 0x3b, 0x78, 0xc5, 0x6e, 0x33, 0x74, SKIP];
    end_of_code(&check, elf::tests::image_with_pvh);
}

#[test]
fn bzimage_is_entered_with_its_header_in_the_zero_page() {
    // cmp dword [rsi+0x202], "HdrS"; je over the panic
    let check = [
        0x81, 0xbe, 0x02, 0x02, 0x00, 0x00, b'H', b'd', b'r', b'S', 0x74, SKIP,
    ];
    end_of_code(&check, arch::bzimage::tests::image);
}

#[test]
fn kernel_that_panics_at_once_is_reported_as_such() {
    if let Some(end) = end_of(&elf::tests::image_with_pvh(&PANIC)) {
        assert!(matches!(end, Err(VmmError::Panicked { number: 0, .. })));
    }
}
