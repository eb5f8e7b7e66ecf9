//! Values that must never appear in a log, an error or debug output.

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

/// A secret value, which is wiped when it is dropped and prints as `[redacted]`.
///
/// There is deliberately no `Display`, and `Debug` shows nothing of the value, so that a secret cannot slip into a log line
/// through a structure that contains it.
pub struct Secret<T: Zeroize>(Zeroizing<T>);

impl<T: Zeroize> Secret<T> {
    /// Wraps a value.
    pub fn new(value: T) -> Self {
        Self(Zeroizing::new(value))
    }

    /// Returns the value. Call it only where the value itself is needed.
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
    /// Compares two secrets in constant time.
    pub fn is_same_as(&self, other: &Self) -> bool {
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
    fn debug_output_is_redacted() {
        assert_eq!(format!("{:?}", Secret::new(vec![1u8, 2])), "[redacted]");
    }

    #[test]
    fn secrets_are_compared_by_value() {
        let a = Secret::new(vec![1u8, 2]);
        assert!(a.is_same_as(&Secret::new(vec![1u8, 2])));
        assert!(!a.is_same_as(&Secret::new(vec![1u8, 3])));
        assert!(!a.is_same_as(&Secret::new(vec![1u8])));
    }
}
