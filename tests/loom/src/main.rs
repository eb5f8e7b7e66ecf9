//! Runs the code by which threads and tasks synchronize in every interleaving, and with every value that a load may see.
//!
//! The code is that of the relay: its very files are compiled here, with the primitives of `loom` in `crate::sync` and with
//! stand-ins for the few types that they mention. `loom` reports a task that waits although nobody will wake it as a deadlock.
//!
//! Models of two threads run in all interleavings. For those of more threads, that would take hours: there, a thread is
//! interrupted at most [`MAX_PREEMPTIONS`] times where it could go on, and wherever it waits, all others have their turn.

mod detaching;
mod pool;
mod signal;
mod state;
mod sync;
mod workers;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// How many times a thread is interrupted, in models of more than two threads. Nearly all mistakes show with two.
const MAX_PREEMPTIONS: usize = 3;

/// What is run in each interleaving.
struct Model {
    path: &'static str,
    body: fn(),
    max_preemptions: Option<usize>,
}

/// Lists the models of a module in its constant `MODELS`, those of two threads before the `;`.
macro_rules! models {
    ($($two:ident,)*; $($more:ident,)*) => {
        pub(crate) const MODELS: &[$crate::Model] = &[
            $($crate::Model {
                path: concat!(module_path!(), "::", stringify!($two)),
                body: $two,
                max_preemptions: None,
            },)*
            $($crate::Model {
                path: concat!(module_path!(), "::", stringify!($more)),
                body: $more,
                max_preemptions: Some($crate::MAX_PREEMPTIONS),
            },)*
        ];
    };
}
use models;

fn main() -> ExitCode {
    let models = [signal::MODELS, detaching::MODELS, workers::MODELS, pool::MODELS];
    let trials = models.into_iter().flatten().map(|model| {
        // Without the name of the program.
        let name = model.path.split_once("::").map_or(model.path, |(_, name)| name);
        Trial::test(name, || {
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = model.max_preemptions;
            builder.check(model.body);
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
