//! Where our own messages go: standard error, or the file of `--log` as engines expect it.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use clap::ValueEnum;
use tracing_subscriber::filter::LevelFilter;

/// Form of the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One line of text each.
    Text,
    /// One JSON object each, with `level`, `msg` and `time`, as runc writes it.
    Json,
}

/// Sends messages to standard error.
pub fn to_stderr(format: Format, debug: bool) {
    let builder = tracing_subscriber::fmt()
        .with_max_level(level(debug))
        .with_ansi(false)
        .with_target(false)
        // It would be told on standard error, with a panic when that fails, too: a full disk.
        .log_internal_errors(false)
        .with_writer(io::stderr);
    match format {
        Format::Text => builder.init(),
        Format::Json => builder.json().init(),
    }
}

/// Sends messages to a file.
///
/// # Errors
/// When it cannot be opened.
pub fn to_file(path: &Path, format: Format, debug: bool) -> io::Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let builder = tracing_subscriber::fmt()
        .with_max_level(level(debug))
        .with_ansi(false)
        .with_target(false)
        .log_internal_errors(false)
        .with_writer(Mutex::new(file));
    match format {
        Format::Text => builder.init(),
        Format::Json => builder.json().init(),
    }
    Ok(())
}

fn level(debug: bool) -> LevelFilter {
    if debug {
        LevelFilter::DEBUG
    } else {
        LevelFilter::WARN
    }
}

/// Appends an error to the file of `--log` in the form engines parse (runc's): one JSON object with
/// `level`, `msg` and `time`, or one line of text.
pub fn report_error(path: &Path, format: Format, message: &str) {
    let time = bulkhead_sandbox::clock::rfc3339_now();
    let line = match format {
        Format::Json => {
            serde_json::json!({ "level": "error", "msg": message, "time": time }).to_string()
        }
        Format::Text => format!("time=\"{time}\" level=error msg={message:?}"),
    };
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, format!("{line}\n").as_bytes()));
    if let Err(error) = written {
        eprintln!(
            "bulkhead: Failed to write the log {}: {error}",
            path.display()
        );
    }
}
