//! Checks `mounts`.

use oci_spec::runtime::Mount;

use super::{Checked, Problem, fail, inside_path, no_nul};
use crate::plan::is_bind;

pub(super) fn check(mounts: &[Mount]) -> Checked {
    for (index, mount) in mounts.iter().enumerate() {
        if mount.destination().as_os_str().is_empty() {
            return fail(
                format!("mounts[{index}].destination"),
                Problem::Empty("give the path inside the container"),
            );
        }
        inside_path(
            || format!("mounts[{index}].destination"),
            mount.destination(),
        )?;
        let source = mount
            .source()
            .as_ref()
            .map_or("", |path| path.to_str().unwrap_or_default());
        no_nul(format!("mounts[{index}].source"), source)?;
        if is_bind(mount) {
            if source.is_empty() {
                return fail(
                    format!("mounts[{index}].source"),
                    Problem::Missing("a bind mount needs the path to bind"),
                );
            }
        } else if mount.typ().as_deref().unwrap_or_default().is_empty() {
            return fail(
                format!("mounts[{index}].type"),
                Problem::Missing(
                    "give a file system type, as in \"tmpfs\", or the option \"bind\"",
                ),
            );
        }
        for (at, option) in mount.options().iter().flatten().enumerate() {
            if option.contains('\0') {
                return fail(format!("mounts[{index}].options[{at}]"), Problem::HasNul);
            }
        }
    }
    Ok(())
}
