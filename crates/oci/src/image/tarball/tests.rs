use std::fs;
use std::io::Write;
use std::process::Command;

use proptest::prelude::*;
use tar::EntryType;

use super::super::testing::Tarball;
use super::*;

/// Every entry with its content.
fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut entries = Entries::new(Through(bytes));
    let mut all = Vec::new();
    while let Some(entry) = entries.next()? {
        let mut content = Vec::new();
        let mut buffer = [0; 100];
        loop {
            match entries.read_content(&mut buffer)? {
                0 => break,
                read => content.extend_from_slice(&buffer[..read]),
            }
        }
        all.push((entry, content));
    }
    Ok(all)
}

fn only(bytes: &[u8]) -> (Entry, Vec<u8>) {
    let mut all = read_all(bytes).unwrap();
    assert_eq!(all.len(), 1);
    all.pop().unwrap()
}

#[test]
fn next_plain_entries_are_read() {
    let archive = Tarball::default()
        .dir("d/")
        .file("d/f", "hello")
        .symlink("d/s", "f")
        .hard_link("d/h", "d/f")
        .finish();
    let all = read_all(&archive).unwrap();
    let kinds: Vec<_> = all.iter().map(|(entry, _)| entry.kind).collect();
    assert_eq!(
        kinds,
        [Kind::Directory, Kind::File, Kind::Symlink, Kind::HardLink]
    );
    assert_eq!(all[1].1, b"hello");
    assert_eq!(
        (all[2].0.link.as_slice(), all[3].0.link.as_slice()),
        (&b"f"[..], &b"d/f"[..])
    );
    assert_eq!(all[1].0.mtime, (1_000_000_000, 0));
    assert_eq!(all[1].0.mode, 0o644);
}

#[test]
fn next_content_not_read_is_passed_over() {
    let archive = Tarball::default()
        .file("a", &"x".repeat(1000))
        .file("b", "y")
        .finish();
    let mut entries = Entries::new(Through(archive.as_slice()));
    entries.next().unwrap().unwrap();
    assert_eq!(entries.next().unwrap().unwrap().path, b"b");
}

#[test]
fn next_long_names_of_gnu_are_whole() {
    let name = format!("{}/file", "directory/".repeat(30));
    let archive = Tarball::default()
        .with(
            EntryType::GNULongName,
            "././@LongLink",
            format!("{name}\0").as_bytes(),
            |_| {},
        )
        .with(EntryType::GNULongLink, "././@LongLink", b"target\0", |_| {})
        .symlink("short", "cut")
        .finish();
    let (entry, _) = only(&archive);
    assert_eq!(entry.path, name.as_bytes());
    assert_eq!(entry.link, b"target");
}

