//! Interrupt controllers and timer, all in the host's kernel.

use kvm_ioctls::VmFd;

use super::layout::{IDENTITY_MAP, TSS};
use crate::VmmError;

/// Makes the controllers; to be called before the first processor is made.
///
/// There is no interval timer: the kernel knows the rate of its clock from KVM and takes its ticks
/// from the local APIC, so the PC's timer of 1981 would only be probed and switched off.
///
/// # Errors
/// [`VmmError::Kvm`].
pub(crate) fn make(vm: &VmFd) -> Result<(), VmmError> {
    vm.set_tss_address(TSS)
        .map_err(VmmError::kvm("place the task segment"))?;
    vm.set_identity_map_address(IDENTITY_MAP)
        .map_err(VmmError::kvm("place the identity map"))?;
    vm.create_irq_chip()
        .map_err(VmmError::kvm("make the interrupt controllers"))
}
