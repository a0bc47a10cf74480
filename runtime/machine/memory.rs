//! Memory: what is free, and what was freed and the allocator keeps for what comes.

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

/// Bytes that are free on this machine, where the system tells.
pub fn free() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
