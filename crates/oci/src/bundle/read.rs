//! Reading config.json: bounded, from a regular file only, with the position of
//! what is wrong in it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use oci_spec::runtime::{Capability, Mount, Spec};
use rustix::fs::{CWD, Mode, OFlags};
use serde::Deserialize;
use serde_json::Value;
use serde_json::error::Category;

use super::{BundleError, Problem};
use crate::text::one_line;

/// The largest config.json, in bytes. The guest is sent the configuration in one RPC
/// message of at most 4 MiB, and the part of it that is rewritten may grow.
pub const MAX_CONFIG_BYTES: u64 = 3 << 20;

/// Reads and parses `<dir>/config.json`.
pub(super) fn config(dir: &Path) -> Result<(Spec, Vec<String>), BundleError> {
    let path = dir.join("config.json");
    let unreadable = |source| BundleError::ConfigUnreadable {
        path: path.clone(),
        source,
    };
    // Without NONBLOCK a FIFO of that name would stop us here until somebody writes to it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(CWD, &path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT) => return Err(BundleError::NoConfig { dir: dir.into() }),
        // A socket, or a device without a driver.
        Err(rustix::io::Errno::NXIO | rustix::io::Errno::NODEV) => {
            return Err(BundleError::ConfigNotAFile { path });
        }
        Err(errno) => return Err(unreadable(errno.into())),
    };
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(BundleError::ConfigNotAFile { path });
    }
    let too_large = || BundleError::TooLarge {
        path: path.clone(),
        limit: MAX_CONFIG_BYTES,
    };
    if metadata.len() > MAX_CONFIG_BYTES {
        return Err(too_large());
    }
    let json = read_bounded(&file, metadata.len())
        .map_err(unreadable)?
        .ok_or_else(too_large)?;
    parse(&path, &json)
}

/// Reads at most [`MAX_CONFIG_BYTES`]; `None` if there is more (the file grew).
fn read_bounded(file: &File, expected: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0).saturating_add(1));
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes)?;
    let fits = u64::try_from(bytes.len()).is_ok_and(|length| length <= MAX_CONFIG_BYTES);
    Ok(fits.then_some(bytes))
}

/// Parses a configuration. The quick way first; only if that fails, once more with
/// the path to the culprit kept. With the configuration come warnings of what was left out of it.
pub(super) fn parse(path: &Path, json: &[u8]) -> Result<(Spec, Vec<String>), BundleError> {
    if !fits(json) {
        return Err(BundleError::TooLarge {
            path: path.into(),
            limit: MAX_CONFIG_BYTES,
        });
    }
    let (mut spec, warnings) = match serde_json::from_slice::<Spec>(json) {
        Ok(spec) => (spec, Vec::new()),
        Err(error) => match without_unknown_capabilities(json) {
            Some(read) => read,
            None => return Err(explain(path, json, &error)),
        },
    };
    destinations_from_root(&mut spec);
    Ok((spec, warnings))
}

/// The configuration without capabilities that nobody knows, which must not keep a container from
/// being made (config.md, Linux Process); none if something else is wrong, too.
fn without_unknown_capabilities(json: &[u8]) -> Option<(Spec, Vec<String>)> {
    let mut config: Value = serde_json::from_slice(json).ok()?;
    let mut warnings = Vec::new();
    let sets = config.pointer_mut("/process/capabilities")?;
    for (set, names) in sets.as_object_mut()? {
        names.as_array_mut()?.retain(|name| {
            let known = Capability::deserialize(name).is_ok();
            if let (false, Some(name)) = (known, name.as_str()) {
                let (set, name) = (one_line(set), one_line(name));
                warnings.push(format!(
                    "Left process.capabilities.{set} without {name}, which is not known"
                ));
            }
            known || !name.is_string()
        });
    }
    Some((serde_json::from_value(config).ok()?, warnings))
}

