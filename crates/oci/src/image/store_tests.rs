use std::fs;
use std::path::Path;
use std::sync::Barrier;

use serde_json::json;
use tempfile::TempDir;

use super::super::testing::{Tarball, blob, gzip, index, layout, manifest};
use super::*;
use crate::image::{Image, NotAnImage, TarError};

fn store(dir: &TempDir) -> Store {
    Store::open(&dir.path().join("store")).unwrap()
}

fn image(dir: &TempDir) -> Image {
    Image::find(dir.path().join("image").to_str().unwrap()).unwrap()
}

/// A directory with a layout of one image in `image`.
fn with_layers(layers: &[Vec<u8>]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("image")).unwrap();
    layout(&dir.path().join("image"), layers);
    dir
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Unpacks, expects an error and nothing left.
fn error_of(dir: &TempDir, limits: &Limits) -> ImageError {
    let error = store(dir).unpack(&image(dir), limits).unwrap_err();
    assert_eq!(
        names(&dir.path().join("store")),
        Vec::<String>::new(),
        "{error}"
    );
    assert_eq!(error.to_string().lines().count(), 1);
    error
}

#[test]
fn unpack_layers_of_every_compression_are_put_on_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("image");
    fs::create_dir(&at).unwrap();
    let plain = Tarball::default().file("a", "1").file("b", "1").finish();
    let gzipped = Tarball::default().file("b", "2").file(".wh.a", "").finish();
    let zstandard = Tarball::default().file("c", "3").finish();
    let layers = [
        (plain.clone(), plain),
        (gzip(&gzipped), gzipped),
        (
            zstd::encode_all(zstandard.as_slice(), 1).unwrap(),
            zstandard,
        ),
    ];
    let described = manifest(&at, crate::run::go_architecture(), &layers);
    index(&at, &[described]);

    let unpacked = store(&dir)
        .unpack(&image(&dir), &Limits::default())
        .unwrap();

    assert!(!unpacked.cached);
    assert_eq!(names(&unpacked.rootfs), ["b", "c"]);
    assert_eq!(fs::read_to_string(unpacked.rootfs.join("b")).unwrap(), "2");
    assert_eq!(unpacked.config.cmd, ["/bin/sh"]);
    assert_eq!(unpacked.config.entrypoint, Vec::<String>::new());
    assert_eq!(names(&dir.path().join("store")), [unpacked.digest.hex()]);
}

#[test]
fn unpack_second_time_reads_no_layer() {
    let dir = with_layers(&[Tarball::default().file("a", "1").finish()]);
    store(&dir)
        .unpack(&image(&dir), &Limits::default())
        .unwrap();
    let opened = image(&dir);
    fs::remove_dir_all(dir.path().join("image/blobs")).unwrap();
    let unpacked = store(&dir).unpack(&opened, &Limits::default()).unwrap();
    assert!(unpacked.cached);
}

#[test]
fn unpack_damaged_layer_is_named_and_leaves_nothing() {
    let dir = with_layers(&[Tarball::default().file("a", "1").finish()]);
    let blobs = dir.path().join("image/blobs/sha256");
    let opened = image(&dir);
    let layer = blobs.join(&opened.chosen.layers[0].file["blobs/sha256/".len()..]);
    let mut bytes = fs::read(&layer).unwrap();
    // The content, and then a header too: the digest explains both.
    for at in [512, 3] {
        bytes[at] ^= 1;
        fs::write(&layer, &bytes).unwrap();
        let error = error_of(&dir, &Limits::default());
        assert!(matches!(error, ImageError::Digest { .. }), "{error:?}");
    }
    fs::write(&layer, &bytes[..1024]).unwrap();
    let error = error_of(&dir, &Limits::default());
    assert!(matches!(error, ImageError::Size { .. }), "{error:?}");
    fs::remove_file(&layer).unwrap();
    let error = error_of(&dir, &Limits::default());
    assert!(matches!(error, ImageError::Incomplete { .. }), "{error:?}");
}

#[test]
fn unpack_archive_that_is_not_the_configured_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("image");
    fs::create_dir(&at).unwrap();
    let stated = Tarball::default().file("a", "1").finish();
    let other = Tarball::default().file("a", "2").finish();
    let described = manifest(
        &at,
        crate::run::go_architecture(),
        &[(gzip(&other), stated)],
    );
    index(&at, &[described]);
    let error = error_of(&dir, &Limits::default());
    assert!(matches!(error, ImageError::Digest { .. }), "{error:?}");
}

