//! The `options` of a mount in `config.json`: the vocabulary of `mount(8)` and
//! runc, and what each word means to the kernel.

use rustix::mount::{MountAttrFlags as Attr, MountFlags, MountPropagationFlags};

/// What the options of one mount ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// `bind` (false) or `rbind` (true).
    pub bind: Option<bool>,
    /// Attributes of the mount itself.
    pub attributes: Attributes,
    /// Attributes of the mount and everything below it (`rro`, …).
    pub recursive: Attributes,
    /// Flags of the file system, not of the mount (`sync`, `dirsync`, …).
    pub superblock: MountFlags,
    /// Propagation asked for; the last word wins.
    pub propagation: Option<MountPropagationFlags>,
    /// Fill a new tmpfs with what it hides.
    pub copy_up: bool,
    /// Words for the file system's own parser, in order.
    pub data: Vec<String>,
}

/// Attributes to be set on and cleared from a mount; never both for one bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// To be set.
    pub set: Attr,
    /// To be cleared.
    pub clear: Attr,
}

/// Why an option cannot be honoured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal(pub &'static str);

/// What one word does.
#[derive(Clone, Copy, Debug)]
enum Effect {
    Nothing,
    Bind { recursive: bool },
    Set(Attr),
    Clear(Attr),
    Atime(Attr),
    AtimeNot(Attr),
    RecursiveSet(Attr),
    RecursiveClear(Attr),
    RecursiveAtime(Attr),
    Superblock(MountFlags),
    SuperblockClear(MountFlags),
    Propagate(MountPropagationFlags),
    CopyUp,
    Refuse(&'static str),
}

const RDONLY: Attr = Attr::MOUNT_ATTR_RDONLY;
const NOSUID: Attr = Attr::MOUNT_ATTR_NOSUID;
const NODEV: Attr = Attr::MOUNT_ATTR_NODEV;
const NOEXEC: Attr = Attr::MOUNT_ATTR_NOEXEC;
const NODIRATIME: Attr = Attr::MOUNT_ATTR_NODIRATIME;
const NOSYMFOLLOW: Attr = Attr::MOUNT_ATTR_NOSYMFOLLOW;
const RELATIME: Attr = Attr::MOUNT_ATTR_RELATIME;
const NOATIME: Attr = Attr::MOUNT_ATTR_NOATIME;
const STRICTATIME: Attr = Attr::MOUNT_ATTR_STRICTATIME;
const ATIME_MASK: Attr = Attr::MOUNT_ATTR__ATIME;
/// `MS_I_VERSION`, for which rustix has no name.
const I_VERSION: MountFlags = MountFlags::from_bits_retain(1 << 23);
const ID_MAPPED: &str = "mounts with mapped ids need a user namespace, which the guest does not \
     make; change the owner of the files instead";

/// The word's meaning; `None` for one that is the file system's business.
fn effect(word: &str) -> Option<Effect> {
    use Effect::{
        Atime, AtimeNot, Bind, Clear, CopyUp, Nothing, Propagate, RecursiveAtime, RecursiveClear,
        RecursiveSet, Refuse, Set, Superblock, SuperblockClear,
    };
    use MountPropagationFlags as P;
    Some(match word {
        "" | "defaults" => Nothing,
        "bind" => Bind { recursive: false },
        "rbind" => Bind { recursive: true },
        "ro" => Set(RDONLY),
        "rw" => Clear(RDONLY),
        "nosuid" => Set(NOSUID),
        "suid" => Clear(NOSUID),
        "nodev" => Set(NODEV),
        "dev" => Clear(NODEV),
        "noexec" => Set(NOEXEC),
        "exec" => Clear(NOEXEC),
        "nodiratime" => Set(NODIRATIME),
        "diratime" => Clear(NODIRATIME),
        "nosymfollow" => Set(NOSYMFOLLOW),
        "symfollow" => Clear(NOSYMFOLLOW),
        "relatime" => Atime(RELATIME),
        "noatime" => Atime(NOATIME),
        "strictatime" => Atime(STRICTATIME),
        "atime" => AtimeNot(NOATIME),
        "nostrictatime" => AtimeNot(STRICTATIME),
        // Without `relatime` the kernel's default applies, which is `relatime`.
        "norelatime" | "rnorelatime" => Nothing,
        "rro" => RecursiveSet(RDONLY),
        "rrw" => RecursiveClear(RDONLY),
        "rnosuid" => RecursiveSet(NOSUID),
        "rsuid" => RecursiveClear(NOSUID),
        "rnodev" => RecursiveSet(NODEV),
        "rdev" => RecursiveClear(NODEV),
        "rnoexec" => RecursiveSet(NOEXEC),
        "rexec" => RecursiveClear(NOEXEC),
        "rnodiratime" => RecursiveSet(NODIRATIME),
        "rdiratime" => RecursiveClear(NODIRATIME),
        "rnosymfollow" => RecursiveSet(NOSYMFOLLOW),
        "rsymfollow" => RecursiveClear(NOSYMFOLLOW),
        "rrelatime" | "ratime" | "rnostrictatime" => RecursiveAtime(RELATIME),
        "rnoatime" => RecursiveAtime(NOATIME),
        "rstrictatime" => RecursiveAtime(STRICTATIME),
        "sync" => Superblock(MountFlags::SYNCHRONOUS),
        "async" => SuperblockClear(MountFlags::SYNCHRONOUS),
        "dirsync" => Superblock(MountFlags::DIRSYNC),
        "lazytime" => Superblock(MountFlags::LAZYTIME),
        "nolazytime" => SuperblockClear(MountFlags::LAZYTIME),
        "mand" => Superblock(MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
        "nomand" => SuperblockClear(MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
        "silent" => Superblock(MountFlags::SILENT),
        "loud" => SuperblockClear(MountFlags::SILENT),
        "iversion" => Superblock(I_VERSION),
        "noiversion" => SuperblockClear(I_VERSION),
        "private" => Propagate(P::PRIVATE),
        "rprivate" => Propagate(P::PRIVATE.union(P::REC)),
        "slave" => Propagate(P::DOWNSTREAM),
        "rslave" => Propagate(P::DOWNSTREAM.union(P::REC)),
        "shared" => Propagate(P::SHARED),
        "rshared" => Propagate(P::SHARED.union(P::REC)),
        "unbindable" => Propagate(P::UNBINDABLE),
        "runbindable" => Propagate(P::UNBINDABLE.union(P::REC)),
        "tmpcopyup" => CopyUp,
        "idmap" | "ridmap" => Refuse(ID_MAPPED),
        "remount" => Refuse(
            "a container has nothing mounted yet that could be remounted; mount it as wanted",
        ),
        _ => return None,
    })
}

impl Attributes {
    const NONE: Self = Self {
        set: Attr::empty(),
        clear: Attr::empty(),
    };

    fn set(&mut self, bits: Attr) {
        self.set |= bits;
        self.clear.remove(bits);
    }

    fn clear(&mut self, bits: Attr) {
        self.clear |= bits;
        self.set.remove(bits);
    }

    /// The kernel wants the whole field cleared whenever a mode is chosen.
    fn atime(&mut self, mode: Attr) {
        self.set.remove(ATIME_MASK);
        self.set |= mode;
        self.clear |= ATIME_MASK;
    }

    fn atime_mode(&self) -> Option<Attr> {
        self.clear
            .contains(ATIME_MASK)
            .then(|| self.set.intersection(ATIME_MASK))
    }

    /// Adds what `other` asks for, which wins.
    pub fn merge(&mut self, other: Self) {
        self.clear(other.clear);
        self.set |= other.set;
    }

    /// Nothing asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::NONE
    }
}

impl Default for Attributes {
    fn default() -> Self {
        Self::NONE
    }
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            bind: None,
            attributes: Attributes::NONE,
            recursive: Attributes::NONE,
            superblock: MountFlags::empty(),
            propagation: None,
            copy_up: false,
            data: Vec::new(),
        }
    }
}

