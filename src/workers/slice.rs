//! Tells the kernel that a thread works in short pieces.
//!
//! What a forwarding thread does on waking takes some microseconds, but a scheduler that knows nothing of it lets the
//! program that runs finish its slice of some milliseconds first: on a machine with more to do than processors that is
//! what the slowest hundredth of all messages waits for. A thread that asks for shorter slices comes sooner and gets no
//! more than before. No right is needed for it. (Linux 6.12 and later; `sched_runtime` in sched_setattr(2).)

use std::io;

/// The shortest slice that the kernel gives, in nanoseconds (`sched_runtime` of `__setparam_fair`).
const SLICE: u64 = 100_000;

/// Asks for short slices for this thread. An older kernel hears it and does nothing.
///
/// # Errors
/// When the system refuses.
#[cfg(target_os = "linux")]
pub(super) fn shorten() -> io::Result<()> {
    let mut attributes = libc::sched_attr {
        size: 0,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    let size = u32::try_from(size_of_val(&attributes)).map_err(io::Error::other)?;
    let check = |result| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: the kernel writes at most `size` bytes to `attributes`, which is as large; 0 is this thread.
    #[expect(unsafe_code, reason = "no safe library knows this call")]
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) })?;
    // Whoever gave it another policy knows better.
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.size = size;
    attributes.sched_runtime = SLICE;
    // SAFETY: the kernel reads `size` bytes of `attributes`, which is as large; 0 is this thread.
    #[expect(unsafe_code, reason = "no safe library knows this call")]
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

/// Other systems have nothing like it.
#[cfg(not(target_os = "linux"))]
pub(super) fn shorten() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_system_takes_it_again_and_again() {
        super::shorten().unwrap();
        super::shorten().unwrap();
    }
}
