//! What the end-to-end tests share: starting containers, taking inventories.
