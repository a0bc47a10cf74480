//! Memory that was freed, and that the allocator keeps for what comes.

#![allow(unsafe_code)]

/// Gives freed memory back to the system, where the allocator can: what a session held is hundreds of megabytes, and the next one takes
/// others.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it touches what is free alone, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
