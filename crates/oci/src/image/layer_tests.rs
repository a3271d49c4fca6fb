use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use tar::EntryType;
use tempfile::TempDir;

use super::super::testing::{Tarball, privileged};
use super::*;

/// A directory `root` to unpack into, beside a directory `outside` nothing must reach.
fn place() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("root")).unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    fs::write(dir.path().join("outside/secret"), "secret").unwrap();
    dir
}

fn unpack_with(dir: &TempDir, archive: &[u8], limits: Limits) -> Result<(), LayerError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let root = rustix::fs::open(dir.path().join("root"), flags, Mode::empty()).unwrap();
    Layer::new(&Tree::new(root), &mut Budget::new(limits)).unpack(archive)
}

fn unpack(dir: &TempDir, tarball: Tarball) -> Result<(), LayerError> {
    unpack_with(dir, &tarball.finish(), Limits::default())
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Every path below, with its content or target.
fn snapshot(path: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut open = vec![path.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let typ = fs::symlink_metadata(&path).unwrap().file_type();
            let content = if typ.is_dir() {
                open.push(path.clone());
                String::new()
            } else if typ.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else {
                fs::read_to_string(&path).unwrap_or_default()
            };
            all.insert(path.display().to_string(), content);
        }
    }
    all
}

#[test]
fn unpack_files_have_content_mode_owner_and_time() {
    if !privileged() {
        eprintln!("SKIP: not root");
        return;
    }
    let dir = place();
    let tarball = Tarball::default()
        .dir("d")
        .with(EntryType::Regular, "d/su", b"x", |header| {
            header.set_mode(0o4755);
            header.set_uid(1234);
            header.set_gid(4321);
        })
        .symlink("d/link", "/outside")
        .hard_link("d/hard", "d/su");
    unpack(&dir, tarball).unwrap();

    let root = dir.path().join("root");
    let file = fs::metadata(root.join("d/su")).unwrap();
    assert_eq!(
        (file.mode() & 0o7777, file.uid(), file.gid()),
        (0o4755, 1234, 4321)
    );
    assert_eq!((file.mtime(), file.nlink()), (1_000_000_000, 2));
    assert_eq!(
        fs::read_link(root.join("d/link")).unwrap(),
        Path::new("/outside")
    );
    // Later entries must not have changed the directory's time.
    assert_eq!(fs::metadata(root.join("d")).unwrap().mtime(), 1_000_000_000);
}

