//! The compile-time half of the guard's contract; alone in its file so that a test can compile it by itself.

/// Refuses, at compile time, a closure or a result that needs `Drop`: a longjmp over it would leak or worse.
pub const fn assert_plain<F, R>() {
    assert!(
        !std::mem::needs_drop::<F>(),
        "a guarded closure must not capture a value that needs Drop: an error would jump over it"
    );
    assert!(
        !std::mem::needs_drop::<R>(),
        "a guarded closure must not return a value that needs Drop"
    );
}
