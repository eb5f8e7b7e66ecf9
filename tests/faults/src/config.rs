//! Stands in for the settings.

pub(crate) mod parse {
    use std::num::NonZero;

    /// Bytes a second.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Bandwidth(pub(crate) NonZero<u64>);
}
