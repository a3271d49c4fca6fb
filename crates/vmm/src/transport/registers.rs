//! The register file of one device.

use super::Backend;

/// Offsets (virtio 1.2, section 4.2.2).
pub(crate) const MAGIC: u64 = 0x00;
pub(crate) const VERSION: u64 = 0x04;
pub(crate) const DEVICE_ID: u64 = 0x08;
pub(crate) const VENDOR_ID: u64 = 0x0c;
pub(crate) const DEVICE_FEATURES: u64 = 0x10;
pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x14;
pub(crate) const DRIVER_FEATURES: u64 = 0x20;
pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x24;
pub(crate) const QUEUE_SEL: u64 = 0x30;
pub(crate) const QUEUE_NUM_MAX: u64 = 0x34;
pub(crate) const QUEUE_NUM: u64 = 0x38;
pub(crate) const QUEUE_READY: u64 = 0x44;
/// Also where the events of the rings are registered.
pub(crate) const QUEUE_NOTIFY: u64 = 0x50;
pub(crate) const INTERRUPT_STATUS: u64 = 0x60;
pub(crate) const INTERRUPT_ACK: u64 = 0x64;
pub(crate) const STATUS: u64 = 0x70;
pub(crate) const QUEUE_DESC_LOW: u64 = 0x80;
pub(crate) const QUEUE_DESC_HIGH: u64 = 0x84;
pub(crate) const QUEUE_DRIVER_LOW: u64 = 0x90;
pub(crate) const QUEUE_DRIVER_HIGH: u64 = 0x94;
pub(crate) const QUEUE_DEVICE_LOW: u64 = 0xa0;
pub(crate) const QUEUE_DEVICE_HIGH: u64 = 0xa4;
pub(crate) const SHM_LEN_LOW: u64 = 0xb0;
pub(crate) const SHM_LEN_HIGH: u64 = 0xb4;
pub(crate) const CONFIG_GENERATION: u64 = 0xfc;
pub(crate) const CONFIG: u64 = 0x100;

const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");
const VERSION_VALUE: u32 = 2;
const VENDOR_VALUE: u32 = u32::from_le_bytes(*b"BLKH");

/// Bits of the status register.
pub(crate) const ACKNOWLEDGE: u32 = 1;
pub(crate) const DRIVER: u32 = 2;
pub(crate) const DRIVER_OK: u32 = 4;
pub(crate) const FEATURES_OK: u32 = 8;
pub(crate) const NEEDS_RESET: u32 = 64;
pub(crate) const FAILED: u32 = 128;

/// Bits of the interrupt status.
pub(crate) const RING_USED: u32 = 1;
pub(crate) const CONFIG_CHANGED: u32 = 2;

/// Without this feature a driver would speak the protocol of before 2014.
const VERSION_1: u64 = 1 << 32;

/// One ring as the driver has set it up. All addresses lie in guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// Address of the descriptors.
    pub descriptors: u64,
    /// Address of what the driver writes.
    pub driver: u64,
    /// Address of what the device writes.
    pub device: u64,
    ready: bool,
}

impl Ring {
    /// Whether all parts are aligned and lie in memory.
    fn is_sound(&self, backend: &impl Backend) -> bool {
        let size = u64::from(self.size);
        let aligned = self.descriptors.is_multiple_of(16)
            && self.driver.is_multiple_of(2)
            && self.device.is_multiple_of(4);
        // Headers of flags and index, and an event index behind each ring.
        let parts = [
            (self.descriptors, size.saturating_mul(16)),
            (self.driver, size.saturating_mul(2).saturating_add(6)),
            (self.device, size.saturating_mul(8).saturating_add(6)),
        ];
        aligned
            && size > 0
            && parts
                .into_iter()
                .all(|(address, length)| backend.is_memory(address, length))
    }
}

/// The registers of one device, and the device behind them.
#[derive(Debug)]
pub struct Registers<B> {
    backend: B,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    rings: Vec<Ring>,
    most: u16,
    config_changed: bool,
    /// Counts the changes of the configuration.
    generation: u8,
    started: bool,
}

