//! Data on disk: the feature cache.

pub mod feature_cache;
