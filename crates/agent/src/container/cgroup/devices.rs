//! `linux.resources.devices`: which device nodes processes of the group may
//! open or make, as a program the kernel runs at each attempt.

use std::os::fd::BorrowedFd;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::bpf::{self, Instruction, Kind};
use crate::container::ContainerError;

/// `BPF_PROG_TYPE_CGROUP_DEVICE` and `BPF_CGROUP_DEVICE`.
const KIND: Kind = Kind {
    program: 15,
    attach: 6,
};

/// `BPF_DEVCG_ACC_*` and `BPF_DEVCG_DEV_*` of linux/bpf.h.
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;
const BLOCK: u32 = 1;
const CHAR: u32 = 2;

const FIELD: &str = "linux.resources.devices";

/// Devices that every container may use, as in runc: without them nothing runs.
const ALWAYS: [Rule; 11] = [
    Rule::allow(CHAR, None, None, MKNOD),
    Rule::allow(BLOCK, None, None, MKNOD),
    Rule::allow(CHAR, Some(1), Some(3), ALL),
    Rule::allow(CHAR, Some(1), Some(5), ALL),
    Rule::allow(CHAR, Some(1), Some(7), ALL),
    Rule::allow(CHAR, Some(1), Some(8), ALL),
    Rule::allow(CHAR, Some(1), Some(9), ALL),
    Rule::allow(CHAR, Some(5), Some(0), ALL),
    Rule::allow(CHAR, Some(5), Some(1), ALL),
    Rule::allow(CHAR, Some(5), Some(2), ALL),
    Rule::allow(CHAR, Some(136), None, ALL),
];

/// One rule. The last one that says something about a kind of access decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    allow: bool,
    /// `None` for both.
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

impl Rule {
    const fn allow(kind: u32, major: Option<u32>, minor: Option<u32>, access: u32) -> Self {
        Self {
            allow: true,
            kind: Some(kind),
            major,
            minor,
            access,
        }
    }

    /// Whether it says something about every access to every device.
    fn is_total(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }
}

/// The program for a group's rules.
#[derive(Debug)]
pub struct Filter {
    program: Vec<Instruction>,
}

/// Checks the rules; `None` where they allow everything.
pub fn plan(rules: &[LinuxDeviceCgroup]) -> Result<Option<Filter>, ContainerError> {
    let mut planned = Vec::with_capacity(rules.len() + ALWAYS.len());
    for (index, rule) in rules.iter().enumerate() {
        let rule = plan_one(index, rule)?;
        if rule.is_total() {
            // What came before does not matter any more.
            planned.clear();
        }
        planned.push(rule);
    }
    match planned.as_slice() {
        [] => return Ok(None),
        [only] if only.allow && only.is_total() => return Ok(None),
        _ => {}
    }
    planned.extend(ALWAYS);
    Ok(Some(Filter {
        program: compile(&planned),
    }))
}

fn plan_one(index: usize, rule: &LinuxDeviceCgroup) -> Result<Rule, ContainerError> {
    let invalid = |part: &str, reason: &str| {
        ContainerError::invalid(format!("{FIELD}[{index}].{part}"), reason)
    };
    let kind = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(BLOCK),
        LinuxDeviceType::C => Some(CHAR),
        LinuxDeviceType::U | LinuxDeviceType::P => {
            return Err(invalid("type", "it must be a, b or c"));
        }
    };
    let number = |part: &str, value: Option<i64>| match value {
        // -1 is how engines write "any".
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| invalid(part, "it is no device number")),
    };
    let mut access = 0;
    for letter in rule.access().as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => return Err(invalid("access", "it may contain r, w and m only")),
        };
    }
    // Engines leave it empty for "all".
    let access = if access == 0 { ALL } else { access };
    let (major, minor) = (
        number("major", rule.major())?,
        number("minor", rule.minor())?,
    );
    Ok(Rule {
        allow: rule.allow(),
        kind,
        major,
        minor,
        access,
    })
}

/// The rules as a program, last rule first. One register holds the kinds of
/// access that were asked for and that no rule has spoken about yet; a rule that
/// allows takes its kinds out, a rule that denies one of them ends it. What no
/// rule allows is denied.
pub fn compile(rules: &[Rule]) -> Vec<Instruction> {
    use bpf::Register::{R0, R1, R2, R3, R4, R5};
    // struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }
    let mut program = vec![
        bpf::load_word(R3, R1, 0),
        bpf::load_word(R4, R1, 4),
        bpf::load_word(R5, R1, 8),
        bpf::move_register(R2, R3),
        bpf::and(R2, 0xffff),
        bpf::shift_right(R3, 16),
    ];
    for rule in rules.iter().rev() {
        let block = rule_block(rule);
        let conditions = [(R2, rule.kind), (R4, rule.major), (R5, rule.minor)];
        let mut tests: Vec<_> = conditions
            .into_iter()
            .filter_map(|(register, value)| Some((register, value?)))
            .collect();
        // Each test that fails jumps over the remaining ones and the block.
        while !tests.is_empty() {
            let (register, value) = tests.remove(0);
            program.push(bpf::jump_unless_equal(
                register,
                value,
                tests.len() + block.len(),
            ));
        }
        program.extend(block);
    }
    program.extend([bpf::set(R0, 0), bpf::exit()]);
    program
}

