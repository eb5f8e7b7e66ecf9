//! The synchronization primitives of code whose interleavings `tests/loom` checks. There, that code is compiled with the
//! primitives of `loom` in their place.

pub(crate) use atomic_waker::AtomicWaker;
pub(crate) use parking_lot::Mutex;
pub(crate) use std::sync::atomic;
