//! The files QEMU needs in its jail, and no others.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead_jail::Entry;

use super::{Accelerator, PROGRAM, REMEDY};
use crate::{HypervisorError, Machine, launch};

/// Paths inside the jail.
pub(super) const QEMU: &str = "/qemu";
pub(super) const KERNEL: &str = "/kernel";
pub(super) const INITRAMFS: &str = "/initramfs";
pub(super) const FIRMWARE: &str = "/firmware";

/// The socket of the `number`th network card. QEMU has no other way to one: it does not pass guest
/// memory over a connection that it was given.
pub(super) fn net_socket(number: usize) -> String {
    format!("/net{number}")
}

/// The socket of the `number`th disk.
pub(super) fn disk_socket(number: usize) -> String {
    format!("/disk{number}")
}

const LIBRARIES: &str = "/lib";
const MODULES: &str = "/modules";

/// Environment of the QEMU process: where the jail keeps what is elsewhere on the host.
pub(super) const ENVIRONMENT: [&str; 2] = ["LD_LIBRARY_PATH=/lib", "QEMU_MODULE_DIR=/modules"];

/// Where distributions put QEMU's firmware.
const FIRMWARE_DIRS: [&str; 4] = [
    "/usr/share/qemu",
    "/usr/share/qemu-kvm",
    "/usr/local/share/qemu",
    "/usr/share/seabios",
];

/// Starts the kernel on a microvm with ACPI tables.
const FIRMWARE_FILE: &str = "bios-microvm.bin";

/// Starts it on one without, and makes the table of processors and interrupt lines that a kernel
/// without ACPI looks for.
const PLAIN_FIRMWARE_FILE: &str = "qboot.rom";

/// Whether the kernel finds its devices by ACPI; else by its command line.
pub(super) fn has_acpi(machine: &Machine) -> bool {
    machine.kernel.has("ACPI")
}

/// The translator, which some distributions build as a module. Its directory lies beside the
/// libraries.
const TRANSLATOR: &str = "accel-tcg-x86_64.so";

/// What goes into the jail's root.
pub(super) struct Files {
    pub(super) entries: Vec<Entry>,
}

/// Finds all files for `program` and `machine`.
pub(super) fn collect(
    program: &Path,
    machine: &Machine,
    accelerator: Accelerator,
) -> Result<Files, HypervisorError> {
    let mut entries = vec![
        launch::file(program, QEMU, true),
        launch::file(&machine.kernel.image, KERNEL, false),
        launch::file(&machine.initramfs, INITRAMFS, false),
    ];
    let firmware_file = if has_acpi(machine) {
        FIRMWARE_FILE
    } else {
        PLAIN_FIRMWARE_FILE
    };
    let firmware = FIRMWARE_DIRS
        .into_iter()
        .map(|dir| Path::new(dir).join(firmware_file))
        .find(|path| path.is_file())
        .ok_or_else(|| incomplete(firmware_file))?;
    entries.push(launch::file(
        &firmware,
        &format!("{FIRMWARE}/{firmware_file}"),
        false,
    ));
    if accelerator == Accelerator::Kvm {
        entries.push(Entry::Device {
            source: "/dev/kvm".into(),
            target: "/dev/kvm".into(),
        });
    }
    for (number, net) in machine.nets.iter().enumerate() {
        entries.push(launch::socket(&net.socket, &net_socket(number), machine)?);
    }
    for (number, socket) in machine.disks.iter().enumerate() {
        entries.push(launch::socket(socket, &disk_socket(number), machine)?);
    }
    let libraries = libraries(program)?;
    if accelerator == Accelerator::Tcg
        && let Some(module) = translator(&libraries)
    {
        entries.push(launch::file(
            &module,
            &format!("{MODULES}/{TRANSLATOR}"),
            true,
        ));
    }
    for library in &libraries {
        let target = match &library.name {
            Name::Loader => library.path.to_string_lossy().into_owned(),
            Name::Library(name) => format!("{LIBRARIES}/{name}"),
        };
        entries.push(launch::file(&library.path, &target, true));
    }
    Ok(Files { entries })
}

fn incomplete(file: &str) -> HypervisorError {
    HypervisorError::Incomplete {
        file: file.to_owned(),
        program: PROGRAM,
        remedy: REMEDY,
    }
}

enum Name {
    /// The program names it by its absolute path.
    Loader,
    /// It is searched for by this name.
    Library(String),
}

struct Library {
    name: Name,
    path: PathBuf,
}

