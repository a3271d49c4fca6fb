use std::fs;

use tempfile::TempDir;

use super::*;
use crate::image::tests::image;
use crate::{Need, check};

struct Fixture {
    dir: TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("lib"));
        Self { dir, store }
    }

    fn add(&self, flavour: Flavour, version: &str, without: &[&str], name: &str) -> Result<Kernel> {
        let path = self.dir.path().join("image");
        fs::write(&path, image(flavour, version, without)).unwrap();
        self.store.add(
            &path,
            &Addition {
                name: Some(name),
                ..Addition::default()
            },
        )
    }

    fn leftovers(&self) -> Vec<String> {
        let names = fs::read_dir(self.store.dir()).unwrap();
        names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with('.') && name != ".lock")
            .collect()
    }
}

#[test]
fn store_absent_is_empty_and_says_how_to_get_a_kernel() {
    let fixture = Fixture::new();

    assert!(fixture.store.list().unwrap().is_empty());
    let err = fixture.store.find(Flavour::Uml, None).unwrap_err();
    assert!(err.to_string().contains("bulkhead kernel add"), "{err}");
}

#[test]
fn kernel_added_is_found_and_verifies() {
    let fixture = Fixture::new();

    let added = fixture.add(Flavour::Uml, "6.12.9", &[], "mine").unwrap();

    assert_eq!(
        fixture.store.find(Flavour::Uml, Some("mine")).unwrap(),
        added
    );
    assert_eq!(fixture.store.inspect("mine").unwrap(), added);
    assert_eq!(fixture.leftovers(), [""; 0]);
}

#[test]
fn kernel_added_twice_is_refused_and_the_first_stays() {
    let fixture = Fixture::new();
    let first = fixture.add(Flavour::Uml, "6.12.9", &[], "mine").unwrap();

    let err = fixture
        .add(Flavour::Uml, "6.12.10", &[], "mine")
        .unwrap_err();

    assert!(
        matches!(err, KernelsError::AlreadyInstalled { .. }),
        "{err}"
    );
    assert_eq!(fixture.store.get("mine").unwrap(), first);
}

#[test]
fn kernel_replaced_leaves_only_the_new_one() {
    let fixture = Fixture::new();
    let old = fixture.add(Flavour::Uml, "6.12.9", &[], "mine").unwrap();
    let path = fixture.dir.path().join("newer");
    fs::write(&path, image(Flavour::Uml, "6.12.10", &[])).unwrap();
    let addition = Addition {
        name: Some("mine"),
        ..Addition::default()
    };

    let new = fixture.store.replace(&path, &addition).unwrap();

    assert_eq!(new.manifest.version, "6.12.10");
    assert_ne!(new.manifest.sha256, old.manifest.sha256);
    assert_eq!(fixture.store.list().unwrap(), [new]);
    assert_eq!(fixture.leftovers(), [""; 0]);
}

#[test]
fn default_is_the_newest_until_another_is_marked() {
    let fixture = Fixture::new();
    for version in ["6.12.9", "6.12.117", "6.12.20"] {
        fixture
            .add(Flavour::Uml, version, &[], &format!("k{version}"))
            .unwrap();
    }
    fixture.add(Flavour::Vm, "7.2", &[], "vm").unwrap();
    let default = || {
        fixture
            .store
            .find(Flavour::Uml, None)
            .unwrap()
            .manifest
            .name
    };

    assert_eq!(default(), "k6.12.117");
    fixture.store.set_default("k6.12.9").unwrap();
    assert_eq!(default(), "k6.12.9");
    fixture.store.remove("k6.12.9").unwrap();
    assert_eq!(default(), "k6.12.117");
}

#[test]
fn release_candidate_sorts_before_its_release() {
    assert!(version_key("6.12-rc3") < version_key("6.12"));
    assert!(version_key("6.12.9") < version_key("6.12.117"));
    assert!(version_key("6.12.117-bulkhead") < version_key("7.2"));
}

#[test]
fn kernel_of_the_wrong_flavour_names_suitable_ones() {
    let fixture = Fixture::new();
    fixture.add(Flavour::Vm, "6.12.9", &[], "vm").unwrap();
    fixture.add(Flavour::Uml, "6.12.9", &[], "uml").unwrap();

    let err = fixture.store.find(Flavour::Uml, Some("vm")).unwrap_err();

    assert!(matches!(&err, KernelsError::WrongFlavour { suitable, .. } if *suitable == ["uml"]));
}

#[test]
fn kernel_unknown_names_the_installed_ones() {
    let fixture = Fixture::new();
    fixture.add(Flavour::Uml, "6.12.9", &[], "there").unwrap();

    let err = fixture
        .store
        .find(Flavour::Uml, Some("absent"))
        .unwrap_err();

    assert!(err.to_string().ends_with("installed are: there"), "{err}");
}

#[test]
fn name_with_a_path_never_leaves_the_store() {
    let fixture = Fixture::new();
    fixture.add(Flavour::Uml, "6.12.9", &[], "mine").unwrap();
    let outside = fixture.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();

    for name in ["../outside", "..", "mine/../../outside"] {
        assert!(matches!(
            fixture.store.get(name),
            Err(KernelsError::InvalidName { .. })
        ));
        assert!(matches!(
            fixture.store.remove(name),
            Err(KernelsError::InvalidName { .. })
        ));
    }
    assert!(outside.is_dir());
}