#[test]
fn unpack_layer_that_is_no_archive_is_refused() {
    let dir = with_layers(&[vec![b'x'; 2000]]);
    let error = error_of(&dir, &Limits::default());
    let ImageError::Layer {
        layer: 1,
        source: LayerError::Tar(TarError::Checksum(0)),
        ..
    } = error
    else {
        panic!("{error:?}")
    };
}

#[test]
fn unpack_escape_in_second_layer_leaves_nothing() {
    let dir = with_layers(&[
        Tarball::default().dir("d").file("d/a", "1").finish(),
        Tarball::default().file("../../../evil", "x").finish(),
    ]);
    let error = error_of(&dir, &Limits::default());
    let ImageError::Layer {
        layer: 2,
        source: LayerError::Escape { entry, .. },
        ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(entry, "../../../evil");
    assert_eq!(names(dir.path()), ["image", "store"]);
}

#[test]
fn unpack_bomb_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("image");
    fs::create_dir(&at).unwrap();
    let bomb = vec![0_u8; 80 << 20];
    let described = manifest(
        &at,
        crate::run::go_architecture(),
        &[(zstd::encode_all(bomb.as_slice(), 1).unwrap(), bomb)],
    );
    index(&at, &[described]);
    let error = error_of(
        &dir,
        &Limits {
            bytes: 1 << 20,
            ..Limits::default()
        },
    );
    assert!(
        matches!(
            error,
            ImageError::Layer {
                source: LayerError::Read(_),
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn unpack_what_a_killed_one_left_is_swept() {
    let dir = with_layers(&[Tarball::default().file("a", "1").finish()]);
    let store = store(&dir);
    let own = format!("{UNFINISHED}{}", image(&dir).digest().hex());
    for left in [own.as_str(), ".unpack-of-another"] {
        fs::create_dir_all(dir.path().join("store").join(left).join("rootfs/deep")).unwrap();
        fs::write(
            dir.path().join("store").join(left).join("rootfs/deep/f"),
            "x",
        )
        .unwrap();
    }
    let unpacked = store.unpack(&image(&dir), &Limits::default()).unwrap();
    assert_eq!(names(&dir.path().join("store")), [unpacked.digest.hex()]);
    assert_eq!(names(&unpacked.rootfs), ["a"]);
}

#[test]
fn unpack_what_another_is_working_on_is_left_alone() {
    let dir = with_layers(&[Tarball::default().file("a", "1").finish()]);
    let store = store(&dir);
    let theirs = dir.path().join("store/.unpack-theirs");
    fs::create_dir(&theirs).unwrap();
    let lock = fs::File::open(&theirs).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    store.unpack(&image(&dir), &Limits::default()).unwrap();
    assert!(theirs.exists());
}

#[test]
fn unpack_by_many_at_once_is_done_by_one() {
    let large = "x".repeat(2 << 20);
    let dir = with_layers(&[Tarball::default()
        .file("a", &large)
        .file("b", &large)
        .finish()]);
    let (store, start) = (store(&dir), Barrier::new(8));
    let outcomes: Vec<Unpacked> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let image = image(&dir);
                    start.wait();
                    store.unpack(&image, &Limits::default()).unwrap()
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect()
    });
    assert_eq!(
        outcomes.iter().filter(|unpacked| !unpacked.cached).count(),
        1
    );
    assert_eq!(names(&dir.path().join("store")), [outcomes[0].digest.hex()]);
}

#[test]
fn open_store_is_for_its_owner_only() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    store(&dir);
    assert_eq!(
        fs::metadata(dir.path().join("store")).unwrap().mode() & 0o777,
        0o700
    );
}

#[test]
fn open_store_on_a_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("store"), "").unwrap();
    let outcome = Store::open(&dir.path().join("store"));
    assert!(
        matches!(outcome, Err(ImageError::Store { .. })),
        "{outcome:?}"
    );
}

#[test]
fn find_encrypted_layers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("image");
    fs::create_dir(&at).unwrap();
    let layer = blob(
        &at,
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        b"x",
    );
    let config = json!({"architecture": crate::run::go_architecture(), "os": "linux", "rootfs": {"diff_ids": []}});
    let config = blob(
        &at,
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let text = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
    index(
        &at,
        &[blob(
            &at,
            "application/vnd.oci.image.manifest.v1+json",
            text.as_bytes(),
        )],
    );
    let outcome = Image::find(at.to_str().unwrap());
    assert!(
        matches!(
            outcome,
            Err(ImageError::NotAnImage {
                problem: NotAnImage::Encrypted,
                ..
            })
        ),
        "{outcome:?}"
    );
}
