//! The system call filters, on processes that try.

mod common;

use bulkhead_jail::{Jail, Profile};
use common::Running;
use rustix::process::WaitIdStatus;

fn act(profile: Profile, action: &str) -> (String, WaitIdStatus) {
    let jail = Jail::new("bulkhead", 0x7000_0042, 0x7000_0042, profile);
    let (output, _, status) = Running::act(&jail, action).finish();
    (output.trim_end().to_owned(), status)
}

fn assert_killed((output, status): (String, WaitIdStatus)) {
    assert_eq!(output, "");
    assert!(status.killed() || status.dumped(), "{status:?}");
    assert_eq!(status.terminating_signal(), Some(libc::SIGSYS));
}

#[test]
fn socket_under_device_profile_kills() {
    assert_killed(act(Profile::Device, "socket"));
}

#[test]
fn socket_other_than_local_under_qemu_profile_kills() {
    assert_eq!(act(Profile::Qemu, "socket").0, "survived");
    assert_killed(act(Profile::Qemu, "socket_inet"));
}

#[test]
fn change_of_a_tap_other_than_offloads_under_device_profile_kills() {
    assert_eq!(act(Profile::Device, "tun_offload").0, "survived");
    assert_killed(act(Profile::Device, "tun_persist"));
}

#[test]
fn unshare_of_mounts_under_device_profile_kills() {
    assert_killed(act(Profile::Device, "unshare_mount"));
}

#[test]
fn unshare_of_mounts_under_uml_profile_kills() {
    assert_killed(act(Profile::Uml, "unshare_mount"));
}

#[test]
fn execve_under_device_profile_kills() {
    assert_killed(act(Profile::Device, "execve"));
}

#[test]
fn unshare_of_fs_attributes_under_device_profile_works() {
    assert_eq!(act(Profile::Device, "unshare_fs").0, "survived");
}

#[test]
fn clone3_under_device_profile_does_not_exist() {
    assert_eq!(act(Profile::Device, "clone3").0, libc::ENOSYS.to_string());
}

#[test]
fn thread_under_device_profile_starts() {
    assert_eq!(act(Profile::Device, "thread").0, "survived");
}

#[test]
fn thread_under_qemu_profile_starts() {
    assert_eq!(act(Profile::Qemu, "thread").0, "survived");
}
