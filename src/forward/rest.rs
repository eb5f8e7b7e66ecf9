//! Bytes that a receiver did not take yet.

use std::ops::Deref;

use memmap2::MmapMut;

/// From this size on, bytes get pages of their own. When thousands of receivers have stood still at once and go on, the
/// memory goes back to the system with the last of their bytes; in the heap it would stay, full of holes.
const OWN_PAGES: usize = 4096;

/// Some bytes.
#[derive(Debug)]
pub(super) enum Rest {
    Few(Box<[u8]>),
    Many(MmapMut),
}

impl Rest {
    /// Keeps a copy.
    pub(super) fn keep(bytes: &[u8]) -> Self {
        if bytes.len() >= OWN_PAGES
            && let Ok(mut pages) = MmapMut::map_anon(bytes.len())
        {
            pages.copy_from_slice(bytes);
            return Self::Many(pages);
        }
        // Where the system gives no pages, the heap may still have room.
        Self::Few(bytes.into())
    }
}

impl Deref for Rest {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Few(bytes) => bytes,
            Self::Many(pages) => pages,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_size_the_bytes_are_the_same() {
        for length in [1, OWN_PAGES - 1, OWN_PAGES, OWN_PAGES + 1, 64 * 1024] {
            let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(length).collect();
            let rest = Rest::keep(&bytes);
            assert_eq!(*rest, *bytes);
            assert_eq!(matches!(rest, Rest::Many(_)), length >= OWN_PAGES);
        }
    }
}
