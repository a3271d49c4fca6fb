//! The directory of installed kernels.

use std::cmp::Reverse;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

use crate::manifest::validate;
use crate::{
    Addition, Flavour, Kernel, KernelsError, MAX_IMAGE_BYTES, Manifest, Result, describe,
    validate_name,
};

/// Longest manifest that is read, in bytes; ours are about 20 kB.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// The kernels installed under one library directory.
///
/// On disk: `<lib>/kernels/<name>/{manifest.json,<image>}`, and for each
/// flavour optionally `<lib>/kernels/default-<flavour>`, a symbolic link to the
/// name of the kernel used when none is asked for.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// A directory of the store: a kernel, or the reason why it is not one.
#[derive(Debug)]
pub struct Entry {
    /// Name of the directory.
    pub name: String,
    /// The kernel in it.
    pub kernel: Result<Kernel>,
}

impl Store {
    /// The store under `lib_dir` (see [`crate::lib_dir`]). Touches nothing.
    pub fn open(lib_dir: &Path) -> Self {
        Self {
            dir: lib_dir.join("kernels"),
        }
    }

    /// Directory that holds the kernels.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Everything that lies in the store, damaged kernels included, by name.
    ///
    /// # Errors
    /// [`KernelsError::Io`] if the directory cannot be read; one that does not
    /// exist is empty.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let read = match fs::read_dir(&self.dir) {
            Ok(read) => read,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(err) => return Err(KernelsError::io("list the kernels in", &self.dir)(err)),
        };
        let mut entries = Vec::new();
        for entry in read {
            let entry = entry.map_err(KernelsError::io("list the kernels in", &self.dir))?;
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if is_dir && validate_name(&name).is_ok() {
                entries.push(Entry {
                    kernel: self.load(&name),
                    name,
                });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// The usable kernels, by flavour, newest version first.
    ///
    /// Damaged ones are left out; [`Store::entries`] has them.
    ///
    /// # Errors
    /// As [`Store::entries`].
    pub fn list(&self) -> Result<Vec<Kernel>> {
        let mut kernels: Vec<Kernel> = self
            .entries()?
            .into_iter()
            .filter_map(|entry| entry.kernel.ok())
            .collect();
        kernels.sort_by_cached_key(|kernel| {
            let manifest = &kernel.manifest;
            (
                manifest.flavour,
                Reverse(version_key(&manifest.version)),
                manifest.name.clone(),
            )
        });
        Ok(kernels)
    }

    /// The kernel to boot on a hypervisor that runs `flavour`.
    ///
    /// Without a `name` this is the one marked as default, otherwise the newest.
    /// Only cheap checks are made (manifest sound, image there and of the right
    /// size); [`Kernel::verify`] reads the whole image.
    ///
    /// # Errors
    /// [`KernelsError::NoneInstalled`], [`KernelsError::NotFound`],
    /// [`KernelsError::WrongFlavour`], or what is wrong with the kernel found.
    pub fn find(&self, flavour: Flavour, name: Option<&str>) -> Result<Kernel> {
        if let Some(name) = name {
            let kernel = self.get(name)?;
            if kernel.manifest.flavour != flavour {
                return Err(KernelsError::WrongFlavour {
                    name: name.to_owned(),
                    has: kernel.manifest.flavour,
                    wanted: flavour,
                    suitable: self.names(|kernel| kernel.manifest.flavour == flavour)?,
                });
            }
            return Ok(kernel);
        }
        if let Some(name) = self.default_name(flavour) {
            match self.get(&name) {
                Err(KernelsError::NotFound { .. }) => {} // removed since it was marked
                other => return other,
            }
        }
        let usable = self.list()?;
        let newest = |kernel: &Kernel| kernel.manifest.flavour == flavour;
        if let Some(kernel) = usable.into_iter().find(newest) {
            return Ok(kernel);
        }
        Err(self
            .damaged(flavour)?
            .unwrap_or(KernelsError::NoneInstalled {
                flavour,
                dir: self.dir.clone(),
            }))
    }

    /// What is wrong with an installed kernel of `flavour` that is not usable.
    fn damaged(&self, flavour: Flavour) -> Result<Option<KernelsError>> {
        let damaged = self.entries()?.into_iter().filter_map(|entry| {
            let err = entry.kernel.err()?;
            let manifest = self.manifest(&entry.name).ok()?;
            (manifest.0.flavour == flavour).then_some(err)
        });
        Ok(damaged.last())
    }

    /// The kernel of that name, after the cheap checks.
    ///
    /// # Errors
    /// [`KernelsError::InvalidName`], [`KernelsError::NotFound`], or what is
    /// wrong with it.
    pub fn get(&self, name: &str) -> Result<Kernel> {
        validate_name(name)?;
        if !self.dir.join(name).is_dir() {
            return Err(KernelsError::NotFound {
                name: name.to_owned(),
                installed: self.names(|_| true)?,
            });
        }
        self.load(name)
    }

    /// The kernel of that name after its whole image has been read and compared
    /// with its digest.
    ///
    /// # Errors
    /// As [`Store::get`], and [`KernelsError::Digest`].
    pub fn inspect(&self, name: &str) -> Result<Kernel> {
        let kernel = self.get(name)?;
        kernel.verify()?;
        Ok(kernel)
    }

    /// Installs the kernel image at `path`, all or nothing.
    ///
    /// # Errors
    /// What [`describe`] says of the image, [`KernelsError::AlreadyInstalled`],
    /// or [`KernelsError::Io`].
    pub fn add(&self, path: &Path, addition: &Addition<'_>) -> Result<Kernel> {
        let image = read_image(path)?;
        let manifest = describe(&image, path, addition)?;
        self.install(&manifest, &image, false)
    }

    /// Like [`Store::add`], but takes the place of a kernel of the same name. A
    /// machine that runs the old one is not disturbed: it keeps its file.
    ///
    /// # Errors
    /// As [`Store::add`], without [`KernelsError::AlreadyInstalled`].
    pub fn replace(&self, path: &Path, addition: &Addition<'_>) -> Result<Kernel> {
        let image = read_image(path)?;
        let manifest = describe(&image, path, addition)?;
        match self.get(&manifest.name) {
            Ok(kernel) if kernel.manifest == manifest && kernel.verify().is_ok() => Ok(kernel),
            _ => self.install(&manifest, &image, true),
        }
    }

    /// Removes the kernel of that name, damaged or not. Machines that run it
    /// are not disturbed.
    ///
    /// # Errors
    /// [`KernelsError::InvalidName`], [`KernelsError::NotFound`] or
    /// [`KernelsError::Io`].
    pub fn remove(&self, name: &str) -> Result<()> {
        validate_name(name)?;
        let dir = self.dir.join(name);
        if !dir.is_dir() {
            let installed = self.names(|_| true)?;
            return Err(KernelsError::NotFound {
                name: name.to_owned(),
                installed,
            });
        }
        let _lock = self.lock()?;
        for flavour in Flavour::ALL {
            if self.default_name(flavour).as_deref() == Some(name) {
                let marker = self.marker(flavour);
                fs::remove_file(&marker).map_err(KernelsError::io("remove", &marker))?;
            }
        }
        // Out of sight in one step, then away.
        let doomed = self.temporary(name);
        fs::rename(&dir, &doomed).map_err(KernelsError::io("remove the kernel", &dir))?;
        fs::remove_dir_all(&doomed).map_err(KernelsError::io("remove the kernel", &doomed))
    }

    /// Makes `name` the kernel that is used for its flavour when none is asked
    /// for.
    ///
    /// # Errors
    /// As [`Store::get`], and [`KernelsError::Io`].
    pub fn set_default(&self, name: &str) -> Result<()> {
        let flavour = self.get(name)?.manifest.flavour;
        let _lock = self.lock()?;
        let marker = self.marker(flavour);
        let fresh = self.temporary("default");
        std::os::unix::fs::symlink(name, &fresh).map_err(KernelsError::io("create", &fresh))?;
        fs::rename(&fresh, &marker).map_err(KernelsError::io("set the default kernel", &marker))
    }

    /// The name marked as default for `flavour`, if one is.
    pub fn default_name(&self, flavour: Flavour) -> Option<String> {
        let name = fs::read_link(self.marker(flavour))
            .ok()?
            .into_os_string()
            .into_string()
            .ok()?;
        validate_name(&name).is_ok().then_some(name)
    }

    fn marker(&self, flavour: Flavour) -> PathBuf {
        self.dir.join(format!("default-{flavour}"))
    }

    fn names(&self, keep: impl Fn(&Kernel) -> bool) -> Result<Vec<String>> {
        let kernels = self.list()?.into_iter();
        Ok(kernels
            .filter(|kernel| keep(kernel))
            .map(|kernel| kernel.manifest.name)
            .collect())
    }

    /// Reads and checks the manifest of `name` and looks at its image's size.
    fn manifest(&self, name: &str) -> Result<(Manifest, PathBuf)> {
        let path = self.dir.join(name).join("manifest.json");
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_MANIFEST_BYTES).read_to_end(&mut text))
            .map_err(KernelsError::io("read the kernel manifest", &path))?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|source| KernelsError::Manifest {
                path: path.clone(),
                source,
            })?;
        validate(&manifest, name, &path)?;
        Ok((manifest, path))
    }

    fn load(&self, name: &str) -> Result<Kernel> {
        let (manifest, path) = self.manifest(name)?;
        let image = self.dir.join(name).join(&manifest.image);
        let meta = fs::symlink_metadata(&image).map_err(|source| KernelsError::NoImage {
            name: name.to_owned(),
            path: image.clone(),
            source,
        })?;
        if !meta.is_file() || meta.len() != manifest.size {
            let reason = format!(
                "the image {} is not a file of {} bytes as installed",
                manifest.image, manifest.size
            );
            return Err(KernelsError::Inconsistent { path, reason });
        }
        Ok(Kernel { manifest, image })
    }

    fn install(&self, manifest: &Manifest, image: &[u8], replace: bool) -> Result<Kernel> {
        let name = &manifest.name;
        let dir = self.dir.join(name);
        create_dir_all(&self.dir)?;
        let _lock = self.lock()?;
        if !replace && dir.exists() {
            return Err(KernelsError::AlreadyInstalled { name: name.clone() });
        }
        let fresh = self.temporary(name);
        let result = self.write(manifest, image, &fresh).and_then(|()| {
            let flags = if dir.exists() {
                RenameFlags::EXCHANGE
            } else {
                RenameFlags::NOREPLACE
            };
            renameat_with(CWD, &fresh, CWD, &dir, flags)
                .map_err(|err| KernelsError::io("install the kernel as", &dir)(err.into()))
        });
        // The old kernel after an exchange, the unfinished one after a failure,
        // nothing otherwise.
        match fs::remove_dir_all(&fresh) {
            Err(err) if err.kind() != io::ErrorKind::NotFound && result.is_ok() => {
                return Err(KernelsError::io("remove the replaced kernel", &fresh)(err));
            }
            _ => result?,
        }
        self.load(name)
    }

    fn write(&self, manifest: &Manifest, image: &[u8], dir: &Path) -> Result<()> {
        create_dir_all(dir)?;
        let mode = match manifest.flavour {
            Flavour::Uml => 0o755, // it is executed
            Flavour::Vm => 0o644,
        };
        write_file(&dir.join(&manifest.image), image, mode)?;
        let path = dir.join("manifest.json");
        let mut json =
            serde_json::to_vec_pretty(manifest).map_err(|source| KernelsError::Manifest {
                path: path.clone(),
                source,
            })?;
        json.push(b'\n');
        write_file(&path, &json, 0o644)
    }

    /// A path inside the store that no kernel can have: names do not begin with
    /// a dot.
    fn temporary(&self, name: &str) -> PathBuf {
        self.dir.join(format!(".{name}.{}", std::process::id()))
    }

    /// Holds all other writers off until dropped, and clears away what a writer
    /// that was killed left behind.
    fn lock(&self) -> Result<File> {
        let path = self.dir.join(".lock");
        let failed = |err: io::Error| KernelsError::io("lock the kernel store", &path)(err);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|err| failed(err.into()))?;
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") && name != ".lock" {
                let is_dir = entry.file_type().map_err(failed)?.is_dir();
                let removed = if is_dir {
                    fs::remove_dir_all(entry.path())
                } else {
                    fs::remove_file(entry.path())
                };
                removed.map_err(KernelsError::io("remove the unfinished", entry.path()))?;
            }
        }
        Ok(file)
    }
}

