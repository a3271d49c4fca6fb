//! Putting the build tree under a prefix, and taking it away again.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::build::{SHIM, put};
use crate::command::read;
use crate::paths;

/// Lists, under the library directory, the directories that `install` created.
const RECORD: &str = ".created-directories";

/// Copies programs, kernels and initramfs to `prefix` (under `destdir`).
pub fn install(prefix: &Path, destdir: Option<&Path>) -> Result<()> {
    install_from(&paths::build(), &target(prefix, destdir)?)
}

/// Removes what [`install`] put there; kernels added later go as well.
pub fn uninstall(prefix: &Path, destdir: Option<&Path>) -> Result<()> {
    uninstall_from(&target(prefix, destdir)?)
}

fn target(prefix: &Path, destdir: Option<&Path>) -> Result<PathBuf> {
    ensure!(
        prefix.is_absolute() && prefix.components().all(|part| part != Component::ParentDir),
        "The prefix must be an absolute path without `..`: {}",
        prefix.display()
    );
    Ok(match destdir.filter(|dir| !dir.as_os_str().is_empty()) {
        Some(dir) => dir.join(prefix.strip_prefix("/").unwrap_or(prefix)),
        None => prefix.to_owned(),
    })
}

fn install_from(build: &Path, target: &Path) -> Result<()> {
    ensure!(
        build.join("bin/bulkhead").is_file() && build.join("lib/bulkhead/kernels").is_dir(),
        "There is nothing to install yet; run `make build` first"
    );
    let bin = target.join("bin");
    let lib = target.join("lib/bulkhead");
    let mut created = Vec::new();
    for directory in [&bin, &lib] {
        create(directory, &mut created)?;
    }
    put(
        &bin.join("bulkhead"),
        &read(&build.join("bin/bulkhead"))?,
        0o755,
    )?;
    let shim = bin.join(SHIM);
    remove_file(&shim)?;
    symlink("bulkhead", &shim).with_context(|| format!("Cannot create {}", shim.display()))?;
    copy_tree(&build.join("lib/bulkhead"), &lib)?;
    record(&lib.join(RECORD), &created)?;
    println!(
        "installed: {} and {}",
        bin.join("bulkhead").display(),
        lib.display()
    );
    Ok(())
}

fn uninstall_from(target: &Path) -> Result<()> {
    let bin = target.join("bin");
    let lib = target.join("lib/bulkhead");
    let created = fs::read_to_string(lib.join(RECORD)).unwrap_or_default();
    // The link first, and only if it is ours.
    let shim = bin.join(SHIM);
    if fs::read_link(&shim).ok().as_deref() == Some(Path::new("bulkhead")) {
        remove_file(&shim)?;
    }
    remove_file(&bin.join("bulkhead"))?;
    match fs::remove_dir_all(&lib) {
        Err(err) if err.kind() != ErrorKind::NotFound => {
            return Err(err).with_context(|| format!("Cannot remove {}", lib.display()));
        }
        _ => {}
    }
    // Deepest first; one that holds something of somebody else's stays.
    for directory in created.lines().rev() {
        match fs::remove_dir(directory) {
            Err(err)
                if !matches!(
                    err.kind(),
                    ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty
                ) =>
            {
                return Err(err).with_context(|| format!("Cannot remove {directory}"));
            }
            _ => {}
        }
    }
    println!("uninstalled from {}", target.display());
    Ok(())
}

/// Creates a directory with its parents and notes those that were not there.
fn create(directory: &Path, created: &mut Vec<PathBuf>) -> Result<()> {
    let missing: Vec<&Path> = directory
        .ancestors()
        .take_while(|dir| !dir.exists())
        .collect();
    for dir in missing.into_iter().rev() {
        fs::create_dir(dir).with_context(|| format!("Cannot create {}", dir.display()))?;
        created.push(dir.to_owned());
    }
    Ok(())
}

/// Adds to the record of an earlier installation at the same place.
fn record(path: &Path, created: &[PathBuf]) -> Result<()> {
    let mut text = fs::read_to_string(path).unwrap_or_default();
    for directory in created {
        text += &format!("{}\n", directory.display());
    }
    put(path, text.as_bytes(), 0o644)
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("Cannot list {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue; // locks and unfinished files
        }
        if kind.is_dir() {
            fs::create_dir_all(&target)
                .with_context(|| format!("Cannot create {}", target.display()))?;
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_symlink() {
            remove_file(&target)?;
            symlink(fs::read_link(entry.path())?, &target)
                .with_context(|| format!("Cannot create {}", target.display()))?;
        } else {
            let mode = entry.metadata()?.permissions().mode() & 0o777;
            put(&target, &read(&entry.path())?, mode)?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != ErrorKind::NotFound => {
            Err(err).with_context(|| format!("Cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build_tree(dir: &Path) -> PathBuf {
        let build = dir.join("build");
        let kernel = build.join("lib/bulkhead/kernels/k");
        fs::create_dir_all(&kernel).unwrap();
        fs::create_dir_all(build.join("bin")).unwrap();
        fs::write(build.join("bin/bulkhead"), "program").unwrap();
        fs::write(build.join("lib/bulkhead/initramfs.cpio"), "cpio").unwrap();
        fs::write(build.join("lib/bulkhead/kernels/.lock"), "").unwrap();
        fs::write(kernel.join("linux"), "kernel").unwrap();
        symlink("k", build.join("lib/bulkhead/kernels/default-uml")).unwrap();
        build
    }

    #[test]
    fn install_then_uninstall_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let build = build_tree(dir.path());
        let target = dir.path().join("new/prefix");

        install_from(&build, &target).unwrap();
        install_from(&build, &target).unwrap();
        let lib = target.join("lib/bulkhead");
        assert_eq!(fs::read(target.join("bin").join(SHIM)).unwrap(), b"program");
        assert_eq!(
            fs::read(lib.join("kernels/default-uml/linux")).unwrap(),
            b"kernel"
        );
        assert!(!lib.join("kernels/.lock").exists());
        uninstall_from(&target).unwrap();

        assert!(!dir.path().join("new").exists());
    }

    #[test]
    fn uninstall_keeps_what_others_put_there() {
        let dir = tempfile::tempdir().unwrap();
        let build = build_tree(dir.path());
        let target = dir.path().join("prefix");
        install_from(&build, &target).unwrap();
        fs::write(target.join("bin/other"), "theirs").unwrap();

        uninstall_from(&target).unwrap();

        let left: Vec<_> = fs::read_dir(&target)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["bin"]);
        assert_eq!(fs::read_dir(target.join("bin")).unwrap().count(), 1);
    }

    #[test]
    fn install_without_a_build_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();

        let err = install_from(&dir.path().join("build"), &dir.path().join("prefix")).unwrap_err();

        assert!(err.to_string().contains("make build"));
        assert!(!dir.path().join("prefix").exists());
    }

    #[test]
    fn prefix_relative_is_refused() {
        assert!(target(Path::new("usr"), None).is_err());
        assert!(target(Path::new("/usr/../etc"), None).is_err());
        assert_eq!(
            target(Path::new("/usr"), Some(Path::new("/pkg"))).unwrap(),
            Path::new("/pkg/usr")
        );
    }
}
