//! frames
fn main() {}
