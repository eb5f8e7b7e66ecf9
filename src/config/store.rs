//! The parser of the descriptor store's address. Its errors say what is expected.

use crate::fd_store::address::{StoreAddress, StoreAddressError};

/// Parses the address of the descriptor store; `off` is `None`.
///
/// # Errors
/// Says what is expected.
pub(super) fn address(text: &str) -> Result<Option<StoreAddress>, String> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    match text.parse() {
        Ok(_) if !cfg!(target_os = "linux") => {
            Err("off, since the descriptor store exists only on Linux".to_owned())
        }
        Ok(address) => Ok(Some(address)),
        Err(error @ StoreAddressError::Form) => Err(format!("{error}; or off")),
        Err(error) => Err(error.to_string()),
    }
}
