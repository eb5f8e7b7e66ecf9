//! The addresses of this machine.

use std::io;
use std::net::IpAddr;

/// Returns the addresses of this machine's interfaces.
///
/// # Errors
/// The error of the system call.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    Ok(if_addrs::get_if_addrs()?.iter().map(|interface| interface.ip()).collect())
}

/// Whether a connection to `address` reaches this machine itself; `false` if that cannot be determined.
pub fn is_local(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback()
        // A connection to the unspecified address goes to loopback.
        || address.is_unspecified()
        || addresses().is_ok_and(|own| own.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine_are_local_and_others_are_not() {
        for local in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"] {
            assert!(is_local(local.parse().unwrap()), "{local}");
        }
        for own in addresses().unwrap() {
            assert!(is_local(own), "{own}");
        }
        // These addresses are reserved for documentation, so no machine has them.
        for other in ["203.0.113.5", "2001:db8::5", "::ffff:203.0.113.5"] {
            assert!(!is_local(other.parse().unwrap()), "{other}");
        }
    }
}
