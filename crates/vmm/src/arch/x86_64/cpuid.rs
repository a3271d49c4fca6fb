//! The processor the guest sees: what KVM offers on this host, less what the machine does not have.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use crate::VmmError;

/// Leaf 1.
const ECX1_MONITOR: u32 = 1 << 3;
const ECX1_VMX: u32 = 1 << 5;
const ECX1_PDCM: u32 = 1 << 15;
const ECX1_TSC_DEADLINE: u32 = 1 << 24;
const ECX1_HYPERVISOR: u32 = 1 << 31;
/// Leaf 6: the local timer does not stop when the processor sleeps.
const EAX6_ARAT: u32 = 1 << 2;
/// Leaf 0x8000_0001.
const ECX8_SVM: u32 = 1 << 2;

/// The list for a processor, before it has its number.
///
/// # Errors
/// [`VmmError::Kvm`].
pub(crate) fn supported(kvm: &Kvm) -> Result<CpuId, VmmError> {
    let mut list = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(VmmError::kvm("ask for the processor's features"))?;
    for entry in list.as_mut_slice() {
        restrict(entry);
    }
    Ok(list)
}

/// The list with the number of the processor in it.
pub(crate) fn numbered(list: &CpuId, number: u8, processors: u8) -> CpuId {
    let mut list = list.clone();
    for entry in list.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ebx =
                    entry.ebx & 0xffff | u32::from(processors) << 16 | u32::from(number) << 24;
            }
            // The topology leaves name the processor that asks.
            0xb | 0x1f => entry.edx = u32::from(number),
            0x8000_001e => entry.eax = u32::from(number),
            _ => {}
        }
    }
    list
}

fn restrict(entry: &mut kvm_cpuid_entry2) {
    match entry.function {
        1 => {
            // No monitoring of memory, no machine in the machine, no performance counters.
            entry.ecx &= !(ECX1_MONITOR | ECX1_VMX | ECX1_PDCM);
            // KVM offers the timer by a capability instead of here.
            entry.ecx |= ECX1_HYPERVISOR | ECX1_TSC_DEADLINE;
        }
        6 => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (EAX6_ARAT, 0, 0, 0);
        }
        // Performance counters.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => entry.ecx &= !ECX8_SVM,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        }
    }

    #[test]
    fn guest_never_sees_virtualisation_or_counters() {
        let mut first = entry(1);
        restrict(&mut first);
        assert_eq!(first.ecx & (ECX1_VMX | ECX1_MONITOR), 0);
        assert_ne!(first.ecx & ECX1_HYPERVISOR, 0);
        let mut counters = entry(0xa);
        restrict(&mut counters);
        assert_eq!(counters.eax, 0);
    }

    #[test]
    fn processors_have_their_own_numbers() {
        let list = CpuId::from_entries(&[entry(1), entry(0xb), entry(0x8000_001e)]).unwrap();
        let numbered = numbered(&list, 3, 4);
        let [first, topology, amd] = numbered.as_slice() else {
            panic!()
        };
        assert_eq!(first.ebx >> 24, 3);
        assert_eq!(first.ebx >> 16 & 0xff, 4);
        assert_eq!((topology.edx, amd.eax), (3, 3));
    }
}