fn create_dir_all(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(KernelsError::io("create the directory", dir))
}

fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .map_err(KernelsError::io("write", path))
}

fn read_image(path: &Path) -> Result<Vec<u8>> {
    let io = || KernelsError::io("read the kernel image", path);
    let file = File::open(path).map_err(io())?;
    let meta = file.metadata().map_err(io())?;
    let reason = if !meta.is_file() {
        "it is not a regular file".to_owned()
    } else if meta.len() > MAX_IMAGE_BYTES {
        format!(
            "it is larger than {} MiB; strip its debugging information",
            MAX_IMAGE_BYTES >> 20
        )
    } else {
        let mut bytes = Vec::new();
        file.take(MAX_IMAGE_BYTES)
            .read_to_end(&mut bytes)
            .map_err(io())?;
        return Ok(bytes);
    };
    Err(KernelsError::NotAKernel {
        path: path.to_owned(),
        reason,
    })
}

/// Sorts `6.12.117` after `6.12.9` and after `6.12-rc3`.
fn version_key(version: &str) -> (Vec<u64>, bool) {
    let (numbers, rest) = match version.find(|c: char| !c.is_ascii_digit() && c != '.') {
        Some(at) => version.split_at(at),
        None => (version, ""),
    };
    let numbers = numbers
        .split('.')
        .filter_map(|number| number.parse().ok())
        .collect();
    (numbers, !rest.starts_with("-rc"))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
