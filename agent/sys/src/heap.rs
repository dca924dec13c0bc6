//! The C library's heap: kept small in a process that is large for moments only
//! (a pull, a snapshot). Called by the daemon's `main.rs` and loop.

/// At most so many arenas: each thread that allocates at a bad moment gets one of
/// its own, and what it frees stays there. To be called before threads are started.
pub fn few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: two integers; it may be called at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives free memory back to the kernel. Takes the heap's locks, for less than a
/// millisecond in a process of some ten megabytes.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: an integer; it may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
