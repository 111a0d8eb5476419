//! What turns gradients into steps: named parameters, AdamW, schedules, clipping.

mod adamw;
mod clip;
mod parameters;
mod schedule;

pub use adamw::{AdamW, AdamWConfig};
pub use clip::clip_grad_norm;
pub use parameters::{Parameters, add_gradients};
pub use schedule::{Schedule, Shape};
