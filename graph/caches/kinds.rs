//! Kinds of caches.

/// What a run does to a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Update {
    /// The output is the input with the new part behind it.
    Grows,
    /// The new part is written into the buffer, where an input says: `TensorScatter`.
    Written,
    /// Both, as the caller likes: the output may be the memory of the input, which then is as long as the capacity
    /// (`com.microsoft.GroupQueryAttention`).
    Shared,
    /// Nothing: the cache is only read.
    Kept,
}

/// What an attention takes a cache for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    Keys,
    Values,
    Both,
}
