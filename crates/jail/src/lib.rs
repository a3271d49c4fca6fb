//! Walls around our own processes: namespaces, minimal root, capabilities, seccomp.
