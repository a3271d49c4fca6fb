use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::testing::{Tarball, blob, gzip, index, layout, manifest};
use super::*;

fn layer(content: &str) -> Vec<u8> {
    Tarball::default().file("f", content).finish()
}

/// Writes an image for an architecture with one layer, and describes it with a name.
fn named(dir: &Path, name: &str, architecture: &str) -> Value {
    let tar = layer(name);
    let mut described = manifest(dir, architecture, &[(tar.clone(), tar)]);
    if !name.is_empty() {
        described["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    }
    described
}

fn here() -> &'static str {
    crate::run::go_architecture()
}

fn find(dir: &Path, choice: &str) -> Result<Image, ImageError> {
    Image::find(&format!("{}{choice}", dir.display()))
}

/// What the file of the chosen image says.
fn content(image: &Image) -> String {
    let dir = tempfile::tempdir().unwrap();
    let unpacked = Store::open(dir.path())
        .unwrap()
        .unpack(image, &Limits::default())
        .unwrap();
    fs::read_to_string(unpacked.rootfs.join("f")).unwrap()
}

#[test]
fn find_by_tag_name_and_digest() {
    let dir = tempfile::tempdir().unwrap();
    let one = named(dir.path(), "local/bb:1", here());
    let two = named(dir.path(), "2", here());
    index(dir.path(), &[one, two.clone()]);
    for (choice, name) in [
        (":1", "local/bb:1"),
        (":local/bb:1", "local/bb:1"),
        (":bb:1", "local/bb:1"),
        (":2", "2"),
    ] {
        assert_eq!(
            content(&find(dir.path(), choice).unwrap()),
            name,
            "{choice}"
        );
    }
    let digest = two["digest"].as_str().unwrap();
    assert_eq!(
        content(&find(dir.path(), &format!("@{digest}")).unwrap()),
        "2"
    );
    let error = find(dir.path(), ":3").unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, ImageError::NoSuchTag { .. }), "{message}");
    assert!(message.contains("local/bb:1"), "{message}");
}

#[test]
fn find_without_choice_takes_the_only_one_or_the_latest() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (
        named(dir.path(), "1", here()),
        named(dir.path(), "2", here()),
    );
    index(dir.path(), std::slice::from_ref(&one));
    assert_eq!(content(&find(dir.path(), "").unwrap()), "1");
    index(dir.path(), &[one.clone(), two.clone()]);
    let error = find(dir.path(), "").unwrap_err();
    assert!(matches!(error, ImageError::Ambiguous { .. }), "{error}");
    index(dir.path(), &[one, named(dir.path(), "latest", here()), two]);
    assert_eq!(content(&find(dir.path(), "").unwrap()), "latest");
}

#[test]
fn find_image_for_several_machines_takes_this_ones() {
    let dir = tempfile::tempdir().unwrap();
    let platform = |mut described: Value, architecture: &str, os: &str| {
        described["platform"] = json!({"architecture": architecture, "os": os});
        described
    };
    let inner = json!({"schemaVersion": 2, "manifests": [
        platform(named(dir.path(), "", "s390x"), "s390x", "linux"),
        platform(named(dir.path(), "attestation", "unknown"), "unknown", "unknown"),
        platform(named(dir.path(), "mine", here()), here(), "linux"),
    ]});
    let inner = blob(
        dir.path(),
        "application/vnd.oci.image.index.v1+json",
        inner.to_string().as_bytes(),
    );
    index(dir.path(), &[inner]);
    assert_eq!(content(&find(dir.path(), "").unwrap()), "mine");
}

#[test]
fn find_image_for_another_machine_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    index(dir.path(), &[named(dir.path(), "", "s390x")]);
    let error = find(dir.path(), "").unwrap_err();
    assert!(matches!(error, ImageError::Architecture { .. }), "{error}");
    assert!(error.to_string().contains("s390x"), "{error}");
}

#[test]
fn find_index_in_itself_ends() {
    let dir = tempfile::tempdir().unwrap();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let mut inner = named(dir.path(), "x", here());
    for _ in 0..10 {
        let text = json!({"schemaVersion": 2, "manifests": [inner]}).to_string();
        inner = blob(dir.path(), media_type, text.as_bytes());
    }
    index(dir.path(), &[inner]);
    let error = find(dir.path(), "").unwrap_err();
    assert!(matches!(error, ImageError::Document { .. }), "{error}");
}