#[test]
fn image_changed_in_place_is_noticed_by_inspect() {
    let fixture = Fixture::new();
    let kernel = fixture.add(Flavour::Uml, "6.12.9", &[], "mine").unwrap();
    let mut bytes = fs::read(&kernel.image).unwrap();
    bytes[10] ^= 1;
    fs::write(&kernel.image, &bytes).unwrap();

    assert!(matches!(
        fixture.store.inspect("mine"),
        Err(KernelsError::Digest { .. })
    ));
}

#[test]
fn image_truncated_is_noticed_at_once_and_others_stay_usable() {
    let fixture = Fixture::new();
    let kernel = fixture
        .add(Flavour::Uml, "6.12.117", &[], "broken")
        .unwrap();
    fixture.add(Flavour::Uml, "6.12.9", &[], "sound").unwrap();
    fs::write(&kernel.image, b"short").unwrap();

    let err = fixture
        .store
        .find(Flavour::Uml, Some("broken"))
        .unwrap_err();

    assert!(matches!(err, KernelsError::Inconsistent { .. }), "{err}");
    assert_eq!(
        fixture
            .store
            .find(Flavour::Uml, None)
            .unwrap()
            .manifest
            .name,
        "sound"
    );
    let entries = fixture.store.entries().unwrap();
    assert_eq!(
        entries.iter().filter(|entry| entry.kernel.is_err()).count(),
        1
    );
}

#[test]
fn image_missing_of_the_only_kernel_is_told_as_that() {
    let fixture = Fixture::new();
    let kernel = fixture.add(Flavour::Uml, "6.12.9", &[], "mine").unwrap();
    fs::remove_file(&kernel.image).unwrap();

    let err = fixture.store.find(Flavour::Uml, None).unwrap_err();

    assert!(err.to_string().contains("kernel remove mine"), "{err}");
    let err = fixture.store.find(Flavour::Vm, None).unwrap_err();
    assert!(err.to_string().contains("No vm kernel"), "{err}");
}

#[test]
fn manifest_pointing_outside_is_refused() {
    let fixture = Fixture::new();
    let kernel = fixture.add(Flavour::Uml, "6.12.9", &[], "mine").unwrap();
    let path = kernel.image.with_file_name("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"linux\"", "\"../../../etc/passwd\"")).unwrap();

    let err = fixture.store.get("mine").unwrap_err();

    assert!(matches!(err, KernelsError::Inconsistent { .. }), "{err}");
}

#[test]
fn manifest_invalid_is_an_error_with_its_path() {
    let fixture = Fixture::new();
    let kernel = fixture.add(Flavour::Uml, "6.12.9", &[], "mine").unwrap();
    fs::write(kernel.image.with_file_name("manifest.json"), "{\"name\":").unwrap();

    let err = fixture.store.get("mine").unwrap_err();

    assert!(err.to_string().contains("mine/manifest.json"), "{err}");
}

#[test]
fn writer_killed_half_way_leaves_nothing_after_the_next_one() {
    let fixture = Fixture::new();
    fixture.add(Flavour::Uml, "6.12.9", &[], "first").unwrap();
    fs::create_dir(fixture.store.dir().join(".second.1")).unwrap();
    fs::write(fixture.store.dir().join(".second.1/linux"), b"half").unwrap();

    fixture.add(Flavour::Uml, "6.12.9", &[], "second").unwrap();

    assert_eq!(fixture.leftovers(), [""; 0]);
    assert_eq!(fixture.store.list().unwrap().len(), 2);
}

#[test]
fn adding_from_many_threads_installs_exactly_one() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("image");
    fs::write(&path, image(Flavour::Uml, "6.12.9", &[])).unwrap();
    let add = || {
        fixture.store.add(
            &path,
            &Addition {
                name: Some("same"),
                ..Addition::default()
            },
        )
    };

    let succeeded = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(add)).collect();
        threads
            .into_iter()
            .filter(|_| true)
            .map(|t| t.join().unwrap())
            .filter(Result::is_ok)
            .count()
    });

    assert_eq!(succeeded, 1);
    assert_eq!(fixture.leftovers(), [""; 0]);
    fixture.store.inspect("same").unwrap();
}

#[test]
fn feature_missing_names_it_its_reason_and_the_kernels_that_have_it() {
    let fixture = Fixture::new();
    let poor = fixture
        .add(Flavour::Uml, "6.12.9", &["CGROUP_PIDS"], "poor")
        .unwrap();
    let rich = fixture.add(Flavour::Uml, "6.12.9", &[], "rich").unwrap();
    fixture
        .add(Flavour::Vm, "6.12.9", &[], "other-flavour")
        .unwrap();
    let needs = [
        Need::new("SECCOMP_FILTER", "linux.seccomp"),
        Need::new("CGROUP_PIDS", "--pids-limit"),
    ];

    let err = check(&poor, &needs, &fixture.store).unwrap_err();

    check(&rich, &needs, &fixture.store).unwrap();
    assert_eq!(
        err.to_string(),
        "Kernel \"poor\" lacks CONFIG_CGROUP_PIDS (needed for --pids-limit); \
         choose one that has it with --kernel: rich"
    );
}

#[test]
fn feature_nobody_has_says_so() {
    let fixture = Fixture::new();
    let kernel = fixture.add(Flavour::Uml, "6.12.9", &[], "only").unwrap();

    let err = check(
        &kernel,
        &[Need::new("TIME_NS", "a time namespace")],
        &fixture.store,
    );

    assert!(err.unwrap_err().to_string().contains("no installed kernel"));
}
