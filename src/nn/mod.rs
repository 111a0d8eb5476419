//! Layers that are safe to train.

mod conv1d;
