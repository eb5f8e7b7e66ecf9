//! Bytes that a receiver has not accepted yet.

use std::ops::Deref;

use memmap2::MmapMut;

/// Copies of at least this size get pages of their own. After thousands of receivers have stalled at once and then accepted
/// their bytes, the system gets the memory back; in the heap, it would stay, fragmented.
const MIN_PAGED_SIZE: usize = 4096;

/// A copy of bytes, in the heap or in its own pages.
#[derive(Debug)]
pub(super) enum Backlog {
    Heap(Box<[u8]>),
    Pages(MmapMut),
}

impl Backlog {
    /// Copies bytes.
    pub(super) fn copy_of(bytes: &[u8]) -> Self {
        if bytes.len() >= MIN_PAGED_SIZE
            && let Ok(mut pages) = MmapMut::map_anon(bytes.len())
        {
            pages.copy_from_slice(bytes);
            return Self::Pages(pages);
        }
        // If the system provides no pages, the heap may still have room.
        Self::Heap(bytes.into())
    }
}

impl Deref for Backlog {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Pages(pages) => pages,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_is_equal_at_every_size() {
        for length in [1, MIN_PAGED_SIZE - 1, MIN_PAGED_SIZE, MIN_PAGED_SIZE + 1, 64 * 1024] {
            let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(length).collect();
            let backlog = Backlog::copy_of(&bytes);
            assert_eq!(*backlog, *bytes);
            assert_eq!(matches!(backlog, Backlog::Pages(_)), length >= MIN_PAGED_SIZE);
        }
    }
}
