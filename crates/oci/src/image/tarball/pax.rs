//! PAX records: `<length> <key>=<value>\n`, one after the other.

use super::sparse::{Map, Segment};

const XATTR: &[u8] = b"SCHILY.xattr.";

/// The records an entry is made from; others are left out.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
}

/// Records of a sparse file, in any of three formats.
#[derive(Debug, Default)]
struct Sparse {
    major: Option<u64>,
    name: Option<Vec<u8>>,
    /// Size of the file: `GNU.sparse.size` in formats 0, `realsize` in 1.0.
    size: Option<u64>,
    /// Offsets and lengths in turn, of formats 0.
    numbers: Vec<u64>,
}

/// The map of a sparse file.
pub(super) struct SparseMap {
    pub(super) size: u64,
    pub(super) segments: Vec<Segment>,
}

impl Records {
    /// Parses a whole PAX header; `None` if it is malformed.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let mut records = Self::default();
        let mut rest = text;
        while !rest.is_empty() {
            let space = rest.iter().position(|byte| *byte == b' ')?;
            let length: usize = decimal(rest.get(..space)?)?;
            let (record, after) = rest.split_at_checked(length)?;
            rest = after;
            let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
            let equals = body.iter().position(|byte| *byte == b'=')?;
            records.take(body.get(..equals)?, body.get(equals + 1..)?)?;
        }
        Some(records)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        // A name with a NUL would mean something else to the kernel.
        let name = |value: &[u8]| (!value.contains(&0)).then(|| Some(value.to_vec()));
        match key {
            // An empty value takes back what was said before.
            b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime" if value.is_empty() => {}
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.major" => self.sparse.major = Some(decimal(value)?),
            b"GNU.sparse.name" => self.sparse.name = name(value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = Some(decimal(value)?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                self.sparse.numbers.push(decimal(value)?);
            }
            b"GNU.sparse.map" => {
                for number in value
                    .split(|byte| *byte == b',')
                    .filter(|part| !part.is_empty())
                {
                    self.sparse.numbers.push(decimal(number)?);
                }
            }
            _ => {
                if let Some(attribute) = key.strip_prefix(XATTR) {
                    self.xattrs.push((name(attribute)??, value.to_vec()));
                }
            }
        }
        Some(())
    }

    /// The name of a sparse file: its header has a made-up one.
    pub(super) fn sparse_name(&self) -> Option<&[u8]> {
        self.sparse.name.as_deref()
    }

    /// The map of formats 0.0 and 0.1. Outer `None` if it is malformed, inner if there is
    /// none.
    #[allow(clippy::option_option, reason = "malformed and absent are different")]
    pub(super) fn sparse_map(&self, stored: u64) -> Option<Option<SparseMap>> {
        let Some(size) = self
            .sparse
            .size
            .filter(|_| self.sparse.major.unwrap_or(0) == 0)
        else {
            return Some(None);
        };
        let mut map = Map::new(size, stored);
        for pair in self.sparse.numbers.chunks(2) {
            let [offset, length] = pair else { return None };
            map.add(*offset, *length)?;
        }
        Some(Some(SparseMap {
            size,
            segments: map.finish()?,
        }))
    }

    /// The size of a file in format 1.0, whose map precedes the content.
    pub(super) fn sparse_in_content(&self) -> Option<u64> {
        self.sparse.size.filter(|_| self.sparse.major == Some(1))
    }
}

/// A decimal number without sign or spaces.
pub(super) fn decimal<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text)
        .ok()
        .filter(|_| digits)?
        .parse()
        .ok()
}

/// Seconds with a fraction, perhaps negative; rounded down to nanoseconds.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds: i64 = decimal(parts.next()?)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nine: Vec<u8> = fraction.iter().copied().chain([b'0'; 9]).take(9).collect();
    let nanoseconds: u32 = decimal(&nine)?;
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(key: &str, value: &str) -> Vec<u8> {
        let body = format!(" {key}={value}\n");
        let mut length = body.len() + 1;
        while length.to_string().len() + body.len() != length {
            length += 1;
        }
        format!("{length}{body}").into_bytes()
    }

    #[test]
    fn parse_known_records_are_taken() {
        let text = [
            record("path", "a=b"),
            record("mtime", "12.5"),
            record("SCHILY.xattr.user.x", "1\n2"),
            record("comment", "x"),
        ]
        .concat();
        let records = Records::parse(&text).unwrap();
        assert_eq!(records.path.as_deref(), Some(b"a=b".as_slice()));
        assert_eq!(records.mtime, Some((12, 500_000_000)));
        assert_eq!(records.xattrs, [(b"user.x".to_vec(), b"1\n2".to_vec())]);
    }

    #[test]
    fn parse_malformed_records_are_refused() {
        for text in [
            &b"x"[..],
            b"5 a=b",
            b"99 a=b\n",
            b"6 ab=\n\n",
            b"0 \n",
            b"5 ab\n",
            b" a=b\n",
        ] {
            assert!(Records::parse(text).is_none(), "{text:?}");
        }
        assert!(Records::parse(&record("path", "a\0b")).is_none());
        assert!(Records::parse(&record("size", "-1")).is_none());
    }

    #[test]
    fn time_before_the_epoch_is_rounded_down() {
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"1.0000000019"), Some((1, 1)));
        assert_eq!(time(b"x"), None);
        assert_eq!(time(b"1.x"), None);
    }

    proptest! {
        #[test]
        fn parse_any_bytes_never_panics(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Records::parse(&text);
        }

        #[test]
        fn parse_any_value_never_panics(key in "path|size|mtime|GNU\\.sparse\\.(map|major|size|offset)", value in ".*") {
            if let Some(records) = Records::parse(&record(&key, &value)) {
                let _ = records.sparse_map(100);
            }
        }
    }
}
