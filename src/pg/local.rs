//! State of this process.

use std::cell::{Cell, RefCell};

/// A `static` of a server process, read and replaced as a whole. Server processes are single-threaded (fork, not threads), so a plain cell does.
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

/// One that is lent and changed in place.
pub struct ProcessState<T>(RefCell<T>);

// SAFETY: as above.
unsafe impl<T> Sync for ProcessState<T> {}

impl<T> ProcessState<T> {
    /// With its first value.
    pub const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    /// Lends the value.
    ///
    /// # Panics
    /// It is lent already.
    pub fn with<R>(&self, use_it: impl FnOnce(&mut T) -> R) -> R {
        use_it(&mut self.0.borrow_mut())
    }
}
