//! The `aspia_relay` program; everything it does is in the library.

use std::process::ExitCode;

use aspia_relay::cli::Arguments;
use aspia_relay::{command, heap, process};
use clap::Parser;

fn main() -> ExitCode {
    heap::use_one_arena();
    process::keep_memory_private();
    process::use_bind_capability();
    command::execute(&Arguments::parse())
}
