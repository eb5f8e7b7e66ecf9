//! The addresses of this machine.

use std::io;
use std::net::IpAddr;

/// The addresses of this machine's interfaces.
///
/// # Errors
/// What the system says.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    Ok(if_addrs::get_if_addrs()?.iter().map(|interface| interface.ip()).collect())
}

/// Whether whoever connects to `address` reaches this machine itself. `false` where the system does not tell.
pub fn is_local(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback()
        // A connection to it goes to loopback.
        || address.is_unspecified()
        || addresses().is_ok_and(|own| own.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine_are_told_from_those_of_others() {
        for local in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"] {
            assert!(is_local(local.parse().unwrap()), "{local}");
        }
        for own in addresses().unwrap() {
            assert!(is_local(own), "{own}");
        }
        // Documentation has these, and no machine.
        for other in ["203.0.113.5", "2001:db8::5", "::ffff:203.0.113.5"] {
            assert!(!is_local(other.parse().unwrap()), "{other}");
        }
    }
}
