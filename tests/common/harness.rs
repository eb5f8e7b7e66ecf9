//! The harness of the test programs `system` and `alone`, whose tests have requirements that not every machine meets.
//!
//! The built-in harness decides before it runs a test whether it ignores it; this one can decide while the test runs. A test
//! that calls [`relay_lab::cannot_run`] is listed as ignored, with the reason, and does not count as passed. Arguments and
//! output are otherwise those of the built-in harness, except that output is not captured.
//!
//! `#[test]` has no effect here. Each module lists its tests with [`tests!`], and an asynchronous test gets its runtime from
//! `#[tokio::main]`. A test that is not listed is dead code, which the compiler reports.

use std::panic::{catch_unwind, resume_unwind};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Trial};
use relay_lab::CannotRun;

/// A test, with the path of its function.
pub(crate) struct Test {
    pub(crate) path: &'static str,
    pub(crate) body: fn(),
}

/// Lists the tests of a module in its constant `TESTS`.
macro_rules! tests {
    ($($test:ident,)*) => {
        pub(crate) const TESTS: &[$crate::harness::Test] = &[$(
            $crate::harness::Test { path: concat!(module_path!(), "::", stringify!($test)), body: $test },
        )*];
    };
}
pub(crate) use tests;

/// Runs the tests that `arguments` select.
pub(crate) fn run(arguments: &Arguments, modules: &[&[Test]]) -> ExitCode {
    let trials = modules.iter().copied().flatten().map(trial).collect();
    libtest_mimic::run(arguments, trials).exit_code()
}

fn trial(test: &Test) -> Trial {
    // Without the name of the program.
    let name = test.path.split_once("::").map_or(test.path, |(_, name)| name);
    let body = test.body;
    Trial::ignorable_test(name, move || {
        let Err(panic) = catch_unwind(body) else { return Ok(Completion::Completed) };
        match panic.downcast::<CannotRun>() {
            Ok(cannot_run) => Ok(Completion::ignored_with(cannot_run.0)),
            Err(panic) => resume_unwind(panic),
        }
    })
}
