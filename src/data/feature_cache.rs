//! Feature cache.
