//! The memory allocator of the C library: how it is set up, and when it gives memory back.

/// Makes all threads share one arena of the C library, which otherwise creates several. Sessions move between threads: with
/// several arenas, the memory that a session frees when it moves would stay in the arena of its former thread, and the process
/// would grow. Forwarding hardly allocates, so threads do not contend for the arena. Must be called before a second thread
/// exists.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn use_one_arena() {
    // SAFETY: no other thread runs, and the option exists in every version of the library.
    #[expect(unsafe_code, reason = "no safe library has this call")]
    let accepted = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    // If the option is not accepted, the process uses more memory.
    debug_assert_eq!(accepted, 1);
}

/// Does nothing: other C libraries have one heap for all threads.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn use_one_arena() {}

/// Gives memory that is free back to the system, wherever in the heap it is. By itself, the C library gives back only what is
/// free at the end of the heap, and one small allocation that lives on there keeps everything. Takes some milliseconds for
/// 100 MB, during which other threads cannot allocate.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn release_free_memory() {
    // SAFETY: the call may be made at any time, from any thread.
    #[expect(unsafe_code, reason = "no safe library has this call")]
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Does nothing: other C libraries give memory back by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn release_free_memory() {}
