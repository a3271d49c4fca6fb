//! `linux.sysctl`.

use std::{collections::HashMap, ffi::CString, io::Write};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{
    ContainerError,
    failure::{During, Step, shown},
};

/// One kernel parameter.
#[derive(Debug)]
pub struct Sysctl {
    path: CString,
    name: String,
    value: String,
}

/// Checks the parameters; in alphabetical order, so that every run is alike.
pub fn plan(spec: Option<&HashMap<String, String>>) -> Result<Vec<Sysctl>, ContainerError> {
    let mut sysctls = Vec::new();
    for (name, value) in spec.into_iter().flatten() {
        let field = || format!("linux.sysctl[{name:?}]");
        let path = path_of(name)
            .ok_or_else(|| ContainerError::invalid(field(), "it is no name of a parameter"))?;
        sysctls.push(Sysctl {
            path,
            name: name.clone(),
            value: value.clone(),
        });
    }
    sysctls.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sysctls)
}

/// The file of a parameter. As in sysctl(8) the first separator decides: after
/// a dot, slashes stand for dots inside a name.
fn path_of(name: &str) -> Option<CString> {
    let dotted = name
        .find(['.', '/'])
        .is_some_and(|at| name.as_bytes().get(at) == Some(&b'.'));
    let relative: String = name
        .chars()
        .map(|c| match c {
            '.' if dotted => '/',
            '/' if dotted => '.',
            c => c,
        })
        .collect();
    let bad = relative
        .split('/')
        .any(|part| part.is_empty() || part == "." || part == "..");
    if bad {
        None
    } else {
        CString::new(format!("/proc/sys/{relative}")).ok()
    }
}

/// Writes them, while the agent's `/proc` is still in sight; the kernel applies
/// each to the namespaces of the writing process.
pub fn apply(sysctls: &[Sysctl]) -> Step {
    for sysctl in sysctls {
        let write = || -> std::io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let file = openat(CWD, sysctl.path.as_c_str(), flags, Mode::empty())?;
            std::fs::File::from(file).write_all(sysctl.value.as_bytes())
        };
        write()
            .during(|| format!("write to {}", shown(&sysctl.path)))
            .map_err(|failure| failure.with_field(&format!("linux.sysctl[{:?}]", sysctl.name)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_name_with_dots_becomes_a_path() {
        assert_eq!(
            path_of("net.ipv4.ip_forward").unwrap(),
            *c"/proc/sys/net/ipv4/ip_forward"
        );
        assert_eq!(
            path_of("net/ipv4/conf/eth0.1/x").unwrap(),
            *c"/proc/sys/net/ipv4/conf/eth0.1/x"
        );
        assert_eq!(
            path_of("net.ipv4.conf.eth0/1.x").unwrap(),
            *c"/proc/sys/net/ipv4/conf/eth0.1/x"
        );
    }

    #[test]
    fn parameter_name_that_leads_elsewhere_is_refused() {
        for name in [
            "",
            ".",
            "..",
            "net..x",
            "net/../../x",
            "/etc/passwd",
            "a/./b",
            "a\0b",
        ] {
            assert_eq!(path_of(name), None, "{name:?}");
        }
    }
}