/// A relative destination of a mount is relative to the root (config.md, Mounts).
fn destinations_from_root(spec: &mut Spec) {
    let Some(mounts) = spec.mounts() else { return };
    let relative = |mount: &Mount| {
        let path = mount.destination();
        path.is_relative() && !path.as_os_str().is_empty()
    };
    if !mounts.iter().any(relative) {
        return;
    }
    let mut mounts = mounts.clone();
    for mount in &mut mounts {
        if relative(mount) {
            mount.set_destination(Path::new("/").join(mount.destination()));
        }
    }
    spec.set_mounts(Some(mounts));
}

fn fits(json: &[u8]) -> bool {
    u64::try_from(json.len()).is_ok_and(|length| length <= MAX_CONFIG_BYTES)
}

fn explain(path: &Path, json: &[u8], error: &serde_json::Error) -> BundleError {
    if error.classify() != Category::Data {
        return BundleError::Syntax {
            path: path.into(),
            line: error.line(),
            column: error.column(),
            problem: one_line(bare_message(&error.to_string())),
            hint: hint(json, error),
        };
    }
    let mut reader = serde_json::Deserializer::from_slice(json);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut reader, &mut track);
    let message = match Spec::deserialize(tracked) {
        Err(error) => error.to_string(),
        Ok(_) => error.to_string(),
    };
    let mut field = match track.path().to_string() {
        path if path == "." => String::new(),
        path => one_line(&path),
    };
    let message = bare_message(&message);
    // The environment is never repeated: it is where secrets are kept.
    let problem = if field.starts_with("process.env") {
        Problem::Malformed("is not a list of strings; write [\"NAME=value\", …]")
    } else if let Some(name) = between(message, "missing field `", "`") {
        if !field.is_empty() {
            field.push('.');
        }
        field.push_str(name);
        Problem::Missing("add it")
    } else if let Some(problem) = unknown(message) {
        problem
    } else {
        let (line, column) = (error.line(), error.column());
        Problem::Json(format!(
            "{} (line {line}, column {column})",
            one_line(message)
        ))
    };
    if field.is_empty() {
        field.push_str("config.json");
    }
    BundleError::Field { field, problem }
}

/// A value that is not one of those there are, from the message about it.
fn unknown(message: &str) -> Option<Problem> {
    // Capabilities are parsed by hand, with a message of their own.
    if let Some(value) = between(message, "no variant for ", " (converted to ") {
        let known = "the names of capabilities(7), as in CAP_NET_ADMIN".into();
        return Some(Problem::Unknown {
            value: value.to_owned(),
            known,
        });
    }
    let rest = message.strip_prefix("unknown variant `")?;
    let (value, known) = rest.rsplit_once("`, expected ")?;
    let known = known
        .strip_prefix("one of ")
        .unwrap_or(known)
        .replace('`', "");
    Some(Problem::Unknown {
        value: value.to_owned(),
        known: one_line(&known).into(),
    })
}

/// What stands between two pieces of text.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.strip_prefix(before)?
        .split_once(after)
        .map(|(between, _)| between)
}

/// The message without the position serde_json appends.
fn bare_message(message: &str) -> &str {
    message
        .rfind(" at line ")
        .map_or(message, |at| message.get(..at).unwrap_or(message))
}

/// What to look for, from where the parser stopped.
fn hint(json: &[u8], error: &serde_json::Error) -> &'static str {
    if json.iter().all(u8::is_ascii_whitespace) {
        return "the file is empty, make one with `bulkhead spec`";
    }
    if json.starts_with(b"\xef\xbb\xbf") {
        return "the file begins with a byte order mark, save it without one";
    }
    if std::str::from_utf8(json).is_err() {
        return "the file is not UTF-8 text, save it as UTF-8";
    }
    if error.classify() == Category::Eof {
        return "the file ends too early, look for a missing closing bracket or a cut-off copy";
    }
    let message = error.to_string();
    if message.starts_with("trailing comma") {
        "remove the comma before the closing bracket"
    } else if message.starts_with("key must be a string") {
        "put the name in double quotes, JSON has no comments and no single quotes"
    } else if message.starts_with("trailing characters") {
        "remove what follows the closing bracket"
    } else if message.starts_with("expected `,`") {
        "look for a missing comma on this line or the one before"
    } else if message.starts_with("recursion limit") {
        "it is nested too deeply to be a configuration"
    } else {
        "check the text around this position"
    }
}
