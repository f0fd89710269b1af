//! State of this process.

use std::cell::Cell;

/// A `static` of a server process. Server processes are single-threaded (fork, not threads), so a plain cell does.
pub struct ProcessLocal<T>(Cell<T>);

// SAFETY: a server process runs our code on one thread only.
unsafe impl<T> Sync for ProcessLocal<T> {}

impl<T: Copy> ProcessLocal<T> {
    /// With its first value.
    pub const fn new(value: T) -> Self {
        Self(Cell::new(value))
    }

    /// The value.
    pub fn get(&self) -> T {
        self.0.get()
    }

    /// Replaces the value.
    pub fn set(&self, value: T) {
        self.0.set(value);
    }
}
