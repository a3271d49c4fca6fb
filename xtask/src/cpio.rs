//! A writer of cpio archives in the `newc` form, which is what the kernel
//! unpacks as initramfs. The bytes depend on the contents alone: no times, no
//! owners of the building machine.

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory. Parents must have been added before.
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.entry(path, S_IFDIR | mode, (0, 0), 2, &[]);
    }

    /// Adds a regular file.
    ///
    /// # Panics
    /// If it is larger than 4 GiB, the most the form can hold.
    pub fn file(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entry(path, S_IFREG | mode, (0, 0), 1, contents);
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, mode: u32, (major, minor): (u32, u32)) {
        self.entry(path, S_IFCHR | mode, (major, minor), 1, &[]);
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.write("TRAILER!!!", 0, (0, 0), 1, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), links: u32, contents: &[u8]) {
        self.inode += 1;
        self.write(path, mode, device, links, contents);
    }

    fn write(&mut self, path: &str, mode: u32, device: (u32, u32), links: u32, contents: &[u8]) {
        let size = |length: usize| {
            u32::try_from(length)
                .unwrap_or_else(|_| panic!("{path} is too large for a cpio archive"))
        };
        let fields = [
            self.inode,
            mode,
            0, // uid
            0, // gid
            links,
            0, // modification time
            size(contents.len()),
            0, // device of the archive's file system
            0,
            device.0,
            device.1,
            size(path.len() + 1),
            0, // checksum, unused in this form
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    /// Headings and contents begin at multiples of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(bytes: &[u8], at: usize, index: usize) -> u32 {
        let start = at + 6 + index * 8;
        u32::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16).unwrap()
    }

    #[test]
    fn archive_has_aligned_entries_and_a_trailer() {
        let mut archive = Archive::new();
        archive.directory("dev", 0o755);
        archive.character_device("dev/console", 0o600, (5, 1));
        archive.file("init", 0o755, b"12345");

        let bytes = archive.finish();

        assert_eq!(bytes.len() % 4, 0);
        let starts: Vec<usize> = (0..bytes.len())
            .filter(|at| bytes[*at..].starts_with(b"070701"))
            .collect();
        assert_eq!(starts.len(), 4);
        assert!(starts.iter().all(|at| at % 4 == 0));
        assert_eq!(field(&bytes, starts[0], 1), 0o040_755);
        assert_eq!(field(&bytes, starts[1], 1), 0o020_600);
        assert_eq!(
            (field(&bytes, starts[1], 9), field(&bytes, starts[1], 10)),
            (5, 1)
        );
        assert_eq!(field(&bytes, starts[2], 6), 5);
        assert!(bytes[starts[2] + 110..].starts_with(b"init\0"));
        assert!(bytes[starts[3] + 110..].starts_with(b"TRAILER!!!\0"));
    }

    #[test]
    fn archive_of_equal_contents_is_equal() {
        let make = || {
            let mut archive = Archive::new();
            archive.file("init", 0o755, b"agent");
            archive.finish()
        };

        assert_eq!(make(), make());
    }
}
