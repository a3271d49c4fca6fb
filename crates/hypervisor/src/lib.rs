//! Hypervisor drivers: what boots and watches a guest.
