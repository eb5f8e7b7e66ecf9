//! What the programs that hold a port may be.

use crate::listen::port_holder::PortHolder;

use super::deployment::Deployment;

/// The name of this program, which is also that of the original.
const PROGRAM: &str = "aspia_relay";
/// Programs that hold a port for a container, in which the relay may run. Some have a build for each CPU, whose name
/// continues after a dot (`pasta.avx2`).
const FORWARDERS: &[&str] =
    &["docker-proxy", "rootlessport", "rootlesskit", "slirp4netns", "pasta", "conmon"];

/// Whether the process has the name of this program and of the original one.
pub(super) fn is_named_as_relay(holder: &PortHolder) -> bool {
    holder.name == PROGRAM && !is_doctor(holder)
}

/// Whether the process is another doctor.
pub(super) fn is_doctor(holder: &PortHolder) -> bool {
    holder.name == PROGRAM && holder.arguments.iter().any(|argument| argument == "--doctor")
}

/// Whether the process only holds the port for a container.
pub(super) fn is_forwarder(holder: &PortHolder) -> bool {
    let name = holder.name.split('.').next().unwrap_or_default();
    FORWARDERS.contains(&name)
}

/// Describes holders of `what` that may be the relay, so that nobody is told to stop them: they are not visible, or one
/// of them holds the port for a container. `None` if they are other programs.
pub(super) fn describe_unknown(
    what: &str,
    holders: &[PortHolder],
    why: &str,
    deployment: Deployment,
) -> Option<String> {
    if holders.is_empty() {
        return Some(format!(
            "{what} is held by a program that this user cannot see; it may be the relay ({why}). {}",
            deployment.holder_advice()
        ));
    }
    let forwarder = holders.iter().find(|holder| is_forwarder(holder))?;
    Some(format!(
        "{what} is held by {forwarder} for a container, which may be the relay's: run the doctor in that container"
    ))
}

/// Describes a holder of `what` that has the name of the relay, so that nobody is told to stop it; `None` if there is
/// none.
pub(super) fn describe_namesake(what: &str, holders: &[PortHolder], why: &str) -> Option<String> {
    let holder = holders.iter().find(|holder| is_named_as_relay(holder))?;
    Some(format!(
        "{what} is held by {holder}, which is a relay, or the original program, which has the same name: {why}. It is \
         left alone. If it is the original program, stop it before this relay starts"
    ))
}
