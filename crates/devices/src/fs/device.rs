//! The virtio-fs device: its rings, its configuration space.

use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackendMut, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{DescriptorChain, Error as QueueError, QueueOwnedT, QueueT};
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::filesystem::FileSystem;
use virtiofsd::server::Server;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use super::{FsError, Tree};
use crate::config_space;
use crate::guest::Segments;
use crate::ring::Moved;
use crate::session::{AtomicMemory, Device, Memory, Source, Vring};
use crate::tally::Tally;

/// Length of the tag in the configuration space, in bytes (virtio 1.2, section 5.11.4).
pub(super) const TAG_LEN: usize = 36;
/// The queue for requests that must not wait behind others, and one for all others.
const QUEUES: usize = 2;
const QUEUE_SIZE: usize = 1024;
/// Lengths of the headers of a FUSE request and reply, in bytes.
const IN_HEADER: usize = 40;
const OUT_HEADER: u32 = 16;
const REPLY_HEADER: usize = 16;

/// A virtio-fs device.
pub struct Fs {
    server: Server<Tree>,
    space: [u8; TAG_LEN + 4],
    memory: Option<AtomicMemory>,
    tally: Arc<Tally>,
    warned: bool,
}

impl std::fmt::Debug for Fs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fs")
            .field("space", &self.space)
            .finish_non_exhaustive()
    }
}

impl Fs {
    /// A device that offers `tree` to the guest under `tag`.
    ///
    /// # Errors
    /// [`FsError::Tag`].
    pub fn new(tree: Tree, tag: &str) -> Result<Self, FsError> {
        let bytes = tag.as_bytes();
        if bytes.is_empty() || bytes.len() > TAG_LEN || bytes.contains(&0) {
            return Err(FsError::Tag {
                tag: tag.to_owned(),
            });
        }
        let mut space = [0; TAG_LEN + 4];
        let queues = u32::to_le_bytes(1);
        let fields = bytes
            .iter()
            .chain(std::iter::repeat(&0))
            .take(TAG_LEN)
            .chain(&queues);
        for (to, from) in space.iter_mut().zip(fields) {
            *to = *from;
        }
        Ok(Self {
            server: Server::new(tree),
            space,
            memory: None,
            tally: Arc::default(),
            warned: false,
        })
    }

    /// Serves requests of one ring until there are none.
    fn serve(&mut self, vring: &Vring) -> Result<(), QueueError> {
        let Some(memory) = self.memory.as_ref().map(GuestAddressSpace::memory) else {
            return Ok(());
        };
        let mut state = vring.get_mut();
        if !state.is_enabled() || !state.get_queue().ready() {
            return Ok(());
        }
        loop {
            state.disable_notification()?;
            while let Some(chain) = state.get_queue_mut().iter(&*memory)?.next() {
                let head = chain.head_index();
                let (taken, len) = match request(&self.server, &memory, chain.clone()) {
                    Ok(moved) => moved,
                    Err(e) => {
                        if !self.warned {
                            self.warned = true;
                            log::warn!(
                                "fs: a request of the guest was refused: {e}; more of the kind is \
                                 not reported"
                            );
                        }
                        (0, refuse(&memory, chain))
                    }
                };
                state.add_used(head, len)?;
                self.tally.done(taken, len);
                if state.needs_notification()? {
                    // A full socket (User-Mode Linux) means that one is already waiting.
                    let _ = state.signal_used_queue();
                }
            }
            if !state.enable_notification()? {
                return Ok(());
            }
        }
    }
}

/// Serves one request.
fn request<F: FileSystem + Sync>(
    server: &Server<F>,
    memory: &Memory,
    chain: DescriptorChain<&Memory>,
) -> io::Result<Moved> {
    let reader = Reader::new(memory, chain.clone()).map_err(io::Error::other)?;
    let writer = Writer::new(memory, chain.clone()).map_err(io::Error::other)?;
    // The server takes for granted that a reply has room for its header.
    if writer.available_bytes() < REPLY_HEADER && !is_one_way(memory, chain) {
        return Err(io::Error::other("there is no room for a reply"));
    }
    let taken = reader.available_bytes();
    let len = server
        .handle_message(reader, writer, None::<&mut vhost::vhost_user::Backend>)
        .map_err(io::Error::other)?;
    Ok((taken, u32::try_from(len).map_err(io::Error::other)?))
}

/// Whether the request is of the kinds that are not answered.
fn is_one_way(memory: &Memory, chain: DescriptorChain<&Memory>) -> bool {
    const FORGET: u32 = 2;
    const INTERRUPT: u32 = 36;
    const BATCH_FORGET: u32 = 42;
    let mut header = [0; 8];
    let read =
        Segments::readable(chain, memory).is_ok_and(|request| request.copy_to(&mut header) == 8);
    let [_, _, _, _, opcode @ ..] = header;
    read && [FORGET, INTERRUPT, BATCH_FORGET].contains(&u32::from_le_bytes(opcode))
}

/// Answers a request that made no sense with an input/output error, as far as it can be answered:
/// the guest process that sent it must not wait for ever. Returns the length of the reply.
fn refuse(memory: &Memory, chain: DescriptorChain<&Memory>) -> u32 {
    let (Ok(request), Ok(reply)) = (
        Segments::readable(chain.clone(), memory),
        Segments::writable(chain, memory),
    ) else {
        return 0;
    };
    let mut header = [0; IN_HEADER];
    if request.copy_to(&mut header) < IN_HEADER {
        return 0;
    }
    let unique = header.iter().skip(8).take(8);
    let error = (-libc::EIO).to_le_bytes();
    let bytes: Vec<u8> = OUT_HEADER
        .to_le_bytes()
        .iter()
        .chain(&error)
        .chain(unique)
        .copied()
        .collect();
    if reply.len() < bytes.len() {
        return 0;
    }
    reply.copy_from(&bytes);
    OUT_HEADER
}

impl VhostUserBackendMut for Fs {
    type Bitmap = BitmapMmapRegion;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    /// The configuration space is for User-Mode Linux; QEMU up to 8.0 has the tag from its own
    /// command line and does not ask.
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn reset_device(&mut self) {
        self.server.destroy();
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        config_space(&self.space, offset, size)
    }

    fn update_memory(&mut self, memory: AtomicMemory) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn handle_event(
        &mut self,
        event: u16,
        _: EventSet,
        vrings: &[Vring],
        _: usize,
    ) -> io::Result<()> {
        let Some(vring) = vrings.get(usize::from(event)) else {
            return Ok(());
        };
        if let Err(e) = self.serve(vring) {
            log::error!("fs: ring {event} of the guest is broken and is served no more: {e}");
            vring.set_queue_ready(false);
        }
        Ok(())
    }
}

impl Device for Fs {
    const NAME: &'static str = "fs";

    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn stopped(&self) -> bool {
        false
    }

    fn disconnected(&mut self, _: &[Vring]) {
        // Nobody is left to answer.
    }

    fn drained(&self) -> bool {
        true
    }

    fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }
}