#[test]
fn next_pax_records_override_the_header() {
    let archive = Tarball::default()
        .pax(&[
            ("path", b"pax/name"),
            ("uid", b"3000000000"),
            ("mtime", b"5.25"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
        ])
        .file("short", "x")
        .finish();
    let (entry, _) = only(&archive);
    assert_eq!(entry.path, b"pax/name");
    assert_eq!((entry.uid, entry.mtime), (3_000_000_000, (5, 250_000_000)));
    assert_eq!(
        entry.xattrs,
        [(b"security.capability".to_vec(), b"\x01\0\0\x02".to_vec())]
    );
}

#[test]
fn next_content_of_an_empty_type_is_none() {
    // The size says 512, but a directory has no content: the next header follows at once.
    let archive = Tarball::default()
        .with(EntryType::Directory, "d", b"", |header| {
            header.set_size(512)
        })
        .file("f", "x")
        .finish();
    assert_eq!(read_all(&archive).unwrap().len(), 2);
}

#[test]
fn next_end_without_zeros_is_an_end() {
    let archive = Tarball::default().file("f", "x").bytes;
    assert_eq!(read_all(&archive).unwrap().len(), 1);
    assert!(read_all(b"").unwrap().is_empty());
}

#[test]
fn next_broken_archives_are_told() {
    let archive = Tarball::default().file("f", &"x".repeat(600)).finish();
    assert!(matches!(
        read_all(&archive[..700]),
        Err(TarError::Truncated)
    ));
    assert!(matches!(
        read_all(&archive[..100]),
        Err(TarError::Truncated)
    ));
    let mut damaged = archive;
    damaged[3] ^= 1;
    assert!(matches!(read_all(&damaged), Err(TarError::Checksum(0))));
    let odd = Tarball::default()
        .with(EntryType::new(b'V'), "label", b"", |_| {})
        .finish();
    assert!(matches!(
        read_all(&odd),
        Err(TarError::Type { typ: b'V', at: 0 })
    ));
    let broken = Tarball::default()
        .with(EntryType::XHeader, "p", b"9 a=b", |_| {})
        .file("f", "")
        .finish();
    assert!(matches!(read_all(&broken), Err(TarError::Pax(0))));
}

#[test]
fn next_names_too_long_cost_no_memory() {
    for typ in [EntryType::GNULongName, EntryType::XHeader] {
        let archive = Tarball::default()
            .with(typ, "n", b"", |header| header.set_size(1 << 40))
            .finish();
        let outcome = read_all(&archive);
        assert!(
            matches!(outcome, Err(TarError::TooLong { .. })),
            "{outcome:?}"
        );
    }
}

/// A file with data at the start, at 3 MiB and at the end of 5 MiB, packed by GNU tar.
fn packed_by_tar(options: &[&str]) -> Option<(Vec<u8>, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("holes");
    let mut content = vec![0; 5 << 20];
    content[..5].copy_from_slice(b"start");
    content[3 << 20..(3 << 20) + 6].copy_from_slice(b"middle");
    let end = content.len() - 3;
    content[end..].copy_from_slice(b"end");
    let mut file = fs::File::create(&path).unwrap();
    for range in [
        0..4096,
        3 << 20..(3 << 20) + 4096,
        (5 << 20) - 4096..5 << 20,
    ] {
        std::os::unix::fs::FileExt::write_all_at(
            &file,
            &content[range.clone()],
            range.start as u64,
        )
        .unwrap();
    }
    file.flush().unwrap();
    let output = Command::new("tar")
        .args(["-C", dir.path().to_str().unwrap(), "-S", "-cf", "-"])
        .args(options)
        .arg("holes")
        .output()
        .ok()?;
    assert!(output.status.success());
    Some((output.stdout, content))
}

#[test]
fn next_sparse_files_of_gnu_tar_are_put_together() {
    for options in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let Some((archive, content)) = packed_by_tar(options) else {
            eprintln!("SKIP: tar is not installed");
            return;
        };
        assert!(archive.len() < 1 << 20, "{options:?}: not sparse");
        let (entry, stored) = only(&archive);
        assert_eq!(entry.path, b"holes", "{options:?}");
        assert_eq!(entry.size, content.len() as u64, "{options:?}");
        let mut whole = vec![0; content.len()];
        let mut stored = stored.as_slice();
        for segment in entry.sparse.unwrap() {
            let (part, rest) = stored.split_at(usize::try_from(segment.length).unwrap());
            whole[usize::try_from(segment.offset).unwrap()..][..part.len()].copy_from_slice(part);
            stored = rest;
        }
        assert!(whole == content, "{options:?}");
        assert!(stored.is_empty(), "{options:?}");
    }
}

#[test]
fn next_sparse_map_that_lies_is_refused() {
    for map in [
        "0,10",
        "5,1,0,9",
        "0,5,18446744073709551615,5",
        "0,10,100,10",
    ] {
        let archive = Tarball::default()
            .pax(&[
                ("GNU.sparse.major", b"0"),
                ("GNU.sparse.size", b"50"),
                ("GNU.sparse.map", map.as_bytes()),
            ])
            .file("f", "0123456789")
            .finish();
        let outcome = read_all(&archive);
        match map {
            "0,10" => assert_eq!(outcome.unwrap()[0].0.size, 50),
            _ => assert!(
                matches!(outcome, Err(TarError::Sparse(_))),
                "{map}: {outcome:?}"
            ),
        }
    }
}

proptest! {
    #[test]
    fn entries_any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let _ = read_all(&bytes);
    }

    /// Headers with a right checksum and anything else wrong.
    #[test]
    fn entries_any_header_never_panics(mut block in prop::collection::vec(any::<u8>(), 512), typ in prop::sample::select(b"0123457LKxgSV\0".to_vec()), rest in prop::collection::vec(any::<u8>(), 0..1500)) {
        block[156] = typ;
        block[124..136].copy_from_slice(b"00000000700\0");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block.extend(rest);
        let _ = read_all(&block);
    }
}
