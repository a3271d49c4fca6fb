//! Checks `hooks`.

use oci_spec::runtime::{Hook, Hooks};

use super::{Checked, Problem, fail, in_range, inside_path, no_nul};

pub(super) fn check(hooks: &Hooks) -> Checked {
    #[allow(deprecated, reason = "engines still write prestart hooks")]
    let lists = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (kind, list) in lists {
        for (index, hook) in list.iter().flatten().enumerate() {
            check_one(&format!("hooks.{kind}[{index}]"), hook)?;
        }
    }
    Ok(())
}

fn check_one(field: &str, hook: &Hook) -> Checked {
    if hook.path().as_os_str().is_empty() {
        return fail(
            format!("{field}.path"),
            Problem::Empty("give the absolute path of the program to run"),
        );
    }
    inside_path(|| format!("{field}.path"), hook.path())?;
    for (index, argument) in hook.args().iter().flatten().enumerate() {
        if argument.contains('\0') {
            return no_nul(format!("{field}.args[{index}]"), argument);
        }
    }
    // Values are never shown: they are where secrets are kept.
    for (index, entry) in hook.env().iter().flatten().enumerate() {
        let problem = if entry.contains('\0') {
            Problem::HasNul
        } else {
            match entry.find('=') {
                Some(0) => Problem::Malformed("has no name before the =; write \"NAME=value\""),
                Some(_) => continue,
                None => Problem::Malformed("has no =; write \"NAME=value\""),
            }
        };
        return fail(format!("{field}.env[{index}]"), problem);
    }
    if let Some(timeout) = hook.timeout() {
        let words = "at least 1 second";
        in_range(|| format!("{field}.timeout"), timeout, 1..=i64::MAX, words)?;
    }
    Ok(())
}
