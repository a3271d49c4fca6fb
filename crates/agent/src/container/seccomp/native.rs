//! Compiling a profile for x86-64 alone.
//!
//! The numbers of system calls are cut into ranges that are treated alike; a
//! binary search finds the range, and what is left are the conditions on
//! arguments of the few system calls that have any.

use std::collections::BTreeMap;

use oci_spec::runtime::Arch;

use super::{
    bpf::{Instruction, Test, and, load, skip, test, verdict},
    profile::{Action, Comparison, Operator, Profile},
    syscalls,
};
use crate::container::ContainerError;

/// `AUDIT_ARCH_X86_64`.
const X86_64: u32 = 0xc000_003e;
/// Numbers from here on are those of the x32 ABI, which share the architecture.
const X32: u32 = 0x4000_0000;
/// What a tracer makes of a system call that it skips.
const SKIPPED: u32 = u32::MAX;
/// Longest program the kernel takes (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

// Offsets in struct seccomp_data { int nr; __u32 arch; __u64 ip; __u64 args[6]; }
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// What is done about one system call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Treatment {
    /// Whatever the arguments are.
    always: Option<Action>,
    /// The first whose conditions all hold counts.
    conditional: Vec<(Vec<Comparison>, Action)>,
}

/// The filter's instructions.
pub fn compile(profile: &Profile<'_>) -> Result<Vec<Instruction>, ContainerError> {
    let treatments = treatments(profile);
    let ranges = ranges(&treatments, profile.default);
    let mut program = prologue(profile);
    search(&ranges, profile.default, &mut program);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(ContainerError::invalid(
            "linux.seccomp.syscalls",
            format!(
                "the filter would have {} instructions, Linux takes 4096",
                program.len()
            ),
        ));
    }
    Ok(program)
}

fn treatments(profile: &Profile<'_>) -> BTreeMap<u32, Treatment> {
    let mut treatments: BTreeMap<u32, Treatment> = BTreeMap::new();
    for rule in profile
        .rules
        .iter()
        .filter(|rule| rule.action != profile.default)
    {
        for number in rule.names.iter().filter_map(|name| syscalls::number(name)) {
            let treatment = treatments.entry(number).or_default();
            for conditions in &rule.alternatives {
                if conditions.is_empty() {
                    // The first unconditional rule counts, and no condition beside it.
                    treatment.always.get_or_insert(rule.action);
                } else {
                    treatment
                        .conditional
                        .push((conditions.clone(), rule.action));
                }
            }
        }
    }
    treatments
}

/// A range of numbers, by its first one, and what is done about them.
type Range = (u32, Treatment);

/// The ranges from 0 on, each up to the next. What a profile cannot know about,
/// because the kernel is younger than it, does not exist: programs then do
/// without it, while most errors would make them give up.
fn ranges(treatments: &BTreeMap<u32, Treatment>, default: Action) -> Vec<Range> {
    let plain = |action| Treatment {
        always: Some(action),
        conditional: Vec::new(),
    };
    let mut ranges: Vec<Range> = Vec::new();
    let mut push = |first: u32, treatment: Treatment| {
        let alike = ranges
            .last()
            .is_some_and(|(_, last)| *last == treatment && treatment.conditional.is_empty());
        if !alike {
            ranges.push((first, treatment));
        }
    };
    let mut next = 0;
    for (&number, treatment) in treatments {
        if number > next {
            push(next, plain(default));
        }
        match treatment.always {
            Some(action) => push(number, plain(action)),
            None => push(number, treatment.clone()),
        }
        next = number + 1;
    }
    let beyond = if default.is_permissive() || treatments.is_empty() {
        default
    } else {
        Action::Errno(ENOSYS)
    };
    push(next, plain(beyond));
    ranges
}

/// `ENOSYS` of x86-64.
const ENOSYS: u16 = 38;

/// Sorts out what is not a system call of x86-64; leaves the number loaded.
fn prologue(profile: &Profile<'_>) -> Vec<Instruction> {
    // Nothing else can be called by its own numbers on a kernel that has only these.
    let x32 = if profile.architectures.contains(&Arch::ScmpArchX32) {
        Action::Errno(ENOSYS)
    } else {
        Action::KillThread
    };
    vec![
        load(ARCHITECTURE),
        test(Test::Equal(X86_64), 1, 0),
        verdict(Action::KillThread.value()),
        load(NUMBER),
        test(Test::GreaterOrEqual(X32), 0, 3),
        test(Test::Equal(SKIPPED), 0, 1),
        verdict(profile.default.value()),
        verdict(x32.value()),
    ]
}

