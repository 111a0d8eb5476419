//! What turns gradients into steps: named parameters, AdamW, schedules, clipping.

mod parameters;

pub use parameters::Parameters;
