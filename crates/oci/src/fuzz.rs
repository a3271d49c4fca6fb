//! Doors for fuzz targets into what is otherwise private.

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::image::fuzz as image;

/// Parses and checks a config.json.
pub fn config(json: &[u8]) {
    let _ = crate::Bundle::parse(Path::new("config.json"), json);
}

/// Parses options of `run`, separated by line breaks.
pub fn options(text: &str) {
    for line in text.lines() {
        let _ = crate::run::parse_size(line);
        let _ = crate::run::parse_cpus(line);
        let _ = crate::run::parse_volume(line, Path::new("/"), false);
        let _ = crate::run::parse_tmpfs(line);
        let _ = crate::run::Security::parse(&[line.to_owned()]);
        let _ = line.parse::<crate::run::CapabilityOption>();
    }
}

/// Reads the entries of an archive and all their content.
pub fn archive(bytes: &[u8]) {
    image::archive(bytes);
}

/// Unpacks a layer, compressed or not, into a directory, within small limits.
pub fn layer(root: OwnedFd, bytes: &[u8]) {
    image::layer(root, bytes);
}

/// Opens the image at a path and unpacks it into a store.
pub fn image(path: &Path, store: &Path) {
    if let Some(image) = path
        .to_str()
        .and_then(|path| crate::image::Image::find(path).ok())
    {
        if let Ok(store) = crate::image::Store::open(store) {
            let _ = store.unpack(&image, &image::LIMITS);
        }
    }
}
