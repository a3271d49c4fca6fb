//! Checks `process`: what runs, as whom, with which powers.

use std::collections::HashSet;

use oci_spec::runtime::{Capabilities, LinuxCapabilities, Process, Spec, User};

use super::{Checked, Problem, fail, in_range, inside_path, no_nul};

/// `NGROUPS_MAX` of Linux.
const GROUPS_MAX: usize = 65_536;
/// `(uid_t) -1` means "leave as it is" to the kernel and is nobody's id.
const ID_MAX: u32 = u32::MAX - 1;
const ID_RANGE: &str = "between 0 and 4294967294";

pub(super) fn check(spec: &Spec) -> Checked {
    let Some(process) = spec.process() else {
        return fail(
            "process",
            Problem::Missing(
                "add what to run: {\"args\": [\"sh\"], \"cwd\": \"/\", \"user\": {\"uid\": 0, \"gid\": 0}}",
            ),
        );
    };
    args(process)?;
    environment(process)?;
    if process.cwd().as_os_str().is_empty() {
        return fail(
            "process.cwd",
            Problem::Empty("give the working directory, as in \"/\""),
        );
    }
    inside_path(|| "process.cwd".into(), process.cwd())?;
    user(process.user())?;
    if let Some(sets) = process.capabilities() {
        capabilities(sets)?;
    }
    rlimits(process)?;
    if let Some(adjustment) = process.oom_score_adj() {
        in_range(
            || "process.oomScoreAdj".into(),
            adjustment,
            -1000..=1000,
            "between -1000 and 1000",
        )?;
    }
    if let Some(size) = process.console_size() {
        let words = "between 0 and 65535";
        let most = u64::from(u16::MAX);
        in_range(
            || "process.consoleSize.width".into(),
            size.width(),
            0..=most,
            words,
        )?;
        in_range(
            || "process.consoleSize.height".into(),
            size.height(),
            0..=most,
            words,
        )?;
    }
    Ok(())
}

fn args(process: &Process) -> Checked {
    let Some(args) = process.args() else {
        return fail(
            "process.args",
            Problem::Missing("give the command, as in [\"sh\"]"),
        );
    };
    match args.first() {
        None => {
            return fail(
                "process.args",
                Problem::Empty("give the command, as in [\"sh\"]"),
            );
        }
        Some(program) if program.is_empty() => {
            return fail("process.args[0]", Problem::Empty("give the program to run"));
        }
        Some(_) => {}
    }
    for (index, argument) in args.iter().enumerate() {
        if argument.contains('\0') {
            return no_nul(format!("process.args[{index}]"), argument);
        }
    }
    Ok(())
}

/// Values are never shown: they are where secrets are kept.
fn environment(process: &Process) -> Checked {
    for (index, entry) in process.env().iter().flatten().enumerate() {
        let problem = if entry.contains('\0') {
            Problem::HasNul
        } else {
            match entry.find('=') {
                Some(0) => Problem::Malformed("has no name before the =; write \"NAME=value\""),
                Some(_) => continue,
                None => Problem::Malformed("has no =; write \"NAME=value\""),
            }
        };
        return fail(format!("process.env[{index}]"), problem);
    }
    Ok(())
}

fn user(user: &User) -> Checked {
    in_range(
        || "process.user.uid".into(),
        user.uid(),
        0..=ID_MAX,
        ID_RANGE,
    )?;
    in_range(
        || "process.user.gid".into(),
        user.gid(),
        0..=ID_MAX,
        ID_RANGE,
    )?;
    if let Some(umask) = user.umask() {
        in_range(
            || "process.user.umask".into(),
            umask,
            0..=0o777,
            "between 0 and 511 (octal 777)",
        )?;
    }
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    if groups.len() > GROUPS_MAX {
        return fail(
            "process.user.additionalGids",
            Problem::OutOfRange {
                value: format!("{} groups long", groups.len()),
                range: "at most 65536 groups",
            },
        );
    }
    for (index, gid) in groups.iter().enumerate() {
        in_range(
            || format!("process.user.additionalGids[{index}]"),
            *gid,
            0..=ID_MAX,
            ID_RANGE,
        )?;
    }
    Ok(())
}

/// The kernel gives nobody an effective capability that is not permitted.
fn capabilities(sets: &LinuxCapabilities) -> Checked {
    let empty = Capabilities::new();
    let permitted = sets.permitted().as_ref().unwrap_or(&empty);
    let effective = sets.effective().as_ref().unwrap_or(&empty);
    if effective.is_subset(permitted) {
        Ok(())
    } else {
        fail(
            "process.capabilities.effective",
            Problem::Conflict("holds a capability that .permitted does not; add it there too"),
        )
    }
}

fn rlimits(process: &Process) -> Checked {
    let mut seen = HashSet::new();
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        let name = limit.typ().to_string();
        if !seen.insert(name.clone()) {
            return fail(
                format!("process.rlimits[{index}].type"),
                Problem::Duplicate(name),
            );
        }
        if limit.soft() > limit.hard() {
            return fail(
                format!("process.rlimits[{index}].soft"),
                Problem::Conflict("is above the hard limit; lower it or raise .hard"),
            );
        }
    }
    Ok(())
}
