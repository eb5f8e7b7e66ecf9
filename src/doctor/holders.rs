//! What the programs that hold a port may be.

use crate::listen::port_holder::Holder;

use super::site::Site;

/// The name of this program, and of the original.
const PROGRAM: &str = "aspia_relay";
/// Programs that hold a port for a container: what is behind them may be the relay. Some have a build for each kind of
/// processor, whose name goes on after a dot (`pasta.avx2`).
const FORWARDERS: &[&str] =
    &["docker-proxy", "rootlessport", "rootlesskit", "slirp4netns", "pasta", "conmon"];

/// Whether it is this program or the original, by its name.
pub(super) fn is_named_as_relay(holder: &Holder) -> bool {
    holder.name == PROGRAM && !is_doctor(holder)
}

/// Whether it is another doctor.
pub(super) fn is_doctor(holder: &Holder) -> bool {
    holder.name == PROGRAM && holder.arguments.iter().any(|argument| argument == "--doctor")
}

/// Whether it only holds the port for a container.
pub(super) fn is_forwarder(holder: &Holder) -> bool {
    let name = holder.name.split('.').next().unwrap_or_default();
    FORWARDERS.contains(&name)
}

/// Why nobody who may be the relay is told to be stopped: all `holders` of `what` are unseen, or one stands for a
/// container; `None` where they are others.
pub(super) fn unknown(what: &str, holders: &[Holder], why: &str, site: Site) -> Option<String> {
    if holders.is_empty() {
        return Some(format!(
            "{what} is held by a program that this user cannot see; it may be the relay ({why}). {}",
            site.to_see_holder()
        ));
    }
    let forwarder = holders.iter().find(|holder| is_forwarder(holder))?;
    Some(format!(
        "{what} is held by {forwarder} for a container, which may be the relay's: run the doctor in that container"
    ))
}

/// Why a program with the relay's name is not told to be stopped; `None` where no holder of `what` has it.
pub(super) fn namesake(what: &str, holders: &[Holder], why: &str) -> Option<String> {
    let holder = holders.iter().find(|holder| is_named_as_relay(holder))?;
    Some(format!(
        "{what} is held by {holder}, a relay or the original program, which has the same name: {why}. It is left \
         alone. If it is the original, stop it before this relay starts"
    ))
}
