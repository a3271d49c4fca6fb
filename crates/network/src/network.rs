//! Joining a virtual machine's network cards to the interfaces of a namespace.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::Path;

use bulkhead_netlink::{Link, LinkChange, Netlink, NetlinkError, Watch};

use crate::inspect::{Interface, inspect};
use crate::namespace::Namespace;
use crate::traffic::{self, Ingress};
use crate::{Mac, NetworkError, tap};

/// The largest MTU of a tap; frames that are passed to it may be larger.
const TAP_MTU: u32 = 65_521;

/// A card to be made for the virtual machine.
#[derive(Debug)]
pub struct Port {
    /// Where its frames come from and go to, each after a `virtio_net_hdr_v1`; non-blocking.
    pub tap: OwnedFd,
    /// What it is called by: the interface's own hardware address unless two have the same, or it is
    /// for an interface that is not there yet.
    pub mac: Mac,
    /// The MTU of its interface, bytes; none if it has no interface yet.
    pub mtu: Option<u16>,
}

/// What a card of the machine is to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The card: [`Port::mac`].
    pub card: Mac,
    /// The interface it stands for.
    pub interface: Interface,
}

/// What has become of the cards after the machine was launched.
#[derive(Debug, Default)]
pub struct Update {
    /// Those that stand for something new or changed.
    pub changes: Vec<Change>,
    /// Those that stand for nothing any more, or never did, and should not be seen in the guest.
    pub unused: Vec<Mac>,
    /// Those the machine is to be given, before it is told of the changes.
    pub new: Vec<Port>,
}

impl Update {
    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.unused.is_empty() && self.new.is_empty()
    }
}

/// What can be done for interfaces that come and go after the machine was launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cards {
    /// There are those of the launch, and no others.
    Fixed,
    /// Cards can be plugged and unplugged.
    Pluggable,
}

/// The interfaces of a namespace, joined to taps. Dropping it undoes that.
#[derive(Debug)]
pub struct Network {
    namespace: Namespace,
    cards: Vec<Card>,
    /// Cards that stand for nothing any more, of which nobody has been told.
    unused: Vec<Mac>,
}

#[derive(Debug)]
struct Card {
    mac: Mac,
    /// Number of its tap.
    tap: u32,
    /// None for a spare one.
    interface: Option<Interface>,
}

impl Card {
    fn change(&self) -> Option<Change> {
        Some(Change {
            card: self.mac,
            interface: self.interface.clone()?,
        })
    }
}

impl Network {
    /// Joins a tap to each interface of the namespace at `path` that is switched on. If there is
    /// none and `spare` is wanted, makes a tap for one that may come later ([`Self::refresh`]).
    ///
    /// The network is undone when the returned value is dropped; a tap, when its descriptor is.
    ///
    /// # Errors
    /// When the namespace cannot be entered or is this process's own, when an interface in it cannot
    /// be passed on, or the kernel refuses a step. Nothing is left then.
    pub fn plug(path: &Path, spare: bool) -> Result<(Self, Vec<Port>), NetworkError> {
        let namespace = Namespace::open(path)?;
        let (cards, ports) = namespace.run(|| {
            let mut netlink = open()?;
            let found = inspect(&mut netlink)?;
            let mut cards = Vec::with_capacity(found.len());
            let made = plug_all(&mut netlink, found, spare, &mut cards);
            if made.is_err() {
                unplug(&mut netlink, &cards);
            }
            made.map(|ports| (cards, ports))
        })?;
        let unused = Vec::new();
        let network = Self {
            namespace,
            cards,
            unused,
        };
        Ok((network, ports))
    }

    /// Whether these are the interfaces of the namespace at `path`.
    #[must_use]
    pub fn is_of(&self, path: &Path) -> bool {
        self.namespace.is(path)
    }