impl<B: Backend> Registers<B> {
    /// The registers of `backend`, as after a reset.
    pub fn new(backend: B) -> Self {
        let (count, most) = backend.rings();
        Self {
            backend,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            rings: vec![
                Ring {
                    size: most,
                    ..Ring::default()
                };
                count
            ],
            most,
            config_changed: false,
            generation: 0,
            started: false,
        }
    }

    /// The device behind the registers.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Changes the device's configuration, and tells the driver.
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut B)) {
        change(&mut self.backend);
        self.generation = self.generation.wrapping_add(1);
        // A driver that is not ready yet reads the configuration when it is.
        if self.started {
            self.config_changed = true;
            self.backend.notify();
        }
    }

    /// The guest reads `bytes` at `offset` of the page.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            bytes.fill(0);
            if let Ok(offset) = usize::try_from(offset) {
                self.backend.configuration(offset, bytes);
            }
            return;
        }
        match <&mut [u8; 4]>::try_from(&mut *bytes) {
            Ok(bytes) => *bytes = self.register(offset).to_le_bytes(),
            // All registers are of four bytes, and read as such.
            Err(_) => bytes.fill(0),
        }
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            MAGIC => MAGIC_VALUE,
            VERSION => VERSION_VALUE,
            DEVICE_ID => self.backend.device_type(),
            VENDOR_ID => VENDOR_VALUE,
            DEVICE_FEATURES => half(self.backend.features(), self.device_features_sel),
            QUEUE_NUM_MAX => self.ring().map_or(0, |_| u32::from(self.most)),
            QUEUE_READY => self.ring().map_or(0, |ring| u32::from(ring.ready)),
            // The back end interrupts the guest without this process; so whenever a driver looks,
            // there may be something in its rings.
            INTERRUPT_STATUS => {
                let used = if self.started { RING_USED } else { 0 };
                let changed = if self.config_changed {
                    CONFIG_CHANGED
                } else {
                    0
                };
                used | changed
            }
            STATUS => self.status,
            // No shared memory.
            SHM_LEN_LOW | SHM_LEN_HIGH => u32::MAX,
            CONFIG_GENERATION => u32::from(self.generation),
            _ => 0,
        }
    }

    /// The guest writes `bytes` at `offset` of the page.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            if let Ok(offset) = usize::try_from(offset) {
                self.backend.set_configuration(offset, bytes);
            }
            return;
        }
        let Ok(bytes) = <[u8; 4]>::try_from(bytes) else {
            return;
        };
        let value = u32::from_le_bytes(bytes);
        match offset {
            DEVICE_FEATURES_SEL => self.device_features_sel = value,
            DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            DRIVER_FEATURES => self.accept(value),
            QUEUE_SEL => self.queue_sel = value,
            QUEUE_NOTIFY => self.kick(value),
            INTERRUPT_ACK => self.config_changed &= value & CONFIG_CHANGED == 0,
            STATUS => self.set_status(value),
            QUEUE_NUM => {
                let size = u16::try_from(value).ok();
                let most = self.most;
                if let Some(size) = size.filter(|size| size.is_power_of_two() && *size <= most) {
                    self.change(|ring| ring.size = size);
                }
            }
            QUEUE_DESC_LOW => self.change(|ring| set_low(&mut ring.descriptors, value)),
            QUEUE_DESC_HIGH => self.change(|ring| set_high(&mut ring.descriptors, value)),
            QUEUE_DRIVER_LOW => self.change(|ring| set_low(&mut ring.driver, value)),
            QUEUE_DRIVER_HIGH => self.change(|ring| set_high(&mut ring.driver, value)),
            QUEUE_DEVICE_LOW => self.change(|ring| set_low(&mut ring.device, value)),
            QUEUE_DEVICE_HIGH => self.change(|ring| set_high(&mut ring.device, value)),
            QUEUE_READY => self.set_ready(value),
            _ => {}
        }
    }

    fn ring(&self) -> Option<&Ring> {
        self.rings.get(usize::try_from(self.queue_sel).ok()?)
    }

    /// Changes the selected ring, as long as neither it nor the device is in use.
    fn change(&mut self, change: impl FnOnce(&mut Ring)) {
        if !self.may_set_up() {
            return;
        }
        let index = usize::try_from(self.queue_sel).ok();
        if let Some(ring) = index.and_then(|index| self.rings.get_mut(index))
            && !ring.ready
        {
            change(ring);
        }
    }

    fn may_set_up(&self) -> bool {
        self.status & FEATURES_OK != 0 && self.status & (DRIVER_OK | FAILED | NEEDS_RESET) == 0
    }

    fn set_ready(&mut self, value: u32) {
        if !self.may_set_up() {
            return;
        }
        let index = usize::try_from(self.queue_sel).ok();
        let Some(ring) = index.and_then(|index| self.rings.get_mut(index)) else {
            return;
        };
        ring.ready = match value {
            0 => false,
            1 => ring.is_sound(&self.backend),
            _ => return,
        };
    }

    fn accept(&mut self, value: u32) {
        if self.status & DRIVER == 0 || self.status & FEATURES_OK != 0 {
            return;
        }
        match self.driver_features_sel {
            0 => set_low(&mut self.driver_features, value),
            1 => set_high(&mut self.driver_features, value),
            _ => {}
        }
    }

    fn kick(&mut self, number: u32) {
        if let Ok(number) = usize::try_from(number)
            && self.started
            && self.rings.get(number).is_some_and(|ring| ring.ready)
        {
            self.backend.kick(number);
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        // The driver sets one bit after the other and clears none but by a reset.
        let fresh =
            value & !self.status & (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED);
        if value & self.status != self.status {
            return;
        }
        if fresh & FAILED != 0 {
            self.status |= FAILED;
            return;
        }
        if fresh & ACKNOWLEDGE != 0 {
            self.status |= ACKNOWLEDGE;
        }
        if fresh & DRIVER != 0 && self.status & ACKNOWLEDGE != 0 {
            self.status |= DRIVER;
        }
        if fresh & FEATURES_OK != 0 && self.status & DRIVER != 0 && self.features_are_right() {
            self.status |= FEATURES_OK;
        }
        if fresh & DRIVER_OK != 0 && self.status & FEATURES_OK != 0 {
            self.start();
        }
    }

    fn features_are_right(&self) -> bool {
        self.driver_features & !self.backend.features() == 0
            && self.driver_features & VERSION_1 != 0
    }

    fn start(&mut self) {
        self.status |= DRIVER_OK;
        let rings: Vec<_> = self
            .rings
            .iter()
            .copied()
            .enumerate()
            .filter(|(_, ring)| ring.ready)
            .collect();
        match self.backend.start(self.driver_features, &rings) {
            Ok(()) => self.started = true,
            Err(error) => self.broken(&error),
        }
    }

    fn reset(&mut self) {
        if self.status & DRIVER_OK != 0
            && let Err(error) = self.backend.stop()
        {
            self.broken(&error);
            return;
        }
        self.status = 0;
        self.started = false;
        self.config_changed = false;
        self.driver_features = 0;
        (
            self.device_features_sel,
            self.driver_features_sel,
            self.queue_sel,
        ) = (0, 0, 0);
        let fresh = Ring {
            size: self.most,
            ..Ring::default()
        };
        self.rings.fill(fresh);
    }

    fn broken(&mut self, error: &crate::VmmError) {
        eprintln!("bulkhead vmm: {}", crate::error::chain(error));
        self.status |= NEEDS_RESET;
        self.started = false;
        self.config_changed = true;
        self.backend.notify();
    }
}

fn half(value: u64, which: u32) -> u32 {
    let half = match which {
        0 => value & u64::from(u32::MAX),
        1 => value >> 32,
        _ => 0,
    };
    u32::try_from(half).unwrap_or(0)
}

fn set_low(value: &mut u64, low: u32) {
    *value = *value & !u64::from(u32::MAX) | u64::from(low);
}

fn set_high(value: &mut u64, high: u32) {
    *value = *value & u64::from(u32::MAX) | u64::from(high) << 32;
}
