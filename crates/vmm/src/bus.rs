//! Who answers at which port and address.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::arch::layout::{MMIO, MMIO_PAGE, SERIAL_PORT};
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

/// All devices of a machine.
pub(crate) struct Bus {
    serial: Mutex<Console>,
    devices: Vec<Mutex<Registers<VhostUser>>>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus")
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}

impl Bus {
    /// The serial port writes to standard output and interrupts by `interrupt`; `devices` have a page
    /// each.
    pub(crate) fn new(interrupt: EventFd, devices: Vec<Registers<VhostUser>>) -> Self {
        let interrupt: Box<dyn FnMut() + Send> = Box::new(move || {
            // Full means that an interrupt is pending already.
            let _ = interrupt.write(1);
        });
        Self {
            serial: Mutex::new(Serial::new(io::stdout(), interrupt)),
            devices: devices.into_iter().map(Mutex::new).collect(),
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
        match self.device(address) {
            Some((device, offset)) => lock(device).read(offset, bytes),
            None => bytes.fill(0xff),
        }
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        if let Some((device, offset)) = self.device(address) {
            lock(device).write(offset, bytes);
        }
    }

    /// The registers of the balloon, if there is one.
    pub(crate) fn balloon(&self) -> Option<MutexGuard<'_, Registers<VhostUser>>> {
        let mut devices = self.devices.iter().map(lock);
        devices.find(|device| device.backend().is_balloon())
    }

    fn device(&self, address: u64) -> Option<(&Mutex<Registers<VhostUser>>, u64)> {
        let place = address.checked_sub(MMIO)?;
        let number = usize::try_from(place / MMIO_PAGE).ok()?;
        Some((self.devices.get(number)?, place % MMIO_PAGE))
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