/// What the dynamic loader would load for `program`, and the loader itself.
///
/// The loader is asked, rather than the ELF headers read here, because it alone knows all of its
/// search rules; it maps the libraries of a package of the host's distribution without running any.
fn libraries(program: &Path) -> Result<Vec<Library>, HypervisorError> {
    let loader = interpreter(program)?;
    let host = |step, path: &Path, source| HypervisorError::Host {
        step,
        path: path.into(),
        source,
    };
    let output = Command::new(&loader)
        .arg("--list")
        .arg(program)
        .env_clear()
        .output()
        .map_err(|source| host("list the libraries with", &loader, source))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr)
            .trim_end()
            .to_owned();
        return Err(host(
            "list the libraries of",
            program,
            std::io::Error::other(message),
        ));
    }
    let listing = String::from_utf8_lossy(&output.stdout);
    let mut libraries = vec![Library {
        name: Name::Loader,
        path: loader,
    }];
    for line in listing.lines() {
        // Lines are `name => path (address)`; without an arrow: the vdso or the loader.
        let Some((name, rest)) = line.trim().split_once(" => ") else {
            continue;
        };
        let Some((path, _address)) = rest.rsplit_once(" (") else {
            return Err(incomplete(name));
        };
        // A soname with a slash would be a path, which the jail does not have.
        if !name.contains('/') {
            libraries.push(Library {
                name: Name::Library(name.to_owned()),
                path: path.into(),
            });
        }
    }
    Ok(libraries)
}

/// The program's dynamic loader (ELF program header `PT_INTERP`).
fn interpreter(program: &Path) -> Result<PathBuf, HypervisorError> {
    use std::io::Read as _;
    let mut head = Vec::new();
    std::fs::File::open(program)
        .and_then(|file| file.take(4096).read_to_end(&mut head))
        .map_err(|source| HypervisorError::Host {
            step: "read the ELF header of",
            path: program.to_owned(),
            source,
        })?;
    interpreter_in(&head).ok_or_else(|| HypervisorError::Host {
        step: "find the dynamic loader of",
        path: program.to_owned(),
        source: std::io::Error::from(std::io::ErrorKind::InvalidData),
    })
}

/// As [`interpreter`], for the first bytes of a 64-bit little-endian file.
fn interpreter_in(file: &[u8]) -> Option<PathBuf> {
    const PT_INTERP: u64 = 3;
    let number = |offset: usize, size: usize| {
        let bytes = file.get(offset..offset.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0u64, |value, byte| (value << 8) | u64::from(*byte)),
        )
    };
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = usize::try_from(number(0x20, 8)?).ok()?;
    let size = usize::try_from(number(0x36, 2)?).ok()?;
    let count = usize::try_from(number(0x38, 2)?).ok()?;
    for index in 0..count {
        let header = table.checked_add(index.checked_mul(size)?)?;
        if number(header, 4)? != PT_INTERP {
            continue;
        }
        let offset = usize::try_from(number(header.checked_add(8)?, 8)?).ok()?;
        let length = usize::try_from(number(header.checked_add(32)?, 8)?).ok()?;
        let text = file.get(offset..offset.checked_add(length)?)?;
        return Some(OsStr::from_bytes(text.strip_suffix(b"\0")?).into());
    }
    None
}

/// The translator module, if this QEMU has it apart.
fn translator(libraries: &[Library]) -> Option<PathBuf> {
    libraries
        .iter()
        .filter_map(|library| library.path.parent())
        .map(|dir| dir.join("qemu").join(TRANSLATOR))
        .map(|path| path.canonicalize().unwrap_or(path))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreter_of_this_test_is_the_loader() {
        let loader = interpreter(&std::env::current_exe().unwrap()).unwrap();
        assert!(loader.is_file(), "{loader:?}");
    }

    #[test]
    fn interpreter_of_a_truncated_file_is_none() {
        let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for length in [0, 4, 6, 0x20, 0x40, 100, 300] {
            assert_eq!(interpreter_in(&file[..length]), None);
        }
    }

    #[test]
    fn libraries_of_this_test_are_files_with_the_loader_first() {
        let libraries = libraries(&std::env::current_exe().unwrap()).unwrap();
        assert!(matches!(libraries[0].name, Name::Loader));
        assert!(libraries.iter().all(|library| library.path.is_file()));
        assert!(libraries.iter().any(|library| {
            matches!(&library.name, Name::Library(name) if name == "libc.so.6")
        }));
    }
}
