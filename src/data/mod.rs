//! Data: the toy world, questions from files, and the feature cache on disk.

pub mod feature_cache;
pub mod samples;
pub mod world;
