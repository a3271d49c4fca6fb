//! Virtio devices over vhost-user, and the process that serves them.