#[test]
fn unpack_nodes_are_made() {
    if !privileged() {
        eprintln!("SKIP: not root");
        return;
    }
    let dir = place();
    let tarball = Tarball::default()
        .with(EntryType::Char, "null", b"", |header| {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
            header.set_mode(0o666);
        })
        .with(EntryType::Fifo, "pipe", b"", |_| {});
    unpack(&dir, tarball).unwrap();
    let null = fs::metadata(dir.path().join("root/null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!(
        (null.rdev(), null.mode() & 0o777),
        (rustix::fs::makedev(1, 3), 0o666)
    );
    assert!(
        fs::metadata(dir.path().join("root/pipe"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
}

#[test]
fn unpack_extended_attributes_are_set_but_for_foreign_ones() {
    if !privileged() {
        eprintln!("SKIP: not root");
        return;
    }
    let dir = place();
    // CAP_NET_RAW, permitted and effective (version 2).
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let tarball = Tarball::default()
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"system_u"),
        ])
        .with(EntryType::Regular, "ping", b"x", |header| header.set_uid(5));
    unpack(&dir, tarball).unwrap();
    let path = dir.path().join("root/ping");
    let mut buffer = [0; 64];
    let length = rustix::fs::getxattr(&path, "security.capability", &mut buffer[..]).unwrap();
    assert_eq!(&buffer[..length], capability);
    let mut list = vec![0; 256];
    let length = rustix::fs::listxattr(&path, &mut list[..]).unwrap();
    assert_eq!(&list[..length], b"security.capability\0");
}

#[test]
fn unpack_missing_parents_are_made() {
    let dir = place();
    unpack(
        &dir,
        Tarball::default().file("a/b/c/f", "x").file("a/b/g", "y"),
    )
    .unwrap();
    assert_eq!(
        fs::read_to_string(dir.path().join("root/a/b/c/f")).unwrap(),
        "x"
    );
    assert_eq!(
        fs::metadata(dir.path().join("root/a")).unwrap().mode() & 0o777,
        0o755
    );
}

#[test]
fn unpack_second_layer_replaces_what_it_names() {
    let dir = place();
    unpack(
        &dir,
        Tarball::default()
            .file("d/old", "1")
            .file("f", "1")
            .symlink("s", "f")
            .file("x", "1"),
    )
    .unwrap();
    unpack(
        &dir,
        Tarball::default()
            .file("d", "now a file")
            .file("f/now", "a directory")
            .file("s", "now a file")
            .dir("x"),
    )
    .unwrap_err();
    // A file is no directory to put something in, unless the layer says it is one.
    unpack(
        &dir,
        Tarball::default()
            .file("d", "now a file")
            .dir("f")
            .file("f/now", "x")
            .file("s", "2")
            .dir("x"),
    )
    .unwrap();
    let root = dir.path().join("root");
    assert_eq!(fs::read_to_string(root.join("d")).unwrap(), "now a file");
    assert_eq!(fs::read_to_string(root.join("f/now")).unwrap(), "x");
    assert!(fs::symlink_metadata(root.join("s")).unwrap().is_file());
    assert!(fs::metadata(root.join("x")).unwrap().is_dir());
}

#[test]
fn unpack_whiteout_removes_from_lower_layers_only() {
    let dir = place();
    unpack(
        &dir,
        Tarball::default()
            .file("d/a", "1")
            .file("d/b", "1")
            .file("d/sub/c", "1"),
    )
    .unwrap();
    unpack(
        &dir,
        Tarball::default()
            .file("d/new", "2")
            .file("d/.wh.a", "")
            .file("d/.wh.new", "")
            .file("d/.wh.sub", "")
            .file("d/.wh.gone", "")
            .file("none/.wh.x", ""),
    )
    .unwrap();
    assert_eq!(names(&dir.path().join("root/d")), ["b", "new"]);
    assert_eq!(names(&dir.path().join("root")), ["d"]);
}

#[test]
fn unpack_opaque_directory_keeps_what_its_layer_made() {
    let dir = place();
    unpack(
        &dir,
        Tarball::default()
            .file("d/a", "1")
            .file("d/sub/old", "1")
            .file("e", "1"),
    )
    .unwrap();
    unpack(
        &dir,
        Tarball::default()
            .file("d/sub/new", "2")
            .file("d/.wh..wh..opq", "")
            .file("d/late", "2"),
    )
    .unwrap();
    assert_eq!(names(&dir.path().join("root/d")), ["late", "sub"]);
    assert_eq!(names(&dir.path().join("root/d/sub")), ["new"]);
    assert_eq!(names(&dir.path().join("root")), ["d", "e"]);
}

#[test]
fn unpack_whiteout_through_a_link_stays_inside() {
    let dir = place();
    symlink("../outside", dir.path().join("root/link")).unwrap();
    unpack(
        &dir,
        Tarball::default()
            .file("link/.wh.secret", "")
            .file("link/.wh..wh..opq", ""),
    )
    .unwrap();
    assert!(dir.path().join("outside/secret").exists());
}

#[test]
fn unpack_names_that_leave_are_refused_by_name() {
    for (tarball, entry) in [
        (
            Tarball::default().file("../outside/secret", "x"),
            "../outside/secret",
        ),
        (
            Tarball::default().file("a/../../outside/secret", "x"),
            "a/../../outside/secret",
        ),
        (Tarball::default().file("/etc/evil", "x"), "/etc/evil"),
        (Tarball::default().dir(".."), ".."),
        (
            Tarball::default()
                .symlink("link", "../outside")
                .file("link/secret", "x"),
            "link/secret",
        ),
        (
            Tarball::default()
                .symlink("link", "/outside")
                .file("link/secret", "x"),
            "link/secret",
        ),
        (
            Tarball::default()
                .symlink("a", "b")
                .symlink("b", "../outside")
                .file("a/secret", "x"),
            "a/secret",
        ),
        (Tarball::default().hard_link("h", "../outside/secret"), "h"),
        (Tarball::default().hard_link("h", "/etc/passwd"), "h"),
        (
            Tarball::default()
                .symlink("link", "../outside")
                .hard_link("h", "link/secret"),
            "h",
        ),
        (Tarball::default().file(".wh...", ""), ".wh..."),
        (Tarball::default().file(".wh.", ""), ".wh."),
        (Tarball::default().file("d/.wh..", ""), "d/.wh.."),
        (
            Tarball::default()
                .pax(&[("path", b"../outside/secret")])
                .file("f", "x"),
            "../outside/secret",
        ),
    ] {
        let dir = place();
        match unpack(&dir, tarball) {
            Err(LayerError::Escape { entry: named, .. }) => assert_eq!(named, entry),
            other => panic!("{entry}: {other:?}"),
        }
        assert_eq!(snapshot(&dir.path().join("outside")).len(), 1, "{entry}");
        assert_eq!(
            fs::read_to_string(dir.path().join("outside/secret")).unwrap(),
            "secret"
        );
    }
}

#[test]
fn unpack_link_of_a_lower_layer_leads_where_the_container_goes() {
    let dir = place();
    let lower = Tarball::default()
        .dir("run")
        .dir("usr/lib")
        .symlink("var/run", "/run")
        .symlink("lib", "usr/lib");
    unpack(&dir, lower).unwrap();
    unpack(
        &dir,
        Tarball::default()
            .file("var/run/a", "1")
            .file("x", "")
            .file("var/run/b", "2")
            .file("lib/c", "3"),
    )
    .unwrap();
    assert_eq!(names(&dir.path().join("root/run")), ["a", "b"]);
    assert_eq!(names(&dir.path().join("root/usr/lib")), ["c"]);
}

#[test]
fn unpack_link_replaced_by_a_file_is_not_written_through() {
    let dir = place();
    unpack(&dir, Tarball::default().symlink("f", "../outside/secret")).unwrap();
    unpack(&dir, Tarball::default().file("f", "mine")).unwrap();
    assert_eq!(
        fs::read_to_string(dir.path().join("outside/secret")).unwrap(),
        "secret"
    );
    assert_eq!(
        fs::read_to_string(dir.path().join("root/f")).unwrap(),
        "mine"
    );
}

#[test]
fn unpack_hard_link_to_a_link_links_the_link() {
    let dir = place();
    unpack(
        &dir,
        Tarball::default()
            .symlink("s", "/outside/secret")
            .hard_link("h", "s"),
    )
    .unwrap();
    assert!(
        fs::symlink_metadata(dir.path().join("root/h"))
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn unpack_entries_that_make_no_sense_are_named() {
    for tarball in [
        Tarball::default().hard_link("h", "nothing"),
        Tarball::default().dir("d").hard_link("h", "d"),
        Tarball::default().file("h", "").hard_link("h", "h"),
        Tarball::default().file(".", ""),
        Tarball::default()
            .symlink("a", "b")
            .symlink("b", "a")
            .file("a/f", ""),
        Tarball::default().file("f", "").file("f/g", ""),
        Tarball::default()
            .pax(&[("uid", b"4294967295")])
            .file("f", ""),
    ] {
        let dir = place();
        let outcome = unpack(&dir, tarball);
        assert!(
            matches!(outcome, Err(LayerError::Entry { .. })),
            "{outcome:?}"
        );
    }
}

#[test]
fn unpack_limits_are_kept() {
    let dir = place();
    let many = Tarball::default()
        .file("a", "")
        .file("b", "")
        .file("c", "")
        .finish();
    let outcome = unpack_with(
        &dir,
        &many,
        Limits {
            entries: 2,
            ..Limits::default()
        },
    );
    assert!(
        matches!(outcome, Err(LayerError::Limit { limit: 2, .. })),
        "{outcome:?}"
    );

    let large = Tarball::default()
        .file("a", "12345")
        .file("b", "67890")
        .finish();
    let outcome = unpack_with(
        &dir,
        &large,
        Limits {
            bytes: 9,
            ..Limits::default()
        },
    );
    assert!(
        matches!(&outcome, Err(LayerError::Limit { limit: 9, entry, .. }) if entry == "b"),
        "{outcome:?}"
    );

    let deep = Tarball::default().file("a/b/c/d", "").finish();
    let outcome = unpack_with(
        &dir,
        &deep,
        Limits {
            depth: 3,
            ..Limits::default()
        },
    );
    assert!(
        matches!(outcome, Err(LayerError::Limit { limit: 3, .. })),
        "{outcome:?}"
    );

    // A sparse file counts with its holes.
    let sparse = Tarball::default()
        .pax(&[
            ("GNU.sparse.major", b"0"),
            ("GNU.sparse.size", b"1000000000000"),
            ("GNU.sparse.map", b""),
        ])
        .file("f", "")
        .finish();
    let outcome = unpack_with(
        &dir,
        &sparse,
        Limits {
            bytes: 1 << 30,
            ..Limits::default()
        },
    );
    assert!(
        matches!(outcome, Err(LayerError::Limit { .. })),
        "{outcome:?}"
    );
}

#[test]
fn unpack_sparse_file_is_sparse() {
    let dir = place();
    let sparse = Tarball::default()
        .pax(&[
            ("GNU.sparse.major", b"0"),
            ("GNU.sparse.size", b"104857600"),
            ("GNU.sparse.map", b"52428800,3"),
            ("GNU.sparse.name", b"holes"),
        ])
        .file("made-up", "abc");
    unpack(&dir, sparse).unwrap();
    let path = dir.path().join("root/holes");
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 104_857_600);
    assert!(metadata.blocks() * 512 < 1 << 20);
    let mut part = [0; 5];
    std::os::unix::fs::FileExt::read_exact_at(
        &fs::File::open(&path).unwrap(),
        &mut part,
        52_428_799,
    )
    .unwrap();
    assert_eq!(&part, b"\0abc\0");
}

/// Names that collide, climb and go through links.
fn any_name() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a",
        "b",
        "c",
        "..",
        ".",
        "",
        "secret",
        ".wh.a",
        ".wh..wh..opq",
        ".wh..",
    ]);
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn any_target() -> impl Strategy<Value = String> {
    prop_oneof![
        any_name(),
        Just("../outside".to_owned()),
        Just("/".to_owned()),
        Just("../../../../../..".to_owned()),
        Just("/proc/self/root".to_owned()),
        Just("../outside/secret".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn unpack_any_entries_never_reach_outside(
        layers in prop::collection::vec(prop::collection::vec((0..4u8, any_name(), any_target()), 1..8), 1..4)
    ) {
        let dir = place();
        let before = snapshot(&dir.path().join("outside"));
        for layer in layers {
            let tarball = layer.iter().fold(Tarball::default(), |tarball, (kind, name, target)| match kind {
                0 => tarball.file(name, "evil"),
                1 => tarball.dir(name),
                2 => tarball.symlink(name, target),
                _ => tarball.hard_link(name, target),
            });
            let _ = unpack(&dir, tarball);
        }
        prop_assert_eq!(snapshot(&dir.path().join("outside")), before);
        prop_assert_eq!(names(dir.path()), ["outside", "root"]);
        prop_assert_eq!(fs::metadata(dir.path().join("outside/secret")).unwrap().nlink(), 1);
    }
}