impl MountOptions {
    /// Reads the words in order; later ones override earlier ones.
    pub fn parse<S: AsRef<str>>(words: &[S]) -> Result<Self, (usize, Refusal)> {
        let mut options = Self::default();
        for (index, word) in words.iter().enumerate() {
            let word = word.as_ref();
            match effect(word) {
                Some(effect) => options.apply(effect).map_err(|refusal| (index, refusal))?,
                None => options.data.push(word.to_owned()),
            }
        }
        Ok(options)
    }

    fn apply(&mut self, effect: Effect) -> Result<(), Refusal> {
        match effect {
            Effect::Nothing => {}
            Effect::Bind { recursive } => self.bind = Some(recursive),
            Effect::Set(bits) => self.attributes.set(bits),
            Effect::Clear(bits) => self.attributes.clear(bits),
            Effect::Atime(mode) => self.attributes.atime(mode),
            Effect::AtimeNot(mode) => {
                if self
                    .attributes
                    .atime_mode()
                    .is_none_or(|chosen| chosen == mode)
                {
                    self.attributes.atime(RELATIME);
                }
            }
            Effect::RecursiveSet(bits) => self.recursive.set(bits),
            Effect::RecursiveClear(bits) => self.recursive.clear(bits),
            Effect::RecursiveAtime(mode) => self.recursive.atime(mode),
            Effect::Superblock(bits) => self.superblock |= bits,
            Effect::SuperblockClear(bits) => self.superblock.remove(bits),
            Effect::Propagate(flags) => self.propagation = Some(flags),
            Effect::CopyUp => self.copy_up = true,
            Effect::Refuse(reason) => return Err(Refusal(reason)),
        }
        Ok(())
    }

    /// The flags for `mount(2)` of a new file system.
    pub fn mount_flags(&self) -> MountFlags {
        let mut flags = self.superblock;
        let set = self.attributes.set;
        for (attribute, flag) in [
            (RDONLY, MountFlags::RDONLY),
            (NOSUID, MountFlags::NOSUID),
            (NODEV, MountFlags::NODEV),
            (NOEXEC, MountFlags::NOEXEC),
            (NODIRATIME, MountFlags::NODIRATIME),
            (NOSYMFOLLOW, MountFlags::NOSYMFOLLOW),
            (NOATIME, MountFlags::NOATIME),
            (STRICTATIME, MountFlags::STRICTATIME),
        ] {
            if set.contains(attribute) {
                flags |= flag;
            }
        }
        flags
    }

    /// The words for the file system, as `mount(2)` takes them.
    pub fn data_string(&self) -> String {
        self.data.join(",")
    }

    /// Propagation that differs from what every mount in a container has
    /// anyway: nothing outside the guest can propagate in, so private and
    /// slave are the same.
    pub fn effective_propagation(&self) -> Option<MountPropagationFlags> {
        use MountPropagationFlags as P;
        self.propagation
            .filter(|flags| flags.intersects(P::SHARED.union(P::UNBINDABLE)))
    }
}