    /// What each card of the machine is to become.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        self.cards.iter().filter_map(Card::change).collect()
    }

    /// Looks again: joins interfaces that have come to spare cards, or to new ones where cards are
    /// pluggable, and returns what has become of the cards since. A card that is `unused` is forgotten.
    ///
    /// # Errors
    /// When interfaces have come for which there is no card, or one has gone or changed its name or
    /// hardware address, where cards are fixed; and as [`Self::plug`]. After an error no card is new, and
    /// those that became unused are told of the next time.
    pub fn refresh(&mut self, possible: Cards) -> Result<Update, NetworkError> {
        let (cards, unused) = (&mut self.cards, &mut self.unused);
        self.namespace.run(|| {
            let mut netlink = open()?;
            let found = inspect(&mut netlink)?;
            let mut update = Update::default();
            for card in cards.iter_mut() {
                let Some(before) = &card.interface else {
                    continue;
                };
                let now = match (still_there(before, &found), possible) {
                    (Ok(now), _) => now,
                    (Err(error), Cards::Fixed) => return Err(error),
                    (Err(_), Cards::Pluggable) => {
                        unplug(&mut netlink, std::slice::from_ref(card));
                        card.interface = None;
                        unused.push(card.mac);
                        continue;
                    }
                };
                if !now.is_like(before) {
                    if now.mtu != before.mtu {
                        set_tap_mtu(&mut netlink, card.tap, now)?;
                    }
                    card.interface = Some(now.clone());
                    update.changes.push(Change {
                        card: card.mac,
                        interface: now.clone(),
                    });
                }
            }
            // What they stood for is gone, and their driver may be told so: they are not spare.
            cards.retain(|card| card.interface.is_some() || !unused.contains(&card.mac));
            let left = join_spare(&mut netlink, cards, found, &mut update)?;
            if possible == Cards::Fixed && !left.is_empty() {
                let names: Vec<String> = left.into_iter().map(|one| one.name).collect();
                return Err(NetworkError::Late {
                    names: names.join(", "),
                });
            }
            let before = cards.len();
            match plug_all(&mut netlink, left, false, cards) {
                Ok(new) => update.new = new,
                Err(error) => {
                    // None of them is to be taken for one the machine has.
                    unplug(&mut netlink, &cards.split_off(before));
                    return Err(error);
                }
            }
            let new = cards.get(before..).unwrap_or_default();
            update.changes.extend(new.iter().filter_map(Card::change));
            update.unused.append(unused);
            Ok(update)
        })
    }

    /// Undoes a card of [`Update::new`] that the machine could not be given.
    pub fn forget(&mut self, mac: Mac) {
        let gone: Vec<Card> = self.cards.extract_if(.., |card| card.mac == mac).collect();
        let undone = self.namespace.run(|| {
            unplug(&mut open()?, &gone);
            Ok(())
        });
        if let Err(error) = undone {
            tracing::warn!("Failed to undo a network card: {error}");
        }
    }

    /// A descriptor that becomes readable whenever something changes in the namespace; see
    /// [`Watch::drain`].
    ///
    /// # Errors
    /// When the namespace cannot be entered or watched.
    pub fn watch(&self) -> Result<Watch, NetworkError> {
        self.namespace.run(|| {
            let failed = |source| NetworkError::List {
                what: "changes",
                source,
            };
            Watch::open().map_err(failed)
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let cards = std::mem::take(&mut self.cards);
        let undone = self.namespace.run(|| {
            unplug(&mut open()?, &cards);
            Ok(())
        });
        if let Err(error) = undone {
            tracing::warn!("Failed to undo the container's network: {error}");
        }
    }
}

/// Whether two paths name one namespace.
#[must_use]
pub fn is_same(one: &Path, other: &Path) -> bool {
    Namespace::open(one).is_ok_and(|namespace| namespace.is(other))
}

/// Whether the namespace at `path` has interfaces a container could see, besides loopback.
///
/// # Errors
/// As [`Network::plug`], for what cannot be passed on.
pub fn is_populated(path: &Path) -> Result<bool, NetworkError> {
    Namespace::open(path)?.run(|| Ok(!inspect(&mut open()?)?.is_empty()))
}

/// Removes what a killed process left on the interfaces of the namespace at `path`: filters that
/// lead to taps that are no more. Whatever else is there is left alone, and so is a namespace that
/// is gone.
pub fn clean(path: &Path) {
    let Ok(namespace) = Namespace::open(path) else {
        return;
    };
    let cleaned = namespace.run(|| {
        let mut netlink = open()?;
        let links = netlink.list(&Link::list(), Link::parse).map_err(|source| {
            let what = "interfaces";
            NetworkError::List { what, source }
        })?;
        for link in links {
            if let Ok(Ingress::Stale) = traffic::ingress(&mut netlink, link.index) {
                // Somebody else may have done it in between.
                let _ = traffic::remove(&mut netlink, link.index);
            }
        }
        Ok(())
    });
    if let Err(error) = cleaned {
        tracing::warn!("Failed to look for what is left of a container's network: {error}");
    }
}

fn open() -> Result<Netlink, NetworkError> {
    Netlink::open().map_err(|source| NetworkError::List {
        what: "interfaces",
        source,
    })
}

fn change_failed(step: &'static str, interface: &str) -> impl FnOnce(NetlinkError) -> NetworkError {
    move |source| NetworkError::Change {
        step,
        interface: interface.to_owned(),
        source,
    }
}

/// Makes a card for each interface; those that were made are in `cards` even after an error.
fn plug_all(
    netlink: &mut Netlink,
    found: Vec<Interface>,
    spare: bool,
    cards: &mut Vec<Card>,
) -> Result<Vec<Port>, NetworkError> {
    let mut ports = Vec::with_capacity(found.len());
    if found.is_empty() && spare {
        let (tap, index) = make_tap(netlink, "(to come)")?;
        let mac = own_mac(cards);
        start_tap(netlink, index, None)?;
        ports.push(Port {
            tap,
            mac,
            mtu: None,
        });
        cards.push(Card {
            mac,
            tap: index,
            interface: None,
        });
    }
    for interface in found {
        let taken = cards.iter().any(|card| card.mac == interface.mac);
        let mac = if taken { own_mac(cards) } else { interface.mac };
        let (tap, index) = make_tap(netlink, &interface.name)?;
        start_tap(netlink, index, Some(&interface))?;
        let mtu = u16::try_from(interface.mtu).unwrap_or(u16::MAX);
        join(netlink, &interface, index)?;
        cards.push(Card {
            mac,
            tap: index,
            interface: Some(interface),
        });
        ports.push(Port {
            tap,
            mac,
            mtu: Some(mtu),
        });
    }
    Ok(ports)
}

/// A hardware address of our own that none of the cards has: locally administered, and seen by the
/// machine only.
fn own_mac(cards: &[Card]) -> Mac {
    let numbered = (0..=u16::MAX).map(|number| {
        let [high, low] = number.to_be_bytes();
        [0x02, b'b', b'h', 0, high, low]
    });
    let mut free = numbered.filter(|mac| cards.iter().all(|card| card.mac != *mac));
    // There are never as many cards.
    free.next().unwrap_or_default()
}

fn make_tap(netlink: &mut Netlink, interface: &str) -> Result<(OwnedFd, u32), NetworkError> {
    let (tap, name) = tap::make(interface)?;
    let links = netlink.list(&Link::list(), Link::parse);
    let links = links.map_err(change_failed("find the tap of", interface))?;
    let found = links.into_iter().find(|link| link.name == name);
    let link = found.ok_or_else(|| NetworkError::Tap {
        step: "find",
        interface: interface.to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    })?;
    Ok((tap, link.index))
}

fn start_tap(
    netlink: &mut Netlink,
    tap: u32,
    interface: Option<&Interface>,
) -> Result<(), NetworkError> {
    let name = interface.map_or("(to come)", |interface| &interface.name);
    // The host has nothing to say on it. A kernel without IPv6 has no such setting.
    match netlink.request(&LinkChange::of(tap).no_link_local().request()) {
        Err(error) if error.errno() != Some(libc::EAFNOSUPPORT) => {
            return Err(change_failed("silence the tap of", name)(error));
        }
        _ => {}
    }
    if let Some(interface) = interface {
        set_tap_mtu(netlink, tap, interface)?;
    }
    netlink
        .request(&LinkChange::of(tap).up(true).request())
        .map_err(change_failed("switch on the tap of", name))
}

fn set_tap_mtu(netlink: &mut Netlink, tap: u32, interface: &Interface) -> Result<(), NetworkError> {
    let mtu = interface.mtu.min(TAP_MTU);
    netlink
        .request(&LinkChange::of(tap).mtu(mtu).request())
        .map_err(change_failed("set the MTU of the tap of", &interface.name))
}

/// Passes the frames of an interface to a tap and back.
fn join(netlink: &mut Netlink, interface: &Interface, tap: u32) -> Result<(), NetworkError> {
    let name = &interface.name;
    let failed = |step| change_failed(step, name);
    match traffic::ingress(netlink, interface.index).map_err(failed("look for filters of"))? {
        Ingress::None => {}
        Ingress::Stale => traffic::remove(netlink, interface.index)
            .map_err(failed("remove an ended container's filter from"))?,
        Ingress::Live => {
            return Err(NetworkError::Refused {
                interface: name.clone(),
                reason: "another container's virtual machine has it".to_owned(),
                alternative: "give each its own network namespace",
            });
        }
        Ingress::Foreign => {
            return Err(NetworkError::Refused {
                interface: name.clone(),
                reason:
                    "it has filters for incoming traffic, which the virtual machine's would be in \
                         conflict with"
                        .to_owned(),
                alternative: "remove its ingress or clsact qdisc (`tc qdisc del dev … ingress`)",
            });
        }
    }
    traffic::redirect(netlink, tap, interface.index)
        .map_err(failed("pass the virtual machine's frames to"))?;
    let passed = traffic::redirect(netlink, interface.index, tap)
        .map_err(failed("pass frames to the virtual machine from"));
    if passed.is_err() {
        // Half of it may be there; the tap's half goes with the tap.
        let _ = traffic::remove(netlink, interface.index);
    }
    passed
}

/// Frees the interfaces; the taps are their descriptors' owners' to close.
fn unplug(netlink: &mut Netlink, cards: &[Card]) {
    for interface in cards.iter().filter_map(|card| card.interface.as_ref()) {
        // The engine may have taken it away already, or somebody made it over.
        if let Ok(Ingress::Live | Ingress::Stale) = traffic::ingress(netlink, interface.index) {
            let _ = traffic::remove(netlink, interface.index);
        }
    }
}

fn still_there<'f>(
    before: &Interface,
    found: &'f [Interface],
) -> Result<&'f Interface, NetworkError> {
    let altered = |what| NetworkError::Altered {
        interface: before.name.clone(),
        what,
    };
    let now = found.iter().find(|now| now.index == before.index);
    let now = now.ok_or_else(|| altered("removed or switched off"))?;
    if now.name != before.name {
        return Err(altered("renamed"));
    }
    if now.mac != before.mac {
        return Err(altered("given another hardware address"));
    }
    Ok(now)
}

/// Joins interfaces no card stands for to spare cards, as far as there are any; spare ones that are left
/// over become unused. Returns the interfaces that are left over.
fn join_spare(
    netlink: &mut Netlink,
    cards: &mut Vec<Card>,
    found: Vec<Interface>,
    update: &mut Update,
) -> Result<Vec<Interface>, NetworkError> {
    let known = |interface: &Interface| {
        let mut all = cards.iter().filter_map(|card| card.interface.as_ref());
        all.any(|known| known.index == interface.index)
    };
    let mut new: VecDeque<Interface> = found.into_iter().filter(|i| !known(i)).collect();
    for card in cards.iter_mut().filter(|card| card.interface.is_none()) {
        let Some(interface) = new.pop_front() else {
            update.unused.push(card.mac);
            continue;
        };
        set_tap_mtu(netlink, card.tap, &interface)?;
        join(netlink, &interface, card.tap)?;
        card.interface = Some(interface.clone());
        update.changes.push(Change {
            card: card.mac,
            interface,
        });
    }
    cards.retain(|card| card.interface.is_some());
    Ok(new.into())
}