/// Halves the ranges until one is left.
fn search(ranges: &[Range], default: Action, program: &mut Vec<Instruction>) {
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let Some((first, _)) = upper.first() else {
        return;
    };
    if lower.is_empty() {
        for (_, treatment) in upper {
            treat(treatment, default, program);
        }
        return;
    }
    let mut below = Vec::new();
    search(lower, default, &mut below);
    match u8::try_from(below.len()) {
        Ok(len) => program.push(test(Test::GreaterOrEqual(*first), len, 0)),
        Err(_) => {
            program.push(test(Test::GreaterOrEqual(*first), 0, 1));
            // A filter is much shorter than this can count.
            program.push(skip(u32::try_from(below.len()).unwrap_or(u32::MAX)));
        }
    }
    program.extend(below);
    search(upper, default, program);
}

fn treat(treatment: &Treatment, default: Action, program: &mut Vec<Instruction>) {
    if let Some(action) = treatment.always {
        program.push(verdict(action.value()));
        return;
    }
    for (conditions, action) in &treatment.conditional {
        // From the last instruction on, so that each knows how far it has to jump.
        let mut rule = vec![verdict(action.value())];
        for comparison in conditions.iter().rev() {
            let mut code = compare(*comparison, rule.len());
            code.append(&mut rule);
            rule = code;
        }
        program.append(&mut rule);
    }
    program.push(verdict(default.value()));
}

/// Code that falls through to the next instruction if the comparison holds, and
/// skips `rest` further instructions, those of its rule, if it does not.
/// Arguments have 64 bits, the accumulator 32: the upper half first.
fn compare(comparison: Comparison, rest: usize) -> Vec<Instruction> {
    let Comparison {
        argument,
        operator,
        value,
    } = comparison;
    let low_word = ARGUMENTS + 8 * argument;
    let (high, low) = halves(value);
    // A rule has at most six comparisons of six instructions.
    let fail = u8::try_from(rest).unwrap_or(u8::MAX);
    let (upper, lower) = (load(low_word + 4), load(low_word));
    match operator {
        Operator::Equal => vec![
            upper,
            test(Test::Equal(high), 0, fail + 2),
            lower,
            test(Test::Equal(low), 0, fail),
        ],
        Operator::NotEqual => vec![
            upper,
            test(Test::Equal(high), 0, 2),
            lower,
            test(Test::Equal(low), fail, 0),
        ],
        Operator::MaskedEqual(mask) => {
            let (mask_high, mask_low) = halves(mask);
            vec![
                upper,
                and(mask_high),
                test(Test::Equal(high), 0, fail + 3),
                lower,
                and(mask_low),
                test(Test::Equal(low), 0, fail),
            ]
        }
        Operator::Greater => at_least(upper, lower, high, Test::Greater(low), fail),
        Operator::GreaterOrEqual => at_least(upper, lower, high, Test::GreaterOrEqual(low), fail),
        Operator::Less => less(upper, lower, high, Test::GreaterOrEqual(low), fail),
        Operator::LessOrEqual => less(upper, lower, high, Test::Greater(low), fail),
    }
}

fn at_least(
    upper: Instruction,
    lower: Instruction,
    high: u32,
    low: Test,
    fail: u8,
) -> Vec<Instruction> {
    vec![
        upper,
        test(Test::Greater(high), 3, 0),
        test(Test::Equal(high), 0, fail + 2),
        lower,
        test(low, 0, fail),
    ]
}

fn less(
    upper: Instruction,
    lower: Instruction,
    high: u32,
    not_low: Test,
    fail: u8,
) -> Vec<Instruction> {
    vec![
        upper,
        test(Test::Greater(high), fail + 3, 0),
        test(Test::Equal(high), 0, 2),
        lower,
        test(not_low, fail, 0),
    ]
}

