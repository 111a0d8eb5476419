//! conv1d
