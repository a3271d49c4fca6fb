//! Any file is opened as an image and unpacked, or refused with nothing left behind.
#![no_main]

use std::fs;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (image, store) = (dir.path().join("image"), dir.path().join("store"));
    fs::write(&image, bytes).expect("the image");

    bulkhead_oci::fuzz::image(&image, &store);

    for entry in fs::read_dir(&store).into_iter().flatten() {
        let name = entry.expect("an entry").file_name();
        assert!(!name.to_string_lossy().starts_with('.'), "{name:?} is left");
    }
});
