//! The heap of the process.

/// Has all threads share one arena, where the C library has several. Sessions go from thread to thread: with an arena for
/// each, the memory of those that went would stay behind, and the process grow without reason. Where bytes move, hardly
/// anything is allocated: threads do not wait for each other. To be called before there is a second thread.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn share() {
    // SAFETY: no other thread runs, and the option exists in every version of the library.
    #[expect(unsafe_code, reason = "no safe library knows this call")]
    let taken = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    // What is not taken costs memory, nothing else.
    debug_assert_eq!(taken, 1);
}

/// Other C libraries have one heap for all.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn share() {}