fn rule_block(rule: &Rule) -> Vec<Instruction> {
    use bpf::Register::{R0, R3};
    if rule.allow {
        vec![
            bpf::and(R3, ALL & !rule.access),
            bpf::jump_unless_equal(R3, 0, 2),
            bpf::set(R0, 1),
            bpf::exit(),
        ]
    } else {
        let [test, skip] = bpf::jump_unless_any_bit(R3, rule.access, 2);
        vec![test, skip, bpf::set(R0, 0), bpf::exit()]
    }
}

impl Filter {
    /// Loads the program and binds it to the group.
    pub fn attach(&self, group: BorrowedFd<'_>) -> Result<(), ContainerError> {
        bpf::attach(KIND, "devices", &self.program, group).map_err(|error| {
            if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) {
                return ContainerError::unsupported(
                    FIELD,
                    format!(
                        "the guest's kernel cannot filter devices (CONFIG_CGROUP_BPF): {error}; \
                         allow all devices or choose another kernel"
                    ),
                );
            }
            ContainerError::System {
                step: "install the device filter".to_owned(),
                field: Some(FIELD.to_owned()),
                source: error,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the rules mean, access kind by access kind.
    fn meaning(rules: &[Rule], kind: u32, major: u32, minor: u32, access: u32) -> bool {
        [MKNOD, READ, WRITE]
            .into_iter()
            .filter(|bit| access & bit != 0)
            .all(|bit| {
                rules
                    .iter()
                    .rev()
                    .find(|rule| {
                        rule.access & bit != 0
                            && rule.kind.is_none_or(|k| k == kind)
                            && rule.major.is_none_or(|m| m == major)
                            && rule.minor.is_none_or(|m| m == minor)
                    })
                    .is_some_and(|rule| rule.allow)
            })
    }

    fn decides(rules: &[Rule], kind: u32, major: u32, minor: u32, access: u32) -> bool {
        let context = [(access << 16) | kind, major, minor];
        bpf::interpret(&compile(rules), &mut context.clone(), 0) == 1
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let number = || proptest::option::of(0..4_u32);
        (
            any::<bool>(),
            proptest::option::of(1..=2_u32),
            number(),
            number(),
            1..=ALL,
        )
            .prop_map(|(allow, kind, major, minor, access)| Rule {
                allow,
                kind,
                major,
                minor,
                access,
            })
    }

    proptest! {
        #[test]
        fn program_decides_as_the_rules_mean(
            rules in proptest::collection::vec(rule(), 0..12),
            kind in 1..=2_u32, major in 0..4_u32, minor in 0..4_u32, access in 1..=ALL,
        ) {
            prop_assert_eq!(
                decides(&rules, kind, major, minor, access),
                meaning(&rules, kind, major, minor, access)
            );
        }
    }

    fn spec(json: &str) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn denied_devices_stay_denied_and_default_ones_work() {
        let rules = spec(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]"#,
        );

        let filter = plan(&rules).unwrap().unwrap();

        let decide = |kind, major, minor, access: u32| {
            let mut context = [(access << 16) | kind, major, minor];
            bpf::interpret(&filter.program, &mut context, 0) == 1
        };
        assert!(decide(CHAR, 10, 229, READ | WRITE), "allowed by rule");
        assert!(decide(CHAR, 1, 3, READ | WRITE), "the null device");
        assert!(decide(BLOCK, 8, 0, MKNOD), "making a node harms nobody");
        assert!(!decide(BLOCK, 8, 0, READ), "a disk");
        assert!(!decide(CHAR, 1, 1, READ), "memory");
    }

    #[test]
    fn rules_that_allow_everything_need_no_program() {
        assert!(
            plan(&spec(r#"[{"allow":true,"access":"rwm"}]"#))
                .unwrap()
                .is_none()
        );
        assert!(
            plan(&spec(r#"[{"allow":false},{"allow":true,"type":"a"}]"#))
                .unwrap()
                .is_none()
        );
        assert!(plan(&[]).unwrap().is_none());
    }

    #[test]
    fn rule_with_an_unknown_letter_is_refused_by_name() {
        let error = plan(&spec(r#"[{"allow":true,"type":"c","access":"rx"}]"#)).unwrap_err();

        assert!(
            error
                .to_string()
                .contains("linux.resources.devices[0].access"),
            "{error}"
        );
    }
}
