//! A connection to the system bus.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::wire::{Call, ERROR, METHOD_RETURN, Malformed, Message, PREFIX, Writer};

/// Where the bus listens.
const SOCKET: &str = "/run/dbus/system_bus_socket";

/// How long systemd may take for one answer.
const PATIENCE: Duration = Duration::from_secs(25);

/// A call that did not get a good answer.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The bus is not there, or went away.
    #[error("The system bus at {SOCKET} cannot be used")]
    Io(#[from] io::Error),
    /// Something that is no D-Bus came.
    #[error("The system bus sent a message that is none")]
    Malformed,
    /// The other side refused.
    #[error("{name}: {text}")]
    Refused {
        /// The error's name.
        name: String,
        /// What the other side says about it.
        text: String,
    },
}

impl From<Malformed> for BusError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// The connection. Every call blocks, for at most a time each of [`PATIENCE`].
#[derive(Debug)]
pub struct Bus {
    stream: UnixStream,
    serial: u32,
    /// Signals that came while an answer was waited for.
    signals: Vec<Message>,
}

impl Bus {
    /// Connects and introduces itself.
    ///
    /// # Errors
    /// See [`BusError`].
    pub fn connect() -> Result<Self, BusError> {
        let mut stream = UnixStream::connect(SOCKET)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let uid = rustix::process::geteuid().as_raw().to_string();
        let uid: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        stream.write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes())?;
        if !line(&mut stream)?.starts_with("OK ") {
            let denied = "this user may not use it";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, denied).into());
        }
        stream.write_all(b"BEGIN\r\n")?;
        let mut bus = Self {
            stream,
            serial: 0,
            signals: Vec::new(),
        };
        bus.own("Hello", None)?;
        Ok(bus)
    }

    /// Asks for the signals a rule names.
    ///
    /// # Errors
    /// See [`BusError`].
    pub fn listen(&mut self, rule: &str) -> Result<(), BusError> {
        self.own("AddMatch", Some(rule)).map(drop)
    }

    /// Calls the bus itself.
    fn own(&mut self, member: &str, argument: Option<&str>) -> Result<Message, BusError> {
        let mut body = Writer::default();
        argument.into_iter().for_each(|text| body.text(text));
        self.call(&Call {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member,
            signature: if argument.is_some() { "s" } else { "" },
            body,
        })
    }

    /// Calls a method and waits for its answer.
    ///
    /// # Errors
    /// See [`BusError`].
    pub fn call(&mut self, call: &Call<'_>) -> Result<Message, BusError> {
        self.serial = self.serial.wrapping_add(1).max(1);
        self.stream.write_all(&call.encode(self.serial))?;
        loop {
            let message = self.receive()?;
            match message.kind {
                METHOD_RETURN if message.answers == self.serial => return Ok(message),
                ERROR if message.answers == self.serial => {
                    return Err(BusError::Refused {
                        text: message.body().text().unwrap_or_default(),
                        name: message.error,
                    });
                }
                _ => self.signals.push(message),
            }
        }
    }

    /// The next message that answers nothing.
    ///
    /// # Errors
    /// See [`BusError`].
    pub fn signal(&mut self) -> Result<Message, BusError> {
        if self.signals.is_empty() {
            return self.receive();
        }
        Ok(self.signals.remove(0))
    }

    fn receive(&mut self) -> Result<Message, BusError> {
        let mut prefix = [0; PREFIX];
        self.stream.read_exact(&mut prefix)?;
        let mut bytes = prefix.to_vec();
        let whole = Message::rest(&prefix)?.saturating_add(PREFIX);
        bytes.resize(whole, 0);
        if let Some(rest) = bytes.get_mut(PREFIX..) {
            self.stream.read_exact(rest)?;
        }
        Ok(Message::decode(&bytes)?)
    }
}

/// A line of the introduction, without its end.
fn line(stream: &mut UnixStream) -> io::Result<String> {
    const LONGEST: usize = 256;
    let mut line = Vec::new();
    // Byte by byte: what follows is not ours to buffer.
    while !line.ends_with(b"\r\n") && line.len() < LONGEST {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}
