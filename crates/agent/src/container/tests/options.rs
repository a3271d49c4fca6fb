//! The mount option parser.

use proptest::prelude::*;
use rustix::mount::{MountAttrFlags as Attr, MountFlags, MountPropagationFlags as P};

use crate::container::mounts::options::{Attributes, MountOptions};

/// Words that mean the options, in an order that does not matter.
fn words(options: &MountOptions) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut add = |yes: bool, word: &str| {
        if yes {
            words.push(word.to_owned());
        }
    };
    add(options.bind == Some(false), "bind");
    add(options.bind == Some(true), "rbind");
    for (attributes, prefix) in [(options.attributes, ""), (options.recursive, "r")] {
        attribute_words(attributes, prefix, &mut add);
    }
    for (flag, word) in [
        (MountFlags::SYNCHRONOUS, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
        (MountFlags::LAZYTIME, "lazytime"),
        (MountFlags::PERMIT_MANDATORY_FILE_LOCKING, "mand"),
        (MountFlags::SILENT, "silent"),
        (MountFlags::from_bits_retain(1 << 23), "iversion"),
    ] {
        add(options.superblock.contains(flag), word);
    }
    if let Some(flags) = options.propagation {
        let kind = match flags.difference(P::REC) {
            P::SHARED => "shared",
            P::DOWNSTREAM => "slave",
            P::UNBINDABLE => "unbindable",
            _ => "private",
        };
        let prefix = if flags.contains(P::REC) { "r" } else { "" };
        add(true, &format!("{prefix}{kind}"));
    }
    add(options.copy_up, "tmpcopyup");
    words.extend(options.data.iter().cloned());
    words
}

fn attribute_words(attributes: Attributes, prefix: &str, add: &mut impl FnMut(bool, &str)) {
    for (bit, set, clear) in [
        (Attr::MOUNT_ATTR_RDONLY, "ro", "rw"),
        (Attr::MOUNT_ATTR_NOSUID, "nosuid", "suid"),
        (Attr::MOUNT_ATTR_NODEV, "nodev", "dev"),
        (Attr::MOUNT_ATTR_NOEXEC, "noexec", "exec"),
        (Attr::MOUNT_ATTR_NODIRATIME, "nodiratime", "diratime"),
        (Attr::MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow", "symfollow"),
    ] {
        add(attributes.set.contains(bit), &format!("{prefix}{set}"));
        add(attributes.clear.contains(bit), &format!("{prefix}{clear}"));
    }
    if attributes.clear.contains(Attr::MOUNT_ATTR__ATIME) {
        let mode = match attributes.set.intersection(Attr::MOUNT_ATTR__ATIME) {
            Attr::MOUNT_ATTR_NOATIME => "noatime",
            Attr::MOUNT_ATTR_STRICTATIME => "strictatime",
            _ => "relatime",
        };
        add(true, &format!("{prefix}{mode}"));
    }
}

/// Every word the parser knows, and some it hands on.
const WORDS: &[&str] = &[
    "",
    "defaults",
    "bind",
    "rbind",
    "ro",
    "rw",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "nodiratime",
    "diratime",
    "nosymfollow",
    "symfollow",
    "relatime",
    "noatime",
    "strictatime",
    "atime",
    "norelatime",
    "nostrictatime",
    "rro",
    "rrw",
    "rnosuid",
    "rsuid",
    "rnodev",
    "rdev",
    "rnoexec",
    "rexec",
    "rnodiratime",
    "rdiratime",
    "rnosymfollow",
    "rsymfollow",
    "rrelatime",
    "ratime",
    "rnostrictatime",
    "rnoatime",
    "rstrictatime",
    "rnorelatime",
    "sync",
    "async",
    "dirsync",
    "lazytime",
    "nolazytime",
    "mand",
    "nomand",
    "silent",
    "loud",
    "iversion",
    "noiversion",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
    "unbindable",
    "runbindable",
    "tmpcopyup",
    "mode=755",
    "size=64k",
    "newinstance",
    "é",
];

proptest! {
    #[test]
    fn any_words_are_parsed_or_refused_without_panic(words in proptest::collection::vec(".*", 0..12)) {
        if let Ok(options) = MountOptions::parse(&words) {
            prop_assert!(options.data.len() <= words.len());
        }
    }

    #[test]
    fn options_written_as_words_mean_the_same_again(
        picked in proptest::collection::vec(proptest::sample::select(WORDS), 0..16),
    ) {
        let options = MountOptions::parse(&picked).unwrap();

        prop_assert_eq!(MountOptions::parse(&words(&options)).unwrap(), options);
    }

    #[test]
    fn no_attribute_is_both_set_and_cleared(
        picked in proptest::collection::vec(proptest::sample::select(WORDS), 0..16),
    ) {
        let options = MountOptions::parse(&picked).unwrap();

        for attributes in [options.attributes, options.recursive] {
            let both = attributes.set.intersection(attributes.clear);
            prop_assert!(Attr::MOUNT_ATTR__ATIME.contains(both), "{:?}", both);
        }
    }
}

#[test]
fn later_word_overrides_an_earlier_one() {
    let options = MountOptions::parse(&["ro", "noexec", "rw", "rslave", "private"]).unwrap();

    assert_eq!(options.mount_flags(), MountFlags::NOEXEC);
    assert_eq!(options.attributes.clear, Attr::MOUNT_ATTR_RDONLY);
    assert_eq!(options.propagation, Some(P::PRIVATE));
}

#[test]
fn words_of_the_file_system_keep_their_order() {
    let options = MountOptions::parse(&["nosuid", "mode=1777", "ro", "size=64k"]).unwrap();

    assert_eq!(options.data_string(), "mode=1777,size=64k");
    assert_eq!(
        options.mount_flags(),
        MountFlags::NOSUID | MountFlags::RDONLY
    );
}

#[test]
fn words_that_cannot_be_honoured_are_refused_with_their_place() {
    for word in ["idmap", "ridmap", "remount"] {
        let (index, refusal) = MountOptions::parse(&["ro", word]).unwrap_err();

        assert_eq!(index, 1);
        assert!(!refusal.0.is_empty());
    }
}
