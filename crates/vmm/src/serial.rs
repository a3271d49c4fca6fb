//! A serial port (16550) that only sends: the kernel's first and last words.
//!
//! What is sent goes to the console at once, so the transmitter is always empty. Nothing is ever
//! received.

use std::io::Write;

/// Registers, by their distance from the first.
const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const INTERRUPT_ID: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const MODEM_STATUS: u16 = 6;
const SCRATCH: u16 = 7;

/// Of the line control register: the first two registers are the divisor.
const DIVISOR: u8 = 0x80;
/// Of the interrupt enable register.
const WANTS_EMPTY: u8 = 0x02;
/// Of the interrupt identification register.
const NOTHING: u8 = 0x01;
const EMPTY: u8 = 0x02;
/// Transmitter empty, in both meanings.
const ALWAYS_EMPTY: u8 = 0x60;
/// Of the modem control register: loop back.
const LOOP: u8 = 0x10;
/// Carrier, data set ready, clear to send.
const CONNECTED: u8 = 0xb0;

/// The port. `O` takes what is sent, `I` interrupts the guest.
#[derive(Debug)]
pub(crate) struct Serial<O, I> {
    output: O,
    interrupt: I,
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    empty_pending: bool,
}

impl<O: Write, I: FnMut()> Serial<O, I> {
    pub(crate) fn new(output: O, interrupt: I) -> Self {
        Self {
            output,
            interrupt,
            interrupt_enable: 0,
            line_control: 0,
            modem_control: 0,
            scratch: 0,
            divisor: [12, 0],
            empty_pending: false,
        }
    }

    /// The guest reads register `number`.
    pub(crate) fn read(&mut self, number: u16) -> u8 {
        let divisor = self.line_control & DIVISOR != 0;
        match number {
            DATA if divisor => self.divisor[0],
            INTERRUPT_ENABLE if divisor => self.divisor[1],
            INTERRUPT_ENABLE => self.interrupt_enable,
            INTERRUPT_ID => {
                // Reading it is how the interrupt is acknowledged. No queue of bytes: a 16450.
                if std::mem::take(&mut self.empty_pending) {
                    EMPTY
                } else {
                    NOTHING
                }
            }
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => ALWAYS_EMPTY,
            MODEM_STATUS if self.modem_control & LOOP != 0 => loop_back(self.modem_control),
            MODEM_STATUS => CONNECTED,
            SCRATCH => self.scratch,
            _ => 0,
        }
    }

    /// The guest writes `value` to register `number`.
    pub(crate) fn write(&mut self, number: u16, value: u8) {
        let divisor = self.line_control & DIVISOR != 0;
        match number {
            DATA if divisor => self.divisor[0] = value,
            INTERRUPT_ENABLE if divisor => self.divisor[1] = value,
            DATA => {
                if self.modem_control & LOOP == 0 {
                    // A console nobody reads any more takes nothing; the guest goes on.
                    let _ = self.output.write_all(&[value]);
                }
                self.now_empty();
            }
            INTERRUPT_ENABLE => {
                let before = std::mem::replace(&mut self.interrupt_enable, value & 0x0f);
                if value & WANTS_EMPTY == 0 {
                    self.empty_pending = false;
                } else if before & WANTS_EMPTY == 0 {
                    self.now_empty();
                }
            }
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value & 0x1f,
            SCRATCH => self.scratch = value,
            _ => {}
        }
    }

    /// Passes on what was sent.
    pub(crate) fn flush(&mut self) {
        // As above: a console may be gone.
        let _ = self.output.flush();
    }

    fn now_empty(&mut self) {
        if self.interrupt_enable & WANTS_EMPTY != 0 {
            self.empty_pending = true;
            (self.interrupt)();
        }
    }
}

/// In loop back the outputs are the inputs.
fn loop_back(control: u8) -> u8 {
    let bit = |from: u8, to: u8| if control & from != 0 { to } else { 0 };
    bit(0x01, 0x20) | bit(0x02, 0x10) | bit(0x04, 0x40) | bit(0x08, 0x80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_sent_arrive_and_the_line_is_always_ready() {
        let mut output = Vec::new();
        let mut serial = Serial::new(&mut output, || {});
        for byte in b"hello" {
            assert_eq!(serial.read(LINE_STATUS), ALWAYS_EMPTY);
            serial.write(DATA, *byte);
        }
        assert_eq!(output, b"hello");
    }

    #[test]
    fn transmitter_interrupt_comes_once_per_byte_and_is_acknowledged_by_reading() {
        let mut count = 0;
        let mut serial = Serial::new(Vec::new(), || count += 1);
        serial.write(INTERRUPT_ENABLE, WANTS_EMPTY);
        assert_eq!(serial.read(INTERRUPT_ID), EMPTY);
        assert_eq!(serial.read(INTERRUPT_ID), NOTHING);
        serial.write(DATA, b'x');
        assert_eq!(serial.read(INTERRUPT_ID), EMPTY);
        drop(serial);
        assert_eq!(count, 2);
    }

    #[test]
    fn divisor_is_not_sent() {
        let mut output = Vec::new();
        let mut serial = Serial::new(&mut output, || {});
        serial.write(LINE_CONTROL, DIVISOR | 3);
        serial.write(DATA, 1);
        serial.write(LINE_CONTROL, 3);
        assert!(output.is_empty());
    }

    #[test]
    fn loop_back_shows_what_the_driver_set() {
        let mut serial = Serial::new(Vec::new(), || {});
        serial.write(MODEM_CONTROL, LOOP | 0x0a);
        assert_eq!(serial.read(MODEM_STATUS) & 0xf0, 0x90);
    }
}
