//! The register file, driven as a driver would, and as one never would.

use proptest::prelude::*;

use super::registers::*;
use super::{Backend, Registers, Ring};
use crate::VmmError;

/// What a back end was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Start(u64, Vec<(usize, Ring)>),
    Stop,
    Kick(usize),
    Notify,
    Configure(usize, Vec<u8>),
}

/// A device with two rings of 256 and one MiB of memory.
#[derive(Debug, Default)]
struct Mock {
    events: Vec<Event>,
    refuses: bool,
}

const MEMORY: u64 = 1 << 20;
const FEATURES: u64 = 1 << 32 | 1 << 29 | 0b101;

impl Backend for Mock {
    fn device_type(&self) -> u32 {
        19
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn rings(&self) -> (usize, u16) {
        (2, 256)
    }

    fn configuration(&self, offset: usize, bytes: &mut [u8]) {
        let space = *b"configuration";
        for (place, byte) in bytes
            .iter_mut()
            .zip(space.get(offset..).unwrap_or_default())
        {
            *place = *byte;
        }
    }

    fn set_configuration(&mut self, offset: usize, bytes: &[u8]) {
        self.events.push(Event::Configure(offset, bytes.to_vec()));
    }

    fn start(&mut self, features: u64, rings: &[(usize, Ring)]) -> Result<(), VmmError> {
        self.events.push(Event::Start(features, rings.to_vec()));
        if self.refuses {
            return Err(VmmError::Internal { what: "a start" });
        }
        Ok(())
    }

    fn kick(&mut self, number: usize) {
        self.events.push(Event::Kick(number));
    }

    fn stop(&mut self) -> Result<(), VmmError> {
        self.events.push(Event::Stop);
        Ok(())
    }

    fn is_memory(&self, address: u64, length: u64) -> bool {
        address.checked_add(length).is_some_and(|end| end <= MEMORY)
    }

    fn notify(&mut self) {
        self.events.push(Event::Notify);
    }
}

fn read(registers: &Registers<Mock>, offset: u64) -> u32 {
    let mut bytes = [0xaa; 4];
    registers.read(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn write(registers: &mut Registers<Mock>, offset: u64, value: u32) {
    registers.write(offset, &value.to_le_bytes());
}

/// Goes as far as a driver does before it sets up rings.
fn agree(registers: &mut Registers<Mock>, features: u64) {
    write(registers, STATUS, ACKNOWLEDGE);
    write(registers, STATUS, ACKNOWLEDGE | DRIVER);
    for half in [0, 1] {
        write(registers, DRIVER_FEATURES_SEL, half);
        write(
            registers,
            DRIVER_FEATURES,
            u32::try_from(features >> (32 * half) & 0xffff_ffff).unwrap(),
        );
    }
    write(registers, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

fn set_ring(registers: &mut Registers<Mock>, number: u32, addresses: [u32; 3]) {
    write(registers, QUEUE_SEL, number);
    write(registers, QUEUE_NUM, 128);
    let places = [QUEUE_DESC_LOW, QUEUE_DRIVER_LOW, QUEUE_DEVICE_LOW];
    for (place, address) in places.into_iter().zip(addresses) {
        write(registers, place, address);
        write(registers, place + 4, 0);
    }
    write(registers, QUEUE_READY, 1);
}

const ALL_OK: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

fn started() -> Registers<Mock> {
    let mut registers = Registers::new(Mock::default());
    agree(&mut registers, FEATURES);
    set_ring(&mut registers, 0, [0x1000, 0x2000, 0x3000]);
    set_ring(&mut registers, 1, [0x4000, 0x5000, 0x6000]);
    write(&mut registers, STATUS, ALL_OK);
    registers
}

#[test]
fn identity_is_that_of_virtio_over_mmio() {
    let registers = Registers::new(Mock::default());
    assert_eq!(read(&registers, MAGIC), 0x7472_6976);
    assert_eq!(read(&registers, VERSION), 2);
    assert_eq!(read(&registers, DEVICE_ID), 19);
    assert_eq!(read(&registers, STATUS), 0);
    assert_eq!(read(&registers, SHM_LEN_LOW), u32::MAX);
}

#[test]
fn driver_in_order_starts_the_device_with_its_rings() {
    let registers = started();
    let [Event::Start(features, rings)] = &registers.backend().events[..] else {
        panic!("{:?}", registers.backend());
    };
    assert_eq!(*features, FEATURES);
    assert_eq!(rings.len(), 2);
    let (number, ring) = rings[1];
    assert_eq!((number, ring.size), (1, 128));
    assert_eq!(
        (ring.descriptors, ring.driver, ring.device),
        (0x4000, 0x5000, 0x6000)
    );
    assert_eq!(read(&registers, STATUS), ALL_OK);
    assert_eq!(read(&registers, INTERRUPT_STATUS), RING_USED);
}

#[test]
fn feature_not_offered_is_not_accepted() {
    let mut registers = Registers::new(Mock::default());
    agree(&mut registers, FEATURES | 1 << 7);
    assert_eq!(read(&registers, STATUS), ACKNOWLEDGE | DRIVER);
}

#[test]
fn driver_of_before_2014_is_not_accepted() {
    let mut registers = Registers::new(Mock::default());
    agree(&mut registers, FEATURES & !(1 << 32));
    assert_eq!(read(&registers, STATUS), ACKNOWLEDGE | DRIVER);
}

#[test]
fn ring_outside_memory_or_unaligned_never_gets_ready() {
    let end = u32::try_from(MEMORY).unwrap();
    for addresses in [
        [end - 16, 0x2000, 0x3000],
        [0x1008, 0x2000, 0x3000],
        [0x1000, 0x2001, 0x3000],
        [0x1000, 0x2000, 0x3002],
        [0x1000, end, 0x3000],
        [0x1000, 0x2000, end - 4],
    ] {
        let mut registers = Registers::new(Mock::default());
        agree(&mut registers, FEATURES);
        set_ring(&mut registers, 0, addresses);
        assert_eq!(read(&registers, QUEUE_READY), 0, "{addresses:x?}");
    }
}

#[test]
fn ring_size_that_is_no_power_of_two_or_too_large_is_ignored() {
    let mut registers = Registers::new(Mock::default());
    agree(&mut registers, FEATURES);
    for size in [0, 3, 512, u32::MAX] {
        write(&mut registers, QUEUE_NUM, size);
    }
    set_ring_without_size(&mut registers);
    write(&mut registers, STATUS, ALL_OK);
    let Some(Event::Start(_, rings)) = registers.backend().events.first() else {
        panic!("{:?}", registers.backend());
    };
    assert_eq!(rings[0].1.size, 256);
}

fn set_ring_without_size(registers: &mut Registers<Mock>) {
    for (place, address) in [
        (QUEUE_DESC_LOW, 0x1000),
        (QUEUE_DRIVER_LOW, 0x3000),
        (QUEUE_DEVICE_LOW, 0x4000),
    ] {
        write(registers, place, address);
    }
    write(registers, QUEUE_READY, 1);
}

#[test]
fn ring_in_use_cannot_be_moved() {
    let mut registers = started();
    write(&mut registers, QUEUE_SEL, 0);
    write(&mut registers, QUEUE_READY, 0);
    write(&mut registers, QUEUE_DESC_LOW, 0x8000);
    assert_eq!(read(&registers, QUEUE_READY), 1);
}

#[test]
fn reset_stops_the_device_once_and_forgets_all() {
    let mut registers = started();
    write(&mut registers, STATUS, 0);
    write(&mut registers, STATUS, 0);
    assert_eq!(registers.backend().events.last(), Some(&Event::Stop));
    assert_eq!(registers.backend().events.len(), 2);
    assert_eq!(read(&registers, STATUS), 0);
    assert_eq!(read(&registers, INTERRUPT_STATUS), 0);
    write(&mut registers, QUEUE_SEL, 1);
    assert_eq!(read(&registers, QUEUE_READY), 0);
}

#[test]
fn kick_reaches_a_started_ring_only() {
    let mut registers = Registers::new(Mock::default());
    write(&mut registers, QUEUE_NOTIFY, 0);
    assert!(registers.backend().events.is_empty());
    let mut registers = started();
    for number in [1, 2, u32::MAX] {
        write(&mut registers, QUEUE_NOTIFY, number);
    }
    assert_eq!(registers.backend().events[1..], [Event::Kick(1)]);
}

#[test]
fn back_end_that_refuses_makes_the_device_need_a_reset() {
    let mut registers = Registers::new(Mock {
        refuses: true,
        ..Mock::default()
    });
    agree(&mut registers, FEATURES);
    set_ring(&mut registers, 0, [0x1000, 0x2000, 0x3000]);
    write(&mut registers, STATUS, ALL_OK);
    assert_eq!(read(&registers, STATUS), ALL_OK | NEEDS_RESET);
    assert_eq!(read(&registers, INTERRUPT_STATUS), CONFIG_CHANGED);
    assert_eq!(registers.backend().events.last(), Some(&Event::Notify));
    write(&mut registers, INTERRUPT_ACK, CONFIG_CHANGED);
    assert_eq!(read(&registers, INTERRUPT_STATUS), 0);
    write(&mut registers, STATUS, 0);
    assert_eq!(read(&registers, STATUS), 0);
}

#[test]
fn configuration_is_read_in_any_size_and_zero_beyond() {
    let registers = Registers::new(Mock::default());
    let mut bytes = [1; 8];
    registers.read(CONFIG + 8, &mut bytes);
    assert_eq!(&bytes, b"ation\0\0\0");
    let mut byte = [1];
    registers.read(CONFIG + 3, &mut byte);
    assert_eq!(&byte, b"f");
    registers.read(CONFIG + 0xeff, &mut byte);
    assert_eq!(byte, [0]);
}

#[test]
fn configuration_written_reaches_the_device_in_any_size() {
    let mut registers = Registers::new(Mock::default());
    write(&mut registers, CONFIG + 4, 0x0403_0201);
    registers.write(CONFIG + 9, &[5, 6]);
    let expected = [
        Event::Configure(4, vec![1, 2, 3, 4]),
        Event::Configure(9, vec![5, 6]),
    ];
    assert_eq!(registers.backend().events, expected);
}

#[test]
fn configuration_changed_is_told_once_the_driver_is_ready() {
    let mut registers = Registers::new(Mock::default());
    registers.reconfigure(|_| {});
    assert_eq!(registers.backend().events, []);
    assert_eq!(read(&registers, CONFIG_GENERATION), 1);

    let mut registers = started();
    registers.reconfigure(|_| {});
    assert_eq!(registers.backend().events.last(), Some(&Event::Notify));
    assert_eq!(
        read(&registers, INTERRUPT_STATUS),
        RING_USED | CONFIG_CHANGED
    );
    write(&mut registers, INTERRUPT_ACK, CONFIG_CHANGED);
    assert_eq!(read(&registers, INTERRUPT_STATUS), RING_USED);
}

#[test]
fn access_of_an_odd_size_is_ignored() {
    let mut registers = Registers::new(Mock::default());
    registers.write(STATUS, &[1]);
    registers.write(STATUS, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(read(&registers, STATUS), 0);
    let mut bytes = [1; 2];
    registers.read(MAGIC, &mut bytes);
    assert_eq!(bytes, [0, 0]);
}

proptest! {
    /// Whatever a driver writes, the device is only ever started with rings in memory and features it
    /// offers, and stopped before it is started again.
    #[test]
    fn writes_of_any_kind_never_break_the_order(
        writes in proptest::collection::vec((0_u64..0x200, prop_oneof![
            any::<u32>(), 0_u32..16, (0_u32..0x20_0000).prop_map(|n| n & !15)
        ]), 0..400),
        begin_in_order in any::<bool>(),
    ) {
        let mut registers = if begin_in_order { started() } else { Registers::new(Mock::default()) };
        for (offset, value) in writes {
            // Mostly where registers are.
            write(&mut registers, offset & !3, value);
            let _ = read(&registers, offset & !3);
        }
        let mut running = false;
        for event in &registers.backend().events {
            match event {
                Event::Start(features, rings) => {
                    prop_assert!(!running);
                    running = true;
                    prop_assert_eq!(features & !FEATURES, 0);
                    for (number, ring) in rings {
                        prop_assert!(*number < 2);
                        prop_assert!(ring.size.is_power_of_two() && ring.size <= 256);
                        prop_assert!(ring.descriptors + u64::from(ring.size) * 16 <= MEMORY);
                    }
                }
                Event::Stop => {
                    prop_assert!(running);
                    running = false;
                }
                Event::Kick(number) => prop_assert!(running && *number < 2),
                Event::Notify | Event::Configure(..) => {}
            }
        }
    }
}
