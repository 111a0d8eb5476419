//! Small random checkpoints.
