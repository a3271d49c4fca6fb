//! The part of D-Bus's wire format that systemd's manager is spoken to in (D-Bus specification,
//! "Message Protocol"): little-endian messages of strings, numbers, arrays and variants.

/// Kinds of messages.
pub const METHOD_CALL: u8 = 1;
/// An answer.
pub const METHOD_RETURN: u8 = 2;
/// An answer that something failed.
pub const ERROR: u8 = 3;
/// A message nobody asked for.
pub const SIGNAL: u8 = 4;

/// Bytes that tell how long the rest of a message is.
pub const PREFIX: usize = 16;

/// No message of the manager that we ask for comes near it.
const MAX_BYTES: usize = 1 << 20;

/// A message that is not what D-Bus says, or not one we understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// A value in a variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `b`.
    Bool(bool),
    /// `t`.
    U64(u64),
    /// `s`.
    Text(String),
    /// `au`.
    Numbers(Vec<u32>),
    /// `ay`.
    Bytes(Vec<u8>),
}

/// Writes values one after the other, each at its alignment.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    /// A string, or the path of an object.
    pub fn text(&mut self, text: &str) {
        self.u32(length(text.len()));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// A boolean.
    pub fn bool(&mut self, value: bool) {
        self.u32(u32::from(value));
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// An array of what `fill` writes; `alignment` is that of its elements.
    pub fn array(&mut self, alignment: usize, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let place = self.0.len().saturating_sub(4);
        self.align(alignment);
        let start = self.0.len();
        fill(self);
        let count = length(self.0.len().saturating_sub(start));
        if let Some(bytes) = self.0.get_mut(place..place.saturating_add(4)) {
            bytes.copy_from_slice(&count.to_le_bytes());
        }
    }

    /// `a(sv)`.
    pub fn properties(&mut self, properties: &[(&str, Value)]) {
        self.array(8, |writer| {
            for (name, value) in properties {
                writer.align(8);
                writer.text(name);
                writer.variant(value);
            }
        });
    }

    fn variant(&mut self, value: &Value) {
        match value {
            Value::Bool(value) => {
                self.signature("b");
                self.bool(*value);
            }
            Value::U64(value) => {
                self.signature("t");
                self.align(8);
                self.0.extend(value.to_le_bytes());
            }
            Value::Text(text) => {
                self.signature("s");
                self.text(text);
            }
            Value::Numbers(numbers) => {
                self.signature("au");
                self.array(4, |writer| numbers.iter().for_each(|n| writer.u32(*n)));
            }
            Value::Bytes(bytes) => {
                self.signature("ay");
                self.array(1, |writer| writer.0.extend(bytes));
            }
        }
    }
}

/// What fits into memory here fits into a message: names, and a few numbers.
fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// A call of a method.
#[derive(Debug)]
pub struct Call<'a> {
    /// Who is called.
    pub destination: &'a str,
    /// The object.
    pub path: &'a str,
    /// Its interface.
    pub interface: &'a str,
    /// The method.
    pub member: &'a str,
    /// Types of the arguments.
    pub signature: &'a str,
    /// The arguments.
    pub body: Writer,
}

impl Call<'_> {
    /// The message; `serial` is not 0.
    pub fn encode(&self, serial: u32) -> Vec<u8> {
        let mut writer = Writer(vec![b'l', METHOD_CALL, 0, 1]);
        writer.u32(length(self.body.0.len()));
        writer.u32(serial);
        writer.array(8, |writer| {
            for (code, signature, text) in [
                (1, "o", self.path),
                (2, "s", self.interface),
                (3, "s", self.member),
                (6, "s", self.destination),
            ] {
                writer.align(8);
                writer.0.push(code);
                writer.signature(signature);
                writer.text(text);
            }
            if !self.signature.is_empty() {
                writer.align(8);
                writer.0.push(8);
                writer.signature("g");
                writer.signature(self.signature);
            }
        });
        writer.align(8);
        writer.0.extend(&self.body.0);
        writer.0
    }
}

/// A message that came.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// Its kind.
    pub kind: u8,
    /// Which call it answers; 0 for none.
    pub answers: u32,
    /// A signal's name.
    pub member: String,
    /// An error's name.
    pub error: String,
    body: Vec<u8>,
}

