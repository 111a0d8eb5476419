//! Data: the toy world, and the feature cache on disk.

pub mod feature_cache;
pub mod world;
