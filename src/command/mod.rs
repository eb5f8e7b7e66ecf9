//! The commands of the program: what each option of the command line does, up to the exit status.

mod check_config;
mod create_config;
mod doctor;
mod fd_store;
mod healthcheck;
mod interrupt;
mod node_address;
mod output;
mod probe;
mod relay;
mod service;
mod termination;

use std::process::ExitCode;

use crate::bootstrap;
use crate::cli::{Arguments, Command};
use crate::config::sources::Sources;
use crate::exit::{self, ExitError, ExitResult};

/// Executes the command that the arguments name, and reports its error.
pub fn execute(arguments: &Arguments) -> ExitCode {
    // JSON and addresses on stdout are read by programs.
    let is_stdout_for_people = !arguments.json && arguments.node_address.is_none();
    let result = arguments.to_command().map_err(ExitError::usage).and_then(|command| {
        let sources = Sources::of_process(arguments.config.clone());
        run(&command, &sources)
    });
    exit::conclude(result, is_stdout_for_people)
}

fn run(command: &Command, sources: &Sources) -> ExitResult {
    match command {
        Command::RunRelay => termination::record(sources, bootstrap::run(sources)),
        Command::CreateConfig => create_config::run(sources),
        Command::CheckConfig(format) => check_config::run(sources, *format),
        Command::Healthcheck(probe) => healthcheck::run(sources, *probe),
        Command::UseRelay(action, format) => relay::run(sources, action, *format),
        Command::RunStore => termination::record(sources, fd_store::run(sources)),
        Command::CheckStore => fd_store::check(sources),
        Command::NodeAddress(request) => {
            termination::record(sources, node_address::run(sources, request))
        }
        Command::Doctor { format, expects_relay } => {
            let result = doctor::run(sources, *format, *expects_relay);
            // As process 1 the doctor is what the container runs, not something that `kubectl exec` starts beside the
            // relay.
            if std::process::id() == 1 { termination::record(sources, result) } else { result }
        }
        Command::Probe(target, format) => probe::run(target, *format),
        Command::ControlService(action) => service::run(sources, *action),
    }
}
