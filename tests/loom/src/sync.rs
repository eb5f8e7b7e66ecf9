//! Stands in for `src/sync.rs`, with the primitives of `loom`.

use std::task::Waker;

use loom::sync::MutexGuard;

pub(crate) use loom::sync::atomic;

/// A mutex with the interface of `parking_lot`.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}

/// A stand-in with the contract of `atomic_waker`, which `loom` cannot look into: a wake-up wakes the waker that was registered
/// last, or a registration that it meets wakes its own.
#[derive(Debug, Default)]
pub(crate) struct AtomicWaker(loom::future::AtomicWaker);

impl AtomicWaker {
    pub(crate) fn register(&self, waker: &Waker) {
        self.0.register_by_ref(waker);
    }

    pub(crate) fn wake(&self) {
        self.0.wake();
    }
}
