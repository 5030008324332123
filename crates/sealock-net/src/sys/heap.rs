//! How much freed memory the allocator keeps, in place of giving it back page by page.

/// What is kept free at the top of a heap: the buffers of some streams at full speed, which come and go in microseconds.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 8 << 20;
/// The same for the heaps of the other threads, of which nothing else is kept once a threshold was set.
#[cfg(target_env = "gnu")]
const KEPT_BY_THREAD: libc::c_int = 2 << 20;
/// From this size on an allocation is a mapping of its own: above every buffer of a stream, which would else be mapped,
/// zeroed and unmapped each time.
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 1 << 20;

/// Lets the allocator keep what buffers of moving bytes gave back: without it a process that moves much spends a tenth of
/// its time on pages that it returns and takes again. To be called once, before there is a second thread.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no crate that we use sets these options")]
pub fn keep_freed_memory() {
    // SAFETY: `mallopt` takes two numbers and touches the allocator's own state alone, under its lock. It refuses what it
    // does not know, and then everything is as before.
    let _refused = unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT)
            & libc::mallopt(libc::M_TOP_PAD, KEPT_BY_THREAD)
            & libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED)
    };
}

/// Other allocators have no such option, and need none.
#[cfg(not(target_env = "gnu"))]
pub fn keep_freed_memory() {}
