//! A lock that measures how long it is held.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A mutex that remembers its longest hold.
#[derive(Debug)]
pub(super) struct Timed<T> {
    inner: Mutex<T>,
    longest: AtomicU64,
}

/// The lock while it is held.
pub(super) struct Held<'a, T> {
    guard: MutexGuard<'a, T>,
    since: Instant,
    longest: &'a AtomicU64,
}

impl<T> Timed<T> {
    pub fn new(value: T) -> Self {
        Self { inner: Mutex::new(value), longest: AtomicU64::new(0) }
    }

    /// A panic cannot leave what the lock protects in a state that others cannot use.
    pub fn lock(&self) -> Held<'_, T> {
        let guard = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        Held { guard, since: Instant::now(), longest: &self.longest }
    }

    /// The longest time that it was held.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest.load(Ordering::Relaxed))
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        let held = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.longest.fetch_max(held, Ordering::Relaxed);
    }
}