impl Message {
    /// How many bytes follow the first [`PREFIX`].
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn rest(prefix: &[u8; PREFIX]) -> Result<usize, Malformed> {
        let mut reader = Reader {
            bytes: prefix,
            at: 0,
        };
        if reader.take(1)? != [b'l'] {
            return Err(Malformed);
        }
        reader.take(3)?;
        let (body, _, fields) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let sum = |a: u32, b: usize| usize::try_from(a).ok()?.checked_add(b);
        let header = sum(fields, PREFIX).ok_or(Malformed)?;
        let header = header.checked_next_multiple_of(8).ok_or(Malformed)?;
        let all = sum(body, header).ok_or(Malformed)?;
        (all <= MAX_BYTES)
            .then(|| all.saturating_sub(PREFIX))
            .ok_or(Malformed)
    }

    /// Reads a whole message.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader { bytes, at: 1 };
        let mut message = Self {
            kind: reader.take(1)?.first().copied().unwrap_or(0),
            answers: 0,
            member: String::new(),
            error: String::new(),
            body: Vec::new(),
        };
        reader.at = 12;
        let length = usize::try_from(reader.u32()?).map_err(|_| Malformed)?;
        let end = reader.at.checked_add(length).ok_or(Malformed)?;
        while reader.at < end {
            reader.align(8)?;
            let code = reader.take(1)?.first().copied();
            match (code, reader.signature()?.as_str()) {
                (Some(5), "u") => message.answers = reader.u32()?,
                (Some(3), "s") => message.member = reader.text()?,
                (Some(4), "s") => message.error = reader.text()?,
                (_, "s" | "o") => drop(reader.text()?),
                (_, "u") => drop(reader.u32()?),
                (_, "g") => drop(reader.signature()?),
                _ => return Err(Malformed),
            }
        }
        reader.align(8)?;
        message.body = bytes.get(reader.at..).ok_or(Malformed)?.to_vec();
        Ok(message)
    }

    /// The body, to be read from its start.
    pub fn body(&self) -> Reader<'_> {
        Reader {
            bytes: &self.body,
            at: 0,
        }
    }
}

/// Reads values one after the other.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8], Malformed> {
        let end = self.at.checked_add(count).ok_or(Malformed)?;
        let taken = self.bytes.get(self.at..end).ok_or(Malformed)?;
        self.at = end;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Result<(), Malformed> {
        self.at = self.at.checked_next_multiple_of(to).ok_or(Malformed)?;
        Ok(())
    }

    /// A number.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.align(4)?;
        let bytes = self.take(4)?.try_into().map_err(|_| Malformed)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// A string, or the path of an object.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn text(&mut self) -> Result<String, Malformed> {
        let length = usize::try_from(self.u32()?).map_err(|_| Malformed)?;
        self.characters(length)
    }

    fn signature(&mut self) -> Result<String, Malformed> {
        let length = self.take(1)?.first().copied().unwrap_or(0);
        self.characters(usize::from(length))
    }

    fn characters(&mut self, length: usize) -> Result<String, Malformed> {
        let text = String::from_utf8(self.take(length)?.to_vec()).map_err(|_| Malformed)?;
        self.take(1)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Vec<u8> {
        let mut body = Writer::default();
        body.text("a.scope");
        body.properties(&[
            ("Delegate", Value::Bool(true)),
            ("PIDs", Value::Numbers(vec![7])),
            ("MemoryMax", Value::U64(9)),
        ]);
        let call = Call {
            destination: "org.freedesktop.systemd1",
            path: "/org",
            interface: "i.f",
            member: "Do",
            signature: "sa(sv)",
            body,
        };
        call.encode(3)
    }

    #[test]
    fn call_is_aligned_and_counted() {
        let bytes = call();

        assert_eq!(&bytes[..4], b"l\x01\0\x01");
        let prefix: &[u8; PREFIX] = bytes[..PREFIX].try_into().unwrap();
        assert_eq!(Message::rest(prefix), Ok(bytes.len() - PREFIX));
        let message = Message::decode(&bytes).unwrap();
        assert_eq!(message.member, "Do");
        let mut body = message.body();
        assert_eq!(body.text().unwrap(), "a.scope");
        // Length of the array, then the first structure at a multiple of 8.
        assert_eq!(body.u32(), Ok(80));
        body.align(8).unwrap();
        assert_eq!(body.text().unwrap(), "Delegate");
        assert_eq!(body.signature().unwrap(), "b");
        assert_eq!(body.u32(), Ok(1));
    }

    #[test]
    fn message_cut_anywhere_is_malformed_or_shorter_and_never_more() {
        let whole = call();

        for end in 0..whole.len() {
            if let Ok(message) = Message::decode(&whole[..end]) {
                let mut body = message.body();
                while body.text().is_ok() {}
            }
        }
        let mut long = [0; PREFIX];
        long[0] = b'l';
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Message::rest(&long), Err(Malformed));
        long[0] = b'B';
        assert_eq!(Message::rest(&long), Err(Malformed));
    }
}
