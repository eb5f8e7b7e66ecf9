//! Exits with 0 if a panic runs destructors, passes through frames of other functions and is caught.

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

static DROPPED: AtomicU32 = AtomicU32::new(0);

struct Counts;

impl Drop for Counts {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

#[inline(never)]
fn down(levels: u32) -> u32 {
    let _counts = Counts;
    assert!(levels > 0, "on purpose");
    down(levels - 1) + 1
}

fn main() -> ExitCode {
    let here = catch_unwind(|| down(10));
    let elsewhere = std::thread::spawn(|| down(10)).join();
    let dropped = DROPPED.load(Ordering::Relaxed);
    println!("{} {} {dropped}", here.is_err(), elsewhere.is_err());
    if here.is_err() && elsewhere.is_err() && dropped == 22 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
