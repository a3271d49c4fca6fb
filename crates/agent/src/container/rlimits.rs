//! `process.rlimits`.

use oci_spec::runtime::{PosixRlimit, PosixRlimitType as Type};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::{
    ContainerError,
    failure::{During, Step},
};

/// One limit.
#[derive(Debug)]
pub struct Limit {
    resource: Resource,
    name: Type,
    value: Rlimit,
}

/// Checks the limits; each kind may be named once.
pub fn plan(spec: Option<&[PosixRlimit]>) -> Result<Vec<Limit>, ContainerError> {
    let spec = spec.unwrap_or_default();
    let mut limits: Vec<Limit> = Vec::with_capacity(spec.len());
    for (index, limit) in spec.iter().enumerate() {
        let name = limit.typ();
        let field = || format!("process.rlimits[{index}]");
        if limits.iter().any(|earlier| earlier.name == name) {
            return Err(ContainerError::invalid(
                field(),
                format!("{name} was set before"),
            ));
        }
        if limit.soft() > limit.hard() {
            return Err(ContainerError::invalid(field(), "soft is higher than hard"));
        }
        let amount = |value: u64| (value != libc::RLIM_INFINITY).then_some(value);
        let value = Rlimit {
            current: amount(limit.soft()),
            maximum: amount(limit.hard()),
        };
        limits.push(Limit {
            resource: resource(name),
            name,
            value,
        });
    }
    Ok(limits)
}

/// Sets them; needs `CAP_SYS_RESOURCE` to raise one.
pub fn apply(limits: &[Limit]) -> Step {
    for limit in limits {
        setrlimit(limit.resource, limit.value)
            .during(|| format!("set {}", limit.name))
            .map_err(|failure| failure.with_field("process.rlimits"))?;
    }
    Ok(())
}

const fn resource(name: Type) -> Resource {
    match name {
        Type::RlimitCpu => Resource::Cpu,
        Type::RlimitFsize => Resource::Fsize,
        Type::RlimitData => Resource::Data,
        Type::RlimitStack => Resource::Stack,
        Type::RlimitCore => Resource::Core,
        Type::RlimitRss => Resource::Rss,
        Type::RlimitNproc => Resource::Nproc,
        Type::RlimitNofile => Resource::Nofile,
        Type::RlimitMemlock => Resource::Memlock,
        Type::RlimitAs => Resource::As,
        Type::RlimitLocks => Resource::Locks,
        Type::RlimitSigpending => Resource::Sigpending,
        Type::RlimitMsgqueue => Resource::Msgqueue,
        Type::RlimitNice => Resource::Nice,
        Type::RlimitRtprio => Resource::Rtprio,
        Type::RlimitRttime => Resource::Rttime,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_the_kernels_limit_of_that_name() {
        let names = [
            ("RLIMIT_CPU", libc::RLIMIT_CPU),
            ("RLIMIT_FSIZE", libc::RLIMIT_FSIZE),
            ("RLIMIT_DATA", libc::RLIMIT_DATA),
            ("RLIMIT_STACK", libc::RLIMIT_STACK),
            ("RLIMIT_CORE", libc::RLIMIT_CORE),
            ("RLIMIT_RSS", libc::RLIMIT_RSS),
            ("RLIMIT_NPROC", libc::RLIMIT_NPROC),
            ("RLIMIT_NOFILE", libc::RLIMIT_NOFILE),
            ("RLIMIT_MEMLOCK", libc::RLIMIT_MEMLOCK),
            ("RLIMIT_AS", libc::RLIMIT_AS),
            ("RLIMIT_LOCKS", libc::RLIMIT_LOCKS),
            ("RLIMIT_SIGPENDING", libc::RLIMIT_SIGPENDING),
            ("RLIMIT_MSGQUEUE", libc::RLIMIT_MSGQUEUE),
            ("RLIMIT_NICE", libc::RLIMIT_NICE),
            ("RLIMIT_RTPRIO", libc::RLIMIT_RTPRIO),
            ("RLIMIT_RTTIME", libc::RLIMIT_RTTIME),
        ];
        for (name, number) in names {
            let parsed: Type = name.parse().unwrap();

            assert_eq!(resource(parsed) as u32, number, "{name}");
        }
    }

    #[test]
    fn infinite_limit_is_no_limit() {
        let spec = r#"[{"type": "RLIMIT_CPU", "soft": 1, "hard": 18446744073709551615}]"#;
        let spec: Vec<PosixRlimit> = serde_json::from_str(spec).unwrap();

        let limits = plan(Some(&spec)).unwrap();

        assert_eq!(
            limits[0].value,
            Rlimit {
                current: Some(1),
                maximum: None
            }
        );
    }
}
