//! Name servers of a container that only its host's network namespace has.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::GuestPlan;
use crate::beneath::{open_root, read_in_root};
use crate::bundle::Bundle;

const FILE: &str = "/etc/resolv.conf";

/// The file is a few lines.
const MAX_BYTES: u64 = 64 << 10;

/// C libraries use no more (`MAXNS`).
const MAX_SERVERS: usize = 3;

/// The name servers on loopback addresses among those the container's resolv.conf names.
///
/// The file is read as it is now: engines may still change it until the container starts.
///
/// # Errors
///
/// When the file cannot be read or is none.
pub fn loopback_name_servers(bundle: &Bundle, guest: &GuestPlan) -> io::Result<Vec<IpAddr>> {
    let text = match bound(guest) {
        Some(source) => {
            let (Some(dir), Some(name)) = (source.parent(), source.file_name()) else {
                return Ok(Vec::new());
            };
            read_in_root(open_root(dir)?, Path::new(name), MAX_BYTES)?
        }
        None => read_in_root(open_root(&bundle.rootfs)?, Path::new(FILE), MAX_BYTES)?,
    };
    Ok(text.as_deref().map(parse).unwrap_or_default())
}

/// What is bound over the file.
fn bound(guest: &GuestPlan) -> Option<&Path> {
    let mut mounts = guest.spec.mounts().iter().flatten();
    // The last one lies on top.
    let mount = mounts.rfind(|mount| mount.destination() == Path::new(FILE))?;
    let source = mount
        .source()
        .as_ref()?
        .strip_prefix(super::GUEST_SHARE)
        .ok()?;
    let share = guest
        .shares
        .iter()
        .find(|share| Path::new(&share.target) == source)?;
    Some(&share.source)
}

/// Of resolv.conf(5), the loopback addresses among the first name servers.
fn parse(text: &[u8]) -> Vec<IpAddr> {
    let text = String::from_utf8_lossy(text);
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver"))
            .then(|| words.next())
            .flatten()
    });
    let mut servers = Vec::new();
    for word in named.take(MAX_SERVERS) {
        match word.parse::<IpAddr>() {
            Ok(ip) if ip.is_loopback() && !servers.contains(&ip) => servers.push(ip),
            _ => {}
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<String> {
        let servers = parse(text.as_bytes());
        servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn parse_only_loopback_servers_are_found() {
        let text = "search a b\nnameserver 127.0.0.11\noptions ndots:0\nnameserver 10.0.0.1\n";
        assert_eq!(parsed(text), ["127.0.0.11"]);
        assert_eq!(parsed("nameserver\t::1 # here\r\n"), ["::1"]);
    }

    #[test]
    fn parse_what_names_no_server_is_skipped() {
        let text = "#nameserver 127.0.0.1\nnameserver\nnameserver x\nnameservers 127.0.0.1\n\u{0}";
        assert_eq!(parsed(text), [""; 0]);
    }

    #[test]
    fn parse_many_servers_only_the_first_are_used() {
        let many: String = (1..100)
            .map(|n| format!("nameserver 127.0.0.{n}\n"))
            .collect();
        assert_eq!(parsed(&many), ["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
        assert_eq!(parsed(&"nameserver 127.0.0.1\n".repeat(3)), ["127.0.0.1"]);
    }
}
