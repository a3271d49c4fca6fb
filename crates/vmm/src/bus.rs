//! Who answers at which port and address.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::arch::layout::{MMIO, MMIO_PAGE, MOST_DEVICES, SERIAL_PORT};
use crate::serial::Serial;
use crate::transport::{Registers, VhostUser};

/// Ports of the keyboard controller, of which only the reset line is there.
const KEYBOARD_STATUS: u16 = 0x64;
const RESET: u8 = 0xfe;
/// Data port of the clock that no machine since 2000 needs: reads as a clock that is not being set.
const CLOCK_DATA: u16 = 0x71;
/// Ports of the serial port.
const SERIAL_PORTS: u16 = 8;
/// Where a kernel tells of its panic: QEMU's port and bits, docs/specs/pvpanic.rst there. Read, it tells
/// what can be told.
const PANIC_PORT: u16 = 0x505;
const PANICKED: u8 = 1;

/// What follows from a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Continue,
    /// The guest wants the machine to start anew.
    Reset,
    /// The guest's kernel says that it cannot go on.
    Panicked,
}

/// The console of the process, and the guest's interrupt for it.
type Console = Serial<io::Stdout, Box<dyn FnMut() + Send>>;

/// A place for a device.
type Slot = Mutex<Option<Registers<VhostUser>>>;

/// All devices of a machine.
pub(crate) struct Bus {
    serial: Mutex<Console>,
    slots: [Slot; MOST_DEVICES],
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus")
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

impl Bus {
    /// The serial port writes to standard output and interrupts by `interrupt`; `devices` have a page
    /// each, in the first [`MOST_DEVICES`] slots.
    pub(crate) fn new(interrupt: EventFd, devices: Vec<Registers<VhostUser>>) -> Self {
        let interrupt: Box<dyn FnMut() + Send> = Box::new(move || {
            // Full means that an interrupt is pending already.
            let _ = interrupt.write(1);
        });
        let mut devices = devices.into_iter();
        Self {
            serial: Mutex::new(Serial::new(io::stdout(), interrupt)),
            slots: std::array::from_fn(|_| Mutex::new(devices.next())),
        }
    }

    pub(crate) fn port_read(&self, port: u16, bytes: &mut [u8]) {
        // One access of several bytes, or several accesses of one: nothing here tells them apart.
        for byte in bytes {
            *byte = match port {
                _ if is_serial(port) => self.serial(|serial| serial.read(port - SERIAL_PORT)),
                KEYBOARD_STATUS | CLOCK_DATA => 0,
                PANIC_PORT => PANICKED,
                _ => 0xff,
            };
        }
    }

    pub(crate) fn port_write(&self, port: u16, bytes: &[u8]) -> Verdict {
        for byte in bytes {
            if is_serial(port) {
                self.serial(|serial| serial.write(port - SERIAL_PORT, *byte));
            } else if port == KEYBOARD_STATUS && *byte == RESET {
                self.serial(Serial::flush);
                return Verdict::Reset;
            } else if port == PANIC_PORT && byte & PANICKED != 0 {
                self.serial(Serial::flush);
                return Verdict::Panicked;
            }
        }
        Verdict::Continue
    }

    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) {
        if let Some((slot, offset)) = self.slot(address)
            && let Some(device) = lock(slot).as_ref()
        {
            device.read(offset, bytes);
        } else {
            bytes.fill(0xff);
        }
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        if let Some((slot, offset)) = self.slot(address)
            && let Some(device) = lock(slot).as_mut()
        {
            device.write(offset, bytes);
        }
    }

    /// Does something with the registers of the balloon, if there is one.
    pub(crate) fn with_balloon<T>(
        &self,
        act: impl FnOnce(&mut Registers<VhostUser>) -> T,
    ) -> Option<T> {
        let mut slots = self.slots.iter().map(lock);
        let is_balloon = |slot: &MutexGuard<'_, Option<Registers<VhostUser>>>| {
            slot.as_ref()
                .is_some_and(|device| device.backend().is_balloon())
        };
        let mut slot = slots.find(is_balloon)?;
        slot.as_mut().map(act)
    }

    /// The first slot without a device.
    pub(crate) fn vacant(&self) -> Option<usize> {
        self.slots.iter().position(|slot| lock(slot).is_none())
    }

    /// Puts a device into a slot.
    pub(crate) fn put(&self, number: usize, device: Registers<VhostUser>) {
        if let Some(slot) = self.slots.get(number) {
            *lock(slot) = Some(device);
        }
    }

    /// Takes the device out of a slot, if there is one.
    pub(crate) fn take(&self, number: usize) -> Option<Registers<VhostUser>> {
        lock(self.slots.get(number)?).take()
    }

    fn slot(&self, address: u64) -> Option<(&Slot, u64)> {
        let place = address.checked_sub(MMIO)?;
        let number = usize::try_from(place / MMIO_PAGE).ok()?;
        Some((self.slots.get(number)?, place % MMIO_PAGE))
    }

    fn serial<T>(&self, act: impl FnOnce(&mut Console) -> T) -> T {
        act(&mut lock(&self.serial))
    }
}

fn is_serial(port: u16) -> bool {
    (SERIAL_PORT..SERIAL_PORT + SERIAL_PORTS).contains(&port)
}

/// A panic of another processor's thread ends the process anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
