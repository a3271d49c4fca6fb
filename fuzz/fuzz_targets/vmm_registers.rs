//! A driver that writes and reads a virtio device's registers in any order, at any offset, in any size.
//!
//! The device behind them must only ever be started with rings that lie in memory and features it
//! offers, and be stopped before it is started again.

#![no_main]

use bulkhead_vmm::VmmError;
use bulkhead_vmm::transport::{Backend, Registers, Ring};
use libfuzzer_sys::fuzz_target;

const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 28;
const MEMORY: u64 = 1 << 24;
const RINGS: usize = 3;
const SIZE: u16 = 1024;

#[derive(Default)]
struct Device {
    running: bool,
}

impl Backend for Device {
    fn device_type(&self) -> u32 {
        26
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn rings(&self) -> (usize, u16) {
        (RINGS, SIZE)
    }

    fn configuration(&self, offset: usize, bytes: &mut [u8]) {
        for (place, byte) in bytes.iter_mut().zip(b"tag".get(offset..).unwrap_or_default()) {
            *place = *byte;
        }
    }

    fn start(&mut self, features: u64, rings: &[(usize, Ring)]) -> Result<(), VmmError> {
        assert!(!self.running);
        self.running = true;
        assert_eq!(features & !FEATURES, 0);
        for (number, ring) in rings {
            assert!(*number < RINGS && ring.size.is_power_of_two() && ring.size <= SIZE);
            let size = u64::from(ring.size);
            assert!(ring.descriptors + size * 16 <= MEMORY);
            assert!(ring.driver + size * 2 + 6 <= MEMORY);
            assert!(ring.device + size * 8 + 6 <= MEMORY);
        }
        Ok(())
    }

    fn kick(&mut self, number: usize) {
        assert!(self.running && number < RINGS);
    }

    fn stop(&mut self) -> Result<(), VmmError> {
        assert!(self.running);
        self.running = false;
        Ok(())
    }

    fn is_memory(&self, address: u64, length: u64) -> bool {
        address.checked_add(length).is_some_and(|end| end <= MEMORY)
    }

    fn notify(&mut self) {}
}

// Each step is a byte of size and direction, two of offset, and the bytes written.
fuzz_target!(|input: &[u8]| {
    let mut registers = Registers::new(Device::default());
    let mut rest = input;
    while let [first, low, high, tail @ ..] = rest {
        let offset = u64::from(u16::from_le_bytes([*low, *high]));
        // Mostly words, now and then what no driver does.
        let size = match first >> 1 {
            size @ 0..=8 => usize::from(size),
            _ => 4,
        };
        if first & 1 == 0 {
            let mut bytes = [0; 8];
            registers.read(offset, &mut bytes[..size]);
            rest = tail;
        } else {
            let Some((bytes, after)) = tail.split_at_checked(size) else {
                return;
            };
            registers.write(offset, bytes);
            rest = after;
        }
    }
});
