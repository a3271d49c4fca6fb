//! Hands the kernel's resource controllers to the containers' control groups.

use std::io;

use rustix::fs::{Mode, OFlags, open};

use super::BootError;
use crate::container::CGROUP_ROOT;

const AVAILABLE: &str = "/sys/fs/cgroup/cgroup.controllers";
const ENABLED: &str = "/sys/fs/cgroup/cgroup.subtree_control";

/// Enables every controller the kernel has for the children of the root group.
pub fn hand_over_controllers() -> Result<(), BootError> {
    debug_assert!(AVAILABLE.starts_with(CGROUP_ROOT));
    let mut buffer = [0_u8; 256];
    let names = read(&mut buffer).map_err(|source| BootError::Controllers {
        file: AVAILABLE,
        source,
    })?;
    let wanted = enable_all(names);
    if wanted.is_empty() {
        return Ok(());
    }
    open(ENABLED, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|file| rustix::io::write(&file, wanted.as_bytes()))
        .map(drop)
        .map_err(|error| BootError::Controllers {
            file: ENABLED,
            source: error.into(),
        })
}

fn read(buffer: &mut [u8]) -> io::Result<&str> {
    let file = open(AVAILABLE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let length = rustix::io::read(&file, &mut *buffer)?;
    let bytes = buffer.get(..length).unwrap_or_default();
    std::str::from_utf8(bytes).map_err(io::Error::other)
}

/// `cpu memory` becomes `+cpu +memory`.
fn enable_all(names: &str) -> String {
    let mut wanted = String::with_capacity(names.len() * 2);
    for name in names.split_ascii_whitespace() {
        if !wanted.is_empty() {
            wanted.push(' ');
        }
        wanted.push('+');
        wanted.push_str(name);
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enable_all_prefixes_every_name() {
        assert_eq!(
            enable_all("cpuset cpu io memory pids\n"),
            "+cpuset +cpu +io +memory +pids"
        );
    }

    #[test]
    fn enable_all_of_nothing_is_nothing() {
        assert_eq!(enable_all("\n"), "");
    }

    proptest::proptest! {
        #[test]
        fn enable_all_any_text_yields_only_prefixed_names(text in ".{0,200}") {
            let wanted = enable_all(&text);
            proptest::prop_assert!(wanted.split(' ').all(|name| name.is_empty() || name.starts_with('+')));
            proptest::prop_assert_eq!(
                wanted.split(' ').filter(|name| !name.is_empty()).count(),
                text.split_ascii_whitespace().count()
            );
        }
    }
}