#[test]
fn find_damaged_documents_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let described = named(dir.path(), "", here());
    let path = dir
        .path()
        .join("blobs")
        .join(described["digest"].as_str().unwrap().replace(':', "/"));
    index(dir.path(), std::slice::from_ref(&described));
    let good = fs::read(&path).unwrap();

    fs::write(&path, [&good[..], b" "].concat()).unwrap();
    assert!(matches!(
        find(dir.path(), ""),
        Err(ImageError::Digest { .. })
    ));
    fs::write(&path, &good).unwrap();
    let mut larger = described.clone();
    larger["size"] = json!(1);
    index(dir.path(), &[larger]);
    assert!(matches!(find(dir.path(), ""), Err(ImageError::Size { .. })));
    let mut climbing = described.clone();
    climbing["digest"] = json!("sha256:../../../etc/passwd");
    index(dir.path(), &[climbing]);
    assert!(matches!(
        find(dir.path(), ""),
        Err(ImageError::Document { .. })
    ));
    fs::remove_file(&path).unwrap();
    index(dir.path(), &[described]);
    assert!(matches!(
        find(dir.path(), ""),
        Err(ImageError::Incomplete { .. })
    ));
    fs::write(dir.path().join("index.json"), "{").unwrap();
    assert!(matches!(
        find(dir.path(), ""),
        Err(ImageError::Document { .. })
    ));
    index(dir.path(), &[]);
    assert!(matches!(
        find(dir.path(), ""),
        Err(ImageError::Document { .. })
    ));
}

#[test]
fn find_artifact_is_no_image() {
    let dir = tempfile::tempdir().unwrap();
    let config = blob(dir.path(), "application/vnd.example.chart", b"{}");
    let text = json!({"schemaVersion": 2, "config": config, "layers": []}).to_string();
    index(
        dir.path(),
        &[blob(
            dir.path(),
            "application/vnd.oci.image.manifest.v1+json",
            text.as_bytes(),
        )],
    );
    let error = find(dir.path(), "").unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::NotAnImage {
                problem: NotAnImage::Artifact(_),
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn find_what_is_no_image_is_told_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let problem = |name: &str| match find(&dir.path().join(name), "") {
        Err(ImageError::NotAnImage { problem, .. }) => problem,
        other => panic!("{name}: {other:?}"),
    };
    fs::create_dir(dir.path().join("dir")).unwrap();
    fs::write(dir.path().join("text"), "hello").unwrap();
    fs::write(dir.path().join("long"), "x".repeat(5000)).unwrap();
    fs::write(dir.path().join("empty"), "").unwrap();
    fs::write(dir.path().join("gz"), gzip(&layer("x"))).unwrap();
    fs::write(dir.path().join("files"), layer("x")).unwrap();
    assert_eq!(problem("dir"), NotAnImage::PlainDirectory);
    assert_eq!(problem("text"), NotAnImage::NotTar);
    assert_eq!(problem("long"), NotAnImage::NotTar);
    assert_eq!(problem("empty"), NotAnImage::PlainArchive);
    assert_eq!(problem("gz"), NotAnImage::Compressed("gzip"));
    assert_eq!(problem("files"), NotAnImage::PlainArchive);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert_eq!(problem("fifo"), NotAnImage::OddFile);
    assert!(matches!(
        find(&dir.path().join("none"), ""),
        Err(ImageError::Missing(_))
    ));
}

/// An archive as `docker save` wrote it before it wrote OCI layouts: the second image
/// names the first one's layer by a link.
fn docker_archive(dir: &Path) -> PathBuf {
    let tar = layer("docker");
    let config = json!({"architecture": here(), "os": "linux", "rootfs": {"type": "layers", "diff_ids": [Digest::of(&tar).to_string()]}}).to_string();
    let id = Digest::of(config.as_bytes());
    let config_name = format!("{}.json", id.hex());
    let manifest = json!([
        {"Config": config_name, "RepoTags": ["docker.io/local/hand:latest"], "Layers": ["aa/layer.tar"]},
        {"Config": config_name, "RepoTags": ["local/linked:1"], "Layers": ["bb/layer.tar"]},
    ]);
    let mut archive = Tarball::default()
        .pax(&[("path", config_name.as_bytes())])
        .file("config", &config)
        .dir("aa/")
        .with(tar::EntryType::Regular, "aa/layer.tar", &tar, |_| {})
        .symlink("bb/layer.tar", "../aa/layer.tar")
        .file("manifest.json", &manifest.to_string());
    archive.bytes.extend_from_slice(&[0; 1024]);
    let path = dir.join("docker.tar");
    fs::write(&path, archive.bytes).unwrap();
    path
}

#[test]
fn find_in_archive_of_docker() {
    let dir = tempfile::tempdir().unwrap();
    let path = docker_archive(dir.path());
    for choice in ["", ":latest", ":local/linked:1"] {
        let image = find(&path, choice).unwrap();
        assert_eq!(content(&image), "docker", "{choice}");
    }
}

#[test]
fn find_archive_of_docker_with_changed_configuration_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = docker_archive(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes
        .windows(5)
        .position(|window| window == b"linux")
        .unwrap();
    bytes[at] = b'L';
    fs::write(&path, bytes).unwrap();
    let error = find(&path, "").unwrap_err();
    assert!(matches!(error, ImageError::Digest { .. }), "{error}");
}

#[test]
fn find_archive_that_was_cut_off_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = docker_archive(dir.path());
    let bytes = fs::read(&path).unwrap();
    for length in [600, bytes.len() / 2, bytes.len() - 1400] {
        fs::write(&path, &bytes[..length]).unwrap();
        let outcome = find(&path, "");
        assert!(outcome.is_err(), "{length}");
    }
}

