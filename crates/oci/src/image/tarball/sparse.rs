//! Maps of sparse files: where the pieces of content belong.

use super::pax::decimal;

/// A piece of content: as many bytes of the archive, in turn, belong at the offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Segment {
    pub(in super::super) offset: u64,
    pub(in super::super) length: u64,
}

/// Most pieces of a file: a map must not take more memory than its archive is worth.
const SEGMENTS_MAX: usize = 1 << 18;

/// Collects pieces and sees that they are in order, inside the file, and all there.
pub(super) struct Map {
    size: u64,
    stored: u64,
    end: u64,
    sum: u64,
    segments: Vec<Segment>,
}

impl Map {
    /// For a file of `size` bytes of which `stored` are in the archive.
    pub(super) fn new(size: u64, stored: u64) -> Self {
        Self {
            size,
            stored,
            end: 0,
            sum: 0,
            segments: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, offset: u64, length: u64) -> Option<()> {
        let end = offset.checked_add(length)?;
        let fits = offset >= self.end && end <= self.size && self.segments.len() < SEGMENTS_MAX;
        fits.then_some(())?;
        self.end = end;
        self.sum = self.sum.checked_add(length)?;
        if length > 0 {
            self.segments.push(Segment { offset, length });
        }
        Some(())
    }

    pub(super) fn finish(self) -> Option<Vec<Segment>> {
        (self.sum == self.stored).then_some(self.segments)
    }
}

/// The map as text: a count, then offset and length in turn, each on a line of its own.
#[derive(Default)]
pub(super) struct MapText {
    line: Vec<u8>,
    count: Option<usize>,
    numbers: Vec<u64>,
}

impl MapText {
    pub(super) fn complete(&self) -> bool {
        self.count
            .is_some_and(|count| self.numbers.len() == count * 2)
    }

    /// Adds a block; what follows the last number is padding.
    pub(super) fn add(&mut self, block: &[u8]) -> Option<()> {
        for byte in block {
            if self.complete() {
                break;
            }
            if *byte != b'\n' {
                self.line.push(*byte);
                // No number is longer.
                (self.line.len() <= 20).then_some(())?;
                continue;
            }
            let number: u64 = decimal(&self.line)?;
            self.line.clear();
            match self.count {
                Some(_) => self.numbers.push(number),
                None => {
                    let count = usize::try_from(number).ok()?;
                    self.count = (count <= SEGMENTS_MAX).then_some(Some(count))?;
                }
            }
        }
        Some(())
    }

    pub(super) fn segments(self, size: u64, stored: u64) -> Option<Vec<Segment>> {
        let mut map = Map::new(size, stored);
        for pair in self.numbers.chunks(2) {
            let [offset, length] = pair else { return None };
            map.add(*offset, *length)?;
        }
        map.finish()
    }
}
