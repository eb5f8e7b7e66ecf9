//! Values that must never reach a log, an error or a debug print.

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

/// A secret value: it is wiped when dropped and prints as `[redacted]`.
///
/// There is deliberately no `Display`, and the `Debug` form shows nothing of the content, so that a
/// secret cannot slip into a log line through a structure that contains it.
pub struct Secret<T: Zeroize>(Zeroizing<T>);

impl<T: Zeroize> Secret<T> {
    /// Takes a value into custody.
    pub fn new(value: T) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The value itself, for the one place that needs it.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl<T: Zeroize + AsRef<[u8]>> Secret<T> {
    /// Compares two secrets in a time that does not depend on where they differ.
    pub fn same_as(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(
            self.expose().as_ref(),
            other.expose().as_ref(),
        )
        .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new(vec![1u8, 2])), "[redacted]");
    }

    #[test]
    fn compares_by_content() {
        let a = Secret::new(vec![1u8, 2]);
        assert!(a.same_as(&Secret::new(vec![1u8, 2])));
        assert!(!a.same_as(&Secret::new(vec![1u8, 3])));
        assert!(!a.same_as(&Secret::new(vec![1u8])));
    }
}