fn run(program: &str, dir: &Path, args: &[&str]) -> Option<()> {
    let output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .output()
        .ok()?;
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(())
}

/// An image of two layers made by umoci, also as the two kinds of archives of skopeo.
fn made_by_others() -> Option<TempDir> {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    run("umoci", at, &["init", "--layout", "oci"])?;
    run("umoci", at, &["new", "--image", "oci:bb"])?;
    run("umoci", at, &["unpack", "--image", "oci:bb", "bundle"])?;
    let root = at.join("bundle/rootfs");
    for name in ["bin", "etc", "lower/sub", "gone"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::write(root.join("f"), "from umoci").unwrap();
    fs::write(root.join("lower/sub/kept"), "1").unwrap();
    fs::write(root.join("lower/removed"), "1").unwrap();
    fs::hard_link(root.join("f"), root.join("hard")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.join("absolute")).unwrap();
    run(
        "umoci",
        at,
        &["repack", "--image", "oci:bb", "--refresh-bundle", "bundle"],
    )?;
    fs::remove_file(root.join("lower/removed")).unwrap();
    fs::remove_dir(root.join("gone")).unwrap();
    fs::write(root.join("second"), "2").unwrap();
    run("umoci", at, &["repack", "--image", "oci:bb", "bundle"])?;
    run(
        "umoci",
        at,
        &[
            "config",
            "--image",
            "oci:bb",
            "--config.cmd",
            "/bin/sh",
            "--config.env",
            "A=1",
            "--config.workingdir",
            "/etc",
            "--architecture",
            here(),
            "--os",
            "linux",
        ],
    )?;
    run(
        "skopeo",
        at,
        &[
            "copy",
            "-q",
            "oci:oci:bb",
            "oci-archive:oci.tar:local/bb:latest",
        ],
    )?;
    run(
        "skopeo",
        at,
        &[
            "copy",
            "-q",
            "oci:oci:bb",
            "docker-archive:docker.tar:local/bb:latest",
        ],
    )?;
    run(
        "skopeo",
        at,
        &[
            "copy",
            "-q",
            "--dest-compress-format",
            "zstd",
            "--dest-compress",
            "oci:oci:bb",
            "oci:zstd:bb",
        ],
    )?;
    Some(dir)
}

#[test]
fn unpack_images_made_by_others_are_as_they_unpack_them() {
    let Some(dir) = made_by_others() else {
        eprintln!("SKIP: umoci and skopeo are not installed");
        return;
    };
    let store = tempfile::tempdir().unwrap();
    for choice in [
        "oci:bb",
        "oci.tar:local/bb:latest",
        "oci.tar",
        "docker.tar",
        "zstd",
    ] {
        let image = find(&dir.path().join(choice), "").unwrap();
        assert_eq!(
            (
                image.config().cmd.as_slice(),
                image.config().working_dir.as_str()
            ),
            (&["/bin/sh".to_owned()][..], "/etc"),
            "{choice}"
        );
        let unpacked = Store::open(store.path())
            .unwrap()
            .unpack(&image, &Limits::default())
            .unwrap();
        let same = Command::new("diff")
            .args(["--recursive", "--no-dereference"])
            .arg(dir.path().join("bundle/rootfs"))
            .arg(&unpacked.rootfs)
            .output()
            .unwrap();
        assert!(
            same.status.success(),
            "{choice}: {}",
            String::from_utf8_lossy(&same.stdout)
        );
        let inode = |name: &str| {
            std::os::unix::fs::MetadataExt::ino(&fs::metadata(unpacked.rootfs.join(name)).unwrap())
        };
        assert_eq!(inode("f"), inode("hard"), "{choice}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn find_any_index_never_panics(text in "(\\{\"manifests\":\\[.{0,40}\\]\\}|.{0,60})") {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("index.json"), text).unwrap();
        if let Err(error) = find(dir.path(), "") {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }

    /// One byte of an image is changed: it is refused, or means the same.
    #[test]
    fn find_any_changed_byte_is_noticed_or_harmless(place in any::<prop::sample::Index>(), byte: u8) {
        let dir = tempfile::tempdir().unwrap();
        layout(dir.path(), &[layer("same")]);
        let blobs: Vec<_> = fs::read_dir(dir.path().join("blobs/sha256")).unwrap().map(|e| e.unwrap().path()).collect();
        let total: usize = blobs.iter().map(|path| fs::read(path).unwrap().len()).sum();
        let mut at = place.index(total);
        for path in blobs {
            let mut bytes = fs::read(&path).unwrap();
            if at < bytes.len() {
                bytes[at] = byte;
                fs::write(&path, bytes).unwrap();
                break;
            }
            at -= bytes.len();
        }
        let store = tempfile::tempdir().unwrap();
        let outcome = find(dir.path(), "").and_then(|image| Store::open(store.path()).unwrap().unpack(&image, &Limits::default()));
        if let Ok(unpacked) = outcome {
            prop_assert_eq!(fs::read_to_string(unpacked.rootfs.join("f")).unwrap(), "same");
        }
    }
}