/// The upper and the lower 32 bits.
fn halves(value: u64) -> (u32, u32) {
    let [b0, b1, b2, b3, b4, b5, b6, b7] = value.to_le_bytes();
    (
        u32::from_le_bytes([b4, b5, b6, b7]),
        u32::from_le_bytes([b0, b1, b2, b3]),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::container::seccomp::{bpf::interpret, library};

    const NAMES: &[&str] = &[
        "read",
        "write",
        "open",
        "close",
        "stat",
        "mmap",
        "clone",
        "personality",
        "socket",
        "futex",
    ];
    const OPERATORS: &[&str] = &[
        "SCMP_CMP_NE",
        "SCMP_CMP_LT",
        "SCMP_CMP_LE",
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_MASKED_EQ",
    ];
    /// Values around the places where halves and signs matter.
    const VALUES: &[u64] = &[
        0,
        1,
        2,
        7,
        0xffff_fffe,
        0xffff_ffff,
        0x1_0000_0000,
        0x1_0000_0001,
        0x7fff_ffff_ffff_ffff,
        0x8000_0000_0000_0000,
        u64::MAX - 1,
        u64::MAX,
    ];

    fn programs(profile: &Value) -> (Vec<Instruction>, Vec<Instruction>) {
        let spec = serde_json::from_value(profile.clone()).unwrap();
        let profile = Profile::plan(&spec).unwrap();
        (
            compile(&profile).unwrap(),
            library::compile(&profile).unwrap(),
        )
    }

    fn data(number: u32, args: [u64; 6]) -> [u32; 16] {
        let mut words = [0; 16];
        words[0] = number;
        words[1] = X86_64;
        for (index, arg) in args.into_iter().enumerate() {
            let (high, low) = halves(arg);
            words[4 + 2 * index] = low;
            words[5 + 2 * index] = high;
        }
        words
    }

    fn value() -> impl Strategy<Value = u64> {
        prop_oneof![proptest::sample::select(VALUES), any::<u64>()]
    }

    fn arg() -> impl Strategy<Value = Value> {
        (
            0..6_usize,
            value(),
            value(),
            proptest::sample::select(OPERATORS),
        )
            .prop_map(|(index, value, two, op)| {
                // The library takes a value with bits outside its mask for what can never be.
                json!({"index": index, "value": value, "valueTwo": two & value, "op": op})
            })
    }

    fn rule() -> impl Strategy<Value = Value> {
        let names = proptest::sample::subsequence(NAMES, 1..4);
        let args = proptest::collection::vec(arg(), 0..4);
        let action = proptest::sample::select(&["SCMP_ACT_ALLOW", "SCMP_ACT_KILL_PROCESS"][..]);
        (names, args, action).prop_map(
            |(names, args, action)| json!({"names": names, "action": action, "args": args}),
        )
    }

    fn calls() -> impl Strategy<Value = Vec<(&'static str, [u64; 6])>> {
        let call = (
            proptest::sample::select(NAMES),
            proptest::array::uniform6(value()),
        );
        proptest::collection::vec(call, 20)
    }

    fn holds(comparison: &Comparison, args: &[u64; 6]) -> bool {
        let (arg, value) = (args[comparison.argument as usize], comparison.value);
        match comparison.operator {
            Operator::NotEqual => arg != value,
            Operator::Less => arg < value,
            Operator::LessOrEqual => arg <= value,
            Operator::Equal => arg == value,
            Operator::GreaterOrEqual => arg >= value,
            Operator::Greater => arg > value,
            Operator::MaskedEqual(mask) => arg & mask == value,
        }
    }

    /// What the rules say about a call: an unconditional one before all others.
    fn meaning(profile: &Profile<'_>, name: &str, args: &[u64; 6]) -> Action {
        let about = || {
            profile
                .rules
                .iter()
                .filter(|rule| rule.names.iter().any(|known| known == name))
                .filter(|rule| rule.action != profile.default)
                .flat_map(|rule| rule.alternatives.iter().map(move |all| (all, rule.action)))
        };
        about()
            .find(|(conditions, _)| conditions.is_empty())
            .or_else(|| about().find(|(all, _)| all.iter().all(|one| holds(one, args))))
            .map_or(profile.default, |(_, action)| action)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        #[test]
        fn filter_decides_as_the_rules_mean(
            rules in proptest::collection::vec(rule(), 0..8), calls in calls(),
        ) {
            let spec = json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": rules});
            let spec = serde_json::from_value(spec).unwrap();
            let profile = Profile::plan(&spec).unwrap();
            let filter = compile(&profile).unwrap();

            for (name, args) in calls {
                let data = data(syscalls::number(name).unwrap(), args);
                let meant = meaning(&profile, name, &args).value();
                prop_assert_eq!(interpret(&filter, &data), meant, "{} {:?}", name, args);
            }
        }

        /// With one rule for each call: what several mean is not the same in all
        /// versions of the library.
        #[test]
        fn filter_decides_as_the_librarys_does(
            args in proptest::collection::vec(proptest::collection::vec(arg(), 0..4), NAMES.len()),
            calls in calls(), odd in any::<u32>(),
        ) {
            let rules: Vec<_> = NAMES
                .iter()
                .zip(args)
                .map(|(name, mut args)| {
                    let mut seen = [false; 6];
                    args.retain(|arg| {
                        let index = usize::try_from(arg["index"].as_u64().unwrap()).unwrap();
                        !std::mem::replace(&mut seen[index], true)
                    });
                    json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": args})
                })
                .collect();
            let (ours, theirs) = programs(&json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": rules}));

            for (name, args) in calls {
                let data = data(syscalls::number(name).unwrap(), args);
                prop_assert_eq!(interpret(&ours, &data), interpret(&theirs, &data), "{} {:?}", name, args);
            }
            let data = data(odd, [0; 6]);
            prop_assert_eq!(interpret(&ours, &data), interpret(&theirs, &data), "{:#x}", odd);
        }
    }

    /// Every system call with a rule, as in the profiles of engines.
    fn long_profile(default: &str) -> Value {
        let names: Vec<_> = [
            "read", "write", "mount", "umount2", "clone3", "ptrace", "mseal",
        ]
        .to_vec();
        json!({"defaultAction": default, "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": names, "action": "SCMP_ACT_ALLOW"},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0xffff_ffff_u32, "op": "SCMP_CMP_EQ"}]},
            {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        ]})
    }

    fn verdict_of(program: &[Instruction], name: &str, first: u64) -> u32 {
        interpret(
            program,
            &data(syscalls::number(name).unwrap(), [first, 0, 0, 0, 0, 0]),
        )
    }

    #[test]
    fn rules_of_one_call_are_alternatives() {
        let (ours, _) = programs(&long_profile("SCMP_ACT_ERRNO"));

        assert_eq!(verdict_of(&ours, "personality", 8), Action::Allow.value());
        assert_eq!(
            verdict_of(&ours, "personality", 0xffff_ffff),
            Action::Allow.value()
        );
        assert_eq!(
            verdict_of(&ours, "personality", 9),
            Action::Errno(1).value()
        );
        assert_eq!(verdict_of(&ours, "bpf", 0), Action::Errno(38).value());
    }

    #[test]
    fn call_that_is_younger_than_the_profile_does_not_exist() {
        let (strict, _) = programs(&long_profile("SCMP_ACT_ERRNO"));
        let (lax, _) = programs(&long_profile("SCMP_ACT_LOG"));
        let younger = data(463, [0; 6]);

        assert_eq!(interpret(&strict, &younger), Action::Errno(ENOSYS).value());
        assert_eq!(interpret(&lax, &younger), Action::Log.value());
        assert_eq!(
            verdict_of(&strict, "fork", 0),
            Action::Errno(1).value(),
            "older, not listed"
        );
    }

    #[test]
    fn call_of_another_architecture_ends_the_thread() {
        let (ours, _) = programs(&long_profile("SCMP_ACT_ERRNO"));
        let mut foreign = data(0, [0; 6]);
        foreign[1] = 0x4000_0003;

        assert_eq!(interpret(&ours, &foreign), Action::KillThread.value());
        assert_eq!(
            interpret(&ours, &data(X32, [0; 6])),
            Action::Errno(ENOSYS).value()
        );
        assert_eq!(
            interpret(&ours, &data(SKIPPED, [0; 6])),
            Action::Errno(1).value()
        );
    }

    #[test]
    fn filter_for_every_call_with_conditions_is_short_enough() {
        let names: Vec<_> = (0..400).filter_map(syscalls::name).collect();
        let args: Vec<_> = (0..2)
            .map(|index| json!({"index": index, "value": u64::MAX - 1, "op": "SCMP_CMP_LT"}))
            .collect();
        let profile = json!({"defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": names.as_slice()[..200], "action": "SCMP_ACT_ALLOW", "args": args}]});

        let (ours, _) = programs(&profile);

        for name in &names[..200] {
            assert_eq!(verdict_of(&ours, name, 1), Action::Allow.value(), "{name}");
            assert_eq!(
                verdict_of(&ours, name, u64::MAX),
                Action::Errno(1).value(),
                "{name}"
            );
        }
    }
}
